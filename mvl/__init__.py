"""MedVisionLlama, replicated: the model, the metrics and the experiment behind the notebooks.

Names resolve on first use, since torch and MONAI take seconds to import.
"""

import getpass
import importlib
import os

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
    "TASKS": "tasks",
    "read_task": "tasks",
    "LEARNING_RATES": "config",
    "check_cases": "data.checks",
    "check_split": "data.splits",
    "data_root": "data.sources",
    "describe_cases": "data.describe",
    "find_task": "data.sources",
    "read_volume": "data.nifti",
    "list_cases": "data.sources",
    "make_phantom": "data.phantom",
    "Preparation": "data.loading",
    "open_task": "data.loading",
    "obtain": "data.obtain",
    "training_batches": "data.loading",
    "MedVisionLlama": "models.segmenter",
    "build_segmenter": "models.segmenter",
    "METRICS": "metrics",
    "contrasts_table": "statistics",
    "sentence": "statistics",
    "summary_table": "statistics",
    "segmentation_metrics": "metrics",
    "explore": "explorer",
    "evaluate": "evaluation",
    "predict_file": "evaluation",
    "segment": "evaluation",
    "Run": "experiments",
    "choose_profile": "profiles",
    "collect": "experiments",
    "fit": "experiments",
    "load_predictor": "experiments",
    "results_folder": "experiments",
    "run_folder": "experiments",
    "test": "experiments",
    "SUITES": "suites",
    "fit_suite": "suites",
    "run_suite": "suites",
    "suite_configs": "suites",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'mvl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mvl.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
