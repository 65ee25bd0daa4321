"""The AUROC of each stage, against counts by hand and parts whose answer is known."""

from itertools import product

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from mvl.blocks.language_part import LanguagePart
from mvl.config import DataConfig, ExperimentConfig, LanguageConfig
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.data.task_folder import Case
from mvl.data.tasks import Task
from mvl.experiment.run import Run, fit
from mvl.models.activations import activations, to_volume
from mvl.models.peers import Peer
from mvl.models.segmenter import MedVisionLlama
from mvl.models.tokens import LinearHead, PatchEmbed
from mvl.study.stages import SHOWN_STAGES, auroc, image_voxels, patch_truth, stage_auroc

#: A CT's window is a fixed scale, so that a voxel's value on the grid is known beforehand.
CT = Task("Scan", "CT", ("CT",), {1: "core", 4: "rim"}, tolerance_mm=1.0, window_hu=(0, 100))
GRID, PATCH, TOKENS = (8, 12, 4), (4, 2, 2), (2, 6, 2)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_the_share_of_pairs_in_the_right_order(levels):
    rng = np.random.default_rng(levels)
    scores, positive = rng.integers(levels, size=60) / 7, rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - np.mean(pairs), abs=1e-12)
    assert auroc(np.exp(scores), positive) == auroc(scores, positive)


class Scaled(nn.Module):
    """What stands for a mapper or a block: its input times a factor, plus a constant."""

    def __init__(self, factor, constant=0.0):
        super().__init__()
        self.factor, self.constant = factor, constant

    def forward(self, x):
        return self.factor * x + self.constant


def by_hand(part, grid=GRID, patch=PATCH):
    """A model whose only token feature is its patch's mean, handed to `part` as it is."""
    embed = PatchEmbed(1, patch, 1)
    nn.init.constant_(embed.project.weight, 1 / np.prod(patch))
    nn.init.zeros_(embed.project.bias)
    tokens = tuple(g // p for g, p in zip(grid, patch, strict=True))
    head = LinearHead(1, patch, 1, tokens)
    position = torch.zeros(1, int(np.prod(tokens)), 1)
    return MedVisionLlama(embed, position, [nn.Identity()], None, part, [], nn.Identity(), head)


def passing():
    """A part that writes the token itself: its update's norm is the patch's mean."""
    return LanguagePart(nn.Identity(), nn.Identity(), nn.Identity(), LanguageConfig())


def write(folder, name, image, label):
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    for path, array in zip(paths, (image.astype(np.float32), label.astype(np.uint8)), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return Case(name, f"subject of {name}", *paths)


def measured(model, cases):
    """`stage_auroc` with a column of AUROCs for each stage."""
    table = stage_auroc(model, cases, Preparation(CT, DataConfig(grid=GRID)), show=False)
    names = {name: f"auroc_{stage}" for stage, name in SHOWN_STAGES.items()}
    about = ["subject", "case", "structure", "patches", "foreground_patches"]
    wide = table.pivot(index=about, columns="stage", values="auroc_stream").rename(columns=names)
    return wide.reset_index().set_index("case", drop=False).loc[[case.name for case in cases]]


def box(index, patch=PATCH):
    """The voxels of the patch at a place (i, j, k) of the token grid."""
    return tuple(slice(i * p, (i + 1) * p) for i, p in zip(index, patch, strict=True))


def test_a_hosts_tokens_are_patches_of_the_padded_volume(tmp_path):
    """6 x 10 x 4 voxels in 8 x 12 x 4, one before and after: a hot token is found at its place."""
    network = nn.Sequential(nn.AvgPool3d(4), nn.Upsample(scale_factor=4))
    model = Peer(network, 4, passing(), "0", torch.zeros(1, 6, 1))
    grid, image = (6, 10, 4), np.zeros((6, 10, 4))
    image[3:6, 3:7] = 100
    preparation, found = Preparation(CT, DataConfig(grid=grid)), []
    for high, wide in product(((0, 3), (3, 6)), ((0, 3), (3, 7), (7, 10))):
        label = np.zeros(grid)
        label[slice(*high), slice(*wide)] = 1
        case = write(tmp_path, f"{high}{wide}", image, label)
        table = stage_auroc(model, [case], preparation, show=False).set_index("stage")
        found.append(table["auroc_stream"]["after the block"])
    # One that is not hot loses to one of five, and ties with four.
    assert found == pytest.approx([0.4, 0.4, 0.4, 0.4, 1.0, 0.4])
    volume = torch.from_numpy(image).float()[None, None]
    shown = to_volume(activations(model, volume)["after"], model, grid)[0]
    assert shown.shape == grid and (shown == shown.max()).nonzero()[0].tolist() == [5, 4, 0]


def test_tokens_and_patches_stand_in_one_order(tmp_path):
    """On a grid and patch of unequal edges, one hot patch is found at its own place alone."""
    hot = (1, 2, 0)
    image = np.zeros(GRID)
    image[box(hot)] = 100
    found = {}
    for place in product(*map(range, TOKENS)):
        label = np.zeros(GRID)
        label[box(place)] = 1
        case = write(tmp_path, "-".join(map(str, place)), image, label)
        found[place] = measured(by_hand(passing()), [case]).iloc[0]
    # Any other single patch ties with 22 cold ones and loses to the hot one.
    assert {place: row["auroc_update"] for place, row in found.items()} == pytest.approx(
        {place: 1.0 if place == hot else 11 / 23 for place in found}
    )
    assert all((row["patches"], row["foreground_patches"]) == (24, 1) for row in found.values())

    # The same place from what the model hands out, by row-major counting.
    volume = torch.from_numpy(image).float()[None, None] / 100
    norms = activations(by_hand(passing()), volume)["update"].norm(dim=-1)
    assert np.flatnonzero(norms[0]).tolist() == [1 * 12 + 2 * 2 + 0]


@pytest.fixture
def graded(tmp_path):
    """Labels that fill more and more of 24 patches; the image is the label."""
    label = np.zeros(GRID)
    for n, place in enumerate(product(*map(range, TOKENS))):
        filled = np.zeros(16)
        filled[: n % 13] = (1, 4)[n % 2]
        label[box(place)] = filled.reshape(PATCH)
    return write(tmp_path, "graded", 100 * (label > 0), label)


@pytest.mark.parametrize(
    ("block", "d2", "residual", "update"),
    [
        (nn.Identity(), nn.Identity(), True, 1),  # as large as the foreground's share
        (Scaled(-1.0, 2.0), nn.Identity(), False, 0),  # larger in the background
        (nn.Identity(), Scaled(0.0, 3.0), True, 0.5),  # the same everywhere
        (Scaled(0.0), nn.Identity(), True, 0.5),  # nothing is written but the residual
    ],
)
def test_parts_whose_answer_is_known(graded, block, d2, residual, update):
    part = LanguagePart(nn.Identity(), block, d2, LanguageConfig(residual=residual))
    row = measured(by_hand(part), [graded]).iloc[0]
    assert row["auroc_update"] == update
    # Patches with 8, 9, 10, 11 or 12 of 16 voxels: 5 of each 13; with n % 13 over 24 patches
    # that is 8 to 12 (5 patches) and 21 to 23 (3 patches).
    assert (row["patches"], row["foreground_patches"]) == (24, 8)
    about = (row["subject"], row["case"], row["structure"])
    assert about == ("subject of graded", "graded", "foreground")


@pytest.mark.parametrize("half, foreground", [(8, 1), (7, 0)])
def test_half_of_a_patch_is_foreground(tmp_path, half, foreground):
    label = np.zeros(GRID)
    filled = np.zeros(16)  # the voxels of a patch
    filled[:half] = 1
    label[box((0, 1, 0))] = filled.reshape(PATCH)
    row = measured(by_hand(passing()), [write(tmp_path, "half", label, label)]).iloc[0]
    assert row["foreground_patches"] == foreground
    assert np.isnan(row["auroc_update"]) == (not foreground)


def test_padding_takes_no_part(tmp_path):
    """4 x 8 x 4 voxels in a grid of 8 x 12 x 4 of patches 4 x 2 x 2: along the first axis voxels
    2 to 5 are the image's, so no patch is all padding; along the second 2 to 9, so that the
    outer two of six patches are."""
    shape = (4, 8, 4)
    label, image = np.zeros(shape), np.full(shape, 50.0)
    label[:, 2:4] = 1  # voxels 4 and 5 of the grid: the third patch, half filled along axis 0
    # Dimmer than the other patches, brighter than padding: the 8 padded patches
    # would lift the AUROC from 0 to 8 / 20.
    image[label > 0] = 20
    case = write(tmp_path, "padded", image, label)
    row = measured(by_hand(passing()), [case]).iloc[0]
    assert (row["patches"], row["foreground_patches"]) == (2 * 4 * 2, 4)
    assert row["auroc_update"] == 0
    volume = Preparation(CT, DataConfig(grid=GRID)).load([case], progress=False)[0]
    foreground, counted = patch_truth(volume, PATCH, GRID)
    update = activations(by_hand(passing()), volume["image"].as_tensor()[None])["update"][0]
    assert auroc(update.norm(dim=-1).numpy(), foreground) == pytest.approx(8 / 20)
    expected = np.ones(TOKENS, bool)
    expected[:, [0, 5]] = False
    assert np.array_equal(counted.reshape(TOKENS), expected)


@pytest.mark.parametrize("shape", [(8, 12, 4), (5, 9, 3), (10, 7, 4), (3, 15, 9)])
def test_image_voxels_are_those_that_come_back_to_the_file(tmp_path, shape):
    case = write(tmp_path, "any", np.ones(shape), np.ones(shape))
    preparation = Preparation(CT, DataConfig(grid=GRID))
    image = preparation.load([case], progress=False)[0]["image"]
    inside = image_voxels(image)
    # Each voxel of the grid carries its own number back to the file, which says who was there.
    numbers = torch.arange(1.0, 1 + np.prod(GRID)).view(1, *GRID)
    came_back = preparation.to_native(numbers, image).unique()
    expected = torch.isin(numbers[0], came_back[came_back > 0])
    assert torch.equal(inside, expected)
    assert inside.sum() == np.prod(np.minimum(shape, GRID))
    # The image still knows after a prediction was brought back.
    assert torch.equal(image_voxels(image), inside)


def test_each_stage_has_the_auroc_of_its_own_norm(graded):
    """The part turns the stream around: what was large on the foreground is small after it."""
    config = LanguageConfig(residual=False)
    turned = LanguagePart(nn.Identity(), nn.Identity(), Scaled(-1.0, 1.0), config)
    row = measured(by_hand(turned), [graded]).iloc[0]
    # x, then 1 - x, then x + (1 - x).
    assert row[["auroc_encoder", "auroc_update", "auroc_after"]].tolist() == [1, 0, 0.5]
    plain = measured(by_hand(None), [graded])
    assert [name for name in plain if name.startswith("auroc")] == ["auroc_encoder"]
    assert plain["auroc_encoder"].item() == 1


def test_a_case_of_one_kind_has_no_value(tmp_path, graded):
    nothing = write(tmp_path, "nothing", np.ones(GRID), np.zeros(GRID))
    everything = write(tmp_path, "everything", np.ones(GRID), np.ones(GRID))
    table = measured(by_hand(passing()), [nothing, graded, everything])
    assert table["foreground_patches"].tolist() == [0, 8, 24]
    assert table["auroc_update"].isna().tolist() == [True, False, True]


def test_a_runs_measures_are_those_of_its_model_and_labels(phantom, tmp_path):
    """Recounted from the files: labels by nibabel, patches by slicing, pairs one by one."""
    config = ExperimentConfig.from_dict(
        {
            "data": {"grid": [16, 24, 16]},
            "model": {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
            | {"patch": [2, 2, 2], "language": {}},
            "training": {"epochs": 1, "warmup_epochs": 0},
        }
    )
    data = open_task(config.data, 0, phantom, progress=False)
    run, cases = Run.load(fit(config, data, tmp_path, show=False)), data.side("test")
    table = stage_auroc(run.model, cases, run.preparation, show=False)
    table = table[table["stage"] == "the block's update"]
    assert table["case"].tolist() == [case.name for case in cases]
    assert table["subject"].tolist() == [case.subject for case in cases]
    for case, row in zip(cases, table.itertuples(), strict=True):
        label = np.asarray(nibabel.load(case.label).dataobj) > 0
        before = [(g - n) // 2 for g, n in zip((16, 24, 16), label.shape, strict=True)]
        assert min(before) >= 0
        place = tuple(slice(b, b + n) for b, n in zip(before, label.shape, strict=True))
        truth, inside = np.zeros((16, 24, 16), bool), np.zeros((16, 24, 16), bool)
        truth[place], inside[place] = label, True
        image = run.preparation.load([case], progress=False)[0]["image"].as_tensor()[None]
        part = run.model.language
        with torch.no_grad():
            stream = run.model.encoder[0](run.model.embed(image) + run.model.position)
            norms = part.d2(part.block(part.d1(stream)))[0].norm(dim=-1).numpy()
        positive, negative = [], []
        for n, (i, j, k) in enumerate(product(range(8), range(12), range(8))):
            voxels = box((i, j, k), (2, 2, 2))
            if truth[voxels].sum() >= 4:
                positive.append(norms[n])
            elif inside[voxels].any():
                negative.append(norms[n])
        counts = len(positive) + len(negative), len(positive)
        assert (row.patches, row.foreground_patches) == counts
        assert len(positive) > 0 and len(negative) > 10
        share = np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative])
        # One pair may change sides by rounding.
        assert row.auroc_stream == pytest.approx(share, abs=1.01 / (len(positive) * len(negative)))
