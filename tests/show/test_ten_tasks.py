"""The table of ten tasks: what a profile runs of it, its rows and its picture."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from mvl.cli.parser import make_parser
from mvl.cli.train import data_config
from mvl.config import DataConfig
from mvl.data.tasks import TASKS
from mvl.files import REPOSITORY
from mvl.show import exhibits
from mvl.show import ten_tasks as of_ten
from mvl.show.exhibits import Exhibits
from mvl.study import ten_tasks
from mvl.study.profiles import load_profile
from mvl.study.runs import own_runs

OWN, OTHER, BROKEN = "Task04_Hippocampus", "Task05_Prostate", "Task09_Spleen"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(repository, table of what was run): two tasks on phantoms, a third cannot be had."""
    root = tmp_path_factory.mktemp("repository")
    (root / "profiles").mkdir()
    parameters = load_profile("smoke") | {"tasks": [OWN, OTHER, BROKEN], "epochs": 1}
    parameters |= {"tasks_arms": ["vit", "v1"], "tasks_phantom_cases": 8, "grid": [16, 16, 16]}
    (root / "profiles" / "smoke.yaml").write_text(yaml.safe_dump(parameters))
    shutil.copytree(REPOSITORY / "results" / "reference", root / "results" / "reference")
    (root / "data" / "smoke" / BROKEN).mkdir(parents=True)
    (root / "data" / "smoke" / BROKEN / "precious").write_text("no phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mvl.data.obtain.REPOSITORY_DATA", root / "data")
        table = ten_tasks.run(parameters, root / "results" / "smoke", show=False)
        yield root, table.set_index("task")["data"]


def book_of(root):
    return Exhibits(load_profile("smoke", root), root)


def test_a_task_that_fails_does_not_stop_the_others(ran):
    _, told = ran
    assert list(told.index) == list(TASKS)
    assert told[OWN].startswith("SYNTHETIC") and told[OTHER].startswith("SYNTHETIC")
    assert told[BROKEN].startswith("not run: ") and "not a phantom" in told[BROKEN]
    assert (told.drop([OWN, OTHER, BROKEN]) == "not run by this profile").all()


def test_the_table_has_a_row_for_every_task_and_the_papers_numbers(ran):
    root, _ = ran
    sources = list(book_of(root).sources.values())
    shown = of_ten.table(sources)
    assert set(TASKS) <= set(shown["task"])
    assert (shown["data"] == "not run").sum() == len(TASKS) - 2
    own = shown[shown["data"].str.startswith("This profile")]
    assert own["data"].str.contains("synthetic").all()
    assert set(own["task"]) == {OWN, OTHER, "mean of 2 tasks"}
    cases = sources[0].cases
    cases = cases[(cases["suite"] == "presets") & (cases["arm"] == "v1")]
    dice = cases.groupby(["task", "subject"])["dice"].mean().groupby("task").agg(["mean", "std"])
    row = own[(own["task"] == OTHER) & (own["arm"] == "v1")].iloc[0]
    assert row["Dice"] == "{:.3f} ± {:.3f}".format(*dice.loc[OTHER])
    mean = own[(own["task"] == "mean of 2 tasks") & (own["arm"] == "v1")].iloc[0]
    assert mean["Dice"] == f"{dice['mean'].mean():.3f} ± {dice['mean'].std():.3f}"
    real = shown[shown["data"] == "Committed reference"]
    assert set(real["task"]) == {OWN}
    assert shown.set_index(["task", "arm"]).loc[(OWN, "vit"), "paper's Dice"].tolist() == (
        2 * ["0.72 (one case)"]
    )
    paper = shown[shown["data"] == "the paper"].set_index("arm")["Dice"]
    assert paper.to_dict() == {
        "ViT (v1)": "0.74",
        "MedVisionLlama (v1)": "0.79",
        "ViT (v3)": "0.74 ± 0.05",
        "MedVisionLlama (v3)": "0.87 ± 0.04",
    }


def test_a_task_of_the_users_own_is_in_no_mean_of_the_ten(ran):
    root, _ = ran
    own, *others = book_of(root).sources.values()
    names = ("cases", "summary", "runs", "curves")
    moved = {name: getattr(own, name).replace({"task": {OTHER: "MyTask"}}) for name in names}
    shown = of_ten.table([replace(own, **moved), *others])
    shown = shown[shown["data"].str.startswith("This profile")]
    assert set(shown["task"]) == {OWN}


def test_the_exhibits_call_synthetic_rows_so_and_name_the_commands(ran, monkeypatch):
    root, _ = ran
    things = []
    monkeypatch.setattr(exhibits, "show", lambda *new: things.extend(new))
    book_of(root).ten_tasks()
    assert "SYNTHETIC DATA" in things[0]
    lines = things[-1].splitlines()[2:]
    # Task04 has real volumes in the reference.
    assert len(lines) == len(TASKS) - 1 and not any(OWN in line for line in lines)
    tables = root / "results" / "smoke" / "tables"
    assert "SYNTHETIC DATA" in (tables / "ten_tasks.md").read_text()
    assert pd.read_csv(tables / "ten_tasks.csv")["synthetic"].any()
    assert (tables / "ten_tasks.tex").exists()


def test_the_command_of_a_row_is_one_that_the_program_takes():
    for profile in ("smoke", "quick", "gpu"):
        command = of_ten.command(BROKEN, load_profile(profile))
        download, train = command.split(" && ")
        assert download == f"mvl data download {BROKEN}"
        options = make_parser().parse_args(train.split()[1:])
        grid = tuple(load_profile(profile)["tasks_grid"])
        assert data_config(options) == DataConfig(BROKEN, grid=grid, fit="resize")
        assert options.arms == ["vit", "v1", "v3"]


def test_the_grid_has_a_column_for_every_task_at_hand(ran, monkeypatch):
    root, _ = ran
    things, drawn = [], []
    monkeypatch.setattr(exhibits, "show", lambda *new: things.extend(new))
    draw = exhibits.figures.task_grid
    monkeypatch.setattr(exhibits.figures, "task_grid", lambda c: drawn.append(c) or draw(c))
    book_of(root).task_grid()
    (columns,) = drawn
    assert [task.name for task, _ in columns] == [OWN, OTHER]
    for _, views in columns:
        image, truth, *models = views
        assert image.truth is None and truth.truth.any() and 1 in truth.truth.shape
        assert all(view.prediction.shape == truth.truth.shape for view in models if view)
    titles = [view.title for view in columns[0][1]]
    assert titles[:4] == ["image", "truth", "vit", "v1"]
    assert things[1].data.startswith(b"\x89PNG")
    # Another phantom in its place is not what the models were trained on.
    shutil.rmtree(root / "data" / "smoke" / OTHER)
    ten_tasks.obtain(OTHER, "phantom", 8, 0.15, "smoke")
    drawn.clear()
    book_of(root).task_grid()
    views = {task.name: models for task, (_, _, *models) in drawn[0]}
    assert any(views[OWN]) and OTHER not in views
    runs = own_runs(yaml.safe_load((root / "profiles" / "smoke.yaml").read_text()), root)
    stale = [run for run in runs if "has changed since" in run.reason]
    assert {run.facts["task"] for run in stale} == {OTHER} and not any(run.names for run in stale)
