"""A score means what it says: ignored voxels, lost structures, healthy cases, many labels."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from mvl.audit import AuditConfig, AuditedConfig
from mvl.cli import main
from mvl.config import DataConfig
from mvl.data.batches import augmentation, training_batches
from mvl.data.coverage import coverage_notes, grid_coverage, lost_on_grid, require_coverage
from mvl.data.preparation import IGNORED, Preparation
from mvl.data.splits import Split
from mvl.data.task_data import TaskData, open_task
from mvl.data.tasks import Task
from mvl.errors import DataError
from mvl.experiment.evaluation import evaluate, false_positives
from mvl.experiment.inference import Predictor
from mvl.experiment.metrics import METRICS, segmentation_metrics
from mvl.experiment.prediction import predict_file
from mvl.experiment.procedure import procedure_of, segmentation_loss
from mvl.experiment.training import validate
from tests.experiment.common import Model, make_task, write_case

TASK = Task("Mine", "MRI", ("MRI",), {1: "a"}, tolerance_mm=1.0)
TWO = replace(TASK, labels={1: "a", 2: "b"})
IGNORING = replace(TASK, ignore=255)
GRID = DataConfig(grid=(8, 8, 8))


def box(value, corner=2, edge=2, shape=(8, 8, 8)):
    label = np.zeros(shape, np.int16)
    label[corner : corner + edge, corner : corner + edge, corner : corner + edge] = value
    return label


def says(mask):
    """A network that predicts a mask, whatever the image."""
    logits = 20 * torch.as_tensor(np.asarray(mask, np.float32)) - 10
    return Model(lambda volume: logits.expand(len(volume), 1, *logits.shape))


def prepared(task, cases, config=GRID):
    return Preparation(task, config).load(cases, progress=False)


# --- ignored voxels ------------------------------------------------------------------------


def test_predictions_that_differ_in_ignored_voxels_alone_have_equal_metrics():
    truth, ignored = box(1) > 0, np.zeros((8, 8, 8), bool)
    ignored[:, :, 4:] = True  # right behind the structure's faces at index 4
    wrong = truth.copy()
    wrong[2, 2, 2], wrong[5, 2, 2] = False, True
    other = wrong.copy()
    other[:, :, 4:] = np.random.default_rng(0).random((8, 8, 4)) > 0.5
    spacing = (1.0, 2.0, 3.0)
    one, two = (segmentation_metrics(p, truth, spacing, 1, ignored) for p in (wrong, other))
    assert one == two
    # 7 hits, 1 false and 1 missed voxel of the 256 that count.
    assert one["dice"] == 14 / 16 and one["accuracy"] == 254 / 256
    assert one["specificity"] == 247 / 248


def test_a_prediction_that_is_right_wherever_it_counts_is_perfect():
    truth, ignored = box(1) > 0, box(1, 1, 4) > 0
    ignored &= ~truth
    found = segmentation_metrics(truth | ignored, truth, (1, 1, 1), 0, ignored)
    assert [found[name] for name in ("dice", "hd95_mm", "nsd", "accuracy")] == [1, 0, 1, 1]
    nothing = np.zeros_like(truth)
    assert segmentation_metrics(ignored, truth, (1, 1, 1), 0, ignored) == segmentation_metrics(
        nothing, truth, (1, 1, 1), 0, ignored
    )
    with pytest.raises(ValueError, match="every voxel is ignored"):
        segmentation_metrics(truth, truth, (1, 1, 1), 0, np.ones_like(truth))


@pytest.mark.parametrize("target", ["foreground", "labels"])
def test_the_loss_has_no_gradient_at_ignored_voxels(target):
    torch.manual_seed(0)
    channels = 1 if target == "foreground" else 3
    logits = torch.randn(2, channels, 4, 4, 4, requires_grad=True)
    labels = torch.randint(0, 2 if channels == 1 else 3, (2, 1, 4, 4, 4)).float()
    labels[:, :, :2] = IGNORED
    loss = segmentation_loss(target, ignoring=True)
    value = loss(logits, labels)
    value.backward()
    assert not logits.grad[:, :, :2].any() and logits.grad[:, :, 2:].all()
    # The same as MONAI's loss of the voxels that count, whatever stands in the others.
    alone = segmentation_loss(target)(logits[:, :, 2:], labels[:, :, 2:])
    assert value.item() == pytest.approx(alone.item(), abs=1e-6)
    changed = logits.detach().clone()
    changed[:, :, :2] = 7
    assert loss(changed, labels) == value
    everything = torch.full_like(labels, IGNORED)
    assert loss(logits, everything).item() == 0


@pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
def test_ignored_voxels_come_through_preparation_and_augmentation(tmp_path, fit):
    label = box(1, 3, 6, (16, 16, 16))
    label[:, :, 9:] = 255
    config = DataConfig(
        grid=(8, 8, 8) if fit == "crop" else (16, 16, 16),
        fit=fit,
        spacing_mm=(1, 1, 1) if fit == "crop" else None,
        flips=True,
    )
    volume = prepared(IGNORING, [write_case(tmp_path, "x", label)], config)[0]
    assert volume["label"].dtype == torch.int16
    inside = volume["label"][0, :16, :16, :16].numpy()
    expected = np.where(label == 255, IGNORED, label)
    if fit != "crop":  # a crop is padded about the centre where it has to be rotated
        np.testing.assert_array_equal(inside, expected)
    seen = set()
    for epoch in range(4):
        (images, labels), *_ = training_batches([volume], config, 1, 0, epoch)
        assert images.shape[2:] == labels.shape[2:] == config.grid
        seen |= set(labels.unique().tolist())
    assert seen == {IGNORED, 0, 1}


def test_validation_counts_no_ignored_voxel(tmp_path):
    label = box(1)
    label[:, :, 5:] = 255
    volumes = prepared(IGNORING, [write_case(tmp_path, "x", label)])
    for ignored in (0, 1):
        mask = np.where(label == 255, ignored, label)
        assert validate(says(mask), volumes, 1, "cpu") == 1
    mask[0, 0, 0] = 1  # 8 hits, 1 false
    assert validate(says(mask), volumes, 1, "cpu") == pytest.approx(16 / 17)


def test_evaluation_counts_no_ignored_voxel(tmp_path):
    label = box(1)
    label[:, :, 5:] = 255
    case, preparation = write_case(tmp_path, "x", label), Preparation(IGNORING, GRID)
    rows = [
        evaluate(Predictor(says(mask), preparation), [case], False).iloc[0].to_dict()
        for mask in (label == 1, label > 0)
    ]
    assert rows[0] == rows[1] and rows[0]["dice"] == 1 and rows[0]["hd95_mm"] == 0


# --- structures that the grid loses --------------------------------------------------------


RESIZED = DataConfig(grid=(4, 4, 4), fit="resize")


def lesions(tmp_path):
    """Of 8 voxels an edge on a grid of 4: a voxel at index 0 of each axis is stepped over."""
    seen = write_case(tmp_path, "seen", box(1, 2, 2))
    lost = write_case(tmp_path, "lost", box(1, 0, 1))
    return seen, lost


def test_a_lost_structure_scores_nothing_whatever_is_predicted(tmp_path):
    seen, lost = (prepared(TASK, [case], RESIZED) for case in lesions(tmp_path))
    assert lost[0]["ml"].tolist() == [pytest.approx(0.001)] and not lost[0]["label"].any()
    nothing, truth = np.zeros((4, 4, 4)), seen[0]["label"][0]
    for mask in (nothing, truth):
        assert validate(says(mask), lost, 1, "cpu") == 0
    assert validate(says(truth), seen, 1, "cpu") == 1
    assert validate(says(truth), seen + lost, 2, "cpu") == 0.5


def test_a_structure_that_padding_cuts_off_is_lost(tmp_path):
    case = write_case(tmp_path, "x", box(1, 0, 2, (12, 12, 12)))
    volumes = prepared(TASK, [case])
    assert validate(says(np.zeros((8, 8, 8))), volumes, 1, "cpu") == 0
    coverage = grid_coverage({"validation": volumes}, ["foreground"])
    with pytest.raises(DataError, match=r"none of the 1 structures.*\(0.008 ml\).*larger --grid"):
        require_coverage(coverage, GRID)


def test_what_the_grid_loses_is_said_by_case(tmp_path):
    seen, lost = lesions(tmp_path)
    volumes = {
        "train": prepared(TASK, [seen, lost], RESIZED),
        "validation": prepared(TASK, [seen], RESIZED),
    }
    coverage = grid_coverage(volumes, ["foreground"])
    assert coverage["file_ml"].tolist() == pytest.approx([0.008, 0.001, 0.008])
    assert coverage["grid_ml"].tolist() == pytest.approx([0.008, 0, 0.008])
    rows = lost_on_grid(coverage, RESIZED)
    assert rows[["side", "case", "lost"]].values.tolist() == [["train", "lost", 1.0]]
    (said,) = coverage_notes(coverage, ["foreground"], RESIZED)
    # 1 of 3 structures, 1 of 17 voxels, all of one case's volume.
    for part in ("warning", "1 of 3 structures", "5.9%", "1 of 2 training", "lost, 100%"):
        assert part in said
    require_coverage(coverage, RESIZED)
    whole = coverage[coverage["case"] == "seen"]
    assert lost_on_grid(whole, RESIZED).empty and not coverage_notes(whole, ["foreground"], RESIZED)


def test_a_structure_that_no_training_case_shows_is_named(tmp_path):
    label = box(1) + box(2, 5, 1)
    both = prepared(TWO, [write_case(tmp_path, "x", label)], replace(GRID, target="labels"))
    one = prepared(TWO, [write_case(tmp_path, "y", box(1))], replace(GRID, target="labels"))
    coverage = grid_coverage({"train": one, "validation": both}, ["a", "b"])
    (said,) = coverage_notes(coverage, ["a", "b"], GRID)
    assert "no train case shows b" in said


# --- more than 255 labels ------------------------------------------------------------------


def test_three_hundred_labels_are_kept_apart(tmp_path, monkeypatch):
    label = np.zeros(512, np.int16)
    label[:300] = np.arange(1, 301)
    label = label.reshape(8, 8, 8)
    many = replace(TASK, labels={n: f"s{n}" for n in range(1, 301)})
    config = replace(GRID, target="labels")
    case = write_case(tmp_path, "x", label, image=label.astype(float))
    volume = prepared(many, [case], config)[0]
    np.testing.assert_array_equal(volume["label"][0], label)
    assert (volume["ml"] == pytest.approx(0.001)) and len(volume["ml"]) == 300

    logits = torch.nn.functional.one_hot(torch.as_tensor(label).long(), 301)
    model = Model(lambda volume: logits.movedim(-1, 0)[None].float())
    predictor = Predictor(model, Preparation(many, config))
    assert validate(model, [volume], 1, "cpu") == 1
    output = tmp_path / "out.nii.gz"
    predict_file(case.image, output, predictor)
    np.testing.assert_array_equal(nibabel.load(output).get_fdata(), label)

    def alike(prediction, truth, *_):  # 301 surfaces would take seconds
        return {"voxels": int(truth.sum()), "alike": np.array_equal(prediction, truth)}

    monkeypatch.setattr("mvl.experiment.evaluation.segmentation_metrics", alike)
    table = evaluate(predictor, [case], show=False)
    assert table["alike"].all() and table["voxels"].tolist() == [1] * 300 + [300]


# --- healthy cases -------------------------------------------------------------------------


def test_a_healthy_case_has_no_dice_but_a_volume_of_false_positives(tmp_path):
    sick = write_case(tmp_path, "sick", box(1))
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    healthy = write_case(tmp_path, "well", np.zeros((8, 8, 8)), affine=affine)
    task = replace(TASK, healthy=("well",))
    volumes = prepared(task, [sick, healthy])
    assert validate(says(box(1)), volumes, 2, "cpu") == 1
    table = false_positives(Predictor(says(box(1)), Preparation(task, GRID)), [healthy], False)
    # Eight voxels of 6 cubic millimetres.
    assert table.to_dict("records") == [
        {"subject": "well", "case": "well", "structure": "foreground", "false_positive_ml": 0.048}
    ]
    partly = write_case(tmp_path, "partly", box(255, 2, 1), affine=affine)
    ignoring = Predictor(says(box(1)), Preparation(replace(task, ignore=255), GRID))
    (row,) = false_positives(ignoring, [partly], False).to_dict("records")
    assert row["false_positive_ml"] == pytest.approx(0.042)  # one of eight voxels is ignored


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [np.zeros((8, 8, 8)), np.ones((8, 8, 8)), 255 * box(1, 0, 8)])
def test_crops_of_a_case_of_one_kind_are_drawn(tmp_path, label):
    """Without foreground, without background, or, where all else was lost, with neither."""
    config = DataConfig(grid=(4, 4, 4), fit="crop", spacing_mm=(1, 1, 1))
    volume = prepared(IGNORING, [write_case(tmp_path, "x", label)], config)[0]
    augment = augmentation(config).set_random_state(0)
    (crop,) = [augment(volume | {"image": volume["image"].as_tensor()})[0]]
    assert crop["label"].shape == (1, 4, 4, 4)


def sick_but(healthy):
    """Labels of ten cases, "c0" and on, of which the healthy ones have none."""
    return [box(f"c{n}" not in healthy) for n in range(10)]


def test_healthy_cases_are_trained_with_and_measured_by_themselves(tmp_path, capsys):
    config = DataConfig(task="Mine", grid=(8, 8, 8))
    make_task(tmp_path / "Mine", [box(1)] * 10)
    split = open_task(config, 0, tmp_path, progress=False).split
    healthy = [split.train[0], split.test[0]]
    root = tmp_path / "with"
    make_task(root / "Mine", sick_but(healthy), healthy=healthy)
    runs = ["--runs", str(tmp_path / "runs"), "--root", str(root)]
    command = ["train", "--task", "Mine", "--grid", "8", "8", "8", "--fit", "pad", "--epochs", "1"]
    assert main(command + runs) == 0
    run = capsys.readouterr().out.strip().splitlines()[-1]
    assert main(["evaluate", run, "--root", str(root)]) == 0
    assert "healthy" in capsys.readouterr().out
    cases, table = (pd.read_csv(f"{run}/{name}.csv") for name in ("cases", "healthy"))
    assert list(cases) == ["subject", "case", "structure", *METRICS]
    assert set(cases["case"]) == set(split.test) - set(healthy)
    assert list(table) == ["subject", "case", "structure", "false_positive_ml"]
    assert table["case"].tolist() == [split.test[0]]


def test_a_grid_that_shows_nothing_is_refused_and_its_remedy_works(tmp_path, capsys):
    make_task(tmp_path / "Mine", [box(1, 0, 1)] * 10)
    command = ["train", "--task", "Mine", "--epochs", "1", "--preset", "vit"]
    command += ["--root", str(tmp_path), "--runs", str(tmp_path / "runs")]
    coarse = ["--grid", "4", "4", "4", "--set", "model.patch=[4, 4, 4]"]
    assert main([*command, *coarse, "--fit", "resize"]) == 1
    assert "shows none of the" in (said := capsys.readouterr().err) and "finer --grid" in said
    assert main([*command, "--grid", "8", "8", "8", "--fit", "resize"]) == 0
    run = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert not (run / "lost.csv").exists()


@pytest.mark.parametrize("side", ["train", "validation", "test"])
def test_a_side_of_healthy_cases_alone_is_refused(tmp_path, side):
    config = DataConfig(task="Mine", grid=(8, 8, 8))
    make_task(tmp_path / "Mine", [box(1)] * 10)
    split = open_task(config, 0, tmp_path, progress=False).split
    names = getattr(split, side)
    make_task(tmp_path / "with" / "Mine", sick_but(names), healthy=names)
    with pytest.raises(DataError, match=f"the {side} side has healthy cases alone"):
        open_task(config, 0, tmp_path / "with", progress=False)


def test_the_audits_released_procedure_refuses_ignored_voxels(tmp_path):
    config = AuditedConfig(GRID, audit=AuditConfig(dice="hard"))
    data = TaskData(IGNORING, GRID, {}, {}, Split((), (), ()), [], tmp_path, "")
    with pytest.raises(DataError, match="ignored voxels"):
        procedure_of(config).volumes(Preparation(IGNORING, GRID), data, False)


def test_a_structure_that_a_case_lacks_keeps_the_convention(tmp_path):
    case = write_case(tmp_path, "x", box(1))
    volumes = prepared(TWO, [case], replace(GRID, target="labels"))

    def first(volume):
        mask = says(box(1))(volume)
        return torch.cat([-mask, mask, -20 + 0 * mask], 1)

    assert validate(Model(first), volumes, 1, "cpu") == 1  # (1 + 1) / 2: b is in neither
