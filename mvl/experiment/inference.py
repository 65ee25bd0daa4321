"""Prepared volumes -> logits -> masks, on the grid of the image's file."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference

from mvl.data.domain import TrainingDomain
from mvl.data.nifti import read_header
from mvl.data.preparation import Preparation
from mvl.data.task_folder import Case
from mvl.data.tasks import Task
from mvl.errors import DataError


@dataclass(frozen=True)
class Predictor:
    """A trained model and what it takes to use it on an image."""

    model: torch.nn.Module
    preparation: Preparation
    #: None where the model does not record what it was trained on.
    domain: TrainingDomain | None = None

    @property
    def task(self) -> Task:
        """The task that it was trained on."""
        return self.preparation.task

    @property
    def structures(self) -> dict[str, list[int]]:
        """Name -> label values of the structures that it predicts, in the order of the masks."""
        return structures_of(self.task, self.preparation.config.target)

    def require_channels(self, path: Path, channels: int) -> None:
        """Raise a DataError where an image has other channels than the training images."""
        wanted = self.task.channels
        if channels != len(wanted) and self.preparation.config.channels == "all":
            raise DataError(
                f"{path} has {channels} channels, but the model was trained on {len(wanted)} "
                f"({', '.join(wanted)})"
            )

    def segment(self, case: Case) -> torch.Tensor:
        """Masks of a case, which may have no label, on the grid of its file: as `segment`.

        Raises:
            DataError: the image cannot be read, or has other channels than the model.
        """
        shape = read_header(case.image).shape
        self.require_channels(case.image, 1 if len(shape) == 3 else shape[3])
        (volume,) = self.preparation.load([replace(case, label=None)], progress=False)
        return segment(self.model, volume, self.preparation)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Convolve on a GPU in float32; PyTorch's default is TF32, with 10 of the 23 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def decide(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, ...) -> bool masks, one per structure: (B, 1, ...) or (B, K - 1, ...).

    One channel is the foreground, at a probability of one half. More are classes, the background
    first: each voxel gets the likeliest.
    """
    if logits.shape[1] == 1:
        return logits > 0
    classes = torch.arange(1, logits.shape[1], device=logits.device)
    classes = classes.view(1, -1, *[1] * (logits.ndim - 2))
    return logits.argmax(1, keepdim=True) == classes


@whole_float32()
def infer(
    model: torch.nn.Module, images: torch.Tensor, window: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """Logits (B, K, H, W, D), float32, of whole prepared volumes (B, C, H, W, D).

    With `DataConfig.window` (a model of crops) it slides by half its size, and its middle counts
    more than its edge. The logits are then on the CPU: they may not fit where the model is.
    """
    device = next(model.parameters()).device
    if window is None:
        return model(images.to(device)).float()
    return sliding_window_inference(
        images.cpu(),
        window,
        sw_batch_size=1,
        predictor=model,
        overlap=0.5,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )


def segment(model: torch.nn.Module, volume: dict, preparation: Preparation) -> torch.Tensor:
    """Masks of one volume, as `preparation.load` gave it, along the axes of its file.

    Returns bool (structures, H', W', D'): the foreground alone, or one per label of the task.
    """
    model.eval()
    with torch.inference_mode():  # a decorator would keep hold of a large volume
        image = volume["image"]
        del volume
        logits = infer(model, image.as_tensor()[None], preparation.config.window)[0].cpu()
        # Only the record of how the image came to the grid is still needed.
        operations = image.applied_operations
        image = MetaTensor(torch.empty(0), meta=image.meta, applied_operations=operations)

        def native(channel):
            return preparation.to_native(channel[None], image)

        if len(logits) == 1:
            return decide(native(logits[0])[None])[0]
        # As `decide`, but one class at a time: all of a large CT at once take gigabytes.
        highest = native(logits[0])
        kind = torch.uint8 if len(logits) <= 256 else torch.int16
        likeliest = torch.zeros(highest.shape[1:], dtype=kind)
        for index, channel in enumerate(logits[1:], start=1):
            values = native(channel)
            likeliest[(values > highest)[0]] = index
            torch.maximum(highest, values, out=highest)
            del values
        return torch.stack([likeliest == index for index in range(1, len(logits))])


def structures_of(task: Task, target: str) -> dict[str, list[int]]:
    """Name -> label values of a target's structures, in the order of the masks."""
    if target == "foreground":
        return {"foreground": list(task.labels)}
    return {name: [value] for value, name in task.labels.items()}
