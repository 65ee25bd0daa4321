"""Each figure: a function from tables and arrays to a matplotlib Figure, in one style.

Nothing here trains, predicts or reads a file. Figures are made without pyplot, so that none is
left open behind a notebook's back; `save` writes them.

Every function takes `origin`, the line below the figure that says whose voxels it rests on (see
`origin_of`): a figure of synthetic data says so itself, wherever it is copied to.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
import nibabel
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from mvl.files import written
from mvl.metrics import METRICS
from mvl.tasks import TASKS

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 110,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "mvl",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

# Okabe and Ito's palette, which colour-blind readers can tell apart:
# https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#999999"

#: An arm has one colour in every figure. `vit` and `none` are one model.
ARM_COLOURS = {
    "none": BLACK,
    "vit": BLACK,
    "pretrained": BLUE,
    "random": ORANGE,
    "shuffled": GREEN,
    "identity": SKY,
    "trainable": PURPLE,
    "vit-mlp": VERMILLION,
    "v1": BLUE,
    "v3": GREEN,
    "released": ORANGE,
    "best": VERMILLION,
}

SIDE_COLOURS = {"train": BLUE, "validation": ORANGE, "test": PURPLE}

#: Contours by name; other names take `_OTHER_CONTOURS` in turn.
CONTOUR_COLOURS = {"truth": ORANGE, "prediction": SKY}
_OTHER_CONTOURS = (ORANGE, SKY, PURPLE, GREEN, YELLOW, VERMILLION)

ATTRIBUTION = "Medical Segmentation Decathlon, CC-BY-SA 4.0"

#: Axis that a plane cuts, and the directions (left, right, bottom, top) of its picture, for
#: volumes whose axes run to the right, anterior and superior.
PLANES = {"sagittal": (0, "PAIS"), "coronal": (1, "LRIS"), "axial": (2, "LRPA")}

_WIDTH_IN = 9.0


def origin_of(task):
    """The line that belongs below a figure of a task's data: synthetic, or MSD's attribution.

    Args:
        task: a `Task`.
    """
    if task.synthetic:
        return f"SYNTHETIC DATA: phantom of {task.name}"
    return f"{task.name}, {ATTRIBUTION}" if task.name in TASKS else task.name


def save(figure, path):
    """Write a figure as .png, .pdf or .svg; equal figures give equal bytes on one machine.

    Args:
        figure: a matplotlib Figure.
        path: the final name; the ending decides the format.

    Raises:
        MvlError: the file cannot be written.
    """
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context(STYLE), written(path) as temporary:
        figure.savefig(temporary, dpi=200, metadata=undated[temporary.suffix])


def arm_colours(arms):
    """Name -> colour. Arms without a colour of their own get those that are left, in order."""
    fixed = {arm: ARM_COLOURS[arm] for arm in arms if arm in ARM_COLOURS}
    palette = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, YELLOW, BLACK, GREY)
    spare = [colour for colour in palette if colour not in fixed.values()]
    others = [arm for arm in arms if arm not in fixed]
    return fixed | {arm: spare[i % len(spare)] for i, arm in enumerate(others)}


def metric_label(name):
    """A metric's name for an axis, such as "HD95 (mm)"."""
    short = {"hd95_mm": "HD95 (mm)", "nsd": "NSD"}
    return short.get(name, name.capitalize())


# ---- slices ---------------------------------------------------------------------------------


@dataclass
class View:
    """A volume as it is to be looked at."""

    title: str
    #: (H, W, D), or (H, W, D, C), of which the first channel is shown.
    image: np.ndarray
    #: Voxel index -> millimetres, (4, 4); gives the spacing and which way is up.
    affine: np.ndarray
    #: Name -> (H, W, D) mask, drawn as an outline. "truth" and "prediction" have fixed colours.
    contours: dict = field(default_factory=dict)
    #: Words in the corner, such as "Dice 0.91".
    corner: str = ""
    #: Intensities shown as black and white; by default the 1st and 99th percentile.
    window: tuple[float, float] | None = None
    #: Edges of the model's patches in voxels, to be drawn as a grid.
    patch: tuple[int, int, int] | None = None


def slices(image, affine, contours=None, title="", origin="", **more):
    """Orthogonal slices of one volume through the largest cross-sections of its contours.

    Args:
        image, affine, contours, title: see `View`.
        origin: the line below the figure.
        more: further fields of `View`.
    """
    return gallery([View(title, image, affine, contours or {}, **more)], origin=origin)


def gallery(views: Sequence[View], planes=tuple(PLANES), origin="") -> Figure:
    """Volumes as slices: a row a volume and a column a plane, or one row if there is one plane.

    All panels have one scale in millimetres. Each slice is the one in which the contours cover
    the largest area, or the middle one where there are none.

    Args:
        views: list of `View`.
        planes: names out of `PLANES`.
        origin: the line below the figure.
    """
    volumes = [_Oriented(view) for view in views]
    sizes = np.array([[v.size(PLANES[plane][0]) for plane in planes] for v in volumes])
    widths, heights = sizes.max(axis=0).T  # mm, a plane each
    one_row = len(planes) == 1
    columns, rows = (len(views), 1) if one_row else (len(planes), len(views))
    columns_mm = np.repeat(widths, len(views)) if one_row else widths
    scale = min(_WIDTH_IN / columns_mm.sum(), 3.2 / heights.max())
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(
                columns_mm.sum() * scale + 0.3,
                rows * (heights.max() * scale + 0.3) + 0.5,
            ),
            layout="constrained",
        )
        axes = figure.subplots(rows, columns, squeeze=False, width_ratios=columns_mm)
        for i, (view, volume) in enumerate(zip(views, volumes, strict=True)):
            for j, plane in enumerate(planes):
                ax = axes[0, i] if one_row else axes[i, j]
                ax.set_title(view.title if one_row else plane if i == 0 else "", loc="center")
                volume.draw(ax, plane, widths[j], heights[j])
            first = axes[0, i] if one_row else axes[i, 0]
            if not one_row:
                first.set_ylabel(view.title, labelpad=8)
            if view.corner:
                _overlay(first, 0.03, 0.97, view.corner, ha="left", va="top", size=11)
        _scale_bar(axes[0, 0], widths[0])
        colours = {k: c for volume in volumes for k, c in volume.colours.items()}
        if colours:
            handles = [Line2D([], [], color=c, lw=2.5, label=k) for k, c in colours.items()]
            figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        _sign(figure, origin)
    return figure


class _Oriented:
    """A view with its axes turned to run right, anterior and superior."""

    def __init__(self, view):
        self.view = view
        turn = nibabel.io_orientation(view.affine)
        image = np.asarray(view.image)
        self.image = nibabel.apply_orientation(image[..., 0] if image.ndim == 4 else image, turn)
        self.masks = {
            name: nibabel.apply_orientation(np.asarray(mask).astype(bool), turn)
            for name, mask in view.contours.items()
        }
        back = np.argsort(turn[:, 0])
        spacing = np.linalg.norm(np.asarray(view.affine)[:3, :3], axis=0)
        self.spacing = spacing[back]
        self.patch = np.array(view.patch)[back] * self.spacing if view.patch else None
        others = [n for n in self.masks if n not in CONTOUR_COLOURS]
        self.colours = {
            name: CONTOUR_COLOURS.get(name) or _OTHER_CONTOURS[others.index(name) % 6]
            for name in self.masks
        }
        self.window = view.window or np.percentile(self.image, (1, 99)).tolist()
        union = np.zeros(self.image.shape, bool)
        for mask in self.masks.values():
            union |= mask
        self.cuts = [
            int(union.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
            if union.any()
            else n // 2
            for axis, n in enumerate(union.shape)
        ]

    def size(self, axis):
        """(width, height) in mm of the slices across an axis."""
        return np.delete(np.array(self.image.shape) * self.spacing, axis)

    def draw(self, ax, plane, width, height):
        """Draw one slice, centred in a panel of width x height mm."""
        axis, ends = PLANES[plane]
        own = self.size(axis)
        extent = (-own[0] / 2, own[0] / 2, -own[1] / 2, own[1] / 2)
        low, high = self.window
        ax.imshow(
            self.image.take(self.cuts[axis], axis).T,
            cmap="gray",
            origin="lower",
            extent=extent,
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        if self.patch is not None:
            across, up = np.delete(self.patch, axis)
            ax.vlines(np.arange(extent[0], extent[1] + 1e-6, across), *extent[2:], YELLOW, lw=0.5)
            ax.hlines(np.arange(extent[2], extent[3] + 1e-6, up), *extent[:2], YELLOW, lw=0.5)
        for name, mask in self.masks.items():
            cut = mask.take(self.cuts[axis], axis)
            if cut.any():
                # A rim of background closes the outline of what touches the border.
                step = own / cut.shape
                rim = np.repeat(step, 2) * (-1, 1, -1, 1)
                ax.contour(
                    np.pad(cut, 1).T.astype(float),
                    levels=[0.5],
                    colors=[self.colours[name]],
                    linewidths=1.6,
                    origin="lower",
                    extent=np.add(extent, rim),
                )
        ax.set(
            xlim=(-width / 2, width / 2),
            ylim=(-height / 2, height / 2),
            xticks=[],
            yticks=[],
            facecolor="black",
        )
        ax.set_aspect("equal")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
        sides = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
        for letter, (x, y), (ha, va) in zip(ends, places, sides, strict=True):
            _overlay(ax, x, y, letter, ha=ha, va=va, size=8)


def _overlay(ax, x, y, text, **more):
    """White words on a picture, with a dark rim so that they are read on bright ground too."""
    rim = [withStroke(linewidth=2, foreground="black")]
    ax.text(x, y, text, transform=ax.transAxes, color="white", path_effects=rim, **more)


def _scale_bar(ax, width):
    length = max(n for n in (1, 2, 5, 10, 20, 50, 100) if n <= max(1, width / 3))
    left, bottom = ax.get_xlim()[0], ax.get_ylim()[0]
    rim = [withStroke(linewidth=4, foreground="black")]
    x, y = left + 0.06 * width, bottom + 0.06 * width
    ax.plot([x, x + length], [y, y], color="white", lw=2, path_effects=rim)
    rim = [withStroke(linewidth=2, foreground="black")]
    ax.text(x, y + 0.015 * width, f"{length} mm", color="white", size=8, path_effects=rim)


def best_median_worst(cases, metric="dice"):
    """The three cases to look at.

    Args:
        cases: a table with `case` and the metric, a case a row.
        metric: a name of `METRICS`.

    Returns:
        {"best": case, "median": case, "worst": case}.
    """
    order = cases.sort_values(
        [metric, "case"], ascending=[not METRICS[metric].larger_is_better, True]
    )["case"].tolist()
    return {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}


# ---- data -----------------------------------------------------------------------------------


def case_facts(image, label, affine, labels):
    """What the figures of a data set need of one case.

    Args:
        image: (H, W, D) or (H, W, D, C).
        label: (H, W, D) label values.
        affine: (4, 4).
        labels: label value -> name.

    Returns:
        dict of shape, spacing_mm, low and high (5th and 95th percentile of the first channel), and
        the volume of each structure in millilitres, as "<name> (ml)".
    """
    first = image[..., 0] if image.ndim == 4 else image
    low, high = np.percentile(first, (5, 95))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {
        "shape": " x ".join(map(str, first.shape)),
        "spacing_mm": " x ".join(f"{s:.3g}" for s in np.linalg.norm(affine[:3, :3], axis=0)),
        "low": float(low),
        "high": float(high),
    } | {f"{name} (ml)": float((label == n).sum() * voxel_ml) for n, name in labels.items()}


def split_figure(cases: pd.DataFrame, origin="") -> Figure:
    """Who is where: every subject as a mark that holds its cases, by side of the split.

    Args:
        cases: columns case, subject, side.
        origin: the line below the figure.
    """
    per_row, gap = 24, 1.6
    counts = cases.groupby(["side", "subject"])["case"].nunique()
    sides = [side for side in SIDE_COLOURS if side in counts.index.get_level_values(0)]
    largest = counts.max()
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        ax = figure.subplots()
        top, ticks = 0.0, []
        for side in sides:
            of_side = counts[side].sort_index()
            rows = -(-len(of_side) // per_row)
            for i, count in enumerate(of_side):
                x, y = i % per_row * (largest + 1), -(top + i // per_row)
                colour = SIDE_COLOURS[side]
                ax.plot([x, x + count - 1], [y, y], color=colour, lw=2.5, alpha=0.5)
                ax.plot(np.arange(x, x + count), [y] * count, "o", color=colour, ms=5.5)
            words = f"{side}\n{len(of_side)} subjects, {of_side.sum()} cases"
            ticks.append((-(top + (rows - 1) / 2), words))
            top += rows - 1 + gap
        ax.set_yticks(*zip(*ticks, strict=True))
        # Two lines of a tick's label need the height of two rows.
        ax.set(xticks=[], ylim=(-(top - gap) - 0.8, 0.8))
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        ax.grid(False)
        ax.set_title("Each dot is a case; dots that are joined are one subject", loc="left")
        figure.set_size_inches(_WIDTH_IN, 0.9 + 0.27 * (top + 1))
        _sign(figure, origin)
    return figure


def distributions(cases: pd.DataFrame, prepared, origin="") -> Figure:
    """Intensities as stored and as prepared, and the volume of each structure, by side.

    Args:
        cases: columns side, low, high and one "<structure> (ml)" each, from `case_facts`.
        prepared: {side: list of arrays}: the prepared images. Exact zeros, with which a volume
            is padded, do not count.
        origin: the line below the figure.
    """
    volumes = [name for name in cases.columns if name.endswith(" (ml)")]
    with matplotlib.rc_context(STYLE):
        columns = 2
        rows = -(-(2 + len(volumes)) // columns)
        figure = Figure(figsize=(_WIDTH_IN, 2.6 * rows + 0.3), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        raw, normal, *rest = panels
        ordered = cases.sort_values("high", ignore_index=True)
        for side, colour in SIDE_COLOURS.items():
            of_side = ordered[ordered["side"] == side]
            raw.vlines(of_side.index, of_side["low"], of_side["high"], colour, lw=1.2)
        if ordered["low"].min() >= 0 and ordered["high"].max() > 30 * ordered["high"].min():
            raw.set_yscale("symlog", linthresh=10)
        raw.set(title="Intensity as stored", xlabel="case, sorted", ylabel="5th to 95th percentile")
        raw.grid(False, axis="x")

        values = {
            side: [np.asarray(image)[np.asarray(image) != 0] for image in images]
            for side, images in prepared.items()
            if images
        }
        everything = np.concatenate([v for images in values.values() for v in images])
        edges = np.linspace(*np.percentile(everything, (0.2, 99.8)), 61)
        middles = (edges[1:] + edges[:-1]) / 2
        for side, images in values.items():
            shares = [np.histogram(v, edges, density=True)[0] for v in images]
            low, middle, high = np.percentile(shares, (10, 50, 90), axis=0)
            normal.fill_between(middles, low, high, color=SIDE_COLOURS[side], alpha=0.15, lw=0)
            normal.plot(middles, middle, color=SIDE_COLOURS[side])
        normal.set(
            title="Intensity as the model sees it",
            xlabel="prepared intensity",
            ylabel="density",
            ylim=(0, None),
        )
        for ax, name in zip(rest, volumes, strict=False):
            ax.hist(
                [cases.loc[cases["side"] == side, name] for side in SIDE_COLOURS],
                bins=20,
                stacked=True,
                color=list(SIDE_COLOURS.values()),
                edgecolor="white",
                linewidth=0.4,
            )
            ax.set(title=f"Volume: {name.removesuffix(' (ml)')}", xlabel="ml", ylabel="cases")
        for ax in panels[2 + len(volumes) :]:
            ax.remove()
        handles = [Patch(color=colour, label=side) for side, colour in SIDE_COLOURS.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
        _sign(figure, origin)
    return figure


# ---- training -------------------------------------------------------------------------------


def curves(table: pd.DataFrame, origin="") -> Figure:
    """Training loss and validation Dice by epoch: a line a run, mean and range for several seeds.

    The dot is the epoch whose weights are kept.

    Args:
        table: columns arm, seed, epoch, train_loss, validation_dice.
        origin: the line below the figure.
    """
    arms = list(dict.fromkeys(table["arm"]))
    colours = arm_colours(arms)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 3.3), layout="constrained")
        panels = figure.subplots(1, 2)
        for ax, column in zip(panels, ("train_loss", "validation_dice"), strict=True):
            for arm in arms:
                runs = table[table["arm"] == arm].pivot(
                    index="epoch", columns="seed", values=column
                )
                label = arm if runs.shape[1] == 1 else f"{arm} ({runs.shape[1]} seeds)"
                mean = runs.mean(axis=1)
                marker = "o" if len(runs) == 1 else None
                ax.plot(runs.index, mean, color=colours[arm], label=label, marker=marker, ms=3)
                if runs.shape[1] > 1:
                    low, high = runs.min(axis=1), runs.max(axis=1)
                    ax.fill_between(runs.index, low, high, color=colours[arm], alpha=0.15, lw=0)
                elif column == "validation_dice":
                    best = mean.idxmax()
                    ax.plot(best, mean[best], "o", color=colours[arm], ms=7, mec="white")
        panels[0].set(title="Training loss", xlabel="epoch", ylabel="soft Dice + cross-entropy")
        panels[1].set(title="Validation Dice, on the model's grid", xlabel="epoch", ylabel="Dice")
        for ax in panels:
            ax.xaxis.get_major_locator().set_params(integer=True)
        panels[1].legend(loc="lower right")
        _sign(figure, origin)
    return figure


class LiveCurves:
    """The figure `curves`, drawn again while runs go on.

    Args:
        show: takes a Figure and shows it in the place of the last one, such as the `update` of
            an IPython display handle.
        origin: the line below the figure.
        every_s: seconds between two drawings, since each takes part of one.
    """

    def __init__(self, show, origin="", every_s=3.0):
        self.show, self.origin, self.every_s = show, origin, every_s
        self.runs = {}
        self._last = -every_s

    def of(self, arm, seed):
        """The `on_epoch` callback of one run, which takes its curves so far, a list of dicts."""

        def on_epoch(rows):
            self.runs[arm, seed] = pd.DataFrame(rows).assign(arm=arm, seed=seed)
            if time.monotonic() - self._last >= self.every_s:
                self._last = time.monotonic()
                self.show(curves(pd.concat(self.runs.values()), self.origin))

        return on_epoch


# ---- results --------------------------------------------------------------------------------


def paired_differences(cases, arm_a, arm_b, metric="dice"):
    """arm_a minus arm_b for each subject, its cases and the common seeds averaged.

    Args:
        cases: columns arm, seed, subject, case and the metric; one task and structure.

    Returns:
        (a, b): Series by subject; their difference is what `paired` shows.
    """
    by_seed = cases.groupby(["arm", "seed", "subject"])[metric].mean().unstack("subject")
    a, b = by_seed.loc[arm_a], by_seed.loc[arm_b]
    common = a.index.intersection(b.index)
    return a.loc[common].mean(), b.loc[common].mean()


def paired(cases: pd.DataFrame, result, origin="") -> Figure:
    """Two arms on the same subjects: their values, and the differences with their interval.

    Args:
        cases: as in `paired_differences`.
        result: what `statistics.contrast` gave for them (or a row of `contrasts_table`).
        origin: the line below the figure.
    """
    arm_a, arm_b, metric = result["arm_a"], result["arm_b"], result["metric"]
    a, b = paired_differences(cases, arm_a, arm_b, metric)
    colours, label = arm_colours([arm_a, arm_b]), metric_label(metric)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        margin = 0.05 * (high - low) or 0.05
        ends = (low - margin, high + margin)
        left.plot(ends, ends, color=GREY, lw=1)
        left.plot(b, a, "o", color=colours[arm_a], ms=5, alpha=0.6, mec="none")
        left.set(xlim=ends, ylim=ends, xlabel=f"{label}, {arm_b}", ylabel=f"{label}, {arm_a}")
        left.set_title("A dot is a subject", loc="left")
        left.set_aspect("equal")

        difference = (a - b).sort_values()
        right.axhline(0, color=BLACK, lw=1)
        right.vlines(range(len(difference)), 0, difference, color=GREY, lw=0.8)
        right.plot(range(len(difference)), difference, "o", color=colours[arm_a], ms=5)
        place = len(difference) * 1.06 + 0.5
        if not np.isnan(result["ci_low"]):
            right.vlines(place, result["ci_low"], result["ci_high"], color=VERMILLION, lw=2.5)
        right.plot(place, result["difference"], "D", color=VERMILLION, ms=7, mec="white")
        right.set(xticks=[], xlabel="subjects, sorted", ylabel=f"{label}: {arm_a} minus {arm_b}")
        right.set_title("Difference of each subject; mean with 95 % interval", loc="left")
        right.grid(False, axis="x")
        _sign(figure, origin)
    return figure


def metrics_by_arm(summary: pd.DataFrame, title="", origin="") -> Figure:
    """Every metric of every arm: mean, and standard deviation over subjects.

    Args:
        summary: rows of `statistics.summary_table` of one suite, task and structure.
        title: above the figure, such as the table's size.
        origin: the line below the figure.
    """
    arms = list(dict.fromkeys(summary["arm"]))
    colours = arm_colours(arms)
    plain = [name for name, facts in METRICS.items() if not facts.unit]
    in_mm = [name for name, facts in METRICS.items() if facts.unit]
    groups = [[n for n in names if n in set(summary["metric"])] for names in (plain, in_mm)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 1.2 + 0.38 * len(groups[0])), layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=(2, 1))
        for ax, names in zip(panels, groups, strict=True):
            for offset, arm in zip(_offsets(len(arms)), arms, strict=True):
                of_arm = summary[summary["arm"] == arm].set_index("metric").loc[names]
                ax.errorbar(
                    of_arm["mean"],
                    np.arange(len(names)) + offset,
                    xerr=of_arm["sd_subjects"].fillna(0),
                    fmt="o",
                    color=colours[arm],
                    ecolor=colours[arm],
                    elinewidth=1,
                    ms=6,
                    label=arm,
                )
            ax.set_yticks(range(len(names)), [metric_label(name) for name in names])
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.tick_params(axis="y", length=0)
            ax.grid(False, axis="y")
        panels[0].set_title("Larger is better")
        panels[1].set_title("Smaller is better")
        panels[1].set_xlim(left=0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(arms))
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        _sign(figure, origin)
    return figure


def _offsets(count):
    """Places of `count` marks about a line."""
    return (np.arange(count) - (count - 1) / 2) * min(0.22, 0.8 / count)


def parameters(table: pd.DataFrame, origin="") -> Figure:
    """Where a model's parameters are, trained and frozen ones apart.

    Args:
        table: index: the parts, in the order of the data's way; columns trained and frozen.
        origin: the line below the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 0.8 + 0.34 * len(table)), layout="constrained")
        ax = figure.subplots()
        places = np.arange(len(table))
        ax.barh(places, table["trained"], color=BLUE, label="trained")
        ax.barh(places, table["frozen"], left=table["trained"], color=SKY, label="frozen")
        total = table["trained"] + table["frozen"]
        for place, count in zip(places, total, strict=True):
            ax.annotate(
                f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center"
            )
        ax.set_yticks(places, table.index)
        ax.invert_yaxis()
        ax.set(xlabel="parameters", xlim=(0, 1.12 * total.max()))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value else "0")
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="lower right")
        _sign(figure, origin)
    return figure


def _sign(figure, origin):
    """The line below a figure; what is synthetic stands out."""
    if origin:
        loud = origin.startswith("SYNTHETIC")
        figure.supxlabel(
            origin,
            x=0.995,
            ha="right",
            size=9 if loud else 8,
            color=VERMILLION if loud else "#666666",
            weight="bold" if loud else "normal",
        )
