"""The committed reference in Markdown: the results' page, and every suite's as a page.

Every number comes from the tables of `mvl.study.reference`. They reach docs/results.md
through `refresh_results` alone, between two markers.
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
from mvl.show.sentences import (
    count,
    interval,
    p_value,
    sentence,
    trained_on,
    verdict_in_words,
)
from mvl.study.reference import CONTRASTS, GPU, REFERENCE, read_table
from mvl.study.statistics import contrast, is_primary
from mvl.study.suites import QUESTIONS, SUITES, is_possible
from mvl.study.summary import by_part, noise_floor

PAGE = REPOSITORY / "docs" / "results.md"
BEGIN, END = "<!-- results: begin, written by `mvl reference` -->", "<!-- results: end -->"

#: The headline picture, below the reference's folder: the second contrast, subject by subject.
PICTURE = Path("figures") / "language_differences.png"
_PICTURE_TEXT = "Difference in Dice between vit with the block and vit, subject by subject"

#: Every suite's results as a page, below the reference's folder.
STUDY = "README.md"

#: The suites that docs/results.md shows, of those that have something to show.
_PAGE_SUITES = ("language", "fusion", "head", "data", "peers", "presets", "budget")

#: What the study's budget was meant to leave: less than this in validation Dice.
BUDGET_TARGET = 0.002


def write_pages(reference: Path = REFERENCE) -> None:
    """Write the reference's page of every suite and, of a CPU's, the figures of all tables."""
    if reference.name != GPU:
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
    """The results as Markdown: the second protocol's, then the first one's, by question."""
    cpu = _tables(reference)
    gpu = _tables(reference / GPU) if (reference / GPU).is_dir() else None
    lines = []
    if second := crossed.published(reference):
        lines = crossed.section(second, _link(REFERENCE / crossed.PICTURE))
        lines += ["", "## First protocol", ""]
    lines += [*_size(cpu, ""), "", *_in_short(cpu, gpu)]
    for suite in _with_comparisons(cpu):
        if suite in _PAGE_SUITES:
            lines += ["", f"### {QUESTIONS[suite]}", "", *_suite(suite, cpu)]
            if gpu and suite in _with_comparisons(gpu):
                lines += ["", f"In comparisons of their own, {trained_on(gpu['validation'])}:"]
                lines += ["", *_suite(suite, gpu)]
        if suite == "language":
            picture = _link(REFERENCE / PICTURE)
            lines += ["", f"![{_PICTURE_TEXT}]({picture})"]
    page = REFERENCE / STUDY
    lines += ["", f"Every suite with comparisons of its own: [{page.parent.name}]({_link(page)})."]
    if gpu:
        page = REFERENCE / GPU / STUDY
        lines[-1] += f" On a GPU: [{page.parent.name}]({_link(page)})."
    return "\n".join(lines)


def _link(path):
    """A path as docs/results.md links it."""
    return "../" + path.relative_to(REPOSITORY).as_posix()


def study_page(reference: Path = REFERENCE) -> str:
    """Every suite that has something to compare, as a Markdown page."""
    frames = _tables(reference)
    up = "../" * (3 if reference.name == GPU else 2)
    lines = [
        "# The study, suite by suite",
        "",
        f"Written by `mvl reference`. [arms]({up}docs/arms.md) says what each arm is.",
        "",
        *_size(frames, f"{up}docs/"),
    ]
    for suite in _with_comparisons(frames):
        lines += ["", f"### {QUESTIONS[suite]}", "", *_suite(suite, frames)]
    return "\n".join(lines) + "\n"


def _tables(reference):
    names = ("cases.csv.gz", "summary.csv", "contrasts.csv", "validation.csv")
    frames = {name.partition(".")[0]: read_table(reference / name) for name in names}
    # What an arm's rate was chosen from may have been trained on the other device.
    study = reference.parent if reference.name == GPU else reference
    tried = [folder / "tuning.csv" for folder in (study, study / GPU) if folder.is_dir()]
    return frames | {"tuning": pd.concat(map(read_table, tried), ignore_index=True)}


def _size(frames, docs):
    """What the tables are about; `docs` leads to the folder docs."""
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
        f"two rows. [statistics]({docs}statistics.md#the-first-protocols-tables) explains "
        "intervals, p values and verdicts.",
    ]


#: What a reader wants to know first: question, and the contrast that answers it.
IN_SHORT = (
    ("The pre-trained block against none", "language", "pretrained", "none"),
    ("The pre-trained block against random weights", "language", "pretrained", "random"),
    ("The pre-trained block against its mappers alone", "language", "pretrained", "identity"),
    ("Hybrid attention alone", "fusion", "010", "000"),
    ("Multi-scale fusion alone", "fusion", "001", "000"),
    ("Block, hybrid attention and fusion together", "fusion", "111", "000"),
    ("The pre-trained block with a convolutional head", "head", "conv-111", "conv-011"),
    ("Version 3's layout, this block with LoRA, against the plain vit", "presets", "v3", "vit"),
    ("With a tenth of the subjects, version 1's layout against vit", "data", "v1-10", "vit-10"),
    (
        "With a tenth of the subjects, version 1 with the block against without it",
        "data",
        "v1-10",
        "011-10",
    ),
)


def _in_short(cpu, gpu=None):
    """The answers before the tables: one line per question, then the models among the peers.

    A comparison that both devices have is told of the one with more seeds.
    """
    known = {"a CPU": cpu} | ({"a GPU": gpu} if gpu else {})
    contrasts = pd.concat([one["contrasts"].assign(device=name) for name, one in known.items()])
    contrasts = contrasts[(contrasts["metric"] == "dice")]
    contrasts = contrasts[contrasts["structure"] == "foreground"]
    contrasts = contrasts.sort_values("n_seeds", ascending=False, kind="stable")
    lines = []
    for question, *pair in IN_SHORT:
        rows = contrasts[(contrasts[["suite", "arm_a", "arm_b"]] == pair).all(axis=1)]
        for _, row in rows.head(1).iterrows():
            adjusted = "adjusted " * (tuple(pair) != CONTRASTS[0])
            lines.append(
                f"- {question}: {row['difference']:+.4f} ({interval(row)}; {adjusted}p "
                f"{p_value(row['p_holm'])}; {count(row['n_seeds'], 'seed')} on {row['device']}), "
                f"{verdict_in_words(row)}."
            )
    for row in _part_effects(cpu["cases"]):
        part, seeds, difference, ends = row.values()
        lines.append(
            f"- With and without {part}, averaged over the other two parts: {difference} ({ends}; "
            f"not adjusted; {count(seeds, 'seed')} on a CPU)."
        )
    if gained := _budget_gain(cpu["validation"]):
        once, twice, seeds = gained
        if twice - once >= BUDGET_TARGET:
            lines.append(
                f"- Twice the epochs bring `vit` {twice - once:+.4f} in validation Dice ({seeds} "
                f"on a CPU), where less than {BUDGET_TARGET} was wanted: what looks better here "
                "may only train faster."
            )
    for frames in known.values():
        dice = frames["summary"].query("metric == 'dice' and structure == 'foreground'")
        dice = dice[dice["suite"] == "peers"].sort_values("mean", ascending=False)
        means = [
            f"`{row.arm}` {row.mean:.3f} ({count(row.n_seeds, 'seed')})"
            for row in dice.itertuples()
        ]
        machine = trained_on(frames["validation"])
        lines.append(f"- Means, the highest first, {machine}: {', '.join(means)}.")
    return ["In short, in Dice:", "", *lines]


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
    device = "a CPU" if set(runs["device"]) == {"cpu"} else "a GPU"
    for why, names in (
        (f"Not run on {device}", possible),
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
