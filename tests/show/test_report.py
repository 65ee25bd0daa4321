"""The report: what it shows of which runs, that it asks for nothing, that no text becomes a tag."""

import dataclasses
import os
import re
import shutil

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mvl.errors import RunError
from mvl.experiment.run import collect
from mvl.files import REPOSITORY, write_json
from mvl.show.report import write_folder_report, write_site
from mvl.show.report.notebook import read_page
from mvl.study.reference import REFERENCE, read_table
from mvl.study.runs import own_runs, sources_of
from mvl.study.statistics import contrasts_table
from mvl.study.suites import SUITES
from mvl.study.summary import summary_table
from tests.show.reports import Report, Repository, check_pages

#: A picture of one pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"
    "FcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>&\"'"


@pytest.fixture
def empty(tmp_path, monkeypatch, request):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "data"))
    if "drawn" not in request.fixturenames:  # figures take most of a report's time
        monkeypatch.setattr("mvl.show.report.page.own_pictures", lambda *_: [])
        monkeypatch.setattr("mvl.show.report.page.reference_pictures", lambda *_: [])
    return Repository(tmp_path / "repository")


@pytest.fixture
def drawn():
    """Asked for by a test of a report with its figures."""


@pytest.fixture
def two_arms(empty):
    for seed in (0, 1):
        empty.run("none", seed=seed)
        empty.run("pretrained", seed=seed, gain=0.02)
    empty.notebook(
        "00_first", new_markdown_cell("# First\n\n**The question: is it?** [n](01_next.ipynb)")
    )
    empty.notebook("01_next", new_markdown_cell("# Next"))
    return empty


def own_cases(repository):
    folders = sorted((repository.results / "runs").glob("*"))
    return pd.concat([collect(f, "language", f.name.split("-")[1]) for f in folders])


# --- numbers and verdicts ------------------------------------------------------------------


def test_numbers_are_those_of_the_tables(two_arms):
    report = two_arms.report()
    check_pages(report)
    summary = summary_table(own_cases(two_arms)).set_index(["arm", "metric"])
    rows = report.of_own("Arms of the suite language")
    assert [row["arm"] for row in rows] == ["none", "pretrained"]
    for row in rows:
        dice = summary.loc[row["arm"], "dice"]
        assert row["Dice"] == f"{dice['mean']:.3f} ± {dice['sd_subjects']:.3f}"
        assert row["seeds"] == "2"
    contrast = contrasts_table(own_cases(two_arms), [("language", "pretrained", "none")]).iloc[0]
    (row,) = report.of_own("Comparisons of the suite language")
    assert row["difference"] == f"{contrast['difference']:+.4f}"
    reference = read_table(REFERENCE / "summary.csv").query("metric == 'dice'")
    for suite, arms in reference.groupby("suite"):
        shown = report.table(f"Arms of the suite {suite}:")
        means = [row["Dice"] for label in shown if "reference" in label for row in shown[label]]
        assert sorted(text[:5] for text in means) == sorted(f"{m:.3f}" for m in arms["mean"])


@pytest.mark.parametrize(
    ("changes", "seeds", "reason"),
    [
        ({}, (0, 1), ""),
        ({}, (0,), "one seed"),
        ({"subjects": 4}, (0, 1), "fewer than 5 subjects"),
        ({"synthetic": True}, (0, 1), "synthetic data"),
    ],
)
def test_synthetic_data_few_subjects_and_one_seed_carry_no_verdict(empty, changes, seeds, reason):
    for seed in seeds:
        empty.run("000", "fusion", seed=seed, **changes)
        empty.run("111", "fusion", seed=seed, gain=0.05, **changes)
    report = empty.report()
    (row,) = report.of_own("Comparisons of the suite fusion")
    assert row["verdict"] == (f"none: {reason}" if reason else "better by at least 0.01")
    cards = report.index.select(".card.own")
    assert len(cards) == ("synthetic" not in changes)
    for card in cards:
        assert ("Verdict:" in card.get_text()) == (not reason)


def test_the_reference_is_first_and_synthetic_results_are_folded_away(empty, drawn):
    for arm in ("none", "pretrained"):
        empty.run(arm, synthetic=True)
    report = empty.report()
    check_pages(report)
    labels = [card.h3.get_text() for card in report.index.select(".card")]
    assert "Committed reference" in labels and labels[0] in ("The study", "Committed reference")
    folded = report.index.select_one("details.synthetic")
    assert not folded.has_attr("open") and folded.select("figure.own img")
    assert not [f for f in report.index.select("figure.own") if "synthetic" not in f.get_text()]
    assert all(i["alt"].startswith("Synthetic data.") for i in folded.select("figure.own img"))
    captions = [caption.get_text() for caption in report.index.select("figcaption")]
    numbers = [int(re.match(r"Figure (\d+)\.", text)[1]) for text in captions]
    assert numbers == list(range(1, len(captions) + 1))
    committed = list((REFERENCE / "figures").glob("*.png"))
    assert len(report.index.select("figure.reference")) == len(committed) > 10


def test_an_adjusted_p_is_called_so_and_no_other(empty):
    for seed in (0, 1):
        for arm in ("none", "pretrained", "random"):
            empty.run(arm, seed=seed)
    rows = empty.report().of_own("Comparisons of the suite language")
    by_pair = {row["comparison"]: row["adjusted p"] for row in rows}
    assert by_pair["pretrained minus random"].endswith("(not adjusted)")
    assert "(" not in by_pair["pretrained minus none"]


def test_the_papers_numbers_are_the_files(two_arms):
    report = two_arms.report()
    every = report.table("Every number of the paper")[""]
    table = pd.read_csv(REPOSITORY / "mvl" / "paper.csv", dtype=str)
    assert [row["value"].split(" ")[0] for row in every] == list(table["value"])


# --- which runs ----------------------------------------------------------------------------


def test_every_run_of_a_folder_is_shown(two_arms, tmp_path):
    short = two_arms.run("none", epochs=3, name="short")
    two_arms.run("v1", suite="presets", grid=[8, 8, 8], name="small")
    profile = two_arms.report()
    remarks = {row["run"]: row["remark"] for row in profile.table("Every run")[""]}
    assert remarks["short"] == "another number of epochs, 3"
    assert "No finished run" not in profile.text()
    for place, count in ((two_arms.root / "results", 6), (short.parent, 6), (short, 1)):
        report = Report(write_folder_report(place, two_arms.root))
        check_pages(report)
        rows = report.table("Every run")[""]
        assert len(rows) == count and all(re.match(r"0\.\d{3} ±", row["Dice"]) for row in rows)
        assert "No finished run" not in report.text()
    with pytest.raises(RunError, match="holds no run"):
        write_folder_report(tmp_path / "nothing", two_arms.root)


def test_an_own_run_is_the_arm_of_every_suite_that_trains_it_just_so(empty):
    empty.run("none")
    empty.run("pretrained")
    model = dataclasses.replace(SUITES["language"]["none"].model, mlp_ratio=9.5)
    empty.run("vit-mlp", model=model)
    rows = empty.report().of_own("Arms of the suite size")
    assert [row["arm"] for row in rows] == ["vit", "vit-mlp", "pretrained"]


BIGGER, SMALLER = (
    dataclasses.replace(SUITES["language"]["none"].model, mlp_ratio=ratio) for ratio in (9.5, 4.5)
)


@pytest.mark.parametrize(
    ("suite", "runs", "why", "rows"),
    [
        (
            "language",
            [("pretrained", "language", 0, {"block": "old"})]
            + [("pretrained", "language", 1, {"block": "new"})]
            + [("random", "language", 0, {"block": "its configuration's"})],
            "another language block",
            {("pretrained", 1), ("random", 1)},
        ),
        (
            "language",
            [("none", "language", 0, {"subjects": 5}), ("pretrained", "language", 0, {})],
            "other test cases",
            {("pretrained", 1)},
        ),
        (
            "data",
            [("vit-30", "data", 0, {"epochs": 200}), ("v1-30", "data", 0, {"epochs": 400})],
            "other epochs",
            {("v1-30", 1)},
        ),
        (
            "size",
            [("vit-mlp", "language", 0, {"model": BIGGER})]
            + [("vit-mlp", "language", 1, {"model": SMALLER}), ("none", "language", 0, {})],
            "another size",
            {("vit", 1), ("vit-mlp", 1)},
        ),
        (
            "language",
            [("none", "language", 0, {}), ("none", "language", 0, {"gain": 0.1})],
            "tested again since",
            {("none", 1)},
        ),
    ],
)
def test_of_runs_that_are_not_comparable_the_newest_are_shown(empty, suite, runs, why, rows):
    for place, (arm, of, seed, more) in enumerate(runs):
        folder = empty.run(arm, suite=of, seed=seed, name=f"run{place}", **more)
        os.utime(folder / "done.json", (1 + place, 1 + place))
    sources, faults = sources_of(own_runs(empty.profile, empty.root), empty.root)
    summary = sources[0].summary.query("suite == @suite")
    assert [text.startswith("Run run0 is left out") and why in text for _, text in faults] == [True]
    assert {*zip(summary["arm"], summary["n_seeds"], strict=True)} == rows


def test_verify_is_quoted_when_runs_are_the_references(empty):
    runs = read_table(REFERENCE / "validation.csv").query("suite == 'language' and seed == 0")
    cases = read_table(REFERENCE / "cases.csv.gz").query("suite == 'language' and seed == 0")
    for row in runs[runs["arm"].isin(("none", "pretrained"))].itertuples():
        own = cases[cases["arm"] == row.arm]
        columns = [*collect(empty.run(row.arm, name="columns"), "", "")]
        shutil.rmtree(empty.results / "runs" / "columns")
        own = own[[name for name in own if name in columns and name not in ("suite", "arm")]]
        folder = empty.run(row.arm, name=row.fingerprint, cases=own)
    report = empty.report()
    assert "Reproduced: 2 of 2 runs are in the reference and agree." in report.text()
    (folder / "cases.csv").write_text((folder / "cases.csv").read_text().replace("0.8", "0.7", 1))
    assert empty.report().index.select_one(".check.error")


# --- what is missing or broken -------------------------------------------------------------


def test_with_nothing_at_all_there_is_still_a_report(tmp_path):
    report = Repository(tmp_path, reference=False).report()
    check_pages(report)
    assert "No finished run" in report.text() and "Without the committed reference" in report.text()


def test_broken_files_are_reported_and_break_nothing(two_arms):
    runs = two_arms.results / "runs"
    shutil.copytree(runs / "language-none-0", runs / "no-cases")
    (runs / "no-cases" / "cases.csv").unlink()
    (runs / "no-json").mkdir()
    (runs / "no-json" / "config.json").write_text("{")
    stopped = shutil.copytree(runs / "language-none-0", runs / "stopped")
    (stopped / "done.json").unlink()
    write_json(stopped / "failed.json", {"reason": "the loss became NaN"})
    two_arms.notebook("02_torn", new_markdown_cell("# Torn"))
    (two_arms.results / "notebooks" / "02_torn.ipynb").write_text('{"cells": [')
    report = two_arms.report()
    check_pages(report)
    text = report.text()
    assert "Run no-json cannot be read: results/quick/runs/no-json/config.json" in text
    assert "Run stopped failed: the loss became NaN" in text
    assert "02_torn.ipynb is no readable notebook" in text
    assert not any(str(two_arms.root) in html for html in report.html.values())


def test_equal_inputs_give_equal_bytes_and_pages_that_are_gone_are_removed(two_arms):
    first = two_arms.report().html
    assert two_arms.report().html == first
    (two_arms.root / "notebooks" / "01_next.ipynb").unlink()
    report = two_arms.report()
    assert set(report.html) == {"index.html", "00_first.html"}
    check_pages(report)


# --- notebooks and the site ----------------------------------------------------------------


def test_states_of_notebooks_are_told(two_arms):
    error = new_output("error", ename="ValueError", evalue="no <voxel>", traceback=["no <voxel>"])
    two_arms.notebook("02_broken", new_code_cell("raise", outputs=[error]), done=False)
    two_arms.notebook("03_stopped", new_markdown_cell("# Stopped"), done=False)
    two_arms.notebook("04_absent", done=False, copy=False)
    two_arms.notebook("05_old", new_markdown_cell("# Old"))
    (two_arms.results / "notebooks" / "05_old.done.json").write_text('{"code": "", "inputs": ""}')
    report = two_arms.report()
    check_pages(report)
    states = [tag["class"][1] for tag in report.index.select(".notebooks .state")]
    assert states == ["ran", "ran", "failed", "unfinished", "missing", "outdated"]
    assert "cell 1 of 1 failed: ValueError: no <voxel>" in report.text()
    failed = report.pages["02_broken.html"]
    (link,) = failed.select(".alert a")
    assert "no <voxel>" in failed.find(id=link["href"][1:]).get_text()


def test_the_site_has_the_reference_and_the_notebooks_and_asks_nobody(two_arms, drawn):
    said = {"02_phantom": "> ## ⚠ Synthetic data", "03_table": "**SYNTHETIC DATA.**"}
    for name, text in said.items():
        output = new_output("display_data", {"text/markdown": text})
        two_arms.notebook(name, new_code_cell("b", outputs=[output]))
    page = write_site({"paper": {}, "quick": {}}, two_arms.root)
    site = Report(page)
    check_pages(site)
    phantoms = {"02_phantom.html", "03_table.html"}
    assert set(site.html) == {"index.html", "00_first.html", "01_next.html"} | phantoms
    assert (page.parent / ".nojekyll").exists()
    assert {card["class"][1] for card in site.index.select(".card")} == {"reference"}
    assert not site.index.select(".ribbon")
    assert {name for name, page in site.pages.items() if page.select(".ribbon")} == phantoms


def test_a_notebooks_page_shows_what_the_notebook_shows(tmp_path):
    table = pd.DataFrame({"arm": ["none", "a name of three words"], "dice": [0.5, 0.25]})
    styled = "<style>td {background: url(https://evil.example/x)}</style>" + table.to_html()
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a slider"}
    outputs = [
        new_output("stream", name="stdout", text="1 < 2 & 3\n"),
        new_output("stream", name="stderr", text="\r100%|##| 4/4\n"),
        new_output("execute_result", {"text/html": styled}),
        new_output(
            *("display_data", {"image/png": PIXEL}),
            metadata={"image/png": {"width": 520, "id": "kept?"}},
        ),
        new_output("display_data", widget),
    ]
    cells = [
        new_markdown_cell("# Every *kind* of $x_1$\n\n**The question: what `is` shown?**"),
        new_code_cell("epochs = 60", metadata={"tags": ["parameters"]}),
        new_code_cell("epochs = 2", metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("[that](01_next.ipynb), [gone](gone.ipynb)\n\n|n|\n|--:|\n|1.5|"),
        new_code_cell("figures.curves(runs, False)", outputs=outputs),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "x.ipynb")
    page = read_page(tmp_path / "x.ipynb", ["01_next"])
    assert page.title == "Every kind of $x_1$" and page.question == "What is shown?"
    soup = BeautifulSoup(page.content, "html.parser")
    text = soup.get_text()
    assert "1 < 2 & 3" in text and "a slider" in text and "100%|##| 4/4" in text
    assert "epochs = 2" in text and "epochs = 60" not in text and "evil" not in page.content
    assert [a.get("href") for a in soup.find_all("a")] == ["01_next.html", None]
    assert [row.get_text() for row in soup.select("table.dataframe tbody td")[1::2]] == [
        "0.50",
        "0.25",
    ]
    assert [cell.get_text() for cell in soup.select("td.n")] == ["1.5"]
    assert soup.img["alt"].startswith("Training loss and validation Dice by epoch")
    assert soup.img["width"] == "520" and "kept?" not in page.content


def test_text_from_files_stays_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "data"))
    repository = Repository(tmp_path / "r", task=f"Task{HOSTILE}".replace("/", ""), block=HOSTILE)
    for arm in ("none", "pretrained"):
        repository.run(arm)
    failed = repository.run("random", name="failed")
    (failed / "done.json").unlink()
    write_json(failed / "failed.json", {"reason": HOSTILE})
    html = f"<p onclick='x()' style='background:url(//evil.example)'>{HOSTILE}</p>"
    html += "<iframe src='https://evil.example'></iframe><link rel=stylesheet href=//evil.example>"
    html += "<svg><use href='https://evil.example/#a'/></svg><a href='javascript:x()'>go</a>"
    html += "<a href='data:text/html,x'>data</a><base href='//evil.example'><div><table><tr><td>"
    markdown = f"{HOSTILE} ![x](https://evil.example/y.png) [j](javascript:x()) ${HOSTILE}$"
    outputs = [
        new_output("stream", name="stdout", text=HOSTILE),
        new_output("display_data", {"text/html": html}),
        new_output("display_data", {"text/markdown": markdown}),
        new_output("display_data", {"image/png": f'AAAA" onerror="{HOSTILE}'}),
        new_output("display_data", {"image/svg+xml": f"<svg>{HOSTILE}</svg>"}),
        new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE]),
    ]
    name = "00_" + HOSTILE.replace("/", "")
    cells = [
        new_markdown_cell(f"# {HOSTILE}\n\n**The question: {HOSTILE}**"),
        new_code_cell(HOSTILE, outputs=outputs),
    ]
    repository.notebook(name, *cells, done=False)
    report = repository.report()
    check_pages(report)
    assert set(report.html) == {"index.html", f"{name}.html"}
    for page in report.pages.values():
        assert "<script>alert(1)</script>" in page.get_text()
        assert not page.select("[href^=javascript], [href^='data:text']")


# --- looks ---------------------------------------------------------------------------------


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_every_scheme():
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    css = (REPOSITORY / "mvl" / "show" / "report" / "templates" / "report.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    grounds = dict.fromkeys(("ink", "soft", "link", "good", "own", "reference"), "paper")
    grounds |= {"bad": "bad-ground", "warn-ink": "warn-ground"}
    assert len(schemes) == 2
    for scheme in (dict(re.findall(r"--([\w-]+): (#\w{6});", text)) for text in schemes):
        for text, ground in grounds.items():
            a, b = sorted((luminance(scheme[text]), luminance(scheme[ground])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (text, ground)
