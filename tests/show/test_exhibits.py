"""The paper's figures and tables from what is there, whatever is missing."""

import shutil

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY, write_table
from mvl.show import exhibits
from mvl.show.charts import CHARTS, draw_reference
from mvl.show.exhibits import Exhibits
from mvl.study.profiles import load_profile
from mvl.study.reference import CONTRASTS, MACHINE, read_table
from mvl.study.statistics import contrasts_table
from mvl.study.suites import SUITES
from mvl.study.summary import summary_table
from mvl.study.ten_tasks import SIX

#: What the reference of most tests has.
SOME = [
    *(("language", "none"), ("language", "pretrained")),
    *(("fusion", arm) for arm in SUITES["fusion"]),
    *(("peers", "vit"), ("peers", "best"), ("data", "vit-100"), ("data", "v1-100")),
]


@pytest.fixture
def repository(tmp_path):
    """A repository whose reference has the given cells, and no run of its own."""
    (tmp_path / "profiles").mkdir()
    shutil.copy(REPOSITORY / "profiles" / "quick.yaml", tmp_path / "profiles")

    def make(cells=SOME, drawn=()):
        write_reference(tmp_path / "results" / "reference", cells)
        draw_reference(tmp_path / "results" / "reference", drawn)
        return tmp_path

    return make


def write_reference(folder, cells):
    """Tables as `mvl reference` would have written them, an arm a little better than the last."""
    subjects = 0.6 + 0.1 * np.random.default_rng(0).random(9)
    tables, runs = [], []
    for n, (suite, arm) in enumerate(cells):
        dice = subjects + 0.02 * n + 0.005 * np.random.default_rng(n).random(9)
        facts = {"suite": suite, "arm": arm, "seed": 0, "task": "Task04_Hippocampus"}
        rows = pd.DataFrame({"case": [f"c{k}" for k in range(9)]}).assign(**facts)
        rows = rows.assign(subject=rows["case"], structure="foreground", block="", host="vit")
        rows = rows.assign(fraction=1.0, epochs=60, protocol_version=1, synthetic=False)
        rows = rows.assign(**{metric: dice for metric in METRICS} | {"hd95_mm": 5 * dice})
        tables.append(rows)
        run = {"fingerprint": f"run{n:03d}", "epochs": 60, "best_epoch": 59, "seconds": 60.0}
        run |= {"grid": "40x56x40", "learning_rate": 0.003, "validation_dice": 0.8, "commit": "c"}
        run |= dict.fromkeys(MACHINE, "")
        runs.append({**facts, **run, "parameters": 2_000_000, "trained_parameters": 900_000 + n})
    cases = pd.concat(tables, ignore_index=True)
    write_table(folder / "cases.csv.gz", cases)
    write_table(folder / "summary.csv", summary_table(cases))
    write_table(folder / "contrasts.csv", contrasts_table(cases, CONTRASTS))
    write_table(folder / "validation.csv", pd.DataFrame(runs).drop(columns="task"))


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show: texts, figures, tables."""
    things = []
    monkeypatch.setattr(exhibits, "show", lambda *new: things.extend(new))
    return things


def book_of(root):
    return Exhibits(load_profile("quick", root), root)


def test_every_arm_that_is_named_is_one():
    for exhibit in CHARTS.values():
        assert set(exhibit.arms or ()) <= set(SUITES.get(exhibit.suite, ()))


@pytest.mark.parametrize("name", ["controls", "curves"])
def test_controls_are_drawn_with_the_block_that_they_control(repository, shown, name):
    book_of(repository([("language", "none"), ("language", "vit-mlp")])).figure(name)
    assert len(shown) == 1 and "Too little of it is there (none, vit-mlp)." in shown[0]


def test_a_committed_figure_is_shown_with_its_size_and_not_drawn_again(repository, shown):
    root = repository(drawn=["parts"])
    book_of(root).figure("parts")
    caption, picture = shown
    assert "Task04_Hippocampus: 9 test subjects, 1 seed, 60 epochs." in caption
    committed = root / "results" / "reference" / "figures" / "fusion_parts.png"
    assert picture.data == committed.read_bytes()
    assert picture.width == PIL.Image.open(committed).width // 2
    assert not (root / "results" / "quick" / "figures").exists()


def test_what_is_missing_is_named_with_what_makes_it(repository, shown):
    cells = [("peers", "vit"), ("peers", "best"), ("fusion", "000")]
    root = repository(cells, drawn=["state_of_the_art"])
    book = book_of(root)
    book.figure("state_of_the_art")
    assert len(shown) == 3 and "Not there yet: v1, unet, " in shown[2]
    assert "`mvl suite run peers`, then `mvl reference`" in shown[2]
    shown.clear()
    book.figure("part_effects")
    assert len(shown) == 1 and "Too little of it is there (000)." in shown[0]
    shown.clear()
    book.figure("lora")
    assert "Too little of it is there (nothing)." in shown[0]
    assert not (root / "results" / "quick" / "figures" / "lora_reference.png").exists()
    answer = book.answer().data
    assert "1 of 3 figures of results could be drawn; not yet: part effects, lora." in answer


def test_no_exhibit_needs_more_than_one_arm_of_anything(repository, shown):
    book = book_of(repository([(suite, list(SUITES[suite])[0]) for suite in SUITES]))
    for name in CHARTS.keys() - {"size_of_all"}:
        book.figure(name)
        book.table(name)
    assert len(shown) == len(CHARTS) - 1 and all(isinstance(thing, str) for thing in shown)


def test_curves_are_drawn_where_the_reference_keeps_them(repository, shown):
    root = repository([("data", arm) for arm in ("vit-100", "011-100", "v1-100")])
    book = book_of(root)
    book.figure("few_shot")
    assert "not their training curves" in shown[0]
    shown.clear()
    runs = read_table(root / "results" / "reference" / "validation.csv")
    curves = pd.concat(
        pd.DataFrame({"fingerprint": print_, "epoch": [0, 1], "train_loss": 1.0})
        for print_ in runs["fingerprint"].unique()
    )
    curves.assign(validation_dice=0.5).to_csv(
        root / "results" / "reference" / "curves.csv.gz", index=False
    )
    draw_reference(root / "results" / "reference", ["few_shot"])
    book_of(root).figure("few_shot")
    _, _, missing = shown
    assert "Not there yet: vit-10, vit-30, 011-10, 011-30, v1-10, v1-30." in missing


def test_tables_and_comparisons_hold_the_references_numbers(repository, shown):
    root = repository([*SOME, ("presets", "vit"), ("presets", "v1")])
    book = book_of(root)
    book.ten_tasks()
    book.comparisons()
    folder = root / "results" / "quick" / "tables"
    table = read_table(folder / "ten_tasks.csv").set_index(["arm", "metric"])["mean"]
    summary = read_table(root / "results" / "reference" / "summary.csv")
    cells = {("presets", "vit"), ("presets", "v1"), ("language", "pretrained")}
    chosen = [cell in cells for cell in zip(summary["suite"], summary["arm"], strict=True)]
    summary = summary[chosen]
    summary = summary[summary["metric"].isin(SIX)]
    assert table.to_dict() == summary.set_index(["arm", "metric"])["mean"].to_dict()
    rows = read_table(folder / "comparisons_reference.csv")
    assert rows["metric"].tolist() == 2 * list(SIX)
    # Every metric grows from arm to arm, which makes HD95 worse.
    assert (rows["difference"] > 0).all() and (rows["p"] < 0.05).all()
    assert shown[-1].splitlines() == [
        "- v1 minus vit: no verdicts to count (one seed).",
        "- pretrained minus none: no verdicts to count (one seed).",
    ]
    answer = book.ten_tasks_answer().data
    assert "v1 minus vit is +" in answer and "v3" not in answer


def test_the_papers_numbers_are_saved_with_their_unit_and_spread(repository, shown):
    book = book_of(repository())
    book.paper("ten_tasks", ["ViT", "MedVisionLlama"], metric=None)
    saved = (book.folder / "tables" / "paper_ten_tasks.md").read_text()
    (line,) = [line for line in saved.splitlines() if "| ViT " in line and "| hd95 " in line]
    assert "| unstated |" in line and (book.folder / "tables" / "paper_ten_tasks.tex").is_file()
