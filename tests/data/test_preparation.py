"""The way of a case to the model's grid and back, on volumes whose content is known."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from mvl.config import DataConfig
from mvl.data.batches import training_batches
from mvl.data.preparation import Preparation
from mvl.data.task_folder import Case
from mvl.data.tasks import TASKS

MRI, CT = TASKS["Task04_Hippocampus"], TASKS["Task09_Spleen"]
CROPS = DataConfig(grid=(16, 16, 16), fit="crop", spacing_mm=(1.5, 2.0, 1.0))


def ball(shape, centre, radius):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def write(folder, name, image, label, affine=None):
    affine = np.eye(4) if affine is None else affine
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image.astype(np.float32), label.astype(np.uint8)), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return Case(name, name, *paths)


def prepared(case, config, task=MRI):
    """(preparation, volume) of a case."""
    preparation = Preparation(task, config)
    return preparation, preparation.load([case], progress=False)[0]


@pytest.fixture
def case(tmp_path):
    label = ball((30, 41, 22), (12, 20, 11), 6)
    image = 100 + 10 * np.random.default_rng(0).standard_normal(label.shape) + 40 * label
    return write(tmp_path, "one", image, label)


def test_padding_keeps_every_voxel_and_comes_back_exactly(case):
    preparation, volume = prepared(case, DataConfig(grid=(32, 48, 24)))
    assert volume["image"].shape == volume["label"].shape == (1, 32, 48, 24)
    back = preparation.to_native(volume["label"].float(), volume["image"])
    assert np.array_equal(back[0].numpy(), nibabel.load(case.label).get_fdata())


def test_cropped_voxels_come_back_as_background(case):
    preparation, volume = prepared(case, DataConfig(grid=(16, 48, 24)))
    back = preparation.to_native(torch.ones(1, 16, 48, 24), volume["image"])
    assert back.shape == (1, 30, 41, 22)
    assert (back[:, :7] == 0).all() and (back[:, 7:23] == 1).all() and (back[:, 23:] == 0).all()


def test_resizing_comes_back_by_linear_interpolation(tmp_path):
    """A ramp survives down- and upsampling inside the volume; nearest would make steps."""
    shape = (24, 40, 20)
    ramp = np.broadcast_to(np.arange(40.0)[None, :, None], shape)
    case = write(tmp_path, "ramp", ramp, ball(shape, (12, 20, 10), 5))
    preparation, volume = prepared(case, DataConfig(grid=(24, 20, 20), fit="resize"))
    coarse = torch.arange(20.0).view(1, 1, 20, 1).expand(1, 24, 20, 20)
    fine = preparation.to_native(coarse, volume["image"])[0, 12, :, 10]
    expected = (torch.arange(40.0) + 0.5) / 2 - 0.5  # voxel centres of the finer grid
    assert torch.allclose(fine[1:-1], expected[1:-1], atol=1e-4)


def z_scores(channel):
    """Over the voxels that are not 0, which stay 0."""
    inside = channel[channel != 0]
    return np.where(channel != 0, (channel - inside.mean()) / inside.std(), 0)


def windowed(channel):
    low, high = CT.window_hu
    return np.clip((channel - low) / (high - low), 0, 1)


MIN_MAX = {"intensities": "min-max"}


@pytest.mark.parametrize(
    ("task", "channels", "options", "expected"),
    [
        (MRI, ("MRI",), {}, [z_scores]),
        (CT, ("CT",), {}, [windowed]),
        (CT, ("CT", "PET"), {}, [windowed, z_scores]),
        (CT, ("A", "B"), {}, [windowed, windowed]),  # a window, and no name that says CT
        (MRI, ("a", "b"), {"channels": "first"}, [z_scores]),  # the paper's reading
        (CT, ("PET", "CT"), {"channels": "first"}, [z_scores]),
        # The smallest value of all channels together is -900, the largest 900.
        (CT, ("CT", "b"), MIN_MAX, [lambda channel: (channel + 900) / 1800] * 2),
        (MRI, ("a", "b"), MIN_MAX | {"channels": "first"}, [lambda c: (c + 900) / 1800]),
    ],
)
def test_each_channel_is_on_its_scale(tmp_path, task, channels, options, expected):
    image = np.random.default_rng(0).uniform(-800, 800, (9, 8, 8, len(channels)))
    image[:3] = 0
    image[3, 0, 0, 0], image[4, 0, 0, -1] = -900, 900
    case = write(tmp_path, "x", image.squeeze(), image[..., 0] > 100)
    config = DataConfig(grid=(9, 8, 8), **options)
    preparation, volume = prepared(case, config, replace(task, channels=channels))
    found = volume["image"].numpy()
    assert found.shape == (len(expected), 9, 8, 8)
    for index, scale in enumerate(expected):
        np.testing.assert_allclose(found[index], scale(image[..., index]), atol=1e-5)
    back = preparation.to_native(volume["image"].as_tensor(), volume["image"])
    assert torch.equal(back, volume["image"].as_tensor())


@pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
def test_orientation_of_the_file_does_not_change_what_the_model_sees(tmp_path, fit):
    label = ball((20, 24, 16), (8, 14, 6), 5)
    image = np.random.default_rng(0).standard_normal(label.shape) + 3 * label + 10
    ras = write(tmp_path, "ras", image, label)
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])  # the same voxels in the same places, stored as LPS
    flipped[:2, 3] = [19, 23]
    lps = write(tmp_path, "lps", image[::-1, ::-1], label[::-1, ::-1], flipped)
    spacing = (1.5, 1.5, 1.5) if fit == "crop" else None
    preparation = Preparation(MRI, DataConfig(grid=(16, 16, 16), fit=fit, spacing_mm=spacing))
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
    for target, expected in (("foreground", [1, 1, 1, 1]), ("labels", [1, 1, 2, 2])):
        _, volume = prepared(case, DataConfig(grid=(8, 8, 8), target=target))
        assert volume["label"][0, :, 0, 0].tolist() == [*expected, 0, 0, 0, 0]


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
    affine[:3, :3] = [[0.9 * cosine, 1.1 * sine, 0], [0.9 * sine, -1.1 * cosine, 0], [0, 0, 2.5]]
    affine[:3, 3] = [-40, 60, 10]
    image = place_of((44, 52, 30), affine)
    low, span = image.min(), np.ptp(image)
    case = write(tmp_path, "world", (image - low) / span, image > 20, affine)
    preparation, volume = prepared(case, config, replace(CT, window_hu=(0.0, 1.0)))
    on_grid = volume["image"]
    if config.fit == "crop":
        assert on_grid.pixdim.numpy() == pytest.approx(config.spacing_mm, rel=0.03)
    else:
        assert on_grid.shape[1:] == config.grid
    found = on_grid.as_tensor()[0].numpy() * span + low
    expected = place_of(found.shape, on_grid.affine.numpy())
    inner = (slice(4, -4),) * 3  # smoothing takes zeros from outside
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05)

    back = preparation.to_native(on_grid.as_tensor(), on_grid)[0].numpy() * span + low
    inner = (slice(8, -8),) * 3
    np.testing.assert_allclose(back[inner], image[inner], atol=0.05)


def test_what_is_smaller_than_a_crop_is_padded(tmp_path):
    label = ball((10, 12, 8), (5, 6, 4), 3)
    config = replace(CROPS, spacing_mm=(1.0, 1.0, 1.0))
    preparation, volume = prepared(write(tmp_path, "small", 10 + 5 * label, label), config)
    assert min(volume["image"].shape[1:]) >= 16
    images, _ = next(iter(training_batches([volume], config, 1, 0, 0)))
    assert images.shape == (1, 1, 16, 16, 16)
    back = preparation.to_native(volume["label"].float(), volume["image"])
    assert np.array_equal(back[0].numpy(), label)


def test_shrinking_smooths_and_slabs_change_nothing(tmp_path, monkeypatch):
    """By three, voxels fall on voxels: without smoothing, noise would keep its spread of 1."""
    noise, found = np.random.default_rng(0).standard_normal((36, 36, 36)), []
    case = write(tmp_path, "noise", noise, noise > 1)
    for slab in (1 << 20, 2000):
        monkeypatch.setattr("mvl.data.preparation.Resampled._SLAB", slab)
        volume = prepared(case, DataConfig(grid=(12, 12, 12), fit="resize"))[1]
        found.append(volume["image"].as_tensor())
    assert found[0][:, 2:-2, 2:-2, 2:-2].std() < 0.3
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
