import json
import math

import pytest

from mvl.errors import MvlError
from mvl.tasks import TASKS, read_task


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


def test_a_folder_without_a_description_is_no_task(tmp_path):
    with pytest.raises(MvlError, match="has no dataset.json"):
        read_task(tmp_path)
