"""What a profile has to show: its finished runs as frames, and the committed reference.

The folder of a run names nothing but its fingerprint; which arms a run is, its configuration says.
So frames are made of what is there, whoever trained it and however far a suite is. `mvl.show`
takes these frames, and loads no run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mvl.config import PROTOCOL_VERSION, ExperimentConfig, ModelConfig
from mvl.errors import MvlError
from mvl.experiment.files import BLOCK, CONFIG, DONE, ENVIRONMENT, FAILED, TASK
from mvl.experiment.files import CURVES as CURVES_FILE
from mvl.experiment.identity import changed_since, read_identity
from mvl.experiment.run import collect, read_cases
from mvl.files import read_json
from mvl.locks import is_locked
from mvl.study.profiles import data_of
from mvl.study.reference import curves_table, read_table, study_contrasts
from mvl.study.suites import NAMING, STUDY, SUITES, name_of
from mvl.study.summary import summary_table

#: What the paper compares, in this replication's arms: (suite, arm, against, what it is).
HEADLINE = (
    ("language", "pretrained", "none", "the block alone"),
    ("fusion", "111", "000", "the block, hybrid attention and multi-scale fusion (version 1)"),
)

#: Columns of `Source.curves`.
CURVES = [
    *("suite", "arm", "seed", "task", "fraction"),
    *("epoch", "train_loss", "validation_dice"),
]

#: What reading a damaged run folder raises.
UNREADABLE = (MvlError, OSError, KeyError, ValueError, TypeError)

#: Which fields `models.sizes.match_size` changes.
_MATCHED = {"depth": ("encoder_depth", "decoder_depth"), "mlp": ("mlp_ratio",)}


# --- the runs of a profile -----------------------------------------------------------------


@dataclass(frozen=True)
class ProfileRun:
    """A run folder of a profile."""

    folder: Path
    state: str  # "done", "running", "failed", "unfinished" or "unreadable"
    reason: str = ""  # why it failed, cannot be read, or is in no table
    names: tuple = ()  # (suite, arm), empty where it is no arm of this profile's suites
    facts: dict | None = None  # seed, task, epochs, learning_rate, synthetic, device, ...
    block: dict | None = None  # the language block by reference
    environment: dict | None = None  # as `run.environment` wrote it
    config: ExperimentConfig | None = None
    identity: dict | None = None  # of `read_identity`, if it is done and has names


def own_runs(parameters: dict, root: Path) -> list[ProfileRun]:
    """Every run folder of a profile, by name.

    Args:
        parameters: the profile's, as `profiles.load_profile` gives them.
        root: the repository.
    """
    folder, seen = root / "results" / parameters["profile"] / "runs", {}
    return [
        _run(path.parent, parameters, root, seen) for path in sorted(folder.glob("*/config.json"))
    ]


def runs_below(folder: Path, root: Path) -> list[ProfileRun]:
    """Every run folder that a folder is or has below it, of whatever profile and setting."""
    seen = {}
    paths = sorted(folder.rglob("config.json"))
    # A saved model has a configuration, too, but nothing says on what machine it was trained.
    runs = [path.parent for path in paths if (path.parent / "environment.json").is_file()]
    return [_run(run, None, root, seen) for run in runs]


def by_setting(runs: Iterable[ProfileRun]) -> list[tuple[str, list[ProfileRun]]]:
    """Runs of arms by what those of one table have in common: (it in words, the runs)."""
    groups = {}
    for run in runs:
        if run.state == "done" and run.names:
            data = run.config.data
            grid = "×".join(map(str, data.grid))
            epochs = f", {run.config.training.epochs} epochs" if data.fraction == 1 else ""
            setting = f"{run.folder.parent.parent.name}: {data.task}, {grid}, {data.fit}{epochs}"
            key = (str(run.folder.parent), repr(replace(data, fraction=1.0)), setting)
            groups.setdefault(key, []).append(run)
    return [(setting, members) for (_, _, setting), members in groups.items()]


def _run(folder, parameters, root, seen):
    try:
        return _read_run(folder, parameters, seen)
    except UNREADABLE as error:
        return ProfileRun(folder, "unreadable", in_words(error, root))


def _read_run(folder, parameters, seen):
    stored, environment = read_json(folder / CONFIG), read_json(folder / ENVIRONMENT)
    known = {field.name for field in dataclasses.fields(ExperimentConfig)}
    other = sorted(stored["config"].keys() - known)
    config = {key: value for key, value in stored["config"].items() if key in known}
    config = ExperimentConfig.from_dict(config)
    facts = {
        "seed": config.seed,
        "task": config.data.task,
        "epochs": config.training.epochs,
        "learning_rate": config.training.learning_rate,
        "synthetic": bool(read_json(folder / TASK)["synthetic"]),
        "protocol_version": stored["protocol_version"],
        "fingerprint": folder.name,
        **{key: environment[key] for key in ("device", "dtype", "commit")},
    }
    state, reason, names, identity = _state(folder), "", (), None
    if state == "failed":
        reason = str(read_json(folder / FAILED)["reason"])
    if state == "done":
        done = read_json(folder / DONE)
        keys = ("validation_dice", "trained_parameters", "parameters", "seconds")
        facts |= {key: done[key] for key in keys} | {"sha256": done.get("cases_sha256")}
        read_cases(folder)  # raises where they are damaged
        reason = f"an experiment of another kind: {', '.join(other)}" if other else ""
        reason = reason or _other_setting(config, stored["protocol_version"], parameters)
        reason = reason or changed_since(folder, seen)
        if config.data.testing == "crossed":
            crossed = "tested across folds: 'mvl suite table' or 'mvl runs compare' has it"
            reason = reason or crossed
    if not reason:
        names = _names(config, parameters and parameters["block"])
    if state == "done" and names:
        identity = read_identity(folder)
    elif state == "done":
        reason = reason or "no arm of a suite"
    block = read_json(folder / BLOCK, "sha256") if (folder / BLOCK).is_file() else None
    return ProfileRun(folder, state, reason, names, facts, block, environment, config, identity)


def _state(folder):
    if (folder / DONE).is_file():
        return "done"
    if is_locked(folder):
        return "running"
    return "failed" if (folder / FAILED).is_file() else "unfinished"


def in_words(error: Exception, root: Path) -> str:
    """An error in words, without the path of the repository, which is nobody's business."""
    if isinstance(error, KeyError):
        return f"its files lack {error}"
    return str(error).replace(f"{root}/", "")


def _other_setting(config, protocol_version, parameters):
    """Why a run does not belong to the profile as it is now; "" if it does."""
    data, language = config.data, config.model.language
    if protocol_version != PROTOCOL_VERSION:
        return f"protocol version {protocol_version}"
    if parameters is None:
        return ""
    wanted = data_of(data.task, parameters)
    if data.grid != wanted.grid:
        return "another grid than the profile's"
    if data != replace(wanted, fraction=data.fraction):
        return "another handling of the data than the profile's"
    models = [arm.model for name in SUITES.keys() - STUDY.keys() for arm in SUITES[name].values()]
    blocks = {model.language.source for model in models if model.language} | {parameters["block"]}
    if language and language.source not in blocks:
        return f"another language block, {language.source}"
    # A fraction of the data has more epochs, for as many steps.
    if data.fraction == 1 and config.training.epochs != parameters["epochs"]:
        return f"another number of epochs, {config.training.epochs}"
    return ""


def _names(config, block=None):
    """The (suite, arm) pairs whose experiment this is, seed and budget aside.

    `block` is the profile's. A user's arm with another block is no arm of the study.
    """
    language, names = config.model.language, []
    for suite, arms in SUITES.items():
        sources = {arm.model.language.source for arm in arms.values() if arm.model.language}
        # A block that no arm of the suite names came by --block.
        any_source = suite in STUDY or bool(language and language.source not in sources)
        names += [(suite, name) for name, arm in arms.items() if _is_arm(config, arm, any_source)]
    if language and any(suite not in STUDY for suite, _ in names):
        names = [
            (suite, name)
            for suite, name in names
            if suite not in STUDY
            or language.source == (block or SUITES[suite][name].model.language.source)
        ]
    return tuple(names)


def _is_arm(config, arm, any_source):
    """Whether an experiment is an arm's; `any_source`: with whatever block."""
    # No profile runs an arm with another budget than the others'.
    if arm.fraction != config.data.fraction or arm.budget > 1:
        return False
    length = {"epochs": config.training.epochs}
    if arm.fraction < 1:  # whose warm-up is as long as that of all the data, in steps
        length["warmup_epochs"] = config.training.warmup_epochs
    if config.training != replace(arm.training, **length):
        return False
    model, wanted = config.model, arm.model
    if any_source and wanted.language and model.language:
        source = model.language.source
        wanted = replace(wanted, language=replace(wanted.language, source=source))
    if arm.matched and isinstance(model, ModelConfig):
        # How large it was made depends on the block; that it was made larger is enough.
        matched = {name: getattr(model, name) for name in _MATCHED[arm.matched[0]]}
        return model != wanted and model == replace(wanted, **matched)
    return model == wanted


# --- results and where they come from ------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Results of one origin, as frames."""

    kind: str  # "own" or "reference"
    label: str  # whose they are
    cases: pd.DataFrame  # see `mvl.study.summary`
    summary: pd.DataFrame  # of `summary_table`
    contrasts: pd.DataFrame  # of `study_contrasts`
    #: One row per run: suite, arm, seed, task, epochs, learning_rate, validation_dice,
    #: trained_parameters, parameters, ...
    runs: pd.DataFrame
    curves: pd.DataFrame  # one row per run and epoch, with `CURVES`, where these are kept


def sources_of(
    runs: Sequence[ProfileRun], root: Path
) -> tuple[list[Source], list[tuple[str, str]]]:
    """The results of a profile's `own_runs`, and the committed reference of the repository.

    Returns:
        The sources: the profile's, one for each device, number format and kind of data, then the
        reference; and ("error" or "note", text) about what cannot be shown.
    """
    sources, faults = own_sources(runs, root, "This profile")
    try:
        sources.append(reference_source(root / "results" / "reference"))
    except UNREADABLE as error:
        faults.append(("note", f"Without the committed reference: {in_words(error, root)}"))
    return sources, faults


def own_sources(
    runs: Sequence[ProfileRun], root: Path, name: str
) -> tuple[list[Source], list[tuple[str, str]]]:
    """Runs of one setting as `sources_of` gives them, without the reference; `name` is theirs."""
    sources, faults = [], []
    comparable = {}
    newest, left_out = _newest(runs)
    for run in newest:
        key = tuple(run.facts[fact] for fact in ("synthetic", "device", "dtype"))
        comparable.setdefault(key, []).append(run)
    for run, why in left_out:
        faults.append(("note", f"Run {run.folder.name} is left out: {why}."))
    for key, members in sorted(comparable.items(), key=lambda item: tuple(map(str, item[0]))):
        synthetic, device, dtype = key
        label = name + ", synthetic data" * synthetic
        label += f", {device}, {dtype}" * (len(comparable) > 1)
        try:
            sources.append(_source_of(label, members))
        except UNREADABLE as error:
            faults.append(("error", f"{label}: no tables. {in_words(error, root)}"))
    return sources, faults


def _newest(runs):
    """(done runs of arms that can be in one table, [(run, why it is left out)]).

    Where two are one arm, seed and task, or do not belong together, that which was tested last
    decides.
    """
    done = [run for run in runs if run.state == "done" and run.names]
    by_age = sorted(done, key=lambda run: ((run.folder / DONE).stat().st_mtime_ns, run.folder.name))
    settled, left_out = {}, []
    for run in reversed(by_age):
        rules = [*_to_share(run)]
        odd = [why for why, key, value in rules if settled.get((why, key), value) != value]
        if odd:
            left_out.append((run, odd[0]))
        else:
            settled |= {(why, key): value for why, key, value in rules}
    out = [run for run, _ in left_out]
    return [run for run in done if run not in out], left_out[::-1]


def _to_share(run):
    """What a run settles for those of the same key: (why another is left out, key, value)."""
    config, identity = run.config, run.identity
    cell = (run.names, *(run.facts[n] for n in ("seed", "task", "synthetic", "device", "dtype")))
    task = cell[2:4]
    yield "the same arm and seed were tested again since", cell, run.folder
    yield "other test cases are there since", task, sorted(identity["split"]["test"])
    # Of one task all runs in a table know the same facts, subjects and voxels.
    yield "its task has other facts since", ("facts", *task), identity["facts"]
    for case, voxels in identity["voxels"].items():
        why = f"another image, label or subject of {case} is there since"
        yield why, (case, *task), (voxels, identity["subjects"][case])
    if (language := config.model.language) and run.block:
        # Of a block whose weights are not read the hash is another thing's.
        key = (language.source, language.layer, language.layers, language.control, language.dtype)
        yield "another language block came in its source since", key, run.block["sha256"]
    if config.data.fraction < 1:
        share = (config.data.fraction, *cell[1:])
        yield "its share of the data has other epochs since", share, config.training.epochs
    matched = {SUITES[suite][arm].matched for suite, arm in run.names} - {None}
    for by, _ in matched:
        sizes = tuple(getattr(config.model, name) for name in _MATCHED[by])
        yield "its arm is matched to another size since", (run.names, run.facts["task"]), sizes


def _source_of(label, runs):
    tables, rows, curves = [], [], []
    for run in runs:
        for suite, arm in run.names:
            cases = collect(run.folder, suite, arm)
            tables.append(cases)
            rows.append({"suite": suite, "arm": arm} | run.facts)
            path = run.folder / CURVES_FILE
            if path.is_file():
                cell = {key: cases[key].iloc[0] for key in CURVES[:5]}
                curves.append(pd.read_csv(path).assign(**cell)[CURVES])
    cases = pd.concat(tables, ignore_index=True)
    curves = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=CURVES)
    tables = (cases, summary_table(cases), study_contrasts(cases), pd.DataFrame(rows), curves)
    return Source("own", label, *tables)


def reference_source(folder: Path) -> Source:
    """The source of the tables in a reference's folder."""
    names = ("cases.csv.gz", "summary.csv", "contrasts.csv", "validation.csv")
    cases, summary, contrasts, runs = (read_table(folder / name) for name in names)
    # Its tables of runs name no task, but each has one, which the cases know.
    task = cases[["suite", "arm", "seed", "task"]].drop_duplicates()
    runs, curves = runs.merge(task, how="left"), curves_table(folder).merge(task)
    tables = (cases, summary, contrasts, runs, curves[CURVES])
    return Source("reference", "Committed reference", *tables)


# --- parts of a source ---------------------------------------------------------------------


def distinct(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The (suite, arm) of every experiment of `Source.runs` with all of the data, once each."""
    there = {name_of(*cell) for cell in zip(runs["suite"], runs["arm"], strict=True)}
    return [(suite, arm) for suite in NAMING for arm in SUITES[suite] if (suite, arm) in there]


#: The tables of a `Source` that go by arm and task.
_TABLES = ("cases", "summary", "runs", "curves")


def part_of(source: Source, cells: Sequence[tuple[str, str]]) -> Source:
    """What a source has of some (suite, arm): the foreground alone, in the order of the cells.

    Rows of several suites are said to be of the suite "all".
    """
    rank = {cell: n for n, cell in enumerate(cells)}

    def rows_of(table):
        order = [rank.get(cell, -1) for cell in zip(table["suite"], table["arm"], strict=True)]
        rows = table.assign(_order=order).sort_values("_order", kind="stable")
        rows = rows[rows["_order"] >= 0].drop(columns="_order")
        if "structure" in rows:
            rows = rows[rows["structure"] == "foreground"]
        return rows if rows["suite"].nunique() < 2 else rows.assign(suite="all")

    return replace(source, **{name: rows_of(getattr(source, name)) for name in _TABLES})


def rows_of_tasks(source: Source, tasks: Iterable[str]) -> Source:
    """What a source has of some tasks."""
    tables = {name: getattr(source, name) for name in _TABLES}
    return replace(source, **{name: t[t["task"].isin(tasks)] for name, t in tables.items()})


def tasks_of(source: Source, suite: str) -> set[str]:
    """The tasks that a suite is shown for; for "", those of any other suite than the presets.

    The models that were run on many tasks are arms of other suites, too. A task that has no more
    of a suite than those is left to the table of the named models, but for what the paper compares.
    """
    if not suite:
        return set().union(*(tasks_of(source, other) for other in SUITES if other != "presets"))
    runs = source.runs
    named, rows = runs[runs["suite"] == "presets"], runs[runs["suite"] == suite]
    if suite == "presets" or named["task"].nunique() < 2:
        return set(rows["task"])
    more = set(rows[~rows["fingerprint"].isin(named["fingerprint"])]["task"])
    compared = {suite for suite, *_ in HEADLINE}
    return more or set(rows["task"] if suite in compared else ())
