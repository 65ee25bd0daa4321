"""The explorer shows what the files say, and a still picture where nobody can move it."""

import base64
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import nibabel
import numpy as np
import pytest
from PIL import Image

import mvl
from mvl.data.task_folder import list_cases
from mvl.data.tasks import TASKS
from mvl.errors import DataError
from mvl.show import explorer as module
from mvl.show import figures

WIDGET = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def view():
    truth = np.zeros((10, 20, 16), bool)
    truth[2:6, 4:12, 8:11] = True
    image = np.random.default_rng(0).random(truth.shape, np.float32)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    return figures.View(image, affine, truth, np.roll(truth, 1, axis=0), "a case")


@pytest.fixture
def case(phantom):
    return list_cases(phantom / "Task04_Hippocampus")[0]


def pixels(explorer):
    return np.asarray(Image.open(BytesIO(explorer.png())))


def has(picture, colour):
    """Whether a colour is in a picture, nearly: lines are drawn with soft edges."""
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return (np.abs(picture.astype(int) - wanted).max(-1) < 12).any()


def controls(widget):
    """Every control of a widget, by its description."""
    found = {}
    for child in getattr(widget, "children", ()):
        found |= controls(child)
    if getattr(widget, "description", ""):
        found[widget.description] = widget
    return found


def shown(explorer):
    """The picture that the widget holds."""
    return explorer.widget.children[1].value


# --- Dice ----------------------------------------------------------------------------------


def test_dice_per_slice_is_the_one_counted_by_hand():
    truth, prediction = np.zeros((2, 4, 1, 2), bool)
    truth[0, 0] = truth[1, 0] = truth[2, 0, 0] = True
    prediction[0, 0] = prediction[1, 0, 1] = True
    # Slice 0: 2 and 2 voxels, 2 in both. 1: 2 and 1, 1 in both. 2: missed. 3: nothing to find.
    assert np.array_equal(
        module.dice_per_slice(prediction, truth, 0), [1, 2 / 3, 0, np.nan], equal_nan=True
    )
    # Across the last axis. 0: 3 and 1, 1 in both. 1: 2 and 2, 2 in both.
    assert module.dice_per_slice(prediction, truth, 2).tolist() == [0.5, 1]


def test_titles_and_charts_say_the_dice_of_the_slice_shown(view):
    explorer = mvl.explore(view).show(sagittal=2, coronal=0)
    sagittal, coronal, _ = explorer._picture._planes
    assert sagittal.axes.get_title(loc="left") == "sagittal 2, Dice 0.00"
    assert coronal.axes.get_title(loc="left") == "coronal 0, both empty"
    assert explorer.show(sagittal=4) is explorer
    assert sagittal.axes.get_title(loc="left") == "sagittal 4, Dice 1.00"
    assert sagittal.moving[-1].get_xydata().tolist() == [[4, 1]]


# --- the picture ---------------------------------------------------------------------------


def test_a_stored_orientation_changes_no_picture(view):
    def turned(values):
        return values.transpose(2, 0, 1)[::-1, ::-1]

    # Axes of the file: down, left, to the front.
    affine = np.array([[0, -2.0, 0, 18], [0, 0, 1, 0], [-0.5, 0, 0, 7.5], [0, 0, 0, 1]])
    other = replace(
        view,
        image=turned(view.image),
        affine=affine,
        truth=turned(view.truth),
        prediction=turned(view.prediction),
    )
    assert mvl.explore(view).state == mvl.explore(other).state
    for what in ({}, {"sagittal": 3, "axial": 9}):
        assert mvl.explore(view).show(**what).png() == mvl.explore(other).show(**what).png()


def test_it_opens_where_the_figures_do_and_draws_as_they_do(view):
    explorer = mvl.explore(view)
    still = figures.slices(view, TASKS["Task04_Hippocampus"])
    for plane, axes in zip(explorer._picture._planes, still.axes, strict=True):
        assert np.array_equal(plane.axes.images[0].get_array(), axes.images[0].get_array())
        assert plane.axes.images[0].get_clim() == axes.images[0].get_clim()
        assert plane.axes.images[0].get_extent() == axes.images[0].get_extent()
        lines = [
            [c.get_paths()[0].vertices.tolist() for c in a.collections] for a in (plane.axes, axes)
        ]
        assert lines[0] == lines[1]


def test_the_window_is_the_images_and_not_that_of_a_heat_map_upon_it(view):
    heat = 1000 * np.random.default_rng(1).random(view.image.shape)
    plain, hot = mvl.explore(view), mvl.explore(replace(view, heat=heat))
    for plane, other in zip(plain._picture._planes, hot._picture._planes, strict=True):
        grey, colour = other.axes.images
        assert grey.get_clim() == plane.axes.images[0].get_clim()
        assert colour.get_clim()[1] > 900


def test_the_crosshair_is_in_the_middle_of_the_other_planes_voxels(view):
    explorer = mvl.explore(view).show(sagittal=3, coronal=7, axial=10)
    vertical, horizontal = explorer._picture._planes[0]._cross
    assert vertical.get_xdata() == [7.5, 7.5]  # coronal: 1 mm a slice
    assert horizontal.get_ydata() == [5.25, 5.25]  # axial: 0.5 mm a slice


def test_contours_and_crosshair_are_on_or_off(view):
    colours = {
        "truth": figures.TRUTH_COLOUR,
        "prediction": figures.PREDICTION_COLOUR,
        "crosshair": figures.YELLOW,
    }
    # Only the slices: legend and chart keep the colours.
    explorer = mvl.explore(view)
    rows = slice(100, 440)
    black = {"window": (2, 3)}
    everything = pixels(explorer.show(**black))[rows]
    assert all(has(everything, colour) for name, colour in colours.items() if name != "crosshair")
    for name, colour in colours.items():
        without = pixels(explorer.show(**{name: False}))[rows]
        assert not has(without, colour)
        assert not np.array_equal(without, everything)
        assert np.array_equal(pixels(explorer.show(**{name: True}))[rows], everything)


def test_a_window_sets_what_is_black_and_white(view):
    explorer = mvl.explore(replace(view, truth=None, prediction=None)).show(crosshair=False)
    inside = (slice(200, 210), slice(100, 110))
    assert (pixels(explorer.show(window=(5, 6)))[inside] == 0).all()
    assert (pixels(explorer.show(window=(-6, -5)))[inside] == 255).all()


def test_a_redraw_that_is_blitted_is_the_one_drawn_anew(view):
    moved = mvl.explore(view)
    moved.png()
    moved.show(sagittal=0, window=(0.1, 0.5)).png()
    moved.show(sagittal=3, truth=False, window=(0.2, 0.7))
    fresh = mvl.explore(view).show(sagittal=3, truth=False, window=(0.2, 0.7))
    assert moved.png() == fresh.png()


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 40, 2), (2, 3, 60)])
def test_odd_volumes_are_drawn(shape):
    flat = figures.View(np.ones(shape), np.eye(4), np.ones(shape, bool), np.zeros(shape, bool))
    assert pixels(mvl.explore(flat)).shape[1] > 1000
    assert mvl.explore(flat).widget


# --- the controls --------------------------------------------------------------------------


def test_a_slider_changes_the_picture_and_back(view):
    explorer = mvl.explore(view)
    first, slider = shown(explorer), controls(explorer.widget)["axial"]
    assert slider.max == 15 and slider.value == explorer.state["axial"]
    slider.value += 1
    assert shown(explorer) != first and shown(explorer) == explorer.png()
    slider.value -= 1
    assert shown(explorer) == first


def test_controls_and_state_follow_each_other(view):
    explorer = mvl.explore(view, task=TASKS["Task03_Liver"])
    parts = controls(explorer.widget)
    assert {*parts} == {*explorer.state, "auto", "task"}
    explorer.show(sagittal=5, truth=False, window=(0.25, 0.5))
    assert (parts["sagittal"].value, parts["truth"].value) == (5, False)
    assert parts["window"].value == (0.25, 0.5)
    parts["prediction"].value = False
    assert explorer.state["prediction"] is False
    parts["task"].click()
    assert explorer.state["window"] == parts["window"].value == (-160, 240)
    parts["auto"].click()
    assert explorer.state["window"] == mvl.explore(view).state["window"]
    explorer.show(window=(-900, 9))
    assert explorer.state["window"] == parts["window"].value == (-900, 9)
    parts["window"].value = (3, 3)
    assert explorer.state["window"] == (-900, 9)


def test_one_step_is_one_redraw(view, monkeypatch):
    explorer = mvl.explore(view)
    slider = controls(explorer.widget)["axial"]
    drawn = []
    monkeypatch.setattr(explorer, "png", lambda: drawn.append(1) or b"")
    slider.value += 1
    explorer.show(axial=0, sagittal=0)
    explorer.show(axial=0)
    assert len(drawn) == 2


def test_what_is_not_there_has_no_control(view):
    explorer = mvl.explore(replace(view, truth=None, prediction=None))
    assert "truth" not in controls(explorer.widget)
    with pytest.raises(DataError, match="no 'truth' to show; there is sagittal, coronal, axial"):
        explorer.show(truth=False)
    with pytest.raises(DataError, match="axial slice 16: they are numbered 0 to 15"):
        explorer.show(axial=16)
    with pytest.raises(DataError, match="the second must be the larger"):
        explorer.show(window=(2, 1))


# --- what may be handed in -----------------------------------------------------------------


def test_a_case_its_path_and_its_view_are_the_same_volume(case):
    truth = mvl.data.nifti.read_label(case.label)[0]
    image, header = mvl.read_volume(case.image)
    by_case = mvl.explore(case, prediction=truth)
    by_path = mvl.explore(str(case.image), truth=case.label, prediction=case.label)
    task = mvl.read_task(case.image.parents[1])
    view = figures.View(image, header.affine, truth=truth > 0, title=case.name)
    by_view = mvl.explore(view, prediction=truth[None] > 0, task=task)
    assert by_case.png() == by_path.png() == by_view.png()
    assert "Dice 1.000 in the whole volume" in texts(by_case)
    assert figures.SYNTHETIC in texts(by_case)


def texts(explorer):
    figure = explorer._picture._figure
    found = [text.get_text() for text in figure.texts]
    return " | ".join(found + ([figure._supxlabel.get_text()] if figure._supxlabel else []))


def test_voxels_say_where_they_are_from(view):
    real = TASKS["Task04_Hippocampus"]
    assert figures.ATTRIBUTION in texts(mvl.explore(view, task=real))
    synthetic = texts(mvl.explore(view, task=replace(real, synthetic=True)))
    assert figures.SYNTHETIC in synthetic and figures.ATTRIBUTION not in synthetic
    unknown = texts(mvl.explore(view))
    assert figures.SYNTHETIC not in unknown and figures.ATTRIBUTION not in unknown


def test_a_run_segments_the_file(case, tiny, phantom):
    from mvl.show.notebook import view_of_case

    config, task = tiny(), mvl.read_task(phantom / "Task04_Hippocampus")
    model = mvl.build_segmenter(config.model, 1, 1, config.data.grid, config.seed).eval()
    preparation = mvl.Preparation(task, config.data)
    run = mvl.Run(None, config, task, None, model, preparation)
    volume = run.preparation.load([case], progress=False)[0]
    mask = mvl.segment(run.model, volume, run.preparation)
    assert mvl.explore(case, run).png() == mvl.explore(case, mask).png()
    with pytest.raises(DataError, match="a Run segments files"):
        mvl.explore(view_of_case(case), run)
    two = replace(run, task=replace(task, channels=("T2", "ADC")))
    with pytest.raises(DataError, match=r"has 1 channels, .* trained on 2 \(T2, ADC\)"):
        mvl.explore(case, two)


def test_faults_name_both_sides(case, tmp_path):
    image, header = mvl.read_volume(case.image)
    with pytest.raises(DataError) as error:
        mvl.explore(case, prediction=np.zeros((3, 4, 5), bool))
    assert "prediction has the shape (3, 4, 5)" in str(error.value)
    assert str(case.image) in str(error.value) and str(image.shape) in str(error.value)

    path, moved = tmp_path / "moved.nii.gz", header.affine.copy()
    moved[0, 3] += 3
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), moved), path)
    with pytest.raises(DataError) as error:
        mvl.explore(case, prediction=path)
    assert f"prediction {path}" in str(error.value) and str(case.image) in str(error.value)
    assert "up to 3 mm apart" in str(error.value)

    for wrong, message in (
        (np.full(image.shape, 0.4), "holds values such as 0.4; threshold it"),
        (np.full(image.shape, "a"), "which makes no mask"),
        (tmp_path / "none.nii.gz", "missing"),
    ):
        with pytest.raises(DataError, match=message):
            mvl.explore(case, prediction=wrong)
    with pytest.raises(DataError, match="not int"):
        mvl.explore(3)
    view = figures.View(np.full((2, 2, 2), np.nan), np.eye(4), title="x")
    with pytest.raises(DataError, match="image 'x' has voxels that are NaN"):
        mvl.explore(view)


# --- where it is shown ---------------------------------------------------------------------


def kernel_that(monkeypatch, allow_stdin):
    """A kernel whose running cell was asked for by a front end that lets it ask, or does not."""
    import IPython

    request = {"content": {} if allow_stdin is None else {"allow_stdin": allow_stdin}}
    kernel = SimpleNamespace(get_parent=lambda channel: request)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=kernel))


def test_a_front_end_gets_controls_beside_the_picture(view, monkeypatch):
    kernel_that(monkeypatch, allow_stdin=True)
    explorer = mvl.explore(view)
    bundle = explorer._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] == explorer.widget.model_id
    assert base64.b64decode(bundle["image/png"]) == explorer.png()
    assert bundle["text/plain"] == "<Explorer of a case, 10 x 20 x 16 voxels>"


def test_without_one_it_is_a_picture_and_makes_no_widget(view, monkeypatch):
    explorer = mvl.explore(view)
    assert {*explorer._repr_mimebundle_()} == {"text/plain", "image/png"}
    kernel_that(monkeypatch, allow_stdin=False)
    assert {*explorer._repr_mimebundle_()} == {"text/plain", "image/png"}
    assert explorer._widget is None


def notebook_of(case):
    source = (
        "import mvl\nfrom mvl.data.sources import list_cases\n"
        f"case = list_cases({str(case.image.parents[1])!r})[0]\n"
        "mvl.explore(case, prediction=case.label)"
    )
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])


def exported(notebook):
    from nbconvert import HTMLExporter

    return HTMLExporter().from_notebook_node(notebook)[0]


def test_executed_headless_it_is_a_picture_on_the_page(case):
    from nbclient import NotebookClient

    notebook = notebook_of(case)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert {*output.data} == {"text/plain", "image/png"}
    assert Image.open(BytesIO(base64.b64decode(output.data["image/png"]))).width > 1000
    assert "widgets" not in notebook.metadata
    page = exported(notebook)
    assert "data:image/png;base64" in page and "widget-view" not in page


def test_a_page_of_a_notebook_that_was_saved_live_has_the_picture(view, monkeypatch):
    kernel_that(monkeypatch, allow_stdin=True)
    bundle = mvl.explore(view)._repr_mimebundle_()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("...")])
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", data=bundle)]
    page = exported(notebook)
    assert "data:image/png;base64" in page and bundle[WIDGET]["model_id"] not in page


def test_the_function_stays_callable_beside_its_module_and_loads_no_torch():
    code = (
        "import sys, mvl.explorer, mvl; assert mvl.explore is mvl.explorer.explore; "
        "assert not {'torch', 'monai'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
