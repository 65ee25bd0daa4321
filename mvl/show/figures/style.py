"""What all figures have in common: style, colours, and the files of a figure.

The style is `mvl.mplstyle`. Colours are those of Okabe and Ito ("Color Universal Design", 2008),
which colour-blind readers can tell apart. An arm has the same colour in every figure.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image

from mvl.files import written

ATTRIBUTION = "Medical Segmentation Decathlon, CC-BY-SA 4.0"
SYNTHETIC = "SYNTHETIC DATA: a phantom, not patients"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, OLIVE = "#7F7F7F", "#8F8A00"

#: Widths in inches: a journal's column (88 mm) and its page (180 mm).
COLUMN, PAGE = 88 / 25.4, 180 / 25.4

#: Colour -> arms. Arms of equal configuration in two suites have the same one.
_ARMS = {
    BLACK: ("none", "vit", "000"),
    BLUE: ("pretrained", "100", "lora-0"),
    VERMILLION: ("random", "released", "001", "changed"),  # a notebook's "Change this"
    ORANGE: ("shuffled", "v3", "010"),
    SKY: ("identity", "110"),
    GREEN: ("trainable", "v1", "111"),
    PURPLE: ("vit-mlp", "101", "best", "conv-011"),  # `best` is conv-011
    OLIVE: ("011",),  # yellow would be too light for a line on white
}
ARM_COLOURS = {arm: colour for colour, arms in _ARMS.items() for arm in arms}

#: Arm -> what a figure calls it. Three digits are block, hybrid attention, fusion (docs/arms.md).
_NAMES = {
    **dict.fromkeys(("none", "vit", "000"), "plain ViT"),
    **dict.fromkeys(("pretrained", "100", "lora-0"), "ViT + pre-trained block"),
    "random": "ViT + random block",
    "shuffled": "ViT + shuffled block",
    "identity": "ViT + mappers, no block",
    "trainable": "ViT + block, trained too",
    "vit-mlp": "ViT, wider MLPs",
    "vit-depth": "ViT, more layers",
    "001": "ViT + fusion",
    "010": "ViT + hybrid attention",
    "011": "ViT + hybrid + fusion",
    "101": "ViT + block + fusion",
    "110": "ViT + block + hybrid",
    **dict.fromkeys(("v1", "111"), "version 1 (all parts)"),
    "v3": "version 3 (block, LoRA)",
    "released": "released code's model",
    "conv-000": "ViT, conv. head",
    **dict.fromkeys(("best", "conv-011"), "conv. head + hybrid + fusion"),
    "conv-111": "conv. head + all parts",
    "lora-4": "LoRA of rank 4",
    "lora-16": "LoRA of rank 16",
    "lora-4-mappers": "LoRA, mappers only",
    "lora-4-block": "LoRA, block only",
    "layer-first": "first layer's block",
    "no-residual": "no residual around it",
    "causal": "causal mask",
    "rotary": "rotary positions",
    "before": "block before the ViT",
    "vit-2x": "plain ViT, twice the epochs",
    **{"unet": "U-Net", "unet++": "U-Net++", "unetr": "UNETR", "swin-unetr": "Swin UNETR"},
    **{"segresnet": "SegResNet", "dynunet": "DynUNet"},
}

#: The style of `mvl.mplstyle`, as matplotlib's parameters.
STYLE = dict(
    mpl.rc_params_from_file(Path(__file__).with_name("mvl.mplstyle"), use_default_template=False)
)

#: Format of a figure's file -> its metadata without versions and times, which would make the
#: bytes depend on the day and the machine.
FORMATS = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}

P = ParamSpec("P")


def without_share(arm: str) -> tuple[str, str]:
    """An arm's name and the share of the subjects in percent that it ends with, or ""."""
    found = re.fullmatch(r"(.+)-(10|30|100)", arm)
    return (found[1], found[2]) if found else (arm, "")


def colour_of(arm: str) -> str:
    """The arm's colour, grey for one that has none.

    Another head ("conv-000"), a share of the data ("vit-10") or a named seed ("none, seed 0")
    does not change it.
    """
    name, _ = without_share(str(arm).partition(",")[0])
    return ARM_COLOURS.get(name) or ARM_COLOURS.get(name.removeprefix("conv-"), GREY)


def name_of_arm(arm: str) -> str:
    """What a figure calls an arm; its own name if it has no other."""
    arm, comma, seed = str(arm).partition(",")
    name, share = without_share(arm)
    return _NAMES.get(name, name) + f", {share} %" * bool(share) + comma + seed


def styled() -> contextlib.AbstractContextManager:
    """A context in which matplotlib has the style, and none of the user's settings."""
    return plt.style.context(STYLE, after_reset=True)


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style; a table's column `synthetic` decides whether the figure says so.

    Showing is left to the caller: a notebook shows what a cell returns.
    """

    @functools.wraps(draw)
    def styled_draw(*arguments: P.args, **options: P.kwargs) -> Figure:
        with styled():
            figure = draw(*arguments, **options)
            tables = [v for v in (*arguments, *options.values()) if isinstance(v, DataFrame)]
            note_synthetic(figure, any(t["synthetic"].any() for t in tables if "synthetic" in t))
        plt.close(figure)
        return figure

    return styled_draw


def encoded(figure: Figure, kind: str, dpi: int | None = None) -> bytes:
    """A figure as a file of one of `FORMATS`: equal figures give equal bytes.

    `dpi` is of a PNG; the style's, for print, if it is None.
    """
    buffer = io.BytesIO()
    with styled():
        options = {"dpi": dpi} if dpi else {}
        figure.savefig(buffer, format=kind, metadata=FORMATS[kind], **options)
    if kind == "png" and not any(axes.images for axes in figure.axes):
        # A chart has few colours: as a palette it is a third as large.
        chart, buffer = Image.open(buffer), io.BytesIO()
        chart.convert("RGB").quantize(256).save(buffer, "png", optimize=True, dpi=chart.info["dpi"])
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG and PDF, each whole or not at all; `path` needs no ending."""
    for kind in ("png", "pdf"):
        with written(Path(path).with_suffix(f".{kind}")) as temporary:
            temporary.write_bytes(encoded(figure, kind))


def note_synthetic(figure: Figure, synthetic: bool) -> None:
    """Say in a figure's legend, or below the figure, that its data is synthetic, if it is."""
    if synthetic and figure.legends:
        legend = figure.legends[-1]
        legend.set_title(SYNTHETIC, prop={"size": 7, "weight": "bold"})
        legend.get_title().set_color(VERMILLION)
    elif synthetic:
        figure.supxlabel(SYNTHETIC, fontsize=7, color=VERMILLION, fontweight="bold")
