"""The stages of the work that are killed and starved of disk: each is one command.

A stage runs on the smallest data that exercises it, in a child process, and writes below
`results` of a folder of its own.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from mvl import cli
from mvl.config import PRESETS, LanguageConfig, ModelConfig, TrainingConfig
from mvl.data import download
from mvl.errors import MvlError
from mvl.files import read_json
from mvl.runner import execute
from mvl.study.suites import SUITES, Arm
from tests.reliability import children

ROOT = Path(__file__).resolve().parents[2]
TASK = "Task04_Hippocampus"
#: A Llama without training: two layers, 32 wide.
LLAMA = (
    'random:{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, '
    '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8}'
)


def mvl(*arguments):
    """What the command `mvl` does, which here knows presets and a suite that train in a second.

    Returns:
        The exit status.
    """
    small = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
    training = TrainingConfig(epochs=3, warmup_epochs=1)
    PRESETS["tiny"] = (ModelConfig(**small, dropout=0.1), training)
    PRESETS["tiny-block"] = (ModelConfig(**small, language=LanguageConfig(LLAMA)), training)
    # Large enough for threads to share its work.
    PRESETS["small"] = (ModelConfig(encoder_depth=2, decoder_depth=1), training)
    short = TrainingConfig(epochs=1, warmup_epochs=0)
    SUITES["tiny"] = {
        "plain": Arm(ModelConfig(**small), short),
        "hybrid": Arm(ModelConfig(**small, attention="hybrid"), short),
    }
    return cli.main([os.fspath(word) for word in arguments])


def train(root, runs, *more, preset="tiny"):
    """`mvl train` of a preset on the phantom below `root`; of equal options the later counts."""
    arguments = ("--preset", preset, "--root", root, "--runs", runs, "--grid", "16", "24", "16")
    return mvl("train", *arguments, *more)


@dataclass(frozen=True)
class Given:
    """What the stages start from.

    Attributes:
        phantom: a data root with a small task.
        trained: a run folder of the preset tiny, trained, not tested.
        archive: (address, MD5) of a task's archive.
        hub: address of a hub with the model owner/name.
    """

    phantom: Path
    trained: Path
    archive: tuple[str, str]
    hub: str


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        call: (folder, given), in a child process -> exit status.
        prepare: (folder, given) puts in place what it starts from.
        environment: (folder, given) -> variables.
    """

    call: Callable
    prepare: Callable = lambda folder, given: None
    environment: Callable = lambda folder, given: {}


def _download(folder, given):
    download._published = lambda task: given.archive
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


def _suite(folder, given):
    return mvl("suite", "run", "tiny", "--results", folder / "results", "--root", given.phantom)


def _batch(folder, given):
    try:
        outcomes = execute.run("smoke", root=folder)
    except MvlError as error:  # `mvl run` would run the repository's own notebooks
        print(f"mvl: {error}")
        return 1
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


def _notebooks(folder, given):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for name in ("notebooks", "profiles", "mvl"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "profiles" / "smoke.yaml", folder / "profiles")
    begin = "from mvl.files import read_json, write_json\n"
    cells = {
        "00_a": [begin + "write_json('../results/smoke/a.json', {'n': 1})", "print('a')"],
        "01_b": [begin + "n = read_json('../results/smoke/a.json')['n']", "print(n + 1)"],
    }
    for name, sources in cells.items():
        # Identifiers of cells are random where none is given.
        parts = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
        nbformat.write(new_notebook(cells=parts), folder / "notebooks" / f"{name}.ipynb")


STAGES = {
    "download": Stage(_download),
    "caching": Stage(
        _cache,
        environment=lambda folder, given: {
            "MVL_CACHE": str(folder / "results" / "cache"),
            "HF_ENDPOINT": given.hub,
        },
    ),
    "synthesis": Stage(_synthesise),
    "training": Stage(_train),
    "checkpointing": Stage(_train),
    "evaluation": Stage(
        _evaluate,
        lambda folder, given: shutil.copytree(
            given.trained, folder / "results" / given.trained.name
        ),
    ),
    "suite": Stage(_suite),
    "batch": Stage(
        _batch,
        _notebooks,
        lambda folder, given: {
            "PYTHONPATH": str(ROOT),
            "MVL_DATA_ROOT": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
        },
    ),
}


def start(name, folder, given, function=None, **options):
    """Call a stage, or a function of the same arguments about it, in a child process.

    Args:
        name: of `STAGES`.
        folder: the stage's, made and prepared here if it is not there.
        given: a `Given`.
        function: (name, folder, given), in place of the stage alone.
        options: of `children.run`.

    Returns:
        `children.Ended`.
    """
    if not folder.exists():
        folder.mkdir()
        STAGES[name].prepare(folder, given)
    return children.run(
        function or call,
        name,
        folder,
        given,
        log=folder / "log",
        environment=STAGES[name].environment(folder, given),
        **options,
    )


def call(name, folder, given, fatal=None):
    """A stage, for a child process.

    Args:
        name, folder, given: as in `start`.
        fatal: number of the operation on files below `results` at which the process dies.

    Returns:
        (exit status, number of operations on files below `results`).
    """
    operations = children.FileOperations(folder / "results", fatal)
    return STAGES[name].call(folder, given), operations.count


#: Entries of results that another run may have otherwise: how long it took, and the commit that a
#: developer made meanwhile.
_DIFFERS = {"seconds", "commit"}


@dataclass(frozen=True)
class Whole:
    """What a stage is that nothing has disturbed.

    Attributes:
        outcome: what it left.
        bytes: of its files.
        operations: on files below `results`.
        seconds: how long it took.
    """

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
        value = read_json(path)
        return {key: v for key, v in value.items() if key not in _DIFFERS}
    return path.read_bytes()


def finished(folder):
    """Marks of finished work, which is not done again: {path: when it was written}.

    One that was being written when the process was killed is none; its name begins with a dot.
    """
    marks = [
        path
        for name in ("trained.json", "done.json", "[!.]*.done.json")
        for path in (folder / "results").rglob(name)
    ]
    return {path: path.stat().st_mtime_ns for path in marks}


def size_of(folder):
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def half_files(folder, whole):
    """Files of a killed stage that bear a final name and are not whole.

    Args:
        folder: the stage's folder.
        whole: the `outcome` of an undisturbed one.
    """
    return [name for name in _visible(folder) if not _is_whole(folder / "results" / name, whole)]


def _visible(folder):
    results = folder / "results"
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results)
        hidden = any(part.startswith(".") for part in name.parts)
        # A block's copy grows under this name and is renamed when it is whole.
        if path.is_file() and not hidden and name.name != "partial":
            yield str(name)


def _is_whole(path, whole):
    name = str(path.relative_to(next(p for p in path.parents if p.name == "results")))
    if path.suffix == ".ipynb" and not path.with_suffix(".done.json").is_file():
        return True  # nobody takes it for whole
    if path.suffix in (".json", ".ipynb"):
        json.loads(path.read_text())
        return True
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:  # it holds the header against the file's size
            return len(file.keys()) > 0
    expected = whole[name]
    if path.name == "curves.csv":
        return expected.startswith(path.read_bytes()) and path.read_bytes().endswith(b"\n")
    return path.read_bytes() == expected
