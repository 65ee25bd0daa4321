"""The released code's procedure: each piece against something that knows nothing of it."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from mvl.audit.masks import dilation_nsd, resize_mask, surface_hits
from mvl.audit.released import (
    AuditConfig,
    AuditedConfig,
    CopyAugmentation,
    hard_dice_loss,
    released_loss,
    rotate_copy,
    worked_examples,
)
from mvl.audit.splits import COPIES, draw_copies, released_split, shared_subjects
from mvl.config import DataConfig, fingerprint
from mvl.data.batches import training_batches
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.data.task_folder import Case
from mvl.errors import ConfigError
from mvl.experiment.procedure import Procedure, procedure_of
from mvl.experiment.run import Run, fit, read_config

CASES = [Case(f"c{n:03d}", f"s{(n + 1) // 2:03d}", None, None) for n in range(1, 101)]


@pytest.fixture
def logits():
    return torch.randn(2, 1, 5, 6, 7, generator=torch.manual_seed(0))


@pytest.fixture
def labels():
    return (torch.randn(2, 1, 5, 6, 7, generator=torch.manual_seed(1)) > 0.5).to(torch.uint8)


# --- loss ----------------------------------------------------------------------------------


def test_the_thresholded_half_has_no_gradient_and_the_other_is_halved(logits, labels):
    logits = logits.requires_grad_()
    assert not hard_dice_loss(logits, labels).requires_grad
    got = torch.autograd.grad(released_loss(logits, labels), logits)[0]
    entropy = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert torch.equal(got, torch.autograd.grad(0.5 * entropy, logits)[0])


def test_the_loss_that_is_logged_holds_the_hard_dice(logits, labels):
    p, y = (logits > 0).flatten().numpy(), labels.flatten().numpy() > 0
    dice = 2 * (p & y).sum() / (p.sum() + y.sum())
    entropy = F.binary_cross_entropy_with_logits(logits, labels.float()).item()
    assert released_loss(logits, labels).item() == pytest.approx((entropy + 1 - dice) / 2)


# --- copies --------------------------------------------------------------------------------


def test_image_and_label_turn_apart_off_centre_and_labels_grow():
    apart, off, linear, nearest = worked_examples()["value"][[0, 1, 2, 3]]
    assert apart == pytest.approx(0.99, abs=0.005)
    assert off == pytest.approx(0.57, abs=0.01)
    assert linear == pytest.approx(1.16, abs=0.01)
    assert nearest == pytest.approx(1, abs=0.02)


def test_in_one_plane_image_and_label_stay_together():
    mask = np.zeros((24, 20, 16), np.uint8)
    mask[14:22, 3:9, 5:12] = 1
    image, label = rotate_copy(mask[None], mask, 10, planes=False)
    assert np.array_equal(image[0] > 0.5, label > 0)
    nearest = rotate_copy(mask[None], mask, 10, planes=False, splines=False)[1]
    assert set(np.unique(nearest)) == {0, 1} and (nearest != label).mean() < 0.01
    cube = ResizeWithPadOrCrop((24, 24, 24))(mask[None])[0].numpy()
    image, label = rotate_copy(cube[None], cube, 90)
    assert np.array_equal(image[0] > 0.5, np.rot90(cube, 1, (0, 1)) > 0)
    assert np.array_equal(label, np.rot90(cube, 1, (1, 2)))


def test_the_pool_and_the_split_have_the_released_shares():
    pool = draw_copies(CASES, 0)
    assert len(pool) == 300 and (pool["side"] == "train").sum() == 240
    assert (pool.groupby("case")["copy"].nunique() == len(COPIES)).all()
    split = released_split(CASES, 0)
    counts = split["side"].value_counts()
    assert counts.to_dict() == {"test": 10, "train": 216, "validation": 54}
    tested = set(split.loc[split["side"] == "test", "case"])
    assert not tested & set(split.loc[split["side"] != "test", "case"])
    assert not split.equals(released_split(CASES, 1))


def test_who_is_on_both_sides_by_hand():
    rows = [("a", "test"), ("a", "train"), ("b", "test"), ("b", "test"), ("c", "validation")]
    table = pd.DataFrame(rows, columns=["subject", "side"])
    assert shared_subjects(table, "test", ["train", "validation"]) == 1 / 2


def test_siblings_are_as_many_as_chance_gives():
    """A test case's sibling is one of the 99 others, of which 90 are not in the test set."""
    draws = [released_split(CASES, seed) for seed in range(60)]
    shares = [shared_subjects(draw, "test", ["train", "validation"]) for draw in draws]
    assert np.mean(shares) == pytest.approx(90 / 99, abs=0.04)


def test_every_third_volume_is_a_rotated_copy_and_the_others_are_the_studys():
    config = DataConfig(grid=(8, 8, 8))
    volume = {"name": "x", "image": torch.randn(1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8)}
    volume["image"][:] += torch.arange(8.0)[:, None, None]
    augment, rotated = CopyAugmentation(config, AuditConfig(rotated=True, planes=True)), 0
    for seed in range(45):
        augment.set_random_state(seed)
        got = augment(volume)
        augment.study.set_random_state(seed)
        rotated += not torch.equal(got["image"], augment.study(volume)["image"])
    assert rotated == pytest.approx(15, abs=9)


def test_a_copy_is_what_it_is_called():
    augment = CopyAugmentation(DataConfig(grid=(8, 8, 8)), AuditConfig(copies=True))
    image = torch.rand(1, 8, 8, 8) + 1
    volume = {"image": image, "label": (image > 1.5).to(torch.uint8)}
    got = {}
    for copy in COPIES:
        augment.set_random_state(0)
        got[copy] = augment(volume | {"copy": copy})
    assert torch.equal(got["original"]["image"], image)
    assert torch.equal(got["intensity"]["label"], volume["label"])
    # Brightness and contrast are one linear map.
    x, y = image.flatten(), got["intensity"]["image"].flatten()
    slope = ((y - y.mean()) * (x - x.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert torch.allclose(y - y.mean(), slope * (x - x.mean()), atol=1e-5)
    assert 0.81 <= slope <= 1.21 and 0.9 <= y.mean() / x.mean() <= 1.1
    assert not torch.equal(got["rotated"]["image"], image)


# --- metrics -------------------------------------------------------------------------------


def surface_by_hand(mask):
    near = [np.roll(np.pad(mask, 2), shift, (0, 1, 2)) for shift in np.ndindex(3, 3, 3)]
    grown = np.logical_or.reduce(near)[1:, 1:, 1:][2:-1, 2:-1, 2:-1]
    return grown & ~mask


@pytest.mark.parametrize("corner", [0, 3, 6])
@pytest.mark.parametrize("batch_index", [True, False])
def test_the_nsd_is_that_of_all_pairwise_distances(batch_index, corner):
    generator = np.random.default_rng(3)
    masks = np.zeros((2, 3, 9, 9, 9), bool)
    there = slice(corner, corner + 3)
    masks[:, :, there, there, 2:6] = generator.random((2, 3, 3, 3, 4)) > 0.4
    predictions, truths = masks
    surfaces = []
    for side in (predictions, truths):
        surface = np.stack([surface_by_hand(mask) for mask in side])
        surfaces.append(np.argwhere(surface).astype(float))
    p, t = surfaces
    # Without the batch index cases are as far apart as can be.
    scale = np.array([1 if batch_index else 1e6, 1, 1, 1])
    distances = cdist(p * scale, t * scale)
    shares = (distances.min(1) <= 1).mean(), (distances.min(0) <= 1).mean()
    counts = surface_hits(predictions, truths, batch_index)
    assert counts["surface_predicted"].tolist() == [(p[:, 0] == b).sum() for b in range(3)]
    assert dilation_nsd(*(counts[name].sum() for name in (
        "near_predicted", "surface_predicted", "near_labelled", "surface_labelled"
    ))) == pytest.approx(np.mean(shares))  # fmt: skip


def test_a_neighbour_in_the_batch_turns_a_miss_into_a_hit():
    masks = np.zeros((2, 12, 5, 5), bool)
    masks[0, 2, 2, 2] = masks[1, 9, 2, 2] = True
    truths = masks[::-1]  # each case's structure is where the other's is predicted
    assert surface_hits(masks, truths, batch_index=False)["near_predicted"].tolist() == [0, 0]
    with_index = surface_hits(masks, truths, batch_index=True)
    assert with_index["near_predicted"].tolist() == [26, 26]
    assert dilation_nsd(**{k: v.sum() for k, v in with_index.items()}) == 1
    for sides in ((masks, masks & False), (masks & False, masks)):  # an empty side
        assert dilation_nsd(**surface_hits(*sides)).tolist() == [0, 0]


def test_linear_labels_hold_the_nearest_ones():
    mask = np.random.default_rng(0).random((7, 9, 5)) > 0.8
    nearest, linear = (resize_mask(mask, (14, 18, 10), linear) for linear in (False, True))
    assert np.array_equal(nearest, mask.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert linear[nearest].all() and linear.sum() > nearest.sum()


# --- training ------------------------------------------------------------------------------


def test_an_audit_has_its_own_fingerprint_and_leaves_the_studys_alone(tiny):
    plain = tiny()
    assert "audit" not in plain.to_dict()
    config = audited(plain, AuditConfig(rotated=True, planes=True))
    assert AuditedConfig.from_dict(config.to_dict()) == config
    assert fingerprint(config, {}) != fingerprint(plain, {})
    assert type(procedure_of(plain)) is Procedure


def test_what_the_audit_cannot_do_is_refused(tiny):
    with pytest.raises(ConfigError, match="foreground"):
        audited(tiny(data={"target": "labels"}), AuditConfig(dice="hard"))


def audited(config, audit):
    return AuditedConfig(config.data, config.model, config.training, config.seed, audit)


def opened(config, root):
    data = open_task(config.data, config.seed, root, progress=False)
    return data, Preparation(data.task, config.data)


def test_copies_are_on_both_sides_and_are_drawn_again_for_validation(tiny, phantom):
    config = audited(tiny(), AuditConfig(copies=True))
    data, preparation = opened(config, phantom)
    procedure = procedure_of(config)
    training, validation = procedure.volumes(preparation, data, False)
    known = {case.name for side in ("train", "validation") for case in data.side(side)}
    first, again, second = validation(0), validation(0), validation(1)
    assert len(training) == int(0.8 * 3 * len(known))
    assert len(first) == 3 * len(known) - len(training)
    names = {v["name"].partition(",")[0] for v in (*training, *first)}
    assert names == known and not names & {case.name for case in data.side("test")}
    for a, b, c in zip(first, again, second, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["image"], c["image"]) == (a["copy"] == "original")
    batches = training_batches(training, config.data, 4, 0, 0, augment=procedure.augmentation())
    assert sum(len(images) for images, _ in batches) == len(training)


def test_siblings_of_test_cases_are_trained_on_in_place_of_others(tiny, phantom):
    config = audited(tiny(), AuditConfig(siblings=True))
    data, preparation = opened(config, phantom)
    sides = procedure_of(config).volumes(preparation, data, False)
    train, validation = ({v["name"] for v in side} for side in sides)
    assert len(train) == len(sides[0]) == len(data.split.train)
    assert validation == set(data.split.validation)
    moved = train - set(data.split.train)
    test = data.side("test")
    assert moved == {  # who is not the first by name of a subject's test cases
        case.name for case in test if any(
            other.subject == case.subject and other.name < case.name for other in test
        )
    }  # fmt: skip
    assert moved


def test_linear_labels_are_those_of_the_training_alone(tiny, phantom):
    config = audited(tiny(data={"fit": "resize"}), AuditConfig(linear_labels=True))
    data, preparation = opened(config, phantom)
    nearest = preparation.load(data.side("train"), False)
    linear = procedure_of(config).volumes(preparation, data, False)[0]
    for a, b in zip(nearest, linear, strict=True):
        assert a["name"] == b["name"] and torch.equal(a["image"], b["image"])
        inside = a["label"] > 0
        assert (b["label"][inside] == 1).float().mean() > 0.98  # MONAI's nearest, not ours
        assert b["label"].sum() > 1.1 * inside.sum()


def test_the_choice_of_the_epoch_changes_what_is_kept_and_nothing_else(tiny, phantom, tmp_path):
    plan = {"epochs": 4, "warmup_epochs": 0, "learning_rate": 0.03}
    config, kept, curves = tiny(training=plan), {}, set()
    data, _ = opened(config, phantom)
    for select in ("validation", "loss", "last"):
        folder = fit(audited(config, AuditConfig(select=select)), data, tmp_path, False)
        text = (folder / "curves.csv").read_text()
        curves.add(text)
        kept[select] = pd.read_json(folder / "trained.json", typ="series")["best_epoch"]
    table = pd.read_csv(folder / "curves.csv")
    assert len(curves) == 1
    assert kept == {
        "validation": table["validation_dice"].idxmax(),
        "loss": table["train_loss"].idxmin(),
        "last": 3,
    }
    weights = {path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}
    assert len(weights) == len(set(kept.values()))
    # The study refuses such a run; the audit's class reads both kinds.
    with pytest.raises(ConfigError, match="audit"):
        read_config(folder)
    assert Run.load(folder, AuditedConfig).config.audit.select == "last"
