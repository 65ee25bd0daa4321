"""Synthetic stand-ins for the decathlon's tasks, for machines without data or network.

A phantom has a task's folder layout, NIfTI headers, channels, labels and spacing, and images
that look the part: anatomy (`mvl.data.anatomy`) out of deformed ellipsoids, tubes and random
fields, painted back to front with soft edges (partial volume), then a bias field and Rician
noise for MRI, or Hounsfield units and Gaussian noise for CT. It exercises everything and proves
nothing about patients: whatever is measured on it is called synthetic.

`scale` changes the number of voxels of the same anatomy and leaves the header's spacing as the
task has it, so that a scaled phantom is a small body with the task's voxels.
"""

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from mvl.data.anatomy import RECIPES
from mvl.data.canvas import Draws, Grid
from mvl.data.tasks import TASKS
from mvl.errors import DataError, MvlError
from mvl.files import read_json, staging, write_json
from mvl.progress import track

#: Raised whenever a change here alters voxels, so that an older phantom is made anew.
PHANTOM_VERSION = 2

#: Voxels that every axis has at least, whatever the scale.
_FEWEST = 8

#: Images without labels in imagesTs, and the number before that of the first.
_TEST_IMAGES, _TEST_NUMBER = 2, 900


def make_phantom(task_name, root, cases=24, scale=1.0, seed=0, progress=True):
    """Write a synthetic task folder, or reuse the one that was written with the same parameters.

    Equal parameters give byte-identical files on one machine.

    Args:
        task_name: one of `mvl.TASKS`.
        root: the folder in which the task folder is made.
        cases: number of labelled cases.
        scale: voxels along each axis, as a share of the task's typical shape.
        seed: of everything random.
        progress: show a progress bar.

    Returns:
        `Path` of the task folder.

    Raises:
        DataError: no phantom of that task, a parameter out of range, a folder that cannot be
            written, or a folder of that name that is not a phantom (it is never overwritten).
    """
    if task_name not in RECIPES:
        raise DataError(f"no phantom of {task_name!r}; there are {', '.join(RECIPES)}")
    if cases < 1 or not 0 < scale <= 2:
        raise DataError(f"phantom: cases {cases} must be at least 1, scale {scale} in (0, 2]")
    folder = Path(root) / task_name
    parameters = {"version": PHANTOM_VERSION, "cases": cases, "scale": scale, "seed": seed}
    if _is_there(folder, parameters):
        return folder

    try:
        with staging(folder.parent) as beside:
            _write_folder(beside / task_name, task_name, parameters, progress)
            # Another process may have made the same one meanwhile; its readers are left in peace.
            if not _is_there(folder, parameters):
                if folder.exists():
                    folder.rename(beside / "old")
                (beside / task_name).rename(folder)
    except OSError as error:
        raise DataError(
            f"cannot write the phantom {folder}: {error.strerror or error}; choose another root"
        ) from error
    return folder


def _is_there(folder, parameters):
    """Whether `folder` holds the whole phantom of these parameters.

    Raises:
        DataError: something else stands there, which is never overwritten.
    """
    if not os.path.lexists(folder):
        return False
    try:
        description = read_json(folder / "dataset.json")
        foreign = description["synthetic"] is not True
        named = [path for entry in description["training"] for path in entry.values()]
        files = [folder / path for path in [*named, *description.get("test", [])]]
    except (MvlError, AttributeError, KeyError, TypeError):
        foreign = True
    if foreign:
        raise DataError(
            f"{folder} exists and is not a phantom; it is left as it is: choose another root"
        )
    return description.get("phantom") == parameters and all(file.is_file() for file in files)


def _write_folder(folder, task_name, parameters, progress):
    task = TASKS[task_name]
    stem = task_name.split("_", 1)[1].lower()
    test = [f"{stem}_{_TEST_NUMBER + n:03d}" for n in range(1, _TEST_IMAGES + 1)]
    names = [f"{stem}_{n:03d}" for n in range(1, parameters["cases"] + 1)]
    for sub in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / sub).mkdir(parents=True)
    for name in track([*names, *test], f"phantom {task_name}", show=progress):
        image, label = _make_case(task, name, parameters["scale"], parameters["seed"])
        images = "imagesTs" if name in test else "imagesTr"
        _write_nifti(folder / images / f"{name}.nii.gz", image, task.spacing_mm)
        if name not in test:
            _write_nifti(folder / "labelsTr" / f"{name}.nii.gz", label, task.spacing_mm)
    description = {
        "name": task_name.split("_", 1)[1],
        "description": "Synthetic phantom: computer-made volumes, no patient's data",
        "reference": "mvl.data.phantom",
        "licence": "CC0 1.0",
        "release": f"phantom version {PHANTOM_VERSION}",
        "tensorImageSize": "4D" if len(task.channels) > 1 else "3D",
        "modality": {str(n): name for n, name in enumerate(task.channels)},
        "labels": {"0": "background"} | {str(n): name for n, name in task.labels.items()},
        "numTraining": len(names),
        "numTest": len(test),
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
        "synthetic": True,
        "phantom": parameters,
    }
    write_json(folder / "dataset.json", description)


def _write_nifti(path, array, spacing_mm):
    """Save with MSD's kind of header: scanner space, axes to the right, front and top."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = spacing_mm
    volume = nibabel.Nifti1Image(array, affine)
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm", "sec")
    # Neither name nor time in the gzip header: equal voxels give equal bytes.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        volume.to_stream(packed)


def _make_case(task, name, scale, seed):
    """Image (H, W, D[, C]) and label (H, W, D) of one case."""
    recipe = RECIPES[task.name]
    draws = Draws(seed, task.name, task.subject_of(name), name)
    sizes = 1 + np.asarray(recipe.variation) * np.clip(draws.normal(3, shared=0.7), -1.5, 1.5)
    # A body of few slices keeps some of them.
    scales = np.maximum(scale, _FEWEST / np.asarray(task.shape))
    shape = np.maximum(_FEWEST, np.rint(np.asarray(task.shape) * sizes * scales)).astype(int)
    grid = Grid.of(tuple(map(int, shape)), task, scales, recipe.centre)

    channels = [np.zeros(grid.shape, np.float32) for _ in task.channels]
    label = np.zeros(grid.shape, np.uint8)
    for layer in recipe.paint(grid, draws):
        layer.paint(channels, label)
    nothing = channels[0] == 0 if recipe.stripped else None
    acquire = _acquire_ct if task.modality == "CT" else _acquire_mri
    channels = acquire(channels, grid, draws)
    if recipe.stripped:
        for channel in channels:
            channel[nothing] = 0
    return (channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)), label


def _acquire_mri(channels, grid, draws):
    """Blur, a bias field, Rician noise and an arbitrary gain, as whole numbers in float32.

    Rician noise is the modulus of a signal with Gaussian noise in both of its components
    (Gudbjartsson and Patz, Magnetic Resonance in Medicine 34, 1995).
    """
    sigma = 0.035 * np.exp(0.25 * draws.normal(shared=1))
    gain = 400 * np.exp(0.5 * draws.normal(shared=1))
    bias = np.exp(0.12 * grid.field(draws, max(grid.high - grid.low) / 2.4))
    acquired = []
    for channel in channels:
        real = ndimage.gaussian_filter(channel, 0.5) * bias + sigma * draws.noise(grid.shape)
        image = np.hypot(real, sigma * draws.noise(grid.shape))
        acquired.append(np.rint(gain * image).astype(np.float32))
    return acquired


def _acquire_ct(channels, grid, draws):
    """Blur and Gaussian noise with a reconstruction kernel's short correlation, as int16 HU."""
    kernel = (0.6, 0.6, 0)
    sigma = 12 * np.exp(0.2 * draws.normal(shared=1))
    acquired = []
    for channel in channels:
        noise = ndimage.gaussian_filter(draws.noise(grid.shape), kernel)
        image = ndimage.gaussian_filter(channel, kernel) + sigma / noise.std() * noise
        acquired.append(np.clip(np.rint(image), -1024, 3071).astype(np.int16))
    return acquired
