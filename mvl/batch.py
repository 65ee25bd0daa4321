"""The notebooks, executed in order by papermill, skipped when unchanged; each in its own kernel.

The kernel is always the interpreter that runs this module: a kernel called "python3" that a
user has registered elsewhere may lack every package that the notebooks need.
"""

import hashlib
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from mvl.data.sources import data_root
from mvl.errors import ConfigError, MvlError, RunError
from mvl.files import locked, read_json, write_json
from mvl.progress import INTERVAL_S

ROOT = Path(__file__).resolve().parents[1]

#: What a profile says: the parameters that a notebook may declare, and their types.
PROFILE_KEYS = {
    "profile": str,
    "task": str,
    "source": str,
    "phantom_cases": int,
    "phantom_scale": float,
    "grid": list,
    "fit": str,
    "block": str,
    "epochs": int,
    "seeds": list,
    "language_arms": list,
    "fusion_arms": list,
    "adaptation_arms": list,
    "data_arms": list,
    "peers_arms": list,
}


class NotebookError(MvlError):
    """A notebook that did not run to its end; the message names notebook, cell and error."""


def load_profile(name, root=ROOT):
    """The parameters of a profile.

    Args:
        name: "smoke", "quick", "gpu" or "paper": a file of profiles/ without its ending.
        root: the repository.

    Returns:
        A dict with exactly the keys of `PROFILE_KEYS`.

    Raises:
        ConfigError: there is no such profile, or its file has a missing or unknown key or a
            value of another type.
    """
    folder = Path(root) / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no profile {name!r} in {folder}; there are: {', '.join(known)}")
    path = folder / f"{name}.yaml"
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(profile, dict):
        raise ConfigError(f"{path}: expected lines of the form 'key: value'")
    for kind, keys in (
        ("lacks", PROFILE_KEYS.keys() - profile.keys()),
        ("has the unknown", profile.keys() - PROFILE_KEYS.keys()),
    ):
        if keys:
            raise ConfigError(f"{path} {kind} {', '.join(sorted(map(str, keys)))}")
    for key, wanted in PROFILE_KEYS.items():
        if type(profile[key]) is not wanted:
            raise ConfigError(f"{path}: {key} must be a {wanted.__name__}, not {profile[key]!r}")
    if profile["profile"] != name:
        raise ConfigError(f"{path}: profile must be {name}, the file's own name")
    return profile


def run(profile, only=None, start=None, force=False, root=ROOT):
    """Execute the notebooks of a repository and say on standard output how it goes.

    Executed copies are written to results/<profile>/notebooks, also of a notebook that fails,
    and a notebook that is unchanged since its copy ended well is skipped. The first failure
    ends the run: later notebooks build on what earlier ones leave.

    Args:
        profile: name of a profile, see `load_profile`.
        only: the number, such as "03", or the name of the one notebook to run.
        start: the number or name of the notebook to begin with.
        force: run notebooks that are unchanged, too.
        root: the repository.

    Returns:
        0 if every chosen notebook ran or was unchanged, else 1.

    Raises:
        MvlError: nothing could be started: no such profile or notebook, or another run is
            writing the same results.
    """
    root = Path(root).resolve()
    parameters = load_profile(profile, root)
    notebooks = _chosen(root, only, start)
    # Kernels run in notebooks/, where a relative folder would be another one.
    if os.environ.get("MVL_DATA_ROOT"):
        os.environ["MVL_DATA_ROOT"] = str(data_root().absolute())

    rows = {path.stem: ("not run", 0.0) for path in notebooks}
    fault = None
    with locked(root / "results" / profile, f"running profile {profile}"):
        for path in notebooks:
            job = _Job(path, parameters, root)
            if not force and job.is_done():
                rows[path.stem] = ("unchanged", 0.0)
                continue
            started = time.monotonic()
            try:
                job.execute()
                rows[path.stem] = ("ok", time.monotonic() - started)
            except NotebookError as error:
                rows[path.stem] = ("failed", time.monotonic() - started)
                fault = error
                break
    _print_summary(rows)
    if fault:
        print(f"\n{fault}", file=sys.stderr, flush=True)
    return 1 if fault else 0


def _chosen(root, only, start):
    """Paths of the notebooks to run, in order."""
    if only and start:
        raise ConfigError("give one notebook or the first one of several, not both")
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise RunError(f"{root / 'notebooks'} holds no notebook such as 00_start_here.ipynb")
    name = only or start
    if not name:
        return paths
    for index, path in enumerate(paths):
        if name in (path.name, path.stem, path.stem[:2]):
            return [path] if only else paths[index:]
    raise ConfigError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in paths)}")


@dataclass
class _Job:
    """One notebook with the parameters of one profile."""

    source: Path
    profile: dict
    root: Path

    def __post_init__(self):
        import nbformat

        folder = self.root / "results" / self.profile["profile"] / "notebooks"
        self.name = self.source.stem
        self.copy = folder / self.source.name
        self.record = folder / f"{self.name}.done.json"
        try:
            self.notebook = nbformat.read(self.source, as_version=4)
        except Exception as error:  # nbformat has no common class for what a broken file raises
            raise NotebookError(f"{self.source} is no readable notebook: {error}") from error
        # papermill wants to be told, and the kernel is ours whatever the file says.
        self.notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        self.code = self._code_hash()

    def _code_hash(self):
        """SHA-256 of what decides a notebook's outputs, its input data aside."""
        files = [self.source, self.root / "profiles" / f"{self.profile['profile']}.yaml"]
        for folder, pattern in (("mvl", "*.py"), ("mvl", "*.csv"), ("results/reference", "*")):
            files += (path for path in (self.root / folder).rglob(pattern) if path.is_file())
        digest = hashlib.sha256()
        for path in sorted(files):
            digest.update(f"{path.relative_to(self.root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _inputs_hash(self):
        """SHA-256 of the task's dataset.json; None where there is none."""
        path = data_root() / self.profile["task"] / "dataset.json"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def is_done(self):
        """Whether the executed copy ended well and nothing that it depends on has changed."""
        if not (self.copy.is_file() and self.record.is_file()):
            return False
        try:
            record = read_json(self.record)
        except MvlError:
            return False
        return record == {"code": self.code, "inputs": self._inputs_hash()}

    def execute(self):
        """Run the notebook; raises NotebookError."""
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

        # papermill logs what is reported below in a form for people.
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        self.copy.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        declared = papermill.inspect_notebook(self.notebook)
        progress = _Progress(self.name, len(self.notebook.cells))
        try:
            with progress:
                papermill.execute_notebook(
                    self.notebook,
                    # papermill fills in what stands in braces.
                    str(self.copy).replace("{", "{{").replace("}", "}}"),
                    parameters={k: v for k, v in self.profile.items() if k in declared},
                    kernel_name="python3",
                    language="python",
                    kernel_manager_class=_own_kernel_manager(),
                    cwd=self.source.parent,
                    progress_bar=False,
                    on_cell_start=progress.cell_started,
                )
        except PapermillExecutionError as error:
            raise self._failure(progress, f"{error.ename}: {error.evalue}".strip(": ")) from error
        except DeadKernelError as error:
            raise self._failure(
                progress, "its kernel died (killed from outside, or out of memory)"
            ) from error
        except RuntimeError as error:
            # nbclient says so when a kernel never answers.
            raise NotebookError(f"{self.name}: the kernel did not start: {error}") from error
        # The inputs as they are now: the notebook itself may have downloaded or made them.
        write_json(self.record, {"code": self.code, "inputs": self._inputs_hash()})

    def _failure(self, progress, reason):
        copy = self.copy.relative_to(self.root)
        message = f"{self.name}: cell {progress.cell} of {progress.cells} failed: {reason}"
        if progress.line:
            message += f"\n  the cell begins: {progress.line}"
        return NotebookError(f"{message}\n  its executed copy: {copy}")


def _own_kernel_manager():
    """A kernel manager that knows one kernel, "python3", and takes it to be sys.executable."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernelManager(AsyncKernelManager):
        def _kernel_spec_manager_default(self):
            # With no folder to look into, jupyter_client falls back to ipykernel's own
            # specification, which starts the running interpreter.
            return KernelSpecManager(parent=self, kernel_dirs=[])

        def _transport_encryption_default(self):
            # Other users of the machine can listen on its sockets; ipykernel warns of it.
            return "auto"

    return OwnKernelManager


class _Progress:
    """Says where a notebook is: one live line on a terminal, else a plain line now and then."""

    def __init__(self, name, cells):
        self.name = name
        #: Number of the running cell in the source, from 1; 0 before the first.
        self.cell = 0
        self.cells = cells
        #: First line of code of the running cell.
        self.line = ""
        self.live = sys.stdout.isatty()
        self.started = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def cell_started(self, cell, cell_index):
        """nbclient's hook; the cell that papermill puts in counts as a part of the one before."""
        if "injected-parameters" in cell.metadata.get("tags", ()):
            return
        self.cell += 1
        lines = [line.strip() for line in cell.source.splitlines()]
        self.line = next((line for line in lines if line and not line.startswith("#")), "")

    def __enter__(self):
        if not self.live:
            print(f"{self.name}: {self.cells} cells", flush=True)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.ended.set()
        self.thread.join()
        word = "ok"
        if kind:
            word = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        end = f"{self.name}: {word}, {self._elapsed()}"
        print(f"\r\x1b[K{end}" if self.live else end, flush=True)

    def _elapsed(self):
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def _tell(self):
        while not self.ended.wait(1 if self.live else INTERVAL_S):
            line = f"{self.name}: cell {self.cell} of {self.cells}, {self._elapsed()}"
            print(f"\r\x1b[K{line}" if self.live else f"{line}\n", end="", flush=True)


def _print_summary(rows):
    width = max(len("notebook"), *map(len, rows))
    print(f"\n{'notebook':<{width}}  {'status':<9}  seconds")
    for name, (status, seconds) in rows.items():
        print(f"{name:<{width}}  {status:<9}  {seconds:7.1f}")
    print(flush=True, end="")
