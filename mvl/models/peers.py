"""The field's comparison networks, MONAI's, behind the segmenter's interface.

volume (B, C, H, W, D) -> logits (B, classes, H, W, D)

All are small versions, of one to four million weights and with few channels at the volume's own
resolution, so that one trains on a CPU. They compare architectures on one budget; none is its
authors' best recipe. What is peculiar to a network is dealt with here: a volume is padded with
zeros to what the network can halve, the logits are cropped back, and weights that MONAI makes
but does not use are left out.

The sizes are no part of `PeerConfig`, so that a run's fingerprint does not know them: a change
of them here asks for another `PROTOCOL_VERSION`.

A host is a network with a language part. A forward hook hands the output of its deepest level to
the part: the tokens of UNETR's transformer, or the voxels of a convolutional network's last level,
each a token. LLM4Seg (Tang et al., MICCAI 2025, arXiv:2506.18034) puts its block there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvl.blocks.language_part import build_language
from mvl.config import ModelConfig, PeerConfig
from mvl.draws import drawn_by
from mvl.models.segmenter import build_segmenter


class Peer(nn.Module):
    """A network on any grid.

    Args:
        network: (B, C, H, W, D) -> logits, or a list of which the last is the logits.
        step: how far the network reduces a volume's sides, and the side of a token in voxels.
        language: a `LanguagePart`, or None.
        deepest: name of the module of the network whose output goes through the language part:
            voxels (B, E, h, w, d), or a tuple of tokens (B, T, E) and another thing.
        position: of each voxel of that output, (1, h * w * d, E); None for tokens.
    """

    def __init__(
        self,
        network: nn.Module,
        step: int,
        language: nn.Module | None = None,
        deepest: str = "",
        position: Tensor | None = None,
    ) -> None:
        super().__init__()
        # Small 3D convolutions run up to twice as fast on CPU in this layout.
        self.network = network.to(memory_format=torch.channels_last_3d)
        self.step, self.language = step, language
        self.voxel_position = None if position is None else nn.Parameter(position)
        if language is not None:
            network.get_submodule(deepest).register_forward_hook(self._through_language)

    @property
    def position(self) -> nn.Parameter | None:
        """Learned position of each token, (1, T, E): UNETR's own, or the one that voxels get."""
        vit = getattr(self.network, "vit", None)
        return self.voxel_position if vit is None else vit.patch_embedding.position_embeddings

    def _through_language(self, module: nn.Module, arguments: tuple, output):
        if isinstance(output, tuple):
            return self.language(output[0]), *output[1:]
        x = output.flatten(2).transpose(1, 2) + self.voxel_position  # (B, T, E)
        return self.language(x).transpose(1, 2).unflatten(2, output.shape[2:])  # (B, E, h, w, d)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits, as of `MedVisionLlama`: (B, C, H, W, D) -> (B, classes, H, W, D)."""
        grid = volume.shape[2:]
        whole = padded_grid(grid, self.step)
        inside, widths = middle(whole, grid), []
        for side, w in zip(inside, whole, strict=True):
            widths = [side.start, w - side.stop, *widths]  # F.pad counts axes from the last
        # Zero is an MRI's mean and a CT window's end, with which `Preparation` pads, too.
        volume = F.pad(volume, widths)  # (B, C, H', W', D')
        logits = self.network(volume.contiguous(memory_format=torch.channels_last_3d))
        if isinstance(logits, list):
            logits = logits[-1]
        return logits[:, :, *inside]  # (B, classes, H, W, D)


def padded_grid(grid: tuple[int, int, int], step: int) -> tuple[int, int, int]:
    """The smallest grid around another that a network can reduce: multiples of its step.

    Of a single voxel at the coarsest level, instance normalisation has no variance and attention
    has nothing to choose from. So the last side is twice the step where all would be the step.
    """
    whole = [-(-side // step) * step for side in grid]
    if all(side == step for side in whole):
        whole[-1] = 2 * step
    return tuple(whole)


def middle(whole: tuple[int, int, int], grid: tuple[int, int, int]) -> tuple[slice, ...]:
    """Where a grid lies in a larger one about it."""
    return tuple(slice((w - g) // 2, (w - g) // 2 + g) for w, g in zip(whole, grid, strict=True))


def build_peer(
    config: PeerConfig, channels: int, classes: int, grid: tuple[int, int, int], seed: int
) -> Peer:
    """A comparison network with its initial weights, a function of seed and architecture.

    The arguments are those of `build_segmenter`; the grid may be any. A host's initial weights are
    those of the network alone, and voxels' positions start at zero: so a language part that starts
    as the identity leaves the logits as they are.

    Raises:
        BlockError: the language block cannot be found, read or trusted.
    """
    from monai.networks import nets  # takes seconds

    make, step, deepest, width = NETWORKS[config.architecture]
    whole = padded_grid(grid, step)
    # MONAI's Swin UNETR reads values of tensors while it is made, which the meta device has not.
    with drawn_by(seed, config.architecture), torch.device("cpu"):
        network = make(nets, channels, classes, whole)
    part = ()
    if config.language:
        tokens = math.prod(side // step for side in whole)
        position = None if config.architecture == "unetr" else torch.zeros(1, tokens, width)
        part = build_language(config.language, width, seed), deepest, position
    return Peer(network, step, *part).to(torch.get_default_device())


def build_model(
    config: ModelConfig | PeerConfig,
    channels: int,
    classes: int,
    grid: tuple[int, int, int],
    seed: int,
) -> nn.Module:
    """Ours or a peer, as the configuration says."""
    build = build_peer if isinstance(config, PeerConfig) else build_segmenter
    return build(config, channels, classes, grid, seed)


def _unet(nets, channels, classes, grid):
    return nets.UNet(
        3, channels, classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2
    )


def _unet_plus_plus(nets, channels, classes, grid):
    # Its nested decoder works mostly at the volume's own resolution, hence so few channels.
    network = nets.BasicUNetPlusPlus(3, channels, classes, features=(4, 8, 32, 64, 128, 4))
    for head in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
        setattr(network, head, nn.Identity())  # of deep supervision, which is off
    return network


def _unetr(nets, channels, classes, grid):
    # Patches of 16 and 12 blocks, as MONAI and the paper have it.
    network = nets.UNETR(
        channels, classes, grid, feature_size=8, hidden_size=96, mlp_dim=384, num_heads=4
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = block.cross_attn = nn.Identity()  # there is no text
    return network


def _swin_unetr(nets, channels, classes, grid):
    # 12 is the least that MONAI takes. Windows of 4 divide the token grids of a small volume; the
    # paper's 7 would pad them, at twice the time.
    return nets.SwinUNETR(channels, classes, feature_size=12, num_heads=(1, 2, 4, 8), window_size=4)


def _segresnet(nets, channels, classes, grid):
    return nets.SegResNet(3, init_filters=8, in_channels=channels, out_channels=classes)


def _dynunet(nets, channels, classes, grid):
    # nnU-Net's architecture (Isensee et al., Nature Methods 2021) without what else is nnU-Net:
    # its planning, deep supervision, patches, augmentation and ensembles.
    return nets.DynUNet(
        3,
        channels,
        classes,
        kernel_size=(3, 3, 3, 3, 3),
        strides=(1, 2, 2, 2, 2),
        upsample_kernel_size=(2, 2, 2, 2),
        filters=(8, 16, 32, 64, 128),
    )


class Network(NamedTuple):
    """One of the comparison networks."""

    make: Callable  #: (`monai.networks.nets`, channels, classes, grid) -> the network.
    step: int  #: How far it reduces a volume's sides: the padded sides are multiples of this.
    deepest: str = ""  #: Of a host: the module whose output the language part takes,
    width: int = 0  #: and that output's width.


#: `PeerConfig.architecture` -> the network.
NETWORKS = {
    "unet": Network(_unet, 8),
    "unet++": Network(_unet_plus_plus, 16),
    "unetr": Network(_unetr, 16, "vit", 96),
    "swin-unetr": Network(_swin_unetr, 32),
    "segresnet": Network(_segresnet, 8, "down_layers.3", 64),
    "dynunet": Network(_dynunet, 16, "bottleneck", 128),
}
