"""Single layers out of a GGUF file, llama.cpp's format, without the rest of the model.

The `gguf` package reads the file and undoes its quantisation; transformers' tables and processors
say what the tensors are called and in which order their numbers lie. What was read is kept, since
the file's tokeniser takes seconds to parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch

from mvl.blocks.checkpoints import Checkpoint
from mvl.errors import BlockError
from mvl.files import read_json, write_json

#: The tensors of one layer: GGUF's name -> transformers' name.
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Gemma 2 has a norm after attention and after the MLP, too.
_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
#: GGUF's architectures that are read, and what their tensors are called.
_TABLES = {"llama": _NAMES, "mistral": _NAMES, "qwen2": _NAMES, "gemma2": _NAMES | _GEMMA2}


class GgufCheckpoint(Checkpoint):
    """A language model in one GGUF file; its revision is the file's SHA-256."""

    has_weights = True

    def __init__(self, source: str, path: Path, revision: str, cache: Path) -> None:
        self.path, self.cache = path, cache
        kept = cache / "config.json"
        if not kept.is_file():
            write_json(kept, self._configuration(source))
        super().__init__(source, read_json(kept), revision)
        self.origin = f"gguf:{revision}"  # wherever the file lies

    @cached_property
    def _reader(self):
        from gguf import GGUFReader

        try:
            return GGUFReader(self.path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise BlockError(f"{self.path} is not a readable GGUF file: {error}") from error

    def _configuration(self, source: str) -> dict:
        """What a Hugging Face config.json would say, as far as the layers depend on it."""
        from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

        fields = self._reader.fields
        field = fields.get("general.architecture")
        kind = field.contents() if field else "unnamed"
        if kind not in _TABLES:
            raise BlockError(
                f"{source}: GGUF files of architecture {kind!r} are not read; those of "
                f"{', '.join(_TABLES)} are"
            )
        values = {
            name: fields[f"{kind}.{key}"].contents()
            for key, name in GGUF_TO_TRANSFORMERS_MAPPING["config"][kind].items()
            if isinstance(name, str) and f"{kind}.{key}" in fields
        }
        if "vocab_size" not in values:
            values["vocab_size"] = len(fields["tokenizer.ggml.tokens"].data)
        if kind == "gemma2" and values["num_hidden_layers"] == 46:
            # The 27B's scale of attention is in no field: llama.cpp knows it by the layers, too.
            values["query_pre_attn_scalar"] = values["hidden_size"] // values["num_attention_heads"]
        return {"model_type": kind} | values

    def check_rotary(self) -> None:
        """Refuse a scaled rotary embedding, which transformers does not read from such a file."""
        scaling = self._reader.fields.get(f"{self.config['model_type']}.rope.scaling.type")
        scaled = scaling is not None and scaling.contents() != "none"
        if scaled or any(tensor.name == "rope_freqs.weight" for tensor in self._reader.tensors):
            raise BlockError(
                f"{self.path}: its rotary embedding is scaled, which is not read from a GGUF file; "
                "set rotary to false, or take the model's folder (path:)"
            )

    @cached_property
    def _tensors(self) -> dict:
        """{transformers' name: the reader's tensor} of every layer."""
        names, tensors = _TABLES[self.config["model_type"]], {}
        for tensor in self._reader.tensors:
            if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", tensor.name):
                layer, part, kind = match.groups()
                tensors[f"model.layers.{layer}.{names.get(part, part)}.{kind}"] = tensor
        return tensors

    def names(self) -> dict[str, str]:
        return dict.fromkeys(self._tensors, self.path.name)

    def stored_bytes(self, names: Iterable[str]) -> int:
        return sum(int(self._tensors[name].n_bytes) for name in names)

    def model_bytes(self) -> int:
        return self.path.stat().st_size

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """{name: tensor}, dequantised, in transformers' order of weights."""
        from gguf import dequantize
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind = self.config["model_type"]
        processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=self.config)
        tensors = {}
        for name in names:
            stored = self._tensors[name]
            values = dequantize(stored.data, stored.tensor_type)
            values = processor.process(weights=values, name=stored.name).weights
            tensors[name] = torch.tensor(values).to(dtype).reshape(tuple(stored.shape[::-1]))
        return tensors
