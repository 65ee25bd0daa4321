"""One process at a time: locks that end with the process that holds them.

The lock is the kernel's (flock) wherever the file system has it. Lustre without `-o flock` and NFS
without a lock daemon have none. There a file that names process and machine stands for the lock
(filelock's SoftFileLock): if that process has died, another one of the same machine takes it over.
"""

import contextlib
import errno
import fcntl
from pathlib import Path

from filelock import SoftFileLock, Timeout

from mvl.errors import MvlError, RunError

#: What a file system without flock answers.
_WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
#: Seconds within which the lock of a process that has died is taken over.
_PATIENCE = 0.3


def acquired(file, wait=False):
    """Take the lock of an open file.

    Args:
        file: an open file with a name.
        wait: until another process gives it back.

    Returns:
        A context manager, with whose block the lock ends; closing the file ends it, too, where
        the file system has flock.

    Raises:
        BlockingIOError: another process holds it; `strerror` says what to do.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "wait until it has ended") from error
    except OSError as error:
        if error.errno not in _WITHOUT_FLOCK:
            raise
        try:
            return _marker(file.name).acquire(timeout=-1 if wait else _PATIENCE)
        except Timeout as held:
            way_out = f"or, if it has died on another machine, remove {held.lock_file}"
            raise BlockingIOError(
                errno.EWOULDBLOCK, f"wait until it has ended, {way_out}"
            ) from error
    return contextlib.nullcontext()


def _marker(path):
    return SoftFileLock(f"{path}.held")


@contextlib.contextmanager
def locked(folder, what):
    """Hold a folder's lock for a block.

    Args:
        folder: made if it is missing; gets a file `.lock`.
        what: what another holder is doing, for the error, such as "training this run".

    Raises:
        RunError: another process holds the lock.
        MvlError: the folder cannot be written.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(acquired(held.enter_context(open(folder / ".lock", "a"))))
        except BlockingIOError as error:
            raise RunError(f"another process is {what} in {folder}: {error.strerror}") from error
        except OSError as error:
            raise MvlError(f"cannot write to {folder}: {error.strerror or error}") from error
        yield


def is_locked(folder):
    """Whether a process holds the folder's lock (see `locked`)."""
    path = Path(folder) / ".lock"
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two that look do not see each other
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _WITHOUT_FLOCK:
                raise
            return _is_held(_marker(path))
    return False


def _is_held(marker):
    if not Path(marker.lock_file).exists():
        return False
    try:
        with marker.acquire(timeout=_PATIENCE):
            return False
    except OSError:  # it is held, or this process may not take over that of a dead one
        return True
