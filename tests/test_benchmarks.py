import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("step", "task04", "cpu", "gpu", "loading", "metrics", "inference", "overhead")


@pytest.fixture
def common(monkeypatch, tmp_path):
    """The benchmarks' helper, with a record and a page of the test's own."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("common", *SCRIPTS):  # a name of a benchmark may be another module's, too
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("common")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "README.md")
    module.PAGE.write_text(f"above\n{module.BEGIN}\nold\n{module.END}\nbelow\n")
    return module


def test_flops_of_a_linear_layer_are_counted_by_hand(common):
    layer = nn.Linear(5, 7, device="meta")
    assert common.count_flops(layer, 3, 5, backward=False) == 2 * 3 * 5 * 7
    # Back: the weight's gradient; the input asks for none.
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


@pytest.mark.parametrize("preset", ["v1", "v3"])
def test_flops_of_a_preset_are_counted_without_computing(common, preset):
    from mvl.config import PRESETS
    from mvl.models.segmenter import build_segmenter

    with torch.device("meta"):
        model = build_segmenter(PRESETS[preset][0], 1, 1, (24, 32, 24), 0)
    forward = common.count_flops(model, 1, 1, 24, 32, 24, backward=False)
    with torch.device("meta"):
        model = build_segmenter(PRESETS[preset][0], 1, 1, (24, 32, 24), 0)
    # A frozen block passes gradients on, but has none of its own.
    assert 2 * forward < common.count_flops(model, 1, 1, 24, 32, 24) < 3 * forward


def test_figures_are_merged_and_the_page_is_written_anew(common, capsys):
    common.record({"vit_64_step_s": 1.23456, "v3_64_step_s": 2.0})
    common.record({"vit_64_step_s": 0.5, "gpu_v3_128_not_measured": "no GPU"})
    results = json.loads(common.RESULTS.read_text())
    assert results["vit_64_step_s"] == 0.5 and results["v3_64_step_s"] == 2.0
    page = common.PAGE.read_text()
    assert page.startswith("above\n") and page.endswith("below\n") and "old" not in page
    assert "| `vit_64` | 0.5 | – | – | – |" in page
    assert "`gpu_v3_128`: not measured, no GPU." in page
    assert page.count(common.BEGIN) == page.count(common.END) == 1
    common.record({"gpu_v3_128_step_s": 0.1})
    assert "not measured, no GPU" not in common.PAGE.read_text()


def test_the_committed_page_shows_the_committed_figures():
    sys.path.insert(0, str(FOLDER))
    try:
        common = importlib.import_module("common")
    finally:
        sys.path.remove(str(FOLDER))
    results = json.loads((FOLDER / "results.json").read_text())
    page = (FOLDER / "README.md").read_text()
    assert common.tables(results) == page.partition(f"{common.BEGIN}\n")[2].partition(common.END)[0]
    shown = {
        f"{r}_{c}" for rows, columns, _ in common.TABLES.values() for r in rows for c in columns
    }
    left = {k for k in results if k not in shown and not k.endswith("_not_measured")}
    assert left == {"get_block_llama31_8b_model_gb"}


def test_functions_take_turns_and_the_first_is_for_nothing(common):
    seen = []
    runs = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    taken = common.in_turns(runs, 2)
    assert seen == ["a", "b"] * 3 and all(value >= 0 for value in taken.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_does_and_how(common, name):
    module = importlib.import_module(name)
    assert f"python benchmarks/{name}.py" in module.__doc__ and callable(module.main)


def test_without_a_gpu_its_benchmark_says_why_there_are_no_figures(common):
    if common.ON_GPU:
        pytest.skip("there is a GPU")
    importlib.import_module("gpu").main()
    assert "no CUDA device" in common.PAGE.read_text()
