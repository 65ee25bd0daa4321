"""The model families whose layers are known, and how a layer is built and found."""

from __future__ import annotations

import copy
import importlib
import re
from dataclasses import dataclass

import torch
from torch import nn

from mvl.blocks.checkpoints import Checkpoint
from mvl.errors import BlockError


@dataclass(frozen=True)
class Family:
    """What differs between transformers' model families."""

    #: Prefix of transformers' class names, and the layer's class.
    name: str
    layer: str
    #: Where the layers may be in a state dict.
    prefixes: tuple[str, ...] = ("model.layers", "layers")
    #: The submodule of a layer that holds `is_causal`.
    attention: str = "self_attn"
    #: Layers take cos and sin.
    rotary: bool = True
    #: Gemma 2 caps its attention scores, which sdpa cannot.
    attention_kind: str = "sdpa"
    #: Layers attend to a sliding window: never, as `config.layer_types` says, or always.
    window: str = "never"
    #: Buffers of older checkpoints, which hold no weights.
    ignored: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    #: Endings of older checkpoints' names and what they are called now.
    renamed: tuple[tuple[str, str], ...] = ()


#: config.json's model_type -> its family.
FAMILIES = {
    "llama": Family("Llama", "LlamaDecoderLayer"),
    "mistral": Family("Mistral", "MistralDecoderLayer", window="always"),
    "gemma2": Family("Gemma2", "Gemma2DecoderLayer", attention_kind="eager", window="typed"),
    "qwen2": Family("Qwen2", "Qwen2DecoderLayer", window="typed"),
    "qwen3": Family("Qwen3", "Qwen3DecoderLayer", window="typed"),
    "phi3": Family("Phi3", "Phi3DecoderLayer", window="always"),
    "gpt2": Family("GPT2", "GPT2Block", ("transformer.h", "h"), "attn", False,
                   ignored=("attn.bias", "attn.masked_bias")),
    "biogpt": Family("BioGpt", "BioGptDecoderLayer", ("biogpt.layers", "layers"), rotary=False),
    "bert": Family("Bert", "BertLayer", ("bert.encoder.layer", "encoder.layer"), "attention.self",
                   False, renamed=(("LayerNorm.gamma", "LayerNorm.weight"),
                                   ("LayerNorm.beta", "LayerNorm.bias"))),
}  # fmt: skip


class Architecture:
    """A model's family and whole configuration, and which of its layers are meant.

    A layer is built from the whole configuration at its real index: a configuration cut to one
    layer breaks Gemma 2 and changes GPT-2.

    Raises:
        BlockError: an unknown family, an unusable config.json, a layer that does not exist.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int = -1, layers: int = 1) -> None:
        from transformers import CONFIG_MAPPING

        source, kind = checkpoint.source, checkpoint.config.get("model_type")
        if kind not in FAMILIES:
            raise BlockError(
                f"{source}: model family {kind!r} is not known; known are {', '.join(FAMILIES)}"
            )
        self.source, self.kind, self.family = source, kind, FAMILIES[kind]
        # transformers raises errors of many kinds for a configuration that cannot be.
        try:
            self.config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(checkpoint.config))
            self.config._attn_implementation = self.family.attention_kind
            self.total, self.width = self.config.num_hidden_layers, self.config.hidden_size
            first = layer + self.total if layer < 0 else layer
            self.indices = range(first, first + layers)
            exists = first >= 0 and first + layers <= self.total
            with torch.device("meta"):
                self.skeleton = self.build() if exists else None
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BlockError(
                f"{source}: its config.json is not a usable {kind} configuration: {reason}"
            ) from error
        if not exists:
            more = f" with {layers - 1} after it" if layers > 1 else ""
            raise BlockError(f"{source} has {self.total} layers: there is no layer {layer}{more}")

    def _class(self, name: str) -> type:
        module = importlib.import_module(f"transformers.models.{self.kind}.modeling_{self.kind}")
        return getattr(module, name)

    def build(self) -> nn.ModuleList:
        """The layers, on the default device."""
        make = self._class(self.family.layer)
        return nn.ModuleList(make(self.config, layer_idx=index) for index in self.indices)

    def rotary(self) -> nn.Module:
        """The model's rotary position embedding, on the CPU even under `torch.device("meta")`."""
        with torch.device("cpu"):
            return self._class(f"{self.family.name}RotaryEmbedding")(self.config)

    def windows(self) -> list[int | None]:
        """How many tokens back each layer's causal mask reaches; None for all."""
        kind, config = self.family.window, self.config
        types = config.layer_types if kind == "typed" else [kind] * self.total
        slides = [types[index] in ("always", "sliding_attention") for index in self.indices]
        return [config.sliding_window if sliding else None for sliding in slides]

    def initialise(self, layers: nn.ModuleList) -> None:
        """Draw the family's own initial weights, in place, from the global generator."""
        model = self._class(f"{self.family.name}PreTrainedModel")(self.config)
        layers.apply(model._init_weights)

    def head_width(self) -> int:
        """Channels of one attention head."""
        explicit = getattr(self.config, "head_dim", None)
        return explicit or self.width // self.config.num_attention_heads

    def parameters(self) -> int:
        """Number of weights in the block."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def tensor_names(self, checkpoint: Checkpoint) -> dict[str, str]:
        """{parameter of `build()`: the checkpoint's tensor}.

        Raises:
            BlockError: the layer is not there, lacks a tensor, or has one that is not understood.
        """
        names, tensors = checkpoint.names(), {}
        for layer, index in enumerate(self.indices):
            stems = [f"{prefix}.{index}." for prefix in self.family.prefixes]
            stem = next((s for s in stems if any(n.startswith(s) for n in names)), None)
            if stem is None:
                numbers = {m[1] for n in names if (m := re.search(r"\.(\d+)\.", n))}
                raise BlockError(
                    f"{self.source}: no tensor's name starts with {stems[0]}; it holds layer "
                    f"{', '.join(sorted(numbers)) or 'none'}, counted from 0 in the whole model"
                )
            parts = {}
            for name in names:
                part = name.removeprefix(stem)
                if part == name or part in self.family.ignored:
                    continue
                for old, new in self.family.renamed:
                    part = part.removesuffix(old) + new if part.endswith(old) else part
                parts[part] = name
            expected = dict(self.skeleton[layer].named_parameters())
            missing, foreign = sorted(expected - parts.keys()), sorted(parts.keys() - expected)
            if missing or foreign:
                raise BlockError(
                    f"{self.source}: layer {index} lacks {missing or 'nothing'} and has "
                    f"{foreign or 'nothing'} that its config.json does not explain"
                )
            tensors |= {f"{layer}.{part}": parts[part] for part in expected}
        return tensors
