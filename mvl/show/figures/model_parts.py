"""Figures of a model: what it is made of, what it mixes, and what its parts write where."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from pandas import DataFrame

from mvl.errors import RunError
from mvl.show.figures import marks
from mvl.show.figures.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    PAGE,
    SKY,
    colour_of,
    drawn,
    name_of_arm,
)
from mvl.study.statistics import contrast

#: Inches: a part's box, and how far a residual connection bows.
_HEIGHT, _BOW = 0.64, 0.25


@drawn
def dataflow(parts: DataFrame, skips: Sequence[tuple[str, str]] = ()) -> Figure:
    """A model's parts in the order of the data, with their weights and what goes between them.

    `parts` has a part as index and columns trained and frozen (numbers of weights) and output (what
    it hands on, such as "175 × 64"); the first is the volume. Of a pair of `skips` (a, b), a's
    output is added to b's input.
    """
    names = list(parts.index)
    step = (PAGE - 0.1) / len(names)
    width, between = 0.66 * step, 0.34 * step
    left = {name: (n - 0.66) * step for n, name in enumerate(names)}
    ylim = (-_BOW * len(skips) - 0.1, _HEIGHT + 0.1)
    # A quarter of an inch for the title: all else is to the scale of inches.
    figure, axes = plt.subplots(figsize=(PAGE, np.ptp(ylim) + 0.25))
    for name, part in zip(names, parts.itertuples(), strict=True):
        if name != names[0]:
            _box(axes, left[name], width, name, part)
        end = left[name] + width
        _arrow(axes, (end, _HEIGHT / 2), (end + between, _HEIGHT / 2))
        handed = part.output.replace(" ", "").replace("×", "\n×", 1)
        axes.text(end + between / 2, _HEIGHT / 2 + 0.05, handed, ha="center", fontsize=6)
    for n, (source, target) in enumerate(skips, start=1):
        start, end = left[source] + width + between / 2, left[target] - between / 2
        low, high = _HEIGHT / 2 - 0.03, -_BOW * n
        axes.plot([start, start, end], [low, high, high], color=GREY)
        _arrow(axes, (end, high), (end, low), GREY)
        axes.text(end + 0.03, high / 2, "+", color=GREY, va="center", fontsize=8)
    axes.set(xlim=(0, (len(names) - 0.3) * step), ylim=ylim, aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Dashed: mostly frozen. Between the boxes: tokens × width.")
    return figure


def _box(axes: Axes, left: float, width: float, name: str, part) -> None:
    """Draw a part with its numbers of weights, such as "884 k trained"."""
    frozen = part.frozen > part.trained
    style = {"linestyle": "--" if frozen else "-", "linewidth": 1}
    style |= {"boxstyle": "round,pad=0,rounding_size=0.05", "edgecolor": SKY if frozen else BLUE}
    colour = "#E3F1FA" if frozen else "white"
    axes.add_patch(FancyBboxPatch((left, 0), width, _HEIGHT, facecolor=colour, **style))
    weights = []
    for kind, count in (("trained", part.trained), ("frozen", part.frozen)):
        unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if count >= s), ("", 1))
        if count:
            weights.append(f"{count / size:.3g} {unit}\n{kind}".replace(" \n", "\n"))
    middle = {"x": left + width / 2, "ha": "center", "va": "center", "fontsize": 6}
    axes.text(y=0.87 * _HEIGHT, s=name, fontweight="bold", **middle)
    axes.text(y=0.4 * _HEIGHT, s="\n".join(weights), **middle)


def _arrow(axes: Axes, start: tuple, end: tuple, colour: str = BLACK) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.8}
    style["mutation_scale"] = 6
    axes.annotate("", end, start, arrowprops=style)


@drawn
def attention_mix(mixes: np.ndarray) -> Figure:
    """The share of global attention that hybrid attention has learned, by depth and head.

    `mixes` is (blocks, heads), as `mvl.models.activations.attention_mixes` gives it.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 0.2 * len(mixes) + 0.9))
    axes.axvline(0.5, color=GREY, linestyle=":", label="equal shares")
    for place, heads in enumerate(mixes):
        spread = np.linspace(-0.2, 0.2, len(heads))
        axes.plot(heads, place + spread, "o", color=BLUE, label="a head" if not place else None)
    marks.name_rows(axes, [f"layer {n}" for n in range(1, len(mixes) + 1)])
    axes.set(xlim=(0, 1), xlabel="share of global attention (0: all local, 1: all global)")
    marks.legend_below(figure, axes.get_legend_handles_labels()[0], 2)
    return figure


@drawn
def stage_auroc(table: DataFrame) -> Figure:
    """How well the norm of the tokens tells foreground patches from the others, stage by stage.

    A dot is a subject, averaged over its cases and the seeds; to its right is the mean with its
    95 % interval, by the bootstrap of `study.statistics.contrast` against a constant. Each arm has
    one place at each stage. `table` are rows of one suite, task and structure from
    `mvl.measure_stages`.
    Raises RunError as `contrast` does, and where no case has an AUROC.
    """
    if table.empty:
        raise RunError("no case has foreground and background patches, so that there is no AUROC")
    stages, arms = (list(dict.fromkeys(table[name])) for name in ("stage", "arm"))
    few = len(arms) < 4
    figure, axes = plt.subplots(figsize=(COLUMN if few else PAGE, 2.6))
    axes.axhline(0.5, color=GREY, linewidth=0.6, linestyle=":", label="chance")
    axes.set_xticks(range(len(stages)), [stage.replace("the ", "the\n") for stage in stages])
    axes.set(xlim=(-0.5, len(stages) - 0.5), ylim=(0, 1), ylabel="AUROC, foreground patches")
    axes.grid(axis="x", visible=False)
    width = 0.8 / len(arms)
    for place, stage in enumerate(stages):
        for n, arm in enumerate(arms):
            rows = table[(table["stage"] == stage) & (table["arm"] == arm)]
            if len(rows):
                middle = place + (n - (len(arms) - 1) / 2) * width
                values = rows.groupby(["subject", "seed"])["auroc_stream"].mean()
                interval = _interval_of_mean(rows)
                marks.subjects_and_mean(axes, middle, values, interval, colour_of(arm), width)
    marks.headline(figure, "Are the tokens' norms large on the structure?", table)
    handles = [Line2D([], [], color=colour_of(a), linewidth=3, label=name_of_arm(a)) for a in arms]
    handles += axes.get_legend_handles_labels()[0]
    handles += [
        marks.legend_dot("one subject", alpha=0.5, markersize=2),
        marks.legend_dot("mean, 95 % interval", linestyle="-"),
        marks.legend_dot("one seed", marker="_"),
    ]
    marks.legend_below(figure, handles, 2 if few else 4)
    return figure


def _interval_of_mean(rows: DataFrame) -> marks.Interval:
    # `contrast` knows the metrics of `METRICS` alone: the AUROC is lent the name of one that, like
    # it, has no unit. Nothing but the interval of the difference from 0 is taken from the result.
    rows = rows.assign(dice=rows["auroc_stream"])
    both = pd.concat([rows, rows.assign(arm="zero", dice=0.0)])
    return marks.interval_of(contrast(both, rows["arm"].iloc[0], "zero"))
