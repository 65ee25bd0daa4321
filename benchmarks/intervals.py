"""How often an interval holds the truth, and what a study of this size can find, by simulation.

    python benchmarks/intervals.py       # --tables 2000; some minutes of one core

It draws studies of five folds with the variances that the first protocol measured, lets each method
give its interval of one contrast, and writes docs/coverage.csv and the tables of
docs/statistics.md. `study.inference` has the method that was chosen; the others are written here,
for balanced folds, for which they need no iteration.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mvl.files import with_section, write_table, write_text
from mvl.study.inference import ALPHA, BOUND, claim, mean_square, paired_folds, step_down, verdict

DOCS = Path(__file__).parents[1] / "docs"
TABLE, PAGE = DOCS / "coverage.csv", DOCS / "statistics.md"
BEGIN, END = "<!-- tables: begin, written by benchmarks/intervals.py -->", "<!-- tables: end -->"

FOLDS = 5
#: Standard deviations of a paired difference in Dice: of a training, of a subject, and of their
#: interaction. The first protocol's for block against none: 0.0045, 0.0030 and 0.0109; against the
#: controls 0.002 to 0.004, 0 to 0.004 and 0.009 to 0.010 (27 subjects, 5 seeds).
SD = {"training": 0.0040, "subject": 0.0030, "interaction": 0.0110}

#: Name -> (how many times as far the trainings of the first arms vary, skewed subjects).
VARIANCES = {
    "equal": ((), False),
    "one arm x 1.5": ((1.5,), False),
    "both arms x 1.5": ((1.5, 1.5), False),
    "skewed subjects": ((), True),
}
METHODS = ("folds", "pooled", "closed form", "mixed model", "bootstrap")
#: The methods' names in the tables.
TITLES = {
    "folds": "**paired t over folds**",
    "pooled": "variance pooled over arms",
    "closed form": "training variance pooled",
    "mixed model": "mixed model",
    "bootstrap": "bootstrap",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=2000, help="simulated studies per line")
    tables = parser.parse_args().tables
    lines = coverage, one_fold, three_tasks, power, families
    found = pd.DataFrame([row for line in lines for row in line(tables)])
    write_table(TABLE, found)
    write_text(PAGE, with_section(PAGE, BEGIN, END, "\n\n".join(shown(found, tables))))


def simulate(tables, arms, subjects, repeats, ratios=(), skewed=False, seed=0):
    """Dice without any effect: (tables, arms, folds, repeats, subjects of a fold).

    Args:
        ratios: of the first arms' standard deviation between trainings to `SD`.
        skewed: the subjects' effects on the first arm are log-normal (skewness 6).
    """
    generator = np.random.default_rng([seed, arms, subjects, repeats])
    # A difference of two arms has twice the variance of one.
    sd = {name: value / np.sqrt(2) for name, value in SD.items()}
    scale = np.ones(arms)
    scale[: len(ratios)] = ratios
    size = round(subjects / FOLDS)
    shape = (tables, arms, FOLDS, repeats, size)
    dice = sd["training"] * scale[:, None, None, None] * generator.normal(size=(*shape[:4], 1))
    for name, repeated in (("subject", 1), ("interaction", repeats)):
        effects = generator.normal(size=(tables, arms, FOLDS, repeated, size))
        if skewed:
            drawn = np.exp(effects[:, 0])
            effects[:, 0] = (drawn - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
        dice = dice + sd[name] * effects
    return dice


def intervals(dice):
    """{method: (estimates (tables,), half-widths (tables,))} of the first arm minus the second."""
    tables, arms, folds, repeats, size = dice.shape
    by_fold = dice.mean((3, 4))
    estimate, error, freedom = paired_folds(by_fold[:, 0] - by_fold[:, 1], np.full(folds, size))
    found = {"folds": stats.t.isf(ALPHA / 2, freedom) * error}

    square, freedom = mean_square(by_fold)
    found["pooled"] = stats.t.isf(ALPHA / 2, freedom) * np.sqrt(2 * square / folds)

    # The contrast's own variance between subjects, the suite's between trainings.
    by_subject = dice.mean(3)
    inner = by_subject - by_subject.mean(1, keepdims=True)
    inner = inner - inner.mean(3, keepdims=True)
    inner_freedom = (arms - 1) * folds * (size - 1)
    inner_square = (inner**2).sum((1, 2, 3)) / inner_freedom
    own = by_subject[:, 0] - by_subject[:, 1]
    own = ((own - own.mean(2, keepdims=True)) ** 2).sum((1, 2)) / (folds * (size - 1))
    parts = np.stack([own / size, 2 * np.maximum(0, square - inner_square / size)]) / folds
    of_trainings = np.maximum(1e-9, freedom * (parts[1] / (2 * square / folds)) ** 2)
    scale = parts[0] ** 2 / (folds * (size - 1)) + parts[1] ** 2 / of_trainings
    quantile = stats.t.isf(ALPHA / 2, parts.sum(0) ** 2 / scale)
    found["closed form"] = quantile * np.sqrt(parts.sum(0))

    found["mixed model"] = stats.norm.isf(ALPHA / 2) * np.sqrt(_restricted(dice))
    return {name: (estimate, half) for name, half in found.items()} | {
        "bootstrap": _bootstrap(dice)
    }


def _restricted(dice):
    """The variance that arm + (1|subject) + (1|training) + (1|subject:arm) gives, by REML.

    For balanced data with one repeat, where subject:arm is the residual, REML's components are
    those of the analysis of variance; where the training's would be negative, the sums of squares
    are pooled. With two repeats it is the analysis of variance, negative components taken as zero.
    """
    _, arms, folds, repeats, size = dice.shape
    dice = dice - dice.mean(1, keepdims=True)
    dice = dice - dice.mean((2, 3, 4), keepdims=True)
    training = dice.mean(4, keepdims=True)
    if repeats == 1:
        sums = (size * (training**2).sum((1, 2, 3, 4)), ((dice - training) ** 2).sum((1, 2, 3, 4)))
        freedoms = (arms - 1) * (folds - 1), (arms - 1) * folds * (size - 1)
        between, within = (total / freedom for total, freedom in zip(sums, freedoms, strict=True))
        square = np.where(between > within, between, sum(sums) / sum(freedoms))
        return 2 * square / (folds * size)
    of_subject = dice.mean(3, keepdims=True) - dice.mean((3, 4), keepdims=True)
    rest = dice - training - of_subject
    ones = (arms - 1) * folds
    error = (rest**2).sum((1, 2, 3, 4)) / (ones * (repeats - 1) * (size - 1))
    subject = repeats * (of_subject**2).sum((1, 2, 3, 4)) / (ones * (size - 1))
    training = size * (training**2).sum((1, 2, 3, 4)) / ((arms - 1) * (folds * repeats - 1))
    variance = error + np.maximum(0, subject - error) + np.maximum(0, training - error)
    return 2 * variance / (folds * size * repeats)


def _bootstrap(dice, draws=400):
    """Percentile intervals: subjects and trainings resampled within folds, crossed.

    One repeat has one training per fold: then whole folds are resampled. The resampled trainings
    are spread by sqrt(n / (n - 1)), as a variance divides by n - 1.
    """
    difference = dice[:, 0] - dice[:, 1]  # (tables, folds, repeats, subjects)
    tables, folds, repeats, size = difference.shape
    generator = np.random.default_rng(0)
    subjects, trainings = difference.mean(2), difference.mean(3)
    weights = generator.multinomial(size, [1 / size] * size, (draws, folds)) / size
    centred = subjects - subjects.mean(2, keepdims=True)
    spread = np.einsum("dfs,tfs->td", weights, centred) / folds
    if repeats > 1:
        weights = generator.multinomial(repeats, [1 / repeats] * repeats, (draws, folds)) / repeats
        centred = trainings - trainings.mean(2, keepdims=True)
        drawn = np.einsum("dfr,tfr->td", weights, centred) / folds
        spread += np.sqrt(repeats / (repeats - 1)) * drawn
    else:
        weights = generator.multinomial(folds, [1 / folds] * folds, draws) / folds
        centred = trainings[..., 0] - trainings[..., 0].mean(1, keepdims=True)
        spread = np.sqrt(folds / (folds - 1)) * centred @ weights.T
    low, high = np.quantile(spread, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    estimate = difference.mean((1, 2, 3))
    return estimate + (low + high) / 2, (high - low) / 2


def coverage(tables):
    """Of each method, in each study: the share of intervals that hold 0, and their half-width."""
    for arms, subjects, repeats in product((5, 8), (20, 115, 137), (1, 2)):
        for name, (ratios, skewed) in VARIANCES.items():
            about = {"arms": arms, "subjects": subjects, "repeats": repeats, "variances": name}
            found = intervals(simulate(tables, arms, subjects, repeats, ratios, skewed))
            for method, (estimate, half) in found.items():
                covered = float((np.abs(estimate) <= half).mean())
                yield about | {"method": method, "measure": "coverage", "value": covered}
                yield about | {"method": method, "measure": "half-width", "value": half.mean()}


def one_fold(tables):
    """Of two arms with one fold, where the suite's three others have five."""
    for subjects, (name, (ratios, skewed)) in product((20, 115, 137), VARIANCES.items()):
        dice = simulate(tables, 5, subjects, 1, ratios, skewed, seed=1)[:, :, :, 0]
        own = dice[:, 0, 0] - dice[:, 1, 0]
        square, freedom = mean_square(dice[:, 2:].mean(3))
        variance = np.maximum(2 * square, own.var(1, ddof=1) / own.shape[1])
        half = stats.t.isf(ALPHA / 2, freedom) * np.sqrt(variance)
        about = {"arms": 5, "subjects": subjects, "repeats": 1, "variances": name}
        about |= {"method": "one fold"}
        covered = float((np.abs(own.mean(1)) <= half).mean())
        yield about | {"measure": "coverage", "value": covered}
        yield about | {"measure": "half-width", "value": half.mean()}


def three_tasks(tables):
    """Of the mean over tasks of three sizes, as `mvl.study.inference` pools them."""
    for repeats, (name, (ratios, skewed)) in product((1, 2), VARIANCES.items()):
        estimates, variances = [], []
        for subjects in (20, 115, 137):
            by_fold = simulate(tables, 2, subjects, repeats, ratios, skewed, seed=4).mean((3, 4))
            size = np.full(FOLDS, round(subjects / FOLDS))
            estimate, error, freedom = paired_folds(by_fold[:, 0] - by_fold[:, 1], size)
            estimates.append(estimate)
            variances.append(error**2)
        variances = np.array(variances)
        freedoms = variances.sum(0) ** 2 / (variances**2 / freedom).sum(0)
        half = stats.t.isf(ALPHA / 2, freedoms) * np.sqrt(variances.sum(0)) / 3
        about = {"arms": 2, "subjects": 272, "repeats": repeats, "variances": name}
        about |= {"method": "three tasks"}
        covered = float((np.abs(np.mean(estimates, 0)) <= half).mean())
        yield about | {"measure": "coverage", "value": covered}
        yield about | {"measure": "half-width", "value": half.mean()}


def power(tables):
    """How often each verdict is given, of one contrast and of a claim that needs four."""
    for subjects, repeats in product((20, 115, 137), (1, 2)):
        dice = simulate(tables, 5, subjects, repeats, seed=2)
        by_fold = dice.mean((3, 4))
        size = np.full(FOLDS, dice.shape[-1])
        estimate, error, freedom = paired_folds(by_fold[:, :1] - by_fold[:, 1:], size)
        for effect in (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02):
            moved = estimate + effect
            p = 2 * stats.t.sf(np.abs(moved) / error, freedom)
            p_tost = stats.t.sf((BOUND - np.abs(moved)) / error, freedom)
            words = np.vectorize(verdict)(moved, p, p_tost)
            claims = [claim(pd.DataFrame({"verdict": row})) for row in words]
            about = {"arms": 5, "subjects": subjects, "repeats": repeats, "effect": effect}
            for method, given in (("one contrast", words[:, 0]), ("claim of four", claims)):
                for word in ("better", "worse", "equivalent", "not decided"):
                    share = float(np.mean(np.asarray(given) == word))
                    yield about | {"method": method, "measure": word, "value": share}


def families(tables):
    """How often a family without any effect has a significant contrast."""
    tables //= 3  # each draws for itself
    for contrasts, (name, (ratios, skewed)) in product((1, 3, 7), VARIANCES.items()):
        dice = simulate(tables, contrasts + 1, 137, 1, ratios, skewed, seed=3)
        by_fold = dice.mean((3, 4))
        size = np.full(FOLDS, dice.shape[-1])
        estimate, error, freedom = paired_folds(by_fold[:, 1:] - by_fold[:, :1], size)
        weights = np.hstack([-np.ones((contrasts, 1)), np.eye(contrasts)])
        freedoms, t = np.full(contrasts, freedom), estimate / error
        smallest = [step_down(row, freedoms, weights, 4000).min() for row in t]
        holm = contrasts * 2 * stats.t.sf(np.abs(t).max(1), freedom)
        about = {"arms": contrasts + 1, "subjects": 137, "repeats": 1, "variances": name}
        for method, p in (("step-down", smallest), ("Holm", holm)):
            share = float((np.asarray(p) < ALPHA).mean())
            yield about | {"method": method, "measure": "false alarms", "value": share}


def shown(found, tables):
    """The Markdown of docs/statistics.md's tables."""
    keys = ["arms", "subjects", "repeats", "variances"]
    found = found.astype({"arms": int, "subjects": int, "repeats": int})
    yield f"### Coverage of 95 % intervals, in per cent ({tables:,} studies per line)"
    own = found[found["method"].isin(METHODS)]
    covered = own[own["measure"] == "coverage"].pivot(index=keys, columns="method", values="value")
    wide = own[own["measure"] == "half-width"].pivot(index=keys, columns="method", values="value")
    table = (100 * covered[list(METHODS)]).map("{:.1f}".format).rename(columns=TITLES)
    for method in ("folds", "pooled"):
        table[f"half-width, {TITLES[method].strip('*')}"] = wide[method].map("{:.4f}".format)
    yield _markdown(table.reset_index())
    for method, title in (
        ("one fold", "One fold: how far trainings differ is taken from the suite's other arms"),
        ("three tasks", "The mean over three tasks, of 20, 115 and 137 subjects"),
    ):
        yield f"### {title}"
        own = found[found["method"] == method]
        own = own.pivot(index=keys[1:], columns="measure", values="value")
        own["coverage"] = (100 * own["coverage"]).map("{:.1f}".format)
        own["half-width"] = own["half-width"].map("{:.4f}".format)
        yield _markdown(own.reset_index())
    yield "### What is found: the share of studies with each verdict, in per cent"
    own = found[found["method"].isin(["one contrast", "claim of four"])]
    words = ["better", "worse", "equivalent", "not decided"]
    own = own.pivot(
        index=["subjects", "repeats", "effect"], columns=["method", "measure"], values="value"
    )
    own = (100 * own).map("{:.0f}".format)
    table = own["one contrast"][words]
    table["better, claim of four"] = own["claim of four"]["better"]
    table = table.reset_index()
    yield _markdown(table.assign(effect=table["effect"].map("{:.4f}".format)))
    yield "### Families without any effect: studies with a significant contrast, in per cent"
    own = found[found["measure"] == "false alarms"]
    own = own.assign(contrasts=own["arms"] - 1)
    own = own.pivot(index=["contrasts", "variances"], columns="method", values="value")
    yield _markdown((100 * own[["step-down", "Holm"]]).map("{:.1f}".format).reset_index())


def _markdown(table):
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


if __name__ == "__main__":
    main()
