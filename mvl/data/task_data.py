"""A task as an experiment uses it: its cases found, checked, split by subject, and proven apart."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from mvl.config import DataConfig
from mvl.data.checks import CaseRecord, Fault, check_cases, require
from mvl.data.splits import Split, assign, check_split, make_split, study_cases
from mvl.data.task_folder import SIDES, Case, find_task, task_and_cases
from mvl.data.tasks import Task
from mvl.errors import DataError


@dataclass(frozen=True)
class TaskData:
    """A task's cases, checked and split: everything about the data but the voxels."""

    task: Task
    config: DataConfig
    #: Both by the case's name.
    cases: dict[str, Case]
    records: dict[str, CaseRecord]
    split: Split
    #: Faults of the cases that were left out.
    skipped: list[Fault]
    folder: Path
    #: `files_of` the folder, when it was read.
    files: str

    def side(self, name: str) -> list[Case]:
        """The cases of "train", "validation" or "test"."""
        return [self.cases[case] for case in getattr(self.split, name)]


def open_task(
    config: DataConfig,
    seed: int,
    root: str | Path | None = None,
    on_bad_case: str = "fail",
    progress: bool = True,
) -> TaskData:
    """Find a task, check every case, split by subject and prove that nothing leaks.

    Of a task of which the committed study has a part, that part; see `splits.study_cases`.

    Args:
        seed: the experiment's, for `DataConfig.fold_of`.
        root: the folder that holds the task's folder; see `data_root`.
        on_bad_case: "fail", or "skip" to leave faulty cases out.

    Raises:
        DataError: no such task, a faulty case, too few subjects, or a leak.
    """
    folder = find_task(config.task, root)
    task, listed = task_and_cases(folder)
    fold = config.fold_of(seed)
    listed = study_cases(task, assign(listed, config, fold))
    files = files_of(folder, listed)
    key = folder.absolute(), files
    if key not in _CHECKED:
        _CHECKED[key] = check_cases(task, listed, progress)
    checked = _CHECKED[key]
    cases = require(listed, checked, on_bad_case)
    if lost := {case.side for case in listed} - {case.side for case in cases}:
        raise DataError(f"{folder}: every case that the task puts in {lost.pop()} has a fault")
    drawn = (config.split_seed, fold, config.fraction, config.testing, config.folds)
    split = make_split(cases, *drawn)
    check_split(split, cases, checked.image_hashes)
    for side, names in asdict(split).items():
        if names and set(names) <= set(task.healthy):
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            way = ", or choose another --seed: its validation fold differs"
            raise DataError(
                f"{task.name}: the {side} side has healthy cases alone ({shown}), of which there "
                f"is no Dice; add cases that have a structure{way * (side != 'test')}"
            )
    return TaskData(
        task=task,
        config=config,
        cases={case.name: case for case in cases},
        records={case.name: checked.records[case.name] for case in cases},
        split=split,
        skipped=checked.faults,
        folder=folder,
        files=files,
    )


#: Checks of this process, by folder and `files_of`: a suite opens its task once per cell, and
#: reading every voxel takes seconds.
_CHECKED = {}


def files_of(folder: Path, cases: list[Case]) -> str:
    """A hash of names, sizes and times of writing of the files that a task is read from."""
    paths = [folder / name for name in ("dataset.json", "subjects.csv", "splits.json")]
    paths += [path for case in cases for path in (case.image, case.label) if path]
    states = [(path.relative_to(folder), os.stat(path)) for path in paths if os.path.exists(path)]
    content = [(str(name), state.st_size, state.st_mtime_ns) for name, state in states]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def describe_cases(data: TaskData) -> pd.DataFrame:
    """Sizes, intensities and volumes of every case of a split, one row per case, sorted by name.

    Columns: case, subject, side, shape (voxels), spacing_mm, mean_intensity (of the nonzero voxels
    of the first channel) and volume_ml (of all labels together).
    """
    rows, sides = [], {case.name: side for side in SIDES for case in data.side(side)}
    for name, side in sorted(sides.items()):
        record = data.records[name]
        voxels = sum(record.label_counts.get(value, 0) for value in data.task.labels)
        rows.append(
            {
                "case": name,
                "subject": data.cases[name].subject,
                "side": side,
                "shape": " x ".join(map(str, record.shape)),
                "spacing_mm": " x ".join(f"{edge:.3g}" for edge in record.spacing_mm),
                "mean_intensity": record.mean_intensity,
                "volume_ml": float(voxels * record.spacing_mm.prod() / 1000),
            }
        )
    return pd.DataFrame(rows)
