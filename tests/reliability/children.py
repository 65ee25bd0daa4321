"""Child processes that start warm, so that a test can kill or confine one that it started.

They are forked from a server that has imported what is slow to import. A fork of pytest's own
process would inherit what earlier tests left in it: threads, which PyTorch does not survive.
"""

import contextlib
import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "tests.reliability.stages", "tests.reliability.corpus"])

#: Seconds that a child may take to start: the first one waits for the imports.
_START_S = 300


@dataclass(frozen=True)
class Ended:
    """What became of a child.

    Attributes:
        status: its exit status; negative is the signal that killed it.
        value: what the function returned; None if it did not end.
        output: all that it printed.
        seconds: from its start to its end.
    """

    status: int
    value: object
    output: str
    seconds: float


def run(function, *arguments, log, environment=None, kill=None, patience=120):
    """Call a function in a child process with a session of its own and one thread.

    Args:
        function: of a module that can be imported.
        arguments: what it is called with.
        log: the file that gets what it prints.
        environment: variables to set.
        kill: seconds after its start at which its process group is killed (SIGKILL).
        patience: seconds after which it is killed because it hangs.

    Returns:
        `Ended`.
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
    redirect(log)
    os.environ.update(environment)
    torch.set_num_threads(1)
    pipe.send("about to start")
    pipe.send(function(*arguments))


def redirect(log):
    """Let a file have what this process prints from here on."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())
    os.close(output)


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")


class FileOperations:
    """Counts what this process is about to change below a folder, and can die at one of them.

    An audit hook cannot be removed: for child processes alone.

    Args:
        folder: the folder.
        fatal: the number, from 0, of the operation at which the process group is killed.
    """

    def __init__(self, folder, fatal=None):
        self.folder, self.fatal, self.count = str(folder), fatal, 0
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in _CHANGES
        if not writes or not str(arguments[0]).startswith(self.folder):
            return
        if self.count == self.fatal:
            os.killpg(0, signal.SIGKILL)
        self.count += 1


def address_space():
    """Bytes of this process' address space, which RLIMIT_AS bounds."""
    return _status("VmSize")


def reset_peak_memory():
    """Let `peak_memory` count from here on; returns the bytes that the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory():
    """The most bytes that this process held at once."""
    return _status("VmHWM")


def _status(field):
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", text)[1])


_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUSER, _REMOUNT, _PRIVATE = 0x20000, 0x10000000, 32, 1 << 18 | 1 << 14


def obey_permissions():
    """Make this process obey the permission bits of files, which root does not."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    header, data = Header(0x20080522, 0), (Data * 2)()
    _call("capget", ctypes.byref(header), data)
    data[0].effective &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    _call("capset", ctypes.byref(header), data)


class SmallDisk:
    """A file system in memory, mounted where only this process sees it; for child processes alone.

    Args:
        folder: where it is mounted.
        size: its bytes; rounded up to whole pages.

    Raises:
        OSError: this machine does not allow it.
    """

    def __init__(self, folder, size):
        self.folder = str(folder).encode()
        user, group = os.getuid(), os.getgid()
        _call("unshare", _NEWNS | (_NEWUSER if user else 0))
        if user:  # root in a name space of its own
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _call("mount", b"none", b"/", None, _PRIVATE, None)
        self._mount(0, size)

    def resize(self, size):
        """Change its size; what is on it stays."""
        self._mount(_REMOUNT, size)

    def _mount(self, flags, size):
        _call("mount", b"tmpfs", self.folder, b"tmpfs", flags, f"size={size}".encode())


def _call(name, *arguments):
    if getattr(_LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
