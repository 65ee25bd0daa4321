"""Did I reproduce it? Equal runs pass, tampered ones do not, another machine gets a tolerance."""

import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvl.cli import main
from mvl.config import DataConfig, LanguageConfig, ModelConfig, TrainingConfig
from mvl.errors import MvlError, RunError
from mvl.experiment.metrics import METRICS
from mvl.files import read_json, sha256_of, write_json, write_table
from mvl.study.cells import TUNING_COLUMNS, fit_suite
from mvl.study.reference import (
    curves_table,
    read_table,
    update_reference,
    write_reference,
)
from mvl.study.suites import SUITES, Arm, suite_configs
from mvl.study.summary import summary_table
from mvl.study.verify import FALLBACK, tolerance, verify


@pytest.fixture(scope="module")
def study(phantom, tmp_path_factory):
    """(folder of the user's runs, reference made of equal ones): two arms of suite `language`."""
    small = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
    training = TrainingConfig(epochs=1, warmup_epochs=0)
    arms = {
        "none": Arm(ModelConfig(**small), training),
        "pretrained": Arm(ModelConfig(**small, language=LanguageConfig(layer=0)), training),
    }
    runs, reference = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("reference")
    tuned = pd.DataFrame(columns=TUNING_COLUMNS)  # no learning rate was tried but the chosen one
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "language", arms)
        configs = suite_configs("language", DataConfig(grid=(16, 24, 16)), [0, 1])
        trained, _ = fit_suite("language", configs, runs, phantom, show=False)
        folders = {("language", *cell): folder for cell, (folder, _) in trained.items()}
        names = {cell: folder.name for cell, folder in folders.items()}
        for name, value in {"REFERENCE": reference, "SEEDS": (0, 1)}.items():
            patch.setattr(f"mvl.study.reference.{name}", value)
        patch.setattr("mvl.study.reference.SUITES", {"language": arms})
        assert update_reference(DataConfig(grid=(16, 24, 16)), runs, phantom) == 4
        # The reference grows: rows of runs that are gone stay, byte for byte.
        grown = [reference / name for name in ("cases.csv.gz", "curves.csv.gz")]
        before = [path.read_bytes() for path in grown]
        only = {cell: folder for cell, folder in folders.items() if cell[2] == 1}
        write_reference(only, names, tuned, reference=reference)
        assert [path.read_bytes() for path in grown] == before
    return runs, reference


@pytest.fixture
def mine(study, tmp_path):
    """A copy of the runs that a test may spoil, and the reference."""
    runs, reference = study
    return shutil.copytree(runs, tmp_path / "runs"), reference


def change(folder, columns, signed=True, rows=slice(None)):
    """Add to columns of a run's cases.csv, with or without its new hash in done.json."""
    table = read_table(folder / "cases.csv")
    for column, number in columns.items():
        table.loc[rows, column] += number
    write_table(folder / "cases.csv", table)
    if signed:
        done = read_json(folder / "done.json")
        write_json(folder / "done.json", done | {"cases_sha256": sha256_of(folder / "cases.csv")})


def elsewhere(folder, nsd=0.0, dice=0.0):
    """Make a run look as if another machine had made it, with metrics moved by so much."""
    environment = read_json(folder / "environment.json")
    write_json(folder / "environment.json", environment | {"capability": "another"})
    old = read_table(folder / "cases.csv")["dice"]
    jaccard = (old + dice) / (2 - old - dice) - read_table(folder / "cases.csv")["jaccard"]
    change(folder, {"nsd": nsd, "dice": dice, "jaccard": jaccard})


def difference(reference):
    """pretrained minus none in the reference's Dice."""
    dice = read_table(reference / "cases.csv.gz").groupby("arm")["dice"].mean()
    return dice["pretrained"] - dice["none"]


def move_pretrained(runs, reference, dice):
    names = read_table(reference / "validation.csv").set_index("fingerprint")["arm"]
    for folder in runs.iterdir():
        elsewhere(folder, dice=dice * (names[folder.name] == "pretrained"))


def test_the_reference_keeps_the_curves_of_its_runs(study):
    runs, reference = study
    table = curves_table(reference)
    assert set(table["arm"]) == {"none", "pretrained"} and set(table["fraction"]) == {1.0}
    for run in read_table(reference / "validation.csv").itertuples():
        kept = table[(table["arm"] == run.arm) & (table["seed"] == run.seed)]
        curves = read_table(runs / run.fingerprint / "curves.csv")
        for column in ("validation_dice", "train_loss"):
            assert kept[column].tolist() == curves[column].tolist()


def test_equal_runs_agree_to_the_last_digit(mine, monkeypatch, capsys):
    runs, reference = mine
    checks = verify(runs.parent, reference)
    assert checks["agrees"].all()
    assert checks["check"].value_counts().to_dict() == {"file": 4, "cases": 4, "contrast": 1}
    assert set(checks["arm"]) == {"none", "pretrained", "pretrained minus none"}
    # And the command says so.
    monkeypatch.setattr("mvl.study.verify.verify.__defaults__", (reference,))
    assert main(["verify", str(runs)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "4 of 4 runs" in first and len(lines) == 9
    assert main(["verify", str(runs), "--verbose"]) == 0
    output = capsys.readouterr().out
    assert all(folder.name in output for folder in runs.iterdir())
    change(sorted(runs.iterdir())[0], {"dice": 0.001}, signed=False)
    assert main(["verify", str(runs)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "number", "signed", "check", "words"),
    [
        ("dice", 1e-9, False, "file", "SHA-256"),
        ("dice", 0.01, True, "file", "Jaccard contradict"),
        ("hd95_mm", 1e-6, True, "cases", "hd95_mm of hippocampus_"),
    ],
)
def test_a_tampered_cell_is_found(mine, column, number, signed, check, words):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    change(folder, {column: number}, signed, rows=0)
    checks = verify(folder, reference).set_index("check")
    assert not checks["agrees"][check] and words in checks["detail"][check]


def test_another_machine_gets_the_noise_between_seeds(mine):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    limit = tolerance(read_table(reference / "summary.csv"), "nsd", checks=len(METRICS))
    for moved, agrees in ((0.9 * limit, True), (0.2 * limit, False)):  # 1.1 of it in all
        elsewhere(folder, moved)
        checks = verify(folder, reference).set_index("check")
        assert checks["agrees"]["means"] == agrees
    detail = checks["detail"]["means"]
    assert "capability" in detail and "nsd" in detail


def test_arms_whose_means_agree_may_contradict_the_reference_in_their_difference(mine):
    runs, reference = mine
    summary, before = read_table(reference / "summary.csv"), difference(reference)
    # Two seeds: each run's mean is one of twenty, their difference one alone, so its limit is less.
    limit = tolerance(summary, "dice")
    assert 1.1 * limit < tolerance(summary, "dice", checks=4 * len(METRICS))
    # Away from zero, so that the sign stays.
    limit = np.copysign(limit, before)
    for moved, agrees in ((0.9 * limit, True), (0.2 * limit, False)):  # 1.1 of it in all
        move_pretrained(runs, reference, moved)
        checks = verify(runs, reference).set_index("check")
        assert checks.loc[["file", "means"], "agrees"].all()
        assert checks["agrees"]["contrast"] == agrees
    assert f"Dice {before + 1.1 * limit:+.4f}" in checks["detail"]["contrast"]
    assert f"tolerance {abs(limit):.4f}" in checks["detail"]["contrast"]


@pytest.mark.parametrize(("share", "reversed_"), [(0.9, False), (1.1, True)])
def test_a_contrast_that_comes_back_reversed_is_not_reproduced(mine, share, reversed_, tmp_path):
    """Within its tolerance, the difference of two arms turns by less or more than its interval."""
    runs, reference = mine[0], shutil.copytree(mine[1], tmp_path / "reference")
    before = difference(reference)
    contrasts = read_table(reference / "contrasts.csv")
    contrasts["ci_low"], contrasts["ci_high"] = before - 2 * abs(before), before + 2 * abs(before)
    write_table(reference / "contrasts.csv", contrasts)
    moved = -share * 2 * before
    assert abs(moved) < tolerance(read_table(reference / "summary.csv"), "dice")
    move_pretrained(runs, reference, moved)
    checks = verify(runs.parent, reference).set_index("check")
    assert checks["agrees"]["contrast"] != reversed_


def test_tolerances_are_pooled_over_the_arms_and_their_seeds(study):
    cases = read_table(study[1] / "cases.csv.gz")
    means = cases.groupby(["arm", "seed", "subject"])["dice"].mean().groupby(["arm", "seed"])
    variances = means.mean().groupby("arm").var(ddof=1).dropna()
    assert len(variances) == 2, "two arms with two seeds each: two degrees of freedom"
    for checks in (1, 8):  # eight checks together may fail as often as one
        # Student's t with two degrees of freedom, of which 0.135 % are larger: x / sqrt(2 + x^2)
        # is sin(a) with a known tail.
        tail = 1 - 2 * 0.0013498980316 / checks
        t = tail * (2 / (1 - tail**2)) ** 0.5
        assert tolerance(summary_table(cases), "dice", checks) == pytest.approx(
            t * 2**0.5 * variances.mean() ** 0.5
        )
    # The same runs under the names of other suites are no further seeds.
    again = cases.assign(suite="fusion", arm="1" + cases["arm"].str[:2])
    both = summary_table(pd.concat([cases, again]))
    assert tolerance(both, "dice") == tolerance(summary_table(cases), "dice")
    single = summary_table(cases[cases["seed"] == 0])
    assert tolerance(single, "dice") == FALLBACK[""]
    assert tolerance(single, "hd95_mm") == FALLBACK["mm"]


def test_the_tolerance_fails_one_of_370_draws_however_few_seeds_there_are():
    """Averaged over tables of four arms with two seeds each, whose deviations are drawn."""
    generator, shares = np.random.default_rng(0), []
    columns = {"metric": "dice", "task": "t", "structure": "foreground", "n_seeds": 2}
    for _ in range(400):
        seeds = generator.standard_normal((4, 2))
        table = pd.DataFrame({"mean": seeds.mean(1), "sd_seeds": seeds.std(1, ddof=1)} | columns)
        # Two runs of one arm lie apart by a normal number of variance 2.
        shares.append(2 * stats.norm.sf(tolerance(table, "dice") / 2**0.5))
    assert 0.0015 < np.mean(shares) < 0.0045


def test_missing_cases_and_unknown_runs_are_no_agreement(mine, tmp_path):
    runs, reference = mine
    folder = sorted(runs.iterdir())[0]
    table = read_table(folder / "cases.csv")
    write_table(folder / "cases.csv", table.iloc[1:])
    checks = verify(folder, reference).set_index("check")
    assert not checks["agrees"]["file"] and not checks["agrees"]["cases"]
    for column in ("case", "nsd"):
        write_table(folder / "cases.csv", table.drop(columns=column))
        with pytest.raises(MvlError, match=f"cases.csv lacks the column '{column}'"):
            verify(folder, reference)

    stranger = shutil.copytree(sorted(runs.iterdir())[1], tmp_path / "0123456789abcdef")
    checks = verify(stranger, reference).set_index("check")
    assert checks["agrees"]["cases"] is None and checks["agrees"]["file"]
    with pytest.raises(RunError, match="no finished run"):
        verify(tmp_path / "nowhere", reference)


def test_a_run_that_was_not_finished_or_has_no_hash_is_no_agreement(mine):
    runs, reference = mine
    failed, stopped, unsigned, _ = sorted(runs.iterdir())
    for folder in (failed, stopped):
        (folder / "done.json").unlink()
    write_json(failed / "failed.json", {"reason": "the loss is NaN"})
    write_json(unsigned / "done.json", {"test_cases": 1})
    with pytest.raises(MvlError, match="cases_sha256"):
        verify(runs, reference)
    shutil.rmtree(unsigned)
    checks = verify(runs, reference)
    state = checks[checks["check"] == "state"].set_index("run")["detail"]
    assert state.to_dict() == {failed.name: "the loss is NaN", stopped.name: "not finished"}


def test_one_seed_may_lie_further_off_by_the_root_of_two(mine):
    runs, reference = mine
    table = read_table(reference / "validation.csv")
    for name in table["fingerprint"][table["seed"] == 1]:
        shutil.rmtree(runs / name)
    dice = read_table(reference / "cases.csv.gz").query("seed == 0").groupby("arm")["dice"].mean()
    limit = tolerance(read_table(reference / "summary.csv"), "dice")
    limit = np.copysign(limit, dice["pretrained"] - dice["none"])  # so that the sign stays
    for moved, agrees in ((1.3 * limit, True), (0.2 * limit, False)):  # 1.5 of it in all
        move_pretrained(runs, reference, moved)
        assert verify(runs, reference).set_index("check")["agrees"]["contrast"] == agrees
