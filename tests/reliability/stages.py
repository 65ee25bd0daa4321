"""The stages of the work that are killed and starved of disk; each is one command.

A stage runs on the smallest data that exercises it, and writes below `results` of its own folder.
"""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from safetensors import safe_open

import mvl.cli.runs
import mvl.cli.study  # the commands import both: here, before children fork and tests are timed
from mvl import cli
from mvl.config import PRESETS, LanguageConfig, ModelConfig, TrainingConfig
from mvl.data import download
from mvl.errors import MvlError
from mvl.files import REPOSITORY, read_json
from mvl.runner import execute
from mvl.study.suites import SUITES, Arm
from tests.reliability import children

TASK = "Task04_Hippocampus"
#: A Llama without training: two layers, 32 wide.
LLAMA = (
    'random:{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, '
    '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8}'
)
_SMALL = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
_TRAINING = TrainingConfig(epochs=3, warmup_epochs=1)
_SHORT = TrainingConfig(epochs=1, warmup_epochs=0)
#: Presets and a suite that train in a second.
_PRESETS = {
    "tiny": (ModelConfig(**_SMALL, dropout=0.1), _TRAINING),
    "tiny-block": (ModelConfig(**_SMALL, language=LanguageConfig(LLAMA)), _SHORT),
    # Large enough for threads to share its work.
    "small": (ModelConfig(encoder_depth=2, decoder_depth=1), _TRAINING),
}
_SUITES = {
    "tiny": {
        "plain": Arm(ModelConfig(**_SMALL), _SHORT),
        "hybrid": Arm(ModelConfig(**_SMALL, attention="hybrid"), _SHORT),
    }
}


def mvl(*arguments):
    """The exit status of the command `mvl`, which here knows the presets and suite above."""
    with mock.patch.dict(PRESETS, _PRESETS), mock.patch.dict(SUITES, _SUITES):
        return cli.main([os.fspath(word) for word in arguments])


def train(root, runs, *more, preset="tiny"):
    """`mvl train` of a preset on the phantom below `root`; of equal options the later counts."""
    arguments = ("--preset", preset, "--root", root, "--runs", runs, "--grid", "16", "24", "16")
    return mvl("train", *arguments, *more)


class Given(NamedTuple):
    """What the stages start from."""

    phantom: Path  # a data root with a small task
    trained: Path  # the folder of a trained run of the preset tiny
    archive: tuple[str, str]  # address and MD5 of a task's archive
    hub: str  # address of a hub with the model owner/name


def _download(folder, given):
    with mock.patch.object(download, "_published", lambda task: given.archive):
        return mvl("data", "download", TASK, "--root", folder / "results")


def _batch(folder, given):
    multiprocessing.set_forkserver_preload([])  # no cell here needs what takes seconds to load
    try:
        outcomes = execute.run("smoke", root=folder)
    except MvlError as error:  # `mvl run` would run the repository's own notebooks
        print(f"mvl: {error}")
        return 1
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


def _train(folder, given):
    return train(given.phantom, folder / "results")


#: {name: its command, a function of (folder, `Given`) -> exit status}
STAGES = {
    "download": _download,
    "caching": lambda folder, given: mvl(
        "block", "extract", "hub:owner/name", "-o", folder / "results" / "block"
    ),
    "synthesis": lambda folder, given: mvl(
        *("data", "phantom", TASK, "--root", folder / "results", "--cases", "3", "--scale", "0.3")
    ),
    "training": _train,
    "checkpointing": _train,
    "evaluation": lambda folder, given: mvl(
        "evaluate", folder / "results" / given.trained.name, "--root", given.phantom
    ),
    "suite": lambda folder, given: mvl(
        "suite", "run", "tiny", "--results", folder / "results", "--root", given.phantom
    ),
    "batch": _batch,
}


def prepare(name, folder, given):
    """Write what a stage finds in its folder before it starts."""
    if name == "evaluation":
        shutil.copytree(given.trained, folder / "results" / given.trained.name)
    elif name == "batch":
        write_notebooks(folder)


def write_notebooks(folder):
    """A repository of two notebooks, of which the second reads what the first has written."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for part in ("notebooks", "profiles", "mvl"):
        (folder / part).mkdir()
    shutil.copy(REPOSITORY / "profiles" / "smoke.yaml", folder / "profiles")
    for name, source in {
        "00_a": "from mvl import files; files.write_json('../results/smoke/a.json', {'n': 1})",
        "01_b": "from mvl import files; print(files.read_json('../results/smoke/a.json')['n'] + 1)",
    }.items():
        cells = [new_code_cell(source, id="cell")]  # identifiers are random where none is given
        nbformat.write(new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")


def start(name, folder, given, function=None, kill=300):
    """Call a stage, or another function of (name, folder, given), in a child process.

    The folder is prepared if it is new; `kill` as in `children.run`.
    """
    if not folder.exists():
        folder.mkdir()
        prepare(name, folder, given)
    places = ("MVL_DATA_ROOT", "IPYTHONDIR", "HF_HUB_CACHE", "JUPYTER_RUNTIME_DIR")
    environment = {key: str(folder / key) for key in places}
    environment |= {"MVL_CACHE": str(folder / "results/cache"), "HF_ENDPOINT": given.hub}
    environment["PYTHONPATH"] = str(REPOSITORY)
    arguments = (function or call, name, folder, given)
    return children.run(*arguments, log=folder / "log", environment=environment, kill=kill)


def call(name, folder, given, fatal=None):
    """(exit status, number of changes of files below `results`) of a stage; for `start`."""
    count = children.count_changes(folder / "results", fatal)
    return STAGES[name](folder, given), count[0]


class Whole(NamedTuple):
    """A stage that nothing has disturbed: its `outcome`, bytes, changes of files, and seconds."""

    outcome: dict
    bytes: int
    operations: int
    seconds: float


def outcome(folder):
    """What a stage has left: {path below `results`: content}, times and locks aside."""
    results = folder / "results"
    found = sorted(path for path in results.rglob("*") if path.is_file())
    return {
        str(path.relative_to(results)): _content(path) for path in found if path.name != ".lock"
    }


def _content(path):
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return [(cell["source"], cell.get("outputs")) for cell in cells]
    if path.suffix == ".json":
        # How long it took, and the commit that a developer made meanwhile, may differ.
        return {k: v for k, v in read_json(path).items() if k not in ("seconds", "commit")}
    return path.read_bytes()


def finished(folder):
    """Marks of finished work, which is not done again: {path: when it was written}."""
    names = ("trained.json", "done.json", "[!.]*.done.json")  # with a dot it is being written
    marks = [path for name in names for path in (folder / "results").rglob(name)]
    return {path: path.stat().st_mtime_ns for path in marks}


def size_of(folder):
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def half_files(folder, whole):
    """Files of a killed stage with a final name that are not whole; `whole` is the `outcome` of an
    undisturbed one."""
    half = []
    for path in (path for path in (folder / "results").rglob("*") if path.is_file()):
        name = path.relative_to(folder / "results")
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and not _is_whole(path, whole.get(str(name))):
            half.append(str(name))
    return half


def _is_whole(path, expected):
    if path.suffix == ".ipynb" and not path.with_suffix(".done.json").is_file():
        return True  # nobody takes it for whole
    if path.suffix in (".json", ".ipynb"):
        return isinstance(json.loads(path.read_text()), dict)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:  # compares the header with the file's size
            return len(file.keys()) > 0
    content = path.read_bytes()
    if path.name == "curves.csv":
        return expected.startswith(content) and content.endswith(b"\n")
    return content == expected
