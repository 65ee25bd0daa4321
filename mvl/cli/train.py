"""`mvl train`: options become a configuration, the configuration a trained run."""

import contextlib
import json
import os
import re
from argparse import Namespace
from typing import TYPE_CHECKING, get_args

from mvl.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mvl.config import DataConfig, ExperimentConfig

#: With fewer optimiser steps a person is warned.
FEW_STEPS = 1000


def architectures() -> tuple[str, ...]:
    """The comparison networks that `--preset` takes besides the presets."""
    from mvl.config import PeerConfig

    return get_args(PeerConfig.__dataclass_fields__["architecture"].type)


def train(options: Namespace) -> None:
    from dataclasses import replace

    _use_device(options.device)
    config = configuration(options)

    from mvl.cli.runs import described
    from mvl.cli.verbs import print_assumptions
    from mvl.data.task_data import open_task
    from mvl.experiment.catalogue import label, results_root
    from mvl.experiment.files import NAME, TRAINED
    from mvl.experiment.run import fit, run_folder
    from mvl.experiment.training import processes
    from mvl.files import read_json, write_text
    from mvl.study.suites import steps_per_epoch

    runs = options.runs or results_root() / "runs"
    data = open_task(config.data, config.seed, options.root, options.on_bad_case)
    if options.steps is not None:
        if options.steps < 1:
            raise ConfigError(f"--steps must be at least 1, got {options.steps}")
        epochs = -(-options.steps // steps_per_epoch(config, data))
        config = replace(config, training=replace(config.training, epochs=epochs))
    folder = run_folder(config, data, runs)
    _require_free(options.name, folder)
    main = processes().is_main_process
    if main:
        if options.name:
            write_text(folder / NAME, options.name + "\n")
        print_assumptions(data.task)
        print(described(config, data, folder), flush=True)
        if (folder / TRAINED).exists():
            print("this run is trained already; nothing is trained again")
        elif (steps := config.training.epochs * steps_per_epoch(config, data)) < FEW_STEPS:
            print(
                f"warning: {steps:,} steps are few. Below {FEW_STEPS:,} most models have not "
                f"learned their task yet; --steps {FEW_STEPS} trains longer."
            )
    fit(config, data, runs, track=options.track)
    if not main:
        return  # one of several that train together says it
    trained, run = read_json(folder / TRAINED), label(folder)
    best = f"epoch {trained['best_epoch'] + 1} of {config.training.epochs}"
    print(f"validation Dice {trained['validation_dice']:.3f}, {best}")
    print(
        f"next:\n    mvl evaluate {run}\n    mvl predict IMAGE --run {run} -o OUT.nii.gz\n"
        f"    mvl runs show {run}"
    )
    print(folder)


def _require_free(name, folder):
    """Raise a ConfigError where a run in `folder` cannot have that name."""
    from mvl.experiment.catalogue import all_runs, run_name

    if name is None:
        return
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"--name {name}: it has letters, digits and . _ + - alone")
    if taken := [run for run in all_runs() if run_name(run) == name and run.name != folder.name]:
        raise ConfigError(f"--name {name} is the name of {taken[0]}; choose another")


def _use_device(name):
    """Let PyTorch see that device alone."""
    if name is None:
        return
    if not (match := re.fullmatch(r"cpu|cuda(?::(\d+))?", name)):
        raise ConfigError(f"--device {name}: it is cpu, cuda, or cuda:N for one of several GPUs")
    if name != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = match[1] or ""  # read when CUDA is first used
    import torch

    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch finds no such GPU; without it the CPU trains")


def configuration(options: Namespace) -> "ExperimentConfig":
    """The experiment that the options of `mvl train` describe.

    Preset and task come first, then --config, the other options, and --set.

    Raises:
        ConfigError: a field that does not exist, or a value that it does not take.
        DataError: the file of --splits is none.
    """
    from dataclasses import replace

    from mvl.cli.options import TASK
    from mvl.config import ExperimentConfig, task_data
    from mvl.strict import merged

    given = _read(options.config) if options.config else {}
    task = options.task or given.get("data", {}).get("task", TASK)
    model, training = _preset(options.preset or "vit")
    values = ExperimentConfig(task_data(str(task)), model, training).to_dict()
    values = merged(values, given)
    told = ("epochs", "batch_size", "learning_rate")
    told = {name: getattr(options, name) for name in told if getattr(options, name) is not None}
    values = merged(values, {"data": data_options(options), "training": told})
    if options.seed is not None:
        values["seed"] = options.seed
    if options.block:
        if not values["model"].get("language"):
            raise ConfigError(_no_block(options))
        kind, _, name = options.block.partition(":")
        if kind in ("path", "gguf"):  # a run is used from other folders, too
            name = os.path.abspath(os.path.expanduser(name))
        values["model"]["language"]["source"] = f"{kind}:{name}" if name else options.block
    for text in options.set or ():
        values = merged(values, _setting(text))
    config = ExperimentConfig.from_dict(values)
    if config.data.fold == config.seed % config.data.folds:  # the same experiment, one name
        config = replace(config, data=replace(config.data, fold=None))
    return config


def _preset(name):
    from mvl.config import PRESETS

    if name in PRESETS:
        return PRESETS[name]
    if name in architectures():
        from mvl.study.suites import SUITES

        return SUITES["peers"][name].model, SUITES["peers"][name].training
    known = [*PRESETS, *architectures()]
    raise ConfigError(f"--preset {name}: there are {', '.join(known)}{did_you_mean(name, known)}")


def _no_block(options):
    from mvl.config import PRESETS

    have = [name for name, (model, _) in PRESETS.items() if model.language]
    preset = f"--preset {options.preset}" if options.preset else "the default preset, vit,"
    return (
        f"--block {options.block}: {preset} has no language block, so that it would not be used; "
        f"presets with one are {', '.join(have)}"
    )


def data_options(options: Namespace) -> dict:
    """The fields of `DataConfig` that options name."""
    names = ("task", "fit", "target", "channels", "flips", "grid", "folds", "fold")
    values = {name: getattr(options, name, None) for name in names}
    values["spacing_mm"] = options.spacing
    if options.fit == "crop" and not options.spacing:
        raise ConfigError("--fit crop needs --spacing R A S, in mm per voxel")
    if options.spacing and options.fit != "crop" and not getattr(options, "config", None):
        raise ConfigError("--spacing is for --fit crop alone")
    if getattr(options, "splits", None):
        from mvl.data.splits import read_splits

        pairs, by = read_splits(options.splits)
        values |= {"splits": pairs, "splits_by": by}
        places = {place for _, place in pairs}
        folds = sum(place.isdecimal() for place in places)
        if folds and values["folds"] not in (None, folds):
            raise ConfigError(f"--folds {values['folds']}: {options.splits} has {folds} folds")
        values["folds"] = folds or values["folds"]
        values["testing"] = "crossed" if folds and "test" not in places else "held-out"
    elif values["folds"] is not None or values["fold"] is not None:
        values["testing"] = "crossed"
    return {name: value for name, value in values.items() if value is not None}


def data_config(options: Namespace) -> "DataConfig":
    """The task's `DataConfig`, with what the options say otherwise."""
    from dataclasses import replace

    from mvl.config import task_data

    values = data_options(options)
    for name in ("grid", "spacing_mm"):
        if name in values:
            values[name] = tuple(values[name])
    return replace(task_data(options.task), **values)


def _read(path):
    """A configuration, or part of one, of a YAML or JSON file."""
    from mvl.strict import read_yaml

    values = read_yaml(path)
    if isinstance(values, dict) and "fingerprint" in values:  # a run's config.json
        values = values.get("config")
    _require_known(values, f"--config {path}")
    return values


def _setting(text):
    """--set's FIELD=VALUE, as a part of a configuration."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected FIELD=VALUE, such as model.width=128")
    with contextlib.suppress(ValueError):  # what is no JSON is a text
        value = json.loads(value)
    for part in reversed(path.split(".")):
        value = {part: value}
    _require_known(value, f"--set {text}")
    return value


def _require_known(values, what):
    """Raise a ConfigError for a field that there is not, which names those that are near."""
    from mvl.config import DataConfig, LanguageConfig, ModelConfig, PeerConfig, TrainingConfig

    parts = {"data": (DataConfig,), "model": (ModelConfig, PeerConfig)}
    parts |= {"model.language": (LanguageConfig,), "training": (TrainingConfig,)}
    known = {f"{part}.{name}" for part in parts for kind in parts[part] for name in _fields(kind)}
    known |= {"seed", *parts}
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: expected fields of a configuration")
    todo = [(name, value) for name, value in values.items()]
    while todo:
        path, value = todo.pop(0)
        if path not in known:
            raise ConfigError(f"{what}: there is no field {path}{_nearest(path, known)}")
        if path in parts:
            if isinstance(value, dict):
                todo += [(f"{path}.{name}", inner) for name, inner in value.items()]
            elif path != "model.language" or value is not None:
                raise ConfigError(f"{what}: {path} is a group of fields, such as {path}.NAME")


def _nearest(path, known):
    """The fields whose own name, without their group's, is nearest to that of `path`."""
    from difflib import get_close_matches

    near = get_close_matches(
        path.rpartition(".")[2], {name.rpartition(".")[2] for name in known}, 1
    )
    names = sorted(name for name in known if name.rpartition(".")[2] in near)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _fields(kind):
    return kind.__dataclass_fields__
