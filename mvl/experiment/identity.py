"""What a run's name is made of besides its configuration, and what of it has changed since.

`identity.json` of a run folder holds

    voxels      {case: hash of image, label and their affines} of every case that is used
    subjects    {case: subject} of the same cases
    facts       of the task, as `Task.facts` gives them
    folder      the task's folder, and
    files       a hash of the names, sizes and times of the files that were read there

The split is in split.json, the language block in block.json. Folder and files are not part of the
name: while they are as they were, no voxel has to be read again to know that the rest is.
"""

from dataclasses import asdict
from pathlib import Path

from mvl.blocks.extraction import block_reference
from mvl.config import ExperimentConfig
from mvl.data.splits import Split, study_cases
from mvl.data.task_data import TaskData, files_of, open_task
from mvl.data.task_folder import find_task, task_and_cases
from mvl.data.tasks import Task, read_task
from mvl.errors import DataError, MvlError, RunError
from mvl.experiment.files import BLOCK, CONFIG, IDENTITY, SKIPPED, SPLIT
from mvl.files import read_json, write_json


def data_identity(data: TaskData) -> dict:
    """Voxels, subjects, split and facts of an experiment's data."""
    split = asdict(data.split)
    used = sorted(sum(split.values(), ()))
    return {
        "voxels": {name: data.records[name].voxel_hash for name in used},
        "subjects": {name: data.cases[name].subject for name in used},
        "split": split,
        "facts": data.task.facts(),
    }


def identity_of(config: ExperimentConfig, data: TaskData) -> dict:
    """`data_identity`, and as "block" the SHA-256 of the language block, None without one."""
    language = config.model.language
    block = block_reference(language)["sha256"] if language else None
    return data_identity(data) | {"block": block}


def describe(data: TaskData, folder: Path) -> None:
    """Write into a run folder what its name is made of."""
    identity = data_identity(data)
    data.split.save(folder / SPLIT)
    del identity["split"]
    source = {"folder": str(data.folder.absolute()), "files": data.files}
    write_json(folder / IDENTITY, identity | source)


def read_identity(folder: str | Path) -> dict:
    """What `describe` wrote, with the split and the block, as `identity_of`.

    Raises:
        MvlError: a file is missing or damaged; a `RunError` if names covered less in its time.
    """
    folder = Path(folder)
    if not (folder / IDENTITY).is_file():
        raise RunError(
            f"{folder.name} has no {IDENTITY}: it is of a time when a run's name covered neither "
            "subjects nor split nor the task's facts; train it again"
        )
    stored = read_json(folder / IDENTITY, "voxels", "subjects", "facts", "folder", "files")
    block = None
    if (folder / BLOCK).is_file():
        block = read_json(folder / BLOCK, "sha256")["sha256"]
    return stored | {"split": asdict(Split.load(folder / SPLIT)), "block": block}


def differences(then: dict, now: dict) -> str:
    """What differs between two identities, with both values; "" if nothing does."""
    old, new = then["voxels"], now["voxels"]
    both = [name for name in old if name in new]
    subjects = [(name, then["subjects"][name], now["subjects"][name]) for name in both]
    before, after = (
        {name: side for side, names in of["split"].items() for name in names} for of in (then, now)
    )
    sides = [(name, before.get(name, "none"), after.get(name, "none")) for name in both]
    changed = {
        "cases: {} gone": sorted(old.keys() - new),
        "cases: {} new": sorted(new.keys() - old),
        "voxels or affine of the image or label of {} changed": [
            name for name in both if old[name] != new[name]
        ],
        "subjects: {}": [
            f"{name} was {_subject(name, a)}, now {_subject(name, b)}"
            for name, a, b in subjects
            if a != b
        ],
        "split: {}": [f"{name} was in {a}, now in {b}" for name, a, b in sides if a != b],
    }
    changes = _changed_facts(then["facts"], now["facts"])
    for text, names in changed.items():
        if names:
            more = f" and {len(names) - 3} more" * (len(names) > 3)
            changes.append(text.format(", ".join(names[:3]) + more))
    if "block" in now and then["block"] != now["block"]:
        changes.append(f"language block: SHA-256 {then['block'][:12]}, now {now['block'][:12]}")
    return "; ".join(changes)


def _changed_facts(then, now):
    facts = [(n, then.get(n, "not set"), now.get(n, "not set")) for n in sorted({*then, *now})]
    return [f"{name} was {old}, now {new}" for name, old, new in facts if old != new]


def _subject(case, subject):
    return "its own subject" if subject == case else subject


def require_same(folder: str | Path, data: TaskData) -> None:
    """Raise a `RunError` that names what of a run's task has changed since, with both values."""
    if changes := differences(read_identity(folder), data_identity(data)):
        raise RunError(
            f"{folder} is of another state of {data.config.task}: {changes}; bring the task back "
            "to that state, or train again"
        )


def changed_since(folder: str | Path, seen: dict | None = None) -> str:
    """Why a run is not current: what of its task has changed since it was trained.

    It is "" where nothing has changed, or the task is found neither where it was then nor below the
    data root. Voxels are read only where names, sizes or times of its files are others than then;
    `seen` keeps, from call to call, what is known of these files.

    Raises:
        MvlError: a file of the run is missing or damaged.
    """
    folder, seen = Path(folder), {} if seen is None else seen
    try:
        then = read_identity(folder)
    except RunError as error:
        return str(error)
    stored = read_json(folder / CONFIG, "config")["config"]
    try:
        task_folder = _task_of(folder, stored["data"]["task"])
    except DataError:
        return ""
    try:
        if task_folder not in seen:
            seen[task_folder] = files_of(task_folder, study_cases(*task_and_cases(task_folder)))
        if seen[task_folder] == then["files"]:
            return ""
        config = ExperimentConfig.from_dict({key: stored[key] for key in ("data", "seed")})
        on_bad_case = "skip" if (folder / SKIPPED).exists() else "fail"
        data = open_task(config.data, config.seed, task_folder.parent, on_bad_case, progress=False)
    except DataError as error:
        return f"its task has a fault now: {error}"
    changes = differences(then, data_identity(data))
    return changes and f"its task has changed since: {changes}"


def facts_changed(folder: str | Path, task: Task) -> str:
    """What has changed of the facts of a model's task; "" also where its folder is not there.

    `folder` is the model's, of a run or as it was saved.
    """
    try:
        now = read_task(_task_of(Path(folder), task.name))
    except MvlError:
        return ""
    return "; ".join(_changed_facts(task.facts(), now.facts()))


def _task_of(folder, name):
    """The folder of the task that a run was trained on, or else of that name."""
    if (folder / IDENTITY).is_file():
        task_folder = Path(read_json(folder / IDENTITY, "folder")["folder"])
        if (task_folder / "dataset.json").is_file():
            return task_folder
    return find_task(name)
