import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from mvl.data.splits import STUDY_TASK, Split, check_split, make_split, study_cases
from mvl.data.task_folder import Case
from mvl.data.tasks import TASKS
from mvl.errors import DataError
from mvl.study.reference import REFERENCE, read_table


def cases(subjects, each=2):
    return [
        Case(f"c{s:03d}_{k}", f"s{s:03d}", Path("x"), Path("y"))
        for s in range(subjects)
        for k in range(each)
    ]


def subjects_of(names):
    return {name.split("_")[0] for name in names}


def test_no_subject_is_on_two_sides_and_folds_validate_each_other_subject_once():
    splits = [make_split(cases(40), 0, fold) for fold in range(5)]
    for split in splits:
        sides = [subjects_of(side) for side in (split.train, split.validation, split.test)]
        assert all(not a & b for a, b in itertools.combinations(sides, 2))
        assert len(set.union(*sides)) == 40
        assert len(sides[2]) == 8 and len(sides[1]) in (6, 7)
        assert sum(map(len, (split.train, split.validation, split.test))) == 80
    assert len({split.test for split in splits}) == 1
    validated = list(itertools.chain(*(subjects_of(split.validation) for split in splits)))
    assert len(validated) == len(set(validated)) == 32
    assert make_split(cases(40)[::-1], 0, 0) == splits[0]
    assert make_split(cases(40), 1, 0).test != splits[0].test


def test_fractions_are_nested_and_leave_the_test_set_whole():
    tenth, third, whole = (make_split(cases(100), 0, 1, f) for f in (0.1, 0.3, 1.0))
    assert set(tenth.train) < set(third.train) < set(whole.train)
    assert set(tenth.validation) < set(third.validation) < set(whole.validation)
    assert tenth.test == third.test == whole.test
    assert len(subjects_of(third.train)) == round(0.3 * len(subjects_of(whole.train)))


def test_a_leak_is_named():
    known = cases(3)
    hashes = {case.name: case.name for case in known}
    split = Split(("c000_0",), ("c001_0", "c001_1"), ("c000_1", "c002_0", "c002_1"))
    with pytest.raises(DataError, match=r"c000_0 \(train\) and c000_1 \(test\).*subject"):
        check_split(split, known, hashes)
    split = Split(("c000_0", "c000_1"), ("c001_0", "c001_1"), ("c002_0", "c002_1"))
    check_split(split, known, hashes)
    with pytest.raises(DataError, match="c000_0 .train. and c002_1 .test. .*image content"):
        check_split(split, known, hashes | {"c002_1": "c000_0"})


def test_a_split_is_what_was_saved(tmp_path):
    split = make_split(cases(12), 0, 3)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


def test_with_more_cases_than_the_studys_the_test_set_is_the_studys_own():
    task = TASKS[STUDY_TASK]
    names = [f"hippocampus_{n:03d}" for n in range(1, 395)]  # each number that MSD gives
    every = [Case(name, task.subject_of(name), Path(name), None) for name in names]
    used = study_cases(task, every)
    assert len(used) == 207 and len({case.subject for case in used}) == 137
    tested = set(read_table(REFERENCE / "cases.csv.gz")["case"])
    for fold in range(5):
        assert set(make_split(used, split_seed=0, fold=fold).test) == tested
    # Without the rule, what was trained on would be tested.
    trained = set(make_split(used, split_seed=0, fold=0).train)
    assert trained & set(make_split(every, split_seed=0, fold=0).test)
    # Another task, a phantom, and a folder without all of the study's cases stay as they are.
    assert study_cases(replace(task, synthetic=True), every) == every
    assert study_cases(replace(task, name="Mine"), every) == every
    assert study_cases(task, every[1:]) == every[1:]


def given(side, *names):
    return [Case(name, name, Path(name), Path(name), side) for name in names]


def test_a_validation_list_is_the_validation_side_of_every_seed_and_share():
    """MONAI's BTCV lists 8 training and 4 validation cases: 6, 4 and 2 on the sides."""
    known = given(None, *"abcdefgh") + given("validation", *"wxyz")
    for fold, fraction in itertools.product(range(5), (0.5, 1.0)):
        split = make_split(known, 0, fold, fraction)
        assert split.validation == ("w", "x", "y", "z")
        assert (len(split.train), len(split.test)) == (6 * fraction, 2)
        assert {*split.train, *split.test} <= set("abcdefgh")


def test_given_test_cases_are_the_test_side_and_folds_come_from_the_others():
    known = given(None, *"abcdefghij") + given("test", "y", "z")
    splits = [make_split(known, 0, fold) for fold in range(5)]
    assert {split.test for split in splits} == {("y", "z")}
    assert sorted(itertools.chain(*(split.validation for split in splits))) == list("abcdefghij")


def test_a_whole_split_is_used_as_it_is():
    known = given("train", *"abcd") + given("validation", "e") + given("test", "f", "g")
    assert make_split(known, 0, 3) == Split(tuple("abcd"), ("e",), ("f", "g"))
    half = make_split(known, 0, 3, 0.5)
    assert len(half.train) == 2 and half.validation == ("e",) and half.test == ("f", "g")


def test_cases_that_cannot_be_split_are_refused_with_the_reason():
    two_sides = given(None, *"abcdefgh") + given("validation", "z")
    two_sides[0] = replace(two_sides[0], subject="z")
    for known, words in (
        (two_sides, r"subject z on two sides: a .the others. and z .validation"),
        (given(None, "a") + given("validation", "z"), "1 subjects are too few for .* training.*2"),
        (cases(5), "5 subjects are too few"),
    ):
        with pytest.raises(DataError, match=words):
            make_split(known, 0, 0)


def test_folds_that_test_each_subject_need_three_of_them():
    split = make_split(cases(5), 0, 0, testing="crossed")  # one subject a fold
    assert [len(subjects_of(side)) for side in (split.train, split.validation, split.test)] == [
        3,
        1,
        1,
    ]
    with pytest.raises(
        DataError, match="fold 0 of 2: no subject of 8 is left for the training side"
    ):
        make_split(cases(8), 0, 0, testing="crossed", folds=2)
    with pytest.raises(DataError, match="the validation side"):
        make_split(cases(11), 0, 9, folds=10)


def test_crosswise_the_next_fold_validates():
    splits = [make_split(cases(10), 0, fold, testing="crossed") for fold in range(5)]
    assert [s.validation for s in splits] == [s.test for s in (*splits[1:], splits[0])]
