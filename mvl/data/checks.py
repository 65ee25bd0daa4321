"""Every case looked at before any training: one pass that finds all faults at once."""

from dataclasses import dataclass, field

import numpy as np

from mvl.data.nifti import place_fault, read_header, read_label, read_volume
from mvl.data.packed import BadFile
from mvl.data.sources import content_hash, joint_hash
from mvl.errors import DataError
from mvl.progress import track
from mvl.tasks import Task, read_task

#: Stands for a case's name in a fault that is no case's, but the task's.
OF_THE_TASK = "dataset.json"


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
    voxels; label values that are not whole or not the task's; an empty label of a case that is
    not declared healthy, or another of one that is; one image under two names. And of the task: a
    label that no case has, a healthy case that is not there.

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
        content = result.image_hashes.get(case.name)
        if content and first_with.setdefault(content, case.name) != case.name:
            fault = f"image: the same voxels as {first_with[content]}'s"
            result.faults.append(Fault(case.name, fault, "keep one of the two in dataset.json"))
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
            report(f"no {what} in dataset.json", f"name its {what}, or take the case out")
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
        _check_pair(read_header(case.image), read_header(case.label), report)


def _read_label(path):
    return read_label(path), read_header(path).affine


def _check_image(task, image, report):
    channels = 1 if image.ndim == 3 else image.shape[3]
    if channels != len(task.channels):
        report(
            f"image: {channels} channels, the task has {len(task.channels)}",
            "save all channels of a case in one 4D file, as 'modality' lists them",
        )
    broken = image.size - np.count_nonzero(np.isfinite(image))
    if broken:
        report(f"image: {broken} voxels are NaN or infinite", "replace them, by 0 for instance")


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
