"""One experiment: fit a model, keep its best weights, and resume where a killed process stopped.

A run folder's `state.safetensors` is written whole after every epoch and holds all that the
next epoch depends on: trained weights, the optimiser's moments and, as JSON in its header, the
epoch, the schedule and the curves. Order and augmentation are functions of (seed, epoch, case)
and dropout is seeded by (seed, epoch), so a resumed training gives the curve that an undisturbed
one would have given. Nothing is pickled.

Several processes can train one experiment together (`torchrun --nproc_per_node N -m mvl train`).
Each takes its share of every batch, so that the curves are those of one process at the same
batch size, up to the order of summation; dropout alone draws other numbers. Only the main
process writes.
"""

import contextlib
import json
import math
import os
import time
import traceback
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceLoss
from monai.networks import one_hot
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from mvl.config import derive_seed
from mvl.data.batches import ahead, augmentation, training_batches
from mvl.errors import ConfigError, RunError, out_of_memory
from mvl.experiment.metrics import dice_per_case
from mvl.files import refuse_endless, write_table, write_tensors
from mvl.machine import cores
from mvl.models.folder import load_trained_state, trained_state
from mvl.progress import Progress

STATE, WEIGHTS, CURVES = "state.safetensors", "model.safetensors", "curves.csv"


def processes():
    """The processes that train together: this one alone, or those that torchrun has started.

    Returns:
        accelerate's `PartialState`: `num_processes`, `process_index`, `is_main_process`,
        `wait_for_everyone()`. Under torchrun the first call waits for the other processes.
    """
    # Without a GPU accelerate takes no notice of torchrun, and every process would train alone,
    # unless the CPU is asked for.
    launched = "LOCAL_RANK" in os.environ
    return PartialState(cpu=launched and not torch.accelerator.is_available())


def agreed(value):
    """The main process' `value`, in every process; each of them has to call."""
    processes()
    return broadcast_object_list([value])[0]


def require_tensorboard():
    """Raise a `ConfigError` where `train(track=True)` could not write."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'tracking writes for TensorBoard, which is missing here: pip install "mvl[track]"'
        ) from error


def segmentation_loss(target, ignoring=False):
    """Soft Dice + (binary) cross-entropy on logits, in equal parts, as MONAI has it.

    Args:
        target: `DataConfig.target`.
        ignoring: whether labels may have ignored voxels (`loading.IGNORED`), which then have no
            part in either half, nor a gradient.
    """
    if ignoring:
        return partial(_loss_where_counted, foreground=target == "foreground")
    if target == "foreground":
        return DiceCELoss(sigmoid=True)
    return DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)


def _loss_where_counted(logits, labels, foreground):
    """`segmentation_loss` over the voxels that are not ignored; MONAI's has no such thing.

    Cross-entropy is a mean over a case's voxels that count, then over cases.
    """
    counted = labels >= 0  # (B, 1, H, W, D)
    truth = (labels * counted).long()
    if foreground:
        probabilities, masks = logits.sigmoid(), truth
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
    else:
        probabilities = logits.softmax(1)[:, 1:]
        masks = one_hot(truth, logits.shape[1])[:, 1:]
        entropy = F.cross_entropy(logits, truth[:, 0], reduction="none")[:, None]
    dice = DiceLoss()(probabilities * counted, masks * counted)
    space = (1, 2, 3, 4)
    entropy = (entropy * counted).sum(space) / counted.sum(space).clamp(min=1)
    return dice + entropy.mean()


def decide(logits):
    """Logits -> masks, one a structure.

    Args:
        logits: (B, K, ...). One channel is the foreground, at a probability of one half; more
            are classes with the background first, of which each voxel gets the likeliest.

    Returns:
        bool, (B, 1, ...) or (B, K - 1, ...).
    """
    if logits.shape[1] == 1:
        return logits > 0
    classes = torch.arange(1, logits.shape[1], device=logits.device)
    classes = classes.view(1, -1, *[1] * (logits.ndim - 2))
    return logits.argmax(1, keepdim=True) == classes


@contextlib.contextmanager
def whole_float32():
    """Convolve on a GPU in float32 where a run says float32, and switch back after.

    PyTorch's own choice there is TF32, which keeps 10 of the 23 bits of a number.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@whole_float32()
def infer(model, images, window=None):
    """Logits of whole prepared volumes.

    Args:
        model: (B, C, H, W, D) -> logits (B, K, H, W, D), in `eval()`.
        images: (B, C, H, W, D), on any device.
        window: `DataConfig.window`: voxels of the window that slides over the volumes where the
            model was trained on crops, by half its size, its middle counting more than its edge;
            None where the model takes them whole.

    Returns:
        (B, K, H, W, D), float32: with a window on the CPU, since a large volume's logits may not
        fit where the model is; else where the model is.
    """
    device = next(model.parameters()).device
    if window is None:
        return model(images.to(device)).float()
    return sliding_window_inference(
        images.cpu(),
        window,
        sw_batch_size=1,
        predictor=model,
        overlap=0.5,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )


@contextlib.contextmanager
def flushed_subnormals():
    """Compute with subnormal numbers as zero, and switch back after.

    Subnormals in a convolutional head's first epochs cost a CPU up to nine times. Switching back
    matters: SciPy's KDTree, on which surface distances stand, splits just above a coordinate, and
    with 0 + the smallest subnormal = 0 it recurses until the process dies.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Procedure:
    """What a training does besides what its configuration's numbers say: the study's way.

    `mvl.experiment.released` departs from it, for the audit.
    """

    def volumes(self, preparation, data, show):
        """Prepared training and validation cases; the test cases are not opened.

        Args:
            preparation: a `Preparation`.
            data: the experiment's `TaskData`.
            show: show progress.

        Returns:
            (list, list), as `train` takes them.
        """
        return tuple(preparation.load(data.side(side), show) for side in ("train", "validation"))

    def loss(self, target, ignoring=False):
        """The loss of (logits, labels), as `segmentation_loss` has it."""
        return segmentation_loss(target, ignoring)

    def augmentation(self, config):
        """What is done to training volumes, as `mvl.data.batches.augmentation` has it."""
        return augmentation(config)

    def score(self, row):
        """How good an epoch is, from its row of the curves: the highest is kept."""
        return row["validation_dice"]


@flushed_subnormals()
@whole_float32()
def train(
    model,
    volumes,
    validation,
    config,
    folder,
    show=True,
    on_epoch=None,
    track=False,
    procedure=None,
):
    """Fit a model; leave its best weights and its curves in a folder.

    The best epoch is the one with the highest mean Dice over the validation cases, on the
    model's grid. A folder with the state of an unfinished training is resumed, by as many
    processes as there are now. Processes that train together must share the folder.

    Args:
        model: a `MedVisionLlama`, as `build_segmenter` gives it.
        volumes: training cases, as `Preparation.load` gives them.
        validation: validation cases, likewise; or a function of the epoch that gives them.
        config: the `ExperimentConfig`.
        folder: the run folder; gets `model.safetensors` and `curves.csv`.
        show: show progress.
        on_epoch: called by the main process after each epoch with the curves so far, a list of
            dicts.
        track: write the curves to `tensorboard/` in the run folder as well.
        procedure: a `Procedure` to follow in place of the study's.

    Returns:
        Seconds spent, those of earlier processes included.

    Raises:
        RunError: the loss or the gradient is no longer a number, or memory ran out; the message
            says at which step and what to change. Or processes that train together see different
            folders.
        ConfigError: `track`, and TensorBoard is not installed.
    """
    folder, plan, procedure = Path(folder), config.training, procedure or Procedure()
    if track:
        require_tensorboard()
    them = processes()
    rank, count, main = them.process_index, them.num_processes, them.is_main_process
    # accelerate keeps its precision for the whole process; two runs may differ in it.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16" if plan.precision == "bfloat16" else "no")
    on_gpu = accelerator.device.type == "cuda"
    network, optimiser = accelerator.prepare(model, _optimiser(model, plan, on_gpu))
    schedule = _schedule(optimiser.optimizer, plan)
    ignoring = any((volume["label"] < 0).any() for volume in volumes)
    loss_of = procedure.loss(config.data.target, ignoring)
    starts = range(0, len(volumes), plan.batch_size)
    sizes = [min(plan.batch_size, len(volumes) - start) for start in starts]

    rows, best, spent = [], -math.inf, 0.0
    if (folder / STATE).exists():
        rows, best, spent = _restore(folder / STATE, model, optimiser.optimizer, schedule)
    if len(begun := set(gather_object([len(rows)]))) > 1:
        raise RunError(
            f"the processes that train together see {folder} at different epochs "
            f"({', '.join(map(str, sorted(begun)))}): it has to be on a file system that they share"
        )

    def update(images, labels, share, place):
        """One step of the optimiser, left out where the loss or the gradient is no number.

        Returns:
            (2,) on the device: the batch's loss, over all processes, and the gradient's norm.
        """
        loss = loss_of(network(images), labels) * share
        whole = accelerator.reduce(loss.detach(), "mean")
        optimiser.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(network.parameters(), plan.clip_norm or math.inf)
        outcome = torch.stack([whole, norm])
        # A step on it would leave weights that are no numbers, and a state to resume from. To ask
        # would make the processor wait for the GPU at each step: there the optimiser decides on
        # the device, and the epoch's end tells.
        if on_gpu:
            _leave_out_unless_finite(optimiser.optimizer, outcome)
        else:
            _require_finite(outcome.tolist(), folder, place, optimiser, plan)
        optimiser.step()
        return outcome

    tracking = _tracking(folder, len(rows)) if track and main else contextlib.nullcontext()
    with Progress("training", plan.epochs, "epoch", show and main) as progress, tracking as tracker:
        progress.skip(len(rows))
        for epoch in range(len(rows), plan.epochs):
            started = time.monotonic()
            # Each process has other cases, which should not share their dropout.
            torch.manual_seed(derive_seed(config.seed, "dropout", epoch, *[rank] * (rank > 0)))
            network.train()
            rate, outcomes = optimiser.param_groups[0]["lr"], []
            batches = training_batches(
                *(volumes, config.data, plan.batch_size, config.seed, epoch, rank, count),
                augment=procedure.augmentation(config.data),
            )
            if on_gpu:
                batches = (tuple(part.pin_memory() for part in batch) for batch in batches)
            # Beside steps that keep every processor at work, a thread that makes the next batch
            # costs more than it saves.
            if on_gpu or torch.get_num_threads() < cores():
                batches = ahead(batches)
            with contextlib.closing(batches) as coming:
                for step, (images, labels) in enumerate(coming):
                    size = sizes[step]
                    # The loss is a mean over cases, and gradients are averaged over processes: so
                    # a process counts by its share of the batch's cases, a stand-in's not at all.
                    share = len(range(rank, size, count)) * count / size
                    place = f"at step {step} of epoch {epoch}"
                    images = images.to(accelerator.device, non_blocking=True)
                    labels = labels.to(accelerator.device, non_blocking=True)
                    told = _memory_told(
                        folder, place, plan, model, loss_of, images, labels, optimiser
                    )
                    with told:
                        outcomes.append(update(images, labels, share, place))
            total = 0.0
            for step, outcome in enumerate(torch.stack(outcomes).tolist()):
                place = f"at step {step} of epoch {epoch}"
                _require_finite(outcome, folder, place, optimiser, plan)
                total += outcome[0] * sizes[step]
            train_loss = total / len(volumes)
            schedule.step(*[train_loss] * (plan.schedule == "plateau"))

            cases = validation(epoch) if callable(validation) else validation
            dice = validate(model, cases, plan.batch_size, accelerator.device, config.data.window)
            rows.append(
                {
                    "epoch": epoch,
                    "learning_rate": rate,
                    "train_loss": train_loss,
                    "validation_dice": dice,
                }
            )
            if not main:
                continue
            if (score := procedure.score(rows[-1])) > best:
                best = score
                save_weights(model, folder / WEIGHTS)
            if track:
                _write_scalars(tracker, rows[-1])
            spent += time.monotonic() - started
            # The state comes last: what is resumed from it has every row of the curves.
            write_table(folder / CURVES, pd.DataFrame(rows))
            _save_state(folder / STATE, model, optimiser.optimizer, schedule, rows, best, spent)
            highest = max(row["validation_dice"] for row in rows)
            progress.step(f"validation Dice {dice:.3f}, best {highest:.3f}")
            if on_epoch:
                on_epoch(rows)
    return spent


def _leave_out_unless_finite(optimiser, outcome):
    """Have a fused optimiser skip its next step on the device, as a gradient scaler does."""
    optimiser.found_inf = (~outcome.isfinite().all()).float()


def _require_finite(outcome, folder, place, optimiser, plan):
    clip = "" if plan.clip_norm else ", or clip the gradient's norm (clip_norm is 0)"
    for what, value in zip(("loss", "gradient's norm"), outcome, strict=True):
        if not math.isfinite(value):
            raise RunError(
                f"{folder}: the {what} became {value} {place} with learning rate "
                f"{optimiser.param_groups[0]['lr']:.3g}. Choose a lower one (--learning-rate)"
                f"{clip}; the run stays resumable from the epoch before."
            )


@contextlib.contextmanager
def _memory_told(folder, place, plan, model, loss_of, images, labels, optimiser):
    """Where a step runs out of memory, try smaller batches and say which one fits."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the activations
        fits = _fitting(model, loss_of, images, labels, optimiser) * processes().num_processes
        way = "not even one case fits: choose a smaller grid or model"
        if fits:
            way = f"a batch of {fits} fits: choose --batch-size {fits}"
        raise RunError(
            f"{folder}: out of memory {place} with {plan.batch_size} cases a batch; {way}, for an "
            "experiment of its own, or go on with this one on a machine with more memory; the run "
            "stays resumable from the epoch before."
        ) from None


def _fitting(model, loss_of, images, labels, optimiser):
    """How many of a batch's cases fit into memory, by halves; 0 if not even one does."""

    def attempt(size):
        # Before its first step the optimiser lacks its two moments of each weight.
        weights = [] if optimiser.state else [p for p in model.parameters() if p.requires_grad]
        _moments = [torch.empty_like(p) for p in weights for _ in range(2)]
        loss_of(model(images[:size]), labels[:size]).backward()

    size = len(images) // 2
    while size:
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
            break
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        size //= 2
    return size


@torch.inference_mode()
def validate(model, volumes, batch_size, device, window=None):
    """Mean Dice over cases and structures, on the model's grid.

    Ignored voxels count nowhere. A structure that the case's own label has and the grid does not
    show scores 0 whatever is predicted: nothing was found of it. Cases without any structure
    (`Task.healthy`) are left out, since there is no Dice of nothing.

    Processes that train together share the work: each of them has to call, and gets the whole
    result.

    Args:
        model: (B, C, H, W, D) -> logits.
        volumes: labelled cases, as `Preparation.load` gives them.
        batch_size: cases a forward pass; one with a window, since their sizes differ.
        device: where the model is.
        window: see `infer`.
    """
    model.eval()
    volumes = [volume for volume in volumes if volume["ml"].any()]
    them, own = processes(), []
    size = batch_size if window is None else 1
    starts = range(0, len(volumes), size)
    for start in starts[them.process_index :: them.num_processes]:
        batch = volumes[start : start + size]
        images = torch.stack([v["image"].as_tensor() for v in batch])
        masks = decide(infer(model, images, window))
        labels = torch.stack([v["label"] for v in batch]).to(masks.device)
        classes = torch.arange(1, masks.shape[1] + 1, device=masks.device)
        truth = labels == classes.view(1, -1, 1, 1, 1)
        dice = dice_per_case(masks & (labels >= 0), truth)
        there = torch.stack([torch.as_tensor(v["ml"] > 0) for v in batch]).to(masks.device)
        lost = there & ~truth.flatten(2).any(2)
        own.append((start, dice.masked_fill(lost, 0.0).tolist()))
    scores = [case for _, batch in sorted(gather_object(own)) for case in batch]
    return torch.tensor(scores, device=device).mean().item()


def _tracking(folder, epoch):
    """A writer for TensorBoard whose steps from `epoch` on replace those already in the folder."""
    from torch.utils.tensorboard import SummaryWriter

    # A process that is killed between an epoch's scalars and its state trains that epoch again.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)


def _write_scalars(writer, row):
    for name in ("train_loss", "validation_dice", "learning_rate"):
        writer.add_scalar(name, row[name], row["epoch"])
    writer.flush()


def save_weights(model, path):
    """Write the weights that are the run's own; the frozen block stays where it came from."""
    write_tensors(path, trained_state(model), {})


def load_weights(model, path):
    """Read what `save_weights` wrote into a model of the same configuration.

    Raises:
        RunError: the file is missing, damaged, or of another model.
    """
    tensors, _ = _read_tensors(path, "delete its folder to train the run anew")
    load_trained_state(model, tensors, path)


def _optimiser(model, plan, fused=False):
    """Weight decay on matrices and kernels alone: norms and biases have no size to hold down.

    The mappers of the language part have a rate of their own.
    """
    part = getattr(model, "language", None)
    mappers = {p for d in (part.d1, part.d2) for p in d.parameters()} if part else set()
    position = None if plan.decay_position else getattr(model, "position", None)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for rate in dict.fromkeys((1.0, plan.mapper_rate)):
        own = [p for p in trained if (plan.mapper_rate if p in mappers else 1.0) == rate]
        for decay, weights in (
            (plan.weight_decay, [p for p in own if p.ndim >= 2 and p is not position]),
            (0.0, [p for p in own if p.ndim < 2 or p is position]),
        ):
            groups.append(
                {"params": weights, "weight_decay": decay, "lr": rate * plan.learning_rate}
            )
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[plan.optimiser]
    # On a CPU the same numbers as weight by weight, in two thirds of the time.
    way = {"fused": True} if fused else {"foreach": True}
    return kind(groups, lr=plan.learning_rate, **way)


def _schedule(optimiser, plan):
    if plan.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=10)

    def cosine(epoch):
        if epoch < plan.warmup_epochs:
            return (epoch + 1) / (plan.warmup_epochs + 1)
        done = (epoch - plan.warmup_epochs) / max(1, plan.epochs - plan.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, cosine)


def _save_state(path, model, optimiser, schedule, rows, best, spent):
    tensors = {f"model.{name}": tensor for name, tensor in trained_state(model).items()}
    state = optimiser.state_dict()
    for index, moments in state["state"].items():
        for name, tensor in moments.items():
            tensors[f"optimiser.{index}.{name}"] = tensor
    progress = {
        "rows": rows,
        "best": best,
        "spent": spent,
        "groups": state["param_groups"],
        "schedule": schedule.state_dict(),
    }
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def _restore(path, model, optimiser, schedule):
    way = "delete it to start anew"
    tensors, metadata = _read_tensors(path, way)
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    try:
        progress = json.loads((metadata or {})["progress"])
        weights_of = dict(enumerate(p for group in optimiser.param_groups for p in group["params"]))
        moments = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                weight = weights_of[int(index)]
                kept = tensor if name == "step" else _laid_out(tensor, weight)
                moments.setdefault(int(index), {})[name] = kept
        # How a step is computed is this device's business, not that of the device before.
        groups = [
            stored | {way: own[way] for way in ("foreach", "fused")}
            for stored, own in zip(progress["groups"], optimiser.param_groups, strict=True)
        ]
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
        schedule.load_state_dict(progress["schedule"])
        reached = progress["rows"], progress["best"], progress["spent"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged, or of another version ({error!r}); {way}") from error
    load_trained_state(model, weights, path)
    return reached


def _laid_out(moment, weight):
    """A moment in its weight's order of memory, such as channels last: a file knows no order, and
    a fused optimiser goes through both as they lie (a GPU refuses to where they differ)."""
    if moment.shape != weight.shape:
        raise ValueError(f"a moment of shape {tuple(moment.shape)} of {tuple(weight.shape)}")
    return torch.empty_like(weight, requires_grad=False).copy_(moment)


def _read_tensors(path, way):
    try:
        refuse_endless(path)
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}; {way}") from error
