"""Small language models of every family, saved as Hugging Face saves them."""

import pytest
import torch
import transformers

from mvl.blocks.language_part import build_language
from mvl.config import LanguageConfig

WIDTH, TOKENS = 8, 12

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_PARTIAL = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
#: Windows are shorter than the tests' sequences, so that they show.
TINY = {
    "llama": _GROUPED | {"rope_parameters": _LLAMA3},
    "mistral": _GROUPED | {"sliding_window": 5},
    "gemma2": _GROUPED | {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20},
    "qwen2": _GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": _GROUPED | {"head_dim": 12},
    "phi3": _GROUPED | {"sliding_window": 5, "rope_parameters": _PARTIAL},
    "gpt2": {
        "vocab_size": 40,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "biogpt": _SIZES,
    "bert": _SIZES,
}


def save_tiny(kind, folder, **more):
    """A small model whose weights are all away from their neutral values."""
    config = transformers.CONFIG_MAPPING[kind](**TINY[kind], **more)
    make = (
        transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


class _Models(dict):
    def __init__(self, root):
        super().__init__()
        self.root = root

    def __missing__(self, kind):
        self[kind] = save_tiny(kind, self.root / kind), f"path:{self.root / kind}"
        return self[kind]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """{family: (full model, its "path:" source)}, made when it is asked for."""
    return _Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """(folder, model): a Llama of four layers in several shards, layer 1 split between two."""
    config = transformers.LlamaConfig(
        vocab_size=500,
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(folder, max_shard_size="400KB")
    return folder, model


def part_of(source, seed=0, **options):
    """A language part of tokens of width 8."""
    return build_language(LanguageConfig(source=source, **options), WIDTH, seed)


def states(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
