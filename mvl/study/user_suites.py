"""Suites that a user adds: one file suites/NAME.yaml each (docs/suites.md)."""

from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mvl.config import DataConfig, ExperimentConfig, preset
from mvl.files import REPOSITORY
from mvl.strict import Count, Positive, from_json, from_yaml, merged, strict

FOLDER = REPOSITORY / "suites"


@strict
class ArmEntry:
    """What a file says of one arm: a preset, and what is changed of it."""

    preset: str = "vit"
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    #: As `suites.Arm` has them.
    fraction: Annotated[Positive, Field(le=1)] = 1.0
    budget: Count = 1


@strict
class SuiteFile:
    """What a file says of a suite; a contrast is (arm, against)."""

    question: str
    arms: Annotated[dict[str, ArmEntry], Field(min_length=1)]
    contrasts: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := {arm for pair in self.contrasts for arm in pair} - set(self.arms):
            raise ValueError(f"a contrast names no arm of this file: {', '.join(sorted(unknown))}")


def read_suites(folder: Path = FOLDER) -> dict[str, SuiteFile]:
    """The suites of a folder's files, by name.

    Raises:
        ConfigError: as `from_yaml`.
    """
    return {path.stem: from_yaml(SuiteFile, path) for path in sorted(folder.glob("*.yaml"))}


def configuration(arm: ArmEntry, what: str) -> ExperimentConfig:
    """The model and training of an arm, with the default data and seed.

    Raises:
        ConfigError: no such preset, an unknown key or a wrong value; the message has `what`.
    """
    values = ExperimentConfig(DataConfig(), *preset(arm.preset)).to_dict()
    changes = {"model": arm.model, "training": arm.training}
    return from_json(ExperimentConfig, merged(values, changes), what)
