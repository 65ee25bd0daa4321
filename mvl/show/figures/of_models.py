"""Figures of a model: what it is made of, where its weights are, what it has learned to mix."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from mvl.show.figures.style import BLACK, BLUE, GREY, SKY, drawn

#: Inches: a part's box, the space between two of them, and how far a residual connection bows.
_BOX, _BETWEEN, _BOW = (0.95, 0.8), 0.76, 0.34


@drawn
def dataflow(parts, skips=()):
    """A model's parts in the order of the data, with their weights and what goes between them.

    Args:
        parts: table with a part as index and columns trained and frozen (numbers of weights) and
            output (what it hands on, such as "175 × 64"). The first is the volume, without weights.
        skips: pairs of parts (a, b): a's output is added to b's input.
    """
    names = list(parts.index)
    (width, height), step = _BOX, _BOX[0] + _BETWEEN
    left = {name: (n - 1) * step for n, name in enumerate(names)}
    xlim = (left[names[0]] + width - 0.25, left[names[-1]] + step + 0.1)
    ylim = (-_BOW * len(skips) - 0.1, height + 0.1)
    # A third of an inch for the title: all else is to the scale of inches.
    figure, axes = plt.subplots(figsize=(np.ptp(xlim) + 0.1, np.ptp(ylim) + 0.35))
    for name, part in zip(names, parts.itertuples(), strict=True):
        if name != names[0]:
            _part(axes, left[name], name, part)
        end = left[name] + width
        _arrow(axes, (end, height / 2), (end + _BETWEEN, height / 2))
        axes.text(end + _BETWEEN / 2, height / 2 + 0.07, part.output, ha="center", fontsize=7.5)
    for n, (source, target) in enumerate(skips, start=1):
        start, end = left[source] + width + _BETWEEN / 2, left[target] - _BETWEEN / 2
        low, high = height / 2 - 0.04, -_BOW * n
        axes.plot([start, start, end], [low, high, high], color=GREY, linewidth=1.3)
        _arrow(axes, (end, high), (end, low), GREY)
        axes.text(end + 0.05, high / 2, "+", color=GREY, va="center", fontsize=12)
    axes.set(xlim=xlim, ylim=ylim, aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Dashed: mostly frozen. Between the boxes: tokens × width.")
    return figure


def _part(axes, left, name, part):
    (width, height), frozen = _BOX, part.frozen > part.trained
    axes.add_patch(
        FancyBboxPatch(
            (left, 0),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor="#E3F1FA" if frozen else "white",
            edgecolor=SKY if frozen else BLUE,
            linestyle="--" if frozen else "-",
            linewidth=1.6,
        )
    )
    counts = {"trained": part.trained, "frozen": part.frozen}
    weights = [f"{_short(count)} {kind}" for kind, count in counts.items() if count]
    middle = left + width / 2
    axes.text(middle, 0.66 * height, name, ha="center", va="center", fontweight="bold")
    axes.text(middle, 0.27 * height, "\n".join(weights), ha="center", va="center", fontsize=8)


def _arrow(axes, start, end, colour=BLACK):
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3}
    axes.annotate("", end, start, arrowprops=style)


def _short(number):
    """884,416 as "884 k"."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


@drawn
def parameters(counts):
    """Trained against frozen weights, by part of the model.

    Args:
        counts: table with a part as index and columns trained and frozen.
    """
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(counts) + 1.2))
    places = np.arange(len(counts))
    axes.barh(places, counts["trained"], color=BLUE, label="trained")
    axes.barh(places, counts["frozen"], left=counts["trained"], color=SKY, label="frozen")
    for place, (trained, frozen) in zip(
        places, counts[["trained", "frozen"]].to_numpy(), strict=True
    ):
        axes.text(trained + frozen, place, f" {trained + frozen:,}", va="center", fontsize=9)
    axes.set_yticks(places, counts.index)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.set(title="Where the parameters are", xlabel="parameters")
    axes.legend(loc="best")
    return figure


@drawn
def attention_mix(mixes):
    """The share of global attention that hybrid attention has learned, by depth and head.

    Args:
        mixes: (blocks, heads), as `mvl.models.activations.attention_mixes` gives it.
    """
    blocks, heads = mixes.shape
    figure, axes = plt.subplots(figsize=(0.45 * blocks + 2.2, 0.4 * heads + 1.4))
    picture = axes.imshow(mixes.T, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(blocks), range(1, blocks + 1))
    axes.set_yticks(range(heads), range(1, heads + 1))
    axes.set(title="Attention: local 0, global 1", xlabel="block", ylabel="head")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, ticks=[0, 0.5, 1])
    return figure
