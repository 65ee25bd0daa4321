"""Volume <-> tokens: cut a volume into patches and embed them, and the way back.

Both directions are a reshape and one matrix product, so that they cost no more than the
numbers in them; grid and patch may differ along each axis.
"""

import torch
from torch import nn

from mvl.errors import ConfigError


def token_grid(grid, patch):
    """Number of patches along each axis.

    Args:
        grid: the volume's size in voxels, (H, W, D).
        patch: the patch's size in voxels.

    Raises:
        ConfigError: a patch that does not divide the grid.
    """
    if any(g % p for g, p in zip(grid, patch, strict=True)):
        raise ConfigError(
            f"a grid of {tuple(grid)} voxels cannot be cut into patches of {tuple(patch)}: "
            "each axis of the grid must be a multiple of the patch's"
        )
    return tuple(g // p for g, p in zip(grid, patch, strict=True))


def to_patches(volume, patch):
    """Cut volumes into patches, in row-major order of the token grid.

    Args:
        volume: (B, C, H, W, D).
        patch: (ph, pw, pd), dividing (H, W, D).

    Returns:
        (B, T, C * ph * pw * pd) with T = H/ph * W/pw * D/pd.
    """
    B, C, *grid = volume.shape
    (h, w, d), (ph, pw, pd) = token_grid(grid, patch), patch
    x = volume.reshape(B, C, h, ph, w, pw, d, pd)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, h, w, d, C, ph, pw, pd)
    return x.reshape(B, h * w * d, C * ph * pw * pd)


def from_patches(patches, patch, tokens):
    """The inverse of `to_patches`.

    Args:
        patches: (B, T, C * ph * pw * pd).
        patch: (ph, pw, pd).
        tokens: the token grid (h, w, d), with T = h * w * d.

    Returns:
        (B, C, h * ph, w * pw, d * pd).
    """
    B = patches.shape[0]
    (h, w, d), (ph, pw, pd) = tokens, patch
    x = patches.reshape(B, h, w, d, -1, ph, pw, pd)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, h, ph, w, pw, d, pd)
    return x.reshape(B, -1, h * ph, w * pw, d * pd)


class PatchEmbed(nn.Module):
    """Patches of a volume -> tokens, by one linear map.

    Args:
        channels: the image's channels C.
        patch: patch size in voxels.
        width: token width E.
    """

    def __init__(self, channels, patch, width):
        super().__init__()
        self.patch = tuple(patch)
        self.project = nn.Linear(channels * self.patch[0] * self.patch[1] * self.patch[2], width)

    def forward(self, volume):
        """(B, C, H, W, D) -> (B, T, E).

        Raises:
            ConfigError: the patch does not divide the volume.
        """
        return self.project(to_patches(volume, self.patch))


class PatchUnembed(nn.Module):
    """Tokens -> a volume: each token becomes the voxels of its patch, by one linear map.

    Args:
        channels: channels of the resulting volume.
        patch: patch size in voxels.
        width: token width E.
        tokens: the token grid (h, w, d).
    """

    def __init__(self, channels, patch, width, tokens):
        super().__init__()
        self.patch, self.tokens = tuple(patch), tuple(tokens)
        self.project = nn.Linear(width, channels * self.patch[0] * self.patch[1] * self.patch[2])

    def forward(self, x):
        """(B, T, E) -> (B, channels, H, W, D)."""
        return from_patches(self.project(x), self.patch, self.tokens)


class LinearHead(nn.Module):
    """The paper's output layer: un-embedded tokens are the logits. The image is not looked at."""

    def __init__(self, classes, patch, width, tokens):
        super().__init__()
        self.unembed = PatchUnembed(classes, patch, width, tokens)

    def forward(self, x, volume):
        """(B, T, E), (B, C, H, W, D) -> logits (B, classes, H, W, D)."""
        return self.unembed(x)


class ConvHead(nn.Module):
    """A small convolutional refinement of the un-embedded tokens, beside the image.

    The linear head draws each patch alone, which leaves seams between patches and edges that
    ignore the image. Here tokens become a few feature channels, the image is laid beside them,
    and two 3 x 3 x 3 convolutions and a point-wise one make the logits.

    Args:
        channels: the image's channels C.
        classes: channels of the logits.
        features: channels of the features and of both convolutions.
        patch, width, tokens: as in `PatchUnembed`.
    """

    def __init__(self, channels, classes, features, patch, width, tokens):
        super().__init__()
        self.unembed = PatchUnembed(features, patch, width, tokens)
        self.refine = nn.Sequential(
            nn.Conv3d(features + channels, features, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(features, features, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(features, classes, 1),
        )

    def forward(self, x, volume):
        """(B, T, E), (B, C, H, W, D) -> logits (B, classes, H, W, D)."""
        x = torch.cat([self.unembed(x), volume], dim=1)  # (B, F + C, H, W, D)
        # Small 3D convolutions run 2 to 10 times faster on CPU in this layout.
        return self.refine(x.contiguous(memory_format=torch.channels_last_3d))
