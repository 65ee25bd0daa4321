"""The notebooks, executed in order by papermill, skipped when unchanged; each in its own kernel."""

import hashlib
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvl.data.task_folder import data_root
from mvl.errors import ConfigError, MvlError, RunError
from mvl.files import REPOSITORY, read_json, write_json
from mvl.locks import locked
from mvl.machine import GIB, PeakMemory, memory_limit
from mvl.progress import INTERVAL_S, clock
from mvl.runner.kernels import Kernels
from mvl.runner.profiles import load_profile

#: What of mvl/ no notebook can reach: the command line, the links, and the report of a run. Any
#: other file of the package may decide what a notebook shows.
BESIDE = ("__main__.py", "cli.py", "show/links.py", "show/report")


class NotebookError(MvlError):
    """A notebook that did not run to its end; the message names notebook, cell and error."""


@dataclass
class Outcome:
    """What became of a notebook in a run.

    Attributes:
        status: "ok", "unchanged", "failed" or "not run".
        seconds: how long it ran; None where it did not.
        memory: the `PeakMemory` of its kernel; None where it did not run.
    """

    status: str = "not run"
    seconds: float | None = None
    memory: PeakMemory | None = None


def run(profile, only=None, start=None, force=False, root=REPOSITORY):
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
        {name of a chosen notebook: `Outcome`}, in order.

    Raises:
        MvlError: nothing could be started: no such profile or notebook, or another run is
            writing the same results.
    """
    root = Path(root).resolve()
    parameters = load_profile(profile, root)
    # What each is made of is written down before the first kernel imports the package: code that
    # is changed meanwhile makes the later ones run again.
    jobs = [Job(path, parameters, root) for path in _chosen(root, only, start)]
    outcomes = {job.name: Outcome() for job in jobs}
    fault = None
    lock = locked(root / "results" / profile, f"running profile {profile}")
    with lock, Kernels(root / "notebooks", _environment(profile)) as kernels:
        for n, job in enumerate(jobs):
            outcome = outcomes[job.name]
            if not force and job.is_done():
                outcome.status = "unchanged"
                continue
            started = time.monotonic()
            try:
                more = any(force or not later.is_done() for later in jobs[n + 1 :])
                job.execute(kernels, outcome, more)
                outcome.status = "ok"
            except NotebookError as error:
                outcome.status, fault = "failed", error
            outcome.seconds = time.monotonic() - started
            if fault:
                break
    _print_summary(outcomes)
    if fault:
        print(f"\n{fault}", file=sys.stderr, flush=True)
    return outcomes


def outdated(profile: dict, root: Path = REPOSITORY) -> dict[str, str]:
    """Why executed copies of notebooks are not what a run would make now: {notebook: reason}.

    `profile` has the parameters of `load_profile`. A copy that is of now is not among them.
    """
    reasons = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        try:
            if not Job(path, profile, root).is_done():
                reason = "was run before the code, the profile, the reference or the data changed"
                reasons[path.stem] = reason
        except MvlError as error:
            reasons[path.stem] = str(error).replace(f"{root}/", "")
    return reasons


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
class Job:
    """One notebook with the parameters of one profile.

    Attributes:
        source: the notebook's file.
        profile: the parameters, from `load_profile`.
        root: the repository.
        name: the file's name without its ending.
        copy: where its executed copy belongs.
        record: where it is written down what a copy that ended well was made of.
    """

    source: Path
    profile: dict
    root: Path

    def __post_init__(self):
        folder = self.root / "results" / self.profile["profile"] / "notebooks"
        self.name = self.source.stem
        self.copy = folder / self.source.name
        self.record = folder / f"{self.name}.done.json"
        self.code = self._code_hash()

    def made_of(self):
        """What decides the notebook's outputs, as hashes: code and parameters, and input data."""
        return {"code": self.code, "inputs": self._inputs_hash()}

    def _code_hash(self):
        """SHA-256 of the notebook, its parameters, the package, and the numbers it may show."""
        files = [self.source, self.root / "profiles" / f"{self.profile['profile']}.yaml"]
        for folder in ("mvl", "benchmarks", "results/reference"):
            files += (path for path in (self.root / folder).rglob("*") if path.is_file())
        beside = {self.root / "mvl" / name for name in BESIDE}
        digest = hashlib.sha256()
        for path in sorted(files):
            made = path.name.startswith(".") or path.parent.name == "__pycache__"
            if not made and beside.isdisjoint((path, *path.parents)):
                digest.update(f"{path.relative_to(self.root)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _inputs_hash(self):
        """SHA-256 of names, sizes and times of the files of its tasks and of a local block.

        The files themselves may be many gigabytes; `mvl.fit` reads them anyway. Only a notebook
        with the parameter `tasks` is about more than the profile's task: the phantoms that it
        makes are nothing to the others, which need not run again for them.
        """
        name, tasks = self.profile["profile"], [self.profile["task"]]
        if "tasks" in self._declared():
            tasks = sorted({*tasks, *self.profile["tasks"]})
        roots = [self.root / "data" / name]
        if self.profile["source"] != "phantom":
            roots.append(data_root())
        folders = [root / task for root in roots for task in tasks]
        _, _, place = self.profile["block"].partition(":")
        if place.startswith("/"):  # `load_profile` has made a file's or folder's name absolute
            folders.append(Path(place))
        digest = hashlib.sha256()
        for folder in folders:
            for path in sorted([folder, *folder.rglob("*")]):
                if path.is_file():
                    facts = path.stat()
                    said = f"{path.relative_to(folder.parent)}\0{facts.st_size}"
                    said += f"\0{facts.st_mtime_ns}\0"
                    digest.update(said.encode())
        return digest.hexdigest()

    def _declared(self):
        """Names of the notebook's parameters."""
        import papermill

        return papermill.inspect_notebook(self._read())

    def is_done(self):
        """Whether the executed copy ended well and nothing that it was made of has changed."""
        if not (self.copy.is_file() and self.record.is_file()):
            return False
        try:
            return read_json(self.record) == self.made_of()
        except MvlError:
            return False

    def execute(self, kernels, outcome, more):
        """Run the notebook in a kernel of its own and say how it goes.

        Args:
            kernels: `Kernels`.
            outcome: its `Outcome`, which is told of the kernel's memory.
            more: whether another notebook follows.

        Raises:
            NotebookError: the notebook cannot be read, a cell failed, or the kernel died.
        """
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

        # papermill logs what is reported below in a form for people.
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        notebook = self._read()
        declared = self._declared()
        earlier = self._durations()
        progress = _Progress(self.name, [earlier.get(cell.id) for cell in notebook.cells])
        try:
            self.copy.parent.mkdir(parents=True, exist_ok=True)
            self.record.unlink(missing_ok=True)
            with progress, kernels.one(more) as kernel, PeakMemory(kernel.pid) as memory:
                outcome.memory = memory
                papermill.execute_notebook(
                    notebook,
                    # papermill fills in what stands in braces.
                    str(self.copy).replace("{", "{{").replace("}", "}}"),
                    parameters={k: v for k, v in self.profile.items() if k in declared},
                    kernel_name="python3",
                    language="python",
                    km=kernel,
                    progress_bar=False,
                    on_cell_start=progress.cell_started,
                )
        except PapermillExecutionError as error:
            raise self._failure(progress, f"{error.ename}: {error.evalue}".strip(": ")) from error
        except DeadKernelError as error:
            held, all_of_it = outcome.memory.bytes / GIB, memory_limit() / GIB
            raise self._failure(
                progress,
                "its kernel died (killed from outside, or out of memory); it held "
                f"{held:.1f} GiB at most, of {all_of_it:.1f} GiB at hand",
            ) from error
        except RuntimeError as error:
            # nbclient says so when a kernel never answers.
            raise NotebookError(f"{self.name}: the kernel did not start: {error}") from error
        except OSError as error:
            reason = error.strerror or error
            raise NotebookError(f"{self.name}: cannot write {self.copy}: {reason}") from error
        # The inputs as they are now: the notebook itself may have downloaded or made them.
        write_json(self.record, self.made_of())

    def _read(self):
        import nbformat

        try:
            notebook = nbformat.read(self.source, as_version=4)
        except Exception as error:  # nbformat has no common class for what a broken file raises
            raise NotebookError(f"{self.source} is no readable notebook: {error}") from error
        # papermill wants to be told, and the kernel is ours whatever the file says.
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        return notebook

    def _durations(self):
        """Seconds that cells took when the notebook was last executed, by the cells' ids."""
        import nbformat

        with suppress(Exception):  # no copy, or a broken one: then nothing is known
            cells = nbformat.read(self.copy, as_version=4).cells
            return {cell.id: cell.metadata.get("papermill", {}).get("duration") for cell in cells}
        return {}

    def _failure(self, progress, reason):
        copy = self.copy.relative_to(self.root)
        message = f"{self.name}: cell {progress.cell} of {progress.cells} failed: {reason}"
        if progress.line:
            message += f"\n  the cell begins: {progress.line}"
        return NotebookError(f"{message}\n  its executed copy: {copy}")


def _environment(profile):
    """Environment variables of the kernels, beside those of this process."""
    chosen = {"MVL_PROFILE": profile}
    if os.environ.get("MVL_DATA_ROOT"):
        # Kernels run in notebooks/, where a relative folder would be another one.
        chosen["MVL_DATA_ROOT"] = str(data_root().absolute())
    return chosen


class _Progress:
    """Says where a notebook is: one live line on a terminal, else a plain line now and then.

    Args:
        name: the notebook's.
        durations: seconds that each of its cells took before, None for those of which it is not
            known.
    """

    def __init__(self, name, durations):
        self.name = name
        self.durations = durations
        #: Number of the running cell in the source, from 1; 0 before the first.
        self.cell = 0
        self.cells = len(durations)
        #: First line of code of the running cell.
        self.line = ""
        self.live = sys.stdout.isatty()
        self.started = self.cell_start = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def cell_started(self, cell, cell_index):
        """nbclient's hook; the cell that papermill puts in counts as a part of the one before."""
        if "injected-parameters" in cell.metadata.get("tags", ()):
            return
        self.cell += 1
        self.cell_start = time.monotonic()
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
        end = f"{self.name}: {word}, {clock(time.monotonic() - self.started)}"
        print(f"\r\x1b[K{end}" if self.live else end, flush=True)

    def _tell(self):
        while not self.ended.wait(1 if self.live else INTERVAL_S):
            line = self._line()
            with suppress(BrokenPipeError):  # the main thread will meet it, and end the run
                print(f"\r\x1b[K{line}" if self.live else f"{line}\n", end="", flush=True)

    def _line(self):
        line = f"{self.name}: cell {self.cell} of {self.cells}"
        line += f", {clock(time.monotonic() - self.started)} elapsed"
        left = self._left()
        return line if left is None else f"{line}, about {clock(left)} left"

    def _left(self):
        """Seconds until the end, if cells take as long as they did; None where that is no guide."""
        rest = self.durations[max(0, self.cell - 1) :]
        spent = time.monotonic() - self.cell_start if self.cell else 0.0
        # A cell that takes longer than it did has more to do, and nobody knows how much.
        return None if None in rest or spent > sum(rest[:1]) else sum(rest) - spent


def _print_summary(outcomes):
    width = max(len("notebook"), *map(len, outcomes))
    print(f"\n{'notebook':<{width}}  {'status':<9}  {'seconds':>7}  {'peak memory':>11}")
    for name, outcome in outcomes.items():
        ran = outcome.seconds is not None
        seconds = f"{outcome.seconds:.1f}" if ran else "-"
        peak = f"{outcome.memory.bytes / GIB:.2f} GiB" if outcome.memory else "-"
        print(f"{name:<{width}}  {outcome.status:<9}  {seconds:>7}  {peak:>11}")
    print(flush=True, end="")
