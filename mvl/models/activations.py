"""What goes on inside a model: the stream at each stage, and the learned attention mixes.

Stages are read by forward hooks, so that the model runs the code that it always runs.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvl.models.attention import HybridAttention
from mvl.models.peers import Peer, middle, padded_grid
from mvl.models.segmenter import MedVisionLlama
from mvl.models.tokens import Grid, token_grid

#: Stage -> what it is, in the order of the data.
STAGES = {
    "encoder": "the stream after encoder and fusion, or a host's tokens before the language part",
    "update": "what the block writes onto the stream, D2(block(D1(x)))",
    "after": "the stream after the language part",
    "decoder": "the stream after the decoder",
}


@torch.inference_mode()
def activations(model: MedVisionLlama | Peer, volume: Tensor) -> dict[str, Tensor]:
    """Run a model on (B, C, H, W, D) and keep its tokens (B, T, width) at each of its stages.

    The update is D2 of the block's output alone, without the residual around the block: the
    last step of a BERT-type block is a LayerNorm, which evens out the norms that a map shows.
    """
    tokens = {}

    def keep(stage: str):
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            tokens[stage] = output
            if stage == "after":
                # The update is computed from the part's input: forward adds the residual before D2.
                tokens["update"] = module.update(arguments[0])
                if isinstance(model, Peer):
                    tokens["encoder"] = arguments[0]

        return hook

    stages, part = {}, model.language
    if not isinstance(model, Peer):
        stages["encoder"] = model.encoder[-1] if model.fusion is None else model.fusion
        if model.decoder:
            stages["decoder"] = model.decoder[-1]
    if part is not None:
        stages["after"] = part
    with contextlib.ExitStack() as stack:
        for stage, module in stages.items():
            stack.callback(module.register_forward_hook(keep(stage)).remove)
        model.eval()(volume)
    return {stage: tokens[stage] for stage in STAGES if stage in tokens}


def token_layout(model: MedVisionLlama | Peer, grid: Grid) -> tuple[Grid, Grid]:
    """A token's size in voxels, and the grid that the tokens cover: a host pads its volumes."""
    if isinstance(model, Peer):
        return (model.step,) * 3, padded_grid(grid, model.step)
    return model.embed.patch, grid


def to_volume(tokens: Tensor, model: MedVisionLlama | Peer, grid: Grid) -> Tensor:
    """The norm of each token as a volume, for the paper's activation maps.

    (B, T, width) of a model -> (B, H, W, D) on the grid of its volumes, interpolated linearly
    between the tokens' centres.
    """
    patch, whole = token_layout(model, grid)
    norms = tokens.norm(dim=-1).unflatten(1, token_grid(whole, patch))[:, None]  # (B, 1, h, w, d)
    volume = F.interpolate(norms, size=tuple(whole), mode="trilinear", align_corners=False)[:, 0]
    return volume[:, *middle(whole, grid)]


def attention_mixes(model: nn.Module) -> Tensor:
    """The share of global attention that hybrid attention has learned: (blocks, heads).

    Encoder first; 1 is global alone, 0 local alone. (0, 0) without hybrid attention.
    """
    mixes = [
        torch.sigmoid(module.mix.detach())
        for module in model.modules()
        if isinstance(module, HybridAttention)
    ]
    return torch.stack(mixes) if mixes else torch.empty(0, 0)
