"""What a training writes as tensors: its weights, and the state from which it resumes.

Nothing is pickled.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mvl.errors import RunError
from mvl.files import write_tensors
from mvl.models.folder import load_trained_state, trained_state


def save_weights(model: Module, path: Path) -> None:
    """Write the trained weights; the frozen block stays where it came from."""
    write_tensors(path, trained_state(model), {})


def load_weights(model: Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same configuration.

    Raises:
        RunError: the file is missing, damaged, or of another model.
    """
    tensors, _ = _read_tensors(path, "delete its folder to train the run again")
    load_trained_state(model, tensors, path)


def write_state(
    path: Path,
    model: Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    rows: list[dict],
    best: float,
    spent: float,
) -> None:
    """Write all that the next epoch depends on."""
    tensors = {f"model.{name}": tensor for name, tensor in trained_state(model).items()}
    state = optimiser.state_dict()
    for index, moments in state["state"].items():
        for name, tensor in moments.items():
            tensors[f"optimiser.{index}.{name}"] = tensor
    progress = {"rows": rows, "best": best, "spent": spent}
    progress |= {"groups": state["param_groups"], "schedule": schedule.state_dict()}
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def restore_state(
    path: Path, model: Module, optimiser: Optimizer, schedule: LRScheduler
) -> tuple[list[dict], float, float]:
    """Bring model, optimiser and schedule to what `write_state` wrote; its rows, best and spent.

    Raises:
        RunError: the file cannot be read, is damaged, or of another model.
    """
    remedy = "delete it to train from the start"
    tensors, metadata = _read_tensors(path, remedy)
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    try:
        progress = json.loads((metadata or {})["progress"])
        weights_of = dict(enumerate(p for group in optimiser.param_groups for p in group["params"]))
        moments = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                kept = tensor if name == "step" else _laid_out(tensor, weights_of[int(index)])
                moments.setdefault(int(index), {})[name] = kept
        # How a step is computed is this device's business, not that of the device before.
        groups = [
            stored | {kind: group[kind] for kind in ("foreach", "fused")}
            for stored, group in zip(progress["groups"], optimiser.param_groups, strict=True)
        ]
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
        schedule.load_state_dict(progress["schedule"])
        reached = progress["rows"], progress["best"], progress["spent"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged, or of another version ({error!r}); {remedy}") from error
    load_trained_state(model, weights, path)
    return reached


def _laid_out(moment, weight):
    """A moment in its weight's order of memory, such as channels last, which no file keeps.

    A fused optimiser goes through both as they lie; a GPU refuses to where they differ.
    """
    if moment.shape != weight.shape:
        raise ValueError(f"a moment of shape {tuple(moment.shape)} of {tuple(weight.shape)}")
    return torch.empty_like(weight, requires_grad=False).copy_(moment)


def _read_tensors(path, remedy):
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}; {remedy}") from error
