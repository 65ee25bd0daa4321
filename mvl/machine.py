"""What a machine gives: processors, memory, and how much of it a process took."""

import math
import os
import threading
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


def cores() -> int:
    """Number of processors that this process may keep busy: a container may be given fewer."""
    counts = [len(os.sched_getaffinity(0))]
    for paths in QUOTAS:
        words = [word for path in paths if path.is_file() for word in path.read_text().split()]
        if len(words) == 2 and all(map(str.isdecimal, words)):  # no limit is "max", or -1
            counts.append(max(1, math.ceil(int(words[0]) / int(words[1]))))
    return min(counts)


def memory_limit() -> int:
    """Bytes of memory that may be used: the machine's, or less where a container is given less."""
    # JupyterHub, and with it Binder, names its limit in MEM_LIMIT.
    texts = [os.environ.get("MEM_LIMIT", "")]
    texts += [path.read_text() for path in CONTROL_GROUPS if path.is_file()]
    # Where there is no limit, they say nothing, 0, "max" or a number beyond any machine.
    limits = [int(text) for text in map(str.strip, texts) if text.isdecimal()]
    return min(limit for limit in [psutil.virtual_memory().total, *limits] if limit)


class PeakMemory(threading.Thread):
    """The most memory (`bytes`) that a process and its children held at once while a block ran.

    It is sampled. A page that several of them share counts once (PSS).
    """

    #: A sample of a process that holds a gigabyte takes some 50 ms.
    INTERVAL_S = 1.0

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes, self._pid, self._ended = 0, pid, threading.Event()

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        ended = False
        while not ended:  # one sample even of a block that is shorter than the interval
            held = 0
            with suppress(psutil.NoSuchProcess):  # it has ended
                process = psutil.Process(self._pid)
                for each in (process, *process.children(recursive=True)):
                    with suppress(psutil.Error):  # a child has ended meanwhile
                        held += each.memory_full_info().pss
            self.bytes = max(self.bytes, held)
            ended = self._ended.wait(self.INTERVAL_S)
