"""Numbers in words: sizes, p values, and a contrast with its verdict as a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mvl.experiment.metrics import METRICS
from mvl.study.summary import BOUND, COMPARED, FEWEST_SEEDS, FEWEST_SUBJECTS

if TYPE_CHECKING:
    import pandas as pd

#: What a table shows where a number is missing.
NOTHING = "–"


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """A number of things: "1 seed", "12,000 seeds"."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def span(values: Iterable[int], noun: str) -> str:
    """The range of some numbers of things: "1 to 3 seeds", "3 seeds"."""
    low, high = int(min(values)), int(max(values))
    return f"{low} to " * (low < high) + f"{high} {noun}{'s' * (high != 1)}"


def p_value(p: float) -> str:
    """A p value as tables show it."""
    if np.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(row: Mapping, digits: int = 4) -> str:
    """The 95 % interval of a contrast; `NOTHING` where one subject gives none."""
    if np.isnan(row["ci_low"]):
        return NOTHING
    return f"{row['ci_low']:+.{digits}f} to {row['ci_high']:+.{digits}f}"


def effect(row: Mapping) -> str:
    """A contrast's 95 % interval as a clinician reads it, such as "loss of 0.003 to 0.015"."""
    low, high = row["ci_low"], row["ci_high"]
    if np.isnan(low):
        return NOTHING
    if low > 0:
        return f"gain of {low:.3f} to {high:.3f}"
    if high < 0:
        return f"loss of {-high:.3f} to {-low:.3f}"
    return f"loss of {-low:.3f} to gain of {high:.3f}"


def estimate(row: Mapping) -> str:
    """A contrast's estimate and `effect`, such as "-0.009 (loss of 0.003 to 0.015)"."""
    return f"{signed(row['difference'])} ({effect(row)})"


def signed(difference: float) -> str:
    """A difference with its sign and three decimals; 0.000 has none."""
    text = f"{difference:+.3f}"
    return text if float(text) else "0.000"


def trained_on(runs: pd.DataFrame) -> str:
    """On what runs of a reference were trained; `runs` has device, dtype and torch."""
    machines = runs[["device", "dtype", "torch"]].drop_duplicates()
    return "trained on " + " and ".join(
        ("a CPU" if row.device == "cpu" else f"a GPU ({row.device})")
        + f" in {row.dtype}, PyTorch {row.torch}"
        for row in machines.itertuples()
    )


def mean_and_spread(summary: pd.DataFrame, metric: str) -> str:
    """A metric's mean ± standard deviation over subjects, which one subject does not have.

    `summary` has rows of `summary_table`, of one arm, with the metric as index. It is `NOTHING`
    where the metric was not measured.
    """
    if metric not in summary.index:
        return NOTHING
    row, digits = summary.loc[metric], METRICS[metric].digits
    spread = "" if np.isnan(row["sd_subjects"]) else f" ± {row['sd_subjects']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread}"


def sentence(row: Mapping) -> str:
    """A row of `contrasts_table` in plain English: block, size, difference, interval, verdict."""
    metric = COMPARED[row["metric"]]
    digits, unit = (2, " mm") if metric.unit else (4, "")
    size = f"{count(row['n_subjects'], 'subject')}, {count(row['n_seeds'], 'seed')}"
    text = f"{row['task']}, {row['structure']} ({size}): in {metric.title}, "
    text += f"{row['arm_a']} minus {row['arm_b']} is {row['difference']:+.{digits}f}{unit}"
    if np.isnan(row["ci_low"]):
        one = "subject" if row["n_subjects"] == 1 else "fold"
        text += f", with no interval, since one {one} gives none"
    else:
        # An adjusted p may speak against an interval, which no adjustment widens.
        adjusted = "" if row["p_holm"] == row["p"] else "adjusted "
        p = p_value(row["p_holm"])
        text += f" (95 % interval {interval(row, digits)}{unit}"
        if p != NOTHING:
            text += f", {adjusted}p {p if p.startswith('<') else '= ' + p}"
        text += ")"
    said = verdict_in_words(row)
    text += f". {said.capitalize() if no_verdict(row) else f'Verdict: {said}'}."
    block = row["block"]
    if isinstance(block, str) and block:
        text += f" This is about the block {block} and decides nothing about another."
    else:
        text += " No language block is involved."
    return f"Synthetic data: {text}" if row["synthetic"] else text


def no_verdict(row: Mapping) -> str:
    """Why a row of `contrasts_table` carries no verdict, such as "one seed"; "" if it does."""
    if row["synthetic"]:
        return "synthetic data"
    if row["n_subjects"] < FEWEST_SUBJECTS:
        return f"fewer than {FEWEST_SUBJECTS} subjects"
    if row["n_seeds"] < FEWEST_SEEDS:
        return "one seed"
    # docs/protocol.md says how this was found, in the first study.
    unused = row.get("suite") in ("language", "size") and row.get("arm_a") == "pretrained"
    unused = unused and row.get("block") == "package:all-minilm-l6-v2"
    if unused:
        return "the block is not used"
    # `inference` decides on Dice of the foreground alone, and from two folds on.
    return "" if row.get("verdict", "x") else "it is described, not tested"


def verdict_or_reason(row: Mapping) -> str:
    """The verdict of a row of `contrasts_table` as tables show it."""
    reason = no_verdict(row)
    return f"none: {reason}" if reason else row["verdict"]


def verdict_in_words(row: Mapping) -> str:
    """The verdict of a row of `contrasts_table`, with the arms' names and no full stop."""
    if reason := no_verdict(row):
        return f"no verdict: {reason}"
    a, b, verdict = row["arm_a"], row["arm_b"], row["verdict"]
    close = {
        "equivalent": f"equivalent, {a} and {b} differ by less than {BOUND:g}",
        "better but negligible": f"{verdict}, {a} beats {b} by less than {BOUND:g}",
        "worse but negligible": f"{verdict}, {a} trails {b} by less than {BOUND:g}",
        "not decided": f"not decided between {a} and {b}",
    }
    if verdict in close:
        return close[verdict]
    word, _, amount = verdict.partition(" ")
    if amount or COMPARED[row["metric"]].unit:
        return f"{a} is {word} than {b} {amount}".rstrip()
    least = min(abs(row["ci_low"]), abs(row["ci_high"]))
    amount = f"by at least {BOUND:g}" if least >= BOUND else f"maybe by less than {BOUND:g}"
    return f"{a} is {word} than {b}, {amount}"


def name_of_check(row) -> str:
    """What a row of `verify`'s table is about; "" where the reference has no name for it."""
    if not row.suite:
        return ""
    if row.check == "tables":
        return row.suite
    return f"{row.suite} {row.arm}, {row.seed if row.check == 'contrast' else f'seed {row.seed}'}"


def conclusion(checks: pd.DataFrame) -> tuple[bool | None, str]:
    """What the checks of `verify` say together: whether they agree (None: nothing to compare)."""
    runs = checks[checks["check"].isin(["cases", "means"])]
    known = int(runs["agrees"].notna().sum())
    wrong = int(checks["agrees"].eq(False).sum())
    contrasts, unfinished = ((checks["check"] == name).sum() for name in ("contrast", "state"))
    agrees = False if wrong else True if known else None
    if wrong:
        text = f"Not reproduced: {wrong} of {len(checks)} checks differ."
    elif not known:
        text = "Nothing to compare: the reference has none of these runs."
    else:
        text = f"Reproduced: {known} of {len(runs)} runs are in the reference and agree."
        if contrasts:
            does = "does" if contrasts == 1 else "do"
            text += f" So {does} {count(contrasts, 'difference')} between arms."
    if unfinished:
        text += f" Not compared, since not finished: {count(unfinished, 'run')}."
    return agrees, text
