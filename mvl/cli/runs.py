"""The verbs of one run or two: test, predict, list, show, compare."""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from mvl.audit.released import AuditedConfig
from mvl.blocks.extraction import open_block
from mvl.cli.verbs import print_assumptions
from mvl.config import ExperimentConfig
from mvl.data.preparation import classes_of
from mvl.data.splits import Split
from mvl.data.task_data import TaskData, open_task
from mvl.data.task_folder import require_output
from mvl.data.tasks import Task
from mvl.errors import RunError
from mvl.experiment import catalogue
from mvl.experiment import run as experiments
from mvl.experiment.catalogue import find_run, label
from mvl.experiment.files import CASES, ENVIRONMENT, FAILED, SPLIT, TASK, TRAINED
from mvl.experiment.identity import facts_changed, read_identity
from mvl.experiment.metrics import METRICS
from mvl.experiment.prediction import predict_file, predict_folder
from mvl.files import absolute_source, read_json, read_table
from mvl.models.sizes import count_parameters
from mvl.show.sentences import count, interval, no_verdict
from mvl.study import inference, statistics
from mvl.study.reference import BEST
from mvl.study.suites import steps_per_epoch


def evaluate(options: Namespace) -> None:
    folder = find_run(options.run)
    config = experiments.read_config(folder, AuditedConfig)
    data = open_task(config.data, config.seed, options.root, options.on_bad_case)
    cases = experiments.test(folder, data, kind=AuditedConfig)
    print_assumptions(data.task)
    subjects = cases.groupby(["structure", "subject"], sort=False)[list(METRICS)].mean()
    print(f"means over {count(cases['subject'].nunique(), 'test subject')}")
    means = subjects.groupby("structure", sort=False).mean()
    print(means.T.to_string(float_format="%.3f"))
    if (folder / experiments.HEALTHY).exists():
        healthy = read_table(folder / experiments.HEALTHY, ("subject", "case", "structure"))
        print("healthy test cases, in which nothing should be found")
        print(healthy.to_string(index=False, float_format="%.3f"))


def predict(options: Namespace) -> int:
    several = options.image.is_dir()
    if not several:
        require_output(options.output, options.image)
    if options.run is None:
        options.run = BEST
        print("with this replication's own model `best`, trained on MSD's Task04_Hippocampus")
    folder = find_run(options.run)
    predictor = experiments.load_predictor(folder, AuditedConfig, absolute_source(options.block))
    if changed := facts_changed(folder, predictor.task):
        name = predictor.task.name
        print(f"with the model's description of {name}, which has changed since: {changed}")
    if not several:
        predict_file(options.image, options.output, predictor, options.anyway)
        print(options.output)
        return 0
    written, failures = predict_folder(options.image, options.output, predictor, options.anyway)
    print(written)
    for reason in failures.values():
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if failures else 0


def described(config: ExperimentConfig, data: TaskData, folder: Path) -> str:
    """What a run is, in lines: model, block, weights, cases, steps, device, folder.

    Of `data` the task and the split count.
    """
    task, grid = data.task, config.data.grid
    shape = (len(config.data.channels_of(task.channels)), classes_of(task, config.data))
    trained, frozen = (n / 1e6 for n in count_parameters(config.model, grid, *shape))
    preset, changes = catalogue.preset_of(config.to_dict()["model"])
    if changes:
        preset += f", changed: {', '.join(f'{name}={value}' for name, value in changes.items())}"
    sides = [f"{len(getattr(data.split, s))} {s}" for s in ("train", "validation", "test")]
    per_epoch, plan = steps_per_epoch(config, data), config.training
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if (folder / ENVIRONMENT).is_file():
        device = read_json(folder / ENVIRONMENT, "device")["device"]
    lines = {
        "name": catalogue.run_name(folder),
        "model": preset,
        "language block": _block(config.model.language),
        "weights": f"{trained:.2f} million trained, {frozen:.2f} million frozen",
        "cases": f"{task.name}{' (synthetic)' * task.synthetic}: {', '.join(sides)}",
        "steps": f"{count(plan.epochs, 'epoch')} of {per_epoch}, {plan.epochs * per_epoch:,} "
        f"optimiser steps of {plan.batch_size} cases, learning rate {plan.learning_rate:g}",
        "device": device,
        "run folder": str(folder),
    }
    return "\n".join(f"{name:16}{text}" for name, text in lines.items() if text)


def _block(language):
    if not language:
        return "none"
    _, block = open_block(language)
    first, last = block.indices[0], block.indices[-1]
    span = f"layer {first}" if first == last else f"layers {first} to {last}"
    return f"{language.source}, {span} (of 0 to {block.total - 1}), control {language.control}"


def runs_list(options: Namespace) -> None:
    table = catalogue.runs_table(catalogue.all_runs())
    if table.empty:
        print(f"no run below {catalogue.results_root()}; 'mvl train' makes one")
        return
    table = table.rename(columns={"validation": "Dice, validation", "test": "Dice, test"})
    formats = {"epochs": "{:.0f}".format}
    print(table.to_string(index=False, float_format="%.3f", na_rep="-", formatters=formats))


def runs_show(options: Namespace) -> None:
    folder = find_run(options.run)
    config = experiments.read_config(folder, AuditedConfig)
    task, split = Task.from_dict(read_json(folder / TASK)), Split.load(folder / SPLIT)
    print(described(config, SimpleNamespace(task=task, split=split), folder))
    run = label(folder)
    if not (folder / TRAINED).exists():
        failed = folder / FAILED
        reason = read_json(failed, "reason")["reason"] if failed.is_file() else "not ended yet"
        print(f"{'training':16}{reason}")
        return
    trained = read_json(folder / TRAINED, "seconds", "validation_dice", "best_epoch")
    print(
        f"{'training':16}{trained['seconds']:.0f} s; best validation Dice "
        f"{trained['validation_dice']:.3f}, epoch {trained['best_epoch'] + 1}"
    )
    if (folder / CASES).exists():
        print(
            f"{'test':16}mean Dice {catalogue.mean_dice(folder):.3f} (mvl runs compare {run} OTHER)"
        )
    else:
        print(f"{'test':16}not opened yet (mvl evaluate {run})")


def runs_compare(options: Namespace) -> None:
    names = (options.a, options.b)
    sides = [[find_run(word) for word in name.split(",")] for name in names]
    if len(sides[0]) != len(sides[1]):
        raise RunError(f"{names[0]} are {len(sides[0])} runs, {names[1]} {len(sides[1])}: no pairs")
    if set(sides[0]) & set(sides[1]):
        raise RunError("a run cannot be compared with itself; name two")
    for pair in zip(*sides, strict=True):
        _require_one_truth(*pair)
    tables = []
    for name, folders in zip(names, sides, strict=True):
        for number, folder in enumerate(folders):
            if not (folder / CASES).exists():
                raise RunError(f"not tested yet: 'mvl evaluate {label(folder)}' does it")
            tables.append(experiments.collect(folder, "runs", name).assign(seed=number))
    cases = pd.concat(tables, ignore_index=True)
    for structure, group in cases.groupby("structure", sort=False):
        if group["arm"].nunique() < 2:
            print(f"{structure}: measured of {group['arm'].iloc[0]} alone")
            continue
        row, verdict = _difference(group, names, len(sides[0]))
        means = group.groupby(["arm", "subject"])["dice"].mean().groupby("arm").mean()
        print(
            f"{group['task'].iloc[0]}, {structure}: Dice {means[names[0]]:.4f} and "
            f"{means[names[1]]:.4f}, {count(row['n_subjects'], 'test subject')}"
        )
        apart = f"{row['difference']:+.4f} (95 % interval {interval(row)})"
        print(f"    {names[0]} minus {names[1]}: {apart}\n    {verdict}")


def _require_one_truth(a, b):
    """Refuse runs whose test cases or labels have changed from one to the other."""
    one, other = map(read_identity, (a, b))
    tested = set(one["split"]["test"]) & set(other["split"]["test"])
    changed = sorted(case for case in tested if one["voxels"][case] != other["voxels"][case])
    facts = [identity["facts"] for identity in (one, other)]
    for name in ("labels", "ignore", "healthy", "regions"):
        changed += [name] * (facts[0].get(name) != facts[1].get(name))
    if changed:
        raise RunError(
            f"{label(a)} and {label(b)} were tested on two states of the task, which differ in "
            f"{', '.join(changed[:5])}; train and test both on one"
        )


def _difference(cases, names, trainings):
    """The row of the study's statistics, and its verdict in words."""
    tests = cases[cases["arm"] == names[0]].groupby("case")["seed"].nunique()
    if trainings > 1 and (tests == 1).all():  # folds: each subject is tested once
        cases = cases.assign(fold=cases["seed"], repeat=0)
        contrasts = [inference.Contrast("runs", *names, "runs")]
        row = inference.contrasts_table(cases, contrasts).iloc[0].to_dict()
    else:
        row = statistics.contrast(cases, *names)
    row |= {"synthetic": bool(cases["synthetic"].any()), "n_seeds": trainings}
    reason = no_verdict(row)
    return row, f"no verdict: {reason}" if reason else f"{names[0]}: {row['verdict']}"
