"""Training on Task04's grid with the embedded block, taking turns: a step, and an epoch.

A step of every arm of the suite `peers` and of the preset v3; an epoch of the presets.

python benchmarks/task04.py
"""

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import common
import torch
from step import training_step

from mvl.config import DataConfig, ExperimentConfig, preset
from mvl.data.phantom import make_phantom
from mvl.data.preparation import Preparation
from mvl.data.task_folder import find_task, list_cases
from mvl.data.tasks import read_task
from mvl.experiment.training import train
from mvl.machine import cores
from mvl.models.segmenter import build_segmenter
from mvl.study.suites import SUITES

NAMES = ("vit", "v1", "v3", "best")
ARMS = {"v3": preset("v3")} | {n: (a.model, a.training) for n, a in SUITES["peers"].items()}
DATA, CASES, TURNS = DataConfig(), 4, 3
TRAINING, VALIDATION = 48, 12


def main():
    if sys.argv[1:]:
        print(json.dumps({"steps": steps, "epochs": epochs}[sys.argv[1]]()))
        return
    # A step is timed by what it costs, an epoch as a user waits for it.
    for what, kind, threads in (("steps", "step", 1), ("epochs", "epoch", cores())):
        seconds = common.fresh(__file__, what, threads=threads)
        figures = {f"task04_{name}_{kind}_s": taken for name, taken in seconds.items()}
        for name, taken in seconds.items():
            figures[f"task04_{name}_{kind}_over_vit_ratio"] = taken / seconds["vit"]
        common.record(figures)


def steps():
    """{arm: seconds a step}."""
    torch.set_flush_denormal(True)
    runs = {name: training_step(*arm, DATA.grid, CASES) for name, arm in ARMS.items()}
    return common.in_turns(runs, TURNS)


def epochs():
    """{preset: seconds of wall time an epoch}, with its data and its validation."""
    with tempfile.TemporaryDirectory() as folder:
        make_phantom(DATA.task, Path(folder), cases=TRAINING + VALIDATION, progress=False)
        task = find_task(DATA.task, folder)
        volumes = Preparation(read_task(task), DATA).load(list_cases(task), progress=False)
        sides = volumes[:TRAINING], volumes[TRAINING:]
        seconds = {name: [] for name in NAMES}
        for turn in range(TURNS + 1):  # the first one is for nothing
            for name in NAMES:
                model, plan = preset(name)
                plan = replace(plan, epochs=1, batch_size=CASES)
                config = ExperimentConfig(DATA, model, plan)
                place = Path(folder, f"{name} {turn}")
                place.mkdir()
                network = build_segmenter(model, 1, 1, DATA.grid, 0)
                seconds[name].append(train(network, *sides, config, place, show=False))
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
