"""Prepared volumes -> shuffled, augmented batches, each a function of (seed, epoch, case) alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from monai import transforms
from monai.data import get_track_meta, set_track_meta

from mvl.config import DataConfig, derive_seed

_Item = TypeVar("_Item")


def crop_size(config: DataConfig) -> tuple[int, ...]:
    """Voxels that a crop needs so that it still fills the grid when it is rotated."""
    sine, whole = math.sin(math.radians(config.rotation_degrees)), sum(config.grid)
    return tuple(math.ceil(n + sine * (whole - n)) for n in config.grid)


def augmentation(config: DataConfig) -> transforms.Compose:
    """What may be done to a training volume; call `set_random_state` before each.

    A crop's centre is as often in the foreground as outside.
    """
    both, angle = ("image", "label"), float(np.deg2rad(config.rotation_degrees))
    steps = []
    if config.fit == "crop":
        keys = {"fg_indices_key": "foreground", "bg_indices_key": "background"}
        size = crop_size(config)
        steps.append(transforms.RandCropByPosNegLabeld(both, "label", size, num_samples=1, **keys))
    how = {"mode": ("bilinear", "nearest"), "padding_mode": "zeros", "cache_grid": True}
    steps += [
        transforms.RandAffined(both, config.grid, prob=1.0, rotate_range=(angle,) * 3, **how),
        transforms.RandScaleIntensityd("image", factors=config.intensity, prob=1.0),
        transforms.RandShiftIntensityd("image", offsets=config.intensity, prob=1.0),
    ]
    axes = {False: (), True: range(3), "left-right": range(1)}[config.flips]  # of RAS
    steps += [transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in axes]
    return transforms.Compose(steps)


def training_batches(
    volumes: list[dict[str, Any]],
    config: DataConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    process: int = 0,
    processes: int = 1,
    augment: transforms.Compose | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images (B, C, H, W, D), labels (B, 1, H, W, D)) of one epoch.

    A training that resumes at epoch n sees what an undisturbed one would have seen, and processes
    that train together see between them what one alone would see.

    Args:
        volumes: the training cases, from `Preparation.load`.
        process, processes: of each batch, take the cases process, process + processes, ...;
            where a batch is too small for that, its first case.
        augment: a transform with `set_random_state`, in place of `augmentation(config)`.
    """
    augment = augment or augmentation(config)
    order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(len(volumes))
    for start in range(0, len(order), batch_size):
        batch, chosen = [], order[start : start + batch_size]
        for index in chosen[process::processes] if process < len(chosen) else chosen[:1]:
            volume = volumes[index]
            augment.set_random_state(derive_seed(seed, "augment", epoch, volume["name"]))
            with _untracked():
                augmented = augment(volume | {"image": volume["image"].as_tensor()})
            # A crop comes as a list of one.
            batch.append(augmented[0] if isinstance(augmented, list) else augmented)
        yield tuple(torch.stack([b[key] for b in batch]) for key in ("image", "label"))


def ahead(batches: Iterator[_Item]) -> Iterator[_Item]:
    """Yield what an iterator yields, in its order, while another thread makes the next item.

    Close the generator (`contextlib.closing`) to be sure that the thread has ended: while it
    augments, MONAI keeps no record of any volume (`_untracked`).
    """
    end = object()
    # How subnormals count is a thread's own setting, and `mvl.experiment.training` flushes them.
    with ThreadPoolExecutor(1, "batches", torch.set_flush_denormal, (True,)) as thread:
        coming = thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = thread.submit(next, batches, end)
            yield batch


@contextlib.contextmanager
def _untracked():
    """MONAI without the record of what was done to a volume, a fifth of an augmentation's time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
