"""A training step on Task04's grid with the embedded block, presets taking turns.

python benchmarks/task04.py
"""

import json
import sys

import common
import torch
from step import training_step

from mvl.config import DataConfig, preset

NAMES = ("vit", "v1", "v3", "best")
CASES, TURNS = 4, 3


def main():
    if sys.argv[1:] == ["--measure"]:
        torch.set_flush_denormal(True)
        grid = DataConfig().grid
        steps = {name: training_step(*preset(name), grid, CASES) for name in NAMES}
        print(json.dumps(common.in_turns(steps, TURNS)))
        return
    seconds = common.fresh(__file__, "--measure")
    figures = {f"task04_{name}_step_s": seconds[name] for name in NAMES}
    for name in NAMES:
        figures[f"task04_{name}_step_over_vit_ratio"] = seconds[name] / seconds["vit"]
    common.record(figures)


if __name__ == "__main__":
    main()
