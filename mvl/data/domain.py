"""What a model was trained on, and how far an image is from it.

A `TrainingDomain` is measured once, from the training cases alone, and travels with the model: in
a run as domain.json, in a saved model within config.json. `judge` holds an image against it.

What cannot be seen so: another contrast whose grey values are distributed alike (a T2 may pass
for a T1), another body part of the same size, a structure that is not where the grid looks, and
a side that the header states wrongly. `judge_volumes` sees some of it in the result.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import nibabel
import numpy as np

from mvl.data.nifti import read_label, read_volume
from mvl.data.tasks import is_ct
from mvl.errors import DataError
from mvl.progress import track

# --- the thresholds, all of them -----------------------------------------------------------

#: Lengths and volumes this many times beyond the training range go without a word: by so much
#: does the largest of a few training cases fall short of the next one.
_MARGIN = 1.25
#: From this factor on another scale is another image: "about two", less the rounding of headers.
#: Where the image is resampled, its voxels' size is detail and no scale, and may be off by more.
_FAR, _FAR_RESAMPLED = 1.8, 4
#: Share of a volume that the grid has to see, relative to what it saw in training.
_SEEN = 0.5
#: Share that may be lacking of what every training image has (see `_lacking`) before a warning,
#: and before a refusal. Held-out cases of three real tasks lack .01 at most, a CT without its
#: offset nine tenths.
_LACKING, _NOTHING_IN_COMMON = 0.3, 0.85
#: What calibration and noise may add to a range: in Hounsfield units, in standard deviations.
_TOLERANCE_HU, _TOLERANCE_SD = 50, 0.25
#: Hounsfield units end at 3071 (12 bits), scanners' padding at -3024; a twentieth of the voxels
#: beyond that is no metal.
_MOST_HU = 3100
#: Share of voxels that may be negative beyond the training range.
_NEGATIVE = 0.1
#: Air is below this in every CT, and hardly anything in an MRI is (its 1 % quantile).
_CT_VALUE = -200
#: Degrees that an image may be turned further than the training images; augmentation turns by 5.
_TURNED = 15
#: Dice that a mirror image may cost before the model is said to know one side alone.
_ONE_SIDED = 0.05

#: Quantiles that are compared: at 5 and 95 % a twentieth of the voxels is at stake, so neither a
#: bright vessel nor a few artefacts count.
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Voxels of a channel that are looked at.
_SAMPLE = 1 << 21

#: The least and the largest value of the training cases.
Range = tuple[float, float]


@dataclass(frozen=True)
class TrainingDomain:
    """The range of the training cases in every quantity that an image can be held against.

    Attributes:
        cases: how many training cases were measured.
        spacing_mm: voxel edges along R, A and S.
        extent_mm: edges of the field of view along R, A and S.
        turned_degrees: angle between the voxels' axes and the patient's.
        quantiles: for each channel, of each of `LEVELS`: in Hounsfield units where the task has a
            window, else in z-scores over the nonzero voxels.
        flat: for each channel, the share of voxels without contrast: outside the task's window,
            or 0, which is background to the z-scores.
        negative: for each channel, the share of voxels below 0.
        volume_ml: structure (each label's name, and "foreground") -> its volume.
        sides_dice: the model's Dice on the validation cases as they are, and mirrored left to
            right: how well it knows either side.
    """

    cases: int
    spacing_mm: tuple[Range, ...]
    extent_mm: tuple[Range, ...]
    turned_degrees: Range
    quantiles: tuple[tuple[Range, ...], ...]
    flat: tuple[Range, ...]
    negative: tuple[Range, ...]
    volume_ml: dict[str, Range]
    sides_dice: tuple[float, float]

    @classmethod
    def from_dict(cls, values):
        """The inverse of `dataclasses.asdict`, from JSON, where tuples are lists.

        Raises:
            DataError: a quantity is missing, unknown, or of another form.
        """

        def ranged(key, count=None):
            found = tuple(map(_range, values[key]))
            if not found or count not in (None, len(found)):
                raise DataError(f"{key} has {len(found)} entries")
            return found

        try:
            if odd := sorted({field.name for field in dataclasses.fields(cls)} ^ values.keys()):
                raise DataError(f"{odd[0]} is missing or unknown")
            quantiles = tuple(tuple(map(_range, channel)) for channel in values["quantiles"])
            if {len(channel) for channel in quantiles} != {len(LEVELS)}:
                raise DataError("quantiles has another number of levels")
            as_is, mirrored = map(float, values["sides_dice"])
            return cls(
                cases=int(values["cases"]),
                spacing_mm=ranged("spacing_mm", 3),
                extent_mm=ranged("extent_mm", 3),
                turned_degrees=_range(values["turned_degrees"]),
                quantiles=quantiles,
                flat=ranged("flat", len(quantiles)),
                negative=ranged("negative", len(quantiles)),
                volume_ml={name: _range(volume) for name, volume in values["volume_ml"].items()},
                sides_dice=(as_is, mirrored),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"damaged: {error}") from error

    @property
    def is_one_sided(self):
        """Whether the model knows the training images' side alone, so that a mirror image of
        them, which no header tells, is segmented badly."""
        return self.sides_dice[1] < self.sides_dice[0] - _ONE_SIDED


class Finding(NamedTuple):
    """One thing in which an image is unlike the training images."""

    #: Whether it is so far off that the result would mean nothing.
    refused: bool
    said: str


class _Facts(NamedTuple):
    """What is measured of an image, each as in `TrainingDomain`; lengths along R, A and S."""

    spacing: np.ndarray
    shape: np.ndarray
    turned: float
    #: Of each channel, the voxels that count, as `TrainingDomain.quantiles` has them.
    values: list
    flat: list
    negative: list
    #: Of each channel, the raw intensities that 1, 5 and 95 % of the voxels lie below.
    raw: list


def training_domain(cases, task, config, sides_dice, show=True):
    """Measure the training cases; reads each file once.

    Args:
        cases: list of `Case`: of the training side, never another.
        task: their `Task`.
        config: a `DataConfig`, for the channels that the model gets and their scale.
        sides_dice: see `TrainingDomain`.
        show: show progress.

    Raises:
        DataError: a file cannot be read.
    """
    names = ("foreground", *task.labels.values())
    measured, volumes = [], []
    for case in track(cases, "measuring", show=show):
        image, affine = read_volume(case.image)
        facts = _measured(image, affine, task, config)
        quantiles = [np.quantile(values, LEVELS) for values in facts.values]
        measured.append(facts._replace(values=np.array(quantiles)))
        label = read_label(case.label)
        parts = [np.isin(label, list(task.labels)), *(label == value for value in task.labels)]
        voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
        volumes.append([part.sum() * voxel for part in parts])

    def ranged(every):
        both = np.array(every, float)
        both = np.stack([both.min(0), both.max(0)], -1)
        # Four digits are enough, and the file can be read.
        return _tuples(np.vectorize(lambda x: float(f"{x:.4g}"))(both).tolist())

    return TrainingDomain(
        cases=len(measured),
        spacing_mm=ranged([facts.spacing for facts in measured]),
        extent_mm=ranged([facts.spacing * facts.shape for facts in measured]),
        turned_degrees=ranged([facts.turned for facts in measured]),
        quantiles=ranged([facts.values for facts in measured]),
        flat=ranged([facts.flat for facts in measured]),
        negative=ranged([facts.negative for facts in measured]),
        volume_ml=dict(zip(names, ranged(volumes), strict=True)),
        sides_dice=tuple(round(dice, 4) for dice in sides_dice),
    )


def judge(domain, voxels, affine, task, config):
    """Hold an image against what a model was trained on.

    Args:
        domain: the model's `TrainingDomain`, or None where it has none.
        voxels: (H, W, D) or (H, W, D, C), finite intensities as the file gives them.
        affine: (4, 4), voxel index to millimetres.
        task, config: the model's `Task` and `DataConfig`.

    Returns:
        list of `Finding`; empty for an image that is like the training images.
    """
    facts = _measured(voxels, affine, task, config)
    constant = [np.ptp(values) == 0 if len(values) else True for values in facts.values]
    if any(constant):
        which = _channel(constant.index(True), facts)
        said = f"{which}every voxel that is not 0 has one value; export the image again"
        return [Finding(True, said)]
    if domain is None:
        return []
    return [
        *_judge_scale(domain, facts, config),
        *_judge_view(domain, facts, config),
        *_judge_intensities(domain, facts, task, config),
    ]


def judge_volumes(domain, volumes_ml):
    """Hold a segmentation's volumes against those of the training cases.

    Args:
        domain: a `TrainingDomain`, or None.
        volumes_ml: {structure: volume in millilitres}.

    Returns:
        list of sentences.
    """
    said = []
    for name, volume in volumes_ml.items():
        if not volume:
            said.append(f"{name}: no voxel was segmented")
        elif domain and name in domain.volume_ml:
            low, high = domain.volume_ml[name]
            if not low / _MARGIN <= volume <= high * _MARGIN:
                said.append(
                    f"{name}: {volume:.3g} ml, in training {low:.3g} to {high:.3g} ml; look at "
                    "the segmentation before you use it"
                )
    return said


def in_words(domain, task, config):
    """What a model takes, for its card.

    Args:
        domain, task, config: the model's `TrainingDomain`, `Task` and `DataConfig`.

    Returns:
        Markdown: a list, one quantity a line.
    """
    grid = " x ".join(map(str, config.grid))
    view = {
        "pad": f"The model sees the {grid} voxels at its centre, so it is part of the task.",
        "resize": "The model sees it whole, squeezed into its grid, so it is part of the task.",
        "crop": "A window slides over the image, so it may be any.",
    }[config.fit]
    lines = [
        f"As its {domain.cases} training images are; lengths are right-left x front-back x "
        "head-foot:",
        f"- kind: {task.modality}, channels {', '.join(config.channels_of(task))}",
        f"- voxels: {_ranges(domain.spacing_mm)} mm",
        f"- field of view: {_ranges(domain.extent_mm)} mm. {view}",
    ]
    lines += [
        f"- volume of {name}: {_ranges([volume])} ml" for name, volume in domain.volume_ml.items()
    ]
    as_is, mirrored = domain.sides_dice
    lines.append(
        f"- side: {'one side only' if domain.is_one_sided else 'both'}. On the validation cases "
        f"Dice is {as_is:.3f}, and {mirrored:.3f} where they are mirrored left to right."
    )
    lines += [
        "",
        "`mvl predict` and `mvl.predict_file` hold an image against these and against the training "
        "images' intensities. They do not see another contrast with like grey values, another "
        "body part of this size, or a wrong side.",
    ]
    return "\n".join(lines)


# --- an image's own facts ------------------------------------------------------------------


def is_absolute(task, config, channel):
    """Whether a channel's intensities mean something by themselves, as Hounsfield units do.

    Args:
        task, config: a `Task` and a `DataConfig`, which say how `Preparation` scales.
        channel: the channel's name.
    """
    if config.intensities != "modality" or not task.window_hu:
        return False
    return is_ct(channel) or not any(map(is_ct, config.channels_of(task)))


def _measured(voxels, affine, task, config):
    axes = nibabel.io_orientation(affine)[:, 0].astype(int)  # file axis -> R, A or S
    order = np.argsort(axes)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    along = np.abs(affine[axes, range(3)]) / edges
    volume = voxels[..., None] if voxels.ndim == 3 else voxels
    values, flat, negative, raw = [], [], [], []
    low, high = task.window_hu or (-math.inf, math.inf)
    step = math.ceil(max(1, math.prod(volume.shape[:3]) / _SAMPLE) ** (1 / 3))
    for index, channel in enumerate(config.channels_of(task)):
        found = volume[::step, ::step, ::step, index].ravel().astype(float)
        negative.append(float(np.mean(found < 0)))
        raw.append(np.quantile(found, (0.01, 0.05, 0.95)))
        if is_absolute(task, config, channel):
            flat.append(float(np.mean((found <= low) | (found >= high))))
        else:
            flat.append(float(np.mean(found == 0)))
            found = found[found != 0]
            spread = found.std() if len(found) else 0
            found = (found - found.mean()) / spread if spread else found[:1]
        values.append(found)
    return _Facts(
        edges[order],
        np.array(voxels.shape[:3])[order],
        float(np.degrees(np.arccos(np.clip(along, 0, 1))).max()),
        values,
        flat,
        negative,
        raw,
    )


# --- the judgements ------------------------------------------------------------------------


def _judge_scale(domain, facts, config):
    """The size at which the model sees the body: by what reaches its grid."""
    voxels = (facts.spacing, domain.spacing_mm)
    if config.fit == "resize":
        # The whole field of view is squeezed into the grid, and so is its scale.
        extent = (facts.spacing * facts.shape, domain.extent_mm)
        if (off := _beyond(*extent)) > _MARGIN:
            remedy = "cut the image to the part of the body that was trained on"
            yield Finding(off > _FAR, _lengths("field of view", *extent, remedy))
    off = _beyond(*voxels)
    if config.fit == "pad":
        if off > _MARGIN:
            remedy = "resample the image to the training images' voxel size"
            yield Finding(off > _FAR, _lengths("voxels", *voxels, remedy))
    elif off > _FAR:
        remedy = "take an image of the training images' resolution, not a resampled one"
        yield Finding(off > _FAR_RESAMPLED, _lengths("voxels", *voxels, remedy))


def _judge_view(domain, facts, config):
    """The part of the body in the image, and how it is turned."""
    extent = facts.spacing * facts.shape
    if config.fit == "pad":
        # In millimetres: voxels of another size are a finding of their own.
        grid = np.array(config.grid) * [low for low, _ in domain.spacing_mm]
        seen = np.minimum(1, grid / extent).prod()
        trained = np.minimum(1, grid / [high for _, high in domain.extent_mm]).prod()
        off = _beyond(extent, domain.extent_mm)
        remedy = "crop it about the structure, as the training images are"
        if seen < _SEEN * trained:
            size = " x ".join(map(str, config.grid))
            yield Finding(
                True,
                _lengths("field of view", extent, domain.extent_mm, remedy)
                + f" (the model sees the {size} voxels at the centre, {seen:.0%} of the image)",
            )
        elif off > _MARGIN:
            smaller = _beyond(extent, [(low, math.inf) for low, _ in domain.extent_mm])
            if smaller > _MARGIN:
                remedy = "take an image with as much about the structure as in training"
            yield Finding(
                smaller > _FAR, _lengths("field of view", extent, domain.extent_mm, remedy)
            )
    if facts.turned > domain.turned_degrees[1] + _TURNED:
        yield Finding(
            False,
            f"the image is turned by {facts.turned:.0f} degrees against the patient, in training "
            f"{domain.turned_degrees[1]:.0f} at most; resample it along the patient's axes",
        )


def _judge_intensities(domain, facts, task, config):
    for index, channel in enumerate(config.channels_of(task)):
        absolute = is_absolute(task, config, channel)
        judge_channel = _judge_hounsfield if absolute else _judge_z_scores
        which = _channel(index, facts)
        for refused, said in judge_channel(domain, facts, index, task.window_hu, channel):
            yield Finding(refused, which + said)


def _judge_hounsfield(domain, facts, index, window, _):
    remedy = (
        "check that rescale slope and intercept were applied, once, so that water has 0 HU and air "
        "-1000"
    )
    _, low, high = facts.raw[index]
    if low < -_MOST_HU or high > _MOST_HU:
        yield True, f"5 % of its voxels are beyond {low:.0f} or {high:.0f} HU; {remedy}"
        return
    # Beyond the window all is one to the model.
    values = np.clip(facts.values[index], *window)
    ranges = np.clip(_widened(domain.quantiles[index], _TOLERANCE_HU), *window)
    yield from _judge_quantiles(values, ranges, "HU", remedy)
    yield from _judge_flat(
        domain, facts, index, f"outside the window of {window[0]:g} to {window[1]:g} HU", remedy
    )


def _judge_z_scores(domain, facts, index, _, channel):
    negative, most = facts.negative[index], domain.negative[index][1]
    if negative > most + _NEGATIVE:
        # An MRI has no value below 0; a CT has, and so has what somebody normalised.
        ct = facts.raw[index][0] < _CT_VALUE
        yield (
            ct,
            f"{negative:.0%} of its voxels are below 0, in training {most:.0%} at most; "
            + (
                f"with values below {facts.raw[index][0]:.0f} it looks like a CT: take an image "
                f"of the kind that the model was trained on, {channel}"
                if ct
                else "take the image as the scanner gave it, neither inverted nor normalised"
            ),
        )
    yield from _judge_quantiles(
        facts.values[index],
        _widened(domain.quantiles[index], _TOLERANCE_SD),
        "standard deviations from the mean",
        f"check that it is {channel} as in training, neither inverted nor windowed",
    )
    remedy = "give the image without mask or padding, as the training images are"
    yield from _judge_flat(domain, facts, index, "0, which counts as background", remedy)


def _judge_quantiles(values, ranges, unit, remedy):
    lacking, level, (low, high) = max(_lacking(values, ranges))
    if lacking > _LACKING:
        own = np.quantile(values, level)
        yield (
            lacking > _NOTHING_IN_COMMON,
            f"{level:.0%} of its voxels are below {own:.3g} {unit}, in training below {low:.3g} "
            f"to {high:.3g}; {remedy}",
        )


def _judge_flat(domain, facts, index, what, remedy):
    flat, (low, high) = facts.flat[index], domain.flat[index]
    lacking = 1 - (1 - flat) / max(1 - high, 1e-4)
    if lacking > _LACKING:
        yield (
            lacking > _NOTHING_IN_COMMON,
            f"{flat:.0%} of its voxels are {what}, in training {low:.0%} to {high:.0%}; {remedy}",
        )


def _widened(ranges, tolerance):
    return np.array(ranges) + [-tolerance, tolerance]


def _lacking(values, ranges):
    """By how much an image lacks what every training image has.

    In every training image a share of 1 - p of the voxels is at least as bright as the least
    p-quantile of them all, and a share of p is at most as bright as the largest one. Yields, for
    each level p, (the part of that share that is missing here: 0 for none, 1 for all of it; p;
    the range).
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
    own = " x ".join(f"{length:.3g}" for length in lengths)
    axes = "right-left x front-back x head-foot"
    return f"{what} {own} mm ({axes}), in training {_ranges(ranges)} mm; {remedy}"


def _ranges(ranges):
    shown = [(f"{low:.3g}", f"{high:.3g}") for low, high in ranges]
    return " x ".join(low if low == high else f"{low} to {high}" for low, high in shown)


def _channel(index, facts):
    return f"channel {index}: " if len(facts.values) > 1 else ""


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _range(value):
    low, high = map(float, value)
    if not low <= high:
        raise DataError(f"the range {value} ends before it begins")
    return low, high
