"""The batch runner on tiny notebooks, in a repository made for each test."""

import fcntl
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mvl import batch
from mvl.errors import ConfigError, MvlError, RunError

PROFILE = """\
profile: smoke
task: Task04_Hippocampus
source: phantom
phantom_cases: 16
phantom_scale: 0.5
grid: [16, 16, 16]
fit: pad
block: package:all-minilm-l6-v2
epochs: 2
seeds: [0]
language_arms: []
fusion_arms: []
adaptation_arms: []
data_arms: []
peers_arms: []
"""


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

    def run(self, **options):
        return batch.run("smoke", root=self.root, **options)


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
    assert capsys.readouterr().out.count(" ok  ") == 3

    assert three.run() == 0
    assert len(three.logged()) == 3
    assert capsys.readouterr().out.count("unchanged") == 3

    three.notebook("01_b", three.logs("'changed'"))
    three.run()
    assert three.logged()[3:] == ["changed"]
    three.run(only="02", force=True)
    assert three.logged()[4:] == ["02_c"]


def test_each_thing_that_a_result_depends_on_makes_it_run_again(repository, tmp_path):
    repository.notebook("00_a", repository.logs("'ran'"))
    dataset = tmp_path / "data" / "Task04_Hippocampus" / "dataset.json"
    dataset.parent.mkdir(parents=True)
    executed = repository.root / "results/smoke/notebooks/00_a.ipynb"

    def runs():
        before = len(repository.logged())
        assert repository.run() == 0
        return len(repository.logged()) - before

    assert runs() == 1
    assert runs() == 0
    repository.write("mvl/code.py", "x = 2\n")
    assert runs() == 1
    repository.write("profiles/smoke.yaml", PROFILE.replace("epochs: 2", "epochs: 3"))
    assert runs() == 1
    dataset.write_text("{}")
    assert runs() == 1
    executed.unlink()
    assert runs() == 1
    assert runs() == 0


def test_inputs_that_the_notebook_makes_itself_do_not_make_it_run_twice(repository, tmp_path):
    dataset = tmp_path / "data" / "Task04_Hippocampus" / "dataset.json"
    repository.notebook(
        "00_a",
        f"import pathlib; p = pathlib.Path({str(dataset)!r}); p.parent.mkdir(parents=True)",
        "p.write_text('{}')",
        repository.logs("'ran'"),
    )
    assert repository.run() == 0
    assert repository.run() == 0
    assert repository.logged() == ["ran"]


def test_declared_parameters_alone_are_passed(repository):
    repository.notebook(
        "00_a",
        repository.logs("epochs, grid, other, 'seeds' in globals()"),
        parameters="epochs = 77\ngrid = [1, 1, 1]\nother = 'own'",
    )
    assert repository.run() == 0
    assert repository.logged() == ["2 [16, 16, 16] own False"]


def test_the_kernel_is_this_interpreter_whatever_the_user_has_registered(
    repository, tmp_path, monkeypatch
):
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    repository.notebook("00_a", "import os, sys", repository.logs("sys.executable, os.getcwd()"))
    assert repository.run() == 0
    assert repository.logged() == [f"{sys.executable} {repository.root / 'notebooks'}"]


def test_only_and_from_choose(three):
    three.run(only="01")
    assert three.logged() == ["01_b"]
    three.run(start="01_b", force=True)
    assert three.logged()[1:] == ["01_b", "02_c"]
    with pytest.raises(ConfigError, match="no notebook '07'; there are: 00_a, 01_b, 02_c"):
        three.run(only="07")
    with pytest.raises(ConfigError, match="not both"):
        three.run(only="00", start="01")


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
    # Heading, parameters, x = 0 stand before it; the cell that papermill puts in is not counted.
    assert "01_b: cell 4 of 5 failed: ZeroDivisionError: division by zero" in err
    assert "y = 1 / x" in err and "results/smoke/notebooks/01_b.ipynb" in err
    assert "Traceback" not in out + err
    table = [line.split() for line in out.partition("notebook  ")[2].splitlines()[1:]]
    assert [row[:-1] for row in table] == [
        ["00_a", "ok"],
        ["01_b", "failed"],
        ["02_c", "not", "run"],
    ]
    outputs = [out for cell in repository.executed("01_b").cells for out in cell.get("outputs", [])]
    assert [out.ename for out in outputs] == ["ZeroDivisionError"]

    # Mended, the run goes on where it stopped.
    repository.notebook("01_b", repository.logs("'b'"))
    assert repository.run() == 0
    assert repository.logged() == ["a", "b", "c"]


def test_a_kernel_that_dies_is_named_and_the_copy_kept(repository, capsys):
    repository.notebook("00_a", "print('before')", "import os, signal; os.kill(os.getpid(), 9)")
    assert repository.run() == 1
    out, err = capsys.readouterr()
    assert "00_a: cell 3 of 3 failed: its kernel died" in err
    assert "Traceback" not in out + err
    assert repository.executed("00_a").cells[1].outputs[0].text == "before\n"
    assert repository.run() == 1, "a notebook that failed is never taken for done"


def test_a_failure_takes_the_place_of_an_earlier_success(repository, monkeypatch):
    repository.notebook("00_a", "import os", "assert 'FAIL' not in os.environ")
    assert repository.run() == 0
    with monkeypatch.context() as patch:
        patch.setenv("FAIL", "1")
        assert repository.run(force=True) == 1
    assert repository.run() == 0
    assert not any(
        output.output_type == "error"
        for cell in repository.executed("00_a").cells
        for output in cell.get("outputs", [])
    )


def test_without_a_terminal_a_line_at_intervals_says_where_it_is(repository, capsys, monkeypatch):
    monkeypatch.setattr(batch, "INTERVAL_S", 0.2)
    repository.notebook("00_a", "import time; time.sleep(1)")
    assert repository.run() == 0
    out = capsys.readouterr().out
    assert "00_a: cell 2 of 2, 0:0" in out and "\r" not in out


def test_two_runs_do_not_write_the_same_results(three):
    folder = three.root / "results/smoke"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is running profile smoke"):
            three.run()
    assert three.logged() == []
    assert three.run() == 0


def test_a_broken_or_missing_notebook_is_one_sentence(repository):
    with pytest.raises(RunError, match="holds no notebook"):
        repository.run()
    repository.write("notebooks/00_a.ipynb", "{")
    with pytest.raises(MvlError, match="00_a.ipynb is no readable notebook"):
        repository.run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROFILE.replace("epochs: 2\n", ""), "lacks epochs"),
        (PROFILE + "epoch: 2\n", "has the unknown epoch"),
        (PROFILE.replace("epochs: 2", "epochs: two"), "epochs must be a int"),
        (PROFILE.replace("profile: smoke", "profile: quick"), "the file's own name"),
        ("- a list\n", "expected lines"),
        ("a: [\n", "not readable YAML"),
    ],
)
def test_a_wrong_profile_is_one_sentence(repository, text, message):
    repository.write("profiles/smoke.yaml", text)
    with pytest.raises(ConfigError, match=message):
        batch.load_profile("smoke", repository.root)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="gpu, paper, quick, smoke"):
        batch.load_profile("fast")
