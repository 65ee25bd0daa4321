"""Splits that a user brings: fixed sides, folds, by case or by subject."""

import json
from pathlib import Path

import pytest

from mvl.config import DataConfig
from mvl.data.splits import assign, read_splits
from mvl.data.task_data import open_task
from mvl.data.task_folder import Case
from mvl.errors import DataError


@pytest.fixture(scope="module")
def cases(phantom):
    """{subject: its cases} of the phantom's 16 cases, two a subject."""
    data, of = open_task(DataConfig(), 0, phantom, progress=False), {}
    for case in data.cases.values():
        of.setdefault(case.subject, []).append(case.name)
    return of


def opened(phantom, tmp_path, stored, seed=0, **more):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(stored))
    splits, by = read_splits(path)
    config = DataConfig(splits=splits, splits_by=by, **more)
    return open_task(config, seed, phantom, progress=False)


def test_folds_of_subjects_are_tested_crosswise(phantom, cases, tmp_path):
    subjects = sorted(cases)
    folds = [subjects[:3], subjects[3:5], subjects[5:]]
    stored, tested = {"by": "subject", "folds": folds}, []
    for number in range(3):
        data = opened(phantom, tmp_path, stored, number, testing="crossed", folds=3)
        split = data.split
        assert sorted(split.test) == sorted(sum((cases[s] for s in folds[number]), []))
        following = folds[(number + 1) % 3]
        assert sorted(split.validation) == sorted(sum((cases[s] for s in following), []))
        tested += split.test
    assert sorted(tested) == sorted(sum(cases.values(), []))


def test_nnunets_folds_are_what_each_validates_on(phantom, cases, tmp_path):
    folds = [sum((cases[s] for s in sorted(cases)[n::2]), []) for n in range(2)]
    stored = [{"train": folds[1 - n], "val": folds[n]} for n in range(2)]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(stored))
    expected = {name: str(n) for n in range(2) for name in folds[n]}
    splits, by = read_splits(path)
    assert dict(splits) == expected and by == "case"


def test_test_cases_are_fixed_and_folds_validate(phantom, cases, tmp_path):
    one, *others = sorted(cases)
    tests = set()
    validated = []
    for fold in range(7):
        data = opened(phantom, tmp_path, {"test": cases[one]}, folds=7, fold=fold)
        tests.add(data.split.test)
        validated += data.split.validation
    assert tests == {tuple(sorted(cases[one]))}
    assert sorted(validated) == sorted(sum((cases[s] for s in others), []))
    folds = {"by": "subject", "test": [one], "folds": [others[:3], others[3:]]}
    data = opened(phantom, tmp_path, folds, folds=2, fold=1)
    assert set(data.split.validation) == set(sum((cases[s] for s in others[3:]), []))
    assert set(data.split.test) == set(cases[one])


def test_a_subject_on_two_sides_is_named(phantom, cases, tmp_path):
    one, *others = sorted(cases)
    rest = sum((cases[subject] for subject in others), [])
    folds = [[cases[one][0], *rest], [cases[one][1]]]
    for stored, more in (
        ({"test": cases[one][:1]}, {}),
        ({"folds": folds}, {"folds": 2, "testing": "crossed"}),
    ):
        with pytest.raises(DataError, match=f"subject {one} on two sides: .*{cases[one][1]}"):
            opened(phantom, tmp_path, stored, **more)


def test_subjects_in_a_split_of_cases_are_recognised():
    cases = [Case(f"{who}_{n}", who, Path(f"{who}_{n}"), None) for who in "ab" for n in "12"]
    with pytest.raises(DataError, match='names a, which is no case; it is a subject: say {"by"'):
        assign(cases, DataConfig(splits=(("a", "test"),)), 0)
    sides = assign(cases, DataConfig(splits=(("a", "test"),), splits_by="subject"), 0)
    assert [case.side for case in sides] == ["test", "test", None, None]


@pytest.mark.parametrize(
    ("stored", "more", "words"),
    [
        ({"test": ["hippocampus_0001"]}, {}, "hippocampus_0001.*did you mean hippocampus_001"),
        ({"test": "a"}, {}, "expected names"),
        ({"by": "person", "test": ["a"]}, {}, "expected names"),
        ({"folds": 3}, {}, "expected names"),
        ([{"train": ["a"]}], {}, "expected names"),
        ({"tests": ["a"]}, {}, "expected names"),
        ({"test": ["a"], "train": ["a"]}, {}, "a is in test and train"),
        ({"train": ["a"], "validation": ["b"]}, {}, "must also name validation and test"),
        ({"folds": [["a"], ["a"]]}, {}, "a is in fold 0 and fold 1"),
    ],
)
def test_what_is_no_split_is_refused(phantom, tmp_path, stored, more, words):
    with pytest.raises(DataError, match=words):
        opened(phantom, tmp_path, stored, **more)


def test_a_split_that_leaves_cases_out_or_has_other_folds_is_refused(phantom, cases, tmp_path):
    subjects = sorted(cases)
    folds = [subjects[:4], subjects[4:]]
    for stored, more, words in (
        ({"folds": [subjects[:1], subjects[1:3]]}, {}, "lacks 10 cases"),
        ({"folds": folds}, {"testing": "crossed"}, "2 folds, the configuration 5"),
        ({"folds": folds}, {"folds": 2}, "tested crossed"),
    ):
        with pytest.raises(DataError, match=words):
            opened(phantom, tmp_path, {"by": "subject"} | stored, **more)
