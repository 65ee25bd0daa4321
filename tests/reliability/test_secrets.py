"""No pickle, no network that nobody asked for, and no secret in what is left behind."""

import ast
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
from pathlib import Path

import pandas as pd
import pytest
import torch

from mvl.data import download
from mvl.experiment.run import Run
from mvl.models.folder import load_model, save_model
from mvl.show import figures
from tests.reliability import children, stages

ROOT = Path(__file__).resolve().parents[2]

#: Modules that make or run pickles, and calls that do so in disguise.
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
DISGUISED = {"torch.load", "torch.save", "to_pickle", "read_pickle", "PersistentDataset"}
DISGUISED |= {"allow_pickle", "save_state", "load_state", "pickle"}


def _sources():
    """(name, code) of every module, script and notebook."""
    folders = ("mvl/**", "scripts", "benchmarks")
    for path in sorted(path for folder in folders for path in ROOT.glob(f"{folder}/*.py")):
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        # A line for the shell is none of Python's.
        yield path.name, re.sub(r"^(\s*)[%!].*", r"\1pass", "\n".join(code), flags=re.MULTILINE)


def _pickling(code):
    """What of a source makes or runs pickles."""
    nodes = list(ast.walk(ast.parse(code)))
    imports = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    called = {alias.asname: alias.name for alias in imports if alias.asname}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            own = {alias.name for alias in node.names}
            names = {(node.module or "").partition(".")[0], *own}
            names |= {f"{node.module}.{name}" for name in own}
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            names = {node.attr, f"{called.get(owner, owner)}.{node.attr}"}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = {word.value for word in node.args if isinstance(word, ast.Constant)}
        elif isinstance(node, ast.keyword):
            names = {node.arg}
        elif isinstance(node, ast.Name):
            names = {node.id} | ({"pickle"} if node.id == "__import__" else set())
        else:
            continue
        yield from names & (PICKLERS | DISGUISED)


def test_no_source_pickles(note):
    found = {name: [*_pickling(code)] for name, code in _sources()}
    assert len(found) > 40 and {name: what for name, what in found.items() if what} == {}
    what = f"pickle in {len(found)} modules, scripts and notebooks, by their syntax trees"
    note("secrets", what=what, found="none")


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import dump", "torch.load('x')", "np.load('x', allow_pickle=1)",
     "from torch import save_state", "table.to_pickle('x')", "import torch; torch.save(1, 'x')",
     "from torch import save", "from torch import load as l", "import torch as t; t.save(1, 'x')",
     "importlib.import_module('pickle')", "__import__('pickle')"],
)  # fmt: skip
def test_a_source_that_pickles_would_be_found(code):
    assert [*_pickling(code)]


SECRET = "sesame-4711"
TOKENS = {
    name: SECRET
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
}
PROXY = {name: f"http://me:{SECRET}@127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


_QUEUES = os.path.join("multiprocessing", "queues.py")
_REDUCTION = os.path.join("multiprocessing", "reduction.py")
_TORCHS = os.path.join("torch", "serialization.py")


def _own_pipe(frame):
    """Whether a pool of threads wakes itself: by a None, pickled, in a pipe of its own."""
    if frame.f_code.co_filename.endswith(_REDUCTION):
        frame = frame.f_back
    return frame.f_code.co_filename.endswith(_QUEUES)


class _Watch:
    """Notes every call of pickle's or torch's own functions and every address that is asked."""

    def __init__(self):
        self.pickled, self.asked = [], []
        sys.addaudithook(self._audit)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self):
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame, event, function):
        place = frame.f_code.co_filename
        if event == "c_call":
            # A pickler of one's own inherits from pickle's.
            kinds = type(getattr(function, "__self__", None)).__mro__
            owners = {function.__module__, *(kind.__module__ for kind in kinds)}
            if "_pickle" in owners and not _own_pipe(frame):
                self.pickled.append(f"{place}:{frame.f_lineno}")
        elif place.endswith(_TORCHS) and frame.f_code.co_name in ("save", "load"):
            self.pickled.append(f"{place}:{frame.f_lineno}")

    def _audit(self, event, arguments):
        if event == "pickle.find_class":
            self.pickled.append(str(arguments))
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            self.asked.append(f"{event} {arguments[1]}")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            self.asked.append(f"{event} {arguments[0]}")


class _OwnPickler(pickle.Pickler):
    pass


def day_with_pickles(folder):
    """How many were noticed after each way of pickling."""
    watch, counts = _Watch(), []
    for pickled in (
        lambda: pickle.dumps([]),
        lambda: _OwnPickler(io.BytesIO()).dump([]),
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
    watch, runs = _Watch(), folder / "runs"
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
    figures.save(figures.arm_means(cases), folder / "figure")
    watch.stop()
    return statuses, watch.pickled, list(watch.asked)


@pytest.fixture(scope="session")
def day(given, tmp_path_factory):
    place = tmp_path_factory.mktemp("day")
    done = children.run(ordinary_day, place, given, log=place / "log", environment=TOKENS | PROXY)
    assert done.status == 0 and set(done.value[0]) == {0}, done.output
    return place, done


def test_nothing_is_pickled(day, note):
    assert day[1].value[1] == []
    note("secrets", what="calls of pickle's functions", found="none")


def test_no_file_that_is_written_is_a_pickle(day, note):
    written = [path for path in day[0].rglob("*") if path.is_file()]
    kinds = {path.suffix for path in written if path.name not in (".lock", "log")}
    known = {".json", ".csv", ".safetensors", ".gz", ".md", ".png", ".pdf", ".svg"}
    assert len(written) > 20 and kinds == known
    for path in written:
        start = path.read_bytes()[:4]
        assert start[:1] != b"\x80" and start != b"PK\3\4", f"{path} looks like a pickle"
    note("secrets", what=f"pickles among {len(written)} files that were written", found="none")


def test_no_network_is_asked_for_what_needs_none(day, note):
    assert day[1].value[2] == []
    note("secrets", what="addresses that were looked up or connected to", found="none")


def test_no_secret_is_left_behind(day, note):
    assert SECRET not in day[1].output
    for path in day[0].rglob("*"):
        assert SECRET.encode() not in (path.read_bytes() if path.is_file() else b""), path
    note("secrets", what=f"the {len(TOKENS)} tokens in files and output", found="none")


def _watched(*command, log, folder, **environment):
    """Run a command with tokens in its environment; note what any process of it asks.

    Returns:
        (exit status, what was printed, how many processes there were, what was asked).
    """
    paths = os.pathsep.join(map(str, (folder, ROOT / "tests" / "reliability" / "watch")))
    places = {"PYTHONPATH": paths, "MVL_WATCH": str(log), "JUPYTER_RUNTIME_DIR": str(folder)}
    places |= {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | TOKENS | PROXY | places | environment,
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
    _, _, processes, asked = _watched(*command, log=tmp_path / "log", folder=tmp_path)
    assert processes == 2 and asked == ["asked socket.connect 192.0.2.1"]


@pytest.mark.parametrize("only", [["--only", "00"], pytest.param([], marks=pytest.mark.slow)])
def test_notebooks_and_report_ask_nothing_and_keep_no_secret(only, tmp_path, note):
    """A batch run of notebooks, their kernels, and the report, in a copy of the repository."""
    copy = tmp_path / "copy"
    for name in ("mvl", "notebooks", "profiles", "benchmarks", "results/reference"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    before = {path for path in copy.rglob("*") if path.is_file()}
    data = {"MVL_DATA_ROOT": str(copy / "data"), "MVL_CACHE": str(copy / "cache")}
    command = (sys.executable, "-m", "mvl", "run", "--profile", "smoke", *only)
    status, output, processes, asked = _watched(*command, log=tmp_path / "log", folder=copy, **data)
    assert status == 0 and asked == [], output
    report = copy / "results" / "smoke" / "report" / "index.html"
    written = [path for path in copy.rglob("*") if path.is_file() and path not in before]
    notebooks = [path for path in written if path.suffix == ".ipynb"]
    assert report in written and processes > len(notebooks) > 0
    assert SECRET not in output
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert content[:1] != b"\x80" and content[:4] != b"PK\3\4", f"{path} looks like a pickle"
    count = f"{len(notebooks)} notebook{'s' * (len(notebooks) > 1)}, kernels and report"
    what = f"{count}: addresses asked, tokens or pickles in output and {len(written)} files"
    note("secrets", what=what, found="none")


def without_network(folder):
    """What does need the network, behind a proxy that is not there: exit statuses."""
    os.environ["HF_ENDPOINT"] = "http://hub.example"
    os.environ["MVL_CACHE"] = os.environ["HF_HUB_CACHE"] = str(folder / "cache")
    download._published = lambda task: ("http://data.example/x.tar", "0" * 32)
    return [
        stages.mvl("data", "download", stages.TASK, "--root", folder),
        stages.mvl("block", "show", "hub:owner/name"),
        stages.mvl("predict", "x.nii.gz", "--run", folder, "-o", folder / "out.nii.gz"),
    ]


def test_no_secret_is_told_where_the_network_fails(tmp_path, note):
    done = children.run(without_network, tmp_path, log=tmp_path / "log", environment=TOKENS | PROXY)
    assert done.value == [1, 1, 1], done.output
    assert "data.example" in done.output and "hub.example" in done.output
    assert SECRET not in done.output and "Traceback" not in done.output
    note("secrets", what="tokens and the proxy's password where the network fails", found="none")
