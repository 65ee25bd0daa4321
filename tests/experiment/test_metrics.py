"""Metrics against DeepMind's surface-distance, scipy, and cases computed by hand."""

import math

import numpy as np
import pytest
import surface_distance
import torch
from scipy import ndimage
from scipy.spatial.distance import dice as dice_distance
from scipy.spatial.distance import jaccard as jaccard_distance

from mvl.experiment import metrics
from mvl.experiment.metrics import METRICS, dice_per_case, segmentation_metrics

SPACING = (0.7, 1.3, 3.0)


def blob(rng, shape, centre, radius):
    """A ball whose surface is roughened by smooth noise."""
    grid = np.indices(shape).astype(float)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    return distance + 2 * noise / noise.std() < radius


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def pairs():
    """Name -> (truth, prediction), none of them empty."""
    rng = np.random.default_rng(0)
    shape = (30, 34, 22)
    found = {
        f"blobs {n}": (
            blob(rng, shape, rng.uniform(10, 14, 3), 8),
            blob(rng, shape, rng.uniform(10, 14, 3), 7),
        )
        for n in range(4)
    }
    for name, centre in (("low corner", (1, 2, 0)), ("high corner", (29, 33, 21))):
        found[name] = (blob(rng, shape, centre, 9), blob(rng, shape, centre, 7))
    found["whole volume"] = (np.ones(shape, dtype=bool), blob(rng, shape, (15, 17, 11), 8))
    found["single voxels"] = (box(shape, (3, 4, 5), (1, 1, 1)), box(shape, (9, 4, 7), (1, 1, 1)))
    found["voxels in corners"] = (
        box(shape, (0, 0, 0), (1, 1, 1)),
        box(shape, (29, 33, 21), (1, 1, 1)),
    )
    found["slab of one voxel"] = (
        box(shape, (0, 0, 7), (30, 34, 1)),
        box(shape, (0, 0, 9), (30, 34, 1)),
    )
    found["noise"] = (rng.random(shape) < 0.05, rng.random(shape) < 0.05)
    return found


PAIRS = pairs()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.5])
def test_surface_metrics_equal_deepminds(name, tolerance):
    truth, prediction = PAIRS[name]
    measured = segmentation_metrics(prediction, truth, SPACING, tolerance)
    theirs = surface_distance.compute_surface_distances(truth, prediction, SPACING)
    hd95 = surface_distance.compute_robust_hausdorff(theirs, 95)
    nsd = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
    assert measured["hd95_mm"] == pytest.approx(hd95, abs=1e-3)
    assert measured["nsd"] == pytest.approx(nsd, abs=1e-6)


@pytest.mark.parametrize("name", ["blobs 0", "whole volume", "voxels in corners", "noise"])
def test_slabs_and_the_way_for_many_elements_change_nothing(name, monkeypatch):
    truth, prediction = PAIRS[name]
    expected = segmentation_metrics(prediction, truth, SPACING, 1.0)
    monkeypatch.setattr(metrics, "_SLAB", 3000)
    assert segmentation_metrics(prediction, truth, SPACING, 1.0) == expected
    monkeypatch.setattr(metrics, "_MANY", 0)
    assert segmentation_metrics(prediction, truth, SPACING, 1.0) == pytest.approx(expected)


def test_specks_that_crowd_a_box_are_measured_by_a_transform_to_the_same_values(monkeypatch):
    random = np.random.default_rng(0)
    specks = [random.random((44, 44, 44)) < share for share in (0.05, 0.2)]
    transforms = []
    transform = metrics.ndimage.distance_transform_edt

    def counted(*given, **options):
        transforms.append(given)
        return transform(*given, **options)

    monkeypatch.setattr(metrics.ndimage, "distance_transform_edt", counted)
    measured = segmentation_metrics(*specks, SPACING, 1.0)
    assert len(transforms) == 2  # one a direction
    monkeypatch.setattr(metrics, "_SOME", metrics._MANY)
    assert segmentation_metrics(*specks, SPACING, 1.0) == pytest.approx(measured)
    assert len(transforms) == 2


@pytest.mark.parametrize("name", PAIRS)
def test_overlap_metrics_equal_scipys_and_the_confusion_matrix(name):
    truth, prediction = PAIRS[name]
    measured = segmentation_metrics(prediction, truth, SPACING, 1.0)
    t, p = truth.ravel(), prediction.ravel()
    table, _, _ = np.histogram2d(t, p, bins=2, range=[[-0.5, 1.5], [-0.5, 1.5]])
    assert measured["dice"] == pytest.approx(1 - dice_distance(t, p))
    assert measured["jaccard"] == pytest.approx(1 - jaccard_distance(t, p))
    assert measured["accuracy"] == pytest.approx((t == p).mean())
    assert measured["precision"] == pytest.approx(table[1, 1] / table[:, 1].sum())
    assert measured["sensitivity"] == pytest.approx(table[1, 1] / table[1].sum())
    expected = table[0, 0] / table[0].sum() if table[0].sum() else 1.0
    assert measured["specificity"] == pytest.approx(expected)


def test_single_voxels_are_as_far_apart_as_their_spacing_says():
    # A voxel's surface elements sit at its eight corners. The two of them (25 % of the area) that
    # face away on both axes are as far from the other voxel's nearest corner as the voxels are
    # from each other: 3 steps of 0.7 mm and 4 of 3 mm.
    shape = (9, 3, 9)
    truth, prediction = box(shape, (2, 1, 2), (1, 1, 1)), box(shape, (5, 1, 6), (1, 1, 1))
    measured = segmentation_metrics(prediction, truth, SPACING, 1.0)
    assert measured["hd95_mm"] == pytest.approx(math.hypot(3 * 0.7, 4 * 3.0), abs=1e-5)
    assert measured["nsd"] == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hd95_of_a_shifted_box_is_the_shift_in_millimetres(axis):
    # The two faces across the shift hold more than 5 % of the surface and lie `shift` apart.
    shift = [0, 0, 0]
    shift[axis] = 2
    truth = box((20, 20, 20), (4, 4, 4), (8, 8, 8))
    prediction = box((20, 20, 20), [4 + s for s in shift], (8, 8, 8))
    measured = segmentation_metrics(prediction, truth, SPACING, 2 * SPACING[axis])
    assert measured["hd95_mm"] == pytest.approx(2 * SPACING[axis], abs=1e-5)
    # A distance that equals the tolerance is within it, whatever rounding says.
    assert measured["nsd"] == 1.0
    measured = segmentation_metrics(prediction, truth, SPACING, 2 * SPACING[axis] - 0.01)
    assert measured["nsd"] < 1.0


def test_hd95_weights_by_area_and_not_by_count():
    # A needle along an axis of 0.01 mm has many surface elements and next to no surface.
    truth = box((60, 12, 12), (2, 2, 2), (3, 8, 8))
    speck = box((60, 12, 12), (20, 5, 5), (30, 1, 1))
    measured = segmentation_metrics(truth | speck, truth, (0.01, 3.0, 3.0), 1.0)
    edge_voxels = (truth | speck) ^ ndimage.binary_erosion(truth | speck)
    assert (edge_voxels & speck).sum() > 0.05 * edge_voxels.sum()
    assert measured["hd95_mm"] < 0.05


def test_identical_masks_are_perfect():
    truth, _ = PAIRS["blobs 0"]
    measured = segmentation_metrics(truth, truth, SPACING, 0.0)
    assert measured == {name: 0.0 if name == "hd95_mm" else 1.0 for name in METRICS}


@pytest.mark.parametrize("sides", [(False, True), (True, False), (True, True)])
def test_every_entry_of_the_table_of_empty_sides(sides):
    truth_empty, prediction_empty = sides
    shape, spacing = (10, 20, 5), (1.0, 0.5, 4.0)
    full = box(shape, (2, 2, 1), (3, 3, 3))  # 27 of 1000 voxels
    empty = np.zeros(shape, dtype=bool)
    measured = segmentation_metrics(
        empty if prediction_empty else full, empty if truth_empty else full, spacing, 1.0
    )
    both = truth_empty and prediction_empty
    for name in ("dice", "jaccard", "precision", "sensitivity", "nsd"):
        assert measured[name] == (1.0 if both else 0.0), name
    diagonal = math.sqrt(10**2 + 10**2 + 20**2)
    assert measured["hd95_mm"] == pytest.approx(0.0 if both else diagonal)
    assert measured["accuracy"] == pytest.approx(1.0 if both else 0.973)
    assert measured["specificity"] == pytest.approx(0.973 if truth_empty and not both else 1.0)


@pytest.mark.parametrize("truth_full", [False, True])
@pytest.mark.parametrize("prediction_full", [False, True])
def test_a_full_volume_gives_no_nan(truth_full, prediction_full):
    shape = (5, 6, 7)
    part, full = box(shape, (1, 1, 1), (2, 2, 2)), np.ones(shape, dtype=bool)
    measured = segmentation_metrics(
        full if prediction_full else part, full if truth_full else part, SPACING, 1.0
    )
    assert list(measured) == list(METRICS)
    for name, value in measured.items():
        assert 0 <= value <= METRICS[name].high
    assert measured["specificity"] == (0.0 if prediction_full and not truth_full else 1.0)


def test_arrays_tensors_integers_and_flipped_views_are_all_masks():
    truth, prediction = PAIRS["blobs 3"]
    expected = segmentation_metrics(prediction, truth, SPACING, 1.0)
    tensors = torch.from_numpy(prediction), torch.from_numpy(truth.astype(np.uint8))
    assert segmentation_metrics(*tensors, SPACING, 1.0) == expected
    flipped = [np.ascontiguousarray(mask[::-1])[::-1] for mask in (prediction, truth)]
    views = flipped[0], 3 * flipped[1].astype(np.int16)  # with negative strides
    assert segmentation_metrics(*views, SPACING, 1.0) == expected


@pytest.mark.parametrize(
    ("shapes", "spacing", "tolerance", "word"),
    [
        (((2, 3, 4), (2, 3, 5)), SPACING, 1.0, "truth is"),
        (((2, 3), (2, 3)), SPACING, 1.0, "shape"),
        (((0, 3, 4), (0, 3, 4)), SPACING, 1.0, "shape"),
        *((((2, 3, 4),) * 2, s, 1.0, "spacing") for s in [(1, 0, 1), (1, -1, 1), (1, 1)]),
        (((2, 3, 4),) * 2, (1, math.nan, 1), 1.0, "spacing"),
        *((((2, 3, 4),) * 2, SPACING, t, "tolerance") for t in (-1.0, math.nan)),
    ],
)
def test_what_cannot_be_measured_is_refused(shapes, spacing, tolerance, word):
    with pytest.raises(ValueError, match=word):
        segmentation_metrics(*(np.ones(shape, bool) for shape in shapes), spacing, tolerance)
    with pytest.raises(ValueError, match="boolean or integer"):
        segmentation_metrics(np.ones((2, 3, 4)), np.ones((2, 3, 4), bool), SPACING, 1.0)


def test_dice_per_case_agrees_with_the_evaluation():
    rng = np.random.default_rng(1)
    truth = rng.random((3, 2, 6, 5, 4)) < 0.4
    prediction = rng.random((3, 2, 6, 5, 4)) < 0.4
    truth[0, 0] = prediction[0, 0] = False
    truth[1, 0] = False
    prediction[2, 1] = False
    measured = dice_per_case(torch.from_numpy(prediction), torch.from_numpy(truth))
    assert measured.shape == (3, 2)
    assert measured.dtype == torch.float32
    for case, structure in np.ndindex(3, 2):
        mask = prediction[case, structure], truth[case, structure]
        expected = segmentation_metrics(*mask, SPACING, 1.0)["dice"]
        assert measured[case, structure].item() == pytest.approx(expected)
    assert measured[0, 0] == 1
    assert measured[1, 0] == measured[2, 1] == 0
