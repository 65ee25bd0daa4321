"""One process at a time, with the kernel's locks and on a file system that has none."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from mvl.errors import RunError
from mvl.files import REPOSITORY
from mvl.locks import acquired, is_locked, locked

#: Another process that holds a folder's lock until it is killed.
HOLD = """
import errno, fcntl, os, sys, time
def flock(file, operation):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
if int(sys.argv[2]):
    fcntl.flock = flock
from mvl.locks import locked
with locked(sys.argv[1], "training this run"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another(folder, code):
    command = [sys.executable, "-c", HOLD, str(folder), str(code)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=[0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def code(request, monkeypatch):
    """What this file system answers to flock: 0 has it."""

    def flock(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_two_processes_exclude_each_other_and_a_dead_one_blocks_nobody(tmp_path, code):
    assert not is_locked(tmp_path)
    with another(tmp_path, code) as process:
        assert is_locked(tmp_path)
        with (
            pytest.raises(RunError, match="training this run"),
            locked(tmp_path, "training this run"),
        ):
            pass
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
        with locked(tmp_path, "training this run"):
            assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("code", [errno.ENOLCK], indirect=True)
def test_a_lock_of_another_machine_is_named_and_removing_it_helps(tmp_path, code):
    marker = tmp_path / ".lock.held"
    (tmp_path / ".lock").touch()
    marker.write_text("12345\nanother-machine\n")
    assert is_locked(tmp_path)
    with pytest.raises(RunError, match=f"remove {marker}"), locked(tmp_path, "training"):
        pass
    marker.unlink()
    with locked(tmp_path, "training"):
        pass


def test_one_that_waits_gets_it_from_one_that_dies(tmp_path, code):
    path = tmp_path / ".lock"
    with another(tmp_path, code) as process:
        with pytest.raises(BlockingIOError), acquired(path):
            pass
        killed = threading.Event()
        killer = threading.Timer(0.3, lambda: (killed.set(), process.kill(), process.wait()))
        killer.start()
        with acquired(path, wait=60):
            assert killed.is_set()


def test_a_fault_of_another_kind_is_not_taken_for_a_missing_flock(tmp_path, monkeypatch):
    def broken(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), acquired(tmp_path / "x"):
        pass
