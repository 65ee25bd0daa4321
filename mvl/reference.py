"""The committed reference: tables of a finished study, and the README's results made of them.

`results/reference/` holds

    cases.csv.gz      one row per suite, arm, seed, task, subject, case and structure
    summary.csv       one row per suite, arm, task, structure and metric
    contrasts.csv     one row per compared pair
    validation.csv    one row per suite, arm and seed: what choices were made by
    provenance.json   commit, versions, machine, times
    figures/          drawn from cases.csv.gz

Its numbers reach the README through `refresh_readme` alone, between two markers.
"""

from datetime import date
from pathlib import Path

import pandas as pd

from mvl.errors import RunError
from mvl.experiments import collect
from mvl.figures import paired_differences, save
from mvl.files import read_json, write_json, write_table, write_text
from mvl.metrics import METRICS
from mvl.statistics import contrasts_table, sentence, summary_table

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "results" / "reference"
BEGIN, END = "<!-- results: begin, written by `mvl reference` -->", "<!-- results: end -->"

#: The contrasts that a study reports, named before it is run: (suite, arm, against).
CONTRASTS = (
    ("language", "pretrained", "none"),
    ("fusion", "010", "000"),
    ("fusion", "001", "000"),
    ("fusion", "111", "000"),
    ("presets", "best", "vit"),
)

#: The README's picture, below the reference's folder.
PICTURE = Path("figures") / "language_differences.png"

#: The arms of the README's first table.
ARMS = ("none", "pretrained")

#: Columns that pandas would otherwise read as numbers ("000") or as missing ("").
_TEXT = {name: str for name in ("arm", "arm_a", "arm_b", "subject", "case", "block")}


def read_table(path):
    """Read a table of the reference, or one like it, with its texts as texts.

    Raises:
        RunError: there is no such table.
    """
    if not Path(path).is_file():
        raise RunError(f"{path} does not exist; 'mvl reference' writes the reference's tables")
    table = pd.read_csv(path, dtype=_TEXT)
    texts = [name for name in _TEXT if name in table]
    return table.fillna({name: "" for name in texts})


def write_reference(trained, reference=REFERENCE):
    """Write the reference's tables from finished runs.

    Args:
        trained: {(suite, arm, seed): run folder}, trained and tested.
        reference: the folder to write to.

    Returns:
        The summary.
    """
    tables, validation, places, seconds = [], [], [], 0.0
    for (suite, arm, seed), folder in trained.items():
        tables.append(collect(folder, suite, arm))
        done = read_json(folder / "done.json")
        places.append(read_json(folder / "environment.json"))
        seconds += done["seconds"]
        training = read_json(folder / "config.json")["config"]["training"]
        validation.append(
            {
                "suite": suite,
                "arm": arm,
                "seed": seed,
                "learning_rate": training["learning_rate"],
                "epochs": training["epochs"],
                "best_epoch": done["best_epoch"],
                "validation_dice": done["validation_dice"],
                "trained_parameters": done["trained_parameters"],
                "parameters": done["parameters"],
                "seconds": done["seconds"],
            }
        )
    cases = pd.concat(tables, ignore_index=True)
    summary = summary_table(cases)
    write_table(reference / "cases.csv.gz", cases)
    write_table(reference / "summary.csv", summary)
    write_table(
        reference / "contrasts.csv", contrasts_table(cases, CONTRASTS, metrics=("dice", "nsd"))
    )
    first = cases[(cases["suite"] == "language") & (cases["structure"] == "foreground")]
    save(paired_differences(first, "pretrained", "none"), reference / PICTURE)
    write_table(reference / "validation.csv", pd.DataFrame(validation))
    write_json(
        reference / "provenance.json",
        {
            "written": date.today().isoformat(),
            "commits": sorted({place["commit"] or "unknown" for place in places}),
            "machine": {
                key: sorted({str(place[key]) for place in places})
                for key in ("system", "capability", "device", "threads", "python")
            },
            "versions": places[0]["versions"],
            "runs": len({folder for folder in trained.values()}),
            "training_hours": round(seconds / 3600, 2),
        },
    )
    return summary


def results_section(reference=REFERENCE):
    """The README's results as Markdown: every number from the reference's tables."""
    summary = read_table(reference / "summary.csv")
    contrasts = read_table(reference / "contrasts.csv")
    validation = read_table(reference / "validation.csv")
    lines = [
        *_two_arms(summary, contrasts),
        "",
        *_combinations(summary, validation, contrasts),
    ]
    return "\n".join(lines)


def refresh_readme(readme=REPOSITORY / "README.md", reference=REFERENCE):
    """Write `results_section` between the README's markers.

    Raises:
        RunError: the README lacks a marker.
    """
    text = Path(readme).read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RunError(f"{readme} lacks one of the lines {BEGIN!r} and {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, f"{before}{BEGIN}\n{results_section(reference)}\n{END}{after}")


def _two_arms(summary, contrasts):
    """Every metric of vit without and with the block."""
    rows = summary[(summary["suite"] == "language") & (summary["structure"] == "foreground")]
    first = rows.iloc[0]
    block = rows.loc[rows["arm"] == "pretrained", "block"].iloc[0]
    mean = rows.pivot(index="metric", columns="arm", values="mean")
    spread = rows.pivot(index="metric", columns="arm", values="sd_subjects")
    lines = [
        f"{first['task']}, {first['structure']}, native space: {first['n_cases']} test cases of "
        f"{first['n_subjects']} subjects, {_seeds(first['n_seeds'])}, {first['epochs']} epochs. "
        "Mean ± standard deviation over subjects.",
        "",
        f"| metric | vit | vit + block (`{block}`) |",
        "|---|---|---|",
    ]
    for name, metric in METRICS.items():
        digits = 2 if metric.unit else 3
        cells = (f"{mean[arm][name]:.{digits}f} ± {spread[arm][name]:.{digits}f}" for arm in ARMS)
        lines.append(f"| {_title(name)} | {' | '.join(cells)} |")
    chosen = contrasts[(contrasts["suite"] == "language") & (contrasts["metric"] == "dice")]
    picture = f"![Difference in Dice, subject by subject](results/reference/{PICTURE.as_posix()})"
    return [*lines, "", *(sentence(row) for _, row in chosen.iterrows()), "", picture]


def _combinations(summary, validation, contrasts):
    """The paper's parts on and off, the convolutional head, and what earned what."""
    dice = summary[(summary["metric"] == "dice") & (summary["structure"] == "foreground")]
    lines = [
        "The paper's parts, each on or off, and the convolutional head; same budget, "
        "validation Dice on the model's grid, test Dice in native space:",
        "",
        "| suite | arm | language block | hybrid attention | multi-scale fusion | head "
        "| trained weights | validation Dice | test Dice |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in validation[validation["suite"].isin(["fusion", "head"])].itertuples():
        digits = row.arm[-3:]
        marks = " | ".join("yes" if digit == "1" else "–" for digit in digits)
        test = dice[(dice["suite"] == row.suite) & (dice["arm"] == row.arm)].iloc[0]
        lines.append(
            f"| {row.suite} | `{row.arm}` | {marks} | {'conv' if row.suite == 'head' else 'linear'}"
            f" | {row.trained_parameters:,} | {row.validation_dice:.3f} "
            f"| {test['mean']:.3f} ± {test['sd_subjects']:.3f} |"
        )
    lines += ["", _what_earned_it(dice)]
    chosen = contrasts[contrasts["suite"].isin(["fusion", "presets"])]
    chosen = chosen[(chosen["metric"] == "dice") & (chosen["structure"] == "foreground")]
    return [*lines, "", *(f"- {sentence(row)}" for _, row in chosen.iterrows())]


def _what_earned_it(dice):
    """Each part's effect on the test Dice, averaged over the combinations of the others."""
    mean = dice.set_index(["suite", "arm"])["mean"]
    effects = []
    for place, part in enumerate(("the language block", "hybrid attention", "multi-scale fusion")):
        arms = mean["fusion"]
        on = arms[[arm[place] == "1" for arm in arms.index]].mean()
        off = arms[[arm[place] == "0" for arm in arms.index]].mean()
        effects.append(f"{part} {on - off:+.3f}")
    plain = mean["head", "conv-000"] - mean["fusion", "000"]
    full = mean["head", "conv-111"] - mean["fusion", "111"]
    return (
        "What earned it, in test Dice averaged over the other parts: "
        f"{', '.join(effects)}; the convolutional head {plain:+.3f} on the plain model and "
        f"{full:+.3f} on the full one. `best` is the arm with the highest validation Dice."
    )


def _seeds(number):
    return f"{number} seed{'' if number == 1 else 's'}"


def _title(metric):
    return {"hd95_mm": "HD95 (mm)", "nsd": "NSD"}.get(metric, metric.capitalize())
