"""The report: what it shows, that it asks nobody for anything, and that no text becomes a tag.

Repositories, runs and executed notebooks are made by hand here; nothing is trained or executed.
"""

import base64
import dataclasses
import json
import os
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mvl.config import ExperimentConfig
from mvl.data.splits import Split
from mvl.data.tasks import TASKS
from mvl.experiment.run import collect
from mvl.files import REPOSITORY, sha256_of, write_json, write_table
from mvl.runner.execute import Job, outdated
from mvl.show.report import write_report
from mvl.show.report.notebook import read_page
from mvl.show.sentences import sentence
from mvl.study.profiles import load_profile
from mvl.study.reference import REFERENCE, read_table
from mvl.study.runs import data_of, own_runs, sources_of
from mvl.study.statistics import contrasts_table
from mvl.study.suites import SUITES
from mvl.study.summary import summary_table

#: A picture of one pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"
    "FcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>&\"'"
ENVIRONMENT = {
    "python": "3.12.1",
    "system": "Linux x86_64",
    "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
    "device": "cpu",
    "capability": "AVX512",
    "dtype": "float32",
    "threads": 1,
    "commit": "0123456789abcdef0123456789abcdef01234567",
}


#: The reference's tables and figures are shown, its trained model is not.
_no_model = shutil.ignore_patterns("best")


class Repository:
    """A folder with a profile, notebooks, and the committed reference."""

    def __init__(self, root, profile="quick", reference=True, **changes):
        self.root, self.name = root, profile
        parameters = yaml.safe_load((REPOSITORY / "profiles" / f"{profile}.yaml").read_text())
        self.profile = parameters | changes
        self.results = root / "results" / profile
        (root / "profiles").mkdir(parents=True)
        (root / "notebooks").mkdir()
        (root / "profiles" / f"{profile}.yaml").write_text(yaml.safe_dump(self.profile))
        if reference:
            shutil.copytree(REFERENCE, root / "results" / "reference", ignore=_no_model)

    def run(
        self, arm="none", suite="language", seed=0, gain=0.0, synthetic=False, name=None, **cfg
    ):
        """A finished run folder, as an evaluation would have left it."""
        spec = SUITES[suite][arm]
        model = spec.model
        if model.language:
            source = self.profile["block"]
            model = dataclasses.replace(
                model, language=dataclasses.replace(model.language, source=source)
            )
        usual = data_of(cfg.get("task", self.profile["task"]), self.profile)
        data = dataclasses.replace(
            usual,
            grid=tuple(cfg.get("grid", usual.grid)),
            fit=cfg.get("fit", usual.fit),
            fraction=spec.fraction,
        )
        epochs = cfg.get("epochs", self.profile["epochs"])
        training = dataclasses.replace(spec.training, epochs=epochs)
        config = ExperimentConfig(data, cfg.get("model", model), training, seed)
        folder = self.results / "runs" / (name or f"{suite}-{arm}-{seed}")
        folder.mkdir(parents=True)
        stored = {"config": config.to_dict(), "fingerprint": folder.name, "protocol_version": 1}
        write_json(folder / "config.json", stored)
        task = TASKS["Task04_Hippocampus"]
        write_json(folder / "task.json", dataclasses.asdict(task) | {"name": data.task})
        cases = self.cases(seed, gain, len(arm)).iloc[: cfg.get("cases")]
        names = sorted(cases["case"])
        identity = {"voxels": dict.fromkeys(names, "0"), "facts": task.facts(), "files": ""}
        identity["subjects"] = dict(zip(cases["case"], cases["subject"], strict=True))
        write_json(folder / "identity.json", identity | {"folder": "nowhere"})
        Split((), (), tuple(names)).save(folder / "split.json")
        write_json(folder / "environment.json", ENVIRONMENT)
        if model.language:
            block = {"source": model.language.source, "revision": "1", "layer": 5}
            block["sha256"] = cfg.get("block", "ab")
            write_json(folder / "block.json", block)
        write_table(folder / "cases.csv", cases)
        done = {
            "validation_dice": 0.81 + gain,
            "trained_parameters": 884416,
            "parameters": 884416,
            "seconds": 12.3,
        }
        done |= {"cases_sha256": sha256_of(folder / "cases.csv"), "best_epoch": 1, "test_cases": 12}
        write_json(folder / "done.json", done)
        return folder

    def cases(self, seed=0, gain=0.0, draw=0):
        """Twelve cases of six subjects; arms differ by their gain and a little noise."""
        subjects, noise = np.random.default_rng(seed), np.random.default_rng([seed, draw])
        dice = 0.8 + 0.03 * subjects.standard_normal(12) + 0.005 * noise.standard_normal(12)
        dice = np.clip(dice + gain, 0, 1)
        rows = {"case": [f"case_{n:02d}" for n in range(12)], "structure": "foreground"}
        rows["subject"] = [f"subject_{n // 2}" for n in range(12)]
        rows |= {"dice": dice, "jaccard": dice / (2 - dice), "accuracy": 0.98, "precision": dice}
        rows |= {"sensitivity": dice, "specificity": 0.99, "hd95_mm": 3 - 2 * dice, "nsd": dice}
        return pd.DataFrame(rows)

    def notebook(self, name, *cells, done=True, copy=True):
        """A notebook of the story and, if `copy`, its executed copy with the cells' outputs."""
        bare = new_notebook(cells=[new_markdown_cell(f"# {name}")])
        nbformat.write(bare, self.root / "notebooks" / f"{name}.ipynb")
        if copy:
            folder = self.results / "notebooks"
            folder.mkdir(parents=True, exist_ok=True)
            executed = new_notebook(cells=list(cells))
            executed.metadata["papermill"] = {
                "start_time": "2026-01-02T03:04:05.678901",
                "duration": 6.7,
            }
            nbformat.write(executed, folder / f"{name}.ipynb")
        if done:
            job = Job(self.root / "notebooks" / f"{name}.ipynb", self.profile, self.root)
            write_json(job.record, job.made_of())

    def report(self):
        parameters = load_profile(self.name, self.root)
        return Report(write_report(parameters, outdated(parameters, self.root), self.root).parent)


class Report:
    """What was written, page by page."""

    def __init__(self, folder):
        self.folder = folder
        self.html = {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir())}
        self.pages = {name: BeautifulSoup(text, "html.parser") for name, text in self.html.items()}
        self.index = self.pages["index.html"]

    def text(self, page="index.html"):
        return " ".join(self.pages[page].get_text(" ").split())

    def table(self, caption):
        """{label of a group, or "": list of {column: cell}} of the table with such a caption."""
        for table in self.index.find_all("table"):
            if table.caption.get_text().startswith(caption):
                break
        else:
            raise AssertionError(f"no table {caption!r}")
        heads = [cell.get_text() for cell in table.thead.find_all("th")]
        found, label = {}, ""
        for row in table.select("tbody tr"):
            cells = [cell.get_text() for cell in row.find_all(["th", "td"])]
            if row.get("class") == ["group"]:
                label = cells[0]
            else:
                found.setdefault(label, []).append(dict(zip(heads, cells, strict=True)))
        return found


@pytest.fixture
def empty(tmp_path, monkeypatch, request):
    monkeypatch.setenv("MVL_DATA_ROOT", str(tmp_path / "data"))
    if "drawn" not in request.fixturenames:  # figures take most of a report's time
        monkeypatch.setattr("mvl.show.report.page.pictures", lambda *_: [])
    return Repository(tmp_path / "repository")


@pytest.fixture
def drawn():
    """Asked for by a test of a report with its figures."""


@pytest.fixture
def two_arms(empty):
    """The default profile with both arms trained, and a notebook of each kind of output."""
    return with_two_arms(empty)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """(such a repository, its report), for tests that change nothing."""
    folder = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MVL_DATA_ROOT", str(folder / "data"))
        repository = with_two_arms(Repository(folder / "repository"))
        yield repository, repository.report()


def with_two_arms(repository):
    for seed in (0, 1):
        repository.run("none", seed=seed)
        repository.run("pretrained", seed=seed, gain=0.02)
    everything(repository)
    return repository


def everything(repository):
    """A notebook with every kind of output that the notebooks of the story have."""
    table = pd.DataFrame({"arm": ["none", "v1"], "dice": [0.5, 0.25]}).set_index("arm")
    styled = "<style>td {background: url(https://evil.example/x)}</style>" + table.to_html()
    picture = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    outputs = [
        new_output("stream", name="stdout", text="1 < 2 & 3\n"),
        new_output("stream", name="stderr", text="\r  0%|  | 0/4"),
        new_output("stream", name="stderr", text="\r100%|##| 4/4\n"),
        new_output("execute_result", {"text/html": styled, "text/plain": "x"}),
        picture,
    ]
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a slider"}
    last = [new_output("display_data", {"text/markdown": "The mean is **0.5**."})]
    repository.notebook(
        "00_everything",
        new_markdown_cell("# Every *kind* of $x_1$\n\n**The question: what `is` shown?**"),
        new_code_cell("epochs = 60", metadata={"tags": ["parameters"]}),
        new_code_cell("epochs = 2", metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("## Part\n\n#### Too deep\n\nInline $a_1$, and\n\n$$\\frac{1}{2}$$"),
        new_code_cell("figures.curves(runs, False)", outputs=outputs),
        new_markdown_cell(
            "See [that](01_next.ipynb), [gone](gone.ipynb), [it](https://a.example), "
            "[![badge](https://a.example/b.svg)](https://a.example/c)"
        ),
        new_code_cell("slider", outputs=[new_output("display_data", widget)]),
        new_code_cell("plain", outputs=[picture]),
        new_code_cell("answer", outputs=last),
    )
    repository.notebook("01_next", new_markdown_cell("# Next"))


# --- what every page is --------------------------------------------------------------------

VOID = {"meta", "link", "img", "br", "hr", "input", "path"}


class Strict(HTMLParser):
    """Fails on a tag that is not closed, an attribute or an id that is there twice."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.css = [], [], []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.css.append(data)


def check_page(report, name):
    """Well formed, accessible in what can be seen from the source, and asking for nothing."""
    strict = Strict()
    strict.feed(report.html[name])
    strict.close()
    assert strict.open == [], name
    ids = [attributes["id"] for _, attributes in strict.tags if "id" in attributes]
    assert len(ids) == len(set(ids))

    # Nothing is requested: by an address, by a style, or by a document inside the document.
    forbidden = {"script", "iframe", "frame", "object", "embed", "base", "form", "audio", "video"}
    assert not forbidden & {tag for tag, _ in strict.tags}
    for tag, attributes in strict.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "srcset"]
        for key in {"src", "data", "poster", "background", "action"} & attributes.keys():
            assert attributes[key].startswith("data:image/"), (tag, key, attributes[key][:80])
        if tag == "link":
            assert attributes["rel"] == "icon" and attributes["href"].startswith("data:")
    styles = " ".join(strict.css) + " ".join(a.get("style", "") for _, a in strict.tags)
    assert "url(" not in styles and "@import" not in styles
    policy = report.pages[name].find("meta", attrs={"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    for source in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", report.html[name]):
        drawn = base64.b64decode(source).decode()
        assert not re.search(r"(href|src)=\"(?!#)", drawn) and "@import" not in drawn

    for tag, attributes in strict.tags:
        if tag == "img":
            assert attributes["alt"].strip()
        if tag == "a":
            check_link(report, name, attributes["href"])

    page = report.pages[name]
    assert page.html["lang"] == "en" and page.title.get_text().strip()
    assert len(page.find_all("main")) == len(page.find_all("h1")) == 1
    assert page.find("header") and page.find("nav")["aria-label"] and page.find("footer")
    assert page.find("a")["href"] == "#main", "the skip link comes first"
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), levels
    for table in page.find_all("table"):
        frame = table.find_parent("div", class_="scroll")
        assert frame["tabindex"] == "0" and frame["aria-label"]


def check_link(report, name, target):
    if re.match("(https?|mailto):", target):
        return
    page, _, anchor = target.partition("#")
    page = unquote(page) or name
    assert page in report.html, target
    assert not anchor or report.pages[page].find(id=anchor), target


def test_pages_are_whole_accessible_and_ask_for_nothing(story):
    report = story[1]
    assert set(report.html) == {"index.html", "00_everything.html", "01_next.html"}
    for name in report.html:
        check_page(report, name)


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_every_scheme():
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    css = (REPOSITORY / "mvl" / "show" / "report" / "templates" / "report.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    light, dark, paper = (
        dict(re.findall(r"--([\w-]+): (#\w+);", s)) for s in schemes if "--soft: #" in s
    )
    grounds = {
        **dict.fromkeys(("ink", "soft", "link", "good", "own"), ("paper", "raised")),
        **dict.fromkeys(("reference", "published"), ("paper", "raised")),
        **dict.fromkeys(("bad", "link"), ("paper", "bad-ground")),
        "warn-ink": ("warn-ground",),
        **dict.fromkeys(("code-key", "code-text", "code-note"), ("sunken",)),
        **dict.fromkeys(("code-number", "code-name"), ("sunken",)),
    }
    for scheme in (light, light | dark, light | paper):
        full = {
            k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:4]) for k, v in scheme.items()
        }
        for text, places in grounds.items():
            for ground in places:
                a, b = sorted((luminance(full[text]), luminance(full[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (text, ground, full[text], full[ground])


def test_equal_inputs_give_equal_bytes(two_arms):
    first = two_arms.report().html
    assert two_arms.report().html == first


def test_the_place_of_the_repository_does_not_show(two_arms, tmp_path):
    (two_arms.results / "runs" / "broken").mkdir()
    (two_arms.results / "runs" / "broken" / "config.json").write_text("{")
    first = two_arms.report().html
    assert not any(str(tmp_path) in html for html in first.values())
    two_arms.root = shutil.copytree(two_arms.root, tmp_path / "elsewhere")
    shutil.rmtree(two_arms.root / "results" / "quick" / "report")
    assert two_arms.report().html == first


def test_pages_of_notebooks_that_are_gone_are_removed(empty):
    everything(empty)
    empty.report()
    (empty.root / "notebooks" / "01_next.ipynb").unlink()
    report = empty.report()
    assert set(report.html) == {"index.html", "00_everything.html"}
    check_page(report, "index.html")


# --- numbers -------------------------------------------------------------------------------


def own_cases(repository):
    folders = sorted((repository.results / "runs").iterdir())
    return pd.concat([collect(f, "language", f.name.split("-")[1]) for f in folders])


def test_own_numbers_are_the_tables(story):
    report = story[1]
    summary = summary_table(own_cases(story[0])).set_index(["arm", "metric"])
    rows = report.table("Arms of the suite language")
    label = "This profile: Task04_Hippocampus, foreground, 6 subjects, 12 cases, 2 seeds, 60 epochs"
    assert [row["arm"] for row in rows[label]] == ["none", "pretrained"]
    for row in rows[label]:
        dice, distance = (summary.loc[row["arm"], name] for name in ("dice", "hd95_mm"))
        assert row["Dice"] == f"{dice['mean']:.3f} ± {dice['sd_subjects']:.3f}"
        assert row["HD95 (mm)"] == f"{distance['mean']:.2f} ± {distance['sd_subjects']:.2f}"
        assert row["seeds"] == "2" and row["trained weights"] == "884,416"
    assert [row["validation Dice"] for row in rows[label]] == ["0.810", "0.830"]


def test_the_reference_beside_has_the_numbers_of_its_tables(story):
    report = story[1]
    summary = read_table(REFERENCE / "summary.csv")
    for suite in summary["suite"].unique():
        found = report.table(f"Arms of the suite {suite}")
        (label,) = [label for label in found if label.startswith("Committed reference")]
        own = summary[(summary["suite"] == suite) & (summary["metric"] == "dice")]
        own = own.set_index("arm")
        assert {row["arm"] for row in found[label]} == set(own.index)
        for row in found[label]:
            arm = own.loc[row["arm"]]
            assert row["Dice"] == f"{arm['mean']:.3f} ± {arm['sd_subjects']:.3f}"
            assert (row["seeds"], row["epochs"]) == (f"{arm['n_seeds']}", f"{arm['epochs']}")
    contrasts = read_table(REFERENCE / "contrasts.csv")
    text = report.text()
    for _, row in contrasts[contrasts["metric"] == "dice"].iterrows():
        assert sentence(row) in text


def test_answers_are_the_sentences_of_the_statistics(story):
    report = story[1]
    pairs = [("language", "pretrained", "none")]
    # Holm's family is larger in the report; its p, and nothing else, may differ from one pair's.
    (row,) = contrasts_table(own_cases(story[0]), pairs).to_dict("records")
    before = sentence(row).split(", p = ")[0].split(", p < ")[0]
    assert f"in Dice, pretrained minus none is {row['difference']:+.4f}" in before
    summary = report.index.find(id="summary").find_parent("section")
    assert before in " ".join(summary.get_text(" ").split())


def test_the_paper_stands_beside_with_what_it_says_and_no_more(story):
    report = story[1]
    rows = report.table("Dice without and with")
    paper = next(rows[label] for label in rows if label.startswith("The paper"))
    values = {row["what is added to ViT"]: (row["ViT"], row["with it"]) for row in paper}
    assert values == {
        "version 1: mean of ten tasks": ("0.74", "0.79"),
        "version 3: mean of ten tasks": ("0.74 ± 0.05", "0.87 ± 0.04"),
        "version 3: Task04_Hippocampus, one example case": ("0.72", "0.78"),
    }
    every = report.table("Every number of the paper")[""]
    table = pd.read_csv(REPOSITORY / "mvl" / "paper.csv", dtype=str)
    assert [row["source"] for row in every] == list(table["source"])
    assert [row["value"].split(" ")[0] for row in every] == list(table["value"])


def test_headline_differences_are_the_contrasts(story):
    rows = story[1].table("Dice without and with")
    (own,) = [rows[label] for label in rows if label.startswith("This profile")]
    row = contrasts_table(own_cases(story[0]), [("language", "pretrained", "none")]).iloc[0]
    said = f"{row['difference']:+.3f} [{row['ci_low']:+.3f} to {row['ci_high']:+.3f}]"
    assert [r["difference [95 % interval]"] for r in own] == [said]


def test_an_own_run_is_the_arm_of_every_suite_that_trains_it_just_so(empty):
    empty.run("none")
    empty.run("pretrained")
    model = dataclasses.replace(SUITES["language"]["none"].model, mlp_ratio=9.5)
    empty.run("vit-mlp", model=model)
    report = empty.report()
    arms = {row["run"]: row["arms"] for row in report.table("Runs of this profile")[""]}
    assert arms["language-none-0"].split(", ") == [
        "language none",
        *("fusion 000", "data vit-100", "peers vit", "size vit", "presets vit", "budget vit"),
    ]
    assert arms["language-vit-mlp-0"] == "language vit-mlp, size vit-mlp"
    shown = report.table("Arms of the suite size")
    (own,) = [shown[label] for label in shown if label.startswith("This profile")]
    assert [row["arm"] for row in own] == ["vit", "vit-mlp", "pretrained"]


def test_the_models_of_the_ten_tasks_are_no_answer_of_the_other_suites(two_arms, drawn):
    tasks = ["Task01_BrainTumour", "Task02_Heart", "Task09_Spleen"]
    for task in ["Task04_Hippocampus", *tasks]:
        for arm, gain in (("vit", 0.0), ("v1", 0.01)):
            if (task, arm) != ("Task04_Hippocampus", "vit"):  # that is the arm none
                two_arms.run(arm, gain=gain, suite="presets", task=task, name=f"{task}-{arm}")
    two_arms.run("010", suite="fusion")

    def shown(caption):
        labels = report.table(caption)
        return [label.split()[2][:-1] for label in labels if label.startswith("This profile")]

    report = two_arms.report()
    assert shown("Arms of the suite presets") == sorted([*tasks, "Task04_Hippocampus"])
    for suite in ("language", "fusion"):
        assert shown(f"Arms of the suite {suite}") == ["Task04_Hippocampus"]
        assert shown(f"Comparisons of the suite {suite}") == ["Task04_Hippocampus"]
    assert shown("Dice without and with the language block") == ["Task04_Hippocampus"]
    answers = report.index.select_one(".card.own")
    assert "111 minus 000" in answers.get_text() and "Task09" not in answers.get_text()
    captions = [caption.get_text() for caption in report.index.select("figcaption")]
    assert sum("One row per task." in text for text in captions) == 1


def test_runs_of_another_setting_are_listed_and_left_out(two_arms):
    two_arms.run("none", gain=-0.5, epochs=3, name="short")
    two_arms.run("none", gain=-0.5, grid=[8, 8, 8], name="small")
    two_arms.run("none", gain=-0.5, fit="resize", name="resized")
    two_arms.run("none", grid=[8, 8, 8], task="Task09_Spleen", name="spleen")
    report = two_arms.report()
    reasons = {
        row["run"]: row["why it is in no table"] for row in report.table("Runs of this profile")[""]
    }
    assert reasons["short"] == "another number of epochs, 3"
    assert reasons["small"] == "another grid than the profile's"
    assert reasons["resized"] == "another handling of the data than the profile's"
    assert reasons["spleen"] == "another grid than the profile's"
    assert "0.810" in report.text() and "6 subjects, 12 cases, 2 seeds" in report.text()


def test_an_arm_that_was_run_on_other_data_gives_way_to_the_newer_run(two_arms):
    older = two_arms.run("none", gain=-0.5, name="older")
    os.utime(older / "done.json", (1, 1))
    report = two_arms.report()
    assert "Run older is left out" in report.text()
    rows = report.table("Arms of the suite language")
    (own,) = [rows[label] for label in rows if label.startswith("This profile")]
    assert [row["validation Dice"] for row in own] == ["0.810", "0.830"]


BIGGER, SMALLER = (
    dataclasses.replace(SUITES["language"]["none"].model, mlp_ratio=ratio) for ratio in (9.5, 4.5)
)


@pytest.mark.parametrize(
    ("suite", "runs", "why", "rows"),
    [
        (
            "language",
            [
                ("pretrained", "language", 0, {"block": "old"}),
                ("pretrained", "language", 1, {"block": "new"}),
                ("random", "language", 0, {"block": "its configuration's"}),
            ],
            "another language block",
            {("pretrained", 1), ("random", 1)},
        ),
        (
            "language",
            [("none", "language", 1, {}), ("pretrained", "language", 0, {})],
            "",
            {("none", 1), ("pretrained", 1)},
        ),
        (
            "language",
            [("none", "language", 0, {"cases": 10}), ("pretrained", "language", 0, {})],
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
            [
                ("vit-mlp", "language", 0, {"model": BIGGER}),
                ("vit-mlp", "language", 1, {"model": SMALLER}),
                ("none", "language", 0, {}),
            ],
            "another size",
            {("vit", 1), ("vit-mlp", 1)},
        ),
    ],
)
def test_of_runs_that_are_not_comparable_the_newest_are_shown(empty, suite, runs, why, rows):
    for place, (arm, of, seed, more) in enumerate(runs):
        folder = empty.run(arm, suite=of, seed=seed, name=f"run{place}", **more)
        os.utime(folder / "done.json", (1 + place, 1 + place))
    sources, faults = sources_of(own_runs(empty.profile, empty.root), empty.root)
    summary = sources[0].summary.query("suite == @suite")
    assert [text.startswith("Run run0 is left out") and why in text for _, text in faults] == (
        [True] if why else []
    )
    assert {*zip(summary["arm"], summary["n_seeds"], strict=True)} == rows


def test_a_run_without_its_blocks_reference_breaks_nothing(empty):
    (empty.run("pretrained", seed=3) / "block.json").unlink()
    empty.run("pretrained", seed=0)
    sources, faults = sources_of(own_runs(empty.profile, empty.root), empty.root)
    assert faults == [] and set(sources[0].summary["n_seeds"]) == {2}


def test_seeds_of_one_arm_with_different_budgets_stand_in_rows_of_their_own(empty):
    """Folds differ by a subject, so that equal steps are not always equal epochs."""
    for seed, epochs in ((0, 200), (1, 206)):
        for arm in ("vit-30", "v1-30"):
            empty.run(arm, seed=seed, suite="data", epochs=epochs)
    rows = empty.report().table("Arms of the suite data")
    (label,) = [label for label in rows if label.startswith("This profile")]
    assert label.endswith("2 seeds, 200 to 206 epochs")
    shown = [(row["arm"], row["epochs"], row["seeds"]) for row in rows[label]]
    assert shown == [(a, e, "1") for a in ("vit-30", "v1-30") for e in ("200", "206")]


# --- what a reader has to know first -------------------------------------------------------


def test_verify_is_quoted_when_runs_are_the_references(empty):
    validation = read_table(REFERENCE / "validation.csv")
    known = validation[(validation["suite"] == "language") & (validation["seed"] == 0)]
    cases = read_table(REFERENCE / "cases.csv.gz")
    for arm, fingerprint in zip(known["arm"], known["fingerprint"], strict=True):
        if arm not in ("none", "pretrained"):
            continue
        folder = empty.run(arm, name=fingerprint)
        own = cases[(cases["suite"] == "language") & (cases["arm"] == arm) & (cases["seed"] == 0)]
        write_table(folder / "cases.csv", own[list(empty.cases().columns)])
        done = json.loads((folder / "done.json").read_text())
        write_json(folder / "done.json", done | {"cases_sha256": sha256_of(folder / "cases.csv")})
    report = empty.report()
    assert "Reproduced: 2 of 2 runs are in the reference and agree." in report.text()
    checks = report.table("Runs that the reference has")[""]
    assert {row["result"] for row in checks} == {"agrees"}

    (folder / "cases.csv").write_text((folder / "cases.csv").read_text().replace("0.8", "0.7", 1))
    report = empty.report()
    assert "Not reproduced:" in report.text() and report.index.select_one(".check.error")


def test_synthetic_data_is_announced_on_every_page(two_arms, drawn):
    assert "Synthetic" not in two_arms.report().text()
    for folder in (two_arms.results / "runs").iterdir():
        task = json.loads((folder / "task.json").read_text())
        write_json(folder / "task.json", task | {"synthetic": True})
    report = two_arms.report()
    for name, page in report.pages.items():
        assert page.select_one(".ribbon") and page.select_one("main .alert.synthetic"), name
        assert 'content: "Synthetic data: not of patients"' in page.style.get_text()
    assert report.text().count("This profile, synthetic data") > 3
    own = [image for image in report.index.select("figure.own img")]
    assert own and all(image["alt"].startswith("Synthetic data.") for image in own)
    means = own_cases(two_arms).groupby("arm")["dice"].mean()
    assert f"none {means['none']:.3f}, pretrained {means['pretrained']:.3f}" in own[0]["alt"]


@pytest.mark.parametrize("said", [True, False])
def test_a_phantom_is_announced_before_anything_is_trained(empty, said):
    text = "> ## ⚠ Synthetic data\n> **SYNTHETIC**" if said else "> **Data:** real."
    cell = new_code_cell("b", outputs=[new_output("display_data", {"text/markdown": text})])
    empty.notebook("00_a", cell)
    assert bool(empty.report().index.select_one(".ribbon")) == said


def test_the_smoke_profile_is_synthetic_by_what_it_asks_for(tmp_path):
    report = Repository(tmp_path, "smoke").report()
    assert report.index.select_one(".ribbon")


def test_curves_and_sizes_are_shown_of_what_was_trained(empty, drawn):
    for arm, gain in (("none", 0.0), ("pretrained", 0.02), ("random", 0.01)):
        folder = empty.run(arm, gain=gain)
        done = json.loads((folder / "done.json").read_text())
        parameters = 884416 if arm == "none" else 2708480
        write_json(folder / "done.json", done | {"parameters": parameters})
        epochs = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": 1.0})
        write_table(folder / "curves.csv", epochs.assign(validation_dice=[0.1, 0.5, 0.7 + gain]))
    report = empty.report()
    check_page(report, "index.html")
    alts = [image["alt"] for image in report.index.select("figure.own img")]
    (curves,) = [alt for alt in alts if "by epoch" in alt]
    assert curves.endswith("after the last epoch: none 0.700, pretrained 0.720, random 0.710.")
    (sizes,) = [alt for alt in alts if "Weights" in alt]
    dice = own_cases(empty).groupby("arm")["dice"].mean()
    # The plain transformer has many names; it is one model.
    weights = {"pretrained": "2,708,480", "random": "2,708,480", "vit": "884,416"}
    dice["vit"] = dice["none"]
    listed = ", ".join(f"{arm} {n} and {dice[arm]:.3f}" for arm, n in weights.items())
    assert sizes.endswith(f"foreground: {listed}.")


def test_without_a_run_the_report_says_so(empty):
    report = empty.report()
    check_page(report, "index.html")
    text = report.text()
    assert "No finished run." in text and "./run_all.sh --profile quick" in text
    assert "Nothing verified: results/quick holds no finished run" in text
    assert "0.74 ± 0.05" in text and "Committed reference" in text


def test_with_nothing_at_all_there_is_still_a_report(tmp_path):
    report = Repository(tmp_path, reference=False).report()
    check_page(report, "index.html")
    assert "Without the committed reference" in report.text()
    assert "There is no result yet" in report.text()


def test_a_failed_notebook_is_named_at_the_top_and_on_its_page(two_arms):
    error = new_output(
        "error",
        ename="ValueError",
        evalue="no <voxel>",
        traceback=["\x1b[31mTraceback\x1b[0m", "no <voxel>"],
    )
    two_arms.notebook(
        "02_broken",
        new_markdown_cell("papermill's own", metadata={"tags": ["papermill-error-cell-tag"]}),
        new_markdown_cell("# Broken\n\n**The question: does it break?**"),
        new_code_cell("x = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("x = 1", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("raise", outputs=[error]),
        done=False,
    )
    two_arms.notebook("03_stopped", new_markdown_cell("# Stopped"), done=False)
    two_arms.notebook("04_absent", done=False, copy=False)
    report = two_arms.report()
    main = report.index.main
    before_summary = main.get_text(" ").split("Summary")[0]
    said = "cell 3 of 3 failed: ValueError: no <voxel>"
    assert "02_broken" in before_summary and said in before_summary
    assert "03_stopped" in before_summary and "did not run to its end" in before_summary
    assert "This profile has not run 04_absent" in before_summary
    states = {
        item.select_one(".file code").get_text(): item.select_one(".state")
        .get_text(" ")
        .split()[1:]
        for item in report.index.select(".notebooks > li")
    }
    assert states == {
        "00_everything": ["ran"],
        "01_next": ["ran"],
        "02_broken": ["failed"],
        "03_stopped": ["unfinished"],
        "04_absent": ["not", "run"],
    }
    page = report.pages["02_broken.html"]
    assert said in page.select_one("main > .alert.error").get_text()
    assert page.find(id="failure") and "\x1b" not in report.html["02_broken.html"]
    assert "papermill's own" not in report.html["02_broken.html"]
    for name in report.html:
        check_page(report, name)


def test_a_notebook_that_was_run_with_other_code_is_called_outdated(empty):
    everything(empty)
    assert "Outdated" not in empty.report().text()
    (empty.root / "mvl").mkdir()
    (empty.root / "mvl" / "code.py").write_text("x = 1\n")
    report = empty.report()
    assert "Outdated" in report.text().split("Summary")[1]
    assert report.pages["00_everything.html"].select_one(".state.outdated")


def test_broken_files_are_reported_and_break_nothing(two_arms):
    runs = two_arms.results / "runs"
    shutil.copytree(runs / "language-none-0", runs / "no-cases")
    (runs / "no-cases" / "cases.csv").unlink()
    for name, text in (("no-json", "{"), ("empty", "{}")):
        (runs / name).mkdir()
        (runs / name / "config.json").write_text(text)
    stopped = shutil.copytree(runs / "language-none-0", runs / "stopped")
    (stopped / "done.json").unlink()
    write_json(stopped / "failed.json", {"reason": "the loss became NaN"})
    two_arms.notebook("02_torn", new_markdown_cell("# Torn"))
    (two_arms.results / "notebooks" / "02_torn.ipynb").write_text('{"cells": [')
    report = two_arms.report()
    check_page(report, "index.html")
    text = report.text()
    assert "Run no-json cannot be read: results/quick/runs/no-json/config.json" in text
    assert "Run empty cannot be read: its files lack 'config'" in text
    assert "Run stopped failed: the loss became NaN" in text
    assert "02_torn.ipynb is no readable notebook" in text


# --- hostile text --------------------------------------------------------------------------


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
        new_output("display_data", {"image/png": PIXEL}, metadata={"alt": HOSTILE}),
        new_output("display_data", {"image/svg+xml": f"<svg>{HOSTILE}</svg>"}),
        new_output("display_data", {"text/plain": HOSTILE}),
        new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE]),
    ]
    name = "00_" + HOSTILE.replace("/", "")
    cells = [
        new_markdown_cell(f"# {HOSTILE}\n\n**The question: {HOSTILE}**"),
        new_markdown_cell(f"## {HOSTILE}\n\n\ue0007\ue001 <h1 id=main>again</h1>"),
        new_code_cell(HOSTILE, outputs=outputs),
    ]
    repository.notebook(name, *cells, done=False)
    report = repository.report()
    assert set(report.html) == {"index.html", f"{name}.html"}
    for page in report.html:
        page_text = report.pages[page].get_text()
        assert "<script>alert(1)</script>" in page_text
        assert not report.pages[page].select("[href^=javascript], [href^='data:text']")
        # The policy would stop it; nothing should need stopping.
        for image in report.pages[page].find_all("img"):
            assert image["src"].startswith("data:image/")
        strict = Strict()
        strict.feed(report.html[page])
        assert strict.open == []
        check_page(report, page)
    text = report.text()
    assert f"Run failed failed: {HOSTILE}" in text
    assert f"Task{HOSTILE}".replace("/", "") in text


# --- notebooks -----------------------------------------------------------------------------


def test_a_notebooks_page_shows_what_the_notebook_shows(story):
    report = story[1]
    page, text = report.pages["00_everything.html"], report.text("00_everything.html")
    assert page.h1.get_text() == "Every kind of $x_1$"
    assert "1 < 2 & 3" in text and "a slider" in text
    assert "The mean is 0.5." in page.article.get_text()
    assert "100%|##| 4/4" in text and "0/4" not in text, "a progress bar as it ended"
    code = [pre.get_text().strip() for pre in page.select(".input pre")]
    assert code[0] == "epochs = 2", "the parameters that were passed, not the defaults"
    assert "epochs = 60" not in code
    assert [tag.name for tag in page.find_all(["h2", "h3", "h4"])] == ["h2", "h3"]
    (table,) = page.select("article table")
    assert [cell.get_text() for cell in table.select("tbody td.n")] == ["0.50", "0.25"]
    assert table.tbody.th["scope"] == "row" and "evil" not in report.html["00_everything.html"]


def test_numbers_stand_to_the_right_and_names_in_one_line(tmp_path):
    table = pd.DataFrame(
        {
            "name": ["a name of three words", "b"],
            "dice": ["0.81 ± 0.02", "–"],
            "interval": ["-0.1 to +0.2", "1 %"],
            "why": ["a sentence that is longer than a name is, and may go on", ""],
            "version": ["1 of 2", "2"],
        }
    )
    output = new_output("execute_result", {"text/html": table.to_html(index=False)})
    cell = new_code_cell("table", outputs=[output])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "x.ipynb")
    soup = BeautifulSoup(read_page(tmp_path / "x.ipynb").content, "html.parser")
    kinds = [[cell.get("class") for cell in row.find_all("td")] for row in soup.select("tbody tr")]
    assert kinds == [[["short"], ["n"], ["n"], None, ["short"]]] * 2
    heads = [cell.get("class") for cell in soup.select("thead th")]
    assert heads == [None, ["n"], ["n"], None, None]


def test_figures_are_described_and_numbered(story):
    images = story[1].pages["00_everything.html"].select("article img")
    assert images[0]["alt"].startswith("Training loss and validation Dice by epoch")
    assert images[1]["alt"] == "Figure of the section “Too deep”."
    captions = story[1].pages["00_everything.html"].select("figcaption")
    assert [c.get_text() for c in captions] == ["Figure 1. Too deep", "Figure 2. Too deep"]


def test_links_lead_to_pages_or_are_only_text(story):
    page = story[1].pages["00_everything.html"]
    links = {a.get_text(): a["href"] for a in page.select("article a")}
    assert links == {
        "that": "01_next.html",
        "it": "https://a.example",
        "badge": "https://a.example/c",
    }
    steps = {a["href"] for a in page.select("nav a")}
    assert steps == {"index.html", "01_next.html"}


def test_question_and_answer_stand_in_the_list(story):
    item = story[1].index.select_one(".notebooks > li")
    assert "What is shown?" in item.get_text()
    assert "The mean is 0.5." in item.details.get_text()
