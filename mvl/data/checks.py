"""Every case looked at before any training: one pass that finds all faults at once."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mvl.data.nifti import place_fault, read_header, read_label, read_volume
from mvl.data.packed import BadFile
from mvl.data.task_folder import content_hash, joint_hash
from mvl.data.tasks import Task, is_ct, read_task
from mvl.errors import DataError
from mvl.files import read_json
from mvl.progress import track

#: Stands for a case's name in a fault that is no case's, but the task's.
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


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one case, or with the task (`OF_THE_TASK`)."""

    case: str
    fault: str
    remedy: str


@dataclass
class CheckResult:
    """What one pass over the cases found.

    Attributes:
        task: whose cases they are.
        hashes: {case: `voxel_hash`} of each case whose image and label could be read.
        image_hashes: {case: SHA-256 of its image's voxels} of each image that could be read;
            equal ones are one volume under two names.
        faults: every fault of every case, in the order of the cases, then those of the task.
        labels: {case: label values in it} of each case whose label could be read.
    """

    task: Task
    hashes: dict[str, str] = field(default_factory=dict)
    image_hashes: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    labels: dict[str, set[int]] = field(default_factory=dict)

    @property
    def bad_cases(self):
        """Names of the cases with at least one fault."""
        return sorted({fault.case for fault in self.faults} - {OF_THE_TASK})

    def table(self):
        """The faults as text, a line each: case, what is wrong, what to do."""
        return _table(self.faults)


def check_cases(folder, cases, progress=True):
    """Read every case once and collect everything that is wrong.

    Looked for: a missing or unreadable file, a truncated or damaged one, one that is not NIfTI
    or lies about its size; a wrong number of axes or channels; a place of its voxels that is not
    certain (see `mvl.data.nifti`); image and label of different shape or place; NaN or infinite
    voxels; a channel with one value alone; an image of a few values, or the label itself; voxels
    so far from the others that no scale shows these; label values that are not whole or not the
    task's; an empty label of a case that is not declared healthy, or another of one that is; a
    label wholly on the image's background; one image of two subjects. And of the task: a label
    that no case has, a healthy case that is not there.

    Args:
        folder: the task folder, for its channels and labels.
        cases: list of `Case`.
        progress: show a progress bar.

    Returns:
        `CheckResult`.

    Raises:
        DataError: the folder's dataset.json is missing or malformed. Faults of cases are
            returned, not raised: see `require`.
    """
    task = read_task(folder)
    result = CheckResult(task)
    first_with = {}
    for case in track(cases, "checking cases", show=progress):
        _check_case(task, case, result)
        if not (content := result.image_hashes.get(case.name)):
            continue
        first = first_with.setdefault(content, case)
        if first.subject != case.subject:  # of one subject, it is a scan that was labelled twice
            fault = f"image: the same voxels as {first.name}'s, of another subject"
            remedy = "put its own image there, or give both cases one subject in subjects.csv"
            result.faults.append(Fault(case.name, fault, remedy))
    for name in sorted(set(task.healthy) - {case.name for case in cases}):
        report = f"'healthy' names {name}, which is no case"
        result.faults.append(Fault(OF_THE_TASK, report, "write the case's name, as listed here"))
    # An unreadable label may be the one that has it; once it is mended or left out, this is asked.
    if len(result.labels) == len(cases):
        result.faults += _absent_labels(cases, result)
    return result


def _absent_labels(cases, result):
    """The faults of a task of which these cases are all: the labels that none of them has.

    Such a label is nowhere missed: every case would count as a perfect one.
    """
    found = set().union(*(result.labels.get(case.name, ()) for case in cases))
    return [
        Fault(
            OF_THE_TASK,
            f"label {value} ({name}): in none of {len(cases)} cases",
            f"take \"{value}\" out of 'labels', or draw it in the cases that have it",
        )
        for value, name in result.task.labels.items()
        if value not in found
    ]


def unlisted(folder, cases):
    """Images beside those of a task that its dataset.json does not name, and nothing uses.

    Args:
        folder: the task folder.
        cases: list of all its `Case`.

    Returns:
        Sorted list of `Path`.
    """
    named = {path for case in cases for path in (case.image, case.label)}
    test = read_json(Path(folder) / "dataset.json").get("test", [])
    named |= {Path(folder, path) for path in test if isinstance(path, str)}
    beside = {path for image in {case.image.parent for case in cases} for path in image.iterdir()}
    return sorted(
        path
        for path in beside - named
        if path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")
    )


def require(cases, result, on_bad_case="fail"):
    """The cases that may be used.

    Args:
        cases: list of `Case`.
        result: of `check_cases` on them.
        on_bad_case: "fail" refuses them all if one has a fault; "skip" leaves out the bad ones,
            which the caller writes down (`CheckResult.bad_cases`).

    Returns:
        list of `Case` without faults.

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
    rows = [("case", "what is wrong", "what to do")]
    rows += [(f.case, f.fault, f.remedy) for f in faults]
    case, fault = (max(len(row[k]) for row in rows) for k in (0, 1))
    return "\n".join(f"  {a:<{case}}  {b:<{fault}}  {c}" for a, b, c in rows)


def _check_case(task, case, result):
    """Append the faults of one case, and its hashes where it can be read."""

    def report(fault, remedy):
        result.faults.append(Fault(case.name, fault, remedy))

    def read(reader, what, path):
        if path is None:
            report(f"no {what} in dataset.json", f"name its {what}, or list it under 'test'")
            return None, None
        try:
            return reader(path)
        except BadFile as error:
            report(f"{what}: {error.fault}", error.remedy)
        except MemoryError:
            report(f"{what}: does not fit into memory", "use a machine with more memory")
        return None, None

    image, affine = read(read_volume, "image", case.image)
    label, label_affine = read(_read_label, "label", case.label)
    if image is not None:
        result.image_hashes[case.name] = content_hash(image)
        _check_image(task, image, report)
    if label is not None:
        result.labels[case.name] = _check_label(task, case, label, report)
    if image is not None and label is not None:
        contents = (result.image_hashes[case.name], content_hash(label))
        result.hashes[case.name] = joint_hash(contents, (affine, label_affine))
        if contents[0] == contents[1]:
            report("image: the same voxels as its label's", "put the image itself there")
        _check_place(image, label, report)
        _check_pair(read_header(case.image), read_header(case.label), report)


def _read_label(path):
    return read_label(path), read_header(path).affine


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
        air = "-1000 in CT" if task.window_hu else "0 in MRI"
        report(
            f"image: {broken} voxels are NaN or infinite",
            f"replace them by what air has, such as {air}",
        )
        return
    remedy = "convert or export the image again: its voxels are lost"
    if len(set(sum(ranges, ()))) == 1:
        report(f"image: {ranges[0][0]:g} in all voxels", remedy)
        return
    for n, (channel, limits) in enumerate(zip(channels, ranges, strict=True)):
        of = f" in channel {n} ({', '.join(task.channels[n : n + 1])})" if len(channels) > 1 else ""
        if limits[0] == limits[1]:
            report(f"image: {limits[0]:g} in all voxels{of}", "put that channel's own volume there")
            continue
        ct = is_ct(task.channels[n]) if n < len(task.channels) else False
        if found := _far_voxel(channel, *limits, ct):
            report(
                f"image: a voxel of {found[0]:g}{of}, while 98 % lie from {found[1]:g} to "
                f"{found[2]:g}",
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


def _check_place(image, label, report):
    """Hold it against the image that a label marks something: not all of it is background."""
    if image.shape[:3] != label.shape:
        return
    lowest = image.min(axis=(0, 1, 2))
    # One voxel of the label is enough as a rule; of the transpose, which lies in one piece.
    one = np.unravel_index(label.T.argmax(), label.T.shape)[::-1]
    if not (label[one] > 0 and (image[one] == lowest).all()):
        return
    if (image[label > 0] == lowest).all() and (image != lowest).any():
        report(
            f"label: wholly where the image has its lowest value, {lowest.min():g}",
            "find out whether it is another case's, or flipped against its image",
        )


def _check_label(task, case, label, report):
    """Report the faults of a label; returns its values."""
    if label.ndim != 3:
        report(f"label: {label.ndim}D of shape {label.shape}", "save it as one 3D volume")
    values = set(np.unique(label).tolist())
    foreign = sorted(values - {0, task.ignore} - set(task.labels))
    if foreign:
        shown = ", ".join(map(str, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
        report(
            f"label: values {shown} that the task does not have",
            "correct the label or name them in dataset.json; is it swapped with its image?",
        )
    healthy = case.name in task.healthy
    if values == {task.ignore}:
        report("label: ignore alone, nothing to learn or to measure", "label its other voxels")
    elif values <= {0, task.ignore} and not healthy:
        report(
            "label: empty, no voxel of a structure",
            f'label the structure; if there is none, add "{case.name}" to a list "healthy" in '
            "dataset.json",
        )
    elif healthy and values & set(task.labels):
        report(
            "label: not empty, but the case is declared healthy",
            "take it out of 'healthy' in dataset.json, or correct the label",
        )
    return values


def _check_pair(image, label, report):
    """Hold the headers of image and label against each other."""
    shapes = image.shape[:3], label.shape[:3]
    if shapes[0] != shapes[1]:
        report(
            f"image of shape {shapes[0]}, label of {shapes[1]}",
            "resample the label to its image's grid",
        )
    elif fault := place_fault(image.forms, label.forms, shapes[0]):
        report(*fault)
