"""What a notebook trains of a suite, by its profile's parameters, and measures of the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mvl.config import ExperimentConfig
from mvl.data.task_data import open_task
from mvl.experiment.run import Run, results_folder, run_folder
from mvl.study.cells import run_suite
from mvl.study.mechanism import beside_metrics
from mvl.study.runs import data_of
from mvl.study.suites import suite_configs


def train_arms(
    suite: str, parameters: dict, root: Path, arms: list[str] | None = None
) -> tuple[dict[tuple[str, int], ExperimentConfig], pd.DataFrame]:
    """Train and test the arms of a suite that a profile names; finished runs are not repeated.

    Args:
        parameters: the profile's, or a notebook's `globals()`.
        root: the folder that holds the task's folder.
        arms: names; if None, those of a parameter such as `language_arms`, or all without one.

    Returns:
        The cells, and the table of their test cases, which is empty if no arm is chosen.

    Raises:
        MvlError: as `run_suite`.
    """
    arms = parameters.get(f"{suite}_arms") if arms is None else arms
    configs = {}
    if arms is None or arms:
        data = data_of(parameters["task"], parameters)
        given = (parameters["seeds"], parameters["block"], parameters["epochs"], arms)
        configs = suite_configs(suite, data, *given, root=root)
    runs = results_folder(parameters["profile"]) / "runs"
    return configs, run_suite(suite, configs, runs, root)[0]


def measure_tokens(
    measure: Callable, configs: dict, cases: pd.DataFrame, parameters: dict, root: Path
) -> pd.DataFrame:
    """What `mechanism.patch_auroc` or `stage_auroc` finds in trained cells, beside their metrics.

    Args:
        measure: one of the two; `patch_auroc` needs arms with a language part.
        configs, cases: from `train_arms`.
        parameters, root: as there.
    """
    runs, tables = results_folder(parameters["profile"]) / "runs", []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, progress=False)
        run = Run.load(run_folder(config, data, runs))
        rows = cases[(cases["arm"] == arm) & (cases["seed"] == seed)]
        measured = measure(run.model, data.side("test"), run.preparation)
        tables.append(beside_metrics(measured, rows))
    return pd.concat(tables) if tables else pd.DataFrame()
