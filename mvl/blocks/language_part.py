"""The language part: one frozen transformer block of a language model between two mappers.

    z = D1(x)                   (B, T, E) -> (B, T, L)
    x + D2(block(z) + z)        (B, T, L) -> (B, T, E)

Either residual connection may be left out.

The block is one layer (or several consecutive ones) of a Hugging Face model, built from the
model's whole configuration at its own index, with its own weights and nothing else of the
model. It stays in eval() in every arm. Its controls have the same shape and the same path:
random and shuffled weights, the identity, a block that is trained too.
"""

import contextlib
import copy
import hashlib
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mvl.blocks.sources import hash_tensors, open_checkpoint, read_tensors, store_tensors
from mvl.config import derive_seed
from mvl.errors import BlockError
from mvl.files import read_json, write_json

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Added to the mean square under the root of `unit_norm`; Llama 3's own value.
UNIT_NORM_EPS = 1e-5
_RECORD = "block.json"


@dataclass(frozen=True)
class Family:
    """What differs between transformers' model families."""

    #: Prefix of transformers' class names, and the layer's class.
    name: str
    layer: str
    #: Where the layers may sit in a state dict.
    prefixes: tuple[str, ...]
    #: The submodule of a layer that holds `is_causal`.
    attention: str = "self_attn"
    #: Layers take cos and sin.
    rotary: bool = True
    #: Gemma 2 caps its attention scores, which sdpa cannot.
    attention_kind: str = "sdpa"
    #: Layers attend to a sliding window: never, as `config.layer_types` says, or always.
    window: str = "never"
    #: Buffers of older checkpoints, which hold no weights.
    ignored: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    #: Endings of older checkpoints' names and what they are called now.
    renamed: tuple[tuple[str, str], ...] = ()


_DECODER = ("model.layers", "layers")

#: config.json's model_type -> its family.
FAMILIES = {
    "llama": Family("Llama", "LlamaDecoderLayer", _DECODER),
    "mistral": Family("Mistral", "MistralDecoderLayer", _DECODER, window="always"),
    "gemma2": Family(
        "Gemma2", "Gemma2DecoderLayer", _DECODER, attention_kind="eager", window="typed"
    ),
    "qwen2": Family("Qwen2", "Qwen2DecoderLayer", _DECODER, window="typed"),
    "qwen3": Family("Qwen3", "Qwen3DecoderLayer", _DECODER, window="typed"),
    "phi3": Family("Phi3", "Phi3DecoderLayer", _DECODER, window="always"),
    "gpt2": Family(
        "GPT2",
        "GPT2Block",
        ("transformer.h", "h"),
        attention="attn",
        rotary=False,
        ignored=("attn.bias", "attn.masked_bias"),
    ),
    "biogpt": Family("BioGpt", "BioGptDecoderLayer", ("biogpt.layers", "layers"), rotary=False),
    "bert": Family(
        "Bert",
        "BertLayer",
        ("bert.encoder.layer", "encoder.layer"),
        attention="attention.self",
        rotary=False,
        renamed=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    ),
}


class _Architecture:
    """A model's family and whole configuration, and which of its layers are meant.

    Raises:
        BlockError: an unknown family, an unusable config.json, a layer that does not exist.
    """

    def __init__(self, checkpoint, layer, layers):
        from transformers import CONFIG_MAPPING

        kind = checkpoint.config.get("model_type")
        if kind not in FAMILIES:
            raise BlockError(
                f"{checkpoint.source}: model family {kind!r} is not known; known are "
                + ", ".join(FAMILIES)
            )
        self.kind, self.family = kind, FAMILIES[kind]
        # transformers raises whatever comes to hand for a configuration that cannot be.
        try:
            self.config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(checkpoint.config))
            self.config._attn_implementation = self.family.attention_kind
            self.total = self.config.num_hidden_layers
            self.width = self.config.hidden_size
            self.first = layer + self.total if layer < 0 else layer
            if self.first >= 0 and self.first + layers <= self.total:
                self.indices = range(self.first, self.first + layers)
                with torch.device("meta"):
                    self.skeleton = self.build()
        except Exception as error:
            reason = " ".join(str(error).split())  # transformers takes several lines for it
            raise BlockError(
                f"{checkpoint.source}: its config.json is no usable {kind} configuration: {reason}"
            ) from error
        if not hasattr(self, "indices"):
            raise BlockError(
                f"{checkpoint.source} has {self.total} layers: there is no layer {layer}"
                + (f" with {layers - 1} after it" if layers > 1 else "")
            )

    def _class(self, name):
        module = importlib.import_module(f"transformers.models.{self.kind}.modeling_{self.kind}")
        return getattr(module, name)

    def build(self):
        """The layers, on the default device, at their own indices of the whole configuration."""
        make = self._class(self.family.layer)
        return nn.ModuleList(make(self.config, layer_idx=index) for index in self.indices)

    def rotary(self):
        """The model's own rotary position embedding, always with real values."""
        with torch.device("cpu"):
            return self._class(f"{self.family.name}RotaryEmbedding")(self.config)

    def window(self, index):
        """How many tokens back a layer's causal mask reaches; None for all."""
        kind = self.family.window
        typed = kind == "typed" and self.config.layer_types[index] == "sliding_attention"
        return self.config.sliding_window if typed or kind == "always" else None

    def initialise(self, layers):
        """Draw the family's own first weights, in place, from the global generator."""
        owner = self._class(f"{self.family.name}PreTrainedModel")(self.config)
        layers.apply(owner._init_weights)

    def head_width(self):
        """Channels of one attention head."""
        explicit = getattr(self.config, "head_dim", None)
        return explicit or self.width // self.config.num_attention_heads

    def places(self, checkpoint):
        """{parameter of `build()`: tensor of the checkpoint}, each accounted for.

        Raises:
            BlockError: the layer is not there, lacks a tensor, or has one that is not understood.
        """
        names = checkpoint.names()
        wanted = {}
        for i, index in enumerate(self.indices):
            stems = [f"{prefix}.{index}." for prefix in self.family.prefixes]
            stem = next((s for s in stems if any(n.startswith(s) for n in names)), None)
            if stem is None:
                raise BlockError(f"{checkpoint.source}: no tensor's name starts with {stems[0]}")
            found = {}
            for name in names:
                part = name.removeprefix(stem)
                if name.startswith(stem) and part not in self.family.ignored:
                    for old, new in self.family.renamed:
                        part = part.removesuffix(old) + new if part.endswith(old) else part
                    found[part] = name
            expected = dict(self.skeleton[i].named_parameters())
            missing, foreign = sorted(expected - found.keys()), sorted(found.keys() - expected)
            if missing or foreign:
                raise BlockError(
                    f"{checkpoint.source}: layer {index} lacks {missing or 'nothing'} and has "
                    f"{foreign or 'nothing'} that its config.json does not explain"
                )
            wanted |= {f"{i}.{part}": found[part] for part in expected}
        return wanted

    def entries(self, checkpoint):
        """{parameter of `build()`: its `Entry`}, shapes checked.

        Raises:
            BlockError: as `places`, or a tensor of another shape than config.json says.
        """
        places = self.places(checkpoint)
        entries = checkpoint.entries(places.values())
        for name, parameter in self.skeleton.named_parameters():
            shape = entries[places[name]].shape
            if shape != tuple(parameter.shape):
                raise BlockError(
                    f"{checkpoint.source}: {places[name]} has shape {shape}, but config.json says "
                    f"{tuple(parameter.shape)}"
                )
        return {name: entries[place] for name, place in places.items()}

    def parameters(self):
        """Number of weights in the block."""
        return sum(p.numel() for p in self.skeleton.parameters())


def _draws_weights(config):
    """Whether the block's weights come from its architecture alone."""
    return config.control == "random" or config.source.startswith("random:")


def _open(config):
    checkpoint = open_checkpoint(config.source)
    architecture = _Architecture(checkpoint, config.layer, config.layers)
    if config.rotary and not architecture.family.rotary:
        raise BlockError(
            f"{config.source}: a {architecture.kind} layer has no rotary embedding; set rotary to "
            "false"
        )
    return checkpoint, architecture


def _read(checkpoint, architecture, dtype):
    """({parameter: tensor}, SHA-256) of the block, from the cache if it comes from the hub.

    Raises:
        BlockError: the weights cannot be had, or are not those that were once extracted.
    """
    span = f"{architecture.first}-{architecture.first + len(architecture.indices) - 1}"
    folder = checkpoint.kept_folder(f"layer{span}-{dtype}")
    if folder is None:
        tensors = read_tensors(checkpoint, architecture.entries(checkpoint), _DTYPES[dtype])
        return tensors, hash_tensors(tensors)
    return _stored(checkpoint, architecture, dtype, folder)


def _stored(checkpoint, architecture, dtype, folder):
    """As `_read`, through a folder that is filled first if it is not yet there."""
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        places, entries = architecture.places(checkpoint), architecture.entries(checkpoint)
        named = {places[name]: entry for name, entry in entries.items()}
        store_tensors(checkpoint, named, _DTYPES[dtype], folder)
    stored = open_checkpoint(f"path:{folder}")
    tensors = read_tensors(stored, architecture.entries(stored), _DTYPES[dtype])
    record = {
        "source": checkpoint.origin,
        "revision": checkpoint.revision,
        "layers": list(architecture.indices),
        "dtype": dtype,
        "sha256": hash_tensors(tensors),
    }
    path = folder / _RECORD
    if not path.is_file():
        write_json(path, record)
    if read_json(path) != record:
        raise BlockError(
            f"{folder} holds another block, or a damaged one (its {_RECORD} disagrees): delete it "
            "and run again"
        )
    return tensors, record["sha256"]


def extract_block(config, folder):
    """Copy a block into a folder that is itself a "path:" source, for a machine without network.

    Args:
        config: a `LanguageConfig`; source, layer, layers and dtype count.
        folder: made if missing; an interrupted copy goes on where it stopped.

    Returns:
        The block's SHA-256, as in `block_reference`.

    Raises:
        BlockError: the block cannot be had, the folder holds another one or a whole model, or it
            is random.
    """
    checkpoint, architecture = _open(config)
    if checkpoint.files is None:
        raise BlockError(f"{config.source} has no weights to extract")
    kind, _, place = config.source.partition(":")
    own = kind == "path" and Path(os.path.expanduser(place)).resolve() == Path(folder).resolve()
    if own or (Path(folder) / "model.safetensors.index.json").exists():
        raise BlockError(f"{folder} holds a model, which the block would displace; choose another")
    return _stored(checkpoint, architecture, config.dtype, folder)[1]


def block_reference(config):
    """What a run records in place of the block's weights.

    Args:
        config: a `LanguageConfig`.

    Returns:
        dict of source, revision (the hub's commit, a package file's SHA-256, or None), family,
        hidden_size, layer (never negative), layers, dtype, control, parameters, and sha256: of
        the block's tensors as extracted; of the architecture's configuration where no weights
        are read (control random or identity, or a "random:" source).

    Raises:
        BlockError: as `build_language`.
    """
    checkpoint, architecture = _open(config)
    if _draws_weights(config) or config.control == "identity":
        text = json.dumps(checkpoint.config, sort_keys=True, separators=(",", ":"))
        found = hashlib.sha256(text.encode()).hexdigest()
    else:
        found = _read(checkpoint, architecture, config.dtype)[1]
    return {
        "source": config.source,
        "revision": checkpoint.revision,
        "family": architecture.kind,
        "hidden_size": architecture.width,
        "layer": architecture.first,
        "layers": config.layers,
        "dtype": config.dtype,
        "control": config.control,
        "parameters": 0 if config.control == "identity" else architecture.parameters(),
        "sha256": found,
    }


def has_rotary(source):
    """Whether the language model of a source has a rotary position embedding.

    Raises:
        BlockError: the source cannot be found, reached or understood.
    """
    return _Architecture(open_checkpoint(source), -1, 1).family.rotary


def describe(source, layer=-1):
    """Sizes of a source, without reading its weights.

    Args:
        source: a `LanguageConfig.source`.
        layer: which layer's bytes to count.

    Returns:
        dict of source, revision, family, hidden_size, model_layers, block_parameters,
        block_bytes and model_bytes (as stored; both None for a "random:" source).

    Raises:
        BlockError: the source cannot be found, reached or understood.
    """
    checkpoint = open_checkpoint(source)
    architecture = _Architecture(checkpoint, layer, 1)
    size = None
    if checkpoint.files is not None:
        size = sum(e.stop - e.start for e in architecture.entries(checkpoint).values())
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


@contextlib.contextmanager
def _drawn_by(*parts):
    """Draw on the CPU from the seed of `parts`; no global generator moves."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators' generators too.
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield


class FrozenBlock(nn.Module):
    """Consecutive layers of a language model, in eval() whatever `.train()` says.

    Attributes:
        layers: the transformers layers.
        by_reference: the weights are known by their source or seed, so a run does not save them.
    """

    def __init__(self, architecture, config, layers):
        super().__init__()
        self.layers = layers
        self.causal = config.causal
        self.dtype = _DTYPES[config.dtype]
        self.by_reference = config.control != "trainable"
        self.windows = [architecture.window(index) for index in architecture.indices]
        self.has_rotary = architecture.family.rotary
        self.head_width = architecture.head_width()
        self.rotary = architecture.rotary() if config.rotary else None
        for layer in layers:
            # Decoder layers are causal without a mask until this is cleared.
            layer.get_submodule(architecture.family.attention).is_causal = False
        self.requires_grad_(not self.by_reference)
        self.train()

    def train(self, mode=True):
        """Stay in eval(): the block's own dropout would be noise that its controls lack."""
        return super().train(False)

    def forward(self, z):
        """(B, T, L) -> (B, T, L), float32."""
        # The block's number format is its own: no autocast reaches into it.
        with torch.autocast(z.device.type, enabled=False):
            x = z.to(self.dtype)
            positions = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
            arguments = {}
            if self.has_rotary:
                arguments = {"position_embeddings": self._rotation(x, positions)}
            for layer, window in zip(self.layers, self.windows, strict=True):
                mask = _causal_mask(positions[0], window, x.dtype) if self.causal else None
                x = layer(x, attention_mask=mask, position_ids=positions, **arguments)
            return x.float()

    def _rotation(self, x, positions):
        """(cos, sin), broadcastable to (B, T, head width); (1, 0) turns nothing."""
        if self.rotary is not None:
            return self.rotary(x, positions)
        shape = (1, 1, self.head_width)
        return x.new_ones(shape), x.new_zeros(shape)


def _causal_mask(positions, window, dtype):
    """Additive mask (1, 1, T, T): token t sees itself and the tokens before, `window` in all."""
    back = positions[:, None] - positions[None, :]  # (T, T)
    hidden = back < 0
    if window is not None:
        hidden = hidden | (back >= window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)[None, None]


class LanguagePart(nn.Module):
    """x -> D2(h + z) with z = D1(x) and h from the block, as `LanguageConfig.terms` says.

    Attributes:
        d1: the mapper from the token width E to the block's width L.
        block: a `FrozenBlock`, or nn.Identity for the control of that name.
        d2: the mapper from L back to E.
        config: the `LanguageConfig`; `terms`, `scale`, `residual`, `skip` and `unit_norm` count.
        edit: what is done to h before it is added, (B, T, L) -> (B, T, L); None for nothing.
            `study.mechanism` sets it to see whether a trained model uses the block.
    """

    def __init__(self, d1, block, d2, config):
        super().__init__()
        self.d1, self.block, self.d2, self.config = d1, block, d2, config
        self.edit = None

    def forward(self, x):
        """(B, T, E) -> (B, T, E)."""
        z, h = self.terms(x)
        y = self.d2(h + z if self.config.residual else h)  # (B, T, E)
        return x + y if self.config.skip else y

    def terms(self, x):
        """(z, h), as they are added before D2: (B, T, E) -> two of (B, T, L)."""
        z, own = self.d1(x), self.config
        if own.scale is not None:
            z = own.scale * _unit_rms(z)
        h = self.block(z)
        if own.terms == "contribution":
            h = h - z
        if own.terms != "sum":
            z = _unit_rms(z)
        if own.terms != "sum" or own.unit_norm:
            h = _unit_rms(h)
        return z, h if self.edit is None else self.edit(h)

    def update(self, x):
        """D2(h): what the block itself writes onto the tokens, (B, T, E)."""
        return self.d2(self.terms(x)[1])


def _unit_rms(x):
    return nn.functional.rms_norm(x, x.shape[-1:], eps=UNIT_NORM_EPS)


def build_language(config, width, seed):
    """Build the language part.

    Whatever is drawn is a function of `seed` and of the part's name: D1 and D2 start from the
    same weights in every control and with or without adapters. Under `torch.device("meta")`
    nothing is read or drawn, for counting.

    Args:
        config: a `LanguageConfig`.
        width: the segmenter's token width E.
        seed: the experiment's seed.

    Returns:
        A `LanguagePart` of (B, T, E) -> (B, T, E).

    Raises:
        BlockError: the source cannot be found, read or trusted; an unknown family; a layer that
            does not exist; rotary asked of a family that has none.
    """
    checkpoint, architecture = _open(config)
    mappers = {}
    for name, sizes in (("d1", (width, architecture.width)), ("d2", (architecture.width, width))):
        with _drawn_by(seed, f"language.{name}"):
            mappers[name] = nn.Linear(*sizes)
    if config.start == "identity" and torch.get_default_device().type != "meta":
        with _drawn_by(seed, "language.d1.identity"), torch.no_grad():
            nn.init.orthogonal_(mappers["d1"].weight)  # (L, E), columns of length 1
            mappers["d2"].weight.copy_(mappers["d1"].weight.T)
            for mapper in mappers.values():
                mapper.bias.zero_()
    if config.control == "identity":
        block = nn.Identity()
    else:
        block = FrozenBlock(
            architecture, config, _weighted_layers(checkpoint, architecture, config, seed)
        )
    part = LanguagePart(mappers["d1"], block, mappers["d2"], config)
    if config.lora_rank:
        _add_lora(part, config, seed)
    return part


def _weighted_layers(checkpoint, architecture, config, seed):
    """The layers with the weights that the control asks for, in the block's number format."""
    dtype = _DTYPES[config.dtype]
    if torch.get_default_device().type == "meta":
        return architecture.skeleton.to(dtype)
    if _draws_weights(config):
        layers = architecture.skeleton.to_empty(device="cpu")
        with _drawn_by(seed, "language.block"):
            architecture.initialise(layers)
        layers = layers.to(dtype)
    else:
        tensors, _ = _read(checkpoint, architecture, config.dtype)
        layers = architecture.skeleton
        layers.load_state_dict(tensors, strict=True, assign=True)
    if config.control == "shuffled":
        with torch.no_grad():
            for name, parameter in layers.named_parameters():
                with _drawn_by(seed, "language.block.shuffled", name):
                    order = torch.randperm(parameter.numel())
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    if config.control == "matched":
        with torch.no_grad():
            for name, parameter in layers.named_parameters():
                if parameter.ndim < 2:
                    continue  # norms and biases keep their scale
                with _drawn_by(seed, "language.block.matched", name):
                    drawn = torch.randn(parameter.shape)
                parameter.copy_(parameter.mean() + parameter.std() * drawn)
    return layers


def _add_lora(part, config, seed):
    """Put peft's low-rank adapters on the mappers, the block's projections, or both."""
    if config.lora_on in ("mappers", "both"):
        for name in ("d1", "d2"):
            # peft replaces children, so a bare Linear needs a parent. It freezes the weight, as
            # the paper's mappers have it; their biases go on training.
            parent = nn.ModuleDict({name: getattr(part, name)})
            with _drawn_by(seed, f"language.{name}.lora"):
                _inject(parent, [name], config)
            parent[name].base_layer.bias.requires_grad_(True)
            setattr(part, name, parent[name])
    if config.lora_on in ("block", "both") and isinstance(part.block, FrozenBlock):
        from transformers.pytorch_utils import Conv1D

        layers = part.block.layers
        linear = [n for n, child in layers.named_modules() if isinstance(child, nn.Linear)]
        transposed = [n for n, child in layers.named_modules() if isinstance(child, Conv1D)]
        with _drawn_by(seed, "language.block.lora"):
            # No family mixes the two kinds.
            _inject(layers, linear or transposed, config, fan_in_fan_out=bool(transposed))
        for name, parameter in layers.named_parameters():
            if _is_adapter(name):
                # What trains does so in float32, whatever the block is held in.
                parameter.data = parameter.data.float()
            elif not part.block.by_reference:
                # peft froze the trainable control's own weights.
                parameter.requires_grad_(True)
        part.block.train()


def _inject(parent, names, config, fan_in_fan_out=False):
    from peft import LoraConfig, inject_adapter_in_model

    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=names,
        fan_in_fan_out=fan_in_fan_out,
    )
    inject_adapter_in_model(adapters, parent)


def _is_adapter(name):
    return ".lora_" in name


def saved_keys(module):
    """The keys of `module.state_dict()` that a run saves, in order.

    All but the weights of a block that its source and seed give again. So the mappers' random,
    frozen base under LoRA is saved, adapters inside a block are, and so is a block that was
    trained or merged.

    Args:
        module: a `LanguagePart` or any module that holds one, such as the segmenter.
    """
    left_out = set()
    for prefix, child in module.named_modules():
        if isinstance(child, FrozenBlock) and child.by_reference:
            stem = f"{prefix}." if prefix else ""
            left_out |= {stem + key for key in child.state_dict() if not _is_adapter(key)}
    return [key for key in module.state_dict() if key not in left_out]


def merge_lora(part):
    """Add the adapters into the weights they stand beside, in place; the outputs stay equal.

    A block with merged adapters is no longer the source's, so `saved_keys` then names it whole.

    Args:
        part: a `LanguagePart`; without adapters it is left as it is.

    Returns:
        `part`.
    """
    from peft.tuners.lora import LoraLayer

    for name, child in list(part.named_modules()):
        if isinstance(child, LoraLayer):
            child.merge(safe_merge=True)
            part.set_submodule(name, child.get_base_layer())
            if name.startswith("block."):
                part.block.by_reference = False
    return part
