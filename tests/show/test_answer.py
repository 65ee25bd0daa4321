"""The README's answer: effects in words, by hand-computed cases, and rows of the reference."""

import shutil

import pytest

from mvl.show.answer import QUESTIONS, answer_section
from mvl.show.sentences import effect
from mvl.study.reference import REFERENCE, read_table


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.0153, -0.0033, "loss of 0.003 to 0.015"),
        (0.0064, 0.0165, "gain of 0.006 to 0.017"),
        (-0.0068, 0.0032, "loss of 0.007 to gain of 0.003"),
    ],
)
def test_an_interval_in_a_clinicians_words(low, high, text):
    assert effect({"ci_low": low, "ci_high": high}) == text


def test_each_question_that_the_first_protocol_answers_has_a_row(tmp_path):
    shutil.copy(REFERENCE / "contrasts.csv", tmp_path)
    table = read_table(REFERENCE / "contrasts.csv")
    table = table[table["n_seeds"] > 1]
    keys = set(zip(table["suite"], table["arm_a"], table["arm_b"], strict=True))
    answered = [question for question, *pair in QUESTIONS if tuple(pair) in keys]
    answer, *rows, picture = filter(None, answer_section(tmp_path).splitlines())
    assert [line.split(" | ")[0] for line in rows[2:]] == [f"| {name}" for name in answered]
    assert (
        len(rows) <= 8 and "could not test it" in answer and "language_differences.png" in picture
    )
