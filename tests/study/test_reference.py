"""The committed reference: its tables, its model, and what they say of each other."""

import gzip
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

from mvl.cli import main
from mvl.config import PRESETS
from mvl.errors import MvlError
from mvl.experiment.metrics import METRICS
from mvl.files import write_table
from mvl.study import crossed
from mvl.study.reference import (
    BEST,
    REFERENCE,
    curves_table,
    held,
    read_table,
)
from mvl.study.statistics import CONTRAST_COLUMNS, contrast, is_primary
from mvl.study.suites import SUITES, Arm
from mvl.study.summary import SUMMARY_COLUMNS, summary_table


def test_tables_keep_the_contract():
    assert list(read_table(REFERENCE / "summary.csv").columns) == SUMMARY_COLUMNS
    assert list(read_table(REFERENCE / "contrasts.csv").columns) == CONTRAST_COLUMNS
    cases = read_table(REFERENCE / "cases.csv.gz")
    assert {"suite", "arm", "seed", "task", "subject", "case", "structure", *METRICS} <= set(cases)
    assert not cases["synthetic"].any() and cases["protocol_version"].nunique() == 1
    again, stored = summary_table(cases), read_table(REFERENCE / "summary.csv")
    pd.testing.assert_frame_equal(stored, again, check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize("name", ["cases.csv.gz", "curves.csv.gz", "summary.csv", "contrasts.csv"])
def test_a_damaged_table_is_named(tmp_path, name):
    whole = (REFERENCE / name).read_bytes()
    zipped = gzip.compress if name.endswith(".gz") else bytes
    for content, said in (
        (whole[: len(whole) // 2] if zipped is gzip.compress else b"", "is not a readable table"),
        (b"\xff" + whole[1:], "is not a readable table"),
        (zipped(b"a,b\n1,2\n"), "lacks the column '"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MvlError, match=rf"/{name} {said}"):
            read_table(tmp_path / name)


def test_curves_without_numbers_are_named(tmp_path):
    for name in ("cases.csv.gz", "validation.csv"):
        shutil.copy(REFERENCE / name, tmp_path)
    text = b"fingerprint,epoch,train_loss,validation_dice\nx,first,1,1\n"
    (tmp_path / "curves.csv.gz").write_bytes(gzip.compress(text))
    with pytest.raises(MvlError, match="curves.csv.gz: the column 'epoch' does not hold numbers"):
        curves_table(tmp_path)


def test_the_committed_model_segments_a_file_before_anything_is_trained(phantom, tmp_path, capsys):
    image = sorted((phantom / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    output = tmp_path / "mask.nii.gz"
    # A phantom of two fifths of the size is not what it was made for.
    assert main(["predict", str(image), "-o", str(output)]) == 1
    assert "field of view 14 x" in capsys.readouterr().err
    assert main(["predict", str(image), "-o", str(output), "--anyway"]) == 0
    assert "this replication's own model" in capsys.readouterr().out
    mask, original = nibabel.load(output), nibabel.load(image)
    assert mask.shape == original.shape and np.allclose(mask.affine, original.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_the_committed_model_is_the_runs_whose_results_stand_in_the_tables():
    card = (BEST / "README.md").read_text()
    cases = read_table(REFERENCE / "cases.csv.gz")
    own = cases[(cases["suite"] == "presets") & (cases["arm"] == "best") & (cases["seed"] == 0)]
    assert f"| test dice | {own.groupby('subject')['dice'].mean().mean():.4g} |" in card
    assert "CC-BY-SA 4.0" in card
    assert sum(p.stat().st_size for p in BEST.iterdir()) < 5e6


def test_best_is_what_validation_chose_of_the_suites_fusion_and_head():
    runs = read_table(REFERENCE / "validation.csv")
    runs = runs[runs["suite"].isin(["fusion", "head"]) & (runs["seed"] == 0)]  # on one fold
    chosen = runs.loc[runs["validation_dice"].idxmax()]
    assert SUITES[chosen["suite"]][chosen["arm"]] == Arm(*PRESETS["best"])


def test_every_arm_has_the_learning_rate_that_was_best_on_validation():
    """Rates are compared on one grid."""
    runs, tuning = (read_table(REFERENCE / f"{name}.csv") for name in ("validation", "tuning"))
    (grid,) = runs["grid"].unique()
    for suite, arm in runs[["suite", "arm"]].drop_duplicates().itertuples(index=False):
        tried = tuning.query("suite == @suite and arm == @arm and grid == @grid")
        best = tried.loc[tried["validation_dice"].idxmax()]
        assert SUITES[suite][arm].training.learning_rate == best["learning_rate"], (suite, arm)


def test_what_is_held_says_on_what_it_was_trained(tmp_path):
    crossed = pd.DataFrame({"fingerprint": ["a", "b"], "device": ["cpu", "NVIDIA X"]})
    write_table(tmp_path / "crossed" / "runs.csv", crossed)
    assert held(tmp_path) == {"a": "cpu", "b": "NVIDIA X"}
    runs = read_table(REFERENCE / "validation.csv")
    assert set(runs["fingerprint"]) <= held().keys()


def test_the_primary_contrast_follows_from_the_committed_cases():
    cases = read_table(REFERENCE / "cases.csv.gz")
    cases = cases.query("suite == 'language' and structure == 'foreground'")
    stored = read_table(REFERENCE / "contrasts.csv")
    (row,) = stored[is_primary(stored)].to_dict("records")
    again = contrast(cases, row["arm_a"], row["arm_b"])
    for name in ("difference", "ci_low", "ci_high", "p", "p_tost"):
        assert again[name] == pytest.approx(row[name], rel=1e-6), name


def test_the_second_protocols_tables_follow_from_its_cases():
    if not (tables := crossed.crossed_tables()):
        pytest.skip("nothing is published yet")
    assert not any(crossed.disagreements(tables).values())
