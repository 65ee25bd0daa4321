"""Runs by name: where they are, which one is meant, and what each is in one row."""

import os
from datetime import datetime
from pathlib import Path

import pandas as pd

from mvl.config import PRESETS, ExperimentConfig
from mvl.errors import MvlError, RunError, did_you_mean
from mvl.experiment.files import CASES, CONFIG, DONE, NAME, TRAINED
from mvl.experiment.run import read_cases
from mvl.files import REPOSITORY, read_bytes, read_json

#: Digits of a fingerprint that people are shown.
DIGITS = 8


def results_root() -> Path:
    """The folder of all results: MVL_RESULTS, else the repository's results/."""
    named = os.environ.get("MVL_RESULTS") or REPOSITORY / "results"
    return Path(os.path.expanduser(named)).absolute()


def all_runs() -> list[Path]:
    """Every run folder below `results_root` and the repository's results, by fingerprint.

    Of one experiment that was trained in two places, the folder that is further.
    """

    def progress(folder):
        return (folder / DONE).exists() + (folder / TRAINED).exists()

    found = {}
    for root in {results_root(), REPOSITORY / "results"}:
        for pattern in ("runs/*/", "*/runs/*/"):
            for folder in sorted(root.glob(pattern + CONFIG)):
                found.setdefault(folder.parent.name, []).append(folder.parent)
    return [max(places, key=progress) for _, places in sorted(found.items())]


def run_name(folder: Path) -> str:
    """The name that a person gave a run; "" without one."""
    try:
        return read_bytes(folder / NAME).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def label(folder: Path) -> str:
    """What a run is called on the command line: its name, first digits, or path."""
    if folder not in all_runs():
        return str(folder)
    return run_name(folder) or folder.name[:DIGITS]


def find_run(text: str | Path) -> Path:
    """The folder of a run, by its path, its name, or the first digits of its fingerprint.

    Raises:
        RunError: there is no such run, or there are several.
    """
    path = Path(os.path.expanduser(text))
    if (path / CONFIG).is_file() or len(path.parts) != 1:
        return path
    name, runs = str(text), all_runs()
    named = {folder: run_name(folder) for folder in runs}
    found = [folder for folder in runs if named[folder] == name]
    found = found or [folder for folder in runs if folder.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(folder.name[:DIGITS] for folder in found[:5])
        raise RunError(f"run {name!r} may be any of {len(found)}: {listed}; give more digits")
    if path.is_dir():
        return path  # who reads it says what it lacks
    near = did_you_mean(name, filter(None, named.values()))
    raise RunError(
        f"no run {name!r}: neither a folder, nor a name or first digits of a run below "
        f"{results_root()}; 'mvl runs list' lists them{near}"
    )


def preset_of(model: dict) -> tuple[str, dict]:
    """The preset or architecture that a model's configuration is nearest to, and its changes.

    Args:
        model: "model" of `ExperimentConfig.to_dict`. The block's source is no change.
    """
    if "architecture" in model:
        return model["architecture"], {}
    mine, changes = _flat(model), {}
    for name, (preset, _) in PRESETS.items():
        theirs = _flat(ExperimentConfig(model=preset).to_dict()["model"])
        keys = sorted((mine.keys() | theirs.keys()) - {"language.source"})
        missing = object()
        changes[name] = {
            key: mine.get(key, "default")
            for key in keys
            if mine.get(key, missing) != theirs.get(key, missing)
        }
    nearest = min(changes, key=lambda name: len(changes[name]))
    return nearest, changes[nearest]


def _flat(values, prefix=""):
    flat = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def mean_dice(folder: Path) -> float:
    """Mean Dice over the test subjects of a tested run, of the foreground where it is measured."""
    cases = read_cases(folder)
    foreground = cases[cases["structure"] == "foreground"]
    cases = cases if foreground.empty else foreground
    return float(cases.groupby("subject")["dice"].mean().mean())


def runs_table(folders: list[Path]) -> pd.DataFrame:
    """One row per run, the latest last.

    Returns:
        run (its first digits), name, preset, block, task, epochs, validation and test (Dice; NaN
        where not measured yet), date.
    """
    rows = []
    for folder in folders:
        row = {"run": folder.name[:DIGITS], "name": run_name(folder)}
        latest = folder / (TRAINED if (folder / TRAINED).exists() else CONFIG)
        row["date"] = f"{datetime.fromtimestamp(latest.stat().st_mtime):%Y-%m-%d %H:%M}"
        try:
            config = read_json(folder / CONFIG, "config")["config"]
            preset, changes = preset_of(config["model"])
            row["preset"] = preset + ", changed" * bool(changes)
            row["block"] = (config["model"].get("language") or {}).get("source", "none")
            row |= {"task": config["data"]["task"], "epochs": config["training"]["epochs"]}
            if (folder / TRAINED).exists():
                trained = read_json(folder / TRAINED, "validation_dice")
                row["validation"] = trained["validation_dice"]
            if (folder / CASES).exists():
                row["test"] = mean_dice(folder)
        except (MvlError, KeyError, TypeError, AttributeError):
            row["preset"] = "unreadable"
        rows.append(row)
    columns = ["run", "name", "preset", "block", "task", "epochs", "validation", "test", "date"]
    return pd.DataFrame(rows, columns=columns).sort_values("date", ignore_index=True)
