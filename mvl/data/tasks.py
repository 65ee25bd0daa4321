"""The ten tasks of the Medical Segmentation Decathlon, the study's other tasks, and user tasks.

What a folder's `dataset.json` does not say comes from the table here or, for a user's folder, from
a default that `Task.assumptions` names.

Sources: Antonelli et al., Nature Communications 13, 4128 (2022), and Simpson et al.,
arXiv:1902.09063, for modalities, channels and labels; Menze et al., IEEE Transactions on Medical
Imaging 34 (2015), for the brain tumour's regions. Tolerances are those of the challenge's
evaluation, spacing and shape (which only phantoms use) medians, all as commonly cited.

CT windows, and the tolerances of `CONVERTED`, are this project's choice. OpenKBP's tolerance is
about one voxel in the plane; observers agree to 1 to 3 mm (Nikolov et al., arXiv:1809.04430). Its
window must show glands in fat as well as bone, which the usual one (-160 to 240 HU) does not.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mvl.errors import DataError
from mvl.files import read_object


@dataclass(frozen=True)
class Task:
    """What is known of a task before a volume is opened."""

    #: Folder name, such as "Task04_Hippocampus".
    name: str
    #: "MRI" or "CT", and names of the image's channels.
    modality: str
    channels: tuple[str, ...]
    #: Label value -> name, without background and "ignore".
    labels: dict[int, str]
    #: Tolerance of the normalised surface Dice, in millimetres.
    tolerance_mm: float
    #: Labelled cases in the full release; None where unknown.
    cases: int | None = None
    #: Typical voxel spacing in millimetres and shape in voxels, along the file's axes.
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shape: tuple[int, int, int] = (128, 128, 128)
    #: CT: Hounsfield units that are scaled to 0 and 1.
    window_hu: tuple[float, float] | None = None
    #: Unions of labels that the field also measures, name -> label values.
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Consecutive case numbers that belong to one subject (see `subject_of`).
    cases_per_subject: int = 1
    #: Label value of voxels that count neither in the loss nor in a metric.
    ignore: int | None = None
    #: Names of the cases that are declared healthy: their label is rightly empty.
    healthy: tuple[str, ...] = ()
    #: True for a phantom: its results are always called synthetic.
    synthetic: bool = False
    #: Sentences on what was assumed because the folder does not say it.
    assumptions: tuple[str, ...] = ()

    def facts(self) -> dict:
        """What numbers or their names depend on, as JSON values: a part of a run's fingerprint.

        Leaves out `NO_FACTS` and values at their default, so a new field changes no fingerprint.
        """
        default = asdict(Task("", "", (), {}, 0))
        facts = {key: v for key, v in asdict(self).items() if v != default[key]}
        return json.loads(json.dumps({key: facts[key] for key in facts if key not in NO_FACTS}))

    @classmethod
    def from_dict(cls, stored: dict) -> Task:
        """From `asdict` by way of JSON; a `DataError` if a field is missing, unknown or damaged."""
        try:
            values = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
            values["labels"] = {int(n): name for n, name in stored["labels"].items()}
            regions = stored.get("regions", {})  # which old runs do not have
            return cls(**values | {"regions": {name: tuple(n) for name, n in regions.items()}})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = "a task's description is damaged, or of another version"
            raise DataError(f"{text}: {error}") from error

    def subject_of(self, case: str) -> str:
        """The subject of a case such as "hippocampus_007", where no `subjects.csv` says it.

        Cases 2k-1 and 2k of MSD's Task04 look like the two hippocampi of one person (pairs agree in
        mean intensity and data type, other neighbours do not): an inference, which MSD does not
        document.
        """
        stem, _, number = case.rpartition("_")
        if self.cases_per_subject == 1 or not number.isdecimal():
            return case
        return f"{stem}_{(int(number) - 1) // self.cases_per_subject + 1:03d}"


#: Fields of `Task` that no number depends on, or not by themselves: the configuration has the name;
#: voxels, subjects and the split show the others.
NO_FACTS = ("name", "cases", "spacing_mm", "shape", "cases_per_subject", "assumptions")


def _task(name, modality, channels, labels, tolerance, cases, spacing, shape, window=None, **more):
    labels = dict(enumerate(labels, start=1))
    known = (name, modality, tuple(channels), labels, tolerance, cases, spacing, shape, window)
    return Task(*known, **more)


# fmt: off
#: Folder name -> Task, in MSD's order.
TASKS = {task.name: task for task in (
    _task("Task01_BrainTumour", "MRI", ["FLAIR", "T1w", "T1gd", "T2w"],
          ["edema", "non-enhancing tumour", "enhancing tumour"],
          5, 484, (1.0, 1.0, 1.0), (240, 240, 155),
          regions={"whole tumour": (1, 2, 3), "tumour core": (2, 3), "enhancing tumour": (3,)}),
    _task("Task02_Heart", "MRI", ["MRI"], ["left atrium"],
          4, 20, (1.25, 1.25, 1.37), (320, 320, 115)),
    _task("Task03_Liver", "CT", ["CT"], ["liver", "cancer"],
          7, 131, (0.77, 0.77, 1.0), (512, 512, 432), (-160, 240)),
    _task("Task04_Hippocampus", "MRI", ["MRI"], ["anterior", "posterior"],
          1, 260, (1.0, 1.0, 1.0), (35, 50, 36), cases_per_subject=2),
    _task("Task05_Prostate", "MRI", ["T2", "ADC"], ["PZ", "TZ"],
          4, 32, (0.62, 0.62, 3.6), (320, 320, 20)),
    _task("Task06_Lung", "CT", ["CT"], ["cancer"],
          2, 63, (0.79, 0.79, 1.24), (512, 512, 252), (-1000, 400)),
    _task("Task07_Pancreas", "CT", ["CT"], ["pancreas", "cancer"],
          5, 281, (0.80, 0.80, 2.5), (512, 512, 93), (-100, 240)),
    _task("Task08_HepaticVessel", "CT", ["CT"], ["vessel", "tumour"],
          3, 303, (0.80, 0.80, 5.0), (512, 512, 49), (-50, 250)),
    _task("Task09_Spleen", "CT", ["CT"], ["spleen"],
          3, 41, (0.79, 0.79, 5.0), (512, 512, 90), (-160, 240)),
    _task("Task10_Colon", "CT", ["CT"], ["colon cancer primaries"],
          4, 126, (0.78, 0.78, 5.0), (512, 512, 95), (-160, 240)),
)}
#: Folder name -> Task, of what `mvl data convert` makes. No number of the paper is about them.
CONVERTED = {task.name: task for task in (
    _task("OpenKBP_HeadNeckCT", "CT", ["CT"],
          ["brainstem", "spinal cord", "right parotid", "left parotid", "mandible"],
          4, 115, (3.91, 3.91, 2.5), (64, 72, 80), (-200, 500)),
    _task("CHAOS_AbdomenMR", "MRI", ["MRI T2-SPIR"],
          ["liver", "right kidney", "left kidney", "spleen"],
          3, 20, (1.25, 1.25, 7.7), (256, 256, 36)),
)}
# fmt: on

#: Tolerance and window for a user's folder that names none.
DEFAULT_TOLERANCE_MM = 2.0
DEFAULT_WINDOW_HU = (-160.0, 240.0)

#: The only names of label 0, apart from case, white space and signs.
_BACKGROUND = {"background", "bg"}
#: The name of a label whose voxels count nowhere, as in nnU-Net.
_IGNORE = "ignore"
#: Names that may mean either, or a structure.
_UNCLEAR = {
    *("void", "unlabelled", "unlabeled", "notlabelled", "notlabeled", "unannotated"),
    *("notannotated", "unknown", "undefined", "uncertain", "dontcare", "ignored", "exclude"),
    "excluded",
}
#: The largest label value that `nifti.read_label` reads.
_LARGEST = 32767
_NUMBER = re.compile(r"\s*-?[0-9]{1,9}\s*")


def folder_name(folder: str | Path) -> str:
    """The name that the user gave to a folder; of a symbolic link its own name, not its target's.

    Of ".", the shell's `PWD` knows the name (as POSIX's `pwd -L`).
    """
    if Path(folder) == Path():
        shell = os.environ.get("PWD", "")
        known = os.path.isabs(shell) and os.path.exists(shell) and os.path.samefile(shell, ".")
        return Path(shell if known else os.getcwd()).name
    name = Path(folder).name
    return Path(folder).resolve().name if name == ".." else name


def read_description(folder: str | Path) -> dict:
    """A task folder's dataset.json; a `DataError` if it is missing, unreadable or no object."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder} is not a task folder: it has no dataset.json")
    return read_object(path, DataError)


def read_task(folder: str | Path, description: dict | None = None) -> Task:
    """The task that a folder's `dataset.json` describes, or its content, where that was read.

    Raises:
        DataError: the file, or `modality`, `labels` or another value in it, cannot be used.
    """
    path, description = Path(folder) / "dataset.json", description or read_description(folder)
    _refuse_nnunet(path, description)
    channels = _numbered(path, description, "modality")
    labels, ignore = _meanings(path, _numbered(path, description, "labels"))
    if not channels or not labels:
        raise DataError(f"{path}: 'modality' and 'labels' must each name at least one entry")
    channels = tuple(channels[n] for n in sorted(channels))
    healthy, synthetic = description.get("healthy", []), description.get("synthetic", False)
    if not isinstance(healthy, list) or not all(isinstance(name, str) for name in healthy):
        raise DataError(f"{path}: 'healthy' must be a list of names of cases, as [\"case_003\"]")
    if not isinstance(synthetic, bool):
        raise DataError(f"{path}: 'synthetic' must be true or false")
    name = folder_name(folder)
    task = (TASKS | CONVERTED).get(name) or _users_task(path, name, channels, description)
    for key in ("tolerance_mm", "window_hu") if name in TASKS | CONVERTED else ():
        known = getattr(task, key)
        if key in description and description[key] != (
            list(known) if isinstance(known, tuple) else known
        ):
            raise DataError(
                f"{path}: {key} {description[key]} is not used in a folder called {name}, which "
                f"has {known}; rename the folder, or take {key} out"
            )
    assumptions, regions = [*task.assumptions], task.regions
    if ignore is not None:
        assumptions.append(f"label {ignore} is called ignore: its voxels count nowhere")
    if regions and _plain(labels) != _plain(task.labels):
        assumptions.append("no regions but the labels, which are not MSD's")
        regions = {}
    return replace(
        task,
        channels=channels,
        labels=dict(sorted(labels.items())),
        tolerance_mm=float(task.tolerance_mm),
        window_hu=tuple(map(float, task.window_hu)) if task.window_hu else None,
        regions=regions,
        ignore=ignore,
        healthy=tuple(sorted(set(healthy))),
        synthetic=synthetic,
        assumptions=tuple(assumptions),
    )


def _users_task(path, name, channels, description):
    """A task that no table knows: modality, tolerance and window, from dataset.json or assumed."""
    named = next(filter(is_ct, channels), channels[0])
    modality = "CT" if is_ct(named) else "MRI"
    assumptions = [f"modality {modality}, from the channel's name {named!r}"]
    tolerance, window = description.get("tolerance_mm"), description.get("window_hu")
    if tolerance is None:
        tolerance = DEFAULT_TOLERANCE_MM
        assumptions.append(f"surface Dice tolerance {tolerance} mm (set tolerance_mm)")
    if window is None and modality == "CT":
        window = DEFAULT_WINDOW_HU
        assumptions.append(f"CT window {window} HU (set window_hu)")
    others = [channel for channel in channels if not is_ct(channel)]
    if window is not None and 0 < len(others) < len(channels):
        assumptions.append(f"z-scores and no CT window for {', '.join(others)}")
    if not _is_finite(tolerance) or tolerance <= 0:
        raise DataError(f"{path}: tolerance_mm must be a number of millimetres above 0")
    if window is not None:
        pair = isinstance(window, list | tuple) and len(window) == 2
        if not (pair and all(map(_is_finite, window)) and window[0] < window[1]):
            raise DataError(f"{path}: window_hu must be two increasing numbers")
    assumed = {"window_hu": window, "assumptions": tuple(assumptions)}
    return Task(name, modality, channels, {}, tolerance, **assumed)


#: A side of the body in a structure's name. The chambers of the heart are no pairs.
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])(?![ _](ventric|atri))")


def other_side(labels: dict[int, str]) -> dict[int, int]:
    """{label value: that of the same structure on the other side of the body}, where both are."""
    turned = {"left": "right", "right": "left"}
    value_of = {name.casefold(): value for value, name in labels.items()}
    sides = {}
    for name, value in value_of.items():
        other = _SIDE.sub(lambda side: turned[side[0]], name)
        if other != name and other in value_of:
            sides[value] = value_of[other]
    return sides


def is_ct(channel: str) -> bool:
    """Whether a channel's name says CT: CT, CTA, CBCT, NCCT or in full; "structural" does not."""
    return bool(
        re.search(
            r"(?<![A-Z])(CB|CE|HR|LD|MD|NC)?CTA?(?![A-Z])|COMPUT\w+ TOMOGRAPHY", channel.upper()
        )
    )


def _is_finite(value):
    """Whether a value is a number; Python's JSON also reads NaN, Infinity and endless integers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _key(name):
    """A name's letters and digits alone."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _plain(labels):
    """Labels whose names can be compared: MSD itself spells tumour in two ways."""
    return {number: re.sub("tumou?r", "tumour", name.lower()) for number, name in labels.items()}


def _refuse_nnunet(path, description):
    """Name the format where a description is nnU-Net v2's, whose labels are {name: value}."""
    labels = description.get("labels")
    named = labels.items() if isinstance(labels, dict) else ()
    turned = {
        name: value
        for name, value in named
        if isinstance(value, int | list) and not _NUMBER.fullmatch(name)
    }
    if not turned and ("modality" in description or "channel_names" not in description):
        return
    names = json.dumps({str(v): name for name, v in turned.items()} or labels, ensure_ascii=False)
    way = f"write 'labels' as {names}, name the channels under 'modality', and list images and "
    way += "labels under 'training'"
    for name, value in turned.items():
        if isinstance(value, list):
            way = f"{name!r} is a region, which is not supported; give each value one name"
    raise DataError(f"{path} is written as nnU-Net v2 does, not as the decathlon does: {way}")


def _meanings(path, names):
    """({label value: name} without background and ignore, the value of ignore or None)."""
    value_of, labels, ignore = {}, {}, None
    has_zero = 0 in names and _key(names[0]) not in _BACKGROUND
    for value, name in sorted(names.items()):
        key, problem = _key(name), f"{path}: 'labels' calls {value} {name!r}"
        if not 0 <= value <= _LARGEST:
            raise DataError(f"{problem}, but a label is a whole number from 0 to {_LARGEST}")
        if value and key in _BACKGROUND:
            way = f"exchange 0 and {value}" if has_zero else f"change {value} to 0"
            raise DataError(
                f"{problem}, but the background is 0: {way} in every label and in dataset.json; "
                "or, if it is a structure, write its name in full"
            )
        if value == 0 and has_zero and not _BACKGROUND & set(map(_key, names.values())):
            raise DataError(
                f"{problem}, but 0 is the background. Call it background, or give the structure "
                "another value in every label and in dataset.json"
            )
        if value and key in _UNCLEAR:
            raise DataError(
                f"{problem}. If these voxels should count nowhere, call them ignore; if they are "
                "background, make them 0; if they are a structure, give it another name"
            )
        # Results go by names, and the union of all labels is the foreground.
        if key == "foreground":
            raise DataError(f"{problem}, which is the name of all labels together; rename it")
        spelled = key if key == _IGNORE else " ".join(name.split()).casefold()
        if (other := value_of.setdefault(spelled, value)) != value:
            raise DataError(
                f"{problem}, and {other} {names[other]!r}: one name twice, apart from case and "
                "white space; rename one, or give both one value"
            )
        if key == _IGNORE:
            ignore = value
        elif value:
            labels[value] = name
    return labels, ignore


def _numbered(path, description, key):
    """dataset.json's {"0": name, ...} as {0: name}, without white space around names."""
    values = description.get(key)
    if not isinstance(values, dict):
        raise DataError(f'{path}: {key!r} is missing or not a mapping such as {{"0": "..."}}')
    if wrong := [number for number in values if not _NUMBER.fullmatch(number)]:
        raise DataError(f"{path}: {key!r} has a key that is not a number in quotes, {wrong[0]!r}")
    if wrong := [n for n, name in values.items() if not (isinstance(name, str) and name.strip())]:
        raise DataError(f"{path}: {key!r} has no name, as text, for {wrong[0]}: give it one")
    named = {int(number): name.strip() for number, name in values.items()}
    if len(named) < len(values):
        raise DataError(f"{path}: {key!r} has one number in two ways, such as 1 and 01")
    return named
