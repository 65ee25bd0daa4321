"""What a notebook trains of a suite, and measures of its models."""

import pytest

from mvl.config import LanguageConfig
from mvl.study import profile_cells
from mvl.study.suites import SUITES, Arm


def test_arms_are_trained_and_their_use_measured(phantom, tiny, tmp_path, monkeypatch):
    plan = {"epochs": 1, "warmup_epochs": 0}
    small = {"patch": (2, 2, 2)}  # of larger patches the phantom's structure fills none by half
    with_block = small | {"language": LanguageConfig()}
    made = [tiny(model=model, training=plan) for model in (small, with_block)]
    arms = {name: Arm(c.model, c.training) for name, c in zip(("none", "own"), made, strict=True)}
    monkeypatch.setitem(SUITES, "pair", arms)
    monkeypatch.setattr(profile_cells, "results_folder", lambda name: tmp_path)
    monkeypatch.setattr(profile_cells, "data_of", lambda *_: made[0].data)
    given = {"profile": "x", "task": made[0].data.task, "seeds": [0], "block": None, "epochs": None}
    configs, cases = profile_cells.train_arms("pair", given, phantom)
    (row,) = profile_cells.measure_use(configs, given, phantom).to_dict("records")
    dice = cases[cases["arm"] == "own"].groupby("subject")["dice"].mean().mean()
    assert row["arm"] == "own" and row["as trained"] == pytest.approx(dice)
    stages = profile_cells.measure_stages(configs, cases, given, phantom)
    tested = cases.groupby("arm")["case"].nunique()
    assert stages.groupby(["stage", "arm"], sort=False).size().to_dict() == {
        ("after the encoder", "none"): tested["none"],
        ("after the encoder", "own"): tested["own"],
        ("the block's update", "own"): tested["own"],
        ("after the block", "own"): tested["own"],
        ("after the decoder", "none"): tested["none"],
        ("after the decoder", "own"): tested["own"],
    }
    both = stages.merge(cases, on=["arm", "case"])
    assert both["dice_x"].equals(both["dice_y"])
