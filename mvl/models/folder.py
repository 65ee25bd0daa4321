"""A trained segmenter as a folder in the hub's layout, for `MedVisionLlama.from_pretrained`.

    config.json         what the model was built from, the language block by reference, hashes
    model.safetensors   the weights that are the model's own
    README.md           the model card

The hub's own mixin is not used: it falls back to pickle, loads what fits and lets the rest be,
and lets errors of its HTTP client through. `hf upload OWNER/NAME FOLDER` publishes a folder.
"""

import dataclasses
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mvl.blocks.language_part import block_reference
from mvl.config import DataConfig, ExperimentConfig, ModelConfig
from mvl.data.domain import TrainingDomain, describe_domain
from mvl.data.tasks import TASKS, Task
from mvl.errors import BlockError, MvlError, RunError
from mvl.files import read_json, sha256_of, write_json, write_tensors, write_text

#: Raised whenever a folder written before can no longer be read as it was meant.
FORMAT_VERSION = 1
#: Licences of the sources that come with this replication, as their own model cards say.
LICENCES = {"package:all-minilm-l6-v2": "Apache-2.0"}
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_MODEL_TYPE = "medvisionllama"


@dataclass(frozen=True)
class Description:
    """What a model was built from, and what it takes to use it on an image.

    Attributes:
        config, channels, classes, grid, seed: the arguments of `build_segmenter`.
        task, data: the task's facts and the way of an image to the grid, where they are known.
        domain: what the training images were like, where it is known.
    """

    config: ModelConfig
    channels: int
    classes: int
    grid: tuple[int, int, int]
    seed: int
    task: Task | None = None
    data: DataConfig | None = None
    domain: TrainingDomain | None = None


def write_folder(folder, description, weights, metrics=None):
    """Write a model's folder; config.json comes last, since it vouches for the weights.

    Args:
        folder: made if it is missing; an older model in it is replaced.
        description: the model's `Description`.
        weights: {name: tensor}, as `MedVisionLlama.trained_state` gives them.
        metrics: {name: number} for the card, or None.

    Raises:
        RunError: `description` says two things about the grid or the channels.
        BlockError: the language block cannot be found or trusted.
    """
    task, data = description.task, description.data
    if data and tuple(data.grid) != description.grid:
        raise RunError(f"the model has the grid {description.grid}, the data {data.grid}")
    if description.domain and not (task and data):
        raise RunError("a domain is about a task's images: save it with task and data")
    seen = (data or DataConfig()).channels_of(task) if task else ()
    if task and len(seen) != description.channels:
        raise RunError(f"the model has {description.channels} channels, {task.name} {seen}")
    language = description.config.language
    block = block_reference(language) if language else None
    if language and language.source.startswith("hub:"):
        # A branch moves on; the commit stays, and needs no network once its block is cached.
        pinned = f"{language.source.partition('@')[0]}@{block['revision']}"
        config = replace(description.config, language=replace(language, source=pinned))
        description = replace(description, config=config)
    folder = Path(folder)
    write_tensors(folder / _WEIGHTS, weights, {"format": "pt"})
    write_text(folder / _CARD, model_card(description, block, metrics))
    stored = dataclasses.asdict(description)
    stored["model"] = stored.pop("config")
    stored |= {
        "model_type": _MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "block": block,
        "weights_sha256": sha256_of(folder / _WEIGHTS),
    }
    write_json(folder / _CONFIG, stored)


def read_folder(source, revision=None, block=None):
    """Read a model's folder, or the same from the hub, everything checked.

    Args:
        source: a folder, or a model's name "OWNER/NAME" on the hub.
        revision: the hub's branch, tag or commit.
        block: a `LanguageConfig.source` that holds the same block as the recorded one.

    Returns:
        (`Description`, {name: tensor}).

    Raises:
        RunError: files are missing, damaged, of another kind or of another format version.
        BlockError: the language block is not at hand, or is not the one that was saved.
    """
    path = _located(source, _CONFIG, revision)
    try:
        stored = read_json(path)
    except MvlError as error:
        raise RunError(f"{source} holds no model that can be read: {error}") from error
    description = _description(stored, source)
    language = description.config.language
    if language:
        if block:
            language = replace(language, source=block)
            description = replace(
                description, config=replace(description.config, language=language)
            )
        _check_block(language, stored, source)
    return description, _weights(stored, source, revision)


def _located(source, name, revision):
    """Path of one file of a folder, or of the hub's copy in the cache."""
    if Path(source).is_dir():
        return Path(source) / name
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    start = f"there is no folder {source}, and the hub"
    try:
        return hf_hub_download(
            str(source),
            name,
            revision=revision,
            library_name="mvl",
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except hub.HFValidationError:
        fault = f"{start} has no such name: models are called OWNER/NAME there"
    except hub.GatedRepoError:
        fault = f"{start} may not give it: accept its licence there, then run `hf auth login`"
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
        fault = f"{start} knows no such model or revision, or needs `hf auth login` for it"
    except hub.LocalEntryNotFoundError:
        fault = f"{start} cannot be reached; the cache does not hold it"
    except hub.EntryNotFoundError:
        fault = f"{source} on the hub has no {name}, so it is no model of mvl"
    except Exception as error:  # whatever the HTTP client of the day raises
        fault = f"{start} failed ({type(error).__name__}); try again later"
    # No other error is attached, since it may hold addresses with a signature.
    raise RunError(fault) from None


def _description(stored, source):
    """config.json's values as a `Description`, strictly."""
    if not isinstance(stored, dict) or stored.get("model_type") != _MODEL_TYPE:
        raise RunError(f"{source} is no model of mvl: its config.json has another model_type")
    version = stored.get("format_version")
    if version != FORMAT_VERSION:
        raise RunError(
            f"{source} has format version {version!r}, this mvl reads version {FORMAT_VERSION}: "
            "use the mvl that wrote it, or save the model anew"
        )
    try:
        known = {field.name for field in dataclasses.fields(Description)} - {"config"}
        known |= {"model", "model_type", "format_version", "block", "weights_sha256"}
        stored = {"domain": None} | stored  # a folder from before domains has none
        if odd := sorted(known ^ stored.keys()):
            raise RunError(f"{'unknown' if odd[0] in stored else 'missing'} key {odd[0]}")
        data = {"grid": stored["grid"]} if stored["data"] is None else stored["data"]
        config = ExperimentConfig.from_dict(
            {"data": data, "model": stored["model"], "seed": stored["seed"]}
        )
        if not isinstance(config.model, ModelConfig):
            raise RunError("its model is a comparison network")
        if config.data.grid != tuple(stored["grid"]):
            raise RunError(f"grid {stored['grid']} is not the data's {config.data.grid}")
        for key in ("channels", "classes"):
            if type(stored[key]) is not int or stored[key] < 1:
                raise RunError(f"{key} {stored[key]!r} is no number from 1 on")
        return Description(
            config=config.model,
            channels=stored["channels"],
            classes=stored["classes"],
            grid=config.data.grid,
            seed=config.seed,
            task=Task.from_dict(stored["task"]) if stored["task"] else None,
            data=config.data if stored["data"] else None,
            domain=TrainingDomain.from_dict(stored["domain"]) if stored["domain"] else None,
        )
    except (MvlError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{source}: its config.json is damaged: {error}") from error


def _check_block(language, stored, source):
    then, now = stored["block"], block_reference(language)
    if not isinstance(then, dict) or not {"source", "revision", "sha256"} <= then.keys():
        raise RunError(f"{source}: its config.json is damaged: it does not say which block it has")
    if now["sha256"] != then["sha256"]:
        raise BlockError(
            f"{source} was saved with a block of {then['source']} (revision {then['revision']}, "
            f"SHA-256 {str(then['sha256'])[:12]}), but {language.source} gives another (SHA-256 "
            f"{now['sha256'][:12]}); name a source of the same block by block="
        )


def _weights(stored, source, revision):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _located(source, _WEIGHTS, revision)
    try:
        found = sha256_of(path)
        if found == stored["weights_sha256"]:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{source}: its {_WEIGHTS} cannot be read: {error}") from error
    raise RunError(
        f"{source}: its {_WEIGHTS} is not the one that its config.json vouches for (SHA-256 "
        f"{found[:12]}, expected {str(stored['weights_sha256'])[:12]}); save or download it anew"
    )


def model_card(description, block, metrics=None):
    """The text of README.md.

    Args:
        description: a `Description`.
        block: its `block_reference`, or None.
        metrics: {name: number}, or None.
    """
    task = description.task
    shape = " x ".join(map(str, description.grid))
    title = f"MedVisionLlama on {task.name}" if task else "MedVisionLlama"
    sections = [
        f"# {title}",
        "A vision transformer that segments volumes"
        + (", with one frozen transformer block of a language model inside. " if block else ". ")
        + "An independent replication of the paper [MedVisionLlama](https://arxiv.org/abs/"
        "2410.02458); not its authors' model.",
        f"Input: float32, (B, {description.channels}, H, W, D), on a grid of {shape} voxels. "
        f"Output: logits, (B, {description.classes}, H, W, D).",
        "```python\nfrom mvl.models.segmenter import MedVisionLlama\n\n"
        'model = MedVisionLlama.from_pretrained("THIS FOLDER, OR OWNER/NAME")\n```',
    ]
    if block:
        sections += ["## Language block", _block_text(block)]
    sections += ["## Training data", _data_text(task)]
    if description.domain:
        about = describe_domain(description.domain, task, description.data)
        sections += ["## Images that it takes", about]
    if metrics:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
        sections += ["## Results", f"| metric | value |\n|---|---|\n{rows}"]
    sections += [
        "## Intended use and limits",
        "For research on segmentation methods only. Not a medical device, not for clinical use: "
        "no diagnosis and no treatment may rest on its output. It was trained for one task; on "
        "images of other scanners, protocols, bodies or diseases its output means nothing until "
        "it is measured there.",
    ]
    tags = "tags: [medical-imaging, segmentation, 3d]"
    front = f"---\nlibrary_name: mvl\npipeline_tag: image-segmentation\n{tags}\n---"
    return "\n\n".join([front, *sections]) + "\n"


def _block_text(block):
    origin = f"`{block['source']}`"
    if block["revision"]:
        origin += f", revision `{block['revision']}`"
    text = (
        f"Layer {block['layer']}"
        + (f" and the {block['layers'] - 1} after it" if block["layers"] > 1 else "")
        + f" of {origin} (family {block['family']}, width {block['hidden_size']}, "
        f"{block['parameters']:,} weights), control: {block['control']}, SHA-256 "
    )
    drawn = block["control"] == "random" or block["source"].startswith("random:")
    if drawn or block["control"] == "identity":
        text += f"of its configuration `{block['sha256']}`. "
        if drawn:
            return text + (
                "No weight of the source is in it: the block has the source's architecture, and "
                "its weights are drawn from the experiment's seed whenever the model is loaded."
            )
        return text + "No weight of the source is in it: tokens pass the mappers alone."
    text += f"`{block['sha256']}`. "
    if block["control"] == "trainable":
        return text + (
            "The block was trained too, so its weights are in this file: they derive from the "
            "source's, and the source's licence holds for them."
        )
    text += (
        "The block's weights are not in this file: loading reads them from their source, and "
        "refuses another block. Their licence travels with them, so read it at the source."
    )
    if licence := LICENCES.get(block["source"]):
        text += f" The source's own card says {licence}."
    if block["family"] == "llama":
        text += (
            " Where the source is one of Meta's Llama models, that is its community licence, which "
            "also has rules on naming and marking models that were trained with Llama."
        )
    return text


def _data_text(task):
    if task is None:
        return "Not recorded."
    labels = ", ".join(task.labels.values())
    text = f"{task.name} ({task.modality}; channels {', '.join(task.channels)}; labels {labels}). "
    if task.synthetic:
        return text + "SYNTHETIC: phantoms, not patients. Its results say nothing about medicine."
    if task.name in TASKS:
        return text + (
            "Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 4128, "
            "2022; Simpson et al., arXiv:1902.09063), CC-BY-SA 4.0."
        )
    return text + "A data set of the user's own; its licence and provenance are the user's to add."
