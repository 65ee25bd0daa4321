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

from mvl.files import written

ATTRIBUTION = "Medical Segmentation Decathlon, CC-BY-SA 4.0"
SYNTHETIC = "SYNTHETIC DATA: a phantom, not patients"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"

#: Colour -> arms. Arms of equal configuration in two suites have the same one.
_ARMS = {
    BLACK: ("none", "vit", "000"),
    BLUE: ("pretrained", "100", "lora-0"),
    VERMILLION: ("random", "released", "001"),
    ORANGE: ("shuffled", "v3", "010"),
    SKY: ("identity", "110"),
    GREEN: ("trainable", "v1", "111"),
    PURPLE: ("vit-mlp", "101", "best", "conv-011"),  # `best` is conv-011
    YELLOW: ("011",),
}
ARM_COLOURS = {arm: colour for colour, arms in _ARMS.items() for arm in arms}

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


def colour_of(arm: str) -> str:
    """The arm's colour, grey for one that has none.

    Another head ("conv-000"), a share of the data ("vit-10") or a named seed ("none, seed 0")
    does not change it.
    """
    name = re.sub(r"-(10|30|100)$", "", str(arm).partition(",")[0])
    return ARM_COLOURS.get(name) or ARM_COLOURS.get(name.removeprefix("conv-"), GREY)


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


def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as a file of one of `FORMATS`: equal figures give equal bytes."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, metadata=FORMATS[kind])
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF and SVG, each whole or not at all; `path` needs no ending."""
    for kind in FORMATS:
        with written(Path(path).with_suffix(f".{kind}")) as temporary:
            temporary.write_bytes(encoded(figure, kind))


def note_synthetic(figure: Figure, synthetic: bool) -> None:
    """Say below a figure that its data is synthetic, if it is."""
    if synthetic:
        figure.supxlabel(SYNTHETIC, fontsize=9, color=VERMILLION, fontweight="bold")
