"""Run folders."""

import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from mvl import experiments
from mvl.config import ExperimentConfig, LanguageConfig, fingerprint
from mvl.data.loading import open_task
from mvl.data.sources import find_task
from mvl.errors import RunError
from mvl.experiments import Run, collect, fit, is_running, run_folder, test
from mvl.files import locked, read_json
from mvl.reference import machine_of

open_test_set = test  # pytest would take the name `test` for a test
del test


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory):
    """(run folder, config, data) of an experiment with a block, trained and tested."""
    runs = tmp_path_factory.mktemp("runs")
    config = ExperimentConfig.from_dict(
        {
            "data": {"grid": [16, 24, 16]},
            "model": {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
            | {"language": {"layer": 0}},
            "training": {"epochs": 2},
            "seed": 1,
        }
    )
    data = open_task(config.data, config.seed, phantom, progress=False)
    folder = fit(config, data, runs, show=False)
    open_test_set(folder, data, show=False)
    return folder, config, data


def test_a_run_folder_says_everything_about_its_run(finished):
    folder, config, data = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "task.json", "split.json", "block.json", "environment.json"),
        *("curves.csv", "model.safetensors", "trained.json", "cases.csv", "done.json", ".lock"),
        "domain.json",
    }
    stored = json.loads((folder / "config.json").read_text())
    assert ExperimentConfig.from_dict(stored["config"]) == config
    assert stored["fingerprint"] == folder.name
    assert json.loads((folder / "block.json").read_text())["layer"] == 0
    cases = pd.read_csv(folder / "cases.csv")
    assert tuple(cases["case"]) == data.split.test and not cases.isna().any().any()


def test_a_loaded_run_gives_equal_logits(finished):
    folder, config, _ = finished
    one, other = Run.load(folder), Run.load(folder)
    volume = torch.randn(1, 1, *config.data.grid)
    assert torch.equal(one.model(volume), other.model(volume))
    assert one.config == config and one.split == other.split


def test_loaded_weights_are_the_trained_ones(finished):
    from mvl.training import validate

    folder, _, data = finished
    run = Run.load(folder)
    volumes = run.preparation.load(data.side("validation"), progress=False)
    best = json.loads((folder / "trained.json").read_text())["validation_dice"]
    assert validate(run.model, volumes, 4, "cpu") == pytest.approx(best, abs=1e-6)


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    folder, config, data = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fit(config, data, folder.parent, show=False) == folder
    open_test_set(folder, data, show=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_second_run_gives_the_same_cases_byte_for_byte(finished, tmp_path):
    folder, config, data = finished
    again = fit(config, data, tmp_path, show=False)
    open_test_set(again, data, show=False)
    assert (again / "cases.csv").read_bytes() == (folder / "cases.csv").read_bytes()


def test_the_fingerprint_knows_voxels_configuration_and_block(tiny, phantom, tmp_path):
    config = tiny()
    root = tmp_path / "copy"
    shutil.copytree(phantom, root)
    data = open_task(config.data, 0, root, progress=False)
    folder = run_folder(config, data, "runs")
    label = next((find_task("Task04_Hippocampus", root) / "labelsTr").glob("*.nii.gz"))
    volume = nibabel.load(label)
    voxels = np.asarray(volume.dataobj).copy()
    voxels[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, volume.affine), label)
    changed = open_task(config.data, 0, root, progress=False)
    folders = {
        folder,
        run_folder(config, changed, "runs"),
        run_folder(tiny(training={"epochs": 4}), data, "runs"),
        run_folder(tiny(model={"language": LanguageConfig(control="identity")}), data, "runs"),
        run_folder(tiny(model={"language": LanguageConfig(layer=1)}), data, "runs"),
    }
    assert len(folders) == 5
    assert run_folder(config, data, "runs") == folder
    assert fingerprint(config, {}, "a") != fingerprint(config, {}, "b")


def test_untrained_foreign_and_old_folders_are_refused_by_name(finished, tmp_path):
    folder, *_ = finished
    with pytest.raises(RunError, match="no run"):
        Run.load(tmp_path)
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    stored = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(stored | {"protocol_version": 0}))
    with pytest.raises(RunError, match="protocol version 0"):
        Run.load(old)
    (old / "config.json").write_text(json.dumps(stored))
    (old / "trained.json").unlink()
    with pytest.raises(RunError, match="training has not ended"):
        Run.load(old)


def test_another_split_and_other_voxels_are_refused(finished, tiny, phantom):
    folder, config, _ = finished
    data = open_task(config.data, config.seed, phantom, progress=False)
    (folder / "done.json").rename(folder / "kept.json")
    try:
        other = open_task(config.data, 2, phantom, progress=False)
        changed = replace(data, hashes={name: "0" for name in data.hashes})
        with pytest.raises(RunError, match="other voxels of Task04_Hippocampus"):
            open_test_set(folder, changed, show=False)
        with pytest.raises(RunError, match="another split"):
            open_test_set(folder, other, show=False)
    finally:
        (folder / "kept.json").rename(folder / "done.json")


def test_collect_tells_a_run_from_others(finished):
    folder, config, _ = finished
    table = collect(folder, "language", "pretrained")
    assert set(table["arm"]) == {"pretrained"} and set(table["seed"]) == {1}
    assert set(table["block"]) == {"package:all-minilm-l6-v2"} and table["synthetic"].all()
    assert set(table["epochs"]) == {2} and set(table["dtype"]) == {"float32"}


def test_two_processes_do_not_train_one_run(tiny, phantom, tmp_path):
    config = tiny()
    data = open_task(config.data, 0, phantom, progress=False)
    folder = run_folder(config, data, tmp_path)
    with locked(folder, "training this run"):
        assert is_running(folder)
        with pytest.raises(RunError, match="another process is training this run"):
            fit(config, data, tmp_path, show=False)
    assert not is_running(folder) and not (folder / "config.json").exists()


def test_a_failure_is_written_down_until_the_next_attempt(tiny, phantom, tmp_path):
    hopeless = tiny(training={"learning_rate": 1e30, "clip_norm": 0.0})
    data = open_task(hopeless.data, 0, phantom, progress=False)
    with pytest.raises(RunError, match="the loss became"):
        fit(hopeless, data, tmp_path, show=False)
    folder = run_folder(hopeless, data, tmp_path)
    assert "the loss became" in json.loads((folder / "failed.json").read_text())["reason"]
    assert not (folder / "trained.json").exists()


def test_a_training_that_goes_on_elsewhere_says_so(tiny, phantom, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(rows):
        raise Stop

    config = tiny(training={"epochs": 2})
    data = open_task(config.data, 0, phantom, progress=False)
    with pytest.raises(Stop):
        fit(config, data, tmp_path, show=False, on_epoch=stop)
    place = run_folder(config, data, tmp_path) / "environment.json"
    before = read_json(place)
    assert before["threads"] == torch.get_num_threads()
    elsewhere = before | {"threads": 99, "versions": before["versions"] | {"torch": "0.1"}}
    monkeypatch.setattr(experiments, "environment", lambda config: elsewhere)
    fit(config, data, tmp_path, show=False)
    threads, torchs = f"{before['threads']}, then 99", f"{before['versions']['torch']}, then 0.1"
    after = read_json(place)
    assert (after["threads"], after["versions"]["torch"]) == (threads, torchs)
    assert after["cpu"] == before["cpu"]
    assert machine_of(after) != machine_of(elsewhere)
