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
from step import preset_flops, training_step

from mvl.config import preset

GRID, CASES, STEPS = (128, 128, 128), 4, 10


def main():
    if sys.argv[1:]:
        how, cases = sys.argv[1:]
        print(json.dumps(measure(how, int(cases))))
    elif common.ON_GPU:
        for how in ("eager", "compiled"):
            found = largest(how)
            if found:
                common.record({f"gpu_{how}_v3_128_{key}": value for key, value in found.items()})
            else:
                why = "not even one case fits into the GPU's memory"
                common.record({f"gpu_{how}_v3_128_not_measured": why})
    else:
        why = "no CUDA device was at hand"
        common.record({f"gpu_{how}_v3_128_not_measured": why for how in ("eager", "compiled")})


def largest(how):
    """What `measure` gives for `CASES` cases, or for the most that fit if that is fewer.

    Returns:
        Its dict and `largest_batch_cases`, the largest batch by doubling and halving; None where
        not even one case fits. Each try is a process of its own.
    """
    cases = CASES
    while not (found := common.fresh(__file__, how, cases)):
        if cases == 1:
            return None
        cases //= 2
    most = cases
    while cases == CASES and common.fresh(__file__, how, 2 * most):
        most *= 2
    return found | {"largest_batch_cases": most}


def measure(how, cases):
    """A step of so many cases, "eager" or "compiled".

    Returns:
        dict of cases, step_s, peak_gb, model_tflop, matrix_rate_share and host_waits; None where
        they do not fit into the GPU's memory.
    """
    try:
        return _measure(how, cases)
    except torch.OutOfMemoryError:
        return None


def _measure(how, cases):
    config, plan = preset("v3", common.LLAMA)
    config = replace(config, language=replace(config.language, dtype="bfloat16"))
    compiled = torch.compile if how == "compiled" else None
    step = training_step(config, plan, GRID, cases, compiled)
    for _ in range(3):
        step()
    waits = waits_for_gpu(step)
    times, rates = [], []
    for _ in range(STEPS):
        rates.append(common.matrix_rate(torch.bfloat16))
        started = common.clock()
        step()
        times.append(common.clock() - started)
    figures = {"cases": cases, "step_s": statistics.median(times), "peak_gb": common.peak_gb()}
    flops, rate = preset_flops("v3", GRID, cases), statistics.median(rates)
    share = flops / figures["step_s"] / rate
    return figures | {
        "model_tflop": flops / 1e12,
        "matrix_rate_share": share,
        "host_waits": int(waits),
    }


def waits_for_gpu(step):
    """Whether a step makes the processor wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


if __name__ == "__main__":
    main()
