"""The audit in words and pictures: the rows of audit.csv, its figure, the page's section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvl.audit.record import reference_table
from mvl.audit.splits import DRAWS
from mvl.audit.switches import SWITCHES
from mvl.audit.training import ARMS
from mvl.config import PRESETS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY, with_section, write_text
from mvl.show.figures import protocol_effects, save
from mvl.show.sentences import count, span
from mvl.show.tables import markdown
from mvl.study.reference import REFERENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = Path("figures") / "audit_effects.png"
PAGE = REPOSITORY / "docs" / "audit.md"
BEGIN, END = "<!-- audit: begin, written by `mvl audit table` -->", "<!-- audit: end -->"


def effects(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """What each step from the study's protocol to the released code's changes.

    If the arm `released` was trained: each training switch by itself, but `siblings`, whose test
    cases are fewer; then all of them at once; then the readings of that arm's models, and their
    validation in place of the test cases. If not: the readings of the first model.

    Args:
        table: rows of audit.csv.
        metric: "dice" or "nsd".

    Returns:
        One row per step, as `figures.protocol_effects` takes it: step, kind, difference, low and
        high (its 95 % interval), n_subjects and n_seeds.

    Raises:
        RunError: no model's test cases were read.
    """
    table = table[table["metric"] == metric]
    training, read = table[table["kind"] == "training"], table[table["kind"] == "measurement"]
    whole = training[training["arm"] == "released"]
    validated = read[(read["switch"] == "validation") & (read["arm"] == "released")]
    read = read[~read["switch"].isin(("validation", "unseeded"))]
    if len(whole):
        read = read[read["arm"] == "released"]
    if read.empty:
        raise RunError("the audit has no model whose test cases were read: 'mvl audit table'")
    read = read[read["arm"] == read["arm"].iloc[0]].assign(kind="measurement")
    alone = training[~training["arm"].isin(("released", "siblings"))]
    parts = [alone, whole.assign(kind="together", switch="all at once"), read]
    steps = pd.concat(
        [*parts, validated.assign(kind="instead")] if len(whole) else [read], ignore_index=True
    )
    bases = map(_base, steps["kind"], steps["switch"])
    steps["switch"] += [f" (after {base})" if base else "" for base in bases]
    columns = ["step", "kind", "difference", "low", "high", "n_subjects", "n_seeds"]
    return steps.rename(columns={"switch": "step"})[columns]


def effects_of(table: pd.DataFrame, metric: str = "dice", block: str = "") -> Figure:
    """The figure of `effects`, with its sizes; `block` is the language block of its arms."""
    steps, first = effects(table, metric), table.iloc[0]
    steps["step"] = steps["step"].replace("one-case", "one-case (range of cases)")
    named = f"; block: {block.partition(':')[2]}" * bool(block)
    about = f"{first['task'].replace('_', ' ')}{named}\n"
    about += f"{steps['n_subjects'].max()} test subjects, {span(steps['n_seeds'], 'seed')}"
    return protocol_effects(steps, metric, about, bool(first["synthetic"]))


def sentences(table: pd.DataFrame) -> list[str]:
    """Each row of audit.csv in words: what is done, and what it changes."""
    texts = []
    for row in table.to_dict("records"):
        metric = row["metric"]  # of a split it is a share of something, in words
        metric = METRICS[metric].title if metric in METRICS else metric.capitalize()
        base = _base(row["kind"], row["switch"])
        text = f"`{row['switch']}`{_arm(row)}" + f" (against `{base}`)" * bool(base)
        text += f". {_released(row['switch'])} {metric} "
        text += f"{row['before']:.3f} becomes {row['after']:.3f}, {row['difference']:+.3f}"
        if not np.isnan(row["low"]):
            text += f" ({row['interval']}: {row['low']:+.3f} to {row['high']:+.3f})"
        texts.append("Synthetic data: " * bool(row["synthetic"]) + f"{text}; {_size(row)}.")
    return texts


def _base(kind, switch):
    """The arm that a trained step is compared with, where it is not `ours`; otherwise ""."""
    change = ARMS.get(switch) if kind == "training" else None
    return "" if change is None or change.against == "ours" else change.against


def _released(switch):
    """What the released code does, or the arm `released`, which is no switch."""
    if switch in SWITCHES:
        return SWITCHES[switch].released
    return (
        "All of the above at once, of `train-loss` and `last-epoch` the latter; 16 blocks after "
        "the language part, and no decoder."
    )


def _arm(row):
    """Whose test cases were read, where it is not the arm of the switch's name."""
    return "" if row["arm"] in ("", row["switch"]) else f" ({row['arm']})"


def _size(row):
    # What is counted on the split has no seeds.
    return ", ".join(
        count(row[f"n_{noun}s"], noun) for noun in ("subject", "case", "seed") if row[f"n_{noun}s"]
    )


def refresh_audit(page: Path = PAGE, reference: Path = REFERENCE) -> None:
    """Draw the reference's figure of effects, and write `audit_section` between the page's markers.

    Raises:
        MvlError: the page lacks a marker.
    """
    block = PRESETS["released"][0].language.source
    save(effects_of(reference_table(reference), block=block), reference / PICTURE)
    write_text(page, with_section(page, BEGIN, END, audit_section(reference)))


def audit_section(reference: Path = REFERENCE) -> str:
    """The section of docs/audit.md as Markdown: every number from audit.csv."""
    table = reference_table(reference)
    trained = set(table.loc[table["kind"] == "training", "arm"])
    paragraphs = [
        f"{table['task'].iloc[0]}. A row turns one thing on, and says what is reported without and "
        "with it, and the difference with its 95 % interval. For `one-case` the interval is the "
        f"central 95 % of single cases, for draws the range over {DRAWS}: those of `unseeded` are "
        "two runs of one arm, each with a seed and test cases of its own, whose models learned "
        "from the study's split all the same. For `validation` it resamples the test side: each "
        "seed's validation Dice is taken as it was. With one seed, no interval knows how far two "
        "seeds of one arm lie apart: see the noise floor in [the first study's tables]"
        "(../results/reference/README.md). A difference of 0 from +0.000 to "
        "+0.000 is that of one and the same model.",
    ]
    if missing := [f"`{name}`" for name in ARMS if name not in trained | {"ours"}]:
        paragraphs += [f"Not trained yet: {', '.join(missing)}."]
    others = [
        f"`{arm}` against `{change.against}`"
        for arm, change in ARMS.items()
        if change.against != "ours"
    ]
    titles = {
        "training": "**Trained with it**, and measured as the study measures; against `ours`, vit "
        f"with the block as the study trains it, but {', '.join(others)}."
        + " `siblings` is tested on the cases whose sibling it was trained on."
        * ("siblings" in trained),
        "measurement": "**One model, read as the released code reads it.** Rows are cumulative, "
        "except `validation` and `unseeded`. `best` learned from the labels as they are drawn"
        + ", `released` from the larger ones" * ("released" in trained)
        + ".",
    }
    for kind, title in titles.items():
        rows = table[table["kind"] == kind]
        if len(rows):
            paragraphs += [title, markdown(_changes(rows), aligned=False)]
    paragraphs += ["**Leakage between training, validation and test.**"]
    paragraphs += ["\n".join(f"- {text}" for text in sentences(table[table["kind"] == "split"]))]
    what = "From the study's protocol to the released code's"
    if "released" not in trained:
        what = "The committed model's number, as the released code would read it, step by step"
    picture = "../" + (REFERENCE / PICTURE).relative_to(REPOSITORY).as_posix()
    return "\n\n".join([*paragraphs, f'<img src="{picture}" width="480" alt="{what}">'])


def _changes(rows):
    """One row of texts per switch and arm: Dice and NSD before and after."""
    order = [*ARMS, *SWITCHES]
    shown = []
    for (switch, arm), pair in rows.groupby(["switch", "arm"]):
        by_metric, row = pair.set_index("metric"), pair.iloc[0]
        cells = {"switch": f"`{switch}`{_arm(row)}"}
        cells["what the released code does"] = _released(switch)
        for name, heading in (("dice", "Dice"), ("nsd", "NSD")):
            cells[heading] = _change(by_metric.loc[name]) if name in by_metric.index else ""
        key = (arm if arm != switch else "", order.index(switch))
        shown.append((key, cells | {"size": _size(row)}))
    return pd.DataFrame([cells for _, cells in sorted(shown, key=lambda item: item[0])])


def _change(row):
    text = f"{row['before']:.3f} → {row['after']:.3f}, {row['difference']:+.3f}"
    interval = f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return text + interval * (not np.isnan(row["low"]))
