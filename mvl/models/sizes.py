"""How large a model is, without allocating it; and models made as large as another.

The paper's size controls (ViT-Depth, ViT-MLP) have 257 million and 5.7 billion weights against
1.1 million of its ViT: no control of size. Here a control is matched to a number of weights.
"""

import json
from dataclasses import replace

import torch

from mvl.errors import ConfigError
from mvl.models.segmenter import build_segmenter

#: The paper's volume and its language model's dimensions, for counting; no weights are read.
PAPER_GRID = (128, 128, 128)
LLAMA_3_1_8B = "random:" + json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)


def count_parameters(config, grid=PAPER_GRID, channels=1, classes=1):
    """Number of weights, trained and frozen.

    Args:
        config: a `ModelConfig`.
        grid: the volume's size in voxels.
        channels, classes: as in `build_segmenter`.

    Returns:
        (trained, frozen).
    """
    with torch.device("meta"):
        model = build_segmenter(config, channels, classes, grid, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def match_size(config, parameters, by, grid=PAPER_GRID, channels=1, classes=1):
    """The same model, deeper or with wider MLPs, with as many weights as another.

    Args:
        config: a `ModelConfig` without a language part.
        parameters: the number of weights to come closest to.
        by: "depth" adds pairs of blocks, one to the encoder and one to the decoder; "mlp" widens
            the MLP of every block.
        grid, channels, classes: as in `count_parameters`.

    Returns:
        A `ModelConfig`.

    Raises:
        ConfigError: the model is larger than that already, or has a language part.
    """
    if config.language is not None:
        raise ConfigError("a size control has no language part")
    hidden = round(config.width * config.mlp_ratio)

    def larger(steps):
        if by == "mlp":
            return replace(config, mlp_ratio=(hidden + steps) / config.width)
        return replace(
            config,
            encoder_depth=config.encoder_depth + steps,
            decoder_depth=config.decoder_depth + steps,
        )

    first, second = (
        sum(count_parameters(larger(steps), grid, channels, classes)) for steps in (0, 1)
    )
    # Each step adds the same number of weights.
    steps = round((parameters - first) / (second - first))
    if steps < 0:
        raise ConfigError(f"the model has {first:,} weights already, more than {parameters:,}")
    return larger(steps)
