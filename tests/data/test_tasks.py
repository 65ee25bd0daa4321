import json
import math
from dataclasses import asdict

import pytest

from mvl.data.tasks import TASKS, Task, read_task
from mvl.errors import MvlError


def write(folder, **changes):
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "2": "b", "1": "a"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


def test_the_table_is_the_decathlons():
    assert len(TASKS) == 10 and list(TASKS) == sorted(TASKS)
    assert sum(task.modality == "CT" for task in TASKS.values()) == 6
    assert all((task.window_hu is not None) == (task.modality == "CT") for task in TASKS.values())
    assert len(TASKS["Task01_BrainTumour"].channels) == 4
    assert len(TASKS["Task05_Prostate"].channels) == 2


@pytest.mark.parametrize(
    ("case", "subject"), [(1, "001"), (2, "001"), (3, "002"), (7, "004"), (8, "004"), (260, "130")]
)
def test_two_hippocampi_are_one_subject(case, subject):
    task = TASKS["Task04_Hippocampus"]
    assert task.subject_of(f"hippocampus_{case:03d}") == f"hippocampus_{subject}"
    assert TASKS["Task09_Spleen"].subject_of("spleen_10") == "spleen_10"


def test_a_known_folder_takes_its_facts_from_the_table(tmp_path):
    task = read_task(write(tmp_path / "Task04_Hippocampus"))
    assert task.tolerance_mm == 1 and task.cases_per_subject == 2 and not task.assumptions
    assert task.labels == {1: "a", 2: "b"} and not task.synthetic


def test_a_users_folder_says_what_was_assumed(tmp_path):
    ct = read_task(write(tmp_path / "Mine", modality={"0": "CT"}))
    assert ct.modality == "CT" and ct.window_hu == (-160, 240)
    assert len(ct.assumptions) == 3 and any("2.0 mm" in text for text in ct.assumptions)
    told = read_task(
        write(tmp_path / "Told", modality={"0": "CT"}, tolerance_mm=3, window_hu=[0, 80])
    )
    assert (told.tolerance_mm, told.window_hu) == (3.0, (0, 80)) and len(told.assumptions) == 1


def test_the_studys_other_tasks_are_not_the_decathlons(tmp_path):
    assert not set(TASKS) & {"OpenKBP_HeadNeckCT", "CHAOS_AbdomenMR"}
    ct = read_task(write(tmp_path / "OpenKBP_HeadNeckCT", modality={"0": "CT"}))
    assert (ct.modality, ct.window_hu, ct.tolerance_mm) == ("CT", (-200, 500), 4)
    mri = read_task(write(tmp_path / "CHAOS_AbdomenMR", modality={"0": "MRI T2-SPIR"}))
    assert (mri.modality, mri.window_hu, mri.tolerance_mm) == ("MRI", None, 3)
    assert ct.assumptions == mri.assumptions == ()


@pytest.mark.parametrize(
    ("channel", "modality"),
    [
        *(("CT", "CT"), ("ct_portal", "CT"), ("CTA", "CT"), ("CBCT", "CT")),
        *(("Computed tomography", "CT"), ("CT 120kV", "CT"), ("T1w", "MRI")),
        *(("structural T1w", "MRI"), ("fractional anisotropy", "MRI"), ("OCT", "MRI")),
        ("positron emission tomography", "MRI"),
    ],
)
def test_the_first_channels_name_says_whether_it_is_a_ct(tmp_path, channel, modality):
    task = read_task(write(tmp_path / "Mine", modality={"0": channel}))
    assert task.modality == modality and (task.window_hu is None) == (modality == "MRI")


def test_channels_beside_a_ct_are_named(tmp_path):
    task = read_task(write(tmp_path / "Mine", modality={"0": "CT", "1": "PET"}))
    assert "z-scores and no CT window for PET" in task.assumptions


def test_regions_are_those_of_msds_labels_alone(tmp_path):
    names = ["background", "Edema", "non-enhancing tumor", "enhancing tumour"]
    msd = read_task(write(tmp_path / "a" / "Task01_BrainTumour", labels=dict(enumerate(names))))
    assert msd.regions["tumour core"] == (2, 3) and not msd.assumptions
    brats = {"0": "background", "1": "necrosis", "2": "edema", "4": "enhancing tumour"}
    other = read_task(write(tmp_path / "b" / "Task01_BrainTumour", labels=brats))
    assert not other.regions and "not MSD's" in other.assumptions[0]


def test_a_phantom_is_known_as_one(tmp_path):
    assert read_task(write(tmp_path / "Task04_Hippocampus", synthetic=True)).synthetic


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "'labels' is missing"),
        ({"labels": {"0": "background"}}, "at least one"),
        ({"labels": {"x": "a"}}, "not a number"),
        ({"labels": {"1.0": "a"}}, "not a number, '1.0'"),
        ({"labels": {"1": ["a", "b"]}}, "no name, as text, for 1"),
        ({"labels": {"1": " "}}, "no name, as text, for 1"),
        ({"labels": {"1": "Liver", "2": "liver "}}, "one name twice"),
        ({"labels": {"1": "a", "01": "b"}}, "one number in two ways"),
        ({"labels": {"1": "a", "-1": "b"}}, "from 0 to 32767"),
        ({"labels": {"1": "a", "40000": "b"}}, "from 0 to 32767"),
        ({"labels": {"1": "Foreground"}}, "all labels together"),
        ({"labels": {"0": "liver", "1": "b"}}, "0 is the background"),
        ({"labels": {"0": "ignore", "1": "b"}}, "0 is the background"),
        ({"labels": {"1": "background", "2": "b"}}, 'change 1 to 0 in every label, and "1" to "0"'),
        ({"labels": {"0": "bg", "3": "BG"}}, 'change 3 to 0 in every label, and take "3" out'),
        ({"labels": {"0": "liver", "1": "Back-ground"}}, "exchange 0 and 1"),
        ({"labels": {"1": "a", "2": "Un-labelled"}}, "call them ignore; if they are background"),
        ({"labels": {"1": "a", "2": "ignore", "255": "Ignore"}}, "one name twice"),
        ({"labels": {"0": "background", "9": "ignore"}}, "at least one"),
        ({"healthy": True}, "'healthy' must be a list"),
        ({"healthy": [3]}, "'healthy' must be a list"),
        ({"modality": []}, "'modality' is missing or not a mapping"),
        ({"tolerance_mm": "2"}, "tolerance_mm must be a number"),
        ({"tolerance_mm": 0}, "tolerance_mm must be a number"),
        ({"tolerance_mm": True}, "tolerance_mm must be a number"),
        ({"tolerance_mm": math.nan}, "tolerance_mm must be a number"),
        ({"tolerance_mm": 10**400}, "tolerance_mm must be a number"),
        ({"window_hu": [-math.inf, math.inf]}, "window_hu must be two increasing"),
        ({"window_hu": [80, 0]}, "window_hu must be two increasing"),
    ],
)
def test_a_description_that_cannot_be_used_is_named(tmp_path, changes, said):
    with pytest.raises(MvlError, match=f"dataset.json.*{said}"):
        read_task(write(tmp_path / "Mine", **changes))


def test_a_value_that_stands_twice_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "a", "1": "b"}}')
    with pytest.raises(MvlError, match="'1' stands twice"):
        read_task(tmp_path)


def test_what_is_called_ignore_is_no_structure(tmp_path):
    names = {"0": "Background", "1": "a", "4": "b", "255": " IGNORE "}
    task = read_task(write(tmp_path / "Mine", labels=names, healthy=["c2", "c1"]))
    assert (task.labels, task.ignore, task.healthy) == ({1: "a", 4: "b"}, 255, ("c1", "c2"))
    assert any("label 255 is called ignore" in said for said in task.assumptions)
    again = Task.from_dict(json.loads(json.dumps(asdict(task))))
    assert again == task
    facts = asdict(task)
    del facts["ignore"], facts["healthy"]  # as a run from before there was either
    before = Task.from_dict(facts)
    assert (before.ignore, before.healthy) == (None, ())


def test_regions_stay_where_only_ignore_was_added(tmp_path):
    names = ["background", "edema", "non-enhancing tumour", "enhancing tumour", "ignore"]
    task = read_task(write(tmp_path / "Task01_BrainTumour", labels=dict(enumerate(names))))
    assert task.regions["whole tumour"] == (1, 2, 3) and task.ignore == 4


@pytest.mark.parametrize(
    ("description", "said"),
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
def test_nnunets_format_is_named(tmp_path, description, said):
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"numTraining": 4}))
    with pytest.raises(MvlError, match=said):
        read_task(tmp_path)


def test_a_folder_without_a_description_is_no_task(tmp_path):
    with pytest.raises(MvlError, match="has no dataset.json"):
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
    said = read_task(write(tmp_path / "b", **ct, tolerance_mm=2, window_hu=[-160, 240]))
    assert plain.facts() == said.facts() and plain != said  # name and assumptions are no facts
    assert plain.facts() == {
        "modality": "CT",
        "channels": ["CT"],
        "labels": {"1": "a", "2": "b"},
        "tolerance_mm": 2.0,
        "window_hu": [-160.0, 240.0],
    }
    for changes in (
        {"tolerance_mm": 1},
        {"window_hu": [0, 80]},
        {"modality": {"0": "CTA"}},
        {"labels": {"1": "c", "2": "b"}},
        {"synthetic": True},
    ):
        assert read_task(write(tmp_path / "c", **ct | changes)).facts() != plain.facts()
