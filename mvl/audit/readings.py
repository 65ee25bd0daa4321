"""The audit's readings: one trained model, whose test cases are read in one way after another."""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mvl.audit.masks import GRID, dilation_nsd, resize_mask, surface_hits
from mvl.audit.switches import COLUMNS, FACTS, SWITCHES
from mvl.config import PROTOCOL_VERSION, derive_seed
from mvl.data.nifti import read_label
from mvl.data.task_folder import Case
from mvl.data.tasks import Task
from mvl.experiment.inference import Predictor, infer
from mvl.experiment.metrics import segmentation_metrics
from mvl.progress import track

#: Cases per batch, as the released README's example has it; metrics are pooled over as many.
BATCH = 4


def in_loaders_order(cases: list[Case], seed: int) -> list[Case]:
    """Cases in no order, as the released code's loader has them: siblings seldom share a batch."""
    generator = np.random.default_rng(derive_seed("reading", seed))
    return [cases[place] for place in generator.permutation(len(cases))]


@torch.inference_mode()
def read_cases(predictor: Predictor, cases: list[Case], show: bool = True) -> pd.DataFrame:
    """Every reading of a foreground model's test cases, in batches of `BATCH`; one row per case.

    Columns: subject, case; `dice` and `nsd` in native space; with the prefix "resized_" on `GRID`,
    spacing and tolerance one voxel; with "linear_" there, against linearly interpolated labels; for
    these the voxels in `predicted`, `labelled` and `overlap`, and `surface_hits` of a case by
    itself and, with the prefix "batch_", among its neighbours.
    """
    model, preparation = predictor.model.eval(), predictor.preparation
    rows, volumes = [], preparation.load(cases, show)
    for start in track(range(0, len(cases), BATCH), "reading", "batch", show):
        batch, predictions, labels = slice(start, start + BATCH), [], []
        for case, volume in zip(cases[batch], volumes[batch], strict=True):
            logits = infer(model, volume["image"].as_tensor()[None])[0].cpu()
            logits = preparation.to_native(logits, volume["image"])  # (1, H', W', D')
            values, header = read_label(case.label)
            truth = values > 0
            resized = F.interpolate(logits[None], GRID, mode="trilinear")[0, 0].numpy() > 0
            row = {"subject": case.subject, "case": case.name}
            native = (header.spacing, predictor.task.tolerance_mm)
            for prefix, prediction, label, measure in (
                ("", logits[0] > 0, truth, native),
                ("resized_", resized, resize_mask(truth, GRID, linear=False), ((1, 1, 1), 1)),
                ("linear_", resized, resize_mask(truth, GRID, linear=True), ((1, 1, 1), 1)),
            ):
                values = segmentation_metrics(prediction, label, *measure)
                row |= {f"{prefix}{metric}": values[metric] for metric in ("dice", "nsd")}
            row |= {"predicted": int(resized.sum()), "labelled": int(label.sum())}
            rows.append(row | {"overlap": int((resized & label).sum())})
            predictions.append(resized)
            labels.append(label)
        for prefix, batch_index in (("", False), ("batch_", True)):
            counts = surface_hits(np.stack(predictions), np.stack(labels), batch_index)
            for place, row in enumerate(rows[start:]):
                row |= {f"{prefix}{name}": int(values[place]) for name, values in counts.items()}
    return pd.DataFrame(rows)


def described(readings: pd.DataFrame, arm: str, seed: int, task: Task) -> pd.DataFrame:
    """A table of `read_cases` with what tells it from others, as `measurement_rows` wants it."""
    facts = {"task": task.name, "protocol_version": PROTOCOL_VERSION, "synthetic": task.synthetic}
    return readings.assign(arm=arm, seed=seed, **facts)


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


#: Of the study, then of each measurement switch with the earlier ones on:
#: switch -> metric -> a function of a table's columns.
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


def measurement_rows(readings: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Rows of audit.csv: what each measurement switch changes about what is reported of one model.

    Intervals are of a bootstrap over subjects and, where there are several, seeds; that of
    `one-case` holds 95 % of the single cases. `readings` are tables of `described`.
    """
    rows = []
    for arm, of_arm in readings.groupby("arm", sort=False):
        tables = [_columns(of_seed) for _, of_seed in of_arm.groupby("seed")]
        subjects = of_arm["subject"].nunique()
        sizes = {"n_subjects": subjects, "n_cases": of_arm["case"].nunique()}
        facts = {"arm": arm, **sizes, "n_seeds": len(tables), **of_arm.iloc[0][FACTS]}
        for metric in ("dice", "nsd"):
            chain = {name: of[metric] for name, of in READINGS.items() if metric in of}
            values = {name: np.mean([of(t) for t in tables]) for name, of in chain.items()}
            spread = _resampled(tables, chain, draws, seed)
            names, steps = list(chain), []
            for against, name in zip(names, names[1:], strict=False):
                between = np.quantile(spread[name] - spread[against], (0.025, 0.975))
                if subjects == len(tables) == 1:
                    between = (np.nan, np.nan)  # there is nothing to resample
                interval = "95 %, subjects" + " and seeds" * (len(tables) > 1)
                steps.append((name, against, values[name], between, interval))
            # What is reported where a case is the only one.
            alone = [t["linear_dice"] if metric == "dice" else _hits(t) for t in tables]
            single = np.concatenate(alone)
            between = np.quantile(single, (0.025, 0.975)) - values["batch-means"]
            interval = "95 % of single cases"
            steps.append(("one-case", "batch-means", single.mean(), between, interval))
            for switch, against, after, (low, high), interval in steps:
                before = values[against]
                row = {"switch": switch, "kind": SWITCHES[switch].kind, "against": against}
                row |= {"metric": metric, "before": before, "after": after, "interval": interval}
                rows.append(facts | row | {"difference": after - before, "low": low, "high": high})
    return pd.DataFrame(rows, columns=COLUMNS)


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
            numbers = np.repeat(np.arange(count), [len(part) for part in chosen])
            drawn.append(rows | {"subject": numbers})
        for name, value in chain.items():
            values[name].append(np.mean([value(rows) for rows in drawn]))
    return {name: np.array(drawn) for name, drawn in values.items()}
