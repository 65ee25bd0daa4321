"""One experiment on several processes: the curves of one, and one set of files."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import mvl
from mvl.config import PRESETS, DataConfig, ExperimentConfig
from mvl.data.batches import training_batches
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.errors import ConfigError
from mvl.experiment.procedure import segmentation_loss
from mvl.experiment.run import fit
from mvl.files import read_json
from mvl.study import cells
from mvl.study.parallel import fit_at_once
from tests.experiment.common import Stopped, stop_after


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_the_batches(count, tiny, phantom):
    """Between them, processes see each case of each batch once, augmented as one would see it."""
    config = tiny()
    data = open_task(config.data, 0, phantom, progress=False)
    volumes = Preparation(data.task, config.data).load(data.side("train")[:5], progress=False)
    whole, *shares = (
        list(training_batches(volumes, config.data, 4, 0, 0, *place))
        for place in ((), *((rank, count) for rank in range(count)))
    )
    assert [len(images) for images, _ in whole] == [4, 1]
    for step, batch in enumerate(whole):
        for kind in (0, 1):
            for rank, share in enumerate(shares):
                own = batch[kind][rank::count]
                expected = own if len(own) else batch[kind][:1]
                assert torch.equal(share[step][kind], expected)


@pytest.mark.parametrize("target", ["foreground", "labels"])
def test_the_loss_is_a_mean_over_cases(target):
    """This is why a process may count by its share of a batch's cases."""
    generator = torch.Generator().manual_seed(0)
    classes = 1 if target == "foreground" else 3
    logits = torch.randn(3, classes, 4, 4, 4, generator=generator)
    labels = torch.randint(0, max(2, classes), (3, 1, 4, 4, 4), generator=generator)
    loss = segmentation_loss(target)
    parts = 2 / 3 * loss(logits[::2], labels[::2]) + 1 / 3 * loss(logits[1::2], labels[1::2])
    assert loss(logits, labels).item() == pytest.approx(parts.item(), abs=1e-6)


def test_a_suite_is_not_trained_by_several_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun trains one experiment"):
        cells.fit_suite("fusion", {}, tmp_path)
    with pytest.raises(ConfigError, match="torchrun trains one experiment"):
        fit_at_once({}, tmp_path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A function: a number of cases, each of its own subject -> data root of a small phantom."""
    from mvl.data.phantom import make_phantom

    def make(cases):
        root = tmp_path_factory.mktemp("cases")
        folder = make_phantom(TASK, root, cases=cases, scale=0.4, progress=False)
        names = [path.name.removesuffix(".nii.gz") for path in folder.glob("imagesTr/*.nii.gz")]
        rows = "".join(f"{name},{name}\n" for name in names)
        (folder / "subjects.csv").write_text("case,subject\n" + rows)
        return root

    return make


TASK = "Task04_Hippocampus"


def mvl_train(count, root, runs, *arguments):
    """Run `mvl train` in `count` processes; the finished process."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]
    command = [sys.executable, *(launch if count > 1 else []), "-m", "mvl", "train"]
    command += ["--root", root, "--runs", runs, "--grid", 16, 24, 16, *arguments]
    # Without a GPU in sight, processes meet over gloo on any machine.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # `python -m` finds this package in the working folder, wherever pytest was started.
    return subprocess.run(
        list(map(str, command)),
        env=environment | {"PYTHONPATH": str(Path(mvl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_of(done, runs):
    """The run folder of a training that went well, from its output."""
    assert done.returncode == 0, done.stderr
    (folder,) = runs.iterdir()
    assert done.stdout.splitlines()[-1] == str(folder)
    return folder


def assert_equal_curves(one, other):
    """Sums in another order differ by 1e-7; where that moves a voxel across the threshold, Dice
    differs by one voxel's worth."""
    compare = partial(pd.testing.assert_frame_equal, check_exact=False, rtol=0)
    names = ["epoch", "learning_rate", "train_loss"]
    compare(one[names], other[names], atol=1e-5)
    compare(one[["validation_dice"]], other[["validation_dice"]], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "sizes", "more"),
    [
        # One process has no case of the last batch, and none of validation.
        (15, (9, 3), ["--preset", "vit"]),
        # One process has two cases of the last batch, the other one.
        (17, (11, 3), ["--preset", "v1"]),
        # Both have a batch of validation.
        (31, (20, 5), ["--preset", "vit", "--target", "labels"]),
    ],
)
def test_two_processes_train_as_one_does(cases, sizes, more, task, tmp_path):
    root, folders = task(cases), {}
    for count in (1, 2):
        runs = tmp_path / str(count)
        done = mvl_train(count, root, runs, "--epochs", 4, *more)
        folders[count] = run_of(done, runs)
        assert done.stdout.count("validation Dice") == 1
        assert read_json(folders[count] / "environment.json")["processes"] == count
    one, two = folders[1], folders[2]
    assert one.name == two.name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    split = read_json(two / "split.json")
    assert (len(split["train"]), len(split["validation"])) == sizes
    assert_equal_curves(pd.read_csv(two / "curves.csv"), pd.read_csv(one / "curves.csv"))
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.allclose(weights[name], others[name], atol=1e-3) for name in weights)


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(task, tmp_path):
    root = task(15)
    training = replace(PRESETS["vit"][1], epochs=4)
    config = ExperimentConfig(DataConfig(grid=(16, 24, 16)), training=training)
    data = open_task(config.data, 0, root, progress=False)
    with pytest.raises(Stopped):
        fit(config, data, tmp_path / "halves", False, stop_after(2))
    whole = pd.read_csv(fit(config, data, tmp_path / "whole", show=False) / "curves.csv")
    halves = run_of(mvl_train(2, root, tmp_path / "halves", "--epochs", 4), tmp_path / "halves")
    own = pd.read_csv(halves / "curves.csv")
    pd.testing.assert_frame_equal(own.iloc[:2], whole.iloc[:2], rtol=0, atol=1e-8)
    assert_equal_curves(own, whole)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_every_process(task, tmp_path):
    done = mvl_train(2, task(15), tmp_path, "--epochs", 4, "--learning-rate", 1e30)
    assert done.returncode != 0 and "the loss became" in done.stderr
    (folder,) = tmp_path.iterdir()
    assert "the loss became" in read_json(folder / "failed.json")["reason"]
    assert not (folder / "trained.json").exists()
