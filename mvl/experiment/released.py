"""What the paper's released code does where it differs from the study, in our own words.

Written to be measured (`mvl.audit`) and timed, from reading and running that code; nothing is
copied. What has a knob is switched on by `mvl.config.AuditConfig` and reaches a training through
`procedure_of`; the rest are functions of masks and of tables of cases, and a model of the released
code's own structure for the benchmarks.

The language model's part, its order and its sizes are the preset `released` of `mvl.config`.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from mvl.blocks.language_part import UNIT_NORM_EPS
from mvl.config import PRESETS, AuditConfig, derive_seed
from mvl.data.batches import augmentation
from mvl.data.nifti import read_label
from mvl.errors import DataError
from mvl.experiment.training import Procedure
from mvl.models.sizes import ARCHITECTURES
from mvl.models.tokens import token_grid

#: A case's copies in the pool from which training and validation are drawn.
COPIES = ("original", "rotated", "intensity")
#: Shares of the cases and of the copies: test, and training of what is left.
TEST_SHARE, TRAINING_SHARE = 0.1, 0.8
#: Cases a batch, as the released README's example has it; metrics are pooled over as many.
BATCH = 4
#: The grid to which every volume is resized, in voxels.
GRID = (128, 128, 128)


# --- loss ----------------------------------------------------------------------------------


def hard_dice_loss(logits, labels):
    """One minus the Dice of the prediction, thresholded at one half; a batch's voxels pooled.

    A threshold is flat wherever it is not a step, so that nothing flows back through it.
    """
    mask, labels = (logits > 0).float(), labels.float()
    return 1 - 2 * (mask * labels).sum() / (mask.sum() + labels.sum()).clamp(min=1)


def released_loss(logits, labels):
    """Half of the binary cross-entropy plus half of `hard_dice_loss`.

    Args:
        logits: (B, 1, H, W, D).
        labels: 0 and 1, of the same shape.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, labels.float())
    return 0.5 * entropy + 0.5 * hard_dice_loss(logits, labels)


def loss_gradients(logits, labels):
    """What each half of a loss tells the network.

    Args:
        logits, labels: as in `released_loss`.

    Returns:
        A table, a term a row: term, value, differentiable (autograd knows a way back from it to
        the logits) and largest_gradient (absolute, over the voxels; 0 where there is no way).
    """
    terms = {
        "cross-entropy": lambda z: F.binary_cross_entropy_with_logits(z, labels.float()),
        "Dice of probabilities": lambda z: DiceLoss(sigmoid=True)(z, labels),
        "Dice of the thresholded prediction": lambda z: hard_dice_loss(z, labels),
    }
    rows = []
    for name, term in terms.items():
        leaf = logits.detach().clone().requires_grad_()
        value, largest = term(leaf), 0.0
        if value.requires_grad:
            largest = torch.autograd.grad(value, leaf)[0].abs().max().item()
        rows.append(
            {
                "term": name,
                "value": value.item(),
                "differentiable": value.requires_grad,
                "largest_gradient": largest,
            }
        )
    return pd.DataFrame(rows)


# --- augmented copies ----------------------------------------------------------------------


def rotate_copy(image, label, angle, planes=True, splines=True):
    """Rotate image and label by one angle about their centres.

    Image and label get the same pair of axes, (1, 2). The image has a channel axis first and
    turns in the plane of its first two axes of space; the label has none and turns in the plane
    of its last two. Both are interpolated by cubic splines, and the label is cut at one half.

    Args:
        image: (C, H, W, D) array.
        label: (H, W, D) array of 0 and 1.
        angle: degrees.
        planes: False turns the label in the image's plane.
        splines: False takes the label's nearest voxel.

    Returns:
        `(image, label)`, float32 and uint8, of the same shapes.
    """
    turned = ndimage.rotate(np.asarray(image, np.float32), angle, axes=(1, 2), reshape=False)
    label = ndimage.rotate(
        np.asarray(label, np.float32),
        angle,
        axes=(1, 2) if planes else (0, 1),
        reshape=False,
        order=3 if splines else 0,
    )
    return turned, (label > 0.5).astype(np.uint8)


class CopyAugmentation:
    """The augmentation of training volumes, `AuditConfig`'s departures included.

    A volume with an entry "copy" becomes that copy. Without one it is augmented as in the study,
    but that every third, drawn at random, is a rotated copy: so many of the released code's
    samples are (`AuditConfig.rotated`).

    Args:
        config: a `DataConfig`; its angle and its intensity are the released code's, too.
        audit: an `AuditConfig`.
    """

    def __init__(self, config, audit):
        self.config, self.audit = config, audit
        self.study = augmentation(config)

    def set_random_state(self, seed):
        """Seed everything that is drawn."""
        self.study.set_random_state(seed)
        self.random = np.random.default_rng(seed)

    def __call__(self, volume):
        """A volume's dict with "image" (C, H, W, D) and "label" (1, H, W, D) anew."""
        copy = volume.get("copy")
        if copy is None:
            if self.random.integers(len(COPIES)):
                return self.study(volume)
            copy = "rotated"
        return volume | getattr(self, f"_{copy}")(volume["image"], volume["label"])

    def _original(self, image, label):
        return {"image": image, "label": label}

    def _rotated(self, image, label):
        angle = self.random.uniform(-self.config.rotation_degrees, self.config.rotation_degrees)
        switches = (self.audit.planes, self.audit.splines)
        image, label = rotate_copy(image.numpy(), label[0].numpy(), angle, *switches)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)[None]}

    def _intensity(self, image, label):
        low, high = 1 - self.config.intensity, 1 + self.config.intensity
        brightness, contrast = self.random.uniform(low, high, 2)
        image = image * brightness
        return {"image": (image - image.mean()) * contrast + image.mean(), "label": label}


def draw_copies(cases, seed):
    """Pool three copies of each case, and draw training and validation from the pool.

    Args:
        cases: list of `Case`.
        seed: of the draw; the released code sets none.

    Returns:
        A table, a copy a row: case, subject, copy, side ("train" or "validation").
    """
    pool = [(case.name, case.subject, copy) for copy in COPIES for case in cases]
    order = np.random.default_rng(derive_seed("copies", seed)).permutation(len(pool))
    table = pd.DataFrame([pool[i] for i in order], columns=["case", "subject", "copy"])
    training = int(TRAINING_SHARE * len(pool))
    return table.assign(side=["train"] * training + ["validation"] * (len(pool) - training))


# --- splits --------------------------------------------------------------------------------


def released_split(cases, seed):
    """The released code's whole split: test cases by case, then `draw_copies` of the others.

    Args:
        cases: list of `Case`.
        seed: of the draw; the released code sets none.

    Returns:
        A table as of `draw_copies`, with the side "test" (of which the code evaluates the first).
    """
    order = np.random.default_rng(derive_seed("released split", seed)).permutation(len(cases))
    n_test = test_size(len(cases))
    test, rest = ([cases[i] for i in part] for part in (order[:n_test], order[n_test:]))
    table = pd.DataFrame({"case": [c.name for c in test], "subject": [c.subject for c in test]})
    table = table.assign(copy="original", side="test")
    return pd.concat([table, draw_copies(rest, seed)], ignore_index=True)


def test_size(cases):
    """How many of so many cases the released code tests; at least one, where its share is none."""
    return max(1, int(TEST_SHARE * cases))


def siblings(names, subject_of):
    """Who of a side's cases has a sibling there.

    Args:
        names: cases.
        subject_of: {case: subject}.

    Returns:
        `(first, others)`, sets of cases: of each subject that has several, the first by name, and
        the rest.
    """
    first, others = {}, set()
    for name in sorted(names):
        if first.setdefault(subject_of[name], name) != name:
            others.add(name)
    return {first[subject_of[name]] for name in others}, others


def sibling_split(split, cases, seed):
    """A split in which siblings of test cases are trained on, as they are where cases are drawn.

    Args:
        split: a `Split` by subject.
        cases: {name: `Case`}.
        seed: of the draw of the training cases that make room.

    Returns:
        A `Split`: of each test subject with several cases, all but the first are in training, and
        as many training cases are in none.
    """
    _, moved = siblings(split.test, {name: cases[name].subject for name in split.test})
    generator = np.random.default_rng(derive_seed("siblings", seed))
    kept = generator.permutation(split.train)[len(moved) :].tolist()
    test = tuple(name for name in split.test if name not in moved)
    return replace(split, train=tuple(sorted([*kept, *moved])), test=test)


def on_both_sides(table, side, others):
    """How many of a side's cases and subjects stand on other sides as well.

    Args:
        table: as of `released_split`.
        side: a side's name.
        others: names of the other sides.

    Returns:
        dict of `cases` and `subjects` (of that side), `cases_shared` and `subjects_shared`.
    """
    here, there = table[table["side"] == side], table[table["side"].isin(others)]
    counts = {}
    for column, name in (("case", "cases"), ("subject", "subjects")):
        own = set(here[column])
        counts |= {name: len(own), f"{name}_shared": len(own & set(there[column]))}
    return counts


# --- labels and metrics --------------------------------------------------------------------


def resize_mask(mask, grid, linear):
    """Resize a mask as MONAI resizes the image beside it.

    Args:
        mask: (H, W, D) booleans.
        grid: the new shape.
        linear: interpolate linearly and count whatever is above zero, as the released code does:
            any voxel that touches the structure is in it. False takes the nearest voxel.

    Returns:
        Booleans of shape `grid`.
    """
    values = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    mode = "trilinear" if linear else "nearest-exact"
    return F.interpolate(values, tuple(grid), mode=mode)[0, 0].numpy() > 0


def _one_step(masks, axis):
    """A mask and what lies one step from it along an axis."""
    masks = np.moveaxis(masks, axis, 0)
    grown = masks.copy()
    grown[1:] |= masks[:-1]
    grown[:-1] |= masks[1:]
    return np.moveaxis(grown, 0, axis)


def dilation_surface(masks):
    """Voxels outside of a mask that touch it, by a face, an edge or a corner.

    Args:
        masks: (B, H, W, D) booleans.
    """
    grown = masks
    for axis in (1, 2, 3):
        grown = _one_step(grown, axis)
    return grown & ~masks


def surface_hits(predictions, truths, batch_index=True):
    """Surface voxels within one voxel of the other surface, case by case.

    Args:
        predictions, truths: (B, H, W, D) booleans.
        batch_index: count the case's place in the batch as a fourth coordinate, so that one and
            the same voxel of two neighbouring cases lies at distance 1.

    Returns:
        dict of (B,) integers: `near_predicted`, `surface_predicted`, `near_labelled`,
        `surface_labelled`.
    """
    # Surfaces lie one voxel outside of the structures: the rest of the grid has none to count.
    inside, box = (predictions | truths).any(0), [slice(None)]
    for axis in range(3):
        along = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, along[0] - 1), along[-1] + 2) if len(along) else slice(0))
    predictions, truths = predictions[tuple(box)], truths[tuple(box)]
    surfaces = {
        "predicted": dilation_surface(predictions),
        "labelled": dilation_surface(truths),
    }
    # Of all voxels, those within distance 1 are the voxel itself and its neighbours by a face.
    axes, counts = (0, 1, 2, 3) if batch_index else (1, 2, 3), {}
    for name, other in (("predicted", "labelled"), ("labelled", "predicted")):
        reached = np.logical_or.reduce([_one_step(surfaces[other], axis) for axis in axes])
        counts[f"near_{name}"] = (surfaces[name] & reached).sum((1, 2, 3))
        counts[f"surface_{name}"] = surfaces[name].sum((1, 2, 3))
    return counts


def dilation_nsd(near_predicted, surface_predicted, near_labelled, surface_labelled):
    """The released code's surface Dice from counts of `surface_hits`; 0 where a side is empty.

    It is the mean of both surfaces' shares, not the share of both surfaces.

    Args: numbers or arrays of equal shape.
    """
    sides = ((near_predicted, surface_predicted), (near_labelled, surface_labelled))
    shares = [np.asarray(near) / np.maximum(1, total) for near, total in sides]
    empty = (np.asarray(surface_predicted) == 0) | (np.asarray(surface_labelled) == 0)
    return np.where(empty, 0.0, sum(shares) / 2)


def ball(shape, centre, radius):
    """A ball as a mask; lengths in voxels."""
    squares = [(np.arange(n) - c) ** 2 for n, c in zip(shape, centre, strict=True)]
    return sum(np.ix_(*squares)) <= radius**2


def worked_examples():
    """What misrotated planes and linear labels do to balls, which anyone can compute.

    Returns:
        A table, an example a row: example, value.
    """
    found = {}
    for where, centre in (("in the centre", (64, 64, 64)), ("off centre", (80, 48, 96))):
        mask = ball(GRID, centre, 8)
        image, label = rotate_copy(mask[None], mask, 5)
        overlap = ((image[0] > 0.5) & (label > 0)).sum()
        what = f"Dice of image and label, ball of radius 8 {where} of 128^3, turned by 5 degrees"
        found[what] = 2 * overlap / ((image[0] > 0.5).sum() + label.sum())
    mask = ball((155, 240, 240), (77, 120, 110), 15)
    for name, linear in (("linear", True), ("nearest", False)):
        what = f"volume, ball of radius 15 mm resized from 155 x 240 x 240 to 128^3, {name}"
        voxel = mask.size / np.prod(GRID)
        found[what] = resize_mask(mask, GRID, linear).sum() * voxel / mask.sum()
    return pd.DataFrame(found.items(), columns=["example", "value"])


# --- training ------------------------------------------------------------------------------


class ReleasedProcedure(Procedure):
    """A training with the departures of its configuration's `AuditConfig`.

    Args:
        config: an `ExperimentConfig`.
    """

    def __init__(self, config):
        self.config, self.audit = config, config.audit

    def volumes(self, preparation, data, show):
        """As `Procedure.volumes`; with `copies`, validation is a function of the epoch."""
        if data.task.ignore is not None:
            raise DataError(f"{data.task.name}: the released code knows no label of ignored voxels")
        if self.audit.siblings:
            data = replace(data, split=sibling_split(data.split, data.cases, self.config.seed))
        cases = [*data.side("train"), *data.side("validation")]
        sides = super().volumes(preparation, data, show)
        if self.audit.linear_labels:
            labels = {case.name: self._linear_label(case) for case in cases}
            sides = [[v | {"label": labels[v["name"]]} for v in side] for side in sides]
        if not self.audit.copies:
            return sides
        volumes = {v["name"]: v for side in sides for v in side}
        samples = {"train": [], "validation": []}
        for row in draw_copies(cases, self.config.seed).itertuples():
            own = {"name": f"{row.case}, {row.copy}", "copy": row.copy}
            samples[row.side].append(volumes[row.case] | own)
        return samples["train"], partial(self._anew, samples["validation"])

    def _linear_label(self, case):
        """(1, H, W, D) uint8, oriented as `Preparation` orients an image."""
        label, header = read_label(case.label)
        mask = apply_orientation(label > 0, io_orientation(header.affine))
        label = resize_mask(mask, self.config.data.grid, linear=True)
        return torch.from_numpy(label[None].astype(np.uint8))

    def _anew(self, samples, epoch):
        """Validation copies, drawn anew for an epoch."""
        augment, volumes = self.augmentation(self.config.data), []
        for sample in samples:
            seed = derive_seed(self.config.seed, "validation copy", epoch, sample["name"])
            augment.set_random_state(seed)
            copy = augment(sample | {"image": sample["image"].as_tensor()})
            volumes.append(copy | {"image": MetaTensor(copy["image"])})
        return volumes

    def loss(self, target, ignoring=False):
        return released_loss if self.audit.dice == "hard" else super().loss(target, ignoring)

    def augmentation(self, config):
        if self.audit.copies or self.audit.rotated:
            return CopyAugmentation(config, self.audit)
        return super().augmentation(config)

    def score(self, row):
        if self.audit.select == "last":
            return row["epoch"]
        return -row["train_loss"] if self.audit.select == "loss" else super().score(row)


def procedure_of(config):
    """The `Procedure` of an `ExperimentConfig`: the study's, but where its `audit` departs."""
    return Procedure() if config.audit == AuditConfig() else ReleasedProcedure(config)


# --- the model as it is built --------------------------------------------------------------


class ReleasedModel(nn.Module):
    """The released model's structure, for the comparison of time and memory.

    Patches go through a generic n-dimensional unfold (a convolution with one-hot kernels) and
    come back by its transpose; the language block is Llama-3.1-8B's layer with random weights and
    attention that holds all scores in float32; nothing is in another number format.

    Args:
        grid: the volume's size in voxels.
        patch: the patch's size in voxels.
        language: without the language part it is the released ViT.
        llama: entries of the language model's config.json, such as a smaller one for a test.
    """

    def __init__(
        self, grid=GRID, patch=(8, 8, 8), language=True, llama=ARCHITECTURES["Llama-3.1-8B"]
    ):
        super().__init__()
        sizes, lora = PRESETS["released"][0], PRESETS["released"][0].language
        width, voxels = sizes.width, int(np.prod(patch))
        tokens = token_grid(grid, patch)
        self.patch, self.tokens = tuple(patch), tokens
        self.register_buffer("one_hot", torch.eye(voxels).view(voxels, 1, *patch), False)
        self.embed = nn.Linear(voxels, width)
        self.language = None
        if language:
            self.language = _ReleasedLanguage(width, llama, lora.lora_rank, lora.lora_alpha)
        self.position = nn.Parameter(torch.randn(1, int(np.prod(tokens)), width))
        self.blocks = nn.ModuleList(
            _ReleasedBlock(width, sizes.heads, sizes.dropout) for _ in range(sizes.encoder_depth)
        )
        self.unembed = nn.Linear(width, voxels)

    def forward(self, volume):
        """(B, 1, H, W, D) -> logits of the same shape."""
        x = F.conv3d(volume, self.one_hot, stride=self.patch)  # (B, voxels, h, w, d)
        x = self.embed(x.flatten(2).transpose(1, 2))  # (B, T, E)
        if self.language is not None:
            x = self.language(x)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.unembed(x).transpose(1, 2).unflatten(2, self.tokens)
        return F.conv_transpose3d(x, self.one_hot, stride=self.patch)


class _ReleasedBlock(nn.Module):
    """Pre-norm transformer block with torch's own multi-head attention."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class _LowRankLinear(nn.Module):
    """A random, frozen map with a trained bias and a trained product of two thin matrices."""

    def __init__(self, before, after, rank, alpha):
        super().__init__()
        self.base = nn.Linear(before, after)
        self.base.weight.requires_grad_(False)
        self.down = nn.Linear(before, rank, bias=False)
        self.up = nn.Linear(rank, after, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


class _ReleasedLanguage(nn.Module):
    """D2(block(z) + z) with z = D1(x), a residual around the block alone."""

    def __init__(self, width, llama, rank, alpha):
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        config = LlamaConfig(**llama, attn_implementation="eager")
        self.block = LlamaDecoderLayer(config, layer_idx=0).requires_grad_(False)
        self.head_width = config.hidden_size // config.num_attention_heads
        self.d1 = _LowRankLinear(width, config.hidden_size, rank, alpha)
        self.d2 = _LowRankLinear(config.hidden_size, width, rank, alpha)

    def forward(self, x):
        z = self.d1(x)  # (B, T, L)
        # cos = 1 and sin = 0: no rotary embedding. No mask: every token sees every other.
        still = z.new_ones(1, 1, self.head_width), z.new_zeros(1, 1, self.head_width)
        h = self.block(z, attention_mask=None, position_embeddings=still)
        return self.d2(F.rms_norm(h, h.shape[-1:], eps=UNIT_NORM_EPS) + z)


def released_step(model, optimiser, images, labels):
    """One training step of the released code; the loss as a number.

    Args:
        model: a `ReleasedModel` in `train()`.
        optimiser: of its trained weights; the released code has torch's Adam.
        images: (B, 1, H, W, D) float32.
        labels: 0 and 1, of the same shape.
    """
    optimiser.zero_grad()
    loss = released_loss(model(images), labels)
    loss.backward()
    optimiser.step()
    return loss.item()
