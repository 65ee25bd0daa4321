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
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mvl.errors import ConfigError
from mvl.strict import TAG, Axis, Count, Natural, NotNegative, Positive, Whole, from_json, strict

#: The learning rates from which every arm's is chosen, by validation Dice.
LEARNING_RATES = (1e-3, 3e-3, 1e-2)

#: The comparison networks that can hold a language part.
HOSTS = ("unetr", "dynunet", "segresnet")

#: Raised whenever a change to the code alters numbers. Tables refuse to mix versions: the runs of
#: an earlier one are trained again, and results/reference/ is emptied and made again with them.
PROTOCOL_VERSION = 1


def _later(default: Any) -> Any:
    """A field that a first release did not have; its default is what was done without it."""
    return field(default=default, metadata={"later": True})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)  # pydantic adds the path


@strict
class DataConfig:
    """Which cases, on which grid, seen through which augmentation."""

    #: Folder name of the task below the data root.
    task: str = "Task04_Hippocampus"
    #: "foreground": all labels above 0 merged, as in the paper. "labels": one class a label.
    target: Literal["foreground", "labels"] = "foreground"
    #: The model's grid in voxels (H, W, D). On Task04 all structures of the training and
    #: validation subjects lie within 30 x 49 x 37 voxels about the centre of theirs.
    grid: tuple[Axis, Axis, Axis] = (40, 56, 40)
    #: How a volume comes to the grid: "resize" (the paper's); "pad" (centred pad or crop); or
    #: "crop": the volume is resampled to `spacing_mm`, the model is trained on crops of it as
    #: large as the grid, and is used by a window of that size that slides over the whole.
    fit: Literal["pad", "resize", "crop"] = "pad"
    #: Share of the training and of the validation subjects that is used.
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: Augmentation of training cases: rotation about each axis, in degrees, image and label alike.
    rotation_degrees: float = 5.0
    #: Augmentation of training cases: brightness and contrast, as a share.
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0.1
    #: Augmentation of training cases: mirror at random each axis (True), or "left-right" alone, as
    #: a body's two sides are of each other.
    flips: bool | Literal["left-right"] = False  # pydantic takes 1 for a Literal[True]
    #: The seed from which test subjects and folds are drawn; one for a whole study.
    split_seed: Whole = 0
    #: "held-out": a fifth of the subjects is the test set of every seed. "crossed": seed s tests
    #: fold s mod 5 and validates on the next one, so that five seeds test every subject once.
    testing: Literal["held-out", "crossed"] = _later("held-out")
    #: How many folds the subjects are divided into.
    folds: Annotated[int, Field(ge=2, lt=2**31)] = _later(5)
    #: The fold that validates, or with "crossed" that tests, from 0; None: the seed modulo `folds`.
    fold: Natural | None = _later(None)
    #: An own split: (name, "train", "validation", "test" or the number of its fold) of each.
    splits: tuple[tuple[str, str], ...] | None = _later(None)
    #: Whose names those are.
    splits_by: Literal["case", "subject"] = _later("case")
    #: Voxel edges in mm, along R, A and S, to which "crop" resamples; None with any other `fit`.
    spacing_mm: tuple[Positive, Positive, Positive] | None = _later(None)
    #: "all" of an image's channels, or the "first" alone, as the paper's code reads it.
    channels: Literal["all", "first"] = _later("all")
    #: "modality": an MRI's z-scores, a CT's window. "min-max": the image's smallest value becomes
    #: 0, its largest 1, all channels together, as the paper's code does it.
    intensities: Literal["modality", "min-max"] = _later("modality")

    def __post_init__(self):
        _require(
            (self.fit == "crop") == (self.spacing_mm is not None),
            f"fit {self.fit} with spacing_mm {self.spacing_mm}: crop needs it, no other takes it",
        )
        _require(
            self.fold is None or self.fold < self.folds,
            f"fold {self.fold}: with {self.folds} folds it is 0 to {self.folds - 1}",
        )
        # A shell completes a folder's name with a slash.
        object.__setattr__(self, "task", self.task.rstrip("/"))
        parent, _, name = self.task.rpartition("/")
        _require(
            "/" not in self.task,
            f"task {self.task!r} is a path: name the task {name}, and its folder with "
            f"--root {parent or '/'} or MVL_DATA_ROOT",
        )

    def fold_of(self, seed: int) -> int:
        """The fold of an experiment with this seed: see `fold`."""
        return seed % self.folds if self.fold is None else self.fold

    @property
    def window(self) -> tuple[int, int, int] | None:
        """Voxels of the window that slides over a volume; None where the model sees it whole."""
        return self.grid if self.fit == "crop" else None

    def channels_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those channels of a task's images that the model gets."""
        return names[:1] if self.channels == "first" else names


@strict
class LanguageConfig:
    """One transformer block of a language model, and what is done to it."""

    #: "package:all-minilm-l6-v2", "path:/folder", "hub:owner/name@revision" or "random:<config>".
    source: str = "package:all-minilm-l6-v2"
    #: Index of the first layer; negative counts from the end.
    layer: Whole = -1
    #: How many consecutive layers, from `layer` on.
    layers: Count = 1
    #: "pretrained", or a control of the same shape and path.
    control: Literal["pretrained", "random", "matched", "shuffled", "identity", "trainable"] = (
        "pretrained"
    )
    #: What is added before D2. "sum": the block's output and, with `residual`, D1's (the paper).
    #: "output": the same two, each divided by its root mean square. "contribution": the block's
    #: output less its input, and D1's output, each divided by its root mean square.
    terms: Literal["sum", "output", "contribution"] = _later("sum")
    #: Root mean square to which D1's output is brought for the block; None leaves it as it is.
    scale: Positive | None = _later(None)
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
    lora_rank: Natural = 0
    #: Scale of the adapters: their product counts lora_alpha / lora_rank.
    lora_alpha: float = 8.0
    #: Which linear maps get adapters: the mappers D1 and D2, the block's projections, or both.
    lora_on: Literal["mappers", "block", "both"] = "both"

    def __post_init__(self):
        _require(
            self.control != "trainable" or self.dtype == "float32",
            "a trainable block wants dtype float32: small steps would be rounded away",
        )


@strict
class ModelConfig:
    """The segmenter's parts and sizes."""

    #: Patch size in voxels (H, W, D).
    patch: tuple[Count, Count, Count] = (8, 8, 8)
    #: Token width E.
    width: Count = 64
    #: Transformer blocks before and after the language part.
    encoder_depth: Count = 8
    decoder_depth: Natural = 8
    heads: Count = 4
    #: Hidden width of a block's MLP, in multiples of `width`.
    mlp_ratio: NotNegative = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: LayerNorm after the last block.
    final_norm: bool = True
    #: "global", or "hybrid": global and windowed attention, mixed by a learned weight a head.
    attention: Literal["global", "hybrid"] = "global"
    #: Edge of hybrid attention's window, in tokens.
    window: Count = 3
    #: Multi-scale fusion of encoder states.
    fusion: bool = False
    #: Kernel of each fused state's depth-wise convolution, shallow state first.
    fusion_kernels: tuple[Count, ...] = (1, 3, 5)
    #: The language part; None leaves it out, mappers and all.
    language: LanguageConfig | None = None
    #: "between" encoder and decoder (the paper), or "before" the encoder on tokens that carry
    #: no position yet (the released code).
    language_position: Literal["between", "before"] = "between"
    #: "linear": each token becomes its patch; "conv": a small convolutional refinement follows.
    head: Literal["linear", "conv"] = "linear"
    #: Channels of the convolutional head.
    head_channels: Count = 8

    def __post_init__(self):
        whole = f"width {self.width} is not a multiple of heads, {self.heads}"
        _require(self.width % self.heads == 0, whole)
        odd = all(kernel % 2 for kernel in self.fusion_kernels)
        _require(odd, f"fusion_kernels {self.fusion_kernels}: each has to be odd")


@strict
class PeerConfig:
    """One of the field's comparison networks, in the size that `models.peers` gives it."""

    architecture: Literal["unet", "unet++", "unetr", "swin-unetr", "segresnet", "dynunet"]

    #: A language part on the tokens of the network's deepest level, for one of `HOSTS`.
    language: LanguageConfig | None = _later(None)

    def __post_init__(self):
        _require(
            self.language is None or self.architecture in HOSTS,
            f"{self.architecture} cannot hold a language part; {', '.join(HOSTS)} can",
        )


@strict
class TrainingConfig:
    """Optimiser, schedule and budget."""

    epochs: Count = 60
    batch_size: Count = 4
    #: One of `LEARNING_RATES`, chosen on validation.
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.01
    #: "adamw" with "cosine" is ours; "adam" with "plateau" is the released code's.
    optimiser: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["cosine", "plateau"] = "cosine"
    #: Epochs of linear warm-up before the cosine.
    warmup_epochs: Natural = 3
    #: Largest gradient norm; 0 switches clipping off.
    clip_norm: NotNegative = 1.0
    #: Weight decay holds down the position embedding, too.
    decay_position: bool = _later(True)
    #: The mappers' learning rate, in multiples of `learning_rate`.
    mapper_rate: Positive = _later(1.0)
    #: Number format of the forward pass outside the language block.
    precision: Literal["float32", "bfloat16"] = "float32"


#: By these pydantic tells apart the two kinds of models that an experiment can have.
_KINDS = (f"{TAG}segmenter", f"{TAG}peer")


def _kind_of(model: Any) -> str:
    """What has an architecture is a comparison network, whatever else it has."""
    peer = isinstance(model, PeerConfig) or isinstance(model, dict) and "architecture" in model
    return _KINDS[peer]


@strict
class ExperimentConfig:
    """One experiment: data, model, training, and the seed of everything random in it.

    The seed also chooses the validation fold (seed modulo five), so that seed and fold vary
    together. Its class decides how it is trained (`mvl.experiment.procedure`).
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: Annotated[
        Annotated[ModelConfig, Tag(_KINDS[0])] | Annotated[PeerConfig, Tag(_KINDS[1])],
        Discriminator(_kind_of),
    ] = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: Whole = 0

    def to_dict(self) -> dict:
        """The configuration as plain JSON values, `_later` fields only where they are used."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ExperimentConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range; the message names
                the key by its path, such as `model.language.layer`.
        """
        return from_json(cls, values)


def preset(name: str, language: str | None = None) -> tuple[ModelConfig, TrainingConfig]:
    """The model and training of a named preset.

    Args:
        language: a `LanguageConfig.source` to use in place of the preset's block.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    model, training = PRESETS[name]
    if language is not None and model.language is not None:
        model = replace(model, language=replace(model.language, source=language))
    return model, training


def task_data(task: str) -> DataConfig:
    """How a task comes to a model by default; one that is in no table, on the paper's grid."""
    return _TASK_DATA.get(task) or DataConfig(task=task, grid=(128, 128, 128), fit="resize")


def fingerprint(config: ExperimentConfig, identity: dict) -> str:
    """The name of an experiment's run folder.

    It is the SHA-256 (hex, first 16 digits) of the canonical JSON of the configuration, of
    `PROTOCOL_VERSION`, and of all else that the numbers depend on (see `identity.identity_of`).
    """
    whole = {"config": config.to_dict(), "protocol_version": PROTOCOL_VERSION} | identity
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*parts: str | int) -> int:
    """A 31-bit seed that depends on all `parts` and on nothing else.

    Augmentation uses (seed, epoch, case); initial weights use (seed, part's name). What a process
    has drawn before does not matter.
    """
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _plain(value: Any) -> Any:
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
