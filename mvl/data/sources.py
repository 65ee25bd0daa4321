"""Where cases come from: a task folder in the decathlon's layout, read in place.

A task folder holds `dataset.json`, whose "training" list names image and label of each case
relative to the folder, and beside it may hold `subjects.csv` (columns case, subject). The
folder itself is the user's and may be a symbolic link; what `dataset.json` names must lie
inside it.
"""

import csv
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvl.data.nifti import read_header, read_label, read_volume
from mvl.errors import DataError, MvlError
from mvl.files import REPOSITORY, read_json, read_small
from mvl.tasks import TASKS, read_task

#: The repository's own folder for downloads and phantoms.
REPOSITORY_DATA = REPOSITORY / "data"


@dataclass(frozen=True)
class Case:
    """One labelled volume, and whom it is of."""

    #: File name of the image without its ending, such as "hippocampus_001".
    name: str
    #: The person; cases of one subject never stand on two sides of a split.
    subject: str
    image: Path
    #: None where dataset.json names no label; the checks report it.
    label: Path | None


def data_root(root=None):
    """The folder that holds task folders: `root`, else MVL_DATA_ROOT, else the repository's data/.

    Returns:
        A `Path`, which need not exist.
    """
    if root is None:
        root = os.environ.get("MVL_DATA_ROOT") or REPOSITORY_DATA
    return Path(root).expanduser()


def find_task(name, root=None):
    """The folder of a task.

    Args:
        name: folder name such as "Task04_Hippocampus"; MSD's or the user's own.
        root: see `data_root`.

    Raises:
        DataError: there is no such folder with a dataset.json; the message says what was looked
            at and the ways on.
    """
    folder = data_root(root) / name
    try:
        found = (folder / "dataset.json").is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot look into {folder}: {error}") from error
    if found:
        return folder
    ways = ["set MVL_DATA_ROOT to the folder that holds it"]
    if name in TASKS:
        ways.append(f"run 'mvl data download {name}'")
        ways.append(
            f"make a synthetic stand-in with 'mvl data phantom {name} --root {folder.parent}'"
        )
    raise DataError(f"no task {name}: {folder}/dataset.json does not exist; {', or '.join(ways)}")


def list_cases(folder):
    """The labelled cases of a task folder.

    Subjects come from `subjects.csv` where there is one, else from `Task.subject_of`. That the
    files exist and are sound is the business of `mvl.data.checks`.

    Args:
        folder: a task folder.

    Returns:
        list of `Case`, sorted by name.

    Raises:
        DataError: dataset.json is missing, malformed or empty, names a path outside the folder
            or one case twice, or subjects.csv lacks a case.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    try:
        task, description = read_task(folder), read_json(path)
    except DataError:
        raise
    except MvlError as error:
        raise DataError(str(error)) from error
    entries = description.get("training")
    if not isinstance(entries, list):
        raise DataError(f"{path}: 'training' is missing or not a list of images and labels")

    files = {}
    for entry in entries:
        if not isinstance(entry, dict) or "image" not in entry:
            raise DataError(f"{path}: 'training' has an entry without 'image': {entry!r}")
        image = _inside(folder, entry["image"], path)
        if image.name.startswith("._"):
            continue  # macOS's shadow files, which some archives carry
        name = case_name(image)
        if name in files:
            raise DataError(f"{path}: 'training' names case {name} twice; keep one of them")
        label = entry.get("label")
        files[name] = (image, None if label is None else _inside(folder, label, path))
    if not files:
        raise DataError(f"{path}: 'training' names no case")

    subjects = _read_subjects(folder / "subjects.csv", files)
    if subjects is None:
        subjects = {name: task.subject_of(name) for name in files}
    return [Case(name, subjects[name], *files[name]) for name in sorted(files)]


def case_name(path):
    """A file's name without .nii.gz or .nii, which some write in capitals."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", Path(path).name, count=1, flags=re.IGNORECASE)


def require_output(path, image):
    """Hold the name of a segmentation that is to be written, before any work is done for it.

    Args:
        path: what is to be written.
        image: what is segmented.

    Raises:
        DataError: it is no name of a NIfTI file, a folder, or the image itself.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")) or not case_name(path):
        raise DataError(f"{path} does not end in .nii or .nii.gz, as a segmentation's name has to")
    # os.path and not Path: a folder that may not be looked into is the writer's or reader's fault.
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; name the file that is to be written")
    if os.path.exists(path) and os.path.exists(image) and os.path.samefile(path, image):
        raise DataError(f"{path} is the image itself, which is never overwritten")


def _inside(folder, relative, source):
    """`folder / relative`, held to stay inside the folder, symbolic links followed."""
    if not isinstance(relative, str) or not relative.isprintable() or not case_name(relative):
        raise DataError(f"{source}: {relative!r} is not the path of a file")
    path = folder / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise DataError(f"{source}: {relative!r} leads out of the task folder; name files in it")
    try:
        confined = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source}: {relative!r} cannot be followed: {error}") from error
    if not confined:
        remedy = "put the file itself there"
        if "annex/objects" in str(path.resolve()):
            remedy = f"run 'git annex get' and 'git annex unlock' on {path}"
        raise DataError(
            f"{source}: {relative!r} is a link to {path.resolve()}, outside the task folder; "
            f"{remedy}"
        )
    return path


def _read_subjects(path, cases):
    """{case: subject} from subjects.csv, or None where there is no such file."""
    try:
        text = read_small(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        return None
    except MvlError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table: {error}") from error
    subjects = {}
    for row in rows:
        # White space would make two subjects of one, and leak between the sides of a split.
        case, subject = ((row.get(key) or "").strip() for key in ("case", "subject"))
        if not case or not subject:
            raise DataError(f"{path}: each row needs a 'case' and a 'subject', found {row}")
        if subjects.setdefault(case, subject) != subject:
            raise DataError(f"{path}: case {case} has two subjects, {subjects[case]} and {subject}")
    missing = sorted(set(cases) - set(subjects))
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(cases)} cases ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}); add a row for each"
        )
    return subjects


def content_hash(array):
    """SHA-256 (hex) of an array's values and shape, whatever type they were stored in."""
    digest = hashlib.sha256(repr(array.shape).encode())
    # Transposed, since NIfTI's order is Fortran's and hashing wants C's without a copy.
    digest.update(np.ascontiguousarray(array.astype("<f4", copy=False).T))
    return digest.hexdigest()


def voxel_hash(case):
    """SHA-256 (hex) of a case's image and label voxels and of their affines.

    Two cases of equal voxels and placement have one hash, whatever their compression, voxel
    type or name.

    Raises:
        DataError: the case has no label, or one of its files cannot be read.
    """
    if case.label is None:
        raise DataError(f"case {case.name} has no label")
    image, affine = read_volume(case.image)
    label, label_affine = read_label(case.label), read_header(case.label).affine
    return joint_hash((content_hash(image), content_hash(label)), (affine, label_affine))


def joint_hash(contents, affines):
    """`voxel_hash` from the `content_hash` and the affine of image and label."""
    digest = hashlib.sha256("".join(contents).encode())
    digest.update(np.stack(affines).astype("<f8").tobytes())
    return digest.hexdigest()
