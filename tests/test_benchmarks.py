import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from mvl.config import PRESETS, PeerConfig, TrainingConfig

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [path.stem for path in FOLDER.glob("*.py")]
#: A block of few weights, in place of one of Llama-3.1-8B's size.
SMALL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 32}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def common(monkeypatch, tmp_path):
    """The benchmarks' helper, with a record and a page of the test's own."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in SCRIPTS:  # its name may be another module's, too
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("common")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "README.md")
    module.PAGE.write_text(f"above\n{module.BEGIN}\nold\n{module.END}\nbelow\n")
    return module


def test_flops_of_a_linear_layer_are_counted_by_hand(common):
    layer = nn.Linear(5, 7, device="meta")
    assert common.count_flops(layer, 3, 5, backward=False) == 2 * 3 * 5 * 7
    # Back: the weight's gradient; the input asks for none. A frozen layer passes gradients on.
    assert common.count_flops(layer, 3, 5) == 2 * (2 * 3 * 5 * 7)
    assert common.count_flops(layer, 3, 5, to_input=True) == 3 * (2 * 3 * 5 * 7)
    frozen = layer.requires_grad_(False)
    assert common.count_flops(frozen, 3, 5, to_input=True) == 2 * (2 * 3 * 5 * 7)


def test_flops_of_attention_and_of_a_whole_model_are_counted_by_hand(common):
    from mvl.config import ModelConfig
    from mvl.models.segmenter import build_segmenter

    config = ModelConfig(width=16, encoder_depth=1, decoder_depth=0, heads=2)
    with torch.device("meta"):
        model = build_segmenter(config, 1, 1, (16, 24, 16), 0)
    tokens, width, patch = 2 * 3 * 2, 16, 8**3
    products = tokens * (patch * width + 12 * width**2 + width * patch)
    scores = 2 * tokens**2 * width  # queries with keys, and weights with values
    assert common.count_flops(model, 1, 1, 16, 24, 16, backward=False) == 2 * (products + scores)


def test_figures_are_merged_and_the_page_is_written_again(common, monkeypatch):
    monkeypatch.setattr(common, "ON_GPU", False)
    common.record({"vit_64_step_s": 1.23456, "v3_64_step_s": 2.0})
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    importlib.import_module("gpu").main()  # there is none, and it says so
    common.record({"vit_64_step_s": 0.5})
    results = json.loads(common.RESULTS.read_text())
    assert results["vit_64_step_s"] == 0.5 and results["v3_64_step_s"] == 2.0
    page = common.PAGE.read_text()
    assert page.startswith("above\n") and page.endswith("below\n") and "old" not in page
    assert "| `vit_64` | 0.5 " in page and "`gpu_eager_v3_128`: not measured" in page
    common.record({"gpu_eager_v3_128_step_s": 0.1})
    assert "`gpu_eager_v3_128`: not measured" not in common.PAGE.read_text()


def shown(common):
    """Keys that the tables show, of machines without a GPU and with one."""
    keys = {
        f"{r}_{c}" for rows, columns, _ in common.TABLES.values() for r in rows for c in columns
    }
    return keys | {f"gpu_{key}" for key in keys}


@pytest.fixture
def small(common, monkeypatch):
    """A function that imports a benchmark and makes it small; `set(name, value)` as keywords."""
    from mvl.config import DataConfig

    monkeypatch.setattr(common, "SIZES", SMALL)
    monkeypatch.setattr(common, "LLAMA", "random:" + json.dumps(SMALL))
    monkeypatch.setattr(common, "PRODUCT", (16, 16))
    data = DataConfig(grid=(16, 24, 16))

    def load(name, **values):
        module = importlib.import_module(name)
        known = {"DATA": data, "TURNS": 1} | values
        for key in known.keys() & vars(module).keys():
            monkeypatch.setattr(module, key, known[key])
        return module

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def sound(common, prefix, figures):
    """Whether all figures are numbers that a table shows."""
    assert figures and {f"{prefix}_{key}" for key in figures} <= shown(common)
    return all(0 <= value < float("inf") for value in figures.values())


def test_steps_are_measured(common, small):
    step = small("step", ENOUGH_S=1e-9)
    for name in ("v3", "bare_block", "released_code"):
        found = step.measure(name, 16, "float32")
        assert sound(common, f"{name}_64", found) and found["model_tflop"] > 0
        assert ("data_over_step_share" in found) == (name == "v3")


def test_training_on_task04_is_measured(small):
    unet = (PeerConfig("unet"), TrainingConfig())
    arms = {"vit": PRESETS["vit"], "unet": unet}
    task04 = small("task04", NAMES=("vit", "v1"), ARMS=arms, TRAINING=5, VALIDATION=1)
    for seconds, names in ((task04.steps(), arms), (task04.epochs(), task04.NAMES)):
        assert list(seconds) == list(names) and min(seconds.values()) > 0


@pytest.mark.parametrize(
    ("name", "values", "parts"),
    [
        ("cpu", {"GRID": (8, 8, 8), "TOKENS": 8}, ("subnormals", "layout", "block")),
        ("loading", {"CASES": 8}, ("cases", "waits")),
        ("metrics", {"EDGE": 32, "RADII": (6,)}, ("measure",)),
        ("inference", {"NAMES": ("vit",)}, ("measure",)),
        ("overhead", {"REPEATS": 1}, ("measure",)),
    ],
)
def test_each_part_is_measured(common, small, name, values, parts):
    module = small(name, **values)
    for part in parts:
        figures = getattr(module, part)()
        assert sound(common, name, figures)
        assert figures.get("nsd_largest_difference", 0) < 1e-6


def test_a_block_is_measured(common, small, tmp_path):
    llama = SMALL | {"hidden_size": 512}  # enough weights a tensor for their spread to be tested
    get_block = small("get_block", LLAMA=llama, SHARD_BYTES=1_000_000)
    total = get_block.make_checkpoint(tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    get_block.drop_cache(tmp_path)
    found = get_block.measure(tmp_path, "float32")
    assert sound(common, "get_block_llama31_8b_f32", found)
    assert 2e9 * found["block_gb"] < total * 2 and found["bytes_ratio"] > 1


def test_a_step_on_a_gpu_is_measured(common, small, monkeypatch):
    """On whatever device is there is: only the mode of the GPU's driver is played."""
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    gpu = small("gpu", GRID=(16, 16, 16), STEPS=1)
    found = gpu.measure("eager", 1)
    assert sound(common, "gpu_eager_v3_128", found) and found["host_waits"] == 0

    def step():
        raise RuntimeError("called a synchronizing CUDA operation")

    assert gpu.waits_for_gpu(step)


def test_commands_are_measured(common, small, tmp_path):
    command = f'(echo "$1 $2"; python -c "import sys; print(sys.prefix)") >>{tmp_path}/said'
    (tmp_path / "run_all.sh").write_text(f"#!/bin/sh\n{command}\n")
    (tmp_path / "run_all.sh").chmod(0o755)
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    for words in (["init", "-q"], ["add", "run_all.sh"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    found = small("commands").measure(tmp_path, "smoke")
    assert sound(common, "commands_smoke", found)
    # Twice, in the environment of this Python.
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["--profile smoke", sys.prefix] * 2


def test_simulated_intervals_are_scipys_and_hold_the_truth(common):
    intervals = importlib.import_module("intervals")
    dice = intervals.simulate(400, 5, 20, 2)
    found = intervals.intervals(dice)
    for method, (estimate, half) in found.items():
        assert 0.9 < (abs(estimate) <= half).mean() < 1, method
    by_fold = dice[7].mean((2, 3))
    test = stats.ttest_rel(by_fold[0], by_fold[1])
    (estimate, half), interval = found["folds"], test.confidence_interval()
    assert estimate[7] + half[7] == pytest.approx(interval.high)


def test_the_simulation_writes_its_table_and_page(common, monkeypatch, tmp_path):
    intervals = importlib.import_module("intervals")
    monkeypatch.setattr(intervals, "TABLE", tmp_path / "coverage.csv")
    monkeypatch.setattr(intervals, "PAGE", tmp_path / "statistics.md")
    intervals.PAGE.write_text(f"above\n{intervals.BEGIN}\nold\n{intervals.END}\nbelow\n")
    monkeypatch.setattr(sys, "argv", ["intervals.py", "--tables", "6"])
    intervals.main()
    found = pd.read_csv(intervals.TABLE)
    assert found["value"].notna().all() and found.loc[found["measure"] == "coverage"].shape[0] > 100
    page = intervals.PAGE.read_text()
    assert page.count("### ") == 5 and "nan" not in page and "\nold\n" not in page
