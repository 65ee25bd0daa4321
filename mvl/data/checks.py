"""Every case looked at before any training: one pass that finds all faults at once.

The pass opens each file once and keeps, in a `CaseRecord`, what the rest of a run wants of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvl.data.domain import ImageStatistics, summarise
from mvl.data.nifti import edges_of, place_fault, read_label, read_volume
from mvl.data.packed import BadFile
from mvl.data.task_folder import Case
from mvl.data.tasks import Task, is_ct
from mvl.errors import DataError
from mvl.files import read_json
from mvl.progress import track

#: In place of a case's name in a fault of the task.
OF_THE_TASK = "dataset.json"
#: An image of fewer values is a label, or was cut down to one; the real tasks have 109 or more.
_FEW_VALUES = 8
#: Voxels out of which the bulk of a channel's values is estimated.
_SAMPLE = 2_000
#: A voxel destroys the scale of its channel if all voxels lie this many times further apart than
#: the middle 98 % do (then smallest to largest tells nothing), or if it makes the standard
#: deviation this many times as large as they reach (then z-scores do not). Of 227 real MR images
#: none has more than 4.7 and 0.3.
_FAR, _SPREAD = 1000, 3
#: Beyond any CT's range: metal has up to 30,000 HU. A window cuts off what lies below.
_BEYOND_HU = 100_000


class Fault(NamedTuple):
    """One thing that is wrong with one case, or with the task (`OF_THE_TASK`)."""

    case: str
    fault: str
    remedy: str


@dataclass
class CaseRecord:
    """What one reading of a case's files tells; None where a file could not be read."""

    #: SHA-256 of the image's voxels; and of image, label and both affines.
    image_hash: str | None = None
    voxel_hash: str | None = None
    #: Of the image: voxels along each axis, (3,), and voxel index -> millimetres, (4, 4).
    shape: tuple[int, ...] | None = None
    affine: np.ndarray | None = None
    #: Label value -> voxels.
    label_counts: dict[int, int] | None = None
    #: Of a case without faults: the first channel's mean over its nonzero voxels, and what a
    #: `TrainingDomain` wants.
    mean_intensity: float | None = None
    statistics: ImageStatistics | None = None

    @property
    def spacing_mm(self) -> np.ndarray:
        """Lengths of a voxel's edges along the file's axes, (3,)."""
        return edges_of(self.affine)


@dataclass
class CheckResult:
    """What one pass over the cases finds: a record of each, and all faults in their order."""

    task: Task
    records: dict[str, CaseRecord] = field(default_factory=dict)
    #: Those of the task come last.
    faults: list[Fault] = field(default_factory=list)

    @property
    def image_hashes(self) -> dict[str, str]:
        """Case -> `CaseRecord.image_hash`, of each image that could be read."""
        return {name: r.image_hash for name, r in self.records.items() if r.image_hash}

    @property
    def bad_cases(self) -> list[str]:
        """Names of the cases with at least one fault."""
        return sorted({fault.case for fault in self.faults} - {OF_THE_TASK})

    def table(self) -> str:
        """The faults as text, one per line."""
        return _table(self.faults)


def check_cases(task: Task, cases: list[Case], progress: bool = True) -> CheckResult:
    """Read every case once and collect everything that is wrong.

    Looked for are files that cannot be read as what they should be (see `mvl.data.nifti`); shapes,
    channels and places that do not fit; voxels that are not finite, blank, too few different ones,
    or so far from the others that no scale shows these; labels that are not the task's, empty or
    on the image's background; an image or a file of labels of two subjects; and of the task, a
    label that no case has and a healthy case that is not there.
    """
    result, first_with, first_labelled = CheckResult(task), {}, {}
    for case in track(cases, "checking cases", show=progress):
        record = result.records[case.name] = CaseRecord()
        faults = _check_case(task, case, record)
        if record.image_hash:
            first = first_with.setdefault(record.image_hash, case)
            if first.subject != case.subject:  # of one subject, it is a scan labelled twice
                fault = f"image: the same voxels as {first.name}'s, of another subject"
                remedy = "put its own image there, or give both one subject in subjects.csv"
                faults.append((fault, remedy))
        first = first_labelled.setdefault(case.label, case)
        if case.label and first.subject != case.subject:
            fault = f"label: the file is {first.name}'s, of another subject"
            remedy = "name its own label, or give both one subject in subjects.csv"
            faults.append((fault, remedy))
        result.faults += [Fault(case.name, *fault) for fault in faults]
    for name in sorted(set(task.healthy) - {case.name for case in cases}):
        fault = f"'healthy' names {name}, which is no case"
        result.faults.append(Fault(OF_THE_TASK, fault, "write the case's name, as listed here"))
    # An unreadable label may be the one that has it; once it is mended or left out, this is asked.
    if all(record.label_counts for record in result.records.values()):
        result.faults += _absent_labels(cases, result)
    return result


def _absent_labels(cases, result):
    """The labels that none of these cases has: every one would count as perfect there."""
    present = set().union(*(result.records[case.name].label_counts for case in cases))
    way = "take \"%s\" out of 'labels', or draw it in the cases that have it"
    return [
        Fault(OF_THE_TASK, f"label {n} ({name}): in none of {len(cases)} cases", way % n)
        for n, name in result.task.labels.items()
        if n not in present
    ]


def unlisted(folder: Path, cases: list[Case]) -> list[Path]:
    """Images in the folders of a task's images that its dataset.json does not name, sorted."""
    named = {path for case in cases for path in (case.image, case.label)}
    test = read_json(Path(folder) / "dataset.json").get("test")
    test = test if isinstance(test, list) else []
    named |= {Path(folder, path) for path in test if isinstance(path, str)}
    folders = {case.image.parent for case in cases}
    there = {path for parent in folders if parent.is_dir() for path in parent.iterdir()}
    seen = [path for path in there - named if not path.name.startswith(".")]
    return sorted(path for path in seen if path.name.lower().endswith((".nii", ".nii.gz")))


def require(cases: list[Case], result: CheckResult, on_bad_case: str = "fail") -> list[Case]:
    """The cases without faults, of all those that were checked.

    Args:
        on_bad_case: "fail" refuses them all if one has a fault; "skip" leaves out the bad ones.

    Raises:
        DataError: a fault and "fail", with the whole table as its message; or no case is left; or
            a fault of the task, which no case can be left out for.
    """
    bad = set(result.bad_cases)
    good = [case for case in cases if case.name not in bad]
    where = f"{len(bad)} of {len(cases)} cases" if bad else f"the task {result.task.name}"
    summary = f"{len(result.faults)} fault{'s' * (len(result.faults) != 1)} in {where}"
    if result.faults and on_bad_case == "fail":
        way = ", or leave these cases out with --on-bad-case skip" if bad else ""
        raise DataError(f"{summary}; mend them{way}:\n{result.table()}")
    if not good:
        raise DataError(f"no case is left to use: {summary}\n{result.table()}")
    of_task = [fault for fault in result.faults if fault.case == OF_THE_TASK]
    if faults := of_task or _absent_labels(good, result):
        raise DataError(
            f"{result.task.name} has faults that leaving cases out does not mend:\n{_table(faults)}"
        )
    return good


def _table(faults):
    rows = [("case", "what is wrong", "what to do"), *faults]
    case, fault = (max(len(row[k]) for row in rows) for k in (0, 1))
    return "\n".join(f"  {a:<{case}}  {b:<{fault}}  {c}" for a, b, c in rows)


def _check_case(task, case, record):
    """The faults of one case and their remedies; fills in its record."""
    faults = []

    def report(fault, remedy):
        faults.append((fault, remedy))

    def read(reader, what, path):
        try:
            return reader(path)
        except BadFile as error:
            report(f"{what}: {error.fault}", error.remedy)
        except MemoryError:
            report(f"{what}: does not fit into memory", "use a machine with more memory")
        return None, None

    image, header = read(read_volume, "image", case.image)
    if case.label is None:
        label = report("no label in dataset.json", "name its label, or list it under 'test'")
    else:
        label, label_header = read(read_label, "label", case.label)
    if image is not None:
        record.image_hash = content_hash(image)
        record.shape, record.affine = image.shape[:3], header.affine
        _check_image(task, image, report)
    if label is not None:
        values, counts = np.unique(label, return_counts=True)
        record.label_counts = dict(zip(values.tolist(), counts.tolist(), strict=True))
        _check_label(task, case, label, set(record.label_counts), report)
    if image is None or label is None:
        return faults
    label_hash = content_hash(label)
    affines = np.stack([header.affine, label_header.affine]).astype("<f8").tobytes()
    joint = hashlib.sha256((record.image_hash + label_hash).encode() + affines)
    record.voxel_hash = joint.hexdigest()
    if record.image_hash == label_hash:
        report("image: the same voxels as its label's", "put the image itself there")
    if record.shape != label.shape[:3]:
        fault = f"image of shape {record.shape}, label of {label.shape[:3]}"
        report(fault, "resample the label to its image's grid")
    else:
        _check_overlap(image, label, report)
        if fault := place_fault(header.forms, label_header.forms, record.shape):
            report(*fault)
    if not faults:
        channel = image if image.ndim == 3 else image[..., 0]
        record.mean_intensity = float(channel[channel != 0].mean())
        record.statistics = summarise(image, header.affine, task)
    return faults


def content_hash(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's values and shape, whatever type they were stored in."""
    digest = hashlib.sha256(repr(array.shape).encode())
    # Transposed, since NIfTI's order is Fortran's and hashing wants C's without a copy.
    digest.update(np.ascontiguousarray(array.astype("<f4", copy=False).T))
    return digest.hexdigest()


def _check_image(task, image, report):
    channels = np.moveaxis(image[..., None] if image.ndim == 3 else image, -1, 0)
    if len(channels) != len(task.channels):
        report(
            f"image: {len(channels)} channels, the task has {len(task.channels)}",
            "save the channels that 'modality' names in one 4D file, or name them all there",
        )
    ranges = [(float(channel.min()), float(channel.max())) for channel in channels]
    if not np.isfinite(ranges).all():
        broken = image.size - np.count_nonzero(np.isfinite(image))
        way = f"give them what air has, as {'-1000 in CT' if task.window_hu else '0 in MRI'}"
        return report(f"image: {broken} voxels are NaN or infinite", way)
    if len(set(sum(ranges, ()))) == 1:
        way = "convert or export the image again: its voxels are lost"
        return report(f"image: {ranges[0][0]:g} in all voxels", way)
    for n, (channel, limits) in enumerate(zip(channels, ranges, strict=True)):
        of = f" in channel {n} ({', '.join(task.channels[n : n + 1])})" if len(channels) > 1 else ""
        if limits[0] == limits[1]:
            report(f"image: {limits[0]:g} in all voxels{of}", "put that channel's own volume there")
            continue
        ct = is_ct(task.channels[n]) if n < len(task.channels) else False
        if far := _far_voxel(channel, *limits, ct):
            value, low, high = far
            report(
                f"image: a voxel of {value:g}{of}, while 98 % lie from {low:g} to {high:g}",
                "replace such voxels by a value that is in range, such as their neighbours'",
            )
    if all(_few_values(channel) for channel in channels):
        shown = ", ".join(f"{value:g}" for value in np.unique(image))
        report(f"image: no other values than {shown}", "put the image there: this may be a label")


def _sampled(channel):
    """About `_SAMPLE` of a channel's voxels, at equal distances."""
    voxels = channel.T.reshape(-1)  # a view, since NIfTI has the first axis run fastest
    # An odd step does not hit the same column of every slice.
    return voxels[:: max(1, voxels.size // _SAMPLE) | 1]


def _few_values(channel):
    few = len({*_sampled(channel)[:100].tolist()}) < _FEW_VALUES  # as a rule this tells enough
    return few and len(np.unique(channel)) < _FEW_VALUES


def _far_voxel(channel, low, high, ct):
    """(value, and between which two the middle 98 % lie) of a voxel that is too far off, or None.

    The background, 0 or the lowest value, takes no part: it may be nearly all of an image.
    """
    for voxels in (_sampled(channel), channel):
        sample = np.sort(voxels[(voxels != 0) & (voxels != low)])
        if sample.size >= 100:
            break
    if not sample.size:
        return None
    begin, middle, end = (float(sample[round(q * (sample.size - 1))]) for q in (0.01, 0.5, 0.99))
    value = high if high - middle > middle - low else low
    if ct:
        return (value, begin, end) if abs(value) > _BEYOND_HU else None
    reach, span = high - low, end - begin or abs(end)
    # The standard deviation is slow, and one voxel in a hundred raises it by a tenth of the reach.
    far = reach > _FAR * span or (
        reach > 10 * _SPREAD * span and channel[channel != 0].std(dtype=float) > _SPREAD * span
    )
    return (value, begin, end) if far else None


def _check_overlap(image, label, report):
    """Require that a label marks something: not all of it is the image's background."""
    if label.ndim != 3:
        return
    lowest = image.min(axis=(0, 1, 2))
    # One voxel of the label is enough as a rule; of the transpose, which lies in one piece.
    one = np.unravel_index(label.T.argmax(), label.T.shape)[::-1]
    far = label[one] > 0 and (image[one] == lowest).all() and (image[label > 0] == lowest).all()
    if far and (image != lowest).any():
        report(
            f"label: wholly where the image has its lowest value, {lowest.min():g}",
            "find out whether it is another case's, or flipped against its image",
        )


def _check_label(task, case, label, values, report):
    if label.ndim != 3:
        report(f"label: {label.ndim}D of shape {label.shape}", "save it as one 3D volume")
    if foreign := sorted(values - {0, task.ignore} - set(task.labels)):
        shown = ", ".join(map(str, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
        report(
            f"label: values {shown} that the task does not have",
            "correct the label or name them in dataset.json; is it swapped with its image?",
        )
    healthy = case.name in task.healthy
    if values == {task.ignore}:
        report("label: ignore alone, nothing to learn or to measure", "label its other voxels")
    elif values <= {0, task.ignore} and not healthy:
        way = f'label the structure; if there is none, add "{case.name}" to a list "healthy" in '
        report("label: empty, no voxel of a structure", way + "dataset.json")
    elif healthy and values & set(task.labels):
        way = "take it out of 'healthy' in dataset.json, or correct the label"
        report("label: not empty, but the case is declared healthy", way)
