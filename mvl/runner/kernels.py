"""The kernel of a notebook: a fork of a process that has the large libraries loaded.

To import MONAI takes ten seconds of each notebook otherwise. Nothing of `mvl` is loaded before
the fork, so a kernel sees the package as it is when the notebook starts.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.utils import run_sync
from tqdm import tqdm

from mvl.data.task_folder import data_root

#: What is loaded before the fork. Loading starts no threads that a fork would lose.
PRELOADED = ["monai", "ipykernel.ipkernel", "pandas", "matplotlib.figure"]
#: Where a kernel keeps its files; below the home by default, which a container may not have.
_FOLDERS = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")
_FOLDERS += ("MPLCONFIGDIR",)


@contextlib.contextmanager
def kernel_in(folder: Path, profile: str) -> Iterator[AsyncKernelManager]:
    """Start a kernel of this interpreter in a folder; end it with the block, at once.

    Raises:
        RuntimeError: the kernel cannot be started.
    """
    # With no folder to look into, jupyter_client falls back to ipykernel's specification, which
    # starts the running interpreter. Other users of the machine could listen on the sockets.
    kernel = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        transport_encryption="auto",
    )
    kernel.provisioner = _Forked(
        parent=kernel, kernel_id=str(uuid.uuid4()), kernel_spec=kernel.kernel_spec
    )
    clients, client = [], kernel.client
    # nbclient leaves open the client of a kernel that it has not started.
    kernel.client = lambda **options: clients.append(client(**options)) or clients[-1]
    with tempfile.TemporaryDirectory() as files:
        environment = os.environ | {"MVL_PROFILE": profile}
        if not os.access(os.path.expanduser("~"), os.W_OK):
            environment = dict.fromkeys(_FOLDERS, files) | environment
        if os.environ.get("MVL_DATA_ROOT"):  # relative to the user's folder
            environment["MVL_DATA_ROOT"] = str(data_root().absolute())
        try:
            run_sync(kernel.start_kernel)(
                cwd=str(folder),
                env=environment,
                extra_arguments=["--HistoryManager.hist_file=:memory:"],
            )
        except OSError as error:
            raise RuntimeError(error.strerror or error) from error
        try:
            yield kernel
        finally:  # one that holds torch takes seconds to leave when it is asked
            for opened in clients:
                opened.stop_channels()
            run_sync(kernel.shutdown_kernel)(now=True)


class _Forked(LocalProvisioner):
    """Starts a kernel's command in a fork, where jupyter_client starts a new interpreter."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        self.process = _Process(target=_run, args=(cmd, options["cwd"], options["env"]))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(PRELOADED)


def in_fork(function: Callable, *arguments: object) -> int:
    """Call a function of a module in a process that has the large libraries loaded.

    Returns:
        The process' exit code: not 0 where the function raised or the process was killed.
    """
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


class _Process(_FORKS.Process):
    """A forked process with those methods of `subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)


def _run(command, folder, environment):
    """In the fork: become the leader of a group, and run `python -m module arguments`."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    # ipykernel leaves when this parent, the server of forks, has ended.
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    # matplotlib reads MPLBACKEND when it is loaded, which was before ipykernel sets it.
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    # tqdm's own lock takes a semaphore, which a kernel that is killed would not give back.
    tqdm.set_lock(threading.RLock())
    module, *sys.argv[1:] = command[command.index("-m") + 1 :]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
