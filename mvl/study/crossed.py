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
    curves.csv.gz   one row per cell and epoch: learning rate, training loss, validation Dice
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
from mvl.study.inference import Contrast, contrasts_table, factorial
from mvl.study.reference import REFERENCE, run_row, study_contrasts
from mvl.study.suites import SUITES, is_crossed, suite_configs
from mvl.study.summary import OF_SEEDS, means_table, summary_table

CROSSED = REFERENCE / "crossed"
_TABLES = ("cases.csv.gz", "summary.csv", "contrasts.csv", "use.csv", "runs.csv", "curves.csv.gz")

#: The tasks of the second protocol.
STUDY_TASKS = ("Task04_Hippocampus", "CHAOS_AbdomenMR", "OpenKBP_HeadNeckCT")

#: What is compared. "Pre-training helps" is one claim that needs all of a family
#: (`inference.claim`).
CONTRASTS = (
    *(
        Contrast("llama", "pretrained", against, "pre-training", adjusted=False)
        for against in ("none", "identity", "shuffled", "random")
    ),
    # What the mappers cost, and what any frozen block costs; planned after the first results.
    *(Contrast("llama", arm, "none", "controls") for arm in ("identity", "shuffled", "random")),
    *(
        Contrast("hosts", f"{host}-pretrained", f"{host}-{against}", host, adjusted=False)
        for host in ("vit", "unetr", "dynunet")
        for against in ("none", "identity", "shuffled")
    ),
    *factorial("parts", "parts"),
    Contrast("parts", "111", "000", "all parts together"),
)

#: The suites that are published.
PUBLISHED = tuple(dict.fromkeys(contrast.suite for contrast in CONTRASTS))

#: Task -> the folds whose subjects the protocol's choices were made on (docs/protocol.md).
CHOSEN_ON = {"Task04_Hippocampus": (1, 2)}

CELL = ["suite", "arm", "fold", "repeat", "task"]


def crossed_tables(folder: Path = CROSSED) -> dict[str, pd.DataFrame]:
    """The tables of the module by name, such as "cases"; empty where nothing is published yet.

    Raises:
        MvlError: some are there, but not all, or one is unreadable.
    """
    if not (folder / _TABLES[0]).exists():
        return {}
    return {name.partition(".")[0]: read_table(folder / name) for name in _TABLES}


def update_crossed(
    runs: Path, root=None, suites: Iterable[str] = PUBLISHED, folder: Path = CROSSED
) -> list[str]:
    """Test and publish every whole repeat that is trained; other tasks' rows are kept.

    Args:
        runs: the folder of all runs.
        root: see `open_task`.
        suites: names of crossed suites.

    Returns:
        One line per suite and task: what was published, or what is not trained yet.
    """
    tables = {name: [] for name in ("cases", "use", "runs", "curves")}
    said, published = [], set()
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
    tables["curves"] = read_table(folder / "curves.csv").assign(**about)
    if config.model.language:
        used = use_row(Run.load(folder), data.side("test"), show=False)
        tables["use"] = pd.DataFrame([about | used])
    return tables


def write_crossed(tables: dict[str, pd.DataFrame], folder: Path = CROSSED) -> None:
    """Write the tables of the module from those of cells: cases, runs, use and curves.

    Raises:
        RunError: as `contrasts_table`; then nothing is written.
    """
    cases = tables["cases"]
    order = [*CELL, "subject", "case", "structure"]
    columns = [*order, *(name for name in cases if name not in order)]
    made = {"contrasts.csv": contrasts_table(cases, CONTRASTS), "summary.csv": summary(cases)}
    made["cases.csv.gz"] = cases[columns].sort_values(order)
    made |= {
        f"{name}.csv": tables[name].sort_values(CELL) for name in ("use", "runs") if name in tables
    }
    curves = tables["curves"].sort_values([*CELL, "epoch"])
    made["curves.csv.gz"] = curves[[*CELL, *(name for name in curves if name not in CELL)]]
    for name, table in made.items():
        write_table(folder / name, table)


def without_choices(cases: pd.DataFrame, task: str) -> pd.DataFrame:
    """The contrasts of a task in Dice without the subjects of `CHOSEN_ON`; empty if it has none."""
    if task not in CHOSEN_ON:
        return pd.DataFrame()
    kept = (cases["task"] == task) & ~cases["fold"].isin(CHOSEN_ON[task])
    return contrasts_table(cases[kept], CONTRASTS)


def disagreements(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Which of the module's tables do not follow from its cases, by task: "" where all do."""
    cases, found = tables["cases"], {}
    made = {"contrasts": contrasts_table(cases, CONTRASTS), "summary": summary(cases)}
    means = cases[cases["structure"] == "foreground"].groupby([*CELL, "subject"])["dice"].mean()
    made["use"] = means.groupby(CELL).mean().rename("as trained").reset_index()
    made["use"] = tables["use"][CELL].merge(made["use"], how="left")
    frames = [tables[name]["task"] for name in made] + [table["task"] for table in made.values()]
    for task in pd.concat(frames).unique():  # `POOLED` is one, too
        names = []
        for name, again in made.items():
            known = tables[name][again.columns]
            known, again = (
                t[t["task"] == task].reset_index(drop=True).convert_dtypes() for t in (known, again)
            )
            # Use is measured by another prediction than cases, perhaps on another machine.
            limits = {"rtol": 1e-6, "atol": 5e-4 if name == "use" else 1e-8}
            try:
                pd.testing.assert_frame_equal(known, again, check_dtype=False, **limits)
            except AssertionError:
                names.append(f"{name}.csv")
        found[task] = ", ".join(names)
    return found


def tables_of(cases: pd.DataFrame, suite: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(summary, contrasts) of a suite's cases, as `run.collect` gives them, by how it is tested.

    Both have a column `n_seeds`: the trainings of an arm.
    """
    if suite not in SUITES or not is_crossed(suite):
        return summary_table(cases), study_contrasts(cases, suite)
    cases = cases.assign(fold=cases["seed"] % FOLDS, repeat=cases["seed"] // FOLDS)
    contrasts = contrasts_table(cases, [row for row in CONTRASTS if row.suite == suite])
    return summary(cases).rename(columns=OF_SEEDS), contrasts.rename(columns=OF_SEEDS)


def summary(cases: pd.DataFrame) -> pd.DataFrame:
    """`means_table` over all subjects: each fold has its own training and its own subjects."""
    return means_table(cases, tuple(METRICS), ["fold", "repeat"])
