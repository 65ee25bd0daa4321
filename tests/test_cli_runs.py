"""`mvl train` and `mvl runs` as a user meets them: options, the text around a training, names."""

import argparse
import importlib
import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nibabel
import pandas as pd
import pytest

from mvl.cli import main
from mvl.cli.parser import make_parser
from mvl.cli.train import ARCHITECTURES, configuration
from mvl.config import PRESETS, ExperimentConfig, PeerConfig
from mvl.errors import ConfigError, RunError
from mvl.experiment.catalogue import find_run
from mvl.study.suites import SUITES


def said(*arguments):
    """What a command prints that ends well."""
    with redirect_stdout(StringIO()) as output:
        assert main([str(word) for word in arguments]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """(results folder, what was printed) of the runs `first` and `net`, trained and tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MVL_RESULTS", str(results := tmp_path_factory.mktemp("results")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        common = ("train", "--root", phantom, "--grid", 16, 24, 16)
        small = [f"--set=model.{size}" for size in ("width=16", "encoder_depth=1", "heads=2")]
        small.append("--set=model.language.layer=2")
        first = said(*common, "--preset", "v3", "--epochs", 1, "--name", "first", *small)
        net = said(*common, "--preset", "unet", "--steps", 3, "--name", "net", "--device", "cpu")
        for name in ("first", "net"):
            said("evaluate", name, "--root", phantom)
    return results, first, net


@pytest.fixture
def results(trained, monkeypatch, tmp_path):
    """The results folder of `trained`, seen from a folder elsewhere."""
    monkeypatch.setenv("MVL_RESULTS", str(trained[0]))
    monkeypatch.chdir(tmp_path)
    return trained[0]


def test_a_training_says_what_it_is_and_what_comes_next(trained):
    _, first, net = trained
    shown = dict(re.findall(r"^(\w+(?: \w+)?)  +(.*)$", first, re.MULTILINE))
    assert shown["name"] == "first"
    assert shown["model"] == "v3, changed: encoder_depth=1, heads=2, language.layer=2, width=16"
    assert "package:all-minilm-l6-v2, layer 2 " in shown["language block"]
    assert "control pretrained" in shown["language block"]
    model = json.loads((Path(shown["run folder"]) / "trained.json").read_text())
    frozen = model["parameters"] - model["trained_parameters"]
    sizes = [f"{n / 1e6:.2f} million" for n in (model["trained_parameters"], frozen)]
    assert shown["weights"] == f"{sizes[0]} trained, {sizes[1]} frozen"
    assert shown["cases"] == "Task04_Hippocampus (synthetic): 8 train, 4 validation, 4 test"
    assert shown["steps"].startswith("1 epoch of 2, 2 optimiser steps")
    assert "2 steps are few" in first and shown["device"] == "cpu"
    assert "mvl predict IMAGE --run first" in first and "epoch 1 of 1" in first
    # Three steps are two whole epochs of two.
    assert re.search(r"language block  none\n", net) and "2 epochs of 2, 4 optimiser steps" in net


def test_a_run_is_found_by_name_and_by_first_digits(results, phantom, capsys):
    folder = find_run("net")
    assert folder.parent == results / "runs" and find_run(folder.name[:6]) == folder
    assert find_run(str(folder)) == folder
    Path("net").mkdir()  # another folder of that name, such as one of segmentations
    assert find_run("net") == folder
    Path("net").rmdir()
    with pytest.raises(RunError, match="did you mean first"):
        find_run("fir5t")
    image = next((phantom / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    assert main(["predict", str(image), "--run", "net", "-o", "out.nii.gz", "--anyway"]) == 0
    given, made = nibabel.load(image), nibabel.load("out.nii.gz")
    assert made.shape == given.shape and (made.affine == given.affine).all()
    again = ["train", "--root", str(phantom), "--name", "net"]
    assert main(again) == 1
    assert "--name net" in capsys.readouterr().err


def test_several_runs_of_the_same_digits_are_not_guessed(monkeypatch, tmp_path):
    monkeypatch.setenv("MVL_RESULTS", str(tmp_path))
    for name in ("ab12", "ab34"):
        (tmp_path / "mine" / "runs" / name).mkdir(parents=True)
        (tmp_path / "mine" / "runs" / name / "config.json").write_text("{}")
    with pytest.raises(RunError, match="any of 2: ab12, ab34"):
        find_run("ab")
    assert find_run("ab3").name == "ab34"


def test_runs_are_listed_and_shown(results, capsys):
    assert main(["runs", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[1] for row in rows} >= {"first", "net"}
    (net,) = (row for row in rows if row[1] == "net")
    assert net[2:6] == ["unet", "none", "Task04_Hippocampus", "2"]
    assert main(["runs", "show", "net"]) == 0
    shown = capsys.readouterr().out
    assert f"best validation Dice {net[6]}, epoch " in shown and f"mean Dice {net[7]}" in shown


def test_two_runs_are_compared_by_subject_without_a_verdict(results, capsys):
    assert main(["runs", "compare", "first", "net"]) == 0
    told = capsys.readouterr().out
    first, net = (
        pd.read_csv(find_run(name) / "cases.csv").groupby("subject")["dice"].mean()
        for name in ("first", "net")
    )
    assert f"first minus net: {(first - net).mean():+.4f} (95 % interval " in told
    assert "no verdict: synthetic data" in told
    assert main(["runs", "compare", "first", "first"]) == 1


def config_of(*words):
    return configuration(make_parser().parse_args(["train", *words]))


def test_a_preset_may_be_any_architecture_of_the_field():
    for name in ARCHITECTURES:
        config = config_of("--preset", name)
        assert config.model == PeerConfig(architecture=name)
        assert config.training == SUITES["peers"][name].training
    assert {name: config_of("--preset", name).model for name in PRESETS} == {
        name: model for name, (model, _) in PRESETS.items()
    }


def test_crops_labels_channels_and_flips_are_options():
    words = "--grid 16 16 8 --fit crop --spacing 1.2 1.2 4 --target labels --channels first"
    data = config_of("--task", "Task05_Prostate", *words.split(), "--flips", "left-right").data
    assert (data.grid, data.fit, data.spacing_mm) == ((16, 16, 8), "crop", (1.2, 1.2, 4.0))
    assert (data.target, data.channels, data.flips) == ("labels", "first", "left-right")


def test_set_counts_more_than_options_and_they_more_than_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {width: 32, heads: 2}\ntraining: {learning_rate: 1e-3, epochs: 7, batch_size: 2}\n"
    )
    words = ("--config", str(file), "--epochs", "8", "--set", "training.batch_size=3")
    config = config_of(*words, "--set", "data.grid=[16, 24, 16]", "--set", "model.head=conv")
    assert (config.model.width, config.model.heads, config.model.head) == (32, 2, "conv")
    plan = config.training
    assert (plan.learning_rate, plan.epochs, plan.batch_size) == (1e-3, 8, 3)
    assert config.data.grid == (16, 24, 16)


@pytest.mark.parametrize("preset", ["v1", "released", "unet"])
def test_a_runs_own_config_gives_the_same_experiment(preset, tmp_path):
    config = config_of("--preset", preset, "--seed", "3", "--task", "OpenKBP_HeadNeckCT")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": config.to_dict(), "fingerprint": "0"}))
    assert config_of("--config", str(file)) == config
    assert config_of("--config", str(file), "--seed", "4").seed == 4


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--set", "model.widht=8"), "model.widht; did you mean width"),
        (("--set", "width=8"), "unknown key width"),
        (("--set", "model.width=wide"), "model.width must .*'wide'"),
        (("--set", "model=8"), "model"),
        (("--set", "model.width"), "FIELD=VALUE"),
        (("--preset", "unet", "--set", "model.width=8"), "unknown key model.width"),
        (("--preset", "V1"), "--preset V1.*did you mean v1"),
        (("--block", "path:/x"), "--block path:/x.* vit .*v1, v3, released"),
        (("--preset", "unet", "--block", "path:/x"), "--block path:/x.* unet "),
        (("--fit", "crop"), "--spacing"),
        (("--spacing", "1", "1", "1"), "--fit crop"),
        (("--folds", "4", "--fold", "4"), "0 to 3"),
        (("--config", "FILE"), "FILE"),
    ],
)
def test_what_no_experiment_can_have_is_refused_by_its_option(words, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("[1]")
    with pytest.raises(ConfigError, match=match):
        config_of(*words)


def test_faults_name_the_option(capsys, phantom):
    for words, told in (
        (["--batch-size", "0"], "--batch-size must"),
        (["--grid", "16", "0", "16"], "--grid must"),
        (["--steps", "0"], "--steps must"),
        (["--name", "a/b"], "--name a/b"),
        (["--device", "gpu"], "--device gpu"),
        (["--task", "Hippocampus"], "mean Task04_Hippocampus"),
        (["--preset", "v1", "--block", "meta-llama/Llama-3"], "mean hub:meta-llama/Llama-3"),
        (["--preset", "v1", "--block", str(phantom)], f"mean path:{phantom}"),
    ):
        assert main(["train", "--root", str(phantom), *words]) == 1
        assert told in capsys.readouterr().err


def test_the_default_fold_of_a_seed_has_the_name_that_it_has_without():
    assert config_of("--folds", "5", "--fold", "2", "--seed", "7") == config_of(
        "--folds", "5", "--seed", "7"
    )
    plain = config_of()
    assert plain == ExperimentConfig() and "folds" not in plain.to_dict()["data"]
    crossed = config_of("--fold", "3")
    assert (crossed.data.testing, crossed.data.folds, crossed.data.fold) == ("crossed", 5, 3)


def verbs(parser):
    """Every parser of a verb at or below one."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for inner in group.choices.values():
            yield from verbs(inner)


def test_every_option_has_a_text_and_a_default_and_every_verb_an_example():
    for parser in verbs(make_parser()):
        text = " ".join(parser.format_help().split())
        assert f"examples: {parser.prog}" in text
        for action in parser._actions:
            flag = action.nargs == 0 or action.required
            assert flag or "default:" in action.help, (parser.prog, action.dest)
        module, _, name = parser.get_default("call").partition(".")
        assert callable(getattr(importlib.import_module(f"mvl.cli.{module}"), name))
        if parser.prog == "mvl train":
            assert all(name in text for name in (*PRESETS, *ARCHITECTURES))
