"""Figures of a task's data and of the training on it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from pandas import DataFrame

from mvl.show.figures import marks, style
from mvl.show.figures.style import (
    BLUE,
    COLUMN,
    GREEN,
    ORANGE,
    PAGE,
    colour_of,
    drawn,
    name_of_arm,
    without_share,
)
from mvl.show.sentences import span

if TYPE_CHECKING:
    from mvl.data.tasks import Task

_SIDES = {"train": BLUE, "validation": GREEN, "test": ORANGE}


@drawn
def data_overview(table: DataFrame, images: Sequence[np.ndarray], task: Task) -> Figure:
    """What is in a task: its split, its intensities before and after normalisation, its volumes.

    `table` is that of `mvl.describe_cases`; `images` are the voxels of volumes after
    normalisation.
    """
    figure, ((split, before), (after, volumes)) = plt.subplots(2, 2, figsize=(PAGE, 4.4))
    colours = {side: c for side, c in _SIDES.items() if (table["side"] == side).any()}
    grouped = table.groupby("side")
    counts = {"subjects": grouped["subject"].nunique(), "cases": grouped.size()}
    for (name, count), offset, alpha in zip(counts.items(), (-0.2, 0.2), (1, 0.5), strict=True):
        x, heights = np.arange(len(colours)) + offset, count[[*colours]]
        bars = split.bar(x, heights, 0.38, color=colours.values(), alpha=alpha)
        split.bar_label(bars, [f"{n}\n{name}" for n in heights], fontsize=6)
    split.set_xticks(range(len(colours)), colours)
    split.margins(y=0.2)
    split.grid(axis="x", visible=False)
    split.set(title="Split by subject", ylabel="number")

    mri, means = task.modality == "MRI", table["mean_intensity"]
    bins = np.linspace(means.min() - 1, means.max() + 1, 25)
    if mri and (means > 0).all():
        bins = np.geomspace(means.min() * 0.95, means.max() * 1.05, 25)
        before.set_xscale("log")
        before.xaxis.set_major_formatter(ScalarFormatter())
        # Minor ticks are labelled only where major ones would leave the axis without a number.
        minor = ScalarFormatter if means.max() < 10 * means.min() else NullFormatter
        before.xaxis.set_minor_formatter(minor())
    _histogram(before, table, "mean_intensity", bins, colours)
    unit = "HU" if task.modality == "CT" else "arbitrary units"
    before.set(title="Before normalisation", xlabel=f"mean intensity of a case ({unit})")

    images = [image[image != 0] for image in images]  # zeros are padding
    low, high = np.percentile(np.concatenate([image[::7] for image in images]), (0.5, 99.5))
    edges = np.linspace(low, high, 41)
    for image in images:
        density, _ = np.histogram(image, edges, density=True)
        after.plot((edges[1:] + edges[:-1]) / 2, density, color=BLUE, alpha=0.35, linewidth=0.5)
    scale = "z-score" if mri else "share of the window"
    after.set(title=f"After normalisation, {len(images)} cases", xlabel=f"intensity ({scale})")
    after.set_ylabel("density")

    sizes = table["volume_ml"]
    bins = np.linspace(sizes.min(), sizes.max(), 25)
    _histogram(volumes, table, "volume_ml", bins, colours)
    volumes.set(title="Volume of the labelled structure", xlabel="volume (mL)")
    volumes.legend()
    style.note_synthetic(figure, task.synthetic)
    return figure


def _histogram(
    axes: Axes, table: DataFrame, column: str, bins: np.ndarray, colours: dict[str, str]
) -> None:
    values = [table.loc[table["side"] == side, column] for side in colours]
    axes.hist(values, bins, stacked=True, color=[*colours.values()], label=[*colours])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("cases")


@drawn
def curves(runs: dict[str, DataFrame], synthetic: bool) -> Figure:
    """Training loss and validation Dice by epoch, a line per run; a dot marks the best epoch.

    `runs` is {arm: table with columns epoch, train_loss, validation_dice}, as in `curves.csv`.
    """
    figure, (loss, dice) = plt.subplots(1, 2, figsize=(PAGE, 2.4))
    used = set()
    for arm, rows in runs.items():
        table, colour = DataFrame(rows), colour_of(arm)
        line = {"color": colour, "linestyle": "--" if colour in used else "-"}
        line["marker"] = "" if len(table) > 1 else "."  # a line of one epoch is not seen
        used.add(colour)
        loss.plot(table["epoch"] + 1, table["train_loss"], label=name_of_arm(arm), **line)
        dice.plot(table["epoch"] + 1, table["validation_dice"], **line)
        best = table.loc[table["validation_dice"].idxmax()]
        dice.plot(best["epoch"] + 1, best["validation_dice"], "o", color=colour)
    loss.set(title="Training loss (Dice + cross-entropy)", xlabel="epoch", ylabel="loss")
    dice.set(title="Validation (dot: the epoch that is kept)", xlabel="epoch", ylabel="Dice")
    dice.set_ylim(0, 1)
    for axes in (loss, dice):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    loss.legend()
    style.note_synthetic(figure, synthetic)
    return figure


@drawn
def seed_curves(curves: DataFrame, cases: DataFrame) -> Figure:
    """Validation Dice by epoch, a panel for each share of the training subjects.

    A thick line is the mean over an arm's seeds, to the last epoch that all of them have; each thin
    one is a seed. Shares are trained for as many optimiser steps. `curves` are rows of one suite
    and task: arm, seed, fraction, epoch, validation_dice. `cases` are the same runs' test cases.
    """
    shares = sorted(curves["fraction"].unique())
    width = COLUMN if len(shares) == 1 else PAGE
    figure, axes = plt.subplots(1, len(shares), squeeze=False, sharey=True, figsize=(width, 2.5))
    early, handles = [], {}
    for axis, share in zip(axes[0], shares, strict=True):
        panel = curves[curves["fraction"] == share]
        for dashes, arm in zip(cycle(("-", "--", ":", "-.")), dict.fromkeys(panel["arm"])):
            rows, colour = panel[panel["arm"] == arm], colour_of(arm)
            by_seed = rows.pivot(index="epoch", columns="seed", values="validation_dice")
            axis.plot(by_seed.index + 1, by_seed, color=colour, linewidth=0.3, alpha=0.6)
            name = name_of_arm(without_share(arm)[0])  # the panel says the share
            whole = by_seed.dropna()
            mean = whole.mean(axis=1)
            look = {"color": colour, "linestyle": dashes, "label": name}
            (handles[name],) = axis.plot(whole.index + 1, mean, **look)
            early.append(by_seed.min(axis=1).iloc[len(by_seed) // 10])
        axis.set(title=f"{share * 100:.0f} % of subjects", xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0, 0].set_ylabel("validation Dice")
    # The first tenth of a training rises from nothing and would leave no room for differences.
    axes[0, 0].set_ylim(bottom=max(0, min(early) - 0.02))
    seeds = span(curves.groupby("arm")["seed"].nunique(), "seed")
    what = f"Validation while training; {seeds} (thin), mean (thick)"
    marks.headline(figure, what, cases, size=False)
    marks.legend_below(figure, handles.values(), min(2 * len(shares), 4))
    return figure
