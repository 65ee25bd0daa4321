"""Every knob of an experiment, as frozen dataclasses; the presets; the fingerprint.

An `ExperimentConfig` together with its data (see `identity`) and the bytes of its language
block says everything about a result. Their hash, the fingerprint, names the run's folder:
what is equal is never computed twice, what differs never shares a folder.

A field that joins a configuration later is declared by `_later`: `to_dict` leaves it out where it
has its default, and `from_dict` reads both. So the fingerprint of an experiment that does not use
it stays what it was before there was such a field, and so does every finished run.
"""

import dataclasses
import hashlib
import json
import math
import reprlib
import types
import typing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from mvl.errors import ConfigError

#: The learning rates from which every arm's is chosen, by validation Dice.
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
#: The factors from which the mappers' is chosen with it.
MAPPER_RATES = (1.0, 0.3, 0.1, 0.03)

#: Raised whenever a change to the code alters numbers. Tables refuse to mix versions: the runs of
#: an earlier one are trained anew, and results/reference/ is emptied and made anew with them.
PROTOCOL_VERSION = 1


def _later(default):
    """A field that a first release did not have; its default is what was done without it."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class DataConfig:
    """Which cases, on which grid, seen through which augmentation."""

    #: Folder name of the task below the data root.
    task: str = "Task04_Hippocampus"
    #: "foreground": all labels above 0 merged, as in the paper. "labels": one class a label.
    target: Literal["foreground", "labels"] = "foreground"
    #: The model's grid in voxels (H, W, D). On Task04 all structures of the training and
    #: validation subjects lie within 30 x 49 x 37 voxels about the centre of theirs.
    grid: tuple[int, int, int] = (40, 56, 40)
    #: How a volume comes to the grid: "resize" (the paper's); "pad" (centred pad or crop); or
    #: "crop": the volume is resampled to `spacing_mm`, the model is trained on crops of it as
    #: large as the grid, and is used by a window of that size that slides over the whole.
    fit: Literal["pad", "resize", "crop"] = "pad"
    #: Share of the training and of the validation subjects that is used.
    fraction: float = 1.0
    #: Augmentation of training cases: rotation about each axis, in degrees, image and label alike.
    rotation_degrees: float = 5.0
    #: Augmentation of training cases: brightness and contrast, as a share.
    intensity: float = 0.1
    #: Augmentation of training cases: mirror at random each axis (True), or "left-right" alone, as
    #: a body's two sides are of each other.
    flips: Literal[False, True, "left-right"] = False
    #: The seed from which test subjects and folds are drawn; one for a whole study.
    split_seed: int = 0
    #: "held-out": a fifth of the subjects is the test set of every seed. "crossed": seed s tests
    #: fold s mod 5 and validates on the next one, so that five seeds test every subject once.
    testing: Literal["held-out", "crossed"] = _later("held-out")
    #: Voxel edges in mm, along R, A and S, to which "crop" resamples; None with any other `fit`.
    spacing_mm: tuple[float, float, float] | None = _later(None)
    #: "all" of an image's channels, or the "first" alone, as the paper's code reads it.
    channels: Literal["all", "first"] = _later("all")
    #: "modality": an MRI's z-scores, a CT's window. "min-max": the image's smallest value becomes
    #: 0, its largest 1, all channels together, as the paper's code does it.
    intensities: Literal["modality", "min-max"] = _later("modality")

    def __post_init__(self):
        if self.spacing_mm is not None:
            # 1 and 1.0 are equal edges, and one fingerprint.
            object.__setattr__(self, "spacing_mm", tuple(map(float, self.spacing_mm)))
        _require(
            (self.fit == "crop") == (self.spacing_mm is not None),
            f"fit {self.fit} with spacing_mm {self.spacing_mm}: crop needs it, no other takes it",
        )
        _require(
            all(edge > 0 for edge in self.spacing_mm or ()),
            f"spacing_mm {self.spacing_mm} has an edge that is not above 0",
        )
        # A shell completes a folder's name with a slash.
        object.__setattr__(self, "task", self.task.rstrip("/"))
        parent, _, name = self.task.rpartition("/")
        _require(
            "/" not in self.task,
            f"task {self.task!r} is a path: name the task {name}, and its place with "
            f"--root {parent or '/'} or MVL_DATA_ROOT",
        )
        _require(all(n > 0 for n in self.grid), f"grid {self.grid} has an axis below 1")
        _require(all(n < 2**31 for n in self.grid), "grid: an axis of 2^31 voxels or more")
        _require(0 < self.fraction <= 1, f"fraction {self.fraction} is not in (0, 1]")
        _require(0 <= self.intensity < 1, f"intensity {self.intensity} is not in [0, 1)")

    @property
    def window(self):
        """Voxels of the window that slides over a volume; None where the model sees it whole."""
        return self.grid if self.fit == "crop" else None

    def channels_of(self, task):
        """Names of the channels that the model gets of a `Task`'s images."""
        return task.channels[:1] if self.channels == "first" else task.channels


@dataclass(frozen=True)
class LanguageConfig:
    """One transformer block of a language model, and what is done to it."""

    #: "package:all-minilm-l6-v2", "path:/folder", "hub:owner/name@revision" or "random:<config>".
    source: str = "package:all-minilm-l6-v2"
    #: Index of the first layer; negative counts from the end.
    layer: int = -1
    #: How many consecutive layers, from `layer` on.
    layers: int = 1
    #: "pretrained", or a control of the same shape and path.
    control: Literal["pretrained", "random", "matched", "shuffled", "identity", "trainable"] = (
        "pretrained"
    )
    #: What is added before D2. "sum": the block's output and, with `residual`, D1's (the paper).
    #: "output": the same two, each divided by its root mean square. "contribution": the block's
    #: output less its input, and D1's output, each divided by its root mean square.
    terms: Literal["sum", "output", "contribution"] = _later("sum")
    #: Root mean square to which D1's output is brought for the block; None leaves it as it is.
    scale: float | None = _later(None)
    #: First weights of the mappers: "default" is PyTorch's; "identity": D1 has orthonormal columns
    #: and D2 is its transpose, so that D2(D1(x)) = x.
    start: Literal["default", "identity"] = _later("default")
    #: Add D1's output to the block's, as in the paper.
    residual: bool = True
    #: Add the part's input to its output, past both mappers: ours, neither the paper's nor its
    #: code's, where all of a token goes through them.
    skip: bool = _later(True)
    #: Keep the causal mask of a decoder layer; off in the paper, since tokens are patches.
    causal: bool = False
    #: Keep the rotary position embedding; off in the paper.
    rotary: bool = False
    #: Divide the block's output by its root mean square, as the released code does.
    unit_norm: bool = False
    #: Number format in which the frozen block is held; the rest trains in float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Rank of the low-rank adapters; 0 is none.
    lora_rank: int = 0
    #: Scale of the adapters: their product counts lora_alpha / lora_rank.
    lora_alpha: float = 8.0
    #: Which linear maps get adapters: the mappers D1 and D2, the block's projections, or both.
    lora_on: Literal["mappers", "block", "both"] = "both"

    def __post_init__(self):
        _require(self.lora_rank >= 0, f"lora_rank {self.lora_rank} is negative")
        _require(self.layers >= 1, f"layers {self.layers} is below 1")
        _require(self.scale is None or self.scale > 0, f"scale {self.scale} is not above 0")
        _require(
            self.control != "trainable" or self.dtype == "float32",
            "a trainable block wants dtype float32: small steps would be rounded away",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The segmenter's parts and sizes."""

    #: Patch size in voxels (H, W, D).
    patch: tuple[int, int, int] = (8, 8, 8)
    #: Token width E.
    width: int = 64
    #: Transformer blocks before and after the language part.
    encoder_depth: int = 8
    decoder_depth: int = 8
    heads: int = 4
    #: Hidden width of a block's MLP, in multiples of `width`.
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    #: LayerNorm after the last block.
    final_norm: bool = True
    #: "global", or "hybrid": global and windowed attention, mixed by a learned weight a head.
    attention: Literal["global", "hybrid"] = "global"
    #: Edge of hybrid attention's window, in tokens.
    window: int = 3
    #: Multi-scale fusion of encoder states.
    fusion: bool = False
    #: Kernel of each fused state's depth-wise convolution, shallow state first.
    fusion_kernels: tuple[int, ...] = (1, 3, 5)
    #: The language part; None leaves it out, mappers and all.
    language: LanguageConfig | None = None
    #: "between" encoder and decoder (the paper), or "before" the encoder on tokens that carry
    #: no position yet (the released code).
    language_position: Literal["between", "before"] = "between"
    #: "linear": each token becomes its patch; "conv": a small convolutional refinement follows.
    head: Literal["linear", "conv"] = "linear"
    #: Channels of the convolutional head.
    head_channels: int = 8

    def __post_init__(self):
        for name in ("width", "encoder_depth", "heads", "window", "head_channels"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)} is below 1")
        for name in ("decoder_depth", "mlp_ratio"):
            _require(getattr(self, name) >= 0, f"{name} {getattr(self, name)} is negative")
        _require(all(n > 0 for n in self.patch), f"patch {self.patch} has an axis below 1")
        _require(
            self.width % self.heads == 0, f"width {self.width} / heads {self.heads} is not whole"
        )
        _require(0 <= self.dropout < 1, f"dropout {self.dropout} is not in [0, 1)")
        _require(
            all(k > 0 and k % 2 for k in self.fusion_kernels),
            f"fusion_kernels {self.fusion_kernels}: each has to be odd and above 0",
        )


@dataclass(frozen=True)
class PeerConfig:
    """One of the field's comparison networks, in the size that `models.peers` gives it."""

    architecture: Literal["unet", "unet++", "unetr", "swin-unetr", "segresnet", "dynunet"]

    #: No comparison network has a language part (a constant of the class, not a field).
    language: ClassVar[None] = None


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, schedule and budget."""

    epochs: int = 60
    batch_size: int = 4
    #: One of `LEARNING_RATES`, chosen on validation.
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    #: "adamw" with "cosine" is ours; "adam" with "plateau" is the released code's.
    optimiser: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["cosine", "plateau"] = "cosine"
    #: Epochs of linear warm-up before the cosine.
    warmup_epochs: int = 3
    #: Largest gradient norm; 0 switches clipping off.
    clip_norm: float = 1.0
    #: Weight decay holds down the position embedding, too.
    decay_position: bool = _later(True)
    #: The mappers' learning rate, in multiples of `learning_rate`.
    mapper_rate: float = _later(1.0)
    #: Number format of the forward pass outside the language block.
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        _require(self.epochs >= 1, f"epochs {self.epochs} is below 1")
        _require(self.batch_size >= 1, f"batch_size {self.batch_size} is below 1")
        rate = self.learning_rate
        _require(0 < rate < math.inf, f"learning_rate {rate} is not above 0 and finite")
        _require(self.mapper_rate > 0, f"mapper_rate {self.mapper_rate} is not above 0")
        for name in ("weight_decay", "warmup_epochs", "clip_norm"):
            _require(getattr(self, name) >= 0, f"{name} {getattr(self, name)} is negative")


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: data, model, training, and the seed of everything random in it.

    The seed also chooses the validation fold (seed modulo five), so that seed and fold vary
    together. Its class decides how it is trained (`mvl.experiment.procedure`).
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig | PeerConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def to_dict(self):
        """The configuration as plain JSON values, `_later` fields only where they are used."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values):
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range; the message names
                the key by its path, such as `model.language.layer`.
        """
        return _from_dict(cls, values, "")


def preset(name, language=None):
    """The model and training of a named preset.

    Args:
        name: one of `PRESETS`.
        language: a `LanguageConfig.source` to use in place of the preset's own block.

    Returns:
        `(ModelConfig, TrainingConfig)`.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    model, training = PRESETS[name]
    if language is not None and model.language is not None:
        model = replace(model, language=replace(model.language, source=language))
    return model, training


def task_data(task):
    """How a task comes to a model unless somebody says otherwise.

    Args:
        task: a task's name.

    Returns:
        A `DataConfig`; for a task that is in no table, resized to the paper's grid.
    """
    return _TASK_DATA.get(task) or DataConfig(task=task, grid=(128, 128, 128), fit="resize")


def fingerprint(config, identity):
    """The name of an experiment's run folder.

    Args:
        config: an `ExperimentConfig`.
        identity: what else its numbers depend on, as JSON values; see `identity.identity_of`.

    Returns:
        SHA-256 (hex, first 16 digits) of the canonical JSON of all of these and of
        `PROTOCOL_VERSION`.
    """
    whole = {"config": config.to_dict(), "protocol_version": PROTOCOL_VERSION} | identity
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*parts):
    """A 31-bit seed that depends on all `parts` and on nothing else.

    So a case's augmentation is a function of (seed, epoch, case) and a part's first weights one
    of (seed, part's name), whatever else a process has drawn before.
    """
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _require(condition, message):
    if not condition:
        raise ConfigError(message)


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if not dataclasses.is_dataclass(value):
        return value
    known = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {
        f.name: _plain(v)
        for f, v in known.items()
        if not (f.metadata.get("later") and v == f.default)
    }


def _from_dict(kind, values, path):
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path or 'root'}: expected a mapping, got {values!r}")
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"configuration: unknown key {path}{unknown[0]}; known are {', '.join(sorted(fields))}"
        )
    read = {key: _value(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return kind(**read)
    except ConfigError as error:
        raise ConfigError(f"configuration {path.rstrip('.') or 'root'}: {error}") from error


#: What no whole number of a configuration reaches: PyTorch cannot count to it.
_LIMIT = 2**63


def _value(hint, value, path):
    """Hold one JSON value against a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # JSON has neither NaN nor infinity, but Python's reader lets them in, and any length of digits.
    if number and not (abs(value) < _LIMIT or isinstance(value, float) and math.isfinite(value)):
        raise ConfigError(f"configuration {path}: expected a finite number, below 2^63 in size")
    shown = reprlib.repr(value)  # of any length, for a sentence
    if origin is types.UnionType:
        if value is None and types.NoneType in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        # What has an architecture is a comparison network, whatever else it has.
        peer = PeerConfig in kinds and isinstance(value, dict) and "architecture" in value
        return _value(PeerConfig if peer else kinds[0], value, path)
    if dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, f"{path}.")
    if origin is Literal:
        # 1 equals True, but would make another fingerprint of it.
        if any(type(value) is type(known) and value == known for known in arguments):
            return value
        raise ConfigError(
            f"configuration {path}: {shown} is none of {', '.join(map(str, arguments))}"
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"configuration {path}: expected a list, got {shown}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(
                f"configuration {path}: expected {len(arguments)} values, got {shown}"
            )
        return tuple(_value(arguments[0], v, path) for v in value)
    if hint is float and number:
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"configuration {path}: expected {hint.__name__}, got {shown}")
    return value


_BLOCK = LanguageConfig()
_LORA = replace(_BLOCK, lora_rank=4)

#: The presets as data: name -> (model, training).
PRESETS = {
    "vit": (ModelConfig(), TrainingConfig()),
    "v1": (ModelConfig(attention="hybrid", fusion=True, language=_BLOCK), TrainingConfig()),
    "v3": (ModelConfig(language=_LORA), TrainingConfig()),
    # Order, sizes and training of the released code (dropout, no final norm, the extra unit
    # norm, a residual around the block and none around the mappers, the adapters' scale that is
    # its LoRA library's default, the learning rate that is its README's default); its loss, data
    # handling and evaluation are the audit's business.
    "released": (
        ModelConfig(
            encoder_depth=16,
            decoder_depth=0,
            dropout=0.2,
            final_norm=False,
            language=replace(_LORA, lora_alpha=1.0, lora_on="mappers", unit_norm=True, skip=False),
            language_position="before",
        ),
        TrainingConfig(
            optimiser="adam",
            schedule="plateau",
            learning_rate=2e-3,
            weight_decay=0.0,
            warmup_epochs=0,
            clip_norm=0.0,
        ),
    ),
    # The arm of the suites `fusion` and `head` with the highest validation Dice with seed 0
    # (results/reference/validation.csv): the paper's parts without the language block, and the
    # convolutional head, to which it owes most.
    "best": (
        ModelConfig(attention="hybrid", fusion=True, head="conv"),
        TrainingConfig(learning_rate=1e-2),
    ),
}

#: How a task comes to a model unless somebody says otherwise, where it is not the paper's way.
#: Task04's volumes are crops, which a grid of their own voxels holds; OpenKBP's all have one shape,
#: the grid's. CHAOS comes to 3.3 mm in the plane and to 7 to 11 mm between slices.
_TASK_DATA = {
    data.task: data
    for data in (
        DataConfig(),
        DataConfig("OpenKBP_HeadNeckCT", grid=(64, 72, 80)),
        DataConfig("CHAOS_AbdomenMR", grid=(96, 96, 32), fit="resize"),
    )
}
