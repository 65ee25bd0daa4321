"""v3 at 128^3 on a GPU: bfloat16, fused attention, with and without torch.compile; largest batch.

    python benchmarks/gpu.py

One step runs while torch forbids every wait of the processor for the GPU.
"""

import json
import statistics
import sys
from dataclasses import replace

import common
import torch
from step import training_step

from mvl.config import preset
from mvl.models.segmenter import build_segmenter

GRID, CASES, STEPS = (128, 128, 128), 4, 10


def main():
    if not common.ON_GPU:
        common.record({"gpu_v3_128_not_measured": "no CUDA device was at hand"})
    elif sys.argv[1:]:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        rate = common.fresh(common.__file__)["machine_bf16_gflop_per_s"]
        for how, name in (("eager", "gpu_v3_128"), ("compiled", "gpu_v3_128_compiled")):
            found = common.fresh(__file__, how, CASES)
            share = found.pop("model_tflop") * 1e3 / found["step_s"] / rate
            figures = found | {"matrix_rate_share": share, "largest_batch_cases": largest(how)}
            common.record({f"{name}_{key}": value for key, value in figures.items()})


def measure(how, cases):
    """dict of step_s, peak_gb and model_tflop."""
    config, plan = preset("v3", common.LLAMA)
    config = replace(config, language=replace(config.language, dtype="bfloat16"))
    with torch.device("meta"):
        meta = build_segmenter(config, 1, 1, GRID, 0)
    compiled = torch.compile if how == "compiled" else None
    step = training_step(config, plan, GRID, int(cases), compiled)
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    step()
    torch.cuda.set_sync_debug_mode("default")
    times = []
    for _ in range(STEPS):
        started = common.clock()
        step()
        times.append(common.clock() - started)
    return {
        "step_s": statistics.median(times),
        "peak_gb": common.peak_gb(),
        "model_tflop": common.count_flops(meta, int(cases), 1, *GRID) / 1e12,
    }


def largest(how):
    """The largest batch, by doubling, of which a step fits; each try is a process of its own."""
    cases = CASES
    while common.fits(__file__, how, 2 * cases):
        cases *= 2
    return cases


if __name__ == "__main__":
    main()
