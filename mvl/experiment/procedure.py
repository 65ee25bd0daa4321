"""What a training does besides what the numbers of its configuration say, and its loss."""

from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

from monai.losses import DiceCELoss, DiceLoss
from monai.networks import one_hot
from monai.transforms import Transform
from torch.nn import functional as F

from mvl.config import ExperimentConfig
from mvl.data.batches import augmentation
from mvl.data.preparation import Preparation
from mvl.data.task_data import TaskData


class Procedure:
    """The study's way to train; a kind of configuration with another way registers its own."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    def volumes(self, preparation: Preparation, data: TaskData, show: bool) -> tuple:
        """Training and validation cases, as `training.train` takes them; no test case is opened."""
        return tuple(preparation.load(data.side(side), show) for side in ("train", "validation"))

    def loss(self, ignoring: bool) -> Callable:
        """The loss of (logits, labels), as `segmentation_loss` has it."""
        return segmentation_loss(self.config.data.target, ignoring)

    def augmentation(self) -> Transform:
        """What is done to a training volume, as `mvl.data.batches.augmentation` has it."""
        return augmentation(self.config.data)

    def score(self, row: Any) -> Any:
        """How good an epoch is, by its row of the curves (or all, by their table)."""
        return row["validation_dice"]


@singledispatch
def procedure_of(config: ExperimentConfig) -> Procedure:
    """The `Procedure` of a configuration, by its class."""
    return Procedure(config)


def segmentation_loss(target: str, ignoring: bool = False) -> Callable:
    """Soft Dice + (binary) cross-entropy on logits, in equal parts, as MONAI has it.

    Args:
        target: `DataConfig.target`.
        ignoring: labels may have `preparation.IGNORED` voxels, which then count in neither half.
    """
    if ignoring:
        return partial(_loss_of_counted_voxels, foreground=target == "foreground")
    if target == "foreground":
        return DiceCELoss(sigmoid=True)
    return DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)


def _loss_of_counted_voxels(logits, labels, foreground):
    """MONAI knows no ignored voxels. Cross-entropy is a mean over a case's voxels, then cases."""
    counted = labels >= 0  # (B, 1, H, W, D)
    truth = (labels * counted).long()
    if foreground:
        probabilities, masks = logits.sigmoid(), truth
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
    else:
        probabilities = logits.softmax(1)[:, 1:]
        masks = one_hot(truth, logits.shape[1])[:, 1:]
        entropy = F.cross_entropy(logits, truth[:, 0], reduction="none")[:, None]
    dice = DiceLoss()(probabilities * counted, masks * counted)
    space = (1, 2, 3, 4)
    entropy = (entropy * counted).sum(space) / counted.sum(space).clamp(min=1)
    return dice + entropy.mean()
