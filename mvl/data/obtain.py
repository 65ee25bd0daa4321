"""Real data where it is at hand or can be fetched, the phantom otherwise, and never silently."""

from mvl.data.download import download
from mvl.data.phantom import make_phantom
from mvl.data.splits import study_cases
from mvl.data.task_folder import REPOSITORY_DATA, find_task, task_and_cases
from mvl.data.tasks import TASKS
from mvl.errors import ConfigError, DataError

SOURCES = ("msd", "auto", "phantom")


def obtain(task, source, cases=60, scale=1.0, name="phantom"):
    """Find a task's data for a profile.

    Args:
        task: the task's name.
        source: "msd" takes the task below the data root and downloads it if it is not there;
            "auto" does the same, and makes a phantom where neither works; "phantom" makes one.
        cases, scale: size of the phantom, see `make_phantom`.
        name: the phantom's folder below data/; profiles of different size keep apart.

    Returns:
        (root, sentence): the folder that holds the task's folder, and what it holds, to be
        shown at the top of whatever uses it.

    Raises:
        ConfigError: an unknown source.
        DataError: "msd" and the task can be neither found nor downloaded.
    """
    if source not in SOURCES:
        raise ConfigError(f"data source {source!r} is none of {', '.join(SOURCES)}")
    why = "as the profile asks"
    if source != "phantom":
        try:
            folder = _real(task)
            facts, there = task_and_cases(folder)
            if facts.synthetic:
                return folder.parent, f"SYNTHETIC DATA, a phantom of {task} (found in {folder})"
            what = f"{task} " + (
                "of the Medical Segmentation Decathlon" if task in TASKS else "in " + str(folder)
            )
            used = study_cases(facts, there)
            if len(used) < len(there):
                what += f": the {len(used)} of {len(there)} cases that the committed study has"
            if facts.assumptions:
                what += f" (assumed: {'; '.join(facts.assumptions)})"
            return folder.parent, what
        except DataError as error:
            if source == "msd":
                raise
            why = str(error)
    root = make_phantom(task, REPOSITORY_DATA / name, cases=cases, scale=scale).parent
    return root, f"SYNTHETIC DATA, a phantom of {task} ({why})"


def at_hand(task, source, name="phantom"):
    """Where `obtain` finds a task's data without a download and without making a phantom.

    Args:
        task, source, name: as for `obtain`.

    Returns:
        The folder that holds the task's folder.

    Raises:
        DataError: it is not there.
    """
    if source != "phantom":
        try:
            return find_task(task).parent
        except DataError:
            if source == "msd":
                raise
    return find_task(task, REPOSITORY_DATA / name).parent


def _real(task):
    try:
        return find_task(task)
    except DataError:
        if task not in TASKS:
            raise
        return download(task)
