"""The language part, held against whole Hugging Face models, hand-written formulas, properties."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mvl.blocks import language_part as language
from mvl.blocks.language_part import (
    FAMILIES,
    FrozenBlock,
    block_reference,
    build_language,
    describe,
    extract_block,
    merge_lora,
    saved_keys,
)
from mvl.config import LanguageConfig
from mvl.errors import BlockError

WIDTH = 8
TOKENS = 12
_SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: Small models of every family; windows are shorter than the sequence, so that they are seen.
TINY = {
    "llama": _GROUPED | {"rope_parameters": _LLAMA3},
    "mistral": _GROUPED | {"sliding_window": 5},
    "gemma2": _GROUPED | {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20},
    "qwen2": _GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": _GROUPED | {"head_dim": 12},
    "phi3": _GROUPED
    | {
        "sliding_window": 5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "gpt2": {
        "vocab_size": 40,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "biogpt": _SIZES,
    "bert": _SIZES,
}
ROTARY = {name for name, family in FAMILIES.items() if family.rotary}


def save_tiny(kind, folder, **more):
    """A small model with weights that leave no tensor at its neutral value, saved as HF does."""
    import transformers

    config = transformers.CONFIG_MAPPING[kind](**TINY[kind], **more)
    make = (
        transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{family: (full model, its "path:" source)}."""
    root = tmp_path_factory.mktemp("models")
    return {kind: (save_tiny(kind, root / kind), f"path:{root / kind}") for kind in TINY}


def block_of(source, **options):
    return build_language(LanguageConfig(source=source, **options), WIDTH, seed=0).block


def states(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers_of(model, kind):
    """The full model's own list of layers."""
    base = model.base_model
    return {"gpt2": lambda: base.h, "bert": lambda: base.encoder.layer}.get(
        kind, lambda: base.layers
    )()


def seen_by(model, layers, first, last):
    """What enters layer `first` and leaves layer `last` while the full model reads words."""
    seen = {}
    hooks = [
        layers[first].register_forward_pre_hook(lambda m, a: seen.update(x=a[0].clone())),
        layers[last].register_forward_hook(lambda m, a, out: seen.update(y=out.clone())),
    ]
    words = torch.randint(0, 40, (2, TOKENS), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model(input_ids=words, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen["x"], seen["y"]


# ---------------------------------------------------------------- families


def test_every_family_is_tested():
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (1, 1), (-1, 1), (1, 2)])
def test_equals_the_layer_inside_the_full_model(models, kind, layer, layers):
    model, source = models[kind]
    first = layer % 3
    x, expected = seen_by(model, layers_of(model, kind), first, first + layers - 1)
    options = {"causal": kind != "bert", "rotary": kind in ROTARY}
    with torch.no_grad():
        found = block_of(source, layer=layer, layers=layers, **options)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x, expected, atol=1e-2)


def test_causal_bert_equals_bert_as_a_decoder(tmp_path):
    model = save_tiny("bert", tmp_path, is_decoder=True)
    x, expected = seen_by(model, layers_of(model, "bert"), 1, 1)
    with torch.no_grad():
        found = block_of(f"path:{tmp_path}", layer=1, causal=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_bidirectional_without_rotary_is_permutation_equivariant(models, kind):
    block = block_of(models[kind][1])
    z = states(2, TOKENS, 32)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(z[:, order]), block(z)[:, order], rtol=1e-4, atol=1e-5)
        # Each token sees each other one: the first depends on the last.
        changed = z.clone()
        changed[:, -1] = z[:, -1].flip(-1)
        assert (block(changed)[:, 0] - block(z)[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", sorted(ROTARY))
def test_rotary_breaks_the_equivariance(models, kind):
    block = block_of(models[kind][1], rotary=True)
    z = states(2, TOKENS, 32)
    with torch.no_grad():
        difference = block(z.flip(1)) - block(z).flip(1)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("kind", TINY)
def test_causal_tokens_do_not_see_later_ones(models, kind):
    block = block_of(models[kind][1], causal=True)
    z = states(2, TOKENS, 32)
    changed = z.clone()
    changed[:, 7:] = z[:, 7:].flip(-1)
    with torch.no_grad():
        before, after = block(z), block(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7:] - before[:, 7:]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", sorted(set(TINY) - ROTARY))
def test_rotary_of_a_family_without_is_an_error(models, kind):
    with pytest.raises(BlockError, match="no rotary"):
        block_of(models[kind][1], rotary=True)


def test_unknown_family_lists_the_known():
    with pytest.raises(BlockError, match=r"'mamba'.*llama.*gemma2.*bert"):
        block_of('random:{"model_type": "mamba"}')


@pytest.mark.parametrize(("layer", "layers"), [(3, 1), (-4, 1), (-1, 2)])
def test_a_layer_that_does_not_exist(models, layer, layers):
    with pytest.raises(BlockError, match=f"3 layers: there is no layer {layer}"):
        block_of(models["llama"][1], layer=layer, layers=layers)


def test_an_impossible_configuration():
    with pytest.raises(BlockError, match="no usable bert configuration"):
        block_of('random:{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}')


def test_names_of_older_checkpoints(models, tmp_path):
    """BERT's LayerNorm.gamma and beta; GPT-2's mask buffers, and no prefix."""
    from safetensors.torch import save_file

    for kind, rename in (
        (
            "bert",
            lambda n: n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
        ),
        ("gpt2", lambda n: n.removeprefix("transformer.")),
    ):
        model, source = models[kind]
        tensors = {rename(n): t.clone() for n, t in model.base_model.state_dict().items()}
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(3) if kind == "gpt2"}
        folder = tmp_path / kind
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        model.config.save_pretrained(folder)
        z = states(1, 4, 32)
        with torch.no_grad():
            assert torch.equal(block_of(f"path:{folder}")(z), block_of(source)(z))


@pytest.mark.parametrize("fault", ["missing", "foreign", "shape"])
def test_weights_that_do_not_fit_are_refused(models, tmp_path, fault):
    from safetensors.torch import save_file

    model, _ = models["llama"]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight")
    name = "model.layers.2.self_attn.q_proj.weight"
    if fault == "missing":
        tensors["model.layers.2.self_attn.q_proj.other"] = tensors.pop(name)
    elif fault == "foreign":
        tensors["model.layers.2.self_attn.q_proj.bias"] = torch.zeros(32)
    else:
        tensors[name] = torch.zeros(16, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(BlockError, match="q_proj"):
        block_of(f"path:{tmp_path}")
    block_of(f"path:{tmp_path}", layer=1)  # another layer is whole


# ---------------------------------------------------------------- frozen


def test_same_output_in_train_and_eval(models):
    """BERT's dropout of 0.1 would show."""
    part = build_language(LanguageConfig(source=models["bert"][1]), WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(part.train()(x), part.eval()(x))
    assert not any(m.training for m in part.train().block.modules())


@pytest.mark.parametrize("control", ["pretrained", "random", "shuffled"])
@pytest.mark.parametrize("rank", [0, 2])
def test_training_leaves_the_block_bit_identical(models, control, rank):
    config = LanguageConfig(source=models["llama"][1], control=control, lora_rank=rank)
    part = build_language(config, WIDTH, seed=0).train()
    kept = set(saved_keys(part))
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    trained = [p for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.1)
    for seed in range(3):
        optimiser.zero_grad()
        part(states(2, TOKENS, WIDTH, seed=seed)).square().mean().backward()
        optimiser.step()
    block = {n for n in before if n.startswith("block.") and "lora_" not in n}
    assert len(block) == 9
    for name, tensor in part.state_dict().items():
        frozen = name in block or (rank and name.endswith("base_layer.weight"))
        assert torch.equal(tensor, before[name]) == bool(frozen), name
    assert kept == set(before) - block


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_keys_carry_the_part_to_another_process(models, kind):
    """Another seed stands for a fresh process: all that differs must be in what is saved."""
    config = LanguageConfig(source=models[kind][1], lora_rank=2)
    first, second = (build_language(config, WIDTH, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    saved = {key: first.state_dict()[key] for key in saved_keys(first)}
    second.load_state_dict(saved, strict=False)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(second(x), first(x))


def test_saved_keys_of_a_host(models):
    part = build_language(LanguageConfig(source=models["bert"][1]), WIDTH, seed=0)
    host = nn.ModuleDict({"encoder": nn.Linear(2, 2), "language": part})
    assert saved_keys(host) == ["encoder.weight", "encoder.bias"] + [
        f"language.{mapper}.{kind}" for mapper in ("d1", "d2") for kind in ("weight", "bias")
    ]


def test_trainable_block_trains_and_is_saved(models):
    config = LanguageConfig(source=models["bert"][1], control="trainable")
    part = build_language(config, WIDTH, seed=0)
    frozen = build_language(LanguageConfig(source=models["bert"][1]), WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(part(x), frozen(x))
    assert all(p.requires_grad for p in part.parameters())
    assert saved_keys(part) == list(part.state_dict())
    adapted = LanguageConfig(source=models["bert"][1], control="trainable", lora_rank=2)
    block = build_language(adapted, WIDTH, seed=0).block
    assert all(p.requires_grad for p in block.parameters())
    assert not block.train().training


# ---------------------------------------------------------------- the part


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_formula(models, residual, unit_norm, skip):
    config = LanguageConfig(
        source=models["llama"][1], residual=residual, unit_norm=unit_norm, skip=skip
    )
    part = build_language(config, WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        z = part.d1(x)
        h = part.block(z)
        if unit_norm:
            h = h / (h.square().mean(-1, keepdim=True) + language.UNIT_NORM_EPS).sqrt()
        expected = part.d2(h + z if residual else h) + (x if skip else 0)
        torch.testing.assert_close(part(x), expected)
        torch.testing.assert_close(part.update(x), part.d2(h))


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + language.UNIT_NORM_EPS).sqrt()


@pytest.mark.parametrize("terms", ["sum", "output", "contribution"])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_terms(models, terms, scale):
    config = LanguageConfig(models["llama"][1], terms=terms, scale=scale, skip=False)
    part = build_language(config, WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        z = part.d1(x)
        z = 3 * unit(z) if scale else z
        h = part.block(z)
        h = {"sum": h, "output": unit(h), "contribution": unit(h - z)}[terms]
        expected = part.d2(h + (z if terms == "sum" else unit(z)))
        torch.testing.assert_close(part(x), expected)
        part.edit = torch.zeros_like
        torch.testing.assert_close(part(x), part.d2(z if terms == "sum" else unit(z)))


def test_a_part_that_starts_as_the_identity_keeps_the_direction_of_every_token(models):
    config = LanguageConfig(
        models["llama"][1], terms="contribution", scale=3.0, start="identity", skip=False
    )
    x = states(2, TOKENS, WIDTH)
    bare = build_language(replace(config, control="identity"), WIDTH, seed=0)
    torch.testing.assert_close(unit(bare(x)), unit(x), rtol=1e-4, atol=1e-4)
    whole = build_language(config, WIDTH, seed=0)(x)
    assert nn.functional.cosine_similarity(whole, x, dim=-1).min() > 0.5


def test_matched_control_has_each_matrix_mean_and_deviation_and_the_norms_themselves(models):
    source = models["llama"][1]
    pretrained = build_language(LanguageConfig(source), WIDTH, seed=0).block
    first, second = (
        build_language(LanguageConfig(source, control="matched"), WIDTH, seed).block
        for seed in (0, 1)
    )
    for (name, own), other, drawn in zip(
        pretrained.named_parameters(), second.parameters(), first.parameters(), strict=True
    ):
        if own.ndim < 2:
            assert torch.equal(own, drawn)
            continue
        assert not torch.equal(drawn, other), name
        spread = own.std() / own.numel() ** 0.5  # of a mean of as many draws
        assert abs(drawn.mean() - own.mean()) < 5 * spread
        assert drawn.std() == pytest.approx(own.std().item(), rel=5 / (2 * own.numel()) ** 0.5)


def test_identity_control(models):
    config = LanguageConfig(source=models["llama"][1], control="identity")
    part = build_language(config, WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    torch.testing.assert_close(part(x), x + part.d2(2 * part.d1(x)))
    assert not any(isinstance(m, FrozenBlock) for m in part.modules())


@pytest.mark.parametrize("control", ["random", "shuffled", "identity", "trainable"])
def test_mappers_start_alike_in_every_arm(models, control):
    source = models["llama"][1]
    reference = build_language(LanguageConfig(source=source), WIDTH, seed=4)
    state = torch.get_rng_state()
    arms = [
        build_language(LanguageConfig(source=source, control=control), WIDTH, seed=4),
        build_language(LanguageConfig(source=source, control=control, lora_rank=2), WIDTH, seed=4),
    ]
    assert torch.equal(torch.get_rng_state(), state)  # no global generator moved
    for mapper in ("d1", "d2"):
        plain, adapted = (getattr(arm, mapper) for arm in arms)
        expected = getattr(reference, mapper)
        for found in (plain, adapted.base_layer):
            assert torch.equal(found.weight, expected.weight)
            assert torch.equal(found.bias, expected.bias)
    other = build_language(LanguageConfig(source=source, control=control), WIDTH, seed=5)
    assert not torch.equal(other.d1.weight, reference.d1.weight)


def test_parts_draw_from_generators_of_their_own(models):
    """D1 and D2 have as many weights, uniform within 1 / sqrt(inputs): scaled, they would agree."""
    part = build_language(LanguageConfig(source=models["llama"][1]), WIDTH, seed=0)
    d1, d2 = part.d1.weight * math.sqrt(WIDTH), part.d2.weight * math.sqrt(32)
    assert not torch.allclose(d1.flatten(), d2.flatten(), atol=0.1)


def test_random_control_is_the_familys_own_initialisation():
    """GPT-2 is the telling one: std 0.02, and 0.02 / sqrt(2 layers) on residual projections."""
    source = 'random:{"model_type": "gpt2", "n_embd": 192, "n_layer": 8, "n_head": 4}'
    config = LanguageConfig(source=source, control="random")
    first, again, other = (build_language(config, WIDTH, seed=s).block.layers for s in (0, 0, 1))
    layer = first[0]
    assert layer.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert layer.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert torch.equal(layer.ln_1.weight, torch.ones(192))
    assert layer.mlp.c_fc.bias.abs().max() == 0
    assert torch.equal(again[0].mlp.c_fc.weight, layer.mlp.c_fc.weight)
    assert not torch.equal(other[0].mlp.c_fc.weight, layer.mlp.c_fc.weight)


def test_shuffled_control_keeps_the_values_alone(models):
    source = models["gemma2"][1]
    true = dict(block_of(source).layers.named_parameters())
    config = LanguageConfig(source=source, control="shuffled")
    first, again, other = (
        dict(build_language(config, WIDTH, seed=seed).block.layers.named_parameters())
        for seed in (0, 0, 1)
    )
    for name, values in first.items():
        assert torch.equal(values.flatten().sort().values, true[name].flatten().sort().values)
        assert not torch.equal(values, true[name]), name
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])


def test_random_source_forms_agree(models):
    folder = models["llama"][1].removeprefix("path:")
    text = Path(folder, "config.json").read_text()
    z = states(1, 4, 32)
    blocks = [block_of(f"random:{s}") for s in (folder, f"{folder}/config.json", text)]
    with torch.no_grad():
        outputs = [block(z) for block in blocks]
        control = block_of(models["llama"][1], control="random")(z)
    assert all(torch.equal(output, control) for output in outputs)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", TINY)
def test_bfloat16_block_differs_by_little(models, kind):
    """bfloat16 has 8 significant bits, one rounding errs by 2**-9: six of them are allowed."""
    source = models[kind][1]
    z = states(2, TOKENS, 32)
    exact, half = block_of(source), block_of(source, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected, found = exact(z), half(z)
    assert found.dtype == torch.float32
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-5 < error < 6 * 2**-9


def test_autocast_does_not_reach_into_the_block(models):
    block = block_of(models["llama"][1])
    z = states(2, TOKENS, 32)
    with torch.no_grad():
        expected = block(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(block(z), expected)


# ---------------------------------------------------------------- LoRA


def test_lora_counts_at_llamas_size():
    """PAPER.md, point 11: 37,440 trained weights at E = 64, L = 4,096, rank 4; 524,288 + biases."""
    source = (
        'random:{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, '
        '"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}'
    )

    def trained(**options):
        with torch.device("meta"):
            part = build_language(LanguageConfig(source=source, **options), 64, seed=0)
        assert {p.device.type for p in part.parameters()} == {"meta"}
        return sum(p.numel() for p in part.parameters() if p.requires_grad)

    mappers = 4 * (64 + 4096) * 2 + 4096 + 64
    projections = [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 3
    assert trained(lora_rank=4, lora_on="mappers") == mappers == 37_440
    assert trained() == 524_288 + 4096 + 64
    assert trained(lora_rank=4, lora_on="both") == mappers + 4 * sum(map(sum, projections))
    assert trained(control="identity") == 524_288 + 4096 + 64


def test_rank_zero_is_exactly_no_lora(models):
    plain = build_language(LanguageConfig(source=models["bert"][1]), WIDTH, seed=0)
    for on in ("mappers", "block", "both"):
        config = LanguageConfig(source=models["bert"][1], lora_rank=0, lora_on=on)
        part = build_language(config, WIDTH, seed=0)
        assert [n for n, p in part.named_parameters() if p.requires_grad] == [
            n for n, p in plain.named_parameters() if p.requires_grad
        ]
        assert part.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(t, plain.state_dict()[n]) for n, t in part.state_dict().items())


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2", "bert"])
@pytest.mark.parametrize("on", ["mappers", "block", "both"])
def test_merged_adapters_give_equal_outputs(models, kind, on):
    config = LanguageConfig(source=models[kind][1], lora_rank=2, lora_alpha=3.0, lora_on=on)
    part = build_language(config, WIDTH, seed=0)
    x = states(2, TOKENS, WIDTH)
    with torch.no_grad():
        start = part(x)
        plain = build_language(LanguageConfig(source=models[kind][1]), WIDTH, seed=0)
        torch.testing.assert_close(start, plain(x))  # adapters start as nothing
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
        adapted = part(x)
        assert (adapted - start).abs().max() > 1e-3
        merged = merge_lora(part)
        torch.testing.assert_close(merged(x), adapted, rtol=1e-4, atol=1e-5)
    assert not any("lora_" in name for name in merged.state_dict())
    # A block that was merged into is the source's no more, so it is saved.
    saved_block = [key for key in saved_keys(merged) if key.startswith("block.")]
    assert bool(saved_block) == (on != "mappers")


@pytest.mark.parametrize(
    ("kind", "projections"),
    [("llama", 7), ("gemma2", 7), ("phi3", 4), ("gpt2", 4), ("biogpt", 6), ("bert", 6)],
)
@pytest.mark.filterwarnings("error")
def test_adapters_are_on_every_projection(models, kind, projections):
    block = block_of(models[kind][1], lora_rank=2, dtype="bfloat16")
    adapters = {n: p for n, p in block.named_parameters() if "lora_" in n}
    assert len(adapters) == 2 * projections
    assert all(p.requires_grad and p.dtype == torch.float32 for p in adapters.values())
    assert not any(p.requires_grad for n, p in block.named_parameters() if n not in adapters)


def test_lora_scale(models):
    """D1 with adapters is W x + b + alpha / rank * B A x (Hu et al., arXiv:2106.09685)."""
    config = LanguageConfig(source=models["bert"][1], lora_rank=2, lora_alpha=5.0)
    d1 = build_language(config, WIDTH, seed=0).d1
    x = states(3, WIDTH)
    with torch.no_grad():
        b = d1.lora_B["default"].weight.add_(0.1)
        product = b @ d1.lora_A["default"].weight
        expected = d1.base_layer(x) + 5.0 / 2 * x @ product.T
        torch.testing.assert_close(d1(x), expected)


# ---------------------------------------------------------------- references and sizes


def test_reference_of_the_default_block():
    reference = block_reference(LanguageConfig())
    assert reference | {"sha256": ""} == {
        "source": "package:all-minilm-l6-v2",
        "revision": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "family": "bert",
        "hidden_size": 384,
        "layer": 5,
        "layers": 1,
        "dtype": "float32",
        "control": "pretrained",
        "parameters": 1_774_464,
        "sha256": "",
    }
    others = [LanguageConfig(layer=0), LanguageConfig(dtype="bfloat16"), LanguageConfig(layers=1)]
    found = [block_reference(config)["sha256"] for config in others]
    assert found[0] != reference["sha256"] != found[1] and found[2] == reference["sha256"]


def test_the_default_block_equals_the_package_read_by_another_library():
    """Every weight of the last MiniLM layer, against safetensors' own reader."""
    from safetensors import safe_open

    from mvl.blocks.sources import open_checkpoint

    folder = open_checkpoint("package:all-minilm-l6-v2").files.place
    block = block_of("package:all-minilm-l6-v2").layers[0]
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        for name, parameter in block.named_parameters():
            assert torch.equal(parameter, file.get_tensor(f"encoder.layer.5.{name}")), name


def test_reference_without_weights_names_the_architecture(models):
    source = models["llama"][1]
    random, identity, pretrained = (
        block_reference(LanguageConfig(source=source, control=control))
        for control in ("random", "identity", "pretrained")
    )
    assert random["sha256"] == identity["sha256"] != pretrained["sha256"]
    assert identity["parameters"] == 0 < random["parameters"] == pretrained["parameters"]


def test_describe(models):
    model, source = models["llama"]
    found = describe(source)
    block = sum(p.numel() for p in model.model.layers[2].parameters())
    assert found["family"] == "llama" and found["hidden_size"] == 32
    assert found["model_layers"] == 3
    assert found["block_parameters"] == block
    assert found["block_bytes"] == 4 * block
    everything = 4 * sum(p.numel() for p in model.parameters())
    assert math.isclose(found["model_bytes"], everything, rel_tol=0.1)


def test_extracted_block_is_a_source_of_its_own(models, tmp_path):
    config = LanguageConfig(source=models["gemma2"][1], layer=1)
    found = extract_block(config, tmp_path / "block")
    assert found == block_reference(config)["sha256"]
    extracted = LanguageConfig(source=f"path:{tmp_path / 'block'}", layer=1)
    assert block_reference(extracted)["sha256"] == found
    assert extract_block(config, tmp_path / "block") == found
    with pytest.raises(BlockError, match="another block"):
        extract_block(
            LanguageConfig(source=models["gemma2"][1], layer=1, dtype="bfloat16"),
            tmp_path / "block",
        )
    with pytest.raises(BlockError, match="holds a model, which the block would displace"):
        extract_block(extracted, tmp_path / "block")
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BlockError, match="sharded holds a model"):
        extract_block(config, tmp_path / "sharded")
    with pytest.raises(BlockError, match="no weights"):
        extract_block(LanguageConfig(source='random:{"model_type": "bert"}'), tmp_path / "none")
