"""How large are the tokens of foreground patches, stage by stage? One AUROC per case and stage.

The paper says that the frozen language block sharpens activation on the relevant region. The
area under the ROC curve says how well the norm of a token tells the patches of the structure from
the others. 0.5 is chance; below it the norms are larger on the background.

A value above 0.5 is no evidence for language: an encoder without a block reaches it as well, and
the trained model need not use what its block writes (`mvl.experiment.block_use` asks that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.stats import mannwhitneyu

from mvl.data.preparation import Resampled
from mvl.experiment.inference import whole_float32
from mvl.models.activations import activations, token_layout
from mvl.models.peers import Peer, middle
from mvl.models.tokens import to_patches
from mvl.progress import track

if TYPE_CHECKING:
    from mvl.data.preparation import Preparation
    from mvl.data.task_folder import Case
    from mvl.models.segmenter import MedVisionLlama

#: Stage of `models.activations.STAGES` -> its name in figures and sentences. What lies in the
#: language model's space is left out: where a BERT-type block ends in its LayerNorm, every token
#: has about the same norm.
SHOWN_STAGES = {
    "encoder": "after the encoder",
    "update": "the block's update",
    "after": "after the block",
    "decoder": "after the decoder",
}

#: Share of a patch's voxels from which on it counts as foreground.
FOREGROUND_SHARE = 0.5


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive scores higher than a negative; a tie counts one half.

    It is the Mann-Whitney statistic of scores (N,) and booleans (N,) divided by the number of
    pairs; NaN without a positive or without a negative.
    """
    higher, lower = scores[positive], scores[~positive]
    if not (len(higher) and len(lower)):
        return float("nan")
    statistic = mannwhitneyu(higher, lower, method="asymptotic").statistic
    return float(statistic / (len(higher) * len(lower)))


def image_voxels(image) -> torch.Tensor:
    """Which voxels (H, W, D) of the model's grid come from the file, and which are padding.

    Args:
        image: MetaTensor (C, H, W, D), as `Preparation.load` gives it: it remembers its size
            before it was fitted to the grid. A resized volume has no padding, and a file's empty
            margin is not padding.
    """
    grid, last = tuple(image.shape[1:]), image.applied_operations[-1]
    if last["class"] == Resampled.__name__:
        return torch.ones(grid, dtype=torch.bool)
    # A volume of ones goes the image's way. The recorded widths of the padding would say the
    # same, but MONAI takes them out of the record when a prediction is brought back.
    ones = torch.ones(1, *map(int, last["orig_size"]))
    return torch.as_tensor(ResizeWithPadOrCrop(grid)(ones))[0] > 0


def patch_truth(
    volume: dict, patch: Sequence[int], whole: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which patches are foreground, and which count at all: bool (T,) each, as the tokens.

    A patch counts if it holds at least one voxel of the file. One that is wholly padding does
    not: a model tells it from the rest by its zeros alone, and it is never foreground, so that it
    would lift the AUROC for nothing. A patch is foreground if the labels, all of them together,
    fill at least `FOREGROUND_SHARE` of its voxels, those that are padding included.

    Args:
        volume: a case with its label, as `Preparation.load` gives it.
        patch: its size in voxels.
        whole: the grid that the patches cover: the volume's, or a larger one about it, of a host.
    """
    both = torch.zeros(2, 1, *whole)
    inside = middle(whole, volume["image"].shape[1:])
    truth = volume["label"][0]  # ignored voxels are below 0
    both[0, 0, *inside] = truth > 0
    both[1, 0, *inside] = image_voxels(volume["image"]) & (truth >= 0)
    label, voxels = to_patches(both, patch)  # (T, voxels of a patch) each
    share, counted = label.mean(-1), voxels.any(-1)  # (T,)
    return (share >= FOREGROUND_SHARE).numpy(), counted.numpy()


@whole_float32()
def stage_auroc(
    model: MedVisionLlama | Peer,
    cases: Sequence[Case],
    preparation: Preparation,
    show: bool = True,
) -> pd.DataFrame:
    """The AUROC of the norm of the tokens at each stage, by one forward pass of a trained model.

    Truth is taken on the model's grid, as are the tokens; foreground that was cropped away counts
    for nothing. The model is left in eval().

    Args:
        cases: with labels.

    Returns:
        One row per case and stage that the model has: subject, case, structure (always
        "foreground"), stage (a name of `SHOWN_STAGES`), auroc_stream (NaN where all patches are of
        one kind), patches (that count) and foreground_patches.
    """
    device, rows = next(model.parameters()).device, []
    volumes = preparation.load(cases, show)
    for case, volume in zip(track(cases, "reading tokens", show=show), volumes, strict=True):
        layout = token_layout(model, tuple(volume["image"].shape[1:]))
        foreground, counted = patch_truth(volume, *layout)
        stages = activations(model, volume["image"].as_tensor()[None].to(device))
        for stage, name in SHOWN_STAGES.items():
            if stage in stages:
                norm = stages[stage][0].double().norm(dim=-1).cpu().numpy()  # (T,)
                row = {"subject": case.subject, "case": case.name, "structure": "foreground"}
                row |= {"stage": name, "auroc_stream": auroc(norm[counted], foreground[counted])}
                row |= {"patches": counted.sum(), "foreground_patches": foreground.sum()}
                rows.append(row)
    return pd.DataFrame(rows)
