"""Cases -> normalised volumes on the model's grid, and predictions back to the file's grid."""

from __future__ import annotations

import copy
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.transforms.utils import map_classes_to_indices, scale_affine

from mvl.config import DataConfig
from mvl.data.batches import crop_size
from mvl.data.domain import windows_of
from mvl.data.nifti import read_label, read_volume
from mvl.data.task_folder import Case
from mvl.data.tasks import Task
from mvl.progress import Progress

#: What an ignored voxel is in a prepared label: no class index, and not padding.
IGNORED = -1
#: With crops: at most so many places of a case from which a crop's centre is drawn, foreground
#: and background each, evenly spread.
_PLACES = 10_000


def classes_of(task: Task, config: DataConfig) -> int:
    """Channels of the logits: 1 for the foreground, else the labels and the background."""
    return 1 if config.target == "foreground" else len(task.labels) + 1


class Preparation:
    """The deterministic way of a case's files to the model's grid, and back.

    image: float32, (C, H, W, D), reoriented to RAS; MRI as z-scores over the nonzero voxels of
        each channel, CT with the task's window scaled to 0..1, or either from its smallest to its
        largest value, as `DataConfig.intensities` says; then, as `DataConfig.fit` says, resized
        with anti-aliasing; or padded and cropped about the centre (with zeros: the mean of
        z-scores, the low end of a scale); or resampled to a voxel size and, where it is smaller
        than a crop, padded.
    label, where there is one: (1, H, W, D), 0/1 or class indices, nearest voxel; uint8, or int16
        where there are more than 255 classes, or ignored voxels, which are `IGNORED`.
    """

    def __init__(self, task: Task, config: DataConfig):
        both, values = ("image", "label"), list(task.labels)
        classes = [1 if config.target == "foreground" else n + 1 for n in range(len(values))]
        kind = np.uint8 if len(values) <= 255 else np.int16
        if task.ignore is not None:
            values, classes, kind = [*values, task.ignore], [*classes, IGNORED], np.int16
        if config.fit == "pad":
            fit = [transforms.ResizeWithPadOrCropd(both, config.grid, allow_missing_keys=True)]
        else:
            fit = [Resampled(both, config.grid, config.spacing_mm)]
        if config.fit == "crop":
            fit.append(transforms.SpatialPadd(both, crop_size(config), allow_missing_keys=True))
        orient = transforms.Orientationd(both, "RAS", labels=None, allow_missing_keys=True)
        mapped = transforms.MapLabelValued("label", values, classes, kind, allow_missing_keys=True)
        steps = [_Read(values, classes), orient, _Normalised(task, config), *fit, mapped]
        self.task, self.config, self._transform = task, config, transforms.Compose(steps)

    def load(self, cases: list[Case], progress: bool = True) -> list[dict[str, Any]]:
        """Read and prepare cases, once; the result is held in memory.

        Returns:
            Per case {"name", "image": MetaTensor (C, H, W, D)}; the image remembers how it came to
            the grid (see `to_native`). Of a labelled case, also "label": tensor (1, H, W, D), and
            "ml", the volume of each structure in the label's own file, (K,); with crops,
            "foreground" and "background", places from which a crop's centre may be drawn.
        """
        files = [
            {"name": case.name, "image": case.image} | ({"label": case.label} if case.label else {})
            for case in cases
        ]
        volumes = []
        with ThreadPool(2) as pool, Progress("preparing", len(files), show=progress) as shown:
            for volume in pool.imap(self._transform, files):
                if "label" in volume:
                    volume["label"] = volume["label"].as_tensor()
                    if self.config.window:
                        volume |= _centres(volume["label"])
                volumes.append(volume)
                shown.step()
        return volumes

    def to_native(self, logits: torch.Tensor, image: MetaTensor) -> torch.Tensor:
        """Bring logits (K, H, W, D) from the model's grid to (K, H', W', D') of the image's file.

        Resampled volumes come back by linear interpolation, of logits and not of a mask, so that
        the threshold is applied once and at the file's resolution. Voxels that were cropped away
        get logits of 0, which count as background.

        Args:
            image: the prepared image, as this object's `load` gave it.
        """
        # MONAI's inverse takes entries out of the record, and the image may be wanted again.
        operations = copy.deepcopy(list(image.applied_operations))
        logits = MetaTensor(logits, meta=image.meta, applied_operations=operations)
        with transforms.allow_missing_keys_mode(self._transform):
            return self._transform.inverse({"image": logits})["image"].as_tensor()


def _centres(label):
    """The voxels of a label (1, H, W, D) that may become a crop's centre; ignored ones may not."""
    background, foreground = map_classes_to_indices(
        label.clamp(max=1), num_classes=2, max_samples_per_class=_PLACES
    )
    # MONAI warns at every crop where one of the two is empty, as in a healthy case, and fails
    # where both are.
    if not len(background):
        background = foreground if len(foreground) else torch.zeros(1, dtype=torch.long)
    if not len(foreground):
        foreground = background
    return {"foreground": foreground, "background": background}


class _Read(MapTransform):
    """Paths -> channel-first `MetaTensor`s of files, never as float64, as MONAI's reader does.

    Also a label's structures in millilitres, before it comes to a grid that may not show them all.
    """

    def __init__(self, values, classes):
        super().__init__("label", allow_missing_keys=True)
        self.classes = dict(zip(values, classes, strict=True))

    def __call__(self, data):
        data = dict(data)
        image, header = read_volume(data["image"])
        # The label's place is its image's: the checks compared them, up to rounding.
        affine = torch.from_numpy(header.affine)
        image = image[None] if image.ndim == 3 else np.moveaxis(image, 3, 0)
        data["image"] = MetaTensor(torch.from_numpy(image), affine=affine)
        if "label" in data:
            label = read_label(data["label"])[0][None]
            data["label"] = MetaTensor(torch.from_numpy(label), affine=affine)
            data["ml"] = ml = np.zeros(max(self.classes.values()))
            for value, voxels in zip(*np.unique(label, return_counts=True), strict=True):
                if (index := self.classes.get(value.item(), 0)) > 0:
                    ml[index - 1] += voxels * data["label"].pixdim.prod().item() / 1000
        return data


class _Normalised(MapTransform):
    """The channels that the model gets, each on its scale."""

    def __init__(self, task, config):
        super().__init__("image")
        # The smallest and the largest value are of all channels together.
        self.whole = transforms.ScaleIntensity() if config.intensities == "min-max" else None
        self.scales = [
            transforms.ScaleIntensityRange(*window, 0.0, 1.0, clip=True)
            if window
            else transforms.NormalizeIntensity(nonzero=True)
            for window in windows_of(task, config)
        ]

    def __call__(self, data):
        count = len(self.scales)
        if self.whole:
            return data | {"image": self.whole(data["image"])[:count]}
        image = data["image"][:count].clone()
        for index, scale in enumerate(self.scales):
            image[index] = scale(image[index])
        return data | {"image": image}


class Resampled(MapTransform, InvertibleTransform):
    """Resize image and label to a grid, or to voxels of a size.

    The way back of MONAI's `Spacingd` takes thirteen times as long and 12 bytes a voxel; its
    `Resized` smooths a CT of 512 x 512 x 400 with 7 GB. So a large image is resized in slabs.
    """

    #: Voxels of a slab; a volume of no more is resized at once.
    _SLAB = 1 << 20

    def __init__(self, keys, grid, spacing_mm=None):
        super().__init__(keys, allow_missing_keys=True)
        self.grid, self.spacing_mm = grid, spacing_mm

    def __call__(self, data):
        data = dict(data)
        for key in self.key_iterator(data):
            volume = data[key]
            before, size = tuple(volume.shape[1:]), self._size(volume)
            if key == "image":
                resized = self._smoothly(volume.as_tensor(), size)
            else:
                resized = _resized(volume.as_tensor(), size, mode="nearest-exact")
            resized, affine = _like(volume, resized), scale_affine(before, size)
            data[key] = self.push_transform(resized, affine=affine, orig_size=before)
        return data

    def inverse(self, data: dict) -> dict:
        data = dict(data)
        for key in self.key_iterator(data):
            size = self.pop_transform(data[key])["orig_size"]
            resized = _resized(data[key].as_tensor(), size, mode="trilinear")
            data[key] = _like(data[key], resized)
        return data

    def _size(self, volume):
        if self.spacing_mm is None:
            return tuple(self.grid)
        edges = zip(volume.shape[1:], volume.pixdim.tolist(), self.spacing_mm, strict=True)
        return tuple(max(1, round(n * edge / wanted)) for n, edge, wanted in edges)

    def _smoothly(self, image, size):
        if image.numel() <= self._SLAB:
            return _resized(image, size, mode="trilinear", anti_aliasing=True)
        # Two axes in slabs across the third, and the third in slabs across the first.
        for goal, across in (((*size[:2], image.shape[3]), 3), (size, 1)):
            thick = max(1, self._SLAB * image.shape[across] // image.numel())
            slabs = []
            for slab in image.split(thick, across):
                shape = list(goal)
                shape[across - 1] = slab.shape[across]
                slabs.append(_resized(slab, shape, mode="trilinear", anti_aliasing=True))
            image = torch.cat(slabs, across)
        return image


def _resized(tensor, size, **how):
    return transforms.Resize(size, **how)(tensor).as_tensor()


def _like(volume, tensor):
    # `set_array` would spread one slice over as many as there were before.
    return MetaTensor(tensor, meta=volume.meta, applied_operations=volume.applied_operations)
