"""The released model's structure, of which `step.py` measures time and memory."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mvl.audit.masks import GRID
from mvl.audit.released import released_loss
from mvl.blocks.language_part import UNIT_NORM_EPS
from mvl.config import PRESETS
from mvl.models.sizes import ARCHITECTURES
from mvl.models.tokens import token_grid


class ReleasedModel(nn.Module):
    """Patches go through a generic unfold (a convolution with one-hot kernels), and back by its
    transpose; the language block has random weights, attention with all scores in float32.

    Args:
        grid, patch: sizes in voxels.
        language: without the language part it is the released ViT.
        llama: entries of the language model's config.json.
    """

    def __init__(
        self,
        grid: tuple[int, int, int] = GRID,
        patch: tuple[int, int, int] = (8, 8, 8),
        language: bool = True,
        llama: dict = ARCHITECTURES["Llama-3.1-8B"],
    ) -> None:
        super().__init__()
        sizes = PRESETS["released"][0]
        lora, width, voxels = sizes.language, sizes.width, int(np.prod(patch))
        self.patch, self.tokens = tuple(patch), token_grid(grid, patch)
        self.register_buffer("one_hot", torch.eye(voxels).view(voxels, 1, *patch), False)
        self.embed = nn.Linear(voxels, width)
        self.language = None
        if language:
            self.language = _ReleasedLanguage(width, llama, lora.lora_rank, lora.lora_alpha)
        self.position = nn.Parameter(torch.randn(1, int(np.prod(self.tokens)), width))
        self.blocks = nn.ModuleList(
            _ReleasedBlock(width, sizes.heads, sizes.dropout) for _ in range(sizes.encoder_depth)
        )
        self.unembed = nn.Linear(width, voxels)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W, D) -> logits of the same shape."""
        x = F.conv3d(volume, self.one_hot, stride=self.patch)  # (B, voxels, h, w, d)
        x = self.embed(x.flatten(2).transpose(1, 2))  # (B, T, E)
        if self.language is not None:
            x = self.language(x)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.unembed(x).transpose(1, 2).unflatten(2, self.tokens)
        return F.conv_transpose3d(x, self.one_hot, stride=self.patch)


class _ReleasedBlock(nn.Module):
    """Pre-norm transformer block with torch's own multi-head attention."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class _LowRankLinear(nn.Module):
    """A random, frozen map with a trained bias and a trained product of two thin matrices."""

    def __init__(self, before, after, rank, alpha):
        super().__init__()
        self.base = nn.Linear(before, after)
        self.base.weight.requires_grad_(False)
        self.down = nn.Linear(before, rank, bias=False)
        self.up = nn.Linear(rank, after, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


class _ReleasedLanguage(nn.Module):
    """D2(block(z) + z) with z = D1(x), a residual around the block alone."""

    def __init__(self, width, llama, rank, alpha):
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        config = LlamaConfig(**llama, attn_implementation="eager")
        self.block = LlamaDecoderLayer(config, layer_idx=0).requires_grad_(False)
        self.head_width = config.hidden_size // config.num_attention_heads
        self.d1 = _LowRankLinear(width, config.hidden_size, rank, alpha)
        self.d2 = _LowRankLinear(config.hidden_size, width, rank, alpha)

    def forward(self, x):
        z = self.d1(x)  # (B, T, L)
        # cos = 1 and sin = 0: no rotary embedding. No mask: every token sees every other.
        still = z.new_ones(1, 1, self.head_width), z.new_zeros(1, 1, self.head_width)
        h = self.block(z, attention_mask=None, position_embeddings=still)
        return self.d2(F.rms_norm(h, h.shape[-1:], eps=UNIT_NORM_EPS) + z)


def released_step(
    model: ReleasedModel,
    optimiser: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """One training step of the released code on (B, 1, H, W, D); its loss.

    The model is in `train()`, the optimiser, torch's Adam there, has its trained weights.
    """
    optimiser.zero_grad()
    loss = released_loss(model(images), labels)
    loss.backward()
    optimiser.step()
    return loss.item()
