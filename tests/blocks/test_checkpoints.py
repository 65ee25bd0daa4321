"""Single tensors out of folders: their values and their memory; `test_fuzz` has damaged files."""

import ctypes
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvl.blocks.sources import open_checkpoint
from mvl.errors import BlockError


@pytest.fixture
def opened(tmp_path):
    """A function: write tensors and config.json, and open the folder."""

    def write(weights, config=None):
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config or {"model_type": "x"}))
        return open_checkpoint(f"path:{tmp_path}")

    return write


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_layer_of_a_sharded_model(sharded, layer):
    checkpoint, expected = open_checkpoint(f"path:{sharded[0]}"), sharded[1].state_dict()
    names = [n for n in checkpoint.names() if n.startswith(f"model.layers.{layer}.")]
    assert len(names) == 9
    assert len(set(checkpoint.names().values())) > 2
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
        assert checkpoint.stored_bytes([name]) == tensor.nbytes


def status(name, field):
    """A number of this process, as the kernel counts it."""
    text = Path("/proc/self", name).read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+)", text)[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux tells both")
def test_memory_and_bytes_read_are_the_blocks(opened):
    checkpoint = opened({name: torch.zeros(8 << 20, dtype=torch.bfloat16) for name in "abcdefgh"})
    block = checkpoint.stored_bytes(checkpoint.names())
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed is taken again, and no peak
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, count = status("status", "VmRSS"), status("io", "rchar")
    tensors = checkpoint.read(checkpoint.names(), torch.bfloat16)
    peak, read = status("status", "VmHWM") - before, status("io", "rchar") - count
    assert len(tensors) == 8
    assert 0.9 < 1024 * peak / block < 1.1 and 1 <= read / block < 1.01


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_that_are_not_plain_are_refused(opened, dtype):
    checkpoint = opened({"w": torch.zeros(4).to(dtype)})
    with pytest.raises(BlockError, match="w is quantised .(I8|F8_E4M3)"):
        checkpoint.read(["w"], torch.float32)
    with pytest.raises(BlockError, match="quantised"):
        opened({"w": torch.zeros(4)}, {"quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"config.json": '{"a": 1}', "pytorch_model.bin": "cos"}, "Pickled.*refs.pr.N"),
        ({}, "no config.json"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "Hugging Face's layout"),
        ({"config.json": '{"a": 1}', "m.gguf": "GGUF"}, "gguf:FILE"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "peft"),
        ({"config.json": '{"a": 1}', "onnx/model.onnx": ""}, "exported"),
        ({"modules.json": "[]", "0_Transformer/config.json": "{}"}, "0_Transformer"),
    ],
)
def test_another_layout_is_refused(tmp_path, files, match):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(BlockError, match=match):
        open_checkpoint(f"path:{tmp_path}").names()
