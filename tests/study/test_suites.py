"""Suites: what they ask, how their arms are called, and what they skip."""

from dataclasses import replace

import pytest

from mvl.config import LEARNING_RATES, PRESETS, DataConfig, task_data
from mvl.data.task_data import open_task
from mvl.errors import ConfigError
from mvl.models.sizes import count_parameters
from mvl.study.suites import ALIASES, SUITES, name_of, suite_configs

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


def test_one_experiment_has_one_name():
    vit = [("language", "none"), ("fusion", "000"), ("peers", "vit"), ("data", "vit-100")]
    assert {name_of(*cell) for cell in vit} == {("presets", "vit")}
    assert name_of("fusion", "111") == ("presets", "v1")
    assert name_of("adaptation", "lora-0") == ("language", "pretrained")
    assert name_of("settling", "sum-matched") == ("llama", "random")
    assert name_of("hosts", "vit-pretrained") == ("llama", "pretrained")
    for (suite, arm), (named, name) in ALIASES.items():
        assert SUITES[suite][arm] == SUITES[named][name] and (named, name) not in ALIASES
    # Equal arms are equal experiments, whichever suite makes them.
    for suite, arm in vit:
        config = suite_configs(suite, DataConfig(), [3], arms=[arm])[arm, 3]
        assert config == suite_configs("presets", DataConfig(), [3], arms=["vit"])["vit", 3]


def test_hosts_differ_from_vit_and_their_peers_by_the_part_and_its_training_alone():
    llama, peers = (suite_configs(s, DataConfig(), [0]) for s in ("llama", "peers"))
    for (arm, seed), config in suite_configs("hosts", DataConfig(), [0]).items():
        host, control = arm.split("-")
        ours, peer = llama[control, seed], peers[host, seed]
        assert config.model == replace(peer.model, language=ours.model.language)
        rate = peer.training.learning_rate
        assert config.training == replace(ours.training, learning_rate=rate)
        assert config.data == ours.data


@pytest.mark.parametrize(
    ("task", "cases", "steps"),
    # Three of five folds train: of 20 and of 115 subjects, and of 207 cases in fold 0 of subjects.
    [
        ("Task04_Hippocampus", 124, 3720),
        ("CHAOS_AbdomenMR", 12, 1500),
        ("OpenKBP_HeadNeckCT", 69, 1500),
    ],
)
def test_all_arms_of_a_task_have_its_budget_in_steps(task, cases, steps):
    plans = [c.training for c in suite_configs("llama", task_data(task), [0]).values()]
    assert len({(plan.epochs, plan.warmup_epochs) for plan in plans}) == 1
    taken = plans[0].epochs * -(-cases // plans[0].batch_size)
    assert taken == pytest.approx(steps, rel=0.01)
    assert plans[0].warmup_epochs / plans[0].epochs == pytest.approx(3 / 120, rel=0.05)


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
        cases = len(open_task(config.data, seed, phantom, progress=False).split.train)
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
