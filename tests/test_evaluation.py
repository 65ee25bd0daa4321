"""Evaluation in native space, with models whose answer is known."""

import nibabel
import numpy as np
import pytest
import torch

from mvl.config import DataConfig
from mvl.data.loading import Preparation
from mvl.data.sources import Case
from mvl.errors import DataError
from mvl.evaluation import evaluate, predict_file
from mvl.metrics import segmentation_metrics
from mvl.tasks import Task

TASK = Task("Other", "MRI", ("MRI",), {1: "core", 4: "rim"}, tolerance_mm=1.0)


class Bright(torch.nn.Module):
    """Calls foreground what is brighter than halfway between darkest and brightest."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, volume):
        return volume - (volume.amin() + volume.amax()) / 2 + self.nothing


class ByValue(Bright):
    """Three classes by intensity: z-scores near the background's, the core's, the rim's."""

    def forward(self, volume):
        low, high = volume.amin(), volume.amax()
        levels = [low, (low + high) / 2, high]
        return torch.cat([-(volume - level).abs() for level in levels], dim=1)


def write(folder, name, image, label, affine):
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image.astype(np.float32), label.astype(np.uint8)), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return Case(name, name, *paths)


def ball(shape, centre, radius, spacing):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    squares = (((a - c) * s) ** 2 for a, c, s in zip(axes, centre, spacing, strict=True))
    return sum(squares) <= radius**2


SPACING = (0.7, 1.3, 3.0)
SHAPE = (40, 24, 14)


@pytest.fixture
def shifted(tmp_path):
    """The bright ball lies two voxels beside the labelled one: 1.4 mm along the first axis."""
    label = ball(SHAPE, (18, 11, 7), 9, SPACING)
    image = 100 + 100 * np.roll(label, 2, axis=0)
    return write(tmp_path, "ball", image, label, np.diag([*SPACING, 1.0])), label


@pytest.mark.parametrize("grid", [(40, 24, 14), (48, 32, 16), (44, 24, 14)])
def test_metrics_are_those_of_the_files_grid_in_millimetres(shifted, grid):
    case, label = shifted
    expected = segmentation_metrics(np.roll(label, 2, axis=0), label, SPACING, 1.0)
    preparation = Preparation(TASK, DataConfig(grid=grid))
    row = evaluate(Bright(), [case], preparation, TASK, "foreground", show=False).iloc[0]
    assert 0 < expected["dice"] < 1 and expected["hd95_mm"] > 1
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert (row["subject"], row["case"], row["structure"]) == ("ball", "ball", "foreground")


def test_a_resized_prediction_is_measured_on_the_files_grid(shifted):
    case, label = shifted
    config = DataConfig(grid=(32, 32, 32), fit="resize")
    preparation = Preparation(TASK, config)
    row = evaluate(Bright(), [case], preparation, TASK, "foreground", show=False).iloc[0]
    exact = segmentation_metrics(np.roll(label, 2, axis=0), label, SPACING, 1.0)
    assert row["hd95_mm"] == pytest.approx(exact["hd95_mm"], abs=1.0)
    assert row["dice"] == pytest.approx(exact["dice"], abs=0.06)


def rotation(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_orientation_and_oblique_affines_do_not_change_the_metrics(tmp_path, shifted):
    case, label = shifted
    image = nibabel.load(case.image).get_fdata()
    turned = np.eye(4)
    turned[:3, :3] = rotation(20) @ np.diag(SPACING)
    stored = np.eye(4)  # the file's axes run to the back, up and to the right
    stored[:3, :3] = np.array([[0, 0, 0.7], [-1.3, 0, 0], [0, 3.0, 0]])
    stored[1, 3] = 1.3 * (SHAPE[1] - 1)

    def other(array):
        return array.transpose(1, 2, 0)[::-1]

    cases = [
        case,
        write(tmp_path, "oblique", image, label, turned),
        write(tmp_path, "permuted", other(image), other(label), stored),
    ]
    preparation = Preparation(TASK, DataConfig(grid=(48, 32, 16)))
    table = evaluate(Bright(), cases, preparation, TASK, "foreground", show=False)
    for metric in ("dice", "hd95_mm", "nsd", "specificity"):
        assert table[metric].to_numpy() == pytest.approx([table[metric][0]] * 3, abs=1e-6)


def test_labels_are_measured_one_by_one_and_together(tmp_path):
    label = np.zeros(SHAPE)
    label[10:20, 5:15, 4:10], label[20:26, 5:15, 4:10] = 1, 4
    image = 50 + 50 * (label == 1) + 100 * (label == 4)
    case = write(tmp_path, "two", image, label, np.diag([*SPACING, 1.0]))
    preparation = Preparation(TASK, DataConfig(grid=SHAPE, target="labels"))
    table = evaluate(ByValue(), [case], preparation, TASK, "labels", show=False)
    assert table["structure"].tolist() == ["core", "rim", "foreground"]
    assert (table["dice"] == 1).all() and (table["hd95_mm"] == 0).all()
    predict_file(case.image, tmp_path / "out.nii.gz", ByValue(), preparation, TASK, "labels")
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), label)
    assert written.get_data_dtype() == np.uint8


def test_a_prediction_has_the_images_grid_and_affine(tmp_path, shifted):
    _, label = shifted
    affine = np.eye(4)
    affine[:3, :3] = rotation(20) @ np.diag([-0.7, 1.3, 3.0])
    affine[:3, 3] = [10, -20, 30]
    case = write(tmp_path, "tilted", 100 + 100 * label, label, affine)
    preparation = Preparation(TASK, DataConfig(grid=(48, 32, 16)))
    predict_file(case.image, tmp_path / "out.nii.gz", Bright(), preparation, TASK, "foreground")
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert np.allclose(written.affine, affine, atol=1e-5)
    assert np.array_equal(np.asarray(written.dataobj), label)


def test_an_image_that_does_not_fit_the_model_is_named(tmp_path):
    preparation = Preparation(TASK, DataConfig(grid=(8, 8, 8)))

    def predict(array):
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / "x.nii")
        predict_file(tmp_path / "x.nii", tmp_path / "o.nii", Bright(), preparation, TASK, "labels")

    with pytest.raises(DataError, match=r"x.nii has 2 channels.*trained on 1 \(MRI\)"):
        predict(np.zeros((8, 8, 8, 2)))
    with pytest.raises(DataError, match="NaN"):
        predict(np.full((8, 8, 8), np.nan))
    (tmp_path / "x.nii").write_bytes(b"no image")
    with pytest.raises(DataError, match="x.nii"):
        predict_file(tmp_path / "x.nii", tmp_path / "o.nii", Bright(), preparation, TASK, "labels")
    assert not (tmp_path / "o.nii").exists()
