"""Evaluation metrics at 128^3 against the package surface-distance, values and time.

python benchmarks/metrics.py          (pip install -e ".[dev]" has the package)
"""

import common
import numpy as np

from mvl.metrics import segmentation_metrics
from mvl.released import ball

EDGE, SPACING_MM, TOLERANCE_MM, TURNS = 128, (0.7, 1.3, 3.0), 2.0, 2


def main():
    try:
        import surface_distance
    except ImportError:
        common.record({"metrics_not_measured": "the package surface-distance is not installed"})
        return
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
    common.record(
        {
            "metrics_cases_per_s": len(pairs) / seconds["ours"],
            "metrics_surface_distance_cases_per_s": len(pairs) / seconds["theirs"],
            "metrics_speed_ratio": seconds["theirs"] / seconds["ours"],
            "metrics_nsd_largest_difference": float(apart[0]),
            "metrics_hd95_largest_difference_mm": float(apart[1]),
        }
    )


def cases():
    """Pairs of masks: balls of several sizes, moved, with a rough border and a stray part."""
    random, shape = np.random.default_rng(0), (EDGE,) * 3
    for radius in (12, 24, 40):
        truth = ball(shape, (64, 64, 64), radius)
        prediction = ball(shape, (66, 63, 65), radius - 1) ^ (random.random(shape) < 1e-4)
        yield prediction | ball(shape, (20, 20, 20), 4), truth


if __name__ == "__main__":
    main()
