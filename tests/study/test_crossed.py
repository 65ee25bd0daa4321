"""The second protocol's tables: whole repeats only, and means over all subjects."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mvl.config import DataConfig, LanguageConfig, ModelConfig, TrainingConfig
from mvl.data.phantom import make_phantom
from mvl.experiment.metrics import METRICS
from mvl.files import read_json, read_table, sha256_of, write_json, write_table
from mvl.study import crossed
from mvl.study.cells import fit_suite, run_suite
from mvl.study.inference import POOLED
from mvl.study.reference import REFERENCE
from mvl.study.suites import SUITES, Arm, suite_configs
from mvl.study.verify import verify
from tests.show.second import CHAOS, HIPPOCAMPUS, write_second

GRID = (16, 16, 16)
PLAIN = ModelConfig(patch=(8, 8, 8), width=8, encoder_depth=1, decoder_depth=1, heads=2)
BLOCK = LanguageConfig(skip=False, terms="contribution")
PLAN = TrainingConfig(epochs=1, warmup_epochs=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(runs, data root, cells) of a crossed suite of two arms, trained on a tiny phantom."""
    folder = tmp_path_factory.mktemp("crossed")
    make_phantom("Task04_Hippocampus", folder, cases=16, scale=0.3)
    with pytest.MonkeyPatch.context() as patch:
        arms = {"none": Arm(PLAIN, PLAN, testing="crossed")}
        with_block = ModelConfig(**{**PLAIN.__dict__, "language": BLOCK})
        arms["pretrained"] = Arm(with_block, PLAN, testing="crossed")
        patch.setitem(SUITES, "llama", arms)
        data = DataConfig(grid=GRID)
        patch.setattr(crossed, "STUDY_TASKS", (data.task, "Absent"))
        patch.setattr(crossed, "task_data", lambda task: replace(data, task=task))
        cells = suite_configs("llama", data, range(5), root=folder)
        yield folder / "runs", folder, cells


def test_a_repeat_is_published_whole_or_not_at_all(trained, tmp_path):
    runs, root, cells = trained
    most = dict(list(cells.items())[:-1])
    fit_suite("llama", most, runs, root, show=False)
    said, absent = crossed.update_crossed(runs, root, ["llama"], folder=tmp_path)
    assert "no task Absent" in absent
    assert "1 of 10 cells are not trained" in said and not list(tmp_path.iterdir())
    assert not list(Path(runs).glob("*/cases.csv")), "no test side is opened before"

    fit_suite("llama", cells, runs, root, show=False)
    said, _ = crossed.update_crossed(runs, root, ["llama"], folder=tmp_path)
    assert "10 cells published" in said
    cases = read_table(tmp_path / "cases.csv.gz")
    for _, arm in cases.groupby("arm"):
        foreground = arm[arm["structure"] == "foreground"]
        assert sorted(foreground["case"]) == sorted(set(foreground["case"]))
        assert foreground["case"].nunique() == 16 and set(foreground["fold"]) == set(range(5))
    use = read_table(tmp_path / "use.csv")
    assert set(use["arm"]) == {"pretrained"} and len(use) == 5
    # As trained, it is what the evaluation wrote.
    of_arm = cases[(cases["arm"] == "pretrained") & (cases["structure"] == "foreground")]
    by_fold = of_arm.groupby(["fold", "subject"])["dice"].mean().groupby("fold").mean()
    assert np.allclose(use.set_index("fold")["as trained"], by_fold, atol=1e-6)
    contrasts = read_table(tmp_path / "contrasts.csv")
    row = contrasts[contrasts["structure"] == "foreground"].iloc[0]
    assert row["arm_b"] == "none" and row["n_subjects"] == cases["subject"].nunique()
    means = read_table(tmp_path / "summary.csv").query("metric == 'dice'")
    means = means[means["structure"] == "foreground"].set_index("arm")["mean"]
    assert row["difference"] == pytest.approx(means["pretrained"] - means["none"])

    # A task that another machine has published keeps its rows; this one's are not doubled.
    for name, table in crossed.crossed_tables(tmp_path).items():
        elsewhere = table.assign(task="CHAOS_AbdomenMR")
        path = tmp_path / (f"{name}.csv.gz" if name == "cases" else f"{name}.csv")
        write_table(path, pd.concat([table, elsewhere]))
    crossed.update_crossed(runs, root, ["llama"], folder=tmp_path)
    for name in ("cases", "use", "runs", "summary"):
        rows = crossed.crossed_tables(tmp_path)[name].groupby("task").size()
        assert rows["CHAOS_AbdomenMR"] == rows["Task04_Hippocampus"] > 0
    assert len(read_table(tmp_path / "cases.csv.gz")) == 2 * len(cases)


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """A reference that has published all cells; they are tested."""
    runs, root, cells = trained
    fit_suite("llama", cells, runs, root, show=False)
    reference = tmp_path_factory.mktemp("published") / "reference"
    ignored = shutil.ignore_patterns("best", "figures", "crossed")
    shutil.copytree(REFERENCE, reference, ignore=ignored)
    crossed.update_crossed(runs, root, ["llama"], folder=reference / "crossed")
    return reference


@pytest.fixture
def again(trained, published, tmp_path):
    """Copies of the runs and of the reference, which a test may spoil."""
    places = (trained[0], tmp_path / "runs"), (published, tmp_path / "reference")
    return tuple(shutil.copytree(*place) for place in places)


def change(folder, dice, machine=None):
    """Add to a run's Dice, as another machine would have done if one is named."""
    table = read_table(folder / "cases.csv")
    table["dice"] = (table["dice"] + dice).clip(0, 1)
    write_table(folder / "cases.csv", table.assign(jaccard=table["dice"] / (2 - table["dice"])))
    done = read_json(folder / "done.json")
    write_json(folder / "done.json", done | {"cases_sha256": sha256_of(folder / "cases.csv")})
    environment = read_json(folder / "environment.json")
    machine = machine or environment["cpu"]
    write_json(folder / "environment.json", environment | {"cpu": machine})


def test_a_cell_that_is_run_again_is_compared_with_the_published_one(again):
    runs, reference = again
    checks = verify(runs, reference)
    assert checks["agrees"].all()
    assert checks["check"].value_counts().to_dict() == {
        "file": 10,
        "cases": 10,
        "contrast": 1,
        "tables": 1,
    }
    assert set(checks["suite"]) == {
        f"{name} (Task04_Hippocampus)" for name in ("llama", "reference")
    }
    change(sorted(runs.iterdir())[0], 1e-6)
    assert checks["agrees"].sum() - verify(runs, reference)["agrees"].sum() == 1


@pytest.mark.parametrize(
    ("name", "column"), [("contrasts", "difference"), ("summary", "mean"), ("use", "as trained")]
)
def test_a_published_table_that_contradicts_its_cases_is_found(again, name, column):
    runs, reference = again
    path = reference / "crossed" / f"{name}.csv"
    table = read_table(path)
    table.loc[0, column] += 1e-3
    write_table(path, table)
    checks = verify(runs, reference)
    (row,) = checks[checks["agrees"].eq(False)].to_dict("records")
    assert row["check"] == "tables" and f"{name}.csv" in row["detail"]


def test_a_crossed_suite_is_tested_once_all_of_its_cells_are_trained(trained, tmp_path, capsys):
    _, root, cells = trained
    two = dict(list(cells.items())[:2])
    bad = list(two)[1]
    plan = replace(two[bad].training, learning_rate=1e30, clip_norm=0.0, epochs=2)
    cases, failures = run_suite(
        "llama", two | {bad: replace(two[bad], training=plan)}, tmp_path, root
    )
    assert cases.empty and list(failures) == [bad] and not list(tmp_path.glob("*/cases.csv"))
    assert "no test case is opened" in capsys.readouterr().out
    cases, _ = run_suite("llama", two, tmp_path, root, show=False)
    means, contrasts = crossed.tables_of(cases, "llama")
    dice = means.query("metric == 'dice' and structure == 'foreground'").set_index("arm")
    assert dice["n_seeds"].to_dict() == {"none": 2} and contrasts.empty
    by_subject = cases.query("structure == 'foreground'").groupby("subject")["dice"].mean()
    assert dice["mean"]["none"] == pytest.approx(by_subject.mean())


def test_a_published_contrast_that_comes_back_reversed_is_not_reproduced(again):
    runs, reference = again
    path = reference / "crossed" / "runs.csv"
    arms = read_table(path).set_index("fingerprint")["arm"]
    # Published: 0.3 better in each fold. Run again: as trained, two models that learned nothing.
    for name in ("cases.csv.gz", "contrasts.csv"):
        table = read_table(path.with_name(name))
        if name == "contrasts.csv":
            table[["difference", "ci_low", "ci_high"]] += 0.3
        else:
            table.loc[table["arm"] == "pretrained", "dice"] += 0.3
        write_table(path.with_name(name), table)
    for folder in runs.iterdir():
        change(folder, 0.3 * (arms[folder.name] == "none"), "another")
    checks = verify(runs, reference).set_index("check")
    assert not checks.loc["contrast", "agrees"]
    assert "the sign is another" in checks.loc["contrast", "detail"]


def test_a_pooled_row_that_contradicts_the_cases_is_found(tmp_path):
    write_second(tmp_path, {HIPPOCAMPUS: 40, CHAOS: 20})
    tables = crossed.crossed_tables(tmp_path)
    assert set(crossed.disagreements(tables).values()) == {""}
    pooled = tables["contrasts"]["task"] == POOLED
    assert pooled.sum() == 7  # the claim's four, and the controls
    tables["contrasts"].loc[pooled, "difference"] *= -1
    wrong = {task for task, names in crossed.disagreements(tables).items() if names}
    assert wrong == {POOLED}


def test_a_mean_is_over_subjects_of_all_folds():
    """Two subjects in fold 0, one of them with two cases; one subject in fold 1."""
    rows = [(0, "a", "a1", 0.2), (0, "a", "a2", 0.4), (0, "b", "b1", 0.5), (1, "c", "c1", 0.8)]
    cases = pd.DataFrame(rows, columns=["fold", "subject", "case", "dice"])
    about = ["suite", "arm", "task", "structure", "block", "host", "fraction", "epochs"]
    about = dict.fromkeys([*about, "protocol_version", "synthetic"], "x")
    cases = cases.assign(repeat=0, **about, **{m: 0.0 for m in METRICS if m != "dice"})
    row = crossed.summary(cases).set_index("metric").loc["dice"]
    assert row["mean"] == pytest.approx((0.3 + 0.5 + 0.8) / 3)
    assert row["sd_trainings"] == pytest.approx(np.std([0.4, 0.8], ddof=1))
    assert (row["n_subjects"], row["n_cases"], row["n_trainings"]) == (3, 4, 2)
