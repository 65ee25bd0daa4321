"""What a profile has to show: runs found by their configuration, and one name an experiment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY
from mvl.study.reference import REFERENCE, read_table
from mvl.study.runs import CURVES, Source, distinct, part_of, rows_of_tasks, sources_of, tasks_of

RUNS = pd.DataFrame(
    [
        *(("language", "none", 0, "Task04", "a"), ("fusion", "000", 0, "Task04", "a")),
        *(("presets", "vit", 0, "Task04", "a"), ("presets", "vit", 1, "Task04", "b")),
        *(("fusion", "001", 0, "Task04", "c"), ("data", "vit-10", 0, "Task04", "d")),
        ("language", "none", 0, "Task09", "e"),
    ],
    columns=["suite", "arm", "seed", "task", "fingerprint"],
)


@pytest.fixture
def source():
    cases = RUNS.assign(structure="foreground", **{name: 0.5 for name in METRICS})
    cases = pd.concat([cases, cases.assign(structure="rim")], ignore_index=True)
    curves = RUNS.assign(fraction=1.0, epoch=0, train_loss=1.0, validation_dice=0.5)[CURVES]
    return Source("own", "x", cases, cases.assign(metric="dice"), pd.DataFrame(), RUNS, curves)


def test_an_experiment_with_many_names_is_one():
    # A share of the data is no model of its own.
    assert distinct(RUNS) == [("presets", "vit"), ("fusion", "001")]


def test_a_part_has_the_arms_in_order_and_the_foreground_alone(source):
    part = part_of(source, [("fusion", "001"), ("presets", "vit")])
    for table in (part.cases, part.summary, part.runs, part.curves):
        assert table["arm"].tolist() == ["001", "vit", "vit"]
        assert set(table["suite"]) == {"all"}
    assert set(part.cases["structure"]) == {"foreground"}
    alone = part_of(source, [("language", "none")])
    assert set(alone.cases["suite"]) == {"language"}
    assert rows_of_tasks(alone, ["Task09"]).runs["fingerprint"].tolist() == ["e"]
    assert part_of(source, [("peers", "unet")]).cases.empty


def test_models_of_many_tasks_do_not_make_every_suite_one_of_many_tasks(source):
    arms = [("presets", "vit"), ("presets", "v1"), ("language", "none"), ("peers", "v1")]
    rows = [
        (suite, arm, 0, task, f"{task} {'v1' if arm == 'v1' else 'vit'}")
        for suite, arm in arms
        for task in ("Task04", "Task09")
    ]
    source = replace(source, runs=pd.DataFrame(rows, columns=RUNS.columns))
    both = {"Task04", "Task09"}
    # vit alone is no answer of `language`, but it is half of what the paper compares.
    shown = {suite: tasks_of(source, suite) for suite in ("presets", "language", "peers", "")}
    assert shown == {"presets": both, "language": both, "peers": set(), "": both}
    for cell in (("language", "pretrained"), ("peers", "unet")):
        rows.append((*cell, 0, "Task04", cell[1]))
    source = replace(source, runs=pd.DataFrame(rows, columns=RUNS.columns))
    shown = {suite: tasks_of(source, suite) for suite in ("presets", "language", "peers", "")}
    assert shown == {"presets": both, "language": {"Task04"}, "peers": {"Task04"}, "": {"Task04"}}


def test_the_committed_reference_is_a_source_with_its_cases_and_the_task_of_each_run():
    (source,), faults = sources_of([], REPOSITORY)
    assert source.kind == "reference" and faults == []
    pd.testing.assert_frame_equal(source.cases, read_table(REFERENCE / "cases.csv.gz"))
    assert list(source.curves) == CURVES
    assert len(source.runs) == len(read_table(REFERENCE / "validation.csv"))
    assert source.runs["task"].notna().all()
    assert np.all(source.runs["parameters"] >= source.runs["trained_parameters"])
