"""What a machine gives: how much memory there is, and how much was taken of it."""

import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

GIB = 2**30

#: Where Linux says what a container may take: control groups of version 2, and of version 1.
CONTROL_GROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
#: Where it says how much of how long a period a container may compute, in microseconds.
QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def cores():
    """Number of processors that this process may keep at work: a container may be given fewer."""
    counts = [len(os.sched_getaffinity(0))]
    for paths in QUOTAS:
        told = [word for path in paths if path.is_file() for word in path.read_text().split()]
        if len(told) == 2 and all(map(str.isdecimal, told)):  # no limit is "max", or -1
            counts.append(max(1, math.ceil(int(told[0]) / int(told[1]))))
    return min(counts)


def memory_limit():
    """Bytes of memory at hand: the machine's, or less where a container is given less.

    JupyterHub, and with it Binder, names its limit in the environment variable MEM_LIMIT.
    """
    told = [os.environ.get("MEM_LIMIT", "")]
    told += [path.read_text() for path in CONTROL_GROUPS if path.is_file()]
    # Where there is no limit, they say nothing, 0, "max" or a number beyond any machine.
    limits = [int(text) for text in map(str.strip, told) if text.isdecimal()]
    return min(limit for limit in [psutil.virtual_memory().total, *limits] if limit)


class PeakMemory:
    """The most memory that a process and its children held at once while a block ran.

    It is sampled: what a process takes in the last `INTERVAL_S` seconds of its life is missed.
    Pages that processes share are counted for each of them, except for `SETTLED_S` seconds: a
    process that starts a program is there twice for a moment, with all its memory.

    Args:
        pid: of the process.

    Attributes:
        bytes: the peak.
    """

    INTERVAL_S = 0.25
    SETTLED_S = 1.0

    def __init__(self, pid):
        self.bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(self.INTERVAL_S):
            with suppress(psutil.NoSuchProcess):  # it has ended
                process = psutil.Process(self._pid)
                held = [process, *process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(map(self._held, held)))

    def _held(self, process):
        """Bytes of memory that a process holds; 0 if it has just begun, or ended."""
        try:
            settled = time.time() - process.create_time() >= self.SETTLED_S
            return process.memory_info().rss if settled else 0
        except psutil.Error:
            return 0
