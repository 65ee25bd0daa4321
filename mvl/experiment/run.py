"""One experiment: a configuration becomes a run folder, run folders become tables.

A run folder is named by its experiment's fingerprint and holds

    config.json         the configuration, its fingerprint and the protocol's version
    task.json           the task's facts, so that a run predicts without its data set
    split.json          names of the training, validation and test cases
    identity.json       what else its name is made of: see `mvl.experiment.identity`
    skipped.csv         cases left out because of a fault, where there are any
    lost.csv            what the model's grid does not show of the training and validation labels:
                        a structure of a case a row, where there are any
    block.json          the language block by reference: source, revision, layer, SHA-256
    environment.json    versions, device, number format, threads, commit; "a, then b" where they
                        changed before training ended
    curves.csv          an epoch a row
    model.safetensors   trained weights alone
    domain.json         what its training images were like, for `mvl predict`
    trained.json        written when training ends
    cases.csv           a test case and structure a row, every metric, in native space
    healthy.csv         healthy test cases: what is found there, in ml; where there are any
    done.json           written last
    failed.json         why training stopped, where it did; the next attempt removes it
    .lock               held by the process that is training

What has `trained.json` is never trained again, what has `done.json` never evaluated again.
"""

import contextlib
import dataclasses
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from monai.data import MetaTensor

from mvl.blocks.extraction import block_reference
from mvl.config import PROTOCOL_VERSION, ExperimentConfig, fingerprint
from mvl.data.coverage import coverage_notes, grid_coverage, lost_on_grid, require_coverage
from mvl.data.domain import TrainingDomain, training_domain
from mvl.data.preparation import Preparation, classes_of
from mvl.data.splits import Split
from mvl.data.tasks import Task
from mvl.errors import ConfigError, DataError, MvlError, RunError, in_words, out_of_memory
from mvl.experiment.evaluation import evaluate, false_positives, structures_of
from mvl.experiment.identity import (
    SPLIT,
    describe,
    differences,
    identity_of,
    read_identity,
    require_same,
)
from mvl.experiment.metrics import METRICS
from mvl.experiment.released import procedure_of
from mvl.experiment.training import (
    CURVES,
    STATE,
    WEIGHTS,
    agreed,
    load_weights,
    processes,
    train,
    validate,
)
from mvl.files import REPOSITORY, read_json, read_table, sha256_of, write_json, write_table
from mvl.locks import is_locked, locked
from mvl.models.folder import load_model
from mvl.models.peers import build_model

DOMAIN, TRAINED, DONE = "domain.json", "trained.json", "done.json"
FAILED, CASES = "failed.json", "cases.csv"
LOST, HEALTHY = "lost.csv", "healthy.csv"


def results_folder(profile):
    """Where a profile's results belong: results/<profile> of the repository."""
    return REPOSITORY / "results" / profile


def run_folder(config, data, runs):
    """Where an experiment's results belong.

    Args:
        config: an `ExperimentConfig`.
        data: its `TaskData`.
        runs: the folder of all runs, such as results/quick/runs.
    """
    return Path(runs) / fingerprint(config, identity_of(config, data))


def runs_of_other_data(config, data, runs):
    """Trained runs of the same configuration whose task, or block, was another then.

    Args:
        config, data, runs: as for `run_folder`.

    Returns:
        [(run folder, what has changed, as `identity.differences`)].
    """
    own, wanted, found = identity_of(config, data), config.to_dict(), []
    for path in sorted(Path(runs).glob("*/config.json")):
        folder = path.parent
        try:
            if not (folder / TRAINED).exists() or read_json(path, "config")["config"] != wanted:
                continue
            said = differences(read_identity(folder), own)
        except MvlError as error:
            said = str(error)
        if said:
            found.append((folder, said))
    return found


def is_running(folder):
    """Whether a process is training the run of this folder now."""
    return is_locked(folder)


def fit(config, data, runs, show=True, on_epoch=None, track=False):
    """Train an experiment's model, or go on where an earlier process stopped.

    The test cases are not opened. Processes that torchrun has started train together: each of
    them has to call, and the main one alone describes the run and says that it is trained.

    Args:
        config: an `ExperimentConfig`.
        data: its `TaskData`, from `open_task`.
        runs: the folder of all runs.
        show: show progress.
        on_epoch, track: see `training.train`.

    Returns:
        The run folder.

    Raises:
        RunError: training failed, the message says where and what to change; or another process
            is training this run.
        BlockError: the language block cannot be found, read or trusted.
    """
    folder = run_folder(config, data, runs)
    main = processes().is_main_process
    if show and main:
        for other, said in runs_of_other_data(config, data, runs):
            print(f"not used: {other}, of the same configuration: {said}", flush=True)
    if agreed((folder / TRAINED).exists() and not (folder / STATE).exists()):
        return folder
    with _claimed(folder):
        if not agreed((folder / TRAINED).exists()):
            if main:
                _describe(config, data, folder)
            try:
                with _memory_in_words(folder):
                    _fit(config, data, folder, show, on_epoch, track)
            except Exception as error:
                if main:
                    with contextlib.suppress(MvlError):  # on a full disk the first fault is the one
                        write_json(folder / FAILED, {"reason": in_words(error)})
                raise
        if main:
            (folder / STATE).unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def _claimed(folder):
    """Hold a run's lock, one for all processes that train it together."""
    fault = None
    with contextlib.ExitStack() as held:
        if processes().is_main_process:
            try:
                held.enter_context(locked(folder, "training this run"))
            except MvlError as error:
                fault = str(error)
        if fault := agreed(fault):
            raise RunError(fault)
        yield
        agreed(None)  # nobody leaves, or reads the folder, before all have done their part


@contextlib.contextmanager
def _memory_in_words(folder):
    """Say it in a sentence where memory runs out outside of a step, for which `train` does."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (reason := out_of_memory(error)):
            raise
        raise RunError(
            f"{folder}: out of memory before or between the steps of training ({reason}); choose a "
            "smaller grid or model, or a machine with more memory"
        ) from error


def _describe(config, data, folder):
    """Write down what is about to be trained."""
    (folder / FAILED).unlink(missing_ok=True)
    write_json(
        folder / "config.json",
        {
            "config": config.to_dict(),
            "fingerprint": folder.name,
            "protocol_version": PROTOCOL_VERSION,
        },
    )
    write_json(folder / "task.json", dataclasses.asdict(data.task))
    describe(data, folder)
    if data.skipped:
        write_table(folder / "skipped.csv", pd.DataFrame(data.skipped))
    if config.model.language:
        write_json(folder / "block.json", block_reference(config.model.language))
    place = folder / "environment.json"
    now = environment(config)
    # A training that goes on elsewhere is no training of either machine.
    resumed = (folder / STATE).exists() and place.is_file()
    write_json(place, _then(read_json(place), now) if resumed else now)


def _then(before, now):
    """An entry of environment.json, or all of them, for a training that was resumed."""
    if isinstance(before, dict) and isinstance(now, dict):
        return now | {key: _then(value, now.get(key)) for key, value in before.items()}
    if before == now or str(before).endswith(f", then {now}"):
        return before
    return f"{before}, then {now}"


def _fit(config, data, folder, show, on_epoch, track):
    preparation, procedure = Preparation(data.task, config.data), procedure_of(config)
    volumes, validation = procedure.volumes(preparation, data, show)
    sides = {"train": volumes} | ({} if callable(validation) else {"validation": validation})
    _tell_coverage(sides, config.data, data.task, folder, show)
    model = _build(config, data.task)
    seconds = train(model, volumes, validation, config, folder, show, on_epoch, track, procedure)
    agreed(None)  # the main process has written the best weights
    load_weights(model, folder / WEIGHTS)
    domain = measured_domain(model, data, preparation, None if callable(validation) else validation)
    if not processes().is_main_process:
        return
    write_json(folder / DOMAIN, dataclasses.asdict(domain))
    curves = read_table(folder / CURVES, numbers=("epoch", "train_loss", "validation_dice"))
    best = curves.loc[procedure.score(curves).idxmax()]
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


def _tell_coverage(sides, config, task, folder, show):
    """Say, write down and, where nothing is left, refuse what the model's grid does not show."""
    names = list(structures_of(task, config.target))
    coverage = grid_coverage(sides, names)
    require_coverage(coverage, config)
    if not processes().is_main_process:
        return
    if len(lost := lost_on_grid(coverage, config)):
        write_table(folder / LOST, lost)
    for said in coverage_notes(coverage, names, config) if show else ():
        print(said, flush=True)


def measured_domain(model, data, preparation, validation=None):
    """What a model was trained on, and which sides it knows; every process has to call.

    Args:
        model: trained; put into `eval()`.
        data: the `TaskData` that it was trained on.
        preparation: its `Preparation`.
        validation: the prepared validation cases; read if None.

    Returns:
        A `TrainingDomain`.

    Raises:
        DataError: a file cannot be read.
    """
    if validation is None:
        validation = preparation.load(data.side("validation"), False)
    # Axis 1 is right-left, since a prepared volume is in RAS.
    mirrored = [
        v | {"image": MetaTensor(v["image"].as_tensor().flip(1)), "label": v["label"].flip(1)}
        for v in validation
    ]
    device = next(model.parameters()).device
    config = preparation.config
    dice = [validate(model, v, 1, device, config.window) for v in (validation, mirrored)]
    records = [data.records[name] for name in data.split.train]
    return training_domain(records, data.task, config, dice)


def test(folder, data, show=True):
    """Open the test set for a trained run: metrics of every test case, in native space.

    Healthy cases are measured in a table of their own, healthy.csv.

    Args:
        folder: a run folder that `fit` has finished.
        data: the `TaskData` that it was trained on.
        show: show progress.

    Returns:
        The table of `cases.csv`.

    Raises:
        RunError: the run is not trained, or `data` is another than it was trained on.
    """
    folder = Path(folder)
    if (folder / DONE).exists():
        require_same(folder, read_config(folder), data)
    else:
        run = Run.load(folder)
        require_same(folder, run.config, data)
        given = (run.preparation, run.task, run.config.data.target, show)
        test_cases = data.side("test")
        healthy = [case for case in test_cases if case.name in run.task.healthy]
        if healthy:
            write_table(folder / HEALTHY, false_positives(run.model, healthy, *given))
        others = [case for case in test_cases if case not in healthy]
        write_table(folder / CASES, evaluate(run.model, others, *given))
        write_json(
            folder / DONE,
            read_json(folder / TRAINED, "validation_dice")
            | {"test_cases": len(data.split.test), "cases_sha256": sha256_of(folder / CASES)},
        )
    return read_cases(folder)


def read_cases(folder):
    """The table of a tested run's cases, as `test` gives it.

    Raises:
        MvlError: it is missing or damaged.
    """
    return read_table(folder / CASES, ("subject", "case", "structure"), METRICS)


def read_config(folder):
    """The configuration of a run.

    Raises:
        RunError: the folder is no run, or was made under another version of the protocol.
        ConfigError: the configuration is damaged.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} is no run folder: it has no config.json")
    stored = read_json(path, "config", "protocol_version")
    if stored["protocol_version"] != PROTOCOL_VERSION:
        raise RunError(
            f"{folder} was made under protocol version {stored['protocol_version']!r}, this is "
            f"version {PROTOCOL_VERSION}: numbers of the two do not compare; train it anew"
        )
    try:
        return ExperimentConfig.from_dict(stored["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Run:
    """A trained run, as its folder describes it."""

    folder: Path
    config: ExperimentConfig
    task: Task
    split: Split
    model: torch.nn.Module
    preparation: Preparation
    #: None in a run from before there was one.
    domain: TrainingDomain | None = None

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
        config = read_config(folder)
        if config.model.language:
            now = block_reference(config.model.language)["sha256"]
            then = read_json(folder / "block.json", "sha256")["sha256"]
            if now != then:
                raise RunError(
                    f"{folder} was trained with another block than {config.model.language.source} "
                    f"gives now (SHA-256 {str(then)[:12]}, now {now[:12]})"
                )
        task = _read_task(folder)
        model = _build(config, task)
        load_weights(model, folder / WEIGHTS)
        return cls(
            folder=folder,
            config=config,
            task=task,
            split=Split.load(folder / SPLIT),
            model=model.eval(),
            preparation=Preparation(task, config.data),
            domain=_read_domain(folder),
        )


def _read_task(folder):
    path = folder / "task.json"
    try:
        return Task.from_dict(read_json(path))
    except DataError as error:
        raise RunError(f"{path}: {error}") from error


def _read_domain(folder):
    path = folder / DOMAIN
    if not path.is_file():
        return None
    try:
        return TrainingDomain.from_dict(read_json(path))
    except DataError as error:
        raise RunError(f"{path}: {error}") from error


class Predictor(NamedTuple):
    """A trained model and what it takes to use it on an image, as `predict_file` wants it."""

    model: torch.nn.Module
    preparation: Preparation
    task: Task
    target: str
    #: None where the model does not record what it was trained on.
    domain: TrainingDomain | None = None


def load_predictor(folder):
    """A `Predictor` from a run folder or from a saved model.

    Args:
        folder: a run folder, or one that `save_model` wrote with task and data.

    Raises:
        RunError: it is neither, or the saved model does not say what it was trained on.
        BlockError: its language block is not at hand, or is not the one of the training.
    """
    stored = Path(folder) / "config.json"
    # A saved model's names its type; any other folder is a run, or is told what it lacks.
    if not stored.is_file() or "model_type" not in read_json(stored):
        run = Run.load(folder)
        target = run.config.data.target
        return Predictor(run.model, run.preparation, run.task, target, run.domain)
    model = load_model(folder)
    about = model.description
    if about.task is None or about.data is None:
        raise RunError(
            f"{folder} does not say how an image is prepared: save it with task and data"
        )
    preparation = Preparation(about.task, about.data)
    return Predictor(model, preparation, about.task, about.data.target, about.domain)


def _build(config, task):
    classes = classes_of(task, config.data)
    channels = len(config.data.channels_of(task))
    return build_model(config.model, channels, classes, config.data.grid, config.seed)


def environment(config):
    """What a result may depend on besides its configuration."""
    packages = ("torch", "monai", "transformers", "numpy", "scipy", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": config.training.precision,
        "threads": torch.get_num_threads(),
        "processes": processes().num_processes,
        "commit": _commit(),
    }


def _cpu():
    """The processor's kind: maths libraries choose their code by it, and with it the last bits."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or "unknown"
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    names = ("vendor_id", "cpu family", "model", "stepping")
    return " ".join(facts[name] for name in names if name in facts) or "unknown"


def _commit():
    """The repository's commit, with "+" where files differ from it; None outside a checkout."""

    def git(*arguments):
        command = ["git", "-C", os.fspath(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "mvl") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def collect(folder, suite, arm):
    """One run's `cases.csv` with the columns that tell it from other runs."""
    folder = Path(folder)
    config = read_config(folder)
    place = read_json(folder / "environment.json", "device", "dtype")
    language = config.model.language
    facts = {
        "suite": suite,
        "arm": arm,
        "seed": config.seed,
        "task": config.data.task,
        "block": language.source if language else "",
        "host": getattr(config.model, "architecture", "vit"),
        "fraction": config.data.fraction,
        "epochs": config.training.epochs,
        "protocol_version": PROTOCOL_VERSION,
        "synthetic": read_json(folder / "task.json", "synthetic")["synthetic"],
        "device": place["device"],
        "dtype": place["dtype"],
    }
    cases = read_cases(folder)
    order = ["suite", "arm", "seed", "task", "subject", "case", "structure", *METRICS]
    order += [name for name in facts if name not in order]
    return cases.assign(**facts)[order]
