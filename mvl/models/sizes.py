"""How large a model is, without allocating it; and models made as large as another.

The paper's size controls (ViT-Depth, ViT-MLP) have 257 million and 5.7 billion weights against
1.1 million of its ViT: no control of size. Here a control is matched to a number of weights.
"""

import json
from dataclasses import replace

import pandas as pd
import torch

from mvl.blocks.language_part import describe
from mvl.errors import ConfigError
from mvl.models.peers import build_model

#: Those entries of each model's config.json on which its size depends.
ARCHITECTURES = {
    "Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "Mistral-7B-v0.3": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
    },
    "Gemma-2-9B": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 256000,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "Qwen3-8B": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "Phi-3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
    },
    "GPT-2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "BioGPT": {
        "model_type": "biogpt",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 1024,
        "vocab_size": 42384,
    },
    "BERT-base": {
        "model_type": "bert",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "vocab_size": 30522,
    },
}

#: The paper's volume and its language model's dimensions, for counting; no weights are read.
PAPER_GRID = (128, 128, 128)
LLAMA_3_1_8B = "random:" + json.dumps(ARCHITECTURES["Llama-3.1-8B"])


def whole_model(architecture):
    """A whole language model on the meta device, where weights have a shape and no memory.

    Args:
        architecture: one of `ARCHITECTURES`.
    """
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    kind = architecture["model_type"]
    config = CONFIG_MAPPING[kind].from_dict(dict(architecture))
    with torch.device("meta"):
        return (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config)


def block_table():
    """One block against the whole model, for every architecture here and the installed package.

    BioBERT, ClinicalBERT and PubMedBERT have BERT-base's block.

    Returns:
        A table, a model a row: family, model, hidden_size, block_parameters, block_bytes,
        model_bytes, share (of the block in the model's bytes) and basis: whether bytes were
        read from a file's header or computed from the architecture at 2 bytes a weight
        (bfloat16), whatever number format the model is published in.

    Raises:
        BlockError: the package is not installed.
    """
    rows = []
    for name, architecture in ARCHITECTURES.items():
        block = describe("random:" + json.dumps(architecture))
        weights = sum(p.numel() for p in whole_model(architecture).parameters())
        basis = "from the architecture, 2 bytes a weight"
        rows.append((name, block, 2 * block["block_parameters"], 2 * weights, basis))
    block = describe("package:all-minilm-l6-v2")
    rows.append(
        ("all-MiniLM-L6-v2", block, block["block_bytes"], block["model_bytes"], "from the file")
    )
    return pd.DataFrame(
        {
            "family": block["family"],
            "model": name,
            "hidden_size": block["hidden_size"],
            "block_parameters": block["block_parameters"],
            "block_bytes": block_bytes,
            "model_bytes": model_bytes,
            "share": block_bytes / model_bytes,
            "basis": basis,
        }
        for name, block, block_bytes, model_bytes, basis in rows
    )


def count_parameters(config, grid=PAPER_GRID, channels=1, classes=1):
    """Number of weights, trained and frozen.

    Args:
        config: a `ModelConfig` or a `PeerConfig`.
        grid: the volume's size in voxels.
        channels, classes: as in `build_segmenter`.

    Returns:
        (trained, frozen).
    """
    with torch.device("meta"):
        model = build_model(config, channels, classes, grid, seed=0)
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
