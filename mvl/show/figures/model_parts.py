"""Figures of a model: what it is made of, what it mixes, and what its parts write where."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from pandas import DataFrame

from mvl.errors import RunError
from mvl.show.figures import marks
from mvl.show.figures.style import BLACK, BLUE, GREY, SKY, colour_of, drawn

#: Inches: a part's box, the space between two of them, and how far a residual connection bows.
_BOX, _BETWEEN, _BOW = (0.95, 0.8), 0.76, 0.34


@drawn
def dataflow(parts: DataFrame, skips: Sequence[tuple[str, str]] = ()) -> Figure:
    """A model's parts in the order of the data, with their weights and what goes between them.

    `parts` has a part as index and columns trained and frozen (numbers of weights) and output (what
    it hands on, such as "175 × 64"); the first is the volume. Of a pair of `skips` (a, b), a's
    output is added to b's input.
    """
    names = list(parts.index)
    (width, height), step = _BOX, _BOX[0] + _BETWEEN
    left = {name: (n - 1) * step for n, name in enumerate(names)}
    xlim = (left[names[0]] + width - 0.25, left[names[-1]] + step + 0.1)
    ylim = (-_BOW * len(skips) - 0.1, height + 0.1)
    # A third of an inch for the title: all else is to the scale of inches.
    figure, axes = plt.subplots(figsize=(np.ptp(xlim) + 0.1, np.ptp(ylim) + 0.35))
    for name, part in zip(names, parts.itertuples(), strict=True):
        if name != names[0]:
            _box(axes, left[name], name, part)
        end = left[name] + width
        _arrow(axes, (end, height / 2), (end + _BETWEEN, height / 2))
        axes.text(end + _BETWEEN / 2, height / 2 + 0.07, part.output, ha="center", fontsize=7.5)
    for n, (source, target) in enumerate(skips, start=1):
        start, end = left[source] + width + _BETWEEN / 2, left[target] - _BETWEEN / 2
        low, high = height / 2 - 0.04, -_BOW * n
        axes.plot([start, start, end], [low, high, high], color=GREY, linewidth=1.3)
        _arrow(axes, (end, high), (end, low), GREY)
        axes.text(end + 0.05, high / 2, "+", color=GREY, va="center", fontsize=12)
    axes.set(xlim=xlim, ylim=ylim, aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Dashed: mostly frozen. Between the boxes: tokens × width.")
    return figure


def _box(axes: Axes, left: float, name: str, part) -> None:
    """Draw a part with its numbers of weights, such as "884 k trained"."""
    (width, height), frozen = _BOX, part.frozen > part.trained
    style = {"linestyle": "--" if frozen else "-", "linewidth": 1.6}
    style |= {"boxstyle": "round,pad=0,rounding_size=0.08", "edgecolor": SKY if frozen else BLUE}
    colour = "#E3F1FA" if frozen else "white"
    axes.add_patch(FancyBboxPatch((left, 0), width, height, facecolor=colour, **style))
    weights = []
    for kind, count in (("trained", part.trained), ("frozen", part.frozen)):
        unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if count >= s), ("", 1))
        if count:
            weights.append(f"{count / size:.3g} {unit} {kind}".replace("  ", " "))
    middle = {"x": left + width / 2, "ha": "center", "va": "center"}
    axes.text(y=0.66 * height, s=name, fontweight="bold", **middle)
    axes.text(y=0.27 * height, s="\n".join(weights), fontsize=8, **middle)


def _arrow(axes: Axes, start: tuple, end: tuple, colour: str = BLACK) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3}
    axes.annotate("", end, start, arrowprops=style)


@drawn
def attention_mix(mixes: np.ndarray) -> Figure:
    """The share of global attention that hybrid attention has learned, by depth and head.

    `mixes` is (blocks, heads), as `mvl.models.activations.attention_mixes` gives it.
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


@drawn
def mechanism(table: DataFrame) -> Figure:
    """How well the language part's norms tell foreground patches from the others, arm by arm.

    A dot is a subject, averaged over its cases and the seeds; to its right is the mean with its
    95 % interval, by the bootstrap of `study.statistics.contrast` against a constant. A case
    without an AUROC is left out of every arm, and the figure says how many there are.

    `table` are rows of one suite, task and structure as `study.mechanism.beside_metrics` gives
    them. Raises RunError as `contrast` does, and where no case has an AUROC.
    """
    panels = {"auroc_update": "What the block writes", "auroc_change": "Change of the stream"}
    undefined = table.loc[table[list(panels)].isna().any(axis=1), "case"].unique()
    rows = table[~table["case"].isin(undefined)]
    _require_aurocs(rows)
    arms = list(rows["arm"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(max(7, 1.7 * len(arms) + 2.4), 3.8), sharey=True)
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        _auroc_axes(axis, arms)
        axis.set_title(title)
        for place, arm in enumerate(arms):
            _aurocs(axis, place, rows[rows["arm"] == arm], measure)
    axes[0].set_ylabel("AUROC, foreground patches")
    note = marks.size_text(rows)
    if len(undefined):
        cases = table["case"].nunique()
        note += f"; {len(undefined)} of {cases} cases left out: patches of one kind only"
    figure.suptitle(f"Does the language part act on the structure?\n{note}", x=0.01, ha="left")
    marks.legend_right(figure, _auroc_handles(axes[0]))
    return figure


@drawn
def stage_auroc(table: DataFrame) -> Figure:
    """How well the norm of the tokens tells foreground patches from the others, stage by stage.

    Dots, means, intervals and errors as in `mechanism`; each arm has one place at each stage.
    `table` are rows of one suite, task and structure from `study.mechanism.by_stage`.
    """
    _require_aurocs(table)
    stages, arms = (list(dict.fromkeys(table[name])) for name in ("stage", "arm"))
    figure, axes = plt.subplots(figsize=(2.0 * len(stages) + 1.6, 3.8))
    _auroc_axes(axes, stages)
    width = 0.8 / len(arms)
    for place, stage in enumerate(stages):
        for n, arm in enumerate(arms):
            rows = table[(table["stage"] == stage) & (table["arm"] == arm)]
            if len(rows):
                middle = place + (n - (len(arms) - 1) / 2) * width
                _aurocs(axes, middle, rows, "auroc_stream", width)
    axes.set_ylabel("AUROC, foreground patches")
    axes.set_title(f"Are the tokens' norms large on the structure?\n{marks.size_text(table)}")
    handles = [Line2D([], [], color=colour_of(arm), linewidth=4, label=arm) for arm in arms]
    marks.legend_right(figure, [*handles, *_auroc_handles(axes)])
    return figure


def _require_aurocs(table: DataFrame) -> None:
    if table.empty:
        raise RunError("no case has foreground and background patches, so that there is no AUROC")


def _auroc_axes(axes: Axes, names: Sequence[str]) -> None:
    """Axes from 0 to 1 with the line of chance, and a place along x for each name."""
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1))
    axes.grid(axis="x", visible=False)


def _aurocs(axes: Axes, place: float, rows: DataFrame, measure: str, width: float = 1) -> None:
    """One arm's subjects, averaged over cases and seeds, and their mean."""
    by_seed = rows.groupby(["subject", "seed"])[measure].mean()
    interval = marks.mean_and_interval(rows, measure)
    colour = colour_of(rows["arm"].iloc[0])
    marks.subjects_and_mean(axes, place, by_seed.groupby("subject").mean(), interval, colour, width)


def _auroc_handles(axes: Axes) -> list:
    dot = marks.legend_dot("a subject", alpha=0.5, markersize=4)
    mean = marks.legend_dot("mean, 95 %", linestyle="-", linewidth=2)
    return [*axes.get_legend_handles_labels()[0], dot, mean]
