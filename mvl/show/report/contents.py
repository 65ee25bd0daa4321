"""What a folder of results holds: notebooks, what is wrong, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from mvl.errors import MvlError
from mvl.files import read_json, sha256_of
from mvl.show import tables
from mvl.show.report.notebook import Page, read_page
from mvl.show.report.render import table
from mvl.show.sentences import NOTHING, conclusion, count, name_of_check
from mvl.study.runs import UNREADABLE, ProfileRun, in_words
from mvl.study.verify import verify


@dataclass(frozen=True)
class Notebook:
    """A notebook of the repository and its executed copy.

    Attributes:
        name: the file's name without its ending.
        state: "ran", "outdated", "failed", "unfinished" or "missing".
        reason: what is wrong with it, or "".
        page: None without a copy that can be read.
    """

    name: str
    state: str
    reason: str
    page: Page | None

    @property
    def title(self) -> str:
        return self.page.title if self.page else self.name


@dataclass(frozen=True)
class Alert:
    """Something that a reader has to know before the numbers; level is "error" or "note"."""

    level: str
    text: str
    notebook: Notebook | None = None


def notebooks_of(profile: str, outdated: dict[str, str], root: Path) -> list[Notebook]:
    """The repository's notebooks, each with its copy that was executed in a profile.

    Args:
        outdated: {name: why the copy is not of now}.
    """
    notebooks, paths = [], sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    copies = root / "results" / profile / "notebooks"
    pages = [path.stem for path in paths if (copies / path.name).is_file()]
    for path in paths:
        copy = copies / path.name
        state, reason, page = "ran", "", None
        try:
            page = read_page(copy, pages) if copy.is_file() else None
        except MvlError as error:
            state, reason = "failed", in_words(error, root)
        if not copy.is_file():
            state, reason = "missing", "has not been run in this profile"
        elif page and page.failure:
            state, reason = "failed", page.failure
        elif page and not copy.with_name(f"{path.stem}.done.json").is_file():
            state = "unfinished"
            reason = "not complete: it says why, is running, was stopped, or its kernel died"
        elif page and path.stem in outdated:
            state, reason = "outdated", outdated[path.stem]
        notebooks.append(Notebook(path.stem, state, reason, page))
    return notebooks


def alerts_of(notebooks: list[Notebook], runs: list[ProfileRun], profile: str) -> list[Alert]:
    """What failed, what is missing and what is outdated."""
    alerts = [
        Alert("error", notebook.reason, notebook)
        for notebook in notebooks
        if notebook.state in ("failed", "unfinished")
    ]
    if missing := [notebook.name for notebook in notebooks if notebook.state == "missing"]:
        which = "any notebook" if len(missing) == len(notebooks) else ", ".join(missing)
        command = f"'./run_all.sh --profile {profile}' runs what is missing"
        alerts.append(Alert("note", f"This profile has not run {which}; {command}."))
    if outdated := [notebook.name for notebook in notebooks if notebook.state == "outdated"]:
        text = "run before the code, the profile, the reference or the data changed"
        alerts.append(Alert("note", f"Outdated, {text}: {', '.join(outdated)}."))
    words = {"failed": "failed", "unreadable": "cannot be read"}
    for run in runs:
        if run.state in words:
            text = f"Run {run.folder.name} {words[run.state]}: {run.reason}"
            alerts.append(Alert("error", text))
    return alerts


def checks_of(place: Path, root: Path) -> dict:
    """What `mvl verify` says of a folder: state ("ok", "error", "note"), conclusion, table."""
    try:
        checks = verify(place, root / "results" / "reference")
    except UNREADABLE as error:
        text = f"Nothing verified: {in_words(error, root)}"
        return {"state": "note", "conclusion": text, "table": None}
    agrees, text = conclusion(checks)
    files = checks[checks["check"] == "file"]
    text += f" {int(files['agrees'].sum())} of {count(len(files), 'file')} of cases are as the "
    text += "evaluation wrote them."
    compared = checks["agrees"].notna() & (checks["check"] != "file")
    rows = [
        {
            "run": row.run or NOTHING,
            "arm": name_of_check(row) or NOTHING,
            "check": row.check,
            "result": "agrees" if row.agrees else "differs",
            "detail": row.detail,
        }
        for row in checks[compared | checks["agrees"].eq(False)].itertuples()
    ]
    caption = "Runs that the reference has, check by check."
    return {
        "state": {True: "ok", False: "error", None: "note"}[agrees],
        "conclusion": text,
        "table": _table(rows, caption, code=("run",)) if rows else None,
    }


def provenance_of(parameters: dict | None, runs: Sequence[ProfileRun], root: Path) -> list[Markup]:
    """Tables: what was asked for, on what it was run, from which files the numbers are."""
    shown = []
    if parameters:
        profile = f"profiles/{parameters['profile']}.yaml"
        shown.append(_pairs(f"Parameters of the profile, {profile}.", parameters))
    if runs:
        caption = "Runs by fingerprint: configuration, data, language block."
        code = ("run", "commit", "cases.csv, SHA-256")
        shown.append(_table([_run_row(run) for run in runs], caption, code))
        shown.append(_pairs("Machine and versions.", _machines(runs)))
    names = ("source", "revision", "layer", "control", "sha256")
    blocks = {tuple(_text(run.block.get(name)) for name in names) for run in runs if run.block}
    if blocks:
        rows = [dict(zip(names, block, strict=True)) for block in sorted(blocks)]
        shown.append(_table(rows, "Language blocks, by reference.", names))
    reference = root / "results" / "reference"
    if (reference / "provenance.json").is_file():
        stored = read_json(reference / "provenance.json")
        machine = stored.pop("machine", {})
        caption = "The committed reference, results/reference/provenance.json."
        shown.append(_pairs(caption, stored | machine))
    files = [path for path in sorted(reference.glob("*.*")) if path.is_file()]
    files = {f"results/reference/{path.name}": path for path in files}
    files["mvl/paper.csv"] = tables.PAPER
    rows = [{"file": name, "SHA-256": sha256_of(path)} for name, path in files.items()]
    return [*shown, _table(rows, "Files that numbers here come from.", code=("SHA-256",))]


def _table(rows, caption, code=()):
    return table([("", "", pd.DataFrame(rows))], caption, code)


def _pairs(caption, values):
    return _table([{"name": key, "value": _text(values[key])} for key in values], caption)


def _text(value):
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return NOTHING if value is None else str(value)


def _run_row(run):
    known = run.facts or {}
    commit = _text(known.get("commit"))
    return {
        "run": run.folder.name,
        "arms": ", ".join(f"{suite} {arm}" for suite, arm in run.names) or NOTHING,
        "training (s)": f"{known['seconds']:,.0f}" if "seconds" in known else NOTHING,
        "commit": commit[:12] + "+" * commit.endswith("+"),
        "cases.csv, SHA-256": _text(known.get("sha256"))[:12],
    }


def _machines(runs):
    """What the runs were made on; several values where runs differ."""
    values = {}
    for run in runs:
        environment = dict(run.environment or {})
        environment |= environment.pop("versions", {})
        for key, value in environment.items():
            values.setdefault(key, set()).add(_text(value))
    values.pop("commit", None)
    return {key: ", ".join(sorted(texts)) for key, texts in sorted(values.items())}
