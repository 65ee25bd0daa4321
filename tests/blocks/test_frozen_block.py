"""The block stays as it is; its controls are what they say; its number format is its own."""

from pathlib import Path

import pytest
import torch

from mvl.models.folder import trained_state
from tests.blocks.conftest import TINY, TOKENS, WIDTH, part_of, states


def layers_of(source, seed=0, **options):
    return dict(part_of(source, seed, **options).block.layers.named_parameters())


def test_same_output_in_train_and_eval(models):
    """BERT's dropout of 0.1 would show."""
    part, x = part_of(models["bert"][1]), states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(part.train()(x), part.eval()(x))
    assert not any(m.training for m in part.train().block.modules())


@pytest.mark.parametrize("control", ["pretrained", "random", "shuffled", "matched"])
@pytest.mark.parametrize("rank", [0, 2])
def test_training_leaves_the_block_bit_identical(models, control, rank):
    part = part_of(models["llama"][1], control=control, lora_rank=rank).train()
    saved = set(trained_state(part))
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in part.parameters() if p.requires_grad], lr=0.1)
    for seed in range(3):
        optimiser.zero_grad()
        part(states(2, TOKENS, WIDTH, seed=seed)).square().mean().backward()
        optimiser.step()
    block = {n for n in before if n.startswith("block.") and "lora_" not in n}
    assert len(block) == 9
    for name, tensor in part.state_dict().items():
        frozen = name in block or (rank and name.endswith("base_layer.weight"))
        assert torch.equal(tensor, before[name]) == bool(frozen), name
    assert saved == set(before) - block


def test_trainable_block_trains_and_is_saved(models):
    source = models["bert"][1]
    part, x = part_of(source, control="trainable"), states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(part(x), part_of(source)(x))
    assert all(p.requires_grad for p in part.parameters())
    assert list(trained_state(part)) == list(part.state_dict())
    block = part_of(source, control="trainable", lora_rank=2).block
    assert all(p.requires_grad for p in block.parameters())
    assert not block.train().training


def test_matched_control_has_each_matrix_mean_and_deviation_and_the_norms_themselves(models):
    source = models["llama"][1]
    first, second = (layers_of(source, seed, control="matched") for seed in (0, 1))
    for name, weight in layers_of(source).items():
        drawn = first[name]
        if weight.ndim < 2:
            assert torch.equal(weight, drawn)
            continue
        assert not torch.equal(drawn, second[name]), name
        spread = weight.std() / weight.numel() ** 0.5  # of a mean of as many draws
        assert abs(drawn.mean() - weight.mean()) < 5 * spread
        tolerance = 5 / (2 * weight.numel()) ** 0.5
        assert drawn.std() == pytest.approx(weight.std().item(), rel=tolerance)


def test_random_control_is_the_familys_own_initialisation():
    """GPT-2 is the telling one: std 0.02, and 0.02 / sqrt(2 layers) on residual projections."""
    source = 'random:{"model_type": "gpt2", "n_embd": 192, "n_layer": 8, "n_head": 4}'
    first, again, other = (part_of(source, s, control="random").block.layers[0] for s in (0, 0, 1))
    assert first.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert first.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert torch.equal(first.ln_1.weight, torch.ones(192))
    assert first.mlp.c_fc.bias.abs().max() == 0
    assert torch.equal(again.mlp.c_fc.weight, first.mlp.c_fc.weight)
    assert not torch.equal(other.mlp.c_fc.weight, first.mlp.c_fc.weight)


def test_shuffled_control_keeps_the_values_alone(models):
    source = models["gemma2"][1]
    true = layers_of(source)
    first, again, other = (layers_of(source, seed, control="shuffled") for seed in (0, 0, 1))
    for name, values in first.items():
        assert torch.equal(values.flatten().sort().values, true[name].flatten().sort().values)
        assert not torch.equal(values, true[name]), name
        assert torch.equal(values, again[name]) and not torch.equal(values, other[name])


@pytest.mark.parametrize("kind", TINY)
def test_bfloat16_block_differs_by_little(models, kind):
    """bfloat16 has 8 significant bits, one rounding errs by 2**-9: six of them are allowed."""
    exact, half = (part_of(models[kind][1], dtype=d).block for d in ("float32", "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    z = states(2, TOKENS, 32)
    with torch.no_grad():
        expected, y = exact(z), half(z)
    assert y.dtype == torch.float32
    assert 1e-5 < ((y - expected).norm() / expected.norm()).item() < 6 * 2**-9


def test_autocast_does_not_reach_into_the_block(models):
    block, z = part_of(models["llama"][1]).block, states(2, TOKENS, 32)
    with torch.no_grad():
        expected = block(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(block(z), expected)


def test_forms_of_a_random_source_agree(models):
    source, z = models["llama"][1], states(1, 4, 32)
    folder = source.removeprefix("path:")
    forms = (folder, f"{folder}/config.json", Path(folder, "config.json").read_text())
    with torch.no_grad():
        outputs = [part_of(f"random:{form}").block(z) for form in forms]
        control = part_of(source, control="random").block(z)
    assert all(torch.equal(output, control) for output in outputs)
