"""MedVisionLlama, replicated: the model, the metrics and the experiment behind the notebooks.

Names resolve on first use, since torch and MONAI take seconds to import.
"""

import getpass
import importlib
import os
from typing import Any

try:
    getpass.getuser()
except (KeyError, OSError):
    # A container may run under a user number that has no name, and MONAI asks for one on import.
    os.environ["LOGNAME"] = f"uid-{os.getuid()}"

__version__ = "0.1.0"

_HOME = {
    "DataConfig": "config",
    "ExperimentConfig": "config",
    "LanguageConfig": "config",
    "ModelConfig": "config",
    "TrainingConfig": "config",
    "PRESETS": "config",
    "preset": "config",
    "MvlError": "errors",
    "TASKS": "data.tasks",
    "read_task": "data.tasks",
    "check_cases": "data.checks",
    "check_split": "data.splits",
    "describe_cases": "data.task_data",
    "find_task": "data.task_folder",
    "read_volume": "data.nifti",
    "list_cases": "data.task_folder",
    "Preparation": "data.preparation",
    "open_task": "data.task_data",
    "obtain": "data.obtain",
    "training_batches": "data.batches",
    "MedVisionLlama": "models.segmenter",
    "build_segmenter": "models.segmenter",
    "METRICS": "experiment.metrics",
    "contrasts_table": "study.statistics",
    "sentence": "show.sentences",
    "summary_table": "study.summary",
    "explore": "show.explorer",
    "predict_file": "experiment.prediction",
    "segment": "experiment.inference",
    "Predictor": "experiment.inference",
    "Run": "experiment.run",
    "choose_profile": "runner.profiles",
    "load_profile": "runner.profiles",
    "measure_stages": "study.profile_cells",
    "measure_use": "study.profile_cells",
    "train_arms": "study.profile_cells",
    "collect": "experiment.run",
    "fit": "experiment.run",
    "load_predictor": "experiment.run",
    "results_folder": "experiment.run",
    "run_folder": "experiment.run",
    "test": "experiment.run",
    "suite_configs": "study.suites",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mvl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mvl.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
