"""What each thing that the released code does differently is worth: the audit.

`SWITCHES` says what the code does and what that can change, `mvl.released` does it, and here it
is measured, on the study's data and against the study's way:

    split        who stands on which side; counted over draws, nothing is trained
    training     a training with one thing done as the released code does it, or all (`ARMS`)
    measurement  one trained model, whose test cases are read as the released code reads them; each
                 reading goes on from the one before it, since most of them need it

A training's cells are experiments like any other: `mvl.suites` runs, resumes and counts them.
`results/reference/` holds

    audit_cases.csv.gz      one row per arm, seed and test case: metrics in native space
    audit_readings.csv.gz   one row per model, seed and test case: every reading of it
    audit.csv               one row per switch, arm and metric, made of these and of the splits
    figures/audit_waterfall.png

and the README's section on it is made of audit.csv. A row that is about a training compares two
arms, subject by subject, with the interval of `mvl.statistics.contrast`; one about a reading
resamples the subjects and reads anew.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mvl.config import PRESETS, PROTOCOL_VERSION, ExperimentConfig
from mvl.data.loading import open_task
from mvl.data.sources import find_task, list_cases, read_label, spacing_of
from mvl.errors import ConfigError, RunError
from mvl.experiments import TRAINED, Run, collect, load_predictor, run_folder, test
from mvl.figures import save, waterfall
from mvl.files import read_json, sha256_of, write_table, write_text
from mvl.metrics import segmentation_metrics
from mvl.progress import track
from mvl.reference import BEST, REFERENCE, REPOSITORY, SEEDS, read_table
from mvl.released import (
    BATCH,
    COPIES,
    GRID,
    TEST_SHARE,
    dilation_nsd,
    on_both_sides,
    released_split,
    resize_mask,
    surface_hits,
)
from mvl.statistics import contrast
from mvl.suites import SUITES


@dataclass(frozen=True)
class Switch:
    """One thing that the released code does, beside what the study does."""

    name: str
    #: "split", "training" or "measurement".
    kind: str
    #: Its number in the list of what the released code does; None for what MSD's numbering hides.
    point: int | None
    #: What the released code does.
    released: str
    #: What the study does.
    study: str
    #: What the difference can change.
    changes: str


#: Name -> Switch, in the order of the waterfall.
SWITCHES = {
    switch.name: switch
    for switch in (
        Switch(
            "before",
            "training",
            3,
            "The language block sits before the encoder, on tokens that carry no position yet.",
            "It sits between encoder and decoder.",
            "What the block can know of a token's place.",
        ),
        Switch(
            "mappers",
            "training",
            11,
            "The mappers to and from the block stay random; factors of rank 4 and biases train.",
            "The mappers are trained whole.",
            "How much of a token reaches the block, and how.",
        ),
        Switch(
            "unit-norm",
            "training",
            12,
            "The block's output is divided by its root mean square once more, without weights.",
            "The block's output is taken as it is.",
            "The size of what the block writes.",
        ),
        Switch(
            "dropout",
            "training",
            16,
            "Dropout of 0.2 in every block, and no normalisation after the last.",
            "No dropout, and a last LayerNorm.",
            "Regularisation.",
        ),
        Switch(
            "hard-dice",
            "training",
            4,
            "The loss thresholds the prediction inside its Dice term.",
            "The Dice term takes probabilities.",
            "That half has no gradient: training is cross-entropy alone, halved.",
        ),
        Switch(
            "optimiser",
            "training",
            8,
            "Adam; the rate is halved when the training loss has not fallen for 10 epochs.",
            "AdamW with decay, warm-up, cosine and clipping.",
            "How far training gets in its budget.",
        ),
        Switch(
            "resize",
            "training",
            9,
            "Every volume is resized to one grid, as the paper has it.",
            "Task04 is padded or cropped to the grid.",
            "Voxels differ in size from case to case.",
        ),
        Switch(
            "linear-labels",
            "training",
            10,
            "Labels are resized by linear interpolation, and all above zero is foreground.",
            "Labels are resized to the nearest voxel.",
            "The foreground that is learned is larger than the labelled one.",
        ),
        Switch(
            "planes",
            "training",
            6,
            "A rotated copy's image and label turn in different planes.",
            "Image and label turn alike.",
            "A third of the samples is misaligned, more so away from the centre.",
        ),
        Switch(
            "splines",
            "training",
            6,
            "A rotated copy's label is interpolated by cubic splines and cut at one half.",
            "The nearest voxel's label.",
            "Where the edge of a rotated label falls.",
        ),
        Switch(
            "copies",
            "training",
            5,
            "Training and validation are drawn from one heap of originals and augmented copies.",
            "Validation subjects have no case in training, and no copies.",
            "Validation Dice is of subjects that training has seen.",
        ),
        Switch(
            "train-loss",
            "training",
            8,
            "The best checkpoint is the one with the lowest training loss.",
            "The best epoch is chosen on validation.",
            "Overfitting is not seen by the choice.",
        ),
        Switch(
            "last-epoch",
            "training",
            8,
            "The checkpoint is never loaded again: what is tested is the epoch at hand.",
            "The best epoch is chosen on validation.",
            "Chance of the last epochs.",
        ),
        Switch(
            "resized-grid",
            "measurement",
            9,
            "Metrics are taken on the resized grid of 128 x 128 x 128, without spacing.",
            "In native space, in millimetres.",
            "A tolerance of one voxel is another length for every case and axis.",
        ),
        Switch(
            "linear-truth",
            "measurement",
            10,
            "The truth is the linearly interpolated label, all above zero.",
            "The label as it was drawn.",
            "The truth is larger by up to a voxel all around.",
        ),
        Switch(
            "dilation",
            "measurement",
            9,
            "The surface is dilation minus mask; the tolerance one voxel.",
            "Surface elements, weighted by their area; the task's tolerance.",
            "NSD alone.",
        ),
        Switch(
            "batch-index",
            "measurement",
            9,
            "A case's place in the batch is a fourth coordinate of its surface voxels.",
            "A case is measured by itself.",
            "NSD alone: a neighbouring case's surface lies at distance 1.",
        ),
        Switch(
            "batch-means",
            "measurement",
            9,
            "All voxels of a batch are pooled, and batches are averaged, whatever their size.",
            "The mean over subjects of the means over their cases.",
            "Large structures count for more, and cases of a small last batch.",
        ),
        Switch(
            "one-case",
            "measurement",
            7,
            "Of the test set the first case is evaluated.",
            "Every test case.",
            "The number is a draw from the spread between cases.",
        ),
        Switch(
            "validation",
            "measurement",
            5,
            "The curves, those for few training cases among them, show the validation Dice.",
            "The test Dice, once.",
            "Validation is what was chosen by; with copies it is of subjects seen in training.",
        ),
        Switch(
            "unseeded",
            "measurement",
            7,
            "No seed is set: the test cases, a tenth, are drawn anew for each model and run.",
            "One split for the whole study, from one seed.",
            "Two models are compared on different cases.",
        ),
        Switch(
            "siblings",
            "split",
            None,
            "Cases are drawn. MSD does not say which cases are of one subject.",
            "Subjects are drawn; for Task04 who is whose is inferred.",
            "A test case's sibling may be in training.",
        ),
        Switch(
            "shared-subjects",
            "split",
            5,
            "Copies are drawn one by one.",
            "Subjects are drawn, and validation has no copies.",
            "A validation copy's subject, mostly its very case, is in training.",
        ),
    )
}


# --- training ------------------------------------------------------------------------------


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
            # The heap is three times as long: so the number of optimiser steps stays the same.
            training = replace(training, epochs=max(1, round(training.epochs / len(COPIES))))
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
    "mappers": Change(language=_of(_MODEL.language, "lora_rank", "lora_on")),
    "unit-norm": Change(language=_of(_MODEL.language, "unit_norm")),
    "dropout": Change(model=_of(_MODEL, "dropout", "final_norm")),
    "hard-dice": Change(audit={"dice": "hard"}),
    "optimiser": Change(
        training=_of(_PLAN, "optimiser", "schedule", "learning_rate", "weight_decay")
        | _of(_PLAN, "warmup_epochs", "clip_norm")
    ),
    "resize": Change(data={"fit": "resize"}),
    "linear-labels": Change(
        data={"fit": "resize"}, audit={"linear_labels": True}, against="resize"
    ),
    "planes": Change(audit={"planes": True}),
    "splines": Change(audit={"splines": True}),
    "copies": Change(audit={"copies": True}),
    "train-loss": Change(audit={"select": "loss"}),
    "last-epoch": Change(audit={"select": "last"}),
}

#: Arm -> `Change`. `ours` is the study's vit with the block, which every arm changes in one thing;
#: `released` does all of them at once.
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
}


def audit_configs(data, seeds, block=None, epochs=None, arms=None):
    """The audit's trainings, as `mvl.suites.fit_suite` and `status` take them.

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
    training = replace(training, epochs=epochs or training.epochs)
    return {
        (arm, seed): ARMS[arm].applied(ExperimentConfig(data, model, training, seed))
        for arm in ARMS
        if not arms or arm in arms
        for seed in seeds
    }


def training_rows(cases):
    """What each training switch changes, by the study's evaluation.

    Beside them stands, as the switch `validation`, how far the validation Dice of the arms with
    copies and of `ours` lies from the test Dice of the same models.

    Args:
        cases: the table of audit_cases.csv.gz.

    Returns:
        Rows of audit.csv; none for an arm that is not there together with what it is held against.
    """
    rows, arms = [], set(cases["arm"])
    for arm, change in ARMS.items():
        if arm != "ours" and {arm, change.against} <= arms:
            for metric in ("dice", "nsd"):
                rows.append(_contrast_row(cases, arm, arm, change.against, metric))
    for arm in ("ours", "copies", "released"):
        own = cases[cases["arm"] == arm]
        if len(own):
            said = own.assign(arm="validation", dice=own["validation_dice"])
            both = pd.concat([said, own.assign(arm="test")])
            row = _contrast_row(both, "validation", "validation", "test", "dice")
            rows.append(row | {"kind": "measurement", "arm": arm})
    return pd.DataFrame(rows, columns=COLUMNS)


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
        **_facts(sides.iloc[0]),
    }


def _facts(row):
    return {name: row[name] for name in ("task", "protocol_version", "synthetic")}


COLUMNS = (
    *("switch", "kind", "arm", "against", "metric", "before", "after", "difference", "low"),
    *("high", "interval", "n_subjects", "n_cases", "n_seeds", "task", "protocol_version"),
    "synthetic",
)


# --- measurement ---------------------------------------------------------------------------


@torch.inference_mode()
def read_cases(model, cases, preparation, task, show=True):
    """Every reading of a foreground model's test cases.

    Args:
        model: (B, C, H, W, D) -> logits (B, 1, H, W, D).
        cases: list of `Case`; batches are of `BATCH` neighbours in it.
        preparation: the model's `Preparation`.
        task: a `Task`, for the tolerance.
        show: show progress.

    Returns:
        A table, a case a row: subject, case; `dice` and `nsd` in native space; `resized_dice` and
        `resized_nsd` on `GRID`, spacing and tolerance one voxel; `linear_dice` and `linear_nsd`
        there, against linearly interpolated labels; for these the voxels in `predicted`,
        `labelled` and `overlap`, and the counts of `surface_hits` of a case by itself and, with
        the prefix "batch_", of a case among its neighbours.
    """
    model.eval()
    rows, volumes = [], preparation.load(cases, show)
    device = next(model.parameters()).device
    for start in track(range(0, len(cases), BATCH), "reading", "batch", show):
        pairs = []
        for case, volume in zip(
            cases[start : start + BATCH], volumes[start : start + BATCH], strict=True
        ):
            logits = model(volume["image"].as_tensor()[None].to(device))[0].float().cpu()
            logits = preparation.to_native(logits, volume["image"])  # (1, H', W', D')
            truth = read_label(case.label) > 0
            resized = F.interpolate(logits[None], GRID, mode="trilinear")[0, 0].numpy() > 0
            row = {"subject": case.subject, "case": case.name}
            for prefix, prediction, label, spacing, tolerance in (
                ("", logits[0] > 0, truth, spacing_of(case.label), task.tolerance_mm),
                ("resized_", resized, resize_mask(truth, GRID, linear=False), (1, 1, 1), 1),
                ("linear_", resized, resize_mask(truth, GRID, linear=True), (1, 1, 1), 1),
            ):
                found = segmentation_metrics(prediction, label, spacing, tolerance)
                row |= {f"{prefix}{metric}": found[metric] for metric in ("dice", "nsd")}
            row |= {"predicted": int(resized.sum()), "labelled": int(label.sum())}
            rows.append(row | {"overlap": int((resized & label).sum())})
            pairs.append((resized, label))
        predictions, labels = (np.stack(masks) for masks in zip(*pairs, strict=True))
        for prefix, batch_index in (("", False), ("batch_", True)):
            counts = surface_hits(predictions, labels, batch_index)
            for place, row in enumerate(rows[start:]):
                row |= {f"{prefix}{name}": int(values[place]) for name, values in counts.items()}
    return pd.DataFrame(rows)


_HITS = ("near_predicted", "surface_predicted", "near_labelled", "surface_labelled")


def _subject_mean(value):
    """The mean over subjects of the means over their cases of a value of every case."""

    def of(rows):
        values = rows[value] if isinstance(value, str) else value(rows)
        cases = np.bincount(rows["subject"])
        return (np.bincount(rows["subject"], values) / cases).mean()

    return of


def _batch_mean(value, columns):
    """The mean over batches of a value of their pooled counts."""

    def of(rows):
        starts = np.arange(0, len(rows["subject"]), BATCH)
        return value(*(np.add.reduceat(rows[column], starts) for column in columns)).mean()

    return of


def _hits(rows, prefix=""):
    return dilation_nsd(*(rows[prefix + name] for name in _HITS))


def _pooled_dice(overlap, predicted, labelled):
    return 2 * overlap / np.maximum(1, predicted + labelled)


#: What the study reports, then what is reported after each measurement switch, the earlier ones
#: on: switch -> metric -> a function of a table's columns.
READINGS = {
    "ours": {"dice": _subject_mean("dice"), "nsd": _subject_mean("nsd")},
    "resized-grid": {"dice": _subject_mean("resized_dice"), "nsd": _subject_mean("resized_nsd")},
    "linear-truth": {"dice": _subject_mean("linear_dice"), "nsd": _subject_mean("linear_nsd")},
    "dilation": {"nsd": _subject_mean(_hits)},
    "batch-index": {"nsd": _subject_mean(lambda rows: _hits(rows, "batch_"))},
    "batch-means": {
        "dice": _batch_mean(_pooled_dice, ("overlap", "predicted", "labelled")),
        "nsd": _batch_mean(dilation_nsd, tuple(f"batch_{name}" for name in _HITS)),
    },
}


def measurement_rows(readings, task_cases, draws=2000, seed=0):
    """What each measurement switch changes about the number that is reported of one model.

    Args:
        readings: tables of `read_cases`, with arm, seed, task, protocol_version and synthetic.
        task_cases: how many cases the task has; the released code's test set is a tenth of them.
        draws: of the bootstrap over subjects and, where there are several, seeds.
        seed: of the bootstrap and of the draws of test sets.

    Returns:
        Rows of audit.csv, those of `unseeded` among them. Its interval is the range of 20 test
        sets, that of `one-case` holds 95 % of the single cases.
    """
    rows = []
    for arm, own in readings.groupby("arm", sort=False):
        tables = [_columns(of_seed) for _, of_seed in own.groupby("seed")]
        facts = {
            "arm": arm,
            "n_subjects": own["subject"].nunique(),
            "n_cases": own["case"].nunique(),
            "n_seeds": len(tables),
            **_facts(own.iloc[0]),
        }
        for metric in ("dice", "nsd"):
            chain = {name: of[metric] for name, of in READINGS.items() if metric in of}
            values = {name: np.mean([of(t) for t in tables]) for name, of in chain.items()}
            spread = _resampled(tables, chain, draws, seed)
            names = list(chain)
            for against, name in zip(names, names[1:], strict=False):
                between = np.quantile(spread[name] - spread[against], (0.025, 0.975))
                rows.append(
                    facts
                    | _reading_row(name, against, metric, values[against], values[name], between)
                    | {"interval": "95 %, subjects" + " and seeds" * (len(tables) > 1)}
                )
            single = np.concatenate([_alone(t, metric) for t in tables])
            middle = np.quantile(single, (0.025, 0.975)) - values["batch-means"]
            rows.append(
                facts
                | _reading_row(
                    *("one-case", "batch-means", metric, values["batch-means"], single.mean()),
                    middle,
                )
                | {"interval": "95 % of single cases"}
            )
            sets = _test_sets(tables, chain["ours"], round(TEST_SHARE * task_cases), seed)
            span = np.array([min(sets), max(sets)]) - values["ours"]
            rows.append(
                facts
                | _reading_row("unseeded", "ours", metric, values["ours"], np.mean(sets), span)
                | {"interval": f"range of {len(sets)} draws"}
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _reading_row(switch, against, metric, before, after, between):
    return {
        "switch": switch,
        "kind": SWITCHES[switch].kind,
        "against": against,
        "metric": metric,
        "before": before,
        "after": after,
        "difference": after - before,
        "low": between[0],
        "high": between[1],
    }


def _columns(rows):
    """A table's numbers as arrays, its subjects numbered from 0."""
    numbers = {name: rows[name].to_numpy() for name in rows.select_dtypes("number")}
    return numbers | {"subject": pd.factorize(rows["subject"])[0]}


def _resampled(tables, chain, draws, seed):
    """{name: values (draws,)} as other subjects and seeds might have given them."""
    generator = np.random.default_rng(seed)
    count, values = tables[0]["subject"].max() + 1, {name: [] for name in chain}
    places = [[np.flatnonzero(t["subject"] == n) for n in range(count)] for t in tables]
    for _ in range(draws):
        subjects = generator.integers(count, size=count)
        drawn = []
        for i in generator.integers(len(tables), size=len(tables)):
            chosen = [places[i][subject] for subject in subjects]
            index = np.concatenate(chosen)
            rows = {name: column[index] for name, column in tables[i].items()}
            # Who is drawn twice counts as two subjects.
            drawn.append(
                rows | {"subject": np.repeat(np.arange(count), [len(own) for own in chosen])}
            )
        for name, value in chain.items():
            values[name].append(np.mean([value(rows) for rows in drawn]))
    return {name: np.array(found) for name, found in values.items()}


def _alone(columns, metric):
    """What is reported where a case is the only one."""
    return columns["linear_dice"] if metric == "dice" else _hits(columns)


def _test_sets(tables, value, size, seed):
    """The study's number on `DRAWS` test sets of that many of the test cases, drawn at random."""
    generator, found = np.random.default_rng(seed), []
    count = len(tables[0]["subject"])
    for _ in range(DRAWS):
        index = np.sort(generator.permutation(count)[: max(1, size)])
        drawn = [{name: column[index] for name, column in table.items()} for table in tables]
        drawn = [t | {"subject": np.unique(t["subject"], return_inverse=True)[1]} for t in drawn]
        found.append(np.mean([value(table) for table in drawn]))
    return found


# --- splits --------------------------------------------------------------------------------

#: How often the released code's split is drawn, to see what its missing seed is worth.
DRAWS = 20


def split_rows(cases, task):
    """Who stands on both sides of the released code's split, over `DRAWS` draws.

    Args:
        cases: list of the task's `Case`.
        task: their `Task`.

    Returns:
        Rows of audit.csv: shares of subjects; the study's is 0, which is checked before every
        training. The interval is the range of the draws.
    """
    draws = [released_split(cases, seed) for seed in range(DRAWS)]
    rows = []
    for switch, side, others, metric in (
        ("siblings", "test", ("train", "validation"), "test subjects in training or validation"),
        ("shared-subjects", "validation", ("train",), "validation subjects in training"),
    ):
        counts = [on_both_sides(draw, side, others) for draw in draws]
        shares = [count["subjects_shared"] / count["subjects"] for count in counts]
        rows.append(
            {
                "switch": switch,
                "kind": "split",
                "arm": "",
                "against": "",
                "metric": f"share of {metric}",
                "before": 0.0,
                "after": np.mean(shares),
                "difference": np.mean(shares),
                "low": min(shares),
                "high": max(shares),
                "interval": f"range of {DRAWS} draws",
                "n_subjects": len({case.subject for case in cases}),
                "n_cases": len(cases),
                "n_seeds": 0,
                "task": task.name,
                "protocol_version": PROTOCOL_VERSION,
                "synthetic": task.synthetic,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


# --- the reference -------------------------------------------------------------------------

CASES, READ, TABLE = "audit_cases.csv.gz", "audit_readings.csv.gz", "audit.csv"
PICTURE = Path("figures") / "audit_waterfall.png"
BEGIN, END = "<!-- audit: begin, written by `mvl audit table` -->", "<!-- audit: end -->"
#: The committed model among the arms whose test cases are read.
COMMITTED = "best"


def write_audit(data, runs, root=None, reference=REFERENCE, seeds=SEEDS, epochs=None):
    """Add finished trainings to the audit's tables, read what is not read, draw the waterfall.

    As the reference, the audit grows by the runs that are at hand and keeps the others' rows, as
    long as the arm would still be trained just so. A run that is trained and not tested is tested.

    Args:
        data: a `DataConfig`.
        runs: the folder of all runs.
        root: see `sources.data_root`.
        reference: the folder to write to.
        seeds, epochs: as in `audit_configs`.

    Returns:
        The table of audit.csv.

    Raises:
        DataError: as `open_task`.
    """
    known = [
        read_table(reference / name, ("arm", "fingerprint"))
        if (reference / name).is_file()
        else None
        for name in (CASES, READ)
    ]
    tables, read = [], []
    for (arm, seed), config in audit_configs(data, seeds, epochs=epochs).items():
        task_data = open_task(config.data, seed, root, progress=False)
        folder = run_folder(config, task_data, runs)
        if (folder / TRAINED).exists():
            test(folder, task_data)
            trained = read_json(folder / TRAINED)
            facts = {"validation_dice": trained["validation_dice"], "fingerprint": folder.name}
            tables.append(collect(folder, "audit", arm).assign(**facts))
        else:
            tables.append(_known(known[0], arm, folder.name))
        if arm == "released":
            run = Run.load(folder) if (folder / TRAINED).exists() else None
            read.append(_read(known[1], arm, seed, folder.name, run, task_data))
    task_data = open_task(data, 0, root, progress=False)
    best, weights = load_predictor(BEST), sha256_of(BEST / "model.safetensors")[:16]
    if best.task.name == task_data.task.name:
        read.append(_read(known[1], COMMITTED, 0, weights, best, task_data))
    for name, found in ((CASES, tables), (READ, read)):
        nothing = pd.DataFrame(columns=["arm", "fingerprint"])
        write_table(reference / name, pd.concat([t for t in found if t is not None] or [nothing]))
    everyone = list_cases(find_task(data.task, root))
    # Read again, so that the table is made of what was written, to the last digit.
    table = audit_table(reference, split_rows(everyone, task_data.task), len(everyone))
    write_table(reference / TABLE, table)
    save(waterfall_of(table), reference / PICTURE)
    return table


def _known(table, arm, fingerprint):
    if table is None:
        return None
    own = table[(table["arm"] == arm) & (table["fingerprint"] == fingerprint)]
    return own if len(own) else None


def _read(table, arm, seed, fingerprint, model, data):
    """The readings of a model, those that are known taken as they are; None without a model."""
    known = _known(table, arm, fingerprint)
    if known is not None or model is None:
        return known
    rows = read_cases(model.model, data.side("test"), model.preparation, model.task)
    return described(rows, arm, seed, data.task).assign(fingerprint=fingerprint)


def described(readings, arm, seed, task):
    """A table of `read_cases` with what tells it from others, as `measurement_rows` wants it."""
    facts = {"task": task.name, "protocol_version": PROTOCOL_VERSION, "synthetic": task.synthetic}
    return readings.assign(arm=arm, seed=seed, **facts)


def audit_table(reference, splits, task_cases):
    """audit.csv from the reference's other tables.

    Args:
        reference: the folder.
        splits: of `split_rows`.
        task_cases: as in `measurement_rows`.
    """
    cases, readings = (read_table(reference / name) for name in (CASES, READ))
    tables = [training_rows(cases), measurement_rows(readings, task_cases), splits]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


# --- words and pictures --------------------------------------------------------------------


def switches_table():
    """`SWITCHES` as a table."""
    rows = [asdict(switch) for switch in SWITCHES.values()]
    return pd.DataFrame(rows).astype({"point": "Int64"}).set_index("name")


def reference_table(reference=REFERENCE):
    """The committed audit.csv; empty where there is none."""
    path = reference / TABLE
    return read_table(path, COLUMNS) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def waterfall_steps(table, metric="dice"):
    """From the number that the study reports to the one that the released code's curves show.

    With the arm `released` at hand: each training switch by itself, stacked; then what all of them
    do at once; then the readings of that arm's models, and their validation in place of the test
    cases. Without it: the readings of the first model that was read.

    Args:
        table: audit.csv, or any rows of it.
        metric: "dice" or "nsd".

    Returns:
        A table, a step a row, as `mvl.figures.waterfall` takes it: step, kind, estimate (what is
        reported after it), ci_low and ci_high (its difference's interval, put where the estimate
        is; NaN for the first step).

    Raises:
        RunError: the table holds neither.
    """
    own = table[table["metric"] == metric]
    training = own[own["kind"] == "training"]
    whole = training[training["arm"] == "released"]
    read = own[(own["kind"] == "measurement") & ~own["switch"].isin(("validation", "unseeded"))]
    if len(whole):
        read = read[read["arm"] == "released"]
    if read.empty:
        raise RunError("the audit has no model whose test cases were read: 'mvl audit table'")
    arm = read["arm"].iloc[0]
    read = read[read["arm"] == arm]
    level = (whole if len(whole) else read)["before"].iloc[0]
    steps = [("ours" if len(whole) else arm, "level", level, np.nan, np.nan)]

    def step(row, kind, start):
        name = "all at once" if kind == "together" else row.switch
        ends = (start + row.low, start + row.high)
        steps.append((name, kind, start + row.difference, *ends))
        return start + row.difference

    if len(whole):
        start = level
        for row in training[training["arm"] != "released"].itertuples():
            level = step(row, "training", level)
        level = tested = step(next(whole.itertuples()), "together", start)
    for row in read.itertuples():
        level = step(row, "spread" if row.switch == "one-case" else "measurement", level)
    if len(whole):
        said = own[(own["switch"] == "validation") & (own["arm"] == "released")]
        for row in said.itertuples():
            step(row, "instead", tested)
    return pd.DataFrame(steps, columns=["step", "kind", "estimate", "ci_low", "ci_high"])


def waterfall_of(table, metric="dice"):
    """The figure of `waterfall_steps`, with its sizes.

    Args:
        table, metric: as in `waterfall_steps`.
    """
    steps = waterfall_steps(table, metric)
    used = table[(table["metric"] == metric) & table["kind"].isin(("training", "measurement"))]
    first, seeds = used.iloc[0], used["n_seeds"]
    size = f"{first['task']}, {used['n_subjects'].max()} test subjects, "
    size += f"{seeds.min()} to " * bool(seeds.min() < seeds.max()) + f"{seeds.max()} seed"
    return waterfall(steps, metric, size + "s" * bool(seeds.max() > 1), bool(first["synthetic"]))


def sentences(table):
    """Each row of audit.csv in words.

    Args:
        table: any rows of it.

    Returns:
        List of sentences: what is done, and what it changes.
    """
    found = []
    for row in table.to_dict("records"):
        metric = {"nsd": "NSD", "dice": "Dice"}.get(row["metric"], row["metric"].capitalize())
        said = f"{metric} {row['before']:.3f} becomes {row['after']:.3f}, {row['difference']:+.3f}"
        if not np.isnan(row["low"]):
            said += f" ({row['interval']}: {row['low']:+.3f} to {row['high']:+.3f})"
        synthetic = "Synthetic data: " if row["synthetic"] else ""
        done = f"`{row['switch']}`{_arm(row)}. {_done(row['switch'])}"
        found.append(f"{synthetic}{done} {said}; {_size(row)}.")
    return found


def _done(switch):
    return SWITCHES[switch].released if switch in SWITCHES else "All of the above at once."


def _arm(row):
    """Whose test cases were read, where it is not the arm of the switch's name."""
    return "" if row["arm"] in ("", row["switch"]) else f" ({row['arm']})"


def _size(row):
    said = f"{row['n_subjects']} subjects, {row['n_cases']} cases"
    if not row["n_seeds"]:
        return said
    return f"{said}, {row['n_seeds']} seed{'' if row['n_seeds'] == 1 else 's'}"


def audit_section(reference=REFERENCE):
    """The README's section on the audit as Markdown: every number from audit.csv."""
    table = read_table(reference / TABLE, COLUMNS)
    return "\n".join(_section(table))


def _section(table):
    lines = [
        f"{table['task'].iloc[0]}. A row turns one thing on, and says what is reported without and "
        "with it, and the difference with its 95 % interval. Of `one-case` that is the middle 95 % "
        f"of single cases, of draws the range of {DRAWS}.",
    ]
    for kind, title in (
        (
            "training",
            "**Trained with it**, and measured as the study measures; against `ours`, vit with "
            "the block as the study trains it.",
        ),
        (
            "measurement",
            "**One model, read as the released code reads it**, each row a step on from the one "
            "above, but `validation` and `unseeded`, which stand for themselves. `best` learned "
            "from the labels as they are drawn, `released` from the larger ones.",
        ),
    ):
        own = table[table["kind"] == kind]
        if len(own):
            lines += ["", title, "", *_two_metrics(own)]
    lines += ["", "**Who stands on which side.**", ""]
    lines += [f"- {said}" for said in sentences(table[table["kind"] == "split"])]
    picture = (REFERENCE / PICTURE).relative_to(REPOSITORY).as_posix()
    return [*lines, "", f"![From the study's protocol to the released code's]({picture})"]


def _two_metrics(rows):
    """A line per switch and arm, Dice and NSD beside each other."""
    columns = ("switch", "what the released code does", "Dice", "NSD", "size")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    keys = rows[["switch", "arm"]].drop_duplicates()
    order = [*SWITCHES, "released"]
    keys["arms"] = keys["arm"].where(keys["arm"] != keys["switch"], "")
    keys["place"] = keys["switch"].map(order.index)
    for key in keys.sort_values(["arms", "place"]).itertuples():
        own = rows[(rows["switch"] == key.switch) & (rows["arm"] == key.arm)].set_index("metric")
        row = own.iloc[0]
        cells = [f"`{key.switch}`{_arm(row)}", _done(key.switch)]
        cells += [_change(own.loc[name]) if name in own.index else "" for name in ("dice", "nsd")]
        lines.append(f"| {' | '.join(cells)} | {_size(row)} |")
    return lines


def _change(row):
    return (
        f"{row['before']:.3f} → {row['after']:.3f}, {row['difference']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f})"
    )


def refresh_readme(readme=REPOSITORY / "README.md", reference=REFERENCE):
    """Write `audit_section` between the README's markers.

    Raises:
        RunError: the README lacks a marker.
    """
    text = Path(readme).read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RunError(f"{readme} lacks one of the lines {BEGIN!r} and {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, f"{before}{BEGIN}\n{audit_section(reference)}\n{END}{after}")
