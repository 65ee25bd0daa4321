"""Where cases come from: roots, listing, subjects, confinement, hashes."""

import json

import nibabel
import numpy as np
import pytest

from mvl.data.sources import Case, data_root, find_task, list_cases, voxel_hash
from mvl.errors import DataError

AFFINE = np.diag([0.7, 1.3, 3.0, 1.0])


def make_task(folder, names, **more):
    """A task folder with a dataset.json that lists `names`; the files are the test's business."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = "./{}/{}.nii.gz".format
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": entry("imagesTr", n), "label": entry("labelsTr", n)} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description | more))
    return folder


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def test_data_root_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "set"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "set"
    monkeypatch.delenv("MVL_DATA_ROOT")
    assert data_root().name == "data"
    assert (data_root().parent / "mvl" / "tasks.py").is_file()


def test_find_task_says_what_was_looked_at_and_the_ways_on(tmp_path):
    with pytest.raises(DataError) as caught:
        find_task("Task09_Spleen", tmp_path)
    for part in (
        str(tmp_path / "Task09_Spleen"),
        "MVL_DATA_ROOT",
        "mvl data download Task09_Spleen",
        "mvl data phantom Task09_Spleen",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError) as caught:
        find_task("Task99_Mine", tmp_path)
    assert "download" not in str(caught.value)
    make_task(tmp_path / "Task99_Mine", ["x"])
    assert find_task("Task99_Mine", tmp_path) == tmp_path / "Task99_Mine"


def test_cases_are_sorted_and_shadow_files_ignored(tmp_path):
    folder = make_task(tmp_path / "t", ["b_2", "._b_2", "b_1"])
    assert [case.name for case in list_cases(folder)] == ["b_1", "b_2"]
    assert list_cases(folder)[0] == Case(
        "b_1", "b_1", folder / "imagesTr/b_1.nii.gz", folder / "labelsTr/b_1.nii.gz"
    )


def test_siblings_of_the_hippocampus_task_share_a_subject(tmp_path):
    names = [f"hippocampus_{n:03d}" for n in (1, 2, 3, 6, 7)]
    cases = list_cases(make_task(tmp_path / "Task04_Hippocampus", names))
    subjects = [case.subject for case in cases]
    assert subjects[0] == subjects[1]
    assert len(set(subjects)) == 4


def test_subjects_csv_decides_and_must_be_complete(tmp_path):
    folder = make_task(tmp_path / "Task04_Hippocampus", ["hippocampus_001", "hippocampus_002"])
    table = folder / "subjects.csv"
    table.write_text("case,subject\nhippocampus_001,p\nhippocampus_002,q\n")
    assert [case.subject for case in list_cases(folder)] == ["p", "q"]
    for text, reason in (
        ("case,subject\nhippocampus_001,p\n", "hippocampus_002"),
        ("case,subject\nhippocampus_001,p\nhippocampus_001,q\nhippocampus_002,q\n", "two subjects"),
        ("name,person\nhippocampus_001,p\n", "'case' and a 'subject'"),
        (b"case,subject\nhippocampus_001,\xff\xfe\n", "not a readable table"),
    ):
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=reason):
            list_cases(folder)


def test_white_space_in_subjects_csv_makes_no_other_subject(tmp_path):
    folder = make_task(tmp_path / "t", ["a", "b", "c"])
    table = folder / "subjects.csv"
    table.write_text("case,subject\na,p\nb, p\n c ,p\u00a0\t\n")
    assert {case.subject for case in list_cases(folder)} == {"p"}
    table.write_text("case,subject\na,p\nb,  \nc,p\n")
    with pytest.raises(DataError, match="each row needs a 'case' and a 'subject'"):
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


def test_a_link_into_an_annex_outside_says_how_to_get_the_file(tmp_path):
    folder = make_task(tmp_path / "t", ["x"])
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr/x.nii.gz").symlink_to(tmp_path / ".git/annex/objects/a/b/SHA256E-s1")
    with pytest.raises(DataError, match="git annex unlock"):
        list_cases(folder)


def test_the_folder_itself_may_be_a_link(tmp_path):
    make_task(tmp_path / "store" / "t", ["x"])
    (tmp_path / "t").symlink_to(tmp_path / "store" / "t")
    assert list_cases(tmp_path / "t")[0].image == tmp_path / "t/imagesTr/x.nii.gz"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"modality": {"0": "MRI"}, "labels": {"1": "a"}}', b"\xff\xfe",
     '{"modality": {"0": "M"}, "labels": {"1": "a"}, "training": {}}',
     '{"modality": {"0": "M"}, "labels": {"1": "a"}, "training": []}',
     '{"modality": {"0": "M"}, "labels": {"1": "a"}, "training": ["x.nii.gz"]}',
     '{"modality": {"0": "M"}, "labels": {"1": "a"}, "training": [{"label": "x.nii.gz"}]}',
     '{"labels": {"1": "a"}, "training": []}'],
)  # fmt: skip
def test_a_malformed_dataset_json_is_one_sentence(tmp_path, text):
    (tmp_path / "dataset.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"dataset\.json"):
        list_cases(tmp_path)


def test_a_case_that_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="x twice"):
        list_cases(make_task(tmp_path, ["x", "y", "x"]))


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image = save(tmp_path / "i.nii.gz", rng.integers(0, 99, (4, 5, 6)).astype(np.float32))
    label = save(tmp_path / "l.nii.gz", rng.integers(0, 3, (4, 5, 6)).astype(np.uint8))
    return Case("i", "i", image, label)


def test_the_voxel_hash_sees_content_and_nothing_else(tmp_path, case):
    first = voxel_hash(case)
    assert voxel_hash(case) == first
    image, label = nibabel.load(case.image), nibabel.load(case.label)
    same = Case(
        "other",
        "s",
        save(tmp_path / "same_i.nii", image.get_fdata().astype(np.int16), image.affine),
        save(tmp_path / "same_l.nii", label.get_fdata().astype(np.float64), label.affine),
    )
    assert voxel_hash(same) == first

    def changed(image_change=lambda a: a, label_change=lambda a: a, affine=image.affine):
        return voxel_hash(
            Case(
                "c",
                "c",
                save(tmp_path / "c_i.nii", image_change(image.get_fdata()), affine),
                save(tmp_path / "c_l.nii", label_change(label.get_fdata()), label.affine),
            )
        )

    def touched(array):
        array[0, 0, 0] += 1
        return array

    hashes = [
        first,
        changed(touched),
        changed(label_change=touched),
        changed(lambda a: a.reshape(5, 4, 6)),
        changed(affine=np.eye(4)),
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_case_without_a_label_has_no_voxel_hash(case):
    with pytest.raises(DataError, match="no label"):
        voxel_hash(Case("i", "i", case.image, None))
