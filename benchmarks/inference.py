"""Segmenting a case of Task04: the network alone, and the way back to the file's grid.

python benchmarks/inference.py
"""

import json
import sys
import tempfile
from pathlib import Path

import common
import torch

from mvl.config import DataConfig, preset
from mvl.data.phantom import make_phantom
from mvl.data.preparation import Preparation
from mvl.data.task_folder import find_task, list_cases
from mvl.data.tasks import read_task
from mvl.experiment.inference import segment
from mvl.models.segmenter import build_segmenter

NAMES, DATA, TURNS = ("vit", "v1", "best"), DataConfig(), 5


def main():
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
        return
    found = common.fresh(__file__, "--measure")
    common.record({f"inference_{key}": value for key, value in found.items()})


@torch.inference_mode()
def measure():
    """{model and figure: seconds}."""
    with tempfile.TemporaryDirectory() as root:
        make_phantom(DATA.task, Path(root), cases=2, progress=False)
        folder = find_task(DATA.task, root)
        preparation = Preparation(read_task(folder), DATA)
        volume = preparation.load(list_cases(folder)[:1], progress=False)[0]
    image = volume["image"].as_tensor()[None].to(common.DEVICE)
    runs = {}
    for name in NAMES:
        model = build_segmenter(preset(name)[0], 1, 1, DATA.grid, 0).to(common.DEVICE).eval()
        runs[f"{name}_s_per_case"] = lambda model=model: model(image)
        runs[f"{name}_whole_s_per_case"] = lambda model=model: segment(model, volume, preparation)
    return common.in_turns(runs, TURNS)


if __name__ == "__main__":
    main()
