"""Synthetic tables of the second protocol, from a seed: no model and no volume is behind them."""

from pathlib import Path

import numpy as np
import pandas as pd

from mvl.config import PROTOCOL_VERSION
from mvl.experiment.metrics import METRICS
from mvl.study.crossed import write_crossed
from mvl.study.reference import _RUN

HIPPOCAMPUS, CHAOS = "Task04_Hippocampus", "CHAOS_AbdomenMR"

#: Arm -> its gain over `none`, and what deletion of its block costs.
ARMS = {
    "none": (0.0, None),
    "identity": (-0.004, 0.011),
    "shuffled": (-0.012, 0.065),
    "random": (-0.009, 0.260),
    "pretrained": (-0.006, 0.045),
}


def write_second(
    folder: Path, subjects: dict[str, int], arms=ARMS, synthetic=True, seed=0, more=()
):
    """Write tables of five folds to a folder; `subjects` is {task: how many}.

    `more` is {suite: arms} besides those of llama.
    """
    generator = np.random.default_rng(seed)
    about = {"repeat": 0, "protocol_version": PROTOCOL_VERSION}
    about |= {"synthetic": synthetic, "device": "cpu", "dtype": "float32", "host": "vit"}
    about |= {"fraction": 1.0, "epochs": 120, "structure": "foreground"}
    cases, use, runs, curves = [], [], [], []
    for task, number in subjects.items():
        of_subject = generator.normal(0.86, 0.03, number)
        suites = {"llama": arms, **dict(more)}
        named_arms = [(suite, *arm) for suite, own in suites.items() for arm in own.items()]
        for suite, arm, (gain, cost) in named_arms:
            block = "" if cost is None else "package:smollm2-135m"
            cell = about | {"suite": suite, "arm": arm, "task": task, "block": block}
            for fold in range(5):
                of_fold = np.arange(fold, number, 5)
                dice = of_subject[of_fold] + gain + generator.normal(0, 0.004)
                dice = np.clip(dice + generator.normal(0, 0.011, len(of_fold)), 0, 1)
                names = [f"{task[:6]}_{n:03d}" for n in of_fold]
                rows = pd.DataFrame({"subject": names, "case": names})
                rows = rows.assign(fold=fold, **cell, **dict.fromkeys(METRICS, dice))
                cases.append(rows.assign(nsd=dice + 0.09, hd95_mm=10 * (1.05 - dice)))
                named = {key: cell[key] for key in ("suite", "arm", "repeat", "task")}
                named |= {"fold": fold}
                runs.append(named | dict.fromkeys(_RUN, 1))
                runs[-1] |= {"device": "cpu", "dtype": "float32", "torch": "2.13.0+cpu"}
                for epoch in range(2):
                    loss = generator.uniform(0.1, 0.2)
                    curves.append(named | {"epoch": epoch, "train_loss": loss})
                if cost is not None:
                    kept = dice.mean() - cost * generator.uniform(0.8, 1.2)
                    edits = {"as trained": dice.mean(), "deleted": kept, "mean": 0.3}
                    use.append(named | {"n_subjects": len(names)} | edits | {"permuted": 0.3})
    tables = {"cases": pd.concat(cases), "use": pd.DataFrame(use), "runs": pd.DataFrame(runs)}
    tables["curves"] = pd.DataFrame(curves)
    write_crossed(tables, folder)
