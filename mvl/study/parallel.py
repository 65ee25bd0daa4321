"""A suite's experiments, many at once: in processes of this machine, or on a Ray cluster.

Each process trains one experiment with one thread: numbers depend on the number of threads, and
those of a cluster are those of one machine of the same kind with OMP_NUM_THREADS=1.

Ray (https://docs.ray.io) decides where and when, and starts the tasks of a lost worker again; what
a task does is `experiments.fit`, as everywhere. Every node needs this package, and sees the data,
the language block and the folder of runs under the same paths: then a task that is started again
goes on from its last epoch.
"""

import contextlib
import multiprocessing
import os
import socket
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from mvl.config import ExperimentConfig
from mvl.data.task_data import open_task
from mvl.data.task_folder import data_root
from mvl.errors import ConfigError, MvlError, in_words
from mvl.experiment.run import fit, run_folder
from mvl.locks import is_locked

#: How often a task whose worker died is started anew.
RETRIES = 3
#: Seconds for which a task waits until its run folder is free: a network's file system may hold
#: the lock of a lost node for a while.
PATIENCE_S = 120
#: Seconds within which a cluster has to answer.
ANSWER_S = 10


def fit_at_once(
    configs: dict,
    runs: Path,
    jobs: int,
    root: Path | None = None,
    show: bool = True,
    on_bad_case: str = "fail",
    track: bool = False,
) -> tuple[dict, dict]:
    """Train every cell of a suite that is not trained yet, several at once on this machine.

    A GPU is shared by all of them. The test set stays closed.

    Args:
        configs, runs, root, show, on_bad_case, track: as in `fit_on_ray`.
        jobs: how many cells are trained at once.

    Returns:
        As `fit_on_ray`.

    Raises:
        ConfigError: `jobs` is below 1.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} is below 1")
    place, outcomes = (os.path.abspath(runs), os.path.abspath(data_root(root))), _Outcomes(configs)
    # A forked process would inherit the threads of PyTorch in an unknown state.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawned) as pool:
        pending = {
            pool.submit(fit_cell, config.to_dict(), *place, on_bad_case, track, 0): key
            for key, config in configs.items()
        }
        try:
            for ended in as_completed(pending):
                try:
                    outcomes.add(pending[ended], *ended.result(), show)
                except BrokenExecutor:
                    said = "a process was killed, perhaps for its memory; run the command again"
                    outcomes.add(pending[ended], None, said, show)
                except Exception as error:  # a cell's defect is no reason to lose the others
                    outcomes.add(pending[ended], None, in_words(error), show)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes.sorted()


class _Outcomes:
    """What became of each cell of `configs`."""

    def __init__(self, configs):
        self.configs, self.trained, self.failures = configs, {}, {}

    def add(self, key, folder, failure, show):
        """Note one cell that ended, and print it."""
        if failure is None:
            self.trained[key] = Path(folder)
        else:
            self.failures[key] = failure
        if show:
            said = "trained" if failure is None else f"failed: {failure}"
            left = len(self.configs) - len(self.trained) - len(self.failures)
            print(f"arm {key[0]}, seed {key[1]} {said}; {left} left", flush=True)

    def sorted(self):
        """({key: run folder}, {key: message}), in the order of the cells."""
        parts = (self.trained, self.failures)
        return tuple({key: part[key] for key in self.configs if key in part} for part in parts)


def fit_on_ray(
    configs,
    runs,
    root=None,
    on="ray",
    show=True,
    on_bad_case="fail",
    track=False,
    patience=PATIENCE_S,
):
    """Train every cell of a suite that is not trained yet; the test set stays closed.

    A task takes one CPU, and one GPU where the cluster has GPUs.

    Args:
        configs: {(arm, seed): ExperimentConfig}, from `suites.suite_configs`.
        runs: the folder of all runs.
        root: see `sources.data_root`.
        on: "ray" for the cluster that RAY_ADDRESS names or that runs here, else one that is
            started here for the time of the call; "HOST:PORT" from one of a cluster's nodes; or
            "ray://HOST:PORT" from elsewhere.
        show: print a line for each cell that ends.
        on_bad_case: see `open_task`.
        track: see `training.train`.
        patience: seconds for which a task waits for a run that another process is training.

    Returns:
        ({(arm, seed): run folder} of the trained cells, {(arm, seed): message} of the others),
        both in the order of `configs`.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    address = _address(on)
    ray = _ray()
    place = (os.path.abspath(runs), os.path.abspath(data_root(root)))
    outcomes = _Outcomes(configs)
    with _connected(ray, address):
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(fit_cell)
        pending = {
            task.remote(config.to_dict(), *place, on_bad_case, track, patience): key
            for key, config in configs.items()
        }
        while pending:
            (ended,), _ = ray.wait(list(pending), num_returns=1)
            try:
                folder, failure = ray.get(ended)
            except ray.exceptions.RayError as error:
                folder, failure = None, str(error).strip().splitlines()[-1]
            outcomes.add(pending.pop(ended), folder, failure, show)
    return outcomes.sorted()


def fit_cell(config, runs, root, on_bad_case, track, patience):
    """Train one experiment with one thread: what a task does.

    A fault that the user can mend is a value and no exception, since trying again would not
    mend it.

    Args:
        config: an `ExperimentConfig` as plain values, from its `to_dict`.
        runs, root, on_bad_case, track, patience: as in `fit_on_ray`.

    Returns:
        (the run folder, None), or (None, the message of the fault).
    """
    torch.set_num_threads(1)
    try:
        config = ExperimentConfig.from_dict(config)
        data = open_task(config.data, config.seed, root, on_bad_case, progress=False)
        folder, deadline = run_folder(config, data, runs), time.monotonic() + patience
        while is_locked(folder) and time.monotonic() < deadline:
            time.sleep(1)
        return os.fspath(fit(config, data, runs, show=False, track=track)), None
    except MvlError as error:
        return None, str(error)


def _ray():
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            'a cluster needs Ray, which is missing here: pip install "mvl[cluster]"'
        ) from error
    return ray


def _address(on):
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


@contextlib.contextmanager
def _connected(ray, address):
    try:
        ray.init(address)
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'RAY_ADDRESS'}: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
