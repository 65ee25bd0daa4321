"""LoRA by peft: counts and formulas by hand, merged adapters, what a run saves."""

import pytest
import torch

from mvl.blocks.language_part import build_language
from mvl.config import LanguageConfig
from mvl.models.folder import load_trained_state, trained_state
from mvl.models.sizes import LLAMA_3_1_8B
from tests.blocks.conftest import TOKENS, WIDTH, part_of, states
from tests.blocks.merged import merge_adapters


def test_counts_at_llamas_size():
    """As the released code counts: 37,440 weights at E = 64, L = 4,096, rank 4; 524,288 in full."""

    def trained(**options):
        with torch.device("meta"):
            part = build_language(LanguageConfig(source=LLAMA_3_1_8B, **options), 64, seed=0)
        assert {p.device.type for p in part.parameters()} == {"meta"}
        return sum(p.numel() for p in part.parameters() if p.requires_grad)

    mappers = 4 * (64 + 4096) * 2 + 4096 + 64
    projections = [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 3
    assert trained(lora_rank=4, lora_on="mappers") == mappers == 37_440
    assert trained() == trained(control="identity") == 524_288 + 4096 + 64
    assert trained(lora_rank=4, lora_on="both") == mappers + 4 * sum(map(sum, projections))


@pytest.mark.parametrize(
    ("kind", "on"), [("llama", "both"), ("phi3", "block"), ("gpt2", "both"), ("bert", "mappers")]
)
def test_merged_adapters_give_equal_outputs(models, kind, on):
    source, x = models[kind][1], states(2, TOKENS, WIDTH)
    part = part_of(source, lora_rank=2, lora_alpha=3.0, lora_on=on)
    with torch.no_grad():
        start = part(x)
        torch.testing.assert_close(start, part_of(source)(x))  # adapters start as nothing
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
        adapted = part(x)
        assert (adapted - start).abs().max() > 1e-3
        merged = merge_adapters(part)
        torch.testing.assert_close(merged(x), adapted, rtol=1e-4, atol=1e-5)
    assert not any("lora_" in name for name in merged.state_dict())


@pytest.mark.parametrize(
    ("kind", "projections"),
    [("llama", 7), ("gemma2", 7), ("phi3", 4), ("gpt2", 4), ("biogpt", 6), ("bert", 6)],
)
@pytest.mark.filterwarnings("error")
def test_adapters_are_on_every_projection(models, kind, projections):
    block = part_of(models[kind][1], lora_rank=2, dtype="bfloat16").block
    adapters = {n: p for n, p in block.named_parameters() if "lora_" in n}
    assert len(adapters) == 2 * projections
    assert all(p.requires_grad and p.dtype == torch.float32 for p in adapters.values())
    assert not any(p.requires_grad for n, p in block.named_parameters() if n not in adapters)


def test_scale(models):
    """D1 with adapters is W x + b + alpha / rank * B A x (Hu et al., arXiv:2106.09685)."""
    d1, x = part_of(models["bert"][1], lora_rank=2, lora_alpha=5.0).d1, states(3, WIDTH)
    with torch.no_grad():
        b = d1.lora_B["default"].weight.add_(0.1)
        product = b @ d1.lora_A["default"].weight
        torch.testing.assert_close(d1(x), d1.base_layer(x) + 5.0 / 2 * x @ product.T)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_saved_carries_the_part_to_another_process(models, kind):
    """Another seed stands for another process: all that differs must be in what is saved."""
    first, second = (part_of(models[kind][1], seed, lora_rank=2) for seed in (0, 1))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    load_trained_state(second, trained_state(first), "first")
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(second(x), first(x))
