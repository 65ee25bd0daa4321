"""Figures of volumes: slices with contours, maps upon them, cases and tasks side by side.

Every slice is cut from the
volume turned to RAS+ and drawn in millimetres; what is synthetic says so in the figure itself,
and voxels of the decathlon carry its attribution.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from nibabel.orientations import apply_orientation, io_orientation

from mvl.data.tasks import TASKS
from mvl.show.figures.style import (
    ATTRIBUTION,
    BLACK,
    GREY,
    ORANGE,
    SKY,
    VERMILLION,
    drawn,
    note_synthetic,
)

TRUTH_COLOUR, PREDICTION_COLOUR = SKY, ORANGE

#: Plane, axis it cuts, axes that run right and up, and the letters at their ends, in RAS+.
PLANES = (
    ("sagittal", 0, 1, 2, "PA", "IS"),
    ("coronal", 1, 0, 2, "LR", "IS"),
    ("axial", 2, 0, 1, "LR", "PA"),
)
_PLANE = {plane[0]: plane for plane in PLANES}
_INCHES_PER_ROW = 2.3
#: Colours of a map on an image: they grow brighter evenly, and the truth's sky blue is not one
#: of them. Percentiles of the whole map are the ends of its colours.
_HEAT, _HEAT_ALPHA, _HEAT_RANGE = "inferno", 0.8, (1, 99)
#: Keeps what is written on a volume legible on bright voxels.
_OUTLINE = [withStroke(linewidth=2, foreground="black")]


@dataclass(frozen=True)
class View:
    """One volume as a figure shows it.

    Attributes:
        image: (H, W, D), or (H, W, D, C) of which the first channel is shown.
        affine: voxel index -> millimetres, (4, 4); gives orientation and spacing.
        truth, prediction: masks (H, W, D), or None.
        title: what it is, shown above.
        caption: shown in the corner, such as "Dice 0.86".
        heat: (H, W, D), drawn in colour upon the image, or None.
    """

    image: np.ndarray
    affine: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None
    title: str = ""
    caption: str = ""
    heat: np.ndarray | None = None


@drawn
def slices(view, task):
    """Sagittal, coronal and axial slice of one volume with contours of truth and prediction.

    Each slice is where the truth is largest (the middle without one); all are drawn to one scale.

    Args:
        view: a `View`.
        task: its `mvl.data.tasks.Task`, for the note on where the voxels come from.
    """
    return _gallery([view], task)


@drawn
def case_gallery(views, task):
    """Several volumes, a row each, as `slices` shows one; all to one scale.

    Args:
        views: list of `View`.
        task: their `Task`.
    """
    return _gallery(views, task)


@drawn
def strip(views, task, plane="sagittal"):
    """One slice of each of several volumes, side by side, where the first one's truth is largest.

    Args:
        views: list of `View` on one grid.
        task: their `Task`.
        plane: "sagittal", "coronal" or "axial".
    """
    chosen = _PLANE[plane]
    volumes = [Oriented(view) for view in views]
    width, height = (volumes[0].size[axis] for axis in chosen[2:4])
    inches = 1.9
    figure, axes = plt.subplots(
        1,
        len(views),
        squeeze=False,
        figsize=(inches * len(views), inches * height / width + 0.75),
    )
    index = volumes[0].index(chosen[1])
    for axis, volume in zip(axes[0], volumes, strict=True):
        volume.draw(axis, chosen, index, (width, height))
        axis.set_title(volume.view.title)
    scale_bar(axes[0, 0], width)
    voxel_legend(figure, views)
    voxel_note(figure, task)
    return figure


@drawn
def task_grid(columns):
    """One slice of a case of every task: a task a column, and a row each for image, truth, models.

    A column is one case. Its axial slice is where the truth is largest, cut to a square around
    the structure; the bar gives its scale. One task or two stand in rows instead.

    Args:
        columns: list of (`Task`, list of `View`), as many views in each list, of one case on one
            grid. Rows are named by the titles in the first column, captions stand in the corner.
            A view without a mask is the bare image; None leaves its place empty, as for a model
            that was not trained on that task.
    """
    plane, upright = _PLANE["axial"], len(columns) > 2
    names = [view.title if view else "" for view in columns[0][1]]
    across, down = (columns, names) if upright else (names, columns)
    inches = min(2.1, max(1.25, 12 / len(across)))
    figure, axes = plt.subplots(
        len(down),
        len(across),
        squeeze=False,
        # The note on the voxels is wider than one column.
        figsize=(max(3.4, inches * len(across) + 0.5), inches * len(down) + 0.9),
        layout="compressed",
    )
    cells = axes.T if upright else axes
    synthetic = [task.synthetic for task, _ in columns]
    for own, (task, views) in zip(cells, columns, strict=True):
        volumes = [view and Oriented(view) for view in views]
        # The bare image in the first place does not know where the structure is.
        masked = next((v for v in volumes if v and v.masks), next(v for v in volumes if v))
        index = masked.index(plane[1])
        frame, centre = masked.around(plane, index)
        for axis, volume in zip(own, volumes, strict=True):
            if volume is None:
                _empty(axis, "not run")
                continue
            volume.draw(axis, plane, index, frame, centre, letters=axis is own[0])
            in_corner(axis, volume.view.caption, 8)
        scale_bar(own[:2][-1], frame[0])  # the first one has the letters of the sides
        marked = task.synthetic and not all(synthetic)
        _head(own[0], task.name.replace("_", "\n", 1) + "\nsynthetic" * marked, upright, marked)
    for axis, name in zip(cells[0], names, strict=True):
        _head(axis, name, not upright)
    voxel_legend(figure, [view for _, views in columns for view in views if view])
    if all(synthetic):
        note_synthetic(figure, True)
    elif any(task.name in TASKS and not task.synthetic for task, _ in columns):
        _attribute(figure)
    return figure


def _head(axes, name, above, marked=False):
    """Name a column or a row of a grid, at its first slice."""
    style = {"fontsize": 9, "color": VERMILLION if marked else BLACK}
    if above:
        axes.set_title(name, **style)
    else:
        axes.set_ylabel(name, **style)


@drawn
def activation_maps(rows, task, plane="axial"):
    """Where a model's tokens have large norms, stage by stage: a model a row, a stage a column.

    All are one slice of one case, where the truth is largest. Each map has colours of its own,
    from the 1st to the 99th percentile of its volume: norms of different stages and models have
    no common scale, and what counts is where they are large.

    Args:
        rows: {model: {column: `View`}}, of one case on one grid. A model without a column, as one
            without a language part, leaves its place empty.
        task: the `Task`.
        plane: "sagittal", "coronal" or "axial".
    """
    chosen = _PLANE[plane]
    columns = list(max(rows.values(), key=len))
    volumes = {name: {c: Oriented(view) for c, view in row.items()} for name, row in rows.items()}
    first = volumes[next(iter(rows))][columns[0]]
    width, height = (first.size[axis] for axis in chosen[2:4])
    index = first.index(chosen[1])
    inches = 1.8
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        figsize=(inches * len(columns) + 0.5, (inches * height / width + 0.1) * len(rows) + 1.5),
        layout="compressed",  # no gaps between slices of one shape
    )
    for place, (row, name) in enumerate(zip(axes, rows, strict=True)):
        for axis, column in zip(row, columns, strict=True):
            if column in volumes[name]:
                volume = volumes[name][column]
                volume.draw(axis, chosen, index, (width, height), letters=axis is axes[0, 0])
                in_corner(axis, volume.view.caption, 8)
            else:
                _empty(axis, "no block", height / width)
            if place == 0:
                axis.set_title(column)
        row[0].set_ylabel(name)
    scale_bar(axes[0, 0], width)
    voxel_legend(figure, [view for row in rows.values() for view in row.values()])
    colours = plt.cm.ScalarMappable(plt.Normalize(0, 1), _HEAT)
    bar = figure.colorbar(colours, ax=axes, location="bottom", shrink=0.35, aspect=30, ticks=[0, 1])
    bar.ax.set_xticklabels(["low", "high"])
    bar.set_label("norm of a token, each map for itself", labelpad=-8, fontsize=9)
    voxel_note(figure, task)
    return figure


def _gallery(views, task):
    volumes = [Oriented(view) for view in views]
    # One frame for a column and one height for all, so that millimetres are comparable.
    widths = [max(v.size[plane[2]] for v in volumes) for plane in PLANES]
    height = max(v.size[axis] for v in volumes for axis in (1, 2))
    figure, axes = plt.subplots(
        len(views),
        3,
        squeeze=False,
        width_ratios=widths,
        figsize=(
            _INCHES_PER_ROW * sum(widths) / height + 0.4,
            (_INCHES_PER_ROW + 0.3) * len(views) + 0.8,
        ),
    )
    for row, volume in zip(axes, volumes, strict=True):
        for axis, plane, width in zip(row, PLANES, widths, strict=True):
            volume.draw(axis, plane, volume.index(plane[1]), (width, height))
        row[0].set_title(volume.view.title)
        in_corner(row[0], volume.view.caption)
    for axis, plane in zip(axes[-1], PLANES, strict=True):
        axis.set_xlabel(plane[0])
    scale_bar(axes[0, 0], widths[0])
    voxel_legend(figure, views)
    voxel_note(figure, task)
    return figure


class Oriented:
    """A view turned to RAS+, which every plane is cut from.

    Attributes:
        image, masks: the voxels, and {"truth" or "prediction": mask} of those that there are.
        spacing, size: of a voxel and of the volume along each axis, in millimetres.
        range: the intensities drawn black and white.
    """

    def __init__(self, view):
        self.view = view
        affine = np.asarray(view.affine, float)
        turn = io_orientation(affine)
        image = np.asarray(view.image, np.float32)
        image = image if image.ndim == 3 else image[..., 0]
        self.image = apply_orientation(image, turn)
        self.masks = {
            name: apply_orientation(np.asarray(mask) > 0, turn)
            for name, mask in (("truth", view.truth), ("prediction", view.prediction))
            if mask is not None
        }
        self.heat = None if view.heat is None else apply_orientation(view.heat, turn)
        self.spacing = np.empty(3)
        self.spacing[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
        self.size = self.spacing * self.image.shape
        self.range = np.percentile(self.image, (0.5, 99.5))

    def index(self, axis):
        """The slice across `axis` with most of the truth, or of the prediction without one."""
        mask = next(iter(self.masks.values()), None)
        if mask is None or not mask.any():
            return self.image.shape[axis] // 2
        return int(mask.sum(axis=tuple({0, 1, 2} - {axis})).argmax())

    def around(self, plane, index):
        """A square about the first mask of a slice, to see it in its surroundings.

        Returns:
            ((side, side), centre) in mm: two and a half times as wide as the structure, and no
            wider than the slice, which it leaves only where it is wider than that is high.
        """
        _, across, right, up, *_ = plane
        size = self.size[[right, up]]
        mask = next(iter(self.masks.values()), None)
        cut = None if mask is None else mask.take(index, across)
        if cut is None or not cut.any():
            return (size.max(),) * 2, size / 2
        found = np.argwhere(cut)
        low, high = found.min(0), found.max(0) + 1
        spacing = self.spacing[[right, up]]
        side = min(2.5 * ((high - low) * spacing).max(), size.max())
        centre = (low + high) / 2 * spacing
        half = np.minimum(side / 2, size / 2)
        return (side, side), np.clip(centre, half, size - half)

    def draw(self, axes, plane, index, frame, centre=None, letters=True):
        """Draw one slice in millimetres.

        Args:
            axes: to draw on.
            plane: a row of `PLANES`.
            index: of the slice, along the axis that the plane cuts.
            frame: (width, height) in mm, what is shown.
            centre: its centre in mm; that of the slice if None.
            letters: write which side is which.
        """
        name, across, right, up, right_letters, up_letters = plane
        width, height = self.size[right], self.size[up]
        x, y = (width / 2, height / 2) if centre is None else centre
        place = {"origin": "lower", "extent": (0, width, 0, height), "interpolation": "nearest"}
        low, high = self.range
        axes.imshow(self.image.take(index, across).T, cmap="gray", vmin=low, vmax=high, **place)
        if self.heat is not None:
            low, high = np.percentile(self.heat, _HEAT_RANGE)
            cut = self.heat.take(index, across).T
            axes.imshow(cut, cmap=_HEAT, vmin=low, vmax=high, alpha=_HEAT_ALPHA, **place)
        for mask_name, mask in self.masks.items():
            # A border of background closes contours that touch the volume's edge.
            cut = np.pad(mask.take(index, across), 1).T
            if cut.any():
                truth = mask_name == "truth"
                axes.contour(
                    (np.arange(cut.shape[1]) - 0.5) * self.spacing[right],
                    (np.arange(cut.shape[0]) - 0.5) * self.spacing[up],
                    cut.astype(float),
                    levels=[0.5],
                    colors=[TRUTH_COLOUR if truth else PREDICTION_COLOUR],
                    linewidths=[2.2 if truth else 1.4],
                ).set_label(mask_name)
        axes.set(
            facecolor="black",
            aspect="equal",
            xlim=(x - frame[0] / 2, x + frame[0] / 2),
            ylim=(y - frame[1] / 2, y + frame[1] / 2),
        )
        _bare(axes)
        if letters:
            _sides(axes, right_letters, up_letters)


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


def _sides(axes, right_letters, up_letters):
    """Letters at the edges, such as L and R."""
    for x, y, letter in (
        (0.02, 0.5, right_letters[0]),
        (0.98, 0.5, right_letters[1]),
        (0.5, 0.02, up_letters[0]),
        (0.5, 0.98, up_letters[1]),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color="white",
            fontsize=8,
            path_effects=_OUTLINE,
            ha={0.02: "left", 0.98: "right"}.get(x, "center"),
            va={0.02: "bottom", 0.98: "top"}.get(y, "center"),
        )


def in_corner(axes, text, size=10):
    """Write on a slice, in its upper left corner."""
    if text:
        axes.text(
            0.03,
            0.97,
            text,
            transform=axes.transAxes,
            color="white",
            fontsize=size,
            fontweight="bold",
            va="top",
            bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2},
        )


def scale_bar(axes, width):
    """A bar of a round length, at most two fifths of a frame of `width` mm."""
    length = max(n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= max(1, 0.4 * width))
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    x, y = right - 0.06 * width, bottom + 0.05 * np.diff(axes.get_ylim())[0]
    axes.plot(
        [x - length, x],
        [y, y],
        color="white",
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=4.5, foreground="black")],
    )
    axes.annotate(
        f"{length} mm",
        (x - length / 2, y),
        xytext=(0, 3),
        textcoords="offset points",
        color="white",
        fontsize=8,
        ha="center",
        path_effects=_OUTLINE,
    )


def voxel_legend(figure, views):
    """Which contour is which, above a figure."""
    handles = []
    if any(view.truth is not None for view in views):
        handles.append(Line2D([], [], color=TRUTH_COLOUR, linewidth=2.2, label="truth"))
    if any(view.prediction is not None for view in views):
        handles.append(Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.4, label="prediction"))
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=2)


def voxel_note(figure, task):
    """Where the voxels of a figure come from: nobody's, the decathlon's, or the user's own."""
    if task.synthetic:
        note_synthetic(figure, True)
    elif task.name in TASKS:
        _attribute(figure)


def _attribute(figure):
    figure.supxlabel(ATTRIBUTION, fontsize=8, color=GREY, x=0.99, ha="right")
