"""How much memory there is, and how much child processes held."""

import subprocess
import sys

import psutil
import pytest

from mvl import machine
from mvl.machine import GIB, PeakMemory, memory_limit

HALF = GIB // 4


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder in which files of control groups can be put; no limit is set elsewhere."""
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    paths = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    monkeypatch.setattr(machine, "CONTROL_GROUPS", paths)
    return paths


def test_the_smallest_limit_counts(groups, monkeypatch):
    whole = psutil.virtual_memory().total
    assert memory_limit() == whole

    # As version 2 and version 1 write that there is no limit.
    groups[0].write_text("max\n")
    groups[1].write_text("9223372036854771712\n")
    assert memory_limit() == whole

    groups[1].write_text(f"{2 * HALF}\n")
    assert memory_limit() == 2 * HALF
    monkeypatch.setenv("MEM_LIMIT", str(HALF))
    assert memory_limit() == HALF
    groups[0].write_text("1048576\n")
    assert memory_limit() == 2**20


@pytest.mark.parametrize("told", ["0", "2G"])
def test_a_limit_that_is_none_is_not_taken_for_one(groups, monkeypatch, told):
    monkeypatch.setenv("MEM_LIMIT", told)
    assert memory_limit() == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("max 100000", None, None), 16),
        (("250000 100000", None, None), 3),
        ((None, "-1", "100000"), 16),
        ((None, "200000", "100000"), 2),
    ],
)
def test_a_container_may_keep_fewer_processors_at_work(tmp_path, monkeypatch, told, expected):
    paths = [tmp_path / name for name in ("cpu.max", "cfs_quota_us", "cfs_period_us")]
    for path, text in zip(paths, told, strict=True):
        if text:
            path.write_text(f"{text}\n")
    monkeypatch.setattr(machine, "QUOTAS", ((paths[0],), tuple(paths[1:])))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert machine.cores() == expected


def peak_of(code):
    """The peak of a Python process that runs this code."""
    with (
        subprocess.Popen([sys.executable, "-c", code]) as process,
        PeakMemory(process.pid) as peak,
    ):
        assert process.wait() == 0
    return peak.bytes


def test_the_peak_is_that_of_a_process_and_its_children_and_a_shared_page_counts_once(monkeypatch):
    monkeypatch.setattr(PeakMemory, "INTERVAL_S", 0.2)
    take = f"x = b'x' * {HALF}; import time; time.sleep(1)"
    # The first starts the second, and both hold as much; a copy that it forks holds the same.
    both = f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {take!r}]); "
    both += f"x = b'x' * {HALF}; pid = os.fork(); import time; time.sleep(1)"
    stranger = subprocess.Popen([sys.executable, "-c", take])
    assert 2 * HALF <= peak_of(both) <= 2 * HALF + GIB / 8
    stranger.wait()
