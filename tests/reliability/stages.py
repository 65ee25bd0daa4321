"""The stages of the work that are killed and starved of disk; each is one command.

A stage runs on the smallest data that exercises it, and writes below `results` of its own folder.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from safetensors import safe_open

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
    "tiny-block": (ModelConfig(**_SMALL, language=LanguageConfig(LLAMA)), _TRAINING),
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

    #: A data root with a small task.
    phantom: Path
    #: A run folder of the preset tiny, trained, not tested.
    trained: Path
    #: (address, MD5) of a task's archive.
    archive: tuple[str, str]
    #: Address of a hub with the model owner/name.
    hub: str


def _download(folder, given):
    with mock.patch.object(download, "_published", lambda task: given.archive):
        return mvl("data", "download", TASK, "--root", folder / "results")


def _cache(folder, given):
    return mvl("block", "extract", "hub:owner/name", "-o", folder / "results" / "block")


def _synthesise(folder, given):
    small = ("--cases", "3", "--scale", "0.3")
    return mvl("data", "phantom", TASK, "--root", folder / "results", *small)


def _train(folder, given):
    return train(given.phantom, folder / "results")


def _evaluate(folder, given):
    return mvl("evaluate", folder / "results" / given.trained.name, "--root", given.phantom)


def _copy_trained(folder, given):
    shutil.copytree(given.trained, folder / "results" / given.trained.name)


def _suite(folder, given):
    return mvl("suite", "run", "tiny", "--results", folder / "results", "--root", given.phantom)


def _batch(folder, given):
    try:
        outcomes = execute.run("smoke", root=folder)
    except MvlError as error:  # `mvl run` would run the repository's own notebooks
        print(f"mvl: {error}")
        return 1
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


def _write_notebooks(folder, given):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for name in ("notebooks", "profiles", "mvl"):
        (folder / name).mkdir()
    shutil.copy(REPOSITORY / "profiles" / "smoke.yaml", folder / "profiles")
    begin = "from mvl.files import read_json, write_json\n"
    cells = {
        "00_a": [begin + "write_json('../results/smoke/a.json', {'n': 1})", "print('a')"],
        "01_b": [begin + "n = read_json('../results/smoke/a.json')['n']", "print(n + 1)"],
    }
    for name, sources in cells.items():
        # Identifiers of cells are random where none is given.
        parts = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
        nbformat.write(new_notebook(cells=parts), folder / "notebooks" / f"{name}.ipynb")


@dataclass(frozen=True)
class Stage:
    """One stage: its command, and how its folder begins; both take (folder, given)."""

    call: Callable
    prepare: Callable = lambda folder, given: None


STAGES = {
    "download": Stage(_download),
    "caching": Stage(_cache),
    "synthesis": Stage(_synthesise),
    "training": Stage(_train),
    "checkpointing": Stage(_train),
    "evaluation": Stage(_evaluate, _copy_trained),
    "suite": Stage(_suite),
    "batch": Stage(_batch, _write_notebooks),
}


def start(name, folder, given, function=None, kill=None):
    """Call a stage in a child process, in a folder that is prepared if it is new.

    Args:
        function: (name, folder, given), in place of `call`.
        kill: of `children.run`.
    """
    if not folder.exists():
        folder.mkdir()
        STAGES[name].prepare(folder, given)
    variables = {"MVL_CACHE": "results/cache", "MVL_DATA_ROOT": "data", "IPYTHONDIR": "ipython"}
    environment = {key: str(folder / path) for key, path in variables.items()}
    environment |= {
        "HF_ENDPOINT": given.hub,
        "HF_HUB_CACHE": str(folder / "hub"),
        "PYTHONPATH": str(REPOSITORY),
    }
    environment |= {"JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    arguments = (function or call, name, folder, given)
    return children.run(*arguments, log=folder / "log", environment=environment, kill=kill)


def call(name, folder, given, fatal=None):
    """A stage, for a child process, which dies before its file operation number `fatal`.

    Returns:
        (exit status, number of operations on files below `results`).
    """
    operations = children.FileOperations(folder / "results", fatal)
    return STAGES[name].call(folder, given), operations.count


class Whole(NamedTuple):
    """A stage that nothing has disturbed."""

    outcome: dict
    #: Of all its files.
    bytes: int
    #: On files below `results`.
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
    """Files of a killed stage with a final name that are not whole.

    Args:
        whole: the `outcome` of an undisturbed one.
    """
    results, half = folder / "results", []
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results)
        hidden = any(part.startswith(".") for part in name.parts)
        # A block's copy grows as "partial" and is renamed when it is whole.
        final = path.is_file() and not hidden and name.name != "partial"
        if final and not _is_whole(path, whole.get(str(name))):
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
