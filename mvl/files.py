"""Files that are either whole or not there: everything is written beside its name, then renamed."""

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
from pathlib import Path

from mvl.config import PROTOCOL_VERSION
from mvl.errors import MvlError

#: The checkout that this package is in: profiles, notebooks and results stand beside it.
REPOSITORY = Path(__file__).resolve().parents[1]

#: How the names of files and folders begin that are being written.
_UNFINISHED = ".mvl-writing-"
#: No JSON file and no table of ours or of a data set comes near this size.
_LIMIT = 64 << 20


@contextlib.contextmanager
def written(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block ends without error.

    A reader never sees half a file, and a process that is killed leaves the old one in place; what
    it had begun goes when the next file is written to that folder.

    Args:
        path: the final name; its folder is made if it is missing.

    Raises:
        MvlError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _temporary(path) as temporary:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes files private; a result should be as readable as any other file.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except OSError as error:
        raise MvlError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def staging(folder):
    """Yield a new folder inside `folder`, to put things together and rename them to their place.

    It goes with all that is left in it when the block ends; that of a process which was killed
    goes when the next file or folder is begun in the same place.

    Args:
        folder: where; made if it is missing.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    handle, temporary = _locked_folder(folder)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _locked_folder(folder):
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        with contextlib.suppress(FileNotFoundError):  # another process may sweep it before the lock
            handle = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(OSError):  # as in `_locked_file`
                fcntl.flock(handle, fcntl.LOCK_EX)
            if temporary.exists():
                return handle, temporary
            os.close(handle)


@contextlib.contextmanager
def _temporary(path):
    """Yield the path of a new, locked file beside `path`; remove what is still there after."""
    handle, temporary = _locked_file(path)
    try:
        yield Path(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)
        os.close(handle)


def _locked_file(path):
    while True:
        # The ending stays, since nibabel and matplotlib choose the format by it.
        handle, temporary = tempfile.mkstemp(
            prefix=_UNFINISHED, suffix="".join(path.suffixes[-2:]), dir=path.parent
        )
        with contextlib.suppress(OSError):  # a file system without locks; nothing is swept there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another process swept it away before it was locked


def _sweep(folder):
    """Remove what a killed process was writing: its locks went with it."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_section(path, begin, end, section):
    """The text of a file with `section` between two of its lines, in place of what is there.

    Raises:
        MvlError: the file lacks one of the two lines.
    """
    text = Path(path).read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise MvlError(f"{path} lacks one of the lines {begin!r} and {end!r}")
    return f"{text.split(begin)[0]}{begin}\n{section}\n{end}{text.split(end)[1]}"


def write_json(path, value):
    """Write `value` to `path` as JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def refuse_endless(path):
    """Refuse a pipe or a device, of which reading might never end.

    Raises:
        MvlError: it is one.
        OSError: there is no such file.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        raise MvlError(f"{path} is not a regular file")


def read_small(path):
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
    """A JSON object; of a key that stands twice Python would keep the last value without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice in one object; keep one of them")
    return value


def read_json(path, *keys):
    """Read a JSON file.

    Args:
        path: the file.
        keys: what it must have; none for JSON that need not be an object.

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


def read_table(path, columns=(), numbers=()):
    """Read a CSV file, compressed where its name ends in .gz.

    Names of cases, subjects, arms and the like come as they were written: a case "001" is not 1,
    a subject "NA" not a missing one.

    Args:
        path: the file.
        columns, numbers: columns that it must have, the latter with numbers alone.

    Raises:
        MvlError: the file is missing, unreadable or no table, or a column is; or it says that it
            was made under another version of the protocol.
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
            f"{PROTOCOL_VERSION}: numbers of the two do not compare; make it anew"
        )
    return table.fillna({name: "" for name in _TEXTS if name in table})


def write_tensors(path, tensors, metadata):
    """Write tensors as safetensors, whole or not at all.

    Args:
        path: the file.
        tensors: {name: tensor}, on any device.
        metadata: {key: text} for the header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # what a full disk becomes there
            raise OSError(str(error)) from error


def write_table(path, frame):
    """Write a pandas table as CSV, floats with nine significant digits, whole or not at all.

    A path that ends in .gz is compressed; equal tables give equal bytes.
    """
    content = frame.to_csv(index=False, float_format="%.9g").encode()
    with written(path) as temporary:
        # pandas' own compression would store the temporary file's name.
        compressed = str(path).endswith(".gz")
        temporary.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def sha256_of(path):
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
