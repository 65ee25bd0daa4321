"""The results of a report: sentences, tables and figures of each source, and the paper's numbers.

Numbers are the profile's own, the committed reference's or the paper's, and each says which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from mvl.experiment.metrics import METRICS
from mvl.experiment.run import read_cases
from mvl.show import tables
from mvl.show.report.render import table
from mvl.show.sentences import (
    NOTHING,
    count,
    interval,
    mean_and_spread,
    sentence,
    span,
    verdict_or_reason,
)
from mvl.study.reference import CONTRASTS
from mvl.study.runs import HEADLINE, ProfileRun, Source, tasks_of
from mvl.study.suites import QUESTIONS, SUITES, name_of


def answers(source: Source) -> list[Markup]:
    """A sentence, with its verdict in bold, for each of these contrasts that a source has, in Dice.

    The primary contrast comes first, then what the paper compares.
    """
    rows = source.contrasts[source.contrasts["metric"] == "dice"]
    texts = []
    for suite, arm, against in (CONTRASTS[0], *(pair[:3] for pair in HEADLINE)):
        chosen = (rows[["suite", "arm_a", "arm_b"]] == [suite, arm, against]).all(axis=1)
        chosen &= rows["task"].isin(tasks_of(source, suite))
        for _, row in rows[chosen].iterrows():
            text = str(escape(sentence(row)))
            texts.append(Markup(re.sub(r"(Verdict: .*?\.)(?=\s|$)", r"<strong>\1</strong>", text)))
    return texts


def _of_suite(source, suite):
    """((task, structure), rows of the summary), for what a source has to say of a suite.

    An own run is an arm of several suites, and answers none of their questions alone.
    """
    rows = source.summary[source.summary["suite"] == suite]
    if source.kind == "own" and rows["arm"].nunique() < 2:
        return []
    rows = rows[rows["task"].isin(tasks_of(source, suite))]
    return list(rows.groupby(["task", "structure"], sort=True))


def questions(sources: list[Source]) -> list[dict]:
    """Per suite: question, tables of arms and of comparisons, and whether one is a profile's."""
    return [entry for suite in SUITES if (entry := _question(sources, suite))]


def _question(sources, suite):
    arms, compared = [], []
    caption = f"Comparisons of the suite {suite}, paired by subject and seed."
    for source in sources:
        for (task, structure), rows in _of_suite(source, suite):
            label = f"{source.label}: {task}, {structure}, {_size(rows)}"
            runs = source.runs[source.runs["suite"] == suite]
            rows = rows.sort_values("epochs", kind="stable")
            shown = tables.arms(rows, runs=runs, order=list(SUITES[suite]))
            arms.append((source.kind, label, shown.drop(columns=["subjects", "cases"])))
            pairs = source.contrasts
            keys = ["suite", "task", "structure"]
            pairs = pairs[(pairs[keys] == [suite, task, structure]).all(axis=1)]
            if len(pairs):
                group = (source.kind, label, tables.comparisons(pairs))
                compared.append(table([group], caption))
    if not arms:
        return None
    text = f"Arms of the suite {suite}: mean over seeds and subjects ± standard deviation over "
    return {
        "question": QUESTIONS[suite],
        "arms": table(arms, f"{text}subjects.", code=("arm",)),
        "compared": compared,
        "own": any(kind == "own" for kind, *_ in arms),
    }


def runs_table(runs: Sequence[ProfileRun]) -> Markup | None:
    """Every run, with its scores if it is tested: mean ± standard deviation over its subjects."""
    frame = pd.DataFrame([_run(run) for run in runs])
    if not any(run.reason for run in runs):
        frame = frame.drop(columns="remark", errors="ignore")
    caption = "Every run: mean ± standard deviation over its test subjects."
    return table([("own", "", frame)], caption, code=("run",)) if len(frame) else None


def _run(run):
    facts, names = run.facts or {}, dict.fromkeys(name_of(*cell) for cell in run.names)
    row = {"run": run.folder.name, "arm": ", ".join(arm for _, arm in names) or NOTHING}
    row["task"] = facts.get("task", "") + ", synthetic" * facts.get("synthetic", False)
    row |= {name: str(facts.get(name, NOTHING)) for name in ("seed", "epochs")}
    row |= {"subjects": NOTHING} | {METRICS[name].heading: NOTHING for name in tables.SHOWN}
    if run.state == "done":
        cases = read_cases(run.folder)
        cases = cases[cases["structure"] == cases["structure"].iloc[0]]
        subjects = cases.groupby("subject")[list(tables.SHOWN)].mean()
        summary = pd.DataFrame({"mean": subjects.mean(), "sd_subjects": subjects.std()})
        row["subjects"] = str(len(subjects))
        row |= {METRICS[n].heading: mean_and_spread(summary, n) for n in tables.SHOWN}
    return row | {"state": run.state, "remark": run.reason}


def _size(rows):
    """How much is behind rows of a summary."""
    first = rows.iloc[0]
    one = rows[rows["metric"] == first["metric"]]
    # Seeds of one arm with different budgets have rows of their own.
    seeds = one.groupby(["suite", "arm"])["n_seeds"].sum()
    sizes = [count(first["n_subjects"], "subject"), count(first["n_cases"], "case")]
    return ", ".join([*sizes, span(seeds, "seed"), span(rows["epochs"], "epoch")])


_ADDED, _DIFFERENCE = "what is added to ViT", "difference [95 % interval]"


def headline(sources: list[Source], task: str) -> Markup:
    """vit, and vit with what the paper adds, with the paper's numbers of `task` and of the mean."""
    groups = [group for source in sources for group in _headlines(source)]
    paper = pd.read_csv(tables.PAPER, dtype={"place": str})
    paper = paper[paper["metric"].eq("dice") & paper["task"].isin(["mean of ten tasks", task])]
    rows = []
    for (version, where), numbers in paper.groupby(["version", "task"], sort=True):
        by_model = numbers.set_index("model")
        if {"ViT", "MedVisionLlama"} <= set(by_model.index):
            vit, llama = (by_model.loc[name] for name in ("ViT", "MedVisionLlama"))
            what = where if vit["what"] in where else f"{where}, {vit['what']}"
            row = {_ADDED: f"version {version.removeprefix('v')}: {what}"}
            row |= {"ViT": _published(vit), "with it": _published(llama)}
            row[_DIFFERENCE] = f"{llama['value'] - vit['value']:+.2f}"
            rows.append(row | {"verdict": NOTHING})
    label = "The paper, as published (arXiv:2410.02458): subjects, seeds and epochs unstated"
    columns = [_ADDED, "ViT", "with it", _DIFFERENCE, "verdict"]
    groups.append(("paper", label, pd.DataFrame(rows, columns=columns)))
    caption = (
        "Dice without and with the language block. Measured: mean over seeds and subjects ± "
        "standard deviation over subjects; test subjects, native space."
    )
    return table(groups, caption)


def _published(row):
    return f"{row['value']:.2f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.2f}")


def _headlines(source):
    """A group of rows per task and structure that has both sides of what the paper compares."""
    dice = source.summary[source.summary["metric"] == "dice"]
    groups = []
    for (task, structure), part in dice.groupby(["task", "structure"], sort=True):
        rows, compared = [], []
        for suite, arm, against, what in HEADLINE:
            both = part[(part["suite"] == suite) & part["arm"].isin([arm, against])]
            if both["arm"].nunique() < 2 or task not in tasks_of(source, suite):
                continue
            by_arm = both.drop_duplicates("arm").set_index("metric")
            means = {
                heading: mean_and_spread(by_arm[by_arm["arm"] == name], "dice")
                for heading, name in (("ViT", against), ("with it", arm))
            }
            difference = _difference(source, (suite, arm, against, task, structure, "dice"))
            rows.append({_ADDED: what} | means | difference)
            compared.append(both)
        if rows:
            label = f"{source.label}: {task}, {structure}, {_size(pd.concat(compared))}"
            groups.append((source.kind, label, pd.DataFrame(rows)))
    return groups


def _difference(source, wanted):
    keys = ["suite", "arm_a", "arm_b", "task", "structure", "metric"]
    rows = source.contrasts[(source.contrasts[keys] == list(wanted)).all(axis=1)]
    if rows.empty:
        return {_DIFFERENCE: NOTHING, "verdict": NOTHING}
    row = rows.iloc[0]
    ends = "no interval" if np.isnan(row["ci_low"]) else interval(row, 3)
    return {_DIFFERENCE: f"{row['difference']:+.3f} [{ends}]", "verdict": verdict_or_reason(row)}


def paper_table() -> Markup:
    """All of the paper's numbers."""
    paper = pd.read_csv(tables.PAPER, dtype=str, keep_default_na=False)
    paper["value"] += [f" ± {sd}" * bool(sd) for sd in paper["sd"]]
    columns = ["model", "version", "task", "metric", "value", "unit", "what", "place", "source"]
    caption = "Every number of the paper in mvl/paper.csv."
    return table([("", "", paper[columns])], caption)
