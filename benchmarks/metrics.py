"""Evaluation metrics at 128^3 against the package surface-distance, values and time.

python benchmarks/metrics.py          (pip install -e ".[dev]" has the package)
"""

import json
import sys
from importlib.util import find_spec

import common
import numpy as np

from mvl.audit.masks import ball
from mvl.experiment.metrics import segmentation_metrics

EDGE, SPACING_MM, TOLERANCE_MM, TURNS = 128, (0.7, 1.3, 3.0), 2.0, 2
RADII = (12, 24, 40)


def main():
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
    elif find_spec("surface_distance"):
        found = common.fresh(__file__, "--measure")
        common.record({f"metrics_{key}": value for key, value in found.items()})
    else:
        common.record({"metrics_not_measured": "the package surface-distance is not installed"})


def measure():
    """dict of cases a second, theirs, the ratio, and the largest differences of values."""
    import surface_distance

    pairs = list(cases())
    found = {"ours": [], "theirs": []}

    def ours():
        found["ours"] = []
        for prediction, truth in pairs:
            values = segmentation_metrics(prediction, truth, SPACING_MM, TOLERANCE_MM)
            found["ours"].append((values["nsd"], values["hd95_mm"]))

    def theirs():
        found["theirs"] = []
        for prediction, truth in pairs:
            distances = surface_distance.compute_surface_distances(truth, prediction, SPACING_MM)
            nsd = surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
            hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
            found["theirs"].append((nsd, hd95))

    seconds = common.in_turns({"ours": ours, "theirs": theirs}, TURNS)
    apart = np.abs(np.subtract(found["ours"], found["theirs"])).max(0)
    return {
        "cases_per_s": len(pairs) / seconds["ours"],
        "surface_distance_cases_per_s": len(pairs) / seconds["theirs"],
        "speed_ratio": seconds["theirs"] / seconds["ours"],
        "nsd_largest_difference": float(apart[0]),
        "hd95_largest_difference_mm": float(apart[1]),
    }


def cases():
    """Pairs of masks: balls of several sizes, moved, with a rough border and a stray part."""
    random, shape, middle = np.random.default_rng(0), (EDGE,) * 3, EDGE // 2
    for radius in RADII:
        truth = ball(shape, (middle,) * 3, radius)
        moved = ball(shape, (middle + 2, middle - 1, middle + 1), radius - 1)
        stray = ball(shape, (EDGE * 5 // 32,) * 3, 4)  # far from the middle
        yield moved ^ (random.random(shape) < 1e-4) | stray, truth


if __name__ == "__main__":
    main()
