"""The README's answer: a sentence, the contrasts that a reader wants to know first, a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mvl.files import REPOSITORY, with_section, write_text
from mvl.show import crossed
from mvl.show.sentences import count, estimate
from mvl.show.tables import markdown
from mvl.study.reference import REFERENCE, read_table

BEGIN, END = "<!-- answer: begin, written by `mvl reference` -->", "<!-- answer: end -->"

#: Question, and the contrast of the first protocol that answers it.
QUESTIONS = (
    ("The pre-trained block against none", "language", "pretrained", "none"),
    ("The pre-trained block against random weights", "language", "pretrained", "random"),
    ("The pre-trained block against its mappers alone", "language", "pretrained", "identity"),
    ("Hybrid attention alone", "fusion", "010", "000"),
    ("Multi-scale fusion alone", "fusion", "001", "000"),
    ("Block, hybrid attention and fusion together", "fusion", "111", "000"),
)

#: Until the second protocol has results.
_OPEN = (
    "**Our answer so far: we do not know whether a pre-trained block helps.** The first study "
    "could not test it. A second study is under way."
)
_PICTURE = Path("figures") / "language_differences.png"
_PICTURE_TEXT = "Difference in Dice between vit with the block and vit, one point per subject"


def answer_section(reference: Path = REFERENCE) -> str:
    """The answer, six rows at most, and the headline picture, as Markdown.

    The second protocol's rows come first. Where it has some, the first one's are of what the second
    has not tested. An arm with one seed has no row: its interval would not know how far two
    trainings differ.
    """
    contrasts = read_table(reference / "contrasts.csv")
    contrasts = contrasts.query("metric == 'dice' and structure == 'foreground' and n_seeds > 1")
    answer, rows, text, picture = _OPEN, [], _PICTURE_TEXT, _PICTURE
    if second := crossed.published(reference):
        task = crossed.tasks_of(second)[-1]
        answer = f"**Our answer so far.** {crossed.claim_sentence(second, task)} "
        answer += crossed.block_sentence(second)
        rows, text, picture = crossed.answer_rows(second), crossed.PICTURE_TEXT, crossed.PICTURE
    if parts := crossed.published(reference, crossed.PARTS):
        rows += crossed.answer_rows(parts)
    for question, *pair in QUESTIONS:
        if second and pair[0] == "language" or parts and pair[0] == "fusion":
            continue
        found = contrasts[(contrasts[["suite", "arm_a", "arm_b"]] == pair).all(axis=1)]
        for row in found.head(1).to_dict("records"):
            size = f"{count(row['n_subjects'], 'subject')}, {count(row['n_seeds'], 'seed')}"
            # Their models do not use the block (docs/protocol.md).
            verdict = "no valid test*" if pair[0] == "language" else row["verdict"]
            values = {crossed.EFFECT: estimate(row), "verdict": verdict}
            values |= {"tested on": "first study: " * bool(second) + size}
            rows.append({"question": question} | values)
    link = (REFERENCE / picture).relative_to(REPOSITORY).as_posix()
    table = markdown(pd.DataFrame(rows[: len(QUESTIONS)]), aligned=False)
    return "\n\n".join([answer, table, f'<img src="{link}" width="480" alt="{text}">'])


def refresh_readme(readme: Path = REPOSITORY / "README.md", reference: Path = REFERENCE) -> None:
    """Write `answer_section` between the README's markers.

    Raises:
        MvlError: the README lacks a marker.
    """
    write_text(readme, with_section(readme, BEGIN, END, answer_section(reference)))
