"""Files that are either whole or not there: everything is written beside its name, then renamed."""

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import tempfile
from pathlib import Path

from mvl.errors import MvlError, RunError


@contextlib.contextmanager
def written(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block ends without error.

    A reader never sees half a file, and a process that is killed leaves the old one in place.

    Args:
        path: the final name; its folder is made if it is missing.

    Raises:
        MvlError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays, since nibabel and matplotlib choose the format by it.
        handle, temporary = tempfile.mkstemp(
            prefix=".tmp-", suffix="".join(path.suffixes[-2:]), dir=path.parent
        )
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a result should be as readable as any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise MvlError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` to `path` as JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path):
    """Read a JSON file.

    Raises:
        MvlError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MvlError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise MvlError(f"{path} is not readable JSON: {error}") from error


def write_table(path, frame):
    """Write a pandas table as CSV, floats with nine significant digits, whole or not at all.

    A path that ends in .gz is compressed; equal tables give equal bytes.
    """
    content = frame.to_csv(index=False, float_format="%.9g").encode()
    with written(path) as temporary:
        # pandas' own compression would store the temporary file's name.
        compressed = str(path).endswith(".gz")
        temporary.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


@contextlib.contextmanager
def locked(folder, what):
    """Hold a folder's lock for a block; it goes with the process, however that ends.

    Args:
        folder: made if it is missing; gets a file `.lock`.
        what: what another holder is doing, for the error, such as "training this run".

    Raises:
        RunError: another process holds the lock.
        MvlError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115 (closed below, after the yield)
    except OSError as error:
        raise MvlError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is {what} in {folder}: wait until it has ended"
            ) from error
        yield


def is_locked(folder):
    """Whether a process holds the folder's lock (see `locked`)."""
    path = Path(folder) / ".lock"
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sha256_of(path):
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
