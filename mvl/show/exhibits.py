"""The paper's figures and tables, from a profile's runs and from the committed reference.

An exhibit is drawn for each of the profile's sources that has enough of it and saved below
results/<profile>/, as figures/NAME_SOURCE.{png,pdf} and tables/NAME_SOURCE.{csv,md,tex}. The
reference's figures are those in results/reference/figures. Where a source has too little, or a
part, a text says what is missing and what makes it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from mvl.data.tasks import TASKS
from mvl.errors import DataError, RunError
from mvl.files import REPOSITORY
from mvl.show import figures, tables
from mvl.show import ten_tasks as of_ten
from mvl.show.charts import CHARTS, PAIR, by_task, drawn, file_name, part, size
from mvl.show.examples import Examples
from mvl.show.notebook import activation_row, markdown, paper_numbers, picture, show
from mvl.show.sentences import NOTHING, sentence
from mvl.study import ten_tasks, volumes
from mvl.study.runs import HEADLINE, own_runs, sources_of
from mvl.study.suites import SUITES

#: Suite -> the notebook that trains those of its arms that a profile names in `SUITE_arms`.
_NOTEBOOKS = {"language": "04", "fusion": "05", "adaptation": "06", "data": "07", "peers": "09"}

#: The comparisons that the answer names: what the paper compares, and this replication's model.
_HEADLINES = (*(pair[:3] for pair in HEADLINE), ("peers", "best", "vit"))


class Exhibits:
    """What a profile and the reference have of the paper's figures and tables.

    Args:
        parameters: the profile's, from `load_profile`.
        root: the repository.

    Attributes:
        sources: {the source's part of a file's name ("own", "own_2" for the second,
            "reference"): `Source`}.
    """

    def __init__(self, parameters: dict, root: Path = REPOSITORY):
        self._parameters, self._profile = parameters, parameters["profile"]
        self._root, self.folder = root, root / "results" / self._profile
        found, self._faults = sources_of(own_runs(parameters, root), root)
        own = [source for source in found if source.kind == "own"]
        names = ["own" + f"_{n}" * (n > 1) for n in range(1, len(own) + 1)]
        self.sources = dict(zip(names, own, strict=True))
        self.sources |= {source.kind: source for source in found if source.kind != "own"}
        self._examples = Examples(list(own), parameters, self.folder / "runs")
        self._drawn = {}

    def about(self) -> Markdown:
        """What there is to draw from."""
        lines = []
        if "own" not in self.sources:
            lines.append(
                f"- **This profile** has no finished run yet: `./run_all.sh --profile "
                f"{self._profile}` makes some."
            )
        for source in self.sources.values():
            runs = source.runs.drop_duplicates("fingerprint")
            suites = ", ".join(suite for suite in SUITES if suite in set(source.runs["suite"]))
            lines.append(f"- **{source.label}**: {len(runs)} runs, of the suites {suites}.")
        return markdown("\n".join([*lines, *(f"- {text}" for _, text in self._faults)]))

    def figure(self, name: str) -> None:
        """Show a figure of `CHARTS` for every source, and say what is missing.

        The profile's is drawn and saved, the reference's shown as it is committed.
        """
        chart = CHARTS[name]
        for slug, source in self.sources.items():
            count = 0
            if source.kind != "reference":
                for task, behind, figure in drawn(source, chart):
                    file = f"{name}_{slug}" + f"_{task}" * (task != self._parameters["task"])
                    self._save(figure, file, f"**{source.label}**, {behind}. {chart.caption}")
                    count += 1
            else:
                folder = self._root / "results" / "reference" / "figures"
                path = folder / f"{file_name(name)}.png"
                if path.is_file():
                    count, behind = 1, size(part(source, chart))
                    show(f"**{source.label}**, {behind}. {chart.caption}", picture(path))
            self._drawn.setdefault(name, {})[slug] = count
            if missing := self._missing(source, chart, count):
                show(missing)

    def table(self, name: str) -> None:
        """Show and save the table of a chart's arms for every source that has two of them."""
        for slug, source in self.sources.items():
            rows = part(source, CHARTS[name]).summary
            if rows["arm"].nunique() > 1:
                caption = _caption(source, rows, "mean ± standard deviation")
                self._tabulate(f"{name}_{slug}", rows, tables.arms(rows), caption)

    def ten_tasks(self) -> None:
        """Show and save the table of ten tasks, one of all sources, and a figure per source.

        The paper's numbers are in it; a task without a row is named, with the command that fills
        it.
        """
        if not self.sources:
            show("Nothing is there to be shown: no run, and no reference.")
            return
        parts = {slug: ten_tasks.part(source) for slug, source in self.sources.items()}
        rows = pd.concat([own.summary.assign(source=own.label) for own in parts.values()])
        rows = rows[rows["metric"].isin(ten_tasks.SIX)]
        caption = (
            "Foreground of the ten tasks in native space: means ± standard deviation over test "
            "subjects, over tasks where several are averaged. The paper's Dice of a task is of one "
            "example case; its grid, and what its ± is over, are unstated."
        )
        if rows["synthetic"].any():
            caption += (
                " SYNTHETIC DATA where a row says so: generated volumes show that the code runs "
                "and say nothing about patients."
            )
        shown = of_ten.table(self.sources.values())
        self._tabulate("ten_tasks", rows, shown, caption)
        for slug, own in parts.items():
            self._drawn.setdefault("ten_tasks", {})[slug] = len(own.summary)
            if len(own.summary):
                self._save(by_task(own), f"ten_tasks_{slug}", f"**{own.label}**, {size(own)}.")
        real = set(rows[~rows["synthetic"]]["task"])
        if lacking := [task for task in TASKS if task not in real]:
            lines = [f"- {task}: `{of_ten.command(task, self._parameters)}`" for task in lacking]
            show("\n".join(["Without real volumes so far, and what fills the row:", "", *lines]))

    def comparisons(self) -> None:
        """Show and save the paper's comparisons of its models with plain vit, six per task.

        Each is paired by subject and seed; Holm's family is all of a pair and a source.
        """
        for slug, source in self.sources.items():
            pairs = [of_ten.six(source.cases, pair) for pair in ten_tasks.PAIRS]
            pairs = [rows for rows in pairs if len(rows)]
            if pairs:
                rows = pd.concat(pairs, ignore_index=True)
                caption = _caption(source, rows, "the paper's six metrics, paired by subject")
                self._tabulate(f"comparisons_{slug}", rows, tables.comparisons(rows), caption)
                show("\n".join(f"- {of_ten.counted(rows)}" for rows in pairs))

    def paper(
        self, name: str, models: list[str], metric: str | None = "dice", task=None
    ) -> pd.DataFrame:
        """Save and return the paper's numbers that belong to an exhibit (see `paper_numbers`)."""
        numbers = paper_numbers(models, metric, task)
        path = self.folder / "tables" / f"paper_{name}"
        caption = "The paper's own numbers, from mvl/paper.csv."
        texts = numbers.map(lambda value: NOTHING if pd.isna(value) else str(value))
        tables.write(path, numbers, texts, caption)
        return numbers

    def task_grid(self) -> None:
        """Show and save a case of every task: image, truth, the profile's models, and `best`.

        `best` is the committed model; it knows its own task alone. A model that fewer than half
        of the tasks have has no row.
        """
        columns, left_out = [], []
        cells = {arm: suite for arm, (suite, *_) in ten_tasks.MODELS.items()}
        for task in self._examples.tasks(cells):
            try:
                columns.append(self._examples.column(task, cells))
            except (DataError, RunError) as error:
                left_out.append(f"{task} is left out: {error}")
        if columns:
            kept = [
                name
                for name in columns[0][1]
                if 2 * sum(views[name] is not None for _, views in columns) >= len(columns)
            ]
            text = (
                f"{len(columns)} of the decathlon's {len(TASKS)} tasks, a test case each, in the "
                "slice with most of the truth; in the corner the case's Dice. "
                f"Rows: {', '.join(kept)}."
            )
            text += " `best` is the model that comes with `mvl`." * ("best" in kept)
            grid = [(task, [views[name] for name in kept]) for task, views in columns]
            self._save(figures.task_grid(grid), "task_grid", text)
        show(*left_out)

    def activation_maps(self) -> None:
        """Show and save the activation maps of `best` and of the profile's own models."""
        task = self._parameters["task"]
        data, models, case = self._examples.case(task, dict.fromkeys(PAIR[::-1], "language"))
        rows = {name: activation_row(model, case) for name, model in models.items()}
        if "best" in rows:
            drawn = figures.activation_maps({"best": rows.pop("best")}, data.task)
            text = f"`best`, the model that comes with `mvl`, on the test case {case.name}."
            self._save(drawn, "activation_maps_best", text)
        if rows:
            text = f"This profile's models on the test case {case.name}."
            self._save(figures.activation_maps(rows, data.task), "activation_maps_own", text)
        if lacking := [arm for arm in PAIR if arm not in rows]:
            how = self._how("own", "language")
            show(f"*This profile:* not there yet: {', '.join(lacking)}. {how}")

    def dataflow(self, preset: str) -> None:
        """Show and save the dataflow of a preset, built with the profile's grid and block."""
        block, grid = self._parameters["block"], self._parameters["grid"]
        text = f"The preset `{preset}` as it is built here, with the block "
        text += f"`{block}` and volumes of {' × '.join(map(str, grid))} voxels."
        parts = volumes.preset_dataflow(preset, self._parameters)
        self._save(figures.dataflow(*parts), f"dataflow_{preset}", text)

    def answer(self) -> Markdown:
        """What of the paper is confirmed, and what could be drawn, in generated sentences."""
        lines = []
        for source in self.sources.values():
            rows = source.contrasts
            rows = rows[(rows["metric"] == "dice") & (rows["structure"] == "foreground")]
            for pair in _HEADLINES:
                chosen = (rows[["suite", "arm_a", "arm_b"]] == list(pair)).all(axis=1)
                lines += _labelled(source, rows[chosen])
        for slug, source in self.sources.items():
            missing = [name for name, drawn in self._drawn.items() if not drawn[slug]]
            text = f"- {source.label}: {len(self._drawn) - len(missing)} of {len(self._drawn)} "
            text += "figures of results could be drawn"
            names = ", ".join(name.replace("_", " ") for name in missing)
            lines.append(text + (f"; not yet: {names}." if missing else "."))
        return markdown("\n".join(lines))

    def ten_tasks_answer(self) -> Markdown:
        """What the comparisons of the ten tasks say: one sentence per task, in Dice."""
        lines = []
        for source in self.sources.values():
            for pair in ten_tasks.PAIRS:
                rows = of_ten.six(source.cases, pair)
                lines += _labelled(source, rows[rows["metric"] == "dice"])
        return markdown("\n".join(lines) or "No two models to compare are there.")

    def _save(self, figure, name, caption):
        path = self.folder / "figures" / name
        figures.save(figure, path)
        show(caption, picture(path.with_suffix(".png")))  # to draw it once more takes time

    def _tabulate(self, name, rows, shown, caption):
        tables.write(self.folder / "tables" / name, rows, shown, caption)
        show(f"**{caption}**", shown.style.hide(axis="index"))

    def _missing(self, source, chart, count):
        """What a source lacks of a chart, in words; "" if nothing."""
        present = set(part(source, chart).cases["arm"])
        wanted = chart.arms or tuple(SUITES.get(chart.suite, ()))
        missing = [arm for arm in wanted if arm not in present]
        if count and not missing:
            return ""
        if count:
            text = f"Not there yet: {', '.join(missing)}."
        elif not chart.enough(present):
            text = f"Too little of it is there ({', '.join(sorted(present)) or 'nothing'})."
        else:
            text = "Its arms are there, but not their training curves, or no seed in common."
        return f"*{source.label}:* {text} {self._how(source.kind, chart.suite)}"

    def _how(self, kind, suite):
        if kind == "reference":
            return f"`mvl suite run {suite or 'NAME'}`, then `mvl reference`, adds to it."
        if suite in _NOTEBOOKS:
            return (
                f"`./run_all.sh --profile {self._profile} --only {_NOTEBOOKS[suite]}` trains the "
                f"arms that `{suite}_arms` in profiles/{self._profile}.yaml names."
            )
        return f"`mvl suite run {suite or 'NAME'}` trains it for the study."


def _caption(source, rows, what):
    synthetic = "SYNTHETIC DATA. " if rows["synthetic"].any() else ""
    names = ", ".join(dict.fromkeys(rows["task"]))
    return f"{synthetic}{source.label}: {names}, {rows['structure'].iloc[0]}, {what}."


def _labelled(source, contrasts):
    return [f"- **{source.label}.** {sentence(row)}" for _, row in contrasts.iterrows()]
