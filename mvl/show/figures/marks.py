"""Marks, axes and words that several charts have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series

from mvl.show.figures.style import GREY, colour_of, name_of_arm
from mvl.show.sentences import count, span
from mvl.study.statistics import BOUND

Interval = tuple[float, float, float]  # low, middle, high


def interval_of(row) -> Interval:
    """The difference of a row of `contrast` or of `contrasts_table` with its 95 % interval."""
    return row["ci_low"], row["difference"], row["ci_high"]


def by_subject_and_seed(cases: DataFrame, arm_a: str, arm_b: str) -> Series:
    """Differences in Dice, a minus b, by subject and seed, of the seeds that both arms have."""
    means = cases.groupby(["subject", "seed", "arm"])["dice"].mean().unstack()
    return (means[arm_a] - means[arm_b]).dropna()


def difference_row(axes: Axes, place: float, differences: Series, row, colour: str) -> None:
    """Draw a paired difference lying on a row: its mean, interval, and a small dot per seed."""
    dot_and_interval(axes, place, interval_of(row), colour, lying=True)
    seeds = differences.groupby("seed").mean()
    axes.scatter(seeds, [place - 0.3] * len(seeds), s=3, linewidth=0, color=colour)


def dot_and_interval(
    axes: Axes, place: float, interval: Interval, colour: str, lying: bool = False
) -> None:
    """Draw an interval along y, or lying along x, with a dot."""
    low, middle, high = interval
    line, point = ([place, place], [low, high]), (place, middle)
    if lying:
        line, point = line[::-1], point[::-1]
    axes.plot(*line, color=colour)
    axes.plot(*point, "o", color=colour)


def subjects_and_mean(
    axes: Axes, place: float, values: Series, interval: Interval, colour: str, width: float = 1
) -> None:
    """One dot per subject, to the right of them their mean with its interval.

    `values` are by subject and seed; a small tick is a seed's mean.
    """
    # In order of size from left to right, so that no dot hides another.
    subjects, seeds = (values.groupby(key).mean() for key in ("subject", "seed"))
    across = np.linspace(-0.3, 0.1, len(subjects)) if len(subjects) > 1 else np.array([-0.1])
    look = {"s": 4, "alpha": 0.5, "color": colour, "linewidth": 0}
    axes.scatter(place + width * across, subjects.sort_values(), **look)
    dot_and_interval(axes, place + width * 0.25, interval, colour)
    axes.plot([place + width * 0.38] * len(seeds), seeds, "_", color=colour, markersize=3)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart, from the top down."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    # With more ticks their numbers would touch.
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)))


def negligible_band(axes: Axes) -> Patch:
    """Shade the differences within ±`BOUND` along x; returns what a legend says of it."""
    label = f"negligible within ±{BOUND:g}"
    return axes.axvspan(-BOUND, BOUND, color=GREY, alpha=0.12, linewidth=0, label=label)


def legend_below(figure: Figure, handles: Iterable[Artist], columns: int) -> None:
    """A legend below all axes."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def legend_dot(label: str, colour: str = GREY, **look) -> Line2D:
    """A legend's dot; without a line unless one is asked for."""
    return Line2D([], [], **{"marker": "o", "linestyle": ""} | look, color=colour, label=label)


def legend_of_differences(seeds: str = "dot") -> list[Line2D]:
    """What the marks of a paired difference are; of one seed a small dot, or a tick."""
    look = {"marker": "_"} if seeds == "tick" else {"markersize": 1.8}
    return [
        legend_dot("mean and paired 95 % interval", linestyle="-"),
        legend_dot("one seed", **look),
    ]


def legend_of_pair(*arms: str) -> list[Line2D]:
    """What the colour of a difference says: which of two arms is better."""
    return [legend_dot(f"better: {name_of_arm(arm)}", colour_of(arm)) for arm in arms]


def headline(figure: Figure, what: str, cases: DataFrame, size: bool = True) -> None:
    """Head a figure: what it shows, then data set, language block, subjects and seeds."""
    text = f"{what}\n{about(cases)}"
    if size:
        seeds = span(cases.groupby("arm")["seed"].nunique(), "seed")
        text += f"\n{count(cases['subject'].nunique(), 'test subject')}, {seeds}"
    figure.suptitle(text, x=0.01, ha="left")


def about(cases: DataFrame) -> str:
    """The data set and the language block of a table of cases, such as "Task02 Heart, ..."."""
    tasks = sorted(cases["task"].unique())
    text = ", ".join(tasks).replace("_", " ") if len(tasks) < 3 else f"{len(tasks)} data sets"
    if "structure" in cases and cases["structure"].nunique() == 1:
        text += f", {cases['structure'].iloc[0]}"
    blocks = {str(block) for block in cases["block"].dropna()} - {"", "none"}
    names = [block.partition(":")[2] or block for block in sorted(blocks)]
    return text + (f"; block: {', '.join(names)}" if names else "; no language block")


def of_common_seeds(cases: DataFrame) -> str:
    """A line of a headline, where arms have different seeds: which of them a difference uses."""
    seeds = {tuple(sorted(group)) for _, group in cases.groupby("arm")["seed"].unique().items()}
    return "\nDifferences: of the seeds that both arms have" * (len(seeds) > 1)


def with_mean(cases: DataFrame, arm: str) -> str:
    """An arm's name with its mean Dice over subjects and seeds."""
    rows = cases[cases["arm"] == arm].groupby(["seed", "subject"])["dice"].mean()
    return f"{name_of_arm(arm)} ({rows.groupby('seed').mean().mean():.3f})"
