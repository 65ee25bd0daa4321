"""The audit in words and pictures: the rows of audit.csv, its figure, the README's section."""

from pathlib import Path

import numpy as np
import pandas as pd

from mvl.audit.record import reference_table
from mvl.audit.splits import DRAWS
from mvl.audit.switches import SWITCHES
from mvl.audit.training import ARMS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY, with_section, write_text
from mvl.show.figures import save, waterfall
from mvl.show.tables import count
from mvl.study.reference import REFERENCE

PICTURE = Path("figures") / "audit_waterfall.png"
BEGIN, END = "<!-- audit: begin, written by `mvl audit table` -->", "<!-- audit: end -->"


def waterfall_steps(table, metric="dice"):
    """From the number that the study reports to the one that the released code's curves show.

    With the arm `released` at hand: each training switch by itself, stacked, but `siblings`, whose
    test cases are fewer; then what all of them do at once; then the readings of that arm's models,
    and their validation in place of the test cases. Without it: the readings of the first model
    that was read.

    Args:
        table: audit.csv, or any rows of it.
        metric: "dice" or "nsd".

    Returns:
        A table, a step a row, as `show.figures.waterfall` takes it: step, kind, estimate (what is
        reported after it), ci_low and ci_high (its difference's interval, put where the estimate
        is; NaN for the first step), n_subjects and n_seeds.

    Raises:
        RunError: the table holds neither.
    """
    own = table[table["metric"] == metric]
    training = own[own["kind"] == "training"]
    whole = training[training["arm"] == "released"]
    read = own[(own["kind"] == "measurement") & ~own["switch"].isin(("validation", "unseeded"))]
    if len(whole):
        read = read[read["arm"] == "released"]
    if read.empty:
        raise RunError("the audit has no model whose test cases were read: 'mvl audit table'")
    arm = read["arm"].iloc[0]
    read = read[read["arm"] == arm]
    first = (whole if len(whole) else read).iloc[0]
    level, sizes = first["before"], ["n_subjects", "n_seeds"]
    steps = [("ours" if len(whole) else arm, "level", level, np.nan, np.nan, *first[sizes])]

    def step(row, kind, start):
        name = "all at once" if kind == "together" else row.switch
        ends = (start + row.low, start + row.high)
        steps.append((name, kind, start + row.difference, *ends, row.n_subjects, row.n_seeds))
        return start + row.difference

    if len(whole):
        start = level
        for row in training[~training["arm"].isin(("released", "siblings"))].itertuples():
            level = step(row, "training", level)
        level = tested = step(next(whole.itertuples()), "together", start)
    for row in read.itertuples():
        level = step(row, "spread" if row.switch == "one-case" else "measurement", level)
    if len(whole):
        said = own[(own["switch"] == "validation") & (own["arm"] == "released")]
        for row in said.itertuples():
            step(row, "instead", tested)
    columns = ["step", "kind", "estimate", "ci_low", "ci_high", *sizes]
    return pd.DataFrame(steps, columns=columns)


def waterfall_of(table, metric="dice"):
    """The figure of `waterfall_steps`, with its sizes.

    Args:
        table, metric: as in `waterfall_steps`.
    """
    steps = waterfall_steps(table, metric)
    first, seeds = table.iloc[0], steps["n_seeds"]
    fewer = f"{seeds.min()} to " * bool(seeds.min() < seeds.max())
    size = f"{first['task']}, {steps['n_subjects'].max()} test subjects, "
    size += f"{fewer}{count(seeds.max(), 'seed')}"
    return waterfall(steps, metric, size, bool(first["synthetic"]))


def sentences(table):
    """Each row of audit.csv in words.

    Args:
        table: any rows of it.

    Returns:
        List of sentences: what is done, and what it changes.
    """
    found = []
    for row in table.to_dict("records"):
        metric = row["metric"]  # of a split it is a share of something, in words
        metric = METRICS[metric].title if metric in METRICS else metric.capitalize()
        said = f"{metric} {row['before']:.3f} becomes {row['after']:.3f}, {row['difference']:+.3f}"
        if not np.isnan(row["low"]):
            said += f" ({row['interval']}: {row['low']:+.3f} to {row['high']:+.3f})"
        synthetic = "Synthetic data: " if row["synthetic"] else ""
        done = f"`{row['switch']}`{_arm(row)}. {_done(row['switch'])}"
        found.append(f"{synthetic}{done} {said}; {_size(row)}.")
    return found


#: What the arm `released` does.
_TOGETHER = (
    "All of the above at once, of `train-loss` and `last-epoch` the latter; 16 blocks after the "
    "language part, and no decoder."
)


def _done(switch):
    return SWITCHES[switch].released if switch in SWITCHES else _TOGETHER


def _arm(row):
    """Whose test cases were read, where it is not the arm of the switch's name."""
    return "" if row["arm"] in ("", row["switch"]) else f" ({row['arm']})"


def _size(row):
    sizes = [(row["n_subjects"], "subject"), (row["n_cases"], "case")]
    if row["n_seeds"]:  # what is counted on the split has none
        sizes.append((row["n_seeds"], "seed"))
    return ", ".join(count(*size) for size in sizes)


def section(table):
    """The README's words on audit.csv.

    Args:
        table: all of it.

    Returns:
        List of lines of Markdown.
    """
    trained = set(table.loc[table["kind"] == "training", "arm"])
    lines = [
        f"{table['task'].iloc[0]}. A row turns one thing on, and says what is reported without and "
        "with it, and the difference with its 95 % interval. For `one-case` the interval is the "
        f"central 95 % of single cases, for draws the range over {DRAWS}: those of `unseeded` are "
        "two runs of one arm, each with a seed and test cases of its own, whose models learned "
        "from the study's split all the same. For `validation` it resamples the test side: each "
        "seed's validation Dice is taken as it was. With one seed, no interval knows how far two "
        "seeds of one arm lie apart: see the noise floor above. A difference of 0 from +0.000 to "
        "+0.000 is that of one and the same model.",
    ]
    missing = [f"`{name}`" for name in ARMS if name not in trained | {"ours"}]
    if missing:
        lines += ["", f"Not trained yet: {', '.join(missing)}."]
    others = [
        f"`{arm}` against `{change.against}`"
        for arm, change in ARMS.items()
        if change.against != "ours"
    ]
    for kind, title in (
        (
            "training",
            "**Trained with it**, and measured as the study measures; against `ours`, vit with "
            f"the block as the study trains it, but {', '.join(others)}."
            + " `siblings` is tested on the cases whose sibling it was trained on."
            * ("siblings" in trained),
        ),
        (
            "measurement",
            "**One model, read as the released code reads it.** Rows are cumulative, except "
            "`validation` and `unseeded`. `best` learned from the labels as they are drawn"
            + ", `released` from the larger ones" * ("released" in trained)
            + ".",
        ),
    ):
        own = table[table["kind"] == kind]
        if len(own):
            lines += ["", title, "", *_two_metrics(own)]
    lines += ["", "**Leakage between training, validation and test.**", ""]
    lines += [f"- {said}" for said in sentences(table[table["kind"] == "split"])]
    return lines


def _two_metrics(rows):
    """A line per switch and arm, Dice and NSD beside each other."""
    columns = ("switch", "what the released code does", "Dice", "NSD", "size")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    keys = rows[["switch", "arm"]].drop_duplicates()
    order = [*ARMS, *SWITCHES]
    keys["arms"] = keys["arm"].where(keys["arm"] != keys["switch"], "")
    keys["place"] = keys["switch"].map(order.index)
    for key in keys.sort_values(["arms", "place"]).itertuples():
        own = rows[(rows["switch"] == key.switch) & (rows["arm"] == key.arm)].set_index("metric")
        row = own.iloc[0]
        cells = [f"`{key.switch}`{_arm(row)}", _done(key.switch)]
        cells += [_change(own.loc[name]) if name in own.index else "" for name in ("dice", "nsd")]
        lines.append(f"| {' | '.join(cells)} | {_size(row)} |")
    return lines


def _change(row):
    said = f"{row['before']:.3f} → {row['after']:.3f}, {row['difference']:+.3f}"
    interval = f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return said + interval * (not np.isnan(row["low"]))


def audit_section(reference: Path = REFERENCE) -> str:
    """The README's section on the audit as Markdown: every number from audit.csv."""
    table = reference_table(reference)
    what = "From the study's protocol to the released code's"
    if "released" not in set(table["arm"]):
        what = "The committed model's number, as the released code would read it, step by step"
    picture = (REFERENCE / PICTURE).relative_to(REPOSITORY).as_posix()
    return "\n".join([*section(table), "", f"![{what}]({picture})"])


def refresh_audit(readme: Path = REPOSITORY / "README.md", reference: Path = REFERENCE) -> None:
    """Draw the reference's waterfall, and write `audit_section` between the README's markers.

    Raises:
        MvlError: the README lacks a marker.
    """
    save(waterfall_of(reference_table(reference)), reference / PICTURE)
    write_text(readme, with_section(readme, BEGIN, END, audit_section(reference)))
