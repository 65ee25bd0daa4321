"""The tables of tasks, and what a dataset.json means."""

import json
import math
from dataclasses import asdict

import pytest

from mvl.data.tasks import TASKS, Task, other_side, read_task
from mvl.errors import DataError

MSD_BRAIN = ["background", "Edema", "non-enhancing tumor", "enhancing tumour"]


def write(folder, **changes):
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "2": "b", "1": "a"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


def test_two_hippocampi_are_one_subject():
    task = TASKS["Task04_Hippocampus"]
    for case, subject in ((1, 1), (2, 1), (3, 2), (7, 4), (8, 4), (260, 130)):
        assert task.subject_of(f"hippocampus_{case:03d}") == f"hippocampus_{subject:03d}"
    assert TASKS["Task09_Spleen"].subject_of("spleen_10") == "spleen_10"


def test_a_known_folder_has_the_tables_values(tmp_path):
    task = read_task(write(tmp_path / "Task04_Hippocampus"))
    assert task.tolerance_mm == 1 and task.cases_per_subject == 2 and not task.assumptions
    assert task.labels == {1: "a", 2: "b"} and not task.synthetic
    assert read_task(write(tmp_path / "Task04_Hippocampus", synthetic=True)).synthetic
    ct = read_task(write(tmp_path / "OpenKBP_HeadNeckCT", modality={"0": "CT"}))
    assert (ct.modality, ct.window_hu, ct.tolerance_mm) == ("CT", (-200, 500), 4)
    mri = read_task(write(tmp_path / "CHAOS_AbdomenMR", modality={"0": "MRI T2-SPIR"}))
    assert (mri.modality, mri.window_hu, mri.tolerance_mm) == ("MRI", None, 3)
    assert ct.assumptions == mri.assumptions == () and not {ct.name, mri.name} & set(TASKS)


def test_a_users_folder_names_what_was_assumed(tmp_path):
    ct = read_task(write(tmp_path / "Mine", modality={"0": "CT"}))
    assert (ct.modality, ct.window_hu, ct.tolerance_mm) == ("CT", (-160, 240), 2)
    assert len(ct.assumptions) == 3 and any("2.0 mm" in text for text in ct.assumptions)
    given = {"modality": {"0": "CT"}, "tolerance_mm": 3, "window_hu": [0, 80]}
    task = read_task(write(tmp_path / "Mine", **given))
    assert (task.tolerance_mm, task.window_hu) == (3.0, (0, 80)) and len(task.assumptions) == 1
    both = read_task(write(tmp_path / "Mine", modality={"0": "CT", "1": "PET"}))
    assert "z-scores and no CT window for PET" in both.assumptions
    turned = read_task(write(tmp_path / "Mine", modality={"0": "PET", "1": "CT"}))
    assert turned.window_hu == both.window_hu and turned.assumptions[1:] == both.assumptions[1:]


def test_the_other_side_is_a_structure_of_the_same_name():
    labels = {1: "liver", 2: "right kidney", 3: "Left Kidney", 4: "left_parotid", 5: "cleft"}
    assert other_side(labels) == {2: 3, 3: 2}


def test_a_known_tasks_folder_refuses_other_values_of_its_own(tmp_path):
    for key, value in (("tolerance_mm", 4.5), ("window_hu", [0, 200])):
        with pytest.raises(
            DataError, match=f"{key} .* is not used in a folder called Task09_Spleen"
        ):
            read_task(write(tmp_path / "Task09_Spleen", modality={"0": "CT"}, **{key: value}))
    known = TASKS["Task09_Spleen"]
    equal = {"tolerance_mm": known.tolerance_mm, "window_hu": list(known.window_hu)}
    task = read_task(write(tmp_path / "Task09_Spleen", modality={"0": "CT"}, **equal))
    assert task.window_hu == known.window_hu


@pytest.mark.parametrize(
    ("modality", "channels"),
    [
        (
            "CT",
            ["CT", "ct_portal", "CTA", "CBCT", "NCCT", "CECT", "Computed tomography", "CT 120kV"],
        ),
        ("MRI", ["T1w", "structural T1w", "fractional anisotropy", "OCT"]),
        ("MRI", ["positron emission tomography"]),
    ],
)
def test_the_first_channels_name_says_whether_it_is_a_ct(tmp_path, modality, channels):
    for channel in channels:
        task = read_task(write(tmp_path / "Mine", modality={"0": channel}))
        assert task.modality == modality and (task.window_hu is None) == (modality == "MRI")


def test_regions_are_those_of_msds_labels_alone(tmp_path):
    folder = tmp_path / "Task01_BrainTumour"
    msd = read_task(write(folder, labels=dict(enumerate(MSD_BRAIN))))
    assert msd.regions["tumour core"] == (2, 3) and not msd.assumptions
    more = read_task(write(folder, labels=dict(enumerate([*MSD_BRAIN, "ignore"]))))
    assert more.regions == msd.regions and more.ignore == 4
    brats = {"0": "background", "1": "necrosis", "2": "edema", "4": "enhancing tumour"}
    other = read_task(write(folder, labels=brats))
    assert not other.regions and "not MSD's" in other.assumptions[0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": None}, "missing"),
        ({"modality": []}, "missing"),
        ({"labels": {"0": "background"}}, "at least one"),
        ({"labels": {"0": "background", "9": "ignore"}}, "at least one"),
        ({"labels": {"x": "a"}}, "not a number"),
        ({"labels": {"1.0": "a"}}, "'1.0'"),
        ({"labels": {"1": ["a", "b"]}}, "for 1"),
        ({"labels": {"1": " "}}, "for 1"),
        ({"labels": {"1": "Liver", "2": "liver "}}, "twice"),
        ({"labels": {"1": "a", "2": "ignore", "255": "Ignore"}}, "twice"),
        ({"labels": {"1": "a", "01": "b"}}, "two ways"),
        ({"labels": {"1": "a", "-1": "b"}}, "32767"),
        ({"labels": {"1": "a", "40000": "b"}}, "32767"),
        ({"labels": {"1": "Foreground"}}, "all labels together"),
        ({"labels": {"0": "liver", "1": "b"}}, "0 is the background"),
        ({"labels": {"0": "ignore", "1": "b"}}, "0 is the background"),
        ({"labels": {"1": "background", "2": "b"}}, "change 1 to 0"),
        ({"labels": {"0": "bg", "3": "BG"}}, "change 3 to 0"),
        ({"labels": {"0": "liver", "1": "Back-ground"}}, "exchange 0 and 1"),
        ({"labels": {"1": "a", "2": "Un-labelled"}}, "ignore"),
        ({"healthy": True}, "healthy"),
        ({"healthy": [3]}, "healthy"),
        *[({"tolerance_mm": mm}, "tolerance_mm") for mm in ("2", 0, True, math.nan, 10**400)],
        *[({"window_hu": window}, "window_hu") for window in ([-math.inf, math.inf], [80, 0])],
    ],
)
def test_a_description_that_cannot_be_used_is_named(tmp_path, changes, word):
    with pytest.raises(DataError, match=f"dataset.json.*{word}"):
        read_task(write(tmp_path / "Mine", **changes))


def test_what_is_called_ignore_is_not_a_structure(tmp_path):
    names = {"0": "Background", "1": "a", "4": "b", "255": " IGNORE "}
    task = read_task(write(tmp_path / "Mine", labels=names, healthy=["c2", "c1"]))
    assert (task.labels, task.ignore, task.healthy) == ({1: "a", 4: "b"}, 255, ("c1", "c2"))
    assert any("label 255 is called ignore" in text for text in task.assumptions)
    stored = json.loads(json.dumps(asdict(task)))
    assert Task.from_dict(stored) == task
    del stored["ignore"], stored["healthy"]  # as in an old run
    old = Task.from_dict(stored)
    assert (old.ignore, old.healthy) == (None, ())


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (
            {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "CT"}},
            'nnU-Net v2.*{"0": "background", "1": "tumour"}.*modality.*training',
        ),
        ({"labels": {"0": "background", "1": "a"}, "channel_names": {"0": "CT"}}, "nnU-Net v2"),
        ({"labels": {"background": 0, "a": 1}, "modality": {"0": "CT"}}, '"1": "a"'),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "'whole' is a region"),
    ],
)
def test_nnunets_format_is_named(tmp_path, description, words):
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"numTraining": 4}))
    with pytest.raises(DataError, match=words):
        read_task(tmp_path)


def test_a_task_bears_the_name_that_the_user_gave_it(tmp_path, monkeypatch):
    """A link Task04_Hippocampus -> hippo_v1 is MSD's task: tolerance 1 mm, two cases a subject."""
    store = write(tmp_path / "store/hippo_v1")
    link = tmp_path / "linked/Task04_Hippocampus"
    link.parent.mkdir()
    link.symlink_to(store)
    plain = read_task(write(tmp_path / "plain/Task04_Hippocampus"))
    assert read_task(link) == plain and plain.tolerance_mm == 1 and plain.cases_per_subject == 2
    assert read_task(f"{link}/") == plain
    monkeypatch.chdir(link.parent)
    assert read_task("Task04_Hippocampus/") == read_task("./Task04_Hippocampus") == plain
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))  # as a shell has it
    assert read_task(".") == plain
    monkeypatch.setenv("PWD", str(tmp_path))
    assert read_task(".").name == "hippo_v1" and read_task(store).name == "hippo_v1"
    (plain_folder := tmp_path / "plain/Task04_Hippocampus/imagesTr").mkdir()
    monkeypatch.chdir(plain_folder)
    assert read_task("..") == plain


def test_facts_are_what_numbers_depend_on(tmp_path):
    ct = {"modality": {"0": "CT"}}
    plain = read_task(write(tmp_path / "a", **ct))
    explicit = read_task(write(tmp_path / "b", **ct, tolerance_mm=2, window_hu=[-160, 240]))
    assert plain.facts() == explicit.facts()
    assert plain != explicit  # name and assumptions are no facts
    assert plain.facts() == {
        "modality": "CT",
        "channels": ["CT"],
        "labels": {"1": "a", "2": "b"},
        "tolerance_mm": 2.0,
        "window_hu": [-160.0, 240.0],
    }
    others = ({"tolerance_mm": 1}, {"window_hu": [0, 80]}, {"modality": {"0": "CTA"}})
    for changes in (*others, {"labels": {"1": "c", "2": "b"}}, {"synthetic": True}):
        assert read_task(write(tmp_path / "c", **ct | changes)).facts() != plain.facts()
