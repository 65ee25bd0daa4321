"""Predictions back in native space, and one row of metrics a case and structure."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch

from mvl.data.sources import (
    Case,
    case_name,
    read_label,
    read_volume,
    require_output,
    spacing_of,
)
from mvl.errors import DataError
from mvl.files import written
from mvl.metrics import segmentation_metrics
from mvl.progress import track
from mvl.training import decide


@torch.inference_mode()
def segment(model, volume, preparation):
    """Segment one prepared volume, on the grid of its file.

    Args:
        model: (B, C, H, W, D) -> logits (B, K, H, W, D).
        volume: a case, as `Preparation.load` gives it.
        preparation: the `Preparation` that loaded it.

    Returns:
        bool (structures, H', W', D'), along the axes of the file: the foreground alone, or one
        mask a label in the task's order.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = model(volume["image"].as_tensor()[None].to(device))[0].float().cpu()
    return decide(preparation.to_native(logits, volume["image"])[None])[0]


def structures_of(task, target):
    """Name -> label values of the structures that a target has, in the order of the masks.

    Args:
        task: a `Task`.
        target: `DataConfig.target`.
    """
    if target == "foreground":
        return {"foreground": list(task.labels)}
    return {name: [value] for value, name in task.labels.items()}


def evaluate(model, cases, preparation, task, target, show=True):
    """Metrics of every case and structure, in native space and in millimetres.

    The truth is read from the case's own file, never from the model's grid. A model of the
    labels is also measured on their union, the foreground.

    Args:
        model: as in `segment`.
        cases: list of `Case`.
        preparation: a `Preparation`.
        task: a `Task`, for labels and tolerance.
        target: `DataConfig.target`.
        show: show progress.

    Returns:
        A table with columns subject, case, structure and `metrics.METRICS`.
    """
    rows = []
    volumes = preparation.load(cases, show)
    for case, volume in track(list(zip(cases, volumes, strict=True)), "evaluating", show=show):
        masks = segment(model, volume, preparation)
        truth = read_label(case.label)
        spacing = spacing_of(case.label)
        named = dict(zip(structures_of(task, target), masks, strict=True))
        expected = structures_of(task, target)
        if target == "labels":
            named["foreground"] = masks.any(0)
            expected = expected | {"foreground": list(task.labels)}
        for structure, mask in named.items():
            inside = sum((truth == value for value in expected[structure]), start=truth < 0)
            values = segmentation_metrics(mask, inside, spacing, task.tolerance_mm)
            rows.append(
                {"subject": case.subject, "case": case.name, "structure": structure} | values
            )
    return pd.DataFrame(rows)


def predict_file(image, output, model, preparation, task, target):
    """Segment an image file and write the result on the image's own grid and affine.

    Args:
        image: path of a NIfTI image with the task's channels.
        output: path of the segmentation, .nii or .nii.gz: uint8, the task's label values, or 1
            for the foreground.
        model, preparation, task, target: as in `evaluate`.

    Raises:
        DataError: the image cannot be read, or is not what the model was trained for; or the
            output is not named as a NIfTI file, or is the image.
    """
    require_output(output, image)
    voxels, affine = read_volume(image)
    channels = 1 if voxels.ndim == 3 else voxels.shape[3]
    if channels != len(task.channels):
        raise DataError(
            f"{image} has {channels} channels, but the model was trained on {len(task.channels)} "
            f"({', '.join(task.channels)})"
        )
    if not np.isfinite(voxels).all():
        raise DataError(f"{image} has voxels that are NaN or infinite; replace them first")
    case = Case(case_name(image), case_name(image), Path(image), None)
    volume = preparation.load([case], progress=False)[0]
    masks = segment(model, volume, preparation).numpy()
    values = [1] if target == "foreground" else list(task.labels)
    segmentation = np.zeros(masks.shape[1:], np.uint8)
    for mask, value in zip(masks, values, strict=True):
        segmentation[mask] = value
    with written(output) as temporary:
        nibabel.save(nibabel.Nifti1Image(segmentation, affine), temporary)
