"""No pickle, no network that nobody asked for, and no secret in what is left behind."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest

from mvl.data import download
from mvl.experiment.run import Run
from mvl.files import REPOSITORY
from mvl.models.folder import load_model, save_model
from mvl.show import figures
from tests.reliability import children, stages

SECRET = "sesame-4711"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
TOKENS = dict.fromkeys(NAMES, SECRET)
PROXY = {name: f"http://me:{SECRET}@127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
WATCH = Path(__file__).with_name("watch")


def watched(folder, log):
    """Variables for a process that is watched, with tokens, and its processes."""
    paths = f"{folder}{os.pathsep}{REPOSITORY}{os.pathsep}{WATCH}"
    variables = {"PYTHONPATH": paths, "MVL_WATCH": str(log), "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= dict.fromkeys(("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"), str(folder / "jupyter"))
    return TOKENS | PROXY | variables


def asked(log):
    """(how many processes there were, what they asked)."""
    lines = log.read_text().splitlines()
    found = [line for line in lines if not line.startswith("process ")]
    return len(lines) - len(found), found


def test_what_another_process_asks_would_be_noticed(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    ask = "import socket; socket.socket(socket.AF_INET, 2).connect(('192.0.2.1', 9))"
    environment = os.environ | watched(tmp_path, tmp_path / "log")
    subprocess.run([sys.executable, "-c", code, ask], env=environment)
    assert asked(tmp_path / "log") == (2, ["asked socket.connect 192.0.2.1"])


def assert_clean(output, written):
    """No secret, and no file that looks like a pickle."""
    assert SECRET not in output
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert content[:1] != b"\x80" and content[:4] != b"PK\3\4", f"{path} looks like a pickle"


def ordinary_day(folder, given):
    """All that needs no network, one after the other: the exit statuses."""
    runpy.run_path(str(WATCH / "sitecustomize.py"))
    statuses = [stages.train(given.phantom, folder / "runs", preset="tiny-block")]
    (run,) = (folder / "runs").iterdir()
    image = next(given.phantom.glob("*/imagesTr/*.nii.gz"))
    for words in (
        ("data", "check", given.phantom / stages.TASK),
        ("data", "phantom", stages.TASK, "--root", folder, "--cases", "1", "--scale", "0.3"),
        ("evaluate", run, "--root", given.phantom),
        ("predict", image, "--run", run, "-o", folder / "out.nii.gz"),
        ("suite", "run", "tiny", "--results", folder, "--root", given.phantom, "--arms", "plain"),
        ("suite", "status", "tiny", "--results", folder, "--root", given.phantom),
        ("block", "list"),
    ):
        statuses.append(stages.mvl(*words))
    trained, cases = Run.load(run), pd.read_csv(folder / "suites" / "tiny.csv")
    save_model(trained.model, folder / "model", trained.task, trained.config.data)
    load_model(folder / "model")
    figures.save(figures.arm_differences(cases), folder / "figure")
    stages.write_notebooks(folder)
    return [*statuses, stages.STAGES["batch"](folder, given)]


def test_an_ordinary_day_pickles_nothing_asks_nothing_and_keeps_no_secret(given, tmp_path, note):
    folder, log = tmp_path / "day", tmp_path / "watch.log"
    folder.mkdir()
    environment = watched(folder, log)
    arguments = (ordinary_day, folder, given)
    done = children.run(*arguments, log=tmp_path / "log", environment=environment)
    assert done.status == 0 and {*done.value} == {0}, done.output
    processes, found = asked(log)
    assert processes > 1 and found == []
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {".json", ".csv", ".safetensors", ".png", ".ipynb"} <= {path.suffix for path in written}
    assert_clean(done.output, written)
    note("secrets", what="addresses asked, and objects out of pickles", found="none")
    what = f"pickles, and the {len(TOKENS)} tokens, in output and {len(written)} files"
    note("secrets", what=what, found="none")


@pytest.mark.slow
def test_notebooks_and_report_ask_nothing_and_keep_no_secret(tmp_path, note):
    """A batch run of notebooks, their kernels, and the report, in a copy of the repository."""
    copy, log = tmp_path / "copy", tmp_path / "log"
    for name in ("mvl", "notebooks", "profiles", "benchmarks", "results/reference"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    before = {path for path in copy.rglob("*") if path.is_file()}
    data = {"MVL_DATA_ROOT": str(copy / "data"), "MVL_CACHE": str(copy / "cache")}
    command = (sys.executable, "-m", "mvl", "run", "--profile", "smoke")
    environment = os.environ | watched(copy, log) | data
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    processes, found = asked(log)
    assert done.returncode == 0 and found == [], output
    written = [path for path in copy.rglob("*") if path.is_file() and path not in before]
    notebooks = [path for path in written if path.suffix == ".ipynb"]
    assert copy / "results" / "smoke" / "report" / "index.html" in written
    assert processes > len(notebooks) > 0
    assert_clean(output, written)
    what = f"{len(notebooks)} notebooks, kernels and report: addresses asked, tokens or pickles in"
    note("secrets", what=f"{what} output and {len(written)} files", found="none")


def without_network(folder):
    """What does need the network, behind a proxy that does not exist: exit statuses."""
    published = ("http://data.example/x.tar", "0" * 32)
    with mock.patch.object(download, "_published", lambda task: published):
        return [
            stages.mvl("data", "download", stages.TASK, "--root", folder),
            stages.mvl("block", "show", "hub:owner/name"),
            stages.mvl("predict", "x.nii.gz", "--run", folder, "-o", folder / "out.nii.gz"),
        ]


def test_no_secret_is_printed_where_the_network_fails(tmp_path, note):
    variables = {"HF_ENDPOINT": "http://hub.example", "MVL_CACHE": str(tmp_path / "cache")}
    variables["HF_HUB_CACHE"] = str(tmp_path / "hub")
    environment = TOKENS | PROXY | variables
    done = children.run(without_network, tmp_path, log=tmp_path / "log", environment=environment)
    assert done.value == [1, 1, 1], done.output
    assert "data.example" in done.output and "hub.example" in done.output
    assert SECRET not in done.output and "Traceback" not in done.output
    note("secrets", what="tokens and the proxy's password where the network fails", found="none")
