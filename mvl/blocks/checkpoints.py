"""A language model's checkpoint: its configuration, and single tensors without the rest.

`mvl.blocks.hub` and `mvl.blocks.gguf` have the methods of `FolderCheckpoint` for other places.
Nothing is read by pickle.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from mvl.errors import BlockError
from mvl.files import read_json, read_object

#: safetensors' names of the number formats that a block may be stored in.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class Absent(BlockError):
    """A model has no such file."""


class Checkpoint:
    """A model's configuration alone, as a "random:" source has it.

    `revision` is the hub's commit, a file's SHA-256, or None; `origin` is the source without it.
    """

    has_weights = False
    #: The folder where blocks that were read are kept; None where reading is cheap.
    cache: Path | None = None

    def __init__(self, source: str, config: dict, revision: str | None = None) -> None:
        self.source, self.config, self.revision = source, config, revision
        self.origin = source.partition("@")[0]

    def model_bytes(self) -> int | None:
        """Bytes of all weights of the model; None where that is not known."""
        return None

    def check_rotary(self) -> None:
        """Raise a `BlockError` where the rotary embedding is not read as the model has it."""


class _Entry(NamedTuple):
    """One tensor: its file, its number format by safetensors' name, its shape and its bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class FolderCheckpoint(Checkpoint):
    """A model with safetensors in a folder of this machine."""

    has_weights = True

    def __init__(self, source: str, folder: Path, revision: str | None = None) -> None:
        self.folder, self._headers = folder, {}
        super().__init__(source, read_object(self._path(CONFIG), BlockError), revision)
        if self.config.get("quantization_config"):
            raise BlockError(f"{source} is quantised: name the model that it was made from")

    def names(self) -> dict[str, str]:
        """{tensor's name: the file that holds it}, by the index or the only file's header."""
        return self._index["weight_map"]

    def stored_bytes(self, names: Iterable[str]) -> int:
        """Bytes of the named tensors in their files."""
        return sum(entry.stop - entry.start for _, entry in self._entries(names))

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """{name: tensor} of the named tensors, held in `dtype`."""
        tensors = {}
        for name, (file, stored, shape, start, stop) in self._entries(names):
            tensor = torch.frombuffer(self._bytes(file, start, stop), dtype=DTYPES[stored])
            tensors[name] = tensor.view(shape).to(dtype)
        return tensors

    def model_bytes(self) -> int | None:
        return self._index.get("metadata", {}).get("total_size")

    @cached_property
    def _index(self) -> dict:
        """The index of a sharded checkpoint, or the same of a single file."""
        with contextlib.suppress(Absent):
            return read_json(self._path(INDEX), "weight_map", kind=BlockError)
        with contextlib.suppress(Absent):
            header = self._header(WEIGHTS)
            total = sum(entry.stop - entry.start for entry in header.values())
            return {"weight_map": dict.fromkeys(header, WEIGHTS), "metadata": {"total_size": total}}
        raise BlockError(
            f"{self.source} has no {WEIGHTS}. Pickled weights (.bin) are not read: they are code. "
            "Many models on the hub have a conversion as an open pull request: name "
            "hub:OWNER/NAME@refs/pr/N. Else convert the model by transformers' save_pretrained"
        )

    def _entries(self, names: Iterable[str]) -> Iterator[tuple[str, _Entry]]:
        for name in names:
            entry = self._header(self.names()[name])[name]
            if entry.dtype not in DTYPES:
                raise BlockError(f"{self.source}: {name} is quantised ({entry.dtype})")
            yield name, entry

    def _header(self, file: str) -> dict[str, _Entry]:
        """{name: `_Entry`} of a file: https://github.com/huggingface/safetensors#format."""
        if file in self._headers:
            return self._headers[file]
        self._check(file)
        data = 8 + int.from_bytes(self._bytes(file, 0, 8), "little")  # where the tensors begin
        try:
            claims = json.loads(self._bytes(file, 8, data))
            claims.pop("__metadata__", None)
            self._headers[file] = {
                name: _Entry(file, c["dtype"], c["shape"], *(data + n for n in c["data_offsets"]))
                for name, c in claims.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BlockError(f"{self.source}: {file} has a damaged header: {error}") from error
        return self._headers[file]

    def _path(self, name: str) -> Path:
        """Where a JSON file is on this machine; `Absent` if there is none."""
        if not (self.folder / name).is_file():
            raise Absent(f"there is no {name} in {self.folder}")
        return self.folder / name

    def _check(self, file: str) -> None:
        """Have the safetensors library check all that a file's header claims."""
        path = self._path(file)
        try:
            # safetensors takes a file that may not be read for a missing one.
            with open(path, "rb"), safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise BlockError(f"{path} is damaged or cannot be read: {error}") from error

    def _bytes(self, file: str, start: int, stop: int) -> bytearray:
        """Bytes of a file; the pages of a memory map would take memory beside the tensors."""
        content = bytearray(stop - start)
        with open(self.folder / file, "rb") as opened:
            opened.seek(start)
            opened.readinto(content)
        return content
