"""A user's suites: what a file may say, and that the rest of the package knows them."""

import pytest

from mvl.config import DataConfig, LanguageConfig, PeerConfig, preset
from mvl.errors import ConfigError
from mvl.study import user_suites
from mvl.study.reference import CONTRASTS, FAMILY, PLANNED
from mvl.study.suites import QUESTIONS, name_of, suite_configs
from mvl.study.user_suites import configuration, read_suites

SUITE = """question: Which?
arms:
  vit: {}
  llama: {preset: v1, model: {fusion: false, language: {layer: 3}}, training: {clip_norm: 0.5}}
  block: {model: {language: {control: shuffled}}}
  unet: {model: {architecture: unet}}
  few: {fraction: 0.5, budget: 2}
contrasts: [[llama, vit]]
"""


def test_an_arm_is_a_preset_and_what_is_changed_of_it(tmp_path):
    (tmp_path / "mine.yaml").write_text(SUITE)
    suite = read_suites(tmp_path)["mine"]
    made = {name: configuration(arm, name) for name, arm in suite.arms.items()}
    assert (made["vit"].model, made["vit"].training) == preset("vit")
    model, training = preset("v1")
    assert made["llama"].model.attention == "hybrid" and not made["llama"].model.fusion
    assert made["llama"].model.language.layer == 3 != model.language.layer
    assert made["llama"].model.language.source == model.language.source
    assert made["llama"].training.clip_norm == 0.5
    assert made["llama"].training.learning_rate == training.learning_rate
    assert made["block"].model.language == LanguageConfig(control="shuffled")
    assert made["unet"].model == PeerConfig(architecture="unet")
    assert (suite.arms["few"].fraction, suite.arms["few"].budget) == (0.5, 2)
    assert suite.contrasts == [("llama", "vit")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question: Which?\n", "", "lacks question"),
        ("vit: {}", "vit: {weight: 3}", "unknown key arms.vit.weight"),
        ("[llama, vit]", "[llama, vti]", "no arm of this file: vti"),
        ("arms:", "arms: [", "not readable YAML"),
        ("fraction: 0.5", "fraction: 5", "arms.few.fraction"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        read_suites(tmp_path)
    assert str(path) in str(raised.value)


def test_a_wrong_field_of_an_arm_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text(SUITE.replace("layer: 3", "layers_: 3"))
    arm = read_suites(tmp_path)["mine"].arms["llama"]
    with pytest.raises(ConfigError, match="mine, arm llama.*model.language.layers_"):
        configuration(arm, "mine, arm llama")


def test_a_file_that_is_newer_than_the_process_wants_a_new_one(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(SUITE)
    monkeypatch.setattr(user_suites, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="restart"):
        suite_configs("mine", DataConfig(), [0])


def test_the_example_is_a_suite_like_the_study_s():
    assert QUESTIONS["width"] and name_of("width", "vit") == ("presets", "vit")
    configs = suite_configs("width", DataConfig(), [0])
    assert configs["narrow", 0].model.width == 48 != configs["vit", 0].model.width
    # It is compared, and does not change what the study planned.
    assert ("width", "narrow", "vit") in CONTRASTS and ("width", "narrow", "vit") not in PLANNED
    assert FAMILY == 75
