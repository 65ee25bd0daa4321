"""Files that are whole or not there: each is made in a folder next to its place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl.config import PROTOCOL_VERSION
from mvl.errors import MvlError

if TYPE_CHECKING:
    import pandas as pd
    import torch

#: The checkout that this package is in, with profiles, notebooks and results.
REPOSITORY = Path(__file__).resolve().parents[1]
#: How the names of folders begin in which something is being made.
_UNFINISHED = ".mvl-writing-"


@contextlib.contextmanager
def writing(path: Path | str, way: str = "", kind: type[MvlError] = MvlError) -> Iterator[None]:
    """Turn an `OSError` of a block into one of `kind` that names the path and a way out."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {path}: {error.strerror or error}{way and f'; {way}'}") from error


@contextlib.contextmanager
def written(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path of the same name; rename it to `path` if the block ends well.

    A process that is killed leaves the old one in place. Raises an `MvlError` if the folder cannot
    be written, or the disk is full.
    """
    path = Path(path)
    with writing(path), staging(path.parent) as folder:
        yield folder / path.name
        with open(folder / path.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)


@contextlib.contextmanager
def staging(folder: Path | str) -> Iterator[Path]:
    """Yield a new folder inside `folder`, to put things together and rename them to their place.

    It goes when the block ends; that of a process which was killed goes when the next one is begun.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            opened.callback(os.close, handle := os.open(path, os.O_RDONLY))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a killed process none is left
            path.unlink() if path.is_file() else shutil.rmtree(path)
    with contextlib.ExitStack() as opened:
        while True:
            path = Path(tempfile.mkdtemp(None, _UNFINISHED, folder))
            with contextlib.suppress(FileNotFoundError):  # another process swept it before the lock
                opened.callback(os.close, handle := os.open(path, os.O_RDONLY))
                with contextlib.suppress(OSError):  # without locks nothing is swept
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if path.exists():
                    break
        opened.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_section(path: Path | str, begin: str, end: str, section: str) -> str:
    """The text of a file with `section` between two of its lines, in place of what is there."""
    text = Path(path).read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise MvlError(f"{path} lacks one of the lines {begin!r} and {end!r}")
    return f"{text.split(begin)[0]}{begin}\n{section}\n{end}{text.split(end)[1]}"


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` as JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_bytes(path: Path | str) -> bytes:
    """All bytes of a file, unpacked where its name ends in .gz."""
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
        return file.read()


def _each_once(pairs):
    """A JSON object; of a key that is there twice Python would keep the last value silently."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{max(keys, key=keys.count)!r} is there twice in one object; keep one")
    return dict(pairs)


def read_json(path: Path | str, *keys: str, kind: type[MvlError] = MvlError) -> Any:
    """Read a JSON file, which must have these keys; without any, it need not be an object.

    Raises an error of `kind` if the file is missing, unreadable, not JSON, or lacks a key.
    """
    try:
        # Editors on Windows begin a file with a byte order mark.
        text = read_bytes(path).decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_each_once)
    except FileNotFoundError as error:
        raise kind(f"{path} does not exist") from error
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not readable JSON: {error}") from error
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise kind(f"{path} lacks {key!r}: it is damaged, or of another version")
    return value


def read_object(path: Path | str, kind: type[MvlError] = MvlError) -> dict[str, Any]:
    """Read a JSON file that holds an object; an error of `kind` if it cannot be read, or is not."""
    value = read_json(path, kind=kind)
    if not isinstance(value, dict):
        raise kind(f"{path}: expected a JSON object")
    return value


#: Columns that are texts in every table, whatever they look like: "000", "1e5", "NA", "".
_TEXTS = (
    *("task", "subject", "case", "structure"),
    *("arm", "arm_a", "arm_b", "block", "fingerprint", "commit"),
)


def read_table(
    path: Path | str, columns: Collection[str] = (), numbers: Collection[str] = ()
) -> pd.DataFrame:
    """Read a CSV file, compressed where its name ends in .gz; texts come as they were written.

    Args:
        columns, numbers: columns that it must have, the latter with numbers alone.

    Raises:
        MvlError: the file is missing, unreadable or not a table, or a column is; or it was made
            under another version of the protocol.
    """
    import pandas as pd  # `mvl --help` does without

    options = {"dtype": dict.fromkeys(_TEXTS, str), "na_values": [""], "keep_default_na": False}
    try:
        table = pd.read_csv(io.BytesIO(read_bytes(path)), **options)
    except FileNotFoundError as error:
        raise MvlError(f"{path} does not exist") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise MvlError(f"{path} is not a readable table: {error}") from error
    for column in (*columns, *numbers):
        if column not in table:
            raise MvlError(f"{path} lacks the column {column!r}: it is damaged, or another table")
        if column in numbers and table[column].dtype.kind not in "fi":
            raise MvlError(f"{path}: the column {column!r} does not hold numbers alone")
    versions = {*table.get("protocol_version", ())}
    if other := sorted(map(str, versions - {PROTOCOL_VERSION})):
        raise MvlError(
            f"{path} was made under protocol version {', '.join(other)}, this is version "
            f"{PROTOCOL_VERSION}: numbers of the two do not compare; make it again"
        )
    return table.fillna({name: "" for name in _TEXTS if name in table})


def write_tensors(
    path: Path | str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors, on any device, as safetensors, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # what a full disk becomes there
            raise OSError(str(error)) from error


def write_table(path: Path | str, frame: pd.DataFrame) -> None:
    """Write a table as CSV, floats with nine significant digits; equal tables give equal bytes.

    A path that ends in .gz is compressed.
    """
    content = frame.to_csv(index=False, float_format="%.9g").encode()
    with written(path) as temporary:
        # pandas' own compression would store the time.
        compressed = str(path).endswith(".gz")
        temporary.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absolute_source(source: str | None, root: Path | str = ".") -> str | None:
    """A `LanguageConfig.source` with the whole path of its file or folder, if it names one.

    A run is used from other folders, too. `root` is where a relative path begins.
    """
    kind, _, name = (source or "").partition(":")
    named = kind in ("path", "gguf") or kind == "random" and not name.lstrip().startswith("{")
    if name and named:
        return f"{kind}:{os.path.abspath(Path(root) / os.path.expanduser(name))}"
    return source
