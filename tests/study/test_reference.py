"""The committed reference and the README's results made of it."""

import gzip
import json
import re
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

from mvl.cli import main
from mvl.config import PRESETS
from mvl.errors import MvlError, RunError
from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY
from mvl.study.reference import (
    BEGIN,
    BEST,
    END,
    GPU,
    REFERENCE,
    STUDY,
    curves_table,
    held,
    read_table,
    reference_of,
    refresh_readme,
    results_section,
    study_page,
)
from mvl.study.statistics import CONTRAST_COLUMNS, SUMMARY_COLUMNS, summary_table
from mvl.study.suites import QUESTIONS, SUITES, Arm

REFERENCES = (REFERENCE, REFERENCE / GPU)
NAMES = [folder.name for folder in REFERENCES]


def test_the_readmes_results_are_those_of_the_files():
    text = (REPOSITORY / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == results_section().strip()


def test_the_readme_begins_with_the_answers():
    table = read_table(REFERENCE / "contrasts.csv").set_index(["suite", "arm_a", "arm_b", "metric"])
    summary = read_table(REFERENCE / "summary.csv").set_index(["suite", "arm", "metric"])
    short = results_section().split("### ")[0].splitlines()
    for named, *pair in (
        ("The pre-trained block against none", "language", "pretrained", "none"),
        ("Multi-scale fusion alone", "fusion", "001", "000"),
    ):
        row = table.loc[(*pair, "dice")]
        (line,) = [line for line in short if line.startswith(f"- {named}: ")]
        assert (
            f": {row['difference']:+.4f} ({row['ci_low']:+.4f} to {row['ci_high']:+.4f}; " in line
        )
        assert row["verdict"].split()[0] in line
    (line,) = [line for line in short if line.startswith("- Means") and "on a CPU" in line]
    assert f"`vit` {summary.loc[('peers', 'vit', 'dice'), 'mean']:.3f}" in line


def test_what_a_gpu_trained_stands_apart():
    """A GPU's runs have tables of their own, and the README names the place of each."""
    places = {}
    for folder in REFERENCES:
        (device,) = read_table(folder / "cases.csv.gz")["device"].unique()
        (again,) = read_table(folder / "validation.csv")["device"].unique()
        assert device == again
        places[folder.name] = device
    assert places.pop(REFERENCE.name) == "cpu" and "cpu" not in places.values()
    summary = read_table(REFERENCE / GPU / "summary.csv").set_index(["suite", "arm", "metric"])
    lines = results_section().splitlines()
    (line,) = [line for line in lines if line.startswith("- Means") and places[GPU] in line]
    assert f"`dynunet` {summary.loc[('peers', 'dynunet', 'dice'), 'mean']:.3f}" in line
    rows = [line for line in lines if line.startswith("| `dynunet` |")]
    assert len(rows) == len(REFERENCES) and len(set(rows)) == len(rows)


def test_runs_of_two_devices_have_no_common_reference(tmp_path):
    for name, device in (("a", "cpu"), ("b", "cpu"), ("c", "NVIDIA H100")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps({"device": device}))
    a, b, c = sorted(tmp_path.iterdir())
    assert reference_of([a, b]) == reference_of([]) == REFERENCE
    assert reference_of([c]) == REFERENCE / GPU
    with pytest.raises(RunError, match="no table mixes devices; .* NVIDIA H100, cpu"):
        reference_of([a, c])


@pytest.mark.parametrize("folder", REFERENCES, ids=NAMES)
def test_the_studys_page_is_made_of_the_same_files(folder):
    assert (folder / STUDY).read_text() == study_page(folder)


def test_a_rate_that_was_tried_under_another_name_counts(tmp_path):
    folder = shutil.copytree(REFERENCE, tmp_path / "reference")
    tuning = pd.read_csv(folder / "tuning.csv", dtype={"arm": str})
    tuning = tuning[(tuning["suite"] != "language") | (tuning["arm"] != "none")]
    run = read_table(folder / "validation.csv").iloc[0]
    assert (run["suite"], run["arm"], run["seed"]) == ("language", "none", 0)
    rows = [
        run[["suite", "arm", "seed", "grid", "fingerprint"]].to_dict() | {"learning_rate": rate}
        for rate in (0.001, run["learning_rate"], 0.01, 0.02)
    ]
    for row in rows[:1] + rows[2:]:
        row["fingerprint"] = f"another {row['learning_rate']}"
    pd.concat([tuning, pd.DataFrame(rows)]).to_csv(folder / "tuning.csv", index=False)
    lines = [line for line in study_page(folder).splitlines() if line.startswith("| `000`")]
    assert len(lines) == 1 and f"| {run['learning_rate']:g} of 4 |" in lines[0]


@pytest.mark.parametrize("folder", REFERENCES, ids=NAMES)
def test_tables_keep_the_contract(folder):
    assert list(read_table(folder / "summary.csv").columns) == SUMMARY_COLUMNS
    assert list(read_table(folder / "contrasts.csv").columns) == CONTRAST_COLUMNS
    cases = read_table(folder / "cases.csv.gz")
    assert {"suite", "arm", "seed", "task", "subject", "case", "structure", *METRICS} <= set(cases)
    assert not cases["synthetic"].any() and cases["protocol_version"].nunique() == 1


@pytest.mark.parametrize("folder", REFERENCES, ids=NAMES)
def test_the_summary_is_the_cases_own(folder):
    again = summary_table(read_table(folder / "cases.csv.gz"))
    stored = read_table(folder / "summary.csv")
    pd.testing.assert_frame_equal(stored, again, check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["cases.csv.gz", "curves.csv.gz", "mechanism.csv.gz", "summary.csv", "contrasts.csv"]
)
def test_a_damaged_table_is_named(tmp_path, name):
    whole = (REFERENCE / name).read_bytes()
    zipped = gzip.compress if name.endswith(".gz") else bytes
    for content, said in (
        (whole[: len(whole) // 2] if zipped is gzip.compress else b"", "is not a readable table"),
        (b"\xff" + whole[1:], "is not a readable table"),
        (zipped(b"a,b\n1,2\n"), "lacks the column '"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match=rf"/{name} {said}"):
            read_table(tmp_path / name)


def test_curves_without_numbers_are_named(tmp_path):
    for name in ("cases.csv.gz", "validation.csv"):
        shutil.copy(REFERENCE / name, tmp_path)
    text = b"fingerprint,epoch,train_loss,validation_dice\nx,first,1,1\n"
    (tmp_path / "curves.csv.gz").write_bytes(gzip.compress(text))
    with pytest.raises(RunError, match="curves.csv.gz: the column 'epoch' does not hold numbers"):
        curves_table(tmp_path)


def test_the_reference_is_small():
    assert sum(p.stat().st_size for p in REFERENCE.rglob("*") if p.is_file()) < 12e6


def test_arms_of_digits_stay_texts():
    summary = read_table(REFERENCE / "summary.csv")
    arms = set(summary.loc[summary["suite"] == "fusion", "arm"])
    assert "000" in arms and arms <= set(SUITES["fusion"])


def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# no markers\n")
    with pytest.raises(MvlError, match="lacks one of the lines"):
        refresh_readme(tmp_path / "README.md")


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
    said = " ".join((REPOSITORY / "README.md").read_text().split())
    assert f"`best` the arm `{chosen['arm']}` of the suite `{chosen['suite']}`" in said


def test_every_arm_has_the_learning_rate_that_was_best_on_validation():
    """Rates are compared on one grid and one device: the one that tried the most of them."""
    runs = pd.concat(read_table(folder / "validation.csv") for folder in REFERENCES)
    (grid,) = runs["grid"].unique()
    tables = [read_table(folder / "tuning.csv") for folder in REFERENCES]
    for suite, arm in runs[["suite", "arm"]].drop_duplicates().itertuples(index=False):
        own = [t[(t["suite"] == suite) & (t["arm"] == arm) & (t["grid"] == grid)] for t in tables]
        most = max(own, key=len)
        best = most.loc[most["validation_dice"].idxmax()]
        assert SUITES[suite][arm].training.learning_rate == best["learning_rate"], (suite, arm)


def test_what_is_held_says_on_what_it_was_trained():
    places = held()
    runs = {
        name: set(read_table(folder / "validation.csv")["fingerprint"])
        for name, folder in {"CPU": REFERENCE, "GPU": REFERENCE / GPU}.items()
    }
    assert places.keys() == runs["CPU"] | runs["GPU"]
    for fingerprint, said in places.items():
        assert said.split(", ") == [name for name in runs if fingerprint in runs[name]]
    assert held(REFERENCE / GPU).keys() == runs["GPU"]  # a folder without gpu/ is enough


def test_an_answer_in_short_is_of_the_device_with_more_seeds():
    pair, tables = ["suite", "arm_a", "arm_b"], {}
    for name, folder in zip(("CPU", "GPU"), REFERENCES, strict=True):
        table = read_table(folder / "contrasts.csv")
        tables[name] = table[table["metric"] == "dice"].set_index(pair)
    text = results_section().partition("### ")[0]
    said = re.findall(r": ([+-][\d.]+) \(.*; (\d) seeds? on a (.PU)\), ", text)
    assert {place for *_, place in said} == {"CPU", "GPU"}
    for difference, seeds, place in said:
        own = tables[place]
        own = own[own["difference"].map("{:+.4f}".format) == difference]
        assert set(own["n_seeds"]) == {int(seeds)}
        other = tables["GPU" if place == "CPU" else "CPU"]
        rivals = other[other.index.isin(own.index)]["n_seeds"]
        assert not (rivals > int(seeds)).any()


@pytest.mark.parametrize("reference", REFERENCES, ids=NAMES)
def test_comparisons_across_kinds_of_processor_are_named(reference):
    runs, rows = (read_table(reference / f"{name}.csv") for name in ("validation", "contrasts"))
    kinds = {key: set(group["cpu"]) for key, group in runs.groupby(["suite", "arm"])}
    named = {
        (suite, pair)
        for suite, question in QUESTIONS.items()
        for said in re.findall(
            r"Across different kinds[^:]*: (.*)\.",
            study_page(reference).partition(f"### {question}\n")[2].partition("\n### ")[0],
        )
        for pair in re.findall(r"`(\S+)` minus `(\S+)`", said)
    }
    shown = {suite for suite, q in QUESTIONS.items() if f"### {q}\n" in study_page(reference)}
    assert named == {
        (row.suite, (row.arm_a, row.arm_b))
        for row in rows.itertuples()
        if row.suite in shown and kinds[row.suite, row.arm_a] != kinds[row.suite, row.arm_b]
    }
    assert bool(named) == (reference == REFERENCE)  # one GPU machine, two kinds of CPU
