"""The audit: what it trains, what it reads, and the tables and words made of both."""

import shutil
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from mvl import audit
from mvl.audit import (
    ARMS,
    SWITCHES,
    AuditConfig,
    audit_configs,
    described,
    measurement_rows,
    read_cases,
    reference_table,
    split_rows,
    training_rows,
    write_audit,
)
from mvl.audit.splits import draw_copies
from mvl.config import PRESETS, DataConfig
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.data.task_folder import Case
from mvl.data.tasks import TASKS
from mvl.errors import ConfigError
from mvl.experiment.evaluation import evaluate
from mvl.experiment.inference import Predictor
from mvl.models.segmenter import build_segmenter
from mvl.show.audit import effects, effects_of
from mvl.study.cells import run_suite
from mvl.study.reference import REFERENCE, read_table
from mvl.study.statistics import contrast
from mvl.study.suites import suite_configs

DATA = DataConfig(grid=(16, 24, 16))


@pytest.fixture(scope="module", autouse=True)
def small():
    """Metrics on the released grid take seconds a case; here they are on one of 40 x 48 x 40."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit.readings, "GRID", (40, 48, 40))
        # The tables of three runs are about cells and words; intervals have tests of their own.
        few = partial(measurement_rows, draws=100)
        patch.setattr(audit.record, "measurement_rows", few)
        yield


# --- arms ----------------------------------------------------------------------------------


def leaves(values, path=""):
    """A nested dict's values by their paths."""
    if not isinstance(values, dict):
        return {path: values}
    parts = [leaves(value, f"{path}.{key}") for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}


#: What an arm changes, by the configuration's own paths, where that is more than one thing.
BUNDLES = {
    "mappers": {"lora_rank", "lora_alpha", "lora_on"},
    "dropout": {"dropout", "final_norm"},
    "optimiser": {
        *("optimiser", "schedule", "learning_rate", "weight_decay", "warmup_epochs", "clip_norm")
    },
    "linear-labels": {"linear_labels"},
    "copies": {"copies", "epochs", "warmup_epochs"},
}


def test_every_training_switch_is_an_arm_that_changes_one_thing():
    trained = [name for name, switch in SWITCHES.items() if switch.kind == "training"]
    assert list(ARMS) == ["ours", *trained, "released", "siblings"]
    configs = {arm: config for (arm, _), config in audit_configs(DATA, [0]).items()}
    for arm in (*trained, "siblings"):
        # Of a study's configuration an audit without departures is made.
        sides = [{"audit": asdict(AuditConfig())} for _ in range(2)]
        for values, side in zip(sides, (ARMS[arm].against, arm), strict=True):
            values |= asdict(configs[side])
        one, other = map(leaves, sides)
        differ = {path.rpartition(".")[2] for path in one if one[path] != other[path]}
        assert differ == BUNDLES.get(arm, differ) and (arm in BUNDLES or len(differ) == 1), arm


def test_all_at_once_is_the_released_preset_and_every_departure():
    config = audit_configs(DATA, [0], epochs=60)["released", 0]
    model, plan = PRESETS["released"]
    assert config.model == model
    assert replace(config.training, epochs=60) == replace(plan, epochs=60)
    assert (config.data.fit, config.data.intensities) == ("resize", "min-max")
    assert config.audit == AuditConfig("hard", True, True, True, True, True, "last")


def test_what_the_study_trains_anyway_is_the_same_experiment():
    configs = audit_configs(DATA, [3])
    assert configs["ours", 3] == suite_configs("language", DATA, [3])["pretrained", 3]
    assert configs["before", 3] == suite_configs("adaptation", DATA, [3])["before", 3]


def test_copies_get_as_many_steps():
    epochs = audit_configs(DATA, [0], epochs=60)["copies", 0].training.epochs
    cases = [Case(f"c{n:03d}", f"s{n:03d}", None, None) for n in range(100)]
    samples = (draw_copies(cases, 0)["side"] == "train").sum()
    assert epochs * samples == 60 * 80  # of five folds, four are trained on


def test_an_unknown_arm_is_told():
    with pytest.raises(ConfigError, match="hard-dice"):
        audit_configs(DATA, [0], arms=["nonsense"])


# --- measurement ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(phantom):
    """(readings of an untrained model's test cases, its evaluation)."""
    data = open_task(DATA, 0, phantom, progress=False)
    model = build_segmenter(PRESETS["vit"][0], 1, 1, DATA.grid, 0)
    cases, predictor = data.side("test"), Predictor(model, Preparation(data.task, DATA))
    readings = described(read_cases(predictor, cases, False), "best", 0, data.task)
    return readings, evaluate(predictor, cases, False)


def test_the_first_reading_is_the_studys_evaluation(read):
    readings, evaluated = read
    assert readings["case"].tolist() == evaluated["case"].tolist()
    for metric in ("dice", "nsd"):
        assert readings[metric].to_numpy() == pytest.approx(evaluated[metric].to_numpy())


def test_readings_agree_with_their_own_counts(read):
    rows = read[0]
    dice = 2 * rows["overlap"] / (rows["predicted"] + rows["labelled"])
    assert rows["linear_dice"].to_numpy() == pytest.approx(dice.to_numpy())
    assert (rows["batch_surface_labelled"] == rows["surface_labelled"]).all()
    assert (rows["batch_near_predicted"] >= rows["near_predicted"]).all()


def by_hand():
    """Five cases of three subjects; the numbers are made up."""
    rows = pd.DataFrame({"subject": ["a", "a", "b", "b", "c"], "case": list("vwxyz")})
    rows["dice"], rows["nsd"] = [0.9, 0.7, 0.6, 0.6, 0.5], [0.9, 0.9, 0.8, 0.6, 0.4]
    for name in ("resized", "linear"):
        rows[f"{name}_dice"], rows[f"{name}_nsd"] = rows["dice"] - 0.1, rows["nsd"] - 0.2
    rows["overlap"], rows["predicted"], rows["labelled"] = [8, 4, 2, 1, 3], 10, [10, 10, 2, 2, 4]
    for prefix in ("", "batch_"):
        for side, near in (("predicted", 4), ("labelled", 8)):
            rows[f"{prefix}near_{side}"] = near + bool(prefix)
            rows[f"{prefix}surface_{side}"] = 10
    return described(rows, "best", 0, replace(TASKS["Task04_Hippocampus"], synthetic=True))


def test_every_reading_by_hand():
    rows = measurement_rows(by_hand(), draws=50).set_index(["switch", "metric"])
    dice = rows.xs("dice", level="metric")
    subjects = np.mean([0.8, 0.6, 0.5])
    assert dice["before"]["resized-grid"] == pytest.approx(subjects)
    assert dice["after"]["resized-grid"] == pytest.approx(subjects - 0.1)
    assert dice["difference"]["linear-truth"] == pytest.approx(0)
    # The first four cases pooled, then the fifth by itself.
    batches = np.mean([2 * 15 / (40 + 24), 2 * 3 / 14])
    assert dice["after"]["batch-means"] == pytest.approx(batches)
    assert dice["after"]["one-case"] == pytest.approx(np.mean([0.8, 0.6, 0.5, 0.5, 0.4]))
    nsd = rows.xs("nsd", level="metric")["after"]
    assert nsd["dilation"] == pytest.approx(0.6) and nsd["batch-index"] == pytest.approx(0.7)
    # Each reading goes on from the one before it.
    assert rows.xs("nsd", level="metric")["before"].tolist()[1:] == nsd.tolist()[:-1]


def test_the_intervals_are_about_those_of_the_studys_bootstrap():
    """Of thirty subjects of one case, whose Dice varies, and more so on the resized grid."""
    generator = np.random.default_rng(0)
    table = pd.concat([by_hand().iloc[:1]] * 30, ignore_index=True)
    table["subject"] = table["case"] = [f"s{n:02d}" for n in range(30)]
    table["dice"] = table["linear_dice"] = generator.normal(0.8, 0.03, 30)
    table["resized_dice"] = table["dice"] + generator.normal(0.02, 0.05, 30)
    rows = measurement_rows(table, draws=1000).query("metric == 'dice'")
    row = rows.set_index("switch").loc["resized-grid"]
    sides = [table.assign(arm="a", dice=table["resized_dice"]), table.assign(arm="b")]
    found = contrast(pd.concat(sides), "a", "b")
    width = found["ci_high"] - found["ci_low"]
    assert row["difference"] == pytest.approx(found["difference"])
    # The study's is wider by sqrt(30 / 29) and by a t quantile instead of a normal one.
    assert 0.85 * width < row["high"] - row["low"] < width


def test_two_runs_of_one_arm_differ_as_their_seeds_and_test_sets_do():
    table = by_hand().iloc[[0] * 60].reset_index(drop=True)
    table = table.assign(arm="ours", validation_dice=0.5)
    table["subject"] = table["case"] = [f"s{n:02d}" for n in range(60)]
    generator = np.random.default_rng(1)
    dice = generator.normal(0.8, 0.03, 60)
    seeds = pd.concat([table.assign(seed=s, dice=dice + 0.1 * s) for s in (0, 1)])
    row = training_rows(seeds, 60).query("switch == 'unseeded' and metric == 'dice'").iloc[0]
    assert row["before"] == pytest.approx(dice.mean() + 0.05)
    # Means of six cases, plus or minus the 0.1 between the seeds; twenty draws' range.
    assert 0.2 < row["high"] - row["low"] < 0.2 + 2 * 4 * 0.03 * np.sqrt(2 / 6)
    one = training_rows(table.assign(dice=dice), 60)
    row = one.query("switch == 'unseeded' and metric == 'dice'").iloc[0]
    # Twenty draws of a normal variable span about 3.7 of its standard deviations.
    expected = 3.7 * dice.std() * np.sqrt(2 / 6)
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.4)


def test_siblings_are_compared_on_cases_that_nobody_was_trained_on():
    rows = by_hand().assign(validation_dice=0.5)
    ours, theirs = rows.assign(arm="ours"), rows.assign(arm="siblings")
    theirs["dice"] += [0.1, 9, 0.02, 9, 9]  # of a and b the first case is held out; c has one
    row = training_rows(pd.concat([ours, theirs]), 50).query("arm == 'siblings'").iloc[0]
    assert (row["n_subjects"], row["n_cases"]) == (2, 2)
    assert row["before"] == pytest.approx((0.9 + 0.6) / 2)
    assert row["difference"] == pytest.approx((0.1 + 0.02) / 2)


def test_nobody_of_the_studys_split_is_shared_and_nearly_everybody_of_the_released(phantom):
    data = open_task(DATA, 0, phantom, progress=False)
    rows = split_rows(list(data.cases.values()), data.task).set_index("switch")
    assert (rows["before"] == 0).all() and rows["synthetic"].all()
    assert rows["after"]["shared-subjects"] > 0.9
    assert 0 < rows["after"]["siblings"] <= 1


# --- from cells to the page ----------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(phantom, tmp_path_factory):
    """(reference folder, runs, table) of three arms, one epoch each, on the phantom."""
    folder = tmp_path_factory.mktemp("audit")
    configs = audit_configs(DATA, [0], epochs=1, arms=["ours", "hard-dice", "released"])
    run_suite("audit", configs, folder / "runs", phantom, show=False)
    given = (DATA, folder / "runs", phantom, folder / "reference", [0], 1)
    return folder / "reference", given, write_audit(*given)


def test_a_training_switch_is_the_difference_of_two_arms(audited):
    reference, _, table = audited
    cases = read_table(reference / "audit_cases.csv.gz")
    row = table.query("switch == 'hard-dice' and metric == 'dice'").iloc[0]
    means = cases.groupby(["arm", "subject"])["dice"].mean().groupby("arm").mean()
    assert row["before"] == pytest.approx(means["ours"])
    assert row["after"] == pytest.approx(means["hard-dice"])
    assert row["difference"] == pytest.approx(means["hard-dice"] - means["ours"])
    assert row["synthetic"] and row["n_seeds"] == 1 and row["n_cases"] == 4
    said = table.query("switch == 'validation' and arm == 'released'").iloc[0]
    own = cases[cases["arm"] == "released"]
    assert said["after"] == pytest.approx(own["validation_dice"].iloc[0])
    assert said["before"] == pytest.approx(means["released"])


def test_the_released_arm_and_the_committed_model_are_read(audited):
    table = audited[2]
    read = table[(table["kind"] == "measurement") & (table["switch"] == "resized-grid")]
    assert set(read["arm"]) == {"released", "best"}
    own = table.query("switch == 'released' and metric == 'dice'").iloc[0]
    first = read.query("arm == 'released' and metric == 'dice'").iloc[0]
    assert first["before"] == pytest.approx(own["after"])


def test_an_effect_is_the_rows_difference_from_zero(audited):
    table = audited[2]
    steps = effects(table).set_index("step")
    assert list(steps.index) == [
        *("hard-dice", "all at once", "resized-grid", "linear-truth", "batch-means"),
        *("one-case", "validation"),
    ]
    rows = table.query("arm == 'released' and metric == 'dice'").set_index("switch")
    for step, row in (("all at once", "released"), ("batch-means",) * 2, ("validation",) * 2):
        assert steps["difference"][step] == pytest.approx(rows["difference"][row])
    lines = effects_of(table).axes[0].lines
    dots = [line.get_xdata()[0] for line in lines if line.get_marker() == "o"]
    assert dots == pytest.approx([*steps["difference"]])


def test_runs_that_are_gone_are_kept_and_those_that_have_changed_are_not(audited, tmp_path):
    reference, (data, _, root, _, seeds, epochs), table = audited
    folder = tmp_path / "reference"
    shutil.copytree(reference, folder)
    again = write_audit(data, tmp_path / "no runs", root, folder, seeds, epochs)
    pd.testing.assert_frame_equal(again, table)
    other = write_audit(data, tmp_path / "no runs", root, folder, seeds, epochs=6)
    assert set(other["arm"]) == {"best", ""}


def test_the_committed_table_is_made_of_the_committed_rows():
    table = reference_table()
    trained = table["kind"].eq("training") | table["switch"].isin(("validation", "unseeded"))
    read = table["kind"].eq("measurement") & ~trained
    cases = training_rows(read_table(REFERENCE / "audit_cases.csv.gz"), task_cases=207)
    readings = measurement_rows(read_table(REFERENCE / "audit_readings.csv.gz"), draws=10)
    means = ["before", "after", "difference"]
    for stored, again, columns in (
        (table[trained], cases, [*means, "low", "high"]),
        (table[read], readings, means),  # fewer draws: other intervals
    ):
        assert len(again) == len(stored) > 0
        assert stored[columns].to_numpy() == pytest.approx(again[columns].to_numpy(float))
    assert not table["synthetic"].any() and list(table.columns) == list(audit.COLUMNS)
