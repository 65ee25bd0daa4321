"""The test case that figures show of a task, and what the profile's models predict of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from nibabel.orientations import io_orientation

from mvl.config import DataConfig
from mvl.data.task_data import open_task
from mvl.experiment.identity import read_identity, require_same
from mvl.experiment.run import Run, load_predictor, read_cases
from mvl.show.figures import View, best_median_worst, case_gallery, save
from mvl.show.notebook import view_of, view_of_case
from mvl.study import volumes
from mvl.study.reference import BEST, REFERENCE, read_table
from mvl.study.runs import Source


@dataclass
class Examples:
    """Cases by the models of a profile: its sources, its parameters, the folder of its runs.

    Models are named by {arm: suite}; the run of an arm is that of its first seed.
    """

    sources: list[Source]
    parameters: dict
    runs: Path

    def tasks(self, arms: dict[str, str]) -> list[str]:
        """The tasks that some of the arms were run on, and the profile's own."""
        tasks = {row.task for source in self.sources for row in _runs_of(source, arms)}
        return sorted({self.parameters["task"], *tasks})

    def case(self, task: str, arms: dict[str, str]) -> tuple:
        """(data, {name: model}, case): the median test case of the last arm that was run.

        `best` is among the models where the task is its own. Without a run it is the first case.

        Raises:
            DataError: the task cannot be used.
            RunError: it is not what the models were trained on.
        """
        runs, median = {}, None
        for source in self.sources:
            for row in _runs_of(source, arms):
                if row.task == task:
                    runs.setdefault(row.arm, (row, source.cases))
        if runs:
            row, cases = list(runs.values())[-1]
            keys = ["suite", "arm", "seed", "task", "structure"]
            wanted = [*(getattr(row, key) for key in keys[:-1]), "foreground"]
            cases = cases[(cases[keys] == wanted).all(axis=1)]
            median = best_median_worst(cases)["median"]["case"]
        folders = {arm: self.runs / row.fingerprint for arm, (row, _) in runs.items()}
        return volumes.shown_case(task, folders, self.parameters, median)

    def column(self, task: str, arms: dict[str, str]) -> tuple:
        """A column of `figures.task_grid`: (`Task`, {row: `View`, or None without a model})."""
        data, models, case = self.case(task, arms)
        bare = _slice(view_of_case(case))
        views = {"image": replace(bare, truth=None, title="image")}
        views["truth"] = replace(bare, title="truth")
        for name in (*arms, "best"):
            views[name] = None
            if name in models:
                view = view_of(models[name], case, "")
                views[name] = replace(_slice(view), title=name, caption=_dice(view))
        return data.task, views


def draw_segmentations(folder: Path = REFERENCE) -> None:
    """Draw the best, median and worst test case of the committed model, where its task is here.

    Raises:
        DataError: the task cannot be used.
    """
    cases = read_table(folder / "cases.csv.gz").query(
        "suite == 'presets' and arm == 'best' and seed == 0 and structure == 'foreground'"
    )
    model = load_predictor(BEST)
    data = open_task(DataConfig(model.task.name), 0, progress=False)
    figure = _gallery(model, data, best_median_worst(cases))
    save(figure, folder / "figures" / "segmentations")


def run_segmentations(folder: Path) -> Figure:
    """The best, median and worst test case of a tested run, by its own model.

    Raises:
        MvlError: the model, the volumes or the scores cannot be read, or the task has changed.
    """
    model = Run.load(folder)
    root, config = Path(read_identity(folder)["folder"]).parent, model.config
    data = open_task(config.data, config.seed, root, "skip", progress=False)
    require_same(folder, data)
    cases = read_cases(folder)
    cases = cases[cases["structure"] == "foreground"]  # which is drawn
    return _gallery(model, data, best_median_worst(cases))


def _gallery(model, data, rows):
    views = [
        view_of(model, data.cases[row["case"]], f"Dice {row['dice']:.2f}", name)
        for name, row in rows.items()
    ]
    return case_gallery(views, data.task)


def _runs_of(source, arms):
    """Rows of `Source.runs` that are some arms, arm by arm, by seed."""
    runs = source.runs.sort_values("seed")
    rows = [runs[(runs["arm"] == arm) & (runs["suite"] == suite)] for arm, suite in arms.items()]
    return pd.concat(rows).itertuples()


def _dice(view):
    total = view.prediction.sum() + view.truth.sum()
    return f"{2 * (view.prediction & view.truth).sum() / total:.2f}" if total else "1.00"


def _slice(view: View) -> View:
    """The axial slice with most of the truth: ten whole CTs would fill the memory."""
    axis = int(np.flatnonzero(io_orientation(view.affine)[:, 0] == 2)[0])
    index = [int(view.truth.sum(axis=tuple({0, 1, 2} - {axis})).argmax())]
    arrays = {name: getattr(view, name) for name in ("image", "truth", "prediction")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    return replace(view, **{name: np.take(a, index, axis) for name, a in arrays.items()})
