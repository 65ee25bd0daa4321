"""No pickle, no network that nobody asked for, and no secret in what is left behind."""

import io
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import tokenize
from unittest import mock

import pandas as pd
import pytest
import torch

from mvl.data import download
from mvl.experiment.run import Run
from mvl.files import REPOSITORY
from mvl.models.folder import load_model, save_model
from mvl.show import figures
from tests.reliability import children, stages

#: Modules that make or run pickles, and calls that do so in disguise.
_PICKLING = re.compile(
    r"\b(_?pickle|cPickle|cloudpickle|dill|joblib|marshal|shelve|to_pickle|read_pickle|__import__"
    r"|allow_pickle|PersistentDataset|save_state|load_state)\b|\bimport torch as\b"
    r"|\btorch \. (load|save)\b|\bfrom torch import .*\b(load|save)\b"
)


def pickling(code):
    """What of a source makes or runs pickles; comments and texts do not count."""
    words = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        text = token.type in (tokenize.COMMENT, tokenize.STRING)
        if not text or words[-2:] == ["import_module", "("]:
            words.append(token.string)
    return [match[0] for match in _PICKLING.finditer(" ".join(words))]


def sources():
    """(name, code) of every module, script and notebook."""
    for folder in ("mvl/**", "scripts", "benchmarks"):
        for path in sorted(REPOSITORY.glob(f"{folder}/*.py")):
            yield str(path), path.read_text()
    for path in sorted(REPOSITORY.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield str(path), "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_no_source_pickles(note):
    found = {name: pickling(code) for name, code in sources()}
    assert len(found) > 40 and {name: words for name, words in found.items() if words} == {}
    note("secrets", what=f"pickle in {len(found)} modules, scripts and notebooks", found="none")


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import dump", "torch.load('x')", "np.load('x', allow_pickle=1)",
     "from torch import save_state", "table.to_pickle('x')", "import torch; torch.save(1, 'x')",
     "from torch import save", "from torch import load as l", "import torch as t; t.save(1, 'x')",
     "importlib.import_module('pickle')", "__import__('pickle')"],
)  # fmt: skip
def test_a_source_that_pickles_would_be_found(code):
    assert pickling(code)


SECRET = "sesame-4711"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
TOKENS = dict.fromkeys(NAMES, SECRET)
PROXY = {name: f"http://me:{SECRET}@127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


_TORCHS = ("torch/serialization.py:save", "torch/serialization.py:load")


class Watch:
    """Notes every call of pickle's or torch's functions, and every address that is asked."""

    def __init__(self):
        self.pickled, self.asked = [], []
        sys.addaudithook(self._audit)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self):
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame, event, function):
        file = frame.f_code.co_filename
        pickled = f"{file}:{frame.f_code.co_name}".endswith(_TORCHS)
        if event == "c_call":
            # A user's pickler inherits from pickle's.
            kinds = type(getattr(function, "__self__", None)).__mro__
            pickled = "_pickle" in {function.__module__, *(kind.__module__ for kind in kinds)}
            # A pool of threads wakes itself by a None, pickled, in its own pipe.
            caller = frame.f_back if file.endswith("multiprocessing/reduction.py") else frame
            pickled &= not caller.f_code.co_filename.endswith("multiprocessing/queues.py")
        if pickled:
            self.pickled.append(f"{file}:{frame.f_lineno}")

    def _audit(self, event, arguments):
        if event == "pickle.find_class":
            self.pickled.append(str(arguments))
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            self.asked.append(f"{event} {arguments[1]}")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            self.asked.append(f"{event} {arguments[0]}")


class _Pickler(pickle.Pickler):
    pass


def day_with_pickles(folder):
    """How many pickles are noticed after each way of pickling."""
    watch, counts = Watch(), []
    for pickled in (
        lambda: pickle.dumps([]),
        lambda: _Pickler(io.BytesIO()).dump([]),
        lambda: torch.save([], folder / "x"),
        lambda: torch.load(folder / "x"),
    ):
        pickled()
        counts.append(len(watch.pickled))
    watch.stop()
    return counts


def test_a_pickle_would_be_noticed(tmp_path):
    counts = children.run(day_with_pickles, tmp_path, log=tmp_path / "log").value
    assert counts[0] > 0 and all(more > less for less, more in itertools.pairwise(counts))


def ordinary_day(folder, given):
    """All that needs no network, one after the other.

    Returns:
        (exit statuses, where something was pickled, what of the network was asked).
    """
    watch, runs = Watch(), folder / "runs"
    statuses = [stages.train(given.phantom, runs, preset="tiny-block")]
    (run,) = runs.iterdir()
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
    trained = Run.load(run)
    save_model(trained.model, folder / "model", trained.task, trained.config.data)
    load_model(folder / "model")
    cases = pd.read_csv(folder / "suites" / "tiny.csv")
    figures.save(figures.arm_differences(cases), folder / "figure")
    watch.stop()
    return statuses, watch.pickled, watch.asked


def assert_clean(output, written):
    """No secret, and no file that looks like a pickle."""
    assert SECRET not in output
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert content[:1] != b"\x80" and content[:4] != b"PK\3\4", f"{path} looks like a pickle"


def test_an_ordinary_day_pickles_nothing_asks_nothing_and_keeps_no_secret(given, tmp_path, note):
    log, environment = tmp_path.with_suffix(".log"), TOKENS | PROXY
    done = children.run(ordinary_day, tmp_path, given, log=log, environment=environment)
    assert done.status == 0 and {*done.value[0]} == {0}, done.output
    assert done.value[1:] == ([], [])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in written if path.name != ".lock"}
    known = {".json", ".csv", ".safetensors", ".gz", ".md", ".png", ".pdf", ".svg"}
    assert len(written) > 20 and kinds == known
    assert_clean(done.output, written)
    note("secrets", what="calls of pickle's functions", found="none")
    note("secrets", what="addresses that were looked up or connected to", found="none")
    what = f"pickles, and the {len(TOKENS)} tokens, in output and {len(written)} files"
    note("secrets", what=what, found="none")


def watched(*command, log, folder, **environment):
    """Run a command with tokens in its environment; note what any process of it asks.

    Returns:
        (exit status, what was printed, how many processes there were, what was asked).
    """
    paths = f"{folder}{os.pathsep}{REPOSITORY / 'tests' / 'reliability' / 'watch'}"
    variables = {"PYTHONPATH": paths, "MVL_WATCH": str(log), "JUPYTER_RUNTIME_DIR": str(folder)}
    variables |= {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | TOKENS | PROXY | variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = log.read_text().splitlines()
    asked = [line for line in lines if not line.startswith("process ")]
    return done.returncode, done.stdout, len(lines) - len(asked), asked


def test_what_another_process_asks_would_be_noticed(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    ask = "import socket; socket.socket(socket.AF_INET, 2).connect(('192.0.2.1', 9))"
    command = (sys.executable, "-c", code, ask)
    _, _, processes, asked = watched(*command, log=tmp_path / "log", folder=tmp_path)
    assert processes == 2 and asked == ["asked socket.connect 192.0.2.1"]


@pytest.mark.parametrize("only", [["--only", "00"], pytest.param([], marks=pytest.mark.slow)])
def test_notebooks_and_report_ask_nothing_and_keep_no_secret(only, tmp_path, note):
    """A batch run of notebooks, their kernels, and the report, in a copy of the repository."""
    copy = tmp_path / "copy"
    for name in ("mvl", "notebooks", "profiles", "benchmarks", "results/reference"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    before = {path for path in copy.rglob("*") if path.is_file()}
    data = {"MVL_DATA_ROOT": str(copy / "data"), "MVL_CACHE": str(copy / "cache")}
    command = (sys.executable, "-m", "mvl", "run", "--profile", "smoke", *only)
    status, output, processes, asked = watched(*command, log=tmp_path / "log", folder=copy, **data)
    assert status == 0 and asked == [], output
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
