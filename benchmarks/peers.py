"""Our transformer blocks against MONAI's, and our epoch against nnU-Net's on as many cases.

    python benchmarks/peers.py          # nnU-Net only where the package nnunetv2 is installed

nnU-Net plans for phantom cases of Task04's size, and its own loader and augmentation feed it. Our
epochs are those of `task04.py`, with data and validation. Both have every core, in turns.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import torch
from monai.networks.blocks import TransformerBlock
from torch import nn

from mvl.config import DataConfig, preset
from mvl.data.phantom import make_phantom
from mvl.machine import cores
from mvl.models.attention import Attention, Block

DATA, TURNS = DataConfig(), 5
#: nnU-Net's number of the dataset, and how many of its iterations are timed.
NUMBER, ITERATIONS = 4, 8


def main():
    if sys.argv[1:]:
        print(json.dumps({"blocks": blocks, "nnunet": nnunet}[sys.argv[1]]()))
        return
    found = common.fresh(__file__, "blocks")
    common.record({"peers_monai_blocks_over_ours_ratio": found["monai"] / found["ours"]})
    if not importlib.util.find_spec("nnunetv2"):
        common.record({"peers_nnunet_not_measured": "nnunetv2 is not installed"})
        return
    case_s = common.fresh(__file__, "nnunet", threads=cores())
    ours = common.fresh(common.HERE / "task04.py", "epochs", threads=cores())
    figures = {"peers_nnunet_s_per_case": case_s}
    for name, epoch_s in ours.items():
        figures[f"peers_nnunet_over_{name}_ratio"] = 48 * case_s / epoch_s
    common.record(figures)


def blocks():
    """{whose: seconds} of a pass and its way back through all blocks of `vit` on Task04's grid."""
    config = preset("vit")[0]
    width, heads, depth = config.width, config.heads, config.encoder_depth + config.decoder_depth
    tokens = torch.randn(4, 175, width, requires_grad=True)
    hidden = round(width * config.mlp_ratio)
    networks = {
        "ours": nn.Sequential(*(Block(Attention(width, heads), width) for _ in range(depth))),
        "monai": nn.Sequential(
            *(TransformerBlock(width, hidden, heads, qkv_bias=True) for _ in range(depth))
        ),
    }
    runs = {name: lambda n=n: n(tokens).sum().backward() for name, n in networks.items()}
    return common.in_turns(runs, TURNS)


def nnunet():
    """Seconds that nnU-Net takes for one training case: its share of an iteration, with data."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{kind}"] = f"{folder}/{kind}"
            Path(folder, kind).mkdir()
        make_phantom(DATA.task, Path(folder), cases=60, progress=False)
        task = Path(folder, DATA.task)
        tools = Path(sys.executable).parent
        convert = [tools / "nnUNetv2_convert_MSD_dataset", "-i", task, "-overwrite_id", str(NUMBER)]
        plan = [tools / "nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-c", "3d_fullres"]
        for command in (convert, plan):
            subprocess.run(command, check=True, stdout=sys.stderr)
        return _iteration_s(Path(folder, "preprocessed", f"Dataset{NUMBER:03d}_Hippocampus"))


def _iteration_s(folder):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, described = (
        json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, described, torch.device("cpu"))
    trainer.on_train_start()
    seconds = []
    for _ in range(ITERATIONS + 2):  # the first ones find a loader that is ahead
        started = common.clock()
        trainer.train_step(next(trainer.dataloader_train))
        seconds.append(common.clock() - started)
    return statistics.median(seconds[2:]) / trainer.batch_size


if __name__ == "__main__":
    main()
