"""The figures of a report as data URIs, each with a label and a description in words."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mvl.show import figures
from mvl.show.report.answers import of_suite
from mvl.show.results import PICTURE
from mvl.show.sentences import sentence
from mvl.show.ten_tasks import paper_by_arm
from mvl.study.runs import Source, distinct, part_of, rows_of_tasks
from mvl.study.suites import QUESTIONS, SUITES

#: Suites whose training curves are shown: the block, and the paper's few-shot figure.
_LEARNING = ("language", "data")


@dataclass(frozen=True)
class Picture:
    """A figure: a data URI, what is below it, what it shows in words, and whose it is."""

    content: str
    label: str
    alt: str
    kind: str = ""


def pictures(sources: list[Source], root: Path) -> list[Picture]:
    """Figures of the profile's results, then those of the committed reference."""
    drawn = []
    for source in sources:
        if source.kind == "own":
            synthetic = "Synthetic data. " if source.summary["synthetic"].any() else ""
            parts = [part for suite in SUITES for part in _of_suite(source, suite)]
            for figure, label, alt, width in [*parts, *_sizes(source)]:
                label = f"{source.label}: {label}"
                drawn.append(Picture(_svg(figure, width), label, synthetic + alt, "own"))
    for path in sorted((root / "results" / "reference" / PICTURE.parent).glob("*.png")):
        content = base64.b64encode(path.read_bytes()).decode()
        label = f"Committed reference: {path.stem.replace('_', ' ')}"
        alt = (path.name == PICTURE.name and _reference_alt(sources)) or f"Figure. {label}."
        drawn.append(Picture(f"data:image/png;base64,{content}", label, alt, "reference"))
    return drawn


def _reference_alt(sources):
    """The reference's one known picture in words."""
    for source in sources:
        if source.kind == "reference":
            pair = ["language", "pretrained", "none", "dice"]
            keys = ["suite", "arm_a", "arm_b", "metric"]
            rows = source.contrasts[(source.contrasts[keys] == pair).all(axis=1)]
            for _, row in rows.head(1).iterrows():
                return f"A dot per test subject, by difference. {sentence(row)}"
    return ""


def _of_suite(source, suite):
    """(figure, label, alt, inches) of a suite."""
    parts = of_suite(source, suite)
    if len({task for (task, _), _ in parts}) > 2:
        yield _by_task(suite, parts)
        return
    for (task, structure), rows in parts:
        cases = source.cases
        cases = cases[(cases["suite"] == suite) & (cases["task"] == task)]
        cases = cases[cases["structure"] == structure]
        if rows["arm"].nunique() > 1:
            order = {arm: n for n, arm in enumerate(SUITES[suite])}
            cases = cases.sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
            dice = _mean_dice(cases)
            means = ", ".join(f"{arm} {dice[arm]:.3f}" for arm in order if arm in dice)
            label = f"{QUESTIONS[suite]} Every arm of the suite {suite}."
            alt = f"Mean Dice of the arms of the suite {suite}, {task}, {structure}: {means}."
            yield figures.arm_means(cases), label, alt, 6.4
        curves = source.curves
        curves = curves[(curves["suite"] == suite) & (curves["task"] == task)]
        if suite in _LEARNING and curves["arm"].nunique() > 1 and structure == "foreground":
            last = curves.sort_values("epoch").groupby(["arm", "seed"])["validation_dice"].last()
            means = ", ".join(f"{arm} {x:.3f}" for arm, x in last.groupby("arm").mean().items())
            label = f"validation Dice while training, arms of the suite {suite}."
            alt = f"Validation Dice by epoch, {task}; after the last epoch: {means}."
            drawn = figures.curve_bands(curves, bool(cases["synthetic"].any()))
            yield drawn, label, alt, 6.4
        pairs = source.contrasts
        pairs = pairs[(pairs["suite"] == suite) & (pairs["metric"] == "dice")]
        pairs = pairs[(pairs["task"] == task) & (pairs["structure"] == structure)]
        for _, row in pairs.head(1).iterrows():
            arms = row["arm_a"], row["arm_b"]
            values = figures.subject_differences(cases, *arms)
            label = f"{arms[0]} minus {arms[1]} in Dice, subject by subject."
            alt = f"A dot per test subject: {int((values > 0).sum())} of {len(values)} are above "
            alt += f"zero. {sentence(row)}"
            yield figures.paired_differences(cases, *arms), label, alt, 6.4


def _by_task(suite, parts):
    """One figure of a suite that was run on many tasks, with the paper's numbers of them."""
    rows = pd.concat([rows for (_, structure), rows in parts if structure == "foreground"])
    dice = rows[rows["metric"] == "dice"]
    means = [
        f"{task}: " + ", ".join(map("{0.arm} {0.mean:.3f}".format, part.itertuples()))
        for task, part in dice.groupby("task", sort=True)
    ]
    alt = f"Mean Dice of the arms of the suite {suite}, foreground. {'; '.join(means)}."
    paper = paper_by_arm()
    drawn = figures.metric_by_task(rows, paper[paper["task"].isin(rows["task"])])
    return drawn, f"{QUESTIONS[suite]} One row per task.", alt, 10.5


def _sizes(source):
    """Dice against the number of weights, of every experiment of a source, for each task.

    Two models are compared better by the figures of their suite.
    """
    part = part_of(source, distinct(source.runs))
    arms = part.cases.groupby("task")["arm"].nunique()
    for task in sorted(arms[(arms > 2) & (arms == arms.max())].index):
        of_task = rows_of_tasks(part, [task])
        dice, weights = _mean_dice(of_task.cases), of_task.runs.groupby("arm")["parameters"].first()
        text = ", ".join(f"{arm} {weights[arm]:,} and {dice[arm]:.3f}" for arm in dice.index)
        label = "size against Dice, every model; frozen weights count, too."
        alt = f"Weights and mean Dice of every model, {task}, foreground: {text}."
        yield figures.size_against_dice(of_task.cases, of_task.runs), label, alt, 6.4


def _mean_dice(cases):
    return cases.groupby(["arm", "seed", "subject"])["dice"].mean().groupby("arm").mean()


def _svg(figure, width):
    """A figure as a data URI, so many inches wide: its letters can be read on a phone."""
    figure.set_size_inches(width, figure.get_size_inches()[1])
    content = base64.b64encode(figures.encoded(figure, "svg")).decode()
    return f"data:image/svg+xml;base64,{content}"
