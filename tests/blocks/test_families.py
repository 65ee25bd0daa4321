"""Layers of every family, compared with whole Hugging Face models."""

import pytest
import torch
from safetensors.torch import save_file

from mvl.blocks.families import FAMILIES
from mvl.errors import BlockError
from tests.blocks.conftest import TINY, TOKENS, part_of, save_tiny, states

ROTARY = {name for name, family in FAMILIES.items() if family.rotary}


def block_of(source, **options):
    return part_of(source, **options).block


def seen_by(model, kind, first, last):
    """What enters layer `first` and leaves layer `last` while the full model reads words."""
    base, seen = model.base_model, {}
    layers = {"gpt2": "h", "bert": "encoder.layer"}.get(kind, "layers")
    layers = base.get_submodule(layers)
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


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (1, 1), (-1, 1), (1, 2)])
def test_equals_the_layer_inside_the_full_model(models, kind, layer, layers):
    model, source = models[kind]
    first = layer % 3
    x, expected = seen_by(model, kind, first, first + layers - 1)
    options = {"causal": kind != "bert", "rotary": kind in ROTARY}
    with torch.no_grad():
        y = block_of(source, layer=layer, layers=layers, **options)(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x, expected, atol=1e-2)


def test_causal_bert_equals_bert_as_a_decoder(tmp_path):
    model = save_tiny("bert", tmp_path, is_decoder=True)
    x, expected = seen_by(model, "bert", 1, 1)
    with torch.no_grad():
        y = block_of(f"path:{tmp_path}", layer=1, causal=True)(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_bidirectional_without_rotary_is_permutation_equivariant(models, kind):
    block, z = block_of(models[kind][1]), states(2, TOKENS, 32)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(z[:, order]), block(z)[:, order], rtol=1e-4, atol=1e-5)
        # Each token sees each other one: the first depends on the last.
        changed = z.clone()
        changed[:, -1] = z[:, -1].flip(-1)
        assert (block(changed)[:, 0] - block(z)[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", sorted(ROTARY))
def test_rotary_breaks_the_equivariance(models, kind):
    block, z = block_of(models[kind][1], rotary=True), states(2, TOKENS, 32)
    with torch.no_grad():
        difference = block(z.flip(1)) - block(z).flip(1)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("kind", TINY)
def test_causal_tokens_do_not_see_later_ones(models, kind):
    block, z = block_of(models[kind][1], causal=True), states(2, TOKENS, 32)
    changed = z.clone()
    changed[:, 7:] = z[:, 7:].flip(-1)
    with torch.no_grad():
        before, after = block(z), block(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7:] - before[:, 7:]).abs().max() > 1e-2


BERT = 'random:{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}'


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        *((kind, {"rotary": True}, "no rotary") for kind in sorted(set(TINY) - ROTARY)),
        ("llama", {"layer": 3}, "there is no layer 3"),
        ("llama", {"layer": -4}, "there is no layer -4"),
        ("llama", {"layers": 2}, "there is no layer -1"),
        ('random:{"model_type": "mamba"}', {}, "'mamba'.*llama.*gemma2.*bert"),
        (BERT, {}, "usable bert"),
    ],
)
def test_layers_that_cannot_be(models, source, options, match):
    with pytest.raises(BlockError, match=match):
        block_of(models[source][1] if source in TINY else source, **options)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_names_of_older_checkpoints(models, tmp_path, kind):
    """BERT's LayerNorm.gamma and beta; GPT-2's mask buffers, and no prefix."""
    model, source = models[kind]
    tensors = {}
    for name, tensor in model.base_model.state_dict().items():
        if kind == "bert":
            name = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        tensors[name.removeprefix("transformer.")] = tensor.clone()
    if kind == "gpt2":
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    z = states(1, 4, 32)
    with torch.no_grad():
        assert torch.equal(block_of(f"path:{tmp_path}")(z), block_of(source)(z))


@pytest.mark.parametrize("fault", ["missing", "foreign"])
def test_weights_that_do_not_fit_are_refused(models, tmp_path, fault):
    model, _ = models["llama"]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight")
    name = "model.layers.2.self_attn.q_proj.weight"
    if fault == "missing":
        tensors["model.layers.2.self_attn.q_proj.other"] = tensors.pop(name)
    else:
        tensors["model.layers.2.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(tensors, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(BlockError, match="q_proj"):
        block_of(f"path:{tmp_path}")
    block_of(f"path:{tmp_path}", layer=1)  # another layer is whole
