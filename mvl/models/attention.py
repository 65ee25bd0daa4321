"""Global, local and hybrid self-attention over a 3D grid of tokens, and the transformer block.

The paper's first version names a Hybrid Attention Mechanism that "combines global and local
feature learning"; how, it does not say. Ours: one set of queries, keys and values, attended
once over all tokens and once within windows of neighbouring tokens, mixed by a learned weight
a head.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        width: token width E.
        heads: number of heads nh; each has hs = E / nh channels.
        dropout: dropout of the output.
    """

    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """(B, T, E) -> (B, T, E)."""
        B, T, E = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.attend(qkv)  # (B, nh, T, hs)
        return self.dropout(self.project(y.transpose(1, 2).reshape(B, T, E)))

    def attend(self, qkv):
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
        width, heads, dropout: as in `Attention`.
        tokens: the token grid (h, w, d).
        window: edge of a window in tokens; an axis that is shorter is one window.
        shifted: move the window grid by half a window.
    """

    def __init__(self, width, heads, tokens, window, shifted, dropout=0.0):
        super().__init__(width, heads, dropout)
        self.tokens = tuple(tokens)
        self.window = tuple(min(window, n) for n in self.tokens)
        shift = [
            w // 2 if shifted and w < n else 0 for w, n in zip(self.window, tokens, strict=True)
        ]
        # Padding in front moves the window grid; padding behind completes its last window.
        self.padding = [
            (s, -(n + s) % w) for s, n, w in zip(shift, self.tokens, self.window, strict=True)
        ]
        self.mix = nn.Parameter(torch.zeros(heads))

    def attend(self, qkv):
        a = torch.sigmoid(self.mix).view(1, -1, 1, 1).to(qkv.dtype)  # (1, nh, 1, 1)
        return a * super().attend(qkv) + (1 - a) * self.attend_locally(qkv)

    def attend_locally(self, qkv):
        """Attention within windows: (3, B, nh, T, hs) -> (B, nh, T, hs)."""
        B, mask = qkv.shape[1], None
        if any(max(p) for p in self.padding):
            inside = qkv.new_ones(1, B, 1, qkv.shape[3], 1)
            mask = self._to_windows(inside)[0].bool().transpose(-1, -2)  # (B * n, 1, 1, w^3)
        q, k, v = self._to_windows(qkv)  # (B * n, nh, w^3, hs)
        return self._from_windows(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), B)

    def _to_windows(self, t):
        """(n, B, nh, T, hs) -> (n, B * windows, nh, w^3, hs)."""
        n, B, nh, _, hs = t.shape
        (wh, ww, wd), (padded_h, padded_w, padded_d) = self.window, self.padding
        # As it comes from the projection, so that this is a view; then two copies for q, k and v.
        t = t.permute(1, 3, 0, 2, 4).reshape(B, *self.tokens, n * nh * hs)
        t = F.pad(t, (0, 0, *padded_d, *padded_w, *padded_h))
        H, W, D = (size // w for size, w in zip(t.shape[1:4], self.window, strict=True))
        t = t.view(B, H, wh, W, ww, D, wd, n, nh, hs)
        t = t.permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)  # (n, B, H, W, D, nh, wh, ww, wd, hs)
        return t.reshape(n, B * H * W * D, nh, wh * ww * wd, hs)

    def _from_windows(self, t, B):
        """(B * windows, nh, w^3, hs) -> (B, nh, T, hs)."""
        _, nh, _, hs = t.shape
        (h, w, d), (wh, ww, wd) = self.tokens, self.window
        (fh, bh), (fw, bw), (fd, bd) = self.padding
        H, W, D = (fh + h + bh) // wh, (fw + w + bw) // ww, (fd + d + bd) // wd
        t = t.reshape(B, H, W, D, nh, wh, ww, wd, hs)
        t = t.permute(0, 1, 5, 2, 6, 3, 7, 4, 8)  # (B, H, wh, W, ww, D, wd, nh, hs)
        t = t.reshape(B, H * wh, W * ww, D * wd, nh, hs)
        t = t[:, fh : fh + h, fw : fw + w, fd : fd + d]
        return t.reshape(B, h * w * d, nh, hs).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: a module (B, T, E) -> (B, T, E).
        width: token width E.
        mlp_ratio: hidden width of the MLP in multiples of E.
        dropout: dropout after both layers of the MLP.
    """

    def __init__(self, attention, width, mlp_ratio=4.0, dropout=0.0):
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

    def forward(self, x):
        """(B, T, E) -> (B, T, E)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
