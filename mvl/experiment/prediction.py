"""Segmentations of image files: one file, or all of a folder."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from mvl.blocks.extraction import hash_tensors
from mvl.data.judgement import judge, judge_volumes
from mvl.data.nifti import read_header, read_label, read_volume, write_segmentation
from mvl.data.task_folder import Case, case_name, require_output
from mvl.data.tasks import folder_name
from mvl.errors import DataError
from mvl.experiment.inference import Predictor, segment
from mvl.files import sha256_of
from mvl.progress import track


def predict_file(
    image: str | Path,
    output: str | Path,
    predictor: Predictor,
    anyway: bool = False,
    show: bool = True,
) -> None:
    """Segment a NIfTI image, on its grid and affine; `output` ends in .nii or .nii.gz.

    It gets the task's label values, or 1 for the foreground; its header names the model by a hash.
    `anyway` warns of an image that is unlike the training images in place of refusing it; `show`
    prints what it is like and each structure's volume.

    Raises:
        DataError: the image cannot be read, or is not what the model was trained for; or the
            output is not named as a NIfTI file, or is the image.
    """
    require_output(output, image)
    preparation, task, domain = predictor.preparation, predictor.task, predictor.domain
    voxels, header = read_volume(image)
    predictor.require_channels(image, 1 if voxels.ndim == 3 else voxels.shape[3])
    if not np.isfinite(voxels).all():
        raise DataError(f"{image} has voxels that are NaN or infinite; replace them first")
    findings = judge(domain, voxels, header.affine, task, preparation.config)
    del voxels
    if any(finding.refused for finding in findings) and not anyway:
        # The grave ones first: one of them often causes the others.
        grave_first = sorted(findings, key=lambda finding: not finding.refused)
        raise DataError(
            f"{image} is not an image that this model can segment:\n  "
            + "\n  ".join(finding.text for finding in grave_first)
            + "\n--anyway segments it all the same (in Python anyway=True)"
        )
    if show:
        _warn(image, [finding.text for finding in findings])
        print(_likeness(image, domain, bool(findings)), flush=True)
    case = Case(case_name(image), case_name(image), Path(image), None)
    masks = segment(predictor.model, preparation.load([case], False)[0], preparation).numpy()
    values = [1] if preparation.config.target == "foreground" else list(task.labels)
    segmentation = np.zeros(masks.shape[1:], np.uint8 if max(values) <= 255 else np.int16)
    for mask, value in zip(masks, values, strict=True):
        segmentation[mask] = value
    if show:
        voxel_ml, volumes = abs(np.linalg.det(header.affine[:3, :3])) / 1000, {}
        for name, mask in zip(predictor.structures, masks, strict=True):
            volumes[name] = (count := int(mask.sum())) * voxel_ml
            print(f"  {name}: {count:,} voxels, {volumes[name]:.3g} ml", flush=True)
        _warn(image, judge_volumes(domain, volumes))
    write_segmentation(output, segmentation, header, _mark(_model_mark(predictor), image))


def _warn(image, warnings):
    for warning in warnings:
        print(f"warning: {image}: {warning}", file=sys.stderr, flush=True)


def _likeness(image, domain, unlike):
    if domain is None:
        return f"{image}: not checked, since the model does not record its training images"
    line = f"{image}: {'unlike' if unlike else 'like'} the {domain.cases} training images"
    if domain.is_one_sided:
        as_is, mirrored = domain.sides_dice
        line += (
            f"; the model knows one side only (validation Dice {as_is:.3f}, mirrored left to right "
            f"{mirrored:.3f}), and no header tells an image's side"
        )
    return line


def _mark(model, image):
    """What a segmentation's header tells of its model and image; it holds 79 characters at most."""
    return f"{model} {sha256_of(image)[:24]}"


def _model_mark(predictor):
    weights = {name: tensor.cpu() for name, tensor in predictor.model.state_dict().items()}
    config = predictor.preparation.config
    made_by = f"{hash_tensors(weights)} {config} {config.target}"
    return f"mvl predict {hashlib.sha256(made_by.encode()).hexdigest()[:32]}"


def predict_folder(
    folder: str | Path,
    output: str | Path,
    predictor: Predictor,
    anyway: bool = False,
    show: bool = True,
) -> tuple[Path, dict[Path, str]]:
    """Segment the images of a folder; what the same model has segmented is left as it is.

    Of a task folder the images in `imagesTs` are taken, and `output` gets a folder named like the
    task, as the decathlon wants it. Every image gets <name>.nii.gz.

    Returns:
        (the folder of the segmentations, {image: message} of the images that failed).

    Raises:
        DataError: there is no image, two would have one segmentation, or one would replace its
            image.
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
    image_of = {}
    for image in images:
        path = output / f"{case_name(image)}.nii.gz"
        if (other := image_of.setdefault(path, image)) != image:
            raise DataError(f"{other} and {image} would both become {path}; rename one of them")
        require_output(path, image)
    model = _model_mark(predictor)
    todo = [item for item in image_of.items() if not _is_segmented(*item, model)]
    if show and len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} are segmented already", flush=True)
    failures = {}
    for path, image in track(todo, "segmenting", "image", show):
        try:
            predict_file(image, path, predictor, anyway, show)
        except DataError as error:
            failures[image] = str(error)
    return output, failures


def _is_segmented(path, image, model):
    """Whether `path` is a whole segmentation of an image as it is, by the model of that mark."""
    if not path.exists():
        return False
    try:
        (segmentation, header), wanted = read_label(path), read_header(image)
        alike = segmentation.shape == wanted.shape[:3]
    except DataError:
        return False
    made_by = header.fields["descrip"].item().decode(errors="replace")
    if not alike or made_by != _mark(model, image) or header.forms.keys() != wanted.forms.keys():
        return False
    return all(
        np.allclose(header.forms[name], wanted.forms[name], atol=1e-4) for name in wanted.forms
    )
