"""The explorer shows what the files say, and a still picture where nobody can move it."""

import base64
from dataclasses import replace
from io import BytesIO
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
from mvl.experiment.inference import Predictor
from mvl.files import REPOSITORY
from mvl.show import explorer as module
from mvl.show import figures
from mvl.show.explorer import Explorer
from mvl.show.figures import style

WIDGET = "application/vnd.jupyter.widget-view+json"
REAL = TASKS["Task04_Hippocampus"]


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


def slices_of(explorer):
    """The axes of the sagittal, coronal and axial slice."""
    return list(explorer._slices)


def texts(explorer):
    figure = explorer._canvas.figure
    found = [text.get_text() for text in figure.texts] + [figure._suptitle.get_text()]
    return " | ".join(found + ([figure._supxlabel.get_text()] if figure._supxlabel else []))


def controls(widget):
    """Every control of a widget, by its description."""
    found = {}
    for child in getattr(widget, "children", ()):
        found |= controls(child)
    if getattr(widget, "description", ""):
        found[widget.description] = widget
    return found


# --- the picture ---------------------------------------------------------------------------


def test_dice_per_slice_is_the_one_counted_by_hand():
    truth, prediction = np.zeros((2, 4, 1, 2), bool)
    truth[0, 0] = truth[1, 0] = truth[2, 0, 0] = True
    prediction[0, 0] = prediction[1, 0, 1] = True
    # Slice 0: 2 and 2 voxels, 2 in both. 1: 2 and 1, 1 in both. 2: missed. 3: nothing to find.
    dice = module.dice_per_slice(prediction, truth, 0)
    assert np.array_equal(dice, [1, 2 / 3, 0, np.nan], equal_nan=True)
    # Across the last axis. 0: 3 and 1, 1 in both. 1: 2 and 2, 2 in both.
    assert module.dice_per_slice(prediction, truth, 2).tolist() == [0.5, 1]


def test_titles_and_charts_have_the_dice_of_the_slice_shown(view):
    explorer = Explorer(view).show(sagittal=2, coronal=0)
    sagittal, coronal, _ = slices_of(explorer)
    assert sagittal.get_title(loc="left") == "sagittal 2, Dice 0.00"
    assert coronal.get_title(loc="left") == "coronal 0, both empty"
    assert explorer.show(sagittal=4) is explorer
    assert sagittal.get_title(loc="left") == "sagittal 4, Dice 1.00"
    assert list(explorer._marks[0].get_xdata()) == [4, 4]
    # 4 x 8 x 3 voxels and the same moved by one along the first axis.
    assert "Dice 0.750" in texts(explorer)


def test_the_legend_does_not_lie_on_the_title(view):
    figure = Explorer(view)._canvas.figure
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure._suptitle.get_window_extent())


def test_a_stored_orientation_changes_no_picture(view):
    # Axes of the file: down, left, to the front.
    affine = np.array([[0, -2.0, 0, 18], [0, 0, 1, 0], [-0.5, 0, 0, 7.5], [0, 0, 0, 1]])
    turned = {
        name: getattr(view, name).transpose(2, 0, 1)[::-1, ::-1]
        for name in ("image", "truth", "prediction")
    }
    one, other = Explorer(view), Explorer(replace(view, affine=affine, **turned))
    assert one.state == other.state and one.png() == other.png()
    assert one.show(sagittal=3, axial=9).png() == other.show(sagittal=3, axial=9).png()


def test_it_opens_where_the_figures_do_and_draws_as_they_do(view):
    still = figures.case_gallery([view], REAL)
    for axes, expected in zip(slices_of(Explorer(view)), still.axes, strict=True):
        image, other = axes.images[0], expected.images[0]
        assert np.array_equal(image.get_array(), other.get_array())
        assert image.get_clim() == other.get_clim() and image.get_extent() == other.get_extent()
        for line, contour in zip(axes.collections, expected.collections, strict=True):
            assert np.array_equal(line.get_paths()[0].vertices, contour.get_paths()[0].vertices)


def test_the_window_is_of_the_image_and_not_of_a_heat_map_on_it(view):
    heat = 1000 * np.random.default_rng(1).random(view.image.shape)
    hot = Explorer(replace(view, heat=heat)).show(window=(0.25, 0.5))
    for grey, colour in (axes.images for axes in slices_of(hot)):
        assert grey.get_clim() == (0.25, 0.5) and colour.get_clim()[1] > 900


def test_the_crosshair_is_in_the_middle_of_the_other_planes_voxels(view):
    explorer = Explorer(view).show(sagittal=3, coronal=7, axial=10)
    vertical, horizontal = slices_of(explorer)[0].lines[:2]
    assert list(vertical.get_xdata()) == [7.5, 7.5]  # coronal: 1 mm per slice
    assert list(horizontal.get_ydata()) == [5.25, 5.25]  # axial: 0.5 mm per slice


@pytest.mark.parametrize("name", ["truth", "prediction", "crosshair"])
def test_contours_and_crosshair_are_on_or_off(view, name):
    explorer = Explorer(view).show(sagittal=4)  # where both have voxels
    everything = explorer.png()
    # A slice that is drawn while a contour is off has none.
    assert explorer.show(**{name: False}, axial=9).png() != explorer.show(**{name: True}).png()
    explorer.show(**{name: False})
    for axes in slices_of(explorer):
        shown = {line.get_label() for line in axes.collections if line.get_visible()}
        crosshair = [line for line in axes.lines if line.get_color() == style.YELLOW]
        assert shown == {"truth", "prediction"} - {name}
        assert len(crosshair) == 2 * (name != "crosshair")
    assert explorer.show(**{name: True}, axial=8).png() == everything


def test_a_redraw_is_the_picture_that_is_drawn_at_once(view):
    moved = Explorer(view)
    moved.png()
    moved.show(sagittal=0, window=(0.1, 0.5)).png()
    moved.show(sagittal=3, truth=False, window=(0.2, 0.7))
    fresh = Explorer(view).show(sagittal=3, truth=False, window=(0.2, 0.7))
    assert moved.png() == fresh.png()


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 40, 2), (2, 3, 60)])
def test_odd_volumes_are_drawn(shape):
    flat = figures.View(np.ones(shape), np.eye(4), np.ones(shape, bool), np.zeros(shape, bool))
    assert Image.open(BytesIO(Explorer(flat).png())).width > 1000
    assert Explorer(flat).widget


# --- the controls --------------------------------------------------------------------------


def test_controls_and_state_follow_each_other(view):
    explorer = Explorer(view, TASKS["Task03_Liver"])
    parts = controls(explorer.widget)
    assert {*parts} == {*explorer.state, "auto", "task"}
    explorer.show(sagittal=5, truth=False, window=(0.25, 0.5))
    assert (parts["sagittal"].value, parts["truth"].value) == (5, False)
    assert parts["window"].value == (0.25, 0.5)
    before = explorer.widget.children[1].value
    parts["prediction"].value = False
    assert explorer.state["prediction"] is False
    assert explorer.widget.children[1].value == explorer.png() != before
    assert parts["axial"].max == 15
    parts["task"].click()
    assert explorer.state["window"] == parts["window"].value == (-160, 240)
    parts["auto"].click()
    assert explorer.state["window"] == pytest.approx(np.percentile(view.image, (0.5, 99.5)))
    explorer.show(window=(-900, 9))
    assert explorer.state["window"] == parts["window"].value == (-900, 9)


def test_one_step_is_one_redraw(view, monkeypatch):
    explorer = Explorer(view)
    slider = controls(explorer.widget)["axial"]
    drawn = []
    monkeypatch.setattr(explorer, "png", lambda: drawn.append(1) or b"")
    slider.value += 1
    explorer.show(axial=0, sagittal=0)
    explorer.show(axial=0)
    assert len(drawn) == 2


def test_what_is_not_there_has_no_control(view):
    explorer = Explorer(replace(view, truth=None, prediction=None))
    assert "truth" not in controls(explorer.widget)
    for wrong in ({"truth": False}, {"axial": 16}, {"axial": -1}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            explorer.show(**wrong)


# --- what may be handed in -----------------------------------------------------------------


def test_a_case_and_its_path_are_the_same_volume(case):
    truth = mvl.data.nifti.read_label(case.label)[0]
    image, header = mvl.read_volume(case.image)
    by_case = mvl.explore(case, prediction=truth)
    by_path = mvl.explore(str(case.image), truth=case.label, prediction=case.label)
    view = figures.View(image, header.affine, truth > 0, truth > 0, case.name)
    by_view = Explorer(view, mvl.read_task(case.image.parents[1]))
    united = mvl.explore(case, prediction=truth[None] > 0)
    assert by_case.png() == by_path.png() == by_view.png() == united.png()
    assert "Dice 1.000" in texts(by_case) and style.SYNTHETIC in texts(by_case)


def test_a_run_segments_the_file(case, tiny):
    config, task = tiny(), mvl.read_task(case.image.parents[1])
    model = mvl.build_segmenter(config.model, 1, 1, config.data.grid, config.seed).eval()
    run = Predictor(model, mvl.Preparation(task, config.data))
    volume = run.preparation.load([case], progress=False)[0]
    mask = mvl.segment(model, volume, run.preparation)
    assert mvl.explore(case, run).png() == mvl.explore(case, mask).png()
    title = texts(mvl.explore(case, run, task=replace(REAL, name="another")))
    assert "model of synthetic data" in title
    two = mvl.Preparation(replace(task, channels=("T2", "ADC")), config.data)
    with pytest.raises(DataError, match=r"1 channels.* 2 \(T2, ADC\)"):
        mvl.explore(case, Predictor(model, two))


def test_faults_name_both_sides(case, tmp_path):
    image, header = mvl.read_volume(case.image)
    affine = header.affine.copy()
    affine[0, 3] += 3
    moved = tmp_path / "moved.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), affine), moved)
    for wrong, words in (
        (np.zeros((3, 4, 5), bool), ("prediction", "(3, 4, 5)", str(case.image), str(image.shape))),
        (moved, (f"prediction {moved}", str(case.image), "3 mm")),
        (np.full(image.shape, 0.4), ("0.4", "threshold")),
        (tmp_path / "none.nii.gz", ("none.nii.gz", "missing")),
    ):
        with pytest.raises(DataError) as error:
            mvl.explore(case, prediction=wrong)
        assert all(word in str(error.value) for word in words)
    nibabel.save(nibabel.Nifti1Image(image * np.nan, header.affine), tmp_path / "nan.nii.gz")
    with pytest.raises(DataError, match=r"nan\.nii\.gz .* NaN"):
        mvl.explore(tmp_path / "nan.nii.gz")


# --- where it is shown ---------------------------------------------------------------------


def kernel_that(monkeypatch, allow_stdin):
    """A kernel whose running cell was asked for by a front end that lets it ask, or does not."""
    request = {"content": {"allow_stdin": allow_stdin}}
    kernel = SimpleNamespace(get_parent=lambda channel: request)
    monkeypatch.setattr(module, "get_ipython", lambda: SimpleNamespace(kernel=kernel))


def page_of(notebook):
    from nbconvert import HTMLExporter

    return HTMLExporter().from_notebook_node(notebook)[0]


def test_a_front_end_gets_controls_and_picture_and_a_page_the_picture(view, monkeypatch):
    kernel_that(monkeypatch, allow_stdin=True)
    explorer = Explorer(view)
    bundle = explorer._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] == explorer.widget.model_id
    assert base64.b64decode(bundle["image/png"]) == explorer.png()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("...")])
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", data=bundle)]
    page = page_of(notebook)
    assert "data:image/png;base64" in page and bundle[WIDGET]["model_id"] not in page


def test_without_one_it_is_a_picture_and_makes_no_widget(view, monkeypatch):
    kernel_that(monkeypatch, allow_stdin=False)
    explorer = Explorer(view)
    assert {*explorer._repr_mimebundle_()} == {"text/plain", "image/png"}
    assert "widget" not in vars(explorer)


def test_executed_headless_it_is_a_picture_on_the_page(case):
    from nbclient import NotebookClient

    source = (
        "import sys, mvl, mvl.show.explorer\n"
        "assert not {'torch', 'monai'} & {*sys.modules}\n"
        f"mvl.explore({str(case.image)!r}, prediction={str(case.label)!r})"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    resources = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    (output,) = notebook.cells[0].outputs
    assert {*output.data} == {"text/plain", "image/png"}
    assert Image.open(BytesIO(base64.b64decode(output.data["image/png"]))).width > 1000
    assert "widgets" not in notebook.metadata
    page = page_of(notebook)
    assert "data:image/png;base64" in page and "widget-view" not in page
