"""Dataclasses that hold their values to their types, by pydantic."""

import contextlib
import functools
import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, dataclass_transform

import pydantic
from pydantic import Field

from mvl.errors import ConfigError, did_you_mean

#: Whole numbers that PyTorch can count to, some of them from 0 or from 1 on; and lengths of axes.
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Axis = Annotated[int, Field(ge=1, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

#: How the tag of a kind begins that a union of configurations gives to pydantic.
TAG = "kind "

#: The fields of every strict dataclass, for what is misspelt.
_FIELDS = set()


@dataclass_transform(frozen_default=True)
def strict(kind: type) -> type:
    """A frozen dataclass, whose values pydantic holds to their types.

    It is strict: 1 is not True, a text is not a number, and no number is endless. A fault is a
    `ConfigError`.
    """
    rules = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    kind = pydantic.dataclasses.dataclass(frozen=True, config=rules)(kind)
    _FIELDS.update(kind.__dataclass_fields__)
    unguarded = kind.__init__

    @functools.wraps(unguarded)
    def guarded(self, *args, **values):
        with _faults_named("configuration"):
            unguarded(self, *args, **values)

    kind.__init__ = guarded
    return kind


def from_json(kind: type, values: Any, what: str = "configuration") -> Any:
    """A `strict` dataclass from JSON values, where a list may stand for a tuple.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; the message begins with
            `what` and the path of the key, such as `model.language.layer`.
    """
    with _faults_named(what):
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values, default=str))


def merged(values: dict, changes: dict) -> dict:
    """The values of a `to_dict` with changes of some fields, which are nested likewise.

    A changed model with an `architecture` is another kind, and takes the place of the whole.
    """
    both = dict(values)
    for name, change in changes.items():
        old = values.get(name)
        if isinstance(change, dict) and isinstance(old, dict) and "architecture" not in change:
            change = merged(old, change)
        both[name] = change
    return both


def read_yaml(path: Path) -> Any:
    """The values of a YAML or JSON file.

    Raises:
        ConfigError: it is not readable; the message names the file.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-3 for a text; here it is a number."""

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(path.read_text("utf-8-sig"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # PyYAML writes several lines
        raise ConfigError(f"{path} is not readable YAML: {reason}") from error


def from_yaml(kind: type, path: Path) -> Any:
    """A `strict` dataclass from a YAML file.

    Raises:
        ConfigError: as `read_yaml` and `from_json`; the message names the file.
    """
    return from_json(kind, read_yaml(path), str(path))


@contextlib.contextmanager
def _faults_named(what: str) -> Iterator[None]:
    try:
        yield
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        parts = [str(part) for part in fault["loc"]]
        path = ".".join(part for part in parts if not part.startswith(TAG))
        if fault["type"] == "value_error":  # from a `__post_init__`
            text = f"{what} {path}".rstrip() + f": {fault['ctx']['error']}"
        elif fault["type"] == "unexpected_keyword_argument":
            text = f"{what}: unknown key {path}{did_you_mean(parts[-1], _FIELDS - {parts[-1]})}"
        elif fault["type"].startswith("missing"):
            text = f"{what} lacks {path}"
        else:
            reason = fault["msg"].replace("Input should", "must")
            text = f"{what}: {path or 'root'} {reason}, got {reprlib.repr(fault['input'])}"
        raise ConfigError(text) from error
