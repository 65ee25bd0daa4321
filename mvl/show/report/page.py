"""Reports as static pages that need nothing but themselves.

A report is of a profile, of any folder with runs, or of the study (the committed reference).
`index.html` says first what the reference and real volumes say; what is synthetic is folded away.
Each notebook that has been run has a page. A page loads nothing: style and figures are in it, and
its security policy forbids the rest. Equal inputs give equal bytes: nothing depends on the clock,
on the order of a folder or on where the repository is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from mvl.errors import RunError
from mvl.files import REPOSITORY, write_text
from mvl.show import crossed
from mvl.show.report import answers
from mvl.show.report.contents import (
    Alert,
    Notebook,
    alerts_of,
    checks_of,
    notebooks_of,
    provenance_of,
)
from mvl.show.report.pictures import own_pictures, reference_pictures, segmentations
from mvl.show.report.render import TEMPLATES, render
from mvl.show.sentences import count
from mvl.study.runs import (
    ProfileRun,
    Source,
    by_setting,
    own_runs,
    own_sources,
    reference_source,
    runs_below,
    sources_of,
)


def write_report(parameters: dict, outdated: dict[str, str], root: Path = REPOSITORY) -> Path:
    """Write the report of a profile; pages of an earlier report are replaced or removed.

    Args:
        parameters: the profile's, from `load_profile`.
        outdated: {notebook: why its executed copy is not of now}, from `runner.execute.outdated`.
        root: the repository.

    Returns:
        Path of the report's index.html.

    Raises:
        MvlError: the folder cannot be written.
    """
    root, profile = Path(root).resolve(), parameters["profile"]
    runs = own_runs(parameters, root)
    notebooks = notebooks_of(profile, outdated, root)
    sources, faults = sources_of(runs, root)
    alerts = [*alerts_of(notebooks, runs, profile), *(Alert(*fault) for fault in faults)]
    if not any(run.state == "done" for run in runs):
        text = f"No finished run: ./run_all.sh --profile {profile} trains and tests."
        alerts.append(Alert("note", text))
    folder = root / "results" / profile
    context = _context(sources, runs, root, alerts, notebooks, parameters)
    context["synthetic"] |= parameters["source"] == "phantom"
    return _write(
        folder / "report",
        context
        | {
            "title": f"Report of the profile {profile}",
            "headline": answers.headline(_real(sources), parameters["task"]),
            "checks": checks_of(folder, root),
        },
    )


def write_folder_report(folder: Path, root: Path = REPOSITORY) -> Path:
    """Write the report of every run that a folder is or has below it, to its folder `report`.

    Raises:
        RunError: there is no run.
        MvlError: the folder cannot be written.
    """
    root, folder = Path(root).resolve(), Path(folder).resolve()
    runs, sources, alerts = runs_below(folder, root), [], []
    if not runs:
        raise RunError(f"{folder} holds no run; 'mvl train' and 'mvl suite run' make some")
    for setting, members in by_setting(runs):
        found, faults = own_sources(members, root, setting)
        sources += found
        alerts += [Alert(*fault) for fault in faults]
    if crosswise := sum(bool(run.config and run.config.data.testing == "crossed") for run in runs):
        text = (
            f"Not on this page: {count(crosswise, 'run')} tested across folds. 'mvl suite table' "
        )
        text += "and 'mvl runs compare' have their results."
        alerts.append(Alert("note", text))
    return _write(
        folder / "report",
        _context(sources, runs, root, alerts)
        | {"title": f"Report of the runs in {folder.name}", "checks": checks_of(folder, root)},
    )


def write_site(outdated: dict[str, dict[str, str]], root: Path = REPOSITORY) -> Path:
    """Write the site of the study, to results/site: the reference and the executed notebooks.

    Args:
        outdated: as in `write_report`, for each profile whose copies are taken; of a notebook
            that several have executed, the first one's copy.

    Raises:
        RunError: there is no reference.
        MvlError: the folder cannot be written.
    """
    root = Path(root).resolve()
    reference = root / "results" / "reference"
    sources = [reference_source(reference)]
    copies = {}
    for profile, reasons in outdated.items():
        for notebook in notebooks_of(profile, reasons, root):
            copies.setdefault(notebook.name, []).append(notebook)
    notebooks = [next((n for n in several if n.page), several[0]) for several in copies.values()]
    folder = root / "results" / "site"
    page = _write(
        folder,
        _context(sources, [], root, [], notebooks)
        | {
            "title": "MedVisionLlama, replicated: the study",
            "synthetic": False,  # each notebook's page says so of itself
            "headline": answers.headline(sources, sources[0].summary["task"].iloc[0]),
        },
    )
    write_text(folder / ".nojekyll", "")  # GitHub Pages serves the files as they are
    return page


def _real(sources):
    return [source for source in sources if not source.summary["synthetic"].any()]


def _is_synthetic(run):
    return bool(run.facts and run.facts["synthetic"])


def _context(
    sources: Sequence[Source],
    runs: Sequence[ProfileRun],
    root: Path,
    alerts: Sequence[Alert],
    notebooks: Sequence[Notebook] = (),
    parameters: dict | None = None,
) -> dict:
    """What every report shows; the reference and what is real before what is synthetic."""
    real = sorted(_real(sources), key=lambda source: source.kind != "reference")
    made_up = [source for source in sources if source not in real]
    cases, faults = segmentations([run for run in runs if not _is_synthetic(run)], root)
    made_up_cases, more = segmentations([run for run in runs if _is_synthetic(run)], root)
    own = [picture for source in real if source.kind == "own" for picture in own_pictures(source)]
    second = crossed.published(root / "results" / "reference")
    made_up_pictures = [picture for source in made_up for picture in own_pictures(source)]
    return {
        "alerts": [*alerts, *(Alert(*fault) for fault in [*faults, *more])],
        "claims": crossed.claims(second) if second else [],
        "answers": [(source, answers.answers(source)) for source in real],
        "synthetic": any(map(_is_synthetic, runs))
        or any(notebook.page and notebook.page.synthetic for notebook in notebooks),
        "headline": None,
        "runs": answers.runs_table(runs),
        "many_runs": len(runs) > 12,
        "questions": answers.questions(real),
        "paper": answers.paper_table(),
        "pictures": [*cases, *own, *reference_pictures(root)],
        "made_up": answers.questions(made_up),
        "made_up_pictures": [*made_up_cases, *made_up_pictures],
        "notebooks": notebooks,
        "checks": None,
        "provenance": provenance_of(parameters, runs, root),
    }


def _write(folder, context):
    """Render all pages, then write them and remove those of an earlier report."""
    context["style"] = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    pages = {"index.html": render("index.html", **context)}
    for notebook in context["notebooks"]:
        if notebook.page:
            own = {"notebook": notebook, "synthetic": notebook.page.synthetic}
            pages[f"{notebook.name}.html"] = render("notebook.html", **context | own)
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name, html in pages.items():
        write_text(folder / name, html)
    return folder / "index.html"
