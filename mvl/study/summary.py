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
_IDENTITY = [
    "suite", "arm", "task", "structure", "block", "host", "fraction", "epochs",
    "protocol_version", "synthetic",
]
# fmt: on

#: What the digits of the suite `fusion`'s arms turn on.
PARTS = ("language block", "hybrid attention", "multi-scale fusion")

#: Columns that one table may hold one value of.
UNMIXED = ("protocol_version", "device", "dtype")
ONE_THING = (*UNMIXED, "suite", "task", "structure", "synthetic")


def summary_table(cases: pd.DataFrame, metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """Mean and spread of every arm.

    Returns:
        One row per suite, arm, task, structure and metric, with `SUMMARY_COLUMNS`. `mean` is
        over seeds and subjects, `sd_subjects` the standard deviation over subjects of their means
        over seeds, `sd_seeds` that over seeds of their means over subjects (NaN with one).

    Raises:
        RunError: several protocol versions, devices or dtypes; seeds of an arm that do not have
            the same cases; a case that is there twice; a missing or NaN metric.
    """
    check_unmixed(cases, UNMIXED)
    rows = []
    for values, group in cases.groupby(_IDENTITY, sort=True, dropna=False):
        for metric, matrix in subject_matrices(group, metrics, values[1]).items():
            per_seed = matrix.mean(axis=1)
            rows.append(
                {
                    **dict(zip(_IDENTITY, values, strict=True)),
                    "metric": metric,
                    "n_subjects": matrix.shape[1],
                    "n_cases": group["case"].nunique(),
                    "n_seeds": matrix.shape[0],
                    "mean": per_seed.mean(),
                    "sd_subjects": matrix.mean(axis=0).std(ddof=1),
                    "sd_seeds": per_seed.std(ddof=1),
                }
            )
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


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
        RunError: as `contrast`.
    """
    check_unmixed(cases, ONE_THING)
    matrix = subject_matrices(cases[cases["arm"] == arm], [metric], arm)[metric]
    per_seed = matrix.mean(axis=1)
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


def shared(cases: pd.DataFrame) -> dict:
    """What a comparison of several arms' rows has in common: block, protocol, synthetic.

    A baseline without a block leaves the name to the other arms.
    """
    blocks = sorted({str(block) for block in cases["block"].dropna()} - {"", "none"})
    first = cases.iloc[0]
    constant = {name: first[name] for name in ("protocol_version", "synthetic")}
    return {"block": ", ".join(blocks)} | constant


def subject_matrices(
    cases: pd.DataFrame, metrics: Sequence[str], arm: str
) -> dict[str, pd.DataFrame]:
    """{metric: frame (seeds, subjects)} of one arm, the cases of a subject averaged."""
    if unknown := [name for name in metrics if name not in COMPARED or name not in cases]:
        known = ", ".join(name for name in COMPARED if name in cases)
        raise RunError(f"the table has no metric {unknown[0]!r}; it has {known}")
    if cases.empty:
        raise RunError(f"the table has no case of the arm {arm!r}; run that arm first")
    if cases.duplicated(["seed", "subject", "case"]).any():
        twice = cases[cases.duplicated(["seed", "subject", "case"])].iloc[0]
        raise RunError(
            f"arm {arm}, seed {twice['seed']}: case {twice['case']} is there twice; "
            "the table holds two runs of one cell"
        )
    # In one order, whatever that of the table's rows: so are sums, to the last bit.
    rows = cases.sort_values(["seed", "subject", "case"])
    seeds = rows["seed"].unique()
    pairs = list(zip(rows["subject"], rows["case"], strict=True))
    of_seed = pairs[: int((rows["seed"] == seeds[0]).sum())]
    values = rows[list(metrics)].to_numpy(float)
    if pairs != of_seed * len(seeds) or np.isnan(values).any():
        raise _missing(cases, metrics, arm)
    subjects, first, counts = np.unique(
        [subject for subject, _ in of_seed], return_index=True, return_counts=True
    )
    by_case = values.reshape(len(seeds), -1, len(metrics))
    means = np.add.reduceat(by_case, first, axis=1) / counts[:, None]
    return {
        metric: pd.DataFrame(np.ascontiguousarray(means[..., n]), seeds, subjects)
        for n, metric in enumerate(metrics)
    }


def _missing(cases, metrics, arm):
    """The error about a case that a seed lacks, or that lacks a metric."""
    by_case = cases.pivot(index="seed", columns=["subject", "case"], values=list(metrics))
    row, column = np.argwhere(by_case.isna().to_numpy())[0]
    metric, _, case = by_case.columns[column]
    return RunError(
        f"arm {arm}, seed {by_case.index[row]}: case {case} has no {metric}; every seed needs "
        "the same cases, so evaluate that run again"
    )
