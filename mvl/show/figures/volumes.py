"""Figures of volumes: slices with contours, maps on them, cases and tasks side by side.

Every slice is cut from the volume turned to RAS+ and drawn in millimetres. Synthetic data is named
in the figure itself, and voxels of the decathlon carry its attribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from nibabel.orientations import apply_orientation, io_orientation

from mvl.data.convert import RELEASES
from mvl.data.tasks import TASKS
from mvl.show.figures import style
from mvl.show.figures.style import (
    ATTRIBUTION,
    BLACK,
    COLUMN,
    GREY,
    ORANGE,
    PAGE,
    SKY,
    VERMILLION,
    drawn,
    name_of_arm,
)

if TYPE_CHECKING:
    from mvl.data.tasks import Task

TRUTH_COLOUR, PREDICTION_COLOUR = SKY, ORANGE
#: What a mask is -> colour, width and dashes of its contour: without colours the dashes differ.
_CONTOURS = {"truth": (TRUTH_COLOUR, 1.4, "-"), "prediction": (PREDICTION_COLOUR, 0.9, (0, (3, 1)))}
#: Colours of a map on an image: they grow brighter evenly, and the truth's sky blue is not one
#: of them. Percentiles of the whole map are the ends of its colours.
_HEAT, _HEAT_ALPHA, _HEAT_RANGE = "inferno", 0.8, (1, 99)
#: Keeps what is written on a volume legible on bright voxels.
_OUTLINE = [withStroke(linewidth=1.5, foreground="black")]
#: What the letters at a slice's sides mean.
_SIDES = "L, R: left and right of the patient; P, A: back, front; I, S: feet, head"


class Plane(NamedTuple):
    """The axis that a plane cuts, those that run right and up, and the letters at their ends."""

    name: str
    across: int
    right: int
    up: int
    right_letters: str
    up_letters: str


#: In RAS+.
PLANES = (
    Plane("sagittal", 0, 1, 2, "PA", "IS"),
    Plane("coronal", 1, 0, 2, "LR", "IS"),
    Plane("axial", 2, 0, 1, "LR", "PA"),
)
SAGITTAL, _, AXIAL = PLANES


@dataclass(frozen=True)
class View:
    """One volume as a figure shows it."""

    image: np.ndarray  # (H, W, D), or (H, W, D, C) of which the first channel is shown
    affine: np.ndarray  # (4, 4), voxel index -> millimetres
    truth: np.ndarray | None = None  # mask (H, W, D)
    prediction: np.ndarray | None = None
    title: str = ""
    caption: str = ""  # in the corner, such as "Dice 0.86"
    heat: np.ndarray | None = None  # (H, W, D), drawn in colour on the image


class Oriented:
    """A view turned to RAS+, from which every plane is cut.

    Attributes:
        image, heat: the voxels, and the map on them or None.
        masks: {"truth" or "prediction": boolean array} of those that there are.
        spacing, size: of a voxel and of the volume along each axis, in millimetres.
        range: the intensities that are drawn black and white.
    """

    def __init__(self, view: View):
        self.view = view
        affine = np.asarray(view.affine, float)
        turn = io_orientation(affine)
        image = np.asarray(view.image, np.float32)
        self.image = apply_orientation(image if image.ndim == 3 else image[..., 0], turn)
        self.masks = {
            name: apply_orientation(np.asarray(mask) > 0, turn)
            for name in _CONTOURS
            if (mask := getattr(view, name)) is not None
        }
        self.heat = None if view.heat is None else apply_orientation(view.heat, turn)
        self.spacing = np.empty(3)
        self.spacing[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
        self.size = self.spacing * self.image.shape
        self.range = np.percentile(self.image, (0.5, 99.5))

    def index(self, plane: Plane) -> int:
        """The slice of a plane with most of the truth, or of the prediction without one."""
        mask = next(iter(self.masks.values()), None)
        if mask is None or not mask.any():
            return self.image.shape[plane.across] // 2
        return int(mask.sum(axis=(plane.right, plane.up)).argmax())

    def around(self, plane: Plane, index: int) -> tuple[tuple[float, float], np.ndarray]:
        """A square about the first mask of a slice, to see it in its surroundings.

        ((side, side), centre) in mm: two and a half times as wide as the structure, and no wider
        than the slice, which it leaves only where it is wider than that is high.
        """
        in_plane = [plane.right, plane.up]
        size, spacing = self.size[in_plane], self.spacing[in_plane]
        mask = next(iter(self.masks.values()), None)
        inside = [] if mask is None else np.argwhere(mask.take(index, plane.across))
        if not len(inside):
            return (size.max(),) * 2, size / 2
        low, high = inside.min(0), inside.max(0) + 1
        side = min(2.5 * ((high - low) * spacing).max(), size.max())
        half = np.minimum(side / 2, size / 2)
        return (side, side), np.clip((low + high) / 2 * spacing, half, size - half)

    def draw(
        self, axes: Axes, plane: Plane, index: int, frame, centre=None, letters: bool = True
    ) -> None:
        """Draw one slice: `frame` is the (width, height) that is shown and `centre` its middle (by
        default that of the slice), in mm; `letters` say which side is which.
        """
        width, height = self.size[plane.right], self.size[plane.up]
        x, y = (width / 2, height / 2) if centre is None else centre
        extent = {"origin": "lower", "extent": (0, width, 0, height), "interpolation": "nearest"}
        cut, (low, high) = self.image.take(index, plane.across).T, self.range
        axes.imshow(cut, cmap="gray", vmin=low, vmax=high, **extent)
        if self.heat is not None:
            low, high = np.percentile(self.heat, _HEAT_RANGE)
            cut = self.heat.take(index, plane.across).T
            axes.imshow(cut, cmap=_HEAT, vmin=low, vmax=high, alpha=_HEAT_ALPHA, **extent)
        for name, mask in self.masks.items():
            # A border of background closes contours that touch the volume's edge.
            cut = np.pad(mask.take(index, plane.across), 1).T
            if cut.any():
                across, up = (
                    (np.arange(n) - 0.5) * self.spacing[axis]
                    for n, axis in zip(cut.T.shape, (plane.right, plane.up), strict=True)
                )
                colour, linewidth, dashes = _CONTOURS[name]
                look = {"colors": [colour], "linewidths": [linewidth], "linestyles": [dashes]}
                look["levels"] = [0.5]
                axes.contour(across, up, cut.astype(float), **look).set_label(name)
        axes.set(facecolor="black", aspect="equal")
        axes.set_xlim(x - frame[0] / 2, x + frame[0] / 2)
        axes.set_ylim(y - frame[1] / 2, y + frame[1] / 2)
        _bare(axes)
        if letters:
            (left, right), (below, above) = plane.right_letters, plane.up_letters
            _write(axes, 0.02, 0.5, left, ha="left", va="center")
            _write(axes, 0.98, 0.5, right, ha="right", va="center")
            _write(axes, 0.5, 0.02, below, ha="center", va="bottom")
            _write(axes, 0.5, 0.98, above, ha="center", va="top")


@drawn
def case_gallery(views: Sequence[View], task: Task) -> Figure:
    """Sagittal, coronal and axial slice of volumes, one row each, with contours of the masks.

    Each slice is where the truth is largest (the middle without one); all are drawn to one scale.
    """
    volumes = [Oriented(view) for view in views]
    # One frame for a column and one height for all, so that millimetres are comparable.
    widths = [max(v.size[plane.right] for v in volumes) for plane in PLANES]
    height = max(v.size[axis] for v in volumes for axis in (1, 2))
    # As wide as a page, or as a column where that would be higher than a page.
    inches = [(width - 0.2) * height / sum(widths) for width in (PAGE, COLUMN)]
    wide = inches[0] * len(views) <= 8
    figsize = (PAGE if wide else COLUMN, (inches[not wide] + 0.2) * len(views) + 0.6)
    figure, axes = plt.subplots(len(views), 3, squeeze=False, width_ratios=widths, figsize=figsize)
    for row, volume in zip(axes, volumes, strict=True):
        for axis, plane, width in zip(row, PLANES, widths, strict=True):
            volume.draw(axis, plane, volume.index(plane), (width, height))
        row[0].set_title(volume.view.title)
        in_corner(row[0], volume.view.caption)
    for axis, plane in zip(axes[-1], PLANES, strict=True):
        axis.set_xlabel(plane.name)
    _finish(figure, axes[0, 0], views, task)
    return figure


@drawn
def strip(views: Sequence[View], task: Task) -> Figure:
    """The sagittal slice of volumes on one grid, side by side, where the first truth is largest."""
    volumes = [Oriented(view) for view in views]
    frame = width, height = volumes[0].size[[SAGITTAL.right, SAGITTAL.up]]
    figsize = (PAGE, PAGE / len(views) * height / width + 0.7)
    figure, axes = plt.subplots(1, len(views), squeeze=False, figsize=figsize)
    index = volumes[0].index(SAGITTAL)
    for axis, volume in zip(axes[0], volumes, strict=True):
        volume.draw(axis, SAGITTAL, index, frame)
        axis.set_title(volume.view.title)
    _finish(figure, axes[0, 0], views, task)
    return figure


@drawn
def task_grid(columns: Sequence[tuple[Task, Sequence[View | None]]]) -> Figure:
    """One slice of a case of every task: one column per task, and rows for image, truth, models.

    The axial slice is where the truth is largest, cut to a square around the structure. One task
    or two are in rows instead.

    `columns` has as many views for each task, of one case on one grid; the first column's titles
    name the rows. None leaves its place empty, as for a model not trained on that task.
    """
    upright = len(columns) > 2
    names = [view.title if view else "" for view in columns[0][1]]
    across, down = (columns, names) if upright else (names, columns)
    inches = min(1.6, (PAGE - 0.3) / len(across))
    figsize = (max(COLUMN, inches * len(across) + 0.3), inches * len(down) + 0.7)
    figure, axes = plt.subplots(
        len(down), len(across), squeeze=False, figsize=figsize, layout="compressed"
    )
    cells = axes.T if upright else axes
    synthetic = [task.synthetic for task, _ in columns]
    for cell, (task, views) in zip(cells, columns, strict=True):
        volumes = [view and Oriented(view) for view in views]
        # The bare image in the first place does not know where the structure is.
        masked = next((v for v in volumes if v and v.masks), next(v for v in volumes if v))
        index = masked.index(AXIAL)
        frame, centre = masked.around(AXIAL, index)
        for axis, volume in zip(cell, volumes, strict=True):
            if volume is None:
                _empty(axis, "not run")
                continue
            volume.draw(axis, AXIAL, index, frame, centre, letters=axis is cell[0])
            in_corner(axis, volume.view.caption, 6)
        scale_bar(cell[:2][-1])  # the first one has the letters of the sides
        marked = task.synthetic and not all(synthetic)
        name = task.name.replace("_", "\n", 1) + "\nsynthetic" * marked
        _head(cell[0], name, upright, VERMILLION if marked else BLACK)
    for axis, name in zip(cells[0], names, strict=True):
        _head(axis, name_of_arm(name), not upright)
    voxel_legend(figure, [view for _, views in columns for view in views if view])
    real = next((t for t, _ in columns if t.name in TASKS and not t.synthetic), None)
    if all(synthetic) or real:
        voxel_note(figure, real or columns[0][0])
    return figure


@drawn
def activation_maps(rows: dict[str, dict[str, View]], task: Task) -> Figure:
    """Where a model's tokens have large norms: one row per model, one column per stage.

    All are one axial slice of a case, where the truth is largest. Norms of different stages and
    models have no common scale: each map's colours end at percentiles of its volume. `rows` is
    {model: {column: view}}, of one case on one grid; a column that a model lacks stays empty.
    """
    columns = list(max(rows.values(), key=len))
    first = Oriented(next(iter(rows.values()))[columns[0]])
    frame = width, height = first.size[[AXIAL.right, AXIAL.up]]
    inches = (PAGE - 0.7) / len(columns)
    figsize = (PAGE, (inches * height / width + 0.05) * len(rows) + 0.8)
    figure, axes = plt.subplots(  # compressed: no gaps between slices of one shape
        len(rows), len(columns), squeeze=False, figsize=figsize, layout="compressed"
    )
    for cells, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, column in zip(cells, columns, strict=True):
            if column in row:
                index, letters = first.index(AXIAL), axis is axes[0, 0]
                Oriented(row[column]).draw(axis, AXIAL, index, frame, letters=letters)
                in_corner(axis, row[column].caption, 6)
            else:
                _empty(axis, "no block", height / width)
        cells[0].set_ylabel(name_of_arm(name))
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column)
    _finish(figure, axes[0, 0], [view for row in rows.values() for view in row.values()], task)
    colours = plt.cm.ScalarMappable(plt.Normalize(0, 1), _HEAT)
    # At the side: below is the note on the voxels.
    bar = figure.colorbar(colours, ax=axes, location="right", shrink=0.8, aspect=25, ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("norm of a token, scaled map by map")
    return figure


def _finish(figure, first, views, task):
    scale_bar(first)
    voxel_legend(figure, views)
    voxel_note(figure, task)


def _head(axes, name, above, colour=BLACK):
    """Name a column or a row of a grid, at its first slice."""
    (axes.set_title if above else axes.set_ylabel)(name, color=colour)


def _bare(axes):
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _empty(axes, text, aspect=1):
    """A place in a grid for which there is no volume."""
    _bare(axes)
    axes.set_facecolor("#F2F2F2")
    axes.set_box_aspect(aspect)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, color=GREY, ha="center", va="center")


def _write(axes, x, y, text, **look):
    look = {"color": "white", "fontsize": 6, "path_effects": _OUTLINE} | look
    axes.text(x, y, text, transform=axes.transAxes, **look)


def in_corner(axes: Axes, text: str, size: float = 7) -> None:
    """Write on a slice, in its upper left corner."""
    if text:
        box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1}
        look = {"fontsize": size, "fontweight": "bold", "path_effects": None, "bbox": box}
        _write(axes, 0.03, 0.97, text, va="top", **look)


def scale_bar(axes: Axes) -> None:
    """A bar of a round length, at most two fifths of the millimetres that axes show."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width = right - left
    length = max(n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= max(1, 0.4 * width))
    x, y = right - 0.06 * width, bottom + 0.05 * (top - bottom)
    outline = [withStroke(linewidth=2.5, foreground="black")]
    look = {"color": "white", "linewidth": 1.5, "solid_capstyle": "butt", "path_effects": outline}
    axes.plot([x - length, x], [y, y], **look)
    look = {"color": "white", "fontsize": 6, "ha": "center", "path_effects": _OUTLINE}
    offset = {"xytext": (0, 2), "textcoords": "offset points"}
    axes.annotate(f"{length} mm", (x - length / 2, y), **offset, **look)


def voxel_legend(figure: Figure, views: Sequence[View], side: str = "left") -> None:
    """Which contour is which and what the letters mean, above a figure."""
    handles = [
        Line2D([], [], color=colour, linewidth=linewidth, linestyle=dashes, label=name)
        for name, (colour, linewidth, dashes) in _CONTOURS.items()
        if any(getattr(view, name) is not None for view in views)
    ]
    wide = figure.get_figwidth() > COLUMN + 0.1
    sides = _SIDES if wide else _SIDES.replace("; P", "\nP")
    handles.append(Line2D([], [], linestyle="", label=sides))
    options = {"handlelength": 1.2, "columnspacing": 1, "loc": f"outside upper {side}"}
    figure.legend(handles=handles, ncols=3, **options)


def voxel_note(figure: Figure, task: Task) -> None:
    """Say where voxels come from, if they are synthetic or of a public data set."""
    style.note_synthetic(figure, task.synthetic)
    sources = {
        release.task: f"{release.reference}. {release.licence}" for release in RELEASES.values()
    }
    sources |= dict.fromkeys(TASKS, ATTRIBUTION)
    if task.name in sources and not task.synthetic:
        text = f"{task.name.replace('_', ' ')}. {sources[task.name]}"
        figure.supxlabel(text, fontsize=6, color=GREY, x=0.99, ha="right")
