"""The audit's splits: who is on both sides, counted over draws; nothing is trained."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from mvl.audit.switches import COLUMNS
from mvl.config import PROTOCOL_VERSION, derive_seed
from mvl.data.splits import Split
from mvl.data.task_folder import Case
from mvl.data.tasks import Task

#: A case's copies in the pool from which training and validation are drawn.
COPIES = ("original", "rotated", "intensity")
#: Shares of the cases and of the copies: test, and training of what is left.
TEST_SHARE, TRAINING_SHARE = 0.1, 0.8
#: How often the released code's split is drawn, to see what its missing seed is worth.
DRAWS = 20


def draw_copies(cases: list[Case], seed: int) -> pd.DataFrame:
    """Pool three copies of each case, and draw training and validation from the pool.

    Returns one row per copy: case, subject, copy, side. The released code sets no seed.
    """
    pool = [(case.name, case.subject, copy) for copy in COPIES for case in cases]
    order = np.random.default_rng(derive_seed("copies", seed)).permutation(len(pool))
    table = pd.DataFrame([pool[i] for i in order], columns=["case", "subject", "copy"])
    training = int(TRAINING_SHARE * len(pool))
    return table.assign(side=["train"] * training + ["validation"] * (len(pool) - training))


def released_split(cases: list[Case], seed: int) -> pd.DataFrame:
    """The released code's split: test cases by case, then `draw_copies` of the others.

    Of the side "test" it evaluates the first case.
    """
    order = np.random.default_rng(derive_seed("released split", seed)).permutation(len(cases))
    n_test = test_size(len(cases))
    test, rest = ([cases[i] for i in part] for part in (order[:n_test], order[n_test:]))
    table = pd.DataFrame({"case": [c.name for c in test], "subject": [c.subject for c in test]})
    table = table.assign(copy="original", side="test")
    return pd.concat([table, draw_copies(rest, seed)], ignore_index=True)


def test_size(cases: int) -> int:
    """How many of so many cases the released code tests; at least one, where its share is none."""
    return max(1, int(TEST_SHARE * cases))


def siblings(subject_of: dict[str, str]) -> tuple[set[str], set[str]]:
    """Of each subject with several of these cases: (the first case by name, all others)."""
    first, others = {}, set()
    for name in sorted(subject_of):
        if first.setdefault(subject_of[name], name) != name:
            others.add(name)
    return {first[subject_of[name]] for name in others}, others


def sibling_split(split: Split, cases: dict[str, Case], seed: int) -> Split:
    """A split in which all but the first case of each test subject are trained on.

    As many training cases, drawn by the seed, are on no side.
    """
    _, moved = siblings({name: cases[name].subject for name in split.test})
    generator = np.random.default_rng(derive_seed("siblings", seed))
    kept = generator.permutation(split.train)[len(moved) :].tolist()
    test = tuple(name for name in split.test if name not in moved)
    return replace(split, train=tuple(sorted([*kept, *moved])), test=test)


def shared_subjects(table: pd.DataFrame, side: str, others: Iterable[str]) -> float:
    """The share of a side's subjects that are on other sides of a `released_split`, too."""
    here, there = table[table["side"] == side], table[table["side"].isin(others)]
    return here["subject"].drop_duplicates().isin(there["subject"]).mean()


def split_rows(cases: list[Case], task: Task) -> pd.DataFrame:
    """Rows of audit.csv: which share of subjects is on both sides of the released code's split.

    The study's share is 0, which is checked before every training.
    """
    draws = [released_split(cases, seed) for seed in range(DRAWS)]
    subjects, rows = len({case.subject for case in cases}), []
    for switch, side, others, metric in (
        ("siblings", "test", ("train", "validation"), "test subjects in training or validation"),
        ("shared-subjects", "validation", ("train",), "validation subjects in training"),
    ):
        shares = [shared_subjects(draw, side, others) for draw in draws]
        mean, interval = np.mean(shares), f"range of {DRAWS} draws"
        row = (switch, "split", "", "", f"share of {metric}", 0.0, mean, mean, min(shares))
        row += (max(shares), interval, subjects, len(cases), 0)
        rows.append((*row, task.name, PROTOCOL_VERSION, task.synthetic))
    return pd.DataFrame(rows, columns=COLUMNS)
