"""The charts of results: which rows of a source each is of, and what it shows in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvl.show import crossed, figures
from mvl.show.sentences import span
from mvl.show.ten_tasks import paper_by_arm, six
from mvl.study.reference import REFERENCE
from mvl.study.runs import Source, distinct, part_of, reference_source, rows_of_tasks, tasks_of
from mvl.study.suites import SUITES
from mvl.study.summary import by_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The arms of the paper's claim, in the order that a difference takes them in.
PAIR = ("pretrained", "none")
_LORA = tuple(arm for arm in SUITES["adaptation"] if arm.startswith("lora"))


@dataclass(frozen=True)
class Chart:
    """A chart of a suite ("" for all), of some of its arms (None for all).

    `draw` makes it of a `Source` with these rows, or gives None where something is lacking.
    Without `fewest` arms, or one of `needs`, it says nothing.
    """

    suite: str
    draw: Callable[[Source], Figure | None]
    caption: str
    arms: tuple | None = None
    fewest: int = 2
    needs: tuple = ()

    def enough(self, arms: set[str]) -> bool:
        """Whether a source with these arms has enough for it."""
        return len(arms) >= self.fewest and arms >= {*self.needs}


def _curves(source):
    if source.curves.empty:
        return None
    return figures.seed_curves(source.curves, source.cases)


def _means(source):
    return figures.arm_differences(source.cases)


def _sizes(source):
    return figures.size_against_dice(source.cases, source.runs)


_BY_ARM = "Difference in Dice of each arm from the first one, on the test subjects."
_BY_EPOCH = "Dice on the validation subjects while the arms train."
_BY_SIZE = "Weights of each model, and its difference in Dice from the first one."

#: Name -> `Chart`.
CHARTS = {
    "differences": Chart(
        "language",
        lambda source: figures.paired_differences(source.cases, *PAIR),
        "Difference in Dice of each test subject, with the pre-trained block and without.",
        PAIR,
    ),
    "controls": Chart("language", _means, f"The block and its controls. {_BY_ARM}", fewest=3),
    "metrics": Chart(
        "language",
        lambda source: figures.metric_differences(six(source.cases, ("language", *PAIR))),
        "The same two models in the paper's metrics.",
        PAIR,
    ),
    "curves": Chart(
        "language", _curves, f"The block and its controls. {_BY_EPOCH}", needs=("pretrained",)
    ),
    "parts": Chart("fusion", _means, f"The paper's parts in all combinations. {_BY_ARM}", fewest=3),
    "part_effects": Chart(
        "fusion",
        lambda source: figures.part_effects(source.cases) if by_part(source.cases) else None,
        "What each part of the paper's model adds to Dice, by test subject.",
        fewest=8,
    ),
    "head": Chart("head", _means, f"With a convolutional head. {_BY_ARM}"),
    "lora": Chart("adaptation", _sizes, f"Ranks of LoRA. {_BY_SIZE}", _LORA),
    "adaptation": Chart("adaptation", _means, f"Ways to adapt the block. {_BY_ARM}"),
    "few_shot": Chart("data", _curves, f"Shares of the training subjects. {_BY_EPOCH}", fewest=3),
    "few_shot_test": Chart(
        "data",
        _means,
        "Shares of the training subjects. Difference in Dice of each arm from the plain vision "
        "transformer with as many subjects.",
        fewest=3,
    ),
    "state_of_the_art": Chart("peers", _means, f"Other architectures. {_BY_ARM}"),
    "size": Chart("size", _means, f"ViTs as large as the one with the block. {_BY_ARM}"),
    "size_of_all": Chart("", _sizes, f"All models of all suites. {_BY_SIZE}"),
}


def part(source: Source, chart: Chart) -> Source:
    """The rows of a source that a chart is about."""
    source = rows_of_tasks(source, tasks_of(source, chart.suite))
    if not chart.suite:
        return part_of(source, distinct(source.runs))
    arms = chart.arms or SUITES[chart.suite]
    return part_of(source, [(chart.suite, arm) for arm in arms])


def drawn(source: Source, chart: Chart) -> Iterator[tuple[str, str, Figure]]:
    """(task, how much is behind it, figure) for each task that a source has enough of."""
    rows = part(source, chart)
    for task in sorted(rows.cases["task"].unique()):
        of_task = rows_of_tasks(rows, [task])
        if chart.enough(set(of_task.cases["arm"])) and (figure := chart.draw(of_task)):
            yield task, size(of_task), figure


def by_task(source: Source) -> Figure:
    """The figure of the models that were run on several tasks, with the paper's numbers."""
    paper = paper_by_arm()
    return figures.metric_by_task(source.cases, paper[paper["task"].isin(source.cases["task"])])


def size(source: Source) -> str:
    """How much is behind a figure."""
    cases = source.cases
    counts = [
        span(cases.groupby("task")["subject"].nunique(), "test subject"),
        span(cases.groupby("arm")["seed"].nunique(), "seed"),
        span(cases["epochs"], "epoch"),
    ]
    return f"{', '.join(sorted(cases['task'].unique()))}: {', '.join(counts)}"


def described(path: Path) -> str:
    """What a file of `draw_reference` shows, in words."""
    texts = {file_name(key): chart.caption for key, chart in CHARTS.items()}
    return (texts | _OTHERS)[path.stem]


def file_name(name: str) -> str:
    """The file of a chart of `CHARTS` in a reference's figures/, without its ending."""
    return f"{CHARTS[name].suite or 'all'}_{name}"


_OTHERS = {
    "audit_effects": "What each step of the released code's protocol changes of the Dice that is "
    "reported.",
    crossed.PICTURE.stem: f"{crossed.PICTURE_TEXT}.",
    "segmentations": "Best, median and worst test case of the model that comes with the "
    "repository.",
}


def draw_reference(folder: Path = REFERENCE, names: Iterable[str] = tuple(CHARTS)) -> None:
    """Draw the figures of the committed tables, below the reference's folder.

    Raises:
        RunError: a table of the reference is missing or unreadable.
    """
    source = reference_source(folder)
    for name in names:
        for _, _, figure in drawn(source, CHARTS[name]):
            figures.save(figure, folder / "figures" / file_name(name))
    if second := crossed.published(folder):
        figures.save(crossed.picture(second), folder / crossed.PICTURE)
