"""Kernels for a batch run: one a notebook, and the next one made ready while a notebook runs.

A kernel is always the interpreter that runs this module: a kernel called "python3" that a user
has registered elsewhere may lack every package that the notebooks need.
"""

import os
import tempfile
from contextlib import contextmanager, suppress

#: Brings along nearly all that the notebooks import; that takes as long as a small one's own cells.
IMPORTS = ("mvl.show.exhibits",)
#: Where a kernel keeps what is its own; the home by default, which a container may not have.
_OWN = (
    *("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"),
    *("IPYTHONDIR", "MPLCONFIGDIR"),
)


class Kernels:
    """Starts and ends the kernels of notebooks that run one after another.

    A context manager: with the block ends the kernel that was made ready for nobody.

    Args:
        folder: where notebooks run.
        environment: environment variables of the kernels, beside those of this process.
    """

    def __init__(self, folder, environment):
        self._folder = folder
        self._environment = os.environ | environment
        self._spare = self._own = None

    def __enter__(self):
        if not os.access(os.path.expanduser("~"), os.W_OK):
            self._own = tempfile.TemporaryDirectory()
            self._environment = dict.fromkeys(_OWN, self._own.name) | self._environment
        return self

    def __exit__(self, *_):
        if self._spare:
            _end(self._spare)
        if self._own:
            self._own.cleanup()

    @contextmanager
    def one(self, more):
        """A kernel that no notebook has used, ended with the block.

        Args:
            more: whether another notebook follows, for which one is made ready meanwhile.

        Yields:
            A `jupyter_client.AsyncKernelManager` whose kernel has been started; `pid` is its
            process's.

        Raises:
            RuntimeError: no kernel can be started.
        """
        from jupyter_core.utils import run_sync

        kernel, self._spare = self._spare, None
        if kernel and not run_sync(kernel.is_alive)():
            _end(kernel)  # the machine may have wanted its memory
            kernel = None
        try:
            kernel = kernel or self._start()
        except OSError as error:
            raise RuntimeError(error.strerror or error) from error
        try:
            with suppress(OSError):  # it is a convenience, and the next notebook will say why
                self._spare = self._start(IMPORTS) if more else None
            yield kernel
        finally:
            _end(kernel)

    def _start(self, imports=()):
        from jupyter_core.utils import run_sync

        kernel = _manager_class()(kernel_name="python3")
        # An expression binds no name that a notebook might forget to import.
        options = [f"--IPKernelApp.exec_lines=__import__({name!r})" for name in imports]
        options.append("--HistoryManager.hist_file=:memory:")
        run_sync(kernel.start_kernel)(
            cwd=str(self._folder), env=self._environment, extra_arguments=options
        )
        return kernel


def _end(kernel):
    """End a kernel at once: one that holds torch takes seconds to leave when it is asked."""
    from jupyter_core.utils import run_sync

    if kernel.used_by:
        kernel.used_by.stop_channels()
    run_sync(kernel.shutdown_kernel)(now=True)


def _manager_class():
    """A kernel manager that knows one kernel, "python3", and takes it to be sys.executable."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernelManager(AsyncKernelManager):
        #: The client that nbclient makes and leaves open, since the kernel is not its own.
        used_by = None

        def _kernel_spec_manager_default(self):
            # With no folder to look into, jupyter_client falls back to ipykernel's own
            # specification, which starts the running interpreter.
            return KernelSpecManager(parent=self, kernel_dirs=[])

        def _transport_encryption_default(self):
            # Other users of the machine can listen on its sockets; ipykernel warns of it.
            return "auto"

        @property
        def pid(self):
            return self.provisioner.pid

        def client(self, **options):
            self.used_by = super().client(**options)
            return self.used_by

    return OwnKernelManager
