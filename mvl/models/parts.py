"""A model's parts as frames: where its weights are, and what goes from one part to the next."""

import numpy as np
import pandas as pd

from mvl.models.segmenter import MedVisionLlama
from mvl.models.tokens import token_grid


def parameters_by_part(model: MedVisionLlama) -> pd.DataFrame:
    """Number of weights, one row per part: trained and frozen."""
    rows = {}
    for name, parameter in model.named_parameters():
        head, _, rest = name.partition(".")
        part = f"language {rest.split('.')[0]}" if head == "language" else head
        row = rows.setdefault(part, {"trained": 0, "frozen": 0})
        row["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return pd.DataFrame(rows).T


def dataflow(model: MedVisionLlama) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The parts of a model from `build_segmenter` in the order of the data.

    Returns:
        One row per part: trained, frozen (numbers of weights) and output (what it hands on, such
        as "175 × 64"), and the pairs (a, b) of which a's output is added to b's input.
    """
    counts, about, language = parameters_by_part(model), model.description, model.language
    tokens = int(np.prod(token_grid(about.grid, about.config.patch)))
    voxels = "×".join(map(str, about.grid))
    stream = f"{tokens} × {about.config.width}"
    encoder = {"encoder": (("encoder",), stream)}
    if model.fusion:
        encoder["fusion"] = (("fusion",), stream)
    middle, skips = encoder, []
    if language:
        inner = f"{tokens} × {language.d2.in_features}"
        part = {"D1": (("language d1",), inner), "block": (("language block",), inner)}
        part["D2"] = (("language d2",), stream)
        middle = part | encoder if model.language_first else encoder | part
        skips = [("D1", "D2")] * language.config.residual
    # Part -> (its names in `parameters_by_part`, what it hands on).
    parts = {"volume": ((), voxels), "embedding": (("embed", "position"), stream)} | middle
    if model.decoder:
        parts["decoder"] = (("decoder",), stream)
    parts["head"] = (("norm", "head"), voxels)
    names = list(parts)
    if language and language.config.skip:
        skips.append((names[names.index("D1") - 1], names[names.index("D2") + 1]))
    rows = {
        name: {kind: counts[kind].reindex(list(keys)).sum() for kind in ("trained", "frozen")}
        | {"output": output}
        for name, (keys, output) in parts.items()
    }
    return pd.DataFrame(rows).T, skips
