"""What all figures have in common: style, colours, what is said of the data, and their files.

The style is `mvl.mplstyle`. Colours are those of Okabe and Ito ("Color Universal Design", 2008),
which stay apart for colour-blind readers, and an arm has the same one in every figure.
"""

import functools
import io
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from mvl.files import written

ATTRIBUTION = "Medical Segmentation Decathlon, CC-BY-SA 4.0"
SYNTHETIC = "SYNTHETIC DATA: a phantom, not patients"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"

#: Arm -> colour. Arms of equal configuration in two suites have the same one.
ARM_COLOURS = {
    "none": BLACK,
    "pretrained": BLUE,
    "random": VERMILLION,
    "shuffled": ORANGE,
    "identity": SKY,
    "trainable": GREEN,
    "vit-mlp": PURPLE,
    "vit": BLACK,
    "v1": GREEN,
    "v3": ORANGE,
    "released": VERMILLION,
    "best": PURPLE,
    "000": BLACK,
    "100": BLUE,
    "010": ORANGE,
    "001": VERMILLION,
    "110": SKY,
    "101": PURPLE,
    "011": YELLOW,
    "111": GREEN,
    "conv-011": PURPLE,  # which `best` is
    "lora-0": BLUE,
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


def colour_of(arm):
    """The arm's colour, grey for one that has none.

    Another head ("conv-000"), a share of the data ("vit-10") or a named seed ("none, seed 0")
    change none.
    """
    name = re.sub(r"-(10|30|100)$", "", str(arm).partition(",")[0])
    return ARM_COLOURS.get(name) or ARM_COLOURS.get(name.removeprefix("conv-"), GREY)


def drawn(draw):
    """Draw in the style, and leave showing to the caller: a notebook shows what a cell returns."""

    @functools.wraps(draw)
    def styled_draw(*arguments, **options):
        with styled():
            figure = draw(*arguments, **options)
        plt.close(figure)
        return figure

    return styled_draw


def styled():
    """A context in which matplotlib has the style, and nothing of the user's own settings."""
    return plt.style.context(STYLE, after_reset=True)


def encoded(figure, kind):
    """A figure as the bytes of a file, the same ones for the same figure.

    Args:
        figure: a matplotlib `Figure`.
        kind: one of `FORMATS`.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, metadata=FORMATS[kind])
    return buffer.getvalue()


def save(figure, path):
    """Write a figure as PNG, PDF and SVG, each whole or not at all.

    Args:
        figure: a matplotlib `Figure`.
        path: of the files; the endings take the place of its own, if it has one.

    Raises:
        MvlError: a file cannot be written.
    """
    for kind in FORMATS:
        with written(Path(path).with_suffix(f".{kind}")) as temporary:
            temporary.write_bytes(encoded(figure, kind))


def note_synthetic(figure, synthetic):
    """Say below a figure that its data is synthetic, if it is."""
    if synthetic:
        figure.supxlabel(SYNTHETIC, fontsize=9, color=VERMILLION, fontweight="bold")
