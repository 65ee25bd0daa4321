"""The benchmarks' model of the released code, compared with the preset `released`."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mvl.audit.masks import GRID
from mvl.blocks.language_part import build_language
from mvl.config import PRESETS
from mvl.files import REPOSITORY
from mvl.models.sizes import LLAMA_3_1_8B, count_parameters
from mvl.models.tokens import to_patches

_PATH = REPOSITORY / "benchmarks" / "released_model.py"
_SPEC = importlib.util.spec_from_file_location("released_model", _PATH)
released_model = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(released_model)
ReleasedModel, released_step = released_model.ReleasedModel, released_model.released_step

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "vocab_size": 8}
LLAMA |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_the_model_has_the_released_sizes():
    with torch.device("meta"):
        vit, whole = ReleasedModel(language=False), ReleasedModel()
    assert sum(p.numel() for p in vit.parameters()) == pytest.approx(1.13e6, rel=0.005)
    mappers = [p.numel() for p in whole.language.parameters() if p.requires_grad]
    assert sum(mappers) == 37_440
    model = PRESETS["released"][0]
    model = replace(model, language=replace(model.language, source=LLAMA_3_1_8B))
    trained = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert count_parameters(model, GRID)[0] == trained


def test_the_presets_language_part_is_the_released_models():
    """Given the same weights, token by token; so nothing goes past the mappers in either."""
    config = replace(PRESETS["released"][0].language, source=f"random:{json.dumps(LLAMA)}")
    ours, theirs = build_language(config, 64, seed=0).eval(), ReleasedModel(llama=LLAMA).language
    own, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for mapper in ("d1", "d2"):
            adapted = f"{mapper}.lora_{{}}.default.weight"
            for name, weight in (
                ("base.weight", own[f"{mapper}.base_layer.weight"]),
                ("base.bias", own[f"{mapper}.base_layer.bias"]),
                ("down.weight", own[adapted.format("A")]),
                ("up.weight", own[adapted.format("B")].normal_()),
            ):
                other[f"{mapper}.{name}"].copy_(weight)
        for name, weight in theirs.block.named_parameters():
            (ours_name,) = [n for n in own if n.startswith("block.") and n.endswith(name)]
            weight.copy_(own[ours_name])
        x = torch.randn(2, 5, 64)
        torch.testing.assert_close(ours(x), theirs(x))


def test_patches_go_through_the_generic_unfold_unharmed():
    model = ReleasedModel((16, 8, 24), llama=LLAMA)
    volume = torch.randn(2, 1, 16, 8, 24)
    patches = F.conv3d(volume, model.one_hot, stride=8)
    assert torch.equal(patches.flatten(2).transpose(1, 2), to_patches(volume, (8, 8, 8)))
    assert torch.equal(F.conv_transpose3d(patches, model.one_hot, stride=8), volume)
    assert model(volume).shape == volume.shape


def test_a_step_trains_the_factors_and_leaves_the_block():
    torch.manual_seed(0)
    model = ReleasedModel((16, 16, 16), llama=LLAMA).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    images = torch.randn(2, 1, 16, 16, 16)
    labels = (images > 1).to(torch.uint8)
    optimiser = torch.optim.Adam(trained, 1e-3)
    losses = [released_step(model, optimiser, images, labels) for _ in range(3)]
    assert losses[2] < losses[0]
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen = {n for n in before if n.startswith("language.block.") or n.endswith("base.weight")}
    assert still == frozen
