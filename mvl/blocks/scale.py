"""How large the hidden states are that a language model's layers were trained on."""

import pandas as pd
import torch

from mvl.blocks.checkpoints import FolderCheckpoint
from mvl.blocks.gguf import GgufCheckpoint
from mvl.blocks.hub import HubCheckpoint
from mvl.blocks.sources import open_checkpoint
from mvl.errors import BlockError

#: What the model reads while its hidden states are measured.
SENTENCES = (
    "The hippocampus is a small organ in the medial temporal lobe of the brain, and it is "
    "important for memory.",
    "Computed tomography measures how strongly tissue absorbs X-rays; bone is bright, air is dark.",
    "A model is trained on one part of the data and tested on another that it has never seen.",
)


def hidden_scale(source: str) -> pd.DataFrame:
    """The root mean square of the tokens that enter each layer of a language model.

    The whole model reads `SENTENCES`. The first token of a sentence is left out: in many decoders
    it collects attention and is many times as large as any other.

    Args:
        source: a `LanguageConfig.source` of a whole model with its tokeniser on this machine.

    Returns:
        One row per layer: layer, median, low and high (the 5th and the 95th percentile of the
        tokens' root mean squares).

    Raises:
        BlockError: the source has no weights here, or transformers cannot load it whole.
    """
    from transformers import AutoModel, AutoTokenizer

    checkpoint = open_checkpoint(source)
    if isinstance(checkpoint, GgufCheckpoint):
        folder, options = checkpoint.path.parent, {"gguf_file": checkpoint.path.name}
        safetensors = {}
    elif isinstance(checkpoint, FolderCheckpoint) and not isinstance(checkpoint, HubCheckpoint):
        folder, options, safetensors = checkpoint.folder, {}, {"use_safetensors": True}
    else:
        raise BlockError(f"{source}: the whole model is needed in a folder of this machine")
    options["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModel.from_pretrained(folder, **options, **safetensors).eval()
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise BlockError(f"{source} cannot be loaded as a whole: {reason}") from error
    sizes = []
    with torch.inference_mode():
        for sentence in SENTENCES:
            tokens = tokenizer(sentence, return_tensors="pt")
            states = model(**tokens, output_hidden_states=True).hidden_states[:-1]
            sizes.append(torch.stack([h[0, 1:].square().mean(-1).sqrt() for h in states]))
    sizes = torch.cat(sizes, 1).double()  # (layers, tokens)
    low, median, high = sizes.quantile(torch.tensor([0.05, 0.5, 0.95]).double(), dim=1).tolist()
    return pd.DataFrame({"layer": range(len(sizes)), "median": median, "low": low, "high": high})
