"""Paired contrasts between arms of the first protocol: intervals, tests, equivalence, verdicts.

Everything starts from the table `cases` (see `mvl.study.summary`). What is compared is the matrix
(seeds, subjects) of paired differences, whose rows and columns are both random: other seeds and
other subjects would have given other numbers. The interval comes from a bootstrap that resamples
both (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1, 2007), with two corrections
for few seeds, since the plain one covered 60, 76 and 85 % instead of 95 % with two, three and five
seeds where seeds vary most:

- the resampled means are spread by sqrt(n / (n - 1)), as a variance divides by n - 1;
- each is divided by sqrt(chi2 / df), as a t quantile takes the place of a normal one, with the
  degrees of freedom of Satterthwaite, Biometrics Bulletin 2 (1946), for the sum of both variances.

So corrected it covers 89, 93 and 94 % there, 94 % where subjects vary most, 99 % where only
their interaction varies (it counts that twice), and 92 to 93 % with strongly skewed subject
effects, such as a structure missed now and then makes (27 subjects; 2000 simulated tables
each). Interval, p and the test of equivalence are read off one distribution, so that they do not
contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from mvl.errors import RunError
from mvl.study.summary import (
    ALPHA,
    BOUND,
    COMPARED,
    ONE_THING,
    UNMIXED,
    check_same_cases,
    check_unmixed,
    shared,
    subject_values,
)

#: Bootstrap draws: so many that a p, which an adjustment multiplies by up to its family's size, is
#: known to about a sixth of itself (a standard error) where it decides.
DRAWS = 100_000

#: The contrast that decides, named before anything was run. It is not in the family of the others
#: (`reference.CONTRASTS`).
PRIMARY = {
    "suite": "language",
    "arm_a": "pretrained",
    "arm_b": "random",
    "task": "Task04_Hippocampus",
    "structure": "foreground",
    "metric": "dice",
}

CONTRAST_COLUMNS = [
    "suite", "arm_a", "arm_b", "task", "structure", "metric", "block", "n_subjects", "n_seeds",
    "difference", "ci_low", "ci_high", "p", "p_holm", "p_tost", "verdict", "protocol_version",
    "synthetic",
]  # fmt: skip


def contrast(
    cases: pd.DataFrame,
    arm_a: str,
    arm_b: str,
    metric: str = "dice",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict:
    """The difference a minus b, paired by subject and by the seeds that both arms have.

    Args:
        cases: rows of one suite, task and structure (see `mvl.study.summary`).
        metric: a name of `COMPARED`.
        draws, seed: of the bootstrap; no p value is below 2 / (draws + 1).

    Returns:
        `n_subjects`, `n_seeds` (one says nothing about other seeds), `difference`, `ci_low` and
        `ci_high` (95 %), `p` (two-sided), `p_tost` (largest of the two one-sided tests against
        `BOUND`; NaN for a metric in mm, and with one seed, which shows no equivalence) and
        `verdict`. With one subject there is no interval: these are NaN.

    Raises:
        RunError: the arms have no seed in common; the arms' or the seeds' cases differ; as
            `subject_values`; the rows mix what cannot be compared.
    """
    check_unmixed(cases, ONE_THING)
    differences = _paired_differences(cases, arm_a, arm_b, metric)
    n_seeds, n_subjects = differences.shape
    row = {
        "arm_a": arm_a,
        "arm_b": arm_b,
        "metric": metric,
        "n_subjects": n_subjects,
        "n_seeds": n_seeds,
        "difference": float(differences.mean()),
        **dict.fromkeys(("ci_low", "ci_high", "p", "p_tost"), np.nan),
    }
    if n_subjects > 1:
        resampled = _resampled(differences.tobytes(), differences.shape, draws, seed)
        row["ci_low"], row["ci_high"], row["p"], p_tost = resampled
        # Seeds of one arm may lie further apart than the bound: one of them shows no equivalence.
        if COMPARED[metric].unit == "" and n_seeds > 1:
            row["p_tost"] = p_tost
    row["verdict"] = verdict(metric, row["ci_low"], row["ci_high"], row["p"], row["p_tost"])
    return row


def verdict(metric: str, ci_low: float, ci_high: float, p: float, p_tost: float) -> str:
    """What may be said of a difference; the one place that decides it.

    A verdict claims no more than the data show. The first that applies is given:

    - "better by at least 0.01": p < 0.05 and the whole 95 % interval is at or beyond the bound;
    - "better but negligible", "worse but negligible": p < 0.05 in favour or against, and
      equivalent;
    - "equivalent": p_tost < 0.05, that is, the 90 % interval lies within the bound;
    - "better" or "worse": p < 0.05 in favour or against, by nobody knows how much;
    - "not decided": all else.

    p is adjusted where the contrast belongs to a family. A metric in mm has no bound that fits
    every structure: it is "better", "worse" or "not decided". Where smaller is better (HD95),
    better is the negative direction.
    """
    about = COMPARED[metric]
    gain_low, gain_high = (ci_low, ci_high) if about.larger_is_better else (-ci_high, -ci_low)
    better = p < ALPHA and gain_low >= 0
    worse = p < ALPHA and gain_high <= 0
    side = "better" if better else "worse" if worse else ""
    if not about.unit:
        if better and gain_low >= BOUND:
            return f"better by at least {BOUND:g}"
        if p_tost < ALPHA:
            return f"{side} but negligible" if side else "equivalent"
    return side or "not decided"


def contrasts_table(
    cases: pd.DataFrame,
    pairs: Iterable[tuple[str, str, str]],
    metrics: Sequence[str] = ("dice",),
    family: int = 0,
) -> pd.DataFrame:
    """Every listed contrast in every task and structure, adjusted for their number.

    Holm's family (Scandinavian Journal of Statistics 6, 1979) is all rows but `PRIMARY`, whose
    p_holm is its p. One experiment has names in several suites: rows that are one comparison of
    the same numbers count once. Verdicts use p_holm.

    Args:
        cases: see `mvl.study.summary`.
        pairs: (suite, arm_a, arm_b); one whose arms have no seed in common gives no row.
        metrics: names of `COMPARED`.
        family: how many comparisons were planned, where they are more than are here. Those that
            are missing count as if their p were larger, so that no p rises when they are run.

    Returns:
        One row per suite, pair, task, structure and metric, with `CONTRAST_COLUMNS`. `block`
        names the language block of either arm, empty where none has one.

    Raises:
        RunError: as `contrast`.
    """
    check_unmixed(cases, UNMIXED)
    rows = []
    for suite, arm_a, arm_b in pairs:
        chosen = cases[(cases["suite"] == suite) & cases["arm"].isin([arm_a, arm_b])]
        for (task, structure), group in chosen.groupby(["task", "structure"], sort=True):
            seeds = [set(group.loc[group["arm"] == arm, "seed"]) for arm in (arm_a, arm_b)]
            if not set.intersection(*seeds):
                continue
            about = {"suite": suite, "task": task, "structure": structure, **shared(group)}
            rows += [about | contrast(group, arm_a, arm_b, metric) for metric in metrics]
    if not rows:
        return pd.DataFrame(columns=CONTRAST_COLUMNS)
    table = pd.DataFrame(rows)
    primary = is_primary(table)
    table["p_holm"] = table["p"]
    others = table[~primary].groupby([*_COMPARISON], dropna=False)["p"]
    once = others.first()
    adjusted = pd.Series(_holm(once.to_numpy(), family), range(len(once)))
    table.loc[~primary, "p_holm"] = others.ngroup().map(adjusted)
    table["verdict"] = [
        verdict(row.metric, row.ci_low, row.ci_high, row.p_holm, row.p_tost)
        for row in table.itertuples()
    ]
    return table[CONTRAST_COLUMNS]


#: What is equal in two rows of a `contrasts_table` that compare the same numbers.
_COMPARISON = ("task", "structure", "metric", "difference", "ci_low", "ci_high", "p")


def is_primary(table: pd.DataFrame) -> pd.Series:
    """Which rows of a `contrasts_table` are the primary contrast."""
    return (table[list(PRIMARY)] == pd.Series(PRIMARY)).all(axis=1)


def _paired_differences(cases, arm_a, arm_b, metric):
    """The (seeds, subjects) array of arm_a minus arm_b over the seeds that both have."""
    pair = cases[cases["arm"].isin((arm_a, arm_b))]
    check_same_cases(pair)
    values = subject_values(pair, metric, ["seed"]).reindex(columns=[arm_a, arm_b]).dropna()
    if values.empty:
        raise RunError(f"{arm_a} and {arm_b} have no seed in common; run both with the same seeds")
    differences = (values[arm_a] - values[arm_b]).unstack("subject")
    # Contiguous, so that sums are taken in one order whatever the order of the table's rows.
    return np.ascontiguousarray(differences.to_numpy())


@lru_cache(maxsize=1024)  # tables, figures and sentences ask for the same contrasts
def _resampled(data, shape, draws, seed):
    """(low, high) of the 95 % interval, p and p_tost of differences float64 `shape`, as bytes."""
    differences = np.frombuffer(data).reshape(shape)
    means = _bootstrap_means(differences, draws, np.random.default_rng(seed))
    low, high = np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2)).tolist()
    p = min(1.0, 2 * min(_share(means <= 0), _share(means >= 0)))
    return low, high, p, max(_share(means <= -BOUND), _share(means >= BOUND))


def _bootstrap_means(differences, draws, generator):
    """Means (draws,) as other seeds and subjects might have given them; see the module.

    `differences` is (seeds, subjects), with two subjects or more. With one seed there is no spread
    of seeds to resample.
    """
    mean = differences.mean()
    spread = np.zeros(draws)
    variances, freedoms = [], []
    for axis in (0, 1):
        effects = differences.mean(axis=axis) - mean  # of subjects, then of seeds
        n = len(effects)
        if n == 1:
            continue
        resampled = effects[generator.integers(n, size=(draws, n))].mean(axis=1)
        spread += np.sqrt(n / (n - 1)) * resampled
        variances.append(effects.var(ddof=1) / n)
        freedoms.append(n - 1)
    variances = np.array(variances)
    if variances.sum() == 0:
        return mean + spread
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    return mean + spread / np.sqrt(generator.chisquare(freedom, draws) / freedom)


def _share(condition):
    """Share of draws, the observed result counted as one: so no p value is zero."""
    return float((np.count_nonzero(condition) + 1) / (len(condition) + 1))


def _holm(p, family=0):
    """Holm's step-down adjustment of p values (n,); those that are NaN count for nothing."""
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN is last
    factors = max(family, len(order)) - np.arange(len(order))
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted
