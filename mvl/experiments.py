"""Experiments and suites: a configuration becomes a run folder, run folders become one table.

A run folder is named by its experiment's fingerprint and holds

    config.json         the configuration, its fingerprint and the protocol's version
    task.json           the task's facts, so that a run predicts without its data set
    split.json          names of the training, validation and test cases
    skipped.csv         cases left out because of a fault, where there are any
    block.json          the language block by reference: source, revision, layer, SHA-256
    environment.json    versions, device, number format, threads, commit
    curves.csv          an epoch a row
    model.safetensors   trained weights alone
    trained.json        written when training ends
    cases.csv           a test case and structure a row, every metric, in native space
    done.json           written last

What has `trained.json` is never trained again, what has `done.json` never evaluated again.
"""

import dataclasses
import itertools
import os
import platform
import subprocess
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from mvl.config import PRESETS, PROTOCOL_VERSION, ExperimentConfig, fingerprint
from mvl.data.loading import Preparation, classes_of, open_task
from mvl.data.splits import Split
from mvl.errors import ConfigError, RunError
from mvl.evaluation import evaluate
from mvl.files import read_json, write_json, write_table
from mvl.metrics import METRICS
from mvl.models.language import block_reference
from mvl.models.segmenter import build_segmenter
from mvl.tasks import Task
from mvl.training import WEIGHTS, load_weights, train

TRAINED, DONE, CASES = "trained.json", "done.json", "cases.csv"


def results_folder(profile):
    """Where a profile's results belong: results/<profile> of the repository."""
    return Path(__file__).resolve().parents[1] / "results" / profile


def run_folder(config, data, runs):
    """Where an experiment's results belong.

    Args:
        config: an `ExperimentConfig`.
        data: its `TaskData`.
        runs: the folder of all runs, such as results/quick/runs.
    """
    used = {case.name for side in ("train", "validation", "test") for case in data.side(side)}
    voxels = {name: data.hashes[name] for name in sorted(used)}
    language = config.model.language
    block = block_reference(language)["sha256"] if language else None
    return Path(runs) / fingerprint(config, voxels, block)


def fit(config, data, runs, show=True, on_epoch=None):
    """Train an experiment's model, or go on where an earlier process stopped.

    The test cases are not opened.

    Args:
        config: an `ExperimentConfig`.
        data: its `TaskData`, from `open_task`.
        runs: the folder of all runs.
        show: show progress.
        on_epoch: see `training.train`.

    Returns:
        The run folder.

    Raises:
        RunError: training failed; the message says where and what to change.
        BlockError: the language block cannot be found, read or trusted.
    """
    folder = run_folder(config, data, runs)
    if (folder / TRAINED).exists():
        return folder
    for unfinished in folder.glob(".tmp-*"):
        unfinished.unlink()  # of a process that was killed while it wrote
    write_json(
        folder / "config.json",
        {
            "config": config.to_dict(),
            "fingerprint": folder.name,
            "protocol_version": PROTOCOL_VERSION,
        },
    )
    write_json(folder / "task.json", dataclasses.asdict(data.task))
    data.split.save(folder / "split.json")
    if data.skipped:
        write_table(folder / "skipped.csv", pd.DataFrame(data.skipped))
    if config.model.language:
        write_json(folder / "block.json", block_reference(config.model.language))
    write_json(folder / "environment.json", environment(config))

    preparation = Preparation(data.task, config.data)
    volumes, validation = (
        preparation.load(data.side(side), show) for side in ("train", "validation")
    )
    model = _build(config, data.task)
    seconds = train(model, volumes, validation, config, folder, show, on_epoch)
    curves = pd.read_csv(folder / "curves.csv")
    best = curves.loc[curves["validation_dice"].idxmax()]
    write_json(
        folder / TRAINED,
        {
            "seconds": round(seconds, 1),
            "best_epoch": int(best["epoch"]),
            "validation_dice": float(best["validation_dice"]),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )
    (folder / "state.safetensors").unlink(missing_ok=True)
    return folder


def test(folder, data, show=True):
    """Open the test set for a trained run: metrics of every test case, in native space.

    Args:
        folder: a run folder that `fit` has finished.
        data: the `TaskData` that it was trained on.
        show: show progress.

    Returns:
        The table of `cases.csv`.

    Raises:
        RunError: the run is not trained, or the split of `data` is not its own.
    """
    folder = Path(folder)
    if not (folder / DONE).exists():
        run = Run.load(folder)
        if run.split != data.split:
            raise RunError(f"{folder} was trained on another split of {data.task.name}")
        cases = evaluate(
            run.model, data.side("test"), run.preparation, run.task, run.config.data.target, show
        )
        write_table(folder / CASES, cases)
        write_json(
            folder / DONE, read_json(folder / TRAINED) | {"test_cases": len(data.split.test)}
        )
    return pd.read_csv(folder / CASES)


@dataclass(frozen=True)
class Run:
    """A trained run, as its folder describes it."""

    folder: Path
    config: ExperimentConfig
    task: Task
    split: Split
    model: torch.nn.Module
    preparation: Preparation

    @classmethod
    def load(cls, folder):
        """Rebuild the model of a trained run.

        Raises:
            RunError: the folder is no run, its training has not ended, or it was made under
                another version of the protocol.
            BlockError: its language block is not at hand, or is not the one of the training.
        """
        folder = Path(folder)
        if not (folder / TRAINED).exists():
            state = "its training has not ended" if (folder / "config.json").exists() else "no run"
            raise RunError(f"{folder}: {state}; 'mvl train' makes a trained run")
        stored = read_json(folder / "config.json")
        if stored.get("protocol_version") != PROTOCOL_VERSION:
            raise RunError(
                f"{folder} was made under protocol version {stored.get('protocol_version')}, this "
                f"is version {PROTOCOL_VERSION}: numbers of the two do not compare; train it anew"
            )
        config = ExperimentConfig.from_dict(stored["config"])
        if config.model.language:
            now, then = block_reference(config.model.language), read_json(folder / "block.json")
            if now["sha256"] != then["sha256"]:
                raise RunError(
                    f"{folder} was trained with another block than {config.model.language.source} "
                    f"gives now (SHA-256 {then['sha256'][:12]}, now {now['sha256'][:12]})"
                )
        facts = read_json(folder / "task.json")
        task = Task(
            **{key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
            | {"labels": {int(value): name for value, name in facts["labels"].items()}}
        )
        model = _build(config, task)
        load_weights(model, folder / WEIGHTS)
        return cls(
            folder=folder,
            config=config,
            task=task,
            split=Split.load(folder / "split.json"),
            model=model.eval(),
            preparation=Preparation(task, config.data),
        )


def _build(config, task):
    classes = classes_of(task, config.data)
    return build_segmenter(config.model, len(task.channels), classes, config.data.grid, config.seed)


def environment(config):
    """What a result may depend on besides its configuration."""
    packages = ("torch", "monai", "transformers", "numpy", "scipy", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": config.training.precision,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit():
    """The repository's commit, with "+" where files differ from it; None outside a checkout."""
    repository = Path(__file__).resolve().parents[1]

    def git(*arguments):
        command = ["git", "-C", os.fspath(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "mvl") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _language_suite():
    """Does the block help, and is it the pre-training that helps? Arms differ in nothing else."""
    model, training = PRESETS["vit"]
    block = PRESETS["v1"][0].language
    return {"none": (model, training), "pretrained": (replace(model, language=block), training)}


def _fusion_suite():
    """The paper's parts, each on or off; the digits are language, hybrid attention, fusion."""
    (plain, training), (full, _) = PRESETS["vit"], PRESETS["v1"]
    arms = {}
    for language, hybrid, fusion in itertools.product((0, 1), repeat=3):
        model = replace(
            plain,
            language=full.language if language else None,
            attention=full.attention if hybrid else plain.attention,
            fusion=bool(fusion),
        )
        arms[f"{language}{hybrid}{fusion}"] = (model, training)
    return arms


def _head_suite():
    """The convolutional head, alone and with all of the paper's parts."""
    return {
        f"conv-{arm}": (replace(model, head="conv"), training)
        for arm, (model, training) in _fusion_suite().items()
        if arm in ("000", "111")
    }


#: Suite -> arm -> (model, training): which configurations answer which question.
SUITES = {
    "language": _language_suite(),
    "fusion": _fusion_suite(),
    "head": _head_suite(),
    "presets": dict(PRESETS),
}


def suite_configs(suite, data, seeds, block=None, epochs=None):
    """The experiments of a suite.

    Args:
        suite: one of `SUITES`.
        data: a `DataConfig`.
        seeds: iterable of seeds.
        block: a `LanguageConfig.source` in place of the suite's own.
        epochs: a budget in place of the suite's own.

    Returns:
        {(arm, seed): ExperimentConfig}.

    Raises:
        ConfigError: no suite of that name.
    """
    if suite not in SUITES:
        raise ConfigError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
    configs = {}
    for arm, (model, training) in SUITES[suite].items():
        if block and model.language:
            model = replace(model, language=replace(model.language, source=block))
        if epochs:
            training = replace(training, epochs=epochs)
        for seed in seeds:
            configs[arm, seed] = ExperimentConfig(data, model, training, seed)
    return configs


def run_suite(suite, configs, runs, root=None, show=True, on_bad_case="fail"):
    """Run every experiment of a suite that is not done yet, and collect them all.

    Every arm and seed is trained before the test set is opened for any of them.

    Args:
        suite: the suite's name, for the table.
        configs: from `suite_configs`.
        runs: the folder of all runs.
        root: see `sources.data_root`.
        show: show progress.
        on_bad_case: see `open_task`.

    Returns:
        The suite's table: one row per arm, seed, case and structure, with every metric.
    """
    trained = fit_suite(suite, configs, runs, root, show, on_bad_case)
    tables = []
    for (arm, _), (folder, data) in trained.items():
        test(folder, data, show)
        tables.append(collect(folder, suite, arm))
    return pd.concat(tables, ignore_index=True)


def fit_suite(suite, configs, runs, root=None, show=True, on_bad_case="fail"):
    """Train every experiment of a suite that is not trained yet; the test set stays closed.

    Args: as `run_suite`.

    Returns:
        {(arm, seed): (run folder, its TaskData)}.
    """
    trained = {}
    for (arm, seed), config in configs.items():
        if show:
            print(f"{suite}: arm {arm}, seed {seed}", flush=True)
        data = open_task(config.data, seed, root, on_bad_case, show)
        trained[arm, seed] = (fit(config, data, runs, show), data)
    return trained


def trained_runs(configs, runs, root=None):
    """The experiments of a suite that are trained already.

    Args:
        configs: from `suite_configs`.
        runs: the folder of all runs.
        root: see `sources.data_root`.

    Returns:
        {(arm, seed): (run folder, its TaskData)}.
    """
    found = {}
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, progress=False)
        folder = run_folder(config, data, runs)
        if (folder / TRAINED).exists():
            found[arm, seed] = (folder, data)
    return found


def collect(folder, suite, arm):
    """One run's `cases.csv` with the columns that tell it from other runs."""
    folder = Path(folder)
    stored, place = read_json(folder / "config.json"), read_json(folder / "environment.json")
    config = ExperimentConfig.from_dict(stored["config"])
    language = config.model.language
    facts = {
        "suite": suite,
        "arm": arm,
        "seed": config.seed,
        "task": config.data.task,
        "block": language.source if language else "",
        "host": "vit",
        "fraction": config.data.fraction,
        "epochs": config.training.epochs,
        "protocol_version": stored["protocol_version"],
        "synthetic": read_json(folder / "task.json")["synthetic"],
        "device": place["device"],
        "dtype": place["dtype"],
    }
    cases = pd.read_csv(folder / CASES)
    order = ["suite", "arm", "seed", "task", "subject", "case", "structure", *METRICS]
    order += [name for name in facts if name not in order]
    return cases.assign(**facts)[order]
