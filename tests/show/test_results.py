"""The committed reference in Markdown: docs/results.md and every suite's page."""

import re
import shutil

import pandas as pd
import pytest

from mvl.errors import MvlError
from mvl.show.results import STUDY, refresh_results, results_section, study_page
from mvl.study.reference import GPU, REFERENCE, read_table
from mvl.study.suites import QUESTIONS

REFERENCES = (REFERENCE, REFERENCE / GPU)
NAMES = [folder.name for folder in REFERENCES]


def test_the_references_pages_are_those_of_the_tables():
    for folder in REFERENCES:
        assert (folder / STUDY).read_text() == study_page(folder)


def test_what_a_gpu_trained_stands_apart():
    """A GPU's runs have tables of their own, and the page names the place of each."""
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


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "results.md").write_text("# no markers\n")
    with pytest.raises(MvlError, match="lacks one of the lines"):
        refresh_results(tmp_path / "results.md")


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
    page = study_page(reference)
    named = {
        (suite, pair)
        for suite, question in QUESTIONS.items()
        for said in re.findall(
            r"Across different kinds[^:]*: (.*)\.",
            page.partition(f"### {question}\n")[2].partition("\n### ")[0],
        )
        for pair in re.findall(r"`(\S+)` minus `(\S+)`", said)
    }
    shown = {suite for suite, q in QUESTIONS.items() if f"### {q}\n" in page}
    assert named == {
        (row.suite, (row.arm_a, row.arm_b))
        for row in rows.itertuples()
        if row.suite in shown and kinds[row.suite, row.arm_a] != kinds[row.suite, row.arm_b]
    }
    assert bool(named) == (reference == REFERENCE)  # one GPU machine, two kinds of CPU
