"""The README's answer: the contrasts that a reader wants to know first, as one short table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mvl.files import REPOSITORY, with_section, write_text
from mvl.show.results import IN_SHORT
from mvl.show.sentences import count
from mvl.show.tables import markdown
from mvl.study.reference import REFERENCE, read_table

BEGIN, END = "<!-- answer: begin, written by `mvl reference` -->", "<!-- answer: end -->"

#: The first questions of the results' page, in a table that fits on the README's first screen.
QUESTIONS = IN_SHORT[:6]


def effect(row: Mapping) -> str:
    """A contrast's 95 % interval as a clinician reads it, such as "loss of 0.003 to 0.015"."""
    low, high = row["ci_low"], row["ci_high"]
    if low > 0:
        return f"gain of {low:.3f} to {high:.3f}"
    if high < 0:
        return f"loss of {-high:.3f} to {-low:.3f}"
    return f"loss of {-low:.3f} to gain of {high:.3f}"


def answer_section(reference: Path = REFERENCE) -> str:
    """One row per question of `QUESTIONS` that the reference answers, as a Markdown table.

    An arm with one seed has no row: its interval would not know how far two trainings differ.
    """
    contrasts = read_table(reference / "contrasts.csv")
    contrasts = contrasts.query("metric == 'dice' and structure == 'foreground' and n_seeds > 1")
    rows = []
    for question, *pair in QUESTIONS:
        found = contrasts[(contrasts[["suite", "arm_a", "arm_b"]] == pair).all(axis=1)]
        for row in found.head(1).to_dict("records"):
            size = f"{count(row['n_subjects'], 'subject')}, {count(row['n_seeds'], 'seed')}"
            values = {"effect on Dice (95 % interval)": effect(row), "verdict": row["verdict"]}
            values |= {"tested on": size}
            rows.append({"question": question} | values)
    return markdown(pd.DataFrame(rows), aligned=False)


def refresh_readme(readme: Path = REPOSITORY / "README.md", reference: Path = REFERENCE) -> None:
    """Write `answer_section` between the README's markers.

    Raises:
        MvlError: the README lacks a marker.
    """
    write_text(readme, with_section(readme, BEGIN, END, answer_section(reference)))
