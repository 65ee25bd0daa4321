"""Figures show what the tables and masks say."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mvl.data.tasks import TASKS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.show import figures
from mvl.study.statistics import contrast, contrasts_table
from mvl.study.suites import SUITES
from mvl.study.summary import summary_table

REAL = TASKS["Task04_Hippocampus"]
PHANTOM = replace(REAL, synthetic=True)


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    found += [figure._supxlabel.get_text()] if figure._supxlabel else []
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts] + [axes.get_xlabel(), axes.get_ylabel()]
    return " | ".join(found)


@pytest.fixture
def view():
    truth = np.zeros((10, 20, 16), bool)
    truth[2:6, 4:12, 8:11] = True
    image = np.random.default_rng(0).random(truth.shape)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    return figures.View(image, affine, truth, np.roll(truth, 1, axis=1), "a case", "Dice 0.50")


def test_contours_lie_where_the_mask_is_in_millimetres(view):
    axial = figures.slices(view, REAL).axes[2]
    truth = next(c for c in axial.collections if c.get_label() == "truth")
    points = np.concatenate([path.vertices for path in truth.get_paths()])
    # Along x: voxels 2 to 5 of 2 mm, from 4 to 12; along y: voxels 4 to 11 of 1 mm.
    assert points[:, 0].min() == pytest.approx(4, abs=1.01)
    assert points[:, 0].max() == pytest.approx(12, abs=1.01)
    assert points[:, 1].min() == pytest.approx(4, abs=0.51)
    assert points[:, 1].max() == pytest.approx(12, abs=0.51)
    assert axial.get_aspect() == 1


def test_voxels_say_where_they_are_from(view):
    assert figures.ATTRIBUTION in texts(figures.slices(view, REAL))
    synthetic = texts(figures.slices(view, PHANTOM))
    assert "SYNTHETIC" in synthetic and figures.ATTRIBUTION not in synthetic
    assert "Dice 0.50" in synthetic
    own = replace(REAL, name="MyTask")
    assert figures.ATTRIBUTION not in texts(figures.slices(view, own))


def test_a_stored_orientation_changes_no_picture(view):
    turned = np.diag([-2.0, 1.0, 0.5, 1.0])
    turned[0, 3] = 18
    flipped = replace(
        view,
        image=view.image[::-1],
        affine=turned,
        truth=view.truth[::-1],
        prediction=view.prediction[::-1],
    )
    one, other = (figures.slices(v, REAL).axes[2].images[0].get_array() for v in (view, flipped))
    assert np.array_equal(one, other)


def column(view, task=REAL):
    """One case as a column of the grid: image, truth, one model."""
    bare = replace(view, truth=None, prediction=None, title="image", caption="")
    truth = replace(view, prediction=None, title="truth", caption="")
    return task, [bare, truth, replace(view, title="vit")]


def test_a_column_of_the_task_grid_is_one_slice_around_the_structure(view):
    own = replace(TASKS["Task06_Lung"], name="MyTask")
    columns = [column(view), column(view), (own, [*column(view)[1][:2], None])]
    figure = figures.task_grid(columns)
    first = [axes for axes in figure.axes if axes.get_subplotspec().colspan.start == 0]
    assert [axes.get_ylabel() for axes in first] == ["image", "truth", "vit"]
    shown = [axes.images[0].get_array() for axes in first]
    assert all(np.array_equal(slice_, shown[0]) for slice_ in shown)
    # The truth is alike from slice 8 to 10 across; along x it reaches from 4 to 12 mm, along y
    # from 4 to 12 mm, and two and a half times that is the width of the volume.
    assert np.array_equal(shown[0], np.float32(view.image[:, :, 8]).T)
    for axes in first:
        assert axes.get_xlim() == (0, 20) and axes.get_ylim() == (0, 20)
    kinds = [[drawn.get_label() for drawn in axes.collections] for axes in first]
    assert kinds == [[], ["truth"], ["truth", "prediction"]]
    assert "Dice 0.50" in texts(figure) and texts(figure).count("not run") == 1
    titles = [axes.get_title("left") for axes in figure.axes[:3]]
    assert titles == ["Task04\nHippocampus", "Task04\nHippocampus", "MyTask"]


def test_two_tasks_stand_in_rows(view):
    figure = figures.task_grid([column(view), column(view)])
    assert [axes.get_title("left") for axes in figure.axes[:3]] == ["image", "truth", "vit"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["Task04\nHippocampus"] * 2


def test_the_task_grid_closes_in_on_a_small_structure():
    truth = np.zeros((100, 80, 4), bool)
    truth[70:74, 2:10, 1] = True
    view = figures.View(np.ones(truth.shape), np.diag([0.5, 1, 5, 1]), truth, title="truth")
    (axes,) = figures.task_grid([(REAL, [view])]).axes
    # 2 mm by 8 mm: a square of 20 mm, which cannot lie half outside the volume.
    assert axes.get_xlim() == (26, 46) and axes.get_ylim() == (0, 20)


def test_the_task_grid_says_which_of_its_columns_are_synthetic(view):
    figure = figures.task_grid([column(view), column(view, PHANTOM), column(view)])
    titles = [axes.get_title("left").endswith("synthetic") for axes in figure.axes[:3]]
    assert titles == [False, True, False] and figures.ATTRIBUTION in texts(figure)
    phantoms = texts(figures.task_grid([column(view, PHANTOM)] * 2))
    assert figures.SYNTHETIC in phantoms and figures.ATTRIBUTION not in phantoms


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    rows = [
        {"suite": "language", "arm": arm, "seed": 0, "task": REAL.name, "subject": f"s{k:02d}"}
        | {"case": f"c{k:02d}", "structure": "foreground", "block": "", "host": "vit"}
        | {"fraction": 1.0, "epochs": 2, "protocol_version": 1, "synthetic": True}
        | {name: rng.random() for name in METRICS}
        for arm in ("none", "pretrained")
        for k in range(12)
    ]
    return pd.DataFrame(rows)


def test_plotted_differences_are_the_tables(cases):
    figure = figures.paired_differences(cases, "pretrained", "none")
    by_arm = cases.pivot(index="subject", columns="arm", values="dice")
    expected = np.sort(by_arm["pretrained"] - by_arm["none"])
    dots = figure.axes[0].collections[-1].get_offsets()[:, 1]
    assert np.allclose(dots, expected)
    assert expected.mean() == pytest.approx(contrast(cases, "pretrained", "none")["difference"])
    assert "SYNTHETIC" in texts(figure)


def test_an_intervals_ends_are_the_tables(cases):
    table = contrasts_table(cases, [("language", "pretrained", "none")], list(METRICS))
    figure = figures.metric_differences(table)
    drawn = [line.get_xdata() for axes in figure.axes for line in axes.lines]
    ends = [tuple(x) for x in drawn if len(x) == 2 and x[0] != x[1]]
    expected = [(r.ci_low, r.ci_high) for r in table.itertuples() if METRICS[r.metric].unit == ""]
    expected += [(r.ci_low, r.ci_high) for r in table.itertuples() if METRICS[r.metric].unit]
    assert np.allclose(ends, expected)


def test_best_median_and_worst_are_by_the_metrics_direction(cases):
    own = cases[cases["arm"] == "none"]
    for metric, best in (("dice", own["dice"].max()), ("hd95_mm", own["hd95_mm"].min())):
        chosen = figures.best_median_worst(own, metric)
        assert chosen["best"][metric] == best
        assert (own[metric] > chosen["median"][metric]).sum() in (5, 6)


def test_curves_mark_the_epoch_that_is_kept():
    rows = pd.DataFrame(
        {"epoch": range(4), "train_loss": [4, 3, 2, 1], "validation_dice": [0.1, 0.7, 0.5, 0.6]}
    )
    axes = figures.curves({"none": rows}, synthetic=False).axes[1]
    assert axes.lines[1].get_xydata().tolist() == [[2, 0.7]]


@pytest.fixture
def activation_rows(view):
    heat = np.arange(view.truth.size, dtype=float).reshape(view.truth.shape)
    image = replace(view, prediction=None)
    maps = {"image": image, "update": replace(image, heat=heat, caption="AUROC 0.71")}
    return {"none": {"image": image}, "pretrained": maps}


def test_an_activation_map_is_the_heat_of_the_truths_slice(activation_rows):
    figure = figures.activation_maps(activation_rows, PHANTOM)
    shown = figure.axes[3]
    heat = activation_rows["pretrained"]["update"].heat
    image, overlay = shown.images
    assert np.array_equal(overlay.get_array(), heat[:, :, 8].T)
    # Its colours end at the percentiles of its own volume.
    assert overlay.get_clim() == pytest.approx((0.01 * (heat.size - 1), 0.99 * (heat.size - 1)))
    assert image.get_extent() == overlay.get_extent()
    assert [axes.get_ylabel() for axes in figure.axes[::2][:2]] == ["none", "pretrained"]
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["image", "update"]
    said = texts(figure)
    assert "AUROC 0.71" in said and said.count("no block") == 1 and figures.SYNTHETIC in said


#: Draws and saves a figure with voxels, contours and letters; prints the hashes of its files.
DRAW = """
import hashlib, sys
from pathlib import Path
import numpy as np
from mvl.show import figures
from mvl.data.tasks import TASKS
truth = np.zeros((10, 20, 16), bool)
truth[2:6, 4:12, 8:11] = True
view = figures.View(np.arange(3200.0).reshape(truth.shape), np.eye(4), truth, title="ä ‖x‖ fi")
figures.save(figures.slices(view, TASKS["Task04_Hippocampus"]), sys.argv[1])
for path in sorted(Path(sys.argv[1]).parent.iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_a_figures_bytes_are_a_function_of_its_data(tmp_path, monkeypatch, capsys):
    """Whatever the order of Python's sets, the clock, and the user's own settings are."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "here" / "one.png")])
    exec(DRAW, {})
    here = capsys.readouterr().out
    settings = tmp_path / "matplotlibrc"
    settings.write_text("savefig.dpi: 50\nfont.size: 20\npdf.fonttype: 3\n")
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(settings)}
    command = [sys.executable, "-c", DRAW, str(tmp_path / "there" / "one.png")]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in here.splitlines()] == ["one.pdf", "one.png", "one.svg"]
    assert here == there.stdout


def test_files_are_what_their_endings_say_and_carry_their_letters(view, tmp_path):
    figures.save(figures.slices(view, REAL), tmp_path / "one")
    png, pdf, svg = ((tmp_path / f"one.{kind}").read_bytes() for kind in ("png", "pdf", "svg"))
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    # Type 42 is TrueType: letters stay letters, and the file brings their shapes along.
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Subtype /Type3" not in pdf
    assert svg.startswith(b"<?xml") and b"<text" not in svg
    assert not any(word in pdf for word in (b"/CreationDate", b"/Creator", b"/Producer"))
    assert b"<dc:date>" not in svg and b"Matplotlib v" not in svg and b"Software" not in png


@pytest.fixture
def aurocs(cases):
    rng = np.random.default_rng(1)
    table = pd.concat([cases, cases.assign(seed=1)], ignore_index=True)
    for name, shift in (("auroc_update", 0.3), ("auroc_change", 0.0)):
        table[name] = shift + 0.7 * rng.random(len(table))
    return table


def test_a_dot_of_the_mechanism_is_a_subject_and_the_line_is_chance(aurocs):
    # A subject's second case weighs as its first; seeds weigh alike.
    second = aurocs[aurocs["subject"] == "s03"].assign(case="second", auroc_update=0.9)
    table = pd.concat([aurocs, second], ignore_index=True)
    figure = figures.mechanism(table)
    assert [axes.get_title("left") for axes in figure.axes] == [
        *("What the block writes", "Change of the stream"),
    ]
    for axes, name in zip(figure.axes, ("auroc_update", "auroc_change"), strict=True):
        assert axes.lines[0].get_ydata() == [0.5, 0.5] and axes.get_ylim() == (0, 1)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "pretrained"]
        for place, arm in enumerate(("none", "pretrained")):
            own = table[table["arm"] == arm]
            expected = own.groupby("subject")[name].mean()
            dots = axes.collections[place].get_offsets()
            assert np.allclose(dots[:, 1], np.sort(expected))
            assert np.all((dots[:, 0] > place - 0.5) & (dots[:, 0] < place + 0.5))
            interval, mean = axes.lines[1 + 2 * place : 3 + 2 * place]
            assert mean.get_ydata()[0] == pytest.approx(expected.mean())
            low, high = interval.get_ydata()
            assert low < expected.mean() < high
    assert "12 test subjects, 2 seeds" in figure._suptitle.get_text()
    assert "left out" not in figure._suptitle.get_text()
    fewer = figures.mechanism(table[(table["arm"] == "none") | (table["seed"] == 1)])
    assert "12 test subjects, 1 to 2 seeds" in fewer._suptitle.get_text()
    assert "SYNTHETIC" in texts(figure)


def test_the_mechanisms_interval_is_that_of_a_mean(aurocs):
    """With one seed and many subjects, the t interval of the subjects' values."""
    from scipy import stats

    own = aurocs[(aurocs["arm"] == "none") & (aurocs["seed"] == 0)]
    interval = figures.mechanism(own).axes[0].lines[1].get_ydata()
    values = own["auroc_update"]
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert interval == pytest.approx(expected, abs=0.03)


def test_the_mechanism_says_which_cases_it_leaves_out(aurocs):
    # No value in one run is no value: the case leaves every arm and seed.
    gap = (aurocs["case"] == "c05") & (aurocs["arm"] == "none") & (aurocs["seed"] == 0)
    table = aurocs.assign(auroc_update=aurocs["auroc_update"].mask(gap))
    figure = figures.mechanism(table)
    assert "11 test subjects, 2 seeds; 1 of 12 cases left out" in figure._suptitle.get_text()
    assert all(len(dots.get_offsets()) == 11 for axes in figure.axes for dots in axes.collections)
    with pytest.raises(RunError, match="no AUROC"):
        figures.mechanism(table.assign(auroc_change=np.nan))


def test_stages_stand_in_the_order_of_the_data_and_arms_side_by_side(aurocs):
    stages = ["after the encoder", "after the block", "after the decoder"]
    table = pd.concat(
        aurocs.assign(stage=stage, auroc_stream=aurocs["auroc_update"] - 0.1 * n)
        for n, stage in enumerate(stages)
    )
    table = table[(table["arm"] != "none") | (table["stage"] != "after the block")]
    axes = figures.stage_auroc(table).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == stages
    # One group of dots for each arm and stage that there is.
    places = [dots.get_offsets()[:, 0].mean() for dots in axes.collections]
    assert len(places) == 5 and places == sorted(places)
    for dots, (arm, stage) in zip(
        axes.collections,
        [(a, s) for s in stages for a in ("none", "pretrained") if (a, s) != ("none", stages[1])],
        strict=True,
    ):
        own = table[(table["arm"] == arm) & (table["stage"] == stage)]
        expected = own.groupby("subject")["auroc_stream"].mean().sort_values()
        assert np.allclose(dots.get_offsets()[:, 1], expected)
    assert "12 test subjects, 2 seeds" in axes.get_title("left")
    with pytest.raises(RunError, match="no AUROC"):
        figures.stage_auroc(table.iloc[:0])


@pytest.fixture
def training():
    """Three seeds of two arms with a tenth of the subjects, and one with all."""
    rows = [
        {"arm": f"{name}-{share}", "seed": seed, "fraction": share / 100, "epoch": epoch}
        | {"validation_dice": 0.5 + gain + 0.01 * seed + 0.001 * epoch}
        for share, epochs, seeds in ((10, 40, (0, 1, 2)), (100, 4, (0,)))
        for name, gain in (("vit", 0.0), ("v1", 0.2))
        for seed in seeds
        for epoch in range(epochs)
    ]
    return pd.DataFrame(rows)


def test_curves_have_the_mean_of_the_seeds_and_a_band_to_their_ends(training):
    # One seed was stopped: line and band end where it does.
    stopped = (training["arm"] == "vit-10") & (training["seed"] == 2) & (training["epoch"] >= 30)
    figure = figures.curve_bands(training[~stopped], synthetic=True)
    tenth, whole = figure.axes
    assert tenth.get_title("left") == "10 % of subjects"
    assert whole.get_title("left") == "100 % of subjects"
    assert [line.get_label() for line in tenth.lines] == ["vit", "v1"]
    assert [len(line.get_xdata()) for line in tenth.lines] == [30, 40]
    assert tenth.lines[0].get_xdata()[0] == 1
    assert np.allclose(tenth.lines[1].get_ydata(), 0.71 + 0.001 * np.arange(40))
    band = tenth.collections[1].get_paths()[0].vertices
    at_end = band[np.isclose(band[:, 0], 40)][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((0.739, 0.759))
    assert [legend.get_text() for legend in figure.legends[0].texts] == ["vit", "v1"]
    assert "1 to 3 seeds" in figure._suptitle.get_text() and figures.SYNTHETIC in texts(figure)


def test_a_lone_seed_is_not_called_a_mean(training):
    figure = figures.curve_bands(training[training["fraction"] == 1], synthetic=False)
    assert figure._suptitle.get_text() == "Validation while training, 1 seed"


def weights(**arms):
    rows = [{"arm": a, "parameters": n, "trained_parameters": t} for a, (n, t) in arms.items()]
    return pd.DataFrame(rows)


def test_a_model_stands_at_its_weights_and_its_dice(cases):
    runs = weights(none=(1_000_000, 1_000_000), pretrained=(3_000_000, 1_100_000))
    axes = figures.size_against_dice(cases, runs).axes[0]
    means = cases.groupby("arm")["dice"].mean()
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    dots = {line.get_xdata()[0]: line.get_ydata()[0] for line in marked}
    assert dots == pytest.approx(
        {1e6: means["none"], 3e6: means["pretrained"], 1.1e6: means["pretrained"]}
    )
    # Only the trained among frozen ones are a ring.
    rings = [line.get_xdata()[0] for line in marked if line.get_markerfacecolor() == "white"]
    assert rings == [1.1e6]
    assert {text.get_text() for text in axes.texts} == {"none", "pretrained"}
    assert axes.get_xscale() == "log" and "12 test subjects" in axes.get_title("left")
    trained = figures.rank_tradeoff(cases, runs).axes[0]
    assert sorted(line.get_xdata()[0] for line in trained.lines if line.get_marker() == "o") == [
        1e6,
        1.1e6,
    ]


def test_names_beside_the_axes_keep_their_order_and_their_distance(cases):
    arms = [f"arm{n}" for n in range(6)]
    alike = [cases[cases["arm"] == "none"].assign(arm=arm) for arm in arms]
    table = pd.concat([*alike, cases[cases["arm"] == "pretrained"]])
    figure = figures.size_against_dice(table, weights(**{a: (9, 9) for a in table["arm"]}))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:], strict=False))


def test_every_task_has_its_row_and_the_papers_numbers_are_diamonds(cases):
    spleen = cases.assign(task="Task09_Spleen")
    table = summary_table(pd.concat([spleen, cases]))
    paper = pd.DataFrame(
        {"arm": ["none"], "task": "Task02_Heart", "metric": "dice", "value": [0.75]}
    )
    dice, _, hd95 = figures.metric_by_task(table, paper).axes
    assert [tick.get_text() for tick in dice.get_yticklabels()] == [
        *("Heart", "Hippocampus, 12 subjects", "Spleen, 12 subjects"),
    ]
    diamonds = [line for line in dice.lines if line.get_marker() == "D"]
    assert [(line.get_xdata()[0], round(line.get_ydata()[0])) for line in diamonds] == [(0.75, 0)]
    for axes, metric in ((dice, "dice"), (hd95, "hd95_mm")):
        drawn = {
            (round(line.get_ydata()[0]), colour): line.get_xdata()[0]
            for line in axes.lines
            for colour in [line.get_color()]
            if line.get_marker() == "o"
        }
        for place, task in ((1, REAL.name), (2, "Task09_Spleen")):
            for arm in ("none", "pretrained"):
                row = table[(table["arm"] == arm) & (table["task"] == task)]
                row = row[row["metric"] == metric].iloc[0]
                assert drawn[place, figures.colour_of(arm)] == pytest.approx(row["mean"])


def test_the_dataflow_names_each_part_with_its_weights():
    parts = pd.DataFrame(
        {"trained": [0, 884_416, 1_500, 0], "frozen": [0, 0, 24_576, 1_774_464]},
        index=["volume", "encoder", "D1", "block"],
    ).assign(output=["8 × 8", "175 × 64", "175 × 384", "end"])
    axes = figures.dataflow(parts, [("D1", "block")]).axes[0]
    said = [text.get_text() for text in axes.texts if text.get_text()]
    assert said == [
        *("8 × 8", "encoder", "884 k trained", "175 × 64"),
        *("D1", "1.5 k trained\n24.6 k frozen", "175 × 384"),
        *("block", "1.77 M frozen", "end", "+"),
    ]
    dashed = [box.get_linestyle() == "--" for box in axes.patches if hasattr(box, "get_boxstyle")]
    assert [d for d in dashed if d is not None][:3] == [False, True, True]


def test_an_arm_has_one_colour_in_every_suite():
    """Arms of one configuration, whatever a suite calls them."""
    colours = {}
    for arms in SUITES.values():
        for name, arm in arms.items():
            if name in figures.ARM_COLOURS and arm.fraction == 1 and arm.matched is None:
                colours.setdefault(repr((arm.model, arm.training)), set()).add(
                    figures.colour_of(name)
                )
    assert all(len(found) == 1 for found in colours.values())
    assert figures.colour_of("vit-30") == figures.colour_of("vit")
    assert figures.colour_of("none, seed 0") == figures.colour_of("none")
    assert figures.colour_of("lora-16") == figures.GREY
