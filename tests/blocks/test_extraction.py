"""References, sizes and copies of blocks."""

import hashlib

import pytest
import torch
from safetensors import safe_open

from mvl.blocks.extraction import block_reference, block_sizes, extract_block, hash_tensors
from mvl.blocks.language_part import build_language
from mvl.blocks.sources import open_checkpoint
from mvl.config import LanguageConfig
from mvl.errors import BlockError


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
    for other in (LanguageConfig(layer=0), LanguageConfig(dtype="bfloat16")):
        assert block_reference(other)["sha256"] != reference["sha256"]


def test_the_default_block_equals_the_package_read_by_another_library():
    """Every weight of the last MiniLM layer, against safetensors' own reader."""
    folder = open_checkpoint("package:all-minilm-l6-v2").folder
    block = build_language(LanguageConfig(), 8, seed=0).block.layers[0]
    with safe_open(folder / "model.safetensors", "pt") as file:
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


def test_sizes(models):
    model, source = models["llama"]
    sizes = block_sizes(source)
    block = sum(p.numel() for p in model.model.layers[2].parameters())
    assert (sizes["family"], sizes["hidden_size"], sizes["model_layers"]) == ("llama", 32, 3)
    assert sizes["block_parameters"] == block and sizes["block_bytes"] == 4 * block
    everything = 4 * sum(p.numel() for p in model.parameters())
    assert everything <= sizes["model_bytes"] <= 1.1 * everything


def test_extracted_block_is_a_source_of_its_own(models, tmp_path):
    config, folder = LanguageConfig(source=models["gemma2"][1], layer=1), tmp_path / "block"
    sha256 = extract_block(config, folder)
    extracted = LanguageConfig(source=f"path:{folder}", layer=1)
    assert sha256 == block_reference(config)["sha256"] == block_reference(extracted)["sha256"]
    assert extract_block(config, folder) == sha256
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{}")
    half = LanguageConfig(source=models["gemma2"][1], layer=1, dtype="bfloat16")
    for wrong, place, match in (
        (half, folder, "another block"),
        (extracted, folder, "displace"),
        (config, tmp_path / "sharded", "displace"),
        (LanguageConfig(source='random:{"model_type": "bert"}'), tmp_path / "none", "no weights"),
    ):
        with pytest.raises(BlockError, match=match):
            extract_block(wrong, place)


def test_hash_is_over_names_types_shapes_and_bytes():
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3.0]).to(torch.bfloat16)}
    by_hand = hashlib.sha256(
        b"a torch.bfloat16 (1,)\n\x40\x40" + b"b torch.float32 (1, 2)\n\0\0\x80\x3f\0\0\0\x40"
    )
    assert hash_tensors(tensors) == by_hand.hexdigest()
