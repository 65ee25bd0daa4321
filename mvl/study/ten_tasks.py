"""The paper's table: ten tasks, its models, six metrics. What a profile runs of it, and the rows.

A task whose data cannot be had leaves its row empty. Everything is about the foreground, in native
space.
"""

from dataclasses import dataclass

import pandas as pd

from mvl.config import DataConfig, task_data
from mvl.data.obtain import obtain
from mvl.data.tasks import TASKS
from mvl.errors import MvlError
from mvl.experiment.metrics import METRICS
from mvl.show import tables
from mvl.study.profiles import data_of
from mvl.study.runs import part_of, rows_of_tasks
from mvl.study.suites import run_suite, suite_configs

#: The paper's six metrics: ten tasks of them make its 60 comparisons.
SIX = ("dice", "jaccard", "hd95_mm", "sensitivity", "specificity", "nsd")

#: Arm -> (its suite, the paper's name of the model, the paper's version). `pretrained` has the
#: block alone, without the adapters of `v3`.
MODELS = {
    "vit": ("presets", "ViT", "v3"),
    "v1": ("presets", "MedVisionLlama", "v1"),
    "v3": ("presets", "MedVisionLlama", "v3"),
    "pretrained": ("language", "MedVisionLlama", "v3"),
}

#: (suite, arm, against): each is sixty comparisons, where there are ten tasks.
PAIRS = (
    ("presets", "v1", "vit"),
    ("presets", "v3", "vit"),
    ("language", "pretrained", "none"),
)


@dataclass(frozen=True)
class Setting:
    """How a profile runs a task: its data, and how large a phantom stands in for it."""

    data: DataConfig
    cases: int
    scale: float


def settings_of(parameters):
    """{task: `Setting`} of the ten tasks, and of the profile's own where it is another.

    Args:
        parameters: a profile's, as `profiles.load_profile` gives them, or a notebook's `globals()`.
    """
    own, sizes = parameters["task"], {}
    for task in {*TASKS, own}:
        prefix = "" if task == own else "tasks_"
        sizes[task] = [parameters[f"{prefix}phantom_{size}"] for size in ("cases", "scale")]
    return {task: Setting(data_of(task, parameters), *size) for task, size in sizes.items()}


def run(parameters, results, show=True):
    """Train and test the models that a profile names on the tasks that it names.

    A task that fails is told of and the others go on; what is done is not done again.

    Args:
        parameters: as for `settings_of`.
        results: the profile's folder, results/<profile>.
        show: show progress.

    Returns:
        A table, one of the ten tasks a row: task, and what its data is or why it was not run.
    """
    settings, rows = settings_of(parameters), []
    for task in TASKS:
        setting, what = settings[task], "not run by this profile"
        if task in parameters["tasks"]:
            if show:
                print(task, flush=True)
            try:
                root, what = obtain(
                    task, parameters["source"], setting.cases, setting.scale, parameters["profile"]
                )
                configs = suite_configs(
                    *("presets", setting.data, parameters["seeds"], parameters["block"]),
                    *(parameters["epochs"], parameters["tasks_arms"]),
                )
                run_suite("presets", configs, results / "runs", root, show)
            except MvlError as error:
                what = f"not run: {error}"
        rows.append({"task": task, "data": what})
    return pd.DataFrame(rows)


def command(task, parameters):
    """The commands that fill a row with real volumes, as the profile would."""
    setting = settings_of(parameters)[task]
    words = ["mvl data download", task, "&& mvl suite run presets --task", task, "--arms"]
    words += [arm for arm, (suite, *_) in MODELS.items() if suite == "presets"]
    if setting.data != task_data(task):
        words += ["--grid", *setting.data.grid, "--fit", setting.data.fit]
    words += ["--epochs", parameters["epochs"], "--seeds", *parameters["seeds"]]
    words += ["--block", parameters["block"], "--results", f"results/{parameters['profile']}"]
    return " ".join(map(str, words))


# --- the table -----------------------------------------------------------------------------


def part(source):
    """What a `results.Source` has of the table's models and the ten tasks: the foreground."""
    models = part_of(source, [(suite, arm) for arm, (suite, *_) in MODELS.items()])
    return rows_of_tasks(models, list(TASKS))


def table(sources):
    """The table for a reader: mean and standard deviation over test subjects, and the paper's.

    Args:
        sources: list of `results.Source`.

    Returns:
        A table of texts: a task, arm and source a row, and a row for a task that no source has;
        then each arm's mean over tasks, and the paper's.
    """
    paper = _paper_numbers()
    parts = [part(source) for source in sources]
    rows = []
    for task in TASKS:
        before = len(rows)
        for own in parts:
            rows += _rows(own, own.summary[own.summary["task"] == task], task, paper)
        if len(rows) == before:
            rows.append({"task": task, "data": "not run"})
    for own in parts:
        over = _over_tasks(own.summary)
        for task in over["task"].unique():
            rows += _rows(own, over[over["task"] == task], task, paper)
    return pd.DataFrame([*rows, *_paper_rows(paper)]).fillna(tables.NOTHING)


def _paper_numbers():
    """mvl/paper.csv, its metrics named as ours."""
    paper = pd.read_csv(tables.PAPER)
    return paper.assign(metric=paper["metric"].replace("hd95", "hd95_mm"))


def paper_by_arm():
    """The paper's numbers of single tasks with the arms that they belong to (column arm)."""
    paper = _paper_numbers()
    return pd.concat([_of_arm(paper, arm).assign(arm=arm) for arm in MODELS], ignore_index=True)


def _of_arm(paper, arm):
    _, model, version = MODELS[arm]
    return paper[(paper["model"] == model) & (paper["version"] == version)]


def _rows(source, summary, task, paper):
    shown = tables.means(summary, SIX).drop(columns=["task", "structure"], errors="ignore")
    rows = []
    for row in shown.to_dict("records"):
        own = _of_arm(paper, row["arm"])
        example = own[(own["task"] == task) & (own["metric"] == "dice")]["value"]
        row = {"task": task, "data": _whose(source)} | row
        if len(example):
            row["paper's Dice"] = f"{example.iloc[0]:.2f} (one case)"
        rows.append(row)
    return rows


def _whose(source):
    """Whose numbers, and that they are synthetic where they are."""
    told = "synthetic" in source.label or not source.summary["synthetic"].any()
    return source.label if told else f"{source.label}, synthetic data"


def _over_tasks(summary):
    """A summary whose subjects are tasks, of the arms that have several."""
    keys = ["arm", "epochs", "metric"]
    over = summary.groupby(keys, sort=False).agg(
        n=("task", "nunique"),
        mean=("mean", "mean"),
        sd_subjects=("mean", "std"),
        n_subjects=("n_subjects", "sum"),
        n_cases=("n_cases", "sum"),
        n_seeds=("n_seeds", "max"),
    )
    over = over[over["n"] > 1].reset_index()
    return over.assign(structure="foreground", task=[f"mean of {n} tasks" for n in over["n"]])


def _paper_rows(paper):
    said = paper[paper["task"] == "mean of ten tasks"]
    said = said[said["model"].isin({model for _, model, _ in MODELS.values()})]
    rows = []
    for (model, version), own in said.groupby(["model", "version"], sort=False):
        row = {"task": "mean of 10 tasks", "data": "the paper", "arm": f"{model} ({version})"}
        for number in own.itertuples():
            spread = "" if pd.isna(number.sd) else f" ± {number.sd:g}"
            row[METRICS[number.metric].heading] = f"{number.value:g}{spread}"
        rows.append(row)
    return rows
