"""Comparison networks: MONAI's own results, on any grid, from the experiment's seed."""

import typing

import pytest
import torch
from monai.networks import nets

from mvl.config import DataConfig, ExperimentConfig, PeerConfig, TrainingConfig
from mvl.data.task_data import open_task
from mvl.experiment.run import Run, fit
from mvl.experiment.run import test as open_test_set
from mvl.experiment.state import load_weights, save_weights
from mvl.models.folder import trained_state
from mvl.models.peers import build_peer, padded_grid
from mvl.models.sizes import count_parameters

SMALL = (32, 32, 64)  # a multiple of every network's step

#: MONAI's networks as a user of MONAI would make them, for 2 channels, 3 classes and `SMALL`.
BARE = {
    "unet": lambda: nets.UNet(3, 2, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2),
    "unet++": lambda: nets.BasicUNetPlusPlus(3, 2, 3, (4, 8, 32, 64, 128, 4)),
    "unetr": lambda: nets.UNETR(2, 3, SMALL, 8, 96, 384, 4),
    "swin-unetr": lambda: nets.SwinUNETR(
        2, 3, num_heads=(1, 2, 4, 8), window_size=4, feature_size=12
    ),
    "segresnet": lambda: nets.SegResNet(3, 8, 2, 3),
    "dynunet": lambda: nets.DynUNet(
        3, 2, 3, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=(8, 16, 32, 64, 128)
    ),
}

#: What MONAI makes and never uses: {architecture: (part of the names, its number of weights)}.
UNUSED = {
    # Three heads of deep supervision: point-wise convolutions of 4 channels to 3 classes.
    "unet++": ("final_conv_0_", 3 * (4 * 3 + 3)),
    # Scale and shift of a norm, 96 wide, in each of 12 blocks.
    "unetr": ("norm_cross_attn", 12 * 2 * 96),
}

each = pytest.mark.parametrize("name", BARE)


def build(name, grid=SMALL, seed=0, channels=2, classes=3):
    return build_peer(PeerConfig(name), channels, classes, grid, seed)


def test_every_architecture_of_the_configuration_is_tested_here():
    assert set(typing.get_args(typing.get_type_hints(PeerConfig)["architecture"])) == set(BARE)


@each
def test_a_grid_that_no_network_likes_is_trained_and_every_weight_learns(name):
    """Most of MONAI's own networks raise where one voxel is left to be normalised."""
    grid = (5, 8, 6)
    model, volume = build(name, grid), torch.randn(2, 2, *grid)
    model.train()(volume).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.inference_mode():
        assert model.eval()(volume[:1]).shape == (1, 3, *grid)


def test_grids_are_padded_to_what_can_be_halved():
    assert padded_grid((48, 64, 48), 16) == (48, 64, 48)
    assert padded_grid((48, 64, 48), 32) == (64, 64, 64)
    assert padded_grid((1, 16, 17), 16) == (16, 16, 32)
    assert padded_grid((16, 9, 16), 16) == (16, 16, 32)  # more than one voxel at the coarsest


@each
def test_it_is_monais_own_network(name):
    """Equal logits of a volume that is padded, and of one that is padded by hand."""
    model, bare = build(name).eval(), BARE[name]().eval()
    weights = {key.removeprefix("network."): t for key, t in trained_state(model).items()}
    missing, foreign = bare.load_state_dict(weights, strict=False)
    # DynUNet's second names are of the same weights.
    unused, count = UNUSED.get(name, ("skip_layers.", 0))
    assert foreign == [] and all(unused in key for key in missing)
    used = sum(p.numel() for p in bare.parameters()) - count
    assert count_parameters(PeerConfig(name), SMALL, 2, 3) == (used, 0)
    volume = torch.randn(1, 2, 27, 32, 61)  # padded by 2 and 3, and by 1 and 2
    with torch.no_grad():
        wider = bare(torch.nn.functional.pad(volume, (1, 2, 0, 0, 2, 3)))
        wider = wider[0] if name == "unet++" else wider
        # The memory layout is another, and with it the order of sums.
        torch.testing.assert_close(model(volume), wider[:, :, 2:29, :, 1:62], atol=1e-4, rtol=1e-4)


def test_sizes_stay_or_the_protocol_gets_another_version():
    """A run's fingerprint does not know them (see `mvl.models.peers`)."""
    sizes = {name: count_parameters(PeerConfig(name), (48, 64, 48))[0] for name in BARE}
    assert sizes == {
        "unet": 1_185_818,
        "unet++": 1_543_145,
        "unetr": 2_440_969,
        "swin-unetr": 3_890_611,
        "segresnet": 1_176_177,
        "dynunet": 1_412_385,
    }


@each
def test_weights_are_a_function_of_the_seed_and_a_file_holds_each_once(name, tmp_path):
    """DynUNet holds each weight under two names, which safetensors refuses to write."""
    before = torch.get_rng_state()
    model = build(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = build(name, seed=3), build(name, seed=4)
    one, two = model.state_dict(keep_vars=True), other.state_dict()
    assert all(torch.equal(one[key], tensor) for key, tensor in again.state_dict().items())
    assert any(not torch.equal(one[key], two[key]) for key in one)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(one[key], tensor) for key, tensor in other.state_dict().items())
    saved = trained_state(model)
    assert {id(t) for t in one.values()} == {id(t) for key, t in one.items() if key in saved}


def test_a_peer_is_trained_tested_and_loaded_as_any_other_model(phantom, tmp_path):
    config = ExperimentConfig(
        DataConfig(grid=(16, 24, 16)),
        PeerConfig("dynunet"),
        TrainingConfig(epochs=1, warmup_epochs=0),
    )
    data = open_task(config.data, 0, phantom, progress=False)
    folder = fit(config, data, tmp_path, show=False)
    cases = open_test_set(folder, data, show=False)
    assert not cases.isna().any(axis=None) and not (folder / "block.json").exists()
    trained, fresh = Run.load(folder).model, build("dynunet", config.data.grid, 0, 1, 1)
    assert any(
        not torch.equal(p, q) for p, q in zip(trained.parameters(), fresh.parameters(), strict=True)
    )
