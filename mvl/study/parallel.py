"""A suite's cells, many at once: in processes of this machine, or on a Ray cluster.

Each task trains one experiment with one thread: numbers depend on the number of threads, and
those of a cluster are those of one machine of the same kind with OMP_NUM_THREADS=1.

Ray (https://docs.ray.io) starts the tasks of a lost worker again. Every node needs this package,
and sees the data, the language block and the folder of runs under the same paths: then a task that
is started again goes on from its last epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from mvl.config import ExperimentConfig
from mvl.data.task_data import open_task
from mvl.data.task_folder import data_root
from mvl.errors import ConfigError, MvlError, in_words
from mvl.experiment.run import fit, run_folder
from mvl.locks import is_locked
from mvl.study.cells import Cells, Failures, require_one_process

#: How often Ray starts a task again whose worker died.
RETRIES = 3
#: Seconds for which a task on a cluster waits until its run folder is free: a network's file
#: system may hold the lock of a lost node for a while.
PATIENCE_S = 120
#: Seconds within which a cluster has to answer.
ANSWER_S = 10


#: The failure of all cells that are not trained when one process of several dies.
KILLED = "a process was killed, perhaps for its memory; run the command again"


def fit_at_once(
    configs: Cells,
    runs: Path,
    root=None,
    jobs: int = 1,
    on: str | None = None,
    show: bool = True,
    on_bad_case: str = "fail",
    track: bool = False,
) -> tuple[dict[tuple[str, int], Path], Failures]:
    """Train every cell of a suite that is not trained yet; the test set stays closed.

    Args:
        configs, runs, root, on_bad_case, track: as in `cells.run_suite`.
        jobs: how many processes of this machine train; they share its GPU, if it has one.
        on: a Ray cluster that trains in their place, one CPU for each task and one GPU where it
            has GPUs: "ray" for the one that RAY_ADDRESS names or that runs here, otherwise one
            that is started for the time of the call; "HOST:PORT" from one of a cluster's nodes;
            "ray://HOST:PORT" from elsewhere.

    Returns:
        {(arm, seed): run folder} of the trained cells, and the failures, in the order of `configs`.

    Raises:
        ConfigError: `jobs` is below 1; Ray is not installed, or no cluster answers.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} is below 1")
    require_one_process()
    settings = (os.path.abspath(runs), os.path.abspath(data_root(root)), on_bad_case, track)
    tasks = {key: (config, *settings, PATIENCE_S if on else 0) for key, config in configs.items()}
    ended = {}
    for key, folder, failure in _on_ray(tasks, on) if on else _in_processes(tasks, jobs):
        ended[key] = folder, failure
        if show:
            outcome = f"failed: {failure}" if failure else "trained"
            left = len(configs) - len(ended)
            print(f"arm {key[0]}, seed {key[1]} {outcome}; {left} left", flush=True)
    trained = {key: Path(ended[key][0]) for key in configs if not ended[key][1]}
    return trained, {key: ended[key][1] for key in configs if ended[key][1]}


def fit_cell(
    config: ExperimentConfig, runs: str, root: str, on_bad_case: str, track: bool, patience: float
) -> tuple[str | None, str | None]:
    """Train one experiment with one thread: (the run folder, None), or (None, why not).

    A fault that the user can mend is a value, since to try again would not mend it. `patience` is
    how many seconds to wait for a run that another process is training.
    """
    torch.set_num_threads(1)
    try:
        data = open_task(config.data, config.seed, root, on_bad_case, progress=False)
        folder, deadline = run_folder(config, data, runs), time.monotonic() + patience
        while is_locked(folder) and time.monotonic() < deadline:
            time.sleep(1)
        return os.fspath(fit(config, data, runs, show=False, track=track)), None
    except MvlError as error:
        return None, str(error)


def _in_processes(tasks: dict, jobs: int) -> Iterator[tuple]:
    """(key, run folder, failure) of each task as it ends."""
    # A forked process would inherit the threads of PyTorch in an unknown state.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawned) as pool:
        pending = {pool.submit(fit_cell, *task): key for key, task in tasks.items()}
        try:
            for ended in as_completed(pending):
                error = ended.exception()
                if isinstance(error, BrokenExecutor):
                    why = KILLED
                elif error:  # a defect of one cell is no reason to lose the others
                    why = in_words(error)
                yield pending[ended], *((None, why) if error else ended.result())
        except BaseException:  # such as Ctrl-C: each run can go on from its last epoch
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _on_ray(tasks: dict, on: str) -> Iterator[tuple]:
    """(key, run folder, failure) of each task as it ends."""
    address = _address(on)
    try:
        import ray
    except ImportError as error:
        raise ConfigError('a cluster needs Ray: pip install "mvl[cluster]"') from error
    try:
        ray.init(address)
    except ConnectionError as error:
        where = address or "RAY_ADDRESS"
        raise ConfigError(f"no Ray cluster answers at {where}: {error}") from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(fit_cell)
        pending = {remote.remote(*task): key for key, task in tasks.items()}
        while pending:
            (ended,), _ = ray.wait(list(pending), num_returns=1)
            try:
                outcome = ray.get(ended)
            except ray.exceptions.RayError as error:
                outcome = None, str(error).strip().splitlines()[-1]
            yield pending.pop(ended), *outcome
    finally:
        ray.shutdown()


def _address(on: str) -> str | None:
    """What `ray.init` takes; None lets it look for a cluster or start one."""
    if on == "ray":
        return None
    host, _, port = on.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(f"cluster {on!r}: expected ray, HOST:PORT or ray://HOST:PORT")
    # Ray itself would try for minutes, and then end the process.
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {on}: {error}") from error
    return on
