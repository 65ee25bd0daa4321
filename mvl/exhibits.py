"""The paper's figures and tables, from a profile's runs and from the committed reference.

An exhibit is drawn for each source that has enough of it and saved below results/<profile>/, as
figures/NAME_SOURCE.{png,pdf,svg} and tables/NAME_SOURCE.{csv,md,tex}. Where a source has too
little, or only a part, it is said what is missing and what makes it: nothing depends on a suite
being complete.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from mvl import config, display, figures, tables
from mvl.data.loading import open_task
from mvl.errors import DataError
from mvl.experiments import Run, load_predictor
from mvl.metrics import METRICS, dice_per_case
from mvl.models.segmenter import build_segmenter
from mvl.profiles import ROOT, load_profile
from mvl.reference import BEST, read_table
from mvl.results import distinct, own_runs, part_of, rows_of_task, sources_of
from mvl.statistics import contrasts_table, sentence
from mvl.suites import SUITES
from mvl.tasks import TASKS

#: The paper's names of models -> this suite's arms.
PAPER_ARMS = {"ViT": "none", "MedVisionLlama": "pretrained"}

#: The paper's six metrics: ten tasks of them make its 60 comparisons.
SIX = ("dice", "jaccard", "hd95_mm", "sensitivity", "specificity", "nsd")

#: Suite -> the notebook that trains those of its arms that a profile names in `SUITE_arms`.
_NOTEBOOKS = {"language": "04", "fusion": "05", "adaptation": "06", "data": "07", "peers": "09"}


@dataclass(frozen=True)
class Exhibit:
    """One figure.

    Attributes:
        suite: that it is about; "" for all.
        draw: (`results.Source` of these rows) -> figure, or None where it lacks what it needs.
        arms: that it shows; all of the suite if None.
        fewest: how many arms it needs.
        by_task: whether each task has a figure of its own.
    """

    suite: str
    draw: Callable
    arms: tuple | None = None
    fewest: int = 2
    by_task: bool = True


def _curves(source):
    if source.curves.empty:
        return None
    return figures.curve_bands(source.curves, bool(source.cases["synthetic"].any()))


def _metric_differences(source):
    return figures.metric_differences(_six(source.cases))


def _metric_by_task(source):
    paper = display.paper_numbers(list(PAPER_ARMS))
    paper = paper[paper["task"].isin(source.summary["task"])]
    return figures.metric_by_task(source.summary, paper.assign(arm=paper["model"].map(PAPER_ARMS)))


_PAIR = ("none", "pretrained")
_LORA = tuple(arm for arm in SUITES["adaptation"] if arm.startswith("lora"))

#: The comparisons that the answer names: what the paper compares, and this suite's own model.
_HEADLINES = (
    ("language", "pretrained", "none"),
    ("fusion", "111", "000"),
    ("peers", "best", "vit"),
)

#: Name -> `Exhibit`.
EXHIBITS = {
    "ten_tasks": Exhibit("language", _metric_by_task, _PAIR, by_task=False),
    "metrics": Exhibit("language", _metric_differences, _PAIR),
    "differences": Exhibit(
        "language", lambda s: figures.paired_differences(s.cases, *reversed(_PAIR)), _PAIR
    ),
    "state_of_the_art": Exhibit("peers", lambda s: figures.arm_means(s.cases)),
    "few_shot": Exhibit("data", _curves),
    "few_shot_test": Exhibit("data", lambda s: figures.arm_means(s.cases)),
    "controls": Exhibit("language", lambda s: figures.arm_means(s.cases)),
    "lora": Exhibit("adaptation", lambda s: figures.rank_tradeoff(s.cases, s.runs), _LORA),
    "adaptation": Exhibit("adaptation", lambda s: figures.arm_means(s.cases)),
    "size": Exhibit("size", lambda s: figures.arm_means(s.cases)),
    "size_of_all": Exhibit("", lambda s: figures.size_against_dice(s.cases, s.runs)),
    "parts": Exhibit("fusion", lambda s: figures.arm_means(s.cases)),
    "part_effects": Exhibit("fusion", lambda s: figures.part_effects(s.cases), fewest=8),
}


class Exhibits:
    """What a profile and the reference have of the paper's figures and tables.

    Args:
        profile: the profile's name.
        root: the repository.

    Attributes:
        sources: list of `results.Source`, the profile's own, then the reference.

    Raises:
        ConfigError: there is no such profile.
    """

    def __init__(self, profile, root=ROOT):
        self.profile = profile
        self.folder = root / "results" / profile
        self._parameters = load_profile(profile, root)
        self.sources, self._faults = sources_of(own_runs(self._parameters, root), root)
        self._drawn = {}

    def about(self):
        """What there is to draw from, as an IPython Markdown object."""
        lines = []
        for source in self.sources:
            runs = source.runs.drop_duplicates("fingerprint")
            suites = ", ".join(suite for suite in SUITES if suite in set(source.runs["suite"]))
            lines.append(f"- **{source.label}**: {len(runs)} runs, of the suites {suites}.")
        if not any(source.kind == "own" for source in self.sources):
            lines.insert(
                0,
                f"- **This profile** has no finished run yet: `./run_all.sh --profile "
                f"{self.profile}` makes some.",
            )
        lines += [f"- {text}" for _, text in self._faults]
        return display.markdown("\n".join(lines))

    def figure(self, name):
        """Show and save an exhibit's figure for every source, and say what is missing.

        Args:
            name: of `EXHIBITS`.
        """
        exhibit = EXHIBITS[name]
        for source, slug in self._slugs():
            part = _part(source, exhibit)
            drawn = 0
            for task, rows in _by_task(part, exhibit):
                if rows.cases["arm"].nunique() >= exhibit.fewest:
                    figure = exhibit.draw(rows)
                    if figure is not None:
                        other = task not in ("", self._parameters["task"])
                        file = f"{name}_{slug}" + f"_{task}" * other
                        self._save(figure, file, f"**{source.label}**, {_size(rows)}.")
                        drawn += 1
            self._drawn.setdefault(name, {})[source.label] = drawn
            missing = self._missing(source, exhibit, part, drawn)
            if missing:
                _show(missing)

    def table(self, name):
        """Show and save the table of an exhibit's arms for every source that has two of them."""
        exhibit = EXHIBITS[name]
        for source, slug in self._slugs():
            rows = _part(source, exhibit).summary
            if rows["arm"].nunique() > 1:
                shown = tables.means(rows)
                self._write(f"{name}_{slug}", source, rows, shown, "mean ± standard deviation")

    def comparisons(self):
        """Show and save the paper's comparisons, six metrics a task, of the block and of nothing.

        Each is paired by subject and seed; Holm's family is all of a source.
        """
        for source, slug in self._slugs():
            cases = _part(source, EXHIBITS["metrics"]).cases
            rows = _six(cases) if len(cases) else pd.DataFrame()
            if rows.empty:
                continue
            gain = [
                row.difference * (1 if METRICS[row.metric].larger_is_better else -1)
                for row in rows.itertuples()
            ]
            better = pd.Series(gain, rows.index) > 0
            small, small_adjusted = rows["p"] < 0.05, rows["p_holm"] < 0.05
            shown = tables.differences(rows)
            self._write(f"comparisons_{slug}", source, rows, shown, "pretrained minus none")
            _show(
                f"pretrained is better in {better.sum()} of {len(rows)} comparisons, with p < 0.05 "
                f"in {(better & small).sum()} of them ({(better & small_adjusted).sum()} after "
                f"adjustment), and worse with p < 0.05 in {(~better & small).sum()}."
            )

    def paper(self, name, models, metric="dice", task=None):
        """Save and return the paper's own numbers that belong to an exhibit.

        Args:
            name: of its files, after "paper_".
            models, metric, task: see `display.paper_numbers`.
        """
        numbers = display.paper_numbers(models, metric, task)
        caption = "The paper's own numbers, from mvl/paper.csv."
        path = self.folder / "tables" / f"paper_{name}"
        tables.write(path, numbers, numbers.astype(str), caption)
        return numbers

    def task_grid(self, root):
        """Show and save a case of every task: image, truth, the profile's models, and `best`.

        `best` is the model that comes with the suite; it knows its own task alone.

        Args:
            root: the folder that holds the tasks' folders.
        """
        columns, left_out = [], []
        found, best = self._runs_by_task(), load_predictor(BEST)
        for task in sorted({self._parameters["task"], *found}):
            try:
                columns.append(self._column(task, found.get(task, {}), best, root))
            except DataError as error:
                left_out.append(f"{task} is left out: {error}")
        if columns:
            said = (
                f"{len(columns)} of the decathlon's {len(TASKS)} tasks, a test case each; in the "
            )
            said += "corner its Dice. `best` is the model that comes with the suite."
            self._save(figures.task_grid(columns), "task_grid", said)
        _show(*left_out)

    def activation_maps(self, root):
        """Show and save the activation maps of `best` and of the profile's own models.

        Args:
            root: the folder that holds the task's folder.
        """
        task = self._parameters["task"]
        data, runs, case = self._case(task, self._runs_by_task().get(task, {}), root)
        best = load_predictor(BEST)
        if best.task.name == task:
            figure = figures.activation_maps(
                {"best": display.activation_row(best, case)}, data.task
            )
            said = f"`best`, the model that comes with the suite, on the test case {case.name}."
            self._save(figure, "activation_maps_best", said)
        rows = {arm: display.activation_row(runs[arm], case) for arm in _PAIR if arm in runs}
        if rows:
            figure = figures.activation_maps(rows, data.task)
            said = f"This profile's models on the test case {case.name}."
            self._save(figure, "activation_maps_own", said)
        if len(rows) < len(_PAIR):
            lacking = ", ".join(arm for arm in _PAIR if arm not in rows)
            _show(f"*This profile:* not there yet: {lacking}. {self._how_own('language')}")

    def dataflow(self, preset):
        """Show and save the dataflow of a preset, built with the profile's grid and block.

        Args:
            preset: a name of `config.PRESETS`.
        """
        model, _ = config.preset(preset, language=self._parameters["block"])
        grid = tuple(self._parameters["grid"])
        figure = display.dataflow(build_segmenter(model, 1, 1, grid, seed=0))
        said = f"The preset `{preset}` as it is built here, with the block "
        said += f"`{self._parameters['block']}` and volumes of {' × '.join(map(str, grid))} voxels."
        self._save(figure, f"dataflow_{preset}", said)

    def answer(self):
        """What of the paper is confirmed, and what could be drawn, in generated sentences.

        Returns:
            An IPython Markdown object.
        """
        lines = []
        for source in self.sources:
            found = source.contrasts[source.contrasts["metric"] == "dice"]
            found = found[found["structure"] == "foreground"]
            for suite, arm, against in _HEADLINES:
                pair = (found["suite"] == suite) & (found["arm_a"] == arm)
                for _, row in found[pair & (found["arm_b"] == against)].iterrows():
                    lines.append(f"- **{source.label}.** {sentence(row)}")
        for source in self.sources:
            missing = [name for name, drawn in self._drawn.items() if not drawn[source.label]]
            text = f"- {source.label}: {len(self._drawn) - len(missing)} of {len(self._drawn)} "
            text += "figures of results could be drawn"
            names = ", ".join(name.replace("_", " ") for name in missing)
            lines.append(text + (f"; not yet: {names}." if missing else "."))
        return display.markdown("\n".join(lines))

    def _runs_by_task(self):
        """{task: {arm: run folder}} of the profile's runs without and with the block."""
        found = {}
        for source in self.sources:
            if source.kind == "own":
                rows = source.runs[source.runs["suite"] == "language"].sort_values("seed")
                for row in rows[rows["arm"].isin(_PAIR)].itertuples():
                    arms = found.setdefault(row.task, {})
                    arms.setdefault(row.arm, self.folder / "runs" / row.fingerprint)
        return found

    def _column(self, task, folders, best, root):
        """A task's column of `figures.task_grid`."""
        data, runs, case = self._case(task, folders, root)
        bare = display.view_of_case(case)
        views = [replace(bare, truth=None, title="image"), replace(bare, title="truth")]
        models = {"vit": runs.get("none"), "vit + block": runs.get("pretrained")}
        models["best"] = best if best.task.name == task else None
        for title, model in models.items():
            view = model and display.view_of(model, case, "")
            views.append(view and replace(view, title=title, caption=_dice(view)))
        return data.task, views

    def _case(self, task, folders, root):
        """(`TaskData`, {arm: `Run`}, the case to show) of a task.

        The case is the median test case of the model with the block, or without it where there
        is none, or just the first.
        """
        runs = {arm: Run.load(folder) for arm, folder in folders.items()}
        chosen = runs.get("pretrained") or runs.get("none")
        if chosen:
            data = open_task(chosen.config.data, chosen.config.seed, root, progress=False)
            cases = read_table(chosen.folder / "cases.csv", ("case", "structure"), ("dice",))
            cases = cases[cases["structure"] == "foreground"]
            return data, runs, data.cases[figures.best_median_worst(cases)["median"]["case"]]
        grid, fit = tuple(self._parameters["grid"]), self._parameters["fit"]
        wanted = config.DataConfig(task=task, grid=grid, fit=fit)
        data = open_task(wanted, 0, root, progress=False)
        return data, runs, data.side("test")[0]

    def _slugs(self):
        """(source, its part of a file's name): "own", "own_2" for the second, "reference"."""
        count = 0
        for source in self.sources:
            count += source.kind == "own"
            yield source, source.kind + f"_{count}" * (source.kind == "own" and count > 1)

    def _save(self, figure, name, caption):
        figures.save(figure, self.folder / "figures" / name)
        _show(caption, figure)

    def _write(self, name, source, rows, shown, what):
        first = rows.iloc[0]
        synthetic = "SYNTHETIC DATA. " if rows["synthetic"].any() else ""
        tasks = ", ".join(dict.fromkeys(rows["task"]))
        caption = f"{synthetic}{source.label}: {tasks}, {first['structure']}, {what}."
        tables.write(self.folder / "tables" / name, rows, shown, caption)
        _show(f"**{caption}**", shown.style.hide(axis="index"))

    def _missing(self, source, exhibit, part, drawn):
        """What a source lacks of an exhibit, in words; "" if nothing."""
        present = set(part.cases["arm"])
        wanted = exhibit.arms or tuple(SUITES.get(exhibit.suite, ()))
        missing = [arm for arm in wanted if arm not in present]
        if drawn and not missing:
            return ""
        if drawn:
            text = f"Not there yet: {', '.join(missing)}."
        elif len(present) < exhibit.fewest:
            text = f"Too little of it is there ({', '.join(sorted(present)) or 'nothing'})."
        else:
            text = "Its arms are there, but not their training curves."
        return f"*{source.label}:* {text} {self._how(source, exhibit.suite)}"

    def _how(self, source, suite):
        if source.kind == "reference":
            return f"`mvl suite run {suite or 'NAME'}`, then `mvl reference`, adds to it."
        return self._how_own(suite)

    def _how_own(self, suite):
        if suite in _NOTEBOOKS:
            return (
                f"`./run_all.sh --profile {self.profile} --only {_NOTEBOOKS[suite]}` trains the "
                f"arms that `{suite}_arms` in profiles/{self.profile}.yaml names."
            )
        return f"`mvl suite run {suite or 'NAME'}` trains it for the study."


def _show(*things):
    from IPython.display import display as show

    for thing in things:
        show(display.markdown(thing) if isinstance(thing, str) else thing)


def _part(source, exhibit):
    """The rows of a source that an exhibit is about."""
    if not exhibit.suite:
        return part_of(source, distinct(source.runs))
    arms = exhibit.arms or SUITES[exhibit.suite]
    return part_of(source, [(exhibit.suite, arm) for arm in arms])


def _by_task(part, exhibit):
    """(task, its rows), or all in one for an exhibit of several tasks."""
    tasks = sorted(part.cases["task"].unique())
    if exhibit.by_task:
        return [(task, rows_of_task(part, task)) for task in tasks]
    return [("", part)] if tasks else []


def _six(cases):
    """The comparisons of the block with nothing in the paper's six metrics, of every task."""
    return contrasts_table(cases, [("language", *reversed(_PAIR))], SIX)


def _size(source):
    """How much stands behind a figure."""
    cases = source.cases
    tasks = ", ".join(sorted(cases["task"].unique()))
    seeds, epochs = cases.groupby("arm")["seed"].nunique(), sorted(cases["epochs"].unique())
    subjects = cases.groupby("task")["subject"].nunique()
    counts = [(subjects, "test subject"), (seeds, "seed"), (epochs, "epoch")]
    return f"{tasks}: " + ", ".join(_range(values, noun) for values, noun in counts)


def _range(values, noun):
    low, high = int(min(values)), int(max(values))
    return f"{low} to " * (low < high) + f"{high} {noun}{'s' * (high != 1)}"


def _dice(view):
    masks = (torch.from_numpy(np.asarray(m))[None, None] for m in (view.prediction, view.truth))
    return f"{dice_per_case(*masks).item():.2f}"
