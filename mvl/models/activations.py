"""What goes on inside a model: the stream at each stage, and the learned attention mixes.

Stages are read by forward hooks, so that the model runs the code that it always runs.
"""

import contextlib

import torch
from torch.nn import functional as F

from mvl.models.attention import HybridAttention

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
def activations(model, volume):
    """Run a model and keep its tokens at each stage.

    The update is D2 of the block's output alone, without the residual around the block: the
    last step of a BERT-type block is a LayerNorm, which evens out the norms that a map shows.

    Args:
        model: a `MedVisionLlama`.
        volume: (B, C, H, W, D).

    Returns:
        {stage: (B, T, width)} for the stages of `STAGES` that the model has.
    """
    found = {}

    def keep(stage):
        def hook(module, arguments, output):
            # The update is computed from the part's input: forward adds the residual before D2.
            found[stage] = module.update(arguments[0]) if stage == "update" else output

        return hook

    last = model.fusion if model.fusion is not None else model.encoder[-1]
    places = {"encoder": last}
    if model.decoder:
        places["decoder"] = model.decoder[-1]
    part = model.language
    if part is not None:
        places |= {"d1": part.d1, "block": part.block, "update": part, "after": part}
    with contextlib.ExitStack() as stack:
        for stage, module in places.items():
            stack.callback(module.register_forward_hook(keep(stage)).remove)
        model.eval()(volume)
    return {stage: found[stage] for stage in STAGES if stage in found}


def to_volume(tokens, token_grid, grid):
    """The norm of each token as a volume, for the paper's activation maps.

    Args:
        tokens: (B, T, width).
        token_grid: (h, w, d) with T = h * w * d.
        grid: the volume's size in voxels.

    Returns:
        (B, H, W, D), interpolated linearly between the tokens' centres.
    """
    norms = tokens.norm(dim=-1).view(tokens.shape[0], 1, *token_grid)
    return F.interpolate(norms, size=tuple(grid), mode="trilinear", align_corners=False)[:, 0]


def attention_mixes(model):
    """The share of global attention in each block and head, learned by hybrid attention.

    Args:
        model: a `MedVisionLlama`.

    Returns:
        (blocks, heads), encoder first; 1 is global alone, 0 local alone. (0, 0) without hybrid
        attention.
    """
    mixes = [
        torch.sigmoid(module.mix.detach())
        for module in model.modules()
        if isinstance(module, HybridAttention)
    ]
    return torch.stack(mixes) if mixes else torch.empty(0, 0)
