"""What each thing that the released code does differently is worth: the audit.

`SWITCHES` says what the code does and what that can change, `experiment.released` does it, and
here it is measured, on the study's data and against the study's way:

    split        who stands on which side; counted over draws, nothing is trained
    training     a training with one thing done as the released code does it, or all (`ARMS`)
    measurement  one trained model, whose test cases are read as the released code reads them; each
                 reading goes on from the one before it, since most of them need it

Each kind has a module of its own; `words` tells of their rows, and `record` alone stands on the
reference, and writes. A training's cells are experiments like any other: `mvl.study.cells` runs,
resumes and counts them.
`results/reference/` holds

    audit_cases.csv.gz      one row per arm, seed and test case: metrics in native space
    audit_readings.csv.gz   one row per model, seed and test case: every reading of it
    audit.csv               one row per switch, arm and metric, made of these and of the splits
    figures/audit_waterfall.png

and the README's section on it is made of audit.csv. A row that is about a training compares two
arms, subject by subject, with the interval of `mvl.study.statistics.contrast`; one about a reading
resamples the subjects and reads anew.
"""

from mvl.audit.readings import READINGS, described, measurement_rows, read_cases
from mvl.audit.record import (
    COMMITTED,
    audit_table,
    reference_table,
    write_audit,
)
from mvl.audit.splits import DRAWS, split_rows
from mvl.audit.switches import COLUMNS, SWITCHES, Switch, switches_table
from mvl.audit.training import ARMS, Change, audit_configs, training_rows
from mvl.study.reference import BEST

__all__ = [
    "ARMS",
    "BEST",
    "COLUMNS",
    "COMMITTED",
    "DRAWS",
    "READINGS",
    "SWITCHES",
    "Change",
    "Switch",
    "audit_configs",
    "audit_table",
    "described",
    "measurement_rows",
    "read_cases",
    "reference_table",
    "split_rows",
    "switches_table",
    "training_rows",
    "write_audit",
]
