"""Run folders."""

import json
import re
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from mvl.config import DataConfig, ExperimentConfig, LanguageConfig, fingerprint
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.data.task_folder import find_task
from mvl.data.tasks import Task
from mvl.errors import ConfigError, RunError
from mvl.experiment import run as experiments
from mvl.experiment.identity import changed_since, facts_changed
from mvl.experiment.mirrored import _mirrored, measured_domain
from mvl.experiment.run import Run, fit, run_folder, test
from mvl.files import read_json
from mvl.locks import is_locked, locked
from mvl.study.cells import status
from mvl.study.reference import machine_of
from mvl.study.verify import verify
from tests.experiment.common import Model, Stopped, make_task, stop_after

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
            "training": {"epochs": 1, "warmup_epochs": 0},
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
        *("config.json", "task.json", "split.json", "identity.json", "block.json"),
        "environment.json",
        *("curves.csv", "model.safetensors", "trained.json", "cases.csv", "done.json", ".lock"),
        "domain.json",
    }
    stored = json.loads((folder / "config.json").read_text())
    assert ExperimentConfig.from_dict(stored["config"]) == config
    assert stored["fingerprint"] == folder.name
    assert json.loads((folder / "block.json").read_text())["layer"] == 0
    cases = pd.read_csv(folder / "cases.csv")
    assert tuple(cases["case"]) == data.split.test and not cases.isna().any().any()


def test_loaded_weights_are_the_trained_ones(finished):
    from mvl.experiment.training import validate

    folder, config, data = finished
    run = Run.load(folder)
    assert run.config == config and run.split == data.split
    volumes = run.preparation.load(data.side("validation"), progress=False)
    best = json.loads((folder / "trained.json").read_text())["validation_dice"]
    assert validate(run.model, volumes, 4, "cpu") == pytest.approx(best, abs=1e-6)


def test_labels_of_two_sides_are_not_mirrored(finished, tmp_path):
    _, config, data = finished
    data = replace(data, task=replace(data.task, labels={1: "left kidney", 2: "right kidney"}))
    mirrored = replace(config.data, flips="left-right", target="labels")
    with pytest.raises(ConfigError, match="left and right"):
        fit(replace(config, data=mirrored), data, tmp_path)
    image = MetaTensor(torch.arange(4.0).view(1, 4, 1, 1))
    label = torch.tensor([0.0, 1.0, 2.0, -1.0]).view(1, 4, 1, 1)
    volume = {"image": image, "label": label, "ml": torch.tensor([10.0, 20.0])}
    exchanged = _mirrored(volume, data.task, DataConfig(target="labels"))
    assert exchanged["image"].flatten().tolist() == [3, 2, 1, 0]
    assert exchanged["label"].flatten().tolist() == [-1, 1, 2, 0]
    assert exchanged["ml"].tolist() == [20, 10]
    volume = {"image": image, "label": label.clamp(max=1), "ml": torch.tensor([30.0])}
    as_one = _mirrored(volume, data.task, DataConfig())
    assert as_one["label"].flatten().tolist() == [-1, 1, 1, 0] and as_one["ml"].tolist() == [30]


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    folder, config, data = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fit(config, data, folder.parent, show=False) == folder
    open_test_set(folder, data, show=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_fingerprint_knows_voxels_configuration_and_block(tiny, phantom, tmp_path):
    config = tiny()
    root = tmp_path / "copy"
    shutil.copytree(phantom, root)
    data = open_task(config.data, 0, root, progress=False)
    folder = run_folder(config, data, "runs")
    _one_voxel(next((find_task("Task04_Hippocampus", root) / "labelsTr").glob("*.nii.gz")))
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
    assert fingerprint(config, {"block": "a"}) != fingerprint(config, {"block": "b"})


def test_untrained_foreign_and_old_folders_are_refused_by_name(finished, tmp_path):
    folder, *_ = finished
    with pytest.raises(RunError, match="not a run"):
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
    shutil.copy(folder / "trained.json", old)
    block = read_json(old / "block.json") | {"sha256": "0" * 64}
    (old / "block.json").write_text(json.dumps(block))
    with pytest.raises(RunError, match="another block"):
        Run.load(old)


def test_a_model_of_one_side_is_said_to_be_one(finished):
    _, config, data = finished

    def right(volume):
        half = (torch.arange(volume.shape[2]) < volume.shape[2] // 2).float()
        return 2 * half[:, None, None] - 1 + 0 * volume

    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[:, :4] = 1
    image = MetaTensor(torch.zeros(1, 8, 8, 8))
    volume = {"name": "v", "image": image, "label": label, "ml": np.array([0.256])}
    preparation = Preparation(data.task, config.data)
    domain = measured_domain(Model(right), data, preparation, [volume])
    assert domain.sides_dice == (1, 0)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a CT task of eight cases, Own, and runs/ with a tested run of it."""
    root = tmp_path_factory.mktemp("own")
    label = np.zeros((12, 14, 10))
    label[3:8, 4:9, 3:7] = 1
    make_task(root / "Own", [label] * 8, "CT")
    data = open_task(OWN.data, 0, root, progress=False)
    open_test_set(fit(OWN, data, root / "runs", show=False), data, show=False)
    return root


OWN = ExperimentConfig.from_dict(
    {
        "data": {"task": "Own", "grid": [16, 16, 16], "fit": "resize"},
        "model": {"width": 8, "encoder_depth": 1, "decoder_depth": 0, "heads": 1},
        "training": {"epochs": 1, "warmup_epochs": 0},
    }
)


def _described(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _pairs(folder):
    rows = "".join(f"c{n},{f'p{n}' if n > 1 else 'p'}\n" for n in range(8))
    (folder / "subjects.csv").write_text("case,subject\n" + rows)


def _one_voxel(path, more=1):
    volume = nibabel.load(path)
    array = np.asarray(volume.dataobj).copy()
    array[0, 0, 0] += more
    nibabel.save(nibabel.Nifti1Image(array, volume.affine), path)


def _another_label(folder):
    _one_voxel(folder / "labelsTr" / "c3.nii.gz", 2)
    _described(folder, labels={"1": "a", "2": "rim"})


def _moved(folder):
    for kind in ("imagesTr", "labelsTr"):
        path = folder / kind / "c3.nii.gz"
        array = np.asarray(nibabel.load(path).dataobj).copy()
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2, 1, 1, 1])), path)


def _fewer(folder):
    entries = json.loads((folder / "dataset.json").read_text())["training"]
    _described(folder, training=entries[:-1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_pairs, "c0 was its own subject, now p"),
        (lambda f: _described(f, window_hu=[0, 100]), r"\[-160.0, 240.0\], now \[0.0, 100.0\]"),
        (lambda f: _described(f, tolerance_mm=1), "tolerance_mm was 2.0, now 1.0"),
        (lambda f: _described(f, modality={"0": "NCCT"}), r"channels was \['CT'\], now \['NCCT'\]"),
        (lambda f: _described(f, labels={"1": "tumour"}), "'a'}, now {'1': 'tumour'}"),
        (_another_label, "'2': 'rim'"),
        (_fewer, "cases: c7 gone"),
        (lambda f: _one_voxel(f / "imagesTr" / "c3.nii.gz"), "image or label of c3 changed"),
        (lambda f: _one_voxel(f / "labelsTr" / "c3.nii.gz"), "image or label of c3 changed"),
        (_moved, "voxels or affine of the image or label of c3"),
        (lambda f: (f / "splits.json").write_text('{"test": ["c0", "c1"]}'), "split: .*in test"),
    ],
)
def test_a_run_whose_task_has_changed_since_is_another_and_says_what_changed(
    own, tmp_path, capsys, change, said
):
    for name in ("Own", "runs"):
        shutil.copytree(own / name, tmp_path / name)
    config, runs = OWN, tmp_path / "runs"
    (old,) = runs.iterdir()
    stored = json.loads((old / "identity.json").read_text())
    (old / "identity.json").write_text(json.dumps(stored | {"folder": str(tmp_path / "Own")}))
    data = open_task(config.data, 0, tmp_path, progress=False)
    assert run_folder(config, data, runs) == old and changed_since(old) == ""
    assert "changed" not in verify(old)["detail"].str.cat()

    change(tmp_path / "Own")
    data = open_task(config.data, 0, tmp_path, progress=False)
    assert run_folder(config, data, runs) != old
    assert re.search(said, changed_since(old))
    known = Task.from_dict(read_json(old / "task.json"))
    told = facts_changed(old, known)  # as `mvl predict` says it
    assert re.search(said, told) if data.task.facts() != known.facts() else told == ""
    with pytest.raises(RunError, match=said):  # as `mvl evaluate` does
        open_test_set(old, data, show=False)
    (told,) = verify(old).query("check == 'task'").itertuples()
    assert re.search(said, told.detail) and told.agrees is None
    row = status({("none", 0): config}, runs, tmp_path).iloc[0]
    assert row["state"] == "open" and row["reason"].startswith(f"{old.name} is not used: ")
    assert re.search(said, row["reason"])
    if change is _pairs:
        assert fit(config, data, runs) != old
        assert re.search(rf"not used: .*{old.name}, .*{said}", capsys.readouterr().out)


def test_a_run_of_a_task_that_is_gone_or_that_was_copied_is_current(own, tmp_path):
    (old,) = (own / "runs").iterdir()
    shutil.copytree(own / "Own", tmp_path / "Own")
    assert changed_since(old) == ""
    copied = tmp_path / old.name
    shutil.copytree(old, copied)
    stored = json.loads((old / "identity.json").read_text())
    for place in ("Own", "Nowhere"):  # other times of writing, the same voxels; no task
        (copied / "identity.json").write_text(
            json.dumps(stored | {"folder": str(tmp_path / place), "files": "0"})
        )
        assert changed_since(copied) == ""
    (copied / "identity.json").unlink()
    assert "has no identity.json" in changed_since(copied)


def test_two_processes_do_not_train_one_run(tiny, phantom, tmp_path):
    config = tiny()
    data = open_task(config.data, 0, phantom, progress=False)
    folder = run_folder(config, data, tmp_path)
    with locked(folder, "training this run"):
        assert is_locked(folder)
        with pytest.raises(RunError, match="another process is training this run"):
            fit(config, data, tmp_path, show=False)
    assert not is_locked(folder) and not (folder / "config.json").exists()


def test_a_failure_is_written_down_until_the_next_attempt(tiny, phantom, tmp_path):
    hopeless = tiny(training={"learning_rate": 1e30, "clip_norm": 0.0})
    data = open_task(hopeless.data, 0, phantom, progress=False)
    with pytest.raises(RunError, match="the loss became"):
        fit(hopeless, data, tmp_path, show=False)
    folder = run_folder(hopeless, data, tmp_path)
    assert "the loss became" in json.loads((folder / "failed.json").read_text())["reason"]
    assert not (folder / "trained.json").exists()


def test_a_training_that_goes_on_elsewhere_says_so(tiny, phantom, tmp_path, monkeypatch):
    config = tiny(training={"epochs": 2})
    data = open_task(config.data, 0, phantom, progress=False)
    with pytest.raises(Stopped):
        fit(config, data, tmp_path, False, stop_after(1))
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
