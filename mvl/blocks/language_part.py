"""The language part: one frozen transformer block of a language model between two mappers.

    z = D1(x)                   (B, T, E) -> (B, T, L)
    x + D2(block(z) + z)        (B, T, L) -> (B, T, E)

Either residual connection may be left out. The block is frozen in `mvl.blocks.frozen_block`. Its
controls have the same shape and the same path: random, matched and shuffled weights, the
identity, a block that is trained too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvl.blocks.adapters import add_adapters
from mvl.blocks.extraction import open_block
from mvl.blocks.frozen_block import FrozenBlock, weighted_layers
from mvl.config import LanguageConfig
from mvl.draws import drawn_by
from mvl.errors import BlockError

#: Added to the mean square under the root of `unit_norm`; Llama 3's own value.
UNIT_NORM_EPS = 1e-5


class LanguagePart(nn.Module):
    """x -> D2(h + z) with z = D1(x) and h from the block, as `LanguageConfig.terms` says.

    Attributes:
        d1: the mapper from the token width E to the block's width L.
        block: a `FrozenBlock`, or nn.Identity for the control of that name.
        d2: the mapper from L back to E.
        config: the `LanguageConfig`; `terms`, `scale`, `residual`, `skip` and `unit_norm` count.
        edit: what is done to h before it is added, (B, T, L) -> (B, T, L); None for nothing.
            `experiment.block_use` sets it to see whether a trained model uses the block.
    """

    def __init__(
        self, d1: nn.Module, block: nn.Module, d2: nn.Module, config: LanguageConfig
    ) -> None:
        super().__init__()
        self.d1, self.block, self.d2, self.config = d1, block, d2, config
        self.edit = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        z, h = self.terms(x)
        y = self.d2(h + z if self.config.residual else h)  # (B, T, E)
        return x + y if self.config.skip else y

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, h), as they are added before D2: (B, T, E) -> two of (B, T, L)."""
        config, z = self.config, self.d1(x)  # (B, T, L)
        if config.scale is not None:
            z = config.scale * _unit_rms(z)
        h = self.block(z)  # (B, T, L)
        if config.terms == "contribution":
            h = h - z
        if config.terms != "sum":
            z = _unit_rms(z)
        if config.terms != "sum" or config.unit_norm:
            h = _unit_rms(h)
        return z, h if self.edit is None else self.edit(h)

    def update(self, x: Tensor) -> Tensor:
        """D2(h): what the block itself writes onto the tokens, (B, T, E)."""
        return self.d2(self.terms(x)[1])


def _unit_rms(x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], eps=UNIT_NORM_EPS)


def build_language(config: LanguageConfig, width: int, seed: int) -> LanguagePart:
    """The language part of a segmenter with token width E = `width`.

    Whatever is drawn is a function of `seed` and of the part's name: D1 and D2 start from the
    same weights in every control and with or without adapters. Under `torch.device("meta")`
    nothing is read or drawn, for counting.

    Raises:
        BlockError: the source cannot be found, read or trusted; an unknown family; a layer that
            does not exist; rotary asked of a family that has none.
    """
    checkpoint, architecture = open_block(config)
    if config.start == "identity" and width > architecture.width:
        raise BlockError(
            f"a start as the identity needs a block as wide as a token: {config.source} has "
            f"{architecture.width}, a token {width}"
        )
    with drawn_by(seed, "language.d1"):
        d1 = nn.Linear(width, architecture.width)
    with drawn_by(seed, "language.d2"):
        d2 = nn.Linear(architecture.width, width)
    if config.start == "identity" and torch.get_default_device().type != "meta":
        with drawn_by(seed, "language.d1.identity"), torch.no_grad():
            nn.init.orthogonal_(d1.weight)  # (L, E), columns of length 1
            d2.weight.copy_(d1.weight.T)
            d1.bias.zero_()
            d2.bias.zero_()
    if config.control == "identity":
        block = nn.Identity()
    else:
        layers = weighted_layers(checkpoint, architecture, config, seed)
        block = FrozenBlock(architecture, config, layers)
    part = LanguagePart(d1, block, d2, config)
    if config.lora_rank:
        add_adapters(part, config, seed)
    return part
