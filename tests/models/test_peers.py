"""Comparison networks: MONAI's own results, on any grid, from the experiment's seed."""

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, DynUNet, SegResNet, UNet

from mvl.config import DataConfig, ExperimentConfig, PeerConfig, TrainingConfig
from mvl.data.loading import open_task
from mvl.errors import ConfigError, RunError
from mvl.experiments import Run, fit
from mvl.experiments import test as open_test_set
from mvl.models.peers import _NETWORKS, build_peer
from mvl.training import load_weights, save_weights

ARCHITECTURES = sorted(_NETWORKS)
SMALL = (32, 32, 64)  # a multiple of every network's step

each = pytest.mark.parametrize("name", ARCHITECTURES)


@each
def test_logits_have_the_volumes_size_on_a_grid_that_no_network_likes(name):
    model = build_peer(PeerConfig(name), 2, 3, (33, 20, 27), 0)
    assert model(torch.randn(2, 2, 33, 20, 27)).shape == (2, 3, 33, 20, 27)


@each
def test_every_weight_learns(name):
    model = build_peer(PeerConfig(name), 1, 1, SMALL, 0)
    model(torch.randn(1, 1, *SMALL)).square().mean().backward()
    without = [key for key, weight in model.named_parameters() if weight.grad is None]
    # UNet++ carries the heads of its deep supervision, which is off, and UNETR's transformer the
    # norms of a cross-attention that it has not.
    unused = {"unet++": "final_conv_0_", "unetr": "norm_cross_attn"}
    assert all(unused.get(name, "none") in key for key in without)


@each
def test_weights_come_back_from_a_file(name, tmp_path):
    """DynUNet holds each weight under two names, which safetensors refuses to write."""
    model = build_peer(PeerConfig(name), 1, 1, SMALL, 0).eval()
    other = build_peer(PeerConfig(name), 1, 1, SMALL, 1).eval()
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    volume = torch.randn(1, 1, *SMALL)
    with torch.no_grad():
        assert torch.equal(model(volume), other(volume))


@each
def test_weights_are_a_function_of_the_seed_alone(name):
    before = torch.get_rng_state()
    one = build_peer(PeerConfig(name), 1, 1, SMALL, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = build_peer(PeerConfig(name), 1, 1, SMALL, 3).state_dict()
    other = build_peer(PeerConfig(name), 1, 1, SMALL, 4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


BARE = {
    "unet": lambda: UNet(3, 1, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2),
    "unet++": lambda: BasicUNetPlusPlus(3, 1, 1, (8, 16, 32, 64, 128, 8)),
    "segresnet": lambda: SegResNet(3, 8, 1, 1),
    "dynunet": lambda: DynUNet(
        3, 1, 1, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), filters=(16, 32, 64, 128)
    ),
}


@pytest.mark.parametrize("name", BARE)
def test_it_is_monais_own_network(name):
    """Equal logits where nothing is padded; and, padded by hand, where something is."""
    model, bare = build_peer(PeerConfig(name), 1, 1, SMALL, 0).eval(), BARE[name]().eval()
    bare.load_state_dict(model.network.state_dict())
    volume = torch.randn(1, 1, *SMALL)
    odd = volume[..., 1:62]  # 61: padded by 1 before and by 2 behind
    with torch.no_grad():
        direct, wider = bare(volume), bare(torch.nn.functional.pad(odd, (1, 2)))
        if name == "unet++":
            direct, wider = direct[0], wider[0]
        assert torch.equal(model(volume), direct)
        assert torch.equal(model(odd), wider[..., 1:62])


def test_a_grid_that_cannot_be_normalised_is_refused_by_name():
    with pytest.raises(ConfigError, match="unet needs a grid with a side above 8"):
        build_peer(PeerConfig("unet"), 1, 1, (8, 8, 8), 0)


def test_a_configuration_with_a_peer_is_read_back_and_refused_by_name():
    config = ExperimentConfig(model=PeerConfig("segresnet"))
    assert ExperimentConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["model"] == {"architecture": "segresnet"}
    with pytest.raises(ConfigError, match="model.architecture: 'resnet' is none of unet"):
        ExperimentConfig.from_dict({"model": {"architecture": "resnet"}})
    with pytest.raises(ConfigError, match="unknown key model.depth"):
        ExperimentConfig.from_dict({"model": {"architecture": "unet", "depth": 3}})


def test_a_peer_is_trained_tested_and_loaded_as_any_other_model(phantom, tmp_path):
    config = ExperimentConfig(
        DataConfig(grid=(16, 24, 16)), PeerConfig("unet"), TrainingConfig(epochs=2, warmup_epochs=0)
    )
    data = open_task(config.data, 0, phantom, progress=False)
    folder = fit(config, data, tmp_path, show=False)
    cases = open_test_set(folder, data, show=False)
    assert not cases.isna().any(axis=None) and not (folder / "block.json").exists()
    run = Run.load(folder)
    state = run.model.trained_state()
    fresh = build_peer(config.model, 1, 1, config.data.grid, 7)
    fresh.load_trained_state(state, "a run")
    volume = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(volume), run.model(volume))
    state.popitem()
    with pytest.raises(RunError, match="a run is of another model: it lacks"):
        fresh.load_trained_state(state, "a run")
