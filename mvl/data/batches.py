"""Prepared volumes -> shuffled, augmented batches, each a function of (seed, epoch, case) alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import monai
import numpy as np
import torch
from monai import transforms
from monai.data import get_track_meta, set_track_meta
from safetensors.torch import load_file

from mvl.config import PROTOCOL_VERSION, DataConfig, derive_seed
from mvl.errors import MvlError
from mvl.files import write_tensors, writing
from mvl.locks import acquired

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


#: Seconds that a training waits for the batches that another one draws.
PATIENCE_S = 600


class BatchStore:
    """Batches of epochs on disk, for trainings that draw the same ones, as cells of a fold do.

    The first training that reaches an epoch draws it; the others wait and read. Trainings draw the
    same if configuration, batch size, seed and the voxels of all cases are equal.
    """

    def __init__(
        self,
        root: str | Path,
        volumes: list[dict[str, Any]],
        config: DataConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        """Take a folder below `root`; the other arguments are those of `training_batches`."""
        versions = torch.__version__, monai.__version__
        about = json.dumps([asdict(config), batch_size, seed, versions, PROTOCOL_VERSION])
        digest = hashlib.sha256(about.encode())
        for volume in volumes:
            digest.update(volume["name"].encode())
            for key in ("image", "label"):
                digest.update(np.ascontiguousarray(volume[key]))
        self.folder = Path(root) / digest.hexdigest()[:16]

    def epoch(
        self, number: int, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the stored batches of an epoch; without any, those of `batches`, and store them.

        Where another training does not get them ready in time, or the disk is full, the batches
        are drawn and not kept.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path, drawn = self.folder / f"{number}.safetensors", {}
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(acquired(path.with_suffix(".lock"), PATIENCE_S))
            except BlockingIOError:
                if not path.exists():
                    yield from batches
                    return
            if not path.exists():
                for n, (images, labels) in enumerate(batches):
                    drawn |= {f"{n} images": images, f"{n} labels": labels.to(torch.int16)}
                    yield images, labels
                try:
                    write_tensors(path, drawn, {})
                except MvlError as error:
                    print(f"batches of epoch {number + 1} are not kept: {error}", flush=True)
                return
        stored = load_file(path)
        for n in range(len(stored) // 2):
            yield stored[f"{n} images"], stored[f"{n} labels"].float()


@contextlib.contextmanager
def _untracked():
    """MONAI without the record of what was done to a volume, a fifth of an augmentation's time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
