"""What goes on inside a model: the stream at each stage, and the learned attention mixes.

Stages are read by forward hooks, so that the model runs the code that it always runs.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvl.models.attention import HybridAttention
from mvl.models.segmenter import MedVisionLlama

#: Stage -> what it is, in the order of the data.
STAGES = {
    "encoder": "the stream after encoder and fusion",
    "d1": "tokens in the language model's space, D1(x)",
    "block": "the language block's output",
    "update": "what the block writes onto the stream, D2(block(D1(x)))",
    "after": "the stream after the language part",
    "decoder": "the stream after the decoder",
}


@torch.inference_mode()
def activations(model: MedVisionLlama, volume: Tensor) -> dict[str, Tensor]:
    """Run a model on (B, C, H, W, D) and keep its tokens (B, T, width) at each of its stages.

    The update is D2 of the block's output alone, without the residual around the block: the
    last step of a BERT-type block is a LayerNorm, which evens out the norms that a map shows.
    """
    tokens = {}

    def keep(stage: str):
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            # The update is computed from the part's input: forward adds the residual before D2.
            tokens[stage] = module.update(arguments[0]) if stage == "update" else output

        return hook

    stages = {"encoder": model.encoder[-1] if model.fusion is None else model.fusion}
    if model.decoder:
        stages["decoder"] = model.decoder[-1]
    part = model.language
    if part is not None:
        stages |= {"d1": part.d1, "block": part.block, "update": part, "after": part}
    with contextlib.ExitStack() as stack:
        for stage, module in stages.items():
            stack.callback(module.register_forward_hook(keep(stage)).remove)
        model.eval()(volume)
    return {stage: tokens[stage] for stage in STAGES if stage in tokens}


def to_volume(tokens: Tensor, token_grid: tuple, grid: tuple) -> Tensor:
    """The norm of each token as a volume, for the paper's activation maps.

    (B, T, width) on the token grid (h, w, d) -> (B, H, W, D) on the grid of voxels, interpolated
    linearly between the tokens' centres.
    """
    norms = tokens.norm(dim=-1).view(tokens.shape[0], 1, *token_grid)  # (B, 1, h, w, d)
    return F.interpolate(norms, size=tuple(grid), mode="trilinear", align_corners=False)[:, 0]


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
