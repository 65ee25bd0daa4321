from dataclasses import replace

import pytest

from mvl.config import PRESETS, ModelConfig
from mvl.errors import ConfigError
from mvl.models.segmenter import build_segmenter
from mvl.models.sizes import LLAMA_3_1_8B, count_parameters, match_size

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
    assert trained - plain[0] == 37_440  # PAPER.md, point 11


@pytest.mark.parametrize("by", ["depth", "mlp"])
@pytest.mark.parametrize("target", [60_000, 1_000_000])
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
