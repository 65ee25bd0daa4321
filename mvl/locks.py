"""One process at a time: locks of files that end with the process that holds them."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from mvl.errors import MvlError, RunError

#: What a file system without flock answers: Lustre by default, and NFS without a lock daemon.
_WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
#: Seconds for a look at the lock to end, or for the lock of a dead process to be taken over.
_PATIENCE = 0.3


@contextlib.contextmanager
def acquired(path: Path | str, wait: float | None = None) -> Iterator[None]:
    """Hold a file's lock inside a `with` statement; the file is made if it is missing.

    Where there is no flock, a file PATH.held is the lock; it names the process and the machine.

    Args:
        wait: seconds to wait until another process releases it; without, a moment.

    Raises:
        BlockingIOError: another process holds it; `strerror` says what to do.
    """
    patience, advice = _PATIENCE if wait is None else wait, "wait until it has ended"
    with contextlib.ExitStack() as held:
        try:
            try:
                held.enter_context(FileLock(path, patience, fallback_to_soft=False))
            except OSError as error:
                if error.errno not in _WITHOUT_FLOCK:
                    raise
                advice += f", or, if it has died on another machine, remove {path}.held"
                held.enter_context(SoftFileLock(f"{path}.held", patience))
        except Timeout as error:
            raise BlockingIOError(errno.EWOULDBLOCK, advice) from error
        yield


@contextlib.contextmanager
def locked(folder: Path | str, what: str) -> Iterator[None]:
    """Hold a folder's lock, its file `.lock`, inside a `with` statement; the folder is made.

    Args:
        what: what the holder is doing, for the error, such as "training this run".

    Raises:
        RunError: another process holds the lock.
        MvlError: the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            held.enter_context(acquired(Path(folder) / ".lock"))
        except BlockingIOError as error:
            raise RunError(f"another process is {what} in {folder}: {error.strerror}") from error
        except OSError as error:
            raise MvlError(f"cannot write to {folder}: {error.strerror or error}") from error
        yield


def is_locked(folder: Path | str) -> bool:
    """Whether a process holds the folder's lock (see `locked`)."""
    path = Path(folder) / ".lock"
    try:
        with acquired(path) if path.exists() else contextlib.nullcontext():
            return False
    except OSError as error:  # where nothing may be written, nothing is locked
        return isinstance(error, BlockingIOError)
