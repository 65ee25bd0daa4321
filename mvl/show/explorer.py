"""The slice explorer: `mvl.explore(case, prediction=run)` as the last line of a notebook's cell.

Its picture is matplotlib's and goes as a PNG to an image widget: ipywidgets is all that JupyterLab,
Colab and VS Code need. Where nobody can move a slider (papermill, nbconvert, a page without a
kernel) the picture is still. ipyniivue 2.4 has no such still picture, nor a chart of Dice.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
from pathlib import Path

import ipywidgets as iw
import numpy as np
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mvl.data.nifti import place_fault, read_label, read_volume
from mvl.data.task_folder import Case, case_name
from mvl.data.tasks import Task, read_task
from mvl.errors import DataError
from mvl.show.figures import volumes
from mvl.show.figures.style import BLACK, GREY, YELLOW, styled
from mvl.show.figures.volumes import PLANES, TRUTH_COLOUR, Oriented, View

#: Which way the slices count, along each axis in RAS+.
_ORDER = ("left to right", "back to front", "bottom to top")
#: What is drawn or not.
_TOGGLED = ("truth", "prediction", "crosshair")
_HELP = (
    "Click a slider, or Tab to it: <b>←</b> <b>→</b> go slice by slice, <b>Page Up</b> and "
    "<b>Page Down</b> by several, <b>Home</b> and <b>End</b> to the ends."
)


def explore(
    case: Case | str | os.PathLike, prediction=None, truth=None, task: Task | None = None
) -> Explorer:
    """Look through a volume slice by slice, with contours of truth and prediction.

    Three planes to one scale, each with a chart of Dice and a slider. A saved notebook holds
    controls and picture; JupyterLab needs the cell to be run again for the controls.

    Args:
        case: a case, or the path of a NIfTI image.
        prediction: a mask on the grid of the image's file: array or tensor (H, W, D), inside where
            it is above 0; masks (K, H, W, D), which are united; the path of a NIfTI mask; or what
            has `segment(case)` and gives such masks, as a `Run` and a `Predictor` do.
        truth: a mask, too; a case brings its own.
        task: where the voxels are from; by default the task in whose folder the image lies, if any.

    Raises:
        DataError: a file cannot be read, image and mask differ in shape or place, values make no
            mask, the image does not fit the model, or it has voxels that are not finite.
    """
    if not isinstance(case, Case):
        case = Case(case_name(case), case_name(case), Path(case).expanduser(), None)
    task = task or _task_of(case.image)
    image, header = read_volume(case.image)
    if not np.isfinite(image).all():
        raise DataError(f"image {case.image} has voxels that are NaN or infinite; replace them")
    title = case.name
    if hasattr(prediction, "segment"):
        synthetic = getattr(getattr(prediction, "task", None), "synthetic", False)
        if synthetic and not (task and task.synthetic):
            title += ", segmented by a model of synthetic data"
        prediction = prediction.segment(case)
    masks, counted = {}, True
    for side, values in (
        ("truth", case.label if truth is None else truth),
        ("prediction", prediction),
    ):
        if values is not None:
            values = _values(values, side, case.image, image.shape[:3], header.forms)
            if side == "truth" and values.ndim == 3 and task and task.ignore is not None:
                counted = values != task.ignore
            masks[side] = (values > 0 if values.ndim == 3 else (values > 0).any(0)) & counted
    return Explorer(View(image, header.affine, **masks, title=title), task)


def dice_per_slice(prediction: np.ndarray, truth: np.ndarray, axis: int) -> np.ndarray:
    """Dice of every slice of two boolean arrays (H, W, D) across an axis.

    0 where one side is empty, NaN where both are: a slice with nothing to find is not a success.
    """
    others = tuple({0, 1, 2} - {axis})
    total = prediction.sum(others) + truth.sum(others)
    return np.where(total > 0, 2 * (prediction & truth).sum(others) / np.maximum(total, 1), np.nan)


def _task_of(image):
    """The task of the folder in which an image lies, or of the folder above that; else None."""
    for folder in image.absolute().parents[:2]:
        if (folder / "dataset.json").is_file():
            # Some other program's file is no reason to show nothing.
            with contextlib.suppress(DataError):
                return read_task(folder)
    return None


def _values(values, side, image, shape, forms):
    """Values (H, W, D) or (K, H, W, D) of a file, array or tensor, checked to be on the image's
    grid."""
    name, mask_forms = side, forms
    if isinstance(values, str | os.PathLike):
        path = Path(values).expanduser()
        values, header = read_label(path)
        name, mask_forms = f"{side} {path}", header.forms
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if shape not in (values.shape, values.shape[1:]):
        raise DataError(
            f"{name} has the shape {values.shape}, but image {image} has {shape}; give the mask "
            "on the grid of the image's file"
        )
    if values.dtype.kind == "f" and (between := values[values != np.rint(values)]).size:
        raise DataError(
            f"{name} holds values such as {between[0]:.3g}; threshold it to make a mask"
        )
    if fault := place_fault(forms, mask_forms, shape):
        raise DataError(f"{name} and image {image}: {fault[0]}; {fault[1]}")
    return values


class Explorer:
    """A volume, what is shown of it, and the controls that change that.

    A notebook shows it where it is the last line of a cell; `widget` is its part of ipywidgets.

    Attributes:
        state: what is shown, by the names that `show` takes; `show` alone changes it.
    """

    def __init__(self, view: View, task: Task | None = None):
        self._volume = volume = Oriented(view)
        low, high = map(float, volume.range)
        #: Windows that a button sets: as figures have it, and the task's where it has one.
        self._windows = {"auto": (low, high if high > low else low + 1)}
        if task and task.window_hu:
            self._windows["task"] = tuple(map(float, task.window_hu))
        self._last = {plane.name: volume.image.shape[plane.across] - 1 for plane in PLANES}
        self.state = {plane.name: volume.index(plane) for plane in PLANES}
        self.state["window"] = self._windows["auto"]
        self.state |= dict.fromkeys((*volume.masks, "crosshair"), True)
        self._controls, self._dice = {}, None
        if len(volume.masks) == 2:
            truth, prediction = volume.masks.values()
            self._dice = [dice_per_slice(prediction, truth, axis) for axis in range(3)]
        with styled():
            self._lay_out(task)

    def _lay_out(self, task):
        """Make the figure; later its slices and the marks in its charts alone are drawn again."""
        volume, title, self._marks = self._volume, self._volume.view.title, []
        height = max(volume.size[1], volume.size[2])
        # No column so narrow that its title does not fit.
        widths = [max(volume.size[plane.right], height / 2) for plane in PLANES]
        self._frames = [(width, height) for width in widths]
        heights = [8.9 / sum(widths) * height, 0.75][: len(volume.masks) or 1]  # inches
        figure = Figure(figsize=(9.6, sum(heights) + 0.65 * len(heights) + 0.1), dpi=120)
        self._canvas = FigureCanvasAgg(figure)
        grid = {"squeeze": False, "width_ratios": widths, "height_ratios": heights}
        self._slices, *charts = figure.subplots(len(heights), 3, **grid)
        self._draw_slices()
        if self._dice:
            truth, prediction = volume.masks.values()
            self._marks = [self._draw_chart(*pair) for pair in zip(charts[0], PLANES, strict=True)]
            total = np.count_nonzero(truth) + np.count_nonzero(prediction)
            dice = 2 * np.count_nonzero(truth & prediction) / total if total else 1.0
            title += f"{': ' if title else ''}Dice {dice:.3f} in the whole volume"
        figure.suptitle(title or " ", x=0.01, ha="left")
        if task:
            volumes.voxel_note(figure, task)
        self._canvas.draw()
        # Laid out once, and all but slices and marks drawn once: a redraw is then as fast as a
        # slider. The legend is in the title's line.
        figure.set_layout_engine("none")
        volumes.voxel_legend(figure, [volume.view], "right")
        for artist in (*self._slices, *self._marks):
            artist.set_animated(True)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(figure.bbox)

    def _draw_slices(self):
        volume, state = self._volume, self.state
        middle = {p.across: (state[p.name] + 0.5) * volume.spacing[p.across] for p in PLANES}  # mm
        look = {"color": YELLOW, "linewidth": 0.8, "alpha": 0.7, "zorder": 1.5}
        for plane, frame, axes in zip(PLANES, self._frames, self._slices, strict=True):
            for artist in (*axes.images, *axes.collections, *axes.lines, *axes.texts):
                artist.remove()
            index = state[plane.name]
            volume.draw(axes, plane, index, frame)
            axes.images[0].set_clim(*state["window"])
            for contour in axes.collections:
                contour.set_visible(state[contour.get_label()])
            if state["crosshair"]:
                axes.axvline(middle[plane.right], **look)
                axes.axhline(middle[plane.up], **look)
            title = f"{plane.name} {index}"
            if self._dice:
                dice = self._dice[plane.across][index]
                title += ", both empty" if np.isnan(dice) else f", Dice {dice:.2f}"
            axes.set_title(title)
        volumes.scale_bar(self._slices[0])

    def _draw_chart(self, axes, plane):
        """Draw Dice by slice on the area of truth: where it is small, few voxels decide.

        Returns what marks the slice that is shown.
        """
        dice = self._dice[plane.across]
        numbers = np.arange(len(dice))
        area = self._volume.masks["truth"].sum((plane.right, plane.up))
        look = {"step": "mid", "color": TRUTH_COLOUR, "alpha": 0.3, "linewidth": 0}
        axes.fill_between(numbers, area / max(1, area.max()), **look)
        line = axes.axvline(self.state[plane.name], color=GREY, linewidth=1)
        look = {"color": BLACK, "markersize": 3, "linewidth": 1.4, "clip_on": False}
        axes.plot(numbers, dice, ".-", **look)
        axes.set(xlim=(-0.5, len(numbers) - 0.5), ylim=(0, 1), yticks=(0, 0.5, 1))
        axes.set_xlabel(f"slice, {_ORDER[plane.across]}", labelpad=1, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelleft=plane.across == 0)
        if plane.across == 0:
            axes.set_ylabel("Dice\n(blue: truth)", fontsize=8)
        return line

    def png(self) -> bytes:
        """The picture as a PNG file."""
        self._canvas.restore_region(self._still)
        for artist in (*self._slices, *self._marks):
            artist.axes.draw_artist(artist)
        file = io.BytesIO()
        picture = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        picture.save(file, "png", compress_level=1)  # a third faster, a tenth larger
        return file.getvalue()

    def __repr__(self) -> str:
        return f"<Explorer of {self._volume.view.title or 'a volume'}>"

    def show(self, **what) -> Explorer:
        """Change what is shown, and the controls with it; returns this explorer.

        Args:
            sagittal, coronal, axial: a slice's number, from 0 at the left, back or bottom,
                whatever the order of the file.
            window: (low, high), the intensities that are shown black and white.
            truth, prediction, crosshair: whether it is drawn.

        Raises:
            DataError: there is nothing of that name to show, or the value is out of range.
        """
        for name, value in what.items():
            if name not in self.state:
                raise DataError(f"there is no {name!r} to show; there is {', '.join(self.state)}")
            last = self._last.get(name)
            if last is not None and not 0 <= value <= last:
                raise DataError(f"{name} slice {value}: they are numbered 0 to {last}")
        changed = {name: value for name, value in what.items() if value != self.state[name]}
        if not changed:
            return self
        self.state |= changed
        with styled():
            self._draw_slices()
        for line, plane in zip(self._marks, PLANES, strict=False):
            line.set_xdata([self.state[plane.name]] * 2)
        # A control that is set reports it, to `show`, which then finds nothing to change.
        for name in changed.keys() & self._controls.keys():
            control = self._controls[name]
            if name == "window":  # a slider would cut what lies beyond its ends
                low, high = changed[name]
                control.min, control.max = min(control.min, low), max(control.max, high)
            control.value = changed[name]
        if self._controls:
            self.widget.children[1].value = self.png()
        return self

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/plain": repr(self), "image/png": base64.b64encode(self.png()).decode()}
        # Such a front end lets a kernel ask for input; what executes notebooks does not.
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel and kernel.get_parent("shell").get("content", {}).get("allow_stdin", True):
            # With the picture, which is what a page shows that is made of the notebook later.
            bundle = self.widget._repr_mimebundle_() | bundle
        return bundle

    @functools.cached_property
    def widget(self) -> iw.VBox:
        """Controls and picture, an ipywidgets `VBox` that is made when first asked for."""
        low, high = self._windows["auto"]
        ends = [*self._windows.values(), (self._volume.image.min(), self._volume.image.max())]
        # A third of the picture; where the window is too narrow, a row of its own.
        look = {"layout": {"flex": "1 1 240px", "margin": "0"}}
        sliders = {
            plane.name: iw.IntSlider(
                max=self._last[plane.name], tooltip=f"slice, {_ORDER[plane.across]}", **look
            )
            for plane in PLANES
        }
        look = {"indent": False, "layout": {"width": "auto", "margin": "2px 14px 2px 0"}}
        bar = {name: iw.Checkbox(**look) for name in _TOGGLED if name in self.state}
        bar["window"] = iw.FloatRangeSlider(
            min=min(float(end[0]) for end in ends),
            max=max(float(end[1]) for end in ends),
            # Of the window and not of all values: one hot voxel would make it too coarse.
            step=(high - low) / 100,
            readout_format=".0f" if high - low >= 50 else ".3g",
            tooltip="intensities that are shown black and white",
            layout={"width": "360px"},
        )
        self._controls = sliders | bar
        for name, control in self._controls.items():
            control.description, control.value = name, self.state[name]
            control.observe(lambda change, name=name: self.show(**{name: change.new}), "value")
        buttons = []
        for name, window in self._windows.items():
            button = iw.Button(description=name, layout={"width": "auto"})
            button.on_click(lambda _, window=window: self.show(window=window))
            buttons.append(button)
        wrap = {"flex_flow": "row wrap"}
        parts = [
            iw.HBox([*bar.values(), *buttons], layout=wrap),
            iw.Image(value=self.png(), layout={"width": "100%", "margin": "0"}),
            iw.HBox([*sliders.values()], layout=wrap),
            iw.HTML(_HELP),
        ]
        return iw.VBox(parts, layout={"width": "100%", "max_width": "960px"})
