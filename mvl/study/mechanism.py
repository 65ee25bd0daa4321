"""Does the language part act on the right patches? "Information filtering", made falsifiable.

The paper says that the frozen language block sharpens activation on the relevant region. If so,
what the language part does to a token should tell the tokens of foreground patches from the
others. Two measures say how well it does, a case at a time, by the area under the ROC curve:

    auroc_update    of the norm of what the block writes, ||D2(block(D1(x)))||
    auroc_change    of the norm of the stream's change across the whole part, ||part(x) - x||

0.5 is chance. Below it the part acts more on the background: it tells the two apart as well as
one that lies as far above, but it does not do what the paper says. The block's own output will not
do for this: a BERT-type block ends in a LayerNorm, after which every token has about the same norm.

A value above 0.5 is no evidence for language yet, since the encoder has already told the patches
apart before the part sees them, and two linear maps pass that on: the controls (identity, random,
shuffled) have the same path, and a claim about the pre-training has to beat them.
"""

import numpy as np
import pandas as pd
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.stats import rankdata

from mvl.data.preparation import Resampled
from mvl.errors import DataError, RunError
from mvl.models.activations import activations
from mvl.models.tokens import to_patches
from mvl.progress import track

#: Measure, a column of the table -> the norm that it is the AUROC of.
MEASURES = {
    "auroc_update": "what the block writes onto the stream, D2(block(D1(x)))",
    "auroc_change": "the stream's change across the whole language part",
}

#: Stage of `models.activations.STAGES` -> its name in figures and sentences. What lies in the
#: language model's own space is left out: where a BERT-type block ends in its LayerNorm, every
#: token has about the same norm.
SHOWN_STAGES = {
    "encoder": "after the encoder",
    "update": "the block's update",
    "after": "after the block",
    "decoder": "after the decoder",
}

#: Share of a patch's voxels from which on it counts as foreground.
FOREGROUND_SHARE = 0.5


def auroc(scores, positive):
    """The probability that a positive scores higher than a negative; a tie counts one half.

    It is the Mann-Whitney statistic divided by the number of pairs, with mid-ranks for ties.

    Args:
        scores: (N,) numbers.
        positive: (N,) booleans.

    Returns:
        float, 0 to 1; NaN without a positive or without a negative.

    Raises:
        ValueError: arrays of different or other shape, or a score that is NaN.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"expected two (N,) arrays, got {scores.shape} and {positive.shape}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so that nothing can be ranked")
    n = int(positive.sum())
    pairs = n * (len(positive) - n)
    if pairs == 0:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / pairs)


def image_voxels(image):
    """Which voxels of the model's grid come from the file, and which are padding.

    Args:
        image: MetaTensor (C, H, W, D), as `Preparation.load` gives it: it remembers its size
            before it was fitted to the grid.

    Returns:
        bool (H, W, D), true where the file has a voxel. A resized volume has no padding. A
        file's own empty margin is no padding either.

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


def patch_truth(volume, patch):
    """Which patches are foreground, and which count at all.

    A patch counts if it holds at least one voxel of the file; one that is wholly padding does
    not: a model tells it from the rest by its zeros alone, and it is never foreground, so that it
    would lift the AUROC for nothing. A patch is foreground if the labels, all of them together,
    fill at least `FOREGROUND_SHARE` of its voxels, those that are padding included.

    Args:
        volume: a case, as `Preparation.load` gives it.
        patch: patch size in voxels, dividing the grid.

    Returns:
        (foreground, counted), bool (T,) each, in the order of the tokens.

    Raises:
        DataError: the case has no label.
    """
    if "label" not in volume:
        raise DataError(f"case {volume['name']} has no label, so that no patch is foreground")
    label = (volume["label"] > 0)[None]  # (1, 1, H, W, D)
    voxels = image_voxels(volume["image"])[None, None]
    share = to_patches(label.float(), patch)[0].mean(-1)  # (T,)
    counted = to_patches(voxels, patch)[0].any(-1)
    return (share >= FOREGROUND_SHARE).numpy(), counted.numpy()


def token_norms(model, images):
    """The norms that the measures rank.

    Args:
        model: a `MedVisionLlama` with a language part; it is left in eval().
        images: (B, C, H, W, D) on the model's device.

    Returns:
        {measure of `MEASURES`: float64 (B, T) on the CPU}.

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
        norms[measure] = tokens.double().norm(dim=-1).cpu().numpy()
        if not np.isfinite(norms[measure]).all():
            raise RunError(f"{MEASURES[measure]}: the norm of a token is not finite")
    return norms


def patch_auroc(model, cases, preparation, batch_size=4, show=True):
    """Both measures of every case, by one forward pass of a trained model.

    Truth is taken on the model's grid, as are the tokens; foreground that was cropped away counts
    for nothing.

    Args:
        model: a `MedVisionLlama` with a language part, such as `Run.model`.
        cases: list of `Case` with labels, such as `TaskData.side("test")`.
        preparation: a `Preparation`, such as `Run.preparation`.
        batch_size: cases a forward pass.
        show: show progress.

    Returns:
        A case a row, in the order of `cases`: subject, case, structure (always "foreground"),
        the measures of `MEASURES`, patches (that count) and foreground_patches. A case whose
        patches are all foreground or all background has NaN for both measures; see `defined`.

    Raises:
        RunError: as `token_norms`.
        DataError: a case without a label.
    """
    return _aurocs(token_norms, model, cases, preparation, batch_size, show)


def stage_auroc(model, cases, preparation, batch_size=4, show=True):
    """The AUROC of the norm of the tokens at each stage: where are they large on the structure?

    Args: as `patch_auroc`; the model needs no language part.

    Returns:
        As `patch_auroc`, with a column "auroc_<stage>" for each of `SHOWN_STAGES` that the model
        has in place of the measures.

    Raises:
        DataError: a case without a label.
    """
    return _aurocs(_stage_norms, model, cases, preparation, batch_size, show)


def _stage_norms(model, images):
    found = activations(model, images)
    return {
        f"auroc_{stage}": found[stage].double().norm(dim=-1).cpu().numpy()
        for stage in SHOWN_STAGES
        if stage in found
    }


def _aurocs(norms_of, model, cases, preparation, batch_size, show):
    """A case a row, with the AUROC of each of the norms that `norms_of(model, images)` gives."""
    device, patch = next(model.parameters()).device, model.embed.patch
    volumes = preparation.load(cases, show)
    batches = range(0, len(cases), batch_size)
    rows = []
    for start in track(batches, "reading tokens", "batch", show):
        chosen = slice(start, start + batch_size)
        images = torch.stack([volume["image"].as_tensor() for volume in volumes[chosen]])
        norms = norms_of(model, images.to(device))
        for i, (case, volume) in enumerate(zip(cases[chosen], volumes[chosen], strict=True)):
            foreground, counted = patch_truth(volume, patch)
            rows.append(
                {"subject": case.subject, "case": case.name, "structure": "foreground"}
                | {
                    name: auroc(norm[i][counted], foreground[counted])
                    for name, norm in norms.items()
                }
                | {"patches": int(counted.sum()), "foreground_patches": int(foreground.sum())}
            )
    return pd.DataFrame(rows)


def beside_metrics(table, cases):
    """The measures beside the metrics of the same run, in the table that `statistics` takes.

    Args:
        table: from `patch_auroc`.
        cases: one run's rows, as `experiments.collect` gives them; those of the foreground count.

    Returns:
        The rows of `cases` about the foreground with the columns of `table` added.

    Raises:
        RunError: the two are not about the same cases, or `cases` holds several runs.
    """
    keys = ["subject", "case", "structure"]
    rows = cases[cases["structure"] == "foreground"]
    if rows.duplicated(keys).any() or table.duplicated(keys).any():
        raise RunError("a case is there twice: the measures belong beside the metrics of one run")
    joined = rows.merge(table, on=keys, how="outer", indicator="found_in")
    if not (joined["found_in"] == "both").all():
        odd = joined.loc[joined["found_in"] != "both", "case"].iloc[0]
        raise RunError(f"measures and metrics are of different cases: only one has {odd}")
    # An outer merge sorts by its keys; the run's own order is kept.
    return rows.merge(table, on=keys, validate="one_to_one")


def by_stage(table):
    """A row per case and stage, of what `stage_auroc` found.

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


def defined(table):
    """Leave out the cases that have no AUROC, and name them.

    Which these are depends on labels, grid and patch, not on the arm. A case without a value in
    one run is left out of all, so that arms stay paired, as `statistics.contrast` asks.

    Args:
        table: from `patch_auroc` or `beside_metrics`, of one run or of several.

    Returns:
        (the rows of the other cases, sorted names of the cases left out).
    """
    missing = table.loc[table[list(MEASURES)].isna().any(axis=1), "case"]
    return table[~table["case"].isin(missing)], sorted(set(missing))
