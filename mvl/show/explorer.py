"""The slice explorer: `mvl.explore(case, prediction=run)` as the last line of a notebook's cell.

The picture is matplotlib's, with planes drawn as `figures.slices` draws them, and goes as a PNG
to an image widget: ipywidgets is all that JupyterLab, Colab and VS Code need for it. Where nobody
can move a slider (papermill, nbconvert, a page without a kernel) the same picture stands still.
No model is known here; one that is handed in is asked for its prediction.
"""

import base64
import io
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mvl.data.nifti import place_fault, read_header, read_label, read_volume
from mvl.data.task_folder import Case, case_name
from mvl.data.tasks import read_task
from mvl.errors import DataError
from mvl.show.figures.of_volumes import (
    PLANES,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    Oriented,
    View,
    in_corner,
    scale_bar,
    voxel_legend,
    voxel_note,
)
from mvl.show.figures.style import BLACK, GREY, STYLE, VERMILLION, YELLOW

#: Plane -> the axis that it cuts, in RAS+.
_AXIS = {name: axis for name, axis, *_ in PLANES}
#: Which way the slices count, along each axis.
_ORDER = ("left to right", "back to front", "bottom to top")
#: What is drawn or not, and the colour that it has in the picture.
_TOGGLED = {
    "truth": TRUTH_COLOUR,
    "prediction": PREDICTION_COLOUR,
    "crosshair": YELLOW,
}
#: Inches: the picture, the space beside its columns, and the height of what is not a slice.
_WIDTH, _LEFT, _RIGHT, _GAP = 9.6, 0.54, 0.1, 0.16
_HEADER, _TITLE, _CHART_TITLE, _CHART, _AXIS_LABELS, _NOTE = 0.4, 0.26, 0.14, 0.75, 0.42, 0.24
#: Dots per inch: fine enough for a dense screen, and few enough to follow a slider that is dragged.
_DPI = 120
#: The picture is never shown wider than this; a narrow window shrinks it.
_WIDEST = "960px"
_HELP = (
    '<span style="font-size: 85%; opacity: 0.75; line-height: 1.4">'
    "Click a slider, or Tab to it: <b>←</b> <b>→</b> go slice by slice, <b>Page Up</b> and "
    "<b>Page Down</b> by several, <b>Home</b> and <b>End</b> to the ends.</span>"
)


def explore(case, prediction=None, truth=None, task=None):
    """Look through a volume slice by slice, with contours of truth and prediction.

    Three orthogonal planes, to one scale of millimetres and turned as `figures.slices` turns
    them. Under each is a chart of Dice slice by slice, and a slider: once it has the focus, arrow
    keys move it by a slice, Page Up and Page Down by several, Home and End to the ends. Contours,
    crosshair and intensity window are set above the picture.

    Executed by papermill or nbconvert it is the picture alone, whose slices `Explorer.show`
    chooses. A notebook that was run by hand and saved holds both, so that GitHub and pages made
    by nbconvert have the picture; JupyterLab itself, without the kernel, asks for the widget
    alone ("model not found", ipympl's issue 473) until the cell is run again.

    Args:
        case: a `Case`; the path of a NIfTI image; or a `View`.
        prediction: a mask on the grid of the image's file, (H, W, D) array or tensor of booleans
            or labels, where those above 0 are in; masks (K, H, W, D) as `mvl.segment` gives them,
            which are united; the path of a NIfTI mask; or a `Run` (or a `Predictor`), which then
            segments the image. A view may bring its own.
        truth: as `prediction`, but no run; a case and a view bring their own.
        task: the `Task` that the voxels are from, which decides what is said of their origin. By
            default that of the folder with the dataset.json in which the image lies, if any.

    Returns:
        An `Explorer`, which a notebook shows.

    Raises:
        DataError: a file cannot be read; image and mask differ in shape or place; what should be
            a mask is none; the image is not what the run was trained for; or it has voxels that
            are NaN or infinite.
    """
    view, name, path = _opened(case)
    if not np.isfinite(view.image).all():
        raise DataError(f"{name} has voxels that are NaN or infinite; replace them first")
    if truth is None:
        truth = case.label if isinstance(case, Case) else view.truth
    if prediction is None:
        prediction = view.prediction
    if path is not None and task is None:
        task = _task_of(path)
    if hasattr(prediction, "preparation"):
        run = prediction
        if path is None:
            raise DataError("a Run segments files: explore the Case, or the path of its image")
        prediction = _segmented(run, path, view.image)
        if run.task.synthetic and not (task and task.synthetic):
            view = replace(view, title=f"{view.title}, segmented by a model of synthetic data")
    masks = {"truth": truth, "prediction": prediction}
    forms = read_header(path).forms if path else {"affine": np.asarray(view.affine, float)}
    masks = {
        side: _mask(values, side, name, view.image.shape[:3], forms)
        for side, values in masks.items()
        if values is not None
    }
    return Explorer(replace(view, **masks), task)


def dice_per_slice(prediction, truth, axis):
    """Dice of every slice across one axis.

    Args:
        prediction, truth: boolean arrays (H, W, D).
        axis: 0, 1 or 2.

    Returns:
        float64 array, a value a slice: 0 where one side is empty, NaN where both are, since a
        slice with nothing to find is no success.
    """
    within = tuple({0, 1, 2} - {axis})
    overlap = (prediction & truth).sum(within)
    total = prediction.sum(within) + truth.sum(within)
    return np.where(total > 0, 2 * overlap / np.maximum(total, 1), np.nan)


# --- what is handed in ---------------------------------------------------------------------


def _opened(case):
    """(view without masks of its own unless it was one, name for messages, path or None)."""
    if isinstance(case, View):
        return case, f"image {case.title!r}" if case.title else "the image", None
    if isinstance(case, Case):
        path, title = Path(case.image), case.name
    elif isinstance(case, str | os.PathLike):
        path = Path(os.path.expanduser(case))
        title = case_name(path)
    else:
        raise DataError(
            f"explore shows a Case, the path of a NIfTI image or a View, not {type(case).__name__}"
        )
    image, header = read_volume(path)
    return View(image, header.affine, title=title), f"image {path}", path


def _task_of(path):
    """The task of the folder in which an image lies, or of the folder above that; else None."""
    for folder in path.absolute().parents[:2]:
        if (folder / "dataset.json").is_file():
            try:
                return read_task(folder)
            except DataError:
                return None  # some other program's file is no reason to show nothing
    return None


def _segmented(run, path, image):
    """A run's masks (K, H, W, D) of an image, along the axes of its file."""
    from mvl.experiment.evaluation import (
        segment,
    )

    channels = 1 if image.ndim == 3 else image.shape[3]
    if channels != len(run.task.channels) and run.preparation.config.channels == "all":
        raise DataError(
            f"{path} has {channels} channels, but the run was trained on "
            f"{len(run.task.channels)} ({', '.join(run.task.channels)})"
        )
    # Without its label, so that a label which does not fit is reported by name, further down.
    case = Case(case_name(path), case_name(path), path, None)
    volume = run.preparation.load([case], progress=False)[0]
    return segment(run.model, volume, run.preparation)


def _mask(values, name, image, shape, forms):
    """A boolean mask (H, W, D) of a file, array or tensor, held against the image's grid."""
    own = forms
    if isinstance(values, str | os.PathLike):
        path = Path(os.path.expanduser(values))
        values, header = read_label(path)
        name, own = f"{name} {path}", header.forms
    elif hasattr(values, "detach"):
        values = values.detach().cpu()
    values = np.asarray(values)
    if values.shape != shape and values.shape[1:] != shape:
        raise DataError(
            f"{name} has the shape {values.shape}, but {image} has {shape}; give the mask on the "
            "grid of the image's file"
        )
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {values.dtype}, which makes no mask")
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        between = values[values != np.rint(values)][0]
        raise DataError(f"{name} holds values such as {between:.3g}; threshold it to make a mask")
    if fault := place_fault(forms, own, shape):
        raise DataError(f"{name} and {image}: {fault[0]}; {fault[1]}")
    inside = values > 0
    return inside if inside.shape == shape else inside.any(0)


# --- what is shown -------------------------------------------------------------------------


class Explorer:
    """A volume, what is shown of it, and the controls that change that.

    A notebook shows it where it is the last line of a cell. `widget` is the part of ipywidgets, to
    be placed in a layout of one's own (Voilà shows that, too), `png` the picture alone.

    Args:
        view: a `View` of finite voxels, its masks on the image's grid.
        task: the `Task` that the voxels are from, or None.
    """

    def __init__(self, view, task=None):
        self._title = view.title or "a volume"
        self._volume = Oriented(view)
        low, high = map(float, self._volume.range)
        #: Windows that a button sets: as figures have it, and the task's where it has one.
        self._windows = {"auto": (low, high if high > low else low + 1)}
        if task and task.window_hu:
            self._windows["task"] = tuple(map(float, task.window_hu))
        self._state = {
            **{name: self._volume.index(axis) for name, axis in _AXIS.items()},
            "window": self._windows["auto"],
            **dict.fromkeys((*self._volume.masks, "crosshair"), True),
        }
        self._picture = _Picture(self._volume, task, self._state)
        self._controls = {}
        self._image = self._widget = None

    def __repr__(self):
        shape = " x ".join(map(str, self._volume.image.shape))
        return f"<Explorer of {self._title}, {shape} voxels>"

    @property
    def state(self):
        """What is shown, by the names that `show` takes; a copy."""
        return dict(self._state)

    def show(self, **what):
        """Change what is shown, and the controls with it.

        Args:
            sagittal, coronal, axial: a slice's number, from 0 at the left, back or bottom,
                whatever the order of the file.
            window: (low, high), the intensities that are shown black and white.
            truth, prediction, crosshair: whether it is drawn.

        Returns:
            This explorer, so that `mvl.explore(case).show(axial=12)` chooses what a page shows.

        Raises:
            DataError: there is nothing of that name to show, or the value is out of range.
        """
        changed = {name: self._checked(name, value) for name, value in what.items()}
        changed = {name: value for name, value in changed.items() if value != self._state[name]}
        if changed:
            self._state |= changed
            self._picture.update(self._state, changed)
            # A control that is set reports it, to `show`, which then finds nothing to change.
            for name in changed.keys() & self._controls.keys():
                control = self._controls[name]
                if name == "window":  # a slider would cut what lies beyond its ends
                    control.min = min(control.min, changed[name][0])
                    control.max = max(control.max, changed[name][1])
                control.value = changed[name]
            if self._image:
                self._image.value = self.png()
        return self

    def _checked(self, name, value):
        if name not in self._state:
            raise DataError(f"there is no {name!r} to show; there is {', '.join(self._state)}")
        if name == "window":
            low, high = map(float, value)
            if not low < high:
                raise DataError(f"window {low:g} to {high:g}: the second must be the larger")
            return low, high
        if name in _TOGGLED:
            return bool(value)
        slices = self._volume.image.shape[_AXIS[name]]
        if not 0 <= value < slices:
            raise DataError(f"{name} slice {value}: they are numbered 0 to {slices - 1}")
        return int(value)

    def png(self):
        """The picture, as the bytes of a PNG file."""
        return self._picture.png()

    @property
    def widget(self):
        """Controls and picture, an ipywidgets `VBox` that is made when first asked for."""
        if self._widget is None:
            self._widget = self._built()
        return self._widget

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/plain": repr(self), "image/png": base64.b64encode(self.png()).decode()}
        if _is_attended():
            # Beside the picture, which is what a page shows that is made of the notebook later.
            kind = "application/vnd.jupyter.widget-view+json"
            bundle[kind] = self.widget._repr_mimebundle_()[kind]
        return bundle

    def _built(self):
        import ipywidgets
        from ipywidgets import Layout

        self._image = ipywidgets.Image(value=self.png(), layout=Layout(width="100%"))
        left, columns = self._picture.columns
        sliders = [
            ipywidgets.IntSlider(
                value=self._state[name],
                max=self._volume.image.shape[axis] - 1,
                description=name,
                tooltip=f"slice, {_ORDER[axis]}",
                style={"description_width": "4em"},
                layout=Layout(width=f"{width:.2%}", min_width="200px", margin="0"),
            )
            for (name, axis), width in zip(_AXIS.items(), columns, strict=True)
        ]
        toggles = [
            ipywidgets.ToggleButton(
                value=self._state[name],
                description=name,
                tooltip=f"show the {name} or not",
                layout=Layout(width="auto"),
            )
            for name in _TOGGLED
            if name in self._state
        ]
        for toggle in toggles:
            toggle.add_class(f"mvl-{toggle.description}")
            _show_state(toggle)
            toggle.observe(lambda change: _show_state(change.owner), "value")
        window = self._window_slider()
        controls = [*sliders, *toggles, window]
        names = [*_AXIS, *(toggle.description for toggle in toggles), "window"]
        for name, control in zip(names, controls, strict=True):
            control.observe(lambda change, name=name: self._moved(name, change.new), "value")
        self._controls = dict(zip(names, controls, strict=True))
        bar = Layout(width="100%", flex_flow="row wrap", align_items="center")
        # Each slider below its column; where the window is too narrow for that, each in a row.
        row = Layout(width="100%", flex_flow="row wrap", padding=f"0 0 0 {left:.2%}")
        return ipywidgets.VBox(
            [
                ipywidgets.HBox([*toggles, window, *self._window_buttons()], layout=bar),
                self._image,
                ipywidgets.HBox(sliders, layout=row),
                ipywidgets.HTML(_HELP + _style()),
            ],
            layout=Layout(width="100%", max_width=_WIDEST),
        )

    def _moved(self, name, value):
        if name == "window" and value[0] == value[1]:
            return  # both ends dragged to one place: no window, and no fault either
        self.show(**{name: value})

    def _window_slider(self):
        import ipywidgets

        low, high = self._windows["auto"]
        ends = [*self._windows.values(), (self._volume.image.min(), self._volume.image.max())]
        return ipywidgets.FloatRangeSlider(
            value=self._state["window"],
            min=min(float(end[0]) for end in ends),
            max=max(float(end[1]) for end in ends),
            # Of the window and not of all values: one hot voxel would make it too coarse.
            step=(high - low) / 100,
            readout_format=".0f" if high - low >= 50 else ".3g",
            description="window",
            tooltip="intensities that are shown black and white",
            style={"description_width": "4.2em"},
            layout={"width": "360px"},
        )

    def _window_buttons(self):
        import ipywidgets

        tooltips = {
            "auto": "0.5 % of the voxels are darker, 0.5 % brighter",
            "task": "the task's window, in Hounsfield units",
        }
        buttons = []
        for name, window in self._windows.items():
            button = ipywidgets.Button(
                description=name, tooltip=tooltips[name], layout={"width": "auto"}
            )
            button.on_click(lambda _, window=window: self.show(window=window))
            buttons.append(button)
        return buttons


def _show_state(toggle):
    toggle.icon = "check-square-o" if toggle.value else "square-o"


def _style():
    """A toggle wears its line's colour while that is drawn, and so is the legend as well.

    A rule of CSS, since ipywidgets colours buttons, but no toggles.
    """
    rules = (
        f".mvl-{name}.mod-active {{ background-color: {colour} !important; color: black }}"
        for name, colour in _TOGGLED.items()
    )
    return f"<style>{' '.join(rules)}</style>"


def _is_attended():
    """Whether a front end with a person before it asked for the cell that runs.

    Such a front end lets a kernel ask for input; what executes notebooks by itself, with widgets
    that nobody will ever move, does not.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    return kernel.get_parent("shell").get("content", {}).get("allow_stdin", True)


class _Picture:
    """The figure of an explorer: made once, then changed where it has to be.

    Args:
        volume: a `Oriented`.
        task: a `Task` or None.
        state: as `Explorer.state`.

    Attributes:
        columns: (left end of the first column, [width of each column with the space after it]),
            as shares of the picture's width.
    """

    def __init__(self, volume, task, state):
        size = volume.size
        height = max(size[1], size[2])
        # No column so narrow that its title does not fit.
        widths = [max(size[right], height / 2) for _, _, right, *_ in PLANES]
        inches = (_WIDTH - _LEFT - _RIGHT - 2 * _GAP) / sum(widths)
        charts = _CHART_TITLE + _CHART + _AXIS_LABELS if len(volume.masks) == 2 else 0
        bottom = _NOTE if task or charts else 0.08
        total = bottom + charts + inches * height + _TITLE + _HEADER
        self.columns = (_LEFT / _WIDTH, [(inches * width + _GAP) / _WIDTH for width in widths])
        # A layout of its own: the constrained one would be worked out anew at every redraw.
        with plt.rc_context(STYLE | {"figure.constrained_layout.use": False}):
            self._figure = Figure(figsize=(_WIDTH, total), dpi=_DPI)
            self._canvas = FigureCanvasAgg(self._figure)
            #: What never changes, drawn once; the rest is drawn upon it.
            self._background = None
            self._planes = []
            left = _LEFT
            for plane, width in zip(PLANES, widths, strict=True):
                across = (left, inches * width)
                axes = self._add_axes(*across, bottom + charts, inches * height)
                chart = self._add_axes(*across, bottom + _AXIS_LABELS, _CHART) if charts else None
                self._planes.append(_Plane(volume, plane, axes, chart, (width, height)))
                left += inches * width + _GAP
            self.update(state, state)
            self._annotate(volume, task, widths[0])

    def _add_axes(self, left, width, bottom, height):
        """Axes at a place that is given in inches."""
        across, up = self._figure.get_size_inches()
        return self._figure.add_axes((left / across, bottom / up, width / across, height / up))

    def _annotate(self, volume, task, first_width):
        figure, view = self._figure, volume.view
        first = self._planes[0].axes
        scale_bar(first, first_width)
        in_corner(first, view.caption)
        title, inches_high = view.title, figure.get_size_inches()[1]
        if len(volume.masks) == 2:
            both = volume.masks["truth"] & volume.masks["prediction"]
            total = sum(np.count_nonzero(mask) for mask in volume.masks.values())
            dice = 2 * np.count_nonzero(both) / total if total else 1.0
            title += f"{': ' if title else ''}Dice {dice:.3f} in the whole volume"
            style = {"fontsize": 8, "color": GREY}
            figure.text(_LEFT / _WIDTH, 0.06 / inches_high, "blue: area of the truth", **style)
        figure.text(_LEFT / _WIDTH, 1 - 0.17 / inches_high, title, fontsize=11, va="center")
        voxel_legend(figure, [view])
        if task:
            voxel_note(figure, task)

    def update(self, state, changed):
        """Bring the figure to a state of which only the names in `changed` are new."""
        for plane in self._planes:
            if plane.name in changed:
                plane.cut(state[plane.name])
            plane.dress(state)

    def png(self):
        """The figure as the bytes of a PNG file."""
        if self._background is None:
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._figure.bbox)
        self._canvas.restore_region(self._background)
        for plane in self._planes:
            for artist in plane.moving:
                self._figure.draw_artist(artist)
        picture = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        file = io.BytesIO()
        picture.save(file, "png", compress_level=1)  # a third faster, a tenth larger
        return file.getvalue()


class _Plane:
    """One plane of the picture: its slice and, with truth and prediction, its chart of Dice.

    Args:
        volume: a `Oriented`.
        plane: a row of `PLANES`.
        axes: for the slice.
        chart: axes for the chart, or None.
        frame: (width, height) in mm, what `axes` show.
    """

    def __init__(self, volume, plane, axes, chart, frame):
        self.name, self._across, self._right, self._up, *_ = plane
        self._volume, self._plane, self._frame = volume, plane, frame
        self.axes = axes
        self._title = axes.set_title(self.name)
        self._drawn = []
        style = {"color": _TOGGLED["crosshair"], "linewidth": 0.8, "alpha": 0.7, "zorder": 1.5}
        self._cross = (axes.axvline(0, **style), axes.axhline(0, **style))
        #: What is not the same in every state, in the order of drawing.
        self.moving = [axes]
        self._dice = None
        if chart:
            masks = volume.masks
            self._dice = dice_per_slice(masks["prediction"], masks["truth"], self._across)
            self._draw_chart(chart)
            self.moving += [self._line, self._dot]
        for artist in self.moving:
            artist.set_animated(True)

    def _draw_chart(self, chart):
        numbers = np.arange(len(self._dice))
        area = self._volume.masks["truth"].sum(tuple({0, 1, 2} - {self._across}))
        # Where there is little of the truth, a few voxels decide: its area says where.
        share = area / max(1, area.max())
        chart.fill_between(numbers, share, step="mid", color=_TOGGLED["truth"], alpha=0.3, lw=0)
        self._line = chart.axvline(0, color=GREY, linewidth=1)
        style = {"color": BLACK, "marker": ".", "markersize": 3, "linewidth": 1.4}
        chart.plot(numbers, self._dice, clip_on=False, **style)
        (self._dot,) = chart.plot(
            [], [], "o", color=VERMILLION, markersize=6, clip_on=False, zorder=5
        )
        chart.set(xlim=(-0.5, len(numbers) - 0.5), ylim=(0, 1), yticks=(0, 0.5, 1))
        chart.set_xlabel(f"slice, {_ORDER[self._across]}", labelpad=1, fontsize=9)
        chart.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if self._plane is PLANES[0]:
            chart.set_ylabel("Dice")
        else:
            chart.tick_params(labelleft=False)

    def cut(self, index):
        """Show another slice."""
        for artist in self._drawn:
            artist.remove()
        before = set(self.axes.get_children())
        self._volume.draw(self.axes, self._plane, index, self._frame)
        self._drawn = [artist for artist in self.axes.get_children() if artist not in before]
        title = f"{self.name} {index}"
        if self._dice is not None:
            dice = self._dice[index]
            title += ", both empty" if np.isnan(dice) else f", Dice {dice:.2f}"
            self._line.set_xdata([index, index])
            self._dot.set_data([index], [dice])
        self._title.set_text(title)

    def dress(self, state):
        """Set what does not depend on the slice: window, contours and crosshair."""
        self.axes.images[0].set_clim(*state["window"])  # a heat map above it has a scale of its own
        for contour in self.axes.collections:
            contour.set_visible(state[contour.get_label()])
        vertical, horizontal = self._cross
        where = {axis: state[name] + 0.5 for name, axis in _AXIS.items()}  # a voxel's middle
        x, y = (where[axis] * self._volume.spacing[axis] for axis in (self._right, self._up))
        vertical.set(xdata=[x, x], visible=state["crosshair"])
        horizontal.set(ydata=[y, y], visible=state["crosshair"])
