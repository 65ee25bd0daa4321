"""What is in a task, case by case: the numbers behind the overview of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from mvl.data.task_data import TaskData


def describe_cases(data: TaskData) -> pd.DataFrame:
    """Sizes, intensities and volumes of every case of a split, one row per case, sorted by name.

    Columns: case, subject, side, shape (voxels), spacing_mm, mean_intensity (of the nonzero voxels
    of the first channel) and volume_ml (of all labels together).
    """
    sides = {
        case.name: side for side in ("train", "validation", "test") for case in data.side(side)
    }
    rows = []
    for name in sorted(sides):
        record = data.records[name]
        voxels = sum(count for value, count in record.label_counts.items() if value > 0)
        rows.append(
            {
                "case": name,
                "subject": data.cases[name].subject,
                "side": sides[name],
                "shape": " x ".join(map(str, record.shape)),
                "spacing_mm": " x ".join(f"{edge:.3g}" for edge in record.spacing_mm),
                "mean_intensity": record.mean_intensity,
                "volume_ml": float(voxels * record.spacing_mm.prod() / 1000),
            }
        )
    return pd.DataFrame(rows)
