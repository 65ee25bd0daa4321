"""Contrasts between arms that were tested crosswise: estimates, intervals, families, verdicts.

Everything starts from the table `cases` (see `mvl.study.summary`), which has `fold` and `repeat`
for `seed`. A training is one (arm, fold, repeat); it tests the subjects of its fold, so that each
arm tests each subject once per repeat.

The estimate is the mean over all subjects of the paired difference; cases of one subject are
averaged first, then the repeats. Other trainings and other subjects would have given another
number. Each fold has trainings and subjects of its own. So the spread of the folds' means gives
the interval, as in a paired t test over the folds, with folds - 1 degrees of freedom: it needs no
model of the variances, and a second repeat narrows it only by what the repeats differ in.

docs/statistics.md has the simulation that chose this over a mixed model, a variance pooled over the
arms and the bootstrap (`python benchmarks/intervals.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mvl.errors import RunError
from mvl.study.summary import (
    ALPHA,
    BOUND,
    FEWEST_SUBJECTS,
    UNMIXED,
    check_unmixed,
    shared,
    subject_values,
)

#: What decides; everything else is described, by an estimate and an interval.
DECIDED = {"metric": "dice", "structure": "foreground"}

#: The task of a row that pools tasks.
POOLED = "pooled"

#: Draws for adjusted p values: at 0.05 they have a standard error of 0.0005.
DRAWS = 200_000

COLUMNS = [
    "suite", "arm_a", "arm_b", "task", "structure", "metric", "block", "n_subjects", "n_trainings",
    "family", "difference", "ci_low", "ci_high", "p", "p_holm", "p_tost", "verdict",
    "protocol_version", "synthetic",
]  # fmt: skip


class Contrast(NamedTuple):
    """What is compared: arm_a minus arm_b, or a weighted sum of arms.

    `arm_a` and `arm_b` are arms, or what the sides of `weights` ({arm: weight}, of sum 0) are
    called. `family` is the question it belongs to; `adjusted` is False where that is one claim that
    needs every contrast (see `claim`).
    """

    suite: str
    arm_a: str
    arm_b: str
    family: str
    adjusted: bool = True
    weights: Mapping[str, float] | None = None

    @property
    def arms(self) -> dict[str, float]:
        """{arm: weight}."""
        return dict(self.weights or {self.arm_a: 1.0, self.arm_b: -1.0})


def factorial(suite: str, family: str) -> list[Contrast]:
    """Hybrid attention, multi-scale fusion and their interaction in the arms 000 to 111.

    The digits are language block, hybrid attention, fusion. A part's effect is averaged over the
    other two. The interaction is what one part gains with the other, less what it gains without.
    """
    sign = {f"{n:03b}": [2 * int(digit) - 1 for digit in f"{n:03b}"] for n in range(8)}
    effects = {
        ("?1?", "?0?"): {arm: hybrid / 4 for arm, (_, hybrid, _) in sign.items()},
        ("??1", "??0"): {arm: fusion / 4 for arm, (_, _, fusion) in sign.items()},
        ("?11 ?00", "?10 ?01"): {
            arm: hybrid * fusion / 2 for arm, (_, hybrid, fusion) in sign.items()
        },
    }
    return [Contrast(suite, *names, family, True, arms) for names, arms in effects.items()]


def contrasts_table(
    cases: pd.DataFrame, contrasts: Iterable[Contrast], metrics: Sequence[str] = ("dice",)
) -> pd.DataFrame:
    """Every contrast in every task and structure, and pooled over the tasks.

    Only `DECIDED` has p values and a verdict; not so where the arms have one fold in common, since
    nothing says how far its trainings differ, or with fewer than `FEWEST_SUBJECTS` subjects.

    Args:
        cases: see the module.
        contrasts: what is compared; one whose arms have no cell in common gives no row.
        metrics: columns of `cases`.

    Returns:
        One row per contrast, task, structure and metric, with `COLUMNS`: `n_trainings` per arm,
        `ci_low` and `ci_high` (95 %), `p_holm` (adjusted within suite, task and family by
        `step_down`), `p_tost` (the larger of two one-sided tests against ±`BOUND`), `verdict`
        ("" without one). Rows of the task `POOLED` follow where several tasks have a verdict.

    Raises:
        RunError: the table mixes protocol versions, devices, dtypes, or synthetic and real data;
            a case is there twice, has no value, or misses in an arm; repeats differ in folds.
    """
    check_unmixed(cases, (*UNMIXED, "synthetic"))
    contrasts, rows = list(contrasts), []
    for (task, structure), group in cases.groupby(["task", "structure"], sort=True):
        for metric in metrics:
            values = {
                suite: subject_values(part, metric, ["fold", "repeat"])
                for suite, part in group.groupby("suite")
            }
            about = {"task": task, "structure": structure, "metric": metric}
            known = [_row(contrast, group, values) for contrast in contrasts]
            rows += [row | about for row in known if row]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(rows)
    for column, value in DECIDED.items():
        table["decides"] &= table[column] == value
    return _judged(pd.concat([table, pd.DataFrame(_pooled(table))], ignore_index=True))[COLUMNS]


def claim(rows: pd.DataFrame) -> str:
    """The verdict on one claim, such as "pre-training helps", which needs several contrasts.

    An intersection: the claim is false as soon as one contrast is not above zero. So a test of
    each at 5 % needs no adjustment (Berger, Technometrics 24, 1982).

    Args:
        rows: of `contrasts_table`, of one task and family; the first is against the arm without
            the part, the others are against its controls.

    Returns:
        "better" where every contrast is; otherwise the first contrast's "worse" or "equivalent";
        otherwise "not decided", or "" where a contrast has no verdict.
    """
    verdicts = list(rows["verdict"])
    if set(verdicts) == {"better"} or "" in verdicts:
        return min(verdicts)  # "" comes first
    return verdicts[0] if verdicts[0] in ("worse", "equivalent") else "not decided"


def verdict(difference: float, p: float, p_tost: float) -> str:
    """What may be said of a difference in Dice; the one place that decides it.

    "better" or "worse" where it differs from zero, however little: the interval says by how much.
    Otherwise "equivalent" where the 90 % interval lies within ±`BOUND`; otherwise "not decided".
    The arguments are columns of `contrasts_table`, p as adjusted.
    """
    if p < ALPHA:
        return "better" if difference > 0 else "worse"
    return "equivalent" if p_tost < ALPHA else "not decided"


def paired_folds(fold_means: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Estimates (...,), standard errors (...,) and degrees of freedom of differences by fold.

    With folds of one size these are mean, sd / sqrt(folds) and folds - 1 of a paired t test.

    Args:
        fold_means: (..., folds), each the mean difference of a fold's subjects.
        sizes: (folds,) numbers of subjects; the estimate is the mean over all of them.
    """
    share = np.asarray(sizes) / np.sum(sizes)
    estimate = (fold_means * share).sum(-1)
    apart = share * (fold_means - estimate[..., None])
    folds = len(share)
    return estimate, np.sqrt((apart**2).sum(-1) * folds / (folds - 1)), folds - 1


def mean_square(fold_means: np.ndarray) -> tuple[np.ndarray, int]:
    """The variance of one arm's fold mean, pooled over the arms of a suite.

    By the analysis of variance of fold_means (..., arms, folds), in which what the arms of a fold
    share cancels. Returns mean squares (...,) and their degrees of freedom.
    """
    arms, folds = fold_means.shape[-2:]
    rest = fold_means - fold_means.mean(-1, keepdims=True)
    rest = rest - rest.mean(-2, keepdims=True)
    freedom = (arms - 1) * (folds - 1)
    return (rest**2).sum((-2, -1)) / freedom, freedom


def step_down(
    t: np.ndarray, freedom: np.ndarray, weights: np.ndarray, draws: int = DRAWS
) -> np.ndarray:
    """p values adjusted by the largest |t| of the contrasts that are not yet rejected.

    Westfall and Young, Resampling-Based Multiple Testing (1993). The draws correlate by the arms
    that contrasts share, and each is divided by a standard error of its own.

    Args:
        t, freedom: (contrasts,) differences over standard errors, and degrees of freedom.
        weights: (contrasts, arms).
        draws: of the simulation.

    Returns:
        (contrasts,) p values, none below the one that is not adjusted.
    """
    generator = np.random.default_rng(0)
    unit = weights / np.linalg.norm(weights, axis=1)[:, None]
    drawn = generator.standard_normal((draws, weights.shape[1])) @ unit.T
    drawn /= np.sqrt(generator.chisquare(freedom, (draws, len(t))) / freedom)
    order = np.argsort(-np.abs(t))
    # Column k: the largest |t| of the contrast at place k and of those behind it.
    largest = np.maximum.accumulate(np.abs(drawn[:, order[::-1]]), axis=1)[:, ::-1]
    share = (1 + (largest >= np.abs(t[order])).sum(0)) / (draws + 1)
    adjusted = np.empty(len(t))
    adjusted[order] = np.maximum.accumulate(share)
    return np.maximum(adjusted, 2 * stats.t.sf(np.abs(t), freedom))


def _row(contrast, group, values):
    """One contrast in one task, structure and metric; None where its arms share no cell."""
    weights = contrast.arms
    if contrast.suite not in values or set(weights) - set(values[contrast.suite]):
        return None
    cells = values[contrast.suite][list(weights)].dropna()
    if cells.empty:
        return None
    # A repeat counts once it has every fold.
    folds = cells.reset_index("fold").groupby("repeat")["fold"].nunique()
    whole = folds.index[folds == folds.max()]
    cells = cells[cells.index.isin(whole, level="repeat")]
    difference, repeats = (cells * pd.Series(weights)).sum(axis=1), len(whole)
    by_subject = difference.groupby(["fold", "subject"]).agg(["mean", "size"])
    if (by_subject["size"] != repeats).any():
        fold, subject = by_subject["size"].ne(repeats).idxmax()
        raise RunError(
            f"{contrast.suite}: subject {subject} is in fold {fold} of some repeats only; give "
            "all repeats the same folds"
        )
    by_subject = by_subject["mean"]
    by_fold = by_subject.groupby("fold").agg(["mean", "size"])
    n_subjects, folds = len(by_subject), len(by_fold)
    if folds > 1:
        estimate, error, freedom = paired_folds(by_fold["mean"].to_numpy(), by_fold["size"])
    else:
        estimate = by_subject.mean()
        error, freedom = _one_fold(by_subject, contrast, values)
    compared = group[(group["suite"] == contrast.suite) & group["arm"].isin(weights)]
    return contrast._asdict() | {
        **shared(compared),
        "weights": weights,
        "n_subjects": n_subjects,
        "n_trainings": folds * repeats,
        "difference": float(estimate),
        "error": float(error),
        "freedom": float(freedom),
        "decides": folds > 1 and n_subjects >= FEWEST_SUBJECTS,
    }


def _one_fold(differences, contrast, values):
    """(standard error, degrees of freedom) where no second fold says how far trainings differ.

    One arm's variance is `mean_square` of the suite or, where it has one fold, of the task's other
    suites; times the sum of the squared weights it is the contrast's. It is no less than the
    contrast's own subjects make it. NaN where nothing says it.
    """
    known = {suite: _spread(of_suite) for suite, of_suite in values.items()}
    known = {suite: spread for suite, spread in known.items() if spread}
    chosen = [known[contrast.suite]] if contrast.suite in known else [*known.values()]
    freedom = sum(n for _, n in chosen)
    if not freedom:
        return np.nan, np.nan
    square = sum(square * n for square, n in chosen) / freedom
    variance = square * sum(weight**2 for weight in contrast.arms.values())
    return np.fmax(variance, differences.var() / len(differences)) ** 0.5, freedom


def _spread(values):
    """`mean_square` of a suite's first repeat and the arms that have all of its folds, or None."""
    first = values.xs(values.index.unique("repeat").min(), level="repeat").dropna(axis=1)
    by_fold = first.groupby("fold").mean()
    return mean_square(by_fold.to_numpy().T) if min(by_fold.shape) > 1 else None


def _pooled(rows):
    """Rows of the mean over tasks of each contrast that several tasks decide.

    Each task counts alike, and the tasks are these, not a sample of others: the spread between
    tasks is not in the standard error. With few of them it would leave nothing to say.
    """
    pooled = []
    for _, of in rows[rows["decides"]].groupby(["suite", "arm_a", "arm_b", "family"], sort=False):
        if len(of) < 2:
            continue
        variances = of["error"] ** 2
        scale = (variances**2 / of["freedom"]).sum()  # Satterthwaite, Biometrics Bulletin 2, 1946
        mean = {
            "task": POOLED,
            "difference": of["difference"].mean(),
            "error": np.sqrt(variances.sum()) / len(of),
            "freedom": variances.sum() ** 2 / scale if scale else of["freedom"].sum(),
        }
        sums = of[["n_subjects", "n_trainings"]].sum().to_dict()
        pooled.append(of.iloc[0].to_dict() | sums | mean)
    return pooled


def _judged(table):
    """Intervals, p values and verdicts of rows with difference, error and freedom."""
    t = table["difference"] / table["error"]
    half = stats.t.isf(ALPHA / 2, table["freedom"]) * table["error"]
    table = table.assign(ci_low=table["difference"] - half, ci_high=table["difference"] + half)
    least = (BOUND - table["difference"].abs()) / table["error"]
    table["p"] = 2 * stats.t.sf(t.abs(), table["freedom"])
    table["p_tost"] = stats.t.sf(least, table["freedom"])
    # Two arms that differ in nothing.
    same = table["error"].eq(0) & table["difference"].eq(0)
    table.loc[same, "p"] = 1.0
    table.loc[~table["decides"], ["p", "p_tost"]] = np.nan
    table["p_holm"] = table["p"]
    adjusted = table[table["decides"] & table["adjusted"] & ~same]
    for _, family in adjusted.groupby(["suite", "task", "structure", "family"]):
        weights = pd.DataFrame(family["weights"].tolist()).fillna(0.0).to_numpy()
        table.loc[family.index, "p_holm"] = step_down(
            t[family.index].to_numpy(), family["freedom"].to_numpy(), weights
        )
    table["verdict"] = [
        verdict(row.difference, row.p_holm, row.p_tost) if row.decides else ""
        for row in table.itertuples()
    ]
    return table
