"""Configurations survive JSON, refuse what they do not know, and have stable fingerprints."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mvl.config import (
    LEARNING_RATES,
    PRESETS,
    DataConfig,
    ExperimentConfig,
    LanguageConfig,
    ModelConfig,
    fingerprint,
    preset,
)
from mvl.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_json(name):
    model, training = preset(name)
    config = ExperimentConfig(model=model, training=training, seed=3)
    assert ExperimentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"models": {}}, "unknown key models"),
        ({"model": {"language": {"layr": 1}}}, "key model.language.layr; did you mean layer"),
        ({"model": {"language": {"layer": "last"}}}, "model.language.layer must .*got 'last'"),
        ({"model": {"width": True}}, "model.width must .*integer, got True"),
        ({"model": {"attention": "sparse"}}, "model.attention must .*'hybrid', got 'sparse'"),
        ({"data": {"grid": [8, 8]}}, "lacks data.grid.2"),
        ({"data": {"grid": [8, 8, 0]}}, "data.grid.2 must .*, got 0"),
        ({"data": {"fraction": 0}}, "data.fraction must .*got 0"),
        ({"data": {"flips": 1}}, "data.flips.*got 1"),
        ({"data": {"fit": "crop"}}, "data: fit crop with spacing_mm None"),
        ({"data": {"spacing_mm": [1, 1, 1]}}, "data: fit pad with spacing_mm"),
        ({"training": {"epochs": 0}}, "training.epochs must .*got 0"),
        ({"training": {"weight_decay": float("nan")}}, "training.weight_decay must .*finite"),
        (
            {"model": {"language": {"control": "trainable", "dtype": "bfloat16"}}},
            "model.language: a trainable block wants dtype float32",
        ),
        ({"model": {"fusion_kernels": [2]}}, "model: fusion_kernels .*odd"),
        ({"model": {"width": 10}}, "model: width 10 is not a multiple of heads, 4"),
        ({"model": {"architecture": "resnet"}}, "model.architecture must .*got 'resnet'"),
        ({"model": {"architecture": "unet", "depth": 2}}, "unknown key model.depth"),
        ({"model": []}, r"model must .*got \[\]"),
        ([], "root must"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(values, said):
    with pytest.raises(ConfigError, match=said):
        ExperimentConfig.from_dict(values)


def test_a_notebook_shows_a_wrong_field_as_one_sentence():
    code = "from mvl.config import *; ModelConfig(widht=3)"
    out = subprocess.run([sys.executable, "-m", "IPython", "-c", code], capture_output=True)
    (line,) = out.stdout.decode().splitlines()
    assert line == "ConfigError: configuration: unknown key widht; did you mean width?"


def test_our_presets_share_one_training_but_for_a_rate_of_those_that_every_arm_gets():
    ours = [training for name, (_, training) in PRESETS.items() if name != "released"]
    assert {training.learning_rate for training in ours} <= {*LEARNING_RATES}
    assert len({replace(training, learning_rate=1e-3) for training in ours}) == 1


def test_fingerprints_tell_apart_and_do_not_depend_on_the_process():
    config = ExperimentConfig()
    others = [
        replace(config, seed=1),
        replace(config, model=ModelConfig(language=LanguageConfig())),
        replace(config, model=ModelConfig(window=5)),
    ]
    prints = {fingerprint(c, {"voxels": {"a": "1"}, "block": None}) for c in [config, *others]}
    assert len(prints) == 4
    assert fingerprint(config, {"voxels": {"a": "2"}, "block": None}) not in prints
    code = "from mvl.config import *; "
    code += "print(fingerprint(ExperimentConfig(), {'voxels': {'a': '1'}, 'block': None}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint(config, {"voxels": {"a": "1"}, "block": None})


def test_the_fingerprints_of_finished_studies_stay():
    """A new field in a configuration would orphan every run: these are of the running study."""
    plain = ExperimentConfig()
    assert fingerprint(plain, {"voxels": {"a": "1", "b": "2"}, "block": None}) == "9da740d931b2b6d2"
    block = ExperimentConfig(model=PRESETS["v1"][0])
    assert fingerprint(block, {"voxels": {"a": "1"}, "block": "x"}) == "bd04a1647ebcb0cc"
    v3 = ExperimentConfig(model=PRESETS["v3"][0])
    assert fingerprint(v3, {"voxels": {"a": "1"}, "block": "x"}) == "1f1892592e8101b1"


def test_a_later_field_is_written_only_where_it_is_used():
    plain = ExperimentConfig()
    values = plain.to_dict()
    assert not {"spacing_mm", "channels"} & values["data"].keys()
    told = {"data": {**values["data"], "spacing_mm": None, "channels": "all"}}
    assert ExperimentConfig.from_dict(values | told) == plain
    crops = replace(plain, data=DataConfig(fit="crop", spacing_mm=(1, 1, 2.5), channels="first"))
    values = json.loads(json.dumps(crops.to_dict()))
    assert values["data"]["spacing_mm"] == [1, 1, 2.5] and values["data"]["channels"] == "first"
    assert ExperimentConfig.from_dict(values) == crops


def test_a_task_that_a_shell_completed_has_its_plain_name_and_a_path_is_refused():
    assert DataConfig(task="Own/") == DataConfig(task="Own")
    with pytest.raises(ConfigError, match="name the task Own, .*--root /data"):
        DataConfig(task="/data/Own/")


def test_a_preset_takes_another_block_where_it_has_one():
    assert preset("v1", "path:/x")[0].language.source == "path:/x"
    assert preset("vit", "path:/x")[0].language is None
    with pytest.raises(ConfigError, match="no preset 'v2'; there are vit, v1"):
        preset("v2")
