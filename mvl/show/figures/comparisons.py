"""Figures that compare arms: subject by subject, metric by metric, task by task, step by step.

`cases` are rows of one suite, task and structure, as `mvl.study.statistics` takes them. Every
interval is that of a paired difference, 95 %, by `mvl.study.statistics.contrast`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
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
from mvl.show.sentences import count, span
from mvl.study.statistics import BOUND, contrast
from mvl.study.summary import by_part

#: Kind of an effect in `protocol_effects` -> its colour, and what a legend says of it.
_EFFECTS = {
    "training": (BLUE, "trained with it"),
    "together": (BLACK, "trained with all of them"),
    "measurement": (ORANGE, "read so, after those above"),
    "instead": (PURPLE, "validation reported instead"),
}


def best_median_worst(cases: DataFrame) -> dict[str, Series]:
    """The rows of the cases with the best, the median and the worst Dice of one run's structure."""
    ordered = cases.sort_values(["dice", "case"], ascending=[False, True])
    places = {"best": 0, "median": len(ordered) // 2, "worst": -1}
    return {name: ordered.iloc[place] for name, place in places.items()}


@drawn
def paired_differences(cases: DataFrame, arm_a: str, arm_b: str) -> Figure:
    """One dot per subject, the zero line, and the mean difference in Dice with its 95 % interval.

    Dots above zero are subjects with a larger Dice under `arm_a`. Raises as `contrast`.
    """
    row = contrast(cases, arm_a, arm_b)
    by_seed = marks.by_subject_and_seed(cases, arm_a, arm_b)
    values = by_seed.groupby("subject").mean().sort_values()
    figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    for bound, label in ((-BOUND, None), (BOUND, f"negligible within ±{BOUND:g}")):
        axes.axhline(bound, color=GREY, linewidth=0.6, linestyle=":", label=label)
    interval = {"color": GREY, "alpha": 0.25, "linewidth": 0, "label": "95 % interval, paired"}
    axes.axhspan(row["ci_low"], row["ci_high"], **interval)
    axes.axhline(row["difference"], color=GREY, label="mean difference")
    axes.vlines(places, 0, values, color="#BFBFBF", linewidth=0.6)
    colours = [colour_of(arm_a if value >= 0 else arm_b) for value in values]
    axes.scatter(places, values, s=10, zorder=3, linewidth=0, color=colours)
    seeds = by_seed.groupby("seed").mean()
    axes.plot([len(values) + 1] * len(seeds), seeds, "_", color=BLACK, markersize=4)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("test subjects, by difference; on the right, seeds")
    axes.set_ylabel("difference in Dice")
    marks.headline(figure, f"{name_of_arm(arm_a)} minus {name_of_arm(arm_b)}", cases)
    dots = marks.legend_of_pair(arm_a, arm_b)
    seed = marks.legend_dot("one seed", BLACK, marker="_")
    marks.legend_below(figure, [*dots, seed, *axes.get_legend_handles_labels()[0]], 2)
    return figure


def compared(cases: DataFrame) -> list[tuple[str, str, dict | None]]:
    """(arm, its baseline, their `contrast` in Dice) of every arm but the baselines.

    The baseline is the first arm that saw as many of the subjects. The contrast is None where the
    two have no seed or not the same cases in common.
    """
    rows, first = [], {}
    for arm in dict.fromkeys(cases["arm"]):
        base = first.setdefault(without_share(arm)[1], arm)
        if base != arm:
            try:
                rows.append((arm, base, contrast(cases, arm, base)))
            except RunError:
                rows.append((arm, base, None))
    return rows


@drawn
def arm_differences(cases: DataFrame) -> Figure:
    """Each arm's paired difference in Dice from the first arm, with its 95 % interval and seeds.

    An arm that saw a share of the subjects is compared with the first that saw the same share.
    The number after a name is the arm's own mean.
    """
    rows, first = compared(cases), cases["arm"].iloc[0]
    figure, axes = plt.subplots(figsize=(COLUMN, 0.17 * len(rows) + 1.4))
    axes.axvline(0, color=BLACK, linewidth=0.6)
    handles = [*marks.legend_of_differences(), marks.negligible_band(axes)]
    for place, (arm, base, row) in enumerate(rows):
        if row is None:
            text = {"transform": axes.get_yaxis_transform(), "color": GREY, "va": "center"}
            axes.text(0.02, place, "no seed in common", **text)
            continue
        differences = marks.by_subject_and_seed(cases, arm, base)
        marks.difference_row(axes, place, differences, row, colour_of(arm))
    marks.name_rows(axes, [marks.with_mean(cases, arm) for arm, *_ in rows])
    against = marks.with_mean(cases, first)
    if len({base for _, base, _ in rows}) > 1:
        against = f"{name_of_arm(without_share(first)[0])} with as many subjects"
    axes.set_xlabel("difference in Dice")
    what = f"Difference in Dice from {against}\nAfter each name: its mean Dice"
    what += marks.of_common_seeds(cases)
    marks.headline(figure, what, cases)
    marks.legend_below(figure, handles, 2)
    return figure


@drawn
def part_effects(cases: DataFrame) -> Figure:
    """What each of the paper's parts adds to Dice, averaged over combinations of the other two.

    A dot is a subject's difference, part on minus part off; to its right is the mean with its
    95 % interval. `cases` are of the suite `fusion`, all eight arms with a seed in common.
    """
    parts = by_part(cases)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.3))
    axes.axhline(0, color=BLACK, linewidth=0.6)
    colours = (BLUE, ORANGE, GREEN)
    for place, (sides, colour) in enumerate(zip(parts.values(), colours, strict=True)):
        values = marks.by_subject_and_seed(sides, "on", "off")
        interval = marks.interval_of(contrast(sides, "on", "off"))
        marks.subjects_and_mean(axes, place, values, interval, colour)
    axes.set_xticks(range(3), parts)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("Dice, with minus without")
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
    ratio = [max(1, len(rows)) for rows in (pure, in_mm)]
    figure, axes = plt.subplots(
        2, 1, figsize=(COLUMN, 0.17 * sum(ratio) + 1.85), height_ratios=[n + 0.6 for n in ratio]
    )
    for axis, rows, unit in zip(axes, (pure, in_mm), ("no unit", "mm"), strict=True):
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
    size = f"{count(first['n_subjects'], 'test subject')}, {count(first['n_seeds'], 'seed')}"
    figure.suptitle(
        f"{name_of_arm(arm_a)} minus {name_of_arm(arm_b)}\n{marks.about(contrasts)}\n{size}\n"
        f"mean and paired 95 % interval; better to the right",
        x=0.01,
        ha="left",
    )
    marks.legend_below(figure, [*marks.legend_of_pair(arm_a, arm_b), band], 2)
    return figure


@drawn
def metric_by_task(cases: DataFrame, paper: DataFrame) -> Figure:
    """Each arm's mean and a small dot per seed: one row per task, one panel per metric.

    `cases` are rows of one suite and structure, of several tasks; `paper` has columns arm, task,
    metric and value, drawn as black diamonds. Whether two arms differ is not shown here.
    """
    metrics = ("dice", "nsd", "hd95_mm")
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
        + (f", {count(sizes[task], 'subject')}" if task in sizes else "")
        for task in tasks
    ]
    axes[0, 0].set_yticks(range(len(tasks)), labels)
    axes[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    seeds = span(cases.groupby("arm")["seed"].nunique(), "seed")
    what = f"Mean over test subjects, {seeds} (small dots)\n{marks.about(cases)}"
    figure.suptitle(what, x=0.01, ha="left")
    handles = [marks.legend_dot(name_of_arm(arm), colour_of(arm)) for arm in arms]
    if len(paper):
        text = "the paper's model in the same row, one case"
        handles.append(marks.legend_dot(text, BLACK, marker="D", markerfacecolor="white"))
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
    handles = [
        marks.legend_dot(label, colour, linestyle="-")
        for kind, (colour, label) in _EFFECTS.items()
        if (effects["kind"] == kind).any()
    ]
    marks.legend_below(figure, handles, 2)
    style.note_synthetic(figure, synthetic)
    return figure
