"""`mvl train`: options become a configuration, the configuration a trained run."""

import contextlib
import json
import os
import re
from argparse import Namespace
from dataclasses import replace
from typing import get_args

from mvl.cli.parser import TASK
from mvl.config import PRESETS, DataConfig, ExperimentConfig, PeerConfig, task_data
from mvl.errors import ConfigError, did_you_mean
from mvl.files import absolute_source
from mvl.strict import merged, read_yaml

#: With fewer optimiser steps a person is warned.
FEW_STEPS = 1000
#: The comparison networks, which `--preset` takes, too.
ARCHITECTURES = get_args(PeerConfig.__dataclass_fields__["architecture"].type)


def train(options: Namespace) -> None:
    config = configuration(options)

    # After the options' own faults: these take seconds to import.
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
    main = processes().is_main_process  # one of several that train together says what is done
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
    if main:
        trained, run = read_json(folder / TRAINED), label(folder)
        best = f"epoch {trained['best_epoch'] + 1} of {config.training.epochs}"
        print(f"validation Dice {trained['validation_dice']:.3f}, {best}")
        print(f"next:\n    mvl evaluate {run}\n    mvl predict IMAGE --run {run} -o OUT.nii.gz")
        print(f"    mvl runs show {run}\n{folder}")


def _require_free(name, folder):
    """Raise a ConfigError where a run in `folder` cannot have that name."""
    from mvl.experiment.catalogue import all_runs, run_name

    if name is None:
        return
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"--name {name}: it has letters, digits and . _ + - alone")
    if taken := [run for run in all_runs() if run_name(run) == name and run.name != folder.name]:
        raise ConfigError(f"--name {name} is the name of {taken[0]}; choose another")


def use_device(name: str) -> None:
    """Let PyTorch see that device alone; before it is first used.

    Raises:
        ConfigError: PyTorch does not find it.
    """
    if not (match := re.fullmatch(r"cpu|cuda(?::(\d+))?", name)):
        raise ConfigError(f"--device {name}: it is cpu, cuda, or cuda:N for one of several GPUs")
    if name != "cuda":
        # Read when CUDA is first used. A scheduler may have assigned some GPUs: N counts these.
        assigned = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        number = match[1] or ""
        if number and assigned:
            number = dict(enumerate(assigned)).get(int(number), "-1")
        os.environ["CUDA_VISIBLE_DEVICES"] = number
    import torch

    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch finds no such GPU; without it the CPU trains")


def configuration(options: Namespace) -> ExperimentConfig:
    """The experiment that the options of `mvl train` describe.

    Preset and task come first, then --config, the other options, and --set.

    Raises:
        ConfigError: a field that does not exist, or a value that it does not take.
        DataError: the file of --splits is none.
    """
    given = _read(options.config) if options.config else {}
    stored = given.get("data")
    task = options.task or (stored.get("task") if isinstance(stored, dict) else None) or TASK
    model, training = _preset(options.preset or "vit")
    values = ExperimentConfig(task_data(str(task)), model, training).to_dict()
    values = merged(values, given)
    plan = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate")}
    plan = {name: value for name, value in plan.items() if value is not None}
    changed = data_options(options)
    if not options.splits and isinstance(stored, dict) and stored.get("splits"):
        changed.pop("testing", None)  # the split that the file has says it
    values = merged(values, {"data": changed, "training": plan})
    if options.seed is not None:
        values["seed"] = options.seed
    if options.block:
        if not values["model"].get("language"):
            have = [name for name, (model, _) in PRESETS.items() if model.language]
            raise ConfigError(
                f"--block {options.block}: the preset {options.preset or 'vit'} has no language "
                f"block, so that it would not be used; presets with one are {', '.join(have)}"
            )
        values["model"]["language"]["source"] = absolute_source(options.block)
    for text in options.set or ():
        values = merged(values, _setting(text))
    config = ExperimentConfig.from_dict(values)
    if config.data.fold == config.seed % config.data.folds:  # the same experiment, one name
        config = replace(config, data=replace(config.data, fold=None))
    return config


def _preset(name):
    if name in PRESETS:
        return PRESETS[name]
    if name in ARCHITECTURES:
        from mvl.study.suites import SUITES

        return SUITES["peers"][name].model, SUITES["peers"][name].training
    known = [*PRESETS, *ARCHITECTURES]
    raise ConfigError(f"--preset {name}: there are {', '.join(known)}{did_you_mean(name, known)}")


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


def data_config(options: Namespace) -> DataConfig:
    """The task's `DataConfig`, with what the options say otherwise."""
    values = data_options(options)
    lists = {name: tuple(values[name]) for name in ("grid", "spacing_mm") if name in values}
    return replace(task_data(options.task), **values | lists)


def _read(path):
    """A configuration, or part of one, of a YAML or JSON file."""
    values = read_yaml(path)
    if isinstance(values, dict) and "fingerprint" in values:  # a run's config.json
        values = values.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected fields of a configuration")
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
    return value
