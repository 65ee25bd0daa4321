"""Where cases come from: a task folder in the decathlon's layout, read in place.

A task folder holds `dataset.json`, whose "training" list names image and label of each case
relative to the folder, and beside it may hold `subjects.csv` (columns case, subject). The
folder itself is the user's and may be a symbolic link; what `dataset.json` names must lie
inside it.

NIfTI files are read here rather than by `nibabel.load`, whose header classes do the parsing:
a header is held against the file's size before a byte of voxels is read, extensions are never
looked at, and the checksum at the end of a gzip stream is reached, so that a file that lies or
was cut off costs little and never passes for whole.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import math
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from mvl.errors import DataError, MvlError
from mvl.files import REPOSITORY, read_json, read_small
from mvl.tasks import CONVERTED, TASKS, read_task

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
    if name in CONVERTED:
        ways.append("make it with 'mvl data convert' (docs/data.md)")
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
        raise DataError(
            f"{source}: {relative!r} is a link to {path.resolve()}, outside the task folder; "
            "put the file itself there"
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


class BadFile(DataError):
    """A file that cannot be used: what is wrong with it, and what to do."""

    def __init__(self, path, fault, remedy):
        super().__init__(f"{path}: {fault}; {remedy}")
        self.fault, self.remedy = fault, remedy


_COPY_AGAIN = "copy or download the file again"
_CONVERT = "save it as a single-file 3D NIfTI (.nii or .nii.gz)"

#: Voxels of this many bytes are read without asking; above it, a file that unpacks to more than
#: `_MAX_RATIO` times its size is taken for a decompression bomb. Images pack about twofold, a
#: label of one small lesion up to a thousandfold, but few of those are this large.
_MODEST_BYTES = 512 << 20
_MAX_RATIO = 200
#: Deflate cannot pack more tightly than this (1032 to 1, rounded up).
_DEFLATE_RATIO = 1040
#: Extensions between header and voxels are skipped, up to this many bytes.
_MAX_OFFSET = 16 << 20


@dataclass(frozen=True)
class Header:
    """What a NIfTI file says of itself, checked for sense and against the file's size.

    Attributes:
        shape: voxels along each axis, trailing axes of one voxel after the third left out.
        affine: voxel index -> millimetres, (4, 4) float64.
        dtype: of the stored voxels, with their byte order.
        offset: bytes before the voxels.
        slope, intercept: stored value -> intensity.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float


def read_header(path):
    """The `Header` of a NIfTI file (.nii or .nii.gz, versions 1 and 2).

    Raises:
        BadFile: missing, unreadable or not single-file NIfTI; a number of axes other than 3 or 4;
            sizes, spacing, affine or voxel type without sense; or more voxels than fit the file.
    """
    with _opened(path) as file:
        block = file.read(540)
        packed = isinstance(file, gzip.GzipFile)
    header = _parsed(path, block)
    axes = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : 1 + axes]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise BadFile(path, f"header with sizes {header['dim'].tolist()}", _COPY_AGAIN)
    if len(shape) not in (3, 4):
        raise BadFile(path, f"{len(shape)}D data of shape {tuple(shape)}", _CONVERT)
    spacing = header["pixdim"][1:4]
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise BadFile(
            path, f"voxel spacing {spacing.tolist()} mm", "set the header's pixdim above 0"
        )
    try:
        affine = np.asarray(header.get_best_affine(), float)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError) as error:
        reason = f"voxel type {error}" if isinstance(error, KeyError) else error
        raise BadFile(path, f"header without sense ({reason})", _CONVERT) from error
    with np.errstate(over="ignore", invalid="ignore"):  # double precision goes to 1e308 mm
        volume = abs(np.linalg.det(affine[:3, :3]))
    if not np.isfinite(affine).all() or not 1e-9 <= volume < np.inf:
        raise BadFile(path, "affine that is not invertible", "set the header's sform and qform")
    if dtype.kind not in "iuf":
        raise BadFile(path, f"voxels of type {dtype}, not numbers", _CONVERT)
    # 0 means right after the header, as nibabel reads it.
    offset = float(header["vox_offset"]) or header.single_vox_offset
    if not header.sizeof_hdr <= offset <= _MAX_OFFSET:
        raise BadFile(path, f"header with voxels at byte {offset:g}", _COPY_AGAIN)
    offset = int(offset)
    _require_plausible_size(path, offset + math.prod(shape) * dtype.itemsize, packed)
    return Header(
        tuple(shape),
        affine,
        dtype,
        offset,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )


def read_volume(path):
    """Intensities of a NIfTI file, whole in memory once, as float32.

    Returns:
        `(array, affine)`: (H, W, D) or (H, W, D, C) float32 in the file's own axes, and the
        (4, 4) affine from voxel index to millimetres.

    Raises:
        BadFile: as for `read_header`, or truncated or damaged.
    """
    header = read_header(path)
    return _scaled(_stored(path, header), header), header.affine


def read_label(path):
    """Label values of a NIfTI file, (H, W, D), as uint8 where they fit and int16 elsewhere.

    Float files of whole numbers are fine: the decathlon has some.

    Raises:
        BadFile: as for `read_volume`, or values that are not whole or not within int16.
    """
    header = read_header(path)
    array = _stored(path, header)
    if array.dtype.kind == "f" or (header.slope, header.intercept) != (1, 0):
        array = _scaled(array, header)
    remedy = "check that it is a label, not swapped with its image"
    if array.dtype.kind == "f":
        broken = array != np.rint(array)  # NaN differs from everything
        if broken.any():
            first = array[np.unravel_index(np.argmax(broken), array.shape)]
            raise BadFile(path, f"values that are not whole numbers, such as {first:g}", remedy)
    low, high = array.min(), array.max()
    if low < -32768 or high > 32767:
        raise BadFile(path, f"values from {low:g} to {high:g}", remedy)
    return array.astype(np.uint8 if low >= 0 and high <= 255 else np.int16)


def spacing_of(path):
    """Edge lengths of a NIfTI file's voxels in millimetres, along the file's axes.

    Raises:
        BadFile: as for `read_header`.
    """
    return tuple(np.linalg.norm(read_header(path).affine[:3, :3], axis=0).tolist())


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


@contextlib.contextmanager
def _opened(path):
    """Yield the file's bytes, unpacked where they are gzip's; its faults become `BadFile`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadFile(path, "not a regular file", "put the NIfTI file itself there")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if packed else file
    except FileNotFoundError as error:
        raise BadFile(path, "missing", "add the file, or take the case out") from error
    except EOFError as error:
        raise BadFile(path, "truncated gzip", _COPY_AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadFile(path, f"damaged gzip ({error})", _COPY_AGAIN) from error
    except OSError as error:
        raise BadFile(
            path, f"unreadable ({error.strerror or error})", "make it readable"
        ) from error


def _parsed(path, block):
    """nibabel's header object of a file's first bytes."""
    for kind, magic, place in (
        (nibabel.Nifti1Header, b"n+1\0", 344),
        (nibabel.Nifti2Header, b"n+2\0", 4),
    ):
        if block[place : place + 4] == magic and len(block) >= kind.sizeof_hdr:
            # check=False: nibabel would mend some faults without a word; they are judged here.
            return kind(block[: kind.sizeof_hdr], check=False)
    raise BadFile(path, "not NIfTI" if block else "empty file", _CONVERT)


def _require_plausible_size(path, promised, packed):
    """Hold the bytes that a header promises against the file's size, before memory is asked for."""
    size = os.path.getsize(path)
    most = size * (_DEFLATE_RATIO if packed else 1)
    if promised > most:
        fault = f"header promises {promised:,} bytes, the file of {size:,} cannot hold them"
        raise BadFile(path, f"truncated, or {fault}", _COPY_AGAIN)
    if promised > max(_MODEST_BYTES, size * _MAX_RATIO):
        fault = f"{size:,} bytes that unpack to {promised:,}, as a decompression bomb does"
        raise BadFile(path, fault, "save it in a smaller voxel type, such as uint8 for labels")


def _stored(path, header):
    """The voxels as they are stored, unscaled, in the shape of the header."""
    count = math.prod(header.shape) * header.dtype.itemsize
    with _opened(path) as file:
        file.seek(header.offset)
        voxels = file.read(count)
        # A gzip stream's checksum stands at its end: reading on is what verifies it.
        file.read(_MAX_OFFSET)
    if len(voxels) < count:
        raise BadFile(path, f"truncated: {len(voxels):,} of {count:,} bytes of voxels", _COPY_AGAIN)
    return np.frombuffer(voxels, header.dtype).reshape(header.shape, order="F")


def _scaled(array, header):
    """Stored values as intensities, float32, whatever they were stored in."""
    # What lies beyond float32 becomes infinite, which the checks report.
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32)
        if (header.slope, header.intercept) != (1, 0):
            array *= np.float32(header.slope)
            array += np.float32(header.intercept)
    return array
