"""The size of hidden states, compared with a whole model that is run by hand."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from mvl.blocks.scale import SENTENCES, hidden_scale
from mvl.blocks.sources import open_checkpoint
from mvl.errors import BlockError


def test_scale_is_what_hooks_see_before_each_layer():
    folder = open_checkpoint("package:all-minilm-l6-v2").folder
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seen = [[] for _ in model.encoder.layer]
    for layer, sizes in zip(model.encoder.layer, seen, strict=True):
        layer.register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(inputs[0][0, 1:])
        )
    with torch.no_grad():
        for sentence in SENTENCES:
            model(**tokenizer(sentence, return_tensors="pt"))
    table = hidden_scale("package:all-minilm-l6-v2")
    assert list(table["layer"]) == list(range(6))
    for expected, row in zip(seen, table.itertuples(), strict=True):
        sizes = torch.cat(expected).square().mean(-1).sqrt()
        assert row.low <= row.median <= row.high
        assert row.median == pytest.approx(sizes.double().quantile(0.5).item(), rel=1e-5)


def test_a_source_without_a_whole_model_is_a_sentence(tmp_path):
    with pytest.raises(BlockError, match="whole model"):
        hidden_scale('random:{"model_type": "llama"}')
