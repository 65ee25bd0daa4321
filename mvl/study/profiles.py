"""Profiles: the parameters of the notebooks, by purpose."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mvl.config import DataConfig, task_data
from mvl.data.tasks import TASKS
from mvl.errors import ConfigError
from mvl.files import REPOSITORY, absolute_source
from mvl.strict import Axis, Count, Whole, from_yaml, strict

_Grid = Annotated[list[Axis], Field(min_length=3, max_length=3)]
_Scale = Annotated[float, Field(gt=0, le=2)]


@strict
class Profile:
    """What a profile says: the parameters that a notebook may declare."""

    profile: str
    task: str
    source: str
    phantom_cases: Count
    phantom_scale: _Scale
    grid: _Grid
    fit: Literal["pad", "resize"]
    block: str
    epochs: Count
    seeds: Annotated[list[Whole], Field(min_length=1)]
    language_arms: list[str]
    fusion_arms: list[str]
    adaptation_arms: list[str]
    data_arms: list[str]
    peers_arms: list[str]
    tasks: list[Literal[tuple(TASKS)]]
    tasks_arms: list[str]
    tasks_grid: _Grid
    tasks_phantom_cases: Count
    tasks_phantom_scale: _Scale


def load_profile(name: str, root: Path | str = REPOSITORY) -> dict[str, Any]:
    """The parameters of a profile, a file of the repository's profiles/, with `Profile`'s keys.

    Raises:
        ConfigError: there is no such profile, or its file has a missing or unknown key, or a value
            of another type or out of range.
    """
    folder = Path(root) / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no profile {name!r} in {folder}; there are: {', '.join(known)}")
    path = folder / f"{name}.yaml"
    profile = from_yaml(Profile, path)
    if profile.profile != name:
        raise ConfigError(f"{path}: profile must be {name}, as the file is called")
    # Kernels run in notebooks/, where a relative name would be another one.
    return dataclasses.asdict(profile) | {"block": absolute_source(profile.block, root)}


def data_of(task: str, parameters: dict[str, Any]) -> DataConfig:
    """How a profile handles a task.

    The profile's task has its grid and fit; the other nine of MSD's are resized to `tasks_grid`,
    and any other task has what `config.task_data` says.

    Args:
        parameters: the profile's, or a notebook's `globals()`.
    """
    if task == parameters["task"]:
        return DataConfig(task, grid=tuple(parameters["grid"]), fit=parameters["fit"])
    if task in TASKS:
        return DataConfig(task, grid=tuple(parameters["tasks_grid"]), fit="resize")
    return task_data(task)
