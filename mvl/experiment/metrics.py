"""Segmentation metrics of one structure in one case, in native space and in millimetres.

Overlap metrics come from the four voxel counts. Distances come from MONAI's surface elements
(`get_mask_edges` with subvoxels, after DeepMind's surface-distance, Nikolov et al.,
arXiv:1809.04430), weighted by their area: counting edge voxels instead, as MONAI's own HD95
does, errs by a fifth and more where the spacing is anisotropic.

A missed structure is the worst result, never a missing one: `EMPTY_SIDES` is the convention.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """What a reader of a column of `cases.csv` has to know; the unit is "" or "mm"."""

    name: str
    title: str
    unit: str = ""
    #: Largest possible value, the smallest is 0. HD95's is the volume's diagonal.
    high: float = 1.0
    larger_is_better: bool = True

    @property
    def heading(self) -> str:
        """Title and unit, for the head of a column or an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def digits(self) -> int:
        """After the point, where a person reads it."""
        return 2 if self.unit else 3


#: Name -> Metric, in the order of the tables' columns.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("jaccard", "Jaccard"),
        Metric("accuracy", "Accuracy"),
        Metric("precision", "Precision"),
        Metric("sensitivity", "Sensitivity"),
        Metric("specificity", "Specificity"),
        Metric("hd95_mm", "HD95", "mm", math.inf, larger_is_better=False),
        Metric("nsd", "NSD"),
    )
}

#: What `study.stages` measures: no metric of a segmentation, but compared likewise.
AUROC = Metric("auroc_stream", "AUROC of the tokens' norm")

#: In `EMPTY_SIDES` the physical diagonal of the case's volume, in mm.
DIAGONAL = "diagonal"

_SHARES = ("dice", "jaccard", "precision", "sensitivity", "nsd")
_WORST = dict.fromkeys(_SHARES, 0.0) | {"hd95_mm": DIAGONAL}
_PERFECT = dict.fromkeys(_SHARES, 1.0) | {"hd95_mm": 0.0}

#: (truth is empty, prediction is empty) -> the value of every metric that the convention sets.
#: Accuracy and specificity are not here: the counts give them whatever is empty.
EMPTY_SIDES = {
    (False, True): _WORST,  # a missed structure
    (True, False): _WORST,  # a structure where there is none
    (True, True): _PERFECT,
}

#: Distances that equal the tolerance, and areas that add up to exactly 95 %, are common on a voxel
#: grid; this slack keeps rounding (spacings are stored in float32) from deciding such ties.
_SLACK = 1e-6


def segmentation_metrics(
    prediction: np.ndarray | Tensor,
    truth: np.ndarray | Tensor,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    ignored: np.ndarray | Tensor | None = None,
) -> dict[str, float]:
    """Every metric of `METRICS` for one structure in one case, in their order; never NaN.

    HD95 is the larger, over both directions, of the 95th percentile of the distances from one
    surface to the other; NSD (surface Dice) is the share of both surfaces that lies within the
    tolerance of the other. Both weight each surface element by its area. Surfaces are those of
    the masks with background around the volume, so a mask may touch the border.

    Ignored voxels leave prediction and truth alike before anything is counted or measured: where
    both masks run into ignored voxels, they end in the same surface.

    Args:
        prediction, truth, ignored: masks (H, W, D), boolean or integer; non-zero is in.
        spacing_mm: three voxel edges, along the masks' axes.
        tolerance_mm: of NSD, 0 or more.

    Returns:
        Where a side is empty, what `EMPTY_SIDES` says. Specificity is 1 where the truth fills the
        volume: no voxel can be a false positive.

    Raises:
        ValueError: masks of different shape, not three-dimensional, without voxels that count or
            of a floating-point type; or spacing or tolerance out of range.
    """
    prediction, truth = _mask(prediction, "prediction"), _mask(truth, "truth")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
    counted = truth.size
    if ignored is not None:
        kept = ~_mask(ignored, "ignored")
        if kept.shape != truth.shape:
            raise ValueError(f"ignored is {kept.shape} but truth is {truth.shape}")
        prediction, truth = prediction & kept, truth & kept
        counted = int(np.count_nonzero(kept))
        if not counted:
            raise ValueError("every voxel is ignored")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm!r}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be 0 or more, not {tolerance_mm!r}")

    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    tn = counted - tp - fp - fn
    values = {
        "accuracy": (tp + tn) / counted,
        "specificity": tn / (tn + fp) if tn + fp else 1.0,
    }
    sides = (tp + fn == 0, tp + fp == 0)
    if any(sides):
        diagonal = float(np.linalg.norm(spacing * truth.shape))
        for name, value in EMPTY_SIDES[sides].items():
            values[name] = diagonal if value == DIAGONAL else value
    else:
        values["dice"] = 2 * tp / (2 * tp + fp + fn)
        values["jaccard"] = tp / (tp + fp + fn)
        values["precision"] = tp / (tp + fp)
        values["sensitivity"] = tp / (tp + fn)
        values["hd95_mm"], values["nsd"] = _surface_metrics(
            prediction, truth, spacing, tolerance_mm
        )
    return {name: values[name] for name in METRICS}


def dice_per_case(prediction: Tensor, truth: Tensor) -> Tensor:
    """Dice (B, K) of every case and class of a batch of bool masks (B, K, H, W, D).

    It is 1 where both sides are empty, 0 where one is.
    """
    space = (2, 3, 4)
    overlap = (prediction & truth).sum(space)  # (B, K)
    total = prediction.sum(space) + truth.sum(space)  # (B, K)
    return (2 * overlap / total.clamp(min=1)).masked_fill(total == 0, 1.0)


def _mask(values, name):
    """A boolean array (H, W, D) of a mask that may be a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "bui":
        raise ValueError(f"{name} must be boolean or integer, not {values.dtype}")
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"{name} must have the shape (H, W, D), not {values.shape}")
    return values.astype(bool, copy=False)


#: Voxels of a slab in which surfaces are found, so that a large volume costs little memory.
_SLAB = 1 << 20
#: A bad model scatters specks over a volume. With so many surface elements, one in sixteen voxels
#: at least, a distance transform of the whole box is faster than a search tree; with many more
#: the tree takes minutes, whatever the box.
_SOME, _MANY = 50_000, 1_000_000


def _surface_metrics(prediction, truth, spacing, tolerance):
    """HD95 in mm and NSD of two non-empty masks (H, W, D)."""
    # Background around the box: what touches its border has a surface there.
    (box,) = ndimage.find_objects((prediction | truth).astype(np.uint8))  # around both
    masks = [np.pad(mask[box], 1) for mask in (prediction, truth)]
    surfaces = [_surface(mask, spacing) for mask in masks]
    percentiles, within, total = [], 0.0, 0.0
    for (points, area), (others, _) in (surfaces, surfaces[::-1]):
        distance = _distances(points, others, spacing, masks[0].shape)
        percentiles.append(_percentile(distance, area, 0.95))
        within += area[distance <= tolerance * (1 + _SLACK)].sum()
        total += area.sum()
    return float(max(percentiles)), float(within / total)


def _surface(mask, spacing):
    """Places (n, 3) of a mask's surface elements, between voxels, and their areas (n,) in mm²."""
    # Here and not above: MONAI takes seconds to import, and `METRICS` is wanted without it.
    import torch
    from monai.metrics.utils import get_mask_edges

    places, areas = [], []
    thick = max(1, _SLAB // (mask.shape[1] * mask.shape[2]))
    for start in range(0, mask.shape[0] - 1, thick):
        # An element lies between two voxels of each axis, so slabs share a layer.
        slab = torch.from_numpy(mask[start : start + thick + 1])
        with warnings.catch_warnings():
            # MONAI 1.6 passes itself an argument that it has deprecated, and says so.
            warnings.simplefilter("ignore", FutureWarning)
            edges, _, area, _ = get_mask_edges(slab, slab, crop=False, spacing=spacing.tolist())
        places.append(np.argwhere(edges.numpy()) + [start, 0, 0])
        areas.append(area[edges].numpy())
    return np.concatenate(places), np.concatenate(areas).astype(np.float64)


def _distances(points, others, spacing, shape):
    """Distance in mm from each of `points` (n, 3) to the nearest of `others`, places in a box."""
    dense = max(_SOME, math.prod(shape) // 16)
    if max(len(points), len(others)) > min(dense, _MANY):
        empty = np.ones(shape, bool)
        empty[tuple(others.T)] = False
        nearest = ndimage.distance_transform_edt(
            empty, spacing, return_distances=False, return_indices=True
        )[:, *points.T]
        apart = np.linalg.norm((points - nearest.T) * spacing, axis=1)
    else:
        tree = KDTree(others * spacing, leafsize=32)  # one query: large leaves are faster
        apart = tree.query(points * spacing)[0]
    return apart.astype(np.float32).astype(np.float64)


def _percentile(values, weights, share):
    """The smallest value that at least `share` of the weight does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return values[order][np.searchsorted(reached, (share - _SLACK) * reached[-1])]
