"""Suites: named sets of experiments, each set an answer to one question, as data.

An arm changes one thing about the model, the training or the data; the arms of a suite share
everything else, seeds included. What is trained is not trained again, a cell (an arm with a
seed) that fails is reported and the others go on, and no test case is opened before training
is over for every cell that was asked for.
"""

import itertools
import traceback
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from mvl.blocks.extraction import has_rotary
from mvl.config import PRESETS, ExperimentConfig, ModelConfig, PeerConfig, TrainingConfig
from mvl.data.splits import FOLDS
from mvl.data.task_data import open_task
from mvl.errors import ConfigError, MvlError, in_words
from mvl.experiment.run import (
    DONE,
    FAILED,
    TRAINED,
    collect,
    fit,
    is_running,
    run_folder,
    runs_of_other_data,
    test,
)
from mvl.experiment.training import processes
from mvl.files import read_json, read_table
from mvl.models.sizes import count_parameters, match_size


@dataclass(frozen=True)
class Arm:
    """What one arm of a suite trains."""

    model: ModelConfig | PeerConfig
    training: TrainingConfig
    #: Share of the training and validation subjects; fewer subjects get more epochs, so that
    #: the number of optimiser steps stays the same.
    fraction: float = 1.0
    #: Epochs in multiples of the suite's.
    budget: int = 1
    #: `DataConfig.testing`.
    testing: str = "held-out"
    #: Make the model as large as this arm's, frozen weights included: ("depth" or "mlp", arm).
    matched: tuple[str, str] | None = None


_VIT, _OURS = PRESETS["vit"]
_BLOCK = PRESETS["v1"][0].language


# An arm's learning rate is the one of `LEARNING_RATES` with the highest validation Dice on Task04
# with seed 0, of those that were tried (tuning.csv in results/reference, for what was tried on a
# GPU in results/reference/gpu); where none is given here it is vit's.


def _block(rate=_OURS.learning_rate, **changes):
    """vit with the frozen block, changed."""
    model = replace(_VIT, language=replace(_BLOCK, **changes))
    return Arm(model, replace(_OURS, learning_rate=rate))


#: Task -> `DataConfig.flips` of the second protocol. Task04's crops all bend to one side; mirrored
#: in training they cost a model nothing on that side and teach it the other (docs/protocol.md).
FLIPS = {"Task04_Hippocampus": "left-right"}

#: The language part in which the block cannot drown, between encoder and decoder; the scale is
#: what `mvl block scale` measures before that layer.
_HEARD = replace(
    _BLOCK,
    source="package:smollm2-135m",
    terms="contribution",
    scale=29.3,
    start="identity",
    skip=False,
)


def _heard(control="pretrained", rate=_OURS.learning_rate, mapper_rate=0.3, **changes):
    """vit with the block of `_HEARD`, changed; or without it."""
    language = replace(_HEARD, control=control, **changes) if control != "none" else None
    plan = replace(_OURS, learning_rate=rate, mapper_rate=mapper_rate, decay_position=False)
    return Arm(replace(_VIT, language=language), plan, testing="crossed")


def _combination(language, hybrid, fusion, head="linear", rate=_OURS.learning_rate):
    """The paper's parts, each on or off."""
    model = replace(
        _VIT,
        language=_BLOCK if language else None,
        attention="hybrid" if hybrid else "global",
        fusion=bool(fusion),
        head=head,
    )
    return Arm(model, replace(_OURS, learning_rate=rate))


def _vit(rate=_OURS.learning_rate, **changes):
    return Arm(_VIT, replace(_OURS, learning_rate=rate), **changes)


def _peer(architecture, rate):
    return Arm(PeerConfig(architecture=architecture), replace(_OURS, learning_rate=rate))


#: Suite -> arm -> `Arm`.
SUITES = {
    # The block against its controls.
    "language": {
        "none": _vit(),
        "pretrained": _block(),
        "random": _block(control="random"),
        "shuffled": _block(control="shuffled"),
        "identity": _block(control="identity"),
        "trainable": _block(control="trainable"),
        "vit-mlp": _vit(1e-2, matched=("mlp", "pretrained")),
    },
    # The second protocol's primary comparison (docs/protocol.md), with a part and rates that are
    # not chosen yet; random has the pre-trained matrices' means and standard deviations.
    "llama": {
        "none": _heard("none", mapper_rate=1.0),
        "identity": _heard("identity"),
        "shuffled": _heard("shuffled"),
        "random": _heard("matched"),
        "pretrained": _heard(),
    },
    # What the second protocol will choose its language part from, on validation.
    "settling": {
        "none": _heard("none", mapper_rate=1.0),
        **{
            f"{name}-{control}": _heard(control, **changes)
            for name, changes in {
                "contribution": {},
                "contribution-default": {"start": "default"},
                "output": {"terms": "output"},
                "through": {"terms": "output", "residual": False},
                "sum": {"terms": "sum", "scale": None, "start": "default"},
                "sum-skip": {"terms": "sum", "scale": None, "start": "default", "skip": True},
            }.items()
            for control in ("pretrained", "shuffled", "matched", "identity")
        },
    },
    # The paper's ablation; the digits are language block, hybrid attention, multi-scale fusion.
    "fusion": {
        "".join(map(str, parts)): _combination(*parts, rate=rate)
        for parts, rate in zip(
            itertools.product((0, 1), repeat=3),
            (3e-3, 3e-3, 3e-3, 1e-2, 3e-3, 3e-3, 3e-3, 3e-3),
            strict=True,
        )
    },
    # The convolutional head, without the paper's parts, without the block alone, and with all.
    "head": {
        f"conv-{language}{hybrid}{fusion}": _combination(language, hybrid, fusion, "conv", rate)
        for language, hybrid, fusion, rate in ((0, 0, 0, 1e-2), (0, 1, 1, 1e-2), (1, 1, 1, 3e-3))
    },
    # Each arm changes one thing about lora-0, which is the suite language's pretrained; what has
    # adapters trains them in place of its own weights.
    "adaptation": {
        "lora-0": _block(),
        "lora-4": _block(lora_rank=4),
        "lora-16": _block(lora_rank=16),
        "lora-4-mappers": _block(lora_rank=4, lora_on="mappers"),
        "lora-4-block": _block(lora_rank=4, lora_on="block"),
        "layer-first": _block(layer=0),
        "no-residual": _block(residual=False),
        "causal": _block(causal=True),
        "rotary": _block(rotary=True),
        "before": Arm(replace(_VIT, language=_BLOCK, language_position="before"), _OURS),
    },
    # Shares of the training subjects in percent, at equal numbers of optimiser steps; 011 is
    # version 1 without the block.
    "data": {
        f"{name}-{percent}": replace(arm(rate=rate), fraction=percent / 100)
        for name, arm, rates in (
            ("vit", _vit, (3e-3, 3e-3, 3e-3)),
            ("011", partial(_combination, 0, 1, 1), (3e-3, 1e-2, 1e-2)),
            ("v1", partial(_combination, 1, 1, 1), (3e-3, 3e-3, 3e-3)),
        )
        for percent, rate in zip((10, 30, 100), rates, strict=True)
    },
    # Other architectures with the same data, augmentation, budget and evaluation.
    "peers": {
        "vit": _vit(),
        "v1": _combination(1, 1, 1),
        "best": Arm(*PRESETS["best"]),
        **{name: _peer(name, 1e-2) for name in ("unet", "unet++", "unetr", "swin-unetr")},
        "segresnet": _peer("segresnet", 1e-3),
        "dynunet": _peer("dynunet", 1e-2),
    },
    # vit made as large as vit with the block, frozen weights included.
    "size": {
        "vit": _vit(),
        "vit-depth": _vit(matched=("depth", "pretrained")),
        "vit-mlp": _vit(1e-2, matched=("mlp", "pretrained")),
        "pretrained": _block(),
    },
    "presets": {name: Arm(*PRESETS[name]) for name in PRESETS},
    # How much of a result is the budget's.
    "budget": {"vit": _vit(), "vit-2x": _vit(budget=2)},
}


#: Suite -> the question that it answers.
QUESTIONS = {
    "language": "Does the language block help, and is it the pre-training that helps?",
    "llama": "Does a block of a Llama-type model help, and does the model use it?",
    "settling": "In which language part is the block used?",
    "fusion": "Do hybrid attention and multi-scale fusion help?",
    "head": "Does the block help a model with a convolutional head?",
    "adaptation": "Does it matter how the block is adapted, and where it stands?",
    "data": "Does MedVisionLlama, version 1, help where data is scarce, and is it the block?",
    "peers": "How do other architectures do?",
    "size": "Is it size?",
    "presets": "How do the named models do?",
    "budget": "What would twice the epochs bring?",
}


def suite_configs(
    suite,
    data,
    seeds,
    block=None,
    epochs=None,
    arms=None,
    rates=None,
    mapper_rates=None,
    root=None,
    on_bad_case="fail",
):
    """The experiments of a suite.

    An arm that the language block's family cannot have (`rotary` without a rotary embedding) is
    left out.

    Args:
        suite: one of `SUITES`.
        data: a `DataConfig`.
        seeds: iterable of seeds.
        block: a `LanguageConfig.source` in place of the suite's own.
        epochs: a budget in place of the suite's own.
        arms: names of some of its arms; all if None.
        rates: learning rates to train every arm with, in place of the chosen one; the arms'
            names then end in "@rate".
        mapper_rates: factors to train the mappers of every arm with a language part with, in place
            of the chosen one; the arms' names then end in "x" and the factor.
        root, on_bad_case: see `open_task`, which arms with a fraction of the data alone need.

    Returns:
        {(arm, seed): ExperimentConfig}.

    Raises:
        ConfigError: no suite or no arm of that name.
        DataError: as `open_task`.
    """
    if suite not in SUITES:
        raise ConfigError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
    known = SUITES[suite]
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise ConfigError(
            f"suite {suite} has no arm {unknown[0]!r}; its arms are {', '.join(known)}"
        )
    configs = {}
    for name, arm in known.items():
        if arms and name not in arms:
            continue
        model = _with_block(arm.model, block)
        if not is_possible(model):
            continue
        if arm.matched:
            by, other = arm.matched
            larger = sum(
                count_parameters(_with_block(SUITES["language"][other].model, block), data.grid)
            )
            model = match_size(model, larger, by, data.grid)
        plan = arm.training
        factors = mapper_rates if mapper_rates and model.language else (plan.mapper_rate,)
        tried = itertools.product(rates or (plan.learning_rate,), factors, seeds)
        for rate, factor, seed in tried:
            budget = arm.budget * (plan.epochs if epochs is None else epochs)
            training = replace(plan, learning_rate=rate, mapper_rate=factor, epochs=budget)
            own = replace(data, fraction=arm.fraction, testing=arm.testing)
            if arm.testing == "crossed":
                own = replace(own, flips=FLIPS.get(data.task, data.flips))
            config = ExperimentConfig(own, model, training, seed)
            if arm.fraction < 1:
                config = _at_equal_steps(config, data, root, on_bad_case)
            label = name + f"@{rate:g}" * bool(rates) + f"x{factor:g}" * (len(factors) > 1)
            configs[label, seed] = config
    return configs


def is_possible(model):
    """Whether a model's language block can be had: `rotary` wants a rotary embedding."""
    return not (model.language and model.language.rotary) or has_rotary(model.language.source)


def _with_block(model, block):
    """The model with its language block from another source, if it has one."""
    if not (block and model.language):
        return model
    return replace(model, language=replace(model.language, source=block))


def _at_equal_steps(config, data, root, on_bad_case):
    """The experiment with the steps of all the data, and of its warm-up, to the nearest epoch."""

    def steps(fraction):
        part = replace(config.data, fraction=fraction)
        part = open_task(part, config.seed, root, on_bad_case, progress=False)
        return -(-len(part.split.train) // config.training.batch_size)

    factor = steps(data.fraction) / steps(config.data.fraction)
    plan = config.training
    longer = {name: round(getattr(plan, name) * factor) for name in ("epochs", "warmup_epochs")}
    return replace(config, training=replace(plan, **longer))


def run_suite(suite, configs, runs, root=None, show=True, on_bad_case="fail", track=False):
    """Run every cell of a suite that is not done yet, and collect those that are.

    Args:
        suite: the suite's name, for the table.
        configs: from `suite_configs`.
        runs: the folder of all runs.
        root: see `sources.data_root`.
        show: show progress.
        on_bad_case: see `open_task`.
        track: see `training.train`.

    Returns:
        (the suite's table: one row per arm, seed, case and structure, with every metric, empty
        for an empty `configs`; {(arm, seed): message} of the cells that failed).

    Raises:
        MvlError: every cell failed; the message is the first cell's.
    """
    trained, failures = fit_suite(suite, configs, runs, root, show, on_bad_case, track)
    tables = []
    for (arm, seed), (folder, data) in trained.items():
        try:
            test(folder, data, show)
        except Exception as error:
            failures[arm, seed] = _report(suite, arm, seed, error)
            continue
        tables.append(collect(folder, suite, arm))
    if failures and not tables:
        raise MvlError(next(iter(failures.values())))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), failures


def fit_suite(suite, configs, runs, root=None, show=True, on_bad_case="fail", track=False):
    """Train every cell of a suite that is not trained yet; the test set stays closed.

    Args: as `run_suite`.

    Returns:
        ({(arm, seed): (run folder, its TaskData)}, {(arm, seed): message} of those that failed
        or that another process is training).

    Raises:
        ConfigError: torchrun started several processes.
    """
    if processes().num_processes > 1:
        # A cell that fails in one process alone would leave the others in another cell.
        raise ConfigError(
            "torchrun trains one experiment, by 'mvl train'; a suite has --shard and --on"
        )
    trained, failures = {}, {}
    for (arm, seed), config in configs.items():
        if show:
            print(f"{suite}: arm {arm}, seed {seed}", flush=True)
        try:
            data = open_task(config.data, seed, root, on_bad_case, show)
            trained[arm, seed] = (fit(config, data, runs, show, track=track), data)
        except Exception as error:
            failures[arm, seed] = _report(suite, arm, seed, error)
    return trained, failures


def _report(suite, arm, seed, error):
    """Say that a cell failed, a defect of the code with its traceback; return it in words.

    A cell's failure of whatever kind is no reason to lose the others of a night.
    """
    if not isinstance(error, MvlError):
        traceback.print_exception(error)
    print(f"{suite}: arm {arm}, seed {seed} failed: {in_words(error)}", flush=True)
    return in_words(error)


def shard(configs, index, count):
    """The cells of one of `count` jobs: every count-th, from `index` (1 to count) on.

    Raises:
        ConfigError: an index out of range.
    """
    if not 1 <= index <= count:
        raise ConfigError(f"shard {index}/{count}: the first number goes from 1 to the second")
    return dict(list(configs.items())[index - 1 :: count])


def status(configs, runs, root=None, on_bad_case="fail"):
    """How far a suite is.

    Args:
        configs: from `suite_configs`.
        runs: the folder of all runs.
        root, on_bad_case: see `open_task`.

    Returns:
        A table, a cell a row: arm, seed, fold, state (done, trained, running, failed, stopped
        or open), epoch and epochs, seconds spent, seconds_left (by the pace of the arm's trained
        seeds a step, or where none is that of all arms'; NaN where nothing is known), reason of a
        failure, or which run is not used since its task was another, and the run folder's name.
    """
    rows = []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, on_bad_case, progress=False)
        folder = run_folder(config, data, runs)
        epochs, epoch, spent, reason = config.training.epochs, 0, 0.0, ""
        if (folder / "curves.csv").exists():
            epoch = len(read_table(folder / "curves.csv"))
        if (folder / TRAINED).exists():
            state = "done" if (folder / DONE).exists() else "trained"
            spent = read_json(folder / TRAINED, "seconds")["seconds"]
        elif is_running(folder):
            state = "running"
        elif (folder / FAILED).exists():
            state, reason = "failed", read_json(folder / FAILED, "reason")["reason"]
        else:
            state = "stopped" if epoch else "open"
            stale = runs_of_other_data(config, data, runs)
            reason = "; ".join(f"{other.name} is not used: {said}" for other, said in stale)
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "fold": seed % FOLDS,
                "state": state,
                "epoch": epoch,
                "epochs": epochs,
                "seconds": spent,
                "reason": reason,
                "folder": folder.name,
                "steps": -(-len(data.split.train) // config.training.batch_size),
            }
        )
    table = pd.DataFrame(rows)
    steps = table.pop("steps")  # an epoch
    finished = table["state"].isin(["done", "trained"])
    known = pd.DataFrame({"seconds": table["seconds"], "steps": table["epoch"] * steps})[finished]
    by_arm = known.groupby(table["arm"]).sum()
    of_all = known.sum()
    pace = table["arm"].map(by_arm["seconds"] / by_arm["steps"])
    pace = pace.fillna(of_all["seconds"] / of_all["steps"] if finished.any() else float("nan"))
    left = (table["epochs"] - table["epoch"]) * steps * pace
    table.insert(7, "seconds_left", left.where(~finished, 0))
    return table


TUNING_COLUMNS = (
    *("suite", "arm", "seed", "grid", "learning_rate", "mapper_rate"),
    *("validation_dice", "best_epoch", "epochs", "fingerprint"),
)


def tuning_table(suite, configs, runs, root=None, on_bad_case="fail"):
    """What every learning rate gave on validation; the test set plays no part.

    Args:
        suite: the suite's name.
        configs: from `suite_configs` with `rates`.
        runs: the folder of all runs.
        root, on_bad_case: see `open_task`.

    Returns:
        A table, a trained run a row, with `TUNING_COLUMNS`.
    """
    rows = []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, on_bad_case, progress=False)
        folder = run_folder(config, data, runs)
        if (folder / TRAINED).exists():
            trained = read_json(folder / TRAINED, "validation_dice", "best_epoch")
            rows.append(
                {
                    "suite": suite,
                    "arm": arm.partition("@")[0],
                    "seed": seed,
                    "grid": "x".join(map(str, config.data.grid)),
                    "learning_rate": config.training.learning_rate,
                    "mapper_rate": config.training.mapper_rate,
                    "validation_dice": trained["validation_dice"],
                    "best_epoch": trained["best_epoch"],
                    "epochs": config.training.epochs,
                    "fingerprint": folder.name,
                }
            )
    return pd.DataFrame(rows, columns=TUNING_COLUMNS)
