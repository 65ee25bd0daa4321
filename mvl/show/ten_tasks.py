"""The paper's table of ten tasks for a reader: the rows, the paper's numbers, what fills a row."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mvl.config import task_data
from mvl.data.tasks import TASKS
from mvl.experiment.metrics import METRICS
from mvl.show import tables
from mvl.show.sentences import NOTHING, no_verdict
from mvl.study.runs import Source, data_of
from mvl.study.statistics import contrasts_table
from mvl.study.summary import ALPHA
from mvl.study.ten_tasks import MODELS, SIX, part


def table(sources: Iterable[Source]) -> pd.DataFrame:
    """Mean and standard deviation over test subjects, and the paper's Dice of one case.

    Returns:
        Texts: one row per task, arm and source, and one for a task that no source has; then each
        arm's mean over tasks, and the paper's.
    """
    paper, rows = paper_by_arm(), []
    parts = [part(source) for source in sources]
    for task in TASKS:
        before = len(rows)
        for source in parts:
            rows += _rows(source, source.summary[source.summary["task"] == task], paper)
        if len(rows) == before:
            rows.append({"task": task, "data": "not run"})
    for source in parts:
        over = _over_tasks(source.summary)
        for task in over["task"].unique():
            rows += _rows(source, over[over["task"] == task], paper)
    return pd.DataFrame([*rows, *_paper_rows()]).fillna(NOTHING)


def _paper_numbers():
    """mvl/paper.csv, its metrics named as ours."""
    paper = pd.read_csv(tables.PAPER)
    return paper.assign(metric=paper["metric"].replace("hd95", "hd95_mm"))


def paper_by_arm() -> pd.DataFrame:
    """The paper's numbers with the arms that they belong to (column arm)."""
    paper = _paper_numbers()
    return pd.concat(
        [
            paper[(paper["model"] == model) & (paper["version"] == version)].assign(arm=arm)
            for arm, (_, model, version) in MODELS.items()
            if arm != "pretrained"  # which lacks the adapters of the paper's version 3
        ],
        ignore_index=True,
    )


def _rows(source, summary, paper):
    if summary.empty:
        return []
    told = "synthetic" in source.label or not source.summary["synthetic"].any()
    start = {"task": summary["task"].iloc[0]}
    start["data"] = source.label if told else f"{source.label}, synthetic data"
    rows = []
    shown = tables.arms(summary, SIX).drop(columns=["task", "structure"], errors="ignore")
    for row in shown.to_dict("records"):
        of_arm = paper[(paper["arm"] == row["arm"]) & (paper["metric"] == "dice")]
        example = of_arm[of_arm["task"] == start["task"]]["value"]
        if len(example):
            row["paper's Dice"] = f"{example.iloc[0]:.2f} (one case)"
        rows.append(start | row)
    return rows


def _over_tasks(summary):
    """A summary whose subjects are tasks, of the arms that have several."""
    over = summary.groupby(["arm", "epochs", "metric"], sort=False).agg(
        n=("task", "nunique"),
        mean=("mean", "mean"),
        sd_subjects=("mean", "std"),
        n_subjects=("n_subjects", "sum"),
        n_cases=("n_cases", "sum"),
        n_seeds=("n_seeds", "max"),
    )
    over = over[over["n"] > 1].reset_index()
    return over.assign(structure="foreground", task=[f"mean of {n} tasks" for n in over["n"]])


def _paper_rows():
    paper = _paper_numbers()
    paper = paper[paper["task"] == "mean of ten tasks"]
    paper = paper[paper["model"].isin({model for _, model, _ in MODELS.values()})]
    rows = []
    for (model, version), numbers in paper.groupby(["model", "version"], sort=False):
        row = {"task": "mean of 10 tasks", "data": "the paper", "arm": f"{model} ({version})"}
        for number in numbers.itertuples():
            spread = "" if pd.isna(number.sd) else f" ± {number.sd:g}"
            unit = " (unit unstated)" * (number.unit == "unstated")
            row[METRICS[number.metric].heading] = f"{number.value:g}{spread}{unit}"
        rows.append(row)
    return rows


def command(task: str, parameters: dict) -> str:
    """The commands that fill a row with real volumes, as the profile would."""
    data = data_of(task, parameters)
    words = ["mvl data download", task, "&& mvl suite run presets --task", task, "--arms"]
    words += [arm for arm, (suite, *_) in MODELS.items() if suite == "presets"]
    if data != task_data(task):
        words += ["--grid", *data.grid, "--fit", data.fit]
    words += ["--epochs", parameters["epochs"], "--seeds", *parameters["seeds"]]
    words += ["--block", parameters["block"], "--results", f"results/{parameters['profile']}"]
    return " ".join(map(str, words))


def six(cases: pd.DataFrame, pair: tuple[str, str, str]) -> pd.DataFrame:
    """The comparisons of (suite, arm, against) in the paper's six metrics, of every task."""
    return contrasts_table(cases[cases["structure"] == "foreground"], [pair], SIX)


def counted(rows: pd.DataFrame) -> str:
    """How many of a pair's comparisons speak for its first arm, counted as the paper counts."""
    sign = {name: 1 if metric.larger_is_better else -1 for name, metric in METRICS.items()}
    better = rows["difference"] * rows["metric"].map(sign) > 0
    reasons = {no_verdict(row) for _, row in rows.iterrows()} - {""}
    if reasons:
        first = rows.iloc[0]
        return f"{first['arm_a']} minus {first['arm_b']}: no verdicts to count ({min(reasons)})."
    small, small_adjusted = rows["p"] < ALPHA, rows["p_holm"] < ALPHA
    first, number = rows.iloc[0], len(rows)
    return (
        f"{first['arm_a']} is better than {first['arm_b']} in {better.sum()} of "
        f"{number} comparisons, with p < {ALPHA:g} in {(better & small).sum()} of them "
        f"({(better & small_adjusted).sum()} after adjustment), and worse with p < {ALPHA:g} in "
        f"{(~better & small).sum()}; of two equal models one would expect {number / 2:g}, "
        f"{number * ALPHA / 2:.2g} and {number * ALPHA / 2:.2g}."
    )
