"""The tables of the second protocol, from runs that were tested crosswise (docs/protocol.md).

A cell is an arm, a fold and a repeat; seed s is fold s mod 5 of repeat s // 5. A repeat's test
sides are opened once all cells of the suite and the task are trained. It is published whole or not
at all. Tables in results/reference/crossed:

    cases.csv.gz    one row per suite, arm, fold, repeat, task, subject, case and structure
    summary.csv     one row per suite, arm, task, structure and metric
    contrasts.csv   see `mvl.study.inference`
    use.csv         one row per cell with a language block: test Dice as trained, and with the
                    block's term deleted, averaged and permuted (`experiment.block_use`)
    runs.csv        one row per cell: its fingerprint, best epoch, weights, seconds and machine
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mvl.config import ExperimentConfig, task_data
from mvl.data.splits import FOLDS
from mvl.data.task_data import TaskData, open_task
from mvl.errors import DataError
from mvl.experiment.block_use import use_row
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import TRAINED, Run, collect, run_folder, test
from mvl.files import read_table, write_table
from mvl.study.inference import Contrast, contrasts_table
from mvl.study.reference import REFERENCE, run_row
from mvl.study.suites import suite_configs

CROSSED = REFERENCE / "crossed"
_TABLES = ("cases.csv.gz", "summary.csv", "contrasts.csv", "use.csv", "runs.csv")

#: The tasks of the second protocol.
STUDY_TASKS = ("Task04_Hippocampus", "CHAOS_AbdomenMR", "OpenKBP_HeadNeckCT")

#: What is compared. "Pre-training helps" is one claim that needs all four (`inference.claim`).
CONTRASTS = tuple(
    Contrast("llama", "pretrained", against, "pre-training", adjusted=False)
    for against in ("none", "identity", "shuffled", "random")
)

CELL = ["suite", "arm", "fold", "repeat", "task"]
_ABOUT = ["suite", "arm", "task", "structure", "block", "host", "fraction", "epochs"]
_ABOUT += ["protocol_version", "synthetic"]


def crossed_tables(folder: Path = CROSSED) -> dict[str, pd.DataFrame]:
    """The tables of the module by name, such as "cases"; empty where nothing is published yet.

    Raises:
        MvlError: some are there, but not all, or one is unreadable.
    """
    if not (folder / _TABLES[0]).exists():
        return {}
    return {name.partition(".")[0]: read_table(folder / name) for name in _TABLES}


def update_crossed(
    runs: Path, root=None, suites: Iterable[str] = ("llama",), folder: Path = CROSSED
) -> list[str]:
    """Test and publish every whole repeat that is trained; other tasks' rows are kept.

    Args:
        runs: the folder of all runs.
        root: see `open_task`.
        suites: names of crossed suites.

    Returns:
        One line per suite and task: what was published, or what is not trained yet.
    """
    tables, said, published = {"cases": [], "use": [], "runs": []}, [], set()
    for suite in suites:
        for task in STUDY_TASKS:
            try:
                cells = _cells(suite, task, runs, root)
            except DataError as error:  # a machine may have some of the tasks
                said.append(f"{suite}, {task}: {error}")
                continue
            missing = [
                cell for cell, (path, _, _) in cells.items() if not (path / TRAINED).exists()
            ]
            if missing:
                arm, seed = missing[0]
                said.append(
                    f"{suite}, {task}: {len(missing)} of {len(cells)} cells are not trained, such "
                    f"as {arm}, seed {seed}"
                )
                continue
            for (arm, seed), cell in cells.items():
                about = {"suite": suite, "arm": arm, "task": task}
                about |= {"fold": seed % FOLDS, "repeat": seed // FOLDS}
                for name, table in _published(about, *cell).items():
                    tables[name].append(table)
            published.add((suite, task))
            said.append(f"{suite}, {task}: {len(cells)} cells published")
    if tables["cases"]:
        for name, table in crossed_tables(folder).items():
            if name in tables:  # what was published elsewhere stays
                pairs = zip(table["suite"], table["task"], strict=True)
                tables[name].append(table[[pair not in published for pair in pairs]])
        write_crossed({name: pd.concat(parts) for name, parts in tables.items() if parts}, folder)
    return said


def _cells(suite, task, runs, root):
    """{(arm, seed): (run folder, data, configuration)} of the first repeat."""
    cells = {}
    for cell, config in suite_configs(suite, task_data(task), range(FOLDS), root=root).items():
        data = open_task(config.data, config.seed, root, progress=False)
        cells[cell] = run_folder(config, data, runs), data, config
    return cells


def _published(about: dict, folder: Path, data: TaskData, config: ExperimentConfig) -> dict:
    """The rows of one trained cell, which is tested if it was not."""
    test(folder, data)
    cases = collect(folder, about["suite"], about["arm"]).drop(columns="seed")
    tables = {"cases": cases.assign(**about), "runs": pd.DataFrame([about | run_row(folder)])}
    if config.model.language:
        used = use_row(Run.load(folder), data.side("test"), show=False)
        tables["use"] = pd.DataFrame([about | used])
    return tables


def write_crossed(tables: dict[str, pd.DataFrame], folder: Path = CROSSED) -> None:
    """Write the tables of the module from those of cells: cases, runs and use."""
    cases = tables["cases"]
    order = [*CELL, "subject", "case", "structure"]
    columns = [*order, *(name for name in cases if name not in order)]
    write_table(folder / "cases.csv.gz", cases[columns].sort_values(order))
    write_table(folder / "summary.csv", summary(cases))
    write_table(folder / "contrasts.csv", contrasts_table(cases, CONTRASTS))
    for name in ("use", "runs"):
        if name in tables:
            write_table(folder / f"{name}.csv", tables[name].sort_values(CELL))


def summary(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, task, structure and metric, over all subjects.

    The cases of a subject are averaged first, then the repeats. `sd_trainings` is the standard
    deviation of the folds' means: each fold has its own training and its own subjects.
    """
    rows = []
    for values, group in cases.groupby(_ABOUT, dropna=False):
        by_subject = group.groupby(["fold", "subject"])[list(METRICS)].mean()
        by_fold = by_subject.groupby("fold").mean()
        for metric in METRICS:
            rows.append(
                dict(zip(_ABOUT, values, strict=True))
                | {
                    "metric": metric,
                    "n_subjects": len(by_subject),
                    "n_cases": group["case"].nunique(),
                    "n_trainings": len(group[["fold", "repeat"]].drop_duplicates()),
                    "mean": by_subject[metric].mean(),
                    "sd_subjects": by_subject[metric].std(),
                    "sd_trainings": by_fold[metric].std(),
                }
            )
    return pd.DataFrame(rows)
