"""Options that several verbs of the `mvl` command share."""

from argparse import ArgumentParser
from pathlib import Path

#: The task where nobody names one.
TASK = "Task04_Hippocampus"


def cell_options(parser: ArgumentParser) -> None:
    """Which cells of a suite or of the audit, and where they are."""
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="one or more (default: 0)"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="which of them (default: all)")
    parser.add_argument("--task", default=TASK, metavar="NAME", help="a task's name")
    parser.add_argument(
        "--block", metavar="SOURCE", help="language block (default: the suite's own)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="budget (default: the suite's own)")
    parser.add_argument(
        "--on-bad-case", choices=("fail", "skip"), default="fail", help="what a faulty case does"
    )
    results_options(parser)


def results_options(parser: ArgumentParser) -> None:
    """Where the runs of a study are, and its data."""
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where runs go (default: results/study)"
    )
    root_option(parser)


def data_options(parser: ArgumentParser) -> None:
    """Where data are, and what is done with faulty cases."""
    parser.add_argument(
        "--on-bad-case", choices=("fail", "skip"), default="fail", help="what a faulty case does"
    )
    root_option(parser)


def root_option(
    parser: ArgumentParser,
    *names: str,
    text: str = "folder that holds the task's folder",
    metavar: str = "FOLDER",
) -> None:
    """The folder of tasks; other names than --root may stand for it."""
    text = f"{text} (default: MVL_DATA_ROOT, else data)"
    parser.add_argument(*(names or ("--root",)), metavar=metavar, help=text)


def grid_options(parser: ArgumentParser) -> None:
    """How a task comes to a model."""
    own = "(default: the task's own)"
    parser.add_argument(
        "--grid", type=int, nargs=3, metavar=("H", "W", "D"), help=f"in voxels {own}"
    )
    parser.add_argument(
        "--fit", choices=("pad", "resize", "crop"), help=f"how a volume comes to the grid {own}"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("R", "A", "S"),
        help="mm per voxel, for crops (default: none)",
    )
    parser.add_argument(
        "--target",
        choices=("foreground", "labels"),
        help="all structures as one, or each as a class (default: foreground)",
    )
    parser.add_argument(
        "--channels", choices=("all", "first"), help="which of an image's (default: all)"
    )
    parser.add_argument(
        "--flips", choices=("left-right",), help="mirror training cases at random (default: not)"
    )


def track_option(parser: ArgumentParser) -> None:
    """The curves of a training."""
    parser.add_argument(
        "--track", action="store_true", help="also write curves for TensorBoard (mvl[track])"
    )
