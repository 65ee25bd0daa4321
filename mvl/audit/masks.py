"""What the released code makes of masks: labels on another grid, surfaces, distances."""

import numpy as np
import torch
from torch.nn import functional as F

#: The grid to which the released code resizes every volume, in voxels.
GRID = (128, 128, 128)


def resize_mask(mask: np.ndarray, grid: tuple[int, int, int], linear: bool) -> np.ndarray:
    """Resize a mask (H, W, D) of booleans as MONAI resizes its image.

    Args:
        linear: interpolate linearly and count whatever is above zero, as the released code does:
            any voxel that touches the structure is in it. False takes the nearest voxel.
    """
    values = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    mode = "trilinear" if linear else "nearest-exact"
    return F.interpolate(values, tuple(grid), mode=mode)[0, 0].numpy() > 0


def _one_step(masks, axis):
    """A mask and what lies one step from it along an axis."""
    masks = np.moveaxis(masks, axis, 0)
    grown = masks.copy()
    grown[1:] |= masks[:-1]
    grown[:-1] |= masks[1:]
    return np.moveaxis(grown, 0, axis)


def _surface(masks):
    """Voxels outside of masks (B, H, W, D) that touch them, by a face, an edge or a corner."""
    grown = masks
    for axis in (1, 2, 3):
        grown = _one_step(grown, axis)
    return grown & ~masks


def surface_hits(
    predictions: np.ndarray, truths: np.ndarray, batch_index: bool = True
) -> dict[str, np.ndarray]:
    """Surface voxels within one voxel of the other surface, case by case.

    Args:
        predictions, truths: (B, H, W, D) booleans.
        batch_index: count the case's place in the batch as a fourth coordinate, so that the same
            voxel of two neighbouring cases lies at distance 1.

    Returns:
        (B,) integers: `near_predicted`, `surface_predicted`, `near_labelled`, `surface_labelled`.
    """
    # Surfaces lie one voxel outside of the structures: the rest of the grid has none to count.
    inside, box = (predictions | truths).any(0), [slice(None)]
    for axis in range(3):
        along = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, along[0] - 1), along[-1] + 2) if len(along) else slice(0))
    surfaces = {
        "predicted": _surface(predictions[tuple(box)]),
        "labelled": _surface(truths[tuple(box)]),
    }
    # Of all voxels, those within distance 1 are the voxel itself and its neighbours by a face.
    axes, counts = (0, 1, 2, 3) if batch_index else (1, 2, 3), {}
    for name, other in (("predicted", "labelled"), ("labelled", "predicted")):
        reached = np.logical_or.reduce([_one_step(surfaces[other], axis) for axis in axes])
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
