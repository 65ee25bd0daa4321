"""Paired contrasts between arms: intervals, tests, equivalence, and the wording of a result.

Everything starts from the table `cases`: one row per suite, arm, seed, task, subject, case and
structure, with every metric as a column, and `block`, `host`, `fraction`, `epochs`,
`protocol_version` and `synthetic`.

The unit is the subject: the cases of a subject are averaged first. What is compared is the
matrix (seeds, subjects) of paired differences, whose rows and columns are both random: other
seeds and other subjects would have given other numbers. The interval comes from a bootstrap
that resamples both (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1, 2007),
with two corrections for few seeds, since the plain one covered 60, 76 and 85 % instead of 95 %
with two, three and five seeds where seeds vary most:

- the resampled means are spread by sqrt(n / (n - 1)), as a variance divides by n - 1;
- each is divided by sqrt(chi2 / df), as a t quantile stands for a normal one, with the degrees
  of freedom of Satterthwaite, Biometrics Bulletin 2 (1946), for the sum of both variances.

So corrected it covers 89, 93 and 94 % there, 94 % where subjects vary most, 99 % where only
their interaction varies (it counts that twice), and 92 to 93 % with strongly skewed subject
effects, such as a structure missed now and then makes (27 subjects; 2000 simulated tables
each). Interval, p and the test of equivalence are read off one distribution, so that they do not
contradict each other.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from mvl.errors import RunError
from mvl.experiment.metrics import MECHANISM, METRICS
from mvl.show.tables import count, p_value

#: Whatever may be compared between arms.
COMPARED = METRICS | MECHANISM

#: Differences below this are negligible, in every metric without a unit (0.01 is one Dice point).
BOUND = 0.01

#: The level of every test here; intervals have 1 - ALPHA, those of the equivalence 1 - 2 ALPHA.
ALPHA = 0.05

#: Bootstrap draws: so many that a p, which an adjustment multiplies by up to its family's size, is
#: known to about a sixth of itself (a standard error) where it decides.
DRAWS = 100_000

#: The contrast that decides, named before anything was run; it stays out of the family of the
#: others (`reference.CONTRASTS`).
PRIMARY = {
    "suite": "language",
    "arm_a": "pretrained",
    "arm_b": "random",
    "task": "Task04_Hippocampus",
    "structure": "foreground",
    "metric": "dice",
}

# fmt: off
SUMMARY_COLUMNS = [
    "suite", "arm", "task", "structure", "metric", "block", "host", "fraction", "n_subjects",
    "n_cases", "n_seeds", "epochs", "mean", "sd_subjects", "sd_seeds", "protocol_version",
    "synthetic",
]

CONTRAST_COLUMNS = [
    "suite", "arm_a", "arm_b", "task", "structure", "metric", "block", "n_subjects", "n_seeds",
    "difference", "ci_low", "ci_high", "p", "p_holm", "p_tost", "verdict", "protocol_version",
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
_UNMIXED = ("protocol_version", "device", "dtype")


def contrast(
    cases: pd.DataFrame,
    arm_a: str,
    arm_b: str,
    metric: str = "dice",
    bound: float = BOUND,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict:
    """The difference a minus b, paired by subject and seed.

    Args:
        cases: rows of one suite, task and structure (see the module).
        arm_a: the arm that the verdict is about.
        arm_b: the arm it is held against. Seeds that only one arm has are left out.
        metric: a name of `mvl.experiment.metrics.METRICS`.
        bound: the largest negligible difference; used for metrics without a unit only.
        draws: bootstrap draws; no p value is below 2 / (draws + 1).
        seed: of the bootstrap.

    Returns:
        `n_subjects`, `n_seeds`, `resampled` ("subjects and seeds"; with one seed "subjects"
        alone, so that nothing is said about other seeds), `difference`, `ci_low` and `ci_high`
        (95 %), `ci90_low` and `ci90_high`, `p` (two-sided, by the same distribution), `p_tost`
        (largest of the two one-sided tests against `bound`; NaN for a metric in mm, and with one
        seed, which shows no equivalence), `p_seeds`
        (a paired t test on the per-seed means, NaN with one seed: it stands beside, since it
        speaks of these very subjects; where subjects vary most it calls three of four null
        effects significant for others), and `verdict` (see `verdict`). With one subject there is no
        interval: these are NaN.

    Raises:
        RunError: an arm, metric or common seed is missing; the arms' subjects or cases differ;
            a case is there twice; several suites, tasks, structures, protocol versions, devices,
            dtypes, or synthetic beside real data.
    """
    check_unmixed(cases, (*_UNMIXED, "suite", "task", "structure", "synthetic"))
    differences = _paired_differences(cases, arm_a, arm_b, metric)
    n_seeds, n_subjects = differences.shape
    difference = float(differences.mean())
    margin = bound if COMPARED[metric].unit == "" else None

    row = {
        "arm_a": arm_a,
        "arm_b": arm_b,
        "metric": metric,
        "n_subjects": n_subjects,
        "n_seeds": n_seeds,
        "resampled": "subjects and seeds" if n_seeds > 1 else "subjects",
        "difference": difference,
        **dict.fromkeys(("ci_low", "ci_high", "ci90_low", "ci90_high", "p", "p_tost"), np.nan),
        "p_seeds": _paired_t(differences.mean(axis=1)),
    }
    if n_subjects > 1:
        means = _bootstrap_means(differences, draws, np.random.default_rng(seed))
        quantiles = (ALPHA / 2, 1 - ALPHA / 2, ALPHA, 1 - ALPHA)
        names = ("ci_low", "ci_high", "ci90_low", "ci90_high")
        row.update(zip(names, np.quantile(means, quantiles).tolist(), strict=True))
        row["p"] = min(1.0, 2 * min(_share(means <= 0), _share(means >= 0)))
        # Seeds of one arm may lie further apart than the bound: one of them shows no equivalence.
        if margin is not None and n_seeds > 1:
            row["p_tost"] = max(_share(means <= -margin), _share(means >= margin))
    row["verdict"] = verdict(metric, row["ci_low"], row["ci_high"], row["p"], row["p_tost"], bound)
    return row


def verdict(metric, ci_low, ci_high, p, p_tost, bound=BOUND):
    """What may be said of a difference; the one place that decides it.

    A verdict claims no more than the data show, the first that applies is given:

    - "better by at least <bound>": p < 0.05 and the whole 95 % interval is at or beyond the bound;
    - "better but negligible", "worse but negligible": p < 0.05 in favour or against, and
      equivalent;
    - "equivalent": p_tost < 0.05, that is, the 90 % interval lies within the bound;
    - "better" or "worse": p < 0.05 in favour or against, by nobody knows how much;
    - "undecided": all else.

    A metric in mm has no bound that fits every structure; it is "better", "worse" or
    "undecided". For a metric where smaller is better (HD95) better is the negative direction.

    Args:
        metric: a name of `mvl.experiment.metrics.METRICS`.
        ci_low, ci_high: the 95 % interval of the difference.
        p: two-sided, adjusted where the contrast belongs to a family.
        p_tost: of the test of equivalence at `bound`.
        bound: the largest negligible difference.
    """
    facts = COMPARED[metric]
    gain_low = ci_low if facts.larger_is_better else -ci_high
    gain_high = ci_high if facts.larger_is_better else -ci_low
    better = p < ALPHA and gain_low >= 0
    worse = p < ALPHA and gain_high <= 0
    side = "better" if better else "worse" if worse else ""
    if not facts.unit:
        if better and gain_low >= bound:
            return f"better by at least {bound:g}"
        if p_tost < ALPHA:
            return f"{side} but negligible" if side else "equivalent"
    return side or "undecided"


def contrasts_table(
    cases: pd.DataFrame,
    pairs: Sequence[tuple[str, str, str]],
    metrics: Sequence[str] = ("dice",),
    draws: int = DRAWS,
    seed: int = 0,
    family: int = 0,
) -> pd.DataFrame:
    """Every listed contrast in every task and structure, adjusted for their number.

    Holm's family (Scandinavian Journal of Statistics 6, 1979) is all rows but `PRIMARY`, whose
    p_holm is its p. One experiment has names in several suites: rows that are one comparison of
    the same numbers count once. Verdicts use p_holm.

    Args:
        cases: see the module.
        pairs: (suite, arm_a, arm_b); one whose arms no task has with a seed in common, such as in
            a suite that is under way, gives no row.
        metrics: names of `mvl.experiment.metrics.METRICS`.
        draws, seed: of the bootstrap.
        family: how many comparisons were planned, where they are more than are here. Those that
            are missing count as if their p were larger, so that no p rises when they are run.

    Returns:
        One row per suite, pair, task, structure and metric, with `CONTRAST_COLUMNS`. `block`
        names the language block of either arm, empty where none has one.

    Raises:
        RunError: as `contrast`.
    """
    check_unmixed(cases, _UNMIXED)
    rows = []
    for suite, arm_a, arm_b in pairs:
        chosen = cases[(cases["suite"] == suite) & cases["arm"].isin([arm_a, arm_b])]
        for (task, structure), group in chosen.groupby(["task", "structure"], sort=True):
            seeds = [set(group.loc[group["arm"] == arm, "seed"]) for arm in (arm_a, arm_b)]
            if not set.intersection(*seeds):
                continue
            # A baseline without a block leaves the name to the other arm.
            blocks = sorted({str(b) for b in group["block"].dropna()} - {"", "none"})
            for metric in metrics:
                rows.append(
                    {
                        "suite": suite,
                        "task": task,
                        "structure": structure,
                        "block": ", ".join(blocks),
                        "protocol_version": group["protocol_version"].iloc[0],
                        "synthetic": group["synthetic"].iloc[0],
                        **contrast(group, arm_a, arm_b, metric, draws=draws, seed=seed),
                    }
                )
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


def is_primary(table):
    """Which rows of a `contrasts_table` are the primary contrast: a boolean Series."""
    return pd.Series(
        np.logical_and.reduce([table[key] == value for key, value in PRIMARY.items()]), table.index
    )


def summary_table(cases: pd.DataFrame, metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """Mean and spread of every arm.

    Args:
        cases: see the module.
        metrics: names of `mvl.experiment.metrics.METRICS`.

    Returns:
        One row per suite, arm, task, structure and metric, with `SUMMARY_COLUMNS`. `mean` is
        over seeds and subjects, `sd_subjects` the standard deviation over subjects of their means
        over seeds, `sd_seeds` that over seeds of their means over subjects (NaN with one).

    Raises:
        RunError: several protocol versions, devices or dtypes; seeds of an arm that do not have
            the same cases; a case that is there twice; a missing or NaN metric.
    """
    check_unmixed(cases, _UNMIXED)
    rows = []
    for values, group in cases.groupby(_IDENTITY, sort=True, dropna=False):
        for metric, matrix in _subject_matrices(group, metrics).items():
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


def by_part(cases: pd.DataFrame, metric: str = "dice") -> dict:
    """The paper's parts, each on and off, averaged over the combinations of the other two.

    Args:
        cases: rows of the suite `fusion`, of one task and structure (see the module).
        metric: a name of `mvl.experiment.metrics.METRICS`.

    Returns:
        {part: cases of two arms, "on" and "off", for `contrast`}, of the seeds that all eight arms
        have; empty where there is none.
    """
    arms = cases.groupby("seed")["arm"].nunique()
    cases = cases[cases["seed"].isin(arms.index[arms == 2 ** len(PARTS)])]
    if cases.empty:
        return {}
    keys = ["seed", "subject", "case", "structure", "arm", "synthetic"]
    found = {}
    for place, part in enumerate(PARTS):
        on = cases["arm"].str[place] == "1"
        sides = cases.assign(arm=np.where(on, "on", "off"))
        found[part] = sides.groupby(keys, as_index=False)[metric].mean()
    return found


def noise_floor(cases: pd.DataFrame, arm: str, metric: str = "dice") -> dict:
    """How far apart two trainings of one arm lie that differ in their seed alone.

    Args:
        cases: rows of one suite, task and structure (see the module).
        arm: the arm.
        metric: a name of `mvl.experiment.metrics.METRICS`.

    Returns:
        `n_seeds`, `sd_seeds` (of the seeds' means over subjects), `mean_difference` and
        `largest_difference` (absolute, over all pairs of seeds); NaN with one seed.

    Raises:
        RunError: as `contrast`.
    """
    check_unmixed(cases, (*_UNMIXED, "suite", "task", "structure", "synthetic"))
    per_seed = _subject_matrix(cases[cases["arm"] == arm], metric, arm).mean(axis=1)
    apart = [abs(x - y) for x, y in combinations(per_seed, 2)] or [np.nan]
    return {
        "n_seeds": len(per_seed),
        "sd_seeds": float(per_seed.std(ddof=1)),
        "mean_difference": float(np.mean(apart)),
        "largest_difference": float(np.max(apart)),
    }


def sentence(row) -> str:
    """A contrast in plain English: block, size, difference with interval, verdict.

    Args:
        row: one row of `contrasts_table`, as a Series or a mapping.
    """
    facts = COMPARED[row["metric"]]
    digits, unit = (2, " mm") if facts.unit else (4, "")
    where = f"{row['task']}, {row['structure']}"
    size = f"{count(row['n_subjects'], 'subject')}, {count(row['n_seeds'], 'seed')}"
    difference = f"{row['arm_a']} minus {row['arm_b']} is {row['difference']:+.{digits}f}{unit}"
    text = f"{where} ({size}): in {facts.title}, {difference}"
    if np.isnan(row["ci_low"]):
        text += ", with no interval, since one subject gives none"
    else:
        text += f" (95 % interval {row['ci_low']:+.{digits}f} to {row['ci_high']:+.{digits}f}{unit}"
        # An adjusted p may speak against an interval, which no adjustment widens.
        adjusted = "" if row["p_holm"] == row["p"] else "adjusted "
        p = p_value(row["p_holm"])
        text += f", {adjusted}p {p if p.startswith('<') else '= ' + p})"
    text += f". Verdict: {verdict_in_words(row)}."
    if row["n_seeds"] == 1:
        text += " One seed: other seeds may differ by more than the interval says."
    block = row["block"]
    if isinstance(block, str) and block:
        text += f" This is about the block {block} and decides nothing about another."
    else:
        text += " No language block is involved."
    return f"Synthetic data: {text}" if row["synthetic"] else text


def verdict_in_words(row):
    """The verdict of one row of a `contrasts_table`, with the arms' names and no full stop."""
    return _verdict_in_words(row) + (" (one seed)" if row["n_seeds"] == 1 else "")


def _verdict_in_words(row):
    a, b, said = row["arm_a"], row["arm_b"], row["verdict"]
    if said == "equivalent":
        return f"equivalent, {a} and {b} differ by less than {BOUND:g}"
    if said == "better but negligible":
        return f"better but negligible, {a} beats {b} by less than {BOUND:g}"
    if said == "worse but negligible":
        return f"worse but negligible, {a} trails {b} by less than {BOUND:g}"
    if said == "undecided":
        return f"undecided between {a} and {b}"
    if said in ("better", "worse") and not COMPARED[row["metric"]].unit:
        least = min(abs(row["ci_low"]), abs(row["ci_high"]))
        amount = f"by at least {BOUND:g}" if least >= BOUND else f"maybe by less than {BOUND:g}"
        return f"{a} is {said} than {b}, {amount}"
    word, _, amount = said.partition(" ")
    return f"{a} is {word} than {b}{' ' if amount else ''}{amount}"


def check_unmixed(cases, columns):
    """Refuse a table in which rows that cannot be compared stand side by side."""
    for column in columns:
        if column in cases:
            found = sorted(map(str, cases[column].unique()))
            if len(found) > 1:
                raise RunError(
                    f"the table mixes {column} {' and '.join(found)}: results of different "
                    f"{column} cannot be compared; choose one of them"
                )


def _subject_matrix(cases, metric, arm=None):
    """The (seeds, subjects) frame of one arm's metric, cases of a subject averaged."""
    return _subject_matrices(cases, [metric], arm)[metric]


def _subject_matrices(cases, metrics, arm=None):
    """{metric: the (seeds, subjects) frame of one arm}; all at once, to sort them once."""
    if unknown := [name for name in metrics if name not in COMPARED or name not in cases]:
        known = ", ".join(name for name in COMPARED if name in cases)
        raise RunError(f"the table has no metric {unknown[0]!r}; it has {known}")
    if cases.empty:
        raise RunError(f"the table has no case of the arm {arm!r}; run that arm first")
    arm = arm or cases["arm"].iloc[0]
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
    own = pairs[: int((rows["seed"] == seeds[0]).sum())]
    values = rows[list(metrics)].to_numpy(float)
    if pairs != own * len(seeds) or np.isnan(values).any():
        raise _missing(cases, metrics, arm)
    subjects, first, counts = np.unique(
        [subject for subject, _ in own], return_index=True, return_counts=True
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


def _paired_differences(cases, arm_a, arm_b, metric):
    """The (seeds, subjects) array of arm_a minus arm_b over the seeds that both have."""
    sides = {arm: cases[cases["arm"] == arm] for arm in (arm_a, arm_b)}
    a, b = (_subject_matrix(rows, metric, arm) for arm, rows in sides.items())
    if set(sides[arm_a]["case"]) != set(sides[arm_b]["case"]) or not a.columns.equals(b.columns):
        raise RunError(
            f"{arm_a} and {arm_b} were evaluated on different cases, so that nothing is paired; "
            "run both on the same data and split"
        )
    seeds = a.index.intersection(b.index)
    if seeds.empty:
        raise RunError(f"{arm_a} and {arm_b} have no seed in common; run both with the same seeds")
    # Contiguous, so that sums are taken in one order whatever the order of the table's rows.
    return np.ascontiguousarray((a.loc[seeds] - b.loc[seeds]).to_numpy())


def _bootstrap_means(differences, draws, generator):
    """Means (draws,) as other seeds and subjects might have given them; see the module.

    Args:
        differences: (seeds, subjects), two subjects or more. With one seed there is no spread of
            seeds to resample.
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
    df = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    return mean + spread / np.sqrt(generator.chisquare(df, draws) / df)


def _share(condition):
    """Share of draws, the observed result counted as one: so no p value is zero."""
    return float((np.count_nonzero(condition) + 1) / (len(condition) + 1))


def _paired_t(differences):
    """p of a one-sample t test of differences (n,) against 0; NaN with one of them."""
    if len(differences) < 2:
        return np.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _holm(p, family=0):
    """Holm's step-down adjustment of p values (n,); those that are NaN count for nothing."""
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    size = max(family, len(order))
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (size - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
