"""What a model was trained on: the range of every quantity that an image is compared with.

It is measured from the training cases alone and travels with the model: in a run as domain.json,
in a saved model within config.json. `mvl.data.judgement` compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import nibabel
import numpy as np
from pydantic import AfterValidator

from mvl.data.nifti import edges_of
from mvl.data.tasks import Task, is_ct
from mvl.errors import ConfigError, DataError
from mvl.strict import from_json, strict

if TYPE_CHECKING:
    from mvl.config import DataConfig
    from mvl.data.checks import CaseRecord

#: Dice that a mirror image may cost before the model is said to know one side alone.
_ONE_SIDED = 0.05
#: Quantiles that are compared: neither a bright vessel nor a few artefacts are a twentieth.
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Voxels of a channel that are looked at.
_SAMPLE = 1 << 21


def _ordered(both):
    if both[0] > both[1]:
        raise ValueError(f"{both} is no range")
    return both


#: The least and the largest value of the training cases; of each axis; of each channel.
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
_Axes, _Channels = tuple[Range, Range, Range], tuple[Range, ...]


@strict
class TrainingDomain:
    """The range of the training cases in every quantity that is compared."""

    cases: int
    #: Voxel edges, and edges of the field of view, along R, A and S.
    spacing_mm: _Axes
    extent_mm: _Axes
    #: Angle between the voxels' axes and the patient's.
    turned_degrees: Range
    #: Per channel, at each of `LEVELS`: in Hounsfield units where the task has a window, else in
    #: z-scores over the nonzero voxels.
    quantiles: tuple[tuple[Range, Range, Range, Range, Range], ...]
    #: Per channel, the share of voxels without contrast: outside the task's window, or 0, which is
    #: background to the z-scores.
    flat: _Channels
    #: Per channel, the share of voxels below 0.
    negative: _Channels
    #: Structure (each label's name, and "foreground") -> its volume.
    volume_ml: dict[str, Range]
    #: Dice on the validation cases as they are, and mirrored left to right: how well the model
    #: knows either side.
    sides_dice: tuple[float, float]

    def __post_init__(self):
        if not len(self.quantiles) == len(self.flat) == len(self.negative):
            raise ValueError("quantiles, flat and negative are of different channels")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingDomain:
        """From `asdict` by way of JSON; a `DataError` if that is damaged."""
        try:
            return from_json(cls, values, "damaged")
        except ConfigError as error:
            raise DataError(str(error)) from error

    @property
    def is_one_sided(self) -> bool:
        """Whether a mirror image, which no header tells, is segmented badly."""
        return self.sides_dice[1] < self.sides_dice[0] - _ONE_SIDED


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class Channel(NamedTuple):
    """A channel's intensities on one scale; flat and negative as in `TrainingDomain`."""

    #: The voxels that count, or their quantiles at `LEVELS`.
    values: np.ndarray
    flat: float
    negative: float
    #: What 1, 5 and 95 % of the voxels lie below, as stored.
    raw: np.ndarray


class ImageStatistics(NamedTuple):
    """What is measured of an image; lengths along R, A and S, three each."""

    spacing_mm: np.ndarray
    extent_mm: np.ndarray
    turned_degrees: float
    #: Per channel, its window or, for z-scores, None -> `Channel`.
    channels: list[dict[tuple[float, float] | None, Channel]]


def measure(
    voxels: np.ndarray, affine: np.ndarray, scales: list[set[tuple[float, float] | None]]
) -> ImageStatistics:
    """Measure an image, (H, W, D) or (H, W, D, C), each channel on its windows or z-scores."""
    axes = nibabel.io_orientation(affine)[:, 0].astype(int)  # file axis -> R, A or S
    order = np.argsort(axes)
    edges = edges_of(affine)
    along = np.abs(affine[axes, range(3)]) / edges
    volume = voxels[..., None] if voxels.ndim == 3 else voxels
    step = math.ceil(max(1, math.prod(volume.shape[:3]) / _SAMPLE) ** (1 / 3))
    channels = []
    for index, windows in enumerate(scales):
        sample = volume[::step, ::step, ::step, index].ravel().astype(float)
        raw = np.quantile(sample, (0.01, 0.05, 0.95))
        negative, on_scale = float(np.mean(sample < 0)), {}
        for window in windows:
            values = sample
            if window:
                flat = np.mean((sample <= window[0]) | (sample >= window[1]))
            else:
                flat, values = np.mean(sample == 0), sample[sample != 0]
                spread = values.std() if len(values) else 0
                values = (values - values.mean()) / spread if spread else np.append(values, 0)[:1]
            on_scale[window] = Channel(values, float(flat), negative, raw)
        channels.append(on_scale)
    return ImageStatistics(
        edges[order],
        edges[order] * np.array(voxels.shape[:3])[order],
        float(np.degrees(np.arccos(np.clip(along, 0, 1))).max()),
        channels,
    )


def summarise(voxels: np.ndarray, affine: np.ndarray, task: Task) -> ImageStatistics:
    """`measure` on every scale that a configuration may choose, of the voxels their quantiles."""
    measured = measure(voxels, affine, [{None, task.window_hu}] * len(task.channels))
    for on_scale in measured.channels:
        for window, channel in on_scale.items():
            on_scale[window] = channel._replace(values=np.quantile(channel.values, LEVELS))
    return measured


def windows_of(task: Task, config: DataConfig) -> list[tuple[float, float] | None]:
    """For each channel that the model gets the CT window, or None where it becomes z-scores."""
    channels = config.channels_of(task.channels)
    if config.intensities != "modality":
        return [None] * len(channels)
    # Where no channel's name says CT, the task's window is for all of them.
    ct = [is_ct(channel) for channel in task.channels]
    return [task.window_hu if this or not any(ct) else None for this in ct[: len(channels)]]


def training_domain(
    records: Iterable[CaseRecord], task: Task, config: DataConfig, sides_dice: tuple[float, float]
) -> TrainingDomain:
    """The domain of a model from the records of its training cases, and never of others."""
    images, volumes = [], []
    for record in records:
        voxel_ml = abs(np.linalg.det(record.affine[:3, :3])) / 1000
        counts = [record.label_counts.get(value, 0) for value in task.labels]
        volumes.append([count * voxel_ml for count in (sum(counts), *counts)])
        images.append(record.statistics)
    windows = list(enumerate(windows_of(task, config)))
    channels = [[image.channels[index][window] for index, window in windows] for image in images]

    def ranged(every):
        values = np.array(every, float)
        both = np.stack([values.min(0), values.max(0)], -1)
        # Four digits are enough, and the file can be read.
        return _tuples(np.vectorize(lambda x: float(f"{x:.4g}"))(both).tolist())

    def of_images(name):
        return ranged([getattr(image, name) for image in images])

    def of_channels(name):
        return ranged([[getattr(channel, name) for channel in case] for case in channels])

    return TrainingDomain(
        len(images),
        *map(of_images, ("spacing_mm", "extent_mm", "turned_degrees")),
        *map(of_channels, ("values", "flat", "negative")),
        dict(zip(("foreground", *task.labels.values()), ranged(volumes), strict=True)),
        tuple(round(dice, 4) for dice in sides_dice),
    )


def describe_domain(domain: TrainingDomain, task: Task, config: DataConfig) -> str:
    """What a model takes, as Markdown for its card: a list, one quantity per line."""
    grid = " x ".join(map(str, config.grid))
    view = {
        "pad": f"The model sees the {grid} voxels at its centre, so it is part of the task.",
        "resize": "The model sees it whole, squeezed into its grid, so it is part of the task.",
        "crop": "A window slides over the image, so it may be any.",
    }[config.fit]
    as_is, mirrored = domain.sides_dice
    volumes = [f"- volume of {n}: {ranges_text([ml])} ml\n" for n, ml in domain.volume_ml.items()]
    return (
        f"As its {domain.cases} training images are; lengths are right-left x front-back x "
        "head-foot:\n"
        f"- kind: {task.modality}, channels {', '.join(config.channels_of(task.channels))}\n"
        f"- voxels: {ranges_text(domain.spacing_mm)} mm\n"
        f"- field of view: {ranges_text(domain.extent_mm)} mm. {view}\n{''.join(volumes)}"
        f"- side: {'one side only' if domain.is_one_sided else 'both'}. On the validation "
        f"cases Dice is {as_is:.3f}, and {mirrored:.3f} where they are mirrored left to right.\n\n"
        "`mvl predict` and `mvl.predict_file` compare an image with these and with the "
        "training images' intensities. They do not see another contrast with like grey "
        "values, another body part of this size, or a wrong side."
    )


def ranges_text(ranges: Iterable[Range]) -> str:
    """Ranges as "low to high x low to high", of three digits."""
    texts = [(f"{low:.3g}", f"{high:.3g}") for low, high in ranges]
    return " x ".join(low if low == high else f"{low} to {high}" for low, high in texts)
