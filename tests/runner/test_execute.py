"""The execute runner on tiny notebooks, in a repository made for each test."""

import errno
import fcntl
import os
import re
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mvl.errors import ConfigError, RunError
from mvl.files import REPOSITORY, write_json
from mvl.runner import execute

#: Smoke, which would not look at the files below MVL_DATA_ROOT.
PROFILE = (REPOSITORY / "profiles/smoke.yaml").read_text().replace("phantom\n", "auto\n", 1)


class Repository:
    """A folder with a profile, a package and notebooks; their cells can append to `log`."""

    def __init__(self, folder):
        self.root = folder / "a folder with {braces}"
        for name in ("notebooks", "profiles", "mvl"):
            (self.root / name).mkdir(parents=True)
        self.log = self.root / "log.txt"
        self.write("profiles/smoke.yaml", PROFILE)
        self.write("mvl/code.py", "x = 1\n")

    def write(self, name, text):
        (self.root / name).write_text(text, encoding="utf-8")

    def notebook(self, name, *cells, parameters=None):
        notebook = new_notebook(cells=[new_markdown_cell(f"# {name}")])
        if parameters is not None:
            cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
            notebook.cells.append(cell)
        notebook.cells += map(new_code_cell, cells)
        nbformat.write(notebook, self.root / "notebooks" / f"{name}.ipynb")

    def logs(self, expression):
        """Source of a cell that appends the value of `expression` to the log."""
        return f"print({expression}, file=open({str(self.log)!r}, 'a'))"

    def logged(self):
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def executed(self, name):
        return nbformat.read(self.root / "results/smoke/notebooks" / f"{name}.ipynb", as_version=4)

    def outputs(self, name):
        """Of all cells of the executed copy."""
        return [out for cell in self.executed(name).cells for out in cell.get("outputs", [])]

    def run(self, **options):
        """Exit status of a run; the outcomes are in `outcomes`."""
        self.outcomes = execute.run("smoke", root=self.root, **options)
        return int(any(outcome.status == "failed" for outcome in self.outcomes.values()))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "data"))
    return Repository(tmp_path)


@pytest.fixture
def three(repository):
    for name in ("02_c", "00_a", "01_b"):
        repository.notebook(name, repository.logs(repr(name)))
    return repository


def test_notebooks_run_in_order_and_are_skipped_while_unchanged(three, capsys):
    three.notebook("draft", "1 / 0")  # without a number: none of the story's
    assert three.run() == 0
    assert three.logged() == ["00_a", "01_b", "02_c"]
    assert three.run() == 0
    assert len(three.logged()) == 3
    assert capsys.readouterr().out.count("unchanged") == 3

    three.notebook("01_b", three.logs("'changed'"))
    three.run()
    assert three.logged()[3:] == ["changed"]
    three.run(only="2", force=True)
    three.run(start="01_b", force=True)
    assert three.logged()[4:] == ["02_c", "changed", "02_c"]
    with pytest.raises(ConfigError, match="00_a, 01_b, 02_c"):
        three.run(only="07")


def test_each_thing_that_a_result_depends_on_makes_it_run_again(repository, tmp_path):
    repository.notebook("00_a", repository.logs("'ran'"))
    dataset = tmp_path / "data" / "Task04_Hippocampus" / "dataset.json"
    label = dataset.parent / "labelsTr" / "a.nii.gz"
    label.parent.mkdir(parents=True)
    for folder in ("benchmarks", "suites", "results/reference"):
        (repository.root / folder).mkdir(parents=True)
    assert repository.run() == 0

    def job():
        profile = execute.load_profile("smoke", repository.root)
        return execute.Job(repository.root / "notebooks" / "00_a.ipynb", profile, repository.root)

    def changes(write, path, text):
        assert job().is_done()
        write(path, text)
        changed = not job().is_done()
        write_json(job().record, job().made_of())
        return changed

    assert changes(repository.write, "mvl/code.py", "x = 2\n")
    assert changes(repository.write, "mvl/figures.mplstyle", "font.size: 9\n")
    assert changes(repository.write, "benchmarks/results.json", "{}")
    assert changes(repository.write, "suites/mine.yaml", "question: x\n")
    assert changes(repository.write, "results/reference/cases.csv", "a\n")
    assert changes(
        repository.write, "profiles/smoke.yaml", PROFILE.replace("epochs: 2", "epochs: 3")
    )
    assert changes(Path.write_text, dataset, "{}")
    assert changes(Path.write_text, label, "voxels")
    weights = tmp_path / "language model" / "model.safetensors"
    weights.parent.mkdir()
    own = PROFILE.replace("package:all-minilm-l6-v2", f"path:{weights.parent}")
    assert changes(repository.write, "profiles/smoke.yaml", own)
    assert changes(Path.write_text, weights, "weights")
    assert not changes(repository.write, "profiles/quick.yaml", "")
    assert not changes(repository.write, "mvl/.code.py.swp", "x = 3\n")

    assert changes(repository.write, "profiles/smoke.yaml", PROFILE)
    assert repository.run() == 0
    assert repository.logged() == ["ran"]
    job().copy.unlink()
    assert repository.run() == 0
    assert repository.logged() == ["ran", "ran"]


def test_a_notebook_of_many_tasks_depends_on_all_their_files_and_no_other_does(
    repository, tmp_path
):
    phantom = repository.root / "data" / "smoke" / "Task01_BrainTumour" / "dataset.json"
    repository.notebook("00_a", repository.logs("'one'"))
    make = f"import pathlib; p = pathlib.Path({str(phantom)!r})"
    make += "; p.parent.mkdir(parents=True, exist_ok=True); p.exists() or p.write_text('{}')"
    repository.notebook("01_b", make, repository.logs("'many'"), parameters="tasks = []")
    assert repository.run() == repository.run() == 0
    assert repository.logged() == ["one", "many"], "its own phantom is nothing new"
    real = tmp_path / "data" / "Task01_BrainTumour" / "dataset.json"
    real.parent.mkdir(parents=True)
    for path in (phantom, real):
        path.write_text("{} ")
        assert repository.run() == 0
    assert repository.logged() == ["one", "many", "many", "many"]


def test_a_kernel_is_this_interpreter_fresh_and_knows_its_parameters_profile_and_data(
    repository, tmp_path, monkeypatch
):
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("MVL_PROFILE", "gpu")
    monkeypatch.setenv("MVL_DATA_ROOT", "data")  # relative to where the command was given
    variables = "os.environ['MVL_PROFILE'], os.environ['MVL_DATA_ROOT']"
    parameters = "epochs = 77\ngrid = [1, 1, 1]\nother = 'own'"
    declared = repository.logs("epochs, grid, other, 'seeds' in globals()")
    for name in ("00_a", "01_b"):
        look = repository.logs("os.getpid(), 'x' in globals()")
        where = repository.logs(f"sys.executable, os.getcwd(), {variables}")
        cells = ("import os, sys", look, where, declared, "x = 1")
        repository.notebook(name, *cells, parameters=parameters)
    assert repository.run() == 0
    (pid, *_), *first = (line.split() for line in repository.logged()[:3])
    (other_pid, known), *second = (line.split() for line in repository.logged()[3:])
    assert pid != other_pid and known == "False" and not psutil.pid_exists(int(pid))
    where = f"{sys.executable} {repository.root / 'notebooks'} smoke {Path('data').absolute()}"
    assert first == second == [where.split(), ["2", "[24,", "32,", "24]", "own", "False"]]


def test_a_kernel_that_cannot_be_started_is_one_sentence(repository, monkeypatch, capsys):
    async def refuse(self, **given):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("jupyter_client.manager.AsyncKernelManager.start_kernel", refuse)
    repository.notebook("00_a", "x = 1")
    assert repository.run() == 1
    assert "00_a: the kernel did not start" in capsys.readouterr().err


def test_code_that_is_changed_meanwhile_makes_the_later_notebooks_run_again(repository):
    repository.notebook(
        "00_a", f"open({str(repository.root / 'mvl/code.py')!r}, 'a').write('y = 2')"
    )
    repository.notebook("01_b", "x = 1")
    assert repository.run() == 0
    repository.notebook("00_a", "x = 1")
    for status in ("ok", "unchanged"):  # it may have imported what was there before
        assert repository.run() == 0
        assert repository.outcomes["01_b"].status == status


def test_what_says_that_it_is_incomplete_runs_again(repository):
    lacking = repository.root / "lacking"
    lacking.touch()
    cell = "from pathlib import Path\nfrom mvl.progress import say_incomplete\n"
    cell += f"say_incomplete(['no disk'] * Path({str(lacking)!r}).exists())"
    repository.notebook("00_a", cell)
    repository.notebook("01_b", repository.logs("'goes on'"))
    for status in ("incomplete", "incomplete"):
        repository.run()
        assert repository.outcomes["00_a"].status == status
    assert repository.logged() == ["goes on"] and "no disk" in str(repository.outputs("00_a"))
    lacking.unlink()
    for status in ("ok", "unchanged"):
        repository.run()
        assert repository.outcomes["00_a"].status == status


def test_what_shows_earlier_runs_runs_again_after_them(repository):
    repository.notebook("00_a", "x = 1")
    repository.notebook("01_b", f"class Exhibits(dict): pass\n{repository.logs(repr('shown'))}")
    repository.run(only="01")
    repository.run()  # the first time that 00 runs
    assert repository.logged() == ["shown"] * 2
    assert repository.run() == 0 and len(repository.logged()) == 2


def test_a_figure_is_a_picture_in_the_executed_copy(repository):
    repository.notebook("00_a", "import matplotlib.pyplot as plt\nplt.subplots()[0]")
    assert repository.run() == 0
    outputs = repository.outputs("00_a")
    assert outputs and all("image/png" in out.data for out in outputs)


def test_a_failing_cell_ends_the_run_and_is_named(repository, capsys):
    repository.notebook("00_a", repository.logs("'a'"))
    repository.notebook(
        "01_b",
        "x = 0",
        "# halves\ny = 1 / x",
        repository.logs("'never'"),
        parameters="epochs = 1",
    )
    repository.notebook("02_c", repository.logs("'c'"))
    assert repository.run() == 1
    assert repository.logged() == ["a"]

    out, err = capsys.readouterr()
    # After heading, parameters and x = 0; the cell that papermill adds is not counted.
    assert "01_b: cell 4 of 5 failed: ZeroDivisionError" in err
    assert "y = 1 / x" in err and "results/smoke/notebooks/01_b.ipynb" in err
    assert "Traceback" not in out + err
    table = [line.split() for line in out.partition("notebook  ")[2].splitlines()[1:]]
    assert [row[:2] for row in table[:2]] == [["00_a", "ok"], ["01_b", "failed"]]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 and row[4] == "GiB" for row in table[:2])
    assert table[2] == ["02_c", "not", "run", "-", "-"]
    assert [out.ename for out in repository.outputs("01_b")] == ["ZeroDivisionError"]

    # Mended, the run goes on where it stopped.
    repository.notebook("01_b", repository.logs("'b'"))
    assert repository.run() == 0
    assert repository.logged() == ["a", "b", "c"]


def test_a_kernel_that_dies_is_told_with_its_memory(repository, tmp_path, capsys):
    alive = tmp_path / "killed"
    die = f"alive or (path.touch(), os.kill(os.getpid(), 9))\n{repository.logs(repr('b'))}"
    begin = f"import os, pathlib; path = pathlib.Path({str(alive)!r}); alive = path.exists()"
    repository.notebook("00_a", repository.logs("'a'"))
    repository.notebook("01_b", begin, die)
    assert repository.run() == 1
    out, err = capsys.readouterr()
    assert "01_b: cell 3 of 3 failed: its kernel died" in err
    assert re.search(r"it held \d\.\d GiB at most, of \d+\.\d GiB", err)
    assert out.splitlines()[-1].split()[:2] == ["01_b", "failed"]
    assert repository.executed("01_b").cells[1].execution_count == 1
    assert repository.run() == 0
    assert repository.logged() == ["a", "b"]


def test_a_failure_takes_the_place_of_an_earlier_success(repository, monkeypatch):
    repository.notebook("00_a", "import os", "assert 'FAIL' not in os.environ")
    assert repository.run() == 0
    with monkeypatch.context() as patch:
        patch.setenv("FAIL", "1")
        assert repository.run(force=True) == 1
    assert repository.run() == 0
    assert not repository.outputs("00_a")


def test_two_runs_do_not_write_the_same_results(three):
    folder = three.root / "results/smoke"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            three.run()
    assert three.logged() == []
    assert three.run() == 0


def test_a_broken_or_missing_notebook_is_one_sentence(repository, capsys):
    with pytest.raises(RunError, match="no notebook"):
        repository.run()
    repository.write("notebooks/00_a.ipynb", "{")
    assert repository.run() == 1
    out, err = capsys.readouterr()
    assert "00_a.ipynb" in err and "Traceback" not in out + err
