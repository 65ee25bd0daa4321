"""The committed reference: tables of a finished study.

`results/reference/` holds

    cases.csv.gz      one row per suite, arm, seed, task, subject, case and structure
    summary.csv       one row per suite, arm, task, structure and metric
    contrasts.csv     one row per compared pair
    validation.csv    one row per suite, arm and seed: its run, and what choices were made by
    curves.csv.gz     one row per run and epoch: its training loss and validation Dice
    tuning.csv        one row per suite, arm and learning rate: from what the rate was chosen
    provenance.json   commits, versions, machine, times
    best/             the preset best, trained with seed 0, as `save_model` writes it

and what `mvl.show.results` makes of them: README.md, with every suite's results, and figures/.

The reference grows by the runs that are finished, and keeps the rows of the others as long as the
suite would still train them so (same fingerprint).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path

import pandas as pd

from mvl import files
from mvl.config import LEARNING_RATES, PROTOCOL_VERSION, DataConfig
from mvl.data.task_data import open_task
from mvl.errors import RunError
from mvl.experiment.files import CURVES
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import TRAINED, Run, collect, run_folder, test
from mvl.files import REPOSITORY, read_json, write_json, write_table
from mvl.models.folder import save_model
from mvl.study.cells import TUNING_COLUMNS, tuning_table
from mvl.study.statistics import CONTRAST_COLUMNS, PRIMARY, contrasts_table
from mvl.study.suites import (
    STUDY,
    SUITES,
    USER_CONTRASTS,
    is_crossed,
    name_of,
    suite_configs,
)
from mvl.study.summary import SUMMARY_COLUMNS, summary_table

REFERENCE = REPOSITORY / "results" / "reference"
#: The one trained model that is committed: the preset `best`, seed 0.
BEST = REFERENCE / "best"

#: The contrasts that the study reports: (suite, arm, against). The first is the primary one, named
#: before anything was run; the others, Holm's family, were completed while the study grew.
PLANNED = (
    (PRIMARY["suite"], PRIMARY["arm_a"], PRIMARY["arm_b"]),
    ("language", "pretrained", "none"),
    ("language", "pretrained", "shuffled"),
    ("language", "pretrained", "identity"),
    ("language", "pretrained", "vit-mlp"),
    ("language", "identity", "none"),
    ("language", "vit-mlp", "none"),
    ("language", "trainable", "none"),
    ("fusion", "010", "000"),
    ("fusion", "001", "000"),
    ("fusion", "111", "000"),
    ("fusion", "111", "011"),
    ("head", "conv-111", "conv-000"),
    ("head", "conv-111", "conv-011"),
    *(("adaptation", arm, "lora-0") for arm in SUITES["adaptation"] if arm != "lora-0"),
    *(("data", f"v1-{percent}", f"vit-{percent}") for percent in (10, 30, 100)),
    *(("data", f"v1-{percent}", f"011-{percent}") for percent in (10, 30, 100)),
    *(("peers", arm, "vit") for arm in SUITES["peers"] if arm != "vit"),
    *(("size", arm, "vit") for arm in SUITES["size"] if arm != "vit"),
    *(("presets", arm, "vit") for arm in SUITES["presets"] if arm != "vit"),
    ("budget", "vit-2x", "vit"),
)
#: These, and those of the users' suites.
CONTRASTS = (*PLANNED, *USER_CONTRASTS)

#: The metrics that they are reported in.
_COMPARED = ("dice", "nsd")

#: The size of Holm's family: a comparison with names in several suites counts once, the primary
#: one is in no family.
FAMILY = len(_COMPARED) * len({(name_of(s, a), name_of(s, b)) for s, a, b in PLANNED}) - 1

#: The seeds, and with them the validation folds, of the study.
SEEDS = (0, 1, 2, 3, 4)

#: What a result's last digits depend on besides its configuration.
MACHINE = ("system", "cpu", "capability", "device", "dtype", "threads", "torch")

#: What names a trained experiment of the study.
CELL = ["suite", "arm", "seed"]
_CURVES = ["fingerprint", "epoch", "train_loss", "validation_dice"]
_RUN = (
    *("grid", "learning_rate", "epochs", "best_epoch", "validation_dice", "trained_parameters"),
    *("parameters", "seconds", "fingerprint", "commit", *MACHINE),
)

#: Table -> (columns, columns of numbers) that whoever reads it relies on.
_NEEDED = {
    "cases.csv.gz": ((*CELL, "task", "subject", "case", "structure"), ("seed", *METRICS)),
    "summary.csv": (SUMMARY_COLUMNS, ("mean", "sd_subjects", "sd_seeds")),
    "contrasts.csv": (CONTRAST_COLUMNS, ()),  # may be without a row, and then without numbers
    "validation.csv": ((*CELL, *_RUN), ("seed", "validation_dice", "seconds")),
    "curves.csv.gz": (("fingerprint",), _CURVES[1:]),
    "tuning.csv": (TUNING_COLUMNS, ()),
}


def study_contrasts(cases: pd.DataFrame, suite: str | None = None) -> pd.DataFrame:
    """The study's contrasts in Dice and NSD as a `contrasts_table`, of one suite if it is named.

    Each p is adjusted for all that the study has planned; that of a user's suite for the suite.
    """
    if suite is None:
        tables = [contrasts_table(cases, PLANNED, _COMPARED, family=FAMILY)]
        users = dict.fromkeys(name for name, *_ in USER_CONTRASTS)
        tables += [study_contrasts(cases, name) for name in users]
        return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    pairs = [pair for pair in CONTRASTS if suite == pair[0]]
    family = FAMILY if suite in STUDY else len(_COMPARED) * len(pairs)
    return contrasts_table(cases, pairs, _COMPARED, family=family)


def read_table(path: Path) -> pd.DataFrame:
    """A table of the reference; an `MvlError` where it lacks a column that its readers need."""
    return files.read_table(path, *_NEEDED.get(Path(path).name, ()))


def _before(path: Path) -> list[pd.DataFrame]:
    """The table that a reference has so far, if it has one."""
    return [read_table(path)] if path.is_file() else []


def machine_of(environment: dict) -> dict:
    """The entries of a run's environment.json that decide whether its last digits must agree."""
    known = environment | {"torch": environment["versions"]["torch"]}
    return {key: known.get(key, "unknown") for key in MACHINE}


def held(reference: Path = REFERENCE) -> dict[str, str]:
    """Fingerprint -> the device that the reference's run was trained on."""
    names = ("validation.csv", "crossed/runs.csv")
    tables = [table for name in names for table in _before(reference / name)]
    return {run.fingerprint: run.device for table in tables for run in table.itertuples()}


def curves_table(reference: Path = REFERENCE) -> pd.DataFrame:
    """The reference's training curves: suite, arm, seed, fraction (of the training subjects),
    epoch, train_loss, validation_dice; of those runs whose curves are kept."""
    path = reference / "curves.csv.gz"
    curves = read_table(path) if path.is_file() else pd.DataFrame(columns=_CURVES)
    runs = read_table(reference / "validation.csv")
    cells = zip(runs["suite"], runs["arm"], strict=True)
    runs = runs.assign(fraction=[SUITES[suite][arm].fraction for suite, arm in cells])
    runs = runs[[*CELL, "fraction", "fingerprint"]]
    return runs.merge(curves, on="fingerprint").drop(columns="fingerprint")


def update_reference(data: DataConfig, runs: Path, root=None, suites: Iterable[str] = ()) -> int:
    """Test what is trained of the study, and add it to the reference.

    Args:
        data: the study's; its task is the one of all tables.
        runs: the folder of all runs.
        root: see `open_task`.
        suites: names; all if empty.

    Returns:
        How many runs were added.

    Raises:
        RunError: as `write_reference`.
    """
    trained, expected, tuned = {}, {}, []
    for suite in (name for name in SUITES if not is_crossed(name)):
        for (arm, seed), config in suite_configs(suite, data, SEEDS, root=root).items():
            task = open_task(config.data, seed, root, progress=False)
            folder = run_folder(config, task, runs)
            expected[suite, arm, seed] = folder.name
            if (not suites or suite in suites) and (folder / TRAINED).exists():
                test(folder, task)
                trained[suite, arm, seed] = folder
        rates = suite_configs(suite, data, [0], rates=LEARNING_RATES, root=root)
        tuned.append(tuning_table(suite, rates, runs, root))
    write_reference(trained, expected, pd.concat(tuned), REFERENCE)
    return len(set(trained.values()))


def write_reference(
    trained: dict[tuple[str, str, int], Path],
    expected: dict[tuple[str, str, int], str],
    tuned: pd.DataFrame,
    reference: Path = REFERENCE,
) -> None:
    """Add finished runs to the tables of a reference.

    Args:
        trained: {(suite, arm, seed): run folder}, trained and tested.
        expected: {(suite, arm, seed): fingerprint} of every cell that the suites have now; an
            older row with another fingerprint is dropped.
        tuned: table of `cells.tuning_table`, of any suites.

    Raises:
        RunError: no row is left; or the runs differ in protocol version, device or number format.
    """
    cases, runs = _grown(trained, expected, reference)
    write_table(reference / "summary.csv", summary_table(cases))
    write_table(reference / "cases.csv.gz", cases)
    write_table(reference / "contrasts.csv", study_contrasts(cases))
    write_table(reference / "validation.csv", runs)
    write_table(reference / "curves.csv.gz", _grown_curves(trained, runs, reference))
    write_table(reference / "tuning.csv", _grown_tuning(tuned, runs, reference))
    if best := trained.get(("presets", "best", 0)):
        _publish(best, cases, reference / BEST.name)
    single = runs.drop_duplicates("fingerprint")
    write_json(
        reference / "provenance.json",
        {
            "written": date.today().isoformat(),
            "protocol_version": PROTOCOL_VERSION,
            "commits": sorted(set(single["commit"])),
            "machine": {key: sorted(set(single[key].astype(str))) for key in MACHINE},
            "runs": len(single),
            "training_hours": round(single["seconds"].sum() / 3600, 2),
        },
    )


def _grown(trained, expected, reference):
    """(cases, runs): every expected cell that was run, now or for the reference as it is.

    Cells of several suites share a run where they have the same fingerprint.
    """
    before = _before(reference / "validation.csv")
    old_runs = {row["fingerprint"]: row for table in before for row in table.to_dict("records")}
    old_cases = read_table(reference / "cases.csv.gz") if before else None
    tables, rows = [], []
    for cell, fingerprint in expected.items():
        named = dict(zip(CELL, cell, strict=True))
        if folder := trained.get(cell):
            tables.append(collect(folder, *cell[:2]))
            rows.append(named | run_row(folder))
        elif row := old_runs.get(fingerprint):
            of_run = (old_cases[CELL] == [row[name] for name in CELL]).all(axis=1)
            tables.append(old_cases[of_run].assign(suite=cell[0], arm=cell[1]))
            rows.append(row | named)
    if not rows:
        raise RunError("no run is finished; 'mvl suite run NAME' trains and tests a suite")
    runs = pd.DataFrame(rows, columns=[*CELL, *_RUN])
    return _in_order(pd.concat(tables, ignore_index=True), ["case", "structure"]), _in_order(runs)


def _publish(folder, cases, target):
    """Save the model of a run of `best`, with what it reached on the test subjects."""
    run = Run.load(folder)
    tested = cases[(cases["suite"] == "presets") & (cases["arm"] == "best")]
    tested = tested[(tested["seed"] == run.config.seed) & (tested["structure"] == "foreground")]
    shown = ["dice", "nsd", "hd95_mm"]
    means = tested.groupby("subject")[shown].mean().mean()
    metrics = {f"test {name}": means[name] for name in shown}
    save_model(run.model, target, run.task, run.config.data, metrics, run.domain)


def run_row(folder: Path) -> dict:
    """A finished run's row of validation.csv, without the columns `CELL`."""
    config = read_json(folder / "config.json")["config"]
    environment = read_json(folder / "environment.json")
    row = config["training"] | {"grid": "x".join(map(str, config["data"]["grid"]))}
    row |= read_json(folder / "done.json") | machine_of(environment)
    row |= {"fingerprint": folder.name, "commit": environment["commit"] or "unknown"}
    return {name: row[name] for name in _RUN}


def _grown_curves(trained, runs, reference):
    """The curves of every run that is in `runs`, by fingerprint."""
    tables = _before(reference / "curves.csv.gz")
    known = set(tables[0]["fingerprint"]) if tables else set()
    for folder in {folder.name: folder for folder in trained.values()}.values():
        if folder.name not in known:
            curves = files.read_table(folder / CURVES, numbers=_CURVES[1:])
            tables.append(curves.assign(fingerprint=folder.name)[_CURVES])
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_CURVES)
    table = table[table["fingerprint"].isin(runs["fingerprint"])]
    return table.sort_values(["fingerprint", "epoch"])


def _grown_tuning(tuned, runs, reference):
    """Every learning rate that was tried with seed 0, the chosen ones included."""
    chosen = runs[runs["seed"] == 0].assign(mapper_rate=1.0)  # protocol 1 has no other
    tables = [*_before(reference / "tuning.csv"), tuned, chosen]
    # An empty table has columns of objects, which would be written as "1.0".
    table = pd.concat(tables, ignore_index=True)[list(TUNING_COLUMNS)].infer_objects()
    table = table.drop_duplicates(TUNING_COLUMNS[:6], keep="last")
    return _in_order(table, ["grid", "learning_rate", "mapper_rate"])


def _in_order(table, rest=()):
    """Sorted as the suites name their arms, so that equal content gives equal bytes."""
    arms = [(suite, arm) for suite, arms in SUITES.items() for arm in arms]
    rank = {cell: n for n, cell in enumerate(arms)}
    order = [rank[cell] for cell in zip(table["suite"], table["arm"], strict=True)]
    ordered = table.assign(_order=order).sort_values(["_order", "seed", *rest], kind="stable")
    return ordered.drop(columns="_order").reset_index(drop=True)
