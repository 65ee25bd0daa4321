"""The paper's figures and tables from what is there, whatever is missing."""

import shutil

import pandas as pd
import pytest
import yaml

from mvl import exhibits
from mvl.exhibits import EXHIBITS, Exhibits
from mvl.reference import REFERENCE, REPOSITORY, read_table
from mvl.suites import SUITES


@pytest.fixture
def root(tmp_path):
    """A repository with the committed reference's tables, and no run of its own."""
    (tmp_path / "profiles").mkdir()
    shutil.copy(REPOSITORY / "profiles" / "quick.yaml", tmp_path / "profiles")
    shutil.copytree(
        REFERENCE, tmp_path / "results" / "reference", ignore=shutil.ignore_patterns("best")
    )
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show: texts, figures, tables."""
    things = []
    monkeypatch.setattr(exhibits, "_show", lambda *new: things.extend(new))
    return things


def keep(root, arms):
    """Leave those (suite, arm) of the reference alone, as a study that has got no further."""
    for name in ("cases.csv.gz", "summary.csv", "validation.csv"):
        path = root / "results" / "reference" / name
        table = read_table(path)
        cells = zip(table["suite"], table["arm"], strict=True)
        table[[cell in arms for cell in cells]].to_csv(path, index=False)


def test_every_arm_that_is_named_is_one():
    for exhibit in EXHIBITS.values():
        assert set(exhibit.arms or ()) <= set(SUITES.get(exhibit.suite, ()))


def test_a_figure_is_drawn_saved_and_captioned_with_its_size(root, shown):
    Exhibits("quick", root).figure("parts")
    caption, figure = shown
    cases = read_table(REFERENCE / "cases.csv.gz")
    subjects = cases.loc[cases["suite"] == "fusion", "subject"].nunique()
    assert f"Task04_Hippocampus: {subjects} test subjects, " in caption
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(SUITES["fusion"])
    folder = root / "results" / "quick" / "figures"
    assert {path.name for path in folder.iterdir()} == {
        f"parts_reference.{kind}" for kind in ("png", "pdf", "svg")
    }


def test_what_is_missing_is_named_with_what_makes_it(root, shown):
    keep(root, [("peers", "vit"), ("peers", "best"), ("fusion", "000")])
    book = Exhibits("quick", root)
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


def test_a_profile_without_runs_says_which_command_makes_some(root):
    assert "`./run_all.sh --profile quick`" in Exhibits("quick", root).about().data


@pytest.mark.parametrize("name", EXHIBITS)
def test_no_exhibit_needs_more_than_one_arm_of_anything(root, shown, name):
    keep(root, [(suite, list(arms)[0]) for suite, arms in SUITES.items()])
    book = Exhibits("quick", root)
    book.figure(name)
    book.table(name)
    assert shown and all(isinstance(thing, str) for thing in shown) or name == "size_of_all"


def test_curves_are_drawn_where_the_reference_keeps_them(root, shown):
    keep(root, [("data", "vit-100"), ("data", "v1-100")])
    book = Exhibits("quick", root)
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
    Exhibits("quick", root).figure("few_shot")
    _, figure, missing = shown
    assert [line.get_label() for line in figure.axes[0].lines] == ["vit", "v1"]
    assert "Not there yet: vit-10, vit-30, v1-10, v1-30." in missing


def test_tables_and_comparisons_hold_the_references_numbers(root, shown):
    book = Exhibits("quick", root)
    book.table("ten_tasks")
    book.comparisons()
    folder = root / "results" / "quick" / "tables"
    table = read_table(folder / "ten_tasks_reference.csv").set_index(["arm", "metric"])["mean"]
    summary = read_table(REFERENCE / "summary.csv")
    summary = summary[
        (summary["suite"] == "language") & summary["arm"].isin(["none", "pretrained"])
    ]
    assert table.to_dict() == summary.set_index(["arm", "metric"])["mean"].to_dict()
    rows = read_table(folder / "comparisons_reference.csv").set_index("metric")
    assert list(rows.index) == list(exhibits.SIX)
    smaller = {metric: metric == "hd95_mm" for metric in exhibits.SIX}
    better = {
        metric: (table["pretrained", metric] > table["none", metric]) != smaller[metric]
        for metric in exhibits.SIX
    }
    assert f"better in {sum(better.values())} of 6 comparisons" in shown[-1]
    worse = sum(rows.loc[metric, "p"] < 0.05 for metric in better if not better[metric])
    assert shown[-1].endswith(f"worse with p < 0.05 in {worse}.")


def test_the_papers_numbers_are_the_files(root, shown):
    numbers = Exhibits("quick", root).paper("x", ["ViT", "MedVisionLlama"], metric=None)
    paper = pd.read_csv(REPOSITORY / "mvl" / "paper.csv")
    paper = paper[paper["model"].isin(["ViT", "MedVisionLlama"])]
    assert numbers["value"].tolist() == paper["value"].tolist()
    written = pd.read_csv(root / "results" / "quick" / "tables" / "paper_x.csv")
    assert written["value"].tolist() == paper["value"].tolist()


def test_the_dataflow_is_that_of_the_model(root, shown):
    changed = yaml.safe_load((root / "profiles" / "quick.yaml").read_text()) | {
        "grid": [16, 24, 16]
    }
    (root / "profiles" / "quick.yaml").write_text(yaml.safe_dump(changed))
    book = Exhibits("quick", root)
    for preset, expected in (
        ("v3", ["embedding", "encoder", "D1", "block", "D2", "decoder", "head"]),
        ("released", ["embedding", "D1", "block", "D2", "encoder", "head"]),
        ("vit", ["embedding", "encoder", "decoder", "head"]),
    ):
        book.dataflow(preset)
        texts = [text for text in shown.pop().axes[0].texts if text.get_fontweight() == "bold"]
        assert [text.get_text() for text in texts] == expected
        assert "16 × 24 × 16 voxels" in shown.pop()
