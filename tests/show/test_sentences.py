"""Contrasts and checks in words."""

import math
import re

import pandas as pd
import pytest

from mvl.show.sentences import conclusion, effect, sentence

TASK = "Task04_Hippocampus"
BLOCK = "package:all-minilm-l6-v2"
ROW = {
    "suite": "own",
    "arm_a": "pretrained",
    "arm_b": "random",
    "task": TASK,
    "structure": "foreground",
    "metric": "dice",
    "block": BLOCK,
    "n_subjects": 27,
    "n_seeds": 5,
    "difference": 0.00123,
    "ci_low": -0.00211,
    "ci_high": 0.00456,
    "p": 0.4,
    "p_holm": 0.412,
    "p_tost": 0.0002,
    "verdict": "equivalent",
    "protocol_version": 1,
    "synthetic": False,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"synthetic": True}, "Synthetic data: Task04"),
        ({"n_seeds": 1, "n_subjects": 1}, "(1 subject, 1 seed)"),
        ({"n_seeds": 1}, "No verdict: one seed."),
        ({"n_subjects": 4}, "No verdict: fewer than 5 subjects."),
        ({"suite": "language"}, "No verdict: the block is not used."),
        ({"suite": "language", "block": "path:other"}, "Verdict: equivalent"),
        ({"block": math.nan}, "No language block is involved."),
        ({"p_holm": 0.0002}, "adjusted p < 0.001"),
        ({"p": 0.412}, "+0.0046, p = 0.412"),
        ({"metric": "hd95_mm", "difference": -0.4}, "in HD95, pretrained minus random is -0.40 mm"),
        ({"verdict": "better by at least 0.01"}, "pretrained is better than random by at least"),
        ({"verdict": "better but negligible"}, "beats random by less than 0.01"),
        ({"verdict": "worse"}, "pretrained is worse than random, maybe by less than 0.01."),
        ({"verdict": "worse", "ci_low": -0.03, "ci_high": -0.01}, "than random, by at least 0.01."),
        ({"verdict": "worse", "metric": "hd95_mm"}, "pretrained is worse than random."),
        ({"verdict": "better", "ci_low": 0.004}, "better than random, maybe by less than 0.01."),
        ({"ci_low": math.nan, "n_subjects": 1}, "one subject gives none"),
        ({"ci_low": math.nan, "verdict": ""}, "one fold gives none"),
        ({"verdict": "", "p": math.nan, "p_holm": math.nan}, "+0.0046). No verdict: it is desc"),
    ],
)
def test_what_a_sentence_has_to_say(changes, said):
    assert said in sentence(ROW | changes)


@pytest.mark.parametrize(
    ("checks", "agrees", "words"),
    [
        ([("cases", True), ("means", True), ("contrast", True)], True, "2 of 2 runs .* 1 diff"),
        ([("cases", True), ("cases", None)], True, "1 of 2 runs"),
        ([("cases", True), ("file", False)], False, "Not reproduced: 1 of 2"),
        ([("cases", None), ("file", True)], None, "Nothing to compare"),
        ([("cases", True), ("state", None), ("state", None)], True, "not finished: 2 runs"),
    ],
)
def test_what_checks_say_together(checks, agrees, words):
    table = pd.DataFrame(checks, columns=["check", "agrees"])
    concluded, text = conclusion(table)
    assert concluded is agrees and re.search(words, text)


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
