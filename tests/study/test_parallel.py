"""Many cells at once: the numbers of one process, whatever dies on the way."""

import multiprocessing
import socket
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from mvl.data.task_data import open_task
from mvl.errors import ConfigError
from mvl.experiment.run import fit, run_folder, test
from mvl.files import read_json
from mvl.locks import locked
from mvl.study.parallel import fit_at_once, fit_cell

open_test_set = test  # pytest would take the name `test` for a test
del test


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def hopeless(config):
    training = replace(config.training, learning_rate=1e30, clip_norm=0.0)
    return replace(config, training=training)


def test_a_missing_ray_is_a_sentence(tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install"):
        fit_at_once({("plain", 0): tiny()}, tmp_path, phantom, on="ray")
    assert not list(tmp_path.iterdir())


def test_an_address_is_checked_before_anything_waits_for_it(tmp_path):
    with pytest.raises(ConfigError, match="--jobs 0"):
        fit_at_once({}, tmp_path, jobs=0)
    for wrong in ("slurm", "ray://", "ray://head", ":6379"):
        with pytest.raises(ConfigError, match="expected ray"):
            fit_at_once({}, tmp_path, on=wrong)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="answers at 127.0.0.1"):
            fit_at_once({}, tmp_path, on=f"127.0.0.1:{taken.getsockname()[1]}")


def test_an_interrupted_call_ends_its_processes(tiny, phantom, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    endless = tiny(training={"epochs": 100_000})
    configs = {("wild", 0): hopeless(tiny()), ("endless", 0): endless}
    configs |= {("endless", seed): replace(endless, seed=seed) for seed in (1, 2, 3)}
    monkeypatch.setattr("builtins.print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_at_once(configs, tmp_path, phantom, jobs=2)
    assert not multiprocessing.active_children()


def test_a_task_waits_for_a_lock_that_goes(tiny, phantom, tmp_path):
    config = tiny(training={"epochs": 1})
    folder = run_folder(config, open_task(config.data, 0, phantom, progress=False), tmp_path)
    released = threading.Event()

    def hold():
        with locked(folder, "training this run"):
            held.set()
            released.wait(60)

    held, holder = threading.Event(), threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    place = (str(tmp_path), str(phantom), "fail", False)
    assert "another process is training" in fit_cell(config, *place, 0)[1]
    threading.Timer(0.5, released.set).start()
    assert fit_cell(config, *place, 60) == (str(folder), None)
    holder.join()


@pytest.mark.slow
def test_a_lost_node_changes_no_byte(tiny, phantom, tmp_path, monkeypatch):
    """Two nodes train; one of them is killed in the middle of a run."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mvl[cluster]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    config = tiny(model={"dropout": 0.1}, training={"epochs": 60})
    configs = {("plain", seed): replace(config, seed=seed) for seed in range(3)}
    configs["hopeless", 0] = hopeless(config)
    data = {s: open_task(config.data, s, phantom, progress=False) for s in range(3)}
    folders = {key: run_folder(c, data[c.seed], tmp_path) for key, c in configs.items()}

    def halfway():
        """Folders in which an epoch is trained, but not the last one."""
        begun = [f for f in folders.values() if (f / "state.safetensors").exists()]
        return [f for f in begun if not (f / "trained.json").exists()]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        outcome = []
        work = threading.Thread(
            target=lambda: outcome.append(
                fit_at_once(configs, tmp_path, phantom, on=cluster.address, show=False)
            )
        )
        work.start()
        deadline = time.monotonic() + 300
        while len(halfway()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        begun = {f: (f / "environment.json").stat().st_mtime_ns for f in halfway()}
        assert len(begun) == 2, "two nodes train at a time"
        cluster.remove_node(other, allow_graceful=False)
        work.join(300)
    finally:
        cluster.shutdown()

    (trained, failures), *_ = outcome
    assert trained == {key: f for key, f in folders.items() if key[0] == "plain"}
    assert list(failures) == [("hopeless", 0)] and "the loss became" in failures["hopeless", 0]
    again = [f for f in begun if (f / "environment.json").stat().st_mtime_ns > begun[f]]
    assert len(again) == 1, "the lost node's run was begun again, the other node's was not"

    for (_, seed), folder in trained.items():
        whole = fit(replace(config, seed=seed), data[seed], tmp_path / "here", show=False)
        for place in (folder, whole):
            assert read_json(place / "environment.json")["threads"] == 1
            open_test_set(place, data[seed], show=False)
        for file in ("curves.csv", "model.safetensors", "cases.csv"):
            assert (folder / file).read_bytes() == (whole / file).read_bytes()


def test_a_process_trains_as_fit_does_and_a_failure_is_told(tiny, phantom, tmp_path):
    plain = tiny(training={"epochs": 1, "warmup_epochs": 0})
    configs = {("plain", 0): plain, ("wild", 0): hopeless(plain)}
    trained, failures = fit_at_once(configs, tmp_path / "jobs", phantom, show=False)
    assert list(trained) == [("plain", 0)]
    assert list(failures) == [("wild", 0)] and "learning rate" in failures["wild", 0]
    data = open_task(configs["plain", 0].data, 0, phantom, progress=False)
    own = fit(configs["plain", 0], data, tmp_path / "own", show=False)
    for name in ("model.safetensors", "curves.csv"):
        assert (trained["plain", 0] / name).read_bytes() == (own / name).read_bytes()
