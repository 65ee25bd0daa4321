"""The audit's splits: who stands on both sides, counted over draws; nothing is trained."""

import numpy as np
import pandas as pd

from mvl.audit.switches import COLUMNS
from mvl.config import PROTOCOL_VERSION
from mvl.experiment.released import on_both_sides, released_split

#: How often the released code's split is drawn, to see what its missing seed is worth.
DRAWS = 20


def split_rows(cases, task):
    """Who stands on both sides of the released code's split, over `DRAWS` draws.

    Args:
        cases: list of the task's `Case`.
        task: their `Task`.

    Returns:
        Rows of audit.csv: shares of subjects; the study's is 0, which is checked before every
        training. The interval is the range of the draws.
    """
    draws = [released_split(cases, seed) for seed in range(DRAWS)]
    rows = []
    for switch, side, others, metric in (
        ("siblings", "test", ("train", "validation"), "test subjects in training or validation"),
        ("shared-subjects", "validation", ("train",), "validation subjects in training"),
    ):
        counts = [on_both_sides(draw, side, others) for draw in draws]
        shares = [count["subjects_shared"] / count["subjects"] for count in counts]
        rows.append(
            {
                "switch": switch,
                "kind": "split",
                "arm": "",
                "against": "",
                "metric": f"share of {metric}",
                "before": 0.0,
                "after": np.mean(shares),
                "difference": np.mean(shares),
                "low": min(shares),
                "high": max(shares),
                "interval": f"range of {DRAWS} draws",
                "n_subjects": len({case.subject for case in cases}),
                "n_cases": len(cases),
                "n_seeds": 0,
                "task": task.name,
                "protocol_version": PROTOCOL_VERSION,
                "synthetic": task.synthetic,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
