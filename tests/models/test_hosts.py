"""Hosts: comparison networks that hold a language part at their deepest level."""

import dataclasses

import pytest
import torch

from mvl.config import HOSTS, DataConfig, ExperimentConfig, LanguageConfig, PeerConfig
from mvl.config import TrainingConfig as Plan
from mvl.data.task_data import open_task
from mvl.errors import ConfigError
from mvl.experiment.block_use import block_use
from mvl.experiment.procedure import segmentation_loss
from mvl.experiment.run import Run, fit
from mvl.experiment.training import _optimiser
from mvl.models.activations import activations
from mvl.models.folder import trained_state
from mvl.models.parts import parameters_by_part
from mvl.models.peers import build_peer
from mvl.models.sizes import count_parameters
from tests.experiment.common import LLAMA, Stopped, stop_after

GRID = (16, 16, 20)  # it is padded
PART = LanguageConfig(LLAMA, start="identity", skip=False)

each = pytest.mark.parametrize("host", HOSTS)


def build(host, part=PART):
    return build_peer(PeerConfig(host, part), 1, 1, GRID, seed=3).eval()


@each
def test_without_the_blocks_term_a_host_is_its_network(host):
    """The part at its start is the identity then, so that its place and its way back are right."""
    bare, model, volume = build(host, None), build(host), torch.randn(2, 1, *GRID)
    weights = bare.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items() if n in weights)
    with torch.no_grad():
        expected = bare(volume)
        assert (model(volume) - expected).abs().max() > 1e-3
        model.language.edit = torch.zeros_like
        torch.testing.assert_close(model(volume), expected, atol=1e-4, rtol=1e-4)


@each
def test_stages_are_the_parts_input_update_and_output(host):
    model = build(host)
    torch.nn.init.normal_(model.position)
    stages, part = activations(model, torch.randn(1, 1, *GRID)), model.language
    assert list(stages) == ["encoder", "update", "after"]
    with torch.no_grad():
        torch.testing.assert_close(stages["update"], part.update(stages["encoder"]))
        torch.testing.assert_close(stages["after"], part(stages["encoder"]))
    assert stages["encoder"].shape[1:] == model.position.shape[1:]
    assert list(activations(build(host, None), torch.randn(1, 1, *GRID))) == []


@pytest.mark.parametrize(
    "changes",
    [
        *({"control": c} for c in ("random", "matched", "shuffled", "identity", "trainable")),
        {"lora_rank": 2},
    ],
    ids=lambda changes: next(iter(changes.values())),
)
def test_every_control_is_trained_and_only_what_is_frozen_stays(changes):
    part = dataclasses.replace(PART, **changes)
    model = build("dynunet", part).train()
    assert not model.language.block.training or part.control == "identity"
    optimiser = _optimiser(model, plan := Plan(mapper_rate=0.3, decay_position=False))
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    images = torch.randn(2, 1, *GRID)
    for _ in range(2):  # an adapter's first factor moves with the second step
        segmentation_loss("foreground")(model(images), (images > 1).to(torch.uint8)).backward()
        optimiser.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(first[n], p)}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n for n in first if n.startswith("language.block.") and ".lora_" not in n}
    if part.control == "trainable":
        assert frozen <= moved and frozen <= trained_state(model).keys()
    else:
        assert not frozen & (moved | trained_state(model).keys())
    rates = {id(p): g for g in optimiser.param_groups for p in g["params"]}
    mapper = next(p for p in model.language.d1.parameters() if p.requires_grad)
    assert rates[id(mapper)]["lr"] == pytest.approx(0.3 * plan.learning_rate)
    assert rates[id(model.position)]["weight_decay"] == 0

    parts = parameters_by_part(model)
    sums = tuple(int(parts[kind].sum()) for kind in ("trained", "frozen"))
    assert count_parameters(PeerConfig("dynunet", part), GRID) == sums
    assert parts.loc["language d1"].sum() and parts.loc["network", "trained"]


def test_unetrs_own_position_is_not_decayed_either():
    model = build("unetr", None)
    groups = _optimiser(model, Plan(decay_position=False)).param_groups
    (own,) = [g for g in groups if any(p is model.position for p in g["params"])]
    assert own["weight_decay"] == 0


def test_a_configuration_says_of_its_part_only_what_is_there():
    with pytest.raises(ConfigError, match=f"unet cannot .*{', '.join(HOSTS)}"):
        PeerConfig("unet", PART)
    bare, config = (ExperimentConfig(model=PeerConfig("dynunet", part)) for part in (None, PART))
    assert bare.to_dict()["model"] == {"architecture": "dynunet"}
    assert all(ExperimentConfig.from_dict(c.to_dict()) == c for c in (bare, config))


def test_a_run_is_resumed_loaded_and_asked_for_its_use(phantom, tmp_path):
    model = PeerConfig("dynunet", PART)
    config = ExperimentConfig(DataConfig(grid=(16, 24, 16), fraction=0.3), model, Plan(epochs=2))
    data = open_task(config.data, 0, phantom, progress=False)
    with pytest.raises(Stopped):
        fit(config, data, tmp_path / "again", show=False, on_epoch=stop_after(1))
    folders = [fit(config, data, tmp_path / name, show=False) for name in ("again", "whole")]
    run, whole = map(Run.load, folders)
    for ours, theirs in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    used = block_use(run, data.side("validation")[:2], show=False)
    dice = used.groupby("edit")["dice"].mean()
    assert dice["deleted"] != dice["as trained"]
