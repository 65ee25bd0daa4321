"""What a notebook shows besides figures: banners, live curves, and volumes made ready to draw."""

import hashlib
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd

from mvl.data.nifti import read_label, read_volume
from mvl.experiment.evaluation import segment
from mvl.files import REPOSITORY, read_json
from mvl.models.activations import activations, to_volume
from mvl.models.tokens import token_grid
from mvl.show import figures, tables
from mvl.study.mechanism import MEASURES, SHOWN_STAGES, by_stage, defined, image_voxels, stage_auroc
from mvl.study.reference import CONTRASTS, GPU, REFERENCE, read_table, study_contrasts
from mvl.study.statistics import contrasts_table, sentence, summary_table


def markdown(text):
    """An IPython Markdown object."""
    from IPython.display import Markdown

    return Markdown(text)


def banner(what):
    """What the data of a notebook is; synthetic data is announced so that nobody overlooks it.

    Args:
        what: the sentence of `mvl.obtain`.

    Returns:
        An IPython Markdown object.
    """
    if what.startswith("SYNTHETIC"):
        return markdown(
            f"> ## ⚠ Synthetic data\n> **{what}.**\n>\n"
            "> Every number and picture below is of generated volumes. It shows that the code "
            "runs and says nothing about patients."
        )
    return markdown(f"> **Data:** {what}.")


def live_curves(arm, epochs, synthetic):
    """A picture of the curves that redraws itself while a training runs.

    Args:
        arm: the line's name.
        epochs: of the training; the picture is redrawn some 20 times in it, and at its end.
        synthetic: whether the data is a phantom.

    Returns:
        A function for `mvl.fit`'s `on_epoch`.
    """
    from IPython.display import display

    handle = display(display_id=True)
    every = max(1, epochs // 20)

    def redraw(rows):
        if handle and (len(rows) % every == 0 or len(rows) == epochs):
            handle.update(figures.curves({arm: rows}, synthetic))

    return redraw


def view_of_case(case):
    """A labelled case as its files have it, as a `figures.View`."""
    image, header = read_volume(case.image)
    truth = read_label(case.label)[0] > 0
    return figures.View(image, header.affine, truth=truth, title=case.name)


def view_of(run, case, caption, title=None):
    """A labelled case with a run's prediction on the file's grid, as a `figures.View`.

    Args:
        run: a `Run` or a `Predictor`.
        case: a `Case`.
        caption: shown in the corner.
        title: what the case is, such as "worst"; its name is added.
    """
    image, header = read_volume(case.image)
    volume = run.preparation.load([case], progress=False)[0]
    return figures.View(
        image,
        header.affine,
        truth=np.isin(read_label(case.label)[0], list(run.task.labels)),
        prediction=segment(run.model, volume, run.preparation).any(0).numpy(),
        title=f"{title}: {case.name}" if title else case.name,
        caption=caption,
    )


def view_of_volume(volume, title, like=None):
    """A prepared volume on the model's grid, as a `figures.View`.

    Args:
        volume: as `Preparation.load` gives it.
        title: what it is.
        like: the prepared volume whose place in the patient this one has; itself if None.
    """
    image = (like or volume)["image"]
    affine = np.asarray(image.affine)
    truth = np.asarray(volume["label"])[0] > 0
    return figures.View(np.asarray(volume["image"])[0], affine, truth=truth, title=title)


def activation_row(run, case, caption=""):
    """A case with the norms of a model's tokens upon it: a row of `figures.activation_maps`.

    Maps are on the model's grid, where its tokens are, without padding. In the corner of each
    stands the AUROC of this case, if it has patches of both kinds (see `mvl.study.mechanism`).

    Args:
        run: a `Run` or a `Predictor` of a `MedVisionLlama`.
        case: a `Case` with a label.
        caption: for the image, such as "Dice 0.86".

    Returns:
        {column: `figures.View`}: the image, then the stages that the model has.
    """
    model, preparation = run.model, run.preparation
    volume = preparation.load([case], progress=False)[0]
    image = volume["image"].as_tensor()
    view = view_of_volume(volume, case.name)
    aurocs = stage_auroc(model, [case], preparation, show=False).iloc[0]
    inside = np.argwhere(image_voxels(volume["image"]).numpy())
    box = tuple(
        slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True)
    )
    affine = view.affine @ nibabel.affines.from_matvec(np.eye(3), inside.min(0))
    view = replace(view, image=view.image[box], truth=view.truth[box], affine=affine)
    grid = image.shape[1:]
    tokens = token_grid(grid, model.embed.patch)
    found = activations(model, image[None])
    row = {"image": replace(view, caption=caption)}
    for stage, name in SHOWN_STAGES.items():
        if stage in found:
            heat = to_volume(found[stage], tokens, grid)[0].numpy()[box]
            value = aurocs[f"auroc_{stage}"]
            said = "no AUROC" if np.isnan(value) else f"AUROC {value:.2f}"
            row[name] = replace(view, heat=heat, caption=said)
    return row


def activation_answer(table):
    """Whether the norms of the tokens are larger on the structure with the block.

    Args:
        table: rows of the suite `language` from `mvl.study.mechanism.beside_metrics`, of
            `stage_auroc`'s columns, with the arms none and pretrained.

    Returns:
        An IPython Markdown object: a generated sentence a comparison, after the block against
        before it and, where the paper compares them, the two models after the decoder; then the
        means, since a difference does not say on which side of chance it is.
    """
    rows = by_stage(table)
    if rows.empty:
        return markdown(
            "Nothing can be said: no case has patches that are at least half foreground beside "
            "patches that are not."
        )
    means = rows.groupby(["arm", "stage", "subject"], sort=False)["auroc_stream"].mean()
    means = means.groupby(["arm", "stage"], sort=False).mean()
    rows = rows.assign(arm=rows["arm"] + " " + rows["stage"])
    before, after, decoder = (SHOWN_STAGES[stage] for stage in ("encoder", "after", "decoder"))
    pairs = [
        ("language", f"pretrained {after}", f"pretrained {before}"),
        ("language", f"pretrained {decoder}", f"none {decoder}"),
    ]
    found = contrasts_table(rows, pairs, ["auroc_stream"])
    lines = [f"- {sentence(row)}" for _, row in found.iterrows()]
    said = ", ".join(f"{arm} {stage} {mean:.2f}" for (arm, stage), mean in means.items())
    lines.append(f"- Mean AUROC (below 0.5 the norm is larger on the background): {said}.")
    return markdown("\n".join(lines))


def parameters_by_part(model):
    """Number of weights of each part of a model, a part a row, columns trained and frozen."""
    rows = {}
    for name, parameter in model.named_parameters():
        head, _, rest = name.partition(".")
        part = f"language {rest.split('.')[0]}" if head == "language" else head
        row = rows.setdefault(part, {"trained": 0, "frozen": 0})
        row["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return pd.DataFrame(rows).T


def dataflow(model):
    """A model's parts in the order of the data, drawn: the paper's Figure 1, of a model that is.

    Args:
        model: a `MedVisionLlama` from `build_segmenter`.
    """
    counts, about, part = parameters_by_part(model), model.description, model.language
    count = int(np.prod(token_grid(about.grid, about.config.patch)))
    voxels = "×".join(map(str, about.grid))
    stream = f"{count} × {about.config.width}"
    # (name, names in `parameters_by_part`, what it hands on)
    embedding = [("embedding", ("embed", "position"), stream)]
    encoder = [("encoder", ("encoder",), stream)] + [("fusion", ("fusion",), stream)] * bool(
        model.fusion
    )
    language, skips = [], []
    if part:
        inner = f"{count} × {part.d2.in_features}"
        language = [("D1", ("language d1",), inner), ("block", ("language block",), inner)]
        language += [("D2", ("language d2",), stream)]
        skips = [("D1", "D2")] * part.config.residual
    middle = language + encoder if model.language_first else encoder + language
    decoder = [("decoder", ("decoder",), stream)] if model.decoder else []
    head = [("head", ("norm", "head"), voxels)]
    order = [("volume", (), voxels), *embedding, *middle, *decoder, *head]
    names = [name for name, *_ in order]
    if part and part.config.skip:
        skips.append((names[names.index("D1") - 1], names[names.index("D2") + 1]))
    rows = {
        name: {kind: counts[kind].reindex(list(keys)).sum() for kind in ("trained", "frozen")}
        | {"output": output}
        for name, keys, output in order
    }
    return figures.dataflow(pd.DataFrame(rows).T, skips)


def hash_of(module):
    """SHA-256 (hex) of a module's weights, in order."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def benchmark(name):
    """The measured figures of one benchmark, as a table with units in its row names.

    Args:
        name: of a file in benchmarks/, such as "get_block".

    Raises:
        MvlError: there are no measured figures.
    """
    results = read_json(REPOSITORY / "benchmarks" / "results.json")
    own = {key.removeprefix(f"{name}_"): v for key, v in results.items() if key.startswith(name)}
    return pd.Series(own, name=name).to_frame()


def paper_numbers(models, metric="dice", task=None):
    """The paper's own numbers (mvl/paper.csv), with where they stand.

    Args:
        models: names as the paper has them, such as "ViT".
        metric: a metric of the file, or None for all.
        task: a task's name, or None for all that the paper gives.

    Returns:
        A table, a number a row.
    """
    table = pd.read_csv(tables.PAPER)
    table = table[table["model"].isin(models)]
    if metric:
        table = table[table["metric"] == metric]
    if task:
        table = table[table["task"] == task]
    shown = ["model", "version", "task", "metric", "value", "what", "source"]
    return table[shown].reset_index(drop=True)


def reference_cases(suite, gpu=False):
    """The committed reference's rows of a suite, of the foreground; empty where it has none.

    Args:
        suite: a name of `suites.SUITES`.
        gpu: those that were trained on a GPU, which stand apart.
    """
    path = (REFERENCE / GPU if gpu else REFERENCE) / "cases.csv.gz"
    table = read_table(path) if path.is_file() else pd.DataFrame({"suite": [], "structure": []})
    return table[(table["suite"] == suite) & (table["structure"] == "foreground")]


def suite_means(cases):
    """A suite's arms in Dice, NSD and HD95: means over seeds and subjects ± spread over subjects.

    Args:
        cases: rows of one suite and task.

    Returns:
        An IPython Markdown object; it says so where there is no row.
    """
    if cases.empty:
        return markdown("Nothing of this suite is there.")
    first = cases.iloc[0]
    own = cases[cases["structure"] == first["structure"]]
    summary = summary_table(own)
    summary["arm"] = pd.Categorical(summary["arm"], own["arm"].unique())  # the suite's order
    shown = tables.means(summary.sort_values("arm").astype({"arm": str}))
    caption = (
        f"{'**Synthetic data.** ' * bool(first['synthetic'])}{first['task']}, "
        f"{first['structure']}: means over seeds and subjects ± standard deviation over subjects."
    )
    return markdown(tables.markdown(shown, caption))


def suite_answer(suite, own=None):
    """What a suite says: one generated sentence for each of its contrasts, in Dice.

    Args:
        suite: a name of `suites.SUITES`.
        own: its rows of this profile. None: what the committed reference says, as its own tables
            do, those of a GPU after those of a CPU, or nothing where it has no such suite.

    Returns:
        An IPython Markdown object.
    """
    lines = []
    if own is None:
        for folder, where in ((REFERENCE, ""), (REFERENCE / GPU, "On a GPU: ")):
            table = read_table(folder / "contrasts.csv")
            table = table[(table["suite"] == suite) & (table["structure"] == "foreground")]
            lines += _sentences(table, where)
    elif len(own):
        lines = _sentences(study_contrasts(own, suite))
    return markdown("\n".join(lines) or "No two arms to compare are there.")


def _sentences(contrasts, where=""):
    own = contrasts[contrasts["metric"] == "dice"]
    return [f"- {where}{sentence(row)}" for _, row in own.iterrows()]


def mechanism(table):
    """What `mvl.study.mechanism` measured: shows its figure, and gives a sentence a comparison.

    Args:
        table: rows of the suite `language` from `mvl.study.mechanism.beside_metrics`, or from
            `mvl.study.reference.mechanism_table`; may be empty.

    Returns:
        An IPython Markdown object; it says so where there is nothing to compare.
    """
    from IPython.display import display

    if table.empty:
        return markdown("The mechanism is not measured here.")
    kept, left_out = defined(table)
    if kept.empty:
        return markdown(
            f"Not one of {len(left_out)} cases has patches that are at least half foreground "
            "beside patches that are not: the structure is too small for the patch."
        )
    display(figures.mechanism(table))
    pairs = [pair for pair in CONTRASTS if pair[0] == "language"]
    found = contrasts_table(kept, pairs, tuple(MEASURES))
    lines = [f"- {sentence(row)}" for _, row in found.iterrows()]
    if left_out:
        lines.append(f"- Left out, for want of patches of both kinds: {', '.join(left_out)}.")
    return markdown("\n".join(lines))


def reference_costs(suite):
    """Weights, training time and Dice of the arms of a suite in the committed reference.

    Returns:
        A table, an arm a row: trained_parameters, parameters, step_s (processor time of a training
        step of four cases, as benchmarks/task04.py measured it), dice.
    """
    path = REFERENCE / "validation.csv"
    runs = read_table(path) if path.is_file() else pd.DataFrame({"suite": [], "arm": []})
    runs = runs[runs["suite"] == suite]
    if runs.empty:
        return markdown(f"There is no committed reference of the suite `{suite}` yet.")
    table = runs.groupby("arm", sort=False)[["trained_parameters", "parameters"]].first()
    measured = benchmark("task04")["task04"]
    table["step_s"] = [measured.get(f"{arm}_step_s", np.nan) for arm in table.index]
    cases = reference_cases(suite).groupby(["arm", "seed", "subject"])["dice"].mean()
    table["dice"] = cases.groupby("arm").mean().round(3)
    return table
