"""What the released code makes of masks: labels on another grid, surfaces, distances."""

import numpy as np
import torch
from scipy.ndimage import maximum_filter, maximum_filter1d
from torch.nn import functional as F

#: The grid to which the released code resizes every volume, in voxels.
GRID = (128, 128, 128)


def resize_mask(mask: np.ndarray, grid: tuple[int, int, int], linear: bool) -> np.ndarray:
    """Resize a mask (H, W, D) of booleans as MONAI resizes its image.

    With `linear`, whatever is above zero counts, as in the released code; else the nearest voxel.
    """
    values = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    mode = "trilinear" if linear else "nearest-exact"
    return F.interpolate(values, tuple(grid), mode=mode)[0, 0].numpy() > 0


def surface_hits(
    predictions: np.ndarray, truths: np.ndarray, batch_index: bool = True
) -> dict[str, np.ndarray]:
    """Surface voxels within one voxel of the other surface, by case of (B, H, W, D) booleans.

    With `batch_index` the case's place in the batch is a fourth coordinate: the same voxel of two
    neighbouring cases lies at distance 1.

    Returns:
        (B,) integers: `near_predicted`, `surface_predicted`, `near_labelled`, `surface_labelled`.
    """
    # A surface is what touches a structure from outside, by a face, an edge or a corner.
    surfaces = {
        name: maximum_filter(masks, (1, 3, 3, 3)) & ~masks
        for name, masks in (("predicted", predictions), ("labelled", truths))
    }
    # Of all voxels, those within distance 1 are the voxel itself and its neighbours by a face.
    axes, counts = (0, 1, 2, 3) if batch_index else (1, 2, 3), {}
    for name, other in (("predicted", "labelled"), ("labelled", "predicted")):
        reached = np.logical_or.reduce([maximum_filter1d(surfaces[other], 3, a) for a in axes])
        counts[f"near_{name}"] = (surfaces[name] & reached).sum((1, 2, 3))
        counts[f"surface_{name}"] = surfaces[name].sum((1, 2, 3))
    return counts


def dilation_nsd(near_predicted, surface_predicted, near_labelled, surface_labelled) -> np.ndarray:
    """The released code's surface Dice from counts of `surface_hits`, numbers or arrays.

    It is the mean of both surfaces' shares, not the share of both surfaces; 0 where a side is
    empty.
    """
    sides = ((near_predicted, surface_predicted), (near_labelled, surface_labelled))
    shares = [np.asarray(near) / np.maximum(1, total) for near, total in sides]
    empty = (np.asarray(surface_predicted) == 0) | (np.asarray(surface_labelled) == 0)
    return np.where(empty, 0.0, sum(shares) / 2)


def ball(
    shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float
) -> np.ndarray:
    """A ball as a mask; lengths in voxels."""
    squares = [(np.arange(n) - c) ** 2 for n, c in zip(shape, centre, strict=True)]
    return sum(np.ix_(*squares)) <= radius**2
