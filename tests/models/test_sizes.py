from dataclasses import replace

import pandas as pd
import pytest

from mvl.config import PRESETS, ModelConfig
from mvl.errors import ConfigError
from mvl.files import REPOSITORY
from mvl.models.segmenter import build_segmenter
from mvl.models.sizes import (
    ARCHITECTURES,
    LLAMA_3_1_8B,
    block_table,
    count_parameters,
    match_size,
    whole_model,
)

GRID = (16, 24, 16)
SMALL = ModelConfig(width=16, encoder_depth=2, decoder_depth=2, heads=2)
V3 = PRESETS["v3"][0]


def test_counting_agrees_with_the_allocated_model():
    config = replace(PRESETS["v1"][0], encoder_depth=2, decoder_depth=1)
    model = build_segmenter(config, 2, 3, GRID, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert count_parameters(config, GRID, 2, 3) == (trained, frozen)


def test_a_llama_block_is_counted_and_not_allocated():
    """One layer of Llama-3.1-8B by hand: q, k, v, o, three MLP matrices, two norms."""
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    plain = count_parameters(replace(V3, language=None))
    language = replace(V3.language, source=LLAMA_3_1_8B, lora_on="mappers")
    trained, frozen = count_parameters(replace(V3, language=language))
    mappers = 2 * 64 * 4096
    assert plain[1] == 0 and frozen == block + mappers
    assert trained - plain[0] == 37_440  # as the released code counts them


@pytest.mark.parametrize(("by", "target"), [("depth", 60_000), ("mlp", 60_000), ("mlp", 1_000_000)])
def test_a_control_is_as_large_as_asked(by, target):
    config = match_size(SMALL, target, by, GRID)
    sizes = [sum(count_parameters(c, GRID)) for c in _neighbours(config, by)]
    assert min(sizes, key=lambda size: abs(size - target)) == sizes[1]
    assert config.width == SMALL.width and config.heads == SMALL.heads


def _neighbours(config, by):
    """The configuration one step smaller, itself, and one step larger."""
    if by == "mlp":
        step = 1 / config.width
        return [replace(config, mlp_ratio=config.mlp_ratio + k * step) for k in (-1, 0, 1)]
    return [
        replace(
            config, encoder_depth=config.encoder_depth + k, decoder_depth=config.decoder_depth + k
        )
        for k in (-1, 0, 1)
    ]


def test_a_model_that_is_too_large_already_is_refused():
    with pytest.raises(ConfigError, match="weights already"):
        match_size(SMALL, 1000, "mlp", GRID)
    with pytest.raises(ConfigError, match="no language part"):
        match_size(V3, 10**9, "depth", GRID)


#: Weights of the whole models, as counted elsewhere (the hub's files, where it has them).
PUBLISHED = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Gemma-2-9B": 9_241_705_984,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Phi-3-mini": 3_821_079_552,
    "GPT-2": 124_439_808,
    "BioGPT": 346_763_264,
    "BERT-base": 109_482_240,
}


@pytest.fixture(scope="module")
def table():
    return block_table().set_index("model")


def test_the_table_sets_one_block_against_the_model_that_was_published(table):
    assert set(PUBLISHED) == set(ARCHITECTURES)
    for name, published in PUBLISHED.items():
        model, row = whole_model(ARCHITECTURES[name]), table.loc[name]
        assert sum(p.numel() for p in model.parameters()) == published, name
        inside = model.config.num_hidden_layers * row["block_parameters"] / published
        assert 0.4 < inside < 1, name  # the rest is the embedding, most of all in small models
        assert row["block_bytes"] == 2 * row["block_parameters"]
        assert row["model_bytes"] == 2 * published and "architecture" in row["basis"]
    # By hand, at width 768: four square maps and an MLP of four times the width, biases, norms.
    by_hand = 12 * 768 * 768 + 13 * 768
    assert (table.loc[["BERT-base", "GPT-2"], "block_parameters"] == by_hand).all()
    file = table.loc["all-MiniLM-L6-v2"]
    assert file["block_bytes"] == 4 * file["block_parameters"] and file["basis"] == "from the file"
    assert (table["share"] == table["block_bytes"] / table["model_bytes"]).all()


def test_the_committed_table_is_the_one_that_is_computed(table):
    stored = pd.read_csv(REPOSITORY / "benchmarks" / "blocks.csv").set_index("model")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
