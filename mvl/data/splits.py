"""Who is in training, validation and test: by subject, written down, checked for leaks.

20 % of the subjects are the test set; the others fall into five folds. Both come from one seed
(`DataConfig.split_seed`) and never change within a study; training seed s uses fold s mod 5 for
validation. A task may bring its own test or validation cases (`Case.side`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mvl.config import DataConfig, derive_seed
from mvl.data.task_folder import SIDES, Case
from mvl.data.tasks import Task
from mvl.errors import DataError, did_you_mean
from mvl.files import read_json, read_table, write_json

TEST_SHARE = 0.2
#: Of the study; `DataConfig.folds` has another task's.
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


#: `DataConfig.splits_by` -> the attribute of a case.
KEYS = {"case": "name", "subject": "subject"}


def read_splits(path: Path) -> tuple[tuple[tuple[str, str], ...], str]:
    """`DataConfig.splits` and `splits_by` of a JSON file.

    The file is {"train": [...], "validation": [...], "test": [...]}, not all of which are needed;
    {"folds": [[...], [...], ...]}, with or without "test"; or nnU-Net's list of
    {"train": [...], "val": [...]}, of which each fold is what it validates on. The names are of
    cases, or with "by": "subject" of subjects.

    Raises:
        DataError: the file is none of these, or a name is there twice.
    """
    stored = read_json(path)
    if isinstance(stored, list):
        stored = {"folds": [fold.get("val") if isinstance(fold, dict) else fold for fold in stored]}
    places = dict(stored) if isinstance(stored, dict) else {}
    folds, by = places.pop("folds", []), places.pop("by", "case")
    if not isinstance(folds, list):
        places, folds = {}, []
    else:
        places |= {str(number): names for number, names in enumerate(folds)}
    known = {"test", *map(str, range(len(folds)))} if folds else {*SIDES}
    if (
        not places
        or not places.keys() <= known
        or len(folds) == 1
        or by not in tuple(KEYS)
        or not all(
            isinstance(names, list) and names and all(isinstance(name, str) for name in names)
            for names in places.values()
        )
    ):
        raise DataError(
            f'{path}: expected names of cases, as {{"test": [...]}} (also "train" and '
            '"validation"), {"folds": [[...], [...]]}, or nnU-Net\'s splits_final.json; with '
            '"by": "subject" in it, of subjects'
        )
    place_of = {}
    for place, names in places.items():
        for name in names:
            if place_of.setdefault(name, place) != place:
                both = " and ".join(_place(p) for p in (place_of[name], place))
                raise DataError(f"{path}: {name} is in {both}")
    if "train" in places and len(places) < len(SIDES):
        raise DataError(
            f"{path} names train, so it must also name validation and test; add them, or leave "
            "train out: it is what the others leave"
        )
    return tuple(place_of.items()), by


def _place(name):
    return "not named" if name is None else f"fold {name}" if name.isdecimal() else name


def assign(cases: list[Case], config: DataConfig, fold: int) -> list[Case]:
    """Cases with the sides of the configuration's own split; as they are where it has none.

    Raises:
        DataError: a name of the split is not known; a subject is on two sides; the split leaves
            cases out; or it has other folds than `DataConfig.folds`.
    """
    if config.splits is None:
        return cases
    place_of = dict(config.splits)
    key_of = {case.name: getattr(case, KEYS[config.splits_by]) for case in cases}
    if unknown := sorted(place_of.keys() - set(key_of.values())):
        near = did_you_mean(unknown[0], key_of.values())
        if unknown[0] in {case.subject for case in cases}:
            near = '; it is a subject: say {"by": "subject", ...} in the file'
        raise DataError(f"the split names {unknown[0]}, which is no {config.splits_by}{near}")
    first, placed = {}, []
    for case in cases:
        place = place_of.get(key_of[case.name])
        other, before = first.setdefault(case.subject, (case, place))
        if before != place:
            raise DataError(
                f"the split has subject {case.subject} on two sides: {other.name} "
                f"({_place(before)}) and {case.name} ({_place(place)}); put both on one"
            )
        placed.append((case, place))
    folds = {place for place in place_of.values() if place.isdecimal()}
    lacking = [case.name for case, place in placed if place is None]
    if lacking and (folds or "train" in place_of.values()):
        raise DataError(
            f"the split lacks {len(lacking)} cases, such as {lacking[0]}; name them all"
        )
    if not folds:
        return [replace(case, side=place) for case, place in placed]
    if folds != {*map(str, range(config.folds))}:
        raise DataError(f"the split has {len(folds)} folds, the configuration {config.folds}")
    if (fixed := "test" in place_of.values()) == (config.testing == "crossed"):
        raise DataError(
            "a split of folds alone is tested crossed, one with test cases held-out; the "
            f"configuration says {config.testing}"
        )
    sides = {"test": "test", str(fold): "validation"}
    if not fixed:
        sides = {str(fold): "test", str((fold + 1) % config.folds): "validation"}
    return [replace(case, side=sides.get(place, "train")) for case, place in placed]


def make_split(
    cases: list[Case],
    split_seed: int,
    fold: int,
    fraction: float = 1.0,
    testing: str = "held-out",
    folds: int = FOLDS,
) -> Split:
    """Divide cases by subject; each side is sorted by name.

    A side that the task gives (`Case.side`) stays as it is, whatever seed, fold and fraction. The
    other sides are drawn from the other cases.

    Args:
        split_seed: the seed of test set and folds.
        fold: 0 to folds - 1: the validation fold, or with "crossed" the test fold.
        fraction: share of the training subjects, and of the validation subjects if they are
            drawn; a smaller share is a subset of a larger one. The test set is always whole.
        testing, folds: see `DataConfig`.

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
    crossed = testing == "crossed" and "test" not in given
    drawn = {"a test set": 1} if "test" not in given and not crossed else {}
    drawn |= {f"{folds} folds": folds} if "validation" not in given else {"training": 1}
    if len(subjects) < sum(drawn.values()):
        raise DataError(
            f"{len(subjects)} subjects are too few for {' and '.join(drawn)}: "
            f"at least {sum(drawn.values())} labelled subjects are needed"
        )
    order = np.random.default_rng(derive_seed("split", split_seed)).permutation(subjects).tolist()

    def share(chosen):
        return chosen[: max(1, round(fraction * len(chosen)))]

    if "test" in given:
        test = [subject for subject, case in first.items() if case.side == "test"]
    else:
        n_test = max(1, round(TEST_SHARE * len(order)))
        test = order[fold::folds] if crossed else order[:n_test]
    rest = [subject for subject in order if subject not in set(test)]
    if "validation" in given:
        validation = [subject for subject, case in first.items() if case.side == "validation"]
    else:
        validation = order[(fold + 1) % folds :: folds] if crossed else rest[fold::folds]
    train = share([subject for subject in rest if subject not in set(validation)])
    if "validation" not in given:
        validation = share(validation)

    sides = {"training": train, "validation": validation, "test": test}
    if empty := [side for side, chosen in sides.items() if not chosen]:
        raise DataError(
            f"fold {fold} of {folds}: no subject of {len(order)} is left for the {empty[0]} side; "
            "choose 3 folds or more, and not more than there are subjects to draw from"
        )

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
