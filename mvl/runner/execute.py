"""The notebooks, executed in order by papermill, skipped when unchanged; each in its own kernel."""

import hashlib
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.data.task_folder import data_root
from mvl.errors import ConfigError, MvlError, RunError
from mvl.files import REPOSITORY, read_json, write_json
from mvl.locks import locked
from mvl.machine import GIB, PeakMemory, memory_limit
from mvl.progress import INCOMPLETE, Progress
from mvl.runner.kernels import kernel_in
from mvl.study.profiles import load_profile


@dataclass
class Outcome:
    """What became of a notebook: "ok", "unchanged", "incomplete", "failed" or "not run"."""

    status: str = "not run"
    seconds: float | None = None
    memory: PeakMemory | None = None


def run(
    profile: str,
    only: str | None = None,
    start: str | None = None,
    force: bool = False,
    root: Path | str = REPOSITORY,
) -> dict[str, Outcome]:
    """Execute the notebooks of a repository and print how it goes; {name: `Outcome`}, in order.

    Executed copies are written to results/<profile>/notebooks, also of a notebook that fails,
    and a notebook that is unchanged since its copy ended well is skipped, but with `force`. The
    first failure ends the run: later notebooks build on what earlier ones leave. One that says
    what it lacks (`say_incomplete`) is "incomplete", and runs again the next time. `only` and
    `start` are the number or the name of the one notebook, or of the first of several.

    Raises:
        MvlError: no such profile or notebook, or another run is writing the same results.
    """
    root = Path(root).resolve()
    parameters = load_profile(profile, root)
    # The code is hashed before the first kernel imports the package: code that is changed
    # meanwhile makes the later notebooks run again.
    jobs = [Job(path, parameters, root) for path in _chosen(root, only, start)]
    outcomes, failure = {job.name: Outcome() for job in jobs}, None
    with locked(root / "results" / profile, f"running profile {profile}"):
        for job in jobs:
            outcome = outcomes[job.name]
            if not force and job.is_done():
                outcome.status = "unchanged"
                continue
            print(f"{job.name} ...", flush=True)
            started = time.monotonic()
            try:
                outcome.status = "ok" if job.execute(outcome) else "incomplete"
            except RunError as error:
                outcome.status, failure = "failed", error
            outcome.seconds = time.monotonic() - started
            print(f"{job.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)
            if failure:
                break
    _print_summary(outcomes)
    if failure:
        print(f"\n{failure}", file=sys.stderr, flush=True)
    return outcomes


def outdated(profile: dict, root: Path = REPOSITORY) -> dict[str, str]:
    """{notebook: why its executed copy is not what a run would make now}; `load_profile`'s."""
    reasons = {}
    for path in _notebooks(root):
        try:
            if not Job(path, profile, root).is_done():
                reason = "was run before the code, the profile, the reference or the data changed"
                reasons[path.stem] = reason
        except MvlError as error:
            reasons[path.stem] = str(error).replace(f"{root}/", "")
    return reasons


def _notebooks(root):
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def _chosen(root, only, start):
    """Paths of the notebooks to run, in order."""
    paths, name = _notebooks(root), only or start
    if not paths:
        raise RunError(f"{root / 'notebooks'} holds no notebook such as 00_start_here.ipynb")
    for index, path in enumerate(paths):
        if not name or name.zfill(2) in (path.stem, path.stem[:2]):
            return [path] if only else paths[index:]
    raise ConfigError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in paths)}")


class Job:
    """A notebook, a profile, the executed `copy`, and the `record` of what it was made of."""

    def __init__(self, source: Path, profile: dict[str, Any], root: Path) -> None:
        self.source, self.profile, self.root = source, profile, root
        self.name = source.stem
        folder = root / "results" / profile["profile"] / "notebooks"
        self.copy, self.record = folder / source.name, folder / f"{self.name}.done.json"
        self._code = self._code_hash()

    def made_of(self) -> dict[str, str]:
        """Hashes of what decides the notebook's outputs: code with parameters, and input data.

        What shows the runs of earlier notebooks depends on what these were made of, too.
        """
        made = {"code": self._code, "inputs": self._inputs_hash()}
        sources = "\n".join(cell.source for cell in self._read().cells)
        if "Exhibits(" in sources or "trained.json" in sources:
            digest = hashlib.sha256()
            for path in _notebooks(self.root):
                record = self.record.with_name(f"{path.stem}.done.json")
                if path.name < self.source.name and record.is_file():
                    digest.update(record.read_bytes())
            made["earlier"] = digest.hexdigest()
        return made

    def is_done(self) -> bool:
        """Whether the executed copy ended well and nothing that it was made of has changed."""
        try:
            return self.copy.is_file() and read_json(self.record) == self.made_of()
        except MvlError:
            return False

    def _code_hash(self):
        """SHA-256 of the notebook, its parameters, the package, and the numbers it may show."""
        files = [self.source, self.root / "profiles" / f"{self.profile['profile']}.yaml"]
        for folder in ("mvl", "benchmarks", "suites", "results/reference"):
            files += (path for path in (self.root / folder).rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in sorted(files):
            if not path.name.startswith(".") and path.parent.name != "__pycache__":
                digest.update(f"{path.relative_to(self.root)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _inputs_hash(self):
        """SHA-256 of names, sizes and times of the files of its tasks and of a local block.

        The files themselves may be many gigabytes; `mvl.fit` reads them anyway. Only a notebook
        with the parameter `tasks` is about more than the profile's task.
        """
        name, tasks = self.profile["profile"], [self.profile["task"]]
        if "tasks" in self._declared():
            tasks = sorted({*tasks, *self.profile["tasks"]})
        roots = [self.root / "data" / name]
        if self.profile["source"] != "phantom":
            roots.append(data_root())
        folders = [root / task for root in roots for task in tasks]
        _, _, block = self.profile["block"].partition(":")
        if block.startswith("/"):  # `load_profile` has made a file's or folder's name absolute
            folders.append(Path(block))
        digest = hashlib.sha256()
        for folder in folders:
            for path in sorted(path for path in [folder, *folder.rglob("*")] if path.is_file()):
                status = path.stat()
                parts = (path.relative_to(folder.parent), status.st_size, status.st_mtime_ns, "")
                digest.update("\0".join(map(str, parts)).encode())
        return digest.hexdigest()

    def _declared(self):
        """Names of the notebook's parameters."""
        import papermill

        return papermill.inspect_notebook(self._read())

    def _read(self):
        import nbformat

        try:
            notebook = nbformat.read(self.source, as_version=4)
        except Exception as error:  # nbformat has no common class for what a broken file raises
            raise RunError(f"{self.source} is not a readable notebook: {error}") from error
        # papermill asks for it, and the kernel is ours whatever the file says.
        spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["kernelspec"] = spec
        return notebook

    def execute(self, outcome: Outcome) -> bool:
        """Run the notebook in its own kernel and print how it goes; `outcome` gets its memory.

        Returns whether it is complete.

        Raises:
            RunError: the notebook cannot be read, a cell failed, or the kernel died.
        """
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

        # papermill logs what is reported below.
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        notebook, declared = self._read(), self._declared()
        begun = []

        def begin(cell, cell_index):
            if "injected-parameters" not in cell.metadata.get("tags", ()):  # papermill's own cell
                begun.append(cell)
                progress.step()

        try:
            self.copy.parent.mkdir(parents=True, exist_ok=True)
            self.record.unlink(missing_ok=True)
            with (
                Progress(self.name, len(notebook.cells), "cell") as progress,
                kernel_in(self.root / "notebooks", self.profile["profile"]) as kernel,
                PeakMemory(kernel.provisioner.pid) as memory,
            ):
                outcome.memory = memory
                executed = papermill.execute_notebook(
                    notebook,
                    # papermill replaces names in braces.
                    str(self.copy).replace("{", "{{").replace("}", "}}"),
                    parameters={k: v for k, v in self.profile.items() if k in declared},
                    kernel_name="python3",
                    language="python",
                    km=kernel,
                    progress_bar=False,
                    on_cell_start=begin,
                )
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".strip(": ")
            raise self._failure(begun, notebook, reason) from error
        except DeadKernelError as error:
            held, limit = outcome.memory.bytes / GIB, memory_limit() / GIB
            reason = "its kernel died (killed from outside, or out of memory); "
            reason += f"it held {held:.1f} GiB at most, of {limit:.1f} GiB here"
            raise self._failure(begun, notebook, reason) from error
        except RuntimeError as error:  # from nbclient, where a kernel never answers
            raise RunError(f"{self.name}: the kernel did not start: {error}") from error
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{self.name}: cannot write {self.copy}: {reason}") from error
        outputs = (output for cell in executed.cells for output in cell.get("outputs", ()))
        if any(INCOMPLETE in output.get("metadata", {}) for output in outputs):
            return False
        # The inputs as they are now: the notebook itself may have downloaded or made them.
        write_json(self.record, self.made_of())
        return True

    def _failure(self, begun, notebook, reason):
        source = begun[-1].source if begun else ""  # a kernel may die before its first cell
        lines = [line.strip() for line in source.splitlines()]
        code = next((line for line in lines if line and not line.startswith("#")), "")
        return RunError(
            f"{self.name}: cell {len(begun)} of {len(notebook.cells)} failed: {reason}\n"
            f"  the cell begins: {code}\n  its executed copy: {self.copy.relative_to(self.root)}"
        )


def _print_summary(outcomes):
    width = max(len("notebook"), *map(len, outcomes))
    print(f"\n{'notebook':<{width}}  {'status':<10}  {'seconds':>7}  {'peak memory':>11}")
    for name, outcome in outcomes.items():
        ran = outcome.seconds is not None
        seconds = f"{outcome.seconds:.1f}" if ran else "-"
        peak = f"{outcome.memory.bytes / GIB:.2f} GiB" if outcome.memory else "-"
        print(f"{name:<{width}}  {outcome.status:<10}  {seconds:>7}  {peak:>11}")
    print(flush=True, end="")
