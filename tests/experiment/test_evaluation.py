"""Evaluation in native space, with models whose answer is known."""

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mvl.config import DataConfig
from mvl.data.preparation import Preparation
from mvl.data.task_folder import Case
from mvl.data.tasks import TASKS, Task
from mvl.experiment.evaluation import evaluate
from mvl.experiment.inference import Predictor, decide, infer, segment
from mvl.experiment.metrics import segmentation_metrics
from mvl.experiment.prediction import predict_file, predict_folder
from tests.experiment.common import Model, write_case

TASK = Task("Other", "MRI", ("MRI",), {1: "core", 4: "rim"}, tolerance_mm=1.0)


def bright(volume):
    """Foreground is what is brighter than halfway between darkest and brightest."""
    return volume - (volume.amin() + volume.amax()) / 2


def by_value(volume):
    """Three classes by intensity: near the background's, the core's, the rim's."""
    low, high = volume.amin(), volume.amax()
    levels = [low, (low + high) / 2, high]
    return torch.cat([-(volume - level).abs() for level in levels], dim=1)


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
    return write_case(tmp_path, "ball", label, image, np.diag([*SPACING, 1.0])), label


@pytest.mark.parametrize("grid", [(40, 24, 14), (48, 32, 16), (44, 24, 14)])
def test_metrics_are_those_of_the_files_grid_in_millimetres(shifted, grid):
    case, label = shifted
    expected = segmentation_metrics(np.roll(label, 2, axis=0), label, SPACING, 1.0)
    preparation = Preparation(TASK, DataConfig(grid=grid))
    row = evaluate(Predictor(Model(bright), preparation), [case], show=False).iloc[0]
    assert 0 < expected["dice"] < 1 and expected["hd95_mm"] > 1
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert (row["subject"], row["case"], row["structure"]) == ("ball", "ball", "foreground")


def rotation(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


FITS = [
    DataConfig(grid=(48, 32, 16)),
    DataConfig(grid=(32, 32, 32), fit="resize"),
    DataConfig(grid=(16, 16, 8), fit="crop", spacing_mm=(1.0, 1.0, 2.0)),
]


@pytest.mark.parametrize("config", FITS, ids=lambda config: config.fit)
def test_orientation_and_oblique_affines_do_not_change_the_metrics(tmp_path, shifted, config):
    case, label = shifted
    image = nibabel.load(case.image).get_fdata()
    turned = np.eye(4)
    turned[:3, :3] = rotation(20) @ np.diag(SPACING)
    stored = np.eye(4)  # the file's axes run to the back, up and to the right
    stored[:3, :3] = np.array([[0, 0, 0.7], [-1.3, 0, 0], [0, 3.0, 0]])
    stored[1, 3] = 1.3 * (SHAPE[1] - 1)

    def other(array):
        return array.transpose(1, 2, 0)[::-1]

    left = np.diag([-0.7, -1.3, -3.0, 1.0])  # the same voxels in the same places, from LPI
    left[:3, 3] = np.array(SPACING) * (np.array(SHAPE) - 1)
    lpi = [array[::-1, ::-1, ::-1] for array in (label, image)]
    cases = [
        case,
        write_case(tmp_path, "oblique", label, image, turned),
        write_case(tmp_path, "permuted", other(label), other(image), stored),
        write_case(tmp_path, "lpi", *lpi, left),
    ]
    assert nibabel.aff2axcodes(left) == ("L", "P", "I")
    preparation = Preparation(TASK, config)
    table = evaluate(Predictor(Model(bright), preparation), cases, show=False)
    assert 0.5 < table["dice"][0] < 1
    for metric in ("dice", "hd95_mm", "nsd", "specificity"):
        assert table[metric].to_numpy() == pytest.approx([table[metric][0]] * 4, abs=1e-6)


@pytest.mark.parametrize("rim", [4, 1004])  # FreeSurfer's labels go beyond 255
def test_labels_are_measured_one_by_one_and_together(tmp_path, rim):
    task = replace(TASK, labels={1: "core", rim: "rim"})
    label = np.zeros(SHAPE, np.int16)
    label[10:20, 5:15, 4:10], label[20:26, 5:15, 4:10] = 1, rim
    image = 50 + 50 * (label == 1) + 100 * (label == rim)
    case = write_case(tmp_path, "two", label, image, np.diag([*SPACING, 1.0]))
    preparation = Preparation(task, DataConfig(grid=SHAPE, target="labels"))
    predictor = Predictor(Model(by_value), preparation)
    table = evaluate(predictor, [case], show=False)
    assert table["structure"].tolist() == ["core", "rim", "foreground"]
    assert (table["dice"] == 1).all() and (table["hd95_mm"] == 0).all()
    predict_file(case.image, tmp_path / "out.nii.gz", predictor, show=False)
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), label)
    assert written.get_data_dtype() == (np.uint8 if rim == 4 else np.int16)


def test_a_window_slides_over_a_volume_that_is_larger(tmp_path, shifted):
    """A model that looks at voxels alone does not notice the window, nor its overlap."""
    case, label = shifted
    config = DataConfig(grid=(16, 16, 8), fit="crop", spacing_mm=SPACING)
    image = nibabel.load(case.image).get_fdata()

    threshold = float(np.mean([image.min(), image.max()]) - image.mean()) / image.std()

    def above(volume):
        assert volume.shape[2:] == config.grid
        return volume - threshold

    preparation = Preparation(TASK, config)
    row = evaluate(Predictor(Model(above), preparation), [case], show=False).iloc[0]
    expected = segmentation_metrics(np.roll(label, 2, axis=0), label, SPACING, 1.0)
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("config", FITS, ids=lambda config: config.fit)
def test_classes_decided_one_at_a_time_are_those_decided_together(shifted, config):
    def classes(volume):
        return torch.cat([volume, -volume, 0.3 * volume.abs() - 0.1], dim=1)

    preparation = Preparation(TASK, config)
    volume = preparation.load([shifted[0]], progress=False)[0]
    logits = classes(volume["image"].as_tensor()[None])[0]
    together = decide(preparation.to_native(logits, volume["image"])[None])[0]
    found = segment(Model(classes), volume, preparation)
    assert found.any() and torch.equal(found, together)


def test_the_brains_regions_are_measured_beside_its_labels(tmp_path):
    task = TASKS["Task01_BrainTumour"]
    label = np.zeros((16, 16, 16))
    label[2:14, 2:14, 2:14], label[4:12, 4:12, 4:12], label[6:10, 6:10, 6:10] = 1, 3, 2
    image = np.stack([50 + 50 * label] * 4, axis=-1)
    case = write_case(tmp_path, "brain", label, image, np.eye(4))

    def no_enhancing(volume):
        """Sees oedema and dead core, and takes the enhancing rim for core."""
        first = volume[:, :1]
        steps = first.unique()
        near = [-(first - steps[value]).abs() for value in range(4)]
        return torch.cat([near[0], near[1], torch.maximum(near[2], near[3]), near[3] - 9], 1)

    preparation = Preparation(task, DataConfig(grid=(16, 16, 16), target="labels"))
    table = evaluate(Predictor(Model(no_enhancing), preparation), [case], show=False)
    dice = table.set_index("structure")["dice"].groupby(level=0).first()
    assert table["structure"].tolist() == [
        *("edema", "non-enhancing tumour", "enhancing tumour", "foreground"),
        *("whole tumour", "tumour core"),
    ]
    assert dice["whole tumour"] == dice["foreground"] == dice["tumour core"] == dice["edema"] == 1
    assert dice["enhancing tumour"] == 0
    core, enhancing = (4**3, 8**3 - 4**3)
    assert dice["non-enhancing tumour"] == pytest.approx(2 * core / (2 * core + enhancing))


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """A CT of 512 x 512 x 400 stored as int16, with a ball of liver and a tumour in it."""
    folder, shape = tmp_path_factory.mktemp("ct"), (512, 512, 400)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    distance = sum(axis.astype(np.float32) ** 2 for axis in axes)
    label = (distance < 0.25).astype(np.uint8) + (distance < 0.01)
    image = np.where(label > 0, np.int16(120), np.int16(-60))
    for name, array in (("image", image), ("label", label)):
        nibabel.save(
            nibabel.Nifti1Image(array, np.diag([-0.8, -0.8, 1, 1])), folder / f"{name}.nii"
        )
    return folder


def peak_and_dice(folder, fit, target):
    """Bytes that this process held at most, imports included, and the Dice of the foreground."""
    torch.set_num_threads(1)

    def threshold(volume):
        logits = volume - 0.5
        return torch.cat([-logits, logits, logits - 0.4], 1) if target == "labels" else logits

    spacing = (0.8, 0.8, 1.0) if fit == "crop" else None
    config = DataConfig(grid=(128, 128, 128), fit=fit, spacing_mm=spacing, target=target)
    predictor = Predictor(Model(threshold), Preparation(TASKS["Task03_Liver"], config))
    case = Case("large", "large", folder / "image.nii", folder / "label.nii")
    table = evaluate(predictor, [case], show=False).set_index("structure")
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    return 1024 * int(peak), table["dice"]["foreground"]


@pytest.mark.slow
@pytest.mark.parametrize(("fit", "target"), [("resize", "foreground"), ("crop", "labels")])
def test_a_ct_of_400_slices_is_evaluated_in_4_gb(ct, fit, target):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        peak, dice = pool.submit(peak_and_dice, ct, fit, target).result()
    assert dice > 0.9
    assert peak < 4e9


@pytest.mark.parametrize(
    ("config", "depth"), [*((config, 1) for config in FITS), (FITS[0], 2), (FITS[2], 3)]
)
def test_a_stack_of_few_slices_is_measured_on_its_own(tmp_path, config, depth):
    """Slices of 8 mm: with crops of 2 mm, one becomes four and has to become one again."""
    label = np.zeros((40, 44, depth), bool)
    label[12:20, 8:36] = True
    image = 100 + 100 * np.roll(label, 2, axis=0)  # 2 mm beside it
    case = write_case(tmp_path, "thin", label, image, np.diag([1.0, 1.0, 8.0, 1.0]))
    preparation = Preparation(TASK, config)

    predictor = Predictor(Model(lambda volume: volume - 1.1), preparation)  # z: -0.38 and 2.62
    predict_file(case.image, tmp_path / "out.nii.gz", predictor, show=False)
    assert nibabel.load(tmp_path / "out.nii.gz").shape == (40, 44, depth)
    row = evaluate(predictor, [case], show=False).iloc[0]
    exact = 2 * 6 / (8 + 8)  # of eight columns, six are common
    assert row["dice"] == pytest.approx(exact, abs=0 if config.fit != "resize" else 0.04)
    assert row["hd95_mm"] == pytest.approx(2.0, abs=0 if config.fit != "resize" else 1.0)


def test_a_folder_keeps_the_same_models_segmentations_alone(tmp_path, shifted):
    _, label = shifted
    case = write_case(tmp_path, "one", label, 100 + 100 * label, np.eye(4))
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    image = case.image.rename(images / "one.nii.gz")
    path, first = out / "one.nii.gz", Model(bright)
    preparation = Preparation(TASK, DataConfig(grid=(48, 32, 16)))

    def predicted(model, preparation=preparation):
        before = path.stat().st_mtime_ns if path.exists() else 0
        predict_folder(images, out, Predictor(model, preparation), show=False)
        return path.stat().st_mtime_ns != before

    assert predicted(first) and not predicted(first) and not predicted(Model(bright))
    other = Model(bright)
    torch.nn.init.constant_(other.bias, 9)
    assert predicted(other) and (np.asarray(nibabel.load(path).dataobj) == 1).all()
    assert predicted(other, Preparation(TASK, DataConfig(grid=(40, 32, 16))))
    assert predicted(first)
    # Another image in its place, moved by a millimetre.
    moved = nibabel.load(image)
    moved.affine[0, 3] += 1
    nibabel.save(nibabel.Nifti1Image(moved.get_fdata(), moved.affine), image)
    os.utime(image, (1, 1))
    assert predicted(first) and not predicted(first)
    os.utime(image)  # newer, and the same
    assert not predicted(first)
    # Another image of its size in its place, and older than the segmentation.
    nibabel.save(nibabel.Nifti1Image(moved.get_fdata() + 1, moved.affine), image)
    os.utime(image, (1, 1))
    assert predicted(first) and not predicted(first)


def test_a_window_moves_by_half_its_size_and_counts_most_in_its_middle():
    seen = []

    def middle(volume):
        seen.append(1)
        inner = torch.full(volume.shape, -1.0)
        inner[..., 4:12, 4:12, 4:12] = 1
        return inner

    logits = infer(Model(middle), torch.zeros(1, 1, 32, 32, 32), (16, 16, 16))
    assert len(seen) == 3**3 and logits[0, 0, 16, 16, 16] > 0.9
