"""Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685) on the mappers and in the block."""

from __future__ import annotations

from torch import nn

from mvl.blocks.frozen_block import FrozenBlock, is_adapter
from mvl.config import LanguageConfig
from mvl.draws import drawn_by


def add_adapters(part: nn.Module, config: LanguageConfig, seed: int) -> None:
    """Put peft's adapters on the mappers, the block's projections, or both, in place."""
    if config.lora_on in ("mappers", "both"):
        for name in ("d1", "d2"):
            # peft replaces children, so a bare Linear needs a parent. It freezes the weight, as
            # the paper's mappers have it; their biases go on training.
            parent = nn.ModuleDict({name: getattr(part, name)})
            with drawn_by(seed, f"language.{name}.lora"):
                _inject(parent, [name], config)
            parent[name].base_layer.bias.requires_grad_(True)
            setattr(part, name, parent[name])
    if config.lora_on in ("block", "both") and isinstance(part.block, FrozenBlock):
        from transformers.pytorch_utils import Conv1D

        layers = part.block.layers
        linear = [n for n, child in layers.named_modules() if isinstance(child, nn.Linear)]
        transposed = [n for n, child in layers.named_modules() if isinstance(child, Conv1D)]
        with drawn_by(seed, "language.block.lora"):
            # No family mixes the two kinds.
            _inject(layers, linear or transposed, config, fan_in_fan_out=bool(transposed))
        for name, parameter in layers.named_parameters():
            if is_adapter(name):
                # What trains does so in float32, whatever the block is held in.
                parameter.data = parameter.data.float()
        part.block.freeze()  # peft froze the weights of the control "trainable", too


def _inject(parent: nn.Module, names: list[str], config: LanguageConfig, **more: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    adapters = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=names, **more
    )
    inject_adapter_in_model(adapters, parent)
