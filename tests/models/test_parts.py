"""A model's parts: every weight once, in the order of the data."""

from mvl.config import LanguageConfig, ModelConfig
from mvl.models.parts import dataflow
from mvl.models.segmenter import build_segmenter

GRID = (24, 24, 24)
SMALL = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}


def test_a_dataflow_counts_every_weight_once():
    language = LanguageConfig(lora_rank=4)
    for config in (
        ModelConfig(**SMALL, language=language, fusion=True),
        ModelConfig(**SMALL, language=language, language_position="before"),
        ModelConfig(**SMALL | {"decoder_depth": 0}),
    ):
        model = build_segmenter(config, 1, 1, GRID, seed=0)
        parts, skips = dataflow(model)
        counts = [p.numel() for p in model.parameters() if p.requires_grad]
        assert parts["trained"].sum() == sum(counts)
        assert parts["frozen"].sum() == sum(p.numel() for p in model.parameters()) - sum(counts)
        names = list(parts.index)
        if config.language:
            before, after = skips[-1]
            assert names.index("D1") == names.index(before) + 1
            assert names.index("D2") == names.index(after) - 1
            assert parts["output"]["D1"] == "27 × 384" and parts["output"]["D2"] == "27 × 16"
        else:
            assert skips == [] and "D1" not in names
        assert names[-1] == "head" and parts["output"]["head"] == "24×24×24"
