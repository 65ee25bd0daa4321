"""A suite and every figure, in a process of its own, so that its hash seed can be chosen.

    PYTHONHASHSEED=1 python -m tests.reliability.again DATA FOLDER

Leaves the suite's results and, below `figures`, each function of `show.figures` that draws, as PNG
and SVG. Their data is made up: the smallest that each takes.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.data.tasks import TASKS
from mvl.experiment.metrics import METRICS
from mvl.show import figures
from mvl.show.figures.style import drawn
from mvl.study.statistics import contrasts_table
from mvl.study.suites import SUITES
from tests.reliability import stages

TASK = TASKS["Task04_Hippocampus"]
SUBJECTS, SEEDS, STAGES = 8, (0, 1), ("after the encoder", "after the block")


def cases_of(suite, arms):
    """A table as in `mvl.study.summary`, of arms with two seeds and eight subjects."""
    rng = np.random.default_rng(0)
    rows = [
        {"suite": suite, "arm": arm, "seed": seed, "task": TASK.name, "subject": f"s{k}"}
        | {"case": f"c{k}", "structure": "foreground", "block": "", "host": "vit", "epochs": 2}
        | {"fraction": 1.0, "protocol_version": 1, "synthetic": True}
        | {name: rng.random() for name in METRICS}
        | {name: rng.random() for name in ("auroc_update", "auroc_change", "auroc_stream")}
        for arm in arms
        for seed in SEEDS
        for k in range(SUBJECTS)
    ]
    return pd.DataFrame(rows)


def drawings():
    """{name of a function of `mvl.show.figures`: a function that draws it}."""
    cases = cases_of("language", ("none", "pretrained"))
    eight = cases_of("fusion", SUITES["fusion"])
    staged = pd.concat(eight.assign(stage=stage) for stage in STAGES)
    parts = pd.DataFrame(
        {"trained": [0, 900, 1_500], "frozen": [0, 0, 24_576], "output": ["8", "175", "end"]},
        index=["volume", "encoder", "block"],
    )
    runs = pd.DataFrame(
        {"arm": ["none", "pretrained"], "parameters": [9, 30], "trained_parameters": [9, 10]}
    )
    epochs = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "fraction": 1.0, "epoch": epoch}
            | {"train_loss": 1 / (1 + epoch), "validation_dice": 0.5 + 0.1 * epoch + 0.01 * seed}
            for arm in ("vit", "v1")
            for seed in SEEDS
            for epoch in range(4)
        ]
    )
    truth = np.zeros((10, 20, 16), bool)
    truth[2:6, 4:12, 8:11] = True
    image = np.random.default_rng(0).random(truth.shape)
    view = figures.View(image, np.diag([2.0, 1.0, 0.5, 1.0]), truth, np.roll(truth, 1, 1), "a case")
    steps = pd.DataFrame(
        [
            {"step": kind, "kind": kind, "difference": 0.1, "low": 0.0, "high": 0.5}
            for kind in ("training", "measurement")
        ]
    )
    about = pd.DataFrame({"side": ["train", "validation", "test"] * 2, "subject": [*"aabbcc"]})
    about = about.assign(mean_intensity=np.arange(6.0), volume_ml=np.arange(6.0))
    return {
        "activation_maps": lambda: figures.activation_maps({"vit": {"image": view}}, TASK),
        "arm_differences": lambda: figures.arm_differences(eight),
        "attention_mix": lambda: figures.attention_mix(np.full((2, 4), 0.4)),
        "case_gallery": lambda: figures.case_gallery([view, view], TASK),
        "curves": lambda: figures.curves(dict([*epochs[epochs["seed"] == 0].groupby("arm")]), True),
        "data_overview": lambda: figures.data_overview(about, [image], TASK),
        "dataflow": lambda: figures.dataflow(parts, [("encoder", "block")]),
        "mechanism": lambda: figures.mechanism(eight),
        "metric_by_task": lambda: figures.metric_by_task(cases),
        "metric_differences": lambda: figures.metric_differences(
            contrasts_table(cases, [("language", "pretrained", "none")], METRICS)
        ),
        "paired_differences": lambda: figures.paired_differences(cases, "pretrained", "none"),
        "protocol_effects": lambda: figures.protocol_effects(steps, "dice", "8 subjects", True),
        "parameters": lambda: figures.parameters(parts[["trained", "frozen"]]),
        "part_effects": lambda: figures.part_effects(eight),
        "seed_curves": lambda: figures.seed_curves(epochs, cases),
        "size_against_dice": lambda: figures.size_against_dice(cases, runs),
        "slices": lambda: figures.slices(view, TASK),
        "stage_auroc": lambda: figures.stage_auroc(staged),
        "strip": lambda: figures.strip([view, view], TASK),
        "task_grid": lambda: figures.task_grid([(TASK, [view, view])]),
    }


def draw(folder):
    """Draw every figure."""
    every = drawings()
    wrapped = drawn(lambda: None).__code__
    names = {n for n, f in vars(figures).items() if getattr(f, "__code__", 0) is wrapped}
    assert set(every) == names
    folder.mkdir(parents=True)
    for name, make in every.items():
        figure = make()
        for kind in ("png", "svg"):
            (folder / f"{name}.{kind}").write_bytes(figures.encoded(figure, kind))


if __name__ == "__main__":
    draw(Path(sys.argv[2]) / "results" / "figures")
    words = ("suite", "run", "tiny", "--results", f"{sys.argv[2]}/results", "--root", sys.argv[1])
    sys.exit(stages.mvl(*words))
