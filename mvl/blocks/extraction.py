"""One block taken out of a language model: its weights, its reference, its sizes, a copy of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from mvl.blocks.checkpoints import CONFIG, INDEX, WEIGHTS, Checkpoint, FolderCheckpoint
from mvl.blocks.families import Architecture
from mvl.blocks.sources import RECORD, open_checkpoint, path_of
from mvl.config import LanguageConfig
from mvl.errors import BlockError
from mvl.files import read_json, write_json, write_tensors, writing
from mvl.locks import acquired

#: Seconds to wait until another process has read the same block.
_PATIENCE_S = 3600


def open_block(config: LanguageConfig) -> tuple[Checkpoint, Architecture]:
    """The checkpoint and the layers that a configuration names; reads no weights.

    Raises:
        BlockError: the source cannot be found or understood; an unknown family; a layer that does
            not exist; rotary asked of a family that has none.
    """
    checkpoint = open_checkpoint(config.source)
    architecture = Architecture(checkpoint, config.layer, config.layers)
    if config.rotary and not architecture.family.rotary:
        raise BlockError(
            f"{config.source}: a {architecture.kind} layer has no rotary embedding; set rotary to "
            "false"
        )
    if config.rotary:
        checkpoint.check_rotary()
        if path_of(config.source) and original(config).source.startswith("gguf:"):
            raise BlockError(
                f"{config.source} was copied from a GGUF file, and does not tell whether its "
                "rotary embedding is scaled; set rotary to false, or name the GGUF file"
            )
    return checkpoint, architecture


def draws_weights(config: LanguageConfig) -> bool:
    """Whether the block's weights come from its architecture and a seed alone."""
    return config.control == "random" or config.source.startswith("random:")


def read_block(
    checkpoint: Checkpoint, architecture: Architecture, dtype: str
) -> dict[str, torch.Tensor]:
    """{parameter: tensor} of the block, from the cache where the checkpoint has one.

    Raises:
        BlockError: the weights cannot be had, or are not those that were once extracted.
    """
    if checkpoint.cache is None:
        return _tensors(checkpoint, architecture, dtype)
    span = f"{architecture.indices[0]}-{architecture.indices[-1]}"
    folder = checkpoint.cache / f"layer{span}-{dtype}"
    return _copied(checkpoint, architecture, dtype, folder, checkpoint.origin)


def _tensors(checkpoint, architecture, dtype):
    names = architecture.tensor_names(checkpoint)
    tensors = checkpoint.read(names.values(), getattr(torch, dtype))
    return {parameter: tensors[name] for parameter, name in names.items()}


def _copied(checkpoint, architecture, dtype, folder, source):
    """As `_tensors`, through a folder that is filled first where it is empty."""
    if not (folder / WEIGHTS).is_file():
        names = architecture.tensor_names(checkpoint).values()
        with writing(folder, kind=BlockError):
            folder.mkdir(parents=True, exist_ok=True)
            # Two processes that want one block share the work.
            with acquired(folder / ".lock", _PATIENCE_S):
                if not (folder / WEIGHTS).is_file():
                    tensors = checkpoint.read(names, getattr(torch, dtype))
                    write_json(folder / CONFIG, checkpoint.config)
                    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    tensors = _tensors(FolderCheckpoint(f"path:{folder}", folder), architecture, dtype)
    record = {
        "source": source,
        "revision": checkpoint.revision,
        "layers": list(architecture.indices),
        "dtype": dtype,
        "sha256": hash_tensors(tensors),
    }
    path = folder / RECORD
    if not path.is_file():
        write_json(path, record)
    if read_json(path) != record:
        raise BlockError(
            f"{folder} holds another block, or a damaged one (its {RECORD} disagrees): delete it "
            "and run again"
        )
    return tensors


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of named tensors: name, type, shape and bytes of each, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def extract_block(config: LanguageConfig, folder: Path | str) -> str:
    """Copy a block into a folder that is itself a "path:" source, for a machine without network.

    It is the same block there: layers count as in the source, and a run with it has the name of a
    run with the source (see `original`).

    Of `config`, source, layer, layers and dtype count. Returns the block's SHA-256, as in
    `block_reference`.

    Raises:
        BlockError: the block cannot be had, the folder holds another one or a whole model, or it
            is random.
    """
    checkpoint, architecture = open_block(config)
    folder = Path(folder)
    if not checkpoint.has_weights:
        raise BlockError(f"{config.source} has no weights to extract")
    here = path_of(config.source)
    same = here is not None and here.resolve() == folder.resolve()
    if same or (folder / INDEX).exists():
        raise BlockError(f"{folder} holds a model, which the block would displace; choose another")
    source = original(config).source
    return hash_tensors(_copied(checkpoint, architecture, config.dtype, folder, source))


def original(config: LanguageConfig) -> LanguageConfig:
    """The configuration with the source that an extracted block was copied from, in its place."""
    folder = path_of(config.source)
    if folder is None or not (folder / RECORD).is_file():
        return config
    return replace(config, source=read_json(folder / RECORD, "source")["source"])


def block_reference(config: LanguageConfig) -> dict:
    """What a run records in place of the block's weights.

    Returns:
        source, revision (the hub's commit, a package file's SHA-256, or None), family,
        hidden_size, layer (never negative), layers, dtype, control, parameters, and sha256: of
        the block's tensors as extracted; of the architecture's configuration where no weights
        are read (control random or identity, or a "random:" source).

    Raises:
        BlockError: as `build_language`.
    """
    checkpoint, architecture = open_block(config)
    if draws_weights(config) or config.control == "identity":
        text = json.dumps(checkpoint.config, sort_keys=True, separators=(",", ":"))
        sha256 = hashlib.sha256(text.encode()).hexdigest()
    else:
        sha256 = hash_tensors(read_block(checkpoint, architecture, config.dtype))
    return {
        "source": config.source,
        "revision": checkpoint.revision,
        "family": architecture.kind,
        "hidden_size": architecture.width,
        "layer": architecture.indices[0],
        "layers": config.layers,
        "dtype": config.dtype,
        "control": config.control,
        "parameters": 0 if config.control == "identity" else architecture.parameters(),
        "sha256": sha256,
    }


def has_rotary(source: str) -> bool:
    """Whether the language model of a source has a rotary embedding that can be read."""
    try:
        open_block(LanguageConfig(source=source, rotary=True))
    except BlockError:
        open_checkpoint(source)  # a source that cannot be read at all is an error
        return False
    return True


def block_sizes(source: str, layer: int = -1) -> dict:
    """Sizes of a source and of one layer of it, without reading its weights.

    Returns:
        source, revision, family, hidden_size, model_layers, block_parameters, block_bytes and
        model_bytes (as stored; both None for a "random:" source).

    Raises:
        BlockError: the source cannot be found, reached or understood.
    """
    checkpoint = open_checkpoint(source)
    architecture = Architecture(checkpoint, layer)
    size = None
    if checkpoint.has_weights:
        names = architecture.tensor_names(checkpoint).values()
        size = checkpoint.stored_bytes(names)
    return {
        "source": source,
        "revision": checkpoint.revision,
        "family": architecture.kind,
        "hidden_size": architecture.width,
        "model_layers": architecture.total,
        "block_parameters": architecture.parameters(),
        "block_bytes": size,
        "model_bytes": checkpoint.model_bytes(),
    }
