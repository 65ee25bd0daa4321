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
from mvl.errors import DataError, RunError
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

    Raises:
        ValueError: a score is NaN.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so that nothing can be ranked")
    higher, lower = scores[positive], scores[~positive]
    if not (len(higher) and len(lower)):
        return float("nan")
    pairs = len(higher) * len(lower)
    return float(mannwhitneyu(higher, lower, method="asymptotic").statistic / pairs)


def image_voxels(image) -> torch.Tensor:
    """Which voxels (H, W, D) of the model's grid come from the file, and which are padding.

    Args:
        image: MetaTensor (C, H, W, D), as `Preparation.load` gives it: it remembers its size
            before it was fitted to the grid. A resized volume has no padding, and a file's empty
            margin is not padding.

    Raises:
        DataError: the volume was fitted in another way than `Preparation` does, or is one to
            take crops from.
    """
    grid = tuple(image.shape[1:])
    last = image.applied_operations[-1] if image.applied_operations else {}
    if last.get("class") == Resampled.__name__:
        return torch.ones(grid, dtype=torch.bool)
    if last.get("class") != "ResizeWithPadOrCrop":
        raise DataError(
            f"how the volume came to its grid of {grid} is not known, or it was made for crops, "
            "whose model never sees a volume whole"
        )
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
        volume: a case, as `Preparation.load` gives it.
        patch: its size in voxels.
        whole: the grid that the patches cover: the volume's, or a larger one about it, of a host.

    Raises:
        DataError: the case has no label.
    """
    if "label" not in volume:
        raise DataError(f"case {volume['name']} has no label, so that no patch is foreground")
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
    batch_size: int = 4,
    show: bool = True,
) -> pd.DataFrame:
    """The AUROC of the norm of the tokens at each stage, by one forward pass of a trained model.

    Truth is taken on the model's grid, as are the tokens; foreground that was cropped away counts
    for nothing. The model is left in eval().

    Returns:
        One row per case, in their order: subject, case, structure (always "foreground"),
        "auroc_<stage>" for each of `SHOWN_STAGES` that the model has, patches (that count) and
        foreground_patches. A case whose patches are all foreground or all background has NaN.

    Raises:
        DataError: a case without a label.
    """
    device = next(model.parameters()).device
    volumes = preparation.load(cases, show)
    rows = []
    for start in track(range(0, len(cases), batch_size), "reading tokens", "batch", show):
        chosen = slice(start, start + batch_size)
        images = torch.stack([volume["image"].as_tensor() for volume in volumes[chosen]])
        stages = activations(model, images.to(device))
        names = [name for name in SHOWN_STAGES if name in stages]
        norms = {name: stages[name].double().norm(dim=-1).cpu().numpy() for name in names}  # (B, T)
        for i, (case, volume) in enumerate(zip(cases[chosen], volumes[chosen], strict=True)):
            layout = token_layout(model, tuple(volume["image"].shape[1:]))
            foreground, counted = patch_truth(volume, *layout)
            row = {"subject": case.subject, "case": case.name, "structure": "foreground"}
            for name, norm in norms.items():
                row[f"auroc_{name}"] = auroc(norm[i][counted], foreground[counted])
            row |= {"patches": int(counted.sum()), "foreground_patches": int(foreground.sum())}
            rows.append(row)
    return pd.DataFrame(rows)


def with_metrics(table: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of one run's `cases` about the foreground, with the columns of `stage_auroc` added.

    Raises:
        RunError: the two are not about the same cases, or `cases` holds several runs.
    """
    keys = ["subject", "case", "structure"]
    rows = cases[cases["structure"] == "foreground"]
    if rows.duplicated(keys).any() or table.duplicated(keys).any():
        raise RunError("a case is there twice: the measures belong to the metrics of one run")
    only_one = pd.concat([rows[keys], table[keys]]).drop_duplicates(keep=False)
    if len(only_one):
        odd = only_one["case"].iloc[0]
        raise RunError(f"measures and metrics are of different cases: only one has {odd}")
    return rows.merge(table, on=keys, validate="one_to_one")


def by_stage(table: pd.DataFrame) -> pd.DataFrame:
    """One row per case and stage of what `stage_auroc` measured.

    Args:
        table: from `stage_auroc`, or rows of `with_metrics` with its columns, of any runs. An
            arm without a language part lacks some columns, or has NaN there.

    Returns:
        Its other columns, with `stage` (a name of `SHOWN_STAGES`) and `auroc_stream`. A case
        whose patches are all foreground or all background has no row.
    """
    columns = {f"auroc_{stage}": name for stage, name in SHOWN_STAGES.items()}
    present = [column for column in columns if column in table]
    rest = [column for column in table if column not in columns]
    long = table.melt(rest, present, "stage", "auroc_stream").dropna(subset="auroc_stream")
    return long.assign(stage=long["stage"].map(columns)).reset_index(drop=True)
