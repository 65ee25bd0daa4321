"""Child processes that a test may kill or confine, and what confines a process.

Children are forked from a server that has imported what is slow to import. A fork of pytest's own
process would inherit its threads, which PyTorch does not survive.
"""

import contextlib
import ctypes
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "tests.reliability.stages"])

#: Seconds that a child may take to start: the first one waits for the imports.
_START_S = 300


class Ended(NamedTuple):
    """What became of a child."""

    #: Its exit status; negative is the signal that killed it.
    status: int
    #: What the function returned; None if it did not end.
    value: object
    #: All that it printed.
    output: str
    seconds: float


def run(function, *arguments, log, environment=None, kill=None, patience=300):
    """Call a function of a module in a child process with its own session and one thread.

    Args:
        log: the file that gets what the child prints.
        environment: variables to set.
        kill: seconds after its start at which its process group is killed (SIGKILL).
        patience: seconds after which it is killed because it hangs.
    """
    ours, theirs = _CONTEXT.Pipe()
    given = (theirs, function, arguments, str(log), environment or {})
    process = _CONTEXT.Process(target=_child, args=given)
    process.start()
    theirs.close()
    if not ours.poll(_START_S):
        raise TimeoutError("the server of the children does not answer")
    ours.recv()
    start, value = time.monotonic(), None
    if ours.poll(patience if kill is None else kill):
        with contextlib.suppress(EOFError):  # it ended by itself, but without a value
            value = ours.recv()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - start
    process.join()
    output = Path(log).read_text(encoding="utf-8", errors="replace")
    return Ended(process.exitcode, value, output, seconds)


def _child(pipe, function, arguments, log, environment):
    import torch

    # Semaphores (of tqdm) are then nameless, and go with a process that is killed.
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    pipe.send("about to start")
    pipe.send(function(*arguments))


class FileOperations:
    """Counts what this process changes below a folder, and kills its group before number `fatal`.

    An audit hook cannot be removed: for child processes alone.
    """

    def __init__(self, folder, fatal=None):
        self.folder, self.fatal, self.count = str(folder), fatal, 0
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if event == "open" and isinstance(arguments[2], int):
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if changes and str(arguments[0]).startswith(self.folder):
            if self.count == self.fatal:
                os.killpg(0, signal.SIGKILL)
            self.count += 1


class _Late(BaseException):
    """Not an error that a command may catch."""


@contextlib.contextmanager
def bounded(seconds, memory):
    """Bound this process for a block.

    Yields a list, which gets the seconds that the block took, and the bytes that it held at most
    above those at its start.

    Args:
        seconds: after which the block is interrupted.
        memory: bytes of address space that it may add.
    """

    def late(*_):
        raise _Late(f"not ended after {seconds} s")

    cost, (_, most) = [], resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, start = _status("VmRSS"), time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + memory, most))
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield cost
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        cost += [time.monotonic() - start, _status("VmHWM") - before]


def _status(field):
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", text)[1])


_LIBC = ctypes.CDLL(None, use_errno=True)


def obey_permissions(obey=True):
    """Make this process obey the permission bits of files, which root does not; or end that."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capget", header, data)
    effective, permitted = 0, 1
    # Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    data[effective] = data[permitted] & ~0b110 if obey else data[permitted]
    _call("capset", header, data)


class SmallDisk:
    """A file system in memory, which only this process sees; for child processes alone.

    Raises:
        OSError: this machine does not allow it.
    """

    def __init__(self, folder, size):
        self.folder = str(folder).encode()
        user, group = os.getuid(), os.getgid()
        newns, newuser, private = 0x20000, 0x10000000, 1 << 18 | 1 << 14
        _call("unshare", newns | (newuser if user else 0))
        if user:  # root in its own name space
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _call("mount", b"none", b"/", None, private, None)
        self.resize(size, flags=0)

    def resize(self, size, flags=32):
        """Change its size, in bytes; what is on it stays."""
        _call("mount", b"tmpfs", self.folder, b"tmpfs", flags, f"size={size}".encode())


def _call(name, *arguments):
    if getattr(_LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
