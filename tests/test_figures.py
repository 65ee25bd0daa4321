"""Figures show what the tables and masks say."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mvl import figures
from mvl.errors import RunError
from mvl.metrics import METRICS
from mvl.statistics import contrast, contrasts_table
from mvl.tasks import TASKS

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
    lung = replace(TASKS["Task06_Lung"], name="MyTask")
    figure = figures.task_grid([column(view), (lung, [*column(view)[1][:2], None])])
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
    assert "Dice 0.50" in texts(figure) and "not run" in texts(figure)
    assert figure.axes[0].get_title("left") == "Task04\nHippocampus"


def test_the_task_grid_closes_in_on_a_small_structure():
    truth = np.zeros((100, 80, 4), bool)
    truth[70:74, 2:10, 1] = True
    view = figures.View(np.ones(truth.shape), np.diag([0.5, 1, 5, 1]), truth, title="truth")
    (axes,) = figures.task_grid([(REAL, [view])]).axes
    # 2 mm by 8 mm: a square of 20 mm, which cannot lie half outside the volume.
    assert axes.get_xlim() == (26, 46) and axes.get_ylim() == (0, 20)


def test_the_task_grid_says_which_of_its_columns_are_synthetic(view):
    mixed = texts(figures.task_grid([column(view), column(view, PHANTOM)]))
    assert mixed.count("synthetic") == 1 and figures.ATTRIBUTION in mixed
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


#: Draws and saves a figure with voxels, contours and letters; prints the hashes of its files.
DRAW = """
import hashlib, sys
from pathlib import Path
import numpy as np
from mvl import figures
from mvl.tasks import TASKS
truth = np.zeros((10, 20, 16), bool)
truth[2:6, 4:12, 8:11] = True
view = figures.View(np.arange(3200.0).reshape(truth.shape), np.eye(4), truth, title="ä ‖x‖ fi")
figures.save(figures.slices(view, TASKS["Task04_Hippocampus"]), sys.argv[1])
for path in sorted(Path(sys.argv[1]).parent.iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_a_figures_bytes_are_a_function_of_its_data(tmp_path):
    """Whatever the order of Python's sets, the clock, and the user's own settings are."""
    printed = []
    for n, own in enumerate(("", "savefig.dpi: 50\nfont.size: 20\npdf.fonttype: 3\n")):
        settings = tmp_path / f"matplotlibrc{n}"
        settings.write_text(own)
        environment = os.environ | {"PYTHONHASHSEED": str(n), "MATPLOTLIBRC": str(settings)}
        folder = tmp_path / str(n)
        folder.mkdir()
        command = [sys.executable, "-c", DRAW, str(folder / "one.png")]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.append(found.stdout)
    assert [line.split()[0] for line in printed[0].splitlines()] == [
        "one.pdf",
        "one.png",
        "one.svg",
    ]
    assert printed[0] == printed[1]


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
