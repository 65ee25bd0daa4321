"""What a CPU gains by flushed subnormals, by the channels-last layout and by bfloat16.

    python benchmarks/cpu.py            # with a GPU at hand: CUDA_VISIBLE_DEVICES= before it

Each is its own ratio. Which number format pays is found by measuring, not by name.
"""

import json
import sys

import common
import torch
from torch import nn

from mvl.blocks.language_part import build_language
from mvl.config import LanguageConfig

#: Few tokens: without units for bfloat16, its backward pass takes many times its forward pass.
GRID, TOKENS, TURNS = (40, 56, 40), 32, 2


def main():
    if common.ON_GPU:
        sys.exit("a GPU is at hand; hide it to measure the CPU: CUDA_VISIBLE_DEVICES=")
    elif sys.argv[1:]:
        print(
            json.dumps({"subnormals": subnormals, "layout": layout, "block": block}[sys.argv[1]]())
        )
    else:
        common.record({"cpu_features": common.machine()["machine_features"]})
        for part in ("subnormals", "layout", "block"):
            found = common.fresh(__file__, part)
            common.record({f"cpu_{key}": value for key, value in found.items()})


def convolutions():
    """The convolutional head's refinement, 8 features and the image."""
    return nn.Sequential(
        nn.Conv3d(9, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 8, 3, padding=1), nn.GELU()
    )


def subnormals():
    """The head on inputs and gradients that are subnormal, against the same with them flushed."""
    network, x = convolutions(), torch.full((1, 9, *GRID), 1e-39)
    nn.init.zeros_(network[0].bias)

    def run(flush):
        torch.set_flush_denormal(flush)
        (1e-39 * network(x).sum()).backward()

    seconds = common.in_turns({"kept": lambda: run(False), "flushed": lambda: run(True)}, TURNS)
    return {"subnormals_kept_over_flushed_ratio": seconds["kept"] / seconds["flushed"]}


def layout():
    """The head's forward and backward pass in torch's default layout and in channels-last."""
    torch.set_flush_denormal(True)
    network = convolutions()
    default = torch.randn(4, 9, *GRID)
    last = default.contiguous(memory_format=torch.channels_last_3d)
    runs = {"default": lambda: network(default).sum().backward()}
    runs["last"] = lambda: network(last).sum().backward()
    seconds = common.in_turns(runs, TURNS)
    return {"conv_head_default_over_channels_last_ratio": seconds["default"] / seconds["last"]}


def block():
    """A frozen block, forward and back to its input, and the matrix rate in the same turns."""
    runs = {}
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        config = LanguageConfig(source=common.LLAMA, dtype=dtype)
        width, number = common.SIZES["hidden_size"], getattr(torch, dtype)
        runs[short] = _both_ways(build_language(config, 64, 0).block, width)
        x, weight = torch.randn(TOKENS, width).to(number), torch.randn(width, width).to(number)
        runs[f"{short} product"] = lambda x=x, weight=weight: nn.functional.linear(x, weight)
    with torch.device("meta"):
        meta = build_language(LanguageConfig(source=common.LLAMA), 64, 0).block
    flops = common.count_flops(meta, 1, TOKENS, width, to_input=True)
    seconds = common.in_turns(runs, TURNS)
    figures = {"block_bf16_over_f32_ratio": seconds["bf16"] / seconds["f32"]}
    for short in ("f32", "bf16"):
        rate = 2 * TOKENS * width * width / seconds[f"{short} product"]
        figures[f"block_{short}_matrix_rate_share"] = flops / seconds[short] / rate
    return figures


def _both_ways(module, width):
    z = torch.randn(1, TOKENS, width, requires_grad=True)
    return lambda: module(z).sum().backward()


if __name__ == "__main__":
    main()
