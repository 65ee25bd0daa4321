"""MedVisionLlama: the parts put together, and how a configuration becomes a model.

volume (B, C, H, W, D)
  PatchEmbed            -> (B, T, E) + learned position
  encoder blocks
  MultiScaleFusion      (optional)
  LanguagePart          (optional)  x + D2(block(D1(x)) + D1(x))
  decoder blocks, norm
  head                  -> logits (B, classes, H, W, D)
"""

from dataclasses import replace

import torch
from torch import nn

from mvl.blocks.language_part import build_language, saved_keys
from mvl.config import derive_seed
from mvl.errors import RunError
from mvl.models.attention import Attention, Block, HybridAttention
from mvl.models.folder import Description, read_folder, write_folder
from mvl.models.fusion import MultiScaleFusion
from mvl.models.tokens import ConvHead, LinearHead, PatchEmbed, token_grid
from mvl.models.trained import load_trained_state


class MedVisionLlama(nn.Module):
    """A vision transformer for volumes with an optional frozen language block.

    Args:
        embed: volume -> tokens.
        position: learned position of each token, (1, T, E).
        encoder: transformer blocks before the language part.
        fusion: `MultiScaleFusion`, or None.
        language: `LanguagePart`, or None.
        decoder: transformer blocks after it.
        norm: the last normalisation of the stream; `nn.Identity` for none.
        head: tokens and volume -> logits.
        language_first: the released code's order: the language part sits before the encoder,
            on tokens that carry no position yet.

    Attributes:
        description: what `build_segmenter` was asked for; None for parts put together by hand.
    """

    description = None

    def __init__(
        self, embed, position, encoder, fusion, language, decoder, norm, head, language_first=False
    ):
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(position)
        self.encoder = nn.ModuleList(encoder)
        self.fusion = fusion
        self.language = language
        self.decoder = nn.ModuleList(decoder)
        self.norm = norm
        self.head = head
        self.language_first = language_first

    def forward(self, volume):
        """Logits, never probabilities.

        Args:
            volume: (B, C, H, W, D), normalised, on the grid that the model was built for.

        Returns:
            (B, classes, H, W, D); one class is foreground against background by a sigmoid.
        """
        x = self.embed(volume)  # (B, T, E)
        if self.language is not None and self.language_first:
            x = self.language(x)
        x = x + self.position
        states = []
        for block in self.encoder:
            x = block(x)
            states.append(x)
        if self.fusion is not None:
            x = self.fusion(_evenly(states, len(self.fusion.scales)))
        if self.language is not None and not self.language_first:
            x = self.language(x)
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x), volume)

    def trained_state(self):
        """The weights that are the run's own, by name: all but a language block that its source
        gives again (see `language.saved_keys`)."""
        state = self.state_dict()
        return {name: state[name] for name in saved_keys(self)}

    def load_trained_state(self, state, origin):
        """Take over what `trained_state` gave.

        Args:
            state: {name: tensor}.
            origin: where it came from, for the error.

        Raises:
            RunError: a weight is missing, foreign or of another shape.
        """
        load_trained_state(self, state, origin)

    def save_pretrained(self, folder, task=None, data=None, metrics=None, domain=None):
        """Save the model in the hub's layout: config.json, model.safetensors, README.md.

        The language block's weights stay where they came from; the folder names them.

        Args:
            folder: made if it is missing; an older model in it is replaced.
            task: the `Task` it was trained on; for the card, and for use on an image.
            data: the `DataConfig` it was trained with, likewise.
            metrics: {name: number} for the card.
            domain: the `TrainingDomain`, such as a `Run` has: what images the model takes.

        Raises:
            RunError: the model is not as `build_segmenter` made it (put together by hand, or
                its adapters merged), or `task` or `data` do not fit it.
            BlockError: the language block cannot be found or trusted.
        """
        about = self.description
        if about is None:
            raise RunError("only a model from build_segmenter knows what it was built from")
        with torch.device("meta"):
            built = build_segmenter(
                about.config, about.channels, about.classes, about.grid, about.seed
            )
        weights = self.trained_state()
        if weights.keys() != built.trained_state().keys():
            raise RunError("the model was changed since it was built; save it before merge_lora")
        about = replace(
            about,
            task=task or about.task,
            data=data or about.data,
            domain=domain or about.domain,
        )
        write_folder(folder, about, weights, metrics)

    @staticmethod
    def from_pretrained(source, revision=None, block=None):
        """Load what `save_pretrained` saved: strictly, checked by hash, never by pickle.

        Args:
            source: a folder, or a model's name "OWNER/NAME" on the Hugging Face hub.
            revision: the hub's branch, tag or commit.
            block: a `LanguageConfig.source` to take the language block from, where the saved
                one is not at hand; it must hold the same weights.

        Returns:
            A `MedVisionLlama` in eval(), on the CPU; its `description` has task and data.

        Raises:
            RunError: files are missing, damaged, of another kind or of another format version.
            BlockError: the language block is not at hand, or is not the one that was saved.
        """
        about, weights = read_folder(source, revision, block)
        model = build_segmenter(about.config, about.channels, about.classes, about.grid, about.seed)
        model.load_trained_state(weights, source)
        model.description = about
        return model.eval()


def _evenly(states, count):
    """`count` of the states at even distances, ending with the last; fewer states repeat."""
    return [states[max((i + 1) * len(states) // count - 1, 0)] for i in range(count)]


def build_segmenter(config, channels, classes, grid, seed):
    """The model that a configuration describes, with its first weights.

    Each part draws its weights from a generator of its own, seeded by (seed, part's name). So a
    part that two configurations share starts from the same weights in both, whatever other parts
    are present.

    Args:
        config: a `ModelConfig`.
        channels: the image's channels.
        classes: channels of the logits; 1 for foreground against background.
        grid: the volume's size in voxels (H, W, D).
        seed: the experiment's seed.

    Returns:
        A `MedVisionLlama`, in float32 on the CPU (or on the device of a `torch.device` context).

    Raises:
        ConfigError: the patch does not divide the grid.
        BlockError: the language block cannot be found, read or trusted.
    """
    tokens = token_grid(grid, config.patch)
    count = tokens[0] * tokens[1] * tokens[2]

    def part(name, make):
        # fork_rng puts the global generator back, so that building a model leaves no trace.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, name))
            return make()

    def block(index):
        if config.attention == "hybrid":
            attention = HybridAttention(
                config.width, config.heads, tokens, config.window, index % 2 == 1, config.dropout
            )
        else:
            attention = Attention(config.width, config.heads, config.dropout)
        return Block(attention, config.width, config.mlp_ratio, config.dropout)

    def head():
        if config.head == "conv":
            return ConvHead(
                channels, classes, config.head_channels, config.patch, config.width, tokens
            )
        return LinearHead(classes, config.patch, config.width, tokens)

    model = MedVisionLlama(
        embed=part("embed", lambda: PatchEmbed(channels, config.patch, config.width)),
        position=part("position", lambda: 0.02 * torch.randn(1, count, config.width)),
        encoder=[part(f"encoder.{i}", lambda i=i: block(i)) for i in range(config.encoder_depth)],
        fusion=part("fusion", lambda: MultiScaleFusion(config.width, tokens, config.fusion_kernels))
        if config.fusion
        else None,
        language=build_language(config.language, config.width, seed) if config.language else None,
        decoder=[
            part(f"decoder.{i}", lambda i=i: block(config.encoder_depth + i))
            for i in range(config.decoder_depth)
        ],
        norm=nn.LayerNorm(config.width) if config.final_norm else nn.Identity(),
        head=part("head", head),
        language_first=config.language_position == "before",
    )
    model.description = Description(config, channels, classes, tuple(grid), seed)
    return model
