"""The committed reference in Markdown: docs/results.md, the README's answer, the first study.

docs/results.md and the answer have the second protocol's results, from `mvl.study.crossed`. The
first protocol's are a page of `mvl.study.reference`'s folder, suite by suite.
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
from mvl.show.sentences import count, estimate, interval, sentence, trained_on, verdict_in_words
from mvl.study.reference import REFERENCE, read_table
from mvl.study.statistics import contrast, is_primary
from mvl.study.suites import QUESTIONS, SUITES, is_possible
from mvl.study.summary import by_part, noise_floor

PAGE, README = REPOSITORY / "docs" / "results.md", REPOSITORY / "README.md"
#: What a page has between its own text and what is written here.
MARKERS = {
    PAGE: [f"<!-- results: {mark} -->" for mark in ("begin, written by `mvl reference`", "end")],
    README: [f"<!-- answer: {mark} -->" for mark in ("begin, written by `mvl reference`", "end")],
}

#: The first protocol's results as a page, below the reference's folder.
STUDY = "README.md"

#: What the first protocol's budget was meant to leave: less than this in validation Dice.
BUDGET_TARGET = 0.002

#: The README's questions that the first protocol answers until the second one does: suite and arms.
_FIRST_STUDY = {
    "Hybrid attention alone": ("fusion", "010", "000"),
    "Multi-scale fusion alone": ("fusion", "001", "000"),
}
#: Rows of the README's answer, at most.
_ROWS = 6


def write_pages(reference: Path = REFERENCE) -> None:
    """Write the reference's page of every suite and the figures of all tables."""
    draw_reference(reference)
    with contextlib.suppress(DataError):  # without the volumes the committed one stays
        draw_segmentations(reference)
    write_text(reference / STUDY, study_page(reference))


def refresh_results() -> None:
    """Write `results_section` into docs/results.md, and `answer_section` into the README.

    Raises:
        MvlError: one of them lacks a marker.
    """
    for page, section in ((PAGE, results_section()), (README, answer_section())):
        write_text(page, with_section(page, *MARKERS[page], section))


def results_section(reference: Path = REFERENCE) -> str:
    """The second protocol's results as Markdown."""
    picture = "../" + (REFERENCE / crossed.PICTURE).relative_to(REPOSITORY).as_posix()
    paragraphs = crossed.section(crossed.published(reference), picture)
    if parts := crossed.published(reference, crossed.PARTS):
        paragraphs += crossed.parts_section(parts)
    return "\n\n".join(paragraphs)


def answer_section(reference: Path = REFERENCE) -> str:
    """The README's answer, six rows at most, and the headline picture, as Markdown."""
    second = crossed.published(reference)
    claim = crossed.claim_sentence(second, crossed.tasks_of(second)[-1])
    rows = crossed.answer_rows(second)
    if parts := crossed.published(reference, crossed.PARTS):
        rows += crossed.answer_rows(parts)
    else:
        rows += _first_answers(reference)
    link = (REFERENCE / crossed.PICTURE).relative_to(REPOSITORY).as_posix()
    paragraphs = [
        f"**Our answer so far.** {claim} {crossed.block_sentence(second)}",
        tables.markdown(pd.DataFrame(rows[:_ROWS]), aligned=False),
        f'<img src="{link}" width="480" alt="{crossed.PICTURE_TEXT}">',
    ]
    return "\n\n".join(paragraphs)


def _first_answers(reference):
    """The README's rows of the first protocol."""
    contrasts, rows = read_table(reference / "contrasts.csv"), []
    contrasts = contrasts.query("metric == 'dice' and structure == 'foreground'")
    for question, pair in _FIRST_STUDY.items():
        chosen = (contrasts[["suite", "arm_a", "arm_b"]] == [*pair]).all(axis=1)
        row = contrasts[chosen].iloc[0]
        size = f"{count(row['n_subjects'], 'subject')}, {count(row['n_seeds'], 'seed')}"
        answer = {"question": question, crossed.EFFECT: estimate(row), "verdict": row["verdict"]}
        rows.append(answer | {"tested on": f"first study: {size}"})
    return rows


def study_page(reference: Path = REFERENCE) -> str:
    """Every suite of the first protocol that has something to compare, as a Markdown page."""
    frames = _tables(reference)
    paragraphs = [
        "# The first study, suite by suite",
        "Written by `mvl reference`. These runs are of the first protocol. Their models do not use "
        "the language block, so they say nothing about pre-training "
        "([protocols](../../docs/protocol.md)). [All results](../../docs/results.md) has the "
        "second protocol's. [arms](../../docs/arms.md) says what each arm is.",
        *_size(frames),
    ]
    for suite in _with_comparisons(frames):
        paragraphs += [f"## {QUESTIONS[suite]}", *_suite(suite, frames)]
    return "\n\n".join(paragraphs) + "\n"


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
    paragraphs = [_arms(suite, frames)]
    missing = [arm for arm in SUITES[suite] if arm not in set(runs[runs["suite"] == suite]["arm"])]
    possible = [arm for arm in missing if is_possible(SUITES[suite][arm].model)]
    impossible = [arm for arm in missing if arm not in possible]
    for why, names in (("Not run", possible), ("Not possible with this block", impossible)):
        if names:
            paragraphs += [f"{why}: {', '.join(f'`{arm}`' for arm in names)}."]
    paragraphs += _comparisons(suite, frames)
    cases = cases[(cases["suite"] == suite) & (cases["structure"] == "foreground")]
    if suite == "language":
        paragraphs += _noise_floor(cases)
    if suite == "fusion" and (effects := _part_effects(cases)):
        paragraphs += [tables.markdown(pd.DataFrame(effects), aligned=False)]
    if suite == "budget":
        paragraphs += _budget_gain(runs)
    return paragraphs


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
    said = [f"**The primary comparison.** {sentence(row)}" for _, row in rows[primary].iterrows()]
    pairs = [f"`{row.arm_a}` minus `{row.arm_b}`" for row in rows.itertuples()]
    shown = tables.comparisons(rows).assign(
        comparison=pairs, verdict=[verdict_in_words(row) for _, row in rows.iterrows()]
    )
    shown = shown.rename(columns={"difference": "difference in Dice"})
    shown = shown.drop(columns=["metric", "subjects"])
    cpus = runs[runs["suite"] == suite].groupby("arm")["cpu"].agg(set)
    across = [
        pair
        for pair, row in zip(pairs, rows.itertuples(), strict=True)
        if cpus[row.arm_a] != cpus[row.arm_b]
    ]
    paragraphs = ["\n".join(said)] * bool(said) + [tables.markdown(shown, aligned=False)]
    if across:
        paragraphs += [f"Across different kinds of processor: {', '.join(across)}."]
    return paragraphs


def _noise_floor(cases):
    """How far apart two trainings of one arm lie that differ in seed, and so fold, alone."""
    floor = noise_floor(cases, "none")
    if floor["n_seeds"] < 2:
        return []
    return [
        "**The noise floor.** Two trainings of `none` that differ in seed, and with it in "
        f"validation fold, differ in test Dice by {floor['mean_difference']:.4f} on average and "
        f"{floor['largest_difference']:.4f} at most ({floor['n_seeds']} seeds).",
    ]


def _part_effects(cases):
    """What each of the paper's parts does to the test Dice; nothing without a whole factorial."""
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
    """What twice the study's epochs gain in validation Dice; nothing where no seed has both."""
    runs = runs[runs["suite"] == "budget"]
    dice = runs.pivot(index="seed", columns="arm", values="validation_dice").dropna()
    if dice.empty or "vit-2x" not in dice:
        return []
    once, twice = dice[["vit", "vit-2x"]].mean()
    return [
        f"The budget was to be long enough for twice the epochs to gain less than "
        f"{BUDGET_TARGET} in validation Dice. They gain {twice - once:+.4f}, from {once:.3f} "
        f"to {twice:.3f} ({count(len(dice), 'seed')}): "
        f"{'met' if twice - once < BUDGET_TARGET else 'missed'}."
    ]
