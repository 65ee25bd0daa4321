"""The audit's readings: one trained model, whose test cases are read in one way after another."""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mvl.audit.switches import COLUMNS, SWITCHES, facts_of
from mvl.config import PROTOCOL_VERSION
from mvl.data.nifti import read_label
from mvl.experiment.metrics import segmentation_metrics
from mvl.experiment.released import BATCH, GRID, dilation_nsd, resize_mask, surface_hits
from mvl.progress import track


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
            values, header = read_label(case.label)
            truth = values > 0
            resized = F.interpolate(logits[None], GRID, mode="trilinear")[0, 0].numpy() > 0
            row = {"subject": case.subject, "case": case.name}
            for prefix, prediction, label, spacing, tolerance in (
                ("", logits[0] > 0, truth, header.spacing, task.tolerance_mm),
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


def described(readings, arm, seed, task):
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


def measurement_rows(readings, draws=2000, seed=0):
    """What each measurement switch changes about the number that is reported of one model.

    Args:
        readings: tables of `read_cases`, with arm, seed, task, protocol_version and synthetic.
        draws: of the bootstrap over subjects and, where there are several, seeds.
        seed: of the bootstrap.

    Returns:
        Rows of audit.csv. The interval of `one-case` holds 95 % of the single cases.
    """
    rows = []
    for arm, own in readings.groupby("arm", sort=False):
        tables = [_columns(of_seed) for _, of_seed in own.groupby("seed")]
        facts = {
            "arm": arm,
            "n_subjects": own["subject"].nunique(),
            "n_cases": own["case"].nunique(),
            "n_seeds": len(tables),
            **facts_of(own.iloc[0]),
        }
        for metric in ("dice", "nsd"):
            chain = {name: of[metric] for name, of in READINGS.items() if metric in of}
            values = {name: np.mean([of(t) for t in tables]) for name, of in chain.items()}
            spread = _resampled(tables, chain, draws, seed)
            names = list(chain)
            for against, name in zip(names, names[1:], strict=False):
                between = np.quantile(spread[name] - spread[against], (0.025, 0.975))
                if facts["n_subjects"] == len(tables) == 1:
                    between = (np.nan, np.nan)  # there is nothing to resample
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
