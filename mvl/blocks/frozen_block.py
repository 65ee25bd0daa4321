"""The block: layers of a language model with the weights of an arm, and where it is frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvl.blocks.checkpoints import Checkpoint
from mvl.blocks.extraction import draws_weights, read_block
from mvl.blocks.families import Architecture
from mvl.config import LanguageConfig
from mvl.draws import drawn_by


class FrozenBlock(nn.Module):
    """Consecutive layers of a language model, in eval() whatever `.train()` says.

    Attributes:
        layers: the transformers layers.
        by_reference: a run does not save the weights: source and seed give them again.
    """

    def __init__(
        self, architecture: Architecture, config: LanguageConfig, layers: nn.ModuleList
    ) -> None:
        super().__init__()
        self.layers = layers
        self.causal, self.dtype = config.causal, getattr(torch, config.dtype)
        self.windows = architecture.windows()
        self.takes_rotation = architecture.family.rotary
        self.head_width = architecture.head_width()
        self.rotary = architecture.rotary() if config.rotary else None
        for layer in layers:
            # Decoder layers are causal without a mask until this is cleared.
            layer.get_submodule(architecture.family.attention).is_causal = False
        self.by_reference = config.control != "trainable"
        self.freeze()

    def freeze(self) -> None:
        """Freeze all weights but adapters; those of the control "trainable" are trained, too."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_adapter(name) or not self.by_reference)
        self.train()

    def train(self, mode: bool = True) -> FrozenBlock:
        """Stay in eval(): the block's own dropout would be noise that its controls lack."""
        return super().train(False)

    def keys_by_reference(self) -> list[str]:
        """The keys of the state dict that source and seed give again; adapters are not of them."""
        return [key for key in self.state_dict() if self.by_reference and not is_adapter(key)]

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, L) -> (B, T, L), float32."""
        # The block's number format is its own: no autocast reaches into it.
        with torch.autocast(z.device.type, enabled=False):
            x = z.to(self.dtype)
            positions = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
            more = {}
            if self.takes_rotation:
                more = {"position_embeddings": self._rotation(x, positions)}
            for layer, window in zip(self.layers, self.windows, strict=True):
                mask = _causal_mask(positions[0], window, x.dtype) if self.causal else None
                x = layer(x, attention_mask=mask, position_ids=positions, **more)
            return x.float()

    def _rotation(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), broadcastable to (B, T, head width); (1, 0) turns nothing."""
        if self.rotary is not None:
            return self.rotary(x, positions)
        shape = (1, 1, self.head_width)
        return x.new_ones(shape), x.new_zeros(shape)


def _causal_mask(positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive mask (1, 1, T, T): token t sees itself and the tokens before, `window` in all."""
    back = positions[:, None] - positions[None, :]  # (T, T)
    hidden = back < 0
    if window is not None:
        hidden = hidden | (back >= window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)[None, None]


def is_adapter(name: str) -> bool:
    """Whether a parameter is a low-rank adapter's, by its name."""
    return ".lora_" in name


def weighted_layers(
    checkpoint: Checkpoint, architecture: Architecture, config: LanguageConfig, seed: int
) -> nn.ModuleList:
    """The layers with the weights of the control, in the block's number format."""
    dtype, layers = getattr(torch, config.dtype), architecture.skeleton
    if torch.get_default_device().type == "meta":
        return layers.to(dtype)
    if draws_weights(config):
        layers = layers.to_empty(device="cpu")
        with drawn_by(seed, "language.block"):
            architecture.initialise(layers)
        layers = layers.to(dtype)
    else:
        tensors = read_block(checkpoint, architecture, config.dtype)
        layers.load_state_dict(tensors, strict=True, assign=True)
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if config.control == "shuffled":
                with drawn_by(seed, "language.block.shuffled", name):
                    order = torch.randperm(parameter.numel())
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
            elif config.control == "matched" and parameter.ndim > 1:  # norms, biases: their scale
                with drawn_by(seed, "language.block.matched", name):
                    drawn = torch.randn(parameter.shape)
                parameter.copy_(parameter.mean() + parameter.std() * drawn)
    return layers
