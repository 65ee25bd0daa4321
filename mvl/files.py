"""Files that are whole or not there: each is written next to its place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl.config import PROTOCOL_VERSION
from mvl.errors import MvlError

if TYPE_CHECKING:
    import pandas as pd
    import torch

#: The checkout that this package is in, with profiles, notebooks and results.
REPOSITORY = Path(__file__).resolve().parents[1]

#: How the names of files and folders begin that are being written.
_UNFINISHED = ".mvl-writing-"
#: No JSON file and no table of ours or of a data set comes near this size.
_LIMIT = 64 << 20


@contextlib.contextmanager
def written(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block ends well.

    A reader never sees half a file, and a process that is killed leaves the old one in place; what
    it had begun goes when the next file is written to that folder, which is made if it is missing.

    Raises:
        MvlError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)

    def make():
        # The ending stays, since nibabel and matplotlib choose the format by it.
        ending = "".join(path.suffixes[-2:])
        handle, temporary = tempfile.mkstemp(ending, _UNFINISHED, path.parent)
        os.close(handle)
        return temporary

    try:
        with _temporary(path.parent, make) as temporary:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes files private; a result should be as readable as any other file.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
    except OSError as error:
        raise MvlError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def staging(folder: Path | str) -> Iterator[Path]:
    """Yield a new folder inside `folder`, to put things together and rename them to their place.

    It goes with all that is left in it when the block ends; that of a process which was killed
    goes when the next file or folder is begun in the same place.

    Raises:
        OSError: it cannot be written.
    """
    with _temporary(Path(folder), lambda: tempfile.mkdtemp(None, _UNFINISHED, folder)) as temporary:
        yield temporary


@contextlib.contextmanager
def _temporary(folder: Path, make: Callable[[], str]) -> Iterator[Path]:
    """Yield the path of what `make` makes in a folder, locked; remove what is left of it after."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_UNFINISHED}*"):  # of a killed process: its locks went with it
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(handle)
    while True:
        path = Path(make())
        with contextlib.suppress(FileNotFoundError):  # another process may sweep it before the lock
            handle = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # without locks nothing is swept
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists():
                break
            os.close(handle)
    try:
        yield path
    finally:
        _remove(path)
        os.close(handle)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_section(path: Path | str, begin: str, end: str, section: str) -> str:
    """The text of a file with `section` between two of its lines, in place of what is there.

    Raises:
        MvlError: the file lacks one of the two lines.
    """
    text = Path(path).read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise MvlError(f"{path} lacks one of the lines {begin!r} and {end!r}")
    return f"{text.split(begin)[0]}{begin}\n{section}\n{end}{text.split(end)[1]}"


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` as JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def refuse_endless(path: Path | str) -> None:
    """Refuse a pipe or a device, of which reading might never end.

    Raises:
        MvlError: it is one.
        OSError: there is no such file.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        raise MvlError(f"{path} is not a regular file")


def read_small(path: Path | str) -> bytes:
    """All bytes of a small file, unpacked where its name ends in .gz.

    Raises:
        MvlError: it is endless, or larger than anything that belongs there, unpacked or not.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    refuse_endless(path)
    opened, content = gzip.open if str(path).endswith(".gz") else open, bytearray()
    with opened(path, "rb") as file:
        while block := file.read(1 << 20):
            content += block
            if len(content) > _LIMIT:
                reason = f"more than {_LIMIT:,} bytes"
                raise MvlError(f"{path} is too large to be what it should: {reason}")
    return bytes(content)


def _each_once(pairs):
    """A JSON object; of a key that is there twice Python would keep the last value silently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice in one object; keep one of them")
    return value


def read_json(path: Path | str, *keys: str) -> Any:
    """Read a JSON file, which must have these keys; without any, it need not be an object.

    Raises:
        MvlError: the file is missing, unreadable, not JSON, or lacks a key.
    """
    path = Path(path)
    try:
        # Editors on Windows begin a file with a byte order mark.
        text = read_small(path).decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_each_once)
    except FileNotFoundError as error:
        raise MvlError(f"{path} does not exist") from error
    except OSError as error:
        raise MvlError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MvlError(f"{path} is not readable JSON: {error}") from error
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise MvlError(f"{path} lacks {key!r}: it is damaged, or of another version")
    return value


#: Columns that are texts in every table, whatever they look like: "000", "1e5", "NA", "".
_TEXTS = (
    *("task", "subject", "case", "structure"),
    *("arm", "arm_a", "arm_b", "block", "fingerprint", "commit"),
)


def read_table(
    path: Path | str, columns: Collection[str] = (), numbers: Collection[str] = ()
) -> pd.DataFrame:
    """Read a CSV file, compressed where its name ends in .gz.

    Names of cases, subjects, arms and the like come as they were written: a case "001" is not 1,
    a subject "NA" is not a missing one.

    Args:
        columns, numbers: columns that it must have, the latter with numbers alone.

    Raises:
        MvlError: the file is missing, unreadable or not a table, or a column is; or it was made
            under another version of the protocol.
    """
    import pandas as pd  # `mvl --help` does without

    try:
        table = pd.read_csv(
            io.BytesIO(read_small(path)),
            dtype=dict.fromkeys(_TEXTS, str),
            na_values=[""],
            keep_default_na=False,
        )
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
    """Write a pandas table as CSV, floats with nine significant digits, whole or not at all.

    A path that ends in .gz is compressed; equal tables give equal bytes.
    """
    content = frame.to_csv(index=False, float_format="%.9g").encode()
    with written(path) as temporary:
        # pandas' own compression would store the temporary file's name.
        compressed = str(path).endswith(".gz")
        temporary.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
