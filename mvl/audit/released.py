"""How the paper's released code trains where it differs from the study, in our own words.

Written from reading and running that code; nothing is copied. `AuditConfig` switches it on. Order
and sizes of the language model's part are the preset `released` of `mvl.config`.
"""

from collections.abc import Callable
from dataclasses import field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage
from torch.nn import functional as F

from mvl.audit.masks import GRID, ball, resize_mask
from mvl.audit.splits import COPIES, draw_copies, sibling_split
from mvl.config import DataConfig, ExperimentConfig, derive_seed
from mvl.data.batches import augmentation
from mvl.data.nifti import read_label
from mvl.data.preparation import Preparation
from mvl.data.task_data import TaskData
from mvl.errors import DataError
from mvl.experiment.procedure import Procedure, procedure_of
from mvl.strict import strict


@strict
class AuditConfig:
    """What the audit trains as the released code does; the study has none of it."""

    #: "soft": Dice of probabilities. "hard": of the thresholded prediction, which has no gradient.
    dice: Literal["soft", "hard"] = "soft"
    #: Draw training and validation from one pool of originals and augmented copies.
    copies: bool = False
    #: Make every third training sample a rotated copy.
    rotated: bool = field(default=False, metadata={"later": True})
    #: Rotate the label of a rotated copy in another plane than its image.
    planes: bool = False
    #: Rotate the label of a rotated copy by cubic splines.
    splines: bool = False
    #: Resize labels by linear interpolation, and count whatever is above zero.
    linear_labels: bool = False
    #: The epoch that is kept: best on validation, lowest training loss, or the last.
    select: Literal["validation", "loss", "last"] = "validation"
    #: Train on the siblings of test cases, in place of as many other cases.
    siblings: bool = field(default=False, metadata={"later": True})


@strict
class AuditedConfig(ExperimentConfig):
    """An experiment that is trained by `ReleasedProcedure`; it also reads the study's."""

    audit: AuditConfig = field(default=AuditConfig(), metadata={"later": True})

    def __post_init__(self):
        if self.audit != AuditConfig() and self.data.target != "foreground":
            raise ValueError("the audit knows the foreground alone")


def hard_dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus the Dice of the prediction, thresholded at one half; a batch's voxels pooled.

    No gradient flows back through the threshold.
    """
    mask, labels = (logits > 0).float(), labels.float()
    return 1 - 2 * (mask * labels).sum() / (mask.sum() + labels.sum()).clamp(min=1)


def released_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Half of the binary cross-entropy plus half of `hard_dice_loss`; both are (B, 1, H, W, D)."""
    entropy = F.binary_cross_entropy_with_logits(logits, labels.float())
    return 0.5 * entropy + 0.5 * hard_dice_loss(logits, labels)


def loss_gradients(logits: torch.Tensor, labels: torch.Tensor) -> pd.DataFrame:
    """One row per term of a loss: value, differentiable, largest_gradient (absolute)."""
    terms = {
        "cross-entropy": lambda z: F.binary_cross_entropy_with_logits(z, labels.float()),
        "Dice of probabilities": lambda z: DiceLoss(sigmoid=True)(z, labels),
        "Dice of the thresholded prediction": lambda z: hard_dice_loss(z, labels),
    }
    rows = []
    for name, term in terms.items():
        leaf = logits.detach().clone().requires_grad_()
        value, largest = term(leaf), 0.0
        if value.requires_grad:
            largest = torch.autograd.grad(value, leaf)[0].abs().max().item()
        rows.append((name, value.item(), value.requires_grad, largest))
    return pd.DataFrame(rows, columns=["term", "value", "differentiable", "largest_gradient"])


def rotate_copy(
    image: np.ndarray, label: np.ndarray, angle: float, planes: bool = True, splines: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate image (C, H, W, D) and label (H, W, D) by one angle, in degrees.

    Both get the same pair of axes, (1, 2): the image turns in the plane of its first two axes of
    space, the label, which has no channels, in the plane of its last two. Both are interpolated by
    cubic splines, and the label is cut at one half. Without `planes` the label turns in the image's
    plane, without `splines` it gets its nearest voxels.
    """
    axes, order = (1, 2) if planes else (0, 1), 3 if splines else 0
    image, label = (np.asarray(array, np.float32) for array in (image, label))
    turned = ndimage.rotate(image, angle, axes=(1, 2), reshape=False)
    label = ndimage.rotate(label, angle, axes=axes, reshape=False, order=order)
    return turned, (label > 0.5).astype(np.uint8)


def worked_examples() -> pd.DataFrame:
    """What misrotated planes and linear labels do to balls; one row per example: example, value."""
    values = {}
    for where, centre in (("in the centre", (64, 64, 64)), ("off centre", (80, 48, 96))):
        mask = ball(GRID, centre, 8)
        image, label = rotate_copy(mask[None], mask, 5)
        overlap = ((image[0] > 0.5) & (label > 0)).sum()
        what = f"Dice of image and label, ball of radius 8 {where} of 128^3, turned by 5 degrees"
        values[what] = 2 * overlap / ((image[0] > 0.5).sum() + label.sum())
    mask = ball((155, 240, 240), (77, 120, 110), 15)
    for name, linear in (("linear", True), ("nearest", False)):
        what = f"volume, ball of radius 15 mm resized from 155 x 240 x 240 to 128^3, {name}"
        voxel = mask.size / np.prod(GRID)
        values[what] = resize_mask(mask, GRID, linear).sum() * voxel / mask.sum()
    return pd.DataFrame(values.items(), columns=["example", "value"])


class CopyAugmentation:
    """The augmentation of training volumes, `AuditConfig`'s departures included.

    A volume with an entry "copy" becomes that copy. Without one it is augmented as in the study,
    except that every third, drawn at random, is a rotated copy: so many of the released code's are.
    """

    def __init__(self, config: DataConfig, audit: AuditConfig) -> None:
        self.config, self.audit = config, audit
        self.study = augmentation(config)

    def set_random_state(self, seed: int) -> None:
        self.study.set_random_state(seed)
        self.random = np.random.default_rng(seed)

    def __call__(self, volume: dict) -> dict:
        copy, image, label = volume.get("copy"), volume["image"], volume["label"]
        if copy is None and self.random.integers(len(COPIES)):
            return self.study(volume)
        if copy == "intensity":
            low, high = 1 - self.config.intensity, 1 + self.config.intensity
            brightness, contrast = self.random.uniform(low, high, 2)
            image = image * brightness
            image = (image - image.mean()) * contrast + image.mean()
        elif copy != "original":
            angle = self.random.uniform(-self.config.rotation_degrees, self.config.rotation_degrees)
            switches = (self.audit.planes, self.audit.splines)
            turned, mask = rotate_copy(image.numpy(), label[0].numpy(), angle, *switches)
            image, label = torch.from_numpy(turned), torch.from_numpy(mask)[None]
        return volume | {"image": image, "label": label}


class ReleasedProcedure(Procedure):
    """A training with the departures of its configuration's `AuditConfig`."""

    config: AuditedConfig

    def volumes(self, preparation: Preparation, data: TaskData, show: bool) -> tuple:
        """As `Procedure.volumes`; with `copies`, validation is a function of the epoch."""
        audit = self.config.audit
        if data.task.ignore is not None:
            raise DataError(f"{data.task.name}: the released code knows no label of ignored voxels")
        if audit.siblings:
            data = replace(data, split=sibling_split(data.split, data.cases, self.config.seed))
        cases = [*data.side("train"), *data.side("validation")]
        sides = super().volumes(preparation, data, show)
        if audit.linear_labels:
            labels = {case.name: self._linear_label(case) for case in cases}
            sides = [[v | {"label": labels[v["name"]]} for v in side] for side in sides]
        if not audit.copies:
            return sides
        volumes = {v["name"]: v for side in sides for v in side}
        samples = {"train": [], "validation": []}
        for row in draw_copies(cases, self.config.seed).itertuples():
            sample = {"name": f"{row.case}, {row.copy}", "copy": row.copy}
            samples[row.side].append(volumes[row.case] | sample)
        return samples["train"], partial(self._validation, samples["validation"])

    def _linear_label(self, case):
        """(1, H, W, D) uint8, oriented as `Preparation` orients an image."""
        label, header = read_label(case.label)
        mask = apply_orientation(label > 0, io_orientation(header.affine))
        label = resize_mask(mask, self.config.data.grid, linear=True)
        return torch.from_numpy(label[None].astype(np.uint8))

    def _validation(self, samples, epoch):
        """Validation copies, drawn again for each epoch."""
        augment, volumes = self.augmentation(), []
        for sample in samples:
            seed = derive_seed(self.config.seed, "validation copy", epoch, sample["name"])
            augment.set_random_state(seed)
            copy = augment(sample | {"image": sample["image"].as_tensor()})
            volumes.append(copy | {"image": MetaTensor(copy["image"])})
        return volumes

    def loss(self, ignoring: bool) -> Callable:
        return released_loss if self.config.audit.dice == "hard" else super().loss(ignoring)

    def augmentation(self) -> Callable:
        if self.config.audit.copies or self.config.audit.rotated:
            return CopyAugmentation(self.config.data, self.config.audit)
        return super().augmentation()

    def score(self, row: Any) -> Any:
        if self.config.audit.select == "last":
            return row["epoch"]
        return -row["train_loss"] if self.config.audit.select == "loss" else super().score(row)


@procedure_of.register
def _(config: AuditedConfig) -> Procedure:
    return ReleasedProcedure(config)
