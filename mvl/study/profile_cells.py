"""What a notebook trains of a suite, by its profile's parameters, and measures of the models."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mvl.config import ExperimentConfig
from mvl.experiment.block_use import use_row
from mvl.experiment.run import Run, results_folder
from mvl.progress import say_incomplete
from mvl.study.cells import run_suite, trained_cells
from mvl.study.runs import data_of
from mvl.study.stages import SHOWN_STAGES, stage_auroc
from mvl.study.suites import STUDY, suite_configs


def train_arms(
    suite: str, parameters: dict, root: Path, arms: list[str] | None = None
) -> tuple[dict[tuple[str, int], ExperimentConfig], pd.DataFrame]:
    """Train and test the arms of a suite that a profile names; finished runs are not repeated.

    Args:
        parameters: the profile's, or a notebook's `globals()`.
        arms: names; if None, those of a parameter such as `language_arms`, or all without one.

    An arm that fails is told, and the others go on.

    Returns:
        The cells, and the table of their test cases, which is empty if no arm is chosen.
    """
    arms = parameters.get(f"{suite}_arms") if arms is None else arms
    configs = {}
    if arms is None or arms:
        data = data_of(parameters["task"], parameters)
        # A user's arms name their own blocks.
        block = parameters["block"] if suite in STUDY else None
        given = (parameters["seeds"], block, parameters["epochs"], arms)
        configs = suite_configs(suite, data, *given, root=root)
    runs = results_folder(parameters["profile"]) / "runs"
    cases, failures = run_suite(suite, configs, runs, root)
    say_incomplete([f"{arm}, seed {seed}: {why}" for (arm, seed), why in failures.items()])
    return configs, cases


def _runs(configs, parameters, root):
    """(arm, seed, trained run, its test cases) of cells from `train_arms`."""
    runs = results_folder(parameters["profile"]) / "runs"
    for arm, seed, data, folder in trained_cells(configs, runs, root):
        tested = [case for case in data.side("test") if case.name not in data.task.healthy]
        yield arm, seed, Run.load(folder), tested


def measure_stages(
    configs: dict, cases: pd.DataFrame, parameters: dict, root: Path
) -> pd.DataFrame:
    """`stages.stage_auroc` of trained cells, with their metrics; arguments as of `train_arms`.

    Rows are in the order of the stages; a case whose patches are all of one kind has none.
    """
    tables = []
    for arm, seed, run, tested in _runs(configs, parameters, root):
        rows = cases[(cases["arm"] == arm) & (cases["seed"] == seed)]
        measured = stage_auroc(run.model, tested, run.preparation)
        tables.append(
            rows.merge(measured, on=["subject", "case", "structure"], validate="one_to_many")
        )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).dropna(subset="auroc_stream")
    order = list(SHOWN_STAGES.values())
    return table.sort_values("stage", key=lambda names: names.map(order.index), kind="stable")


def measure_use(configs: dict, parameters: dict, root: Path) -> pd.DataFrame:
    """`block_use.use_row` of the cells with a language part: one row per task, arm and seed."""
    configs = {cell: config for cell, config in configs.items() if config.model.language}
    return pd.DataFrame(
        {"task": run.task.name, "arm": arm, "seed": seed} | use_row(run, tested)
        for arm, seed, run, tested in _runs(configs, parameters, root)
    )
