"""The audit's tables among the reference's, and the README's section that is made of them."""

from pathlib import Path

import numpy as np
import pandas as pd

from mvl.audit.readings import described, measurement_rows, read_cases
from mvl.audit.splits import split_rows
from mvl.audit.switches import COLUMNS
from mvl.audit.training import audit_configs, training_rows
from mvl.config import derive_seed
from mvl.data.task_data import open_task
from mvl.experiment.run import TRAINED, Run, collect, load_predictor, run_folder, test
from mvl.files import REPOSITORY, read_json, sha256_of, with_section, write_table, write_text
from mvl.show.audit import section, waterfall_of
from mvl.show.figures import save
from mvl.study.reference import BEST, REFERENCE, SEEDS, read_table

CASES, READ, TABLE = "audit_cases.csv.gz", "audit_readings.csv.gz", "audit.csv"
PICTURE = Path("figures") / "audit_waterfall.png"
BEGIN, END = "<!-- audit: begin, written by `mvl audit table` -->", "<!-- audit: end -->"
#: The committed model among the arms whose test cases are read.
COMMITTED = "best"


def write_audit(data, runs, root=None, reference=REFERENCE, seeds=SEEDS, epochs=None):
    """Add finished trainings to the audit's tables, read what is not read, draw the waterfall.

    As the reference, the audit grows by the runs that are at hand and keeps the others' rows, as
    long as the arm would still be trained just so. A run that is trained and not tested is tested.

    Args:
        data: a `DataConfig`.
        runs: the folder of all runs.
        root: see `sources.data_root`.
        reference: the folder to write to.
        seeds, epochs: as in `audit_configs`.

    Returns:
        The table of audit.csv.

    Raises:
        DataError: as `open_task`.
    """
    known = [
        read_table(reference / name, ("arm", "fingerprint"))
        if (reference / name).is_file()
        else None
        for name in (CASES, READ)
    ]
    tables, read = [], []
    for (arm, seed), config in audit_configs(data, seeds, epochs=epochs).items():
        task_data = open_task(config.data, seed, root, progress=False)
        folder = run_folder(config, task_data, runs)
        if (folder / TRAINED).exists():
            test(folder, task_data)
            trained = read_json(folder / TRAINED)
            facts = {"validation_dice": trained["validation_dice"], "fingerprint": folder.name}
            tables.append(collect(folder, "audit", arm).assign(**facts))
        else:
            tables.append(_known(known[0], arm, folder.name))
        if arm == "released":
            run = Run.load(folder) if (folder / TRAINED).exists() else None
            read.append(_read(known[1], arm, seed, folder.name, run, task_data))
    task_data = open_task(data, 0, root, progress=False)
    best, weights = load_predictor(BEST), sha256_of(BEST / "model.safetensors")[:16]
    if best.task.name == task_data.task.name:
        read.append(_read(known[1], COMMITTED, 0, weights, best, task_data))
    for name, found in ((CASES, tables), (READ, read)):
        nothing = pd.DataFrame(columns=["arm", "fingerprint"])
        write_table(reference / name, pd.concat([t for t in found if t is not None] or [nothing]))
    everyone = list(task_data.cases.values())
    # Read again, so that the table is made of what was written, to the last digit.
    table = audit_table(reference, split_rows(everyone, task_data.task), len(everyone))
    write_table(reference / TABLE, table)
    save(waterfall_of(table), reference / PICTURE)
    return table


def _known(table, arm, fingerprint):
    if table is None:
        return None
    own = table[(table["arm"] == arm) & (table["fingerprint"] == fingerprint)]
    return own if len(own) else None


def _read(table, arm, seed, fingerprint, model, data):
    """The readings of a model, those that are known taken as they are; None without a model."""
    known = _known(table, arm, fingerprint)
    if known is not None or model is None:
        return known
    # In no order, as the released code's loader has them: siblings seldom share a batch.
    generator = np.random.default_rng(derive_seed("reading", seed))
    cases = data.side("test")
    cases = [cases[place] for place in generator.permutation(len(cases))]
    rows = read_cases(model.model, cases, model.preparation, model.task)
    return described(rows, arm, seed, data.task).assign(fingerprint=fingerprint)


def audit_table(reference, splits, task_cases):
    """audit.csv from the reference's other tables.

    Args:
        reference: the folder.
        splits: of `split_rows`.
        task_cases: as in `training_rows`.
    """
    cases, readings = (read_table(reference / name) for name in (CASES, READ))
    tables = [training_rows(cases, task_cases), measurement_rows(readings), splits]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def reference_table(reference=REFERENCE):
    """The committed audit.csv; empty where there is none."""
    path = reference / TABLE
    return read_table(path, COLUMNS) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def audit_section(reference=REFERENCE):
    """The README's section on the audit as Markdown: every number from audit.csv."""
    table = read_table(reference / TABLE, COLUMNS)
    what = "From the study's protocol to the released code's"
    if "released" not in set(table["arm"]):
        what = "The committed model's number, as the released code would read it, step by step"
    picture = (REFERENCE / PICTURE).relative_to(REPOSITORY).as_posix()
    return "\n".join([*section(table), "", f"![{what}]({picture})"])


def refresh_readme(readme=REPOSITORY / "README.md", reference=REFERENCE):
    """Write `audit_section` between the README's markers.

    Raises:
        MvlError: the README lacks a marker.
    """
    write_text(readme, with_section(readme, BEGIN, END, audit_section(reference)))
