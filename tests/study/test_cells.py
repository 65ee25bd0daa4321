"""A suite's cells: trained, tested, counted, tuned; and what is done about one that fails."""

from dataclasses import replace
from pkgutil import resolve_name

import pandas as pd
import pytest

from mvl.config import LEARNING_RATES
from mvl.data.task_data import open_task
from mvl.errors import ConfigError, MvlError, RunError
from mvl.experiment.run import run_folder
from mvl.locks import locked
from mvl.study.cells import fit_suite, run_suite, shard, status, tuning_table
from mvl.study.suites import SUITES, Arm, suite_configs


def test_shards_divide_the_cells():
    cells = {(arm, seed): None for arm in "abc" for seed in range(3)}
    parts = [shard(cells, f"{index}/4") for index in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [3, 2, 2, 2]
    assert sorted(key for part in parts for key in part) == sorted(cells)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0"):
        with pytest.raises(ConfigError, match=f"--shard {wrong}"):
            shard(cells, wrong)


@pytest.fixture
def trio(tiny, monkeypatch):
    """A suite of three tiny arms, of which one must fail."""
    plain = tiny(training={"epochs": 2})
    hopeless = replace(plain.training, clip_norm=0.0, learning_rate=1e30)
    arms = {
        "plain": Arm(plain.model, plain.training),
        "hopeless": Arm(plain.model, hopeless),
        "hybrid": Arm(replace(plain.model, attention="hybrid", window=2), plain.training),
    }
    monkeypatch.setitem(SUITES, "trio", arms)
    return suite_configs("trio", plain.data, [0])


def test_a_failed_cell_is_reported_and_the_others_go_on(trio, phantom, tmp_path, monkeypatch):
    cases, failures = run_suite("trio", trio, tmp_path, phantom, show=False)
    assert set(cases["arm"]) == {"plain", "hybrid"} and not cases.isna().any(axis=None)
    assert list(failures) == [("hopeless", 0)]

    table = status(trio, tmp_path, phantom).set_index("arm")
    assert table["state"].to_dict() == {"plain": "done", "hopeless": "failed", "hybrid": "done"}
    assert "the loss became" in table["reason"]["hopeless"]
    assert table["seconds_left"][["plain", "hybrid"]].tolist() == [0, 0]

    # What is done is not done again: a second run must not train.
    monkeypatch.setattr("mvl.experiment.run.train", None)
    done = {key: config for key, config in trio.items() if key[0] != "hopeless"}
    again, failures = run_suite("trio", done, tmp_path, phantom, show=False)
    pd.testing.assert_frame_equal(again, cases)
    assert not failures


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("mvl.experiment.run.train", KeyError("a defect"), "KeyError: 'a defect'"),
        ("mvl.study.cells.test", RunError("a broken test set"), "a broken test set"),
    ],
)
def test_a_cell_that_raises_is_reported_and_the_others_go_on(
    trio, phantom, tmp_path, monkeypatch, capsys, place, error, reason
):
    whole, calls = resolve_name(place), []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return whole(*arguments)

    monkeypatch.setattr(place, broken)
    good = {key: config for key, config in trio.items() if key[0] != "hopeless"}
    cases, failures = run_suite("trio", good, tmp_path, phantom, show=False)
    assert set(cases["arm"]) == {"hybrid"} and failures == {("plain", 0): reason}
    # A defect of the code is shown with its place.
    assert ("in broken" in capsys.readouterr().err) == isinstance(error, KeyError)


def test_status_tells_open_running_stopped_and_trained(trio, phantom, tmp_path):
    config = trio["plain", 0]
    data = open_task(config.data, 0, phantom, progress=False)
    folder = run_folder(config, data, tmp_path)

    def state():
        return status(trio, tmp_path, phantom).set_index("arm").loc["plain"]

    assert state()["state"] == "open" and pd.isna(state()["seconds_left"])
    with locked(folder, "training"):
        assert state()["state"] == "running"
    (folder / "curves.csv").write_text("epoch,validation_dice\n0,0.5\n")
    assert state()["state"] == "stopped" and state()["epoch"] == 1
    fit_suite("trio", {("plain", 0): config}, tmp_path, phantom, show=False)
    assert state()["state"] == "trained" and state()["epoch"] == 2
    left = status(trio, tmp_path, phantom).set_index("arm")["seconds_left"]
    assert left["plain"] == 0 and left["hybrid"] > 0
    # Another seed of a trained arm takes as long a step as the first one did.
    again = {**trio, ("plain", 1): replace(config, seed=1)}
    cells = status(again, tmp_path, phantom).set_index(["arm", "seed"])
    sides = [open_task(config.data, seed, phantom, progress=False).split for seed in (0, 1)]
    before, now = (-(-len(side.train) // config.training.batch_size) for side in sides)
    expected = cells["seconds"]["plain", 0] * now / before
    assert cells["seconds_left"]["plain", 1] == pytest.approx(expected)


def test_tuning_tries_every_rate_and_opens_no_test_case(trio, phantom, tmp_path):
    data = trio["plain", 0].data
    configs = suite_configs("trio", data, [0], arms=["plain"], rates=LEARNING_RATES)
    assert list(configs) == [(f"plain@{rate:g}", 0) for rate in LEARNING_RATES]
    fit_suite("trio", configs, tmp_path, phantom, show=False)
    table = tuning_table("trio", configs, tmp_path, phantom)
    assert table["learning_rate"].tolist() == list(LEARNING_RATES)
    assert set(table["arm"]) == {"plain"} and table["validation_dice"].between(0, 1).all()
    assert not list(tmp_path.glob("*/cases.csv"))


def test_a_suite_without_a_single_result_is_an_error(trio, phantom, tmp_path):
    only = {key: config for key, config in trio.items() if key[0] == "hopeless"}
    with pytest.raises(MvlError, match="the loss became"):
        run_suite("trio", only, tmp_path, phantom, show=False)
