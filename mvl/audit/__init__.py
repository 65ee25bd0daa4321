"""What each thing that the released code does differently is worth: the audit (docs/audit.md).

`SWITCHES` lists these things; `released` trains as that code does, `masks` measures as it does. A
training's cells are experiments like any other: `mvl.study.cells` runs, resumes and counts them.
`results/reference/` holds

    audit_cases.csv.gz      one row per arm, seed and test case: metrics in native space
    audit_readings.csv.gz   one row per model, seed and test case: every reading of it
    audit.csv               one row per switch, arm and metric, made of these and of the splits

A row about a training compares two arms, subject by subject, with the interval of
`mvl.study.statistics.contrast`; one about a reading resamples the subjects and reads again.
"""

from mvl.audit.readings import (
    READINGS,
    described,
    in_loaders_order,
    measurement_rows,
    read_cases,
)
from mvl.audit.record import COMMITTED, reference_table, write_audit
from mvl.audit.released import AuditConfig, AuditedConfig
from mvl.audit.splits import DRAWS, split_rows
from mvl.audit.switches import COLUMNS, SWITCHES, Switch, switches_table
from mvl.audit.training import ARMS, Change, audit_configs, training_rows
from mvl.study.reference import BEST

__all__ = [
    "ARMS", "BEST", "COLUMNS", "COMMITTED", "DRAWS", "READINGS", "SWITCHES", "AuditConfig",
    "AuditedConfig", "Change", "Switch", "audit_configs", "described", "in_loaders_order",
    "measurement_rows", "read_cases", "reference_table", "split_rows", "switches_table",
    "training_rows", "write_audit",
]  # fmt: skip
