"""Figures that compare arms: subject by subject, metric by metric, task by task, step by step.

`cases` are rows of one suite, task and structure, as `mvl.study.statistics` takes them; `metric` is
a name of `mvl.experiment.metrics.METRICS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from mvl.data.tasks import TASKS
from mvl.experiment.metrics import METRICS
from mvl.show.figures import marks, style
from mvl.show.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, colour_of, drawn
from mvl.study.statistics import BOUND, contrast
from mvl.study.summary import by_part

#: Kind of a step in `waterfall` -> its colour, and what a legend says of it.
_STEPS = {
    "training": (BLUE, "trained with it alone, stacked"),
    "together": (BLACK, "trained with all of them"),
    "measurement": (ORANGE, "read with it and with those above"),
    "spread": (ORANGE, "read with it and with those above"),
    "instead": (PURPLE, "reported instead of the test cases"),
}


def subject_differences(cases: DataFrame, arm_a: str, arm_b: str, metric: str = "dice") -> Series:
    """Each subject's difference a minus b, over its cases and the seeds that both arms have.

    Subject -> difference, ascending; the mean is that of `mvl.study.statistics.contrast`.
    """
    means = cases.groupby(["subject", "seed", "arm"])[metric].mean().unstack()
    difference = (means[arm_a] - means[arm_b]).dropna()
    return difference.groupby("subject").mean().sort_values()


def best_median_worst(cases: DataFrame, metric: str = "dice") -> dict[str, Series]:
    """The rows of three cases for a gallery: best, median and worst of one run and structure."""
    smallest_first = not METRICS[metric].larger_is_better
    ordered = cases.sort_values([metric, "case"], ascending=[smallest_first, True])
    places = {"best": 0, "median": len(ordered) // 2, "worst": -1}
    return {name: ordered.iloc[place] for name, place in places.items()}


@drawn
def paired_differences(cases: DataFrame, arm_a: str, arm_b: str, metric: str = "dice") -> Figure:
    """One dot per subject, the zero line, and the mean difference with its 95 % interval.

    Dots above zero are subjects with a larger value under `arm_a`. Raises as `contrast`.
    """
    row = contrast(cases, arm_a, arm_b, metric)
    values = subject_differences(cases, arm_a, arm_b, metric)
    measure = METRICS[metric]
    gains = values if measure.larger_is_better else -values
    figure, axes = plt.subplots(figsize=(8, 3.8))
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=BLACK, linewidth=1)
    if not measure.unit:
        for bound, label in ((-BOUND, None), (BOUND, f"negligible below ±{BOUND:g}")):
            axes.axhline(bound, color=GREY, linewidth=1, linestyle=":", label=label)
    interval = {"color": GREY, "alpha": 0.25, "linewidth": 0, "label": "95 % interval"}
    axes.axhspan(row["ci_low"], row["ci_high"], **interval)
    axes.axhline(row["difference"], color=GREY, linewidth=1.8, label="mean difference")
    axes.vlines(places, 0, values, color="#BFBFBF", linewidth=1)
    colours = [colour_of(arm_a if gain >= 0 else arm_b) for gain in gains]
    axes.scatter(places, values, s=34, zorder=3, color=colours)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(
        title=f"{measure.title}, {arm_a} minus {arm_b}, subject by subject",
        xlabel=f"{len(values)} test subjects, by difference; {marks.seeds_text([row['n_seeds']])}",
        ylabel=f"difference in {measure.heading}",
    )
    dots = [marks.legend_dot(f"{arm} is better", colour_of(arm)) for arm in (arm_a, arm_b)]
    marks.legend_right(figure, [*dots, *axes.get_legend_handles_labels()[0]])
    return figure


@drawn
def arm_means(cases: DataFrame, metric: str = "dice") -> Figure:
    """Each arm's mean with its 95 % interval, and a small dot per seed; one row per arm.

    The interval is of the arm itself, subjects and seeds resampled. Whether two arms differ is
    shown by their paired difference, whose interval is narrower.
    """
    arms = list(dict.fromkeys(cases["arm"]))
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(arms) + 1.3))
    for place, arm in enumerate(arms):
        rows, colour = cases[cases["arm"] == arm], colour_of(arm)
        interval = marks.mean_and_interval(rows, metric)
        marks.dot_and_interval(axes, place, interval, colour, lying=True, markersize=8)
        per_seed = rows.groupby(["seed", "subject"])[metric].mean().groupby("seed").mean()
        if len(per_seed) > 1:
            heights = [place + 0.25] * len(per_seed)
            axes.scatter(per_seed, heights, s=12, linewidth=0, color=colour)
    marks.name_rows(axes, arms)
    title = f"{METRICS[metric].title}, mean and 95 % interval: {marks.size_text(cases)}"
    axes.set(title=title, xlabel=METRICS[metric].heading)
    return figure


@drawn
def part_effects(cases: DataFrame, metric: str = "dice") -> Figure:
    """What each of the paper's parts earns, averaged over the combinations of the other two.

    A dot is a subject's difference, part on minus part off; to its right is the mean with its
    95 % interval, subjects and seeds resampled. `cases` are of the suite `fusion`, all eight arms
    with a seed in common.
    """
    parts = by_part(cases, metric)
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.axhline(0, color=BLACK, linewidth=1)
    for place, (sides, colour) in enumerate(
        zip(parts.values(), (BLUE, ORANGE, GREEN), strict=True)
    ):
        row = contrast(sides, "on", "off", metric)
        values = subject_differences(sides, "on", "off", metric)
        interval = row["ci_low"], row["difference"], row["ci_high"]
        marks.subjects_and_mean(axes, place, values, interval, colour)
    axes.set_xticks(range(3), parts)
    axes.grid(axis="x", visible=False)
    axes.set_title(f"A dot is a subject; mean and 95 % interval: {marks.size_text(sides)}")
    axes.set_ylabel(f"{METRICS[metric].title}, on - off")
    return figure


@drawn
def metric_differences(contrasts: DataFrame) -> Figure:
    """The difference in every metric with its 95 % interval; to the right is better for arm_a.

    `contrasts` are rows of `mvl.study.statistics.contrasts_table` of one pair, task and structure,
    one row per metric.
    """
    pure = contrasts[[METRICS[m].unit == "" for m in contrasts["metric"]]]
    in_mm = contrasts.drop(pure.index)
    first = contrasts.iloc[0]
    arm_a, arm_b = first["arm_a"], first["arm_b"]
    ratio = [max(1, len(pure)), max(1, len(in_mm))]
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 0.36 * sum(ratio) + 2.0), height_ratios=[n + 0.6 for n in ratio]
    )
    for axis, rows, unit in ((axes[0], pure, "no unit"), (axes[1], in_mm, "mm")):
        axis.axvline(0, color=BLACK, linewidth=1)
        for place, row in enumerate(rows.itertuples()):
            gain = row.difference if METRICS[row.metric].larger_is_better else -row.difference
            colour = colour_of(arm_a if gain >= 0 else arm_b)
            interval = row.ci_low, row.difference, row.ci_high
            marks.dot_and_interval(axis, place, interval, colour, lying=True)
        marks.name_rows(axis, [METRICS[m].title for m in rows["metric"]])
        # Symmetric, so that zero is in the middle of both panels.
        reach = np.nanmax(np.abs(rows[["difference", "ci_low", "ci_high"]].to_numpy()), initial=0)
        axis.set_xlim(-1.15 * reach or -1, 1.15 * reach or 1)
        axis.set_xlabel(f"difference ({unit})")
    axes[0].axvspan(-BOUND, BOUND, color=GREY, alpha=0.12, linewidth=0)
    axes[1].invert_xaxis()  # a smaller distance is better
    axes[0].set_title(
        f"{arm_a} minus {arm_b}: left of zero {arm_b} is better, right of it {arm_a}\n"
        f"(shaded: negligible, below ±{BOUND:g}; {first['n_subjects']} test subjects, "
        f"{marks.seeds_text([first['n_seeds']])})"
    )
    return figure


@drawn
def metric_by_task(
    summary: DataFrame,
    paper: DataFrame | None = None,
    metrics: Sequence[str] = ("dice", "nsd", "hd95_mm"),
) -> Figure:
    """Each arm's mean and standard deviation over subjects: one row per task, one panel per metric.

    `summary` are rows of one suite and structure from `study.statistics.summary_table`; `paper` has
    columns arm, task, metric and value, drawn as diamonds.
    """
    paper = DataFrame(columns=["arm", "task", "metric"]) if paper is None else paper
    present = set(summary["task"]) | set(paper["task"])
    tasks = [*(task for task in TASKS if task in present), *sorted(present - set(TASKS))]
    arms = list(dict.fromkeys(summary["arm"]))
    height = {  # of an arm within a task's row
        (task, arm): place + 0.4 * (n + 0.5) / len(arms) - 0.2
        for place, task in enumerate(tasks)
        for n, arm in enumerate(arms)
    }
    figure, axes = plt.subplots(
        1, len(metrics), squeeze=False, sharey=True, figsize=(10.5, 0.55 * len(tasks) + 1.3)
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for row in summary[summary["metric"] == metric].itertuples():
            spread = 0 if np.isnan(row.sd_subjects) else row.sd_subjects
            interval = row.mean - spread, row.mean, row.mean + spread
            y, colour = height[row.task, row.arm], colour_of(row.arm)
            marks.dot_and_interval(axis, y, interval, colour, lying=True, linewidth=1.8)
        for row in paper[(paper["metric"] == metric) & paper["arm"].isin(arms)].itertuples():
            look = {"color": colour_of(row.arm), "markerfacecolor": "white", "zorder": 3}
            axis.plot(row.value, height[row.task, row.arm], "D", **look)
        axis.set_xlabel(METRICS[metric].heading)
        axis.grid(axis="y", visible=False)
    sizes = summary.groupby("task")["n_subjects"].max().to_dict()
    labels = [
        (task.partition("_")[2] or task)
        + (f", {marks.number_of(sizes[task], 'subject')}" if task in sizes else "")
        for task in tasks
    ]
    axes[0, 0].set_yticks(range(len(tasks)), labels)
    axes[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    seeds = marks.seeds_text(summary.groupby("arm")["n_seeds"].max())
    figure.suptitle(f"Mean and standard deviation over test subjects, {seeds}", x=0.01, ha="left")
    handles = [marks.legend_dot(arm, colour_of(arm), linestyle="-") for arm in arms]
    if len(paper):
        handles.append(
            marks.legend_dot("paper, one example case", marker="D", markerfacecolor="white")
        )
    marks.legend_right(figure, handles)
    return figure


@drawn
def waterfall(steps: DataFrame, metric: str, size: str, synthetic: bool) -> Figure:
    """A reported number, step by step: each bar leads from what was reported before to what is
    after, with the 95 % interval of the difference.

    `steps` has one row per step: step (its name), estimate, ci_low, ci_high, and kind: "level" is
    where it starts, "training" and "measurement" go on from the step before, "together" starts
    again from the level, "instead" from together; "spread" is a measurement whose interval is that
    of single cases. `size` is the number of subjects and seeds in words, for the title.
    """
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(steps) + 1.5))
    before, starts, names = None, {}, []
    for place, row in enumerate(steps.itertuples()):
        if row.kind == "level":
            axes.axvline(row.estimate, color=GREY, linewidth=1, linestyle=":")
            axes.plot(row.estimate, place, "D", color=BLACK, markersize=7)
            starts["together"] = before = row.estimate
            names.append(f"{row.step}  {row.estimate:.3f}")
            continue
        start, colour = starts.get(row.kind, before), _STEPS[row.kind][0]
        names.append(f"{row.step}  {row.estimate - start:+.3f}")
        axes.barh(place, row.estimate - start, left=start, height=0.62, color=colour, alpha=0.5)
        axes.plot([row.estimate] * 2, [place - 0.31, place + 0.31], color=colour, linewidth=2.5)
        look = {"linestyle": "--" if row.kind == "spread" else "-", "linewidth": 1.3}
        axes.plot([row.ci_low, row.ci_high], [place] * 2, color=BLACK, **look)
        if row.kind not in starts:
            axes.plot([start] * 2, [place - 0.69, place - 0.31], color=GREY, linewidth=1)
        if row.kind == "together":
            starts["instead"] = row.estimate
        before = row.estimate
    marks.name_rows(axes, names)
    axes.use_sticky_edges = False  # bars would end at the frame
    axes.margins(x=0.03)
    title = METRICS[metric].title
    axes.set(title=f"What is reported: {title}, {size}", xlabel=title)
    kinds = set(steps["kind"])
    labels = {label: colour for kind, (colour, label) in _STEPS.items() if kind in kinds}
    bar, line = {"linewidth": 7, "alpha": 0.5}, {"color": BLACK, "linewidth": 1.3}
    handles = [Line2D([], [], color=colour, label=label, **bar) for label, colour in labels.items()]
    handles.append(Line2D([], [], label="95 % interval of a step", **line))
    if "spread" in kinds:
        handles.append(Line2D([], [], linestyle="--", label="95 % of single cases", **line))
    # A note on synthetic data is below the figure, where it would lie on the legend.
    side = "upper" if synthetic else "lower"
    figure.legend(handles=handles, loc=f"outside {side} center", ncols=2)
    style.note_synthetic(figure, synthetic)
    return figure
