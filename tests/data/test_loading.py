"""The way of a case to the model's grid and back, on volumes whose content is known."""

import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mvl.config import DataConfig
from mvl.data.loading import Preparation, ahead, training_batches
from mvl.data.sources import Case
from mvl.tasks import TASKS

MRI, CT = TASKS["Task04_Hippocampus"], TASKS["Task09_Spleen"]


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return (
        sum(((a - c) * s) ** 2 for a, c, s in zip(axes, centre, spacing, strict=True)) <= radius**2
    )


def write(folder, name, image, label, affine=None):
    affine = np.eye(4) if affine is None else affine
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image.astype(np.float32), label.astype(np.uint8)), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return Case(name, name, *paths)


@pytest.fixture
def case(tmp_path):
    label = ball((30, 41, 22), (12, 20, 11), 6)
    image = 100 + 10 * np.random.default_rng(0).standard_normal(label.shape) + 40 * label
    return write(tmp_path, "one", image, label)


def test_padding_keeps_every_voxel_and_comes_back_exactly(case):
    preparation = Preparation(MRI, DataConfig(grid=(32, 48, 24)))
    volume = preparation.load([case], progress=False)[0]
    assert volume["image"].shape == volume["label"].shape == (1, 32, 48, 24)
    back = preparation.to_native(volume["label"].float(), volume["image"])
    truth = nibabel.load(case.label).get_fdata()
    assert np.array_equal(back[0].numpy(), truth)


def test_cropped_voxels_come_back_as_background(case):
    preparation = Preparation(MRI, DataConfig(grid=(16, 48, 24)))
    volume = preparation.load([case], progress=False)[0]
    back = preparation.to_native(torch.ones(1, 16, 48, 24), volume["image"])
    assert back.shape == (1, 30, 41, 22)
    assert (back[:, :7] == 0).all() and (back[:, 7:23] == 1).all() and (back[:, 23:] == 0).all()


def test_resizing_comes_back_by_linear_interpolation(tmp_path):
    """A ramp survives down- and upsampling inside the volume; nearest would make steps."""
    shape = (24, 40, 20)
    ramp = np.broadcast_to(np.arange(40.0)[None, :, None], shape)
    case = write(tmp_path, "ramp", ramp, ball(shape, (12, 20, 10), 5))
    preparation = Preparation(MRI, DataConfig(grid=(24, 20, 20), fit="resize"))
    volume = preparation.load([case], progress=False)[0]
    coarse = torch.arange(20.0).view(1, 1, 20, 1).expand(1, 24, 20, 20)
    fine = preparation.to_native(coarse, volume["image"])[0, 12, :, 10]
    expected = (torch.arange(40.0) + 0.5) / 2 - 0.5  # voxel centres of the finer grid
    assert torch.allclose(fine[1:-1], expected[1:-1], atol=1e-4)


def test_mri_is_a_z_score_over_nonzero_voxels(tmp_path):
    image = np.zeros((16, 16, 16))
    image[4:12, 4:12, 4:12] = np.random.default_rng(0).uniform(50, 150, (8, 8, 8))
    case = write(tmp_path, "mri", image, image > 100)
    volume = Preparation(MRI, DataConfig(grid=(16, 16, 16))).load([case], progress=False)[0]
    inside = volume["image"].as_tensor()[0, 4:12, 4:12, 4:12]
    assert abs(inside.mean()) < 1e-5 and abs(inside.std(correction=0) - 1) < 1e-5
    outside = volume["image"].as_tensor().clone()
    outside[:, 4:12, 4:12, 4:12] = 0
    assert not outside.any()


def test_ct_is_scaled_from_the_window(tmp_path):
    low, high = CT.window_hu
    image = np.full((8, 8, 8), low - 500)
    image[0, 0, 0], image[0, 0, 1], image[0, 0, 2] = high + 500, (low + high) / 2, high
    case = write(tmp_path, "ct", image, image > low)
    volume = Preparation(CT, DataConfig(grid=(8, 8, 8))).load([case], progress=False)[0]
    values = volume["image"].as_tensor()[0, 0, 0]
    assert values[:4].tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_orientation_of_the_file_does_not_change_what_the_model_sees(tmp_path, fit):
    label = ball((20, 24, 16), (8, 14, 6), 5)
    image = np.random.default_rng(0).standard_normal(label.shape) + 3 * label + 10
    ras = write(tmp_path, "ras", image, label)
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])  # the same voxels in the same places, stored as LPS
    flipped[:2, 3] = [19, 23]
    lps = write(tmp_path, "lps", image[::-1, ::-1], label[::-1, ::-1], flipped)
    preparation = Preparation(MRI, DataConfig(grid=(16, 16, 16), fit=fit))
    one, other = preparation.load([ras, lps], progress=False)
    assert torch.allclose(one["image"].as_tensor(), other["image"].as_tensor(), atol=1e-5)
    assert torch.equal(one["label"], other["label"])
    logits = torch.randn(1, 16, 16, 16)
    back = [preparation.to_native(logits, volume["image"]) for volume in (one, other)]
    assert torch.allclose(back[0], back[1].flip(1, 2), atol=1e-5)


def test_labels_become_foreground_or_classes(tmp_path):
    label = np.zeros((8, 8, 8))
    label[:2], label[2:4] = 1, 2
    case = write(tmp_path, "two", label + 1, label)
    seen = {}
    for target in ("foreground", "labels"):
        config = DataConfig(grid=(8, 8, 8), target=target)
        seen[target] = Preparation(MRI, config).load([case], progress=False)[0]["label"][0, :, 0, 0]
    assert seen["foreground"].tolist() == [1] * 4 + [0] * 4
    assert seen["labels"].tolist() == [1, 1, 2, 2, 0, 0, 0, 0]


@pytest.fixture
def volumes(tmp_path):
    made = []
    for k in range(5):
        label = ball((24, 24, 24), (12, 12, 12), 5 + k)
        made.append(write(tmp_path, f"case{k}", 100.0 * label + 50 + k, label))
    return Preparation(MRI, DataConfig(grid=(24, 24, 24))).load(made, progress=False)


def test_batches_are_a_function_of_seed_epoch_and_case(volumes):
    config = DataConfig(grid=(24, 24, 24))

    def epoch(seed, number, given=volumes):
        return list(training_batches(given, config, 2, seed, number))

    for (a, b), (c, d) in zip(epoch(0, 3), epoch(0, 3), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(epoch(0, 3)[0][0], epoch(0, 4)[0][0])
    assert not torch.equal(epoch(0, 3)[0][0], epoch(1, 3)[0][0])
    assert [len(images) for images, _ in epoch(0, 0)] == [2, 2, 1]


def test_image_and_label_turn_together(volumes):
    """The brightest voxels are the label's before and after augmentation, up to its edge."""
    config = DataConfig(grid=(24, 24, 24), rotation_degrees=30.0, intensity=0.0)
    moved = 0
    for images, labels in training_batches(volumes, config, 5, 0, 0):
        for image, label in zip(images, labels, strict=True):
            bright, inside = image > image.max() / 2, label > 0
            overlap = 2 * (bright & inside).sum() / (bright.sum() + inside.sum())
            assert overlap > 0.9
            moved += not torch.equal(inside, volumes[0]["label"] > 0)
    assert moved


def test_validation_volumes_are_never_touched(volumes):
    before = [v["image"].as_tensor().clone() for v in volumes]
    config = replace(DataConfig(grid=(24, 24, 24)), rotation_degrees=20.0, flips=True)
    list(training_batches(volumes, config, 2, 0, 0))
    for volume, image in zip(volumes, before, strict=True):
        assert torch.equal(volume["image"].as_tensor(), image)


def test_no_file_is_read_twice(volumes, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was read again")

    monkeypatch.setattr(nibabel, "load", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    for epoch in range(2):
        assert sum(len(i) for i, _ in training_batches(volumes, DataConfig(), 2, 0, epoch)) == 5


def test_batches_made_ahead_are_the_same_batches_and_leave_no_thread():
    config = DataConfig(grid=(8, 8, 8))
    volumes = [
        {
            "name": f"case_{i}",
            "image": MetaTensor(torch.randn(1, 8, 8, 8)),
            "label": torch.ones(1, 8, 8, 8),
        }
        for i in range(5)
    ]
    plain = list(training_batches(volumes, config, 2, 0, 1))
    before, drawn = threading.active_count(), torch.get_rng_state()
    for (image, label), (same, too) in zip(
        plain, ahead(training_batches(volumes, config, 2, 0, 1)), strict=True
    ):
        assert torch.equal(image, same) and torch.equal(label, too)
    assert threading.active_count() == before
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_fault_in_the_thread_is_told_and_closing_ends_it():
    def faulty():
        yield 1
        yield 2
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
