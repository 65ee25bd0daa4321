"""Every figure: a function from tables and arrays to a matplotlib `Figure`.

No model and no file is opened here. Colours are those of Okabe and Ito ("Color Universal Design",
2008), which stay apart for colour-blind readers, and an arm has the same one in every figure.
What is synthetic says so in the figure itself, and voxels of the decathlon carry its attribution.
"""

import functools
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from nibabel.orientations import apply_orientation, io_orientation

from mvl.errors import RunError
from mvl.files import written
from mvl.metrics import METRICS
from mvl.statistics import BOUND, contrast
from mvl.tasks import TASKS

ATTRIBUTION = "Medical Segmentation Decathlon, CC-BY-SA 4.0"
SYNTHETIC = "SYNTHETIC DATA: a phantom, not patients"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"

#: Arm -> colour. Arms of equal configuration in two suites have the same one.
ARM_COLOURS = {
    "none": BLACK,
    "pretrained": BLUE,
    "random": VERMILLION,
    "shuffled": ORANGE,
    "identity": SKY,
    "trainable": GREEN,
    "vit-mlp": PURPLE,
    "vit": BLACK,
    "v1": GREEN,
    "v3": BLUE,
    "released": VERMILLION,
    "best": PURPLE,
    "000": BLACK,
    "100": BLUE,
    "010": ORANGE,
    "001": GREEN,
    "110": SKY,
    "101": PURPLE,
    "011": YELLOW,
    "111": VERMILLION,
}
TRUTH_COLOUR, PREDICTION_COLOUR = SKY, ORANGE
SIDE_COLOURS = {"train": BLUE, "validation": GREEN, "test": ORANGE}

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": "figure",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
}

#: Plane, axis it cuts, axes that run right and up, and the letters at their ends, in RAS+.
_PLANES = (
    ("sagittal", 0, 1, 2, "PA", "IS"),
    ("coronal", 1, 0, 2, "LR", "IS"),
    ("axial", 2, 0, 1, "LR", "PA"),
)
_INCHES_PER_ROW = 2.3
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
    """

    image: np.ndarray
    affine: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None
    title: str = ""
    caption: str = ""


def colour_of(arm):
    """The arm's colour; another head ("conv-000") or a named seed ("none, seed 0") changes none."""
    return ARM_COLOURS.get(str(arm).partition(",")[0].removeprefix("conv-"), GREY)


def save(figure, path):
    """Write a figure as PNG, whole or not at all, the same bytes for the same figure.

    Raises:
        MvlError: the file cannot be written.
    """
    with written(path) as temporary:
        # The version of matplotlib is all that its metadata would hold.
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _figure(draw):
    """Draw in the style, and leave showing to the caller: a notebook shows what a cell returns."""

    @functools.wraps(draw)
    def drawn(*arguments, **options):
        with plt.rc_context(STYLE):
            figure = draw(*arguments, **options)
        plt.close(figure)
        return figure

    return drawn


# --- volumes -------------------------------------------------------------------------------


@_figure
def slices(view, task):
    """Sagittal, coronal and axial slice of one volume with contours of truth and prediction.

    Each slice is where the truth is largest (the middle without one); all are drawn to one scale.

    Args:
        view: a `View`.
        task: its `mvl.tasks.Task`, for the note on where the voxels come from.
    """
    return _gallery([view], task)


@_figure
def case_gallery(views, task):
    """Several volumes, a row each, as `slices` shows one; all to one scale.

    Args:
        views: list of `View`.
        task: their `Task`.
    """
    return _gallery(views, task)


@_figure
def strip(views, task, plane="sagittal"):
    """One slice of each of several volumes, side by side, where the first one's truth is largest.

    Args:
        views: list of `View` on one grid.
        task: their `Task`.
        plane: "sagittal", "coronal" or "axial".
    """
    chosen = next(p for p in _PLANES if p[0] == plane)
    volumes = [_Oriented(view) for view in views]
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
    _scale_bar(axes[0, 0], width)
    _voxel_legend(figure, views)
    _voxel_note(figure, task)
    return figure


def _gallery(views, task):
    volumes = [_Oriented(view) for view in views]
    # One frame for a column and one height for all, so that millimetres are comparable.
    widths = [max(v.size[plane[2]] for v in volumes) for plane in _PLANES]
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
        for axis, plane, width in zip(row, _PLANES, widths, strict=True):
            volume.draw(axis, plane, volume.index(plane[1]), (width, height))
        row[0].set_title(volume.view.title)
        _in_corner(row[0], volume.view.caption)
    for axis, plane in zip(axes[-1], _PLANES, strict=True):
        axis.set_xlabel(plane[0])
    _scale_bar(axes[0, 0], widths[0])
    _voxel_legend(figure, views)
    _voxel_note(figure, task)
    return figure


class _Oriented:
    """A view turned to RAS+, which every plane is cut from."""

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

    def draw(self, axes, plane, index, frame):
        """Draw one slice, in millimetres, in the middle of a frame of (width, height) mm."""
        name, across, right, up, right_letters, up_letters = plane
        width, height = self.size[right], self.size[up]
        axes.imshow(
            self.image.take(index, across).T,
            cmap="gray",
            vmin=self.range[0],
            vmax=self.range[1],
            origin="lower",
            extent=(0, width, 0, height),
            interpolation="nearest",
        )
        for mask_name, mask in self.masks.items():
            # A border of background closes contours that touch the volume's edge.
            cut = np.pad(mask.take(index, across), 1).T
            if cut.any():
                x, y = (
                    (np.arange(n + 2) - 0.5) * self.spacing[a]
                    for n, a in ((cut.shape[1] - 2, right), (cut.shape[0] - 2, up))
                )
                truth = mask_name == "truth"
                axes.contour(
                    x,
                    y,
                    cut.astype(float),
                    levels=[0.5],
                    colors=[TRUTH_COLOUR if truth else PREDICTION_COLOUR],
                    linewidths=[2.2 if truth else 1.4],
                ).set_label(mask_name)
        axes.set(
            facecolor="black",
            aspect="equal",
            xlim=(width / 2 - frame[0] / 2, width / 2 + frame[0] / 2),
            ylim=(height / 2 - frame[1] / 2, height / 2 + frame[1] / 2),
            xticks=[],
            yticks=[],
        )
        axes.grid(False)
        axes.spines[:].set_visible(False)
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


def _in_corner(axes, text):
    if text:
        axes.text(
            0.03,
            0.97,
            text,
            transform=axes.transAxes,
            color="white",
            fontweight="bold",
            va="top",
            bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2},
        )


def _scale_bar(axes, width):
    """A bar of a round length, about a quarter of the frame."""
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


def _voxel_legend(figure, views):
    handles = []
    if any(view.truth is not None for view in views):
        handles.append(Line2D([], [], color=TRUTH_COLOUR, linewidth=2.2, label="truth"))
    if any(view.prediction is not None for view in views):
        handles.append(Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.4, label="prediction"))
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=2)


def _voxel_note(figure, task):
    """Where the voxels of a figure come from: nobody's, the decathlon's, or the user's own."""
    if task.synthetic:
        _note_synthetic(figure, True)
    elif task.name in TASKS:
        figure.supxlabel(ATTRIBUTION, fontsize=8, color=GREY, x=0.99, ha="right")


def _note_synthetic(figure, synthetic):
    if synthetic:
        figure.supxlabel(SYNTHETIC, fontsize=9, color=VERMILLION, fontweight="bold")


# --- data ----------------------------------------------------------------------------------


@_figure
def data_overview(table, images, task):
    """What is in a task: its split, its intensities before and after normalisation, its volumes.

    Args:
        table: a case a row, as `mvl.data.describe.describe_cases` gives it.
        images: arrays of voxels after normalisation, a volume each.
        task: the `Task`.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2))
    sides = [side for side in SIDE_COLOURS if (table["side"] == side).any()]
    grouped = table.groupby("side")
    counts = pd.DataFrame({"subjects": grouped["subject"].nunique(), "cases": grouped.size()})
    for offset, column in ((-0.2, "subjects"), (0.2, "cases")):
        bars = axes[0, 0].bar(
            np.arange(len(sides)) + offset,
            counts.loc[sides, column],
            0.38,
            color=[SIDE_COLOURS[side] for side in sides],
            alpha=1.0 if column == "subjects" else 0.5,
        )
        labels = [f"{n}\n{column}" for n in counts.loc[sides, column]]
        axes[0, 0].bar_label(bars, labels, fontsize=8)
    axes[0, 0].set_xticks(range(len(sides)), sides)
    axes[0, 0].margins(y=0.2)
    axes[0, 0].grid(axis="x", visible=False)
    axes[0, 0].set(title="Split by subject", ylabel="number")

    means = table["mean_intensity"]
    if task.modality == "MRI" and (means > 0).all():
        bins = np.geomspace(means.min() * 0.95, means.max() * 1.05, 25)
        axes[0, 1].set_xscale("log")
        axes[0, 1].xaxis.set_major_formatter(ScalarFormatter())
        # Minor ticks are labelled only where major ones would leave the axis without a number.
        if means.max() < 10 * means.min():
            axes[0, 1].xaxis.set_minor_formatter(ScalarFormatter())
        else:
            axes[0, 1].xaxis.set_minor_formatter(NullFormatter())
    else:
        bins = np.linspace(means.min() - 1, means.max() + 1, 25)
    _histogram(axes[0, 1], table, "mean_intensity", bins, sides)
    unit = "HU" if task.modality == "CT" else "arbitrary units"
    axes[0, 1].set(title="Before normalisation", ylabel="cases")
    axes[0, 1].set_xlabel(f"mean intensity of a case ({unit})")

    images = [image[image != 0] for image in images]  # zeros are padding
    low, high = np.percentile(np.concatenate([image[::7] for image in images]), (0.5, 99.5))
    edges = np.linspace(low, high, 41)
    for image in images:
        density, _ = np.histogram(image, edges, density=True)
        axes[1, 0].plot((edges[1:] + edges[:-1]) / 2, density, color=BLUE, alpha=0.35, linewidth=1)
    after = "z-score" if task.modality == "MRI" else "share of the window"
    axes[1, 0].set(title=f"After normalisation, {len(images)} cases", xlabel=f"intensity ({after})")
    axes[1, 0].set_ylabel("density")

    volumes = table["volume_ml"]
    _histogram(axes[1, 1], table, "volume_ml", np.linspace(volumes.min(), volumes.max(), 25), sides)
    axes[1, 1].set(title="Volume of the labelled structure", ylabel="cases", xlabel="volume (mL)")
    axes[1, 1].legend()
    _note_synthetic(figure, task.synthetic)
    return figure


def _histogram(axes, table, column, bins, sides):
    axes.hist(
        [table.loc[table["side"] == side, column] for side in sides],
        bins,
        stacked=True,
        color=[SIDE_COLOURS[side] for side in sides],
        label=sides,
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


# --- training ------------------------------------------------------------------------------


@_figure
def curves(runs, synthetic):
    """Training loss and validation Dice by epoch, a line per run; a dot marks the best epoch.

    Args:
        runs: {arm: table of `curves.csv`}, columns epoch, train_loss, validation_dice.
        synthetic: whether the data is a phantom.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for arm, rows in runs.items():
        table, colour = pd.DataFrame(rows), colour_of(arm)
        axes[0].plot(table["epoch"] + 1, table["train_loss"], color=colour, label=arm)
        axes[1].plot(table["epoch"] + 1, table["validation_dice"], color=colour, label=arm)
        best = table.loc[table["validation_dice"].idxmax()]
        axes[1].plot(best["epoch"] + 1, best["validation_dice"], "o", color=colour)
    axes[0].set(title="Training loss (Dice + cross-entropy)", xlabel="epoch", ylabel="loss")
    axes[1].set(title="Validation (dot: the epoch that is kept)", xlabel="epoch", ylabel="Dice")
    axes[1].set_ylim(0, 1)
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", title="arm")
    _note_synthetic(figure, synthetic)
    return figure


@_figure
def parameters(counts):
    """Trained against frozen weights, by part of the model.

    Args:
        counts: table with a part as index and columns trained and frozen.
    """
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(counts) + 1.2))
    places = np.arange(len(counts))
    axes.barh(places, counts["trained"], color=BLUE, label="trained")
    axes.barh(places, counts["frozen"], left=counts["trained"], color=SKY, label="frozen")
    for place, (trained, frozen) in zip(
        places, counts[["trained", "frozen"]].to_numpy(), strict=True
    ):
        axes.text(trained + frozen, place, f" {trained + frozen:,}", va="center", fontsize=9)
    axes.set_yticks(places, counts.index)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.set(title="Where the parameters are", xlabel="parameters")
    axes.legend(loc="best")
    return figure


# --- results -------------------------------------------------------------------------------


def subject_differences(cases, arm_a, arm_b, metric="dice"):
    """Each subject's difference a minus b, over its cases and the seeds that both arms have.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.statistics`.
        arm_a, arm_b: the arms.
        metric: a name of `mvl.metrics.METRICS`.

    Returns:
        Series, subject -> difference, ascending. Its mean is the difference of
        `mvl.statistics.contrast`.
    """
    means = cases.groupby(["subject", "seed", "arm"])[metric].mean().unstack()
    difference = (means[arm_a] - means[arm_b]).dropna()
    return difference.groupby("subject").mean().sort_values()


@_figure
def paired_differences(cases, arm_a, arm_b, metric="dice"):
    """One dot per subject, the zero line, and the mean difference with its 95 % interval.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.statistics`.
        arm_a, arm_b: the arms; dots above zero are subjects with a larger value under arm_a.
        metric: a name of `mvl.metrics.METRICS`.

    Raises:
        RunError: as `mvl.statistics.contrast`.
    """
    row = contrast(cases, arm_a, arm_b, metric)
    values = subject_differences(cases, arm_a, arm_b, metric)
    facts = METRICS[metric]
    gains = values if facts.larger_is_better else -values
    figure, axes = plt.subplots(figsize=(8, 3.8))
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=BLACK, linewidth=1)
    if not facts.unit:
        for sign in (-1, 1):
            axes.axhline(
                sign * BOUND,
                color=GREY,
                linewidth=1,
                linestyle=":",
                label=f"negligible below ±{BOUND:g}" if sign > 0 else None,
            )
    axes.axhspan(
        row["ci_low"], row["ci_high"], color=GREY, alpha=0.25, linewidth=0, label="95 % interval"
    )
    axes.axhline(row["difference"], color=GREY, linewidth=1.8, label="mean difference")
    axes.vlines(places, 0, values, color="#BFBFBF", linewidth=1)
    axes.scatter(
        places,
        values,
        s=34,
        zorder=3,
        color=[colour_of(arm_a) if gain >= 0 else colour_of(arm_b) for gain in gains],
    )
    unit = f" ({facts.unit})" if facts.unit else ""
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(
        title=f"{_name(metric)}, {arm_a} minus {arm_b}, subject by subject",
        xlabel=f"{len(values)} test subjects, by difference",
        ylabel=f"difference in {_name(metric)}{unit}",
    )
    handles, _ = axes.get_legend_handles_labels()
    dots = [
        Line2D([], [], marker="o", linestyle="", color=colour_of(arm), label=f"{arm} is better")
        for arm in (arm_a, arm_b)
    ]
    figure.legend(handles=[*dots, *handles], loc="outside right center")
    _note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@_figure
def arm_means(cases, metric="dice"):
    """Each arm's mean with its 95 % interval, and a small dot per seed, an arm a row.

    The interval is of the arm itself, subjects and seeds resampled; whether two arms differ is
    for their paired difference to say, which is narrower.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.statistics`.
        metric: a name of `mvl.metrics.METRICS`.
    """
    arms = list(dict.fromkeys(cases["arm"]))
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(arms) + 1.3))
    for place, arm in enumerate(arms):
        own = cases[cases["arm"] == arm]
        low, mean, high = _mean_and_interval(own, metric)
        per_seed = own.groupby(["seed", "subject"])[metric].mean().groupby("seed").mean()
        axes.plot([low, high], [place] * 2, color=colour_of(arm), linewidth=2)
        axes.plot(mean, place, "o", color=colour_of(arm), markersize=8)
        if len(per_seed) > 1:
            marks = axes.scatter(per_seed, [place + 0.25] * len(per_seed), s=12, linewidth=0)
            marks.set_color(colour_of(arm))
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    seeds = cases.groupby("arm")["seed"].nunique()
    size = f"{cases['subject'].nunique()} test subjects, "
    size += f"{seeds.min()} to " * bool(seeds.min() < seeds.max()) + f"{seeds.max()} seed"
    size += "s" * bool(seeds.max() > 1)
    unit = f" ({METRICS[metric].unit})" if METRICS[metric].unit else ""
    axes.set(
        title=f"{_name(metric)}, mean and 95 % interval: {size}", xlabel=f"{_name(metric)}{unit}"
    )
    _note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@_figure
def part_effects(cases, metric="dice"):
    """What each of the paper's parts earns, averaged over the combinations of the other two.

    A dot is a subject's difference, part on minus part off; beside it stands the mean with its
    95 % interval, subjects and seeds resampled.

    Args:
        cases: rows of the suite `fusion`, all eight arms, of one task and structure.
        metric: a name of `mvl.metrics.METRICS`.
    """
    parts = ("language block", "hybrid attention", "multi-scale fusion")
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.axhline(0, color=BLACK, linewidth=1)
    for place in range(len(parts)):
        on = cases["arm"].str[place] == "1"
        sides = cases.assign(arm=np.where(on, "on", "off"))
        keys = ["seed", "subject", "case", "structure", "arm", "synthetic"]
        sides = sides.groupby(keys, as_index=False)[metric].mean()
        row = contrast(sides, "on", "off", metric)
        values = subject_differences(sides, "on", "off", metric)
        across = np.linspace(-0.3, 0.1, len(values))
        colour = (BLUE, ORANGE, GREEN)[place]
        axes.scatter(place + across, values, s=14, alpha=0.5, color=colour, linewidth=0)
        axes.plot([place + 0.25] * 2, [row["ci_low"], row["ci_high"]], color=colour, linewidth=2)
        axes.plot(place + 0.25, row["difference"], "o", color=colour)
    axes.set_xticks(range(3), parts)
    axes.grid(axis="x", visible=False)
    axes.set(
        title="A dot is a subject; mean and 95 % interval", ylabel=f"{_name(metric)}, on - off"
    )
    _note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@_figure
def metric_differences(contrasts):
    """The difference in every metric with its 95 % interval; to the right is better for arm_a.

    Args:
        contrasts: rows of `mvl.statistics.contrasts_table` of one pair, task and structure, a
            metric each.
    """
    pure = contrasts[[METRICS[m].unit == "" for m in contrasts["metric"]]]
    in_mm = contrasts.drop(pure.index)
    first = contrasts.iloc[0]
    ratio = [max(1, len(pure)), max(1, len(in_mm))]
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 0.36 * sum(ratio) + 2.0), height_ratios=[n + 0.6 for n in ratio]
    )
    for axis, rows, label in ((axes[0], pure, "no unit"), (axes[1], in_mm, "mm")):
        axis.axvline(0, color=BLACK, linewidth=1)
        places = np.arange(len(rows))
        for place, row in zip(places, rows.itertuples(), strict=True):
            gain = row.difference if METRICS[row.metric].larger_is_better else -row.difference
            colour = colour_of(first["arm_a"] if gain >= 0 else first["arm_b"])
            axis.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=2)
            axis.plot(row.difference, place, "o", color=colour)
        axis.set_yticks(places, [_name(m) for m in rows["metric"]])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        # Symmetric, so that zero stands in the middle of both panels.
        reach = np.nanmax(np.abs(rows[["difference", "ci_low", "ci_high"]].to_numpy()), initial=0)
        axis.set_xlim(-1.15 * reach or -1, 1.15 * reach or 1)
        axis.set_xlabel(f"difference ({label})")
    axes[0].axvspan(-BOUND, BOUND, color=GREY, alpha=0.12, linewidth=0)
    axes[1].invert_xaxis()  # a smaller distance is better
    axes[0].set_title(
        f"{first['arm_a']} minus {first['arm_b']}: left of zero {first['arm_b']} is better, "
        f"right of it {first['arm_a']}\n(shaded: negligible, below ±{BOUND:g})"
    )
    _note_synthetic(figure, bool(first["synthetic"]))
    return figure


def best_median_worst(cases, metric="dice"):
    """The cases that a gallery shows: {"best": row, "median": row, "worst": row}.

    Args:
        cases: a case a row, of one run and structure.
        metric: a name of `mvl.metrics.METRICS`.
    """
    ordered = cases.sort_values(
        [metric, "case"], ascending=[not METRICS[metric].larger_is_better, True]
    )
    places = {"best": 0, "median": len(ordered) // 2, "worst": -1}
    return {name: ordered.iloc[place] for name, place in places.items()}


def _name(metric):
    return {"hd95_mm": "HD95", "nsd": "NSD"}.get(metric, metric.capitalize())


@_figure
def attention_mix(mixes):
    """The share of global attention that hybrid attention has learned, by depth and head.

    Args:
        mixes: (blocks, heads), as `mvl.models.activations.attention_mixes` gives it.
    """
    blocks, heads = mixes.shape
    figure, axes = plt.subplots(figsize=(0.45 * blocks + 2.2, 0.4 * heads + 1.4))
    picture = axes.imshow(mixes.T, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(blocks), range(1, blocks + 1))
    axes.set_yticks(range(heads), range(1, heads + 1))
    axes.set(title="Attention: local 0, global 1", xlabel="block", ylabel="head")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, ticks=[0, 0.5, 1])
    return figure


@_figure
def mechanism(table):
    """How well the language part's norms tell foreground patches from the others, arm by arm.

    A dot is a subject, averaged over its cases and the seeds; beside the dots stand the mean and
    its 95 % interval, by the bootstrap of `mvl.statistics.contrast` against a constant. A case
    without an AUROC is left out of every arm, and the figure says how many there are.

    Args:
        table: rows of one suite, task and structure as `mvl.mechanism.beside_metrics` gives them,
            of any number of arms and seeds.

    Raises:
        RunError: as `mvl.statistics.contrast`; or no case has an AUROC.
    """
    panels = {"auroc_update": "What the block writes", "auroc_change": "Change of the stream"}
    undefined = table.loc[table[list(panels)].isna().any(axis=1), "case"].unique()
    rows = table[~table["case"].isin(undefined)]
    if rows.empty:
        raise RunError("no case has foreground and background patches, so that there is no AUROC")
    arms = list(rows["arm"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(max(7, 1.7 * len(arms) + 2.4), 3.8), sharey=True)
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        axis.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
        for place, arm in enumerate(arms):
            own = rows[rows["arm"] == arm]
            by_seed = own.groupby(["subject", "seed"])[measure].mean()
            values = by_seed.groupby("subject").mean().sort_values()
            # In order of size from left to right, so that no dot hides another.
            across = np.linspace(-0.3, 0.1, len(values)) if len(values) > 1 else [-0.1]
            axis.scatter(place + across, values, s=14, alpha=0.5, color=colour_of(arm), linewidth=0)
            low, mean, high = _mean_and_interval(own, measure)
            axis.plot([place + 0.25] * 2, [low, high], color=colour_of(arm), linewidth=2)
            axis.plot(place + 0.25, mean, "o", color=colour_of(arm))
        axis.set_xticks(range(len(arms)), arms)
        axis.set_xlim(-0.5, len(arms) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set(title=title, ylim=(0, 1))
    axes[0].set_ylabel("AUROC, foreground patches")
    subjects, seeds = rows["subject"].nunique(), rows.groupby("arm")["seed"].nunique()
    fewest, most = int(seeds.min()), int(seeds.max())
    note = f"{subjects} subject{'s' * (subjects != 1)}, "
    note += f"{fewest} to " * (fewest < most) + f"{most} seed{'s' * (most != 1)}"
    if len(undefined):
        cases = table["case"].nunique()
        note += f"; {len(undefined)} of {cases} cases left out: patches of one kind only"
    figure.suptitle(f"Does the language part act on the structure?\n{note}", x=0.01, ha="left")
    handles = [
        *axes[0].get_legend_handles_labels()[0],
        Line2D([], [], marker="o", linestyle="", color=GREY, alpha=0.5, markersize=4),
        Line2D([], [], marker="o", color=GREY, linewidth=2),
    ]
    figure.legend(handles, ["chance", "a subject", "mean, 95 %"], loc="outside right center")
    _note_synthetic(figure, bool(table["synthetic"].iloc[0]))
    return figure


def _mean_and_interval(rows, measure):
    """(low, mean, high) of one arm's column, with subjects and seeds resampled."""
    # `contrast` knows the metrics of `METRICS` alone: the column is lent the name of one that,
    # like it, has no unit. Nothing but the interval of the difference is taken from the result.
    own = rows.assign(dice=rows[measure])
    found = contrast(pd.concat([own, own.assign(arm="zero", dice=0.0)]), own["arm"].iloc[0], "zero")
    return found["ci_low"], found["difference"], found["ci_high"]
