"""What notebooks show: banners, live curves, views of volumes, and a suite's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display

from mvl.data.nifti import read_label, read_volume
from mvl.experiment.block_use import USED
from mvl.files import REPOSITORY, read_json
from mvl.show import figures, tables
from mvl.show.sentences import sentence
from mvl.study import volumes
from mvl.study.reference import REFERENCE, read_table, study_contrasts
from mvl.study.stages import SHOWN_STAGES
from mvl.study.statistics import contrast, contrasts_table
from mvl.study.suites import SUITES
from mvl.study.summary import summary_table

#: A text that a notebook shows as Markdown.
markdown = Markdown


def picture(path: Path) -> Image:
    """A PNG that a notebook shows at half its pixels, which are those for print."""
    content = path.read_bytes()
    return Image(content, width=int.from_bytes(content[16:20], "big") // 2)


def show(*things: object) -> None:
    """Show texts (as Markdown), figures and frames, one below the other."""
    for thing in things:
        display(markdown(thing) if isinstance(thing, str) else thing)


def banner(what: str) -> Markdown:
    """What the data of a notebook is, as `mvl.obtain` says it; synthetic data is announced."""
    if what.startswith("SYNTHETIC"):
        return markdown(
            f"> ## ⚠ Synthetic data\n> **{what}.**\n>\n"
            "> Every number and picture below is of generated volumes. It shows that the code "
            "runs and says nothing about patients."
        )
    return markdown(f"> **Data:** {what}.")


def live_curves(arm: str, epochs: int, synthetic: bool) -> Callable[[list], None]:
    """Curves that redraw themselves some 20 times in a training: `mvl.fit`'s `on_epoch`."""
    handle = None  # what was trained before shows nothing
    every = max(1, epochs // 20)

    def redraw(rows):
        nonlocal handle
        if len(rows) % every == 0 or len(rows) == epochs:
            figure = figures.curves({arm: rows}, synthetic)
            if handle:
                handle.update(figure)
            else:
                handle = display(figure, display_id=True)

    return redraw


# --- volumes -------------------------------------------------------------------------------


def view_of_case(case) -> figures.View:
    """A labelled `Case` as its files have it."""
    image, header = read_volume(case.image)
    return figures.View(image, header.affine, read_label(case.label)[0] > 0, title=case.name)


def view_of(model, case, caption: str, title: str = "") -> figures.View:
    """A labelled `Case` with the prediction of a `Run` or `Predictor`, on the file's grid.

    `title` says what the case is, such as "worst"; its name is added.
    """
    title = f"{title}: {case.name}" if title else case.name
    image, header = read_volume(case.image)
    truth = np.isin(read_label(case.label)[0], list(model.task.labels))
    prediction = model.segment(case).any(0).numpy()
    return figures.View(image, header.affine, truth, prediction, title=title, caption=caption)


def view_of_volume(volume: dict, title: str, like: dict | None = None) -> figures.View:
    """A volume as `Preparation.load` gives it, or one with the affine of `like`."""
    image, label = (np.asarray(volume[key])[0] for key in ("image", "label"))
    affine = np.asarray((like or volume)["image"].affine)
    return figures.View(image, affine, label > 0, title=title)


def activation_row(model, case, caption: str = "") -> dict[str, figures.View]:
    """A labelled `Case` with the norms of a model's tokens upon it.

    Maps are on the model's grid without its padding; in the corner of each is the AUROC of this
    case (see `mvl.study.stages`). `caption` is the image's.

    Returns:
        A row of `figures.activation_maps`: the image, then the stages that the model has.
    """
    volume, maps = volumes.token_maps(model, case)
    row = {"image": figures.View(**volume, title=case.name, caption=caption)}
    for stage, (heat, auroc) in maps.items():
        text = "no AUROC" if np.isnan(auroc) else f"AUROC {auroc:.2f}"
        row[stage] = figures.View(**volume, heat=heat, title=case.name, caption=text)
    return row


# --- results -------------------------------------------------------------------------------


def paper_numbers(
    models: list[str], metric: str | None = "dice", task: str | None = None
) -> pd.DataFrame:
    """The paper's numbers (mvl/paper.csv) of some models, with their source; None means all."""
    table = pd.read_csv(tables.PAPER)
    table = table[table["model"].isin(models)]
    if metric:
        table = table[table["metric"] == metric]
    if task:
        table = table[table["task"] == task]
    shown = ["model", "version", "task", "metric", "value", "sd", "unit", "what", "source"]
    return table[shown].fillna({"unit": ""}).reset_index(drop=True)


def benchmark(name: str) -> pd.DataFrame:
    """The measured figures of a file of benchmarks/, such as "get_block", by name with unit.

    Raises:
        MvlError: there are no measured figures.
    """
    results = read_json(REPOSITORY / "benchmarks" / "results.json")
    values = {k.removeprefix(f"{name}_"): v for k, v in results.items() if k.startswith(name)}
    return pd.Series(values, name=name).to_frame()


def reference_cases(suite: str) -> pd.DataFrame:
    """The reference's rows of a suite and the foreground; may be empty."""
    table = read_table(REFERENCE / "cases.csv.gz")
    return table[(table["suite"] == suite) & (table["structure"] == "foreground")]


def study(suite: str, cases: pd.DataFrame, *pairs: tuple[str, str]) -> None:
    """Show a suite's results: the committed reference's, then this profile's.

    For the reference: the means, their figure, and the pairs subject by subject. For the profile:
    the means of each arm and a sentence per comparison, or how to train some.

    Args:
        cases: this profile's table of test cases; may be empty.
        pairs: (arm, against) that the reference is drawn for.
    """
    rows = reference_cases(suite)
    if len(rows):
        missing = [f"`{arm}`" for arm in SUITES[suite] if arm not in set(rows["arm"])]
        show(
            "### The committed reference",
            "The same experiments as the authors of this repository ran them, from "
            "`results/reference/`." + f" Not run: {', '.join(missing)}." * bool(missing),
            means(suite, rows),
            figures.arm_differences(rows),
        )
        for arm, against in pairs:
            if {arm, against} <= set(rows["arm"]):
                row = contrast(rows, arm, against)
                several = row["n_seeds"] > 1
                one = "" if several else " It knows of one training of each arm only."
                show(
                    f"Subject by subject: above zero `{arm}` is better than `{against}`, below it "
                    "worse. The band is the 95 % interval of the mean difference; "
                    f"subjects{' and seeds' * several} are resampled.{one}",
                    figures.paired_differences(rows, arm, against),
                )
    if len(cases):
        show("### This profile", means(suite, cases))
        show("\n".join(_sentences(_in_dice(cases, suite))) or _NO_PAIR)
    else:
        show(
            "### This profile",
            f"It trains no arm of this suite. To train some, name them in `{suite}_arms` above: "
            + ", ".join(f"`{arm}`" for arm in SUITES[suite])
            + ". Each takes about as long as the training in 00_start_here.",
        )


def compare_runs(folders: dict[str, Path], synthetic: bool) -> None:
    """Show runs next to each other, by label: their curves, and what each reached in validation.

    Test cases play no part: a choice between two runs is made on validation.
    """
    curves = {label: pd.read_csv(folder / "curves.csv") for label, folder in folders.items()}
    best = {label: table["validation_dice"].max() for label, table in curves.items()}
    epochs = {label: len(table) for label, table in curves.items()}
    rows = pd.DataFrame({"best validation Dice": best, "epochs": epochs})
    show(figures.curves(curves, synthetic), rows.round(3))


def means(suite: str, cases: pd.DataFrame) -> Markdown:
    """The arms of one suite and task in Dice, NSD and HD95, or that there are none."""
    if cases.empty:
        return markdown("Nothing of this suite is there.")
    first = cases.iloc[0]
    summary = summary_table(cases[cases["structure"] == first["structure"]])
    caption = (
        f"{'**Synthetic data.** ' * bool(first['synthetic'])}{first['task']}, "
        f"{first['structure']}: means over seeds and subjects ± standard deviation over subjects."
    )
    shown = tables.arms(summary, order=list(SUITES[suite]))
    return markdown(f"{caption}\n\n{tables.markdown(shown)}")


_NO_PAIR = "No two arms to compare are there."


def answer(suite: str, cases: pd.DataFrame | None = None) -> Markdown:
    """One sentence per contrast of a suite, in Dice, as the reference's own tables say it.

    Without any, those of this profile's `cases`.
    """
    table = read_table(REFERENCE / "contrasts.csv")
    table = table[(table["suite"] == suite) & (table["structure"] == "foreground")]
    lines = _sentences(table[table["metric"] == "dice"])
    if not lines and cases is not None and len(cases):
        lines = _sentences(_in_dice(cases, suite))
    return markdown("\n".join(lines) or _NO_PAIR)


def _in_dice(cases, suite):
    contrasts = study_contrasts(cases, suite)
    return contrasts[contrasts["metric"] == "dice"]


def _sentences(contrasts):
    return [f"- {sentence(row)}" for _, row in contrasts.iterrows()]


def costs(suite: str) -> pd.DataFrame:
    """Weights, training time and Dice of the reference's arms of a suite.

    `step_s` is the processor time of a training step of four cases, as benchmarks/task04.py
    measured it.
    """
    runs = read_table(REFERENCE / "validation.csv")
    runs = runs[runs["suite"] == suite]
    table = runs.groupby("arm", sort=False)[["trained_parameters", "parameters"]].first()
    measured = benchmark("task04")["task04"]
    table["step_s"] = [measured.get(f"{arm}_step_s", np.nan) for arm in table.index]
    dice = reference_cases(suite).groupby(["arm", "seed", "subject"])["dice"].mean()
    table["dice"] = dice.groupby("arm").mean().round(3)
    return table


# --- the block -----------------------------------------------------------------------------


def block_use(use: pd.DataFrame) -> Markdown:
    """What deletion of the block costs in the models of one task, from `mvl.measure_use`."""
    if use.empty:
        return markdown("No model with a block is trained here.")
    shown = tables.block_use(use)
    text = f"The test Dice with the block's term replaced. Used: deletion costs at least {USED:g}."
    return markdown(f"{text}\n\n{tables.markdown(shown, code=('arm',))}")


def activation_answer(rows: pd.DataFrame) -> Markdown:
    """Whether the norms of the tokens are larger on the structure with the block.

    After the block against before it and, where the paper compares them, the two models after the
    decoder; then the means, since a difference does not say on which side of chance it is.

    Args:
        rows: from `mvl.measure_stages`, of the arms none and pretrained.
    """
    if rows.empty:
        return markdown("Nothing can be said: no case has patches of both kinds.")
    by_subject = rows.groupby(["arm", "stage", "subject"], sort=False)["auroc_stream"].mean()
    stage_means = by_subject.groupby(["arm", "stage"], sort=False).mean()
    rows = rows.assign(arm=rows["arm"] + " " + rows["stage"])
    before, after, decoder = (SHOWN_STAGES[stage] for stage in ("encoder", "after", "decoder"))
    pairs = [
        ("language", f"pretrained {after}", f"pretrained {before}"),
        ("language", f"pretrained {decoder}", f"none {decoder}"),
    ]
    lines = _sentences(contrasts_table(rows, pairs, ["auroc_stream"]))
    text = ", ".join(f"{arm} {stage} {mean:.2f}" for (arm, stage), mean in stage_means.items())
    lines.append(f"- Mean AUROC (below 0.5 the norm is larger on the background): {text}.")
    return markdown("\n".join(lines))
