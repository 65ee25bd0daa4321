"""Figures of a model's weights: how many, where they are, and what Dice they come with.

`cases` are rows of one task and structure, as `mvl.study.statistics` takes them; `runs` has one row
per run: arm, parameters, trained_parameters.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from pandas import DataFrame
from scipy.optimize import isotonic_regression

from mvl.show.figures import marks
from mvl.show.figures.style import BLUE, SKY, colour_of, drawn


@drawn
def parameters(counts: DataFrame) -> Figure:
    """Trained against frozen weights, by part of the model.

    `counts` has a part as index and columns trained and frozen.
    """
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(counts) + 1.2))
    places = np.arange(len(counts))
    axes.barh(places, counts["trained"], color=BLUE, label="trained")
    axes.barh(places, counts["frozen"], left=counts["trained"], color=SKY, label="frozen")
    for place, total in enumerate(counts["trained"] + counts["frozen"]):
        axes.text(total, place, f" {total:,}", va="center", fontsize=9)
    axes.set_yticks(places, counts.index)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.set(title="Where the parameters are", xlabel="parameters")
    axes.legend(loc="best")
    return figure


@drawn
def size_against_dice(cases: DataFrame, runs: DataFrame) -> Figure:
    """Each arm's mean Dice with its 95 % interval against its number of weights.

    A dot is at all weights, a ring at the trained ones, where some are frozen. Intervals are those
    of `arm_means`. `cases` may be of any suites: an arm's name means one experiment in all of them.
    """
    figure, axes = plt.subplots(figsize=(8, 4.4))
    axes.set_xscale("log")
    for arm, rows in runs[runs["arm"].isin(cases["arm"])].groupby("arm"):
        weights, trained = rows[["parameters", "trained_parameters"]].iloc[0]
        if trained < weights:
            mean = cases[cases["arm"] == arm].groupby(["seed", "subject"])["dice"].mean().mean()
            colour = colour_of(arm)
            axes.plot([trained, weights], [mean, mean], color=colour, linewidth=1.2, linestyle=":")
            axes.plot(trained, mean, "o", color=colour, markerfacecolor="white", zorder=3)
    _against_weights(axes, cases, runs, "parameters")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("weights (ring: trained weights only)")
    axes.set_title(f"Size against Dice: {marks.size_text(cases)}")
    return figure


@drawn
def rank_tradeoff(cases: DataFrame, runs: DataFrame) -> Figure:
    """Mean Dice with its 95 % interval against the number of trained weights.

    The arms are those with and without low-rank adapters.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    _against_weights(axes, cases, runs, "trained_parameters")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:,.0f} k")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("trained weights")
    axes.set_title(f"Adaptation of the block: {marks.size_text(cases)}")
    return figure


def _against_weights(axes: Axes, cases: DataFrame, runs: DataFrame, column: str) -> None:
    """Draw arms at their weights and Dice, with their names in the right margin."""
    points = []
    for arm in dict.fromkeys(cases["arm"]):
        low, mean, high = marks.mean_and_interval(cases[cases["arm"] == arm], "dice")
        x = runs.loc[runs["arm"] == arm, column].iloc[0]
        dot = {"linewidth": 1.6, "markersize": 7, "zorder": 3}
        marks.dot_and_interval(axes, x, (low, mean, high), colour_of(arm), **dot)
        points.append((mean, x, arm))
    axes.set_ylabel("Dice")
    axes.margins(x=0.06)
    axes.set_xlim(axes.get_xlim())
    # Names are at heights that keep them apart; a line leads there from each dot.
    points.sort()
    heights = _spread([mean for mean, *_ in points], 0.05 * np.ptp(axes.get_ylim()))
    line = {"color": "#C8C8C8", "linewidth": 0.7, "zorder": 1}
    margin = {"transform": axes.get_yaxis_transform()}
    for (mean, x, arm), height in zip(points, heights, strict=True):
        axes.plot([x, axes.get_xlim()[1]], [mean, mean], **line)
        axes.plot([1, 1.03], [mean, height], clip_on=False, **line, **margin)
        axes.text(1.04, height, arm, fontsize=9, va="center_baseline", **margin)


def _spread(values: list[float], gap: float) -> np.ndarray:
    """Ascending values, moved as little as possible (by least squares) to be `gap` apart."""
    steps = gap * np.arange(len(values))
    return isotonic_regression(np.asarray(values) - steps).x + steps
