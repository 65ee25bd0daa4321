"""Did I reproduce it? Equal runs pass, tampered ones do not, another machine gets a tolerance."""

import shutil

import numpy as np
import pandas as pd
import pytest

from mvl.cli import main
from mvl.errors import MvlError, RunError
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import test as open_test_set
from mvl.files import read_json, sha256_of, write_json, write_table
from mvl.study.reference import curves_table, read_table, write_reference
from mvl.study.statistics import summary_table
from mvl.study.suites import SUITES, TUNING_COLUMNS, Arm, fit_suite, suite_configs
from mvl.study.verify import FALLBACK, conclusion, tolerance, verify

#: No learning rate was tried but the chosen one.
NOTHING = pd.DataFrame(columns=TUNING_COLUMNS)


@pytest.fixture(scope="module")
def study(phantom, tmp_path_factory):
    """(folder of the user's runs, reference made of equal ones): two arms of suite `language`."""
    from mvl.config import DataConfig, LanguageConfig, ModelConfig, TrainingConfig

    small = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
    training = TrainingConfig(epochs=1, warmup_epochs=0)
    arms = {
        "none": Arm(ModelConfig(**small), training),
        "pretrained": Arm(ModelConfig(**small, language=LanguageConfig(layer=0)), training),
    }
    runs, reference = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("reference")
    kept = SUITES["language"]
    SUITES["language"] = arms
    try:
        configs = suite_configs("language", DataConfig(grid=(16, 24, 16)), [0, 1])
        trained, _ = fit_suite("language", configs, runs, phantom, show=False)
        folders = {}
        for (arm, seed), (folder, data) in trained.items():
            open_test_set(folder, data, show=False)
            folders["language", arm, seed] = folder
        names = {cell: folder.name for cell, folder in folders.items()}
        write_reference(folders, names, NOTHING, reference=reference)
        # The reference grows: rows of runs that are no longer at hand stay, byte for byte.
        grown = [reference / name for name in ("cases.csv.gz", "curves.csv.gz")]
        before = [path.read_bytes() for path in grown]
        only = {cell: folder for cell, folder in folders.items() if cell[2] == 1}
        write_reference(only, names, NOTHING, reference=reference)
        assert [path.read_bytes() for path in grown] == before
    finally:
        SUITES["language"] = kept
    return runs, reference


@pytest.fixture
def mine(study, tmp_path):
    """A copy of the runs that a test may spoil, and the reference."""
    runs, reference = study
    return shutil.copytree(runs, tmp_path / "runs"), reference


def tamper(folder, column, add, mend=False):
    table = read_table(folder / "cases.csv")
    table.loc[0, column] += add
    write_table(folder / "cases.csv", table)
    if mend:
        done = read_json(folder / "done.json")
        write_json(folder / "done.json", done | {"cases_sha256": sha256_of(folder / "cases.csv")})


def test_the_reference_keeps_the_curves_of_its_runs(study):
    runs, reference = study
    table = curves_table(reference)
    assert set(table["arm"]) == {"none", "pretrained"} and set(table["fraction"]) == {1.0}
    validation = read_table(reference / "validation.csv")
    for run in validation.itertuples():
        own = table[(table["arm"] == run.arm) & (table["seed"] == run.seed)]
        curves = read_table(runs / run.fingerprint / "curves.csv")
        assert own["validation_dice"].tolist() == curves["validation_dice"].tolist()
        assert own["train_loss"].tolist() == curves["train_loss"].tolist()


def test_equal_runs_agree_to_the_last_digit(mine):
    runs, reference = mine
    checks = verify(runs.parent, reference)
    assert checks["agrees"].all()
    assert checks["check"].value_counts().to_dict() == {"file": 4, "cases": 4, "contrast": 1}
    assert set(checks["arm"]) == {"none", "pretrained", "pretrained minus none"}


@pytest.mark.parametrize(
    ("column", "add", "mend", "check", "said"),
    [
        ("dice", 1e-9, False, "file", "changed after the evaluation"),
        ("dice", 0.01, True, "file", "contradict each other"),
        ("hd95_mm", 1e-6, True, "cases", "hd95_mm of hippocampus_"),
    ],
)
def test_a_tampered_cell_is_found(mine, column, add, mend, check, said):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    tamper(folder, column, add, mend)
    checks = verify(folder, reference).set_index("check")
    assert not checks["agrees"][check] and said in checks["detail"][check]


def elsewhere(folder, nsd=0.0, dice=0.0):
    """Make a run look as if another machine had made it, with metrics moved by so much."""
    environment = read_json(folder / "environment.json")
    write_json(folder / "environment.json", environment | {"capability": "another"})
    table = read_table(folder / "cases.csv")
    table["nsd"] += nsd
    table["dice"] += dice
    table["jaccard"] = table["dice"] / (2 - table["dice"])
    write_table(folder / "cases.csv", table)
    done = read_json(folder / "done.json")
    write_json(folder / "done.json", done | {"cases_sha256": sha256_of(folder / "cases.csv")})


def test_another_machine_gets_the_noise_between_seeds(mine):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    summary = read_table(reference / "summary.csv")
    limit = tolerance(summary, "nsd", checks=len(METRICS))
    elsewhere(folder, 0.9 * limit)
    checks = verify(folder, reference).set_index("check")
    assert checks["agrees"]["means"] and "another capability" in checks["detail"]["means"]
    elsewhere(folder, 0.2 * limit)  # 1.1 of it in all
    checks = verify(folder, reference).set_index("check")
    assert not checks["agrees"]["means"] and "furthest off is nsd" in checks["detail"]["means"]


def test_arms_whose_means_agree_may_contradict_the_reference_in_their_difference(mine):
    runs, reference = mine
    summary = read_table(reference / "summary.csv")
    names = read_table(reference / "validation.csv").set_index("fingerprint")["arm"]
    # Two seeds: each run's mean is one of twenty, their difference one alone, so its limit is less.
    limit = tolerance(summary, "dice")
    assert 1.1 * limit < tolerance(summary, "dice", checks=4 * len(METRICS))
    before = read_table(reference / "cases.csv.gz").groupby("arm")["dice"].mean()
    before = before["pretrained"] - before["none"]
    # Away from zero, so that the sign stays.
    limit = np.copysign(limit, before)
    for moved, agrees in ((0.9 * limit, True), (0.2 * limit, False)):  # 1.1 of it in all
        for folder in runs.iterdir():
            elsewhere(folder, dice=moved * (names[folder.name] == "pretrained"))
        checks = verify(runs, reference).set_index("check")
        assert checks.loc[["file", "means"], "agrees"].all()
        assert checks["agrees"]["contrast"] == agrees
    own, theirs = before + 1.1 * limit, before
    said = f"Dice {own:+.4f}, the reference's {theirs:+.4f} (tolerance {abs(limit):.4f}, "
    said += f"{abs(limit / before):.1f} times the difference)"
    assert checks["detail"]["contrast"] == said and checks["seed"]["contrast"] == "2 seeds"


@pytest.mark.parametrize(("share", "status"), [(0.9, 0), (1.1, 1)])
def test_a_contrast_that_comes_back_reversed_is_not_reproduced(
    mine, share, status, monkeypatch, capsys
):
    """Within its tolerance, the difference of two arms turns by less or more than its interval."""
    runs, reference = mine
    names = read_table(reference / "validation.csv").set_index("fingerprint")["arm"]
    before = read_table(reference / "cases.csv.gz").groupby("arm")["dice"].mean()
    before = before["pretrained"] - before["none"]
    contrasts = read_table(reference / "contrasts.csv")
    contrasts["ci_low"], contrasts["ci_high"] = before - 2 * abs(before), before + 2 * abs(before)
    write_table(reference / "contrasts.csv", contrasts)
    moved = -share * 2 * before
    assert abs(moved) < tolerance(read_table(reference / "summary.csv"), "dice")
    for folder in runs.iterdir():
        elsewhere(folder, dice=moved * (names[folder.name] == "pretrained"))
    monkeypatch.setattr("mvl.study.verify.verify.__defaults__", (reference,))
    assert main(["verify", str(runs.parent)]) == status
    said = capsys.readouterr().out
    assert ("the sign is another" in said) == bool(status)
    assert f"Dice {before + moved:+.4f}, the reference's {before:+.4f}" in said


def test_tolerances_are_pooled_over_the_arms_and_their_seeds(study):
    cases = read_table(study[1] / "cases.csv.gz")
    language = cases[cases["suite"] == "language"]
    means = language.groupby(["arm", "seed", "subject"])["dice"].mean().groupby(["arm", "seed"])
    variances = means.mean().groupby("arm").var(ddof=1).dropna()
    assert len(variances) == 2, "two arms with two seeds each: two degrees of freedom"
    # Student's t with two degrees of freedom, of which 0.135 % are larger: x / sqrt(2 + x^2) is
    # sin(a) with a known tail.
    tail = 1 - 2 * 0.0013498980316
    t = tail * (2 / (1 - tail**2)) ** 0.5
    assert tolerance(summary_table(language), "dice") == pytest.approx(
        t * 2**0.5 * variances.mean() ** 0.5
    )
    # Eight checks together may fail as often as one.
    tail = 1 - 2 * 0.0013498980316 / 8
    t = tail * (2 / (1 - tail**2)) ** 0.5
    assert tolerance(summary_table(language), "dice", checks=8) == pytest.approx(
        t * 2**0.5 * variances.mean() ** 0.5
    )
    # The same runs under the names of other suites are no further seeds.
    again = language.assign(suite="fusion", arm="1" + language["arm"].str[:2])
    both = summary_table(pd.concat([language, again]))
    assert tolerance(both, "dice") == tolerance(summary_table(language), "dice")
    single = summary_table(cases[cases["seed"] == 0])
    assert tolerance(single, "dice") == FALLBACK[""]
    assert tolerance(single, "hd95_mm") == FALLBACK["mm"]


def test_the_tolerance_fails_one_of_370_draws_however_few_seeds_there_are():
    generator, wrong, draws = np.random.default_rng(0), 0, 20_000
    columns = {"metric": "dice", "task": "t", "structure": "foreground", "n_seeds": 2}
    for _ in range(draws // 10):
        seeds = generator.standard_normal((4, 2))  # four arms of two seeds
        table = pd.DataFrame({"mean": seeds.mean(1), "sd_seeds": seeds.std(1, ddof=1)} | columns)
        apart = generator.standard_normal(10) - generator.standard_normal(10)
        wrong += (abs(apart) > tolerance(table, "dice")).sum()
    assert 0.0015 < wrong / draws < 0.0045


def test_missing_cases_and_unknown_runs_are_no_agreement(mine, tmp_path):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    table = read_table(folder / "cases.csv")
    write_table(folder / "cases.csv", table.iloc[1:])
    checks = verify(folder, reference).set_index("check")
    assert not checks["agrees"]["file"] and not checks["agrees"]["cases"]

    stranger = shutil.copytree(sorted(runs.iterdir())[1], tmp_path / "0123456789abcdef")
    checks = verify(stranger, reference).set_index("check")
    assert checks["agrees"]["cases"] is None and checks["agrees"]["file"]
    with pytest.raises(RunError, match="holds no finished run"):
        verify(tmp_path / "nowhere", reference)


def test_a_run_that_was_not_finished_or_has_no_hash_is_no_agreement(mine):
    runs, reference = mine
    failed, stopped, unsigned, _ = sorted(runs.iterdir())
    for folder in (failed, stopped):
        (folder / "done.json").unlink()
    write_json(failed / "failed.json", {"reason": "the loss is NaN"})
    write_json(unsigned / "done.json", {"test_cases": 1})
    with pytest.raises(MvlError, match="done.json lacks 'cases_sha256'"):
        verify(runs, reference)
    shutil.rmtree(unsigned)
    checks = verify(runs, reference)
    state = checks[checks["check"] == "state"].set_index("run")
    assert state["detail"].to_dict() == {
        failed.name: "the loss is NaN",
        stopped.name: "not finished",
    }
    agrees, said = conclusion(checks)
    assert agrees and said.endswith("Not compared, since not finished: 2 runs.")


@pytest.mark.parametrize("column", ["subject", "case", "structure", "nsd"])
def test_a_table_without_a_column_is_named(mine, column):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    table = read_table(folder / "cases.csv").drop(columns=column)
    write_table(folder / "cases.csv", table)
    with pytest.raises(MvlError, match=f"cases.csv lacks the column '{column}'"):
        verify(folder, reference)


def test_the_command_says_it_and_exits_accordingly(mine, monkeypatch, capsys):
    runs, reference = mine
    monkeypatch.setattr("mvl.study.verify.verify.__defaults__", (reference,))
    assert main(["verify", str(runs)]) == 0
    said = capsys.readouterr().out
    assert (
        "Reproduced: 4 of 4 runs are in the reference and agree. So does 1 difference between arms."
        in said
    )
    assert "language pretrained minus none, 2 seeds  contrast: Dice" in said
    tamper(sorted(runs.iterdir())[0], "dice", 0.001)
    assert main(["verify", str(runs)]) == 1
    assert "DIFFERS" in capsys.readouterr().out
