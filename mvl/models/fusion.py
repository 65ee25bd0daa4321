"""The multi-scale fusion block: encoder states of several depths, seen at several scales.

The paper's first version names a Multi-Scale Fusion Block that "aggregates features across
scales"; where it sits and what its scales are, it does not say. Ours is a choice, and each
part of it a field of the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MultiScaleFusion(nn.Module):
    """Add to the last encoder state what depth-wise convolutions find in several states.

    Each state goes back to the 3D token grid and through a depth-wise convolution of its own
    kernel; the results are concatenated, mixed by a point-wise map and added to the last state
    by a learned scale for each channel. The scale starts at zero, so that the block is exactly the
    identity before training.

    `tokens` is the token grid (h, w, d); each of `kernels`, the edge of a state's convolution in
    tokens, is odd.
    """

    def __init__(self, width: int, tokens: tuple[int, int, int], kernels: Sequence[int]) -> None:
        super().__init__()
        self.tokens = tuple(tokens)
        self.scales = nn.ModuleList(
            nn.Conv3d(width, width, kernel, padding=kernel // 2, groups=width) for kernel in kernels
        )
        self.mix = nn.Linear(width * len(kernels), width)
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Fuse as many states (B, T, E) as there are kernels, shallow first, into the last."""
        B, T, E = states[-1].shape
        seen = []
        for state, convolution in zip(states, self.scales, strict=True):
            # Tokens are a channels-last volume already: no copy, and the faster layout on CPU.
            grid = state.view(B, *self.tokens, E).permute(0, 4, 1, 2, 3)  # (B, E, h, w, d)
            seen.append(convolution(grid).permute(0, 2, 3, 4, 1).reshape(B, T, E))
        return states[-1] + self.scale * self.mix(torch.cat(seen, dim=-1))  # (B, T, E)
