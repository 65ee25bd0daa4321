"""What cases cost: read once and kept, augmented anew each epoch, or read and resized each time.

    python benchmarks/loading.py

And what a step waits for its batch, without and with the thread that makes the next one ahead.
"""

import contextlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import torch
from step import training_step

from mvl.config import DataConfig, preset
from mvl.data.batches import ahead, training_batches
from mvl.data.phantom import make_phantom
from mvl.data.preparation import Preparation
from mvl.data.task_folder import find_task, list_cases
from mvl.data.tasks import read_task
from mvl.machine import cores

DATA, CASES, BATCH, TURNS = DataConfig(), 32, 4, 3


def main():
    if sys.argv[1:]:
        print(json.dumps({"cases": cases, "waits": waits}[sys.argv[1]]()))
        return
    found = common.fresh(__file__, "cases") | common.fresh(__file__, "waits")
    beside = common.fresh(__file__, "waits", threads=cores())
    found |= {f"all_cores_{key}": value for key, value in beside.items()}
    common.record({f"loading_{key}": value for key, value in found.items()})


@contextlib.contextmanager
def phantom():
    """The task and the cases of a phantom of Task04, there for as long as the block runs."""
    with tempfile.TemporaryDirectory() as root:
        make_phantom(DATA.task, Path(root), cases=CASES, progress=False)
        folder = find_task(DATA.task, root)
        yield read_task(folder), list_cases(folder)


def cases():
    """dict of times a case in ms, and of reading and resizing each time over a later epoch."""
    with phantom() as (task, files):
        preparation = Preparation(task, DATA)
        resizing = Preparation(task, replace(DATA, fit="resize"))
        volumes = preparation.load(files, progress=False)
        seconds = common.in_turns(
            {
                "first_epoch": lambda: preparation.load(files, progress=False),
                "later_epoch": lambda: list(training_batches(volumes, DATA, BATCH, 0, 0)),
                "reading_each_time": lambda: resizing.load(files, progress=False),
            },
            TURNS,
        )
    figures = {f"{name}_ms_per_case": 1e3 * taken / CASES for name, taken in seconds.items()}
    ratio = seconds["reading_each_time"] / seconds["later_epoch"]
    return figures | {"reading_over_later_ratio": ratio}


def waits():
    """Waiting over the steps of vit, without and with `ahead`; and the time with over without."""
    torch.set_flush_denormal(True)
    with phantom() as (task, files):
        volumes = Preparation(task, DATA).load(files, progress=False)
    step = training_step(*preset("vit"), DATA.grid, BATCH)
    ways = {"plain": iter, "ahead": ahead}
    waited, worked = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for epoch in range(TURNS + 1):
        for name, way in ways.items():
            found = one_epoch(way(batches(volumes, epoch)), step)
            if epoch:  # the first one is for nothing
                waited[name] += found[0]
                worked[name] += found[1]
    plain, thread = (waited[name] + worked[name] for name in ways)
    return {
        "wait_share": waited["plain"] / worked["plain"],
        "batch_thread_wait_share": waited["ahead"] / worked["ahead"],
        "batch_thread_over_plain_ratio": thread / plain,
    }


def batches(volumes, epoch):
    """An epoch's batches as `mvl.experiment.training` makes them, for a GPU in pinned memory."""
    for batch in training_batches(volumes, DATA, BATCH, 0, epoch):
        yield tuple(part.pin_memory() for part in batch) if common.ON_GPU else batch


def one_epoch(coming, step):
    """(seconds of waiting for batches, seconds of steps) of an epoch, wall time.

    Its first batch is left out: nothing can be ahead of it, and a real epoch has one such of many.
    """
    waited, worked = [], []
    asked = time.perf_counter()
    for _ in coming:
        came = time.perf_counter()
        step()
        if common.ON_GPU:
            torch.cuda.synchronize()
        done = time.perf_counter()
        waited.append(came - asked)
        worked.append(done - came)
        asked = done
    return sum(waited[1:]), sum(worked[1:])


if __name__ == "__main__":
    main()
