"""The ten tasks of the Medical Segmentation Decathlon, and the study's others, as tables of facts.

Any other folder with a `dataset.json` in the decathlon's layout is a task too: `read_task`
takes channels and labels from that file, and what the file does not say from the table or,
for a folder of the user's own, from a default that is named in `Task.assumptions`.

Sources: Antonelli et al., Nature Communications 13, 4128 (2022), and Simpson et al.,
arXiv:1902.09063, for modalities, channels and labels; Menze et al., IEEE Transactions on Medical
Imaging 34 (2015), for the brain tumour's regions. Tolerances are those of the challenge's
own evaluation as commonly cited. Spacing and shape are typical values (medians over the
labelled cases) as commonly cited; they shape the phantom and nothing else, since evaluation
takes the spacing from each file. CT windows are this project's choice.

`CONVERTED` are tasks of the study that are not the decathlon's; no number of the paper is about
them. Their tolerances and window are this project's choice. OpenKBP's tolerance of 4 mm is about
one voxel in the plane (3.75 to 5.4 mm); observers agree to 1 to 3 mm, as commonly cited from
Nikolov et al., arXiv:1809.04430, which these voxels cannot show. CHAOS has that of the decathlon's
spleen. OpenKBP's window has to show glands in fat as well as bone: -200 to 500 HU puts fat at 0.1
to 0.2, gland and muscle at 0.3 to 0.4, and leaves spongy bone and contrast medium below the
mandible's cortex at 1. The usual window of soft tissue (-160 to 240 HU) would make these three one
value; a window up to 1500 HU would leave gland and muscle less than half of the contrast.
"""

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mvl.errors import DataError
from mvl.files import read_json


@dataclass(frozen=True)
class Task:
    """What is known of a task before a volume is opened."""

    #: Folder name, such as "Task04_Hippocampus".
    name: str
    #: "MRI" or "CT".
    modality: str
    #: Names of the image's channels.
    channels: tuple[str, ...]
    #: Label value -> name, background and "ignore" left out.
    labels: dict[int, str]
    #: Tolerance of the normalised surface Dice, in millimetres.
    tolerance_mm: float
    #: Labelled cases in the full release; None where nobody counted.
    cases: int | None = None
    #: Typical voxel spacing in millimetres and shape in voxels, along the file's axes.
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shape: tuple[int, int, int] = (128, 128, 128)
    #: CT: Hounsfield units that are scaled to 0 and 1.
    window_hu: tuple[float, float] | None = None
    #: Unions of labels by which the field also measures, name -> label values. Where there are
    #: some, a model of the labels is measured by them, too.
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Consecutive case numbers that belong to one subject (see `subject_of`).
    cases_per_subject: int = 1
    #: Label value of voxels that count nowhere, neither in the loss nor in a metric.
    ignore: int | None = None
    #: Names of the cases that are declared healthy: their label is empty, and right so.
    healthy: tuple[str, ...] = ()
    #: True for a phantom: results of it are always called synthetic.
    synthetic: bool = False
    #: Sentences on what was assumed because the folder does not say it.
    assumptions: tuple[str, ...] = ()

    def facts(self):
        """What numbers, or their names in a table, depend on: a part of a run's name.

        A fact at its default is left out. So a fact that joins later changes no run's name.

        Returns:
            The fields but for `NO_FACTS`, as plain JSON values.
        """
        found = {}
        for known in dataclasses.fields(self):
            value, default = getattr(self, known.name), known.default
            if known.default_factory is not dataclasses.MISSING:
                default = known.default_factory()
            if known.name not in NO_FACTS and value != default:
                found[known.name] = value
        return json.loads(json.dumps(found))

    @classmethod
    def from_dict(cls, facts):
        """The inverse of `dataclasses.asdict`, from JSON, where tuples are lists and keys texts.

        Raises:
            DataError: a fact is missing or unknown, or the labels are no mapping of numbers.
        """
        try:
            values = {key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
            values["labels"] = {int(n): name for n, name in facts["labels"].items()}
            # Runs from before there were regions have none in their files.
            regions = facts.get("regions", {}).items()
            return cls(**values | {"regions": {name: tuple(labels) for name, labels in regions}})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the facts of a task are damaged, or of another version: {error}"
            ) from error

    def subject_of(self, case):
        """The subject of a case, where no `subjects.csv` says it.

        By default the case itself. MSD's Task04 numbers cases 2k-1 and 2k look like the two
        hippocampi of one person (pairs agree in mean intensity and data type, neighbours of the
        other parity do not), so its subject is (n + 1) // 2: an inference, not documented by MSD.

        Args:
            case: name of a case, such as "hippocampus_007".
        """
        if self.cases_per_subject == 1:
            return case
        stem, _, number = case.rpartition("_")
        if not number.isdecimal():
            return case
        return f"{stem}_{(int(number) - 1) // self.cases_per_subject + 1:03d}"


#: Fields of `Task` that no number depends on, or not by themselves.
NO_FACTS = (
    "name",  # the configuration has it
    "cases",  # how many there should be; the voxels say which there are
    *("spacing_mm", "shape"),  # of the phantom, whose voxels say it
    "cases_per_subject",  # the subjects say it
    "assumptions",  # sentences about the other facts, the subjects and the split
)


def _task(name, modality, channels, labels, tolerance, cases, spacing, shape, window=None, **more):
    return Task(
        name=name,
        modality=modality,
        channels=tuple(channels),
        labels=dict(enumerate(labels, start=1)),
        tolerance_mm=tolerance,
        cases=cases,
        spacing_mm=spacing,
        shape=shape,
        window_hu=window,
        **more,
    )


# fmt: off
_TABLE = (
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
)
# fmt: on

#: Folder name -> Task, in MSD's order.
TASKS = {task.name: task for task in _TABLE}

# fmt: off
_CONVERTED = (
    _task("OpenKBP_HeadNeckCT", "CT", ["CT"],
          ["brainstem", "spinal cord", "right parotid", "left parotid", "mandible"],
          4, 115, (3.91, 3.91, 2.5), (64, 72, 80), (-200, 500)),
    _task("CHAOS_AbdomenMR", "MRI", ["MRI T2-SPIR"],
          ["liver", "right kidney", "left kidney", "spleen"],
          3, 20, (1.25, 1.25, 7.7), (256, 256, 36)),
)
# fmt: on

#: Folder name -> Task, of what `mvl data convert` makes.
CONVERTED = {task.name: task for task in _CONVERTED}

#: Tolerance and window for a folder of the user's own that names none.
DEFAULT_TOLERANCE_MM = 2.0
DEFAULT_WINDOW_HU = (-160.0, 240.0)

#: What 0 may be called, and nothing else; case, white space and signs between letters aside.
_BACKGROUND = {"background", "bg"}
#: What the label of voxels that count nowhere is called, as in nnU-Net.
_IGNORE = "ignore"
#: Names that may mean either, or a structure.
_UNCLEAR = {
    *("void", "unlabelled", "unlabeled", "notlabelled", "notlabeled", "unannotated"),
    *("notannotated", "unknown", "undefined", "uncertain", "dontcare", "ignored", "exclude"),
    *("excluded",),
}
#: The largest label value that `sources.read_label` reads.
_LARGEST = 32767
_NUMBER = re.compile(r"\s*-?[0-9]{1,9}\s*")


def folder_name(folder):
    """The name that the user gave to a folder: of a link its own, never its target's.

    Args:
        folder: may be relative, end in a slash, or be "."; then the shell knows by which name the
            user came there (`PWD`, as POSIX's `pwd -L` has it).
    """
    if Path(folder) == Path():
        here = os.environ.get("PWD", "")
        known = os.path.isabs(here) and os.path.exists(here) and os.path.samefile(here, os.curdir)
        return Path(here if known else os.getcwd()).name
    name = Path(folder).name
    return Path(folder).resolve().name if name == ".." else name


def read_task(folder):
    """The task that a folder holds.

    Args:
        folder: a task folder; its `dataset.json` gives channels, labels and whether it is
            synthetic, and may name healthy cases. A folder that is in no table may also give
            `tolerance_mm` and `window_hu` there.

    Returns:
        A `Task`. Its `assumptions` name every value that neither the file nor the table gave.

    Raises:
        DataError: no dataset.json, or one without usable `modality` or `labels`.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder} is no task folder: it has no dataset.json")
    description = read_json(path)
    if not isinstance(description, dict):
        raise DataError(f"{path}: expected a JSON object")
    _refuse_nnunet(path, description)
    channels = _numbered(path, description, "modality")
    labels, ignore = _meanings(path, _numbered(path, description, "labels"))
    if not channels or not labels:
        raise DataError(f"{path}: 'modality' and 'labels' must each name at least one entry")
    healthy = description.get("healthy", [])
    if not isinstance(healthy, list) or not all(isinstance(name, str) for name in healthy):
        raise DataError(f"{path}: 'healthy' must be a list of cases' names, such as [\"case_003\"]")
    synthetic = description.get("synthetic", False)
    if not isinstance(synthetic, bool):
        raise DataError(f"{path}: 'synthetic' must be true or false")

    name = folder_name(folder)
    known = (TASKS | CONVERTED).get(name)
    assumptions = []
    if known:
        modality, tolerance, window = known.modality, known.tolerance_mm, known.window_hu
    else:
        first = next(iter(channels.values()))
        modality = "CT" if is_ct(first) else "MRI"
        assumptions.append(f"modality {modality}, from the first channel's name {first!r}")
        tolerance = description.get("tolerance_mm")
        if tolerance is None:
            tolerance = DEFAULT_TOLERANCE_MM
            assumptions.append(f"surface Dice tolerance {tolerance} mm (set tolerance_mm)")
        window = description.get("window_hu")
        if window is None and modality == "CT":
            window = DEFAULT_WINDOW_HU
            assumptions.append(f"CT window {window} HU (set window_hu)")
        others = [channel for channel in channels.values() if not is_ct(channel)]
        if window is not None and 0 < len(others) < len(channels):
            assumptions.append(f"z-scores and no CT window for {', '.join(others)}")
        if not _is_finite(tolerance) or tolerance <= 0:
            raise DataError(f"{path}: tolerance_mm must be a number of millimetres above 0")
        if window is not None and not (
            isinstance(window, list | tuple)
            and len(window) == 2
            and all(_is_finite(w) for w in window)
            and window[0] < window[1]
        ):
            raise DataError(f"{path}: window_hu must be two increasing numbers")
    if ignore is not None:
        assumptions.append(f"label {ignore} is called ignore: its voxels count nowhere")
    regions = known.regions if known else {}
    if regions and _plain(labels) != _plain(known.labels):
        regions = {}
        assumptions.append("no regions but the labels, which are not MSD's")
    return Task(
        name=name,
        modality=modality,
        channels=tuple(channels[n] for n in sorted(channels)),
        labels=dict(sorted(labels.items())),
        tolerance_mm=float(tolerance),
        cases=known.cases if known else None,
        spacing_mm=known.spacing_mm if known else (1.0, 1.0, 1.0),
        shape=known.shape if known else (128, 128, 128),
        window_hu=tuple(map(float, window)) if window else None,
        regions=regions,
        cases_per_subject=known.cases_per_subject if known else 1,
        ignore=ignore,
        healthy=tuple(sorted(set(healthy))),
        synthetic=synthetic,
        assumptions=tuple(assumptions),
    )


def is_ct(channel):
    """Whether a channel's name says CT: CT, CTA, CBCT or in full; "structural" does not."""
    return bool(re.search(r"(?<![A-Z])(CB)?CTA?(?![A-Z])|COMPUT\w+ TOMOGRAPHY", channel.upper()))


def _plain(labels):
    """Labels whose names can be compared: MSD itself spells tumour in two ways."""
    return {number: re.sub("tumou?r", "tumour", name.lower()) for number, name in labels.items()}


def _is_finite(value):
    """Whether a value of dataset.json is a number; Python's JSON reads NaN and Infinity, too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _refuse_nnunet(path, description):
    """Name the format where a description is nnU-Net v2's, whose labels are {name: value}."""
    labels = description.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    turned = {
        name: value
        for name, value in labels.items()
        if isinstance(value, int | list) and not _NUMBER.fullmatch(name)
    }
    if not turned and ("modality" in description or "channel_names" not in description):
        return
    said = f"{path} is written as nnU-Net v2 does, not as the decathlon does"
    for name, value in turned.items():
        if isinstance(value, list):
            raise DataError(
                f"{said}: {name!r} is a region of the labels {value}, of which there are none "
                'here; give each label value one name, as {"0": "background", "1": "..."}'
            )
    names = {str(value): name for name, value in turned.items()}
    ways = ["name the channels under 'modality'"] * ("modality" not in description)
    ways += ["list images and labels under 'training'"] * ("training" not in description)
    if turned:
        ways.insert(0, f"write 'labels' as {json.dumps(names, ensure_ascii=False)}")
    raise DataError(f"{said}: {', '.join(ways)}")


def _meanings(path, names):
    """({label value: name} without background and ignore, the value of ignore or None).

    Raises:
        DataError: a name that stands twice, or whose meaning is not clear or not honoured.
    """
    value_of, labels, ignore = {}, {}, None
    elsewhere = [value for value, name in names.items() if value and _key(name) in _BACKGROUND]
    for value, name in sorted(names.items()):
        key, said = _key(name), f"{path}: 'labels' calls {value} {name!r}"
        if not 0 <= value <= _LARGEST:
            raise DataError(f"{said}, but a label's value is a whole number from 0 to {_LARGEST}")
        if value in elsewhere:
            raise DataError(f"{said}, but the background is 0: {_to_zero(value, names)}")
        if value == 0 and key not in _BACKGROUND and not elsewhere:
            raise DataError(
                f"{said}, but 0 is the background. If it is here, call it background; if it is a "
                "structure, give it a value that is free, in every label and in dataset.json"
            )
        if value and key in _UNCLEAR:
            raise DataError(
                f"{said}. If these voxels should count nowhere, call them ignore; if they are "
                "background, make them 0; if they are a structure, give it another name"
            )
        # Results go by the names: the union of all labels is called the foreground.
        if key == "foreground":
            raise DataError(f"{said}, which is what all labels together are called; rename it")
        if (
            other := value_of.setdefault(key if key == _IGNORE else _spelled(name), value)
        ) != value:
            raise DataError(
                f"{said}, and {other} {names[other]!r}: one name twice, case and white space "
                "aside; rename one, or give both one value"
            )
        if key == _IGNORE:
            ignore = value
        elif value:
            labels[value] = name
    return labels, ignore


def _to_zero(value, names):
    """The remedy for a background that is not 0."""
    if 0 not in names:
        way = f'change {value} to 0 in every label, and "{value}" to "0" in dataset.json'
    elif _key(names[0]) in _BACKGROUND:
        way = f'change {value} to 0 in every label, and take "{value}" out of dataset.json'
    else:
        way = f"exchange 0 and {value}, in every label and in dataset.json"
    return f"{way}; or, if it is a structure, write its name in full"


def _key(name):
    """A name by its letters and digits alone, to be held against a list of names."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _spelled(name):
    """A name without what nobody sees or means: case, and how much white space there is."""
    return " ".join(name.split()).casefold()


def _numbered(path, description, key):
    """dataset.json's {"0": name, ...} as {0: name}, white space around a name left out."""
    values = description.get(key)
    if not isinstance(values, dict):
        raise DataError(f'{path}: {key!r} is missing or not a mapping such as {{"0": "..."}}')
    if wrong := [number for number in values if not _NUMBER.fullmatch(number)]:
        raise DataError(
            f"{path}: {key!r} has a key that is not a number, {wrong[0]!r}; keys are whole "
            'numbers in quotes, such as "1"'
        )
    if wrong := [n for n, name in values.items() if not (isinstance(name, str) and name.strip())]:
        raise DataError(f"{path}: {key!r} has no name, as text, for {wrong[0]}: give it one")
    named = {int(number): name.strip() for number, name in values.items()}
    if len(named) < len(values):
        raise DataError(f"{path}: {key!r} has one number in two ways, such as 1 and 01")
    return named
