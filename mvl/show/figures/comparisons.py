"""Figures that compare arms: subject by subject, metric by metric, task by task, step by step.

`cases` are rows of one suite, task and structure, as `mvl.study.statistics` takes them; `metric` is
a name of `mvl.experiment.metrics.METRICS`. Every interval is that of a paired difference, 95 %, by
`mvl.study.statistics.contrast`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from mvl.data.tasks import TASKS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.show.figures import marks, style
from mvl.show.figures.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    colour_of,
    drawn,
    name_of_arm,
    without_share,
)
from mvl.study.statistics import BOUND, contrast
from mvl.study.summary import by_part

#: Kind of an effect in `protocol_effects` -> its colour, and what a legend says of it.
_EFFECTS = {
    "training": (BLUE, "trained with it alone"),
    "together": (BLACK, "trained with all of them"),
    "measurement": (ORANGE, "read so, after those above"),
    "instead": (PURPLE, "validation reported instead"),
}


def subject_differences(cases: DataFrame, arm_a: str, arm_b: str, metric: str = "dice") -> Series:
    """Each subject's difference a minus b, over its cases and the seeds that both arms have.

    Subject -> difference, ascending; the mean is that of `mvl.study.statistics.contrast`.
    """
    by_seed = marks.by_subject_and_seed(cases, arm_a, arm_b, metric)
    return by_seed.groupby("subject").mean().sort_values()


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
    figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    if not measure.unit:
        for bound, label in ((-BOUND, None), (BOUND, f"negligible within ±{BOUND:g}")):
            axes.axhline(bound, color=GREY, linewidth=0.6, linestyle=":", label=label)
    interval = {"color": GREY, "alpha": 0.25, "linewidth": 0, "label": "95 % interval, paired"}
    axes.axhspan(row["ci_low"], row["ci_high"], **interval)
    axes.axhline(row["difference"], color=GREY, label="mean difference")
    axes.vlines(places, 0, values, color="#BFBFBF", linewidth=0.6)
    colours = [colour_of(arm_a if gain >= 0 else arm_b) for gain in gains]
    axes.scatter(places, values, s=10, zorder=3, linewidth=0, color=colours)
    seeds = marks.by_subject_and_seed(cases, arm_a, arm_b, metric).groupby("seed").mean()
    axes.plot([len(values) + 1] * len(seeds), seeds, "_", color=BLACK, markersize=4)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("test subjects, by difference; on the right, seeds")
    axes.set_ylabel(f"difference in {measure.heading}")
    marks.headline(figure, f"{name_of_arm(arm_a)} minus {name_of_arm(arm_b)}", cases)
    dots = marks.legend_of_pair(arm_a, arm_b)
    seed = marks.legend_dot("one seed", BLACK, marker="_")
    marks.legend_below(figure, [*dots, seed, *axes.get_legend_handles_labels()[0]], 2)
    return figure


def baseline_of(arm: str, arms: Sequence[str]) -> str:
    """The arm that another is compared with: the first that saw as many of the subjects."""
    share = without_share(arm)[1]
    return next(other for other in arms if without_share(other)[1] == share)


def compared(cases: DataFrame, metric: str = "dice") -> list[tuple[str, str, dict | None]]:
    """(arm, its baseline, their `contrast`) of every arm but the baselines.

    The contrast is None where the two have no seed or not the same cases in common.
    """
    arms = list(dict.fromkeys(cases["arm"]))
    pairs = [(arm, base) for arm in arms if (base := baseline_of(arm, arms)) != arm]
    rows = []
    for arm, base in pairs:
        try:
            rows.append((arm, base, contrast(cases, arm, base, metric)))
        except RunError:
            rows.append((arm, base, None))
    return rows


@drawn
def arm_differences(cases: DataFrame, metric: str = "dice") -> Figure:
    """Each arm's paired difference from the first arm with its 95 % interval, a dot per seed.

    An arm that saw a share of the subjects is compared with the first that saw the same share.
    The number after a name is the arm's own mean.
    """
    rows, first = compared(cases, metric), cases["arm"].iloc[0]
    figure, axes = plt.subplots(figsize=(COLUMN, 0.17 * len(rows) + 1.4))
    axes.axvline(0, color=BLACK, linewidth=0.6)
    handles = marks.legend_of_differences()
    if not METRICS[metric].unit:
        handles.append(marks.negligible_band(axes))
    for place, (arm, base, row) in enumerate(rows):
        if row is None:
            text = {"transform": axes.get_yaxis_transform(), "color": GREY, "va": "center"}
            axes.text(0.02, place, "no seed in common", **text)
            continue
        differences = marks.by_subject_and_seed(cases, arm, base, metric)
        marks.difference_row(axes, place, differences, row, colour_of(arm))
    marks.name_rows(axes, [marks.with_mean(cases, arm, metric) for arm, *_ in rows])
    bases = {base for _, base, _ in rows}
    against = marks.with_mean(cases, first, metric)
    if len(bases) > 1:
        against = f"{name_of_arm(without_share(first)[0])} with as many subjects"
    title = METRICS[metric].title
    axes.set_xlabel(f"difference in {METRICS[metric].heading}")
    what = f"Difference in {title} from {against}\nAfter each name: its mean {title}"
    marks.headline(figure, what, cases)
    marks.legend_below(figure, handles, 2)
    return figure


@drawn
def part_effects(cases: DataFrame, metric: str = "dice") -> Figure:
    """What each of the paper's parts earns, averaged over the combinations of the other two.

    A dot is a subject's difference, part on minus part off; to its right is the mean with its
    95 % interval. `cases` are of the suite `fusion`, all eight arms with a seed in common.
    """
    parts = by_part(cases, metric)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.3))
    axes.axhline(0, color=BLACK, linewidth=0.6)
    for place, (sides, colour) in enumerate(
        zip(parts.values(), (BLUE, ORANGE, GREEN), strict=True)
    ):
        values = marks.by_subject_and_seed(sides, "on", "off", metric)
        interval = marks.interval_of(contrast(sides, "on", "off", metric))
        marks.subjects_and_mean(axes, place, values, interval, colour)
    axes.set_xticks(range(3), parts)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(f"{METRICS[metric].title}, with minus without")
    both = cases[cases["seed"].isin(sides["seed"])]
    marks.headline(figure, "Each part, averaged over the other two", both)
    dot = marks.legend_dot("one subject", alpha=0.5, markersize=2)
    marks.legend_below(figure, [dot, *marks.legend_of_differences("tick")], 2)
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
        2, 1, figsize=(COLUMN, 0.17 * sum(ratio) + 1.85), height_ratios=[n + 0.6 for n in ratio]
    )
    for axis, rows, unit in ((axes[0], pure, "no unit"), (axes[1], in_mm, "mm")):
        axis.axvline(0, color=BLACK, linewidth=0.6)
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
    band = marks.negligible_band(axes[0])
    axes[1].invert_xaxis()  # a smaller distance is better
    size = f"{marks.number_of(first['n_subjects'], 'test subject')}, "
    figure.suptitle(
        f"{name_of_arm(arm_a)} minus {name_of_arm(arm_b)}\n"
        f"{marks.about(contrasts)}\n{size}{marks.seeds_text([first['n_seeds']])}\n"
        f"mean and paired 95 % interval; better to the right",
        x=0.01,
        ha="left",
    )
    marks.legend_below(figure, [*marks.legend_of_pair(arm_a, arm_b), band], 2)
    return figure


@drawn
def metric_by_task(
    cases: DataFrame,
    paper: DataFrame | None = None,
    metrics: Sequence[str] = ("dice", "nsd", "hd95_mm"),
) -> Figure:
    """Each arm's mean and a small dot per seed: one row per task, one panel per metric.

    `cases` are rows of one suite and structure, of several tasks; `paper` has columns arm, task,
    metric and value, drawn as black diamonds. Whether two arms differ is not shown here.
    """
    paper = DataFrame(columns=["arm", "task", "metric"]) if paper is None else paper
    present = set(cases["task"]) | set(paper["task"])
    tasks = [*(task for task in TASKS if task in present), *sorted(present - set(TASKS))]
    arms = list(dict.fromkeys(cases["arm"]))
    paper = paper[paper["arm"].isin(arms)]
    height = {  # of an arm within a task's row
        (task, arm): place + 0.5 * (n + 0.5) / len(arms) - 0.25
        for place, task in enumerate(tasks)
        for n, arm in enumerate(arms)
    }
    figure, axes = plt.subplots(
        1, len(metrics), squeeze=False, sharey=True, figsize=(PAGE, 0.34 * len(tasks) + 1.2)
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        means = cases.groupby(["task", "arm", "seed", "subject"])[metric].mean()
        by_seed = means.groupby(["task", "arm", "seed"]).mean()
        for (task, arm), seeds in by_seed.groupby(["task", "arm"]):
            y, colour = height[task, arm], colour_of(arm)
            axis.plot(seeds.mean(), y, "o", color=colour, markersize=4)
            axis.scatter(seeds, [y - 0.12] * len(seeds), s=3, linewidth=0, color=colour)
        for row in paper[paper["metric"] == metric].itertuples():
            look = {"color": BLACK, "markerfacecolor": "white", "zorder": 3}
            axis.plot(row.value, height[row.task, row.arm], "D", **look)
        axis.set_xlabel(METRICS[metric].heading)
        axis.grid(axis="y", visible=False)
    sizes = cases.groupby("task")["subject"].nunique().to_dict()
    labels = [
        (task.partition("_")[2] or task)
        + (f", {marks.number_of(sizes[task], 'subject')}" if task in sizes else "")
        for task in tasks
    ]
    axes[0, 0].set_yticks(range(len(tasks)), labels)
    axes[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    seeds = marks.seeds_text(cases.groupby("arm")["seed"].nunique())
    what = f"Mean over test subjects, {seeds} (small dots)\n{marks.about(cases)}"
    figure.suptitle(what, x=0.01, ha="left")
    handles = [marks.legend_dot(name_of_arm(arm), colour_of(arm)) for arm in arms]
    if len(paper):
        look = {"marker": "D", "markerfacecolor": "white"}
        text = "the paper's model in the same row, one case"
        handles.append(marks.legend_dot(text, BLACK, **look))
    marks.legend_below(figure, handles, 4)
    return figure


@drawn
def protocol_effects(effects: DataFrame, metric: str, about: str, synthetic: bool) -> Figure:
    """What each step of a protocol changes of a reported number, from one zero line.

    `effects` has one row per step: step (its name), difference, low, high (its 95 % interval) and
    kind, of `_EFFECTS`. `about` names data set, subjects and seeds for the title.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 0.17 * len(effects) + 1.5))
    axes.axvline(0, color=BLACK, linewidth=0.6)
    for place, row in enumerate(effects.itertuples()):
        colour = _EFFECTS[row.kind][0]
        interval = row.low, row.difference, row.high
        marks.dot_and_interval(axes, place, interval, colour, lying=True)
    # Adding 0 makes a rounded -0.0 positive.
    changes = [f"{round(x, 3) + 0:+.3f}".replace("-", "−") for x in effects["difference"]]
    marks.name_rows(axes, [*map("  ".join, zip(effects["step"], changes, strict=True))])
    axes.set_xlabel(f"change of {METRICS[metric].title}")
    what = f"What the protocol changes of the reported {METRICS[metric].title}, 95 % interval"
    figure.suptitle(f"{what}\n{about}", x=0.01, ha="left")
    kinds = set(effects["kind"])
    handles = [
        Line2D([], [], marker="o", color=colour, label=label)
        for kind, (colour, label) in _EFFECTS.items()
        if kind in kinds
    ]
    marks.legend_below(figure, handles, 2)
    style.note_synthetic(figure, synthetic)
    return figure
