"""Did I reproduce it? A user's finished runs against the committed reference.

A run is compared with the reference's run of the same fingerprint: same configuration, same
state of the task, same language block, same protocol. The second protocol's runs are in
`mvl.study.crossed`; there a seed is a fold of a repeat. Six things are asked:

    file      cases.csv is the file that the evaluation wrote (done.json has its SHA-256), and
              agrees with itself: Jaccard = Dice / (2 - Dice) in every row
    cases     on the same kind of machine (system, CPU, device, number format, threads, PyTorch),
              every metric of every case is the reference's, to the last written digit
    means     elsewhere, each metric's mean over the cases is within `tolerance` of the reference's
    tables    the second protocol's published tables follow from its published cases
    task      the run's task is still what it was; a run of another state of it is said to be one
    contrast  of every comparison that the study planned and both of whose arms were run: its
              difference in Dice, over the seeds that were run, is the reference's, within
              sqrt(2 / seeds) of that tolerance (the mean over seeds of a difference of two arms;
              where the arms of a seed vary together, it varies less), and it has not changed its
              sign by more than the half-width of the reference's 95 % interval, widened by
              sqrt(seeds of the reference / seeds that were run); the interval of a single seed
              knows nothing of other seeds, so that there the tolerance decides alone

Training amplifies the last bit, so a run on another kind of machine is another draw, as another
seed would be: of all the means together, draws that differ as seeds do leave their tolerances once
in 370 times at most (three standard deviations, if one knew them), and so do all the contrasts.
A difference that is zero in truth changes its sign by more than its interval in some 3 % of draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mvl.data.splits import FOLDS
from mvl.errors import RunError
from mvl.experiment.identity import changed_since
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import CASES, DONE, FAILED, read_cases
from mvl.files import read_json, sha256_of
from mvl.study import crossed
from mvl.study.inference import mean_square
from mvl.study.reference import CELL, CONTRASTS, MACHINE, REFERENCE, machine_of, read_table

#: Of a mean where no arm of the reference has two seeds yet: shares, and millimetres.
FALLBACK = {"": 0.02, "mm": 0.5}


class Known(NamedTuple):
    """Tables of the first protocol, or of one task of the second in the same columns."""

    runs: pd.DataFrame
    cases: pd.DataFrame
    summary: pd.DataFrame
    contrasts: pd.DataFrame
    pairs: Sequence[tuple[str, str, str]]
    task: str = ""  # of the second protocol


def verify(place: Path, reference: Path = REFERENCE) -> pd.DataFrame:
    """Compare finished runs with the reference.

    `place` is a run folder, or a folder with runs in it (results/<profile>, or its runs/).

    Returns:
        One row per check: run, suite, arm, seed, check (see the module, or "state" of a run that
        was not finished), agrees (True, False, or None where nothing can be compared) and detail.
        A contrast has no run; its arm is "A minus B", its seed how many there are. The suite names
        the task, too, where the run is of the second protocol.

    Raises:
        RunError: there is no finished run, or no reference.
        MvlError: a file of a run is missing or damaged.
    """
    parts = [*_known(Path(reference))]
    part_of = {name: part for part in parts for name in part.runs["fingerprint"]}
    finished, unfinished = _runs(Path(place))
    checks = len(METRICS) * sum(folder.name in part_of for folder in finished)
    rows, user_cases, seen = [], {}, {}

    def check(kind, agrees, detail, run="", suite="", arm="", seed="", task=""):
        suite += f" ({task})" * bool(task)
        cell = {"run": run, "suite": suite, "arm": arm, "seed": seed}
        rows.append(cell | {"check": kind, "agrees": agrees, "detail": detail})

    for folder in finished:
        if change := changed_since(folder, seen):
            check("task", None, change, folder.name)
        cell = {"run": folder.name}
        if part := part_of.get(folder.name):
            row = part.runs[part.runs["fingerprint"] == folder.name].iloc[0]
            cell |= row[CELL].to_dict() | {"task": part.task}
        check("file", *_file(folder), **cell)
        if not part:
            check("cases", None, "the reference has no such run", **cell)
            continue
        user_cases[folder.name] = table = read_cases(folder)
        machine = machine_of(read_json(folder / "environment.json", "versions"))
        differing = [
            key for key in MACHINE if str(machine[key]) != str(row[key]) or row[key] == "unknown"
        ]
        theirs = part.cases[(part.cases[CELL] == row[CELL]).all(axis=1)]
        keys, suffixes = ["case", "structure"], ("", "_reference")
        both = table.merge(theirs, "outer", keys, suffixes=suffixes, indicator=True)
        if not (both["_merge"] == "both").all():
            outcome = False, "other cases than the reference's"
        elif differing:
            outcome = _means(both, part.summary, checks, differing)
        else:
            outcome = _exact(both)
        check("means" if differing else "cases", *outcome, **cell)
    for part in parts:
        for agrees, detail, cell in _contrasts(user_cases, part):
            check("contrast", agrees, detail, **cell, task=part.task)
    second = crossed.crossed_tables(Path(reference) / crossed.CROSSED.name)
    for task, tables in crossed.disagreements(second).items() if second else ():
        detail = f"{tables} of {reference} contradict" if tables else "follow from"
        check("tables", not tables, f"{detail} the published cases", suite="reference", task=task)
    for folder in unfinished:
        failed = folder / FAILED
        why = read_json(failed, "reason")["reason"] if failed.is_file() else "not finished"
        check("state", None, why, folder.name)
    return pd.DataFrame(rows)


def _known(reference: Path) -> Iterator[Known]:
    """What a reference has of each protocol and, of the second, of each task."""
    names = ("validation.csv", "cases.csv.gz", "summary.csv", "contrasts.csv")
    yield Known(*(read_table(reference / name) for name in names), CONTRASTS)
    tables = crossed.crossed_tables(reference / crossed.CROSSED.name)
    for task in tables["runs"]["task"].unique() if tables else ():
        runs, cases, contrasts = (
            tables[name][tables[name]["task"] == task].rename(columns={"n_trainings": "n_seeds"})
            for name in ("runs", "cases", "contrasts")
        )
        runs, cases = (t.assign(seed=t["repeat"] * FOLDS + t["fold"]) for t in (runs, cases))
        pairs = [contrast[:3] for contrast in crossed.CONTRASTS]
        yield Known(runs, cases, _spreads(cases), contrasts, pairs, task)


def _spreads(cases):
    """How far two trainings of a fold differ, by structure and metric, as `tolerance` takes it.

    Folds have subjects of their own. So it is the variance of arms by folds (`mean_square`).
    """
    rows = []
    for structure, group in cases.groupby("structure"):
        by_subject = group.groupby(["suite", "arm", "fold", "subject"])[list(METRICS)].mean()
        by_fold = by_subject.groupby(["suite", "arm", "fold"]).mean()
        for metric in METRICS:
            square, freedom = mean_square(by_fold[metric].unstack("fold").to_numpy())
            about = {"task": "", "structure": structure, "metric": metric, "mean": 0.0}
            rows.append(about | {"sd_seeds": sqrt(square), "n_seeds": freedom + 1})
    return pd.DataFrame(rows)


def _runs(place):
    """The run folders at or below a folder, (finished, not finished)."""
    candidates = [place, *sorted(place.glob("*/")), *sorted(place.glob("runs/*/"))]
    folders = [folder for folder in candidates if (folder / "config.json").is_file()]
    finished = [folder for folder in folders if (folder / DONE).is_file()]
    if not finished:
        raise RunError(f"{place} holds no finished run; 'mvl suite run' makes some")
    return finished, [folder for folder in folders if folder not in finished]


def _file(folder):
    """Is cases.csv what the evaluation wrote?"""
    stored = read_json(folder / DONE, "cases_sha256")["cases_sha256"]
    cases = read_cases(folder)
    dice, jaccard = cases["dice"], cases["jaccard"]
    wrong = np.flatnonzero(~np.isclose(jaccard, dice / (2 - dice), rtol=0, atol=1e-6))
    if stored != sha256_of(folder / CASES):
        return False, "cases.csv was changed after the evaluation: its SHA-256 is not done.json's"
    if len(wrong):
        return False, f"case {cases['case'].iloc[wrong[0]]}: Dice and Jaccard contradict each other"
    return True, "as the evaluation wrote it"


def _exact(both):
    for metric in METRICS:
        wrong = both[both[metric] != both[f"{metric}_reference"]]
        if len(wrong):
            row = wrong.iloc[0]
            values = f"{row[metric]:.9g}, the reference's {row[f'{metric}_reference']:.9g}"
            rows = f"{len(wrong)} of {len(both)} rows differ"
            return False, f"{metric} of {row['case']} is {values}; {rows}"
    return True, f"{len(both)} rows x {len(METRICS)} metrics, equal to the last digit"


def _means(both, summary, checks, differing):
    apart = {m: both[m].mean() - both[f"{m}_reference"].mean() for m in METRICS}
    limits = {metric: tolerance(summary, metric, checks) for metric in METRICS}
    worst = max(METRICS, key=lambda metric: abs(apart[metric]) / limits[metric])
    return bool(abs(apart[worst]) <= limits[worst]), (
        f"another {', '.join(differing)}; Dice differs by {apart['dice']:+.4f} (tolerance "
        f"{limits['dice']:.4f}), furthest off is {worst}: {apart[worst]:+.4f} of "
        f"{limits[worst]:.4f}"
    )


def _contrasts(user_cases, part):
    """(agrees, detail, cell) of each planned contrast that the user's runs have a common seed of.

    `user_cases` is {fingerprint: cases of a run that the reference has}.
    """
    runs, cases, summary, contrasts, pairs, _ = part
    ours, theirs = {}, {}  # (suite, arm, seed): mean Dice over subjects
    shown = cases[cases["structure"] == "foreground"]
    by_cell = shown.groupby([*CELL, "subject"])["dice"].mean().groupby(CELL).mean()
    for run in runs[runs["fingerprint"].isin(user_cases)].itertuples():
        shown, cell = user_cases[run.fingerprint], (run.suite, run.arm, run.seed)
        shown = shown[shown["structure"] == "foreground"]
        ours[cell] = shown.groupby("subject")["dice"].mean().mean()
        theirs[cell] = by_cell[cell]
    differences = {}
    for suite, a, b in pairs:
        seeds = [{n for s, name, n in ours if (s, name) == (suite, arm)} for arm in (a, b)]
        if common := set.intersection(*seeds):
            pair = tuple(
                np.mean([means[suite, a, seed] - means[suite, b, seed] for seed in common])
                for means in (ours, theirs)
            )
            # One comparison may have names in several suites; the first is the study's.
            differences.setdefault(pair, (suite, a, b, len(common)))
    published = contrasts[
        (contrasts["metric"] == "dice") & (contrasts["structure"] == "foreground")
    ].set_index(["suite", "arm_a", "arm_b"])
    for (mine, known), (suite, a, b, seeds) in differences.items():
        limit = sqrt(2 / seeds) * tolerance(summary, "dice", len(differences))
        effect = f"{limit / abs(known):.1f} times the difference" if known else "of none"
        detail = f"Dice {mine:+.4f}, the reference's {known:+.4f} (tolerance {limit:.4f}, {effect})"
        row = published.loc[suite, a, b]
        half = (row["ci_high"] - row["ci_low"]) / 2 * sqrt(row["n_seeds"] / seeds)
        turned = row["n_seeds"] > 1 and mine * known < 0 and abs(mine - known) > half
        if turned:
            detail += f"; the sign is another, and the interval is ±{half:.4f}"
        cell = {"suite": suite, "arm": f"{a} minus {b}", "seed": f"{seeds} seed{'s' * (seeds > 1)}"}
        yield bool(abs(mine - known) <= limit and not turned), detail, cell


def tolerance(summary: pd.DataFrame, metric: str, checks: int = 1) -> float:
    """How far a metric's mean may lie from the reference's: t sqrt(2) sd_seeds.

    A few seeds of one arm may lie together by chance. So sd_seeds is pooled over the arms of the
    reference's summary (the root of the mean variance, by degrees of freedom), and t is Student's
    quantile with as many degrees of freedom, at the level of three standard deviations, divided by
    the number of means that are compared together (Bonferroni).
    """
    arms = summary[(summary["metric"] == metric) & (summary["n_seeds"] > 1)]
    # One experiment has names in several suites.
    arms = arms.drop_duplicates(["task", "structure", "mean", "sd_seeds", "n_seeds"])
    if arms.empty:
        return FALLBACK[METRICS[metric].unit]
    freedoms = arms["n_seeds"] - 1
    spread = sqrt((freedoms * arms["sd_seeds"] ** 2).sum() / freedoms.sum())
    return float(stats.t.isf(stats.norm.sf(3) / checks, freedoms.sum())) * sqrt(2) * spread
