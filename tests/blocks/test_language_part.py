"""The language part, compared with formulas by hand."""

import math

import pytest
import torch
from torch import nn

from mvl.blocks.frozen_block import FrozenBlock
from tests.blocks.conftest import TOKENS, WIDTH, part_of, states


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_formula(models, residual, unit_norm, skip):
    options = {"residual": residual, "unit_norm": unit_norm, "skip": skip}
    part, x = part_of(models["llama"][1], **options), states(2, TOKENS, WIDTH)
    with torch.no_grad():
        z = part.d1(x)
        h = unit(part.block(z)) if unit_norm else part.block(z)
        expected = part.d2(h + z if residual else h) + (x if skip else 0)
        torch.testing.assert_close(part(x), expected)
        torch.testing.assert_close(part.update(x), part.d2(h))


@pytest.mark.parametrize("terms", ["sum", "output", "contribution"])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_terms(models, terms, scale):
    part = part_of(models["llama"][1], terms=terms, scale=scale, skip=False)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        z = 3 * unit(part.d1(x)) if scale else part.d1(x)
        h = part.block(z)
        h = {"sum": h, "output": unit(h), "contribution": unit(h - z)}[terms]
        z = z if terms == "sum" else unit(z)
        torch.testing.assert_close(part(x), part.d2(h + z))
        part.edit = torch.zeros_like
        torch.testing.assert_close(part(x), part.d2(z))


def test_a_part_that_starts_as_the_identity_keeps_the_direction_of_every_token(models):
    options = {"terms": "contribution", "scale": 3.0, "start": "identity", "skip": False}
    source, x = models["llama"][1], states(2, TOKENS, WIDTH)
    bare = part_of(source, control="identity", **options)
    torch.testing.assert_close(unit(bare(x)), unit(x), rtol=1e-4, atol=1e-4)
    whole = part_of(source, **options)(x)
    assert nn.functional.cosine_similarity(whole, x, dim=-1).min() > 0.5


def test_identity_control(models):
    part, x = part_of(models["llama"][1], control="identity"), states(2, TOKENS, WIDTH)
    torch.testing.assert_close(part(x), x + part.d2(2 * part.d1(x)))
    assert not any(isinstance(m, FrozenBlock) for m in part.modules())


@pytest.mark.parametrize("control", ["random", "shuffled", "identity", "trainable"])
def test_mappers_start_alike_in_every_arm(models, control):
    source = models["llama"][1]
    reference = part_of(source, 4)
    before = torch.get_rng_state()
    plain = part_of(source, 4, control=control)
    adapted = part_of(source, 4, control=control, lora_rank=2)
    assert torch.equal(torch.get_rng_state(), before)  # no global generator moved
    for name in ("d1", "d2"):
        expected = getattr(reference, name)
        for mapper in (getattr(plain, name), getattr(adapted, name).base_layer):
            assert torch.equal(mapper.weight, expected.weight)
            assert torch.equal(mapper.bias, expected.bias)
    assert not torch.equal(part_of(source, 5, control=control).d1.weight, reference.d1.weight)


def test_parts_draw_from_generators_of_their_own(models):
    """D1 and D2 have as many weights, uniform within 1 / sqrt(inputs): scaled, they would agree."""
    part = part_of(models["llama"][1])
    d1, d2 = part.d1.weight * math.sqrt(WIDTH), part.d2.weight * math.sqrt(32)
    assert not torch.allclose(d1.flatten(), d2.flatten(), atol=0.1)
