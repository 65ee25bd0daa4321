"""NIfTI files: where their voxels lie, what they hold, and a segmentation in an image's place.

A header may say in three ways where a voxel lies (https://nifti.nimh.nih.gov, nifti1.h): by an
affine, the sform; by a rotation and voxel edges, the qform; by the edges alone, `pixdim`. Programs
differ in what they take; what they do not agree on is refused. So edges by affine and by `pixdim`
must agree and be at right angles, and the forms must turn the voxels alike. The forms may lie in
two places, as after a registration that moved the sform alone: lengths are the same by both.
Unknown units of length are millimetres; without a form, there is no orientation.

What a header promises is compared with the file's size before memory is asked for.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from os import PathLike

import nibabel
import numpy as np
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from mvl.data.packed import COPY_AGAIN, BadFile, opened, pointer_fault, require_plausible_size
from mvl.files import written

_CONVERT = "save it as a single-file 3D NIfTI (.nii or .nii.gz)"
_RIGHT = "find out which is right; with nibabel, image.set_qform(image.get_sform(), 1) if the sform"
_CHOOSE = _RIGHT + " is, image.set_sform(image.get_qform(), 1) if the qform is, and save the image"
_CHOOSE_EDGES = _RIGHT + " is, or scale the sform's columns to pixdim, and save the image"
#: Extensions between header and voxels are skipped, up to this many bytes.
_MAX_OFFSET = 16 << 20
#: Voxels that are scaled at once, and voxels of a sample.
_BLOCK, _SAMPLE = 1 << 18, 1 << 16
#: Millimetres of the codes of a header's spatial unit: unknown, metre, millimetre, micrometre.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
#: Voxel edges outside of this are a wrong unit; millimetres. In micrometres, none is too short.
_SHORTEST, _LONGEST = 0.005, 100.0
#: Two places are one if no corner of the volume moves by more than this share of the shortest edge.
_SAME_PLACE = 0.1
#: Edges by affine and by `pixdim` agree within this share: some tools round one of them.
_SAME_EDGE = 0.01
#: Cosine up to which edges are at right angles: 0.3 degrees; a gantry's tilt is larger.
_RIGHT_ANGLE = 0.005
#: A quaternion's norm may exceed 1 by this, which is rounding.
_UNIT_NORM = 0.001
#: Fields of a header that say, with the first four of `pixdim`, where the voxels lie.
_GEOMETRY = (
    *("xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)
#: A label's values differ from whole numbers by no more than this.
_WHOLE = 0.001


@dataclass(frozen=True)
class Header:
    """What a NIfTI file says of itself, checked for sense and against the file's size."""

    #: Voxels along each axis; axes of one voxel after the third are left out.
    shape: tuple[int, ...]
    #: "sform" or "qform", of those that hold: (4, 4) float64, voxel index -> millimetres. They
    #: differ by a rigid motion at most.
    forms: dict[str, np.ndarray]
    #: Of the stored voxels; how many bytes come before them; stored value -> intensity.
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    #: nibabel's header, whose geometry `write_segmentation` hands on.
    fields: nibabel.Nifti1Header

    @property
    def affine(self) -> np.ndarray:
        """Voxel index -> millimetres, (4, 4) float64: the sform, else the qform."""
        return self.forms.get("sform", self.forms.get("qform"))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Lengths of a voxel's edges in millimetres, along the file's axes."""
        return tuple(edges_of(self.affine).tolist())


def read_header(path: str | PathLike) -> Header:
    """The header of a NIfTI file (.nii or .nii.gz, versions 1 and 2), without its voxels.

    Raises:
        BadFile: missing, unreadable or not single-file NIfTI; not 3D or 4D; sizes or voxel type
            without sense; no certain geometry; or more voxels than fit the file.
    """
    with opened(path) as (file, packed):
        return _header(path, file, packed)


def read_volume(path: str | PathLike) -> tuple[np.ndarray, Header]:
    """Intensities of a NIfTI file, (H, W, D) or (H, W, D, C) float32 along the file's own axes.

    Raises:
        BadFile: as `read_header`; truncated or damaged; or float32 cannot tell intensities apart.
    """
    header, stored = _read(path)
    # What lies beyond float32 becomes infinite, which the checks report.
    with np.errstate(over="ignore", invalid="ignore"):
        _require_distinct(path, _sample(stored, header))
        array = np.empty(stored.size, np.float32)
        for part, block in _scaled(stored, header):
            array[part] = block
    return array.reshape(header.shape, order="F"), header


def read_label(path: str | PathLike) -> tuple[np.ndarray, Header]:
    """Label values of a NIfTI file, (H, W, D), as uint8 where they fit and int16 elsewhere.

    Float files of whole numbers, up to rounding, are fine: the decathlon has some.

    Raises:
        BadFile: as `read_header`; truncated or damaged; or values not whole or not within int16.
    """
    header, stored = _read(path)
    array, low, high = np.empty(stored.size, np.int16), np.inf, -np.inf
    for part, block in _scaled(stored, header):
        if block.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                values, block = block, np.rint(block)
                broken = values[~(np.abs(values - block) <= _WHOLE)]  # NaN, too
            if len(broken):
                remedy = "correct these values: a voxel has the whole number of its label"
                if len(_sample(stored, header)) > 64:
                    remedy = "check that it is a label, not swapped with its image nor interpolated"
                fault = f"values that are not whole numbers, such as {broken[0]:.6g}"
                raise BadFile(path, fault, remedy)
        low, high = min(low, block.min()), max(high, block.max())
        if low >= -32768 and high <= 32767:
            array[part] = block
    if low < -32768 or high > 32767:
        remedy = "check that it is a label; number its structures within 32,767"
        raise BadFile(path, f"values from {low:g} to {high:g}", remedy)
    if low >= 0 and high <= 255:
        array = array.astype(np.uint8)
    return array.reshape(header.shape, order="F"), header


def edges_of(affine: np.ndarray) -> np.ndarray:
    """Lengths of a voxel's edges, (3,), in the affine's unit."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def place_fault(
    image: dict[str, np.ndarray], label: dict[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[str, str] | None:
    """Why it is not certain that a label's voxels are its image's: (fault, remedy), or None.

    Where the two forms of a file lie in two places, the label may have been drawn in either: it
    corresponds if it lies in one of the two, or in both.

    Args:
        image, label: `Header.forms` of the two, or {"affine": affine} of an array.
    """
    limit = _SAME_PLACE * min(edges_of(affine).min() for affine in image.values())
    apart = {(a, b): _apart(image[a], label[b], shape) for a in image for b in label}
    met = [names for names, distance in apart.items() if distance <= limit]
    several = [len(f) == 2 and _apart(*f.values(), shape) > limit for f in (image, label)]
    by_name = {(name, name) for name in image if name in label}
    if met and (not all(several) or by_name <= set(met)):
        return None
    fault = f"lie up to {min(apart.values()):.3g} mm apart"
    if met:
        most = max(apart[names] for names in by_name)
        fault = f"coincide by sform or qform alone, and by the other lie {most:.3g} mm apart"
    remedy = "copy the image's header to the label if their voxels correspond, else resample it"
    return f"image and label {fault}", remedy


def write_segmentation(
    path: str | PathLike, array: np.ndarray, header: Header, description: str
) -> None:
    """Write (H, W, D), uint8 or int16, in the place of the header's image; whole or not at all.

    The description has up to 79 characters.
    """
    fields = type(header.fields)()
    for name in _GEOMETRY:
        fields[name] = header.fields[name]
    fields["pixdim"][:4] = header.fields["pixdim"][:4]
    fields["descrip"] = description
    fields.set_data_dtype(array.dtype)
    kind = nibabel.Nifti2Image if fields.sizeof_hdr == 540 else nibabel.Nifti1Image
    with written(path) as temporary:
        # Given an affine, nibabel would write a form of its own.
        nibabel.save(kind(array, None, fields), temporary)


# --- headers -------------------------------------------------------------------------------


def _header(path, file, packed):
    """The `Header` at a file's start."""
    fields = _parsed(path, file)
    axes = int(fields["dim"][0])
    sizes = [int(n) for n in fields["dim"][1 : 1 + axes]]
    if not 1 <= axes <= 7 or min(sizes) < 1:
        raise BadFile(path, f"header with sizes {fields['dim'].tolist()}", COPY_AGAIN)
    # ITK leaves the time out, (x, y, z, 1, channels), where a voxel has several values.
    shape = (*sizes[:3], *(n for n in sizes[3:] if n > 1))
    if len(shape) not in (3, 4):
        raise BadFile(path, f"{len(shape)}D data of shape {shape}", _CONVERT)
    with np.errstate(over="ignore", invalid="ignore"):  # double precision goes to 1e308 mm
        forms = _forms(path, fields)
    try:
        dtype = fields.get_data_dtype()
        slope, intercept = fields.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError) as error:
        reason = f"voxel type {error}" if isinstance(error, KeyError) else error
        raise BadFile(path, f"header without sense ({reason})", _CONVERT) from error
    if dtype.kind not in "iuf":
        raise BadFile(path, f"voxels of type {dtype}, not numbers", _CONVERT)
    # 0 means right after the header, as nibabel reads it.
    offset = float(fields["vox_offset"]) or fields.single_vox_offset
    if not fields.sizeof_hdr <= offset <= _MAX_OFFSET:
        raise BadFile(path, f"header with voxels at byte {offset:g}", COPY_AGAIN)
    offset = int(offset)
    require_plausible_size(path, offset + math.prod(shape) * dtype.itemsize, packed)
    slope, intercept = (1, 0) if slope is None else (float(slope), float(intercept))
    return Header(shape, forms, dtype, offset, slope, intercept, fields)


def _parsed(path, file):
    """nibabel's header object of a file's first bytes."""
    block = file.read(348)
    for kind, at in (nibabel.Nifti1Header, 344), (nibabel.Nifti2Header, 4):
        if block[at : at + 4] == kind.single_magic + b"\0":
            block += file.read(kind.sizeof_hdr - len(block))
            if len(block) == kind.sizeof_hdr:
                # check=False: nibabel would mend some faults silently; they are judged here.
                return kind(block, check=False)
    if block.startswith((b"version https://git-lfs", b"/annex/objects/")):
        raise pointer_fault(path, block.decode(errors="replace"))
    raise BadFile(path, "not NIfTI" if block else "empty file", _CONVERT)


def _forms(path, fields):
    """`Header.forms` of nibabel's header, in which rounding is mended."""
    code = int(fields["xyzt_units"]) & 7
    if code not in _MILLIMETRES:
        raise BadFile(path, f"unknown unit of length (code {code})", "set xyzt_units to mm")
    unit = _MILLIMETRES[code]
    spacing = fields["pixdim"][1:4].astype(float) * unit
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        remedy = "set the header's pixdim above 0, to the affine's edges if there is one"
        raise BadFile(path, f"voxel spacing {spacing.tolist()} mm by pixdim", remedy)
    forms = {"sform": fields.get_sform()} if fields["sform_code"] > 0 else {}
    if fields["qform_code"] > 0:
        forms["qform"] = _qform(path, fields)
    if not forms:
        remedy = "where you know how its axes run, write it with nibabel's image.set_sform(affine,"
        remedy += " 1); a label whose voxels correspond to its image's gets that image's affine"
        raise BadFile(path, "no orientation (qform code and sform code are 0)", remedy)
    for name, form in forms.items():
        form[:3] *= unit
        _require_edges(path, name, form, spacing, code == 3, len(forms) == 2)
    if len(forms) == 2:
        sform, qform = forms.values()
        limit = _SAME_PLACE * edges_of(sform).min()
        ways = ["".join(map(str, aff2axcodes(form))) for form in forms.values()]
        mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
        if _apart(sform, qform, fields["dim"][1:4]) > limit and (mirrored or ways[0] != ways[1]):
            fault = f"axes that run to {ways[0]} by the sform, to {ways[1]} by the qform"
            raise BadFile(path, fault, _CHOOSE)
    return forms


def _qform(path, fields):
    """The qform's affine in the header's unit; a rounding in its fields is mended there."""
    if fields["pixdim"][0] == 0:
        fields["pixdim"][0] = 1  # as the standard says
    names = ("quatern_b", "quatern_c", "quatern_d")
    norm = math.hypot(*(float(fields[name]) for name in names))
    if 1 < norm <= 1 + _UNIT_NORM:
        for name in names:
            fields[name] = float(fields[name]) / norm
    try:
        return fields.get_qform()
    except (HeaderDataError, ValueError) as error:
        remedy = "convert the file again from its source, such as the scanner's DICOM"
        raise BadFile(path, f"qform that is not a rotation ({error})", remedy) from error


def _require_edges(path, name, form, spacing, microscopic, both):
    """Refuse a form that is singular, sheared, of senseless edges or of others than pixdim's."""
    edges = edges_of(form)
    volume, most = abs(np.linalg.det(form[:3, :3])), edges.prod()
    if not (np.isfinite(form).all() and 1e-6 * most < volume < np.inf):
        raise BadFile(path, f"{name} that is not invertible", "set the header's sform and qform")
    cosines = (form[:3, :3] / edges).T @ (form[:3, :3] / edges)
    skew = np.abs(cosines - np.eye(3)).max()
    if skew > _RIGHT_ANGLE:
        angle = np.degrees(np.arccos(min(skew, 1)))
        fault = f"sheared: two of its axes meet at {angle:.1f} degrees, as of a tilted gantry"
        remedy = "resample it to right angles with nibabel.processing.resample_to_output (with "
        raise BadFile(path, fault, remedy + "order=0 where it is a label)")
    shown, by_pixdim = (" x ".join(f"{edge:.4g}" for edge in of) for of in (edges, spacing))
    if (np.abs(edges - spacing) > _SAME_EDGE * edges).any():
        fault = f"voxels of {shown} mm by the sform, of {by_pixdim} mm by pixdim"
        raise BadFile(path, fault, _CHOOSE if both else _CHOOSE_EDGES)
    if edges.max() > _LONGEST or (edges.min() < _SHORTEST and not microscopic):
        remedy = "set the header's xyzt_units to the unit that its lengths are in"
        raise BadFile(path, f"voxels of {shown} mm", remedy)


def _apart(one, other, shape):
    """The longest way of a volume's corner from one affine's place to the other's."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape[:3], float) - 1)
    difference = one - other
    return np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()


# --- voxels --------------------------------------------------------------------------------


def _read(path):
    """(Header, the voxels as they are stored, unscaled and flat, the first axis the fastest)."""
    with opened(path) as (file, packed):
        header = _header(path, file, packed)
        count = math.prod(header.shape) * header.dtype.itemsize
        file.seek(header.offset)
        voxels = file.read(count)
        if packed:
            try:  # the checksum is at the stream's end: to read on is what verifies it
                file.read(_MAX_OFFSET)
            except gzip.BadGzipFile as error:
                # What follows the last member is left, as ITK and nibabel leave it.
                if not str(error).startswith("Not a gzipped file"):
                    raise
    if len(voxels) < count:
        fault = f"truncated: {len(voxels):,} of {count:,} bytes of voxels"
        raise BadFile(path, fault, COPY_AGAIN)
    return header, np.frombuffer(voxels, header.dtype)


def _require_distinct(path, values):
    """Require that float32 tells values (float64) apart: beyond 2^31 it has steps of 256."""
    rounded = values.astype(np.float32)
    low, high = np.quantile(values, (0.25, 0.75)) if len(values) else (0, 0)
    left, lost = len(np.unique(rounded)), np.abs(values - rounded).max(initial=0)
    # Rounding alone, of 100 and 100.00000000000001, is no loss.
    if left < 0.75 * len(values) and lost > 1e-5 * (high - low):
        fault = f"{len(values)} grey values about {low:.0f}, of which float32 tells {left} apart"
        remedy = "subtract what is common to them all and save it as int16 or float32"
        raise BadFile(path, fault, remedy)


def _scaled(stored, header):
    """Yield (slice, intensities) of stored voxels: in float64, a block at a time.

    Whole numbers that need no scaling come at once as they are; float64 would round from 2^53 on.
    """
    scaled = (header.slope, header.intercept) != (1, 0)
    if stored.dtype.kind != "f" and not scaled:
        yield slice(None), stored
        return
    for start in range(0, stored.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = stored[part].astype(np.float64)
        if scaled:
            block *= header.slope
            block += header.intercept
        yield part, block


def _sample(stored, header):
    """The different finite intensities, in float64, of voxels that are evenly spread."""
    part = stored[:: max(1, stored.size // _SAMPLE)]
    values = np.unique(np.concatenate([block for _, block in _scaled(part, header)]))
    return values[np.isfinite(values)].astype(np.float64)
