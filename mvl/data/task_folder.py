"""Where cases come from: a task folder in the decathlon's layout, read in place.

A task folder holds `dataset.json`, whose "training" list names image and label of each case
relative to the folder. It may also hold `subjects.csv` (columns case, subject), and a split of its
own: a "validation" list, labelled cases in the "test" list, or `splits.json` with the names of
cases on each side. The folder itself is the user's and may be a symbolic link; what
`dataset.json` names must lie inside it.
"""

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from mvl.data.tasks import CONVERTED, TASKS, read_task
from mvl.errors import DataError, MvlError
from mvl.files import REPOSITORY, read_json, read_small

#: The repository's own folder for downloads and phantoms.
REPOSITORY_DATA = REPOSITORY / "data"


@dataclass(frozen=True)
class Case:
    """One labelled volume, and whom it is of."""

    #: File name of the image without its ending, such as "hippocampus_001"; where several images
    #: have that name, their paths below the task folder, such as "case_00001_imaging".
    name: str
    #: The person; cases of one subject never stand on two sides of a split.
    subject: str
    image: Path
    #: None where dataset.json names no label; the checks report it.
    label: Path | None
    #: "train", "validation" or "test" where the task says it, else None.
    side: str | None = None


def data_root(root=None):
    """The folder that holds task folders: `root`, else MVL_DATA_ROOT, else the repository's data/.

    Returns:
        A `Path`, which need not exist.
    """
    if root is None:
        root = os.environ.get("MVL_DATA_ROOT") or REPOSITORY_DATA
    return Path(os.path.expanduser(root))


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

    Subjects come from `subjects.csv` where there is one, else from `Task.subject_of`, else from
    the folders that images lie in (see `_persons`). That the files exist and are sound is the
    business of `mvl.data.checks`.

    Args:
        folder: a task folder.

    Returns:
        list of `Case`, sorted by name.

    Raises:
        DataError: dataset.json is missing, malformed or empty, names a path outside the folder
            or one case twice; subjects.csv lacks a case; or the task's split cannot be used.
    """
    return task_and_cases(folder)[1]


def task_and_cases(folder):
    """(`Task`, cases as of `list_cases`); the task's assumptions are also about the cases.

    Raises:
        DataError: as for `list_cases`.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    try:
        task, description = read_task(folder), read_json(path)
    except DataError:
        raise
    except MvlError as error:
        raise DataError(str(error)) from error
    files, side_of, list_of = {}, {}, {}
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
            list_of[image], side_of[image] = key, None if key == "training" else key
    if "training" not in list_of.values():
        raise DataError(f"{path}: 'training' names no case")
    names = _names(folder, files)
    split = _read_split(folder / "splits.json", names.values())
    if split and any(side_of.values()):
        raise DataError(f"{folder} has two splits, splits.json and dataset.json's; keep one")

    subjects, persons = _read_subjects(folder / "subjects.csv", names.values()), {}
    if subjects is None:
        if task.cases_per_subject == 1:
            persons = _persons(folder, names, list_of)
        subjects = {name: persons.get(name, task.subject_of(name)) for name in names.values()}
    cases = [
        Case(name, subjects[name], image, files[image], split.get(name, side_of[image]))
        for image, name in names.items()
    ]
    said = _assumed(folder, description, cases, persons)
    task = replace(task, assumptions=(*task.assumptions, *said))
    return task, sorted(cases, key=lambda case: case.name)


def _lists(path, description):
    """dataset.json's lists of labelled cases: training, and validation and test where they are."""
    if not isinstance(description.get("training"), list):
        raise DataError(f"{path}: 'training' is missing or not a list of images and labels")
    lists = {"training": description["training"]}
    for key, value in description.items():
        entries = value if isinstance(value, list) else []
        labelled = [e for e in entries if isinstance(e, dict) and "image" in e and e.get("label")]
        if key == "test" and labelled:
            if len(labelled) < len(entries):
                raise DataError(
                    f"{path}: {len(labelled)} of {len(entries)} entries of 'test' have a label; "
                    "leave the others out of the list, or name their labels"
                )
            lists["test"] = labelled
        elif key == "validation" and value:
            if not isinstance(value, list):
                raise DataError(f"{path}: 'validation' is not a list of images and labels")
            lists["validation"] = value
        elif labelled and key not in ("training", "test"):
            raise DataError(
                f"{path}: {key!r} lists {len(labelled)} labelled cases, but only 'training', "
                "'validation' and 'test' are read; give the list one of these names"
            )
    return lists


def _names(folder, images):
    """{image: name of its case}: the file's name, or the path where several have that name."""
    stems = Counter(map(case_name, images))
    names = {}
    for image in images:
        name = case_name(image)
        if stems[name] > 1:
            name = "_".join((*image.relative_to(folder).parts[:-1], name))
        names[image] = name
    first = {}
    for image, name in names.items():
        if first.setdefault(name, image) != image:
            raise DataError(
                f"{first[name]} and {image} would both be case {name}; rename one of the files, "
                "in dataset.json, too"
            )
    return names


#: So many persons at least make a task that can be split.
_FEWEST = 6


def _persons(folder, names, list_of):
    """{case: person} of the cases that seem to share a person with another case.

    BIDS says it: a folder or file "sub-01...". Else it is the topmost folder by which the images
    of a list differ, if that seems to be a person's: its images repeat its name, or have names
    that other folders repeat; or there are as many such folders as a split needs persons. Where a
    folder is a hospital's and no person's, this parts less than could be, and leaks nothing.
    """
    persons = {}
    for key in set(list_of.values()):
        paths = {
            name: image.relative_to(folder).parts
            for image, name in names.items()
            if list_of[image] == key
        }
        common = len(os.path.commonprefix([parts[:-1] for parts in paths.values()]))
        folders = {name: parts[common] for name, parts in paths.items() if len(parts) > common + 1}
        files = {name: case_name(parts[-1]) for name, parts in paths.items()}
        telling = (
            len(set(folders.values())) >= _FEWEST
            or len({files[name] for name in folders}) < len(folders)
            or any(files[name].startswith(of) for name, of in folders.items())
        )
        for name, parts in paths.items():
            bids = [found[0] for part in parts if (found := re.match(r"sub-[0-9A-Za-z]+", part))]
            if bids or (telling and name in folders):
                persons[name] = bids[0] if bids else folders[name]
    cases_of = Counter(persons.values())
    return {name: person for name, person in persons.items() if cases_of[person] > 1}


def _read_split(path, names):
    """{case: side} from splits.json, empty where there is no such file."""
    if not path.exists():
        return {}
    sides = ("train", "validation", "test")
    try:
        split = read_json(path)
    except MvlError as error:
        raise DataError(str(error)) from error
    if not (
        isinstance(split, dict)
        and split.keys() <= set(sides)
        and split
        and all(isinstance(listed, list) and listed for listed in split.values())
        and all(isinstance(name, str) for listed in split.values() for name in listed)
    ):
        raise DataError(
            f'{path}: expected names of cases by side, {{"train": [...], "validation": [...], '
            '"test": [...]}, or without train, which is then the others'
        )
    side_of = {}
    for side, listed in split.items():
        for name in listed:
            if name not in names:
                raise DataError(
                    f"{path}: {side!r} names {name!r}, which is no case of dataset.json, such as "
                    f"{min(names)}"
                )
            if side_of.setdefault(name, side) != side:
                raise DataError(f"{path}: {name} stands in {side_of[name]} and in {side}")
    if "train" in split:
        if lacking := [side for side in sides if side not in split]:
            raise DataError(
                f"{path} names train, but no {' and no '.join(lacking)}: name all three, or leave "
                "train out, which is then the others"
            )
        if missing := sorted(set(names) - set(side_of)):
            shown = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
            raise DataError(
                f"{path}: {len(missing)} of {len(names)} cases stand on no side ({shown}); add "
                "them to one"
            )
    return side_of


def _assumed(folder, description, cases, persons):
    """Sentences on what is assumed of the cases: who is of one person, and who stands where."""
    said = []
    if persons:
        person, count = Counter(persons.values()).most_common(1)[0]
        said.append(
            "cases of one folder, or of one BIDS subject, are of one person, such as the "
            f"{count} of {person} (subjects.csv says otherwise)"
        )
    given = Counter(case.side for case in cases if case.side)
    if given:
        source = "splits.json" if (folder / "splits.json").exists() else "dataset.json"
        named = " and ".join(f"{side} ({n} cases)" for side, n in sorted(given.items()))
        fixed = f"{named} as {source} has them, with every seed"
        if "validation" in given:
            fixed += " and every share of the data"
        drawn = [side for side in ("test", "validation") if side not in given]
        if drawn:
            fixed += f"; {' and '.join(drawn)} drawn from the others"
        said.append(f"split: {fixed}")
    entries = description["training"]
    if any("fold" in entry for entry in entries if isinstance(entry, dict)):
        said.append("the folds in dataset.json are not used (splits.json can name a split)")
    if (folder / "splits_final.json").exists():
        said.append("nnU-Net's splits_final.json is not used (splits.json can name a split)")
    return said


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
