"""Suites: named sets of experiments, each the answer to one question, as data.

An arm changes one thing about the model, the training or the data. The arms of a suite share
everything else, seeds included. `STUDY` is the study's list; files of suites/ add a user's
(`user_suites`). `mvl.study.cells` trains and tests them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mvl.blocks.extraction import has_rotary
from mvl.config import (
    PRESETS,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    PeerConfig,
    TrainingConfig,
)
from mvl.data.task_data import open_task
from mvl.errors import ConfigError
from mvl.models.sizes import count_parameters, match_size
from mvl.study import user_suites


@dataclass(frozen=True)
class Arm:
    """What one arm of a suite trains."""

    model: ModelConfig | PeerConfig
    training: TrainingConfig
    #: Share of the training and validation subjects. Fewer subjects get more epochs, so that the
    #: number of optimiser steps stays the same.
    fraction: float = 1.0
    #: Epochs in multiples of the suite's.
    budget: int = 1
    #: `DataConfig.testing`.
    testing: str = "held-out"
    #: Make the model as large as this arm's, frozen weights included: ("depth" or "mlp", arm).
    matched: tuple[str, str] | None = None


_VIT, _OURS = PRESETS["vit"]
_BLOCK = PRESETS["v1"][0].language

#: Task -> `DataConfig.flips` of the second protocol. Task04's crops all bend to one side. Mirrored
#: in training they cost a model nothing on that side and teach it the other (docs/protocol.md).
FLIPS = {"Task04_Hippocampus": "left-right"}

#: The language part of the second protocol: the paper's, with a Llama-type block. It has no outer
#: residual past the mappers, so that the trained model uses the block (docs/protocol.md).
_LLAMA = replace(_BLOCK, source="package:smollm2-135m", skip=False)

#: The factor of its mappers' learning rate, chosen on validation (docs/protocol.md).
_FACTOR = 0.1

#: Its epochs: 3,720 optimiser steps on Task04.
_EPOCHS = 120

#: Task -> the epochs of the second protocol where a task has not those: 1,500 optimiser steps.
BUDGETS = {
    "CHAOS_AbdomenMR": {"epochs": 500, "warmup_epochs": 12},
    "OpenKBP_HeadNeckCT": {"epochs": 84, "warmup_epochs": 2},
}

# An arm's learning rate is the one of `LEARNING_RATES` with the highest validation Dice on Task04
# with seed 0, of those that were tried (tuning.csv in results/reference). Where none is given here
# it is vit's.


def _vit(rate: float = _OURS.learning_rate, **arm) -> Arm:
    return Arm(_VIT, replace(_OURS, learning_rate=rate), **arm)


def _block(**language) -> Arm:
    """vit with the frozen block, and what is changed of the language part."""
    return Arm(replace(_VIT, language=replace(_BLOCK, **language)), _OURS)


def _parts(digits: str, rate: float = _OURS.learning_rate, head: str = "linear", **arm) -> Arm:
    """The paper's parts, on or off: language block, hybrid attention, multi-scale fusion."""
    language, hybrid, fusion = (digit == "1" for digit in digits)
    model = replace(
        _VIT,
        language=_BLOCK if language else None,
        attention="hybrid" if hybrid else "global",
        fusion=fusion,
        head=head,
    )
    return Arm(model, replace(_OURS, learning_rate=rate), **arm)


def _peer(architecture: str, rate: float = 1e-2) -> Arm:
    return Arm(PeerConfig(architecture=architecture), replace(_OURS, learning_rate=rate))


def _second(control: str = "pretrained", host: Arm | None = None, **language) -> Arm:
    """An arm of the second protocol: a host, vit by default, with a language part, or "none"."""
    host = host or _vit()
    part = replace(_LLAMA, control=control, **language) if control != "none" else None
    plan = {"epochs": _EPOCHS, "mapper_rate": _FACTOR if part else 1.0, "decay_position": False}
    model = replace(host.model, language=part)
    return Arm(model, replace(host.training, **plan), testing="crossed")


#: D1's output at the scale that `mvl block scale` measures before SmolLM2's last layer, and a start
#: as the identity.
_NORMALISED = {"scale": 29.3, "start": "identity"}

#: Suite -> (its question, {arm: what it trains}).
STUDY = {
    "language": (
        "Does the language block help, and is it the pre-training that helps?",
        {
            "none": _vit(),
            "pretrained": _block(),
            "random": _block(control="random"),
            "shuffled": _block(control="shuffled"),
            "identity": _block(control="identity"),
            "trainable": _block(control="trainable"),
            "vit-mlp": _vit(1e-2, matched=("mlp", "pretrained")),
        },
    ),
    # The second protocol's primary comparison. `random` has matrices with the pre-trained ones'
    # means and standard deviations.
    "llama": (
        "Does a block of a Llama-type model help, and does the model use it?",
        {
            "none": _second("none"),
            "identity": _second("identity"),
            "shuffled": _second("shuffled"),
            "random": _second("matched"),
            "pretrained": _second(),
        },
    ),
    # The same part in hosts of their own: arms are called by host and control.
    "hosts": (
        "Does the block help a model that one would use?",
        {
            f"{name}-{control}": _second(control, host)
            for name, host in (("vit", None), *((n, _peer(n)) for n in ("unetr", "dynunet")))
            for control in ("none", "identity", "shuffled", "pretrained")
        },
    ),
    # The paper's ablation by the second protocol; digits as in `fusion`, one rate for all arms.
    "parts": (
        "What do hybrid attention and multi-scale fusion add, each subject tested?",
        {
            f"{n:03b}": _second("pretrained" if n & 4 else "none", _parts(f"{n & 3:03b}"))
            for n in range(8)
        },
    ),
    # What the second protocol's language part was chosen from, on validation.
    "settling": (
        "In which language part is the block used?",
        {
            "none": _second("none"),
            **{
                f"{name}-{control}": _second(control, **changes)
                for name, changes in {
                    "sum": {},
                    "sum-skip": {"skip": True},
                    "contribution": {"terms": "contribution"} | _NORMALISED,
                    "contribution-default": {"terms": "contribution", "scale": 29.3},
                    "output": {"terms": "output"} | _NORMALISED,
                    "through": {"terms": "output", "residual": False} | _NORMALISED,
                }.items()
                for control in ("pretrained", "shuffled", "matched", "identity")
            },
        },
    ),
    # The paper's ablation; the digits are language block, hybrid attention, multi-scale fusion.
    "fusion": (
        "Do hybrid attention and multi-scale fusion help?",
        {f"{n:03b}": _parts(f"{n:03b}", 1e-2 if n == 0b011 else 3e-3) for n in range(8)},
    ),
    # Without the paper's parts, without the block alone, and with all.
    "head": (
        "Does the block help a model with a convolutional head?",
        {
            "conv-000": _parts("000", 1e-2, head="conv"),
            "conv-011": _parts("011", 1e-2, head="conv"),
            "conv-111": _parts("111", head="conv"),
        },
    ),
    # Each arm changes one thing about lora-0; what has adapters trains them in place of its own
    # weights.
    "adaptation": (
        "Does it matter how the block is adapted, and where it is?",
        {
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
    ),
    # Shares of the training subjects in percent, at equal numbers of optimiser steps; 011 is
    # version 1 without the block.
    "data": (
        "Does MedVisionLlama, version 1, help where data is scarce, and is it the block?",
        {
            "vit-10": _vit(fraction=0.1),
            "vit-30": _vit(fraction=0.3),
            "vit-100": _vit(),
            "011-10": _parts("011", fraction=0.1),
            "011-30": _parts("011", 1e-2, fraction=0.3),
            "011-100": _parts("011", 1e-2),
            "v1-10": _parts("111", fraction=0.1),
            "v1-30": _parts("111", fraction=0.3),
            "v1-100": _parts("111"),
        },
    ),
    # With the same data, augmentation, budget and evaluation.
    "peers": (
        "How do other architectures do?",
        {
            "vit": _vit(),
            "v1": _parts("111"),
            "best": Arm(*PRESETS["best"]),
            **{name: _peer(name) for name in ("unet", "unet++", "unetr", "swin-unetr")},
            "segresnet": _peer("segresnet", 1e-3),
            "dynunet": _peer("dynunet"),
        },
    ),
    # vit made as large as vit with the block, frozen weights included.
    "size": (
        "Is it size?",
        {
            "vit": _vit(),
            "vit-depth": _vit(matched=("depth", "pretrained")),
            "vit-mlp": _vit(1e-2, matched=("mlp", "pretrained")),
            "pretrained": _block(),
        },
    ),
    "presets": ("How do the named models do?", {name: Arm(*PRESETS[name]) for name in PRESETS}),
    # How much of a result is the budget's.
    "budget": (
        "What would twice the epochs bring?",
        {"vit": _vit(), "vit-2x": _vit(budget=2)},
    ),
}


def _arm_of(suite, name, entry):
    config = user_suites.configuration(entry, f"suites/{suite}.yaml, arm {name},")
    return Arm(config.model, config.training, fraction=entry.fraction, budget=entry.budget)


_USERS = user_suites.read_suites()
if _taken := set(_USERS) & set(STUDY):
    raise ConfigError(f"suites/{_taken.pop()}.yaml: the study has a suite of this name")

#: Suite -> the question that it answers.
QUESTIONS = {suite: question for suite, (question, _) in STUDY.items()}
QUESTIONS |= {suite: file.question for suite, file in _USERS.items()}

#: Suite -> arm -> `Arm`.
SUITES = {suite: dict(arms) for suite, (_, arms) in STUDY.items()}
SUITES |= {
    suite: {name: _arm_of(suite, name, entry) for name, entry in file.arms.items()}
    for suite, file in _USERS.items()
}

#: The contrasts of the users' suites: (suite, arm, against).
USER_CONTRASTS = tuple((s, *pair) for s, file in _USERS.items() for pair in file.contrasts)

#: The suites whose arms' names come first: an experiment is called `vit`, not `none` or `000`.
NAMING = ("presets", "peers", "language", "size", "head", "fusion", "adaptation")


def _aliases() -> dict[tuple[str, str], tuple[str, str]]:
    """Equal arms are one experiment with one run: the first in the order of `NAMING` names it."""
    first, aliases = {}, {}
    for suite in dict.fromkeys((*NAMING, *SUITES)):
        for name, arm in SUITES[suite].items():
            if first.setdefault(arm, (suite, name)) != (suite, name):
                aliases[suite, name] = first[arm]
    return aliases


#: (suite, arm) -> the (suite, arm) that names the same experiment: `fusion 111` is `presets v1`.
ALIASES = _aliases()


def name_of(suite: str, arm: str) -> tuple[str, str]:
    """The one (suite, arm) that an experiment is called by, whichever suite asks for it."""
    return ALIASES.get((suite, arm), (suite, arm))


def is_crossed(suite: str) -> bool:
    """Whether the arms of a suite are tested crosswise (`DataConfig.testing`)."""
    return all(arm.testing == "crossed" for arm in SUITES[suite].values())


def suite_configs(
    suite: str,
    data: DataConfig,
    seeds: Iterable[int],
    block: str | None = None,
    epochs: int | None = None,
    arms: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    mapper_rates: Sequence[float] | None = None,
    root=None,
    on_bad_case: str = "fail",
) -> dict[tuple[str, int], ExperimentConfig]:
    """The experiments of a suite, by (arm, seed).

    An arm that the language block's family cannot have (see `is_possible`) is left out.

    Args:
        suite, seeds, arms: one of `SUITES`, and which of its arms; all if None.
        block, epochs: a `LanguageConfig.source` and a budget in place of the suite's own.
        rates: learning rates in place of the chosen one; the names then end in "@rate".
        mapper_rates: factors for the mappers of arms with a language part, in place of the chosen
            one; the names then end in "x" and the factor.
        root, on_bad_case: see `open_task`, which arms with a fraction of the data alone need.

    Raises:
        ConfigError: no suite or no arm of that name.
        DataError: as `open_task`.
    """
    if suite not in SUITES:
        new = (user_suites.FOLDER / f"{suite}.yaml").is_file()
        remedy = "restart the kernel to read its file" if new else f"there are {', '.join(SUITES)}"
        raise ConfigError(f"no suite {suite!r}; {remedy}")
    known = SUITES[suite]
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise ConfigError(
            f"suite {suite} has no arm {unknown[0]!r}; its arms are {', '.join(known)}"
        )
    seeds, configs = list(seeds), {}
    for name, arm in known.items():
        model, plan = _with_block(arm.model, block), arm.training
        if (arms and name not in arms) or not is_possible(model):
            continue
        if arm.matched:
            by, other = arm.matched
            larger = _with_block(SUITES["language"][other].model, block)
            model = match_size(model, sum(count_parameters(larger, data.grid)), by, data.grid)
        of_arm = replace(data, fraction=arm.fraction, testing=arm.testing)
        if arm.testing == "crossed":
            of_arm = replace(of_arm, flips=FLIPS.get(data.task, data.flips))
            plan = replace(plan, **BUDGETS.get(data.task, {}))
        factors = mapper_rates if mapper_rates and model.language else (plan.mapper_rate,)
        budget = arm.budget * (plan.epochs if epochs is None else epochs)
        tried = itertools.product(rates or (plan.learning_rate,), factors, seeds)
        for rate, factor, seed in tried:
            training = replace(plan, learning_rate=rate, mapper_rate=factor, epochs=budget)
            config = ExperimentConfig(of_arm, model, training, seed)
            if arm.fraction < 1:
                config = _at_equal_steps(config, data, root, on_bad_case)
            label = name + f"@{rate:g}" * bool(rates) + f"x{factor:g}" * (len(factors) > 1)
            configs[label, seed] = config
    return configs


def is_possible(model: ModelConfig | PeerConfig) -> bool:
    """Whether a model's language block can be had: `rotary` wants a rotary embedding."""
    language = model.language
    return not (language and language.rotary) or has_rotary(language.source)


def _with_block(model, source):
    """The model with its language block from another source, if it has one."""
    if not (source and model.language):
        return model
    return replace(model, language=replace(model.language, source=source))


def _at_equal_steps(config, data, root, on_bad_case):
    """The experiment with the steps of all the data, and of its warm-up, to the nearest epoch."""

    def steps(fraction):
        part = replace(config.data, fraction=fraction)
        part = open_task(part, config.seed, root, on_bad_case, progress=False)
        return steps_per_epoch(config, part)

    factor = steps(data.fraction) / steps(config.data.fraction)
    plan = config.training
    longer = {name: round(getattr(plan, name) * factor) for name in ("epochs", "warmup_epochs")}
    return replace(config, training=replace(plan, **longer))


def steps_per_epoch(config: ExperimentConfig, data) -> int:
    """Optimiser steps of an epoch of an experiment on its `TaskData`."""
    return -(-len(data.split.train) // config.training.batch_size)
