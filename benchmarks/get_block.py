"""What it costs to get one block out of a checkpoint of Llama-3.1-8B's shape.

    python benchmarks/get_block.py

makes a checkpoint of 16 GB by its index in four shards, sparse but for the random bytes of its
last layer; reads that layer by `build_language` in a fresh process for each number format, from
a disk whose cache was dropped as far as the system lets one; deletes the checkpoint; merges the
figures into benchmarks/results.json and writes benchmarks/blocks.csv, one block against its whole
model for many models. Linux only, since /proc tells memory and bytes.
"""

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path

import common
import torch

from mvl.blocks.language_part import build_language
from mvl.config import LanguageConfig
from mvl.files import write_json, write_table
from mvl.machine import cores
from mvl.models.sizes import ARCHITECTURES, block_table, whole_model

HERE = Path(__file__).resolve().parent
LLAMA = ARCHITECTURES["Llama-3.1-8B"]
SHARD_BYTES = 5_000_000_000
#: Elements that are drawn and written at a time.
PIECE = 1 << 24
#: Standard deviation of the random weights.
SPREAD = 0.02
TINY = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
TINY |= {"num_hidden_layers": 1, "num_attention_heads": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        figures["get_block_llama31_8b_model_gb"] = round(make_checkpoint(Path(folder)) / 1e9, 3)
        for dtype, short in (("bfloat16", "bf16"), ("float32", "f32")):
            drop_cache(Path(folder))
            found = common.fresh(__file__, "--measure", folder, dtype, threads=cores())
            for name, value in found.items():
                figures[f"get_block_llama31_8b_{short}_{name}"] = value
    write_table(HERE / "blocks.csv", block_table())
    common.record(figures)


def make_checkpoint(folder):
    """config.json, an index and four sparse shards; the last layer alone holds real bytes.

    Returns:
        Bytes of all tensors, by the index.
    """
    last = f"model.layers.{LLAMA['num_hidden_layers'] - 1}."
    shards, room = [], 0
    for name, parameter in whole_model(LLAMA).named_parameters():
        if 2 * parameter.numel() > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tuple(parameter.shape)
        room -= 2 * parameter.numel()
    torch.manual_seed(0)
    places, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(folder / file, shard, last)
        places |= dict.fromkeys(shard, file)
    write_json(folder / "config.json", LLAMA)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    return total


def write_shard(path, shapes, real):
    """One safetensors file in bfloat16, sparse but for names that start with `real`.

    Returns:
        Bytes of its tensors.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, entry in header.items():
            if name.startswith(real):
                start, stop = entry["data_offsets"]
                file.seek(8 + len(text) + start)
                for done in range(start // 2, stop // 2, PIECE):
                    drawn = SPREAD * torch.randn(min(PIECE, stop // 2 - done))
                    file.write(drawn.to(torch.bfloat16).view(torch.uint8).numpy())
    return end


def drop_cache(folder):
    """Ask the system to forget the checkpoint's pages, so that they come from the disk."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder, dtype):
    """Get the block once; imports are behind us, so that the figures are the block's own.

    Returns:
        dict of s (wall time), peak_ratio (growth of the process at its peak against the bytes of
        the block as held), peak_gb (of the whole process), bytes_ratio (bytes read against the
        bytes of the block as stored) and block_gb (as held).
    """
    build_language(LanguageConfig(source="random:" + json.dumps(TINY)), 8, seed=0)
    memory, count = proc("status", "VmRSS"), proc("io", "rchar")
    started = time.perf_counter()
    part = build_language(LanguageConfig(source=f"path:{folder}", dtype=dtype), 64, seed=0)
    seconds = time.perf_counter() - started
    peak, count = proc("status", "VmHWM"), proc("io", "rchar") - count
    weights = list(part.block.parameters())
    held = sum(p.numel() * p.element_size() for p in weights)
    # A hole in the file would read as zeros.
    assert all(abs(p.float().std() - SPREAD) < 0.1 * SPREAD for p in weights)
    return {
        "s": round(seconds, 3),
        "peak_ratio": round((peak - memory) / held, 4),
        "peak_gb": round(peak / 1e9, 3),
        "bytes_ratio": round(count / sum(2 * p.numel() for p in weights), 6),
        "block_gb": round(held / 1e9, 4),
    }


def proc(file, field):
    """A figure of this process in bytes."""
    number, unit = re.search(
        rf"^{field}:\s+(\d+)( kB)?$", Path(f"/proc/self/{file}").read_text(), re.MULTILINE
    ).groups()
    return int(number) * (1024 if unit else 1)


if __name__ == "__main__":
    main()
