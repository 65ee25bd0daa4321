"""Volumes for figures, as arrays: a case, what a model predicts of it, how large its tokens are."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from mvl import config
from mvl.data.obtain import obtained
from mvl.data.task_data import TaskData, open_task
from mvl.data.task_folder import Case
from mvl.experiment.identity import require_same
from mvl.experiment.inference import whole_float32
from mvl.experiment.run import Predictor, Run, load_predictor
from mvl.models.activations import activations, to_volume
from mvl.models.parts import dataflow
from mvl.models.segmenter import build_segmenter
from mvl.study.reference import BEST
from mvl.study.runs import data_of
from mvl.study.stages import SHOWN_STAGES, image_voxels, stage_auroc


@whole_float32()
def token_maps(
    model: Run | Predictor, case: Case
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, float]]]:
    """A case on the model's grid without its padding, and the norms of the tokens upon it.

    Returns:
        image, affine, truth; and {stage that the model has, by its name of `SHOWN_STAGES`: (norms
        of the image's shape, AUROC of this case, NaN without patches of both kinds)}.
    """
    network = model.model
    volume = model.preparation.load([case], progress=False)[0]
    tensor = volume["image"].as_tensor()
    measured = stage_auroc(network, [case], model.preparation, show=False)
    aurocs = measured.set_index("stage")["auroc_stream"]
    inside = np.argwhere(image_voxels(volume["image"]).numpy())
    first, last = inside.min(0), inside.max(0)
    box = tuple(slice(low, high + 1) for low, high in zip(first, last, strict=True))
    corner = nibabel.affines.from_matvec(np.eye(3), first)
    shown = {
        "image": np.asarray(volume["image"])[0][box],
        "affine": np.asarray(volume["image"].affine) @ corner,
        "truth": np.asarray(volume["label"])[0][box] > 0,
    }
    device, grid = next(network.parameters()).device, tuple(tensor.shape[1:])
    stages = activations(network, tensor[None].to(device))
    return shown, {
        name: (to_volume(stages[stage], network, grid)[0].cpu().numpy()[box], aurocs[name])
        for stage, name in SHOWN_STAGES.items()
        if stage in stages
    }


def shown_case(
    task: str, folders: dict[str, Path], parameters: dict, case: str | None = None
) -> tuple[TaskData, dict[str, Run | Predictor], Case]:
    """A test case of a task, and the models to show it by.

    Args:
        folders: {name: run folder}; the last run's data is opened.
        parameters: the profile's.
        case: its name; None for the first test case.

    Returns:
        The data, {name: model} and the case. `best`, the committed model, is among the models
        where the task is its own.

    Raises:
        DataError: the task cannot be used.
        RunError: it is not what the last run was trained on.
    """
    root = obtained(task, parameters["source"], parameters["profile"])
    models = {name: Run.load(folder) for name, folder in folders.items()}
    if models:
        last = list(models.values())[-1]
        data = open_task(last.config.data, last.config.seed, root, progress=False)
        require_same(last.folder, data)
    else:
        data = open_task(data_of(task, parameters), 0, root, progress=False)
    best = load_predictor(BEST)
    if best.task.name == task:
        models["best"] = best
    return data, models, data.cases[case] if case else data.side("test")[0]


def preset_dataflow(preset: str, parameters: dict) -> tuple:
    """`models.parts.dataflow` of a preset, built with the profile's grid and block."""
    model, _ = config.preset(preset, language=parameters["block"])
    return dataflow(build_segmenter(model, 1, 1, tuple(parameters["grid"]), seed=0))
