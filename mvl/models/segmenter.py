"""MedVisionLlama: the parts put together, and how a configuration becomes a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mvl.blocks.language_part import build_language
from mvl.config import DataConfig, ModelConfig
from mvl.draws import drawn_by
from mvl.models.attention import Attention, Block, HybridAttention
from mvl.models.fusion import MultiScaleFusion
from mvl.models.tokens import ConvHead, LinearHead, PatchEmbed, token_grid

if TYPE_CHECKING:
    from mvl.data.domain import TrainingDomain
    from mvl.data.tasks import Task


class MedVisionLlama(nn.Module):
    """A vision transformer for volumes with an optional frozen language block.

    Attributes:
        embed: volume -> tokens.
        position: learned position of each token, (1, T, E).
        encoder: transformer blocks before the language part.
        fusion: a `MultiScaleFusion`, or None.
        language: a `LanguagePart`, or None.
        decoder: transformer blocks after it.
        norm: the last normalisation of the stream; `nn.Identity` for none.
        head: tokens and volume -> logits.
        language_first: the released code's order: the language part comes before the encoder,
            on tokens that carry no position yet.
        description: what `build_segmenter` was asked for; None for parts put together by hand.
    """

    description: Description | None = None

    def __init__(
        self,
        embed: nn.Module,
        position: Tensor,
        encoder: Sequence[nn.Module],
        fusion: nn.Module | None,
        language: nn.Module | None,
        decoder: Sequence[nn.Module],
        norm: nn.Module,
        head: nn.Module,
        language_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(position)
        self.encoder = nn.ModuleList(encoder)
        self.fusion = fusion
        self.language = language
        self.decoder = nn.ModuleList(decoder)
        self.norm = norm
        self.head = head
        self.language_first = language_first

    def forward(self, volume: Tensor) -> Tensor:
        """Logits, never probabilities; one class is foreground against background by a sigmoid.

        (B, C, H, W, D), normalised, on the grid of the model -> (B, classes, H, W, D).
        """
        x = self.embed(volume)  # (B, T, E)
        if self.language is not None and self.language_first:
            x = self.language(x)  # (B, T, E)
        x = x + self.position  # (1, T, E) for each volume
        states = []
        for block in self.encoder:
            x = block(x)  # (B, T, E)
            states.append(x)
        if self.fusion is not None:
            x = self.fusion(_evenly(states, len(self.fusion.scales)))  # (B, T, E)
        if self.language is not None and not self.language_first:
            x = self.language(x)  # x + D2(block(D1(x)) + D1(x)), (B, T, E)
        for block in self.decoder:
            x = block(x)  # (B, T, E)
        return self.head(self.norm(x), volume)  # (B, classes, H, W, D)


def _evenly(states: list[Tensor], count: int) -> list[Tensor]:
    """`count` of the states at even distances, ending with the last; fewer states repeat."""
    return [states[max((i + 1) * len(states) // count - 1, 0)] for i in range(count)]


@dataclass(frozen=True)
class Description:
    """What a model was built from, and what it takes to use it on an image.

    Attributes:
        config, channels, classes, grid, seed: the arguments of `build_segmenter`.
        task, data: the task's description and how an image comes to the grid, where known.
        domain: what the training images were like, where known.
    """

    config: ModelConfig
    channels: int
    classes: int
    grid: tuple[int, int, int]
    seed: int
    task: Task | None = None
    data: DataConfig | None = None
    domain: TrainingDomain | None = None


def build_segmenter(
    config: ModelConfig, channels: int, classes: int, grid: tuple[int, int, int], seed: int
) -> MedVisionLlama:
    """The model that a configuration describes, with its initial weights, in float32 on the CPU.

    Each part draws its weights from a generator of its own, seeded by (seed, part's name). So a
    part that two configurations share starts from the same weights in both, whatever other parts
    are present.

    `classes` is the number of the logits' channels, 1 for foreground against background; `grid` is
    a volume's size in voxels (H, W, D).

    Raises:
        ConfigError: the patch does not divide the grid.
        BlockError: the language block cannot be found, read or trusted.
    """
    tokens = token_grid(grid, config.patch)
    width, depth = config.width, config.encoder_depth

    def part(name: str, make: Callable, *sizes):
        with drawn_by(seed, name):
            return make(*sizes)

    def block(index: int) -> Block:
        if config.attention == "hybrid":
            attention = HybridAttention(
                width, config.heads, tokens, config.window, index % 2 == 1, config.dropout
            )
        else:
            attention = Attention(width, config.heads, config.dropout)
        return Block(attention, width, config.mlp_ratio, config.dropout)

    fusion = language = None
    if config.fusion:
        fusion = part("fusion", MultiScaleFusion, width, tokens, config.fusion_kernels)
    if config.language:
        language = build_language(config.language, width, seed)
    sizes = (config.patch, width, tokens)
    if config.head == "conv":
        head = part("head", ConvHead, channels, classes, config.head_channels, *sizes)
    else:
        head = part("head", LinearHead, classes, *sizes)
    model = MedVisionLlama(
        embed=part("embed", PatchEmbed, channels, config.patch, width),
        position=0.02 * part("position", torch.randn, 1, math.prod(tokens), width),
        encoder=[part(f"encoder.{i}", block, i) for i in range(depth)],
        fusion=fusion,
        language=language,
        decoder=[part(f"decoder.{i}", block, depth + i) for i in range(config.decoder_depth)],
        norm=nn.LayerNorm(width) if config.final_norm else nn.Identity(),
        head=head,
        language_first=config.language_position == "before",
    )
    model.description = Description(config, channels, classes, tuple(grid), seed)
    return model
