"""The field's comparison networks, MONAI's, behind the segmenter's interface.

volume (B, C, H, W, D) -> logits (B, classes, H, W, D)

All are small versions, of one to four million weights and with few channels at the volume's own
resolution, so that one trains on a CPU. They compare architectures on one budget; none is its
authors' best recipe. What is peculiar to a network is dealt with here: a volume is padded with
zeros to what the network can halve, the logits are cropped back, and weights that MONAI makes
but does not use are left out.

The sizes are no part of `PeerConfig`, so that a run's fingerprint does not know them: a change
of them here asks for another `PROTOCOL_VERSION`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvl.config import ModelConfig, PeerConfig
from mvl.draws import drawn_by
from mvl.models.segmenter import build_segmenter

#: How far each network reduces a volume's sides: the padded sides are multiples of this.
_STEPS = {
    "unet": 8,
    "unet++": 16,
    "unetr": 16,
    "swin-unetr": 32,
    "segresnet": 8,
    "dynunet": 16,
}


class Peer(nn.Module):
    """A network on any grid.

    Args:
        network: (B, C, H, W, D) -> logits, or a list of which the last is the logits.
        step: how far the network reduces a volume's sides.
    """

    def __init__(self, network: nn.Module, step: int) -> None:
        super().__init__()
        # Small 3D convolutions run up to twice as fast on CPU in this layout.
        self.network = network.to(memory_format=torch.channels_last_3d)
        self.step = step

    def forward(self, volume: Tensor) -> Tensor:
        """Logits, as of `MedVisionLlama`: (B, C, H, W, D) -> (B, classes, H, W, D)."""
        grid = volume.shape[2:]
        whole = padded_grid(grid, self.step)
        before = [(w - g) // 2 for w, g in zip(whole, grid, strict=True)]
        widths = []
        for w, g, b in zip(whole, grid, before, strict=True):
            widths = [b, w - g - b, *widths]  # F.pad counts axes from the last
        # Zero is an MRI's mean and a CT window's end, with which `Preparation` pads, too.
        volume = F.pad(volume, widths)  # (B, C, H', W', D')
        logits = self.network(volume.contiguous(memory_format=torch.channels_last_3d))
        if isinstance(logits, list):
            logits = logits[-1]
        inside = (slice(b, b + g) for b, g in zip(before, grid, strict=True))
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


def build_peer(
    config: PeerConfig, channels: int, classes: int, grid: tuple[int, int, int], seed: int
) -> Peer:
    """A comparison network with its first weights, a function of seed and architecture.

    The arguments are those of `build_segmenter`; the grid may be any.
    """
    step = _STEPS[config.architecture]
    # MONAI's Swin UNETR reads values of tensors while it is made, which the meta device has not.
    with drawn_by(seed, config.architecture), torch.device("cpu"):
        network = _network(config.architecture, channels, classes, padded_grid(grid, step))
    return Peer(network, step).to(torch.get_default_device())


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


def _network(architecture: str, channels: int, classes: int, grid: tuple) -> nn.Module:
    """MONAI's network, on a grid that it can reduce."""
    from monai.networks import nets  # takes seconds

    if architecture == "unet":
        return nets.UNet(
            3, channels, classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2
        )
    if architecture == "unet++":
        # Its nested decoder works mostly at the volume's own resolution, hence so few channels.
        network = nets.BasicUNetPlusPlus(3, channels, classes, features=(4, 8, 32, 64, 128, 4))
        for head in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
            setattr(network, head, nn.Identity())  # of deep supervision, which is off
        return network
    if architecture == "unetr":
        # Patches of 16 and 12 blocks, as MONAI and the paper have it.
        network = nets.UNETR(
            channels, classes, grid, feature_size=8, hidden_size=96, mlp_dim=384, num_heads=4
        )
        for block in network.vit.blocks:
            block.norm_cross_attn = block.cross_attn = nn.Identity()  # there is no text
        return network
    if architecture == "swin-unetr":
        # 12 is the least that MONAI takes. Windows of 4 divide the token grids of a small volume;
        # the paper's 7 would pad them, at twice the time.
        return nets.SwinUNETR(
            channels, classes, feature_size=12, num_heads=(1, 2, 4, 8), window_size=4
        )
    if architecture == "segresnet":
        return nets.SegResNet(3, init_filters=8, in_channels=channels, out_channels=classes)
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
