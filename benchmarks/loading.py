"""What cases cost: read once and kept, augmented anew each epoch, or read and resized each time.

python benchmarks/loading.py
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import common
import torch
from step import training_step

from mvl.config import DataConfig, preset
from mvl.data.loading import Preparation, ahead, training_batches
from mvl.data.phantom import make_phantom
from mvl.data.sources import find_task, list_cases
from mvl.tasks import read_task

CASES, BATCH, TURNS = 16, 4, 3


def main():
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
        return
    found = common.fresh(__file__, "--measure")
    common.record({f"loading_{key}": value for key, value in found.items()})


def measure():
    """dict of times a case in ms and of ratios."""
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as root:
        make_phantom("Task04_Hippocampus", Path(root), cases=CASES, progress=False)
        folder = find_task("Task04_Hippocampus", root)
        cases, task = list_cases(folder), read_task(folder)
        preparation = Preparation(task, DataConfig())
        resizing = Preparation(task, DataConfig(fit="resize"))
        volumes = preparation.load(cases, progress=False)

        def epoch():
            for _ in training_batches(volumes, DataConfig(), BATCH, 0, 0):
                pass

        # The shares are of the shortest step there is, of vit.
        step = training_step(*preset("vit"), DataConfig().grid, BATCH)

        def trained(batches):
            for _ in batches:
                step()

        seconds = common.in_turns(
            {
                "first": lambda: preparation.load(cases, progress=False),
                "later": epoch,
                "reading": lambda: resizing.load(cases, progress=False),
                "step": step,
                "plain": lambda: trained(training_batches(volumes, DataConfig(), BATCH, 0, 0)),
                "ahead": lambda: trained(
                    ahead(training_batches(volumes, DataConfig(), BATCH, 0, 0))
                ),
            },
            TURNS,
        )
        return {
            "first_epoch_ms_per_case": 1e3 * seconds["first"] / CASES,
            "later_epoch_ms_per_case": 1e3 * seconds["later"] / CASES,
            "reading_each_time_ms_per_case": 1e3 * seconds["reading"] / CASES,
            "reading_over_later_ratio": seconds["reading"] / seconds["later"],
            "data_over_step_share": seconds["later"] / (CASES / BATCH) / seconds["step"],
            "prefetch_wait_over_step_share": waits(volumes, step),
            "prefetch_over_plain_ratio": seconds["ahead"] / seconds["plain"],
        }


def waits(volumes, step):
    """Wall time that steps wait for batches made by `ahead`, as a share of the steps' own."""
    waited = worked = 0.0
    for epoch in range(TURNS):
        started = time.perf_counter()
        for number, _ in enumerate(ahead(training_batches(volumes, DataConfig(), BATCH, 0, epoch))):
            came = time.perf_counter()
            step()
            # Nothing can be ahead of an epoch's first batch; a real epoch has one such of many.
            if number:
                waited += came - started
                worked += time.perf_counter() - came
            started = time.perf_counter()
    return waited / worked


if __name__ == "__main__":
    main()
