"""Global, local and hybrid self-attention over a 3D grid of tokens, and the transformer block.

The paper's first version names a Hybrid Attention Mechanism that "combines global and local
feature learning"; how, it does not say. Ours: one set of queries, keys and values, attended
once over all tokens and once within windows of neighbouring tokens, mixed by a learned weight
for each head.

Shapes: B volumes, T tokens of width E on a grid (h, w, d), nh heads of hs = E / nh channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, E = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
        y = self.attend(qkv)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, E)  # (B, T, E), heads side by side
        return self.dropout(self.project(y))  # (B, T, E)

    def attend(self, qkv: Tensor) -> Tensor:
        """What each token takes from the others: (3, B, nh, T, hs) -> (B, nh, T, hs)."""
        return F.scaled_dot_product_attention(*qkv)


class HybridAttention(Attention):
    """Global and windowed self-attention of the same queries, keys and values, mixed by head.

        y = a * global(q, k, v) + (1 - a) * local(q, k, v),  a = sigmoid(mix), one half at first

    Local attention cuts the token grid into windows and attends within each, at a cost of
    T * window^3; no T x T mask is made. The window grid is moved by half a window in every
    other block, so that no seam stays. Where the window does not divide the grid, windows at
    the border are smaller.

    Args:
        tokens: the token grid (h, w, d).
        window: edge of a window in tokens; an axis that is shorter is one window.
        shifted: move the window grid by half a window.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        tokens: tuple[int, int, int],
        window: int,
        shifted: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, dropout)
        self.window = tuple(min(window, n) for n in tokens)
        shift = [
            w // 2 if shifted and w < n else 0 for w, n in zip(self.window, tokens, strict=True)
        ]
        slots, inside, places = _windows(tokens, self.window, shift)
        self.padded = not inside.all()
        self.mix = nn.Parameter(torch.zeros(heads))
        # Indices, so that the way to windows and back is one copy each; they are not weights.
        indices = {"slots": slots.flatten(), "places": places, "inside": inside[:, None, None]}
        for name, index in indices.items():
            self.register_buffer(name, index.to(self.mix.device), persistent=False)

    def attend(self, qkv: Tensor) -> Tensor:
        a = torch.sigmoid(self.mix).view(1, -1, 1, 1).to(qkv.dtype)  # (1, nh, 1, 1)
        return a * super().attend(qkv) + (1 - a) * self.attend_locally(qkv)  # (B, nh, T, hs)

    def attend_locally(self, qkv: Tensor) -> Tensor:
        """Attention within windows: (3, B, nh, T, hs) -> (B, nh, T, hs)."""
        _, B, nh, T, hs = qkv.shape
        n, _, _, w = self.inside.shape  # n windows of w slots
        t = qkv.permute(1, 3, 0, 2, 4).reshape(B, T, 3 * nh * hs)  # a view of the projection
        t = _ToWindows.apply(t, self.slots, self.places)  # (B, n * w, 3 * nh * hs)
        q, k, v = t.view(B * n, w, 3, nh, hs).permute(2, 0, 3, 1, 4)  # (B * n, nh, w, hs) each
        mask = self.inside.repeat(B, 1, 1, 1) if self.padded else None  # (B * n, 1, 1, w)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B * n, nh, w, hs)
        y = y.transpose(1, 2).reshape(B, n * w, nh * hs)  # (B, n * w, E)
        y = _FromWindows.apply(y, self.places)  # (B, T, E)
        return y.view(B, T, nh, hs).transpose(1, 2)  # (B, nh, T, hs)


def _windows(tokens, window, shift):
    """The windows of a token grid as indices.

    Returns:
        slots: (n, w) token of each window's slot; where a window reaches beyond the grid, its
            nearest token as a stand-in.
        inside: (n, w) whether the slot is a token's and not a stand-in's.
        places: (T,) slot of each token, counted through all windows.
    """
    axes = [
        torch.arange(-s, n + -(n + s) % w, device="cpu")
        for n, w, s in zip(tokens, window, shift, strict=True)
    ]
    (h, w, d), (wh, ww, wd) = tokens, window
    i, j, k = torch.meshgrid(*axes, indexing="ij")  # the grid, and what its windows reach beyond
    inside = (i >= 0) & (i < h) & (j >= 0) & (j < w) & (k >= 0) & (k < d)
    token = (i.clamp(0, h - 1) * w + j.clamp(0, w - 1)) * d + k.clamp(0, d - 1)

    def cut(t):
        t = t.unflatten(2, (-1, wd)).unflatten(1, (-1, ww)).unflatten(0, (-1, wh))
        return t.permute(0, 2, 4, 1, 3, 5).reshape(-1, wh * ww * wd)  # (n, w)

    slots, inside = cut(token), cut(inside)
    filled = inside.flatten().nonzero()[:, 0]  # (T,) the slots with a token
    # Sorting them by token inverts the way there.
    return slots, inside, filled[slots.flatten()[filled].argsort()]


class _ToWindows(torch.autograd.Function):
    """Tokens -> slots of windows. A stand-in's slot is masked, so that no gradient comes from it;
    knowing that, the way back is a copy, where autograd's would be a scattered sum."""

    @staticmethod
    def forward(context, t: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        return t.index_select(1, slots)  # (B, T, C) -> (B, n * w, C)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = context.saved_tensors
        return gradient.index_select(1, places), None, None  # (B, n * w, C) -> (B, T, C)


class _FromWindows(torch.autograd.Function):
    """Slots of windows -> tokens; what is in a stand-in's slot is dropped."""

    @staticmethod
    def forward(context, t: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.slots = t.shape[1]
        return t.index_select(1, places)  # (B, n * w, C) -> (B, T, C)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = context.saved_tensors
        B, _, C = gradient.shape
        return gradient.new_zeros(B, context.slots, C).index_copy_(1, places, gradient), None


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    The MLP's hidden width is `mlp_ratio` times E, the token width; dropout follows both its layers.
    """

    def __init__(
        self, attention: nn.Module, width: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (B, T, E)
        return x + self.mlp(self.norm2(x))  # (B, T, E)
