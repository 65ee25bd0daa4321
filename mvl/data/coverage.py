"""What the model's grid does not show of the labels, found before training.

Nearest-voxel resizing steps over small structures, a centred crop cuts off what lies outside of it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from mvl.config import DataConfig
from mvl.errors import DataError

#: Resampling to other voxels loses and gains some of a structure by chance: up to this share.
_BY_CHANCE = 0.1
#: Share of the structures, or of their volume, from which a loss is called a warning.
_MUCH = 0.05

_WAYS = {
    "pad": "choose a larger --grid, or --fit resize or crop",
    "resize": "choose a finer --grid, or --fit crop with a --spacing near the files' own",
    "crop": "choose a smaller --spacing",
}


def grid_coverage(volumes: dict[str, list[dict[str, Any]]], names: list[str]) -> pd.DataFrame:
    """How much of every structure is on the model's grid.

    Args:
        volumes: side -> labelled cases, as `Preparation.load` gives them.
        names: of the structures, in the order of the label's classes.

    Returns:
        One row per structure that a case has: side, case, structure, file_ml, grid_ml.
    """
    rows = []
    for side, volume in ((side, volume) for side, cases in volumes.items() for volume in cases):
        voxel_ml = volume["image"].pixdim.prod().item() / 1000
        voxels = volume["label"].flatten().clamp(min=0).int().bincount(minlength=len(names) + 1)
        for name, file_ml, count in zip(names, volume["ml"], voxels[1:], strict=True):
            if file_ml > 0:
                rows.append((side, volume["name"], name, float(file_ml), float(count * voxel_ml)))
    return pd.DataFrame(rows, columns=["side", "case", "structure", "file_ml", "grid_ml"])


def lost_on_grid(coverage: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """The rows of `grid_coverage` with a loss, and its share as a column `lost`."""
    lost = (1 - coverage["grid_ml"] / coverage["file_ml"]).clip(0, 1)
    least = 1e-6 if config.fit == "pad" else _BY_CHANCE  # padding and cutting keep the voxels
    return coverage.assign(lost=lost)[lost > least]


def require_coverage(coverage: pd.DataFrame, config: DataConfig) -> None:
    """Refuse a grid that shows no structure of a side: to predict nothing would be perfect there.

    Raises:
        DataError: such a side.
    """
    for side, rows in coverage.groupby("side", sort=False):
        if not rows["grid_ml"].any():
            raise DataError(
                f"{config.task}: {_grid(config)} shows none of the {len(rows)} structures of the "
                f"{side} side, such as {rows['structure'].iloc[0]} in {rows['case'].iloc[0]} "
                f"({rows['file_ml'].iloc[0]:.3g} ml); {_WAYS[config.fit]}"
            )


def coverage_notes(coverage: pd.DataFrame, names: list[str], config: DataConfig) -> list[str]:
    """Sentences on what the grid does not show, of `grid_coverage` with the same names."""
    notes, lost = [], lost_on_grid(coverage, config)
    if len(lost):
        whole = int((lost["lost"] == 1).sum())
        lost_ml = lost["lost"] * lost["file_ml"]
        volume = lost_ml.sum() / coverage["file_ml"].sum()
        by_case = coverage.assign(lost_ml=lost_ml).groupby("case")
        share = by_case["lost_ml"].sum() / by_case["file_ml"].sum()
        much = max(whole / len(coverage), volume) > _MUCH
        structures = f"{whole} of {len(coverage)} structures, and " if whole else ""
        notes.append(
            f"{'warning' if much else 'note'}: {_grid(config)} does not show {structures}"
            f"{volume:.1%} of the structures' volume, in {lost['case'].nunique()} of {len(share)} "
            f"training and validation cases; most is lost of {share.idxmax()}, {share.max():.0%}. "
            f"To keep it, {_WAYS[config.fit]}"
        )
    shown = coverage[coverage["grid_ml"] > 0]
    for side, rows in shown.groupby("side", sort=False):
        for name in sorted(set(names) - set(rows["structure"])):
            what = "it is not learned" if side == "train" else "no epoch is chosen for it"
            notes.append(f"warning: no {side} case shows {name} on its grid, so that {what}")
    return notes


def _grid(config):
    if config.fit == "crop":
        return f"a voxel of {' x '.join(f'{edge:g}' for edge in config.spacing_mm)} mm"
    return f"the grid of {' x '.join(map(str, config.grid))} voxels ({config.fit})"
