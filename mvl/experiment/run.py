"""One experiment: a configuration becomes a run folder, run folders become tables.

`mvl.experiment.files` says what a run folder holds.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mvl.blocks.extraction import block_reference, original
from mvl.config import PROTOCOL_VERSION, ExperimentConfig, fingerprint
from mvl.data.coverage import coverage_notes, grid_coverage, lost_on_grid, require_coverage
from mvl.data.domain import TrainingDomain
from mvl.data.preparation import Preparation, classes_of
from mvl.data.splits import Split
from mvl.data.task_data import TaskData
from mvl.data.tasks import Task, other_side
from mvl.errors import ConfigError, DataError, MvlError, RunError, in_words, out_of_memory
from mvl.experiment.environment import environment, joined
from mvl.experiment.evaluation import evaluate, false_positives
from mvl.experiment.files import (
    BLOCK,
    CASES,
    CONFIG,
    CURVES,
    DOMAIN,
    DONE,
    ENVIRONMENT,
    FAILED,
    HEALTHY,
    LOST,
    SKIPPED,
    SPLIT,
    STATE,
    TASK,
    TRAINED,
    WEIGHTS,
)
from mvl.experiment.identity import (
    describe,
    differences,
    identity_of,
    read_identity,
    require_same,
)
from mvl.experiment.inference import Predictor, structures_of
from mvl.experiment.metrics import METRICS
from mvl.experiment.mirrored import measured_domain
from mvl.experiment.procedure import procedure_of
from mvl.experiment.state import load_weights
from mvl.experiment.training import agreed, processes, train
from mvl.files import REPOSITORY, read_json, read_table, sha256_of, write_json, write_table
from mvl.locks import locked
from mvl.models.folder import load_model
from mvl.models.peers import build_model


def results_folder(profile: str) -> Path:
    """Where a profile's results belong: results/<profile> of the repository."""
    return REPOSITORY / "results" / profile


def run_folder(config: ExperimentConfig, data: TaskData, runs: str | Path) -> Path:
    """An experiment's folder among all runs, such as those of results/quick/runs.

    A block that was copied out of a source gives the folder that the source gives.
    """
    named = config
    if language := config.model.language:
        named = replace(config, model=replace(config.model, language=original(language)))
    return Path(runs) / fingerprint(named, identity_of(config, data))


def runs_of_other_data(
    config: ExperimentConfig, data: TaskData, runs: str | Path
) -> list[tuple[Path, str]]:
    """[(run folder, what has changed since)] of trained runs of the same configuration."""
    now, wanted, others = identity_of(config, data), config.to_dict(), []
    for path in sorted(Path(runs).glob(f"*/{CONFIG}")):
        folder = path.parent
        try:
            if not (folder / TRAINED).exists() or read_json(path, "config")["config"] != wanted:
                continue
            changes = differences(read_identity(folder), now)
        except MvlError as error:
            changes = str(error)
        if changes:
            others.append((folder, changes))
    return others


def fit(
    config: ExperimentConfig,
    data: TaskData,
    runs: str | Path,
    show: bool = True,
    on_epoch: Callable[[list[dict]], None] | None = None,
    track: bool = False,
) -> Path:
    """Train an experiment's model, or resume where an earlier process stopped; its run folder.

    No test case is opened. Processes that torchrun has started train together: each has to call.
    The configuration's class decides how it is trained (`procedure_of`); `on_epoch` and `track` are
    those of `training.train`.

    Raises:
        ConfigError: labels of two sides of the body, and `DataConfig.flips`.
        RunError: training failed, or another process is training this run.
        BlockError: the language block cannot be found, read or trusted.
    """
    folder = run_folder(config, data, runs)
    main = processes().is_main_process
    if show and main:
        for other, changes in runs_of_other_data(config, data, runs):
            print(f"not used: {other}, of the same configuration: {changes}", flush=True)
    if agreed((folder / TRAINED).exists() and not (folder / STATE).exists()):
        return folder
    if config.data.flips and config.data.target == "labels" and other_side(data.task.labels):
        raise ConfigError(
            "mirrored training cases (flips) would exchange left and right structures: leave flips "
            "out, or choose the target foreground"
        )
    with _claimed(folder):
        if not agreed((folder / TRAINED).exists()):
            if main:
                _describe(config, data, folder)
            try:
                _fit(config, data, folder, show, on_epoch, track)
            except Exception as error:
                # `train` reports it of a step. A variable with the error would keep all volumes.
                between = out_of_memory(error) is not None and not isinstance(error, MvlError)
                reason = in_words(error)
                if between:
                    reason = (
                        f"{folder}: out of memory between the steps of training "
                        f"({out_of_memory(error)}); choose a smaller grid or model, or a machine "
                        "with more memory"
                    )
                if main:
                    with contextlib.suppress(MvlError):  # on a full disk the first fault counts
                        write_json(folder / FAILED, {"reason": reason})
                if between:
                    raise RunError(reason) from error
                raise
        if main:
            (folder / STATE).unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def _claimed(folder) -> Iterator[None]:
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


def _describe(config, data, folder):
    """Write down what is about to be trained."""
    (folder / FAILED).unlink(missing_ok=True)
    stored = {"config": config.to_dict(), "fingerprint": folder.name}
    write_json(folder / CONFIG, stored | {"protocol_version": PROTOCOL_VERSION})
    write_json(folder / TASK, dataclasses.asdict(data.task))
    describe(data, folder)
    if data.skipped:
        write_table(folder / SKIPPED, pd.DataFrame(data.skipped))
    if config.model.language:
        write_json(folder / BLOCK, block_reference(config.model.language))
    path, now = folder / ENVIRONMENT, environment(config)
    if (folder / STATE).exists() and path.is_file():
        now = joined(read_json(path), now)
    write_json(path, now)


def _fit(config, data, folder, show, on_epoch, track):
    preparation, procedure = Preparation(data.task, config.data), procedure_of(config)
    volumes, validation = procedure.volumes(preparation, data, show)
    sides = {"train": volumes} | ({} if callable(validation) else {"validation": validation})
    _report_coverage(sides, config, data.task, folder, show)
    model = _build(config, data.task)
    seconds = train(model, volumes, validation, config, folder, show, on_epoch, track)
    agreed(None)  # the main process has written the best weights
    load_weights(model, folder / WEIGHTS)
    domain = measured_domain(model, data, preparation, validation)
    if not processes().is_main_process:
        return
    write_json(folder / DOMAIN, dataclasses.asdict(domain))
    curves = read_table(folder / CURVES, numbers=("epoch", "train_loss", "validation_dice"))
    best = curves.loc[procedure.score(curves).idxmax()]
    trained = {
        "seconds": round(seconds, 1),
        "best_epoch": int(best["epoch"]),
        "validation_dice": float(best["validation_dice"]),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    write_json(folder / TRAINED, trained)


def _report_coverage(sides, config, task, folder, show):
    """Print, write down and, where nothing is left, refuse what the model's grid does not show."""
    names = list(structures_of(task, config.data.target))
    coverage = grid_coverage(sides, names)
    require_coverage(coverage, config.data)
    if not processes().is_main_process:
        return
    if len(lost := lost_on_grid(coverage, config.data)):
        write_table(folder / LOST, lost)
    for line in coverage_notes(coverage, names, config.data) if show else ():
        print(line, flush=True)


def test(
    folder: str | Path,
    data: TaskData,
    show: bool = True,
    kind: type[ExperimentConfig] = ExperimentConfig,
) -> pd.DataFrame:
    """Open the test set for a trained run: metrics of every test case, the table of cases.csv.

    What is found in healthy cases has another table, healthy.csv. `kind` is as in `read_config`.

    Raises:
        RunError: the run is not trained, or was trained on other data.
    """
    folder = Path(folder)
    if (folder / DONE).exists():
        _stored_config(folder)  # refuses another version of the protocol
        require_same(folder, data)
        return read_cases(folder)
    run, cases = Run.load(folder, kind), data.side("test")
    require_same(folder, data)
    if healthy := [case for case in cases if case.name in run.task.healthy]:
        write_table(folder / HEALTHY, false_positives(run, healthy, show))
    others = [case for case in cases if case.name not in run.task.healthy]
    write_table(folder / CASES, evaluate(run, others, show))
    done = read_json(folder / TRAINED, "validation_dice")
    done |= {"test_cases": len(cases), "cases_sha256": sha256_of(folder / CASES)}
    write_json(folder / DONE, done)
    return read_cases(folder)


def read_cases(folder: str | Path) -> pd.DataFrame:
    """The table of a tested run's cases; an `MvlError` where it is missing or damaged."""
    return read_table(Path(folder) / CASES, ("subject", "case", "structure"), METRICS)


def read_config(
    folder: str | Path, kind: type[ExperimentConfig] = ExperimentConfig
) -> ExperimentConfig:
    """The configuration of a run, read as `kind`.

    The study's class refuses a run that was trained in another way; that way's class reads both.

    Raises:
        RunError: the folder is not a run, or was made under another version of the protocol.
        ConfigError: the configuration is damaged, or of another kind.
    """
    try:
        return kind.from_dict(_stored_config(folder))
    except ConfigError as error:
        raise ConfigError(f"{Path(folder) / CONFIG}: {error}") from error


def _stored_config(folder):
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}")
    stored = read_json(path, "config", "protocol_version")
    if stored["protocol_version"] != PROTOCOL_VERSION:
        raise RunError(
            f"{folder} was made under protocol version {stored['protocol_version']!r}, this is "
            f"version {PROTOCOL_VERSION}: numbers of the two do not compare; train it again"
        )
    return stored["config"]


@dataclass(frozen=True, kw_only=True)
class Run(Predictor):
    """A trained run, as its folder describes it; one of old times has no domain."""

    folder: Path
    config: ExperimentConfig
    split: Split

    @classmethod
    def load(cls, folder: str | Path, kind: type[ExperimentConfig] = ExperimentConfig) -> "Run":
        """Rebuild the model of a trained run; `kind` as in `read_config`.

        Raises:
            RunError: not a run, not trained, or of another protocol version or language block.
            BlockError: its language block cannot be found, read or trusted.
        """
        folder = Path(folder)
        if not (folder / TRAINED).exists():
            state = "its training has not ended" if (folder / CONFIG).exists() else "not a run"
            raise RunError(f"{folder}: {state}; 'mvl train' makes a trained run")
        config = read_config(folder, kind)
        if config.model.language:
            now = block_reference(config.model.language)["sha256"]
            then = read_json(folder / BLOCK, "sha256")["sha256"]
            if now != then:
                raise RunError(
                    f"{folder} was trained with another block than {config.model.language.source} "
                    f"gives now (SHA-256 {str(then)[:12]}, now {now[:12]})"
                )
        task = _read(folder / TASK, Task)
        model = _build(config, task)
        load_weights(model, folder / WEIGHTS)
        domain = _read(folder / DOMAIN, TrainingDomain) if (folder / DOMAIN).is_file() else None
        return cls(
            model.to(processes().device).eval(),
            Preparation(task, config.data),
            domain,
            folder=folder,
            config=config,
            split=Split.load(folder / SPLIT),
        )


def _read(path, kind):
    try:
        return kind.from_dict(read_json(path))
    except DataError as error:
        raise RunError(f"{path}: {error}") from error


def load_predictor(
    folder: str | Path,
    kind: type[ExperimentConfig] = ExperimentConfig,
    block: str | None = None,
) -> Predictor:
    """A `Run` from its folder, or a `Predictor` from what `save_model` wrote.

    `block` is where the latter's language block is here, if not where it was saved.

    Raises:
        RunError: as `Run.load`; or the saved model does not say what it was trained on.
        BlockError: its language block cannot be found, read or trusted.
    """
    stored = Path(folder) / CONFIG
    # A saved model's names its type; of any other folder `Run.load` says what it lacks.
    if not stored.is_file() or "model_type" not in read_json(stored):
        if block:
            raise ConfigError("--block is for a saved model: a run names its own block")
        return Run.load(folder, kind)
    model = load_model(folder, block=block).to(processes().device)
    about = model.description
    if block and not about.config.language:
        raise ConfigError(f"--block {block}: {folder} has no language block")
    if about.task is None or about.data is None:
        raise RunError(f"{folder} does not say how to prepare an image: save it with task and data")
    return Predictor(model, Preparation(about.task, about.data), about.domain)


def _build(config, task):
    classes = classes_of(task, config.data)
    channels = len(config.data.channels_of(task.channels))
    return build_model(config.model, channels, classes, config.data.grid, config.seed)


def collect(folder: str | Path, suite: str, arm: str) -> pd.DataFrame:
    """One run's `cases.csv` with the columns that tell it from other runs."""
    folder = Path(folder)
    config = _stored_config(folder)  # of whatever kind: a table does not depend on it
    machine = read_json(folder / ENVIRONMENT, "device", "dtype")
    facts = {
        "suite": suite,
        "arm": arm,
        "seed": config["seed"],
        "task": config["data"]["task"],
        "block": (config["model"].get("language") or {}).get("source", ""),
        "host": config["model"].get("architecture", "vit"),
        "fraction": config["data"]["fraction"],
        "epochs": config["training"]["epochs"],
        "protocol_version": PROTOCOL_VERSION,
        "synthetic": read_json(folder / TASK, "synthetic")["synthetic"],
        "device": machine["device"],
        "dtype": machine["dtype"],
    }
    order = ["suite", "arm", "seed", "task", "subject", "case", "structure", *METRICS]
    order += [name for name in facts if name not in order]
    return read_cases(folder).assign(**facts)[order]
