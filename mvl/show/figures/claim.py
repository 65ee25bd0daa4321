"""The study's headline picture: what the pre-trained block changes, and whether it is used."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator
from pandas import DataFrame

from mvl.show.figures import marks
from mvl.show.figures.style import BLACK, GREY, PAGE, colour_of, drawn, name_of_arm
from mvl.show.sentences import count, signed
from mvl.study.inference import POOLED
from mvl.study.summary import BOUND

#: Costs of deletion that the logarithmic axis names, besides that from which on a block is used.
_TICKS = (0, 0.02, 0.1, 0.5)
_BAND = {"color": GREY, "alpha": 0.12, "linewidth": 0}
_USED = {"color": BLACK, "linewidth": 0.8, "linestyle": ":"}


@drawn
def claim_and_use(cases: DataFrame, contrasts: DataFrame, use: DataFrame, used: float) -> Figure:
    """Two panels for each task: paired differences in Dice, and what deletion of the block costs.

    Args:
        cases, contrasts, use: tables of `mvl.study.crossed`, of the foreground and Dice; tasks,
            and `POOLED` where it is, come in the order of the contrasts.
        used: the cost from which on a block counts as used.
    """
    tasks = list(dict.fromkeys(contrasts["task"]))
    rows = contrasts.groupby("task").size().max()
    use = use.assign(cost=use["as trained"] - use["deleted"])
    figure, panels = plt.subplots(
        *(len(tasks), 2),
        squeeze=False,
        sharex="col",
        width_ratios=(4, 3),
        figsize=(PAGE, (0.16 * rows + 0.26) * len(tasks) + 1.2),
    )
    for (left, right), task in zip(panels, tasks, strict=True):
        of_task = contrasts[contrasts["task"] == task]
        _differences(left, of_task, cases[cases["task"] == task], contrasts)
        if task == POOLED:
            left.set_title("Mean of the tasks, each counts alike")
            right.set_axis_off()
            continue
        subjects = count(of_task["n_subjects"].max(), "subject")
        left.set_title(f"{task.replace('_', ' ')}, {subjects}")
        _costs(right, use[use["task"] == task], ["pretrained", *of_task["arm_b"]], used)
    right.set_xlim(min(0, use["cost"].min()), 1.3 * max(use["cost"].max(), 4 * used))
    left.xaxis.set_major_locator(MultipleLocator(BOUND))
    left.xaxis.set_major_formatter(lambda x, _: f"{x:+.2f}".replace("-", "−") if x else "0")
    left.set_xlabel("← worse    difference in Dice with the pre-trained block    better →")
    right.set_xlabel("Dice lost by deletion    used more →")
    title = "Left: the pre-trained block against its controls. Right: is each block used?"
    marks.headline(figure, title, cases, size=False)
    handles = [
        marks.legend_dot("mean, paired 95 % interval", linestyle="-"),
        marks.legend_dot("one fold" + ", or task" * (POOLED in tasks), markersize=1.8),
        Patch(**_BAND, label="negligible"),
        Line2D([], [], **_USED, label=f"{used:g}: used from here on"),
    ]
    marks.legend_below(figure, handles, 4)
    return figure


def _differences(axes: Axes, rows: DataFrame, cases: DataFrame, contrasts: DataFrame) -> None:
    """A row for each contrast of a task, with a dot for each fold; of `POOLED`, for each task."""
    axes.axvline(0, color=BLACK, linewidth=0.6)
    axes.axvspan(-BOUND, BOUND, **_BAND)
    for place, row in enumerate(rows.to_dict("records")):
        if len(cases):
            by_fold = cases.rename(columns={"fold": "seed"})
            each = marks.by_subject_and_seed(by_fold, row["arm_a"], row["arm_b"])
        else:
            each = contrasts[contrasts["arm_b"].eq(row["arm_b"]) & contrasts["task"].ne(POOLED)]
            each = each.rename(columns={"task": "seed"}).set_index("seed")["difference"]
        marks.difference_row(axes, place, each, row, colour_of(row["arm_b"]))
    arms = zip(rows["arm_b"], rows["difference"], strict=True)
    marks.name_rows(axes, [_named(f"against {_short(arm)}", signed(x)) for arm, x in arms])


def _costs(axes: Axes, use: DataFrame, arms: list[str], used: float) -> None:
    """A row for each arm with a block: the mean cost over subjects, and a dot for each fold."""
    names = []
    axes.set_xscale("symlog", linthresh=used, linscale=0.5)
    axes.axvspan(-1, used, **_BAND)
    axes.axvline(used, **_USED)
    for place, arm in enumerate(arm for arm in arms if arm in set(use["arm"])):
        of_arm, colour = use[use["arm"] == arm], colour_of(arm)
        mean = np.average(of_arm["cost"], weights=of_arm["n_subjects"])
        axes.plot(mean, place, "o", color=colour)
        axes.scatter(of_arm["cost"], [place - 0.3] * len(of_arm), s=3, linewidth=0, color=colour)
        names.append(_named(_short(arm), f"{mean:.3f}"))
    marks.name_rows(axes, names)
    axes.set_xticks([used, *_TICKS], [f"{tick:g}" for tick in (used, *_TICKS)])
    axes.minorticks_off()


def _short(arm: str) -> str:
    return name_of_arm(arm).removeprefix("ViT + ")


def _named(name: str, number: str) -> str:
    return f"{name}  {number.replace('-', '−')}"
