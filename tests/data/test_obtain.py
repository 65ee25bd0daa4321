"""Which data a profile gets, and what is said of it."""

import json
import shutil

import pytest

from mvl.data import obtain as module
from mvl.data.obtain import obtain, obtained
from mvl.errors import ConfigError, DataError

TASK = "Task04_Hippocampus"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, an empty data root, and a repository whose data/ is elsewhere."""

    def refuse(task):
        raise DataError(f"no network for {task}")

    monkeypatch.setattr(module, "download", refuse)
    monkeypatch.setattr(module, "REPOSITORY_DATA", tmp_path / "data")
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "root"))


def test_without_data_and_network_auto_makes_a_phantom_and_msd_fails(tmp_path):
    root, what = obtain(TASK, "auto", cases=2, scale=0.3, name="quick")
    assert root == tmp_path / "data" / "quick"
    assert what.startswith("SYNTHETIC DATA") and f"no network for {TASK}" in what
    with pytest.raises(DataError, match="no network"):
        obtain(TASK, "msd")
    with pytest.raises(DataError, match="mvl data convert"):
        obtain("CHAOS_AbdomenMR", "msd")
    with pytest.raises(ConfigError, match="'web' is none of msd, auto, phantom"):
        obtain(TASK, "web")


def test_data_that_is_there_is_used_in_place(tmp_path, phantom):
    shutil.copytree(phantom, tmp_path / "root")
    described = tmp_path / "root" / TASK / "dataset.json"
    assert "found in" in obtain(TASK, "auto")[1] and obtain(TASK, "msd")[1].startswith("SYNTHETIC")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"synthetic": False}))
    assert obtain(TASK, "auto") == (
        tmp_path / "root",
        f"{TASK} of the Medical Segmentation Decathlon",
    )
    root, what = obtain(TASK, "phantom", cases=2, scale=0.3)
    assert root == tmp_path / "data" / "phantom" and "as the profile asks" in what
    (tmp_path / "root" / TASK).rename(tmp_path / "root" / "Mine")
    assert "Decathlon" not in obtain("Mine", "auto")[1]


def test_obtained_data_is_where_it_would_be_obtained(tmp_path, phantom):
    with pytest.raises(DataError, match=f"no task {TASK}"):
        obtained(TASK, "auto", "quick")
    made, _ = obtain(TASK, "auto", cases=2, scale=0.3, name="quick")
    assert obtained(TASK, "auto", "quick") == made
    with pytest.raises(DataError, match=f"no task {TASK}"):
        obtained(TASK, "msd", "quick")
    shutil.copytree(phantom, tmp_path / "root")
    assert obtained(TASK, "auto", "quick") == tmp_path / "root"
    assert obtained(TASK, "phantom", "quick") == made
