"""Time, memory and model FLOPs of a training step, each model in processes of its own.

    python benchmarks/step.py [--models vit v3 released_code ...] [--edges 64 128]

Models are the presets with a random block of Llama-3.1-8B's size; `bare_block`, that block alone;
and `released_code`, the released code's own structure. They take turns, a process each time, since
a process' peak of memory is that of all that it ever did. `released_code` is left out, and says
so, where it needs more memory than is free.
"""

import argparse
import json
import math
import statistics
from dataclasses import replace

import common
import psutil
import torch
from monai.data import MetaTensor

from mvl.blocks.language_part import build_language
from mvl.config import PRESETS, DataConfig, LanguageConfig, preset
from mvl.data.batches import training_batches
from mvl.experiment.released import ReleasedModel, released_step
from mvl.experiment.training import _leave_out_unless_finite, _optimiser, segmentation_loss
from mvl.machine import cores
from mvl.models.peers import build_model
from mvl.models.segmenter import build_segmenter
from mvl.models.tokens import token_grid

MODELS = [*PRESETS, "bare_block", "released_code"]
#: Edge in voxels -> cases a step.
CASES = {64: 2, 128: 1}
#: What the released code is known to take at 128^3, in 10^9 bytes, with a margin.
RELEASED_CODE_128_GB = 20
#: How often each model has its turn; the median counts.
TURNS = 3
#: Steps are repeated until as many seconds are spent.
ENOUGH_S = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--edges", nargs="+", type=int, default=[*CASES])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model, edge, dtype = options.measure
        print(json.dumps(measure(model, int(edge), dtype)))
        return
    machine = common.fresh(common.__file__)
    common.record(machine)
    for edge in options.edges:
        models = list(options.models)
        free = psutil.virtual_memory().available / 1e9
        if edge == 128 and "released_code" in models and free < RELEASED_CODE_128_GB:
            models.remove("released_code")
            why = f"it wants {RELEASED_CODE_128_GB} GB of free memory"
            common.record({"released_code_128_not_measured": why})
        found = {model: [] for model in models}
        for _ in range(TURNS):
            for model in models:
                arguments = ("--measure", model, edge, machine["machine_faster_format"])
                found[model].append(common.fresh(__file__, *arguments, threads=cores()))
            # After every turn: the last one is hours of work away where a machine is slow.
            common.record(summary(found, edge))


def summary(found, edge):
    """Figures for the record: medians over turns, and ratios to the released code's step.

    Args:
        found: {model: list of what `measure` gave, a turn each}.
        edge: of the volume, in voxels.
    """
    figures, code = {}, found.get("released_code")
    for model, turns in found.items():
        row = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        if code and model in PRESETS:
            for name, key in (("time", "step_s"), ("memory", "peak_gb")):
                ratios = [a[key] / b[key] for a, b in zip(code, turns, strict=True)]
                row[f"released_code_{name}_ratio"] = statistics.median(ratios)
        figures |= {f"{model}_{edge}_{key}": value for key, value in row.items()}
    return figures


def measure(name, edge, dtype):
    """One model's step.

    Args:
        name: one of `MODELS`.
        edge: of the volume, in voxels.
        dtype: number format of the frozen block, and of the matrix product that the step is held
            against; the released code knows float32 alone.

    Returns:
        dict of step_s, peak_gb, model_tflop, matrix_rate_share and data_over_step_share; the last
        one for presets alone.
    """
    grid, cases = (edge,) * 3, CASES.get(edge, 1)
    dtype = "float32" if name == "released_code" else dtype
    torch.set_flush_denormal(True)
    step, flops = {"bare_block": bare_block, "released_code": released}.get(name, ours)(
        name, grid, cases, dtype
    )
    steps, data, rates = [], [], []
    while sum(steps) < ENOUGH_S:
        rates.append(common.matrix_rate(getattr(torch, dtype)))
        if name in PRESETS:
            data.append(later_batch(grid, cases))
        started = common.clock()
        step()
        steps.append(common.clock() - started)
    # The first step makes the optimiser's state; where it alone takes long, that is nothing.
    step_s = statistics.median(steps[1:] or steps)
    figures = {"step_s": step_s, "peak_gb": common.peak_gb(), "model_tflop": flops() / 1e12}
    rate = statistics.median(rates)
    figures["matrix_rate_share"] = 1e12 * figures["model_tflop"] / step_s / rate
    if data:
        figures["data_over_step_share"] = statistics.median(data) / step_s
    return figures


def later_batch(grid, cases):
    """Seconds that a batch takes which is not the first of its epoch, from prepared volumes."""
    volumes = [
        {
            "name": str(number),
            "image": MetaTensor(torch.randn(1, *grid)),
            "label": torch.zeros(1, *grid, dtype=torch.uint8),
        }
        for number in range(2 * cases)
    ]
    batches = training_batches(volumes, DataConfig(grid=grid, fit="resize"), cases, 0, 0)
    next(batches)  # makes what all batches of an epoch share
    started = common.clock()
    next(batches)
    return common.clock() - started


def batch(grid, cases):
    """Random volumes and masks."""
    torch.manual_seed(0)
    images = torch.randn(cases, 1, *grid, device=common.DEVICE)
    return images, (images > 1).to(torch.uint8)


def training_step(config, plan, grid, cases, compiled=None):
    """A step as `mvl.experiment.training` takes it, in bfloat16 on a GPU, as a function.

    Args:
        config, plan: as `mvl.config.preset` gives them.
        grid: voxels of a case, (H, W, D).
        cases: how many are in the batch.
        compiled: `torch.compile`, to be used on the model.
    """
    model = build_model(config, 1, 1, grid, 0).to(common.DEVICE).train()
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
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm or math.inf)
        if common.ON_GPU:
            _leave_out_unless_finite(optimiser, torch.stack([loss.detach(), norm]))
        optimiser.step()

    return step


def ours(name, grid, cases, dtype):
    """(a preset's step, a function that counts its FLOPs)."""
    config, plan = preset(name, common.LLAMA)
    if config.language:
        config = replace(config, language=replace(config.language, dtype=dtype))
    return training_step(config, plan, grid, cases), lambda: preset_flops(name, grid, cases)


def preset_flops(name, grid, cases):
    """FLOPs of a preset's step, with a block of Llama-3.1-8B's size."""
    with torch.device("meta"):
        model = build_segmenter(preset(name, common.LLAMA)[0], 1, 1, grid, 0)
    return common.count_flops(model, cases, 1, *grid)


def bare_block(name, grid, cases, dtype):
    """As `ours`, of the frozen block alone: forward, and back to its input."""
    config = LanguageConfig(source=common.LLAMA, dtype=dtype)
    block = build_language(config, 64, 0).block.to(common.DEVICE)
    shape = (cases, math.prod(token_grid(grid, (8, 8, 8))), common.SIZES["hidden_size"])
    z = torch.randn(shape, device=common.DEVICE, requires_grad=True)

    def flops():
        with torch.device("meta"):
            meta = build_language(LanguageConfig(source=common.LLAMA), 64, 0).block
        return common.count_flops(meta, *shape, to_input=True)

    return lambda: block(z).sum().backward(), flops


def released(name, grid, cases, dtype):
    """As `ours`, of the released code."""
    with torch.device("meta"):
        meta = ReleasedModel(grid, llama=common.SIZES)
    model = ReleasedModel(grid, llama=common.SIZES).to(common.DEVICE).train()
    optimiser = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    images, labels = batch(grid, cases)

    def flops():
        return common.count_flops(meta, cases, 1, *grid)

    return lambda: released_step(model, optimiser, images, labels), flops


if __name__ == "__main__":
    main()
