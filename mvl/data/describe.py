"""What is in a task, case by case: the numbers behind the overview of a data set."""

import pandas as pd

from mvl.data.nifti import edges_of, read_label, read_volume
from mvl.progress import track


def describe_cases(data, progress=True):
    """Sizes, intensities and volumes of every case of a split.

    Args:
        data: a `TaskData`.
        progress: show progress.

    Returns:
        One row per case, sorted by name: case, subject, side, shape (voxels), spacing_mm,
        mean_intensity (of the nonzero voxels of the first channel) and volume_ml (of all labels
        together).
    """
    sides = {
        case.name: side for side in ("train", "validation", "test") for case in data.side(side)
    }
    rows = []
    for name in track(sorted(sides), "describing cases", show=progress):
        case = data.cases[name]
        image, affine = read_volume(case.image)
        channel = image if image.ndim == 3 else image[..., 0]
        edges = edges_of(affine)
        rows.append(
            {
                "case": name,
                "subject": case.subject,
                "side": sides[name],
                "shape": " x ".join(map(str, channel.shape)),
                "spacing_mm": " x ".join(f"{edge:.3g}" for edge in edges),
                "mean_intensity": float(channel[channel != 0].mean()),
                "volume_ml": float((read_label(case.label) > 0).sum() * edges.prod() / 1000),
            }
        )
    return pd.DataFrame(rows)
