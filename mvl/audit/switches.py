"""What the released code does differently from the study: the audit's list, and its columns."""

import csv
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Switch(NamedTuple):
    """What the released code does, what the study does, and what the difference can change."""

    name: str
    kind: str  # "split", "training" or "measurement"
    released: str
    study: str
    changes: str


with (Path(__file__).with_name("switches.csv")).open(encoding="utf-8", newline="") as _file:
    #: Name -> Switch, in the order of the table.
    SWITCHES = {row["name"]: Switch(**row) for row in csv.DictReader(_file)}

#: Columns of audit.csv, of which every row is about one switch.
COLUMNS = (
    *("switch", "kind", "arm", "against", "metric", "before", "after", "difference", "low"),
    *("high", "interval", "n_subjects", "n_cases", "n_seeds", "task", "protocol_version"),
    "synthetic",
)


def switches_table() -> pd.DataFrame:
    """`SWITCHES` as a table."""
    return pd.DataFrame(SWITCHES.values()).set_index("name")


#: What a row of audit.csv has of any row of the table that it is made of.
FACTS = ["task", "protocol_version", "synthetic"]
