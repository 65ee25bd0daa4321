"""The committed reference: tables of a finished study, and the README's results made of them.

`results/reference/` holds

    cases.csv.gz      one row per suite, arm, seed, task, subject, case and structure
    summary.csv       one row per suite, arm, task, structure and metric
    contrasts.csv     one row per compared pair
    validation.csv    one row per suite, arm and seed: its run, and what choices were made by
    mechanism.csv.gz  one row per run with a language part and test case: what `mechanism` found
    curves.csv.gz     one row per run and epoch: its training loss and validation Dice
    tuning.csv        one row per suite, arm and learning rate: from what the rate was chosen
    provenance.json   commits, versions, machine, times
    README.md         every suite's results, made of these tables
    figures/          drawn from cases.csv.gz
    best/             the preset best, trained with seed 0, as `save_model` writes it
    gpu/              the same tables of what was trained on a GPU, since no table mixes devices

A study is longer than a machine's patience: the reference grows by the runs that are at hand and
keeps the others' rows, as long as the suite would still train them just so (same fingerprint).
Its numbers reach the repository's README through `refresh_readme` alone, between two markers.
"""

from datetime import date
from pathlib import Path

import pandas as pd

from mvl import files
from mvl.config import PROTOCOL_VERSION
from mvl.errors import MvlError, RunError
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import Run, collect, read_config
from mvl.files import REPOSITORY, read_json, with_section, write_json, write_table, write_text
from mvl.models.folder import save_model
from mvl.show.figures import paired_differences, save
from mvl.show.tables import count, mean_and_spread, p_value
from mvl.study.mechanism import patch_auroc
from mvl.study.statistics import (
    CONTRAST_COLUMNS,
    PRIMARY,
    SUMMARY_COLUMNS,
    by_part,
    contrast,
    contrasts_table,
    is_primary,
    noise_floor,
    sentence,
    summary_table,
    verdict_in_words,
)
from mvl.study.suites import QUESTIONS, SUITES, TUNING_COLUMNS, is_possible

REFERENCE = REPOSITORY / "results" / "reference"
#: The one trained model that is committed: the preset `best`, seed 0.
BEST = REFERENCE / "best"
#: Where what was trained on a GPU belongs, below the reference.
GPU = "gpu"
BEGIN, END = "<!-- results: begin, written by `mvl reference` -->", "<!-- results: end -->"

#: The contrasts that the study reports: (suite, arm, against). The first is the primary one, named
#: before anything was run; the others, Holm's family, were completed while the study grew.
CONTRASTS = (
    (PRIMARY["suite"], PRIMARY["arm_a"], PRIMARY["arm_b"]),
    ("language", "pretrained", "none"),
    ("language", "pretrained", "shuffled"),
    ("language", "pretrained", "identity"),
    ("language", "pretrained", "vit-mlp"),
    ("language", "identity", "none"),
    ("language", "vit-mlp", "none"),
    ("language", "trainable", "none"),
    ("fusion", "010", "000"),
    ("fusion", "001", "000"),
    ("fusion", "111", "000"),
    ("fusion", "111", "011"),
    ("head", "conv-111", "conv-000"),
    ("head", "conv-111", "conv-011"),
    *(("adaptation", arm, "lora-0") for arm in SUITES["adaptation"] if arm != "lora-0"),
    *(("data", f"v1-{percent}", f"vit-{percent}") for percent in (10, 30, 100)),
    *(("data", f"v1-{percent}", f"011-{percent}") for percent in (10, 30, 100)),
    *(("peers", arm, "vit") for arm in SUITES["peers"] if arm != "vit"),
    *(("size", arm, "vit") for arm in SUITES["size"] if arm != "vit"),
    *(("presets", arm, "vit") for arm in SUITES["presets"] if arm != "vit"),
    ("budget", "vit-2x", "vit"),
)

#: The metrics that they are reported in.
_COMPARED = ("dice", "nsd")


def _planned():
    """The size of Holm's family: one comparison may have names in several suites."""
    distinct = []
    for suite, arm, against in CONTRASTS:
        if (arms := (SUITES[suite][arm], SUITES[suite][against])) not in distinct:
            distinct.append(arms)
    return len(_COMPARED) * len(distinct) - 1  # the primary one is in no family


_FAMILY = _planned()


def study_contrasts(cases, suite=None):
    """The study's contrasts in Dice and NSD, each p adjusted for all that the study has planned.

    Args:
        cases: see `mvl.study.statistics`.
        suite: its contrasts alone; of all suites if None.

    Returns:
        As `contrasts_table`.
    """
    pairs = [pair for pair in CONTRASTS if suite in (None, pair[0])]
    return contrasts_table(cases, pairs, _COMPARED, family=_FAMILY)


#: The README's picture, below the reference's folder: the second contrast, subject by subject.
PICTURE = Path("figures") / "language_differences.png"

#: Every suite's results as a page, below the reference's folder.
STUDY = "README.md"

#: The suites that the README shows, of those that have something to show.
_README_SUITES = ("language", "fusion", "head", "data", "peers", "presets", "budget")

#: The seeds, and with them the validation folds, of the study.
SEEDS = (0, 1, 2, 3, 4)

#: What a result's last digits depend on besides its configuration.
MACHINE = ("system", "cpu", "capability", "device", "dtype", "threads", "torch")

#: What names a trained experiment of the study.
CELL = ["suite", "arm", "seed"]
_CURVE_COLUMNS = ["fingerprint", "epoch", "train_loss", "validation_dice"]


def read_table(path, columns=(), numbers=()):
    """Read a table of the reference, or one like it.

    Args:
        path: the table.
        columns, numbers: columns that it must have, the latter with numbers alone; of the tables
            that this module writes it knows them.

    Raises:
        RunError: there is no such table, it is unreadable, or a column is.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist, or is no file")
    own_columns, own_numbers = _needed().get(path.name, ((), ()))
    try:
        return files.read_table(path, (*columns, *own_columns), (*numbers, *own_numbers))
    except MvlError as error:
        raise RunError(str(error)) from error


def _needed():
    """Name of a table of the reference -> (columns, numbers) that whoever reads it relies on."""
    return {
        "cases.csv.gz": ((*CELL, "task", "subject", "case", "structure"), ("seed", *METRICS)),
        "summary.csv": (SUMMARY_COLUMNS, ("mean", "sd_subjects", "sd_seeds")),
        "contrasts.csv": (CONTRAST_COLUMNS, ()),  # may be without a row, and then without numbers
        "validation.csv": ((*CELL, *_RUN_COLUMNS), ("seed", "validation_dice", "seconds")),
        "curves.csv.gz": (("fingerprint",), _CURVE_COLUMNS[1:]),
        "tuning.csv": (TUNING_COLUMNS, ()),
        "mechanism.csv.gz": (("fingerprint", "subject", "case", "structure"), ()),
    }


def machine_of(environment):
    """The entries of a run's environment.json that decide whether its last digits must agree."""
    known = environment | {"torch": environment["versions"]["torch"]}
    return {key: known.get(key, "unknown") for key in MACHINE}


def reference_of(folders):
    """The reference that runs belong to: `REFERENCE`, or of a GPU's runs the folder in it.

    Raises:
        RunError: they were not all trained on one device.
    """
    devices = {read_json(folder / "environment.json", "device")["device"] for folder in folders}
    if len(devices) > 1:
        raise RunError(f"no table mixes devices; these runs have {', '.join(sorted(devices))}")
    return REFERENCE if devices <= {"cpu"} else REFERENCE / GPU


def held(reference=REFERENCE):
    """Which experiments the reference has, and on what they were trained there.

    Args:
        reference: its folder.

    Returns:
        {fingerprint: "CPU", "GPU" or "CPU, GPU"}.
    """
    devices = {}
    for device, folder in (("CPU", reference), ("GPU", reference / GPU)):
        if (folder / "validation.csv").is_file():
            for fingerprint in set(read_table(folder / "validation.csv")["fingerprint"]):
                devices.setdefault(fingerprint, []).append(device)
    return {fingerprint: ", ".join(found) for fingerprint, found in devices.items()}


def measure_mechanism(suite, folder, data, reference=REFERENCE):
    """What `mvl.study.mechanism` finds in a tested run, for `write_reference`.

    Args:
        suite: the run's suite; measured in `language` alone.
        folder: the run folder.
        data: its `TaskData`.
        reference: a run that stands in its mechanism.csv.gz already is not measured again.

    Returns:
        A case a row, with the run's fingerprint; None where there is nothing to measure.
    """
    path = reference / "mechanism.csv.gz"
    known = set(read_table(path)["fingerprint"]) if path.is_file() else set()
    if suite != "language" or Path(folder).name in known:
        return None
    if read_config(folder).model.language is None:
        return None
    run = Run.load(folder)
    found = patch_auroc(run.model, data.side("test"), run.preparation, show=False)
    return found.assign(fingerprint=Path(folder).name)


def mechanism_table(reference=REFERENCE):
    """The reference's mechanism beside the metrics of the same runs, as `study.mechanism` has it.

    Returns:
        A table that `figures.mechanism` and `contrasts_table` take; empty if nothing is measured.
    """
    path = reference / "mechanism.csv.gz"
    if not path.is_file():
        return pd.DataFrame()
    runs = read_table(reference / "validation.csv")
    runs = runs.loc[runs["suite"] == "language", [*CELL, "fingerprint"]]
    found = read_table(path).merge(runs, on="fingerprint").drop(columns="fingerprint")
    cases = read_table(reference / "cases.csv.gz")
    return cases.merge(found, on=[*CELL, "subject", "case", "structure"])


def curves_table(reference=REFERENCE):
    """The reference's training curves: suite, arm, seed, fraction (of the training subjects),
    epoch, train_loss, validation_dice; of those runs whose curves are kept."""
    path = reference / "curves.csv.gz"
    found = read_table(path) if path.is_file() else pd.DataFrame(columns=_CURVE_COLUMNS)
    runs = read_table(reference / "validation.csv")
    fractions = [
        SUITES[suite][arm].fraction for suite, arm in zip(runs["suite"], runs["arm"], strict=True)
    ]
    runs = runs.assign(fraction=fractions)[[*CELL, "fraction", "fingerprint"]]
    return runs.merge(found, on="fingerprint").drop(columns="fingerprint")


def write_reference(trained, expected, tuned, measured=(), reference=REFERENCE):
    """Add finished runs to the reference's tables, and draw its pictures again.

    Args:
        trained: {(suite, arm, seed): run folder}, trained and tested.
        expected: {(suite, arm, seed): fingerprint} of every cell that the suites have now; an
            older row with another fingerprint is dropped.
        tuned: table of `suites.tuning_table`, of any suites.
        measured: tables of `measure_mechanism`.
        reference: the folder to write to.

    Returns:
        The summary.

    Raises:
        RunError: no row is left; or the runs differ in protocol version, device or number format.
    """
    cases, runs = _grown(trained, expected, reference)
    summary = summary_table(cases)
    write_table(reference / "cases.csv.gz", cases)
    write_table(reference / "summary.csv", summary)
    write_table(reference / "contrasts.csv", study_contrasts(cases))
    write_table(reference / "validation.csv", runs)
    write_table(reference / "curves.csv.gz", _grown_curves(trained, runs, reference))
    write_table(reference / "tuning.csv", _grown_tuning(tuned, runs, reference / "tuning.csv"))
    mechanism = list(measured)
    if (reference / "mechanism.csv.gz").is_file():
        mechanism.insert(0, read_table(reference / "mechanism.csv.gz"))
    if mechanism:
        table = pd.concat(mechanism, ignore_index=True)
        table = table[table["fingerprint"].isin(runs["fingerprint"])]
        table = table.sort_values(["fingerprint", "case"])
        write_table(reference / "mechanism.csv.gz", table)
    if reference.name != GPU:  # picture and model are the study's
        if folder := trained.get(("presets", "best", 0)):
            _publish(folder, cases, reference / BEST.name)
        language = cases[(cases["suite"] == "language") & (cases["structure"] == "foreground")]
        save(paired_differences(language, "pretrained", "none"), reference / PICTURE)
    write_text(reference / STUDY, study_page(reference))
    single = runs.drop_duplicates("fingerprint")
    write_json(
        reference / "provenance.json",
        {
            "written": date.today().isoformat(),
            "protocol_version": PROTOCOL_VERSION,
            "commits": sorted(set(single["commit"])),
            "machine": {key: sorted(set(single[key].astype(str))) for key in MACHINE},
            "runs": len(single),
            "training_hours": round(single["seconds"].sum() / 3600, 2),
        },
    )
    return summary


def _grown(trained, expected, reference):
    """(cases, runs): every expected cell that was run, now or for the reference as it is.

    Cells of several suites share a run where they have the same fingerprint.
    """
    tables, rows = [], []
    old_runs, old_cases = pd.DataFrame({"fingerprint": []}), None
    if (reference / "validation.csv").is_file():
        old_runs = read_table(reference / "validation.csv")
        old_cases = read_table(reference / "cases.csv.gz")
    for (suite, arm, seed), fingerprint in expected.items():
        cell = {"suite": suite, "arm": arm, "seed": seed}
        if folder := trained.get((suite, arm, seed)):
            tables.append(collect(folder, suite, arm))
            rows.append(cell | _run_row(folder))
            continue
        same = old_runs[old_runs["fingerprint"] == fingerprint]
        if len(same):
            row = same.iloc[0]
            of_run = (old_cases[CELL] == row[CELL]).all(axis=1)
            tables.append(old_cases[of_run].assign(suite=suite, arm=arm))
            rows.append(row.to_dict() | cell)
    if not rows:
        raise RunError("no run is finished; 'mvl suite run NAME' trains and tests a suite")
    runs = pd.DataFrame(rows, columns=[*CELL, *_RUN_COLUMNS])
    return _in_order(pd.concat(tables, ignore_index=True), ["case", "structure"]), _in_order(runs)


def _publish(folder, cases, place):
    """Save the model of a run of `best`, with what it reached on the test subjects."""
    run = Run.load(folder)
    own = cases[(cases["suite"] == "presets") & (cases["arm"] == "best")]
    own = own[(own["seed"] == run.config.seed) & (own["structure"] == "foreground")]
    shown = ["dice", "nsd", "hd95_mm"]
    means = own.groupby("subject")[shown].mean().mean()
    metrics = {f"test {name}": means[name] for name in shown}
    save_model(run.model, place, run.task, run.config.data, metrics, run.domain)


_RUN_COLUMNS = (
    *("grid", "learning_rate", "epochs", "best_epoch", "validation_dice", "trained_parameters"),
    *("parameters", "seconds", "fingerprint", "commit", *MACHINE),
)


def _run_row(folder):
    done = read_json(folder / "done.json")
    config = read_json(folder / "config.json")["config"]
    environment = read_json(folder / "environment.json")
    grid = "x".join(map(str, config["data"]["grid"]))
    facts = config["training"] | {"grid": grid} | done | machine_of(environment)
    facts |= {"fingerprint": folder.name, "commit": environment["commit"] or "unknown"}
    return {name: facts[name] for name in _RUN_COLUMNS}


def _grown_curves(trained, runs, reference):
    """The curves of every run that is in `runs`, by fingerprint."""
    path = reference / "curves.csv.gz"
    tables = [read_table(path)] if path.is_file() else []
    known = set(tables[0]["fingerprint"]) if tables else set()
    for folder in {Path(folder).name: Path(folder) for folder in trained.values()}.values():
        if folder.name not in known:
            curves = read_table(folder / "curves.csv", numbers=_CURVE_COLUMNS[1:])
            tables.append(curves.assign(fingerprint=folder.name)[_CURVE_COLUMNS])
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_CURVE_COLUMNS)
    table = table[table["fingerprint"].isin(runs["fingerprint"])]
    return table.sort_values(["fingerprint", "epoch"])


def _in_order(table, rest=()):
    """Sorted as the suites name their arms, so that equal content gives equal bytes."""
    place = {(suite, arm): n for n, (suite, arm) in enumerate(_arms())}
    order = [place[cell] for cell in zip(table["suite"], table["arm"], strict=True)]
    ordered = table.assign(_order=order).sort_values(["_order", "seed", *rest], kind="stable")
    return ordered.drop(columns="_order").reset_index(drop=True)


def _arms():
    return [(suite, arm) for suite, arms in SUITES.items() for arm in arms]


def _grown_tuning(tuned, runs, path):
    """Every learning rate that was tried with seed 0, the chosen ones included."""
    chosen = runs[runs["seed"] == 0].assign(mapper_rate=1.0)  # protocol 1 has no other
    tables = [read_table(path)] if Path(path).is_file() else []
    table = pd.concat([*tables, tuned, chosen], ignore_index=True)[list(TUNING_COLUMNS)]
    return _in_order(
        table.drop_duplicates(TUNING_COLUMNS[:6], keep="last"),
        ["grid", "learning_rate", "mapper_rate"],
    )


def results_section(reference=REFERENCE):
    """The README's results as Markdown: the questions that the paper raises."""
    tables = _tables(reference)
    gpu = _tables(reference / GPU) if (reference / GPU).is_dir() else None
    lines = [*_size(**tables), "", *_in_short(tables, gpu)]
    for suite in _shown(tables):
        if suite in _README_SUITES:
            lines += _suite_section(suite, tables)
            if gpu and suite in _shown(gpu):
                lines += ["", f"In comparisons of their own, {_place(gpu['validation'])}:"]
                lines += ["", *_suite_body(suite, gpu)]
        if suite == "language":
            picture = (REFERENCE / PICTURE).relative_to(REPOSITORY).as_posix()
            lines += ["", f"![{_PICTURE_TEXT}]({picture})"]
    more = (REFERENCE / STUDY).relative_to(REPOSITORY).as_posix()
    lines += ["", f"Every suite with comparisons of its own: [{more}]({more})."]
    if gpu:
        more = (REFERENCE / GPU / STUDY).relative_to(REPOSITORY).as_posix()
        lines[-1] += f" On a GPU: [{more}]({more})."
    return "\n".join(lines)


def study_page(reference=REFERENCE):
    """Every suite that has something to compare, as a Markdown page."""
    tables = _tables(reference)
    up = "../" * (3 if reference.name == GPU else 2)
    lines = [
        "# The study, suite by suite",
        "",
        "Written by `mvl reference`. What the arms are, and what to bear in mind, is in the "
        f"[README]({up}README.md#results-so-far) of the repository.",
        "",
    ]
    lines += _size(**tables)
    for suite in _shown(tables):
        lines += _suite_section(suite, tables)
    return "\n".join(lines) + "\n"


def refresh_readme(readme=REPOSITORY / "README.md", reference=REFERENCE):
    """Write `results_section` between the README's markers.

    Raises:
        MvlError: the README lacks a marker.
    """
    write_text(readme, with_section(readme, BEGIN, END, results_section(reference)))


_PICTURE_TEXT = "Difference in Dice between vit with the block and vit, subject by subject"


def _tables(reference):
    names = ("cases.csv.gz", "summary.csv", "contrasts.csv", "validation.csv")
    tables = {name.partition(".")[0]: read_table(reference / name) for name in names}
    # What an arm's rate was chosen from may have been trained on the other device.
    study = reference.parent if reference.name == GPU else reference
    tried = [folder / "tuning.csv" for folder in (study, study / GPU) if folder.is_dir()]
    return tables | {"tuning": pd.concat(map(read_table, tried), ignore_index=True)}


def _place(runs):
    """On what a reference's runs were trained, in words."""
    found = runs[["device", "dtype", "torch"]].drop_duplicates()
    return "trained on " + " and ".join(
        ("a CPU" if row.device == "cpu" else f"a GPU ({row.device})")
        + f" in {row.dtype}, PyTorch {row.torch}"
        for row in found.itertuples()
    )


def _size(summary, validation, **_):
    first = summary.iloc[0]
    blocks = [f"`{block}`" for block in sorted(set(summary["block"].dropna()) - {""})]
    about = (
        f"The language block is {', '.join(blocks)}: nothing here decides anything about another, "
        "such as the paper's. "
    )
    return [
        f"{first['task']}, {first['structure']}, native space: {first['n_cases']} test cases of "
        f"{first['n_subjects']} subjects. Means over seeds and subjects ± standard deviation over "
        "subjects; validation Dice is on the model's grid and over seeds; a learning rate is the "
        "best on validation, with seed 0, of as many as the table says (tuning.csv, here or of the "
        "other device); one that is the lowest or the highest of them may not be the best there "
        f"is. {about * bool(blocks)}All were {_place(validation)}.",
        "",
        "A comparison takes the seeds that both arms have, a row all seeds of its arm: the "
        "difference of two rows is not always that of the comparison, nor always of its sign. "
        "Intervals resample subjects, and seeds where there are several; they are not adjusted. "
        "With one seed a verdict is about two trained models. `better` and `worse` need the "
        f"95 % interval and a p that is adjusted (Holm) for the study's {_FAMILY} comparisons in "
        "Dice and NSD, run or not, a CPU's and a GPU's by themselves. The primary one is none of "
        "them: it was named before anything was run, some of the others when test results were "
        "known. `equivalent` and `but negligible` need the 90 % interval within ±0.01 (two "
        "one-sided tests, not adjusted) and several seeds.",
    ]


#: What a reader wants to know first: question, and the contrast that answers it.
_IN_SHORT = (
    ("The pre-trained block against none", "language", "pretrained", "none"),
    ("The pre-trained block against random weights", "language", "pretrained", "random"),
    ("The pre-trained block against its mappers alone", "language", "pretrained", "identity"),
    ("Hybrid attention alone", "fusion", "010", "000"),
    ("Multi-scale fusion alone", "fusion", "001", "000"),
    ("Block, hybrid attention and fusion together", "fusion", "111", "000"),
    ("The pre-trained block beside a convolutional head", "head", "conv-111", "conv-011"),
    ("Version 3's layout, this block with LoRA, against the plain vit", "presets", "v3", "vit"),
    ("With a tenth of the subjects, version 1's layout against vit", "data", "v1-10", "vit-10"),
    (
        "With a tenth of the subjects, version 1 against itself less the block",
        "data",
        "v1-10",
        "011-10",
    ),
)


def _in_short(tables, gpu=None):
    """The answers before the tables: a line a question, and one of the models beside the peers.

    A comparison that both devices have is told of the one with more seeds.
    """
    known = {"a CPU": tables} | ({"a GPU": gpu} if gpu else {})
    found = pd.concat([one["contrasts"].assign(place=place) for place, one in known.items()])
    found = found[(found["metric"] == "dice") & (found["structure"] == "foreground")]
    found = found.sort_values("n_seeds", ascending=False, kind="stable")
    lines = []
    for question, *pair in _IN_SHORT:
        own = found[(found[["suite", "arm_a", "arm_b"]] == pair).all(axis=1)]
        for _, row in own.head(1).iterrows():
            adjusted = "adjusted " * (tuple(pair) != CONTRASTS[0])
            lines.append(
                f"- {question}: {row['difference']:+.4f} ({row['ci_low']:+.4f} to "
                f"{row['ci_high']:+.4f}; {adjusted}p {p_value(row['p_holm'])}; "
                f"{count(row['n_seeds'], 'seed')} on {row['place']}), {verdict_in_words(row)}."
            )
    for part, seeds, size, interval in _effects(tables["cases"]):
        lines.append(
            f"- With and without {part}, averaged over the other two parts: {size} ({interval}; "
            f"not adjusted; {count(seeds, 'seed')} on a CPU)."
        )
    if gained := _budget_gain(tables["validation"]):
        once, twice, seeds = gained
        if twice - once >= BUDGET_TARGET:
            lines.append(
                f"- Twice the epochs bring `vit` {twice - once:+.4f} in validation Dice ({seeds} "
                f"on a CPU), where less than {BUDGET_TARGET} was wanted: what looks better here "
                "may only train faster."
            )
    for one in known.values():
        lines += _reached(**one)
    return ["In short, in Dice:", "", *lines]


def _reached(summary, validation, **_):
    """A line of the models beside the peers."""
    dice = summary[(summary["metric"] == "dice") & (summary["structure"] == "foreground")]
    dice = dice[dice["suite"] == "peers"].sort_values("mean", ascending=False)
    reached = [
        f"`{row.arm}` {row.mean:.3f} ({count(row.n_seeds, 'seed')})" for row in dice.itertuples()
    ]
    return [f"- Means, the highest first, {_place(validation)}: {', '.join(reached)}."]


def _shown(tables):
    """The suites that have something of their own to compare, in their order.

    An experiment has names in several suites; it answers the question of the first of them.
    """
    runs, known, shown = tables["validation"], set(), []
    for suite in SUITES:
        own = runs[runs["suite"] == suite]
        prints = set(own["fingerprint"])
        if own["arm"].nunique() > 1 and prints - known:
            shown.append(suite)
            known |= prints
    return shown


def _suite_section(suite, tables):
    """Question, arms, comparisons, and what is not there yet."""
    return ["", f"### {QUESTIONS[suite]}", "", *_suite_body(suite, tables)]


def _suite_body(suite, tables):
    lines = [*_arms_table(suite, **tables)]
    there = set(tables["summary"].loc[tables["summary"]["suite"] == suite, "arm"])
    missing = [arm for arm in SUITES[suite] if arm not in there]
    open_yet = [f"`{arm}`" for arm in missing if is_possible(SUITES[suite][arm].model)]
    if open_yet:
        where = "a CPU" if set(tables["validation"]["device"]) == {"cpu"} else "a GPU"
        lines += ["", f"Not run on {where}: {', '.join(open_yet)}."]
    if not_for_it := [f"`{arm}`" for arm in missing if f"`{arm}`" not in open_yet]:
        lines += ["", f"Not possible with this block: {', '.join(not_for_it)}."]
    lines += ["", *_answers(suite, **tables)]
    if suite == "language":
        lines += _noise_floor(tables["cases"])
    if suite == "fusion":
        lines += _part_effects(tables["cases"])
    if suite == "budget":
        lines += _budget(tables["validation"])
    return lines


def _noise_floor(cases):
    """How far apart two trainings of one arm lie that differ in their seed, and so fold, alone."""
    own = cases[(cases["suite"] == "language") & (cases["structure"] == "foreground")]
    found = noise_floor(own, "none")
    if found["n_seeds"] < 2:
        return []
    return [
        "",
        "**The noise floor.** Two trainings of `none` that differ in seed, and with it in "
        f"validation fold, differ in test Dice by {found['mean_difference']:.4f} on average and "
        f"{found['largest_difference']:.4f} at most ({found['n_seeds']} seeds).",
    ]


#: What the study's budget was meant to leave on the table: less than this in validation Dice.
BUDGET_TARGET = 0.002


def _budget_gain(runs):
    """Validation Dice of vit at the study's budget and at twice as many epochs, over the seeds
    that both have, and how many these are; None where there is none."""
    own = runs[runs["suite"] == "budget"]
    dice = own.pivot(index="seed", columns="arm", values="validation_dice").dropna()
    if dice.empty or "vit-2x" not in dice:
        return None
    return *dice[["vit", "vit-2x"]].mean(), count(len(dice), "seed")


def _budget(runs):
    """Whether the budget is enough."""
    if not (found := _budget_gain(runs)):
        return []
    once, twice, seeds = found
    met = "met" if twice - once < BUDGET_TARGET else "missed"
    return [
        "",
        f"The budget was to be long enough for twice the epochs to gain less than {BUDGET_TARGET} "
        f"in validation Dice. They gain {twice - once:+.4f}, from {once:.3f} to {twice:.3f} "
        f"({seeds}): {met}.",
    ]


def _arms_table(suite, summary, validation, tuning, **_):
    """A row per arm, in the suite's order; two where seeds had different budgets."""
    columns = ("arm", "seeds", "epochs", "trained weights", "learning rate, of tried")
    metrics = ("dice", "nsd", "hd95_mm")
    columns += ("validation Dice", *(METRICS[metric].heading for metric in metrics))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    own = summary[(summary["suite"] == suite) & (summary["structure"] == "foreground")]
    for arm in SUITES[suite]:
        for epochs, of_arm in own[own["arm"] == arm].groupby("epochs"):
            of_arm = of_arm.set_index("metric")
            runs = validation[(validation["suite"] == suite) & (validation["arm"] == arm)]
            runs = runs[runs["epochs"] == epochs]
            run = runs.iloc[0]
            cells = [
                f"`{arm}`",
                str(len(runs)),
                str(epochs),
                f"{run['trained_parameters']:,}",
                f"{run['learning_rate']:g} of {_rates_tried(runs, tuning)}",
                f"{runs['validation_dice'].mean():.3f}",
                *(mean_and_spread(of_arm, metric) for metric in metrics),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rates_tried(runs, tuning):
    """How many learning rates an arm's was chosen from, under whichever of its names; those of an
    earlier grid, which tuning.csv has, too, do not count."""
    names = tuning.loc[tuning["fingerprint"].isin(runs["fingerprint"]), ["suite", "arm", "grid"]]
    return names.drop_duplicates().merge(tuning)["learning_rate"].nunique()


def _answers(suite, contrasts, validation, **_):
    """The primary contrast as a sentence, a row per contrast in Dice, and which of them compare
    what was trained on different kinds of processor."""
    chosen = contrasts[(contrasts["suite"] == suite) & (contrasts["metric"] == "dice")]
    chosen = chosen[chosen["structure"] == "foreground"]
    if chosen.empty:
        return []
    primary = chosen[is_primary(chosen)]
    lines = [f"**The primary comparison.** {sentence(row)}" for _, row in primary.iterrows()]
    columns = ("comparison", "seeds", "difference in Dice", "95 % interval", "p, adjusted")
    columns += ("verdict",)
    lines += [""] * bool(lines) + [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cpus = validation[validation["suite"] == suite].groupby("arm")["cpu"].agg(set)
    across = []
    for _, row in chosen.iterrows():
        pair = f"`{row['arm_a']}` minus `{row['arm_b']}`"
        if cpus[row["arm_a"]] != cpus[row["arm_b"]]:
            across.append(pair)
        cells = [
            pair,
            str(row["n_seeds"]),
            f"{row['difference']:+.4f}",
            f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}",
            p_value(row["p_holm"]) + " (not adjusted)" * (row.name in primary.index),
            verdict_in_words(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if across:
        lines += ["", f"Across different kinds of processor: {', '.join(across)}."]
    return lines


def _effects(cases):
    """What each of the paper's parts does to the test Dice; nothing without a whole factorial.

    Yields:
        (part, seeds, difference and interval in words).
    """
    cases = cases[(cases["suite"] == "fusion") & (cases["structure"] == "foreground")]
    for part, sides in by_part(cases).items():
        row = contrast(sides, "on", "off")
        interval = f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}"
        yield part, row["n_seeds"], f"{row['difference']:+.4f}", interval


def _part_effects(cases):
    lines = [f"| {' | '.join(map(str, effect))} |" for effect in _effects(cases)]
    head = "part, averaged over the other two", "seeds", "difference in Dice", "95 % interval"
    return ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines] if lines else []
