"""Which side of the body a trained model knows: validation Dice as the images are, and mirrored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.data import MetaTensor

from mvl.config import DataConfig
from mvl.data.domain import TrainingDomain, training_domain
from mvl.data.preparation import Preparation
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
    # Axis 1 is right-left, since a prepared volume is in RAS.
    mirrored = [
        v
        | {
            "image": MetaTensor(v["image"].as_tensor().flip(1)),
            "label": _with_sides_exchanged(v["label"].flip(1), data.task, preparation.config),
            "ml": _ml_of_the_other_side(v["ml"], data.task, preparation.config),
        }
        for v in validation
    ]
    device, config = next(model.parameters()).device, preparation.config
    dice = [validate(model, v, 1, device, config.window) for v in (validation, mirrored)]
    records = [data.records[name] for name in data.split.train]
    return training_domain(records, data.task, config, dice)


def _with_sides_exchanged(label: torch.Tensor, task: Task, config: DataConfig) -> torch.Tensor:
    """A mirrored label, whose left structures are now on the right."""
    if config.target == "foreground":
        return label
    classes, exchanged = {value: n for n, value in enumerate(task.labels, start=1)}, label.clone()
    for value, other in other_side(task.labels).items():
        exchanged[label == classes[value]] = classes[other]
    return exchanged


def _ml_of_the_other_side(ml, task: Task, config: DataConfig):
    """Volumes of the structures of a mirrored label, in the order of its classes."""
    if config.target == "foreground":
        return ml
    values, sides = list(task.labels), other_side(task.labels)
    return ml[[values.index(sides.get(value, value)) for value in values]]
