"""Predictions back in native space, and one row of metrics a case and structure."""

import hashlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor

from mvl.blocks.checkpoints import hash_tensors
from mvl.data.judgement import judge, judge_volumes
from mvl.data.nifti import read_header, read_label, read_volume, write_segmentation
from mvl.data.task_folder import Case, case_name, require_output
from mvl.data.tasks import folder_name
from mvl.errors import DataError
from mvl.experiment.metrics import segmentation_metrics
from mvl.experiment.training import decide, infer
from mvl.progress import track


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
    with torch.inference_mode():  # a decorator would keep hold of a large volume
        image = volume["image"]
        del volume
        logits = infer(model, image.as_tensor()[None], preparation.config.window)[0].cpu()
        # Only the record of the image's way is still wanted.
        image = MetaTensor(
            torch.empty(0), meta=image.meta, applied_operations=image.applied_operations
        )

        def native(channel):
            return preparation.to_native(channel[None], image)

        if len(logits) == 1:
            return decide(native(logits[0])[None])[0]
        # As `decide` has it, a class at a time: all of a large CT at once take gigabytes.
        highest = native(logits[0])
        likeliest = torch.zeros(
            highest.shape[1:], dtype=torch.uint8 if len(logits) <= 256 else torch.int16
        )
        for index, channel in enumerate(logits[1:], start=1):
            values = native(channel)
            likeliest[(values > highest)[0]] = index
            torch.maximum(highest, values, out=highest)
            del values
        return torch.stack([likeliest == index for index in range(1, len(logits))])


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
    labels is also measured on their union, the foreground, and on the task's regions.

    Args:
        model: as in `segment`.
        cases: list of `Case`, which are loaded one at a time.
        preparation: a `Preparation`.
        task: a `Task`, for labels, regions and tolerance.
        target: `DataConfig.target`.
        show: show progress.

    Returns:
        A table with columns subject, case, structure and `metrics.METRICS`.
    """
    rows = []
    for case in track(cases, "evaluating", show=show):
        truth, header = read_label(case.label)
        ignored = None if task.ignore is None else truth == task.ignore
        known = {}
        for structure, region, mask in _measured(model, case, preparation, task, target):
            if region not in known:  # the whole tumour is the foreground by another name
                inside = np.isin(truth, list(region))
                known[region] = segmentation_metrics(
                    mask, inside, header.spacing, task.tolerance_mm, ignored
                )
            facts = {"subject": case.subject, "case": case.name, "structure": structure}
            rows.append(facts | known[region])
    return pd.DataFrame(rows)


def false_positives(model, cases, preparation, task, target, show=True):
    """What is found in cases that have no structure (`Task.healthy`): all of it is wrong.

    Args: as `evaluate`.

    Returns:
        A table with columns subject, case, structure and false_positive_ml, in native space.
    """
    rows = []
    for case in track(cases, "evaluating healthy cases", show=show):
        label, header = read_label(case.label)
        counts = ~np.isin(label, [task.ignore] * (task.ignore is not None))
        voxel_ml = math.prod(header.spacing) / 1000
        for structure, _, mask in _measured(model, case, preparation, task, target):
            facts = {"subject": case.subject, "case": case.name, "structure": structure}
            rows.append(facts | {"false_positive_ml": float((mask & counts).sum() * voxel_ml)})
    return pd.DataFrame(rows)


def _measured(model, case, preparation, task, target):
    """Yield (name, label values, predicted mask) of all that is measured of a case."""
    predicted = structures_of(task, target)
    measured = predicted
    if target == "labels":
        measured = predicted | {"foreground": list(task.labels)} | task.regions
    image_alone = replace(case, label=None)
    masks = segment(model, preparation.load([image_alone], False)[0], preparation).numpy()
    for structure, values in measured.items():
        region = frozenset(values)
        parts = zip(masks, predicted.values(), strict=True)
        mask = np.logical_or.reduce([part for part, own in parts if region.issuperset(own)])
        yield structure, region, mask


def predict_file(
    image, output, model, preparation, task, target, domain=None, anyway=False, show=True
):
    """Segment an image file and write the result on the image's own grid and place.

    Args:
        image: path of a NIfTI image with the task's channels.
        output: path of the segmentation, .nii or .nii.gz: the task's label values, or 1 for the
            foreground; uint8 where they fit and int16 elsewhere. Its header's description tells
            one model's segmentations from another's.
        model, preparation, task, target: as in `evaluate`.
        domain: the model's `TrainingDomain`, against which the image is held.
        anyway: warn of an image far outside of it, too, in place of refusing it.
        show: print what the image is like and each structure's volume; warnings on stderr.

    Raises:
        DataError: the image cannot be read, or is not what the model was trained for; or the
            output is not named as a NIfTI file, or is the image.
    """
    require_output(output, image)
    voxels, header = read_volume(image)
    channels = 1 if voxels.ndim == 3 else voxels.shape[3]
    if channels != len(task.channels) and preparation.config.channels == "all":
        raise DataError(
            f"{image} has {channels} channels, but the model was trained on {len(task.channels)} "
            f"({', '.join(task.channels)})"
        )
    if not np.isfinite(voxels).all():
        raise DataError(f"{image} has voxels that are NaN or infinite; replace them first")
    _require_known(image, domain, voxels, header.affine, task, preparation.config, anyway, show)
    del voxels
    case = Case(case_name(image), case_name(image), Path(image), None)
    masks = segment(model, preparation.load([case], False)[0], preparation).numpy()
    values = [1] if target == "foreground" else list(task.labels)
    segmentation = np.zeros(masks.shape[1:], np.uint8 if max(values) <= 255 else np.int16)
    for mask, value in zip(masks, values, strict=True):
        segmentation[mask] = value
    if show:
        names = structures_of(task, target)
        voxels = {name: int(mask.sum()) for name, mask in zip(names, masks, strict=True)}
        _tell_volumes(image, domain, voxels, header.affine)
    write_segmentation(output, segmentation, header, _mark(model, preparation, target))


def _require_known(image, domain, voxels, affine, task, config, anyway, show):
    """Say how an image is unlike the training images, and refuse it where that is much."""
    findings = judge(domain, voxels, affine, task, config)
    if any(finding.refused for finding in findings) and not anyway:
        # The grave ones first: one of them often makes the others.
        said = sorted(findings, key=lambda finding: not finding.refused)
        raise DataError(
            f"{image} is not an image that this model can segment:\n  "
            + "\n  ".join(finding.text for finding in said)
            + "\n--anyway segments it all the same (in Python anyway=True)"
        )
    if not show:
        return
    for finding in findings:
        print(f"warning: {image}: {finding.text}", file=sys.stderr, flush=True)
    if domain is None:
        print(f"{image}: not checked, since the model does not record its training images")
        return
    state = "unlike" if findings else "like"
    known = f"{image}: {state} the {domain.cases} training images"
    if domain.is_one_sided:
        as_is, mirrored = domain.sides_dice
        known += (
            f"; the model knows one side only (validation Dice {as_is:.3f}, mirrored left to right "
            f"{mirrored:.3f}), and no header tells an image's side"
        )
    print(known, flush=True)


def _tell_volumes(image, domain, voxels, affine):
    """Print each structure's size, with a warning where no training case had such."""
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    volumes = {name: count * voxel for name, count in voxels.items()}
    for name, count in voxels.items():
        print(f"  {name}: {count:,} voxels, {volumes[name]:.3g} ml", flush=True)
    for warning in judge_volumes(domain, volumes):
        print(f"warning: {image}: {warning}", file=sys.stderr, flush=True)


def _mark(model, preparation, target):
    """What a segmentation's header says of what made it; 79 characters are the most it holds."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    made_by = f"{hash_tensors(weights)} {preparation.config} {target}"
    return f"mvl predict {hashlib.sha256(made_by.encode()).hexdigest()[:32]}"


def predict_folder(
    folder, output, model, preparation, task, target, domain=None, anyway=False, show=True
):
    """Segment the images of a folder; what the same model has segmented is left as it is.

    The decathlon wants its test images' segmentations under their own names, in a folder named
    like the task.

    Args:
        folder: a task folder, of which the images in `imagesTs` are meant, or a folder of images.
        output: gets <name>.nii.gz of each image; of a task folder, in a folder of its name.
        model, preparation, task, target: as in `evaluate`.
        domain, anyway: as in `predict_file`.
        show: show progress, and what `predict_file` says of each image.

    Returns:
        (the folder that holds the segmentations, {image: message} of the images that could not be
        segmented).

    Raises:
        DataError: there is no image, two would have one segmentation, or a segmentation would
            take its image's place.
        MvlError: a segmentation cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if (folder / "dataset.json").is_file():
        output = output / folder_name(folder)
        folder = folder / "imagesTs"
    # What begins with a dot are macOS's shadow files, which some archives carry.
    endings = (".nii", ".nii.gz")
    images = [p for p in sorted(folder.glob("[!.]*")) if p.name.lower().endswith(endings)]
    if not images:
        raise DataError(f"{folder} has no image, .nii or .nii.gz")
    todo, image_of = {}, {}
    for image in images:
        path = todo[image] = output / f"{case_name(image)}.nii.gz"
        if (other := image_of.setdefault(path, image)) != image:
            raise DataError(f"{other} and {image} would both become {path}; rename one of them")
        require_output(path, image)
    mark = _mark(model, preparation, target)
    todo = {image: path for image, path in todo.items() if not _is_segmented(image, path, mark)}
    if show and len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} are segmented already", flush=True)
    failures = {}
    for image, path in track(todo.items(), "segmenting", "image", show):
        try:
            predict_file(image, path, model, preparation, task, target, domain, anyway, show)
        except DataError as error:
            failures[image] = str(error)
    return output, failures


def _is_segmented(image, path, mark):
    """Whether `path` is a whole segmentation of an image as it is, by the model of the mark."""
    if not path.exists() or path.stat().st_mtime_ns < image.stat().st_mtime_ns:
        return False
    try:
        (segmentation, own), wanted = read_label(path), read_header(image)
        alike = segmentation.shape == wanted.shape[:3]
    except DataError:
        return False
    made_by = own.fields["descrip"].item().decode(errors="replace")
    alike = alike and own.forms.keys() == wanted.forms.keys()
    return (
        alike
        and made_by == mark
        and all(np.allclose(own.forms[name], wanted.forms[name], atol=1e-4) for name in own.forms)
    )
