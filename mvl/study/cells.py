"""A suite's cells, each an arm with a seed: train them, test them, say how far they are.

What is trained is not trained again. A cell that fails is reported and the others go on. No test
case is opened before training is over for every cell that was asked for. With crossed testing each
of them has to be trained, since one cell's test subjects train the others.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mvl.config import ExperimentConfig
from mvl.data.task_data import TaskData, open_task
from mvl.errors import ConfigError, MvlError, in_words
from mvl.experiment.files import CURVES, DONE, FAILED, TRAINED
from mvl.experiment.run import collect, fit, run_folder, runs_of_other_data, test
from mvl.files import read_json, read_table
from mvl.locks import is_locked
from mvl.study.suites import steps_per_epoch

#: The cells of a suite, from `suites.suite_configs`.
Cells = dict[tuple[str, int], ExperimentConfig]
#: What went wrong with some of them.
Failures = dict[tuple[str, int], str]

#: Said where a crossed suite has a cell that is not trained.
CLOSED = "no test case is opened before every cell is trained"


def run_suite(
    suite: str,
    configs: Cells,
    runs: Path,
    root=None,
    show: bool = True,
    on_bad_case: str = "fail",
    track: bool = False,
) -> tuple[pd.DataFrame, Failures]:
    """Run every cell of a suite that is not done yet, and collect those that are.

    `runs` is the folder of all runs; for root and on_bad_case see `open_task`, for track
    `training.train`.

    Returns:
        One row per arm, seed, case and structure, with every metric; and the failures.

    Raises:
        MvlError: every cell failed; the message is the first cell's.
    """
    trained, failures = fit_suite(suite, configs, runs, root, show, on_bad_case, track)
    if failures and are_crossed(configs):
        print(f"{suite}: {CLOSED}")
        return pd.DataFrame(), failures
    tables = []
    for (arm, seed), (folder, data) in trained.items():
        try:
            test(folder, data, show, type(configs[arm, seed]))
        except Exception as error:
            failures[arm, seed] = _report(suite, arm, seed, error)
            continue
        tables.append(collect(folder, suite, arm))
    if failures and not tables:
        raise MvlError(next(iter(failures.values())))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), failures


def are_crossed(configs: Cells) -> bool:
    """Whether cells are tested crosswise (`DataConfig.testing`)."""
    return any(config.data.testing == "crossed" for config in configs.values())


def require_one_process() -> None:
    """Refuse torchrun: a cell that fails in one process would leave the others in another cell."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "torchrun trains one experiment, by 'mvl train'; a suite has --shard and --on"
        )


def fit_suite(
    suite: str,
    configs: Cells,
    runs: Path,
    root=None,
    show: bool = True,
    on_bad_case: str = "fail",
    track: bool = False,
) -> tuple[dict, Failures]:
    """Train every cell of a suite that is not trained yet; the test set stays closed.

    Returns:
        {(arm, seed): (run folder, its TaskData)} of the trained cells; and the failures, of which
        a cell that another process is training is one.

    Raises:
        ConfigError: torchrun started several processes.
    """
    require_one_process()
    trained, failures = {}, {}
    for (arm, seed), config in configs.items():
        if show:
            print(f"{suite}: arm {arm}, seed {seed}", flush=True)
        try:
            data = open_task(config.data, seed, root, on_bad_case, show)
            trained[arm, seed] = (fit(config, data, runs, show, track=track), data)
        except Exception as error:
            failures[arm, seed] = _report(suite, arm, seed, error)
    return trained, failures


def _report(suite, arm, seed, error):
    """Print that a cell failed, a defect of the code with its traceback; return it in words.

    No failure of one cell, of whatever kind, is a reason to lose the others of a night.
    """
    if not isinstance(error, MvlError):
        traceback.print_exception(error)
    print(f"{suite}: arm {arm}, seed {seed} failed: {in_words(error)}", flush=True)
    return in_words(error)


def shard(configs: Cells, part: str) -> Cells:
    """The cells of one job of several: "2/4" is every fourth cell, from the second on.

    Raises:
        ConfigError: `part` is not I/N, or I is not from 1 to N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise ConfigError(f"--shard {part}: expected I/N with I from 1 to N, such as 1/4")
    return dict(list(configs.items())[index - 1 :: count])


def status(configs: Cells, runs: Path, root=None, on_bad_case: str = "fail") -> pd.DataFrame:
    """How far a suite is.

    Returns:
        One row per cell: arm, seed, fold, state (done, trained, running, failed, stopped or open),
        epoch and epochs, seconds spent, seconds_left (by the time per step of the arm's trained
        seeds, otherwise of all arms'; NaN where nothing is trained), reason of a failure, or which
        run of another task is not used, and the run folder's name.
    """
    rows, steps = [], []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, on_bad_case, progress=False)
        folder = run_folder(config, data, runs)
        curves, spent, reason = folder / CURVES, 0.0, ""
        epoch = len(read_table(curves)) if curves.exists() else 0
        if (folder / TRAINED).exists():
            state = "done" if (folder / DONE).exists() else "trained"
            spent = read_json(folder / TRAINED, "seconds")["seconds"]
        elif is_locked(folder):
            state = "running"
        elif (folder / FAILED).exists():
            state, reason = "failed", read_json(folder / FAILED, "reason")["reason"]
        else:
            state = "stopped" if epoch else "open"
            stale = runs_of_other_data(config, data, runs)
            reason = "; ".join(f"{other.name} is not used: {why}" for other, why in stale)
        steps.append(steps_per_epoch(config, data))
        row = {"arm": arm, "seed": seed, "fold": config.data.fold_of(seed), "state": state}
        row |= {"epoch": epoch, "epochs": config.training.epochs, "seconds": spent}
        rows.append(row | {"reason": reason, "folder": folder.name})
    table = pd.DataFrame(rows)
    finished = table["state"].isin(["done", "trained"])
    known = table.assign(steps=table["epoch"] * steps)[finished]
    of_arm, of_all = known.groupby("arm")[["seconds", "steps"]].sum(), known["steps"].sum()
    pace = table["arm"].map(of_arm["seconds"] / of_arm["steps"])
    pace = pace.fillna(known["seconds"].sum() / of_all if of_all else float("nan"))
    left = (table["epochs"] - table["epoch"]) * steps * pace
    table.insert(7, "seconds_left", left.where(~finished, 0))
    return table


def trained_cells(
    configs: Cells, runs: Path, root=None, on_bad_case: str = "fail"
) -> Iterator[tuple[str, int, TaskData, Path]]:
    """(arm, seed, data, run folder) of the cells that are trained."""
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, root, on_bad_case, progress=False)
        folder = run_folder(config, data, runs)
        if (folder / TRAINED).exists():
            yield arm, seed, data, folder


#: The first six name a training.
TUNING_COLUMNS = (
    *("suite", "arm", "seed", "grid", "learning_rate", "mapper_rate"),
    *("validation_dice", "best_epoch", "epochs", "fingerprint"),
)


def tuning_table(
    suite: str, configs: Cells, runs: Path, root=None, on_bad_case: str = "fail"
) -> pd.DataFrame:
    """What every learning rate gave on validation: one row per trained run.

    The cells are of `suite_configs` with `rates`; the test set plays no part.
    """
    rows = []
    for arm, seed, _, folder in trained_cells(configs, runs, root, on_bad_case):
        config, plan = configs[arm, seed], configs[arm, seed].training
        trained = read_json(folder / TRAINED, "validation_dice", "best_epoch")
        row = (suite, arm.partition("@")[0], seed, "x".join(map(str, config.data.grid)))
        row += (plan.learning_rate, plan.mapper_rate, trained["validation_dice"])
        rows.append((*row, trained["best_epoch"], plan.epochs, folder.name))
    return pd.DataFrame(rows, columns=TUNING_COLUMNS)
