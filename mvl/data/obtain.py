"""Real data where it exists or can be downloaded; otherwise a phantom, which is always named so."""

from __future__ import annotations

from pathlib import Path

from mvl.data.download import download
from mvl.data.phantom import make_phantom
from mvl.data.splits import study_cases
from mvl.data.task_folder import REPOSITORY_DATA, find_task, task_and_cases
from mvl.data.tasks import TASKS
from mvl.errors import ConfigError, DataError


def obtain(
    task: str, source: str, cases: int = 60, scale: float = 1.0, name: str = "phantom"
) -> tuple[Path, str]:
    """(The folder that holds a task's folder, a sentence that names the data).

    Args:
        source: "msd" takes the task below the data root, or downloads it; "auto" does the same,
            and makes a phantom where neither works; "phantom" makes one of `cases` and `scale`.
        name: the phantom's folder below data/; profiles of different size keep apart.

    Raises:
        ConfigError: an unknown source.
        DataError: "msd", and the task can be neither found nor downloaded.
    """
    if source not in ("msd", "auto", "phantom"):
        raise ConfigError(f"data source {source!r} is none of msd, auto, phantom")
    reason = "as the profile asks"
    if source != "phantom":
        try:
            return _real(task)
        except DataError as error:
            if source == "msd":
                raise
            reason = str(error)
    root = make_phantom(task, REPOSITORY_DATA / name, cases=cases, scale=scale).parent
    return root, f"SYNTHETIC DATA, a phantom of {task} ({reason})"


def _real(name):
    try:
        folder = find_task(name)
    except DataError:
        if name not in TASKS:
            raise
        folder = download(name)
    task, cases = task_and_cases(folder)
    if task.synthetic:
        return folder.parent, f"SYNTHETIC DATA, a phantom of {name} (found in {folder})"
    origin = "of the Medical Segmentation Decathlon" if name in TASKS else f"in {folder}"
    sentence, used = f"{name} {origin}", study_cases(task, cases)
    if len(used) < len(cases):
        sentence += f": the {len(used)} of {len(cases)} cases that the committed study has"
    if task.assumptions:
        sentence += f" (assumed: {'; '.join(task.assumptions)})"
    return folder.parent, sentence


def obtained(task: str, source: str, name: str = "phantom") -> Path:
    """The folder in which `obtain` finds a task without a download and without a new phantom."""
    if source != "phantom":
        try:
            return find_task(task).parent
        except DataError:
            if source == "msd":
                raise
    return find_task(task, REPOSITORY_DATA / name).parent
