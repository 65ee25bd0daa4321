"""Time, memory and model FLOPs of a training step, each model in a process of its own.

    python benchmarks/step.py [--models vit v3 released_code ...] [--edges 64 128]

Models are the presets with a random block of Llama-3.1-8B's size, and `released_code`, the
released code's own structure. One that needs more memory than is free is left out, and says so.
"""

import argparse
import json
import math
from dataclasses import replace

import common
import psutil
import torch

from mvl.config import PRESETS, preset
from mvl.models.segmenter import build_segmenter
from mvl.released import ReleasedModel, released_step
from mvl.training import _optimiser, segmentation_loss

#: What the released code is known to take at 128^3, in 10^9 bytes, with a margin.
RELEASED_CODE_128_GB = 20
#: Steps are repeated until as many seconds are spent.
ENOUGH_S = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = [*PRESETS, "released_code"]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--edges", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model, edge = options.measure
        print(json.dumps(measure(model, int(edge))))
        return
    figures = common.fresh(common.__file__)
    common.record(figures)
    for edge in options.edges:
        for model in options.models:
            name = f"{model}_{edge}"
            if (model, edge) == ("released_code", 128) and (
                psutil.virtual_memory().available < RELEASED_CODE_128_GB * 1e9
            ):
                why = f"it wants {RELEASED_CODE_128_GB} GB of free memory"
                common.record({f"{name}_not_measured": why})
                continue
            found = common.fresh(__file__, "--measure", model, edge)
            rate = figures[f"machine_{'bf16' if common.ON_GPU else 'f32'}_gflop_per_s"]
            share = found["model_tflop"] * 1e3 / found["step_s"] / rate
            found |= {"matrix_rate_share": share}
            common.record({f"{name}_{key}": value for key, value in found.items()})


def measure(name, edge):
    """One model's step: dict of step_s, peak_gb, model_tflop."""
    grid = (edge,) * 3
    torch.set_flush_denormal(True)
    step, meta = released(grid) if name == "released_code" else ours(name, grid)
    times, spent = [], 0.0
    while spent < ENOUGH_S:
        started = common.clock()
        step()
        times.append(common.clock() - started)
        spent += times[-1]
    return {
        # The first step makes the optimiser's state; where it takes long, that is nothing.
        "step_s": min(times),
        "peak_gb": common.peak_gb(),
        "model_tflop": common.count_flops(meta, 1, 1, *grid) / 1e12,
    }


def batch(grid, cases):
    """Random volumes and masks."""
    torch.manual_seed(0)
    images = torch.randn(cases, 1, *grid, device=common.DEVICE)
    return images, (images > 1).to(torch.uint8)


def training_step(config, plan, grid, cases, compiled=None):
    """A step as `mvl.training` takes it, in bfloat16 on a GPU, as a function.

    Args:
        config, plan: as `mvl.config.preset` gives them.
        grid: voxels of a case, (H, W, D).
        cases: how many are in the batch.
        compiled: `torch.compile`, to be used on the model.
    """
    model = build_segmenter(config, 1, 1, grid, 0).to(common.DEVICE).train()
    optimiser = _optimiser(model, plan, fused=common.ON_GPU)
    if compiled:
        model = compiled(model)
    images, labels = batch(grid, cases)
    loss_of = segmentation_loss("foreground")

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=common.ON_GPU):
            loss = loss_of(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm or math.inf)
        optimiser.step()

    return step


def ours(name, grid):
    """(one case's step, the model on the meta device)."""
    config, plan = preset(name, common.LLAMA)
    if common.ON_GPU and config.language:
        config = replace(config, language=replace(config.language, dtype="bfloat16"))
    with torch.device("meta"):
        meta = build_segmenter(config, 1, 1, grid, 0)
    return training_step(config, plan, grid, 1), meta


def released(grid):
    """As `ours`, of the released code."""
    with torch.device("meta"):
        meta = ReleasedModel(grid)
    model = ReleasedModel(grid).to(common.DEVICE).train()
    optimiser = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    return lambda: released_step(model, optimiser, *batch(grid, 1)), meta


if __name__ == "__main__":
    main()
