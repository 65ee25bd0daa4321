"""Single tensors out of folders: their values, their memory, and files that are damaged."""

import ctypes
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvl.blocks.checkpoints import hash_tensors
from mvl.blocks.sources import open_checkpoint
from mvl.errors import BlockError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def opened(tmp_path):
    """A function: write tensors (or a file's bytes) and config.json, and open the folder."""

    def write(weights, config=None):
        if isinstance(weights, dict):
            save_file(weights, tmp_path / WEIGHTS)
        else:
            (tmp_path / WEIGHTS).write_bytes(weights)
        (tmp_path / "config.json").write_text(json.dumps(config or {"model_type": "x"}))
        return open_checkpoint(f"path:{tmp_path}")

    return write


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_layer_of_a_sharded_model(sharded, layer):
    checkpoint, expected = open_checkpoint(f"path:{sharded[0]}"), sharded[1].state_dict()
    names = [n for n in checkpoint.names() if n.startswith(f"model.layers.{layer}.")]
    assert len(names) == 9
    assert layer != 1 or len({checkpoint.names()[name] for name in names}) == 2
    tensors = checkpoint.read(names, torch.float32)
    assert all(torch.equal(tensors[name], expected[name]) for name in names)
    assert checkpoint.model_bytes() == 4 * sum(p.numel() for p in sharded[1].parameters())


@pytest.mark.parametrize(
    ("stored", "held"),
    [("float64", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16"), ("bfloat16",) * 2],
)
def test_number_formats_are_converted_as_torch_does(opened, stored, held):
    dtype, generator = getattr(torch, stored), torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(5, 7, generator=generator).to(dtype),
        "scalar": torch.tensor(3.25).to(dtype),
    }
    checkpoint = opened(tensors)
    read = checkpoint.read(tensors, getattr(torch, held))
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor.to(getattr(torch, held)))
        assert checkpoint.entries([name])[name].bytes == tensor.nbytes


def status(name, field):
    """A number of this process, as the kernel counts it."""
    text = Path("/proc/self", name).read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+)", text)[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux tells both")
def test_memory_and_bytes_read_are_the_blocks(opened):
    checkpoint = opened({name: torch.zeros(8 << 20, dtype=torch.bfloat16) for name in "abcdefgh"})
    entries = checkpoint.entries(checkpoint.names())
    block = sum(entry.bytes for entry in entries.values())
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed is taken again, and no peak
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, count = status("status", "VmRSS"), status("io", "rchar")
    tensors = checkpoint.read(entries, torch.bfloat16)
    peak, read = status("status", "VmHWM") - before, status("io", "rchar") - count
    assert len(tensors) == 8
    assert 0.9 < 1024 * peak / block < 1.1 and 1 <= read / block < 1.01


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_that_are_not_plain_are_refused(opened, dtype):
    checkpoint = opened({"w": torch.zeros(4).to(dtype)})
    with pytest.raises(BlockError, match="quantised .w is stored as (I8|F8_E4M3)"):
        checkpoint.read(["w"], torch.float32)


@pytest.mark.parametrize(
    ("config", "tensor", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "w", "gptq"),
        ({}, "q_proj.weight.absmax", "bitsandbytes, 4 bits"),
        ({}, "q_proj.qweight", "GPTQ or AWQ"),
        ({}, "q_proj.weight_scale_inv", "FP8"),
    ],
)
def test_a_quantised_checkpoint_says_how(opened, config, tensor, match):
    with pytest.raises(BlockError, match=match):
        opened({tensor: torch.zeros(4)}, config).names()


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"params.json": "{}", "consolidated.00.pth": ""}, "hub:meta-llama/Llama-3.1-8B"),
        ({"m.Q4_K_M.gguf": "GGUF"}, "gguf:FILE"),
        ({"config.json": '{"a": 1}', "m.gguf": "GGUF"}, "gguf:FILE"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "merge_and_unload"),
        ({"config.json": '{"a": 1}', "onnx/model.onnx": ""}, "ONNX"),
        ({"model.onnx": ""}, "ONNX"),
        ({"modules.json": "[]", "0_Transformer/config.json": "{}"}, "0_Transformer"),
        ({"config.json": '{"a": 1}', "pytorch_model.bin": "cos"}, "pickle.*refs.pr.N"),
        ({"config.json": '{"a": 1}'}, "neither model.safetensors nor"),
        ({}, "no config.json"),
    ],
)
def test_another_layout_is_named_with_the_remedy(tmp_path, files, match):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(BlockError, match=match):
        open_checkpoint(f"path:{tmp_path}").names()


def claim(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def file_of(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        file_of({"a": claim(0, 12, (3,)), "b": claim(8, 16)}),
        file_of({"a": claim(0, 8)}),
        file_of({"a": claim(0, 16, (4,), "F33")}),
        file_of({"a": claim(0, 16, (4,))})[:-1],
        file_of(b"[" * 100_000),
        file_of(b"", length=2**64 - 1),
        b"12345",
    ],
)
def test_damaged_files(opened, content):
    """safetensors' library finds out; `tests/reliability` sends it more."""
    with pytest.raises(BlockError, match="model.safetensors is damaged"):
        opened(content).names()


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_that_points_elsewhere(tmp_path, file):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(BlockError, match=re.escape(f"names {file!r}")):
        open_checkpoint(f"path:{tmp_path}").names()


def test_hash_is_over_names_types_shapes_and_bytes():
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3.0]).to(torch.bfloat16)}
    by_hand = hashlib.sha256(
        b"a torch.bfloat16 (1,)\n\x40\x40" + b"b torch.float32 (1, 2)\n\0\0\x80\x3f\0\0\0\x40"
    )
    assert hash_tensors(tensors) == by_hand.hexdigest()
