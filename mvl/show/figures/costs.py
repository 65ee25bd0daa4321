"""Figures of a model's weights: how many, where they are, and what Dice they come with."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from mvl.show.figures import marks
from mvl.show.figures.comparisons import compared
from mvl.show.figures.style import BLACK, BLUE, COLUMN, GREY, PAGE, SKY, colour_of, drawn


def _millions(value, _=None):
    return f"{value / 1e6:g} M"


@drawn
def parameters(counts: DataFrame) -> Figure:
    """Trained against frozen weights, by part of the model.

    `counts` has a part as index and columns trained and frozen.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 0.2 * len(counts) + 0.8))
    places = np.arange(len(counts))
    axes.barh(places, counts["trained"], color=BLUE, label="trained")
    axes.barh(places, counts["frozen"], left=counts["trained"], color=SKY, label="frozen")
    for place, total in enumerate(counts["trained"] + counts["frozen"]):
        axes.text(total, place, f" {total:,}", va="center")
    axes.set_yticks(places, counts.index)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(_millions)
    axes.set(title="Where the parameters are", xlabel="parameters")
    axes.legend(loc="best")
    return figure


@drawn
def size_against_dice(cases: DataFrame, runs: DataFrame) -> Figure:
    """Weights, and the paired difference in Dice from the first arm: a row per arm, by size.

    A dot is at all weights, a ring at the trained ones, where some are frozen. `cases` are rows of
    one task and structure and may be of any suites: an arm's name means one experiment in all of
    them. `runs` has one row per run: arm, parameters, trained_parameters.
    """
    weights = runs.groupby("arm")[["parameters", "trained_parameters"]].first()
    rows = sorted(compared(cases), key=lambda row: tuple(weights.loc[row[0]]))
    figure, (sizes, gains) = plt.subplots(
        1, 2, sharey=True, figsize=(PAGE, 0.145 * len(rows) + 1.3), width_ratios=(1, 1.4)
    )
    gains.axvline(0, color=BLACK, linewidth=0.6)
    for place, (arm, base, row) in enumerate(rows):
        every, trained = weights.loc[arm]
        colour = colour_of(arm)
        if trained < every:
            sizes.plot([trained, every], [place, place], color=colour, linestyle=":")
            sizes.plot(trained, place, "o", color=colour, markerfacecolor="white", zorder=3)
        sizes.plot(every, place, "o", color=colour)
        if row is not None:
            differences = marks.by_subject_and_seed(cases, arm, base)
            marks.difference_row(gains, place, differences, row, colour)
    marks.name_rows(sizes, [marks.with_mean(cases, arm) for arm, *_ in rows])
    gains.grid(axis="y", visible=False)
    gains.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    sizes.set_xscale("log")
    sizes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    sizes.xaxis.set_major_formatter(_millions)
    sizes.xaxis.set_minor_locator(NullLocator())
    sizes.set_xlabel("weights, log scale")
    first = cases["arm"].iloc[0]
    gains.set_xlabel(f"difference in Dice from {marks.with_mean(cases, first)}")
    what = "Weights and Dice (mean after each name), by size" + marks.of_common_seeds(cases)
    marks.headline(figure, what, cases)
    whole = marks.legend_dot("all weights")
    ring = marks.legend_dot("trained ones", GREY, markerfacecolor="white")
    marks.legend_below(figure, [whole, ring, *marks.legend_of_differences()], 4)
    return figure
