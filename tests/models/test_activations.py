from dataclasses import replace

import pytest
import torch

from mvl.config import LanguageConfig, ModelConfig
from mvl.models.activations import activations, attention_mixes, to_volume
from mvl.models.segmenter import _evenly, build_segmenter

GRID = (16, 24, 16)
SMALL = ModelConfig(width=16, encoder_depth=2, decoder_depth=1, heads=2)
FULL = replace(SMALL, language=LanguageConfig(), fusion=True, attention="hybrid")


def test_stages_are_those_of_a_forward_pass_by_hand():
    model = build_segmenter(FULL, 1, 1, GRID, seed=0).eval()
    with torch.no_grad():
        model.fusion.scale.normal_()
        volume = torch.randn(1, 1, *GRID)
        stages = activations(model, volume)
        x = model.embed(volume) + model.position
        first = model.encoder[0](x)
        second = model.encoder[1](first)
        fused = model.fusion([first, first, second])
        assert torch.allclose(stages["encoder"], fused, atol=1e-5)
        part, x = model.language, stages["encoder"]
        assert torch.allclose(stages["update"], part.d2(part.block(part.d1(x))), atol=1e-5)
        assert torch.allclose(stages["after"], part(x), atol=1e-5)
        assert torch.allclose(stages["decoder"], model.decoder[0](part(x)), atol=1e-5)


def test_a_token_lands_in_its_patch():
    tokens = torch.zeros(1, 12, 4)
    tokens[0, 7] = 2.0  # (1, 0, 1) on a (2, 3, 2) grid, norm 4
    volume = to_volume(tokens, build_segmenter(SMALL, 1, 1, GRID, seed=0), GRID)
    assert volume.shape == (1, *GRID)
    assert volume[0, 12:, :4, 12:].min() == pytest.approx(4.0, abs=1e-5)
    assert volume[0, :4].max() == 0 and volume[0, :, 20:].max() == 0


def test_mixes_are_read_by_block_and_head():
    model = build_segmenter(FULL, 1, 1, GRID, seed=0)
    with torch.no_grad():
        model.encoder[1].attention.mix.copy_(torch.tensor([0.0, 50.0]))
    mixes = attention_mixes(model)
    assert mixes.shape == (3, 2)
    assert mixes[1].tolist() == pytest.approx([0.5, 1.0])
    assert attention_mixes(build_segmenter(SMALL, 1, 1, GRID, seed=0)).numel() == 0


def test_fused_states_end_with_the_last_and_every_second_window_is_shifted():
    assert _evenly("abcdefgh", 3) == ["b", "e", "h"] and _evenly("ab", 3) == ["a", "a", "b"]
    model = build_segmenter(replace(FULL, window=2), 1, 1, GRID, seed=0)
    plain, shifted, again = (b.attention.slots for b in (*model.encoder, *model.decoder)[:3])
    assert torch.equal(plain, again) and not torch.equal(plain, shifted)
