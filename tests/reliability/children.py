"""Child processes that a test may kill or confine, and what confines a process.

They are forked from a server that has imported what is slow to import: pytest's own process has
threads, which PyTorch does not survive.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from mvl.runner import kernels

_CONTEXT = multiprocessing.get_context("forkserver")
# A process has one server, for kernels, too; whose test comes first must not matter.
_CONTEXT.set_forkserver_preload(["pytest", "tests.reliability.stages", *kernels.PRELOADED])


class Ended(NamedTuple):
    """A child's exit status (negative: the signal that killed it), its function's value or None,
    what it printed, and the seconds that it took."""

    status: int
    value: object
    output: str
    seconds: float


def run(function, *arguments, log, environment=None, kill=300):
    """Call a function of a module in a child with a session of its own and one thread.

    The file `log` gets what the child prints; after `kill` seconds its group is killed (SIGKILL).
    """
    ours, theirs = _CONTEXT.Pipe()
    given = (theirs, function, arguments, str(log), environment or {})
    process = _CONTEXT.Process(target=_child, args=given)
    process.start()
    theirs.close()
    assert ours.poll(300), "the server of the children does not answer"  # it imports first
    ours.recv()
    start, value = time.monotonic(), None
    if ours.poll(kill):
        with contextlib.suppress(EOFError):  # it ended by itself, but without a value
            value = ours.recv()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - start
    process.join()
    output = Path(log).read_text(encoding="utf-8", errors="replace")
    return Ended(process.exitcode, value, output, seconds)


def _child(pipe, function, arguments, log, environment):
    import huggingface_hub.constants
    import torch

    # Semaphores (of tqdm) are then nameless, and go with a process that is killed.
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(environment)
    importlib.reload(huggingface_hub.constants)  # it reads the environment once
    torch.set_num_threads(1)
    pipe.send("about to start")
    pipe.send(function(*arguments))


def count_changes(folder, fatal=None):
    """Count what this process changes below a folder; before number `fatal` its group is killed.

    Returns a list of one number. A hook cannot be removed: for child processes alone.
    """
    folder, count = str(folder), [0]

    def hook(event, arguments):
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if event == "open" and isinstance(arguments[2], int):
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if changes and str(arguments[0]).startswith(folder):
            if count[0] == fatal:
                os.killpg(0, signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return count


class _Late(BaseException):
    """Not an error that a command may catch."""


@contextlib.contextmanager
def bounded(seconds, memory):
    """Bound the seconds of a block, and the bytes of address space that it may add.

    Yields a list, which gets the seconds that it took, and the bytes that it held at most.
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


def obey_permissions(obey=True):
    """Make this process obey the permission bits of files, which root does not; or end that."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capget", header, data)
    # Of data the effective capabilities come first, the permitted ones second; the bits are
    # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    data[0] = data[1] & ~0b110 if obey else data[1]
    _call("capset", header, data)


def mount(folder, size):
    """Mount a file system in memory, of `size` bytes, which only this process sees.

    Raises:
        OSError: this machine does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    newns, newuser, private = 0x20000, 0x10000000, 1 << 18 | 1 << 14
    _call("unshare", newns | (newuser if user else 0))
    if user:  # root in a name space of its own
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, private, None)
    resize(folder, size, flags=0)


def resize(folder, size, flags=32):
    """Change the size of what is mounted; what is on it stays."""
    given = str(folder).encode(), b"tmpfs", flags, f"size={size}".encode()
    _call("mount", b"tmpfs", *given)


def _call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
