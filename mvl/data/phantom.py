"""Synthetic stand-ins for the decathlon's tasks, for machines without data or network.

A phantom has a task's folder layout, NIfTI headers, channels, labels and spacing. Its images are a
body with textured tissue and, in it, the task's structures as rough ellipsoids with soft edges.
A phantom says nothing about patients: whatever is measured on it is called synthetic.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

from mvl.config import derive_seed
from mvl.data.task_folder import description_of
from mvl.data.tasks import TASKS, Task
from mvl.errors import DataError, MvlError
from mvl.files import read_json, staging, write_json, writing
from mvl.progress import track

#: Raised whenever a change here alters voxels, so that an older phantom is made again.
PHANTOM_VERSION = 4
#: Voxels that every axis has at least, whatever the scale.
_FEWEST = 8
#: Images without labels in imagesTs, and the number before that of the first.
_TEST_IMAGES, _TEST_NUMBER = 2, 900


class Part(NamedTuple):
    """A structure. Centre, radii and wander are shares of half the volume."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    #: Standard deviation of the centre.
    wander: float
    #: Concentric ellipsoids, from the outermost: label, share of the radii, and a value per channel
    #: (MRI in shares of full brightness, CT in Hounsfield units). A pair of labels is for
    #: the voxels in front of the centre and behind it.
    shells: list[tuple[int | tuple[int, int], float, tuple[float, ...]]]


# fmt: off
_LESION = (0.14, 0.14, 0.14)
_GLIOMA = [(1, 1.0, (0.95, 0.4, 0.42, 0.86)), (3, 0.7, (0.74, 0.45, 1.1, 0.68)),
           (2, 0.4, (0.4, 0.25, 0.3, 0.8))]
#: Task -> its parts, painted in this order.
_PARTS = {
    "Task01_BrainTumour": [Part((0.3, 0, 0), (0.32, 0.34, 0.36), 0.1, _GLIOMA)],
    "Task02_Heart": [Part((0, -0.1, 0), (0.2, 0.15, 0.4), 0.04, [(1, 1.0, (0.9,))])],
    "Task03_Liver": [Part((0.3, 0.05, 0.1), (0.33, 0.4, 0.5), 0.03, [(1, 1.0, (120,))]),
                     Part((0.3, 0.05, 0.1), _LESION, 0.08, [(2, 1.0, (-20,))])],
    "Task04_Hippocampus": [Part((0, 0, 0), (0.375, 0.745, 0.375), 0.03, [((1, 2), 1.0, (0.78,))])],
    "Task05_Prostate": [Part((0, -0.1, 0), (0.28, 0.24, 0.6), 0.03,
                             [(1, 1.0, (0.85, 0.7)), (2, 0.72, (0.4, 0.42))])],
    "Task06_Lung": [Part((0.4, 0, 0), _LESION, 0.1, [(1, 1.0, (170,))])],
    "Task07_Pancreas": [Part((0, 0.1, 0), (0.34, 0.16, 0.3), 0.04, [(1, 1.0, (110,))]),
                        Part((0.1, 0.1, 0), _LESION, 0.04, [(2, 1.0, (-20,))])],
    "Task08_HepaticVessel": [Part((0.3, 0, 0.1), (0.36, 0.09, 0.13), 0.03, [(1, 1.0, (180,))]),
                             Part((0.3, 0, 0.1), (0.09, 0.36, 0.13), 0.03, [(1, 1.0, (180,))]),
                             Part((0.55, 0.3, 0.1), _LESION, 0.04, [(2, 1.0, (-20,))])],
    "Task09_Spleen": [Part((-0.5, -0.2, 0.1), (0.2, 0.3, 0.45), 0.04, [(1, 1.0, (130,))])],
    "Task10_Colon": [Part((-0.3, 0.3, -0.2), _LESION, 0.1, [(1, 1.0, (150,))])],
}
# fmt: on
#: What surrounds the structures, in the same numbers.
_TISSUE = {"MRI": 0.5, "CT": 40.0}
_AIR = {"MRI": 0.0, "CT": -1000.0}
_BONE = 600.0


def make_phantom(
    task_name: str,
    root: str | Path,
    cases: int = 24,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a synthetic task folder below `root`, or reuse the one of the same parameters.

    Equal parameters give byte-identical files on one machine.

    Args:
        cases: number of labelled cases.
        scale: voxels along each axis, as a share of the task's typical shape; the spacing stays.

    Raises:
        DataError: no phantom of that task, a parameter out of range, a folder that cannot be
            written, or a folder of that name that is not a phantom (it is never overwritten).
    """
    if task_name not in TASKS:
        raise DataError(f"no phantom of {task_name!r}; there are {', '.join(TASKS)}")
    if cases < 1 or not 0 < scale <= 2:
        raise DataError(f"phantom: cases {cases} must be at least 1, scale {scale} in (0, 2]")
    folder = Path(root) / task_name
    parameters = {"version": PHANTOM_VERSION, "cases": cases, "scale": scale, "seed": seed}
    if _is_there(folder, parameters):
        return folder
    with writing(folder, "choose another root", DataError), staging(folder.parent) as temporary:
        _write_folder(temporary / task_name, task_name, parameters, progress)
        # Another process may have made the same one meanwhile, which may have readers.
        if not _is_there(folder, parameters):
            if folder.exists():
                folder.rename(temporary / "old")
            (temporary / task_name).rename(folder)
    return folder


def _is_there(folder, parameters):
    """Whether `folder` holds the whole phantom of these parameters; a `DataError` if none."""
    if not os.path.lexists(folder):
        return False
    try:
        description = read_json(folder / "dataset.json")
        if description["synthetic"] is not True:
            raise KeyError("synthetic")
        named = [path for entry in description["training"] for path in entry.values()]
        files = [folder / path for path in [*named, *description.get("test", [])]]
    except (MvlError, AttributeError, KeyError, TypeError) as error:
        text = "exists and is not a phantom; it is left as it is: choose another root"
        raise DataError(f"{folder} {text}") from error
    return description.get("phantom") == parameters and all(file.is_file() for file in files)


def _write_folder(folder, task_name, parameters, progress):
    task, name = TASKS[task_name], task_name.split("_", 1)[1]
    stem = name.lower()
    test = [f"{stem}_{_TEST_NUMBER + n:03d}" for n in range(1, _TEST_IMAGES + 1)]
    names = [f"{stem}_{n:03d}" for n in range(1, parameters["cases"] + 1)]
    for sub in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / sub).mkdir(parents=True)
    for case in track([*names, *test], f"phantom {task_name}", show=progress):
        image, label = _make_case(task, case, parameters["scale"], parameters["seed"])
        images = "imagesTs" if case in test else "imagesTr"
        _write_nifti(folder / images / f"{case}.nii.gz", image, task.spacing_mm)
        if case not in test:
            _write_nifti(folder / "labelsTr" / f"{case}.nii.gz", label, task.spacing_mm)
    facts = {
        "name": name,
        "description": "Synthetic phantom: computer-made volumes, no patient's data",
        "reference": "mvl.data.phantom",
        "licence": "CC0 1.0",
        "release": f"phantom version {PHANTOM_VERSION}",
        "synthetic": True,
        "phantom": parameters,
    }
    write_json(folder / "dataset.json", description_of(task, names, test) | facts)


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


def _make_case(task: Task, name: str, scale: float, seed: int):
    """Image (H, W, D[, C]) and label (H, W, D) of one case."""
    subject, case = (
        np.random.default_rng(derive_seed(kind, seed, task.name, who))
        for kind, who in (("subject", task.subject_of(name)), ("case", name))
    )

    def normal(size=None):
        """Standard normal numbers, correlated by 0.9 between cases of one subject."""
        return 0.9**0.5 * subject.standard_normal(size) + 0.1**0.5 * case.standard_normal(size)

    sizes = 1 + 0.06 * np.clip(normal(3), -1.5, 1.5)
    if task.modality == "CT":
        sizes[:2] = 1  # a CT varies in its number of slices alone
    shape = np.rint(np.array(task.shape) * sizes * scale).astype(int).clip(_FEWEST)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) / (n / 2) for n in shape]
    texture = _field(normal, shape, 8)

    first, *others = _PARTS[task.name]
    values = first.shells[0][2]
    tissue = _TISSUE[task.modality]
    # Some of the tissue is as bright as the structure, so that no threshold segments it.
    rim = (0, 1.3, (tissue,) * len(values))
    plain = tissue + 0.1 * tissue * texture
    channels = [np.where(texture > 0.8, value, plain).astype(np.float32) for value in values]
    label = np.zeros(shape, np.uint8)
    for part in (first._replace(shells=[rim, *first.shells]), *others):
        _paint(part, channels, label, axes, normal)
    x, y, _ = np.ix_(*axes)
    outside = np.broadcast_to(np.hypot(x, y) > 0.97, shape)
    spine = np.broadcast_to(np.hypot(x, y + 0.75) < 0.15, shape)
    for channel in channels:
        channel[outside] = _AIR[task.modality]
        if task.modality == "CT":
            channel[spine] = _BONE
    acquire = _acquire_ct if task.modality == "CT" else _acquire_mri
    image = np.stack([acquire(channel, normal, case) for channel in channels], axis=-1)
    if task.modality == "MRI":
        image[outside] = 0  # as after the removal of the background
    return (image[..., 0] if len(channels) == 1 else image), label


def _field(normal, shape, knots):
    """A smooth random field of about mean 0 and variance 1, from a lattice of `knots` per axis."""
    lattice = normal((knots, knots, knots)).astype(np.float32)
    field = ndimage.zoom(lattice, np.array(shape) / knots, order=1, mode="nearest")
    return field / field.std()


def _paint(part, channels, label, axes, normal):
    """Paint a part into channels and label, in place."""
    halves = np.array(label.shape) / 2
    centre = np.array(part.centre) + part.wander * np.clip(normal(3), -1.5, 1.5)
    radii = np.array(part.radii) * np.exp(0.1 * np.clip(normal(3), -1.5, 1.5))
    radii = np.maximum(radii, 1.0 / halves)  # it must not slip between the voxels' centres
    near, box = [], ()
    for axis, c, r in zip(axes, centre, radii, strict=True):
        box += (slice(*np.searchsorted(axis, (c - 1.6 * r, c + 1.6 * r))),)
        near.append((axis[box[-1]] - c) / r)
    x, y, z = np.ix_(*near)
    ball = np.sqrt(x**2 + y**2 + z**2)
    ball = ball + np.float32(0.06) * _field(normal, ball.shape, 5)
    edge = (radii * halves).mean()  # voxels per radius
    for name, share, values in part.shells:
        mask = np.clip(0.5 - (ball - share) * edge, 0, 1)
        for channel, value in zip(channels, values, strict=True):
            channel[box] += mask * (value - channel[box])
        if isinstance(name, tuple):
            name = np.where(y > 0, *name)
        label[box] = np.where(mask > 0.5, name, label[box])


def _acquire_mri(channel, normal, case):
    """A bias field, Rician noise and an arbitrary gain, as whole numbers in float32.

    Rician noise is the modulus of a signal with Gaussian noise in both of its components
    (Gudbjartsson and Patz, Magnetic Resonance in Medicine 34, 1995).
    """
    bias = np.exp(0.1 * _field(normal, channel.shape, 3))
    real, imaginary = 0.04 * case.standard_normal((2, *channel.shape), np.float32)
    image = np.hypot(ndimage.gaussian_filter(channel, 0.5) * bias + real, imaginary)
    return np.rint(400 * np.exp(0.3 * normal()) * image).astype(np.float32)


def _acquire_ct(channel, normal, case):
    """Blur and Gaussian noise with a short correlation in the plane, as int16 HU."""
    noise = ndimage.gaussian_filter(case.standard_normal(channel.shape, np.float32), (0.6, 0.6, 0))
    image = ndimage.gaussian_filter(channel, (0.6, 0.6, 0)) + 12 / noise.std() * noise
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
