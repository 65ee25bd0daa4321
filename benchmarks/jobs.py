"""Throughput of `mvl suite run --jobs N`: N trainings at once over the same one after the other.

    python benchmarks/jobs.py            # N: the cores of this machine, 16 on a GPU

Trainings of `vit` on phantom cases of Task04's size, one thread each, a seed each.
"""

import tempfile
import time
from pathlib import Path

import common

from mvl.cli import main as mvl
from mvl.config import DataConfig
from mvl.data.phantom import make_phantom
from mvl.machine import cores

JOBS, EPOCHS, CASES = 16 if common.ON_GPU else cores(), 60, 60


def main():
    with tempfile.TemporaryDirectory() as folder:
        make_phantom(DataConfig().task, Path(folder), cases=CASES, progress=False)
        seconds = {jobs: wall_s(folder, jobs) for jobs in (1, JOBS)}
    figures = {"at_once": JOBS, "one_by_one_s": seconds[1], "s": seconds[JOBS]}
    figures["throughput_ratio"] = seconds[1] / seconds[JOBS]
    common.record({f"jobs_{key}": value for key, value in figures.items()})


def wall_s(folder, jobs):
    """Seconds that the command takes for `JOBS` trainings, with the start of its processes."""
    where = ["--root", folder, "--results", f"{folder}/{jobs}", "--fit-only"]
    seeds = ["--seeds", *map(str, range(JOBS))]
    plan = ["--arms", "vit", "--epochs", str(EPOCHS), "--jobs", str(jobs)]
    started = time.perf_counter()
    if mvl(["suite", "run", "presets", *seeds, *plan, *where]):
        raise SystemExit("a training failed")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
