"""The field's comparison networks, MONAI's, behind the segmenter's interface.

volume (B, C, H, W, D) -> logits (B, classes, H, W, D)

They are small versions, of one to four million weights, so that one trains on a CPU: a
comparison of architectures on one budget, not of anybody's best recipe. `dynunet` is nnU-Net's
architecture (Isensee et al., Nature Methods 2021) without its planning, its patches and its
ensembles. What is peculiar to a network is dealt with here: a volume is padded with zeros to a
multiple of the network's coarsest step and the logits are cropped back.
"""

import torch
from monai.networks.nets import UNETR, BasicUNetPlusPlus, DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn
from torch.nn import functional as F

from mvl.config import derive_seed
from mvl.errors import ConfigError
from mvl.models.trained import load_trained_state

#: Architecture -> (the volume's sides are padded to multiples of this, maker of the network).
_NETWORKS = {
    "unet": (
        8,
        lambda channels, classes, grid: UNet(
            3, channels, classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2
        ),
    ),
    "unet++": (
        16,
        lambda channels, classes, grid: BasicUNetPlusPlus(
            3, channels, classes, features=(8, 16, 32, 64, 128, 8)
        ),
    ),
    "unetr": (
        16,
        lambda channels, classes, grid: UNETR(
            channels, classes, grid, feature_size=8, hidden_size=96, mlp_dim=384, num_heads=4
        ),
    ),
    "swin-unetr": (
        32,
        lambda channels, classes, grid: SwinUNETR(
            channels, classes, feature_size=12, num_heads=(3, 6, 12, 24)
        ),
    ),
    "segresnet": (
        8,
        lambda channels, classes, grid: SegResNet(3, 8, channels, classes),
    ),
    "dynunet": (
        8,
        lambda channels, classes, grid: DynUNet(
            3,
            channels,
            classes,
            kernel_size=(3, 3, 3, 3),
            strides=(1, 2, 2, 2),
            upsample_kernel_size=(2, 2, 2),
            filters=(16, 32, 64, 128),
        ),
    ),
}


class Peer(nn.Module):
    """A network that sees volumes whose sides are multiples of its coarsest step.

    Args:
        network: (B, C, H, W, D) -> logits, or a list with the logits first.
        multiple: of what every side of the network's volume is a multiple.
    """

    def __init__(self, network, multiple):
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, volume):
        """Logits, never probabilities: (B, C, H, W, D) -> (B, classes, H, W, D)."""
        sides = volume.shape[2:]
        before, widths = [], []
        for side, whole in zip(sides, padded(sides, self.multiple), strict=True):
            low = (whole - side) // 2
            before.append(low)
            widths.append((low, whole - side - low))
        # F.pad counts from the last axis.
        flat = [width for pair in reversed(widths) for width in pair]
        logits = self.network(F.pad(volume, flat))
        if isinstance(logits, list):  # UNet++ returns one
            logits = logits[0]
        for axis, (start, side) in enumerate(zip(before, sides, strict=True), start=2):
            logits = logits.narrow(axis, start, side)
        return logits

    def trained_state(self):
        """All weights and running statistics, by name; DynUNet has each of its own twice."""
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensor for name, tensor in self.state_dict().items() if name in own}

    def load_trained_state(self, state, origin):
        """Take over what `trained_state` gave; see `trained.load_trained_state`."""
        load_trained_state(self, state, origin)


def padded(grid, multiple):
    """The grid with every side brought up to a multiple."""
    return tuple(-(-side // multiple) * multiple for side in grid)


def build_peer(config, channels, classes, grid, seed):
    """A comparison network with its first weights.

    Args:
        config: a `PeerConfig`.
        channels: the image's channels.
        classes: channels of the logits.
        grid: the volume's size in voxels (H, W, D).
        seed: the experiment's seed; the weights are a function of it and of the architecture.

    Returns:
        A `Peer`, in float32 on the CPU (or on the device of a `torch.device` context).

    Raises:
        ConfigError: the grid is so small that one voxel is left at the coarsest step, which
            instance normalisation cannot normalise.
    """
    multiple, make = _NETWORKS[config.architecture]
    whole = padded(grid, multiple)
    if all(side == multiple for side in whole):
        raise ConfigError(
            f"{config.architecture} needs a grid with a side above {multiple}, not {tuple(grid)}"
        )
    # fork_rng puts the global generator back, so that building a model leaves no trace.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, config.architecture))
        return Peer(make(channels, classes, whole), multiple)
