"""Figures show what the tables and masks say."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvl.data.tasks import TASKS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.show import figures
from mvl.show.figures import style
from mvl.study.statistics import contrast, contrasts_table
from mvl.study.suites import SUITES

REAL = TASKS["Task04_Hippocampus"]
PHANTOM = replace(REAL, synthetic=True)
ARMS = ("none", "pretrained")


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    found += [text.get_text() for text in (figure._supxlabel, figure._suptitle) if text]
    found += [legend.get_title().get_text() for legend in figure.legends]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts]
        found += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")]
    return " | ".join(found)


def ticks(axes, which="x"):
    return [tick.get_text() for tick in getattr(axes, f"get_{which}ticklabels")()]


def marked(axes, marker="o"):
    """{colour: (x, y)} of the single marks of one kind."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return {line.get_color(): tuple(line.get_xydata()[0]) for line in lines}


@pytest.fixture
def view():
    truth = np.zeros((10, 20, 16), bool)
    truth[2:6, 4:12, 8:11] = True
    image = np.random.default_rng(0).random(truth.shape)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    return figures.View(image, affine, truth, np.roll(truth, 1, axis=1), "a case", "Dice 0.50")


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    rows = [
        {"suite": "language", "arm": arm, "seed": 0, "task": REAL.name, "subject": f"s{k:02d}"}
        | {"case": f"c{k:02d}", "structure": "foreground", "block": "", "host": "vit"}
        | {"fraction": 1.0, "epochs": 2, "protocol_version": 1, "synthetic": True}
        | {name: rng.random() for name in METRICS}
        for arm in ARMS
        for k in range(12)
    ]
    return pd.DataFrame(rows)


# --- volumes -------------------------------------------------------------------------------


def test_contours_lie_where_the_mask_is_in_millimetres(view):
    axial = figures.case_gallery([view], REAL).axes[2]
    truth = next(c for c in axial.collections if c.get_label() == "truth")
    points = np.concatenate([path.vertices for path in truth.get_paths()])
    # Along x: voxels 2 to 5 of 2 mm, from 4 to 12; along y: voxels 4 to 11 of 1 mm.
    assert (points[:, 0].min(), points[:, 0].max()) == pytest.approx((4, 12), abs=1.01)
    assert (points[:, 1].min(), points[:, 1].max()) == pytest.approx((4, 12), abs=0.51)
    assert axial.get_aspect() == 1


@pytest.mark.parametrize(
    ("task", "note"),
    [
        *((REAL, style.ATTRIBUTION), (PHANTOM, style.SYNTHETIC)),
        (replace(REAL, name="MyTask"), None),
    ],
)
def test_voxels_say_where_they_are_from(view, task, note):
    for figure in (figures.case_gallery([view], task), figures.task_grid([column(view, task)] * 2)):
        known = (style.ATTRIBUTION, style.SYNTHETIC)
        assert [one in texts(figure) for one in known] == [one == note for one in known]
        assert "Dice 0.50" in texts(figure)


def column(view, task=REAL):
    """One case as a column of the grid: image, truth, one model."""
    bare = replace(view, truth=None, prediction=None, title="image", caption="")
    truth = replace(view, prediction=None, title="truth", caption="")
    return task, [bare, truth, replace(view, title="vit")]


def test_a_column_of_the_task_grid_is_one_slice_around_the_structure(view):
    other = replace(TASKS["Task06_Lung"], name="MyTask")
    columns = [column(view), column(view, PHANTOM), (other, [*column(view)[1][:2], None])]
    figure = figures.task_grid(columns)
    first = [axes for axes in figure.axes if axes.get_subplotspec().colspan.start == 0]
    assert [axes.get_ylabel() for axes in first] == ["image", "truth", "plain ViT"]
    # The truth is alike from slice 8 to 10 across; along x it reaches from 4 to 12 mm, along y
    # from 4 to 12 mm, and two and a half times that is the width of the volume.
    for axes in first:
        assert np.array_equal(axes.images[0].get_array(), np.float32(view.image[:, :, 8]).T)
        assert axes.get_xlim() == (0, 20) and axes.get_ylim() == (0, 20)
    kinds = [[contour.get_label() for contour in axes.collections] for axes in first]
    assert kinds == [[], ["truth"], ["truth", "prediction"]]
    assert texts(figure).count("not run") == 1 and style.ATTRIBUTION in texts(figure)
    titles = [axes.get_title("left") for axes in figure.axes[:3]]
    assert titles == ["Task04\nHippocampus", "Task04\nHippocampus\nsynthetic", "MyTask"]
    in_rows = figures.task_grid([column(view)] * 2).axes
    assert [axes.get_title("left") for axes in in_rows[:3]] == ["image", "truth", "plain ViT"]
    assert [axes.get_ylabel() for axes in in_rows[::3]] == ["Task04\nHippocampus"] * 2


def test_the_task_grid_closes_in_on_a_small_structure():
    truth = np.zeros((100, 80, 4), bool)
    truth[70:74, 2:10, 1] = True
    view = figures.View(np.ones(truth.shape), np.diag([0.5, 1, 5, 1]), truth, title="truth")
    (axes,) = figures.task_grid([(REAL, [view])]).axes
    # 2 mm by 8 mm: a square of 20 mm, which cannot lie half outside the volume.
    assert axes.get_xlim() == (26, 46) and axes.get_ylim() == (0, 20)


def test_an_activation_map_is_the_heat_of_the_truths_slice(view):
    heat = np.arange(view.truth.size, dtype=float).reshape(view.truth.shape)
    image = replace(view, prediction=None, caption="")
    maps = {"image": image, "update": replace(image, heat=heat, caption="AUROC 0.71")}
    figure = figures.activation_maps({"none": {"image": image}, "pretrained": maps}, PHANTOM)
    grey, overlay = figure.axes[3].images
    assert np.array_equal(overlay.get_array(), heat[:, :, 8].T)
    # Its colours end at the percentiles of its volume.
    assert overlay.get_clim() == pytest.approx((0.01 * (heat.size - 1), 0.99 * (heat.size - 1)))
    assert grey.get_extent() == overlay.get_extent()
    assert [axes.get_ylabel() for axes in figure.axes[::2][:2]] == [
        *("plain ViT", "ViT + pre-trained block"),
    ]
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["image", "update"]
    assert "AUROC 0.71" in texts(figure) and texts(figure).count("no block") == 1
    assert style.SYNTHETIC in texts(figure)


# --- files ---------------------------------------------------------------------------------


def test_files_are_what_their_endings_say_whatever_the_users_settings(view, tmp_path):
    """That another process writes equal bytes, tests/reliability shows."""
    figures.save(figures.case_gallery([replace(view, title="ä ‖x‖ fi")], REAL), tmp_path / "one")
    with plt.rc_context({"savefig.dpi": 50, "font.size": 20, "pdf.fonttype": 3}):
        figures.save(
            figures.case_gallery([replace(view, title="ä ‖x‖ fi")], REAL), tmp_path / "two.png"
        )
    png, pdf = ((tmp_path / f"one.{kind}").read_bytes() for kind in ("png", "pdf"))
    assert [png, pdf] == [(tmp_path / f"two.{kind}").read_bytes() for kind in ("png", "pdf")]
    svg = style.encoded(figures.case_gallery([replace(view, title="ä ‖x‖ fi")], REAL), "svg")
    # Type 42 is TrueType: letters stay letters, and the file brings their shapes along.
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Subtype /Type3" not in pdf
    assert png.startswith(b"\x89PNG") and svg.startswith(b"<?xml") and b"<text" not in svg
    assert not any(word in pdf for word in (b"/CreationDate", b"/Creator", b"/Producer"))
    assert b"<dc:date>" not in svg and b"Matplotlib v" not in svg and b"Software" not in png


def test_an_arm_has_one_colour_in_every_suite():
    """Arms of one configuration, whatever a suite calls them."""
    colours = {}
    for arms in SUITES.values():
        for name, arm in arms.items():
            if name in style.ARM_COLOURS and arm.fraction == 1 and arm.matched is None:
                known = colours.setdefault(repr((arm.model, arm.training)), set())
                known.add(style.colour_of(name))
    assert all(len(known) == 1 for known in colours.values())
    assert style.colour_of("vit-30") == style.colour_of("vit")
    assert style.colour_of("none, seed 0") == style.colour_of("none")
    assert style.colour_of("lora-16") == style.GREY


# --- arms ----------------------------------------------------------------------------------


def test_plotted_differences_are_the_tables(cases):
    figure = figures.paired_differences(cases, "pretrained", "none")
    by_arm = cases.pivot(index="subject", columns="arm", values="dice")
    expected = np.sort(by_arm["pretrained"] - by_arm["none"])
    dots = figure.axes[0].collections[-1].get_offsets()[:, 1]
    assert np.allclose(dots, expected)
    assert expected.mean() == pytest.approx(contrast(cases, "pretrained", "none")["difference"])
    assert style.SYNTHETIC in texts(figure)
    real = figures.paired_differences(cases.assign(synthetic=False), "pretrained", "none")
    assert style.SYNTHETIC not in texts(real)


def test_an_intervals_ends_are_the_tables(cases):
    table = contrasts_table(cases, [("language", "pretrained", "none")], list(METRICS))
    lines = [line for axes in figures.metric_differences(table).axes for line in axes.lines]
    ends = [tuple(line.get_xdata()) for line in lines if np.ptp(line.get_xdata()) > 0]
    in_order = sorted(table.itertuples(), key=lambda row: METRICS[row.metric].unit != "")
    assert np.allclose(ends, [(row.ci_low, row.ci_high) for row in in_order])


def test_the_median_case_has_as_many_better_ones_as_worse(cases):
    rows = cases[cases["arm"] == "none"]
    chosen = figures.best_median_worst(rows)
    assert chosen["best"]["dice"] == rows["dice"].max()
    assert chosen["worst"]["dice"] == rows["dice"].min()
    assert (rows["dice"] > chosen["median"]["dice"]).sum() == 6


def test_every_task_has_its_row_and_the_papers_numbers_are_black_diamonds(cases):
    table = pd.concat([cases.assign(task="Task09_Spleen"), cases])
    paper = pd.DataFrame(
        {"arm": ["none"], "task": "Task02_Heart", "metric": "dice", "value": [0.75]}
    )
    dice, _, hd95 = figures.metric_by_task(table, paper).axes
    assert ticks(dice, "y") == ["Heart", "Hippocampus, 12 subjects", "Spleen, 12 subjects"]
    assert marked(dice, "D") == {"#000000": pytest.approx((0.75, 0), abs=0.5)}
    for axes, metric in ((dice, "dice"), (hd95, "hd95_mm")):
        dots = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o")
        assert dots == pytest.approx(sorted(2 * [*cases.groupby("arm")[metric].mean()]))


def test_arms_are_compared_with_the_first_that_saw_as_many_subjects(cases):
    table = pd.concat([cases, cases.assign(seed=1, dice=cases["dice"] / 2)])
    figure = figures.arm_differences(table)
    (axes,), row = figure.axes, contrast(table, "pretrained", "none")
    assert marked(axes) == {style.colour_of("pretrained"): pytest.approx((row["difference"], 0))}
    (line,) = [line for line in axes.lines if np.ptp(line.get_xdata()) > 0]
    assert tuple(line.get_xdata()) == pytest.approx((row["ci_low"], row["ci_high"]))
    assert len(axes.collections[-1].get_offsets()) == 2, "a dot per seed"
    assert ticks(axes, "y")[0].startswith("ViT + pre-trained block")
    assert "plain ViT" in texts(figure) and "2 seeds" in texts(figure)
    shares = {"none": "vit-10", "pretrained": "v1-10"}
    both = pd.concat([cases.assign(arm=cases["arm"].map(shares)), cases.assign(arm="vit-100")])
    assert len(marked(figures.arm_differences(both).axes[0])) == 1


@pytest.mark.parametrize("draw", ["arm_differences", "paired_differences", "part_effects"])
def test_text_is_6_to_8_points_at_the_width_of_a_column(cases, draw):
    arms = SUITES["fusion"] if draw == "part_effects" else ARMS
    table = pd.concat(
        cases[cases["arm"] == "none"].assign(arm=arm, dice=lambda t, n=n: t["dice"] / (1 + n))
        for n, arm in enumerate(arms)
    )
    pair = ("pretrained", "none") if draw == "paired_differences" else ()
    figure = getattr(figures, draw)(table, *pair)
    assert figure.get_figwidth() * 25.4 == pytest.approx(88)
    figure.draw_without_rendering()
    for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")):
        if text.get_visible() and text.get_text().strip():
            assert 6 <= text.get_fontsize() <= 8, text
    box = figure.get_tightbbox()  # in inches
    assert box.x0 > -0.01 and box.x1 < figure.get_figwidth() + 0.01, "something is cut off"


def test_an_effect_of_the_protocol_starts_at_zero():
    kinds = ("training", "together", "measurement", "instead")
    steps = pd.DataFrame({"step": [*"abcd"], "kind": kinds, "difference": (0.1, -0.2, 0.0, 0.3)})
    figure = figures.protocol_effects(steps.assign(low=-0.3, high=0.4), "dice", "", True)
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [0.1, -0.2, 0.0, 0.3] and style.SYNTHETIC in texts(figure)


def test_curves_show_each_seed_and_their_mean(cases):
    rows = [
        {"arm": f"{name}-{share}", "seed": seed, "fraction": share / 100, "epoch": epoch}
        | {"validation_dice": 0.5 + gain + 0.01 * seed + 0.001 * epoch}
        for share, epochs, seeds in ((10, 40, (0, 1, 2)), (100, 4, (0,)))
        for name, gain in (("vit", 0.0), ("v1", 0.2))
        for seed in seeds
        for epoch in range(epochs)
    ]
    table = pd.DataFrame(rows)
    # One seed was stopped: the mean ends where it does.
    stopped = (table["arm"] == "vit-10") & (table["seed"] == 2) & (table["epoch"] >= 30)
    figure = figures.seed_curves(table[~stopped], cases)
    tenth, whole = figure.axes
    assert tenth.get_title("left")[:4] == "10 %" and whole.get_title("left")[:5] == "100 %"
    vit, v1 = (line for line in tenth.lines if line.get_linewidth() > 0.5)
    assert (len(vit.get_xdata()), len(v1.get_xdata())) == (30, 40)
    assert np.allclose(v1.get_ydata(), 0.71 + 0.001 * np.arange(40))
    assert len(tenth.lines) == 8 and "1 to 3 seeds" in texts(figure)


def test_curves_mark_the_epoch_that_is_kept():
    rows = {"epoch": range(4), "train_loss": [4, 3, 2, 1], "validation_dice": [0.1, 0.7, 0.5, 0.6]}
    axes = figures.curves({"none": pd.DataFrame(rows)}, synthetic=False).axes[1]
    assert axes.lines[1].get_xydata().tolist() == [[2, 0.7]]


# --- weights -------------------------------------------------------------------------------


def weights(**arms):
    rows = [{"arm": a, "parameters": n, "trained_parameters": t} for a, (n, t) in arms.items()]
    return pd.DataFrame(rows)


def test_a_model_is_at_its_weights_and_its_difference(cases):
    runs = weights(none=(1_000_000, 1_000_000), pretrained=(3_000_000, 1_100_000))
    sizes, gains = figures.size_against_dice(cases, runs).axes
    dots = [line for line in sizes.lines if line.get_marker() == "o"]
    assert sorted(line.get_xdata()[0] for line in dots) == [1.1e6, 3e6]
    # Only the trained among frozen ones are a ring.
    rings = [line.get_xdata()[0] for line in dots if line.get_markerfacecolor() == "white"]
    assert rings == [1.1e6] and sizes.get_xscale() == "log"
    difference = contrast(cases, "pretrained", "none")["difference"]
    assert [x for x, _ in marked(gains).values()] == [pytest.approx(difference)]


# --- parts of a model ----------------------------------------------------------------------


def test_the_dataflow_names_each_part_with_its_weights():
    parts = pd.DataFrame(
        {"trained": [0, 884_416, 1_500, 0], "frozen": [0, 0, 24_576, 1_774_464]},
        index=["volume", "encoder", "D1", "block"],
    ).assign(output=["8 × 8", "175 × 64", "175 × 384", "end"])
    axes = figures.dataflow(parts, [("D1", "block")]).axes[0]
    assert [text.get_text() for text in axes.texts if text.get_text()] == [
        *("8\n×8", "encoder", "884 k\ntrained", "175\n×64"),
        *("D1", "1.5 k\ntrained\n24.6 k\nfrozen", "175\n×384"),
        *("block", "1.77 M\nfrozen", "end", "+"),
    ]
    boxes = [box for box in axes.patches if hasattr(box, "get_boxstyle")]
    assert [box.get_linestyle() == "--" for box in boxes][:3] == [False, True, True]


def test_stages_are_in_the_order_of_the_data_and_arms_side_by_side(cases):
    # A subject's second case weighs as its first; seeds weigh alike.
    rng = np.random.default_rng(1)
    both = pd.concat([cases, cases.assign(seed=1)], ignore_index=True)
    both["auroc_stream"] = 0.3 + 0.7 * rng.random(len(both))
    second = both[both["subject"] == "s03"].assign(case="second", auroc_stream=0.9)
    both = pd.concat([both, second], ignore_index=True)
    stages = ["after the encoder", "after the block", "after the decoder"]
    table = pd.concat(
        both.assign(stage=stage, auroc_stream=both["auroc_stream"] - 0.1 * n)
        for n, stage in enumerate(stages)
    )
    table = table[(table["arm"] != "none") | (table["stage"] != stages[1])]
    axes = figures.stage_auroc(table).axes[0]
    assert [" ".join(name.split()) for name in ticks(axes)] == stages
    # One group of dots for each arm and stage that there is.
    places = [dots.get_offsets()[:, 0].mean() for dots in axes.collections]
    assert len(places) == 5 and places == sorted(places)
    groups = [
        (arm, stage) for stage in stages for arm in ARMS if (arm, stage) != (ARMS[0], stages[1])
    ]
    for dots, (arm, stage) in zip(axes.collections, groups, strict=True):
        rows = table[(table["arm"] == arm) & (table["stage"] == stage)]
        expected = rows.groupby("subject")["auroc_stream"].mean().sort_values()
        assert np.allclose(dots.get_offsets()[:, 1], expected)
    assert axes.lines[0].get_ydata() == [0.5, 0.5] and axes.get_ylim() == (0, 1)
    with pytest.raises(RunError, match="AUROC"):
        figures.stage_auroc(table.iloc[:0])


def test_a_stages_interval_is_that_of_a_mean(cases):
    """With one seed and many subjects, the t interval of the subjects' values."""
    values = np.random.default_rng(1).random(12)
    rows = cases[cases["arm"] == "none"].assign(stage="after the encoder", auroc_stream=values)
    interval = figures.stage_auroc(rows).axes[0].lines[1].get_ydata()
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert interval == pytest.approx(expected, abs=0.03)
