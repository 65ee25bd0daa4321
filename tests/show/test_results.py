"""The committed reference in Markdown: docs/results.md and every suite's page."""

import re
import shutil

import pandas as pd

from mvl.show.results import STUDY, study_page
from mvl.study.reference import REFERENCE, read_table
from mvl.study.suites import QUESTIONS


def test_the_references_page_is_that_of_the_tables():
    assert (REFERENCE / STUDY).read_text() == study_page()


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


def test_comparisons_across_kinds_of_processor_are_named():
    runs, rows = (read_table(REFERENCE / f"{name}.csv") for name in ("validation", "contrasts"))
    kinds = {key: set(group["cpu"]) for key, group in runs.groupby(["suite", "arm"])}
    page = study_page()
    named = {
        (suite, pair)
        for suite, question in QUESTIONS.items()
        for said in re.findall(
            r"Across different kinds[^:]*: (.*)\.",
            page.partition(f"## {question}\n")[2].partition("\n## ")[0],
        )
        for pair in re.findall(r"`(\S+)` minus `(\S+)`", said)
    }
    shown = {suite for suite, q in QUESTIONS.items() if f"## {q}\n" in page}
    assert named == {
        (row.suite, (row.arm_a, row.arm_b))
        for row in rows.itertuples()
        if row.suite in shown and kinds[row.suite, row.arm_a] != kinds[row.suite, row.arm_b]
    }
    assert named  # the study had two kinds of CPU
