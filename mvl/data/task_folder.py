"""The cases of a task folder in the decathlon's layout, which is read in place.

The "training" list of `dataset.json` names image and label of each case, relative to the folder.
The folder may also hold `subjects.csv` (columns case, subject), and its own split: a "validation"
list, labelled cases in the "test" list, or `splits.json` with the names of cases on each side. The
folder itself may be a symbolic link; what `dataset.json` names must lie inside it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from mvl.data.tasks import CONVERTED, TASKS, Task, read_description, read_task
from mvl.errors import DataError, did_you_mean
from mvl.files import REPOSITORY, read_bytes, read_json

#: The repository's folder for downloads and phantoms.
REPOSITORY_DATA = REPOSITORY / "data"
SIDES = ("train", "validation", "test")
#: A task that can be split has at least this many persons.
_FEWEST = 6


@dataclass(frozen=True)
class Case:
    """One labelled volume, and its subject."""

    #: File name of the image without its ending, such as "hippocampus_001"; where several images
    #: have that name, their paths below the task folder, such as "case_00001_imaging".
    name: str
    #: The person; cases of one subject are always on one side of a split.
    subject: str
    image: Path
    #: None where dataset.json names no label; the checks report it.
    label: Path | None
    #: "train", "validation" or "test" where the task says it, else None.
    side: str | None = None


def data_root(root: str | Path | None = None) -> Path:
    """The folder of task folders: `root`, else MVL_DATA_ROOT, else the repository's data/."""
    if root is None:
        root = os.environ.get("MVL_DATA_ROOT") or REPOSITORY_DATA
    return Path(os.path.expanduser(root))


def find_task(name: str, root: str | Path | None = None) -> Path:
    """The folder of a task, by its folder name such as "Task04_Hippocampus", below `data_root`.

    Raises:
        DataError: there is no such folder with a dataset.json; the message names the ways on.
    """
    folder = data_root(root) / name
    try:
        if (folder / "dataset.json").is_file():
            return folder
    except (OSError, ValueError) as error:
        raise DataError(f"cannot look into {folder}: {error}") from error
    ways = ["set MVL_DATA_ROOT to the folder that holds it"]
    if name in TASKS:
        phantom = f"mvl data phantom {name} --root {folder.parent}"
        ways += [f"run 'mvl data download {name}'", f"make a synthetic stand-in with '{phantom}'"]
    if name in CONVERTED:
        ways.append("make it with 'mvl data convert' (docs/data.md)")
    known = {
        *TASKS,
        *CONVERTED,
        *(path.parent.name for path in folder.parent.glob("*/dataset.json")),
    }
    raise DataError(
        f"no task {name}: {folder}/dataset.json does not exist; {', or '.join(ways)}"
        f"{did_you_mean(name, sorted(known))}"
    )


def list_cases(folder: str | Path) -> list[Case]:
    """The labelled cases of a task folder, sorted by name: see `task_and_cases`."""
    return task_and_cases(folder)[1]


def task_and_cases(folder: str | Path) -> tuple[Task, list[Case]]:
    """A folder's task and its cases, sorted by name; its assumptions are also about the cases.

    Subjects come from `subjects.csv` where it exists, else from `Task.subject_of`, else from the
    folders that images lie in (see `_persons`). The files themselves are not looked at.

    Raises:
        DataError: dataset.json is missing, malformed or empty, or names a path outside the folder
            or one case twice; subjects.csv lacks a case; or the task's split cannot be used.
    """
    folder = Path(folder)
    path, description = folder / "dataset.json", read_description(folder)
    task, files, list_of = read_task(folder, description), {}, {}
    for key, entries in _lists(path, description).items():
        for entry in entries:
            if not isinstance(entry, dict) or "image" not in entry:
                raise DataError(f"{path}: {key!r} has an entry without 'image': {entry!r}")
            image = _inside(folder, entry["image"], path)
            if image.name.startswith("._"):
                continue  # macOS's shadow files, which some archives carry
            if image in files:
                raise DataError(
                    f"{path}: {list_of[image]!r} and {key!r} name case {case_name(image)} twice; "
                    "keep one of the two entries"
                )
            label = entry.get("label")
            files[image] = None if label is None else _inside(folder, label, path)
            list_of[image] = key
    if "training" not in list_of.values():
        raise DataError(f"{path}: 'training' names no case")
    names = _names(folder, files)
    split = _read_split(folder / "splits.json", names.values())
    if split and set(list_of.values()) != {"training"}:
        raise DataError(f"{folder} has two splits, splits.json and dataset.json's; keep one")

    subjects, persons = _read_subjects(folder / "subjects.csv", names.values()), {}
    if subjects is None:
        if task.cases_per_subject == 1:
            persons = _persons(folder, names, list_of)
        subjects = {name: persons.get(name, task.subject_of(name)) for name in names.values()}
    cases = []
    for image, name in names.items():
        side = None if list_of[image] == "training" else list_of[image]
        cases.append(Case(name, subjects[name], image, files[image], split.get(name, side)))
    assumed = _assumed(folder, description, cases, persons)
    task = replace(task, assumptions=(*task.assumptions, *assumed))
    return task, sorted(cases, key=lambda case: case.name)


def description_of(task: Task, cases: Collection[str], test: Collection[str] = ()) -> dict:
    """A dataset.json of cases in imagesTr and labelsTr, and of test images in imagesTs."""
    image, label = "./imagesTr/%s.nii.gz", "./labelsTr/%s.nii.gz"
    return {
        "tensorImageSize": "4D" if len(task.channels) > 1 else "3D",
        "modality": dict(enumerate(task.channels)),
        "labels": {0: "background"} | task.labels,
        "numTraining": len(cases),
        "numTest": len(test),
        "training": [{"image": image % case, "label": label % case} for case in cases],
        "test": [f"./imagesTs/{case}.nii.gz" for case in test],
    }


def _lists(path, description):
    """dataset.json's lists of labelled cases: training, and validation and test where they are."""
    lists = {"training": description.get("training")}
    if validation := description.get("validation"):
        lists["validation"] = validation
    for key, value in lists.items():
        if not isinstance(value, list):
            raise DataError(f"{path}: {key!r} must be a list of images and labels")
    for key, value in description.items():
        entries = value if key not in lists and isinstance(value, list) else []
        labelled = [e for e in entries if isinstance(e, dict) and "image" in e and e.get("label")]
        if labelled and key != "test":
            raise DataError(
                f"{path}: {key!r} lists {len(labelled)} labelled cases, but only 'training', "
                "'validation' and 'test' are read; give the list one of these names"
            )
        if 0 < len(labelled) < len(entries):
            raise DataError(
                f"{path}: {len(labelled)} of {len(entries)} entries of 'test' have a label; name "
                "the others' labels, or take these entries out of the list"
            )
        if labelled:
            lists["test"] = labelled
    return lists


def _names(folder, images):
    """{image: name of its case}: the file's name, or the path where several have that name."""
    stems, image_of = Counter(map(case_name, images)), {}
    for image in images:
        name = case_name(image)
        if stems[name] > 1:
            name = "_".join((*image.relative_to(folder).parts[:-1], name))
        if (other := image_of.setdefault(name, image)) != image:
            raise DataError(
                f"{other} and {image} would both be case {name}; rename one of the files, also in "
                "dataset.json"
            )
    return {image: name for name, image in image_of.items()}


def _persons(folder, names, list_of):
    """{case: person} of the cases that seem to share a person with another case.

    BIDS says it: a folder or file "sub-01...". Else it is the topmost folder by which the images
    of a list differ, if it seems to be a person's: its images repeat its name, or have names that
    other folders repeat; or there are as many such folders as a split needs persons. If a folder
    is a hospital's instead, the split is coarser than it could be, but leaks nothing.
    """
    persons = {}
    for key in set(list_of.values()):
        images = {name: image for image, name in names.items() if list_of[image] == key}
        paths = {name: image.relative_to(folder).parts for name, image in images.items()}
        common = len(os.path.commonprefix([parts[:-1] for parts in paths.values()]))
        folders = {name: parts[common] for name, parts in paths.items() if len(parts) > common + 1}
        files = {name: case_name(paths[name][-1]) for name in folders}
        are_persons = (
            len(set(folders.values())) >= _FEWEST
            or len(set(files.values())) < len(folders)
            or any(files[name].startswith(parent) for name, parent in folders.items())
        )
        for name, parts in paths.items():
            bids = [match[0] for part in parts if (match := re.match(r"sub-[0-9A-Za-z]+", part))]
            if bids or (are_persons and name in folders):
                persons[name] = bids[0] if bids else folders[name]
    cases_of = Counter(persons.values())
    return {name: person for name, person in persons.items() if cases_of[person] > 1}


def _read_split(path, names):
    """{case: side} from splits.json, empty if the file does not exist."""
    if not path.exists():
        return {}
    split = read_json(path, kind=DataError)
    lists = list(split.values()) if isinstance(split, dict) and set(split) <= set(SIDES) else []
    sound = [isinstance(listed, list) and {*map(type, listed)} == {str} for listed in lists]
    if not lists or not all(sound):
        raise DataError(
            f'{path}: expected names of cases by side, {{"train": [...], "validation": [...], '
            '"test": [...]}; without "train", the other cases are for training'
        )
    side_of = {}
    for side, listed in split.items():
        for name in listed:
            if name not in names:
                fault = f"{side!r} names {name!r}, which is not a case of dataset.json"
                raise DataError(f"{path}: {fault}, such as {min(names)}")
            if side_of.setdefault(name, side) != side:
                raise DataError(f"{path}: {name} is in {side_of[name]} and in {side}")
    lacking = [side for side in SIDES if side not in split] or sorted(set(names) - set(side_of))
    if "train" in split and lacking:
        raise DataError(
            f"{path} names train, so it must name the other sides and every case; it lacks "
            f"{_first(lacking)}: add them, or leave train out, and it is the other cases"
        )
    return side_of


def _first(names):
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _assumed(folder, description, cases, persons):
    """Sentences on what is assumed of the cases: their persons, and their sides."""
    assumed = []
    for person, count in Counter(persons.values()).most_common(1):
        assumed.append(
            "cases of one folder, or of one BIDS subject, are of one person, such as the "
            f"{count} of {person} (subjects.csv says otherwise)"
        )
    if given := Counter(case.side for case in cases if case.side):
        source = "splits.json" if (folder / "splits.json").exists() else "dataset.json"
        named = " and ".join(f"{side} ({n} cases)" for side, n in sorted(given.items()))
        share = " and every share of the data" if "validation" in given else ""
        drawn = " and ".join(side for side in ("test", "validation") if side not in given)
        drawn = drawn and f"; {drawn} drawn from the others"
        assumed.append(f"split: {named} as {source} has them, with every seed{share}{drawn}")
    if any("fold" in entry for entry in description["training"] if isinstance(entry, dict)):
        assumed.append("the folds in dataset.json are not used (splits.json can name a split)")
    if (folder / "splits_final.json").exists():
        assumed.append("nnU-Net's splits_final.json is not used (splits.json can name a split)")
    return assumed


def case_name(path: str | Path) -> str:
    """A file's name without .nii.gz or .nii, in small or capital letters."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", Path(path).name, count=1, flags=re.IGNORECASE)


def require_output(path: str | Path, image: str | Path) -> None:
    """Check where a segmentation of `image` is to be written, before any work is done for it.

    Raises:
        DataError: `path` is not named as a NIfTI file, is a folder, or is the image itself.
    """
    if not str(path).endswith((".nii", ".nii.gz")) or not case_name(path):
        raise DataError(f"{path} does not end in .nii or .nii.gz, as a segmentation's name must")
    # os.path and not Path, which raises if a folder may not be looked into.
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; name the file that is to be written")
    if os.path.exists(path) and os.path.exists(image) and os.path.samefile(path, image):
        raise DataError(f"{path} is the image itself, which is never overwritten")


def _inside(folder, relative, source):
    """`folder / relative`, which must be inside the folder, symbolic links followed."""
    if not isinstance(relative, str) or not relative.isprintable() or not case_name(relative):
        raise DataError(f"{source}: {relative!r} is not the path of a file")
    path = folder / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise DataError(f"{source}: {relative!r} leads out of the task folder; name files in it")
    try:
        target = path.resolve()
        confined = target.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source}: {relative!r} cannot be followed: {error}") from error
    if not confined:
        way = "put the file itself there"
        if "annex/objects" in str(target):
            way = f"run 'git annex get' and 'git annex unlock' on {path}"
        fault = f"{relative!r} is a link to {target}, outside the task folder"
        raise DataError(f"{source}: {fault}; {way}")
    return path


def _read_subjects(path, cases):
    """{case: subject} from subjects.csv, or None if the file does not exist."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        return None
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
    if missing := sorted(set(cases) - set(subjects)):
        fault = f"lacks {len(missing)} of {len(cases)} cases ({_first(missing)})"
        raise DataError(f"{path} {fault}; add a row for each")
    return subjects
