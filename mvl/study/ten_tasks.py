"""The paper's table: ten tasks, its models, six metrics. What a profile runs of it, and the rows.

A task whose data cannot be had leaves its row empty. Everything is about the foreground, in native
space.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mvl.data.obtain import obtain
from mvl.data.tasks import TASKS
from mvl.errors import MvlError
from mvl.progress import say_incomplete
from mvl.study.cells import run_suite
from mvl.study.runs import Source, data_of, part_of, rows_of_tasks
from mvl.study.suites import suite_configs

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


def run(parameters: dict, results: Path, show: bool = True) -> pd.DataFrame:
    """Train and test the models that a profile names on the tasks that it names.

    A task that fails is reported and the others go on; what is done is not done again.

    Args:
        parameters: a profile's, from `profiles.load_profile`, or a notebook's `globals()`.
        results: the profile's folder, results/<profile>.

    Returns:
        One row per task of the ten: task, and what its data is or why it was not run.
    """
    rows, reasons = [], []
    for task in TASKS:
        prefix, what = "tasks_" * (task != parameters["task"]), "not run by this profile"
        if task in parameters["tasks"]:
            if show:
                print(task, flush=True)
            try:
                size = [parameters[f"{prefix}phantom_{name}"] for name in ("cases", "scale")]
                root, what = obtain(task, parameters["source"], *size, parameters["profile"])
                plan = [parameters[name] for name in ("seeds", "block", "epochs", "tasks_arms")]
                configs = suite_configs("presets", data_of(task, parameters), *plan)
                _, failures = run_suite("presets", configs, results / "runs", root, show)
                reasons += [f"{task}, {arm}: {why}" for (arm, _), why in failures.items()]
            except MvlError as error:
                what = f"not run: {error}"
                reasons.append(f"{task}: {error}")
        rows.append({"task": task, "data": what})
    say_incomplete(reasons)
    return pd.DataFrame(rows)


def part(source: Source) -> Source:
    """What a source has of the table's models and the ten tasks: the foreground."""
    models = part_of(source, [(suite, arm) for arm, (suite, *_) in MODELS.items()])
    return rows_of_tasks(models, list(TASKS))
