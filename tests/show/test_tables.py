"""Tables: what is written is what was measured, in each of the three forms."""

import re

import mistune
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from mvl.experiment.metrics import METRICS
from mvl.show import tables
from mvl.show.report.render import table
from mvl.show.sentences import NOTHING
from mvl.study.reference import read_table
from mvl.study.statistics import contrasts_table
from mvl.study.summary import summary_table

#: Every character that one of the forms could take for markup.
HOSTILE = r"a|b \ 5 % & $x_1$ #{y} ~z^2 <i> *b* – 3 × 2"


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    rows = [
        {"suite": "fusion", "arm": arm, "seed": seed, "task": "MyTask", "subject": f"s{k}"}
        | {"case": f"c{k}", "structure": "foreground", "block": "", "host": "vit"}
        | {"fraction": 1.0, "epochs": 2, "protocol_version": 1, "synthetic": True}
        | {name: rng.random() for name in METRICS}
        for arm in ("000", "111")
        for seed in (0, 1)
        for k in range(5)
    ]
    return pd.DataFrame(rows)


def read_markdown(text):
    """(heads, rows) of the table as another program reads it."""
    return read_html(mistune.create_markdown(plugins=["table"])(text))


def read_html(text):
    page = BeautifulSoup(text, "html.parser")
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")]
    return rows[0], rows[1:]


#: LaTeX as it is typeset.
TYPESET = {
    r"\textbackslash ": "\\",
    r"\textasciitilde ": "~",
    r"\textasciicircum ": "^",
    r"\space ": " ",
    "−": "-",
}


def typeset(text):
    """What a reader sees of a piece of LaTeX, one command at a time."""
    commands = "|".join(map(re.escape, TYPESET))
    pattern = rf"({commands})|\\([&%$#_{{}}])|([^\\$&%#_{{}}~^])"
    assert re.fullmatch(f"(?:{pattern})*", text), f"markup that nobody meant: {text!r}"
    return re.sub(pattern, lambda found: TYPESET.get(found[1]) or found[2] or found[3], text)


def read_latex(text):
    """(heads, rows) as typeset."""
    body = re.search(r"\\toprule\n(.*?) \\\\\n\\midrule\n(.*)\\bottomrule", text, re.S)
    lines = [body[1], *(line.removesuffix(r" \\") for line in body[2].splitlines())]
    rows = [[typeset(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]
    return rows[0], rows[1:]


def test_a_row_is_the_summarys(cases):
    shown = tables.arms(summary_table(cases))
    assert list(shown) == [
        *("arm", "subjects", "cases", "seeds", "epochs", "Dice", "NSD", "HD95 (mm)"),
    ]
    assert shown["arm"].tolist() == ["000", "111"] and set(shown["seeds"]) == {"2"}
    for arm, rows in cases.groupby("arm"):
        row = shown[shown["arm"] == arm].iloc[0]
        for column, metric, digits in (("Dice", "dice", 3), ("HD95 (mm)", "hd95_mm", 2)):
            by_subject = rows.groupby("subject")[metric].mean()
            expected = f"{by_subject.mean():.{digits}f} ± {by_subject.std():.{digits}f}"
            assert row[column] == expected


def test_one_subject_has_no_spread_and_a_missing_metric_is_not_zero(cases):
    one = summary_table(cases[cases["subject"] == "s0"])
    assert all("±" not in text for text in tables.arms(one)["Dice"])
    assert set(tables.arms(one[one["metric"] == "dice"])["NSD"]) == {NOTHING}


def test_seeds_of_another_budget_have_a_row_with_their_runs(cases):
    longer = cases.assign(epochs=np.where(cases["seed"] == 1, 9, 2))
    runs = longer[["arm", "seed", "epochs"]].drop_duplicates()
    runs = runs.assign(trained_parameters=1000, learning_rate=0.003)
    runs = runs.assign(validation_dice=runs["epochs"] / 10)
    shown = tables.arms(summary_table(longer), runs=runs, order=["111", "000"])
    assert shown[["arm", "epochs", "validation Dice"]].to_numpy().tolist() == [
        *(["111", "2", "0.200"], ["111", "9", "0.900"]),
        *(["000", "2", "0.200"], ["000", "9", "0.900"]),
    ]
    assert set(shown["trained weights"]) == {"1,000"}


def test_task_and_structure_are_columns_where_there_are_several(cases):
    both = pd.concat([cases, cases.assign(task="Other", structure="rim")])
    assert list(tables.arms(summary_table(both)))[:3] == ["task", "structure", "arm"]


@pytest.mark.parametrize("kind", ["arms", "comparisons"])
def test_what_is_written_is_read_back(cases, tmp_path, kind):
    if kind == "arms":
        rows = summary_table(cases)
        shown = tables.arms(rows)
    else:
        rows = contrasts_table(cases, [("fusion", "111", "000")], list(METRICS))
        shown = tables.comparisons(rows)
    tables.write(tmp_path / "table", rows, shown, "Five subjects, 2 seeds: 95 % of <all>")
    pd.testing.assert_frame_equal(
        read_table(tmp_path / "table.csv"), rows.fillna({"block": ""}), check_dtype=False, rtol=1e-8
    )
    texts = {ending: (tmp_path / f"table.{ending}").read_text("utf-8") for ending in ("md", "tex")}
    html = table([("", "", shown.iloc[:1]), ("", "", shown.iloc[1:])], "c")
    expected = (list(shown), shown.to_numpy().tolist())
    assert read_markdown(texts["md"]) == read_latex(texts["tex"]) == read_html(html) == expected
    assert texts["md"].startswith("Five subjects, 2 seeds: 95 % of ")
    assert r"\caption{Five subjects, 2 seeds: 95 \% of <all>}" in texts["tex"]
    assert r"\label{tab:table}" in texts["tex"]


def test_nothing_in_a_table_becomes_markup():
    shown = pd.DataFrame({HOSTILE: [HOSTILE, "-1.5"], "n": ["+0.25 ± 0.5", "< 0.001"]})
    expected = ([HOSTILE, "n"], [[HOSTILE, "+0.25 ± 0.5"], ["-1.5", "< 0.001"]])
    assert read_latex(tables.latex(shown, HOSTILE, "tab:x")) == expected
    html = BeautifulSoup(table([("own", HOSTILE, shown)], HOSTILE, code=["n"]), "html.parser")
    assert html.caption.get_text() == html.select_one("tr.group").get_text() == HOSTILE
    assert not html.find("i")
    assert [cell.get_text() for cell in html.select("td code")] == ["+0.25 ± 0.5", "< 0.001"]
    shown = pd.DataFrame({"a|b": ["c|d", "\\"]})
    assert read_markdown(tables.markdown(shown)) == (["a|b"], [["c|d"], ["\\"]])


def test_numbers_are_to_the_right_with_a_minus_not_a_hyphen(cases):
    rows = contrasts_table(cases, [("fusion", "111", "000")], ["dice"])
    shown = tables.comparisons(rows.assign(difference=-0.25))
    tex = tables.latex(shown, "c", "l")
    assert "−0.2500" in tex and r"\begin{tabular}{llrrrrrl}" in tex
    html = BeautifulSoup(table([("", "", shown)], "c"), "html.parser")
    heads = {cell.get_text() for cell in html.select("thead th.n")}
    assert heads == {"subjects", "seeds", "difference", "95 % interval", "p"}
    assert "| ---: |" in tables.markdown(pd.DataFrame({"n": ["1", "2"]}))
