"""The audit's tables among the reference's."""

from pathlib import Path

import pandas as pd

from mvl.audit.readings import described, in_loaders_order, measurement_rows, read_cases
from mvl.audit.splits import split_rows
from mvl.audit.switches import COLUMNS
from mvl.audit.training import audit_configs, training_rows
from mvl.config import DataConfig
from mvl.data.task_data import open_task
from mvl.experiment.run import TRAINED, Run, collect, load_predictor, run_folder, test
from mvl.files import read_json, read_table, sha256_of, write_table
from mvl.study.reference import BEST, REFERENCE, SEEDS

CASES, READ, TABLE = "audit_cases.csv.gz", "audit_readings.csv.gz", "audit.csv"
#: The committed model among the arms whose test cases are read.
COMMITTED = "best"


def write_audit(
    data: DataConfig,
    runs: str | Path,
    root: str | Path | None = None,
    reference: Path = REFERENCE,
    seeds: tuple[int, ...] = SEEDS,
    epochs: int | None = None,
) -> pd.DataFrame:
    """Add finished trainings to the audit's tables, and read what is not read; audit.csv's table.

    As the reference, the audit grows by the runs that are in `runs` and keeps the others' rows, as
    long as the arm would still be trained just so. A run that is trained and not tested is tested.
    """
    columns = ("arm", "fingerprint")
    known = [_table(reference / name, columns) for name in (CASES, READ)]
    tables, read = [known[0].iloc[:0]], [known[1].iloc[:0]]
    for (arm, seed), config in audit_configs(data, seeds, epochs=epochs).items():
        task_data = open_task(config.data, seed, root, progress=False)
        folder, kind = run_folder(config, task_data, runs), type(config)
        trained = (folder / TRAINED).exists()
        if trained:
            test(folder, task_data, kind=kind)
            dice = read_json(folder / TRAINED)["validation_dice"]
            table = collect(folder, "audit", arm)
            tables.append(table.assign(validation_dice=dice, fingerprint=folder.name))
        else:
            tables.append(_known(known[0], arm, folder.name))
        if arm == "released":
            run = Run.load(folder, kind) if trained else None
            read.append(_read(known[1], arm, seed, folder.name, run, task_data))
    task_data = open_task(data, 0, root, progress=False)
    best, weights = load_predictor(BEST), sha256_of(BEST / "model.safetensors")[:16]
    if best.task.name == task_data.task.name:
        read.append(_read(known[1], COMMITTED, 0, weights, best, task_data))
    for name, parts in ((CASES, tables), (READ, read)):
        write_table(reference / name, pd.concat([t for t in parts if len(t)] or parts[:1]))
    cases = list(task_data.cases.values())
    # Read again, so that the table is made of what was written, to the last digit.
    rows = [
        training_rows(read_table(reference / CASES), len(cases)),
        measurement_rows(read_table(reference / READ)),
        split_rows(cases, task_data.task),
    ]
    table = pd.concat([part for part in rows if len(part)], ignore_index=True)
    write_table(reference / TABLE, table)
    return table


def _known(table, arm, fingerprint):
    return table[(table["arm"] == arm) & (table["fingerprint"] == fingerprint)]


def _read(table, arm, seed, fingerprint, predictor, data):
    """The readings of a model, those that are known taken as they are; no row without a model."""
    known = _known(table, arm, fingerprint)
    if len(known) or predictor is None:
        return known
    rows = read_cases(predictor, in_loaders_order(data.side("test"), seed))
    return described(rows, arm, seed, data.task).assign(fingerprint=fingerprint)


def reference_table(reference: Path = REFERENCE) -> pd.DataFrame:
    """The committed audit.csv; empty where there is none."""
    return _table(reference / TABLE, COLUMNS)


def _table(path, columns):
    return read_table(path, columns) if path.is_file() else pd.DataFrame(columns=columns)
