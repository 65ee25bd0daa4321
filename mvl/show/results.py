"""The committed reference in Markdown: docs/results.md, and the first protocol's tables.

docs/results.md has the second protocol's results, from the tables of `mvl.study.crossed`, between
two markers. The first protocol's are a page of `mvl.study.reference`'s folder, suite by suite.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from mvl.errors import DataError
from mvl.files import REPOSITORY, with_section, write_text
from mvl.show import crossed, tables
from mvl.show.charts import draw_reference
from mvl.show.examples import draw_segmentations
from mvl.show.sentences import count, interval, sentence, trained_on, verdict_in_words
from mvl.study.reference import REFERENCE, read_table
from mvl.study.statistics import contrast, is_primary
from mvl.study.suites import QUESTIONS, SUITES, is_possible
from mvl.study.summary import by_part, noise_floor

PAGE = REPOSITORY / "docs" / "results.md"
BEGIN, END = "<!-- results: begin, written by `mvl reference` -->", "<!-- results: end -->"

#: The first protocol's results as a page, below the reference's folder.
STUDY = "README.md"

#: What the first protocol's budget was meant to leave: less than this in validation Dice.
BUDGET_TARGET = 0.002


def write_pages(reference: Path = REFERENCE) -> None:
    """Write the reference's page of every suite and the figures of all tables."""
    draw_reference(reference)
    with contextlib.suppress(DataError):  # without the volumes the committed one stays
        draw_segmentations(reference)
    write_text(reference / STUDY, study_page(reference))


def refresh_results(page: Path = PAGE, reference: Path = REFERENCE) -> None:
    """Write `results_section` between the markers of docs/results.md.

    Raises:
        MvlError: the page lacks a marker.
    """
    write_text(page, with_section(page, BEGIN, END, results_section(reference)))


def results_section(reference: Path = REFERENCE) -> str:
    """The second protocol's results as Markdown."""
    if not (second := crossed.published(reference)):
        return "No task of the second protocol is tested yet."
    picture = "../" + (REFERENCE / crossed.PICTURE).relative_to(REPOSITORY).as_posix()
    lines = crossed.section(second, picture)
    if parts := crossed.published(reference, crossed.PARTS):
        lines += ["", *crossed.parts_section(parts)]
    return "\n".join(lines)


def study_page(reference: Path = REFERENCE) -> str:
    """Every suite of the first protocol that has something to compare, as a Markdown page."""
    frames = _tables(reference)
    lines = [
        "# The first study, suite by suite",
        "",
        "Written by `mvl reference`. These runs are of the first protocol. Their models do not use "
        "the language block, so they say nothing about pre-training "
        "([protocols](../../docs/protocol.md)). [All results](../../docs/results.md) has the "
        "second protocol's. [arms](../../docs/arms.md) says what each arm is.",
        "",
        *_size(frames),
    ]
    for suite in _with_comparisons(frames):
        lines += ["", f"## {QUESTIONS[suite]}", "", *_suite(suite, frames)]
    return "\n".join(lines) + "\n"


def _tables(reference):
    names = ("cases.csv.gz", "summary.csv", "contrasts.csv", "validation.csv", "tuning.csv")
    return {name.partition(".")[0]: read_table(reference / name) for name in names}


def _size(frames):
    """What the tables are about."""
    summary, first = frames["summary"], frames["summary"].iloc[0]
    blocks = [f"`{block}`" for block in sorted(set(summary["block"].dropna()) - {""})]
    about = f"The language block is {', '.join(blocks)}. Nothing here is about another block. "
    return [
        f"{first['task']}, {first['structure']}, in native space: {first['n_cases']} test cases of "
        f"{first['n_subjects']} subjects. Tables show the mean over seeds and subjects ± the "
        "standard deviation over subjects. Validation Dice is on the model's grid. A learning rate "
        "is the best of those that were tried with seed 0 (`tuning.csv`). "
        f"{about * bool(blocks)}The runs of these tables were {trained_on(frames['validation'])}.",
        "",
        "A comparison uses the seeds that both arms have. So it may differ from the difference of "
        "two rows. [statistics](../../docs/statistics.md#the-first-protocols-tables) explains "
        "intervals, p values and verdicts.",
    ]


def _with_comparisons(frames):
    """The suites that have something of their own to compare, in their order.

    An experiment has names in several suites; it answers the question of the first of them.
    """
    runs, known, shown = frames["validation"], set(), []
    for suite in SUITES:
        rows = runs[runs["suite"] == suite]
        fingerprints = set(rows["fingerprint"])
        if rows["arm"].nunique() > 1 and fingerprints - known:
            shown.append(suite)
            known |= fingerprints
    return shown


def _suite(suite, frames):
    """Arms, comparisons, and what is not there yet."""
    runs, cases = frames["validation"], frames["cases"]
    lines = [_arms(suite, frames)]
    missing = [arm for arm in SUITES[suite] if arm not in set(runs[runs["suite"] == suite]["arm"])]
    possible = [arm for arm in missing if is_possible(SUITES[suite][arm].model)]
    for why, names in (
        ("Not run", possible),
        ("Not possible with this block", [arm for arm in missing if arm not in possible]),
    ):
        if names:
            lines += ["", f"{why}: {', '.join(f'`{arm}`' for arm in names)}."]
    lines += ["", *_comparisons(suite, frames)]
    if suite == "language":
        lines += _noise_floor(cases)
    if suite == "fusion" and (effects := _part_effects(cases)):
        lines += ["", tables.markdown(pd.DataFrame(effects), aligned=False)]
    if suite == "budget" and (gained := _budget_gain(runs)):
        once, twice, seeds = gained
        lines += [
            "",
            f"The budget was to be long enough for twice the epochs to gain less than "
            f"{BUDGET_TARGET} in validation Dice. They gain {twice - once:+.4f}, from {once:.3f} "
            f"to {twice:.3f} ({seeds}): {'met' if twice - once < BUDGET_TARGET else 'missed'}.",
        ]
    return lines


def _arms(suite, frames):
    """A row per arm, in the suite's order; two where seeds had different budgets."""
    summary, runs = frames["summary"], frames["validation"]
    summary = summary[(summary["suite"] == suite) & (summary["structure"] == "foreground")]
    runs = runs[runs["suite"] == suite]
    shown = tables.arms(summary, runs=runs, order=list(SUITES[suite]))
    rates = []
    for arm, epochs, rate in shown[["arm", "epochs", "learning rate"]].to_numpy():
        same = runs[(runs["arm"] == arm) & (runs["epochs"] == int(epochs))]
        rates.append(f"{rate} of {_rates_tried(same, frames['tuning'])}")
    shown["learning rate, of tried"] = rates
    columns = ["arm", "seeds", "epochs", "trained weights", "learning rate, of tried"]
    columns += ["validation Dice", "Dice", "NSD", "HD95 (mm)"]
    return tables.markdown(shown[columns], code=("arm",), aligned=False)


def _rates_tried(runs, tuning):
    """How many learning rates an arm's was chosen from, under whichever of its names.

    Those of an earlier grid, which tuning.csv has, too, do not count.
    """
    names = tuning.loc[tuning["fingerprint"].isin(runs["fingerprint"]), ["suite", "arm", "grid"]]
    return names.drop_duplicates().merge(tuning)["learning_rate"].nunique()


def _comparisons(suite, frames):
    """The primary contrast as a sentence, a row per contrast in Dice, and which of them compare
    what was trained on different kinds of processor."""
    rows, runs = frames["contrasts"], frames["validation"]
    rows = rows[(rows["suite"] == suite) & (rows["metric"] == "dice")]
    rows = rows[rows["structure"] == "foreground"]
    if rows.empty:
        return []
    primary = is_primary(rows).to_numpy()
    lines = [f"**The primary comparison.** {sentence(row)}" for _, row in rows[primary].iterrows()]
    pairs = [f"`{row.arm_a}` minus `{row.arm_b}`" for row in rows.itertuples()]
    shown = tables.comparisons(rows).assign(
        comparison=pairs, verdict=[verdict_in_words(row) for _, row in rows.iterrows()]
    )
    shown = shown.rename(columns={"difference": "difference in Dice"})
    shown = shown.drop(columns=["metric", "subjects"])
    lines += [""] * bool(lines) + [tables.markdown(shown, aligned=False)]
    cpus = runs[runs["suite"] == suite].groupby("arm")["cpu"].agg(set)
    across = [
        pair
        for pair, row in zip(pairs, rows.itertuples(), strict=True)
        if cpus[row.arm_a] != cpus[row.arm_b]
    ]
    if across:
        lines += ["", f"Across different kinds of processor: {', '.join(across)}."]
    return lines


def _noise_floor(cases):
    """How far apart two trainings of one arm lie that differ in seed, and so fold, alone."""
    cases = cases[(cases["suite"] == "language") & (cases["structure"] == "foreground")]
    floor = noise_floor(cases, "none")
    if floor["n_seeds"] < 2:
        return []
    return [
        "",
        "**The noise floor.** Two trainings of `none` that differ in seed, and with it in "
        f"validation fold, differ in test Dice by {floor['mean_difference']:.4f} on average and "
        f"{floor['largest_difference']:.4f} at most ({floor['n_seeds']} seeds).",
    ]


def _part_effects(cases):
    """What each of the paper's parts does to the test Dice; nothing without a whole factorial."""
    cases = cases[(cases["suite"] == "fusion") & (cases["structure"] == "foreground")]
    effects = []
    for part, sides in by_part(cases).items():
        row = contrast(sides, "on", "off")
        effects.append(
            {
                "part, averaged over the other two": part,
                "seeds": row["n_seeds"],
                "difference in Dice": f"{row['difference']:+.4f}",
                "95 % interval": interval(row),
            }
        )
    return effects


def _budget_gain(runs):
    """Validation Dice of vit at the study's budget and at twice the epochs, and over what seeds.

    None where no seed has both.
    """
    runs = runs[runs["suite"] == "budget"]
    dice = runs.pivot(index="seed", columns="arm", values="validation_dice").dropna()
    if dice.empty or "vit-2x" not in dice:
        return None
    return *dice[["vit", "vit-2x"]].mean(), count(len(dice), "seed")
