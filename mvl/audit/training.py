"""The audit's trainings: the study's, with one thing done as the released code does it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mvl.audit.released import AuditConfig, AuditedConfig
from mvl.audit.splits import COPIES, DRAWS, siblings, test_size
from mvl.audit.switches import COLUMNS, FACTS
from mvl.config import PRESETS, DataConfig, ExperimentConfig
from mvl.errors import ConfigError
from mvl.study.statistics import contrast
from mvl.study.suites import SUITES


@dataclass(frozen=True)
class Change:
    """What an arm does differently from `ours`: entries of each part of the configuration."""

    model: dict[str, Any] = field(default_factory=dict)
    language: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    #: The arm with which it is compared.
    against: str = "ours"

    def applied(self, config: ExperimentConfig) -> ExperimentConfig:
        """The configuration with the change made."""
        training = replace(config.training, **self.training)
        if self.audit.get("copies"):
            # The pool is three times as long: so the number of optimiser steps stays the same.
            epochs = max(1, round(training.epochs / len(COPIES)))
            warmup = round(training.warmup_epochs / len(COPIES))
            training = replace(training, epochs=epochs, warmup_epochs=warmup)
        language = replace(config.model.language, **self.language)
        model = replace(config.model, language=language, **self.model)
        parts = (replace(config.data, **self.data), model, training, config.seed)
        if self.audit:
            return AuditedConfig(*parts, AuditConfig(**self.audit))
        return ExperimentConfig(*parts)


_OURS = SUITES["language"]["pretrained"]
_MODEL, _PLAN = PRESETS["released"]


def _of(source, *names):
    return {name: getattr(source, name) for name in names}


_SINGLE = {
    "before": Change(model=_of(_MODEL, "language_position")),
    "mappers": Change(language=_of(_MODEL.language, "lora_rank", "lora_alpha", "lora_on")),
    "no-skip": Change(language=_of(_MODEL.language, "skip")),
    "unit-norm": Change(language=_of(_MODEL.language, "unit_norm")),
    "dropout": Change(model=_of(_MODEL, "dropout", "final_norm")),
    "hard-dice": Change(audit={"dice": "hard"}),
    "optimiser": Change(
        training=_of(_PLAN, "optimiser", "schedule", "learning_rate", "weight_decay")
        | _of(_PLAN, "warmup_epochs", "clip_norm")
    ),
    "min-max": Change(data={"intensities": "min-max"}),
    "resize": Change(data={"fit": "resize"}),
    "linear-labels": Change(
        data={"fit": "resize"}, audit={"linear_labels": True}, against="resize"
    ),
    "rotated": Change(audit={"rotated": True}),
    "splines": Change(audit={"rotated": True, "splines": True}, against="rotated"),
    "planes": Change(audit={"rotated": True, "splines": True, "planes": True}, against="splines"),
    "copies": Change(audit={"copies": True}),
    "train-loss": Change(audit={"select": "loss"}),
    "last-epoch": Change(audit={"select": "last"}),
}


def _together(part):
    """What all single changes change of a part of the configuration."""
    return {key: v for change in _SINGLE.values() for key, v in getattr(change, part).items()}


#: Arm -> `Change`. `ours` is the study's vit with the block, which every arm changes in one thing;
#: `released` does all of them at once. `siblings` is apart from them: its training has seen
#: siblings of test cases, so that only these can be compared.
ARMS = {
    "ours": Change(),
    **_SINGLE,
    "released": Change(
        # Sixteen blocks after the language part.
        model=_together("model") | _of(_MODEL, "encoder_depth", "decoder_depth"),
        **{part: _together(part) for part in ("language", "training", "data", "audit")},
    ),
    "siblings": Change(audit={"siblings": True}),
}


def audit_configs(
    data: DataConfig,
    seeds: Iterable[int],
    block: str | None = None,
    epochs: int | None = None,
    arms: Iterable[str] | None = None,
) -> dict[tuple[str, int], ExperimentConfig]:
    """The audit's trainings by (arm, seed), as `mvl.study.cells` takes them.

    Raises:
        ConfigError: one of `arms` is not in `ARMS`.
    """
    if unknown := [arm for arm in arms or () if arm not in ARMS]:
        raise ConfigError(f"the audit has no arm {unknown[0]!r}; its arms are {', '.join(ARMS)}")
    model, training = _OURS.model, _OURS.training
    if block:
        model = replace(model, language=replace(model.language, source=block))
    if epochs is not None:
        training = replace(training, epochs=epochs)
    return {
        (arm, seed): ARMS[arm].applied(ExperimentConfig(data, model, training, seed))
        for arm in ARMS
        if not arms or arm in arms
        for seed in seeds
    }


def training_rows(cases: pd.DataFrame, task_cases: int) -> pd.DataFrame:
    """Rows of audit.csv: what each training switch changes, by the study's evaluation.

    They include, as the switch `validation`, how far the validation Dice of the arms with copies
    and of `ours` lies from the test Dice of the same models, and `unseeded`. There is no row for an
    arm without the one with which it is compared. `cases` is the table of audit_cases.csv.gz.
    """
    rows, arms = [], set(cases["arm"])
    for arm, change in ARMS.items():
        if arm != "ours" and {arm, change.against} <= arms:
            compared = _cases_with_siblings(cases) if arm == "siblings" else cases
            if len(compared):
                for metric in ("dice", "nsd"):
                    rows.append(_contrast_row(compared, arm, arm, change.against, metric))
    for arm in ("ours", "copies", "released"):
        tested = cases[cases["arm"] == arm]
        if len(tested):
            shown = tested.assign(arm="validation", dice=tested["validation_dice"])
            both = pd.concat([shown, tested.assign(arm="test")])
            row = _contrast_row(both, "validation", "validation", "test", "dice")
            rows.append(row | {"kind": "measurement", "arm": arm})
    if "ours" in arms:
        rows += _unseeded_rows(cases[cases["arm"] == "ours"], test_size(task_cases))
    return pd.DataFrame(rows, columns=COLUMNS)


def _mean(cases, metric, *within):
    """The mean over subjects (of each seed, with `within`) of the means over their cases."""
    return cases.groupby([*within, "subject"])[metric].mean().mean()


def _unseeded_rows(cases, size):
    """Twice the same arm, each time of another seed and on another test set.

    Test sets are drawn from the test cases there are, with replacement: of so few, sets without
    would be too alike.
    """
    generator, seeds = np.random.default_rng(0), sorted(cases["seed"].unique())
    of_seed = {seed: rows.set_index("case") for seed, rows in cases.groupby("seed")}
    names, pairs, rows = sorted(cases["case"].unique()), [], []
    for _ in range(DRAWS):
        both = generator.choice(seeds, 2, replace=len(seeds) < 2)
        pairs.append([of_seed[seed].loc[generator.choice(names, size)] for seed in both])
    sizes = {"n_subjects": cases["subject"].nunique(), "n_cases": len(names), "n_seeds": len(seeds)}
    for metric in ("dice", "nsd"):
        mean = _mean(cases, metric, "seed")
        differences = [_mean(one, metric) - _mean(other, metric) for one, other in pairs]
        change = np.mean(differences)
        row = {"switch": "unseeded", "kind": "measurement", "arm": "ours", "against": "ours"}
        row |= {"metric": metric, "before": mean, "after": mean + change, "difference": change}
        row |= {"low": min(differences), "high": max(differences), **sizes}
        rows.append(row | {"interval": f"range of {DRAWS} draws"} | dict(cases.iloc[0][FACTS]))
    return rows


def _cases_with_siblings(cases):
    """The test cases that `siblings` has not trained on, but on a sibling of theirs."""
    first, _ = siblings(dict(zip(cases["case"], cases["subject"], strict=True)))
    return cases[cases["case"].isin(first)]


def _contrast_row(cases, switch, arm, against, metric):
    result = contrast(cases, arm, against, metric)
    sides = cases[cases["arm"].isin((arm, against))]
    common = set.intersection(*(set(side["seed"]) for _, side in sides.groupby("arm")))
    sides = sides[sides["seed"].isin(common)]
    before = _mean(sides[sides["arm"] == against], metric, "seed")
    row = {"switch": switch, "kind": "training", "arm": arm, "against": against, "metric": metric}
    row |= {"before": before, "after": before + result["difference"]}
    row |= {"difference": result["difference"], "low": result["ci_low"], "high": result["ci_high"]}
    interval = "95 %, subjects" + " and seeds" * (result["n_seeds"] > 1)
    row |= {"interval": interval, "n_subjects": result["n_subjects"]}
    row |= {"n_cases": sides["case"].nunique(), "n_seeds": result["n_seeds"]}
    return row | dict(sides.iloc[0][FACTS])
