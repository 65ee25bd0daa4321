"""Repositories with finished runs and executed notebooks, made by hand; nothing is trained."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_markdown_cell, new_notebook

from mvl.config import ExperimentConfig
from mvl.data.splits import Split
from mvl.data.tasks import TASKS
from mvl.files import REPOSITORY, sha256_of, write_json, write_table
from mvl.runner.execute import Job, outdated
from mvl.show.report import write_report
from mvl.study.profiles import load_profile
from mvl.study.reference import REFERENCE
from mvl.study.runs import data_of
from mvl.study.suites import SUITES

ENVIRONMENT = {"versions": {"torch": "2.13.0+cpu"}, "device": "cpu", "capability": "AVX512"}
ENVIRONMENT |= {"dtype": "float32", "threads": 1, "commit": "0123456789abcdef", "system": "Linux"}


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
            ignored = shutil.ignore_patterns("best", "*.pdf")
            shutil.copytree(REFERENCE, root / "results" / "reference", ignore=ignored)

    def run(self, arm="none", suite="language", seed=0, gain=0.0, name=None, **changes):
        """A finished run folder, as an evaluation would have left it.

        `changes`: synthetic, subjects (how many), epochs, grid, task, model, block, cases (a table)
        """
        spec = SUITES[suite][arm]
        model = changes.get("model", spec.model)
        if model.language:
            language = dataclasses.replace(model.language, source=self.profile["block"])
            model = dataclasses.replace(model, language=language)
        usual = data_of(changes.get("task", self.profile["task"]), self.profile)
        grid = tuple(changes.get("grid", usual.grid))
        data = dataclasses.replace(usual, grid=grid, fraction=spec.fraction)
        epochs = changes.get("epochs", self.profile["epochs"])
        training = dataclasses.replace(spec.training, epochs=epochs)
        config = ExperimentConfig(data, model, training, seed)
        folder = self.results / "runs" / (name or f"{suite}-{arm}-{seed}")
        folder.mkdir(parents=True)
        stored = {"config": config.to_dict(), "fingerprint": folder.name, "protocol_version": 1}
        write_json(folder / "config.json", stored)
        task = dataclasses.replace(
            TASKS["Task04_Hippocampus"], synthetic=changes.get("synthetic", False)
        )
        write_json(folder / "task.json", dataclasses.asdict(task) | {"name": data.task})
        cases = changes.get("cases", scores(seed, gain, len(arm), changes.get("subjects", 6)))
        names = sorted(cases["case"])
        identity = {"voxels": dict.fromkeys(names, "0"), "facts": task.facts(), "files": ""}
        identity["subjects"] = dict(zip(cases["case"], cases["subject"], strict=True))
        write_json(folder / "identity.json", identity | {"folder": "nowhere"})
        Split((), (), tuple(names)).save(folder / "split.json")
        write_json(folder / "environment.json", ENVIRONMENT)
        if model.language:
            block = {"source": model.language.source, "revision": "1", "layer": 5}
            write_json(folder / "block.json", block | {"sha256": changes.get("block", "ab")})
        write_table(folder / "cases.csv", cases)
        done = dict.fromkeys(("trained_parameters", "parameters"), 884416)
        done |= {"validation_dice": 0.81 + gain, "seconds": 12.3, "best_epoch": 1}
        done |= {"cases_sha256": sha256_of(folder / "cases.csv"), "test_cases": len(cases)}
        write_json(folder / "done.json", done)
        return folder

    def notebook(self, name, *cells, done=True, copy=True):
        """A notebook of the story and, if `copy`, its executed copy with the cells' outputs."""
        bare = new_notebook(cells=[new_markdown_cell(f"# {name}")])
        nbformat.write(bare, self.root / "notebooks" / f"{name}.ipynb")
        if copy:
            folder = self.results / "notebooks"
            folder.mkdir(parents=True, exist_ok=True)
            nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")
        if done:
            job = Job(self.root / "notebooks" / f"{name}.ipynb", self.profile, self.root)
            write_json(job.record, job.made_of())

    def report(self):
        parameters = load_profile(self.name, self.root)
        return Report(write_report(parameters, outdated(parameters, self.root), self.root))


def scores(seed=0, gain=0.0, draw=0, subjects=6):
    """Two cases of each subject; arms differ by their gain and a little noise."""
    count = 2 * subjects
    of_seed, noise = np.random.default_rng(seed), np.random.default_rng([seed, draw])
    dice = 0.8 + 0.03 * of_seed.standard_normal(count) + 0.005 * noise.standard_normal(count)
    dice = np.clip(dice + gain, 0, 1)
    rows = {"case": [f"case_{n:02d}" for n in range(count)], "structure": "foreground"}
    rows["subject"] = [f"subject_{n // 2}" for n in range(count)]
    rows |= {"dice": dice, "jaccard": dice / (2 - dice), "accuracy": 0.98, "precision": dice}
    rows |= {"sensitivity": dice, "specificity": 0.99, "hd95_mm": 3 - 2 * dice, "nsd": dice}
    return pd.DataFrame(rows)


class Report:
    """What was written, page by page."""

    def __init__(self, index):
        paths = sorted(index.parent.glob("*.html"))
        self.html = {path.name: path.read_text("utf-8") for path in paths}
        self.pages = {name: BeautifulSoup(text, "html.parser") for name, text in self.html.items()}
        self.index = self.pages["index.html"]

    def text(self, page="index.html"):
        return " ".join(self.pages[page].get_text(" ").split())

    def table(self, caption):
        """{label of a group, or "": list of {column: cell}} of all tables with such a caption."""
        found = {}
        for table in self.index.find_all("table"):
            if not table.caption.get_text().startswith(caption):
                continue
            heads, label = [cell.get_text() for cell in table.thead.find_all("th")], ""
            for row in table.select("tbody tr"):
                cells = [cell.get_text() for cell in row.find_all(["th", "td"])]
                if row.get("class") == ["group"]:
                    label = cells[0]
                else:
                    found.setdefault(label, []).append(dict(zip(heads, cells, strict=True)))
        return found

    def of_own(self, caption):
        """The rows of the groups that are not the reference's, of comparisons those in Dice."""
        groups = self.table(caption).items()
        rows = [row for label, rows in groups if "reference" not in label for row in rows]
        return [row for row in rows if row.get("metric", "Dice") == "Dice"]


class _Strict(HTMLParser):
    """Fails on a tag that is not closed, or an attribute that is there twice."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), (tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, self.getpos()


def check_pages(report):
    """Each page is well formed, asks for nothing, and links only to what is there."""
    for name, html in report.html.items():
        strict, page = _Strict(), report.pages[name]
        strict.feed(html)
        assert strict.open == [], name
        assert not page(["script", "iframe", "frame", "object", "embed", "base", "form", "svg"])
        for tag in page(True):
            assert not [key for key in tag.attrs if key.startswith("on") or key == "srcset"]
            assert tag.get("src", "data:image/").startswith("data:image/"), tag
            assert tag.name != "link" or tag["href"].startswith("data:")
            assert tag.name != "img" or tag["alt"].strip()
        assert not re.search(r"url\(|@import", " ".join(s.get_text() for s in page("style")))
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        assert "default-src 'none'" in policy["content"]
        ids = [tag["id"] for tag in page.find_all(id=True)]
        assert len(ids) == len(set(ids))
        for link in page.find_all("a", href=True):
            target, _, anchor = link["href"].partition("#")
            if not re.match("(https?|mailto):", link["href"]):
                other = unquote(target) or name
                assert other in report.html, link["href"]
                assert not anchor or report.pages[other].find(id=anchor), link["href"]
        levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), levels
