"""Suites: what they ask, what they skip, and what they do about a cell that fails."""

from dataclasses import replace

import pandas as pd
import pytest

from mvl.config import LEARNING_RATES, PRESETS, DataConfig
from mvl.errors import ConfigError, MvlError, RunError
from mvl.experiment import run as experiments
from mvl.experiment.run import run_folder
from mvl.locks import locked
from mvl.models.sizes import count_parameters
from mvl.study import suites
from mvl.study.suites import (
    QUESTIONS,
    SUITES,
    Arm,
    fit_suite,
    run_suite,
    shard,
    status,
    suite_configs,
    tuning_table,
)

GRID = (40, 56, 40)


def test_suites_differ_in_what_they_ask_and_in_nothing_else():
    language = suite_configs("language", DataConfig(), [0])
    plain = language["none", 0]
    block = language["pretrained", 0]
    assert plain.model == PRESETS["vit"][0] and block.model.language.control == "pretrained"
    for arm in ("random", "shuffled", "identity", "trainable"):
        config = language[arm, 0]
        again = replace(config.model.language, control="pretrained")
        assert config.model.language.control == arm
        assert replace(config.model, language=again) == block.model
    fusion = suite_configs("fusion", DataConfig(), [0])
    assert [arm for arm, _ in fusion] == [f"{n:03b}" for n in range(8)]
    assert fusion["000", 0] == plain and fusion["100", 0] == block
    assert fusion["111", 0].model == PRESETS["v1"][0]


def test_every_suite_has_a_question_and_a_baseline():
    assert list(QUESTIONS) == list(SUITES)
    assert all(len(arms) > 1 for arms in SUITES.values())


def test_equal_models_have_equal_learning_rates():
    """A choice made for an arm holds wherever the arm appears."""
    chosen = {}
    for arms in SUITES.values():
        for arm in arms.values():
            if not arm.matched:
                chosen.setdefault((repr(arm.model), arm.fraction, arm.testing), set()).add(
                    arm.training
                )
    assert all(len(trainings) == 1 for trainings in chosen.values())
    ours = [arm for arms in SUITES.values() for name, arm in arms.items() if name != "released"]
    assert {arm.training.learning_rate for arm in ours} <= set(LEARNING_RATES)


def test_size_controls_are_as_large_as_what_they_control():
    configs = suite_configs("size", DataConfig(), [0])
    block = sum(count_parameters(configs["pretrained", 0].model, GRID))
    for arm in ("vit-depth", "vit-mlp"):
        assert sum(count_parameters(configs[arm, 0].model, GRID)) == pytest.approx(block, rel=0.02)
        assert configs[arm, 0].model.language is None
    assert suite_configs("language", DataConfig(), [0])["vit-mlp", 0] == configs["vit-mlp", 0]


def test_less_data_gets_as_many_steps(phantom):
    configs = suite_configs(
        "data",
        DataConfig(grid=(16, 24, 16)),
        [0],
        epochs=60,
        arms=["vit-30", "vit-100"],
        root=phantom,
    )
    steps = {}
    for (arm, seed), config in configs.items():
        cases = len(suites.open_task(config.data, seed, phantom, progress=False).split.train)
        steps[arm] = config.training.epochs * -(-cases // config.training.batch_size)
    assert configs["vit-30", 0].training.epochs > 60
    assert steps["vit-30"] == pytest.approx(steps["vit-100"], rel=0.02)
    few, all_of_them = (configs[arm, 0].training for arm in ("vit-30", "vit-100"))
    share = few.warmup_epochs / few.epochs
    assert share == pytest.approx(all_of_them.warmup_epochs / all_of_them.epochs, rel=0.1)


def test_rotary_is_left_out_where_the_family_has_none():
    assert ("rotary", 0) not in suite_configs("adaptation", DataConfig(), [0])
    llama = 'random:{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, '
    llama += '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}'
    configs = suite_configs("adaptation", DataConfig(), [0], block=llama)
    assert configs["rotary", 0].model.language.rotary


def test_unknown_names_are_told():
    with pytest.raises(ConfigError, match="no suite 'nonsense'.*language"):
        suite_configs("nonsense", DataConfig(), [0])
    with pytest.raises(ConfigError, match="no arm 'nothing'.*pretrained"):
        suite_configs("language", DataConfig(), [0], arms=["nothing"])


def test_shards_divide_the_cells():
    cells = {(arm, seed): None for arm in "abc" for seed in range(3)}
    parts = [shard(cells, index, 4) for index in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [3, 2, 2, 2]
    assert sorted(key for part in parts for key in part) == sorted(cells)
    for index in (0, 5):
        with pytest.raises(ConfigError, match=f"shard {index}/4"):
            shard(cells, index, 4)


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
    assert list(failures) == [("hopeless", 0)] and "the loss became" in failures["hopeless", 0]

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


def test_a_defect_in_one_cell_is_reported_with_its_place_and_the_others_go_on(
    trio, phantom, tmp_path, monkeypatch, capsys
):
    own = experiments.train

    def broken(model, volumes, validation, config, *rest):
        if config.model.attention == "hybrid":
            raise KeyError("a defect")
        return own(model, volumes, validation, config, *rest)

    monkeypatch.setattr(experiments, "train", broken)
    good = {key: config for key, config in trio.items() if key[0] != "hopeless"}
    cases, failures = run_suite("trio", dict(reversed(good.items())), tmp_path, phantom, show=False)
    assert set(cases["arm"]) == {"plain"} and failures == {("hybrid", 0): "KeyError: 'a defect'"}
    assert "in broken" in capsys.readouterr().err
    table = status(trio, tmp_path, phantom).set_index("arm")
    assert table["state"]["hybrid"] == "failed" and table["reason"]["hybrid"].startswith("KeyError")


def test_a_cell_whose_test_cases_cannot_be_read_is_reported_and_the_others_go_on(
    trio, phantom, tmp_path, monkeypatch
):
    own = suites.test

    def broken(folder, data, show):
        if not (tmp_path / "first").exists():
            (tmp_path / "first").mkdir()
            raise RunError("the test set is broken")
        own(folder, data, show)

    monkeypatch.setattr(suites, "test", broken)
    good = {key: config for key, config in trio.items() if key[0] != "hopeless"}
    cases, failures = run_suite("trio", good, tmp_path / "runs", phantom, show=False)
    assert set(cases["arm"]) == {"hybrid"}
    assert failures == {("plain", 0): "the test set is broken"}


def test_a_suite_without_a_single_result_is_an_error(trio, phantom, tmp_path):
    only = {key: config for key, config in trio.items() if key[0] == "hopeless"}
    with pytest.raises(MvlError, match="the loss became"):
        run_suite("trio", only, tmp_path, phantom, show=False)


def test_status_tells_open_running_stopped_and_trained(trio, phantom, tmp_path):
    config = trio["plain", 0]
    data = suites.open_task(config.data, 0, phantom, progress=False)
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
    spent, left = cells["seconds"]["plain", 0], cells["seconds_left"]["plain", 1]
    sizes = [
        len(suites.open_task(config.data, seed, phantom, progress=False).split.train)
        for seed in (0, 1)
    ]
    before, now = (-(-size // config.training.batch_size) for size in sizes)
    assert left == pytest.approx(spent * now / before)


def test_tuning_tries_every_rate_and_opens_no_test_case(trio, phantom, tmp_path):
    data = trio["plain", 0].data
    configs = suite_configs("trio", data, [0], arms=["plain"], rates=LEARNING_RATES)
    assert list(configs) == [(f"plain@{rate:g}", 0) for rate in LEARNING_RATES]
    fit_suite("trio", configs, tmp_path, phantom, show=False)
    table = tuning_table("trio", configs, tmp_path, phantom)
    assert table["learning_rate"].tolist() == list(LEARNING_RATES)
    assert set(table["arm"]) == {"plain"} and table["validation_dice"].between(0, 1).all()
    assert not list(tmp_path.glob("*/cases.csv"))
