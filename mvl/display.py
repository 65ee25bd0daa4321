"""What a notebook shows besides figures: banners, live curves, and volumes made ready to draw."""

import hashlib

import numpy as np
import pandas as pd

from mvl import figures
from mvl.data.sources import read_label, read_volume
from mvl.evaluation import segment
from mvl.files import read_json
from mvl.metrics import METRICS
from mvl.reference import REFERENCE, REPOSITORY, read_table


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
    image, affine = read_volume(case.image)
    return figures.View(image, affine, truth=read_label(case.label) > 0, title=case.name)


def view_of(run, case, caption, title=None):
    """A labelled case with a run's prediction on the file's grid, as a `figures.View`.

    Args:
        run: a `Run`.
        case: a `Case`.
        caption: shown in the corner.
        title: what the case is, such as "worst"; its name is added.
    """
    image, affine = read_volume(case.image)
    volume = run.preparation.load([case], progress=False)[0]
    return figures.View(
        image,
        affine,
        truth=read_label(case.label) > 0,
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


def parameters_by_part(model):
    """Number of weights of each part of a model, a part a row, columns trained and frozen."""
    rows = {}
    for name, parameter in model.named_parameters():
        head, _, rest = name.partition(".")
        part = f"language {rest.split('.')[0]}" if head == "language" else head
        row = rows.setdefault(part, {"trained": 0, "frozen": 0})
        row["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return pd.DataFrame(rows).T


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


def reference_suite(suite):
    """The committed reference of a suite: its size in words, then its arms by metric.

    Args:
        suite: a name of `experiments.SUITES`.

    Returns:
        An IPython Markdown object; it says so where there is no reference yet.
    """
    path = REFERENCE / "summary.csv"
    table = read_table(path) if path.is_file() else pd.DataFrame({"suite": []})
    table = table[table["suite"] == suite]
    if table.empty:
        return markdown(f"There is no committed reference of the suite `{suite}` yet.")
    table = table[table["structure"] == "foreground"]
    first = table.iloc[0]
    seeds = f"{first['n_seeds']} seed{'' if first['n_seeds'] == 1 else 's'}"
    arms = list(dict.fromkeys(table["arm"]))
    mean = table.pivot(index="metric", columns="arm", values="mean")
    lines = [
        f"**Reference: {first['task']}, {first['n_subjects']} test subjects, {seeds}, "
        f"{first['epochs']} epochs.** Means over subjects.",
        "",
        f"| metric | {' | '.join(arms)} |",
        "|---" * (len(arms) + 1) + "|",
    ]
    for metric in METRICS:
        lines.append(f"| {metric} | {' | '.join(f'{mean[arm][metric]:.3f}' for arm in arms)} |")
    return markdown("\n".join(lines))
