"""How large a model is, without allocating it; and models made as large as another.

The paper's size controls (ViT-Depth, ViT-MLP) have 257 million and 5.7 billion weights against
1.1 million of its ViT: that controls no size. Here a control is matched to a number of weights.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import pandas as pd
import torch
from torch import nn

from mvl.blocks.extraction import block_sizes
from mvl.config import ModelConfig, PeerConfig
from mvl.errors import ConfigError
from mvl.models.peers import build_model


def _sizes(kind: str, width: int, mlp: int, layers: int, heads: int, words: int, **more) -> dict:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
        "vocab_size": words,
    }


#: Those entries of each model's config.json on which its size depends.
ARCHITECTURES = {
    "Llama-3.1-8B": _sizes("llama", 4096, 14336, 32, 32, 128256, num_key_value_heads=8),
    "Llama-3.2-1B": _sizes(
        "llama", 2048, 8192, 16, 32, 128256, num_key_value_heads=8, tie_word_embeddings=True
    ),
    "Mistral-7B-v0.3": _sizes("mistral", 4096, 14336, 32, 32, 32768, num_key_value_heads=8),
    "Gemma-2-9B": _sizes(
        "gemma2", 3584, 14336, 42, 16, 256000, num_key_value_heads=8, head_dim=256
    ),
    "Qwen2.5-7B": _sizes("qwen2", 3584, 18944, 28, 28, 152064, num_key_value_heads=4),
    "Qwen3-8B": _sizes("qwen3", 4096, 12288, 36, 32, 151936, num_key_value_heads=8, head_dim=128),
    "Phi-3-mini": _sizes("phi3", 3072, 8192, 32, 32, 32064, num_key_value_heads=32),
    "GPT-2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "BioGPT": _sizes("biogpt", 1024, 4096, 24, 16, 42384, max_position_embeddings=1024),
    "BERT-base": _sizes("bert", 768, 3072, 12, 12, 30522, max_position_embeddings=512),
}

#: The paper's volume and its language model's dimensions, for counting; no weights are read.
PAPER_GRID = (128, 128, 128)
LLAMA_3_1_8B = "random:" + json.dumps(ARCHITECTURES["Llama-3.1-8B"])


def whole_model(architecture: dict) -> nn.Module:
    """A whole language model on the meta device, where weights have a shape and no memory."""
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    kind = architecture["model_type"]
    config = CONFIG_MAPPING[kind].from_dict(dict(architecture))
    with torch.device("meta"):
        return (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config)


def block_table() -> pd.DataFrame:
    """One block against the whole model, for every architecture here and the installed package.

    BioBERT, ClinicalBERT and PubMedBERT have BERT-base's block.

    Returns:
        One row per model: family, model, hidden_size, block_parameters, block_bytes,
        model_bytes, share (of the block in the model's bytes) and basis: whether bytes were
        read from a file's header or computed from the architecture at 2 bytes for each weight
        (bfloat16), whatever number format the model is published in.

    Raises:
        BlockError: the package is not installed.
    """
    rows = []
    for name, architecture in ARCHITECTURES.items():
        sizes = block_sizes("random:" + json.dumps(architecture))
        weights = sum(p.numel() for p in whole_model(architecture).parameters())
        sizes |= {"block_bytes": 2 * sizes["block_parameters"], "model_bytes": 2 * weights}
        rows.append({"model": name, "basis": "from the architecture, 2 bytes a weight"} | sizes)
    sizes = block_sizes("package:all-minilm-l6-v2")
    rows.append({"model": "all-MiniLM-L6-v2", "basis": "from the file"} | sizes)
    table = pd.DataFrame(rows)
    table["share"] = table["block_bytes"] / table["model_bytes"]
    columns = ["family", "model", "hidden_size", "block_parameters", "block_bytes", "model_bytes"]
    return table[[*columns, "share", "basis"]]


def count_parameters(
    config: ModelConfig | PeerConfig,
    grid: tuple[int, int, int] = PAPER_GRID,
    channels: int = 1,
    classes: int = 1,
) -> tuple[int, int]:
    """Number of weights of a model on a grid of voxels: (trained, frozen)."""
    with torch.device("meta"):
        model = build_model(config, channels, classes, grid, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def match_size(
    config: ModelConfig,
    parameters: int,
    by: Literal["depth", "mlp"],
    grid: tuple[int, int, int] = PAPER_GRID,
) -> ModelConfig:
    """The same model, deeper or with wider MLPs, with as nearly `parameters` weights as can be.

    "depth" adds pairs of blocks, one to the encoder and one to the decoder; "mlp" widens the MLP
    of every block.

    Raises:
        ConfigError: the model is larger than that already, or has a language part.
    """
    if config.language is not None:
        raise ConfigError("a size control has no language part")
    hidden = round(config.width * config.mlp_ratio)

    def larger(steps: int) -> ModelConfig:
        if by == "mlp":
            return replace(config, mlp_ratio=(hidden + steps) / config.width)
        encoder, decoder = config.encoder_depth + steps, config.decoder_depth + steps
        return replace(config, encoder_depth=encoder, decoder_depth=decoder)

    first, second = (sum(count_parameters(larger(steps), grid)) for steps in (0, 1))
    # Each step adds the same number of weights.
    steps = round((parameters - first) / (second - first))
    if steps < 0:
        raise ConfigError(f"the model has {first:,} weights already, more than {parameters:,}")
    return larger(steps)
