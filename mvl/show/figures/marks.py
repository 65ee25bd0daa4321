"""Marks, axes and words that several charts have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from mvl.show.figures.style import GREY
from mvl.study.statistics import contrast

Interval = tuple[float, float, float]  # low, middle, high


def mean_and_interval(rows: DataFrame, column: str) -> Interval:
    """One arm's mean of a column with its 95 % interval, subjects and seeds resampled."""
    # `contrast` knows the metrics of `METRICS` alone: the column is lent the name of one that,
    # like it, has no unit. Nothing but the interval of the difference is taken from the result.
    rows = rows.assign(dice=rows[column])
    both = pd.concat([rows, rows.assign(arm="zero", dice=0.0)])
    return interval_of(contrast(both, rows["arm"].iloc[0], "zero"))


def interval_of(row) -> Interval:
    """The difference of a row of `contrast` or of `contrasts_table` with its 95 % interval."""
    return row["ci_low"], row["difference"], row["ci_high"]


def dot_and_interval(
    axes: Axes, place: float, interval: Interval, colour: str, lying: bool = False, **dot
) -> None:
    """Draw an interval along y, or lying along x, with a dot; `linewidth` is of the interval."""
    low, middle, high = interval
    line, point = ([place, place], [low, high]), (place, middle)
    if lying:
        line, point = line[::-1], point[::-1]
    axes.plot(*line, color=colour, linewidth=dot.pop("linewidth", 2))
    axes.plot(*point, "o", color=colour, **dot)


def subjects_and_mean(
    axes: Axes, place: float, values: Series, interval: Interval, colour: str, width: float = 1
) -> None:
    """One dot per subject, to the right of them their mean with its interval."""
    # In order of size from left to right, so that no dot hides another.
    across = np.linspace(-0.3, 0.1, len(values)) if len(values) > 1 else np.array([-0.1])
    look = {"s": 14, "alpha": 0.5, "color": colour, "linewidth": 0}
    axes.scatter(place + width * across, values.sort_values(), **look)
    dot_and_interval(axes, place + width * 0.25, interval, colour)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart, from the top down."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def legend_right(figure: Figure, handles: Iterable, **options) -> None:
    """A legend to the right of all axes."""
    figure.legend(handles=list(handles), loc="outside right center", **options)


def legend_dot(label: str, colour: str = GREY, **look) -> Line2D:
    """A legend's dot; without a line unless one is asked for."""
    return Line2D([], [], **{"marker": "o", "linestyle": ""} | look, color=colour, label=label)


def number_of(count: int, name: str) -> str:
    """ "1 subject", "2 subjects"."""
    return f"{count} {name}{'s' * (count != 1)}"


def seeds_text(counts: Iterable[int]) -> str:
    """ "2 seeds", or "1 to 2 seeds" where some arms have fewer than others."""
    fewest, most = int(min(counts)), int(max(counts))
    return f"{fewest} to " * (fewest < most) + number_of(most, "seed")


def size_text(cases: DataFrame) -> str:
    """How many test subjects and seeds rows of several arms are from."""
    seeds = cases.groupby("arm")["seed"].nunique()
    return f"{number_of(cases['subject'].nunique(), 'test subject')}, {seeds_text(seeds)}"
