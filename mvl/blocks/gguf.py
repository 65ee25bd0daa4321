"""Single layers out of a GGUF file, llama.cpp's format, without the rest of the model.

The `gguf` package reads the file and undoes its quantisation; transformers' own table and tensor
processors say what the numbers are called there and in which order they lie. What was read once
is kept below `checkpoint.cache_folder()`, since the file's tokeniser takes seconds to parse.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

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
ARCHITECTURES = {
    "llama": _NAMES,
    "mistral": _NAMES,
    "qwen2": _NAMES,
    "gemma2": _NAMES | _GEMMA2,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    file: str
    #: First byte and the one after the last, in the file.
    start: int
    stop: int
    #: safetensors' name of the number format.
    dtype: str
    shape: tuple[int, ...]


class GgufCheckpoint:
    """A language model in one GGUF file, as `checkpoint.Checkpoint` presents any other.

    Args:
        source: the `LanguageConfig.source` it was opened by.
        path: the file.
        revision: the file's SHA-256.
        folder: where what was read is kept.

    Attributes:
        config: what a Hugging Face config.json would say, as far as the layers depend on it.
    """

    def __init__(self, source: str, path: Path, revision: str, folder: Path) -> None:
        self.source, self.path, self.revision, self.folder = source, path, revision, folder
        self.files = self  # it has weights to read, unlike a random source

    @property
    def origin(self) -> str:
        """What the tensors are of, wherever the file lies."""
        return f"gguf:{self.revision}"

    @cached_property
    def config(self) -> dict:
        kept = self.folder / "config.json"
        if not kept.is_file():
            write_json(kept, self._described())
        return read_json(kept)

    @cached_property
    def _reader(self):
        from gguf import GGUFReader

        try:
            return GGUFReader(self.path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise BlockError(f"{self.source} is not a readable GGUF file: {error}") from error

    @property
    def _architecture(self) -> str:
        field = self._reader.fields.get("general.architecture")
        name = field.contents() if field else "unnamed"
        if name not in ARCHITECTURES:
            raise BlockError(
                f"{self.source}: GGUF files of architecture {name!r} are not read; those of "
                f"{', '.join(ARCHITECTURES)} are"
            )
        return name

    def _described(self) -> dict:
        from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

        kind, fields = self._architecture, self._reader.fields
        known = GGUF_TO_TRANSFORMERS_MAPPING["config"][kind].items()
        found = {
            name: fields[f"{kind}.{key}"].contents()
            for key, name in known
            if isinstance(name, str) and f"{kind}.{key}" in fields
        }
        if "vocab_size" not in found:
            found["vocab_size"] = len(fields["tokenizer.ggml.tokens"].data)
        return {"model_type": kind} | found

    @cached_property
    def _tensors(self) -> dict:
        """{transformers' name: the reader's tensor} of every layer."""
        names, found = ARCHITECTURES[self._architecture], {}
        for tensor in self._reader.tensors:
            if told := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", tensor.name):
                layer, part, kind = told.groups()
                found[f"model.layers.{layer}.{names.get(part, part)}.{kind}"] = tensor
        return found

    def names(self) -> dict:
        """{tensor's name: file that holds it}."""
        return dict.fromkeys(self._tensors, self.path.name)

    def entries(self, names) -> dict:
        """{name: `Entry`} of the named tensors."""
        chosen = {name: self._tensors[name] for name in names}
        return {
            name: Entry(
                name, 0, int(tensor.n_bytes), tensor.tensor_type.name, tuple(tensor.shape[::-1])
            )
            for name, tensor in chosen.items()
        }

    def kept_folder(self, name: str) -> Path:
        """Where the part `name` of the model is kept."""
        return self.folder / name

    def model_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def read(self, entries: dict, dtype: torch.dtype) -> dict:
        """{name: tensor} of `entries`, dequantised, in transformers' order of weights."""
        from gguf import dequantize
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        processor = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)(config=self.config)
        tensors = {}
        for name, entry in entries.items():
            stored = self._tensors[entry.file]
            values = dequantize(stored.data, stored.tensor_type)
            values = processor.process(weights=values, name=stored.name).weights
            tensors[name] = torch.tensor(values).to(dtype).reshape(tuple(entry.shape))
        return tensors
