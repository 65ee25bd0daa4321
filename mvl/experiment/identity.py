"""What a run's name is made of besides its configuration, and what of it has changed since.

`identity.json` of a run folder holds

    voxels      {case: hash of image, label and their affines} of every case that is used
    subjects    {case: subject} of the same cases
    facts       of the task, as `Task.facts` gives them
    folder      the task's folder, and
    files       a hash of the names, sizes and times of the files that were read there

The split stands in split.json, the language block in block.json. Folder and files are no part of
the name: where they are as they were, no voxel needs to be read again to know that the rest is.
"""

from pathlib import Path

from mvl.blocks.extraction import block_reference
from mvl.config import ExperimentConfig
from mvl.data.splits import Split, study_cases
from mvl.data.task_data import files_of, open_task
from mvl.data.task_folder import find_task, task_and_cases
from mvl.data.tasks import read_task
from mvl.errors import DataError, MvlError, RunError
from mvl.files import read_json, write_json

IDENTITY, SPLIT = "identity.json", "split.json"

_SIDES = ("train", "validation", "test")


def data_identity(data):
    """What an experiment's numbers depend on of its `TaskData`: voxels, subjects, split, facts."""
    used = sorted(case.name for side in _SIDES for case in data.side(side))
    return {
        "voxels": {name: data.records[name].voxel_hash for name in used},
        "subjects": {name: data.cases[name].subject for name in used},
        "split": {side: list(getattr(data.split, side)) for side in _SIDES},
        "facts": data.task.facts(),
    }


def identity_of(config, data):
    """`data_identity`, and as "block" the SHA-256 of the language block, None without one.

    Raises:
        BlockError: the block cannot be found, read or trusted.
    """
    language = config.model.language
    block = block_reference(language)["sha256"] if language else None
    return data_identity(data) | {"block": block}


def describe(data, folder):
    """Write down in a run folder what its name is made of."""
    identity = data_identity(data)
    data.split.save(folder / SPLIT)
    del identity["split"]
    place = {"folder": str(data.folder.absolute()), "files": data.files}
    write_json(folder / IDENTITY, identity | place)


def read_identity(folder):
    """What `describe` wrote, with the split and the block, as `identity_of`.

    Raises:
        RunError: the run is of a time when names covered less.
        MvlError: a file is missing or damaged.
    """
    path = Path(folder) / IDENTITY
    if not path.is_file():
        raise RunError(
            f"{Path(folder).name} has no {IDENTITY}: it is of a time when a run's name covered "
            "neither subjects nor split nor the task's facts; train it again"
        )
    stored = read_json(path, "voxels", "subjects", "facts", "folder", "files")
    split = Split.load(Path(folder) / SPLIT)
    block = Path(folder) / "block.json"
    return stored | {
        "split": {side: list(getattr(split, side)) for side in _SIDES},
        "block": read_json(block, "sha256")["sha256"] if block.is_file() else None,
    }


def differences(then, now):
    """What differs between two identities, of the entries that both have.

    Args:
        then, now: as of `data_identity`, or a part of it.

    Returns:
        Sentences with the old and the new value, joined; "" where nothing differs.
    """
    said = []
    facts = then["facts"], now["facts"]
    for name in sorted({*facts[0], *facts[1]}):
        old, new = (of.get(name, "not set") for of in facts)
        if old != new:
            said.append(f"{name} was {old}, now {new}")
    if "voxels" not in then:
        return "; ".join(said)
    old, new = then["voxels"], now["voxels"]
    for names, what in ((old.keys() - new, "gone"), (new.keys() - old, "new")):
        if names:
            said.append(f"cases: {_some(sorted(names))} {what}")
    if changed := [name for name in old if name in new and old[name] != new[name]]:
        said.append(f"voxels or affine of the image or label of {_some(changed)} changed")
    old, new = then["subjects"], now["subjects"]
    moved = [
        f"{name} was {_subject(name, old[name])}, now {_subject(name, new[name])}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    if moved:
        said.append(f"subjects: {_some(moved)}")
    old, new = (
        {name: side for side, names in of["split"].items() for name in names} for of in (then, now)
    )
    moved = [
        f"{name} was in {old.get(name, 'none')}, now in {new.get(name, 'none')}"
        for name in then["subjects"]
        if name in now["subjects"] and old.get(name) != new.get(name)
    ]
    if moved:
        said.append(f"split: {_some(moved)}")
    if "block" in now and then["block"] != now["block"]:
        said.append(f"language block: SHA-256 {then['block'][:12]}, now {now['block'][:12]}")
    return "; ".join(said)


def _some(names):
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _subject(case, subject):
    return "its own subject" if subject == case else subject


def require_same(folder, config, data):
    """Hold a run against the data that it would be used with.

    Args:
        folder: a run folder.
        config: its `ExperimentConfig`.
        data: a `TaskData`.

    Raises:
        RunError: the task has changed since; the message names what, with both values.
    """
    if said := differences(read_identity(folder), data_identity(data)):
        raise RunError(
            f"{folder} is of another state of {config.data.task}: {said}; bring the task back to "
            "that state, or train again"
        )


def changed_since(folder, seen=None):
    """Why a run is not current: what of its task has changed since it was trained.

    The task is looked for where it was then, and else below the data root. Voxels are read where
    names, sizes or times of its files are others than then.

    Args:
        folder: a run folder.
        seen: a dict that keeps, from call to call, what was found of the files of a task.

    Returns:
        A sentence without an end; "" where nothing has changed, or the task is not there.

    Raises:
        MvlError: a file of the run is missing or damaged.
    """
    try:
        then = read_identity(folder)
    except RunError as error:
        return str(error)
    config = ExperimentConfig.from_dict(read_json(Path(folder) / "config.json", "config")["config"])
    seen = {} if seen is None else seen
    try:
        place = _task_of(folder, config.data.task)
    except DataError:
        return ""
    try:
        if place not in seen:
            seen[place] = files_of(place, study_cases(*task_and_cases(place)))
        if seen[place] == then["files"]:
            return ""
        on_bad_case = "skip" if (Path(folder) / "skipped.csv").exists() else "fail"
        data = open_task(config.data, config.seed, place.parent, on_bad_case, progress=False)
    except DataError as error:
        return f"its task has a fault now: {error}"
    said = differences(then, data_identity(data))
    return said and f"its task has changed since: {said}"


def facts_changed(folder, task):
    """What a task that is there says otherwise than the facts that a model was trained with.

    Args:
        folder: the model's, of a run or as it was saved.
        task: the model's own `Task`.

    Returns:
        As `differences`; "" also where the task is not there.
    """
    try:
        now = read_task(_task_of(folder, task.name))
    except MvlError:
        return ""
    return differences({"facts": task.facts()}, {"facts": now.facts()})


def _task_of(folder, name):
    """The folder of the task that a run was trained on, or else of that name."""
    path = Path(folder) / IDENTITY
    if path.is_file():
        place = Path(read_json(path, "folder")["folder"])
        if (place / "dataset.json").is_file():
            return place
    return find_task(name)
