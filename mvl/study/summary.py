"""The table of all cases, and what every statistic of it shares: means, spreads, one subject once.

`cases` has one row per suite, arm, seed, task, subject, case and structure, with every metric as a
column, and `block`, `host`, `fraction`, `epochs`, `protocol_version` and `synthetic`. The unit is
the subject: the cases of a subject are averaged first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from mvl.errors import RunError
from mvl.experiment.metrics import AUROC, METRICS

#: Whatever may be compared between arms.
COMPARED = METRICS | {AUROC.name: AUROC}

#: Differences below this are negligible, in every metric without a unit (0.01 is one Dice point).
BOUND = 0.01

#: Fewer test subjects, or fewer seeds (trainings of an arm), carry no verdict.
FEWEST_SUBJECTS, FEWEST_SEEDS = 5, 2

#: The level of every test here; intervals have 1 - ALPHA, those of the equivalence 1 - 2 ALPHA.
ALPHA = 0.05

# fmt: off
SUMMARY_COLUMNS = [
    "suite", "arm", "task", "structure", "metric", "block", "host", "fraction", "n_subjects",
    "n_cases", "n_seeds", "epochs", "mean", "sd_subjects", "sd_seeds", "protocol_version",
    "synthetic",
]

#: The columns of `cases` that say what an arm's row of the summary is about.
_ABOUT = [
    "suite", "arm", "task", "structure", "block", "host", "fraction", "epochs",
    "protocol_version", "synthetic",
]
# fmt: on

#: What the first protocol, where a seed is a training, calls columns of the second.
OF_SEEDS = {"n_trainings": "n_seeds", "sd_trainings": "sd_seeds"}

#: What the digits of the suite `fusion`'s arms turn on.
PARTS = ("language block", "hybrid attention", "multi-scale fusion")

#: Columns that one table may hold one value of.
UNMIXED = ("protocol_version", "device", "dtype")
ONE_THING = (*UNMIXED, "suite", "task", "structure", "synthetic")


def summary_table(cases: pd.DataFrame, metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """`means_table` of the first protocol, with `SUMMARY_COLUMNS`.

    Raises:
        RunError: several protocol versions, devices or dtypes; seeds of an arm that do not have
            the same cases; a case that is there twice; a missing metric.
    """
    check_unmixed(cases, UNMIXED)
    for _, group in cases.groupby(_ABOUT, dropna=False):
        check_same_cases(group)
    return means_table(cases, metrics, ["seed"]).rename(columns=OF_SEEDS)[SUMMARY_COLUMNS]


def means_table(
    cases: pd.DataFrame, metrics: Sequence[str], training: Sequence[str]
) -> pd.DataFrame:
    """Mean and spread of every arm: one row per suite, arm, task, structure and metric.

    The cases of a subject are averaged first. `sd_subjects` is the standard deviation over
    subjects of their means over trainings, `sd_trainings` that over seeds or folds of their means
    over subjects (NaN with one).

    Args:
        training: what names a training of an arm: ["seed"], or ["fold", "repeat"], where the
            repeats of a fold are averaged first.
    """
    tables = []
    for values, group in cases.groupby(_ABOUT, dropna=False):
        _check_values(group, metrics, training)
        means = group.groupby([training[0], "subject"])[list(metrics)].mean()
        by_training, by_subject = (means.groupby(level=level).mean() for level in (0, 1))
        table = pd.DataFrame({"metric": list(metrics)}).assign(
            **dict(zip(_ABOUT, values, strict=True)),
            n_subjects=len(by_subject),
            n_cases=group["case"].nunique(),
            n_trainings=len(group[list(training)].drop_duplicates()),
            mean=by_subject.mean().to_numpy(),
            sd_subjects=by_subject.std().to_numpy(),
            sd_trainings=by_training.std().to_numpy(),
        )
        tables.append(table[[*_ABOUT, *table.columns.drop(_ABOUT)]])
    return pd.concat(tables, ignore_index=True)


def by_part(cases: pd.DataFrame, metric: str = "dice") -> dict[str, pd.DataFrame]:
    """The paper's parts, each on and off, averaged over the combinations of the other two.

    Args:
        cases: rows of the suite `fusion`, of one task and structure (see the module).

    Returns:
        {part: cases of two arms, "on" and "off", for `contrast`}, of the seeds that all eight arms
        have; empty where there is none.
    """
    arms = cases.groupby("seed")["arm"].nunique()
    cases = cases[cases["seed"].isin(arms.index[arms == 2 ** len(PARTS)])]
    if cases.empty:
        return {}
    keys = ["seed", "subject", "case", "structure", "arm", "synthetic"]
    sides = {}
    for digit, part in enumerate(PARTS):
        arm = np.where(cases["arm"].str[digit] == "1", "on", "off")
        sides[part] = cases.assign(arm=arm).groupby(keys, as_index=False)[metric].mean()
    return sides


def noise_floor(cases: pd.DataFrame, arm: str, metric: str = "dice") -> dict[str, float]:
    """How far apart two trainings of one arm lie that differ in their seed alone.

    Args:
        cases: rows of one suite, task and structure (see the module).

    Returns:
        `n_seeds`, `mean_difference` and `largest_difference` (absolute, of the seeds' means over
        subjects, over all pairs of seeds); NaN with one seed.

    Raises:
        RunError: the rows mix what cannot be compared, or the seeds do not have the same cases.
    """
    check_unmixed(cases, ONE_THING)
    of_arm = cases[cases["arm"] == arm]
    check_same_cases(of_arm)
    per_seed = of_arm.groupby(["seed", "subject"])[metric].mean().groupby("seed").mean()
    apart = [abs(x - y) for x, y in combinations(per_seed, 2)] or [np.nan]
    return {
        "n_seeds": len(per_seed),
        "mean_difference": float(np.mean(apart)),
        "largest_difference": float(np.max(apart)),
    }


def check_unmixed(cases: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table of rows that cannot be compared, since they differ in one of the columns."""
    for column in columns:
        values = sorted(map(str, cases[column].unique())) if column in cases else []
        if len(values) > 1:
            raise RunError(
                f"the table mixes {column} {' and '.join(values)}: results of different "
                f"{column} cannot be compared; choose one of them"
            )


def check_same_cases(cases: pd.DataFrame) -> None:
    """Refuse an arm of one suite, task and structure whose seeds do not have the same cases."""
    for arm, rows in cases.groupby("arm"):
        missing = pd.crosstab(rows["seed"], rows["case"]) == 0
        if missing.any(axis=None):
            seed, case = missing.stack().idxmax()
            raise RunError(
                f"arm {arm}, seed {seed} has no case {case}; every seed needs the same cases, so "
                "evaluate that run again"
            )


def shared(cases: pd.DataFrame) -> dict:
    """What a comparison of several arms' rows has in common: block, protocol, synthetic.

    A baseline without a block leaves the name to the other arms.
    """
    blocks = sorted({str(block) for block in cases["block"].dropna()} - {"", "none"})
    first = cases.iloc[0]
    constant = {name: first[name] for name in ("protocol_version", "synthetic")}
    return {"block": ", ".join(blocks)} | constant


def subject_values(cases: pd.DataFrame, metric: str, training: Sequence[str]) -> pd.DataFrame:
    """A metric of one suite, task and structure, the cases of a subject averaged.

    Args:
        training: as in `means_table`.

    Returns:
        One row per training and subject, one column per arm; NaN where an arm lacks a training.

    Raises:
        RunError: a case is there twice, has no value, or misses in one of the arms of a training.
    """
    _check_values(cases, [metric], training)
    by_arm = cases.pivot(index=[*training, "subject", "case"], columns="arm", values=metric)
    there = by_arm.groupby(list(training)).transform("count") > 0
    if (missing := by_arm.isna() & there).any(axis=None):
        *numbers, _, case, arm = missing.stack().idxmax()
        raise RunError(
            f"{_named(arm, training, numbers)} has no case {case}, which another arm has; run both "
            "on the same data and split"
        )
    return by_arm.groupby([*training, "subject"]).mean()


def _check_values(cases, metrics, training):
    """Refuse rows of which two are of one case, or one lacks a value."""
    keys = ["arm", *training, "subject", "case"]
    for wrong, why in (
        (cases.duplicated(keys), "is there twice"),
        (cases[list(metrics)].isna().any(axis=1), f"has no {' or '.join(metrics)}"),
    ):
        if wrong.any():
            row = cases[wrong].iloc[0]
            raise RunError(
                f"{_named(row['arm'], training, row[list(training)])}: case {row['case']} {why}; "
                "make the table again from the runs"
            )


def _named(arm, training, numbers):
    pairs = zip(training, numbers, strict=True)
    return ", ".join([f"arm {arm}", *(f"{name} {number}" for name, number in pairs)])
