"""The paper's own numbers: complete, sourced, and never given a unit that the paper does not."""

from pathlib import Path

import pandas as pd

import mvl
from mvl.data.tasks import TASKS

PAPER = pd.read_csv(Path(mvl.__file__).parent / "paper.csv")


def test_every_number_says_where_it_is_from():
    assert set(PAPER["source"]) == {"arXiv:2410.02458v1", "arXiv:2410.02458v3"}
    needed = ["version", "model", "task", "metric", "value", "what", "place"]
    assert not PAPER[needed].isna().any(axis=None)
    assert not PAPER.duplicated(["version", "model", "task", "metric"]).any()


def test_the_units_of_hd95_stay_unstated():
    assert set(PAPER.loc[PAPER["metric"] == "hd95", "unit"]) == {"unstated"}


def test_each_task_has_its_example():
    examples = PAPER[PAPER["what"] == "one example case"]
    assert set(examples["task"]) == set(TASKS)
    pairs = examples.pivot(index="task", columns="model", values="value")
    assert (pairs["MedVisionLlama"] > pairs["ViT"]).all()
