"""Predictions back in native space, and one row of metrics per case and structure."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from mvl.data.nifti import read_label
from mvl.data.task_folder import Case
from mvl.experiment.inference import Predictor, segment
from mvl.experiment.metrics import segmentation_metrics
from mvl.progress import track


def evaluate(predictor: Predictor, cases: list[Case], show: bool = True) -> pd.DataFrame:
    """Metrics of every case and structure, in native space and in millimetres.

    The truth is read from the case's file, never from the model's grid. A model of the labels is
    also measured on their union, the foreground, and on the task's regions. Cases are loaded one
    at a time.

    Returns a table with the columns subject, case, structure and `metrics.METRICS`.
    """
    task, rows = predictor.task, []
    for case in track(cases, "evaluating", show=show):
        truth, header = read_label(case.label)
        ignored = None if task.ignore is None else truth == task.ignore
        measured = {}
        for structure, region, mask in _masks(predictor, case):
            if region not in measured:  # the whole tumour is the foreground by another name
                inside = np.isin(truth, list(region))
                measured[region] = segmentation_metrics(
                    mask, inside, header.spacing, task.tolerance_mm, ignored
                )
            row = {"subject": case.subject, "case": case.name, "structure": structure}
            rows.append(row | measured[region])
    return pd.DataFrame(rows)


def false_positives(predictor: Predictor, cases: list[Case], show: bool = True) -> pd.DataFrame:
    """What is found in cases that have no structure (`Task.healthy`): all of it is wrong.

    Returns a table with the columns subject, case, structure and false_positive_ml.
    """
    task, rows = predictor.task, []
    for case in track(cases, "evaluating healthy cases", show=show):
        truth, header = read_label(case.label)
        voxel_ml = math.prod(header.spacing) / 1000
        counts = np.ones(truth.shape, bool) if task.ignore is None else truth != task.ignore
        for structure, _, mask in _masks(predictor, case):
            row = {"subject": case.subject, "case": case.name, "structure": structure}
            rows.append(row | {"false_positive_ml": float((mask & counts).sum() * voxel_ml)})
    return pd.DataFrame(rows)


def _masks(predictor, case):
    """Yield (name, label values, predicted mask) of all that is measured of a case."""
    preparation, task = predictor.preparation, predictor.task
    predicted = measured = predictor.structures
    if preparation.config.target == "labels":
        measured = predicted | {"foreground": list(task.labels)} | task.regions
    (volume,) = preparation.load([replace(case, label=None)], False)
    masks = segment(predictor.model, volume, preparation).numpy()
    for structure, values in measured.items():
        region = frozenset(values)
        pairs = zip(masks, predicted.values(), strict=True)
        parts = [part for part, part_values in pairs if region.issuperset(part_values)]
        yield structure, region, np.logical_or.reduce(parts)
