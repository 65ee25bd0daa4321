"""The parts put together: shapes, shared first weights, saving, counting."""

import itertools
from dataclasses import replace

import pytest
import torch

from mvl.config import PRESETS, LanguageConfig, ModelConfig
from mvl.errors import ConfigError
from mvl.models.segmenter import build_segmenter

GRID = (16, 24, 16)
SMALL = ModelConfig(width=16, encoder_depth=3, decoder_depth=2, heads=2)
BLOCK = LanguageConfig()
COMBINATIONS = [
    replace(
        SMALL,
        language=BLOCK if language else None,
        attention="hybrid" if hybrid else "global",
        fusion=bool(fusion),
    )
    for language, hybrid, fusion in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("config", [*COMBINATIONS, replace(SMALL, head="conv")])
def test_logits_have_the_volumes_grid(config):
    model = build_segmenter(config, channels=2, classes=3, grid=GRID, seed=0)
    assert model(torch.randn(2, 2, *GRID)).shape == (2, 3, *GRID)


def test_shared_parts_start_from_the_same_weights():
    before = torch.get_rng_state()
    states = [build_segmenter(c, 1, 1, GRID, seed=0).state_dict() for c in COMBINATIONS]
    assert torch.equal(torch.get_rng_state(), before)  # no global generator moved
    for one, other in itertools.combinations(states, 2):
        shared = one.keys() & other.keys()
        assert len(shared) > 60
        assert all(torch.equal(one[name], other[name]) for name in shared)


def test_the_released_order_maps_tokens_without_position():
    config = replace(SMALL, language=BLOCK, language_position="before")
    model = build_segmenter(config, 1, 1, GRID, seed=0)
    volume = torch.randn(1, 1, *GRID)
    seen = []
    model.language.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(volume)
    assert torch.equal(seen[0], model.embed(volume))


def test_a_patch_that_does_not_divide_the_grid_is_named():
    with pytest.raises(ConfigError, match=r"\(16, 20, 16\).*\(8, 8, 8\)"):
        build_segmenter(SMALL, 1, 1, (16, 20, 16), seed=0)


def test_the_released_vit_has_the_papers_size():
    """As large as the released code's ViT: 1.13 M weights at 128^3 with patches of 8."""
    config = replace(PRESETS["released"][0], language=None)
    with torch.device("meta"):
        model = build_segmenter(config, 1, 1, (128, 128, 128), seed=0)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 1.13


def test_parts_of_one_kind_and_other_seeds_start_from_other_weights():
    state = build_segmenter(SMALL, 1, 1, GRID, seed=0).state_dict()
    other = build_segmenter(SMALL, 1, 1, GRID, seed=1).state_dict()
    name = "encoder.{}.attention.qkv.weight"
    assert not torch.equal(state[name.format(0)], state[name.format(1)])
    assert not torch.equal(state[name.format(0)], other[name.format(0)])
