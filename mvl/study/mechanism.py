"""Does the language part act on the right patches? "Information filtering", made falsifiable.

The paper says that the frozen language block sharpens activation on the relevant region. If so,
what the language part does to a token should tell the tokens of foreground patches from the
others. Two measures say how well it does in each case, by the area under the ROC curve:

    auroc_update    of the norm of what the block writes, ||D2(block(D1(x)))||
    auroc_change    of the norm of the stream's change across the whole part, ||part(x) - x||

0.5 is chance. Below it the part acts more on the background: it tells the two apart as well as
one that lies as far above, but it does not do what the paper says. The block's own output will not
do for this: a BERT-type block ends in a LayerNorm, after which every token has about the same norm.

A value above 0.5 is not yet evidence for language, since the encoder has already told the patches
apart before the part sees them, and two linear maps pass that on: the controls (identity, random,
shuffled) have the same path, and a claim about the pre-training has to beat them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.stats import mannwhitneyu

from mvl.data.preparation import Resampled
from mvl.errors import DataError, RunError
from mvl.models.activations import activations, token_layout
from mvl.models.peers import Peer, middle
from mvl.models.tokens import to_patches
from mvl.progress import track

if TYPE_CHECKING:
    from mvl.data.preparation import Preparation
    from mvl.data.task_folder import Case
    from mvl.models.segmenter import MedVisionLlama

#: Measure, a column of the table -> the norm that it is the AUROC of.
MEASURES = {
    "auroc_update": "what the block writes onto the stream, D2(block(D1(x)))",
    "auroc_change": "the stream's change across the whole language part",
}

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
    both[0, 0, *inside], both[1, 0, *inside] = volume["label"][0] > 0, image_voxels(volume["image"])
    label, voxels = to_patches(both, patch)  # (T, voxels of a patch) each
    share, counted = label.mean(-1), voxels.any(-1)  # (T,)
    return (share >= FOREGROUND_SHARE).numpy(), counted.numpy()


def token_norms(model: MedVisionLlama | Peer, images: torch.Tensor) -> dict[str, np.ndarray]:
    """The norms that the measures rank, float64 (B, T) of images (B, C, H, W, D), by measure.

    The model is left in eval().

    Raises:
        RunError: the model has no language part, or a norm is not finite.
    """
    part = getattr(model, "language", None)
    if part is None:
        raise RunError("the model has no language part, so that there is nothing to measure")
    change = []
    hook = part.register_forward_hook(
        lambda module, arguments, output: change.append(output - arguments[0])
    )
    try:
        update = activations(model, images)["update"]
    finally:
        hook.remove()
    norms = {}
    for measure, tokens in zip(MEASURES, (update, change[0]), strict=True):
        norms[measure] = _norms(tokens)
        if not np.isfinite(norms[measure]).all():
            raise RunError(f"{MEASURES[measure]}: the norm of a token is not finite")
    return norms


def _norms(tokens):
    return tokens.double().norm(dim=-1).cpu().numpy()


def patch_auroc(
    model: MedVisionLlama | Peer,
    cases: Sequence[Case],
    preparation: Preparation,
    batch_size: int = 4,
    show: bool = True,
) -> pd.DataFrame:
    """Both measures of every labelled case, by one forward pass of a trained model.

    Truth is taken on the model's grid, as are the tokens; foreground that was cropped away counts
    for nothing.

    Returns:
        One row per case, in their order: subject, case, structure (always "foreground"), the
        measures of `MEASURES`, patches (that count) and foreground_patches. A case whose patches
        are all foreground or all background has NaN for both measures; see `defined`.

    Raises:
        RunError: as `token_norms`.
        DataError: a case without a label.
    """
    return _aurocs(token_norms, model, cases, preparation, batch_size, show)


def stage_auroc(
    model: MedVisionLlama | Peer,
    cases: Sequence[Case],
    preparation: Preparation,
    batch_size: int = 4,
    show: bool = True,
) -> pd.DataFrame:
    """The AUROC of the norm of the tokens at each stage: where are they large on the structure?

    As `patch_auroc`, with a column "auroc_<stage>" for each of `SHOWN_STAGES` that the model has
    in place of the measures; the model needs no language part.
    """

    def norms_of(model, images):
        stages = activations(model, images)
        return {f"auroc_{name}": _norms(stages[name]) for name in SHOWN_STAGES if name in stages}

    return _aurocs(norms_of, model, cases, preparation, batch_size, show)


def _aurocs(norms_of: Callable, model, cases, preparation, batch_size, show):
    """One row per case: the AUROC of each of the norms that `norms_of(model, images)` gives."""
    device = next(model.parameters()).device
    volumes = preparation.load(cases, show)
    rows = []
    for start in track(range(0, len(cases), batch_size), "reading tokens", "batch", show):
        chosen = slice(start, start + batch_size)
        images = torch.stack([volume["image"].as_tensor() for volume in volumes[chosen]])
        norms = norms_of(model, images.to(device))
        for i, (case, volume) in enumerate(zip(cases[chosen], volumes[chosen], strict=True)):
            layout = token_layout(model, tuple(volume["image"].shape[1:]))
            foreground, counted = patch_truth(volume, *layout)
            rows.append(
                {"subject": case.subject, "case": case.name, "structure": "foreground"}
                | {n: auroc(norm[i][counted], foreground[counted]) for n, norm in norms.items()}
                | {"patches": int(counted.sum()), "foreground_patches": int(foreground.sum())}
            )
    return pd.DataFrame(rows)


def beside_metrics(table: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of one run's `cases` about the foreground, with the columns of `patch_auroc` added.

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
        table: from `stage_auroc`, or rows of `beside_metrics` with its columns, of any runs. An
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


def defined(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of cases that have both measures in every run, and the names of the other cases.

    Which these are depends on labels, grid and patch, not on the arm. A case without a value in
    one run is left out of all, so that arms stay paired, as `statistics.contrast` asks.
    """
    missing = table.loc[table[list(MEASURES)].isna().any(axis=1), "case"]
    return table[~table["case"].isin(missing)], sorted(set(missing))
