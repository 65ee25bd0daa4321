"""Who is in training, validation and test: by subject, written down, checked for leaks.

20 % of the subjects are the test set; the others fall into five folds. Both come from one seed
(`DataConfig.split_seed`) and never change within a study; training seed s uses fold s mod 5 for
validation. A task may bring its own test or validation cases (`Case.side`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mvl.config import derive_seed
from mvl.data.task_folder import SIDES, Case
from mvl.data.tasks import Task
from mvl.errors import DataError
from mvl.files import read_json, read_table, write_json

TEST_SHARE = 0.2
FOLDS = 5

#: The task of the committed study, and the cases that the study uses.
STUDY_TASK = "Task04_Hippocampus"
_STUDY_CASES = Path(__file__).with_name("study_cases.csv")


@cache
def _study_cases():
    return frozenset(read_table(_STUDY_CASES, ("case",))["case"])


def study_cases(task: Task, cases: list[Case]) -> list[Case]:
    """The cases to use of a task: those of the committed study, where all of them exist.

    The study uses a part of MSD's Task04, and the test set depends on the cases. With all of MSD's
    cases, subjects that the committed model learned from would be test subjects.
    """
    if task.name != STUDY_TASK or task.synthetic or any(case.side for case in cases):
        return cases
    used = [case for case in cases if case.name in _study_cases()]
    return used if len(used) == len(_study_cases()) else cases


@dataclass(frozen=True)
class Split:
    """Names of the cases on each side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote; an `MvlError` if the file is missing or is not a split."""
        stored = read_json(path, *SIDES)
        if not all(isinstance(stored[side], list) for side in SIDES):
            raise DataError(f"{path} is not a split: each side is a list of names")
        return cls(*(tuple(stored[side]) for side in SIDES))


def make_split(
    cases: list[Case],
    split_seed: int,
    fold: int,
    fraction: float = 1.0,
    testing: str = "held-out",
) -> Split:
    """Divide cases by subject; each side is sorted by name.

    A side that the task gives (`Case.side`) stays as it is, whatever seed, fold and fraction. The
    other sides are drawn from the other cases.

    Args:
        split_seed: the seed of test set and folds.
        fold: 0 to 4, the validation fold.
        fraction: share of the training subjects, and of the validation subjects if they are
            drawn; a smaller share is a subset of a larger one. The test set is always whole.
        testing: `DataConfig.testing`.

    Raises:
        DataError: too few subjects, or a subject with cases on two given sides.
    """
    first, given = {}, {case.side for case in cases} - {None}
    for case in cases:
        other = first.setdefault(case.subject, case)
        if other.side != case.side:
            raise DataError(
                f"the task's own split has subject {case.subject} on two sides: {other.name} "
                f"({other.side or 'the others'}) and {case.name} ({case.side or 'the others'}); "
                "put both on one side, or correct subjects.csv"
            )
    subjects = sorted(
        subject for subject, case in first.items() if case.side not in ("validation", "test")
    )
    drawn = {"a test set": 1} if "test" not in given else {}
    drawn |= {f"{FOLDS} folds": FOLDS} if "validation" not in given else {"training": 1}
    if len(subjects) < sum(drawn.values()):
        raise DataError(
            f"{len(subjects)} subjects are too few for {' and '.join(drawn)}: "
            f"at least {sum(drawn.values())} labelled subjects are needed"
        )
    order = np.random.default_rng(derive_seed("split", split_seed)).permutation(subjects).tolist()

    def share(chosen):
        return chosen[: max(1, round(fraction * len(chosen)))]

    crossed = testing == "crossed" and "test" not in given
    if "test" in given:
        test = [subject for subject, case in first.items() if case.side == "test"]
    else:
        n_test = max(1, round(TEST_SHARE * len(order)))
        test = order[fold::FOLDS] if crossed else order[:n_test]
    rest = [subject for subject in order if subject not in set(test)]
    if "validation" in given:
        validation = [subject for subject, case in first.items() if case.side == "validation"]
    else:
        validation = order[(fold + 1) % FOLDS :: FOLDS] if crossed else rest[fold::FOLDS]
    train = share([subject for subject in rest if subject not in set(validation)])
    if "validation" not in given:
        validation = share(validation)

    def names(chosen):
        chosen = set(chosen)
        return tuple(sorted(case.name for case in cases if case.subject in chosen))

    return Split(names(train), names(validation), names(test))


def check_split(split: Split, cases: list[Case], hashes: dict[str, str]) -> None:
    """Check before every training that no subject and no voxel content is on two sides.

    `hashes` is {case: hash of its image's voxels}.

    Raises:
        DataError: a subject or an image that two sides share, by name.
    """
    subject_of = {case.name: case.subject for case in cases}
    for what, key_of in (("subject", subject_of), ("image content", hashes)):
        side_of = {}
        for side, names in asdict(split).items():
            for name in names:
                other, first = side_of.setdefault(key_of[name], (side, name))
                if other != side:
                    raise DataError(
                        f"leak: {first} ({other}) and {name} ({side}) have the same {what}"
                    )
