"""Figures of tables: of cases, curves, contrasts and costs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from scipy.optimize import isotonic_regression

from mvl.data.tasks import TASKS
from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.show.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    colour_of,
    drawn,
    note_synthetic,
)
from mvl.study.statistics import contrast
from mvl.study.summary import BOUND, by_part

SIDE_COLOURS = {"train": BLUE, "validation": GREEN, "test": ORANGE}


# --- data ----------------------------------------------------------------------------------


@drawn
def data_overview(table, images, task):
    """What is in a task: its split, its intensities before and after normalisation, its volumes.

    Args:
        table: a case a row, as `mvl.data.describe.describe_cases` gives it.
        images: arrays of voxels after normalisation, a volume each.
        task: the `Task`.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2))
    sides = [side for side in SIDE_COLOURS if (table["side"] == side).any()]
    grouped = table.groupby("side")
    counts = pd.DataFrame({"subjects": grouped["subject"].nunique(), "cases": grouped.size()})
    for offset, column in ((-0.2, "subjects"), (0.2, "cases")):
        bars = axes[0, 0].bar(
            np.arange(len(sides)) + offset,
            counts.loc[sides, column],
            0.38,
            color=[SIDE_COLOURS[side] for side in sides],
            alpha=1.0 if column == "subjects" else 0.5,
        )
        labels = [f"{n}\n{column}" for n in counts.loc[sides, column]]
        axes[0, 0].bar_label(bars, labels, fontsize=8)
    axes[0, 0].set_xticks(range(len(sides)), sides)
    axes[0, 0].margins(y=0.2)
    axes[0, 0].grid(axis="x", visible=False)
    axes[0, 0].set(title="Split by subject", ylabel="number")

    means = table["mean_intensity"]
    if task.modality == "MRI" and (means > 0).all():
        bins = np.geomspace(means.min() * 0.95, means.max() * 1.05, 25)
        axes[0, 1].set_xscale("log")
        axes[0, 1].xaxis.set_major_formatter(ScalarFormatter())
        # Minor ticks are labelled only where major ones would leave the axis without a number.
        if means.max() < 10 * means.min():
            axes[0, 1].xaxis.set_minor_formatter(ScalarFormatter())
        else:
            axes[0, 1].xaxis.set_minor_formatter(NullFormatter())
    else:
        bins = np.linspace(means.min() - 1, means.max() + 1, 25)
    _histogram(axes[0, 1], table, "mean_intensity", bins, sides)
    unit = "HU" if task.modality == "CT" else "arbitrary units"
    axes[0, 1].set(title="Before normalisation", ylabel="cases")
    axes[0, 1].set_xlabel(f"mean intensity of a case ({unit})")

    images = [image[image != 0] for image in images]  # zeros are padding
    low, high = np.percentile(np.concatenate([image[::7] for image in images]), (0.5, 99.5))
    edges = np.linspace(low, high, 41)
    for image in images:
        density, _ = np.histogram(image, edges, density=True)
        axes[1, 0].plot((edges[1:] + edges[:-1]) / 2, density, color=BLUE, alpha=0.35, linewidth=1)
    after = "z-score" if task.modality == "MRI" else "share of the window"
    axes[1, 0].set(title=f"After normalisation, {len(images)} cases", xlabel=f"intensity ({after})")
    axes[1, 0].set_ylabel("density")

    volumes = table["volume_ml"]
    _histogram(axes[1, 1], table, "volume_ml", np.linspace(volumes.min(), volumes.max(), 25), sides)
    axes[1, 1].set(title="Volume of the labelled structure", ylabel="cases", xlabel="volume (mL)")
    axes[1, 1].legend()
    note_synthetic(figure, task.synthetic)
    return figure


def _histogram(axes, table, column, bins, sides):
    axes.hist(
        [table.loc[table["side"] == side, column] for side in sides],
        bins,
        stacked=True,
        color=[SIDE_COLOURS[side] for side in sides],
        label=sides,
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


# --- training ------------------------------------------------------------------------------


@drawn
def curves(runs, synthetic):
    """Training loss and validation Dice by epoch, a line per run; a dot marks the best epoch.

    Args:
        runs: {arm: table of `curves.csv`}, columns epoch, train_loss, validation_dice.
        synthetic: whether the data is a phantom.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for arm, rows in runs.items():
        table, colour = pd.DataFrame(rows), colour_of(arm)
        axes[0].plot(table["epoch"] + 1, table["train_loss"], color=colour, label=arm)
        axes[1].plot(table["epoch"] + 1, table["validation_dice"], color=colour, label=arm)
        best = table.loc[table["validation_dice"].idxmax()]
        axes[1].plot(best["epoch"] + 1, best["validation_dice"], "o", color=colour)
    axes[0].set(title="Training loss (Dice + cross-entropy)", xlabel="epoch", ylabel="loss")
    axes[1].set(title="Validation (dot: the epoch that is kept)", xlabel="epoch", ylabel="Dice")
    axes[1].set_ylim(0, 1)
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", title="arm")
    note_synthetic(figure, synthetic)
    return figure


@drawn
def curve_bands(curves, synthetic):
    """Validation Dice by epoch, a panel for each share of the training subjects.

    A line is the mean over an arm's seeds, its band reaches from the lowest seed to the highest;
    both end with the last epoch that all its seeds have. Shares are trained for as many optimiser
    steps, so that panels are equally long.

    Args:
        curves: rows of one suite and task: arm, seed, fraction, epoch, validation_dice.
        synthetic: whether the data is a phantom.
    """
    fractions = sorted(curves["fraction"].unique())
    figure, axes = plt.subplots(
        1, len(fractions), squeeze=False, sharey=True, figsize=(3.2 * len(fractions) + 1.6, 3.4)
    )
    early, handles = [], {}
    for axis, fraction in zip(axes[0], fractions, strict=True):
        panel = curves[curves["fraction"] == fraction]
        for arm in dict.fromkeys(panel["arm"]):
            rows = panel[panel["arm"] == arm]
            by_seed = rows.pivot(index="epoch", columns="seed", values="validation_dice").dropna()
            epochs, name = by_seed.index + 1, _without_share(arm, fraction)
            mean, low, high = by_seed.mean(axis=1), by_seed.min(axis=1), by_seed.max(axis=1)
            axis.fill_between(epochs, low, high, color=colour_of(arm), alpha=0.2, linewidth=0)
            (handles[name],) = axis.plot(epochs, mean, color=colour_of(arm), label=name)
            early.append(low.iloc[len(low) // 10])
        axis.set(title=f"{fraction * 100:.0f} % of subjects", xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0, 0].set_ylabel("validation Dice")
    # The first tenth of a training rises from nothing and would leave no room for differences.
    axes[0, 0].set_ylim(bottom=max(0, min(early) - 0.02))
    seeds = curves.groupby("arm")["seed"].nunique()
    band = "" if seeds.max() == 1 else "; line: mean, band: lowest to highest seed"
    figure.suptitle(f"Validation while training, {_seeds(seeds)}{band}", x=0.01, ha="left")
    figure.legend(handles=list(handles.values()), loc="outside right center", title="arm")
    note_synthetic(figure, synthetic)
    return figure


def _without_share(arm, fraction):
    """ "vit-10" is "vit" in the panel of 10 %."""
    return arm.removesuffix(f"-{fraction * 100:.0f}")


# --- results -------------------------------------------------------------------------------


def subject_differences(cases, arm_a, arm_b, metric="dice"):
    """Each subject's difference a minus b, over its cases and the seeds that both arms have.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.study.summary`.
        arm_a, arm_b: the arms.
        metric: a name of `mvl.experiment.metrics.METRICS`.

    Returns:
        Series, subject -> difference, ascending. Its mean is the difference of
        `mvl.study.statistics.contrast`.
    """
    means = cases.groupby(["subject", "seed", "arm"])[metric].mean().unstack()
    difference = (means[arm_a] - means[arm_b]).dropna()
    return difference.groupby("subject").mean().sort_values()


@drawn
def paired_differences(cases, arm_a, arm_b, metric="dice"):
    """One dot per subject, the zero line, and the mean difference with its 95 % interval.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.study.summary`.
        arm_a, arm_b: the arms; dots above zero are subjects with a larger value under arm_a.
        metric: a name of `mvl.experiment.metrics.METRICS`.

    Raises:
        RunError: as `mvl.study.statistics.contrast`.
    """
    row = contrast(cases, arm_a, arm_b, metric)
    values = subject_differences(cases, arm_a, arm_b, metric)
    facts = METRICS[metric]
    gains = values if facts.larger_is_better else -values
    figure, axes = plt.subplots(figsize=(8, 3.8))
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=BLACK, linewidth=1)
    if not facts.unit:
        for sign in (-1, 1):
            axes.axhline(
                sign * BOUND,
                color=GREY,
                linewidth=1,
                linestyle=":",
                label=f"negligible below ±{BOUND:g}" if sign > 0 else None,
            )
    axes.axhspan(
        row["ci_low"], row["ci_high"], color=GREY, alpha=0.25, linewidth=0, label="95 % interval"
    )
    axes.axhline(row["difference"], color=GREY, linewidth=1.8, label="mean difference")
    axes.vlines(places, 0, values, color="#BFBFBF", linewidth=1)
    axes.scatter(
        places,
        values,
        s=34,
        zorder=3,
        color=[colour_of(arm_a) if gain >= 0 else colour_of(arm_b) for gain in gains],
    )
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(
        title=f"{METRICS[metric].title}, {arm_a} minus {arm_b}, subject by subject",
        xlabel=f"{len(values)} test subjects, by difference; {_seeds([row['n_seeds']])}",
        ylabel=f"difference in {METRICS[metric].heading}",
    )
    handles, _ = axes.get_legend_handles_labels()
    dots = [
        Line2D([], [], marker="o", linestyle="", color=colour_of(arm), label=f"{arm} is better")
        for arm in (arm_a, arm_b)
    ]
    figure.legend(handles=[*dots, *handles], loc="outside right center")
    note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@drawn
def arm_means(cases, metric="dice"):
    """Each arm's mean with its 95 % interval, and a small dot per seed, an arm a row.

    The interval is of the arm itself, subjects and seeds resampled; whether two arms differ is
    for their paired difference to say, which is narrower.

    Args:
        cases: rows of one suite, task and structure, as in `mvl.study.summary`.
        metric: a name of `mvl.experiment.metrics.METRICS`.
    """
    arms = list(dict.fromkeys(cases["arm"]))
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(arms) + 1.3))
    for place, arm in enumerate(arms):
        own = cases[cases["arm"] == arm]
        low, mean, high = _mean_and_interval(own, metric)
        per_seed = own.groupby(["seed", "subject"])[metric].mean().groupby("seed").mean()
        axes.plot([low, high], [place] * 2, color=colour_of(arm), linewidth=2)
        axes.plot(mean, place, "o", color=colour_of(arm), markersize=8)
        if len(per_seed) > 1:
            marks = axes.scatter(per_seed, [place + 0.25] * len(per_seed), s=12, linewidth=0)
            marks.set_color(colour_of(arm))
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(
        title=f"{METRICS[metric].title}, mean and 95 % interval: {_size(cases)}",
        xlabel=METRICS[metric].heading,
    )
    note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@drawn
def size_against_dice(cases, runs):
    """Each arm's mean Dice with its 95 % interval against its number of weights.

    A dot stands at all weights, a ring at the trained among them, where some are frozen.
    Intervals are those of `arm_means`.

    Args:
        cases: rows of one task and structure, as in `mvl.study.summary`, of any suites; an arm's
            name means the same experiment in each.
        runs: a run a row: arm, parameters, trained_parameters.
    """
    figure, axes = plt.subplots(figsize=(8, 4.4))
    axes.set_xscale("log")
    for arm, own in runs[runs["arm"].isin(cases["arm"])].groupby("arm"):
        weights, trained = own[["parameters", "trained_parameters"]].iloc[0]
        if trained < weights:
            mean = cases.loc[cases["arm"] == arm].groupby(["seed", "subject"])["dice"].mean().mean()
            colour = colour_of(arm)
            axes.plot([trained, weights], [mean, mean], color=colour, linewidth=1.2, linestyle=":")
            axes.plot(trained, mean, "o", color=colour, markerfacecolor="white", zorder=3)
    _against_weights(axes, cases, runs, "parameters")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("weights (ring: the trained among them)")
    axes.set_title(f"Size against Dice: {_size(cases)}")
    note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@drawn
def rank_tradeoff(cases, runs):
    """Mean Dice with its 95 % interval against the number of trained weights.

    Args: as `size_against_dice`, of the arms with and without low-rank adapters.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    _against_weights(axes, cases, runs, "trained_parameters")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:,.0f} k")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("trained weights")
    axes.set_title(f"Adaptation of the block: {_size(cases)}")
    note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


def _against_weights(axes, cases, runs, column):
    """Draw arms at their weights and Dice, and name them beside the axes."""
    points = []
    for arm in dict.fromkeys(cases["arm"]):
        low, mean, high = _mean_and_interval(cases[cases["arm"] == arm], "dice")
        x = runs.loc[runs["arm"] == arm, column].iloc[0]
        axes.plot([x, x], [low, high], color=colour_of(arm), linewidth=1.6)
        axes.plot(x, mean, "o", color=colour_of(arm), markersize=7, zorder=3)
        points.append((mean, x, arm))
    axes.set_ylabel("Dice")
    axes.margins(x=0.06)
    axes.set_xlim(axes.get_xlim())
    # Names stand in the margin at heights that keep them apart; a line leads there from each dot.
    points.sort()
    heights = _apart([mean for mean, *_ in points], 0.05 * np.ptp(axes.get_ylim()))
    line = {"color": "#C8C8C8", "linewidth": 0.7, "zorder": 1}
    for (mean, x, arm), height in zip(points, heights, strict=True):
        axes.plot([x, axes.get_xlim()[1]], [mean, mean], **line)
        axes.plot(
            *([1, 1.03], [mean, height]),
            transform=axes.get_yaxis_transform(),
            clip_on=False,
            **line,
        )
        axes.text(
            *(1.04, height),
            arm,
            transform=axes.get_yaxis_transform(),
            fontsize=9,
            va="center_baseline",
        )


def _apart(values, gap):
    """Ascending values, moved as little as possible (by least squares) to be `gap` apart."""
    steps = gap * np.arange(len(values))
    return isotonic_regression(np.asarray(values) - steps).x + steps


@drawn
def metric_by_task(summary, paper=None, metrics=("dice", "nsd", "hd95_mm")):
    """Each arm's mean and standard deviation over subjects, a task a row, a metric a panel.

    Args:
        summary: rows of one suite and structure, as `study.summary.summary_table` gives them.
        paper: the paper's numbers as diamonds: columns arm, task, metric, value; or None.
        metrics: names of `mvl.experiment.metrics.METRICS`.
    """
    paper = pd.DataFrame(columns=["arm", "task", "metric"]) if paper is None else paper
    present = set(summary["task"]) | set(paper["task"])
    tasks = [*(task for task in TASKS if task in present), *sorted(present - set(TASKS))]
    arms = list(dict.fromkeys(summary["arm"]))
    figure, axes = plt.subplots(
        1, len(metrics), squeeze=False, sharey=True, figsize=(10.5, 0.55 * len(tasks) + 1.3)
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, task in enumerate(tasks):
            for n, arm in enumerate(arms):
                y, colour = place + 0.4 * (n + 0.5) / len(arms) - 0.2, colour_of(arm)
                for row in _of(summary, arm, task, metric).itertuples():
                    spread = 0 if np.isnan(row.sd_subjects) else row.sd_subjects
                    axis.plot([row.mean - spread, row.mean + spread], [y, y], color=colour)
                    axis.plot(row.mean, y, "o", color=colour)
                for row in _of(paper, arm, task, metric).itertuples():
                    axis.plot(row.value, y, "D", color=colour, markerfacecolor="white", zorder=3)
        axis.set_xlabel(METRICS[metric].heading)
        axis.grid(axis="y", visible=False)
    sizes = summary.groupby("task")["n_subjects"].max().to_dict()
    names = [task.partition("_")[2] or task for task in tasks]
    labels = [
        f"{name}, {sizes[task]} subject{'s' * (sizes[task] != 1)}" if task in sizes else name
        for name, task in zip(names, tasks, strict=True)
    ]
    axes[0, 0].set_yticks(range(len(tasks)), labels)
    axes[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    seeds = _seeds(summary.groupby("arm")["n_seeds"].max())
    figure.suptitle(f"Mean and standard deviation over test subjects, {seeds}", x=0.01, ha="left")
    handles = [Line2D([], [], marker="o", color=colour_of(arm), label=arm) for arm in arms]
    if len(paper):
        label = "paper, one example case"
        handles.append(Line2D([], [], marker="D", ls="", color=GREY, mfc="white", label=label))
    figure.legend(handles=handles, loc="outside right center")
    note_synthetic(figure, bool(summary["synthetic"].any()))
    return figure


def _of(table, arm, task, metric):
    wanted = {"arm": arm, "task": task, "metric": metric}
    return table[np.logical_and.reduce([table[key] == value for key, value in wanted.items()])]


@drawn
def part_effects(cases, metric="dice"):
    """What each of the paper's parts earns, averaged over the combinations of the other two.

    A dot is a subject's difference, part on minus part off; beside it stands the mean with its
    95 % interval, subjects and seeds resampled.

    Args:
        cases: rows of the suite `fusion`, all eight arms with a seed in common, of one task and
            structure.
        metric: a name of `mvl.experiment.metrics.METRICS`.
    """
    parts = by_part(cases, metric)
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.axhline(0, color=BLACK, linewidth=1)
    for place, sides in enumerate(parts.values()):
        row = contrast(sides, "on", "off", metric)
        values = subject_differences(sides, "on", "off", metric)
        across = np.linspace(-0.3, 0.1, len(values))
        colour = (BLUE, ORANGE, GREEN)[place]
        axes.scatter(place + across, values, s=14, alpha=0.5, color=colour, linewidth=0)
        axes.plot([place + 0.25] * 2, [row["ci_low"], row["ci_high"]], color=colour, linewidth=2)
        axes.plot(place + 0.25, row["difference"], "o", color=colour)
    axes.set_xticks(range(3), parts)
    axes.grid(axis="x", visible=False)
    axes.set(
        title=f"A dot is a subject; mean and 95 % interval: {_size(sides)}",
        ylabel=f"{METRICS[metric].title}, on - off",
    )
    note_synthetic(figure, bool(cases["synthetic"].iloc[0]))
    return figure


@drawn
def metric_differences(contrasts):
    """The difference in every metric with its 95 % interval; to the right is better for arm_a.

    Args:
        contrasts: rows of `mvl.study.statistics.contrasts_table` of one pair, task and structure, a
            metric each.
    """
    pure = contrasts[[METRICS[m].unit == "" for m in contrasts["metric"]]]
    in_mm = contrasts.drop(pure.index)
    first = contrasts.iloc[0]
    ratio = [max(1, len(pure)), max(1, len(in_mm))]
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 0.36 * sum(ratio) + 2.0), height_ratios=[n + 0.6 for n in ratio]
    )
    for axis, rows, label in ((axes[0], pure, "no unit"), (axes[1], in_mm, "mm")):
        axis.axvline(0, color=BLACK, linewidth=1)
        places = np.arange(len(rows))
        for place, row in zip(places, rows.itertuples(), strict=True):
            gain = row.difference if METRICS[row.metric].larger_is_better else -row.difference
            colour = colour_of(first["arm_a"] if gain >= 0 else first["arm_b"])
            axis.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=2)
            axis.plot(row.difference, place, "o", color=colour)
        axis.set_yticks(places, [METRICS[m].title for m in rows["metric"]])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        # Symmetric, so that zero stands in the middle of both panels.
        reach = np.nanmax(np.abs(rows[["difference", "ci_low", "ci_high"]].to_numpy()), initial=0)
        axis.set_xlim(-1.15 * reach or -1, 1.15 * reach or 1)
        axis.set_xlabel(f"difference ({label})")
    axes[0].axvspan(-BOUND, BOUND, color=GREY, alpha=0.12, linewidth=0)
    axes[1].invert_xaxis()  # a smaller distance is better
    axes[0].set_title(
        f"{first['arm_a']} minus {first['arm_b']}: left of zero {first['arm_b']} is better, "
        f"right of it {first['arm_a']}\n(shaded: negligible, below ±{BOUND:g}; "
        f"{first['n_subjects']} test subjects, {_seeds([first['n_seeds']])})"
    )
    note_synthetic(figure, bool(first["synthetic"]))
    return figure


def best_median_worst(cases, metric="dice"):
    """The cases that a gallery shows: {"best": row, "median": row, "worst": row}.

    Args:
        cases: a case a row, of one run and structure.
        metric: a name of `mvl.experiment.metrics.METRICS`.
    """
    ordered = cases.sort_values(
        [metric, "case"], ascending=[not METRICS[metric].larger_is_better, True]
    )
    places = {"best": 0, "median": len(ordered) // 2, "worst": -1}
    return {name: ordered.iloc[place] for name, place in places.items()}


@drawn
def mechanism(table):
    """How well the language part's norms tell foreground patches from the others, arm by arm.

    A dot is a subject, averaged over its cases and the seeds; beside the dots stand the mean and
    its 95 % interval, by the bootstrap of `study.statistics.contrast` against a constant. A case
    without an AUROC is left out of every arm, and the figure says how many there are.

    Args:
        table: rows of one suite, task and structure as `study.mechanism.beside_metrics` gives them,
            of any number of arms and seeds.

    Raises:
        RunError: as `mvl.study.statistics.contrast`; or no case has an AUROC.
    """
    panels = {"auroc_update": "What the block writes", "auroc_change": "Change of the stream"}
    undefined = table.loc[table[list(panels)].isna().any(axis=1), "case"].unique()
    rows = table[~table["case"].isin(undefined)]
    if rows.empty:
        raise RunError("no case has foreground and background patches, so that there is no AUROC")
    arms = list(rows["arm"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(max(7, 1.7 * len(arms) + 2.4), 3.8), sharey=True)
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        axis.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
        for place, arm in enumerate(arms):
            _subjects_and_mean(axis, place, rows[rows["arm"] == arm], measure, colour_of(arm))
        axis.set_xticks(range(len(arms)), arms)
        axis.set_xlim(-0.5, len(arms) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set(title=title, ylim=(0, 1))
    axes[0].set_ylabel("AUROC, foreground patches")
    note = _size(rows)
    if len(undefined):
        cases = table["case"].nunique()
        note += f"; {len(undefined)} of {cases} cases left out: patches of one kind only"
    figure.suptitle(f"Does the language part act on the structure?\n{note}", x=0.01, ha="left")
    handles = [*axes[0].get_legend_handles_labels()[0], *_subject_handles()]
    figure.legend(handles=handles, loc="outside right center")
    note_synthetic(figure, bool(table["synthetic"].iloc[0]))
    return figure


@drawn
def stage_auroc(table):
    """How well the norm of the tokens tells foreground patches from the others, stage by stage.

    Dots, means and intervals as in `mechanism`; an arm has a place of its own at each stage.

    Args:
        table: rows of one suite, task and structure from `study.mechanism.by_stage`, of any number
            of arms and seeds.

    Raises:
        RunError: as `mvl.study.statistics.contrast`; or no case has an AUROC.
    """
    if table.empty:
        raise RunError("no case has foreground and background patches, so that there is no AUROC")
    stages, arms = (list(dict.fromkeys(table[name])) for name in ("stage", "arm"))
    figure, axes = plt.subplots(figsize=(2.0 * len(stages) + 1.6, 3.8))
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
    width = 0.8 / len(arms)
    for place, stage in enumerate(stages):
        for n, arm in enumerate(arms):
            own = table[(table["stage"] == stage) & (table["arm"] == arm)]
            if len(own):
                middle = place + (n - (len(arms) - 1) / 2) * width
                _subjects_and_mean(axes, middle, own, "auroc_stream", colour_of(arm), width)
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.set(ylim=(0, 1), ylabel="AUROC, foreground patches")
    axes.set_title(f"Are the tokens' norms large on the structure?\n{_size(table)}")
    handles = [Line2D([], [], color=colour_of(arm), linewidth=4, label=arm) for arm in arms]
    handles += [*axes.get_legend_handles_labels()[0], *_subject_handles()]
    figure.legend(handles=handles, loc="outside right center")
    note_synthetic(figure, bool(table["synthetic"].iloc[0]))
    return figure


def _subjects_and_mean(axes, place, rows, measure, colour, width=1.0):
    """A dot per subject of one arm, over its cases and seeds; beside them mean and interval."""
    by_seed = rows.groupby(["subject", "seed"])[measure].mean()
    values = by_seed.groupby("subject").mean().sort_values()
    # In order of size from left to right, so that no dot hides another.
    across = np.linspace(-0.3, 0.1, len(values)) if len(values) > 1 else np.array([-0.1])
    axes.scatter(place + width * across, values, s=14, alpha=0.5, color=colour, linewidth=0)
    low, mean, high = _mean_and_interval(rows, measure)
    axes.plot([place + width * 0.25] * 2, [low, high], color=colour, linewidth=2)
    axes.plot(place + width * 0.25, mean, "o", color=colour)


def _subject_handles():
    return [
        Line2D([], [], marker="o", ls="", color=GREY, alpha=0.5, markersize=4, label="a subject"),
        Line2D([], [], marker="o", color=GREY, linewidth=2, label="mean, 95 %"),
    ]


def _size(rows):
    """How many subjects and seeds stand behind rows of several arms."""
    subjects, seeds = rows["subject"].nunique(), rows.groupby("arm")["seed"].nunique()
    return f"{subjects} test subject{'s' * (subjects != 1)}, {_seeds(seeds)}"


def _seeds(counts):
    fewest, most = int(min(counts)), int(max(counts))
    return f"{fewest} to " * (fewest < most) + f"{most} seed{'s' * (most != 1)}"


def _mean_and_interval(rows, measure):
    """(low, mean, high) of one arm's column, with subjects and seeds resampled."""
    # `contrast` knows the metrics of `METRICS` alone: the column is lent the name of one that,
    # like it, has no unit. Nothing but the interval of the difference is taken from the result.
    own = rows.assign(dice=rows[measure])
    found = contrast(pd.concat([own, own.assign(arm="zero", dice=0.0)]), own["arm"].iloc[0], "zero")
    return found["ci_low"], found["difference"], found["ci_high"]


# --- audit ---------------------------------------------------------------------------------


@drawn
def waterfall(steps, metric, size, synthetic):
    """A reported number, step by step: each bar leads from what was reported before to what is
    after, with the 95 % interval of the difference.

    Args:
        steps: a step a row: step (its name), estimate, ci_low, ci_high, and kind: "level" is where
            it starts, "training" and "measurement" go on from the step before, "together" starts
            anew from the level, "instead" from together; "spread" is a measurement whose interval
            is that of single cases.
        metric: a name of `mvl.experiment.metrics.METRICS`.
        size: the numbers of subjects and seeds, for the title.
        synthetic: whether the data is a phantom.
    """
    looks = {
        "training": (BLUE, "trained with it alone, stacked"),
        "together": (BLACK, "trained with all of them"),
        "measurement": (ORANGE, "read with it and with those above"),
        "spread": (ORANGE, "read with it and with those above"),
        "instead": (PURPLE, "reported instead of the test cases"),
    }
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(steps) + 1.5))
    before, starts, names = None, {}, []
    for place, row in enumerate(steps.itertuples()):
        if row.kind == "level":
            axes.axvline(row.estimate, color=GREY, linewidth=1, linestyle=":")
            axes.plot(row.estimate, place, "D", color=BLACK, markersize=7)
            starts["together"] = before = row.estimate
            names.append(f"{row.step}  {row.estimate:.3f}")
            continue
        start, colour = starts.get(row.kind, before), looks[row.kind][0]
        names.append(f"{row.step}  {row.estimate - start:+.3f}")
        axes.barh(place, row.estimate - start, left=start, height=0.62, color=colour, alpha=0.5)
        axes.plot([row.estimate] * 2, [place - 0.31, place + 0.31], color=colour, linewidth=2.5)
        interval = {"linestyle": "--" if row.kind == "spread" else "-", "linewidth": 1.3}
        axes.plot([row.ci_low, row.ci_high], [place] * 2, color=BLACK, **interval)
        if row.kind not in starts:
            axes.plot([start] * 2, [place - 0.69, place - 0.31], color=GREY, linewidth=1)
        if row.kind == "together":
            starts["instead"] = row.estimate
        before = row.estimate
    axes.set_yticks(range(len(steps)), names)
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.use_sticky_edges = False  # bars would end at the frame
    axes.margins(x=0.03)
    axes.grid(axis="y", visible=False)
    title = METRICS[metric].title
    axes.set(title=f"What is reported: {title}, {size}", xlabel=title)
    kinds = [kind for kind in looks if kind in set(steps["kind"])]
    labels = dict(looks[kind] for kind in kinds)
    handles = [
        Line2D([], [], color=colour, linewidth=7, alpha=0.5, label=label)
        for colour, label in labels.items()
    ]
    handles.append(Line2D([], [], color=BLACK, linewidth=1.3, label="95 % interval of a step"))
    if "spread" in kinds:
        handles.append(
            Line2D([], [], color=BLACK, linewidth=1.3, linestyle="--", label="95 % of single cases")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    note_synthetic(figure, synthetic)
    return figure
