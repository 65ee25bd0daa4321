"""The way of a case to the model's grid and back, on volumes whose content is known."""

import threading
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mvl.config import DataConfig
from mvl.data.nifti import read_label, read_volume
from mvl.data.preparation import Preparation, ahead, training_batches
from mvl.data.task_folder import Case
from mvl.data.tasks import TASKS

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


def test_a_window_is_for_the_channels_that_are_ct(tmp_path):
    task = replace(CT, channels=("CT", "PET"))
    rng = np.random.default_rng(0)
    image = np.stack([rng.uniform(-1000, 1000, (8, 8, 8)), rng.uniform(1, 20, (8, 8, 8))], axis=-1)
    case = write(tmp_path, "two", image, image[..., 1] > 10)
    volume = Preparation(task, DataConfig(grid=(8, 8, 8))).load([case], progress=False)[0]
    low, high = task.window_hu
    ct, pet = image[..., 0], image[..., 1]
    assert np.allclose(volume["image"][0], np.clip((ct - low) / (high - low), 0, 1), atol=1e-5)
    assert np.allclose(volume["image"][1], (pet - pet.mean()) / pet.std(), atol=1e-4)


def test_min_max_is_of_all_channels_together(tmp_path):
    task = replace(MRI, channels=("a", "b"))
    image = np.random.default_rng(0).uniform(10, 20, (8, 8, 8, 2))
    image[0, 0, 0, 0], image[1, 1, 1, 1] = 0, 40
    case = write(tmp_path, "two", image, image[..., 0] > 15)
    config = DataConfig(grid=(8, 8, 8), intensities="min-max")
    volume = Preparation(task, config).load([case], progress=False)[0]
    assert np.allclose(volume["image"], np.moveaxis(image, -1, 0) / 40, atol=1e-6)


@pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
def test_orientation_of_the_file_does_not_change_what_the_model_sees(tmp_path, fit):
    label = ball((20, 24, 16), (8, 14, 6), 5)
    image = np.random.default_rng(0).standard_normal(label.shape) + 3 * label + 10
    ras = write(tmp_path, "ras", image, label)
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])  # the same voxels in the same places, stored as LPS
    flipped[:2, 3] = [19, 23]
    lps = write(tmp_path, "lps", image[::-1, ::-1], label[::-1, ::-1], flipped)
    spacing = (1.5, 1.5, 1.5) if fit == "crop" else None
    config = DataConfig(grid=(16, 16, 16), fit=fit, spacing_mm=spacing)
    preparation = Preparation(MRI, config)
    one, other = preparation.load([ras, lps], progress=False)
    assert torch.allclose(one["image"].as_tensor(), other["image"].as_tensor(), atol=1e-5)
    assert torch.equal(one["label"], other["label"])
    logits = torch.randn(1, *one["image"].shape[1:])
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


@pytest.mark.parametrize(("flips", "mirrored"), [(False, 0), ("left-right", 1), (True, 3)])
def test_flips_mirror_the_axes_that_are_asked_for(volumes, flips, mirrored):
    config = DataConfig(grid=(24, 24, 24), rotation_degrees=0.0, intensity=0.0, flips=flips)
    seen = set()
    for epoch in range(8):
        for images, labels in training_batches(volumes[:1], config, 1, 0, epoch):
            for axes in np.ndindex(2, 2, 2):
                turned = [axis + 1 for axis in range(3) if axes[axis]]
                same = volumes[0]["image"].as_tensor().flip(turned)
                if torch.allclose(images[0], same, atol=1e-4):
                    assert torch.equal(labels[0], volumes[0]["label"].flip(turned))
                    seen.add(axes)
    assert seen
    assert {axis for axes in seen for axis in range(3) if axes[axis]} == set(range(mirrored))


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
    monkeypatch.setattr("builtins.open", refuse)
    for epoch in range(2):
        assert sum(len(i) for i, _ in training_batches(volumes, DataConfig(), 2, 0, epoch)) == 5


CROPS = DataConfig(grid=(16, 16, 16), fit="crop", spacing_mm=(1.5, 2.0, 1.0))


def place_of(shape, affine):
    """Where each voxel's centre lies, mm along one oblique direction: a function of the world."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return (index @ affine[:3, :3].T + affine[:3, 3]) @ [0.5, 0.7, -0.3]


@pytest.mark.parametrize("config", [CROPS, DataConfig(grid=(20, 22, 24), fit="resize")])
@pytest.mark.parametrize("slab", [1 << 20, 2000])
def test_resampling_keeps_everything_in_its_place(tmp_path, monkeypatch, config, slab):
    """Intensity is a linear function of the place in the world: so it stays, and comes back."""
    monkeypatch.setattr("mvl.data.preparation.Resampled._SLAB", slab)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.diag(
        [0.9, -1.1, 2.5]
    )
    affine[:3, 3] = [-40, 60, 10]
    shape = (44, 52, 30)
    image = place_of(shape, affine)
    task = replace(CT, window_hu=(0.0, 1.0))
    case = write(tmp_path, "world", (image - image.min()) / np.ptp(image), image > 20, affine)
    preparation = Preparation(task, config)
    volume = preparation.load([case], progress=False)[0]
    prepared = volume["image"]
    if config.fit == "crop":
        assert prepared.pixdim.numpy() == pytest.approx(config.spacing_mm, rel=0.03)
    else:
        assert prepared.shape[1:] == config.grid
    found = prepared.as_tensor()[0].numpy() * np.ptp(image) + image.min()
    expected = place_of(found.shape, prepared.affine.numpy())
    inner = (slice(4, -4),) * 3  # smoothing takes zeros from outside
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05)

    back = preparation.to_native(prepared.as_tensor(), prepared)[0].numpy()
    inner = (slice(8, -8),) * 3
    np.testing.assert_allclose(back[inner] * np.ptp(image) + image.min(), image[inner], atol=0.05)


@pytest.fixture
def specks(tmp_path):
    """Volumes of 40 x 40 x 40 mm, of which a bright speck of 4 mm is the label."""
    cases = []
    for k, centre in enumerate(((5, 5, 5), (20, 30, 12), (33, 6, 34))):
        label = ball((40, 40, 40), centre, 2)
        cases.append(write(tmp_path, f"speck{k}", 100.0 * label + 10, label))
    return cases


def test_every_second_crop_has_its_middle_in_the_foreground(specks):
    config = replace(CROPS, spacing_mm=(1.0, 1.0, 1.0), rotation_degrees=0.0)
    volumes = Preparation(MRI, config).load(specks, progress=False)
    middles, meets = [], []
    for epoch in range(40):
        for images, labels in training_batches(volumes, config, 3, 0, epoch):
            assert images.shape == labels.shape == (3, 1, 16, 16, 16)
            middles += [bool(label[0, 7:10, 7:10, 7:10].any()) for label in labels]
            meets += [bool(label.any()) for label in labels]
    # A crop at the border is moved inwards, which takes the corner's speck from its middle.
    assert 0.25 < np.mean(middles) < 0.6 and 0.5 < np.mean(meets) < 0.85


def test_crops_are_a_function_of_seed_epoch_and_case_and_turn_with_their_label(specks):
    config = replace(CROPS, spacing_mm=(1.0, 1.0, 1.0), rotation_degrees=30.0, intensity=0.0)
    volumes = Preparation(MRI, config).load(specks, progress=False)

    def epoch(number, given):
        return list(training_batches(given, config, 3, 5, number))

    (images, labels), (other, _) = epoch(2, volumes)[0], epoch(3, volumes)[0]
    again, _ = epoch(2, volumes)[0]
    assert torch.equal(images, again) and not torch.equal(images, other)
    bright = images > (images.amin() + images.amax()) / 2
    assert bright.any() and (bright == (labels > 0)).float().mean() > 0.995


def test_what_is_smaller_than_a_crop_is_padded(tmp_path):
    label = ball((10, 12, 8), (5, 6, 4), 3)
    case = write(tmp_path, "small", 10 + 5 * label, label)
    config = replace(CROPS, spacing_mm=(1.0, 1.0, 1.0))
    preparation = Preparation(MRI, config)
    volume = preparation.load([case], progress=False)[0]
    assert min(volume["image"].shape[1:]) >= 16
    images, _ = next(iter(training_batches([volume], config, 1, 0, 0)))
    assert images.shape == (1, 1, 16, 16, 16)
    back = preparation.to_native(volume["label"].float(), volume["image"])
    assert np.array_equal(back[0].numpy(), label)


def test_the_first_channel_alone_is_the_papers_reading(tmp_path):
    label = ball((16, 16, 16), (8, 8, 8), 4)
    rng = np.random.default_rng(0)
    image = np.stack([10 + label + rng.random(label.shape) for _ in range(2)], axis=-1)
    case = write(tmp_path, "two", image, label)
    config = DataConfig(grid=(16, 16, 16))
    both = Preparation(TASKS["Task05_Prostate"], config).load([case], progress=False)[0]
    config = replace(config, channels="first")
    first = Preparation(TASKS["Task05_Prostate"], config).load([case], progress=False)[0]
    assert both["image"].shape[0] == 2 and first["image"].shape[0] == 1
    assert torch.equal(first["image"].as_tensor()[0], both["image"].as_tensor()[0])


def test_the_first_channels_min_max_is_of_all_channels(tmp_path):
    """The paper's code scales all channels together and then takes the first."""
    task = replace(MRI, channels=("a", "b"))
    image = np.random.default_rng(0).uniform(10, 20, (9, 8, 8, 2))
    image[0, 0, 0, 0], image[1, 1, 1, 1] = 0, 40
    case = write(tmp_path, "two", image, image[..., 0] > 15)
    config = DataConfig(grid=(9, 8, 8), intensities="min-max", channels="first")
    preparation = Preparation(task, config)
    volume = preparation.load([case], progress=False)[0]
    assert volume["image"].shape == (1, 9, 8, 8)
    assert np.allclose(volume["image"][0], image[..., 0] / 40, atol=1e-6)
    back = preparation.to_native(volume["image"].as_tensor(), volume["image"])
    assert torch.equal(back, volume["image"].as_tensor())


@pytest.mark.parametrize("reader", [read_volume, read_label])
def test_no_reader_holds_two_copies_of_a_float64_volume(tmp_path, reader):
    array = np.zeros((160, 160, 120))
    array[20:30] = 3
    path = tmp_path / "double.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    assert nibabel.load(path).get_data_dtype() == np.float64
    tracemalloc.start()
    reader(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.8 * array.nbytes


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
