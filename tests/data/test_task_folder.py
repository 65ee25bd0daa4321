"""Where cases come from: roots, listing, subjects, confinement, hashes, splits."""

import json

import pytest

from mvl.data.task_folder import Case, data_root, find_task, list_cases, task_and_cases
from mvl.errors import DataError
from mvl.files import REPOSITORY


def entries(*names):
    return [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names]


def make_task(folder, names, **more):
    """A task folder with a dataset.json that lists `names`; it has no other file."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"0": "background", "1": "a", "2": "b"}
    description = {"modality": {"0": "MRI"}, "labels": labels, "training": entries(*names)}
    (folder / "dataset.json").write_text(json.dumps(description | more))
    return folder


def listed(folder, images, **more):
    """A task whose images have the given paths."""
    training = [{"image": image, "label": f"labels/{image}"} for image in images]
    return task_and_cases(make_task(folder, [], training=training, **more))


def test_data_root_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "set"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "set"
    monkeypatch.delenv("MVL_DATA_ROOT")
    assert data_root() == REPOSITORY / "data"


def test_find_task_names_where_it_looked_and_the_ways_on(tmp_path):
    with pytest.raises(DataError) as caught:
        find_task("Task09_Spleen", tmp_path)
    commands = ("mvl data download Task09_Spleen", "mvl data phantom Task09_Spleen")
    for part in (str(tmp_path / "Task09_Spleen"), "MVL_DATA_ROOT", *commands):
        assert part in str(caught.value)
    with pytest.raises(DataError) as caught:
        find_task("Task99_Mine", tmp_path)
    assert "download" not in str(caught.value)
    make_task(tmp_path / "Task99_Mine", ["x"])
    assert find_task("Task99_Mine", tmp_path) == tmp_path / "Task99_Mine"


def test_cases_are_sorted_and_shadow_files_ignored(tmp_path):
    store = make_task(tmp_path / "store", ["b_2", "._b_2", "b_1"])
    folder = tmp_path / "t"
    folder.symlink_to(store)  # the folder itself may be a link
    assert [case.name for case in list_cases(folder)] == ["b_1", "b_2"]
    files = folder / "imagesTr/b_1.nii.gz", folder / "labelsTr/b_1.nii.gz"
    assert list_cases(folder)[0] == Case("b_1", "b_1", *files)


def test_subjects_csv_decides_and_must_be_complete(tmp_path):
    names = ["hippocampus_001", "hippocampus_002"]
    folder = make_task(tmp_path / "Task04_Hippocampus", names)
    first, second = list_cases(folder)
    assert first.subject == second.subject  # of one person, by the task's rule
    table = folder / "subjects.csv"
    table.write_text("case,subject\nhippocampus_001,p\nhippocampus_002,q\n")
    assert [case.subject for case in list_cases(folder)] == ["p", "q"]
    # White space makes no other subject.
    table.write_text("case,subject\nhippocampus_001, p\n hippocampus_002 ,p\u00a0\t\n")
    assert {case.subject for case in list_cases(folder)} == {"p"}
    table.write_text("case,subject\nhippocampus_001,p\nhippocampus_002,  \n")
    with pytest.raises(DataError, match="'subject'"):
        list_cases(folder)


@pytest.mark.parametrize(
    "image",
    ["../secret.nii.gz", "imagesTr/../../secret.nii.gz", "/etc/passwd", "", 7, None, "a\0b",
     "bad\udcff.nii.gz", ["x"], "imagesTr/link.nii.gz", "imagesTr/loop.nii.gz"],
)  # fmt: skip
def test_paths_stay_in_the_folder(tmp_path, image):
    folder = make_task(tmp_path / "t", [], training=[{"image": image, "label": "./l.nii.gz"}])
    (tmp_path / "secret.nii.gz").write_bytes(b"secret")
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr/link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (folder / "imagesTr/loop.nii.gz").symlink_to(folder / "imagesTr/loop.nii.gz")
    with pytest.raises(DataError, match=r"dataset\.json") as caught:
        list_cases(folder)
    str(caught.value).encode()  # a terminal can print it


def test_a_link_into_an_annex_outside_names_the_command_that_gets_the_file(tmp_path):
    folder = make_task(tmp_path / "t", ["x"])
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr/x.nii.gz").symlink_to(tmp_path / ".git/annex/objects/a/b/SHA256E-s1")
    with pytest.raises(DataError, match="git annex unlock"):
        list_cases(folder)


HEAD = b'{"modality": {"0": "M"}, "labels": {"1": "a"}'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b'{"labels": {"1": "a", "1": "b"}}', "twice"),
        (b'{"labels": {"1": "a"}, "training": []}', "modality"),
        *[(HEAD + more, "training") for more in (b"}", b', "training": {}}', b', "training": []}')],
        *[(HEAD + b', "training": [%s]}' % x, "image") for x in (b'"x.nii"', b'{"label": "x"}')],
    ],
)
def test_a_malformed_dataset_json_is_named(tmp_path, text, word):
    with pytest.raises(DataError, match=r"no dataset\.json"):
        list_cases(tmp_path)
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(DataError, match=rf"dataset\.json.*{word}"):
        list_cases(tmp_path)


def test_a_case_that_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="x twice"):
        list_cases(make_task(tmp_path, ["x", "y", "x"]))


# --- names, persons and splits that a task brings ------------------------------------------


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    """KiTS has case_00000/imaging.nii.gz and so on: eight cases of eight subjects."""
    task, cases = listed(tmp_path, [f"case_{n:05d}/imaging.nii.gz" for n in range(8)])
    assert [case.name for case in cases] == [f"case_{n:05d}_imaging" for n in range(8)]
    assert len({case.subject for case in cases}) == 8
    assert not any("person" in text for text in task.assumptions)
    _, cases = listed(tmp_path, ["a/x.nii.gz", "b/x.nii.gz", "c/y.nii.gz"])
    assert [case.name for case in cases] == ["a_x", "b_x", "y"]
    # The remedy of subjects.csv takes these names.
    (tmp_path / "subjects.csv").write_text("case,subject\na_x,p\nb_x,p\ny,q\n")
    assert [case.subject for case in list_cases(tmp_path)] == ["p", "p", "q"]


def test_cases_of_one_name_are_refused_and_renaming_helps(tmp_path):
    with pytest.raises(DataError, match="a_b/x.nii.gz and .*d/a_b_x.nii.* case a_b_x; rename"):
        listed(tmp_path, ["a_b/x.nii.gz", "d/a_b_x.nii.gz", "c/x.nii.gz"])
    assert len(listed(tmp_path, ["a_b/x.nii.gz", "d/a_b_y.nii.gz", "c/x.nii.gz"])[1]) == 3
    with pytest.raises(DataError, match="case x twice"):
        listed(tmp_path, ["a/x.nii.gz", "./a/x.nii.gz"])


BIDS = ["sub-01/ses-1/anat/T1w.nii", "sub-01/ses-2/anat/T1w.nii", "sub-02/ses-1/anat/T1w.nii"]


@pytest.mark.parametrize(
    ("images", "subjects"),
    [
        (["p1/s1.nii", "p1/s2.nii", "p2/s1.nii"], ["p1", "p2_s1", "p1"]),
        (["p1/a/x.nii", "p1/b/x.nii", "p2/a/x.nii"], ["p1", "p1", "p2_a_x"]),
        (["imagesTr/p1/p1_a.nii", "imagesTr/p1/p1_b.nii", "imagesTr/p2/q.nii"], ["p1", "p1", "q"]),
        (BIDS, ["sub-01", "sub-01", "sub-02_ses-1_anat_T1w"]),
        (
            ["i/sub-01_ses-1_T1w.nii", "i/sub-01_ses-2_T1w.nii", "i/sub-02_ses-1_T1w.nii"],
            ["sub-01", "sub-01", "sub-02_ses-1_T1w"],
        ),
        # Two stores of files are no persons, nor are files of one folder.
        (["a/1.nii", "a/2.nii", "b/3.nii", "b/4.nii"], ["1", "2", "3", "4"]),
        (["imagesTr/1.nii", "imagesTr/2.nii"], ["1", "2"]),
    ],
)
def test_sessions_of_one_person_are_of_one_subject(tmp_path, images, subjects):
    task, cases = listed(tmp_path, images)
    assert [case.subject for case in cases] == subjects
    persons = [text for text in task.assumptions if "person" in text]
    assert bool(persons) == (len({*subjects}) < len(subjects))
    assert not persons or f"2 of {subjects[0]} " in persons[0]


def sides(cases):
    return {case.name: case.side for case in cases if case.side}


def test_a_validation_list_and_labelled_test_cases_are_sides(tmp_path):
    more = {"validation": entries("v"), "test": entries("t")}
    task, cases = task_and_cases(make_task(tmp_path, ["a", "b"], **more))
    assert sides(cases) == {"v": "validation", "t": "test"} and len(cases) == 4
    assert "validation (1 cases) as dataset.json" in task.assumptions[-1]
    # MSD's own test images have no labels, and need no assumption.
    task, cases = task_and_cases(make_task(tmp_path, ["a", "b"], test=["./imagesTs/t.nii.gz"]))
    assert len(cases) == 2 and not any("split" in text for text in task.assumptions)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"validation": ["imagesTr/v.nii.gz"]}, "'validation' .* without 'image'"),
        ({"validation": {"v": 1}}, "'validation' must be a list"),
        ({"validation": entries("a")}, "'training' and 'validation' name case a twice"),
        ({"test": [*entries("t"), {"image": "x.nii.gz"}]}, "1 of 2 entries of 'test'"),
        ({"val": entries("v", "w")}, "'val' lists 2 labelled cases"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_by_name(tmp_path, more, words):
    with pytest.raises(DataError, match=words):
        list_cases(make_task(tmp_path, ["a", "b"], **more))


def test_splits_json_says_who_stands_where(tmp_path):
    folder = make_task(tmp_path, list("abcd"))
    whole = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    for split in ({"test": ["d"]}, whole):
        (folder / "splits.json").write_text(json.dumps(split))
        task, cases = task_and_cases(folder)
        assert sides(cases) == {name: side for side, names in split.items() for name in names}
        assert "test (1 cases)" in task.assumptions[-1] and "splits.json" in task.assumptions[-1]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"test": ["e"]}, "'test' names 'e'"),
        ({"test": ["a"], "validation": ["a"]}, "a is in test and in validation"),
        ({"train": ["a"], "test": ["b"]}, "lacks validation"),
        ({"train": ["a"], "validation": ["b"], "test": ["c"]}, "lacks d:"),
        *[(split, "by side") for split in ({"val": ["a"]}, {}, [{"train": ["a"]}], {"test": []})],
        ({"test": [1]}, "by side"),
    ],
)
def test_a_splits_json_that_cannot_be_used_is_refused_by_name(tmp_path, split, words):
    folder = make_task(tmp_path, list("abcd"))
    (folder / "splits.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=words):
        list_cases(folder)


def test_two_splits_are_refused_and_the_splits_of_others_are_named(tmp_path):
    folder = make_task(tmp_path, list("abcd"), validation=entries("v"))
    (folder / "splits.json").write_text('{"test": ["a"]}')
    with pytest.raises(DataError, match="two splits"):
        list_cases(folder)
    (folder / "splits.json").rename(folder / "splits_final.json")
    folded = [entry | {"fold": 0} for entry in entries("a", "b")]
    task, _ = task_and_cases(make_task(tmp_path, [], training=folded))
    assert "the folds in dataset.json are not used" in task.assumptions[-2]
    assert "splits_final.json is not used" in task.assumptions[-1]
