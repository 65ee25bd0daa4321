"""Volume <-> tokens: cut a volume into patches and embed them, and the way back.

Both directions are a reshape and one matrix product, so that they cost no more than the
numbers in them; grid and patch may differ along each axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvl.errors import ConfigError

Grid = tuple[int, int, int]


def token_grid(grid: Grid, patch: Grid) -> Grid:
    """Number of patches along each axis of a grid of voxels.

    Raises:
        ConfigError: the patch does not divide the grid.
    """
    if any(g % p for g, p in zip(grid, patch, strict=True)):
        raise ConfigError(
            f"a grid of {tuple(grid)} voxels cannot be cut into patches of {tuple(patch)}: "
            "each axis of the grid must be a multiple of the patch's"
        )
    return tuple(g // p for g, p in zip(grid, patch, strict=True))


def to_patches(volume: Tensor, patch: Grid) -> Tensor:
    """Cut volumes into patches, in row-major order of the token grid.

    (B, C, H, W, D) -> (B, T, C * ph * pw * pd) with T = H/ph * W/pw * D/pd.
    """
    B, C, *grid = volume.shape
    (h, w, d), (ph, pw, pd) = token_grid(grid, patch), patch
    x = volume.reshape(B, C, h, ph, w, pw, d, pd)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, h, w, d, C, ph, pw, pd)
    return x.reshape(B, h * w * d, C * ph * pw * pd)  # (B, T, C * ph * pw * pd)


def from_patches(patches: Tensor, patch: Grid, tokens: Grid) -> Tensor:
    """The inverse of `to_patches`, on the token grid (h, w, d).

    (B, T, C * ph * pw * pd) -> (B, C, h * ph, w * pw, d * pd).
    """
    B = patches.shape[0]
    (h, w, d), (ph, pw, pd) = tokens, patch
    x = patches.reshape(B, h, w, d, -1, ph, pw, pd)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, h, ph, w, pw, d, pd)
    return x.reshape(B, -1, h * ph, w * pw, d * pd)  # (B, C, H, W, D)


class PatchEmbed(nn.Module):
    """Patches of a volume -> tokens of width E, by one linear map."""

    def __init__(self, channels: int, patch: Grid, width: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.project = nn.Linear(channels * self.patch[0] * self.patch[1] * self.patch[2], width)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, H, W, D) -> (B, T, E); the patch has to divide the volume (ConfigError)."""
        return self.project(to_patches(volume, self.patch))


class PatchUnembed(nn.Module):
    """Tokens -> a volume: each token becomes the voxels of its patch, by one linear map."""

    def __init__(self, channels: int, patch: Grid, width: int, tokens: Grid) -> None:
        super().__init__()
        self.patch, self.tokens = tuple(patch), tuple(tokens)
        self.project = nn.Linear(width, channels * self.patch[0] * self.patch[1] * self.patch[2])

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, channels, H, W, D)."""
        return from_patches(self.project(x), self.patch, self.tokens)


class LinearHead(nn.Module):
    """The paper's output layer: un-embedded tokens are the logits. The image is not used."""

    def __init__(self, classes: int, patch: Grid, width: int, tokens: Grid) -> None:
        super().__init__()
        self.unembed = PatchUnembed(classes, patch, width, tokens)

    def forward(self, x: Tensor, volume: Tensor) -> Tensor:
        """(B, T, E), (B, C, H, W, D) -> logits (B, classes, H, W, D)."""
        return self.unembed(x)


class ConvHead(nn.Module):
    """A small convolutional refinement of the un-embedded tokens, together with the image.

    The linear head draws each patch alone, which leaves seams between patches and edges that
    ignore the image. Here tokens become a few feature channels F, the image's are added to them,
    and two 3 x 3 x 3 convolutions and a point-wise one make the logits.
    """

    def __init__(
        self, channels: int, classes: int, features: int, patch: Grid, width: int, tokens: Grid
    ) -> None:
        super().__init__()
        self.unembed = PatchUnembed(features, patch, width, tokens)
        self.refine = nn.Sequential(
            nn.Conv3d(features + channels, features, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(features, features, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(features, classes, 1),
        )

    def forward(self, x: Tensor, volume: Tensor) -> Tensor:
        """(B, T, E), (B, C, H, W, D) -> logits (B, classes, H, W, D)."""
        x = torch.cat([self.unembed(x), volume], dim=1)  # (B, F + C, H, W, D)
        # Small 3D convolutions run 2 to 10 times faster on CPU in this layout.
        return self.refine(x.contiguous(memory_format=torch.channels_last_3d))
