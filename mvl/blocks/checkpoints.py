"""A language model's checkpoint: its configuration, and single tensors without the rest.

`mvl.blocks.hub` and `mvl.blocks.gguf` have the methods of `FolderCheckpoint` for other places.
Nothing is read by pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from mvl.errors import BlockError
from mvl.files import read_object

#: safetensors' names of the number formats that a block may be stored in.
DTYPES = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
#: Largest header that the safetensors library accepts.
_HEADER_LIMIT = 100_000_000
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_EXPORTED = "name the model that it was exported from, with safetensors"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pth")

# fmt: off
#: Files of other layouts: name or pattern -> what it is, what to name in its place.
_LAYOUTS = {
    "adapter_config.json": ("an adapter (LoRA) without its model",
        "name the model that it adapts, or merge the two by peft's merge_and_unload"),
    "params.json": ("Meta's or Mistral's layout (params.json, consolidated files)",
        "name the same model in Hugging Face's layout, as in hub:meta-llama/Llama-3.1-8B"),
    "*.gguf": ("GGUF, llama.cpp's format, in a folder", "name the file itself, as gguf:FILE"),
    "modules.json": ("a sentence-transformers model whose transformer has a folder of its own",
        "name that folder, such as 0_Transformer in it"),
    "*.onnx": ("ONNX", _EXPORTED),
    "onnx/model.onnx": ("ONNX", _EXPORTED),
}
# fmt: on
#: Ends of the names of tensors that quantisation leaves next to the weights.
_QUANTISED = {
    **{"SCB": "bitsandbytes, 8 bits", "absmax": "bitsandbytes, 4 bits"},
    **{"qweight": "GPTQ or AWQ", "qzeros": "GPTQ or AWQ", "weight_scale_inv": "FP8"},
    **{"weight_scale": "FP8 or integers", "scales": "integers, as MLX does"},
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its number format by safetensors' name, its size and its place."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    #: Its first byte in the file; a GGUF file is read in another way.
    start: int = 0


class Checkpoint:
    """A model's configuration alone, as a "random:" source has it.

    Attributes:
        revision: the hub's commit, a file's SHA-256, or None.
        cache: the folder where blocks that were read are kept; None where reading is cheap.
    """

    has_weights = False

    def __init__(
        self, source: str, config: dict, revision: str | None = None, cache: Path | None = None
    ) -> None:
        self.source, self.config, self.revision, self.cache = source, config, revision, cache

    @property
    def origin(self) -> str:
        """What the tensors are of, whatever the revision."""
        return self.source.partition("@")[0]

    def model_bytes(self) -> int | None:
        """Bytes of all weights of the model; None where there are none."""
        return None


class FolderCheckpoint(Checkpoint):
    """A model with safetensors in a folder of this machine."""

    has_weights = True

    def __init__(
        self, source: str, folder: Path, revision: str | None = None, *, config: dict | None = None,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.address, self._headers = folder, str(folder), {}
        super().__init__(source, {}, revision, cache)
        self.config = config or self._json(CONFIG)
        if self.config is None:
            self._refuse_layout()
            raise BlockError(f"{source}: there is no config.json in {self.address}")
        # MLX calls it "quantization".
        how = self.config.get("quantization_config") or self.config.get("quantization")
        if how:
            method = how.get("quant_method") if isinstance(how, dict) else None
            self._refuse_quantised(method or "as its config.json says")

    def names(self) -> dict[str, str]:
        """{tensor's name: the file that holds it}, by the index or the only file's header."""
        if (index := self._index) is None:
            index = {"weight_map": dict.fromkeys(self._header(WEIGHTS), WEIGHTS)}
        if not isinstance(names := index.get("weight_map"), dict):
            raise BlockError(f"{self.address}/{INDEX} has no weight_map")
        for name, file in names.items():
            if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                raise BlockError(
                    f"{self.address}/{INDEX} names {file!r}, not a safetensors file of its folder"
                )
            if how := _QUANTISED.get(name.rpartition(".")[2]):
                self._refuse_quantised(how)
        return names

    def entries(self, names: Iterable[str]) -> dict[str, Entry]:
        """{name: `Entry`} of the named tensors, all of them in plain numbers."""
        files, entries = self.names(), {}
        for name in names:
            entry = self._header(files[name]).get(name)
            if entry is None:
                raise BlockError(f"{self.address}/{files[name]} lacks {name}")
            if entry.dtype not in DTYPES:
                self._refuse_quantised(f"{name} is stored as {entry.dtype}")
            entries[name] = entry
        return entries

    def read(
        self, names: Iterable[str], dtype: torch.dtype, partial: BinaryIO | None = None
    ) -> dict[str, torch.Tensor]:
        """{name: tensor} of the named tensors, held in `dtype`.

        Args:
            partial: a file in which a broken transfer from the hub goes on; unused elsewhere.
        """
        tensors = {}
        for name, entry in self.entries(names).items():
            with open(self.folder / entry.file, "rb") as file:
                file.seek(entry.start)
                tensors[name] = read_tensor(file, entry).to(dtype)
        return tensors

    def model_bytes(self) -> int:
        if self._index is None:
            return self._size(WEIGHTS)
        total = self._index.get("metadata", {}).get("total_size")
        return total or sum(map(self._size, set(self.names().values())))

    @cached_property
    def _index(self) -> dict | None:
        """The index of a sharded checkpoint; None where there is a single file."""
        if self._exists(WEIGHTS):
            return None
        if (index := self._json(INDEX)) is not None:
            return index
        if any(map(self._exists, _PICKLES)):
            raise BlockError(
                f"{self.source} has pickled weights only (.bin); pickle can run code, so it is "
                "refused. Many models on the hub carry a safetensors conversion as an open pull "
                "request (hub:OWNER/NAME@refs/pr/N, N from the Community tab). Where you trust the "
                "file, convert it by transformers' save_pretrained and use path:FOLDER"
            )
        self._refuse_layout()
        raise BlockError(f"{self.address} holds neither {WEIGHTS} nor {INDEX}")

    def _header(self, file: str) -> dict[str, Entry]:
        """{name: `Entry`} of a file, offsets checked against types and shapes.

        Source: https://github.com/huggingface/safetensors#format
        """
        if file in self._headers:
            return self._headers[file]
        self._check(file)
        damaged = f"{self.address}/{file} is damaged: its header"
        length = int.from_bytes(b"".join(self._bytes(file, 0, 8)), "little")
        if length > min(_HEADER_LIMIT, self._size(file) - 8):
            raise BlockError(f"{damaged} claims {length} bytes")
        entries = {}
        try:
            header = json.loads(b"".join(self._bytes(file, 8, 8 + length)))
            header.pop("__metadata__", None)
            for name, claim in header.items():
                dtype, shape = claim["dtype"], tuple(claim["shape"])
                start, stop = claim["data_offsets"]
                item = DTYPES[dtype].itemsize if dtype in DTYPES else None
                if start < 0 or item and stop - start != math.prod(shape) * item:
                    raise ValueError(name)
                entries[name] = Entry(file, dtype, shape, stop - start, 8 + length + start)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BlockError(f"{damaged} is wrong ({error})") from error
        self._headers[file] = entries
        return entries

    def _refuse_layout(self) -> None:
        for pattern, (what, remedy) in _LAYOUTS.items():
            if self._exists(pattern):
                raise BlockError(f"{self.source} is {what}, which is not read here; {remedy}")

    def _refuse_quantised(self, how: str) -> None:
        raise BlockError(
            f"{self.source} is quantised ({how}), so its weights are not plain numbers; quantised "
            "checkpoints cannot be used, name the unquantised one that it was made from"
        )

    # What depends on where the files lie.

    def _json(self, name: str) -> dict | None:
        path = self.folder / name
        return read_object(path, BlockError) if path.is_file() else None

    def _exists(self, pattern: str) -> bool:
        return any(self.folder.glob(pattern))

    def _size(self, file: str) -> int:
        return (self.folder / file).stat().st_size

    def _check(self, file: str) -> None:
        """Have the safetensors library check all that a file's header claims."""
        path = self.folder / file
        if not path.is_file():
            raise BlockError(f"{path} is missing")
        try:
            # safetensors takes a file that may not be read for a missing one.
            with open(path, "rb"), safe_open(path, "pt"):
                pass
        except OSError as error:
            raise BlockError(f"{path} cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise BlockError(f"{path} is damaged: {error}") from error

    def _bytes(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes `start` to `stop` of a file, in pieces."""
        with open(self.folder / file, "rb") as opened:
            opened.seek(start)
            yield opened.read(stop - start)


def read_tensor(file: BinaryIO, entry: Entry) -> torch.Tensor:
    """The tensor whose bytes come next in an open file, read straight into its memory."""
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    if file.readinto(tensor.view(-1).view(torch.uint8).numpy()) != entry.bytes:
        raise BlockError(f"{entry.file} ended early: it was changed while it was read")
    return tensor


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of named tensors: name, type, shape and bytes of each, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
