"""Synthetic stand-ins for the decathlon's tasks, for machines without data or network.

A phantom has a task's folder layout, NIfTI headers, channels, labels and spacing, and images
that look the part: smooth anatomy out of deformed ellipsoids and random fields, painted back
to front with soft edges (partial volume), then a bias field and Rician noise for MRI, or
Hounsfield units and Gaussian noise for CT. It exercises everything and proves nothing about
patients: whatever is measured on it is called synthetic.

A task is one row of `_RECIPES`: a generator that yields `Layer`s. Anatomy is written in
millimetres of the full-size volume, centred at 0, x to the right, y to the front, z up.
`scale` changes the number of voxels of that same anatomy and leaves the header's spacing as the
task has it, so that a scaled phantom is a small body with the task's voxels.
"""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from mvl.config import derive_seed
from mvl.errors import DataError, MvlError
from mvl.files import read_json, write_json
from mvl.progress import track
from mvl.tasks import TASKS

#: Raised whenever a change here alters voxels, so that an older phantom is made anew.
PHANTOM_VERSION = 1


def make_phantom(task_name, root, cases=24, scale=1.0, seed=0, progress=True):
    """Write a synthetic task folder, or reuse the one that was written with the same parameters.

    Equal parameters give byte-identical files on one machine.

    Args:
        task_name: one of `phantom_tasks()`.
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
    if task_name not in _RECIPES:
        raise DataError(f"no phantom of {task_name!r}; there are {', '.join(_RECIPES)}")
    if cases < 1 or not 0 < scale <= 2:
        raise DataError(f"phantom: cases {cases} must be at least 1, scale {scale} in (0, 2]")
    folder = Path(root) / task_name
    parameters = {"version": PHANTOM_VERSION, "cases": cases, "scale": scale, "seed": seed}
    if _is_there(folder, parameters):
        return folder

    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".tmp-{task_name}-", dir=folder.parent))
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
    finally:
        if beside:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def phantom_tasks():
    """Names of the tasks that have a phantom."""
    return list(_RECIPES)


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
        files = [folder / path for entry in description["training"] for path in entry.values()]
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
    numbers = range(1, parameters["cases"] + 1)
    training = []
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for number in track(numbers, f"phantom {task_name}", show=progress):
        name = f"{stem}_{number:03d}"
        image, label = _make_case(task, name, parameters["scale"], parameters["seed"])
        entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        _write_nifti(folder / entry["image"], image, task.spacing_mm)
        _write_nifti(folder / entry["label"], label, task.spacing_mm)
        training.append(entry)
    description = {
        "name": task_name.split("_", 1)[1],
        "description": "Synthetic phantom: computer-made volumes, no patient's data",
        "reference": "mvl.data.phantom",
        "licence": "CC0 1.0",
        "release": f"phantom version {PHANTOM_VERSION}",
        "tensorImageSize": "4D" if len(task.channels) > 1 else "3D",
        "modality": {str(n): name for n, name in enumerate(task.channels)},
        "labels": {"0": "background"} | {str(n): name for n, name in task.labels.items()},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
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
    recipe = _RECIPES[task.name]
    draws = Draws(seed, task.name, task.subject_of(name), name)
    sizes = 1 + np.asarray(recipe.variation) * np.clip(draws.normal(3, shared=0.7), -1.5, 1.5)
    shape = np.maximum(8, np.rint(np.asarray(task.shape) * sizes * scale)).astype(int)
    grid = Grid(tuple(map(int, shape)), task, scale)

    channels = [np.zeros(grid.shape, np.float32) for _ in task.channels]
    label = np.zeros(grid.shape, np.uint8)
    for layer in recipe.paint(grid, draws):
        for channel, value in zip(channels, layer.values, strict=True):
            channel += layer.mask * (value - channel)
        label[layer.mask > 0.5] = layer.label
    acquire = _acquire_ct if task.modality == "CT" else _acquire_mri
    channels = acquire(channels, grid, draws)
    return (channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)), label


def _acquire_mri(channels, grid, draws):
    """Blur, a bias field, Rician noise and an arbitrary gain, as whole numbers in float32.

    Rician noise is the modulus of a signal with Gaussian noise in both of its components
    (Gudbjartsson and Patz, Magnetic Resonance in Medicine 34, 1995).
    """
    sigma = 0.035 * np.exp(0.25 * draws.normal(shared=1))
    gain = 400 * np.exp(0.5 * draws.normal(shared=1))
    bias = np.exp(0.12 * grid.field(draws, max(grid.extent) / 2))
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


class Draws:
    """The random numbers of one case, some of them its subject's."""

    def __init__(self, seed, task_name, subject, case):
        self._subject = np.random.default_rng(derive_seed("subject", seed, task_name, subject))
        self._case = np.random.default_rng(derive_seed("case", seed, task_name, case))

    def normal(self, size=None, shared=0.8):
        """Standard normal numbers, correlated by `shared` between cases of one subject."""
        subject, case = (rng.standard_normal(size) for rng in (self._subject, self._case))
        return np.sqrt(shared) * subject + np.sqrt(1 - shared) * case

    def noise(self, shape):
        """Standard normal numbers of this case alone, float32."""
        return self._case.standard_normal(shape, np.float32)


class Grid:
    """The voxels of one case, in millimetres of the full-size anatomy.

    Attributes:
        shape: voxels (H, W, D).
        x, y, z: coordinates, float32, as an open mesh that broadcasts to `shape`.
        voxel: geometric mean of a voxel's edges, over which soft edges fall from 1 to 0.
        extent: the task's typical field of view.
    """

    def __init__(self, shape, task, scale):
        self.shape = shape
        spacing = np.asarray(task.spacing_mm) / scale
        self._axes = [
            (np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)
        ]
        self.x, self.y, self.z = np.ix_(*(axis.astype(np.float32) for axis in self._axes))
        self.voxel = float(np.prod(spacing) ** (1 / 3))
        self.extent = np.asarray(task.shape) * task.spacing_mm

    def field(self, draws, length, shared=0.8):
        """A smooth random field of mean 0 and variance 1, float32.

        A sum of Gaussian bumps of standard deviation `length` on a lattice of that step, which
        depends on the task alone: another scale or shape samples the same field.
        """
        lattices = [np.arange(-0.6 * e - 2 * length, 0.6 * e + 3 * length, length)
                    for e in self.extent]  # fmt: skip
        field = draws.normal([len(lattice) for lattice in lattices], shared).astype(np.float32)
        for axis, lattice in zip(self._axes, lattices, strict=True):
            bumps = np.exp(-0.5 * ((axis[:, None] - lattice) / length) ** 2)
            bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
            # The first axis is summed away and comes back as the last: after three, as before.
            field = np.tensordot(field, bumps.astype(np.float32), axes=(0, 1))
        return field

    def soft(self, distance):
        """Share of a voxel inside, from the signed distance (mm, negative inside)."""
        return np.clip(0.5 - distance / self.voxel, 0, 1).astype(np.float32)

    def blob(self, draws, centre, radii, rough=0.1, grain=0.6):
        """Soft mask of an ellipsoid whose place, size and surface vary between subjects.

        Args:
            draws: of the case.
            centre, radii: typical, in mm.
            rough: standard deviation of the surface, as a share of the radius.
            grain: wavelength of the surface's bumps, as a share of the radius.
        """
        radii = np.asarray(radii, float)
        centre = centre + 0.12 * radii * draws.normal(3)
        distance = self.ball(centre, radii * np.exp(0.1 * draws.normal(3))) - 1
        if rough:
            distance += rough * self.field(draws, max(grain * radii.mean(), self.voxel))
        return self.soft(distance * np.float32(radii.min()))

    def ball(self, centre, radii):
        """Distance from the centre in units of the radii (1 on the ellipsoid), float32."""
        squares = (
            ((axis - np.float32(c)) / np.float32(r)) ** 2
            for axis, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        x, y, z = squares
        return np.sqrt(x + y + z)


@dataclass(frozen=True)
class Layer:
    """What is painted over everything that came before.

    Attributes:
        mask: (H, W, D) float32 in [0, 1].
        values: one a channel: a number or an array that broadcasts; MRI in shares of full
            brightness, CT in Hounsfield units.
        label: label value where the mask is above one half.
    """

    mask: np.ndarray
    values: tuple
    label: int = 0


def _hippocampus(grid, draws):
    """A crop of the medial temporal lobe with a curved hippocampus, head (1) and tail (2).

    Siblings, a subject's two sides, are alike without being mirrored: the real crops of both
    parities have their structure on the same side.
    """
    tilt = np.deg2rad(-25 + 8 * draws.normal())
    half = 19.5 * np.exp(0.06 * draws.normal())
    middle = np.array([0.5, -1.0, -1.0]) + draws.normal(3)
    along = (grid.y - middle[1]) * np.cos(tilt) + (grid.z - middle[2]) * np.sin(tilt)
    across = (grid.z - middle[2]) * np.cos(tilt) - (grid.y - middle[1]) * np.sin(tilt)
    t = np.clip(along / half, -1.3, 1.3)
    # A banana: the head turns inwards and the tail upwards and inwards.
    bend = (4.0 + 2 * draws.normal()) * (t - 0.1) ** 2 - 2.0
    sag = (3.0 + 1.5 * draws.normal()) * (0.4 - t**2)
    width = (6.7 + 0.4 * draws.normal()) * (1 + 0.35 * t)
    height = (4.7 + 0.25 * draws.normal()) * (1 + 0.2 * t)
    side = (grid.x - middle[0] - bend) / width
    rise = (across + sag) / height
    warp = 0.11 * grid.field(draws, 3.5) + 0.1 * grid.field(draws, 2.0)
    rho = np.sqrt(side**2 + rise**2 + np.abs(t) ** 5) + warp

    # Folded cortex: level sets of one field are white matter, grey ribbons and sulci.
    fold = grid.field(draws, 2.8) + 0.5 * grid.field(draws, 8.0)
    fold = fold + 0.6 * np.tanh(rise / 3) + 0.15
    tissue = np.interp(fold, [-1.7, -1.15, -0.75, 0.15, 0.6, 2], [0.1, 0.15, 0.42, 0.47, 0.78, 0.9])
    yield Layer(np.ones(grid.shape, np.float32), (tissue.astype(np.float32),))

    # White matter wraps the structure below and at the side, in places too thin to see.
    sheath = np.abs(rho - 1.32) - 0.22 - 0.12 * grid.field(draws, 4.0)
    yield Layer(grid.soft(4 * np.maximum(sheath, rise - 0.2)), (0.82,))
    # The amygdala touches the head without an edge in between.
    yield Layer(grid.blob(draws, (4, 15, 2.5), (9, 7, 7), rough=0.15), (0.45,))
    # The ventricle's horn: a dark crescent over the head and its outer side.
    horn = np.abs(rho - 1.22) - 0.16 - 0.14 * grid.field(draws, 5.0)
    yield Layer(grid.soft(4 * np.maximum(horn, 0.25 - rise + 0.5 * side)), (0.13,))

    inside = grid.soft(4.5 * (rho - 1))
    grey = 0.42 + 0.05 * grid.field(draws, 2.2) + 0.03 * grid.field(draws, 8.0)
    front = grid.y - middle[1] - 0.5 - draws.normal() > 0
    yield Layer(inside, (grey,), 2)
    yield Layer(np.where(front, inside, 0), (grey,), 1)


def _torso(labels):
    """A recipe of chest and abdomen in portal-venous contrast.

    Args:
        labels: organ -> label value; organs that are not in it are background.
    """

    def paint(grid, draws):
        def organ(mask, value, name=None):
            return Layer(mask, (value,), labels.get(name, 0))

        def blob(centre, radii, rough=0.08):
            return grid.blob(draws, centre, radii, rough)

        contrast = 10 * draws.normal()
        size = np.exp(0.06 * draws.normal(2))
        trunk = grid.ball((0, 0, 0), (172 * size[0], 118 * size[1], 1e6))
        trunk = trunk + 0.03 * grid.field(draws, 60)
        fat = 0.12 + 0.04 * np.tanh(draws.normal())
        everywhere = np.ones(grid.shape, np.float32)
        yield organ(everywhere, -1000)
        yield organ(grid.soft(110 * (trunk - 1)), -105 + 10 * grid.field(draws, 12))
        yield organ(grid.soft(110 * (trunk - 1 + fat)), 55)
        cavity = grid.soft(110 * (trunk - 0.86 + fat))
        yield organ(cavity, -95 + 12 * grid.field(draws, 12))

        # Bowel: level sets of a field in the lower abdomen, with gas in some loops.
        loops = grid.field(draws, 16)
        below = cavity * grid.soft(grid.z - 5 + 20 * grid.field(draws, 50))
        yield organ(below * grid.soft(14 * (0.2 - loops)), 45 + 20 * grid.field(draws, 10))
        yield organ(below * grid.soft(14 * (1.7 - loops)), -750)

        for side in (-1, 1):
            yield organ(cavity * blob((85 * side, -5, 230), (72, 90, 185)), -840)
            yield organ(blob((68 * side, -52, -30), (28, 27, 55)), 165 + 2 * contrast)
        yield organ(cavity * blob((-25, 25, 185), (62, 52, 65)), 125 + contrast)
        yield organ(cavity * blob((75, 12, 50), (82, 82, 78)), 105 + contrast, "liver")
        stomach = cavity * blob((-62, 38, 50), (48, 38, 48), 0.12)
        yield organ(stomach, 75)
        yield organ(stomach * blob((-62, 38, 50), (38, 30, 38)), 25)
        yield organ(stomach * blob((-62, 55, 50), (30, 16, 30)), -850)
        pulp = 112 + contrast + 5 * grid.field(draws, 12)
        yield organ(cavity * blob((-108, -42, 50), (30, 46, 52), 0.12), pulp, "spleen")

        for x, value in ((-14, 165), (22, 130)):
            yield organ(blob((x, -32, 0), (11, 11, 2000), 0), value + 2 * contrast)
        yield organ(_ribs(grid, trunk, fat), 320)
        yield organ(blob((0, -62, 0), (25, 21, 2000), 0), 380)
        yield organ(blob((0, -62, 0), (21, 17, 2000), 0), 190 + 40 * grid.field(draws, 8))
        yield organ(grid.soft(grid.ball((0, -90, 0), (9, 8, 1e6)) * 8 - 8) * everywhere, 35)

    return paint


def _ribs(grid, trunk, fat):
    """Arcs in the wall that sink from the spine to the front, above the abdomen."""
    angle = np.arctan2(grid.x, -grid.y)
    height = grid.z + 28 * np.abs(angle)
    wall = 110 * (np.abs(trunk - 0.9 + fat) - 0.045)
    return grid.soft(np.maximum(wall, 26 * (0.45 - np.sin(height / 4.6)))) * grid.soft(10 - grid.z)


@dataclass(frozen=True)
class Recipe:
    """How a task's phantom is made.

    Attributes:
        paint: (grid, draws) -> iterable of `Layer`, back to front.
        variation: standard deviation of the shape along each axis, as a share.
    """

    paint: Callable
    variation: tuple[float, float, float] = (0.0, 0.0, 0.1)


_RECIPES = {
    "Task04_Hippocampus": Recipe(_hippocampus, (0.05, 0.05, 0.08)),
    "Task09_Spleen": Recipe(_torso({"spleen": 1})),
}
