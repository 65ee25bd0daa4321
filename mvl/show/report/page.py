"""results/<profile>/ -> results/<profile>/report/: static pages that need nothing but themselves.

`index.html` says first what was measured, then what the paper says and whether the reference was
reproduced, then figures, notebooks and where every number comes from. Each notebook that has been
run has a page. A page loads nothing: style and figures are in it, and its security policy forbids
the rest. Equal inputs give equal bytes: nothing depends on the clock, on the order of a folder or
on where the repository is.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from markupsafe import Markup

from mvl.files import REPOSITORY, write_text
from mvl.show.report import answers
from mvl.show.report.contents import (
    Alert,
    alerts_of,
    checks_of,
    neighbours,
    notebooks_of,
    provenance_of,
)
from mvl.show.report.pictures import pictures
from mvl.study.runs import own_runs, sources_of

TEMPLATES = Path(__file__).with_name("templates")


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
    folder = root / "results" / profile / "report"
    runs = own_runs(parameters, root)
    notebooks = notebooks_of(profile, outdated, root)
    sources, faults = sources_of(runs, root)
    own = [source for source in sources if source.kind == "own"]
    synthetic = (
        parameters["source"] == "phantom"
        or any(source.summary["synthetic"].any() for source in own)
        or any(notebook.page and notebook.page.synthetic for notebook in notebooks)
    )
    context = {"profile": profile, "synthetic": synthetic, "notebooks": notebooks}
    # Before anything is written: a report that fails leaves the earlier one whole.
    pages = {}
    for place, notebook in enumerate(notebooks):
        if notebook.page:
            around = neighbours(notebooks, place)
            own_page = {"notebook": notebook, "around": around}
            pages[f"{notebook.name}.html"] = _render("notebook.html", context | own_page)
    alerts = alerts_of(notebooks, runs, profile)
    context |= {
        "alerts": [*alerts, *(Alert(level, text) for level, text in faults)],
        "own": own,
        "answers": [(source, answers.answers(source)) for source in sources],
        "headline": answers.headline(sources, parameters["task"]),
        "questions": answers.questions(sources),
        "paper": answers.paper_table(),
        "checks": checks_of(profile, root),
        "pictures": pictures(sources, root),
        "provenance": provenance_of(parameters, runs, notebooks, root),
    }
    pages["index.html"] = _render("index.html", context)
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name, html in pages.items():
        write_text(folder / name, html)
    return folder / "index.html"


def _render(template, context):
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return _templates().get_template(template).render(context | {"style": Markup(style)})


@cache
def _templates():
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
