"""The figures of a report as data URIs, each with a caption in words."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mvl.show import figures
from mvl.show.charts import CHARTS, by_task, described, drawn, part
from mvl.show.examples import run_segmentations
from mvl.show.sentences import span
from mvl.study import ten_tasks
from mvl.study.runs import UNREADABLE, ProfileRun, Source, in_words

#: Charts of `CHARTS` that a report draws of runs; the others say the same of many models.
_SHOWN = [name for name in CHARTS if name not in ("metrics", "lora", "size_of_all")]
#: Committed figures that are not folded away.
_FIRST = ("llama_claim", "language_controls", "language_differences", "segmentations")


@dataclass(frozen=True)
class Picture:
    """A figure: a data URI, its caption, what it shows in words, and whose it is.

    Attributes:
        kind: "own" or "reference".
        wide: whether it needs the width of the page.
        folded: whether it is shown on demand.
    """

    content: str
    caption: str
    alt: str
    kind: str
    wide: bool
    folded: bool = False


def reference_pictures(root: Path) -> list[Picture]:
    """The committed figures, the most telling first."""
    paths = list((root / "results" / "reference" / "figures").glob("*.png"))
    place = {name: n for n, name in enumerate(_FIRST)}
    shown = []
    for path in sorted(paths, key=lambda path: (place.get(path.stem, 9), path.stem)):
        content, text = path.read_bytes(), described(path)
        wide = int.from_bytes(content[16:20], "big") > 1500  # the width in a PNG's header
        folded = path.stem not in _FIRST
        caption = f"Committed reference. {text}"
        shown.append(Picture(_uri(content, "png"), caption, text, "reference", wide, folded))
    return shown


def own_pictures(source: Source) -> Iterator[Picture]:
    """The figures of a source's results."""
    synthetic = "Synthetic data. " if source.summary["synthetic"].any() else ""
    known = set()
    for name in _SHOWN:
        chart = CHARTS[name]
        shown = part(source, chart)
        cells = frozenset(shown.runs["fingerprint"])
        if (chart.draw, cells) in known:  # the same arms under the names of another suite
            continue
        for _, size, figure in drawn(source, chart):
            known.add((chart.draw, cells))
            caption = f"{source.label}. {chart.caption} {size}."
            yield _drawn(figure, caption, synthetic + _means(shown.cases))
    named = ten_tasks.part(source)
    if named.cases["task"].nunique() > 2:
        caption = f"{source.label}. The named models, one row per data set."
        yield _drawn(by_task(named), caption, synthetic + _means(named.cases))


def segmentations(
    runs: Iterable[ProfileRun], root: Path
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Test cases of the best run of each task, by validation, and ("note", why there are none)."""
    tasks, shown, faults = {}, [], []
    for run in runs:
        if run.state == "done" and run.facts["validation_dice"] == run.facts["validation_dice"]:
            tasks.setdefault((run.facts["task"], run.facts["synthetic"]), []).append(run)
    for (task, synthetic), members in sorted(tasks.items()):
        best = max(members, key=lambda run: run.facts["validation_dice"])
        try:
            figure = run_segmentations(best.folder)
        except UNREADABLE as error:
            text = f"Without segmentations of {task}: {in_words(error, root)}"
            faults.append(("note", text))
            continue
        caption = "Synthetic data. " * synthetic + f"Best, median and worst test case of {task}, "
        caption += f"by run {best.folder.name}, which has the highest validation Dice."
        shown.append(_drawn(figure, caption, caption, "png"))
    return shown, faults


def _means(cases: pd.DataFrame) -> str:
    dice = cases.groupby(["task", "arm", "seed", "subject"], sort=False)["dice"].mean()
    means = dice.groupby(["task", "arm"], sort=False).mean()
    seeds = span(cases.groupby("arm")["seed"].nunique(), "seed")
    texts = [f"{figures.name_of_arm(arm)} ({task}) {x:.3f}" for (task, arm), x in means.items()]
    return f"Mean Dice over {seeds}: {', '.join(texts)}."


def _drawn(figure, caption, alt, form="svg"):
    wide = figure.get_figwidth() > figures.COLUMN + 0.1
    content = figures.encoded(figure, form, 130 if form == "png" else None)
    return Picture(_uri(content, form), caption, alt, "own", wide)


def _uri(content, form):
    form = {"svg": "svg+xml"}.get(form, form)
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
