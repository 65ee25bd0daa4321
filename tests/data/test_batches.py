"""Augmented batches: functions of seed, epoch and case, whose images and labels turn together."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from mvl.config import DataConfig
from mvl.data.batches import BatchStore, ahead, training_batches
from mvl.data.preparation import Preparation
from mvl.data.tasks import TASKS
from tests.data.test_preparation import ball, write

MRI = TASKS["Task04_Hippocampus"]
WHOLE = DataConfig(grid=(24, 24, 24), intensity=0.0, rotation_degrees=30.0)
CROPS = DataConfig(
    grid=(16, 16, 16), fit="crop", spacing_mm=(1, 1, 1), intensity=0.0, rotation_degrees=30.0
)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    labels = [ball((24, 24, 24), (12, 12, 12), 5 + k) for k in range(5)]
    cases = [write(folder, f"case{k}", 100 * b + 50 + k, b) for k, b in enumerate(labels)]
    return Preparation(MRI, WHOLE).load(cases, progress=False)


@pytest.fixture(scope="module")
def specks(tmp_path_factory):
    """Volumes of 40 x 40 x 40 mm, of which a bright speck of 4 mm is the label."""
    folder, cases = tmp_path_factory.mktemp("specks"), []
    for k, centre in enumerate(((5, 5, 5), (20, 30, 12), (33, 6, 34))):
        label = ball((40, 40, 40), centre, 2)
        cases.append(write(folder, f"speck{k}", 100 * label + 10, label))
    return Preparation(MRI, CROPS).load(cases, progress=False)


@pytest.mark.parametrize("config", [WHOLE, CROPS])
def test_batches_are_a_function_of_seed_epoch_and_case(volumes, specks, config):
    given = volumes if config is WHOLE else specks
    before = [volume["image"].as_tensor().clone() for volume in given]

    def epoch(seed, number):
        batches = list(training_batches(given, config, 2, seed, number))
        assert [len(images) for images, _ in batches] == sizes
        return [torch.cat(tensors) for tensors in zip(*batches, strict=True)]

    sizes = [2, 2, 1] if config is WHOLE else [2, 1]
    first = epoch(5, 2)
    assert all(map(torch.equal, first, epoch(5, 2)))
    for other in (epoch(5, 3), epoch(6, 2)):
        assert not torch.equal(first[0], other[0])
    for volume, image in zip(given, before, strict=True):
        assert torch.equal(volume["image"].as_tensor(), image)


@pytest.mark.parametrize("config", [WHOLE, CROPS])
def test_image_and_label_turn_together(volumes, specks, config):
    """The brightest voxels are the label's before and after augmentation, up to its edge."""
    given = volumes if config is WHOLE else specks
    ((images, labels),) = training_batches(given, config, 5, 5, 2)
    bright = torch.stack([image > (image.amin() + image.amax()) / 2 for image in images])
    inside = labels > 0
    assert 2 * (bright & inside).sum() / (bright.sum() + inside.sum()) > 0.9
    assert not torch.equal(inside[0], given[0]["label"] > 0)


@pytest.mark.parametrize(("flips", "mirrored"), [(False, 0), ("left-right", 1), (True, 3)])
def test_flips_mirror_the_axes_that_are_asked_for(volumes, flips, mirrored):
    config, seen = replace(WHOLE, rotation_degrees=0.0, flips=flips), set()
    marked = volumes[0] | {"image": volumes[0]["image"] + torch.arange(24**3).view(1, 24, 24, 24)}
    for epoch in range(8):
        ((images, labels),) = training_batches([marked], config, 1, 0, epoch)
        for axes in np.ndindex(2, 2, 2):
            turned = [axis + 1 for axis in range(3) if axes[axis]]
            if torch.allclose(images[0], marked["image"].as_tensor().flip(turned), atol=1e-2):
                assert torch.equal(labels[0], volumes[0]["label"].flip(turned))
                seen.add(axes)
    assert seen
    assert {axis for axes in seen for axis in range(3) if axes[axis]} == set(range(mirrored))


def test_every_second_crop_has_its_middle_in_the_foreground(specks):
    config, middles, meets = replace(CROPS, rotation_degrees=0.0), [], []
    for epoch in range(25):
        ((images, labels),) = training_batches(specks, config, 3, 0, epoch)
        assert images.shape == labels.shape == (3, 1, 16, 16, 16)
        middles += [bool(label[0, 7:10, 7:10, 7:10].any()) for label in labels]
        meets += [bool(label.any()) for label in labels]
    # A crop at the border is moved inwards, which takes the corner's speck from its middle.
    assert 0.25 < np.mean(middles) < 0.6 and 0.5 < np.mean(meets) < 0.85


def test_batches_made_ahead_are_the_same_batches_and_leave_no_thread(volumes):
    plain = list(training_batches(volumes, WHOLE, 2, 0, 1))
    before, drawn = threading.active_count(), torch.get_rng_state()
    coming = ahead(training_batches(volumes, WHOLE, 2, 0, 1))
    for (image, label), (same, too) in zip(plain, coming, strict=True):
        assert torch.equal(image, same) and torch.equal(label, too)
    assert threading.active_count() == before
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_fault_in_the_thread_is_told_and_closing_ends_it():
    def faulty():
        yield from (1, 2)
        raise RuntimeError("no such voxel")

    before = threading.active_count()
    coming = ahead(faulty())
    assert next(coming) == 1 and threading.active_count() == before + 1
    coming.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="no such voxel"):
        list(ahead(faulty()))


def test_the_thread_counts_subnormals_as_a_training_does():
    smallest = torch.tensor(1e-39)
    assert next(ahead(smallest * 1 for _ in range(1))) == 0
    assert smallest * 1 > 0


@pytest.mark.parametrize("config", [WHOLE, CROPS])
def test_a_stored_epoch_is_the_drawn_one(volumes, specks, config, tmp_path):
    given = (volumes if config is WHOLE else specks), config, 2, 5
    drawn = list(training_batches(*given, epoch=3))
    first = list(BatchStore(tmp_path, *given).epoch(3, training_batches(*given, epoch=3)))
    stored = list(BatchStore(tmp_path, *given).epoch(3, iter(())))
    for other in (first, stored):
        for mine, theirs in zip(drawn, other, strict=True):
            assert all(map(torch.equal, mine, theirs))
            assert [part.dtype for part in mine] == [part.dtype for part in theirs]


def test_an_epoch_is_stored_whole_or_not_at_all(volumes, tmp_path):
    given = volumes, WHOLE, 2, 5
    store = BatchStore(tmp_path, *given)
    begun = store.epoch(0, training_batches(*given, epoch=0))
    next(begun)
    begun.close()
    assert not list(store.folder.glob("*.safetensors"))
    assert len(list(store.epoch(0, training_batches(*given, epoch=0)))) == 3


def test_what_draws_otherwise_is_stored_elsewhere(volumes, tmp_path):
    image = volumes[0]["image"].clone()
    image[0, 0, 0, 0] += 1
    other = [volumes[0] | {"image": image}, *volumes[1:]]
    given = [
        *((volumes, WHOLE, 2, 5), (volumes, WHOLE, 2, 6), (volumes, WHOLE, 3, 5)),
        *((volumes, replace(WHOLE, intensity=0.1), 2, 5), (volumes[1:], WHOLE, 2, 5)),
        (other, WHOLE, 2, 5),
    ]
    assert len({BatchStore(tmp_path, *one).folder for one in given}) == len(given)


def test_cases_change_places_and_intensities_vary_within_their_share(volumes):
    config, orders, maps = replace(WHOLE, rotation_degrees=0.0, intensity=0.1), set(), []
    for epoch in range(6):
        batches = training_batches(volumes, config, 2, 0, epoch)
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        sizes = labels.flatten(1).sum(1).tolist()  # balls of five radii
        orders.add(tuple(sizes))
        for image, size in zip(images, sizes, strict=True):
            (before,) = (v["image"].as_tensor() for v in volumes if v["label"].sum() == size)
            slope, shift = np.polyfit(before.flatten().numpy(), image.flatten().numpy(), 1)
            np.testing.assert_allclose(image, slope * before + shift, atol=1e-3)
            maps.append((slope - 1, shift))
    assert len(orders) > 1 and len({tuple(sorted(order)) for order in orders}) == 1
    assert np.abs(maps).max() < 0.101 and (np.ptp(maps, axis=0) > 0.1).all()


def test_a_rotated_crop_still_fills_the_grid(specks):
    one = specks[0] | {"image": specks[0]["image"] * 0 + 1}
    crops = [next(training_batches([one], CROPS, 1, 0, epoch))[0] for epoch in range(10)]
    assert (torch.cat(crops) > 0.99).float().mean() > 0.98
