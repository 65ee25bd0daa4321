"""The study's two tasks that are not the decathlon's, made from the files of public repositories.

docs/data.md says how to get the files; nothing is downloaded here. CHAOS was not tried on the
original files, which were not within reach: it is written from their names and label values and
from how they were made (the notebook of Ouyang et al., 2020).
"""

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from mvl.data.nifti import read_label, read_volume
from mvl.data.task_folder import data_root, description_of
from mvl.data.tasks import CONVERTED
from mvl.errors import DataError
from mvl.files import read_bytes, read_table, staging, write_json, writing
from mvl.progress import track


@dataclass(frozen=True)
class Release:
    """Files that a task is made of: where they are published, and where they lie in a clone."""

    task: str
    repository: str
    commit: str
    inside: str
    #: Folder -> {name of a case: its files}.
    find: Callable
    #: Files of a case -> (image, label, affine): int16 and uint8, (H, W, D), and index -> mm.
    read: Callable
    reference: str
    licence: str


def convert(
    name: str, source: str | Path, root: str | Path | None = None, progress: bool = True
) -> Path:
    """Make a task's folder, whole or not at all, out of the files that others publish.

    Args:
        name: one of `RELEASES`.
        source: a clone of the release's repository, or the folder in it that holds the files.

    Raises:
        MvlError: not such a clone, a file that is missing or damaged, or a task's folder that is
            not empty (it is left as it is) or cannot be written.
    """
    release = RELEASES[name]
    task, folder = CONVERTED[release.task], data_root(root) / release.task
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"{folder} exists and is left as it is; name another place with -o")
    files = release.find(Path(source) / release.inside) or release.find(Path(source))
    if not files:
        raise DataError(
            f"{source} holds no case of {release.task}: name a clone of {release.repository} at "
            f"commit {release.commit}, with its folder {release.inside}"
        )
    place = writing(folder, "name another place with -o", DataError)
    with place, staging(folder.parent) as unfinished:
        made = unfinished / release.task
        (made / "imagesTr").mkdir(parents=True)
        (made / "labelsTr").mkdir()
        for case in track(files, f"converting {name}", show=progress):
            image, label, affine = release.read(files[case])
            for sub, array in (("imagesTr", image), ("labelsTr", label)):
                volume = nibabel.Nifti1Image(array, affine)
                volume.header.set_xyzt_units("mm")
                packed = gzip.compress(volume.to_bytes(), mtime=0)
                (made / sub / f"{case}.nii.gz").write_bytes(packed)
        facts = {
            "name": task.name,
            "description": f"{', '.join(task.labels.values())} (not the decathlon's)",
            "reference": f"{release.reference}; {release.repository}",
            "licence": release.licence,
            "release": f"git {release.commit}",
        }
        write_json(made / "dataset.json", description_of(task, files) | facts)
        made.rename(folder)
    return folder


def _numbered(paths, before, after=""):
    """{number: path}, sorted, of paths named `before` + number + `after`."""
    numbered = {}
    for path in paths:
        number = path.name.removeprefix(before).removesuffix(after)
        if not re.fullmatch("[1-9][0-9]{0,2}", number) or int(number) in numbered:
            raise DataError(f"{path} is not a file of the release, or the second of its number")
        numbered[int(number)] = path
    return dict(sorted(numbered.items()))


#: OpenKBP's contours in the order of the labels: where two overlap, the later has the voxel.
_CONTOURS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")
#: Voxels along each axis of its arrays, whose axes lead to the patient's back, left and feet.
_EDGE = 128
#: The part of the plane that is kept, which holds the head.
_ROWS, _COLUMNS = slice(22, 94), slice(32, 96)
#: Slices that are kept: downwards from the first with so many voxels above this.
_SLICES, _VOXELS, _BODY_HU = 80, 20, -700
#: A released value less this is in Hounsfield units: inferred, fat is near -100 HU then.
_OFFSET, _AIR_HU, _MOST_HU = 1000, -1000, 3095


def _find_openkbp(folder):
    """Patients of training and validation with all five contours, which half of them have."""
    sides = ("train-pats", "validation-pats")
    patients = _numbered([path for side in sides for path in (folder / side).glob("pt_*")], "pt_")
    wanted = [f"{contour}.csv" for contour in _CONTOURS]
    whole = {n: path for n, path in patients.items() if all((path / w).exists() for w in wanted)}
    return {f"hn_{n:03d}": path for n, path in whole.items()}


def _read_openkbp(patient):
    image, label = np.zeros(_EDGE**3), np.zeros(_EDGE**3, np.uint8)
    places, values = _read_sparse(patient / "ct.csv")
    image[places] = values
    image = np.clip(np.rint(image) - _OFFSET, _AIR_HU, _MOST_HU).astype(np.int16)
    for number, contour in enumerate(_CONTOURS, start=1):
        label[_read_sparse(patient / f"{contour}.csv", contour=True)[0]] = number
    image, label = (v.reshape([_EDGE] * 3)[_ROWS, _COLUMNS] for v in (image, label))

    body = np.count_nonzero(image > _BODY_HU, axis=(0, 1)) >= _VOXELS
    if not body.any():
        raise DataError(f"{patient / 'ct.csv'} is damaged: no slice of it shows a body")
    first = int(np.argmax(body))

    def to_ras(volume, outside):
        kept = volume[:, :, first : first + _SLICES]
        below = [(0, 0), (0, 0), (0, _SLICES - kept.shape[2])]
        kept = np.pad(kept, below, constant_values=outside)
        return kept.transpose(1, 0, 2)[::-1, ::-1, ::-1]

    back, left, feet = _read_edges(patient / "voxel_dimensions.csv")
    return to_ras(image, _AIR_HU), to_ras(label, 0), np.diag([left, back, feet, 1.0])


def _read_sparse(path, contour=False):
    """(places, values) of a sparse array: index into the flat array; a contour has no values."""
    table = read_table(path, numbers=("data",))
    places, values = table.iloc[:, 0].to_numpy(), table["data"].to_numpy(float)
    sound = places.dtype.kind == "i" and places.min() >= 0 and places.max() < _EDGE**3
    if not sound or len(np.unique(places)) < len(places) or path.read_bytes()[-1:] != b"\n":
        raise DataError(f"{path} is damaged: its rows are not one per voxel, or it is cut off")
    if not (np.isnan(values) if contour else np.isfinite(values)).all():
        wanted = "a contour's voxels have no value" if contour else "each voxel has a value"
        raise DataError(f"{path} is damaged, or another file: {wanted}")
    return places, values


def _read_edges(path):
    """Edges of a voxel in mm, along the axes of the array."""
    try:
        edges = [float(word) for word in read_bytes(path).split()]
        if len(edges) != 3 or not all(0 < edge < 100 for edge in edges):
            raise ValueError(f"{edges} are not three edges in mm")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error
    return edges


def _find_chaos(folder):
    images = _numbered(folder.glob("image_*.nii.gz"), "image_", ".nii.gz")
    return {f"chaos_{n:02d}": (path, folder / f"label_{n}.nii.gz") for n, path in images.items()}


def _read_chaos(files):
    """Voxels as they are, axes and all: whole numbers, in whatever type they are stored."""
    (image, header), (label, label_header) = read_volume(files[0]), read_label(files[1])
    apart = not np.allclose(header.affine, label_header.affine, atol=1e-3)
    if image.ndim != 3 or image.shape != label.shape or apart:
        raise DataError(f"{files[0]} and {files[1]} do not have the same voxels in space")
    if not np.array_equal(image, np.clip(np.rint(image), 0, 32767)):
        raise DataError(f"{files[0]} has voxels that are not whole numbers from 0 on, as an MRI's")
    if label.min() < 0 or label.max() > 4:
        raise DataError(f"{files[1]} has labels from {label.min()} to {label.max()}, not 0 to 4")
    return image.astype(np.int16), label.astype(np.uint8), header.affine


RELEASES = {
    "openkbp": Release(
        *("OpenKBP_HeadNeckCT", "https://github.com/ababier/open-kbp", "ce625e62f3"),
        *("provided-data", _find_openkbp, _read_openkbp),
        reference="Babier et al., OpenKBP, Medical Physics 48:5549-5561, 2021",
        licence="MIT, the repository's; its authors took the images from TCIA",
    ),
    "chaos": Release(
        *("CHAOS_AbdomenMR", "https://github.com/shenqq377/Q-Net", "70a828d8"),
        *("data/CHAOST2/chaos_MR_T2_normalized", _find_chaos, _read_chaos),
        reference="Kavur et al., CHAOS, Medical Image Analysis 69:101950, 2021",
        licence="CC BY-NC-SA 4.0, as third parties state it",
    ),
}
