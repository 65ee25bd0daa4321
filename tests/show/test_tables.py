"""Tables: what is written is what was measured, in each of the three forms."""

import re

import mistune
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from mvl.experiment.metrics import METRICS
from mvl.show import tables
from mvl.study.reference import REFERENCE, read_table
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
    """The table as another program reads it: (caption, heads, rows)."""
    page = BeautifulSoup(mistune.create_markdown(plugins=["table"])(text), "html.parser")
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")]
    return page.p.get_text(), rows[0], rows[1:]


#: LaTeX as it is typeset.
TYPESET = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"$\pm$": "±",
    r"$\times$": "×",
    "--": "–",
}


def typeset(text):
    """What a reader sees of a piece of LaTeX, one command at a time."""
    commands = "|".join(map(re.escape, TYPESET))
    pattern = rf"({commands})|\\([&%$#_{{}}])|\$([-+<>|])\$|([^\\$&%#_{{}}~^])"
    pieces, end = [], 0
    while end < len(text):
        found = re.compile(pattern).match(text, end)
        assert found, f"markup that nobody meant: {text[end:]!r}"
        command, *characters = found.groups()
        pieces.append(TYPESET[command] if command else next(c for c in characters if c))
        end = found.end()
    return "".join(pieces)


def read_latex(text):
    """(caption, heads, rows) as typeset."""
    body = re.search(r"\\toprule\n(.*?) \\\\\n\\midrule\n(.*)\\bottomrule", text, re.S)
    lines = [body[1], *(line.removesuffix(r" \\") for line in body[2].splitlines())]
    rows = [[typeset(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]
    return typeset(re.search(r"\\caption\{(.*)\}\n", text)[1]), rows[0], rows[1:]


def test_a_row_is_the_summarys(cases):
    summary = summary_table(cases)
    shown = tables.means(summary)
    assert list(shown) == [
        *("arm", "subjects", "cases", "seeds", "epochs", "Dice", "NSD", "HD95 (mm)"),
    ]
    assert shown["arm"].tolist() == ["000", "111"] and set(shown["seeds"]) == {"2"}
    for arm, own in cases.groupby("arm"):
        row = shown[shown["arm"] == arm].iloc[0]
        for column, metric, digits in (("Dice", "dice", 3), ("HD95 (mm)", "hd95_mm", 2)):
            by_subject = own.groupby("subject")[metric].mean()
            expected = f"{by_subject.mean():.{digits}f} ± {by_subject.std():.{digits}f}"
            assert row[column] == expected


def test_one_subject_has_no_spread_and_a_missing_metric_is_not_zero(cases):
    one = summary_table(cases[cases["subject"] == "s0"])
    assert all("±" not in text for text in tables.means(one)["Dice"])
    assert set(tables.means(one[one["metric"] == "dice"])["NSD"]) == {tables.NOTHING}


def test_seeds_of_another_budget_have_a_row_of_their_own(cases):
    longer = cases.assign(epochs=np.where(cases["seed"] == 1, 9, 2))
    shown = tables.means(summary_table(longer))
    assert list(zip(shown["arm"], shown["epochs"], strict=True)) == [
        *(("000", "2"), ("000", "9"), ("111", "2"), ("111", "9")),
    ]


def test_task_and_structure_stand_where_there_are_several(cases):
    both = pd.concat([cases, cases.assign(task="Other", structure="rim")])
    assert list(tables.means(summary_table(both)))[:3] == ["task", "structure", "arm"]


@pytest.mark.parametrize("kind", ["means", "differences"])
def test_what_is_written_is_read_back(cases, tmp_path, kind):
    if kind == "means":
        rows = summary_table(cases)
        shown = tables.means(rows)
    else:
        rows = contrasts_table(cases, [("fusion", "111", "000")], list(METRICS))
        shown = tables.differences(rows)
    tables.write(tmp_path / "table", rows, shown, "Five subjects, 2 seeds: 95 % of <all>")
    pd.testing.assert_frame_equal(
        read_table(tmp_path / "table.csv"), rows.fillna({"block": ""}), check_dtype=False, rtol=1e-8
    )
    for read, ending in ((read_markdown, "md"), (read_latex, "tex")):
        caption, heads, body = read((tmp_path / f"table.{ending}").read_text("utf-8"))
        assert caption.startswith("Five subjects, 2 seeds: 95 % of ")
        assert heads == list(shown)
        assert body == shown.to_numpy().tolist()
    tex = (tmp_path / "table.tex").read_text()
    assert r"\label{tab:table}" in tex and tex.count(r"\begin{tabular}") == 1


def test_nothing_in_a_table_becomes_markup():
    shown = pd.DataFrame({HOSTILE: [HOSTILE, "-1.5"], "n": ["+0.25 ± 0.5", "< 0.001"]})
    assert read_latex(tables.latex(shown, HOSTILE, "tab:x"))[0] == HOSTILE
    assert read_latex(tables.latex(shown, "c", "tab:x"))[1:] == (
        [HOSTILE, "n"],
        [[HOSTILE, "+0.25 ± 0.5"], ["-1.5", "< 0.001"]],
    )
    _, heads, body = read_markdown(tables.markdown(pd.DataFrame({"a|b": ["c|d", "\\"]}), "x"))
    assert (heads, body) == (["a|b"], [["c|d"], ["\\"]])


def test_numbers_stand_to_the_right_with_a_minus_not_a_hyphen(cases):
    rows = contrasts_table(cases, [("fusion", "111", "000")], ["dice"])
    tex = tables.latex(tables.differences(rows.assign(difference=-0.25)), "c", "l")
    assert "$-$0.2500" in tex and r"\begin{tabular}{llrrrlrl}" in tex
    assert "| ---: |" in tables.markdown(pd.DataFrame({"n": ["1", "2"]}), "c")


def test_the_references_tables_can_be_read():
    summary = read_table(REFERENCE / "summary.csv")
    for suite, own in summary.groupby("suite"):
        dice = own[own["metric"] == "dice"]
        expected = sorted(f"{mean:.3f}" for mean in dice["mean"])
        assert sorted(text.split(" ")[0] for text in tables.means(own)["Dice"]) == expected, suite
