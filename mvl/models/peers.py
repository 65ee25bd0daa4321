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

from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F

from mvl.config import PeerConfig, derive_seed
from mvl.models.segmenter import build_segmenter
from mvl.models.trained import load_trained_state

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

    def __init__(self, network, step):
        super().__init__()
        # Small 3D convolutions run up to twice as fast on CPU in this layout.
        self.network = network.to(memory_format=torch.channels_last_3d)
        self.step = step

    def forward(self, volume):
        """Logits, never probabilities.

        Args:
            volume: (B, C, H, W, D), normalised, on the grid that the network was built for.

        Returns:
            (B, classes, H, W, D); one class is foreground against background by a sigmoid.
        """
        grid = volume.shape[2:]
        whole = padded_grid(grid, self.step)
        before = [(w - g) // 2 for w, g in zip(whole, grid, strict=True)]
        after = [w - g - b for w, g, b in zip(whole, grid, before, strict=True)]
        # F.pad counts axes from the last. Zero is an MRI's mean and a CT window's end, with
        # which `Preparation` pads, too.
        widths = chain.from_iterable(reversed(list(zip(before, after, strict=True))))
        volume = F.pad(volume, list(widths))
        logits = self.network(volume.contiguous(memory_format=torch.channels_last_3d))
        if isinstance(logits, list):
            logits = logits[-1]
        inside = (slice(b, b + g) for b, g in zip(before, grid, strict=True))
        return logits[:, :, *inside]

    def trained_state(self):
        """All weights and buffers, by name.

        DynUNet has most of its parts under two names, of which a file can hold but one.
        """
        state = self.state_dict()
        own = {name for name, _ in chain(self.named_parameters(), self.named_buffers())}
        return {name: tensor for name, tensor in state.items() if name in own}

    def load_trained_state(self, state, origin):
        """Take over what `trained_state` gave.

        Args:
            state: {name: tensor}.
            origin: where it came from, for the error.

        Raises:
            RunError: a weight is missing, foreign or of another shape.
        """
        load_trained_state(self, state, origin)


def padded_grid(grid, step):
    """The smallest grid around another that a network can reduce.

    Of a single voxel at the coarsest level, instance normalisation has no variance and attention
    has nothing to choose from. So the last side is twice the step where all would be the step.

    Args:
        grid: the volume's size in voxels (H, W, D).
        step: how far the network reduces a side.

    Returns:
        (H', W', D'), multiples of the step.
    """
    whole = [-(-side // step) * step for side in grid]
    if all(side == step for side in whole):
        whole[-1] = 2 * step
    return tuple(whole)


def build_peer(config, channels, classes, grid, seed):
    """A comparison network with its first weights.

    Args:
        config: a `PeerConfig`.
        channels: the image's channels.
        classes: channels of the logits; 1 for foreground against background.
        grid: the volume's size in voxels (H, W, D), any.
        seed: the experiment's seed; the weights are a function of it and of the architecture.

    Returns:
        A `Peer`, in float32 on the CPU (or on the device of a `torch.device` context).
    """
    step = _STEPS[config.architecture]
    # fork_rng puts the global generator back, so that building a model leaves no trace. MONAI's
    # Swin UNETR reads values of tensors while it is made, which the meta device has not.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(derive_seed(seed, config.architecture))
        network = _network(config.architecture, channels, classes, padded_grid(grid, step))
    return Peer(network, step).to(torch.get_default_device())


def build_model(config, channels, classes, grid, seed):
    """Ours or a peer, as the configuration says.

    Args:
        config: a `ModelConfig` or a `PeerConfig`.
        channels, classes, grid, seed: as in `build_segmenter` and `build_peer`.
    """
    build = build_peer if isinstance(config, PeerConfig) else build_segmenter
    return build(config, channels, classes, grid, seed)


def _network(architecture, channels, classes, grid):
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
