"""Which side of the body a trained model knows: validation Dice as the images are, and mirrored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.data import MetaTensor

from mvl.config import DataConfig
from mvl.data.domain import TrainingDomain, training_domain
from mvl.data.preparation import IGNORED, Preparation
from mvl.data.task_data import TaskData
from mvl.data.tasks import Task, other_side
from mvl.experiment.training import validate


def measured_domain(
    model: torch.nn.Module,
    data: TaskData,
    preparation: Preparation,
    validation: list[dict] | Callable,
) -> TrainingDomain:
    """What a model was trained on, and which sides it knows; every process has to call."""
    if callable(validation):
        validation = preparation.load(data.side("validation"), False)
    mirrored = [_mirrored(volume, data.task, preparation.config) for volume in validation]
    device, config = next(model.parameters()).device, preparation.config
    dice = [validate(model, v, 1, device, config.window) for v in (validation, mirrored)]
    records = [data.records[name] for name in data.split.train]
    return training_domain(records, data.task, config, dice)


def _mirrored(volume: dict, task: Task, config: DataConfig) -> dict:
    """A prepared volume left to right; its left structures are now the right ones."""
    order = [0]  # of the foreground
    if config.target == "labels":
        labels, sides = list(task.labels), other_side(task.labels)
        order = [labels.index(sides.get(value, value)) for value in labels]
    label = volume["label"].flip(1)  # axis 1 is right-left: a prepared volume is in RAS
    # The class that a class becomes; that of `IGNORED`, -1, is the last one.
    classes = torch.tensor([0, *(n + 1 for n in order), IGNORED], device=label.device)
    return volume | {
        "image": MetaTensor(volume["image"].as_tensor().flip(1)),
        "label": classes[label.long()].to(label.dtype),
        "ml": volume["ml"][order],
    }
