"""The audit's trainings: the study's own, with one thing done as the released code does it."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from mvl.audit.splits import DRAWS
from mvl.audit.switches import COLUMNS, facts_of
from mvl.config import PRESETS, ExperimentConfig
from mvl.errors import ConfigError
from mvl.experiment.released import COPIES, siblings, test_size
from mvl.study.statistics import contrast
from mvl.study.suites import SUITES


@dataclass(frozen=True)
class Change:
    """What an arm does differently from `ours`: entries of each part of the configuration."""

    model: dict = field(default_factory=dict)
    language: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    audit: dict = field(default_factory=dict)
    #: The arm that it is held against.
    against: str = "ours"

    def applied(self, config):
        """An `ExperimentConfig` with the change made."""
        language = replace(config.model.language, **self.language)
        audit = replace(config.audit, **self.audit)
        training = replace(config.training, **self.training)
        if audit.copies:
            # The pool is three times as long: so the number of optimiser steps stays the same.
            shorter = {
                "epochs": max(1, round(training.epochs / len(COPIES))),
                "warmup_epochs": round(training.warmup_epochs / len(COPIES)),
            }
            training = replace(training, **shorter)
        return replace(
            config,
            data=replace(config.data, **self.data),
            model=replace(config.model, language=language, **self.model),
            training=training,
            audit=audit,
        )


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

#: Arm -> `Change`. `ours` is the study's vit with the block, which every arm changes in one thing;
#: `released` does all of them at once. `siblings` stands apart from them: its training has seen
#: siblings of test cases, so that only these can be compared.
ARMS = {
    "ours": Change(),
    **_SINGLE,
    "released": Change(
        **{
            part: {
                key: v for change in _SINGLE.values() for key, v in getattr(change, part).items()
            }
            for part in ("language", "training", "data", "audit")
        },
        # Sixteen blocks after the language part.
        model={key: v for change in _SINGLE.values() for key, v in change.model.items()}
        | _of(_MODEL, "encoder_depth", "decoder_depth"),
    ),
    "siblings": Change(audit={"siblings": True}),
}


def audit_configs(data, seeds, block=None, epochs=None, arms=None):
    """The audit's trainings, as `mvl.study.cells.fit_suite` and `status` take them.

    Args:
        data: a `DataConfig`.
        seeds: iterable of seeds.
        block: a `LanguageConfig.source` in place of the study's.
        epochs: a budget in place of the study's.
        arms: names of some of `ARMS`; all if None.

    Returns:
        {(arm, seed): ExperimentConfig}.

    Raises:
        ConfigError: no arm of that name.
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


def training_rows(cases, task_cases):
    """What each training switch changes, by the study's evaluation.

    Beside them stand, as the switch `validation`, how far the validation Dice of the arms with
    copies and of `ours` lies from the test Dice of the same models, and `unseeded`.

    Args:
        cases: the table of audit_cases.csv.gz.
        task_cases: how many cases the task has; the released code's test set is a tenth of them.

    Returns:
        Rows of audit.csv; none for an arm that is not there together with what it is held against.
    """
    rows, arms = [], set(cases["arm"])
    for arm, change in ARMS.items():
        if arm != "ours" and {arm, change.against} <= arms:
            own = _beside_siblings(cases) if arm == "siblings" else cases
            if len(own):
                for metric in ("dice", "nsd"):
                    rows.append(_contrast_row(own, arm, arm, change.against, metric))
    for arm in ("ours", "copies", "released"):
        own = cases[cases["arm"] == arm]
        if len(own):
            said = own.assign(arm="validation", dice=own["validation_dice"])
            both = pd.concat([said, own.assign(arm="test")])
            row = _contrast_row(both, "validation", "validation", "test", "dice")
            rows.append(row | {"kind": "measurement", "arm": arm})
    if "ours" in arms:
        rows += _unseeded_rows(cases[cases["arm"] == "ours"], test_size(task_cases))
    return pd.DataFrame(rows, columns=COLUMNS)


def _unseeded_rows(cases, size):
    """Twice the same arm, each time of another seed and on a test set of its own.

    Test sets are drawn from the test cases there are, with replacement: of so few, sets without
    would be too alike.
    """
    generator, seeds = np.random.default_rng(0), sorted(cases["seed"].unique())
    of_seed = {seed: own.set_index("case") for seed, own in cases.groupby("seed")}
    names, rows = sorted(cases["case"].unique()), []
    pairs = []
    for _ in range(DRAWS):
        both = generator.choice(seeds, 2, replace=len(seeds) < 2)
        pairs.append([of_seed[seed].loc[generator.choice(names, size)] for seed in both])
    for metric in ("dice", "nsd"):
        mean = cases.groupby(["seed", "subject"])[metric].mean().mean()
        found = [
            np.subtract(*(own.groupby("subject")[metric].mean().mean() for own in pair))
            for pair in pairs
        ]
        rows.append(
            {
                "switch": "unseeded",
                "kind": "measurement",
                "arm": "ours",
                "against": "ours",
                "metric": metric,
                "before": mean,
                "after": mean + np.mean(found),
                "difference": np.mean(found),
                "low": min(found),
                "high": max(found),
                "interval": f"range of {DRAWS} draws",
                "n_subjects": cases["subject"].nunique(),
                "n_cases": len(names),
                "n_seeds": len(seeds),
                **facts_of(cases.iloc[0]),
            }
        )
    return rows


def _beside_siblings(cases):
    """The test cases that `siblings` has not trained on, but on a sibling of theirs."""
    subject_of = dict(zip(cases["case"], cases["subject"], strict=True))
    return cases[cases["case"].isin(siblings(subject_of, subject_of)[0])]


def _contrast_row(cases, switch, arm, against, metric):
    found = contrast(cases, arm, against, metric)
    sides = cases[cases["arm"].isin((arm, against))]
    common = set.intersection(*(set(side["seed"]) for _, side in sides.groupby("arm")))
    sides = sides[sides["seed"].isin(common)]
    before = sides[sides["arm"] == against].groupby(["seed", "subject"])[metric].mean().mean()
    return {
        "switch": switch,
        "kind": "training",
        "arm": arm,
        "against": against,
        "metric": metric,
        "before": before,
        "after": before + found["difference"],
        "difference": found["difference"],
        "low": found["ci_low"],
        "high": found["ci_high"],
        "interval": f"95 %, {found['resampled']}",
        "n_subjects": found["n_subjects"],
        "n_cases": sides["case"].nunique(),
        "n_seeds": found["n_seeds"],
        **facts_of(sides.iloc[0]),
    }
