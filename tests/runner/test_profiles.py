"""Profiles: their files, and the choice of one by the machine's memory."""

import math
from types import SimpleNamespace

import IPython.display
import pytest

from mvl.cli import main
from mvl.errors import ConfigError
from mvl.files import REPOSITORY
from mvl.machine import GIB
from mvl.runner import kernels, profiles
from mvl.runner.profiles import choose_profile, default_profile
from mvl.study.profiles import load_profile

TEXT = (REPOSITORY / "profiles" / "smoke.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("epochs: 2\n", ""), "lacks epochs"),
        (TEXT + "epoch: 2\n", "unknown key epoch"),
        (TEXT.replace("epochs: 2", "epochs: 2026-01-01"), "epochs must"),
        (TEXT.replace("grid: [24, 32, 24]", "grid: [24, 32]"), "grid"),
        (TEXT.replace("fit: pad", "fit: crop"), "fit must"),
        (TEXT.replace("seeds: [0]", "seeds: []"), "seeds"),
        (TEXT.replace('"Task01_BrainTumour"', "Mine"), "tasks.0 must"),
        (TEXT.replace("phantom_scale: 0.5", "phantom_scale: .inf"), "phantom_scale must"),
        (TEXT.replace("profile: smoke", "profile: quick"), "profile must be smoke"),
        ("- a list\n", "smoke.yaml"),
        ("a: [\n", "YAML"),
    ],
)
def test_a_wrong_profile_is_one_sentence(tmp_path, text, message):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "smoke.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_profile("smoke", tmp_path)


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("path:models/llama", "path:ROOT/models/llama"),
        ("path:/models/llama", "path:/models/llama"),
        ("path:~/llama", "path:HOME/llama"),
        ("random:config.json", "random:ROOT/config.json"),
        *[(same, same) for same in ("package:all-minilm-l6-v2", "hub:a/b@c", 'random:{"a": "b"}')],
    ],
)
def test_a_local_block_is_named_from_the_repositorys_root_on(tmp_path, monkeypatch, block, found):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "profiles").mkdir()
    text = TEXT.replace("package:all-minilm-l6-v2", f"'{block}'")
    (tmp_path / "profiles" / "smoke.yaml").write_text(text)
    found = found.replace("ROOT", str(tmp_path)).replace("HOME", str(tmp_path / "home"))
    assert load_profile("smoke", tmp_path)["block"] == found


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="gpu, paper, quick, smoke"):
        load_profile("fast")


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory that the machine seems to have, in GiB; 16 to begin with."""
    monkeypatch.delenv("MVL_PROFILE", raising=False)

    def set_to(gib):
        monkeypatch.setattr(profiles, "memory_limit", lambda: int(gib * GIB))

    set_to(16)
    return set_to


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show, as Markdown."""
    texts = []
    monkeypatch.setattr(IPython.display, "display", lambda shown: texts.append(shown.data))
    return texts


def test_little_memory_chooses_smoke_and_a_name_chooses_itself(memory, monkeypatch):
    assert default_profile() == ("quick", "")
    memory(2)
    name, why = default_profile()
    assert name == "smoke" and "2.0 GiB" in why
    monkeypatch.setenv("MVL_PROFILE", "gpu")
    assert default_profile()[0] == "gpu"


def test_a_notebook_gets_the_parameters_that_fit_and_says_so(memory, shown):
    quick, smoke = load_profile("quick"), load_profile("smoke")
    namespace = {name: quick[name] for name in ("profile", "epochs", "fit", "seeds")}
    choose_profile(namespace)
    assert namespace["epochs"] == quick["epochs"] and not shown

    memory(2)
    choose_profile(namespace)
    # Those that it declares, and no others.
    assert namespace == {name: smoke[name] for name in ("profile", "epochs", "fit", "seeds")}
    (text,) = shown
    assert f"`epochs = {smoke['epochs']}`" in text and "fit" not in text
    choose_profile(namespace)
    assert len(shown) == 1, "once is enough"


def test_parameters_that_somebody_chose_stay(memory, shown, monkeypatch):
    memory(2)
    quick, smoke = load_profile("quick"), load_profile("smoke")
    namespace = quick | {"epochs": 3}
    choose_profile(namespace)
    assert namespace == smoke | {"epochs": 3}
    shown.clear()
    for chosen in (load_profile("gpu"), {"grid": [8, 8, 8]}):
        namespace = dict(chosen)
        choose_profile(namespace)
        assert namespace == chosen
    # As the batch runner says it to kernels of ./run_all.sh --profile quick.
    monkeypatch.setenv("MVL_PROFILE", "quick")
    namespace = dict(quick)
    choose_profile(namespace)
    assert namespace == quick and not shown


def test_without_a_name_the_batch_runner_takes_the_profile_that_fits(memory, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("mvl.runner.execute.run", lambda *options: ran.append(options) or {})
    monkeypatch.setattr("mvl.runner.kernels.in_fork", lambda *call: 0)
    memory(2)
    assert main(["run", "--only", "03"]) == 0
    assert "Profile smoke" in capsys.readouterr().out
    assert main(["run", "--profile", "quick"]) == 0
    memory(16)
    assert main(["run"]) == 0
    assert [options[0] for options in ran] == ["smoke", "quick", "quick"]


def test_a_report_that_fails_fails_the_command(monkeypatch):
    assert kernels.in_fork(math.sqrt, 4) == 0 and kernels.in_fork(math.sqrt, -4) != 0
    done = {"00": SimpleNamespace(seconds=1.0, status="ok")}
    monkeypatch.setattr("mvl.runner.execute.run", lambda *options: done)
    for code in (0, 1):
        monkeypatch.setattr(kernels, "in_fork", lambda *call, code=code: code)
        assert main(["run", "--profile", "smoke"]) == code
