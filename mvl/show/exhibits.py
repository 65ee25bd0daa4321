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
from nibabel.orientations import io_orientation

from mvl import config
from mvl.data.obtain import obtained
from mvl.data.task_data import open_task
from mvl.data.tasks import TASKS
from mvl.errors import DataError, RunError
from mvl.experiment.identity import require_same
from mvl.experiment.metrics import METRICS, dice_per_case
from mvl.experiment.run import Run, load_predictor, read_cases
from mvl.files import REPOSITORY
from mvl.models.segmenter import build_segmenter
from mvl.show import figures, tables
from mvl.show import notebook as display
from mvl.study import ten_tasks
from mvl.study.profiles import load_profile
from mvl.study.reference import BEST
from mvl.study.runs import (
    HEADLINE,
    distinct,
    own_runs,
    part_of,
    rows_of_tasks,
    sources_of,
    tasks_of,
)
from mvl.study.statistics import ALPHA, by_part, contrasts_table, sentence
from mvl.study.suites import SUITES

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
    """

    suite: str
    draw: Callable
    arms: tuple | None = None
    fewest: int = 2


def _curves(source):
    if source.curves.empty:
        return None
    return figures.curve_bands(source.curves, bool(source.cases["synthetic"].any()))


def _metric_differences(source):
    return figures.metric_differences(_six(source.cases, ("language", *reversed(_PAIR))))


def _part_effects(source):
    return figures.part_effects(source.cases) if by_part(source.cases) else None


_PAIR = ("none", "pretrained")
_LORA = tuple(arm for arm in SUITES["adaptation"] if arm.startswith("lora"))

#: The comparisons that the answer names: what the paper compares, and this replication's own model.
_HEADLINES = (*(pair[:3] for pair in HEADLINE), ("peers", "best", "vit"))

#: Name -> `Exhibit`.
EXHIBITS = {
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
    "part_effects": Exhibit("fusion", _part_effects, fewest=8),
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

    def __init__(self, profile, root=REPOSITORY):
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
            for task, rows in _by_task(part):
                if rows.cases["arm"].nunique() >= exhibit.fewest:
                    figure = exhibit.draw(rows)
                    if figure is not None:
                        file = f"{name}_{slug}" + f"_{task}" * (task != self._parameters["task"])
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

    def ten_tasks(self):
        """Show and save the paper's table of ten tasks, a table of all sources, and its figure.

        The paper's own numbers stand beside; a task without a row is named, with the command that
        fills it.
        """
        shown = ten_tasks.table(self.sources)
        parts = {slug: ten_tasks.part(source) for source, slug in self._slugs()}
        if not parts:
            _show("Nothing is there to be shown: no run, and no reference.")
            return
        rows = pd.concat([own.summary.assign(source=own.label) for own in parts.values()])
        rows = rows[rows["metric"].isin(ten_tasks.SIX)]
        caption = (
            "Foreground of the ten tasks in native space: means ± standard deviation over test "
            "subjects, over tasks where several are averaged. The paper's Dice of a task is of one "
            "example case."
        )
        if rows["synthetic"].any():
            caption += (
                " SYNTHETIC DATA where a row says so: generated volumes show that the code runs "
                "and say nothing about patients."
            )
        tables.write(self.folder / "tables" / "ten_tasks", rows, shown, caption)
        _show(f"**{caption}**", shown.style.hide(axis="index"))
        paper = ten_tasks.paper_by_arm()
        for source, slug in self._slugs():
            own = parts[slug]
            self._drawn.setdefault("ten_tasks", {})[source.label] = len(own.summary)
            if len(own.summary):
                known = paper[paper["task"].isin(own.summary["task"])]
                figure = figures.metric_by_task(own.summary, known)
                self._save(figure, f"ten_tasks_{slug}", f"**{source.label}**, {_size(own)}.")
        real = set(rows[~rows["synthetic"]]["task"])
        if lacking := [task for task in TASKS if task not in real]:
            lines = [f"- {task}: `{ten_tasks.command(task, self._parameters)}`" for task in lacking]
            _show("\n".join(["Without real volumes so far, and what fills the row:", "", *lines]))

    def comparisons(self):
        """Show and save the paper's comparisons, six metrics a task, of its models with plain vit.

        Each is paired by subject and seed; Holm's family is all of a pair and a source.
        """
        for source, slug in self._slugs():
            found = [_six(source.cases, pair) for pair in ten_tasks.PAIRS]
            found = [rows for rows in found if len(rows)]
            if not found:
                continue
            rows = pd.concat(found, ignore_index=True)
            what = "the paper's six metrics, paired by subject"
            self._write(f"comparisons_{slug}", source, rows, tables.differences(rows), what)
            _show("\n".join(f"- {_counted(rows)}" for rows in found))

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

    def task_grid(self):
        """Show and save a case of every task: image, truth, the profile's models, and `best`.

        `best` is the model that comes with `mvl`; it knows its own task alone. A model that
        fewer than half of the tasks have has no row.
        """
        columns, left_out = {}, []
        cells = {arm: (suite, arm) for arm, (suite, *_) in ten_tasks.MODELS.items()}
        found, best = self._runs_by_task(cells), load_predictor(BEST)
        for task in sorted({self._parameters["task"], *found}):
            try:
                columns[task] = self._column(task, found.get(task, {}), best)
            except (DataError, RunError) as error:
                left_out.append(f"{task} is left out: {error}")
        if columns:
            views = [own for _, own in columns.values()]
            kept = [
                name
                for name in views[0]
                if 2 * sum(own[name] is not None for own in views) >= len(views)
            ]
            said = (
                f"{len(columns)} of the decathlon's {len(TASKS)} tasks, a test case each, in the "
                "slice with most of the truth; in the corner the case's Dice. "
                f"Rows: {', '.join(kept)}."
            )
            if "best" in kept:
                said += " `best` is the model that comes with `mvl`."
            grid = [(task, [own[name] for name in kept]) for task, own in columns.values()]
            self._save(figures.task_grid(grid), "task_grid", said)
        _show(*left_out)

    def activation_maps(self, root):
        """Show and save the activation maps of `best` and of the profile's own models.

        Args:
            root: the folder that holds the task's folder.
        """
        task = self._parameters["task"]
        cells = {arm: ("language", arm) for arm in _PAIR}
        data, runs, case = self._case(task, self._runs_by_task(cells).get(task, {}), root)
        best = load_predictor(BEST)
        if best.task.name == task:
            figure = figures.activation_maps(
                {"best": display.activation_row(best, case)}, data.task
            )
            said = f"`best`, the model that comes with `mvl`, on the test case {case.name}."
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

    def ten_tasks_answer(self):
        """What the comparisons of the ten tasks say: a generated sentence a task, in Dice.

        Returns:
            An IPython Markdown object.
        """
        lines = []
        for source in self.sources:
            for pair in ten_tasks.PAIRS:
                rows = _six(source.cases, pair)
                rows = rows[rows["metric"] == "dice"]
                lines += [f"- **{source.label}.** {sentence(row)}" for _, row in rows.iterrows()]
        return display.markdown("\n".join(lines) or "No two models to compare are there.")

    def _runs_by_task(self, cells):
        """{task: {name: run folder}} of the profile's runs, of {name: (suite, arm)}."""
        found = {}
        for source in self.sources:
            if source.kind == "own":
                runs = source.runs.sort_values("seed")
                for name, (suite, arm) in cells.items():
                    for row in runs[(runs["suite"] == suite) & (runs["arm"] == arm)].itertuples():
                        arms = found.setdefault(row.task, {})
                        arms.setdefault(name, self.folder / "runs" / row.fingerprint)
        return found

    def _column(self, task, folders, best):
        """A task's column of `figures.task_grid`: (`Task`, {row: `View`, None without a model})."""
        root = obtained(task, self._parameters["source"], self.profile)
        data, runs, case = self._case(task, folders, root)
        bare = _slice(display.view_of_case(case))
        views = {"image": replace(bare, truth=None, title="image")}
        views["truth"] = replace(bare, title="truth")
        models = {arm: runs.get(arm) for arm in ten_tasks.MODELS}
        models["best"] = best if best.task.name == task else None
        for title, model in models.items():
            views[title] = None
            if model:
                view = display.view_of(model, case, "")
                views[title] = replace(_slice(view), title=title, caption=_dice(view))
        return data.task, views

    def _case(self, task, folders, root):
        """(`TaskData`, {arm: `Run`}, the case to show) of a task.

        The case is the median test case of the last of the models, or just the first where there
        is none.

        Raises:
            DataError: the task cannot be used.
            RunError: it is not what the model was trained on.
        """
        runs = {arm: Run.load(folder) for arm, folder in folders.items()}
        if runs:
            chosen = list(runs.values())[-1]
            data = open_task(chosen.config.data, chosen.config.seed, root, progress=False)
            require_same(chosen.folder, chosen.config, data)
            cases = read_cases(chosen.folder)
            cases = cases[cases["structure"] == "foreground"]
            return data, runs, data.cases[figures.best_median_worst(cases)["median"]["case"]]
        setting = ten_tasks.settings_of(self._parameters)[task]
        data = open_task(setting.data, 0, root, progress=False)
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
            text = "Its arms are there, but not their training curves, or no seed in common."
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
    source = rows_of_tasks(source, tasks_of(source, exhibit.suite))
    if not exhibit.suite:
        return part_of(source, distinct(source.runs))
    arms = exhibit.arms or SUITES[exhibit.suite]
    return part_of(source, [(exhibit.suite, arm) for arm in arms])


def _by_task(part):
    """(task, its rows)."""
    return [(task, rows_of_tasks(part, [task])) for task in sorted(part.cases["task"].unique())]


def _six(cases, pair):
    """The comparisons of (suite, arm, against) in the paper's six metrics, of every task."""
    cases = cases[cases["structure"] == "foreground"]
    return contrasts_table(cases, [pair], ten_tasks.SIX)


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


def _counted(rows):
    """How many of a pair's comparisons speak for its first arm, counted as the paper counts."""
    gain = [
        row.difference * (1 if METRICS[row.metric].larger_is_better else -1)
        for row in rows.itertuples()
    ]
    better = pd.Series(gain, rows.index) > 0
    small, small_adjusted = rows["p"] < ALPHA, rows["p_holm"] < ALPHA
    first, count = rows.iloc[0], len(rows)
    synthetic = "SYNTHETIC DATA: " if rows["synthetic"].any() else ""
    return (
        f"{synthetic}{first['arm_a']} is better than {first['arm_b']} in {better.sum()} of {count} "
        f"comparisons, with p < {ALPHA:g} in {(better & small).sum()} of them "
        f"({(better & small_adjusted).sum()} after adjustment), and worse with p < {ALPHA:g} in "
        f"{(~better & small).sum()}; of two equal models one would expect {count / 2:g}, "
        f"{count * ALPHA / 2:.2g} and {count * ALPHA / 2:.2g}."
    )


def _slice(view):
    """The axial slice with most of the truth: ten whole CTs would fill the memory."""
    axis = int(np.flatnonzero(io_orientation(view.affine)[:, 0] == 2)[0])
    others = tuple({0, 1, 2} - {axis})
    index = [int(view.truth.sum(axis=others).argmax())]
    parts = {
        name: np.take(getattr(view, name), index, axis)
        for name in ("image", "truth", "prediction")
        if getattr(view, name) is not None
    }
    return replace(view, **parts)


def _dice(view):
    masks = (torch.from_numpy(np.asarray(m))[None, None] for m in (view.prediction, view.truth))
    return f"{dice_per_case(*masks).item():.2f}"
