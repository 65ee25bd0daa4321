"""Training: what is trained, what is not, and that a killed run ends as an undisturbed one."""

import hashlib
import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mvl.config import LanguageConfig, TrainingConfig
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.errors import ConfigError, RunError
from mvl.experiment import training
from mvl.experiment.inference import decide, infer
from mvl.experiment.metrics import segmentation_metrics
from mvl.experiment.procedure import segmentation_loss
from mvl.experiment.state import load_weights, restore_state, write_state
from mvl.experiment.training import _leave_out_unless_finite, _optimiser, train, validate
from mvl.models.segmenter import build_segmenter
from tests.experiment.common import Stopped, stop_after


def prepared(config, root):
    data = open_task(config.data, config.seed, root, progress=False)
    preparation = Preparation(data.task, config.data)
    return [preparation.load(data.side(side), progress=False) for side in ("train", "validation")]


def build(config):
    return build_segmenter(config.model, 1, 1, config.data.grid, config.seed)


def assert_equal_files(one, other):
    for file in ("curves.csv", "model.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_the_loss_is_soft_dice_plus_binary_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 1, 4, 4, 4), torch.rand(2, 1, 4, 4, 4) > 0.7
    p, y = logits.sigmoid().flatten(1), labels.float().flatten(1)
    dice = 1 - (2 * (p * y).sum(1) + 1e-5) / (p.sum(1) + y.sum(1) + 1e-5)
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    loss = segmentation_loss("foreground")(logits, labels.to(torch.uint8))
    assert loss.item() == pytest.approx((dice.mean() + entropy).item(), abs=1e-5)


def test_logits_of_zero_are_background():
    assert not decide(torch.zeros(1, 1, 2, 2, 2)).any()
    assert not decide(torch.zeros(1, 3, 2, 2, 2)).any()
    classes = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1, 1)
    assert decide(classes).flatten().tolist() == [False, True]


def test_a_frozen_block_stays_as_it_was_and_outside_of_everything(phantom, tiny, tmp_path):
    config = tiny(model={"language": LanguageConfig()})
    model = build(config)
    before = {name: p.clone() for name, p in model.language.block.named_parameters()}
    first = {name: p.clone() for name, p in model.named_parameters()}
    train(model, *prepared(config, phantom), config, tmp_path, show=False)
    assert all(torch.equal(before[n], p) for n, p in model.language.block.named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.equal(first[n], p)}
    assert {n for n in first if not n.startswith("language.block.")} == moved
    from safetensors import safe_open

    for file in ("model.safetensors", "state.safetensors"):
        with safe_open(tmp_path / file, "pt") as tensors:
            assert not [name for name in tensors.keys() if "block" in name]  # noqa: SIM118
            total = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
            assert total < 5 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_best_epoch_by_validation_is_kept(phantom, tiny, tmp_path):
    config = tiny(training={"learning_rate": 0.01})
    train(build(config), *(volumes := prepared(config, phantom)), config, tmp_path, show=False)
    curves = pd.read_csv(tmp_path / "curves.csv")
    model = build(config)
    load_weights(model, tmp_path / "model.safetensors")
    score = validate(model, volumes[1], 4, "cpu")
    assert score == pytest.approx(curves["validation_dice"].max(), abs=1e-6)


def test_float32_is_float32_on_a_gpu_too(phantom, tiny, tmp_path):
    """PyTorch's default for a GPU's convolutions is TF32, whatever a run's records say."""
    config, seen = tiny(training={"epochs": 1}), []
    model = build(config)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    train(model, *prepared(config, phantom), config, tmp_path, show=False)
    infer(model.eval(), torch.zeros(1, 1, *config.data.grid))
    assert len(seen) > 2 and not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_the_schedule_warms_up_and_falls_to_zero(phantom, tiny, tmp_path):
    config = tiny(training={"epochs": 6, "warmup_epochs": 2, "learning_rate": 0.03})
    volumes = [side[:1] for side in prepared(config, phantom)]
    train(build(config), *volumes, config, tmp_path, show=False)
    rates = pd.read_csv(tmp_path / "curves.csv")["learning_rate"].tolist()
    cosine = [0.03 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([0.01, 0.02, *cosine], abs=1e-6)


def test_a_gradient_that_is_no_number_stops_before_the_step(phantom, tiny, tmp_path):
    """A step on it would leave weights, and a state to go on from, that are no numbers."""
    config = tiny(training={"clip_norm": 0.0})
    volumes = prepared(config, phantom)
    train(build(config), *volumes, config, tmp_path / "whole", show=False)

    model, steps = build(config), []

    def explode(gradient):
        steps.append(1)
        return gradient * math.inf if len(steps) == 4 else gradient  # of the second epoch's last

    next(model.parameters()).register_hook(explode)
    said = r"gradient's norm became (nan|inf) at step 2 of epoch 2 with learning rate .*lower"
    with pytest.raises(RunError, match=said) as stopped:
        train(model, *volumes, config, tmp_path / "again", show=False)
    assert "clip_norm" in str(stopped.value)  # since nothing is clipped
    train(build(config), *volumes, config, tmp_path / "again", show=False)
    assert_equal_files(tmp_path / "whole", tmp_path / "again")


def test_a_fused_optimiser_leaves_out_a_step_on_what_is_no_number():
    """What a GPU does without being asked; torch's fused AdamW runs on a CPU as well."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = _optimiser(torch.nn.ParameterList([weight]), TrainingConfig(), fused=True)
    for outcome, moves in (([0.5, math.nan], False), ([math.inf, 1.0], False), ([0.5, 1.0], True)):
        weight.grad = torch.full((3,), 2.0)
        _leave_out_unless_finite(optimiser, torch.tensor(outcome))
        optimiser.step()
        assert bool((weight != 1).all()) is moves


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, False)])
def test_a_run_goes_on_whatever_way_the_optimiser_has(tmp_path, before, now):
    """From a CPU to a GPU, or back: torch refuses a GPU's left-out step in any but its own way.

    Kernels in channels-last order as the peers': a fused optimiser takes moments as they lie.
    """
    plan, results = TrainingConfig(warmup_epochs=0), []

    def step(model, optimiser, place):
        draws = torch.Generator().manual_seed(place)
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=draws))
        if optimiser.param_groups[0]["fused"]:
            _leave_out_unless_finite(optimiser, torch.ones(2))
        optimiser.step()

    for interrupted in (True, False):
        model = torch.nn.Conv3d(3, 2, 2).to(memory_format=torch.channels_last_3d)
        torch.nn.init.constant_(model.weight, 0.5)
        torch.nn.init.zeros_(model.bias)
        for place, fused in enumerate((before, now)):
            if interrupted or not place:
                optimiser = training._optimiser(model, plan, fused)
                schedule = training._schedule(optimiser, plan)
            if interrupted and place:
                restore_state(tmp_path / "state", model, optimiser, schedule)
            step(model, optimiser, place)
            write_state(tmp_path / "state", model, optimiser, schedule, [], 0.0, 0.0)
        results.append(model.weight.detach())
    assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize(("most", "way"), [(2, "--batch-size 2,"), (0, "not even one case")])
def test_where_memory_runs_out_the_batch_that_fits_is_named(phantom, tiny, tmp_path, most, way):
    config = tiny(training={"batch_size": 4})
    model = build(config)
    forward = model.forward

    def hungry(images):
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(images)

    model.forward = hungry
    with pytest.raises(RunError, match=f"out of memory at step 1 of epoch 1 .*{way}"):
        train(model, *prepared(config, phantom), config, tmp_path, show=False)


@pytest.mark.parametrize(
    "parts",
    [
        {"head": "conv", "dropout": 0.1},
        {"language": LanguageConfig(), "attention": "hybrid", "fusion": True},
    ],
)
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(parts, phantom, tiny, tmp_path):
    config = tiny(model=parts)
    volumes = prepared(config, phantom)
    train(build(config), *volumes, config, tmp_path / "whole", show=False)
    with pytest.raises(Stopped):
        train(build(config), *volumes, config, tmp_path / "halves", False, stop_after(2))
    trained = []
    train(build(config), *volumes, config, tmp_path / "halves", False, on_epoch=trained.append)
    assert [len(rows) for rows in trained] == [3]
    assert_equal_files(tmp_path / "whole", tmp_path / "halves")


def test_a_thread_makes_batches_where_a_processor_is_spare_and_changes_no_byte(
    phantom, tiny, tmp_path, monkeypatch
):
    config, made, ahead = tiny(model={"dropout": 0.1}), [], training.ahead
    monkeypatch.setattr(training, "ahead", lambda batches: made.append(batches) or ahead(batches))
    for name, spare in (("alone", 0), ("beside", 1)):
        monkeypatch.setattr(training, "cores", lambda n=spare: torch.get_num_threads() + n)
        train(build(config), *prepared(config, phantom), config, tmp_path / name, show=False)
        assert len(made) == spare * config.training.epochs
    assert_equal_files(tmp_path / "alone", tmp_path / "beside")


def test_stored_batches_change_no_byte(phantom, tiny, tmp_path, monkeypatch):
    config = tiny(model={"dropout": 0.1})
    train(build(config), *prepared(config, phantom), config, tmp_path / "drawn", show=False)
    monkeypatch.setenv("MVL_BATCHES", str(tmp_path / "batches"))
    train(build(config), *prepared(config, phantom), config, tmp_path / "stores", show=False)
    monkeypatch.setattr(training, "training_batches", lambda *_, **__: iter(()))
    train(build(config), *prepared(config, phantom), config, tmp_path / "reads", show=False)
    assert_equal_files(tmp_path / "drawn", tmp_path / "stores")
    assert_equal_files(tmp_path / "drawn", tmp_path / "reads")


def scalars(folder):
    """{(name, epoch from 1): value}, as TensorBoard reads them; no epoch is there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    found = [(name, e) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    values = {(name, event.step): event.value for name, event in found}
    assert len(values) == len(found)
    return values


def curves(folder):
    table = pd.read_csv(folder / "curves.csv").set_index("epoch")
    return {(name, epoch + 1): table.loc[epoch, name] for name in table for epoch in table.index}


def test_tracking_changes_no_byte_and_has_an_epoch_once(phantom, tiny, tmp_path, monkeypatch):
    """A process is killed after it has written an epoch's scalars, but not yet its state."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: mvl[track]")
    config, save = tiny(), write_state
    volumes = prepared(config, phantom)

    def killed(path, model, optimiser, schedule, rows, *rest):
        if len(rows) == 2:
            raise KeyboardInterrupt
        save(path, model, optimiser, schedule, rows, *rest)

    monkeypatch.setattr(training, "write_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train(build(config), *volumes, config, tmp_path, show=False, track=True)
    assert set(step for _, step in scalars(tmp_path)) == {1, 2}
    monkeypatch.setattr(training, "write_state", save)
    train(build(config), *volumes, config, tmp_path, show=False, track=True)
    assert scalars(tmp_path) == pytest.approx(curves(tmp_path), abs=1e-6)
    train(build(config), *volumes, config, tmp_path / "untracked", show=False)
    assert_equal_files(tmp_path, tmp_path / "untracked")
    assert not (tmp_path / "untracked" / "tensorboard").exists()


def test_a_missing_tensorboard_is_a_sentence_before_anything_is_trained(
    phantom, tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = tiny()
    with pytest.raises(ConfigError, match=r'pip install "mvl\[track\]"'):
        train(build(config), [], [], config, tmp_path / "run", show=False, track=True)
    assert not (tmp_path / "run").exists()


def test_distances_can_be_measured_after_a_training(phantom, tiny, tmp_path):
    """SciPy's KDTree kills the process on a box if subnormals are still flushed."""
    config = tiny(training={"epochs": 1})
    train(build(config), *prepared(config, phantom), config, tmp_path, show=False)
    box = np.zeros((40, 24, 14), bool)
    box[10:20, 5:15, 4:10] = True
    assert segmentation_metrics(box, box, (0.7, 1.3, 3.0), 1.0)["hd95_mm"] == 0
    assert (torch.full((1,), 2.0**-1040, dtype=torch.float64) * 1.0).item() > 0


def test_training_is_a_function_of_its_configuration(phantom, tiny, tmp_path):
    def weights(config, name):
        train(build(config), *prepared(config, phantom), config, tmp_path / name, show=False)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    config = tiny(training={"epochs": 1})
    one = weights(config, "one")
    torch.manual_seed(99)  # what the process drew before does not matter
    assert weights(config, "two") == one
    assert weights(replace(config, seed=5), "three") != one  # the same fold, another seed


def test_of_equal_epochs_the_first_is_kept_and_gradients_are_clipped(
    phantom, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "validate", lambda *_: 0.5)
    config, kept = tiny(training={"clip_norm": 1e-3}), []
    model, path = build(config), tmp_path / "model.safetensors"

    def keep(rows):
        kept.append(path.read_bytes())

    train(model, *prepared(config, phantom), config, tmp_path, False, keep)
    assert len(kept) == config.training.epochs > 1 and len(set(kept)) == 1
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_plateau_halves_the_rate():
    plan = TrainingConfig(schedule="plateau", learning_rate=0.1)
    weight = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1))])
    optimiser = _optimiser(weight, plan)
    schedule, rates = training._schedule(optimiser, plan), []
    for _ in range(12):
        schedule.step(1.0)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[-2:] == pytest.approx([0.1, 0.05])


def test_a_state_whose_moments_fit_no_weight_is_refused(tmp_path):
    wide, narrow = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)
    for model, name in ((wide, "saved"), (narrow, "asked")):
        optimiser = training._optimiser(model, TrainingConfig())
        schedule = training._schedule(optimiser, TrainingConfig())
        if name == "saved":
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight)
            optimiser.step()
            write_state(tmp_path / "state", model, optimiser, schedule, [], 0.0, 0.0)
    with pytest.raises(RunError, match="damaged, or of another version.*moment of shape"):
        restore_state(tmp_path / "state", narrow, optimiser, schedule)


def test_another_error_of_the_network_stays_what_it_is(phantom, tiny, tmp_path):
    config = tiny()
    model = build(config)

    def broken(images):
        raise RuntimeError("shapes do not fit")

    model.forward = broken
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(model, *prepared(config, phantom), config, tmp_path, show=False)
