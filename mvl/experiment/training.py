"""Fit one model: keep its best weights, and resume where a killed process stopped.

A run folder's `state.safetensors` is written whole after every epoch and holds all that the next
epoch depends on: trained weights, the optimiser's moments and, as JSON in its header, the epoch,
the schedule and the curves. Order and augmentation are functions of (seed, epoch, case), dropout
is seeded by (seed, epoch): so a resumed training gives the curve of an undisturbed one.

Several processes can train one experiment together (`torchrun --nproc_per_node N -m mvl train`).
Each takes its share of every batch, so that the curves are those of one process at the same
batch size, up to the order of summation; only dropout draws other numbers. Only the main process
writes.
"""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object

from mvl.config import ExperimentConfig, derive_seed
from mvl.data.batches import BatchStore, ahead, training_batches
from mvl.errors import ConfigError, RunError, out_of_memory
from mvl.experiment.files import CURVES, STATE, WEIGHTS
from mvl.experiment.inference import decide, infer, whole_float32
from mvl.experiment.metrics import dice_per_case
from mvl.experiment.procedure import Procedure, procedure_of
from mvl.experiment.state import restore_state, save_weights, write_state
from mvl.files import write_table
from mvl.machine import cores
from mvl.progress import Progress


def processes() -> PartialState:
    """The processes that train together: this one alone, or those that torchrun has started.

    Under torchrun the first call waits for the other processes.
    """
    # Without a GPU accelerate ignores torchrun unless the CPU is asked for: every process would
    # train alone.
    launched = "LOCAL_RANK" in os.environ
    return PartialState(cpu=launched and not torch.accelerator.is_available())


def agreed(value: Any) -> Any:
    """The main process' `value`, in every process; each of them has to call."""
    processes()
    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Compute with subnormal numbers as zero, and switch back after.

    Subnormals in a convolutional head's first epochs cost a CPU up to nine times. It must end with
    the training: SciPy's KDTree splits just above a coordinate, and with 0 + the smallest
    subnormal = 0 it recurses until the process dies.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@flushed_subnormals()
@whole_float32()
def train(
    model: torch.nn.Module,
    volumes: list[dict],
    validation: list[dict] | Callable[[int], list[dict]],
    config: ExperimentConfig,
    folder: str | Path,
    show: bool = True,
    on_epoch: Callable[[list[dict]], None] | None = None,
    track: bool = False,
) -> float:
    """Fit a model by its configuration's `Procedure`; leave best weights and curves in a folder.

    Cases are as `Preparation.load` gives them; those of validation may be a function of the epoch.
    An unfinished training in the folder is resumed, by as many processes as there are now; they
    must share the folder. `on_epoch` is called by the main process with all rows of the curves;
    `track` writes them to `tensorboard/` as well.

    Returns:
        Seconds spent, those of earlier processes included.

    Raises:
        RunError: loss or gradient is not finite, or memory ran out: the message names the step and
            the remedy. Or processes that train together see different folders.
        ConfigError: `track`, and TensorBoard is not installed.
    """
    folder, plan = Path(folder), config.training
    writer_of = _tensorboard() if track else None
    main = processes().is_main_process
    steps = _Steps(model, volumes, config, folder)
    optimiser = steps.optimiser.optimizer
    schedule = _schedule(optimiser, plan)
    score = procedure_of(config).score

    rows, best, spent = [], -math.inf, 0.0
    if (folder / STATE).exists():
        rows, best, spent = restore_state(folder / STATE, model, optimiser, schedule)
    if len(begun := set(gather_object([len(rows)]))) > 1:
        raise RunError(
            f"the processes that train together see {folder} after {sorted(begun)} epochs: it "
            "has to be on a file system that they share"
        )
    tracking = contextlib.nullcontext()
    if track and main:
        # A process that is killed between an epoch's scalars and its state trains it again: these
        # steps replace what is there.
        tracking = writer_of(str(folder / "tensorboard"), purge_step=len(rows) + 1)
    with Progress("training", plan.epochs, "epoch", show and main) as progress, tracking as writer:
        progress.skip(len(rows))
        for epoch in range(len(rows), plan.epochs):
            started, rate = time.monotonic(), optimiser.param_groups[0]["lr"]
            train_loss = steps.epoch(epoch)
            schedule.step(*[train_loss] * (plan.schedule == "plateau"))
            cases = validation(epoch) if callable(validation) else validation
            device = steps.accelerator.device
            dice = validate(model, cases, plan.batch_size, device, config.data.window)
            row = {"epoch": epoch, "learning_rate": rate}
            row |= {"train_loss": train_loss, "validation_dice": dice}
            rows.append(row)
            if not main:
                continue
            if score(row) > best:
                best = score(row)
                save_weights(model, folder / WEIGHTS)
            if track:
                for name in ("train_loss", "validation_dice", "learning_rate"):
                    writer.add_scalar(name, row[name], epoch + 1)
                writer.flush()
            spent += time.monotonic() - started
            # The state comes last: what is resumed from it has every row of the curves.
            write_table(folder / CURVES, pd.DataFrame(rows))
            write_state(folder / STATE, model, optimiser, schedule, rows, best, spent)
            highest = max(row["validation_dice"] for row in rows)
            progress.step(f"validation Dice {dice:.3f}, best {highest:.3f}")
            if on_epoch:
                on_epoch(rows)
    return spent


def _tensorboard():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError('TensorBoard is missing here: pip install "mvl[track]"') from error
    return SummaryWriter


class _Steps:
    """The optimiser's steps over the training cases, one epoch at a time."""

    def __init__(self, model, volumes, config, folder):
        self.model, self.volumes, self.config, self.folder = model, volumes, config, folder
        plan, procedure = config.training, procedure_of(config)
        # accelerate keeps its precision for the whole process; two runs may differ in it.
        AcceleratorState._reset_state()
        precision = "bf16" if plan.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        self.on_gpu = self.accelerator.device.type == "cuda"
        optimiser = _optimiser(model, plan, self.on_gpu)
        self.network, self.optimiser = self.accelerator.prepare(model, optimiser)
        self.loss = procedure.loss(any((volume["label"] < 0).any() for volume in volumes))
        self.augment, self.store = procedure.augmentation(), None
        if (root := os.environ.get("MVL_BATCHES")) and type(procedure) is Procedure:
            self.store = BatchStore(root, volumes, config.data, plan.batch_size, config.seed)

    def epoch(self, number: int) -> float:
        """Train for an epoch; the mean loss over its cases."""
        seed, plan, device = self.config.seed, self.config.training, self.accelerator.device
        rank, count = processes().process_index, processes().num_processes
        # Each process has other cases, which should not share their dropout.
        torch.manual_seed(derive_seed(seed, "dropout", number, *[rank] * (rank > 0)))
        self.network.train()
        given = (self.volumes, self.config.data, plan.batch_size, seed, number, rank, count)
        batches = training_batches(*given, augment=self.augment)
        if self.store and count == 1:
            batches = self.store.epoch(number, batches)
        if self.on_gpu:
            batches = (tuple(part.pin_memory() for part in batch) for batch in batches)
        # Where the steps keep every processor at work, a thread for the next batch costs more
        # than it saves.
        if self.on_gpu or torch.get_num_threads() < cores():
            batches = ahead(batches)
        starts = range(0, len(self.volumes), plan.batch_size)
        sizes = [min(plan.batch_size, len(self.volumes) - start) for start in starts]
        outcomes, total = [], 0.0
        with contextlib.closing(batches):
            for step, (size, batch) in enumerate(zip(sizes, batches, strict=True)):
                # The loss is a mean over cases, and gradients are averaged over processes: so a
                # process counts by its share of the batch's cases; a stand-in does not count.
                share = len(range(rank, size, count)) * count / size
                images, labels = (part.to(device, non_blocking=True) for part in batch)
                at = f"at step {step + 1} of epoch {number + 1}"
                try:
                    outcomes.append(self._update(images, labels, share, at))
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    traceback.clear_frames(error.__traceback__)  # they hold the activations
                    raise self._too_large(images, labels, at) from None
        for step, outcome in enumerate(torch.stack(outcomes).tolist()):
            self._require_finite(outcome, f"at step {step + 1} of epoch {number + 1}")
            total += outcome[0] * sizes[step]
        return total / len(self.volumes)

    def _update(self, images, labels, share, at):
        """One step; (2,) on the device: loss over all processes, and the gradient's norm."""
        loss = self.loss(self.network(images), labels) * share
        whole = self.accelerator.reduce(loss.detach(), "mean")
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        most = self.config.training.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), most)
        outcome = torch.stack([whole, norm])
        # A step on what is not finite would leave such weights, and a state to resume from. To ask
        # would make the processor wait for the GPU at each step: there the optimiser decides on
        # the device, and the end of the epoch reports it.
        if self.on_gpu:
            _leave_out_unless_finite(self.optimiser.optimizer, outcome)
        else:
            self._require_finite(outcome.tolist(), at)
        self.optimiser.step()
        return outcome

    def _require_finite(self, outcome, at):
        clip = "" if self.config.training.clip_norm else ", or clip the gradient (clip_norm is 0)"
        for what, value in zip(("loss", "gradient's norm"), outcome, strict=True):
            if not math.isfinite(value):
                raise RunError(
                    f"{self.folder}: the {what} became {value} {at} with learning rate "
                    f"{self.optimiser.param_groups[0]['lr']:.3g}. Choose a lower --learning-rate"
                    f"{clip}; the run can be resumed from the epoch before."
                )

    def _too_large(self, images, labels, at):
        """The error for a step that ran out of memory; it names the batch that fits, by halves."""
        size, fits = len(images) // 2, False
        while size and not fits:
            self.model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                self._attempt(images[:size], labels[:size])
                fits = True
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
                size //= 2
        remedy = "not even one case fits: choose a smaller grid or model"
        if fits:
            remedy = f"choose --batch-size {size * processes().num_processes}, which fits"
        return RunError(
            f"{self.folder}: out of memory {at} with {self.config.training.batch_size} cases a "
            f"batch; {remedy}, for another experiment, or resume this one on a machine with more "
            "memory; it goes on from the epoch before."
        )

    def _attempt(self, images, labels):
        # Before its first step the optimiser lacks its two moments of each weight.
        first = not self.optimiser.state
        weights = [p for p in self.model.parameters() if p.requires_grad and first]
        _moments = [torch.empty_like(p) for p in weights for _ in range(2)]
        self.loss(self.model(images), labels).backward()


def _leave_out_unless_finite(optimiser, outcome):
    """Have a fused optimiser skip its next step on the device, as a gradient scaler does."""
    optimiser.found_inf = (~outcome.isfinite().all()).float()


@torch.inference_mode()
def validate(
    model: torch.nn.Module,
    volumes: list[dict],
    batch_size: int,
    device: str | torch.device,
    window: tuple[int, int, int] | None = None,
) -> float:
    """Mean Dice over cases and structures, on the model's grid.

    Ignored voxels count nowhere. A structure of the case's file that the grid does not show scores
    0, whatever is predicted. Cases without any structure (`Task.healthy`) are left out.

    Processes that train together share the work: each has to call, and gets the whole result.
    With a window (`DataConfig.window`) a forward pass has one case, since their sizes differ.
    """
    model.eval()
    volumes = [volume for volume in volumes if volume["ml"].any()]
    size, scores = batch_size if window is None else 1, []
    starts = range(0, len(volumes), size)
    for start in starts[processes().process_index :: processes().num_processes]:
        batch = volumes[start : start + size]
        images = torch.stack([v["image"].as_tensor() for v in batch])
        masks = decide(infer(model, images, window))
        labels = torch.stack([v["label"] for v in batch]).to(masks.device)
        classes = torch.arange(1, masks.shape[1] + 1, device=masks.device)
        truth = labels == classes.view(1, -1, 1, 1, 1)
        dice = dice_per_case(masks & (labels >= 0), truth)
        there = torch.stack([torch.as_tensor(v["ml"] > 0) for v in batch]).to(masks.device)
        lost = there & ~truth.flatten(2).any(2)
        scores.append((start, dice.masked_fill(lost, 0.0).tolist()))
    cases = [case for _, batch in sorted(gather_object(scores)) for case in batch]
    return torch.tensor(cases, device=device).mean().item()


def _optimiser(model, plan, fused=False):
    """Weight decay on matrices and kernels alone; the language part's mappers have their rate."""
    part = getattr(model, "language", None)
    mappers = {p for d in (part.d1, part.d2) for p in d.parameters()} if part else set()
    position = None if plan.decay_position else getattr(model, "position", None)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for rate in dict.fromkeys((1.0, plan.mapper_rate)):
        rated = [p for p in trained if (plan.mapper_rate if p in mappers else 1.0) == rate]
        decayed = [p for p in rated if p.ndim >= 2 and p is not position]
        others = [p for p in rated if p.ndim < 2 or p is position]
        for decay, weights in ((plan.weight_decay, decayed), (0.0, others)):
            rate_of_group = rate * plan.learning_rate
            groups.append({"params": weights, "weight_decay": decay, "lr": rate_of_group})
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[plan.optimiser]
    # On a CPU `foreach` gives the same numbers as weight by weight, in two thirds of the time.
    return kind(groups, lr=plan.learning_rate, **{"fused" if fused else "foreach": True})


def _schedule(optimiser, plan):
    if plan.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=10)

    def cosine(epoch):
        if epoch < plan.warmup_epochs:
            return (epoch + 1) / (plan.warmup_epochs + 1)
        done = (epoch - plan.warmup_epochs) / max(1, plan.epochs - plan.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, cosine)
