"""A trained segmenter as a folder in the hub's layout.

    config.json         what the model was built from, the language block by reference, hashes
    model.safetensors   the weights that are the model's own
    README.md           the model card

The hub's mixin is not used: it falls back to pickle, loads what fits and ignores the rest.
`hf upload OWNER/NAME FOLDER` publishes a folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mvl.blocks.extraction import block_reference
from mvl.blocks.hub import download
from mvl.config import DataConfig, ExperimentConfig, LanguageConfig
from mvl.data.domain import TrainingDomain
from mvl.data.tasks import Task
from mvl.errors import BlockError, MvlError, RunError
from mvl.files import read_json, sha256_of, write_json, write_tensors, write_text
from mvl.models.card import model_card
from mvl.models.segmenter import Description, MedVisionLlama, build_segmenter

#: Raised whenever a folder written before can no longer be read as it was meant.
FORMAT_VERSION = 1
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_MODEL_TYPE = "medvisionllama"


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a run saves, each once, by name.

    All but the weights of a block that its source and seed give again. So the mappers' random,
    frozen base under LoRA is saved, adapters inside a block are, and so is a block that was
    trained or merged. DynUNet has most of its parts under two names, of which one is saved.
    """
    names = {name for name, _ in chain(model.named_parameters(), model.named_buffers())}
    for prefix, part in model.named_modules():
        if hasattr(part, "keys_by_reference"):
            names -= {f"{prefix}.{key}".lstrip(".") for key in part.keys_by_reference()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def load_trained_state(model: nn.Module, state: dict[str, Tensor], origin: object) -> None:
    """Take over what `trained_state` gave, strictly; `origin` is where it came from.

    Raises:
        RunError: a weight is missing, foreign or of another shape.
    """
    weights = trained_state(model)
    if missing := sorted(weights.keys() - state.keys()):
        raise RunError(f"{origin} is of another model: it lacks {missing[0]}")
    if foreign := sorted(state.keys() - weights.keys()):
        raise RunError(f"{origin} is of another model: it has {foreign[0]}")
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.shape != state[name].shape:
                raise RunError(
                    f"{origin} is of another model: {name} has shape "
                    f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])


def save_model(
    model: MedVisionLlama,
    folder: Path | str,
    task: Task | None = None,
    data: DataConfig | None = None,
    metrics: dict[str, float] | None = None,
    domain: TrainingDomain | None = None,
) -> None:
    """Save a model; config.json comes last, since it vouches for the weights.

    The language block's weights stay where they came from; the folder names them. An older model in
    it is replaced.

    Args:
        task, data: what it was trained on; for the card, and for use on an image.
        metrics: numbers for the card.
        domain: what images the model takes, such as a `Run` has it.

    Raises:
        RunError: the model was put together by hand, or its adapters were merged; or `task` and
            `data` do not fit it.
        BlockError: the language block cannot be found or trusted.
    """
    about = model.description
    if about is None:
        raise RunError("only a model from build_segmenter knows what it was built from")
    weights = trained_state(model)
    with torch.device("meta"):
        built = trained_state(_built(about))
    if weights.keys() != built.keys():
        raise RunError("the model was changed since it was built; save it before adapters merge")
    task, data, domain = task or about.task, data or about.data, domain or about.domain
    if data and tuple(data.grid) != about.grid:
        raise RunError(f"the model has the grid {about.grid}, the data {data.grid}")
    seen = (data or DataConfig()).channels_of(task.channels) if task else ()
    if task and len(seen) != about.channels:
        raise RunError(f"the model has {about.channels} channels, {task.name} {seen}")
    config, block = about.config, None
    if config.language:
        block = block_reference(config.language)
        if config.language.source.startswith("hub:"):
            # A branch moves on; the commit stays, and needs no network once its block is cached.
            pinned = f"{config.language.source.partition('@')[0]}@{block['revision']}"
            config = replace(config, language=replace(config.language, source=pinned))
    # Who was trained with is nobody's business who gets the model.
    data = data and replace(data, splits=None)
    about = replace(about, config=config, task=task, data=data, domain=domain)
    folder = Path(folder)
    write_tensors(folder / _WEIGHTS, weights, {"format": "pt"})
    write_text(folder / _CARD, model_card(about, block, metrics))
    stored = dataclasses.asdict(about)
    stored["model"] = stored.pop("config")
    stored |= {
        "model_type": _MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "block": block,
        "weights_sha256": sha256_of(folder / _WEIGHTS),
    }
    write_json(folder / _CONFIG, stored)


def load_model(
    source: Path | str, revision: str | None = None, block: str | None = None
) -> MedVisionLlama:
    """Load what `save_model` saved: strictly, checked by hash, never by pickle.

    Args:
        source: a folder, or a model's name "OWNER/NAME" on the Hugging Face hub.
        revision: the hub's branch, tag or commit.
        block: a `LanguageConfig.source` to take the language block from, where the saved one
            cannot be reached; it must hold the same weights.

    Returns:
        The model in eval(), on the CPU; its `description` has task and data.

    Raises:
        RunError: files are missing, damaged, of another kind or of another format version.
        BlockError: the language block cannot be reached, or is not the one that was saved.
    """
    try:
        stored = read_json(_located(source, _CONFIG, revision))
    except MvlError as error:
        raise RunError(f"{source} does not hold a model that can be read: {error}") from None
    about = _description(stored, source)
    if language := about.config.language:
        language = replace(language, source=block or language.source)
        about = replace(about, config=replace(about.config, language=language))
        _check_block(language, stored["block"], source)
    path = _located(source, _WEIGHTS, revision)
    try:
        sha256, expected = sha256_of(path), stored["weights_sha256"]
        if sha256 != expected:
            raise RunError(
                f"{source}: its {_WEIGHTS} is not the one that its config.json vouches for "
                f"(SHA-256 {sha256[:12]}, expected {expected[:12]}); save or download it again"
            )
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{source}: its {_WEIGHTS} cannot be read: {error}") from error
    model = _built(about)
    load_trained_state(model, weights, source)
    model.description = about
    return model.eval()


def _built(about: Description) -> MedVisionLlama:
    return build_segmenter(about.config, about.channels, about.classes, about.grid, about.seed)


def _located(source, name, revision) -> Path:
    """Path of one file of a folder, or of the hub's copy in the cache."""
    if Path(source).is_dir():
        return Path(source) / name
    try:
        return download(str(source), name, revision)
    except BlockError as error:
        raise RunError(f"there is no folder {source}, and {error}") from None


def _description(stored, source) -> Description:
    """config.json's values, checked."""
    if not isinstance(stored, dict) or stored.get("model_type") != _MODEL_TYPE:
        raise RunError(f"{source} is not a model of mvl: its config.json has another model_type")
    version = stored.get("format_version")
    if version != FORMAT_VERSION:
        raise RunError(
            f"{source} has format version {version!r}, this mvl reads version {FORMAT_VERSION}: "
            "use the mvl that wrote it, or save the model again"
        )
    try:
        parts = {"data": stored["data"] or {"grid": stored["grid"]}}
        parts |= {"model": stored["model"], "seed": stored["seed"]}
        config = ExperimentConfig.from_dict(parts)
        domain = stored.get("domain")  # a folder from before domains has none
        return Description(
            config=config.model,
            channels=stored["channels"],
            classes=stored["classes"],
            grid=config.data.grid,
            seed=config.seed,
            task=Task.from_dict(stored["task"]) if stored["task"] else None,
            data=config.data if stored["data"] else None,
            domain=TrainingDomain.from_dict(domain) if domain else None,
        )
    except (MvlError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{source}: its config.json is damaged: {error}") from error


def _check_block(language: LanguageConfig, saved: dict | None, source) -> None:
    if not saved or not {"source", "revision", "sha256"} <= saved.keys():
        raise RunError(f"{source}: its config.json is damaged: it does not say which block it has")
    try:
        block = block_reference(language)
    except BlockError as error:
        raise BlockError(
            f"{error}; {source} has a block of {saved['source']}: name where it is here by block= "
            "(mvl predict --block)"
        ) from error
    if block["sha256"] != saved["sha256"]:
        raise BlockError(
            f"{source} was saved with a block of {saved['source']} (revision {saved['revision']}, "
            f"SHA-256 {saved['sha256'][:12]}), but {language.source} gives another (SHA-256 "
            f"{block['sha256'][:12]}); name a source of the same block by block="
        )
