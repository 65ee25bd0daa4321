"""How far an image is from those that a model was trained on, before and after it is segmented.

`judge` cannot see another contrast whose grey values are distributed alike (a T2 may pass for a
T1), another body part of the same size, a structure outside of the grid, or a wrong side.
`judge_volumes` sees some of it in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mvl.data.domain import LEVELS, TrainingDomain, measure, ranges_text, windows_of

if TYPE_CHECKING:
    from mvl.config import DataConfig
    from mvl.data.tasks import Task

#: Lengths and volumes pass up to this factor beyond the range of a few training cases.
_MARGIN = 1.25
#: From this factor on another scale is another image: "about two", less the rounding of headers.
#: Where the image is resampled, its voxels' size is detail, not scale, and may be off by more.
_FAR, _FAR_RESAMPLED = 1.8, 4
#: Share of a volume that the grid has to see, relative to what it saw in training.
_SEEN = 0.5
#: Share that may be lacking of what every training image has (see `_lacking`) before a warning,
#: and before a refusal. Held-out cases of three real tasks lack .01, a CT without its offset .9.
_LACKING, _NOTHING_IN_COMMON = 0.3, 0.85
#: What calibration and noise may add to a range: in Hounsfield units, in standard deviations.
_TOLERANCE_HU, _TOLERANCE_SD = 50, 0.25
#: Hounsfield units end at 3071 (12 bits), scanners' padding at -3024.
_MOST_HU = 3100
#: Share of voxels that may be negative beyond the training range.
_NEGATIVE = 0.1
#: Air is below this in every CT, and hardly anything in an MRI is (its 1 % quantile).
_CT_VALUE = -200
#: Degrees that an image may be turned further than the training images; augmentation turns by 5.
_TURNED = 15


class Finding(NamedTuple):
    """One thing in which an image is unlike the training images."""

    #: Whether it is so far off that the result would mean nothing.
    refused: bool
    text: str


def judge(
    domain: TrainingDomain | None,
    voxels: np.ndarray,
    affine: np.ndarray,
    task: Task,
    config: DataConfig,
) -> list[Finding]:
    """In what an image, finite intensities as its file has them, is unlike the training images."""
    windows, names = windows_of(task, config), config.channels_of(task.channels)
    image = measure(voxels, affine, [{window} for window in windows])
    findings = []
    if domain:
        findings += [*_judge_scale(domain, image, config), *_judge_view(domain, image, config)]
    for index, (window, name) in enumerate(zip(windows, names, strict=True)):
        channel, prefix = image.channels[index][window], f"channel {index}: " * (len(names) > 1)
        if not len(channel.values) or np.ptp(channel.values) == 0:
            text = f"{prefix}every voxel that is not 0 has one value; export the image again"
            return [Finding(True, text)]
        for refused, text in _judge_channel(channel, domain, index, window, name) if domain else ():
            findings.append(Finding(refused, prefix + text))
    return findings


def judge_volumes(domain: TrainingDomain | None, volumes_ml: dict[str, float]) -> list[str]:
    """Warnings of structures that are empty, or of a volume unlike the training cases'."""
    warnings = []
    for name, volume in volumes_ml.items():
        low, high = domain.volume_ml.get(name, (0, math.inf)) if domain else (0, math.inf)
        if not volume:
            warnings.append(f"{name}: no voxel was segmented")
        elif not low / _MARGIN <= volume <= high * _MARGIN:
            trained = f"in training {low:.3g} to {high:.3g} ml"
            way = "look at the segmentation before you use it"
            warnings.append(f"{name}: {volume:.3g} ml, {trained}; {way}")
    return warnings


def _judge_scale(domain, image, config) -> Iterator[Finding]:
    """The size at which the model sees the body: by what reaches its grid."""
    if config.fit == "resize":
        # The whole field of view is squeezed into the grid, and so is its scale.
        extent = (image.extent_mm, domain.extent_mm)
        if (off := _beyond(*extent)) > _MARGIN:
            remedy = "cut the image to the part of the body that was trained on"
            yield Finding(off > _FAR, _lengths("field of view", *extent, remedy))
    passes, refused = (_MARGIN, _FAR) if config.fit == "pad" else (_FAR, _FAR_RESAMPLED)
    voxels = (image.spacing_mm, domain.spacing_mm)
    if (off := _beyond(*voxels)) > passes:
        remedy = "take an image of the training images' resolution, not a resampled one"
        if config.fit == "pad":
            remedy = "resample the image to the training images' voxel size"
        yield Finding(off > refused, _lengths("voxels", *voxels, remedy))


def _judge_view(domain, image, config) -> Iterator[Finding]:
    """The part of the body in the image, and how it is turned."""
    if config.fit == "pad":
        extent = (image.extent_mm, domain.extent_mm)
        # In millimetres: voxels of another size are a finding of their own.
        grid = np.array(config.grid) * [low for low, _ in domain.spacing_mm]
        seen = np.minimum(1, grid / image.extent_mm).prod()
        trained = np.minimum(1, grid / [high for _, high in domain.extent_mm]).prod()
        remedy = "crop it about the structure, as the training images are"
        if seen < _SEEN * trained:
            size = " x ".join(map(str, config.grid))
            share = f" (the model sees the {size} voxels at the centre, {seen:.0%} of the image)"
            yield Finding(True, _lengths("field of view", *extent, remedy) + share)
        elif _beyond(*extent) > _MARGIN:
            smaller = _beyond(extent[0], [(low, math.inf) for low, _ in domain.extent_mm])
            if smaller > _MARGIN:
                remedy = "take an image with as much about the structure as in training"
            yield Finding(smaller > _FAR, _lengths("field of view", *extent, remedy))
    most = domain.turned_degrees[1]
    if image.turned_degrees > most + _TURNED:
        text = f"the image is turned by {image.turned_degrees:.0f} degrees against the patient, in "
        text += f"training {most:.0f} at most; resample it along the patient's axes"
        yield Finding(False, text)


def _judge_channel(channel, domain, index, window, name) -> Iterator[tuple[bool, str]]:
    """A channel's intensities: as Hounsfield units where it has a window, else as z-scores."""
    values, unit, tolerance = channel.values, "standard deviations from the mean", _TOLERANCE_SD
    ranges, (low, high) = np.array(domain.quantiles[index]), domain.flat[index]
    remedy = f"check that it is {name} as in training, neither inverted nor windowed"
    flat, flat_remedy = "0, which counts as background", "give the image without mask or padding"
    if window:
        unit, tolerance = "HU", _TOLERANCE_HU
        remedy = "check that rescale slope and intercept were applied, once, so that water has 0 "
        remedy = flat_remedy = remedy + "HU and air -1000"
        flat = f"outside the window of {window[0]:g} to {window[1]:g} HU"
        if channel.raw[1] < -_MOST_HU or channel.raw[2] > _MOST_HU:
            beyond = " or ".join(f"{value:.0f}" for value in channel.raw[1:])
            yield True, f"5 % of its voxels are beyond {beyond} HU; {remedy}"
            return
    elif channel.negative > (most := domain.negative[index][1]) + _NEGATIVE:
        # An MRI has no value below 0; a CT has, and so has what somebody normalised.
        way = "take the image as the scanner gave it, neither inverted nor normalised"
        if ct := channel.raw[0] < _CT_VALUE:
            way = f"with values below {channel.raw[0]:.0f} it looks like a CT: take an image of "
            way += f"the kind that the model was trained on, {name}"
        share = f"{channel.negative:.0%} of its voxels are below 0, in training {most:.0%} at most"
        yield ct, f"{share}; {way}"
    ranges = ranges + [-tolerance, tolerance]
    if window:  # beyond it all is one to the model
        values, ranges = np.clip(values, *window), np.clip(ranges, *window)
    lacking, level, (least, most) = max(_lacking(values, ranges))
    if lacking > _LACKING:
        yield (
            lacking > _NOTHING_IN_COMMON,
            f"{level:.0%} of its voxels are below {np.quantile(values, level):.3g} {unit}, in "
            f"training below {least:.3g} to {most:.3g}; {remedy}",
        )
    lacking = 1 - (1 - channel.flat) / max(1 - high, 1e-4)
    if lacking > _LACKING:
        share = f"{channel.flat:.0%} of its voxels are {flat}, in training {low:.0%} to {high:.0%}"
        yield lacking > _NOTHING_IN_COMMON, f"{share}; {flat_remedy}"


def _lacking(values, ranges):
    """Yield (by how much an image lacks what every training image has, level, range) per level p.

    In every training image a share of 1 - p of the voxels is at least as bright as the least
    p-quantile of them all, and a share of p is at most as bright as the largest one. What is
    missing of that share here goes from 0, for nothing, to 1.
    """
    for level, (low, high) in zip(LEVELS, ranges, strict=True):
        bright = 1 - np.mean(values >= low) / (1 - level)
        dark = 1 - np.mean(values <= high) / level
        yield max(bright, dark, 0.0), level, (low, high)


def _beyond(lengths, ranges):
    """The largest factor by which one of the lengths lies beyond its range, 1 within it."""
    low, high = np.array(ranges).T
    return float(np.maximum(low / lengths, lengths / high).max(initial=1.0))


def _lengths(what, lengths, ranges, remedy):
    image = " x ".join(f"{length:.3g}" for length in lengths)
    axes = "right-left x front-back x head-foot"
    return f"{what} {image} mm ({axes}), in training {ranges_text(ranges)} mm; {remedy}"
