"""results/<profile>/ -> results/<profile>/report/: a static page that needs nothing but itself.

`index.html` says first what was found, then beside it what the paper says and whether the
reference was reproduced, then figures, notebooks and where every number comes from; each notebook
that has been run has a page of its own. A page loads nothing: style, figures and formulas are in
it, and its security policy forbids the rest.

Numbers are the profile's own (its finished runs), the committed reference's (results/reference)
or the paper's (mvl/paper.csv), and each says which. Equal inputs give equal bytes: nothing here
depends on the clock, on the order of a folder or on where the repository lies.
"""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from mvl.errors import MvlError
from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY, read_json, sha256_of, write_text
from mvl.runner import execute
from mvl.show import figures
from mvl.show.report.notebook import Page, read_page
from mvl.show.tables import NOTHING, PAPER, count, mean_and_spread, p_value
from mvl.study import ten_tasks
from mvl.study.profiles import load_profile
from mvl.study.reference import CONTRASTS, PICTURE
from mvl.study.runs import (
    HEADLINE,
    UNREADABLE,
    distinct,
    in_words,
    own_runs,
    part_of,
    rows_of_tasks,
    sources_of,
    tasks_of,
)
from mvl.study.statistics import sentence
from mvl.study.suites import QUESTIONS, SUITES
from mvl.study.verify import conclusion, name_of_check, verify

TEMPLATES = Path(__file__).with_name("templates")

#: The comparisons of the summary: the primary one, then what the paper compares.
ANSWERS = (CONTRASTS[0], *(pair[:3] for pair in HEADLINE))

#: The metrics of the tables of arms.
SHOWN = ("dice", "nsd", "hd95_mm")


def write_report(profile, root=REPOSITORY):
    """Write the report of a profile; pages that an earlier report had are written anew or removed.

    Args:
        profile: the profile's name.
        root: the repository.

    Returns:
        Path of the report's index.html.

    Raises:
        ConfigError: there is no such profile.
        MvlError: the folder cannot be written.
    """
    root = Path(root).resolve()
    parameters = load_profile(profile, root)
    folder = root / "results" / profile / "report"
    runs = own_runs(parameters, root)
    notebooks = _notebooks(parameters, root)
    sources, faults = sources_of(runs, root)
    faults = [_alert(level, text) for level, text in faults]
    context = {
        "profile": profile,
        "synthetic": _is_synthetic(parameters, sources, notebooks),
        "notebooks": notebooks,
    }
    # Before anything is written: a report that fails leaves the earlier one whole.
    pages = {
        f"{notebook.page.name}.html": _render(
            "notebook.html", context | {"notebook": notebook, "around": _neighbours(notebooks, n)}
        )
        for n, notebook in enumerate(notebooks)
        if notebook.page
    }
    checks = _checks(root / "results" / profile, root)
    pages["index.html"] = _render(
        "index.html",
        context
        | {
            "parameters": parameters,
            "alerts": _alerts(notebooks, runs, profile) + faults,
            "own": [source for source in sources if source.kind == "own"],
            "answers": [(source, _answers(source, ANSWERS)) for source in sources],
            "headline": _headline(sources, parameters["task"]),
            "questions": _questions(sources),
            "paper": _paper_table(),
            "checks": checks,
            "figures": _figures(sources, root),
            "provenance": _provenance(parameters, runs, notebooks, root),
        },
    )
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name, html in pages.items():
        write_text(folder / name, html)
    return folder / "index.html"


def _render(template, context):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(context | {"style": Markup(style)})


# --- tables, as the templates draw them ----------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Rows of a table that come from one source.

    Attributes:
        kind: "own", "reference", "paper" or "" for a table of one source.
        label: what stands above the rows.
        rows: lists of cells; the first cell heads its row.
    """

    kind: str
    label: str
    rows: list


@dataclass(frozen=True)
class Table:
    """A table: what stands above it, its columns, its groups of rows.

    Attributes:
        caption: what it holds.
        columns: (heading, kind); kind is "text", "n" (a number) or "code".
        groups: list of `Group`.
    """

    caption: str
    columns: list
    groups: list


@dataclass(frozen=True)
class Figure:
    """A figure: a data URI, what stands below it, and what it shows, in words."""

    content: str
    label: str
    alt: str
    kind: str = ""


def _sentence(row):
    """`statistics.sentence` with its verdict in bold."""
    text = re.sub(r"(Verdict: .*?\.)(?=\s|$)", r"<strong>\1</strong>", str(escape(sentence(row))))
    return Markup(text)


# --- results -----------------------------------------------------------------------------


def _is_synthetic(parameters, sources, notebooks):
    """Whether anything that this profile made may be of synthetic data."""
    own = [source for source in sources if source.kind == "own"]
    return (
        parameters["source"] == "phantom"
        or any(source.summary["synthetic"].any() for source in own)
        or any(notebook.page and notebook.page.synthetic for notebook in notebooks)
    )


def _answers(source, pairs):
    """A sentence per contrast of those (suite, arm, against) that a source has, in Dice."""
    rows = source.contrasts[source.contrasts["metric"] == "dice"]
    return [
        _sentence(row)
        for suite, arm, against in pairs
        for _, row in rows[
            (rows["suite"] == suite) & (rows["arm_a"] == arm) & (rows["arm_b"] == against)
        ].iterrows()
        if row["task"] in tasks_of(source, suite)
    ]


def _size(rows):
    """How much stands behind rows of a summary."""
    first = rows.iloc[0]
    one = rows[rows["metric"] == first["metric"]]
    # Seeds of one arm with different budgets stand in rows of their own.
    seeds = sorted(one.groupby(["suite", "arm"])["n_seeds"].sum())
    epochs = sorted(rows["epochs"])
    text = f"{count(first['n_subjects'], 'subject')}, {count(first['n_cases'], 'case')}, "
    text += f"{_range(seeds)} seed{'s' * (seeds[-1] != 1)}, "
    return text + f"{_range(epochs)} epoch{'s' * (epochs[-1] != 1)}"


def _range(values):
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _headline(sources, task):
    """vit, and vit with what the paper adds, beside the paper's own numbers."""
    suites = {suite for suite, *_ in HEADLINE}
    groups = []
    for source in sources:
        dice = source.summary
        dice = dice[dice["suite"].isin(suites) & (dice["metric"] == "dice")]
        dice = dice.loc[[row.task in tasks_of(source, row.suite) for row in dice.itertuples()]]
        for (of_task, structure), own in dice.groupby(["task", "structure"], sort=True):
            pairs = []
            for suite, arm, against, what in HEADLINE:
                both = own[(own["suite"] == suite) & own["arm"].isin([arm, against])]
                if len(both):
                    pairs.append((both, suite, arm, against, what))
            # One arm without the other is shown where there is nothing better.
            pairs = [pair for pair in pairs if pair[0]["arm"].nunique() == 2] or pairs[:1]
            rows = []
            for both, suite, arm, against, what in pairs:
                of_arms = both.drop_duplicates("arm").set_index("metric")
                values = [
                    mean_and_spread(of_arms[of_arms["arm"] == name], "dice")
                    for name in (against, arm)
                ]
                difference = _difference(source, suite, arm, against, of_task, structure)
                rows.append([what, *values, *difference])
            if rows:
                size = _size(pd.concat([both for both, *_ in pairs]))
                label = f"{source.label}: {of_task}, {structure}, {size}"
                groups.append(Group(source.kind, label, rows))
    paper = pd.read_csv(PAPER, dtype={"place": str})
    paper = paper[paper["metric"].eq("dice") & paper["task"].isin(["mean of ten tasks", task])]
    rows = []
    for (version, where), own in paper.groupby(["version", "task"], sort=True):
        by_model = own.set_index("model")
        if not {"ViT", "MedVisionLlama"} <= set(by_model.index):
            continue
        pair = [by_model.loc[name] for name in ("ViT", "MedVisionLlama")]
        values = [
            f"{p['value']:.2f}" + ("" if np.isnan(p["sd"]) else f" ± {p['sd']:.2f}") for p in pair
        ]
        difference = f"{pair[1]['value'] - pair[0]['value']:+.2f}"
        what = where if pair[0]["what"] in where else f"{where}, {pair[0]['what']}"
        rows.append([f"version {version.removeprefix('v')}: {what}", *values, difference, NOTHING])
    label = "The paper, as published (arXiv:2410.02458): subjects, seeds and epochs unstated"
    groups.append(Group("paper", label, rows))
    columns = [("what is added to ViT", "text"), ("ViT", "n"), ("with it", "n")]
    columns += [("difference [95 % interval]", "n"), ("verdict", "text")]
    caption = "Dice without and with the language block. Measured: mean over seeds and subjects "
    caption += "± standard deviation over subjects; test subjects, native space."
    return Table(caption, columns, groups)


def _difference(source, suite, arm, against, task, structure):
    """[difference with interval, verdict] of one pair in Dice."""
    rows = source.contrasts
    wanted = {"suite": suite, "arm_a": arm, "arm_b": against, "task": task}
    wanted |= {"structure": structure, "metric": "dice"}
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        return [NOTHING, NOTHING]
    row = rows.iloc[0]
    interval = "no interval"
    if not np.isnan(row["ci_low"]):
        interval = f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
    return [f"{row['difference']:+.3f} [{interval}]", row["verdict"]]


def _paper_table():
    """All of the paper's numbers."""
    paper = pd.read_csv(PAPER, dtype=str, keep_default_na=False)
    rows = [
        [r.model, r.version, r.task, r.metric, r.value + (f" ± {r.sd}" if r.sd else ""), r.unit]
        + [r.what, r.place, r.source]
        for r in paper.itertuples()
    ]
    columns = [("model", "text"), ("version", "text"), ("task", "text"), ("metric", "text")]
    columns += [("value", "n"), ("unit", "text"), ("what", "text"), ("place", "text")]
    columns += [("source", "text")]
    return Table("Every number of the paper in mvl/paper.csv.", columns, [Group("", "", rows)])


def _questions(sources):
    """Per suite: its question, its arms, what was compared, the same in words, and who has it."""
    found = []
    for suite in SUITES:
        arms, compared, words = [], [], []
        for source in sources:
            for (task, structure), rows in _of_suite(source, suite):
                label = f"{source.label}: {task}, {structure}, {_size(rows)}"
                arms.append(Group(source.kind, label, _arms(source, suite, rows)))
                pairs = _compared(source, suite, task, structure)
                if pairs:
                    compared.append(Group(source.kind, label, pairs))
            pairs = [pair for pair in CONTRASTS if pair[0] == suite]
            sentences = _answers(source, pairs)
            if sentences and any(group.kind == source.kind for group in arms):
                words.append((source, sentences))
        if arms:
            found.append(
                {
                    "question": QUESTIONS[suite],
                    "arms": Table(
                        f"Arms of the suite {suite}: mean over seeds and subjects ± standard "
                        "deviation over subjects.",
                        _ARM_COLUMNS,
                        arms,
                    ),
                    "compared": Table(
                        f"Comparisons of the suite {suite}, paired by subject and seed.",
                        _COMPARED_COLUMNS,
                        compared,
                    ),
                    "words": words,
                    "own": any(group.kind == "own" for group in arms),
                }
            )
    return found


_ARM_COLUMNS = [
    *(("arm", "code"), ("seeds", "n"), ("epochs", "n")),
    *((METRICS[metric].heading, "n") for metric in SHOWN),
    *(("validation Dice", "n"), ("trained weights", "n"), ("learning rate", "n")),
]
_COMPARED_COLUMNS = [
    *(("comparison", "text"), ("metric", "text"), ("difference", "n"), ("95 % interval", "n")),
    *(("adjusted p", "n"), ("subjects", "n"), ("seeds", "n"), ("verdict", "text")),
]


def _compared(source, suite, task, structure):
    """A row of cells per contrast of a suite."""
    rows = source.contrasts
    rows = rows[(rows["suite"] == suite) & (rows["task"] == task)]
    return [
        [
            f"{row.arm_a} minus {row.arm_b}",
            METRICS[row.metric].heading,
            f"{row.difference:+.4f}",
            NOTHING if np.isnan(row.ci_low) else f"{row.ci_low:+.4f} to {row.ci_high:+.4f}",
            p_value(row.p_holm),
            f"{row.n_subjects}",
            f"{row.n_seeds}",
            row.verdict,
        ]
        for row in rows[rows["structure"] == structure].itertuples()
    ]


def _of_suite(source, suite):
    """((task, structure), its rows of the summary), for what a source has to say of a suite.

    An own run is an arm of several suites. One arm alone answers none of their questions; it is
    shown where it comes first.
    """
    rows = source.summary[source.summary["suite"] == suite]
    if source.kind == "own" and rows["arm"].nunique() < 2:
        alone = source.summary.groupby("suite")["arm"].nunique().max() < 2
        first = next(name for name in SUITES if name in set(source.summary["suite"]))
        if not (alone and suite == first):
            return []
    rows = rows[rows["task"].isin(tasks_of(source, suite))]
    return list(rows.groupby(["task", "structure"], sort=True))


def _arms(source, suite, rows):
    """A row of cells per arm, in the suite's order; two where seeds had different budgets."""
    cells = []
    for arm in SUITES[suite]:
        for epochs, of_arm in rows[rows["arm"] == arm].groupby("epochs", sort=True):
            of_arm = of_arm.drop_duplicates("metric").set_index("metric")
            runs = source.runs[(source.runs["suite"] == suite) & (source.runs["arm"] == arm)]
            runs = runs[runs["epochs"] == epochs]
            if "task" in runs:
                runs = runs[runs["task"] == of_arm["task"].iloc[0]]
            more = [NOTHING] * 3
            if len(runs):
                weights, rates = runs["trained_parameters"].iloc[0], runs["learning_rate"].iloc[0]
                more = [f"{runs['validation_dice'].mean():.3f}", f"{weights:,}", f"{rates:g}"]
            values = [mean_and_spread(of_arm, metric) for metric in SHOWN]
            cells.append([arm, f"{of_arm['n_seeds'].iloc[0]}", f"{epochs}", *values, *more])
    return cells


# --- verify --------------------------------------------------------------------------------


def _checks(place, root):
    """What `mvl verify` says: conclusion, sentences, a table of what was compared."""
    try:
        checks = verify(place, root / "results" / "reference")
    except UNREADABLE as error:
        return {
            "state": "note",
            "conclusion": f"Nothing verified: {in_words(error, root)}",
            "table": None,
        }
    agrees, said = conclusion(checks)
    files = checks[checks["check"] == "file"]
    said += f" {int(files['agrees'].sum())} of {count(len(files), 'file')} of cases are as the "
    said += "evaluation wrote them."
    state = {True: "ok", False: "error", None: "note"}[agrees]
    compared = checks[(checks["check"] != "file") & checks["agrees"].notna()]
    shown = checks.loc[sorted({*compared.index, *checks.index[checks["agrees"].eq(False)]})]
    words = {True: "agrees", False: "differs"}
    rows = [
        [r.run or NOTHING, name_of_check(r) or NOTHING, r.check, words[bool(r.agrees)], r.detail]
        for r in shown.itertuples()
    ]
    columns = [("run", "code"), ("arm", "text"), ("check", "text"), ("result", "text")]
    columns += [("detail", "text")]
    table = Table("Runs that the reference has, check by check.", columns, [Group("", "", rows)])
    return {"state": state, "conclusion": said, "table": table if rows else None}


# --- figures -------------------------------------------------------------------------------


def _figures(sources, root):
    """Figures of own results, then those of the committed reference."""
    found = []
    for source in sources:
        if source.kind == "own":
            for suite in SUITES:
                found += _suite_figures(source, suite)
            found += _size_figures(source)
    folder = root / "results" / "reference"
    for path in sorted((folder / PICTURE.parent).glob("*.png")):
        content = base64.b64encode(path.read_bytes()).decode()
        said = f"Committed reference: {path.stem.replace('_', ' ')}"
        source = f"data:image/png;base64,{content}"
        found.append(Figure(source, said, _reference_alt(path, sources, said), "reference"))
    return found


def _reference_alt(path, sources, said):
    """The reference's one known picture in words; of another, its name."""
    reference = [source for source in sources if source.kind == "reference"]
    if path.name == PICTURE.name and reference:
        rows = reference[0].contrasts
        pair = (rows["suite"] == "language") & (rows["arm_a"] == "pretrained")
        rows = rows[pair & (rows["arm_b"] == "none") & (rows["metric"] == "dice")]
        if len(rows):
            return f"A dot per test subject, by difference. {sentence(rows.iloc[0])}"
    return f"Figure. {said}."


def _suite_figures(source, suite):
    found = []
    parts = _of_suite(source, suite)
    if len({task for (task, _), _ in parts}) > 2:
        return [_by_task(source, suite, parts)]
    for (task, structure), rows in parts:
        cases = source.cases
        cases = cases[(cases["suite"] == suite) & (cases["task"] == task)]
        cases = cases[cases["structure"] == structure]
        if rows["arm"].nunique() > 1:
            order = {arm: n for n, arm in enumerate(SUITES[suite])}
            cases = cases.sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
            dice = cases.groupby(["arm", "seed", "subject"])["dice"].mean().groupby("arm").mean()
            means = ", ".join(f"{arm} {dice[arm]:.3f}" for arm in order if arm in dice)
            alt = f"Mean Dice of the arms of the suite {suite}, {task}, {structure}: {means}."
            label = f"{source.label}: {QUESTIONS[suite]} Every arm of the suite {suite}."
            found.append((figures.arm_means(cases), label, alt))
        curves = source.curves
        curves = curves[(curves["suite"] == suite) & (curves["task"] == task)]
        if suite in _LEARNING and curves["arm"].nunique() > 1 and structure == "foreground":
            last = curves.sort_values("epoch").groupby(["arm", "seed"])["validation_dice"].last()
            means = ", ".join(f"{arm} {x:.3f}" for arm, x in last.groupby("arm").mean().items())
            label = f"{source.label}: validation Dice while training, arms of the suite {suite}."
            alt = f"Validation Dice by epoch, {task}; after the last epoch: {means}."
            drawn = figures.curve_bands(curves, bool(cases["synthetic"].any()))
            found.append((drawn, label, alt))
        pairs = source.contrasts
        pairs = pairs[(pairs["suite"] == suite) & (pairs["metric"] == "dice")]
        pairs = pairs[(pairs["task"] == task) & (pairs["structure"] == structure)]
        for _, row in pairs.head(1).iterrows():
            arms = row["arm_a"], row["arm_b"]
            values = figures.subject_differences(cases, *arms)
            alt = f"A dot per test subject: {int((values > 0).sum())} of {len(values)} are above "
            alt += f"zero. {sentence(row)}"
            label = f"{source.label}: {arms[0]} minus {arms[1]} in Dice, subject by subject."
            found.append((figures.paired_differences(cases, *arms), label, alt))
    prefix = "Synthetic data. " if source.summary["synthetic"].any() else ""
    return [Figure(_svg(drawn), label, prefix + alt, "own") for drawn, label, alt in found]


def _by_task(source, suite, parts):
    """One figure of a suite that was run on many tasks, beside the paper's numbers of them."""
    rows = pd.concat([rows for (_, structure), rows in parts if structure == "foreground"])
    dice = rows[rows["metric"] == "dice"]
    means = [
        f"{task}: " + ", ".join(map("{0.arm} {0.mean:.3f}".format, own.itertuples()))
        for task, own in dice.groupby("task", sort=True)
    ]
    prefix = "Synthetic data. " if rows["synthetic"].any() else ""
    alt = f"{prefix}Mean Dice of the arms of the suite {suite}, foreground. {'; '.join(means)}."
    label = f"{source.label}: {QUESTIONS[suite]} A task a row."
    paper = ten_tasks.paper_by_arm()
    drawn = figures.metric_by_task(rows, paper[paper["task"].isin(rows["task"])])
    return Figure(_svg(drawn, 10.5), label, alt, "own")


#: Suites whose training curves are shown: the block, and the paper's few-shot figure.
_LEARNING = ("language", "data")


def _size_figures(source):
    """Dice against the number of weights, of every experiment of a source, a task each.

    Two models are compared better by the figures of their suite.
    """
    found = []
    part = part_of(source, distinct(source.runs))
    arms = part.cases.groupby("task")["arm"].nunique()
    for task in sorted(arms[(arms > 2) & (arms == arms.max())].index):
        own = rows_of_tasks(part, [task])
        dice = own.cases.groupby(["arm", "seed", "subject"])["dice"].mean().groupby("arm").mean()
        weights = own.runs.groupby("arm")["parameters"].first()
        said = ", ".join(f"{arm} {weights[arm]:,} and {dice[arm]:.3f}" for arm in dice.index)
        prefix = "Synthetic data. " if own.cases["synthetic"].any() else ""
        alt = f"{prefix}Weights and mean Dice of every model, {task}, foreground: {said}."
        label = f"{source.label}: size against Dice, every model; frozen weights count, too."
        drawn = figures.size_against_dice(own.cases, own.runs)
        found.append(Figure(_svg(drawn), label, alt, source.kind))
    return found


def _svg(figure, width=6.4):
    """A figure as a data URI, the same for the same figure, so many inches wide.

    As wide as it is unless said, its letters can be read on a phone.
    """
    figure.set_size_inches(width, figure.get_size_inches()[1])
    content = base64.b64encode(figures.encoded(figure, "svg")).decode()
    return f"data:image/svg+xml;base64,{content}"


# --- notebooks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Notebook:
    """A notebook of the repository and its executed copy.

    Attributes:
        name: the file's name without its ending.
        state: "ok", "outdated", "failed", "unfinished" or "missing".
        reason: in words, what is wrong with it, or "".
        page: its `Page`, or None where there is no copy that can be read.
        address: of its page, relative to the report's folder.
    """

    name: str
    state: str
    reason: str
    page: Page | None
    address: str

    @property
    def title(self):
        return self.page.title if self.page else self.name


def _notebooks(parameters, root):
    sources = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    links = {path.stem: quote(f"{path.stem}.html") for path in sources}
    return [_notebook(path, parameters, root, links) for path in sources]


def _notebook(path, parameters, root, links):
    name, address = path.stem, links[path.stem]
    copy = root / "results" / parameters["profile"] / "notebooks" / path.name
    if not copy.is_file():
        return Notebook(name, "missing", "has not been run in this profile", None, address)
    try:
        page = read_page(copy, links)
    except MvlError as error:
        return Notebook(name, "failed", in_words(error, root), None, address)
    if page.failure:
        return Notebook(name, "failed", page.failure, page, address)
    if not copy.with_name(f"{name}.done.json").is_file():
        reason = "did not run to its end: it is running, was stopped, or its kernel died"
        return Notebook(name, "unfinished", reason, page, address)
    try:
        current = execute.Job(path, parameters, root).is_done()
    except MvlError as error:
        return Notebook(name, "outdated", in_words(error, root), page, address)
    if not current:
        reason = "was run before the code, the profile, the reference or the data changed"
        return Notebook(name, "outdated", reason, page, address)
    return Notebook(name, "ok", "", page, address)


def _neighbours(notebooks, place):
    """(the page before, the page after), None at the ends."""
    before = [notebook for notebook in notebooks[:place] if notebook.page]
    after = [notebook for notebook in notebooks[place + 1 :] if notebook.page]
    return (before or [None])[-1], (after or [None])[0]


# --- alerts and provenance -----------------------------------------------------------------


def _alert(level, text, notebook=None):
    """Something that a reader has to know before the numbers; level is "error" or "note"."""
    return {"level": level, "text": text, "notebook": notebook}


def _alerts(notebooks, runs, profile):
    alerts = []
    for notebook in notebooks:
        if notebook.state in ("failed", "unfinished"):
            alerts.append(_alert("error", notebook.reason, notebook))
    missing = [notebook.name for notebook in notebooks if notebook.state == "missing"]
    if missing:
        which = "no notebook" if len(missing) == len(notebooks) else f"not {', '.join(missing)}"
        command = f"'./run_all.sh --profile {profile}' runs what is missing"
        alerts.append(_alert("note", f"This profile has run {which}; {command}."))
    outdated = [notebook.name for notebook in notebooks if notebook.state == "outdated"]
    if outdated:
        said = "run before the code, the profile, the reference or the data changed"
        alerts.append(_alert("note", f"Outdated, {said}: {', '.join(outdated)}."))
    for run in runs:
        if run.state in ("failed", "unreadable"):
            said = "failed" if run.state == "failed" else "cannot be read"
            alerts.append(_alert("error", f"Run {run.folder.name} {said}: {run.reason}"))
    return alerts


def _provenance(parameters, runs, notebooks, root):
    """Tables: what was asked for, what was run, on what, from which files."""
    tables = [
        _pairs(
            "Parameters of the profile, profiles/" + f"{parameters['profile']}.yaml.", parameters
        )
    ]
    if runs:
        columns = [("run", "code"), ("arms", "text"), ("seed", "n"), ("task", "text")]
        columns += [("state", "text"), ("training (s)", "n"), ("commit", "code")]
        columns += [("cases.csv, SHA-256", "code"), ("why it is in no table", "text")]
        rows = [_run_row(run) for run in runs]
        if not any(run.reason for run in runs):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        caption = "Runs of this profile, by fingerprint: configuration, data, language block."
        tables.append(Table(caption, columns, [Group("", "", rows)]))
        tables.append(_machines(runs))
    blocks = {str(sorted(run.block.items())): run.block for run in runs if run.block}
    if blocks:
        names = ("source", "revision", "layer", "control", "sha256")
        columns = [(name, "code") for name in names]
        rows = [[_text(block.get(name)) for name in names] for _, block in sorted(blocks.items())]
        tables.append(Table("Language blocks, by reference.", columns, [Group("", "", rows)]))
    executed = [n for n in notebooks if n.page and n.page.executed]
    if executed:
        columns = [("notebook", "text"), ("state", "text"), ("started (UTC)", "text")]
        columns += [("seconds", "n")]
        rows = [
            [
                n.name,
                n.state,
                n.page.executed[0][:19].replace("T", " "),
                f"{n.page.executed[1]:.0f}",
            ]
            for n in executed
        ]
        tables.append(Table("Executed notebooks.", columns, [Group("", "", rows)]))
    reference = root / "results" / "reference"
    if (reference / "provenance.json").is_file():
        said = "The committed reference, results/reference/provenance.json."
        facts = read_json(reference / "provenance.json")
        machine = facts.pop("machine", {}) if isinstance(facts, dict) else {}
        tables.append(_pairs(said, dict(facts) | dict(machine)))
    files = [path for path in sorted(reference.glob("*.*")) if path.is_file()]
    rows = [[f"results/reference/{path.name}", sha256_of(path)] for path in files]
    rows.append(["mvl/paper.csv", sha256_of(PAPER)])
    columns = [("file", "text"), ("SHA-256", "code")]
    tables.append(Table("Files that numbers here come from.", columns, [Group("", "", rows)]))
    return tables


def _pairs(caption, facts):
    rows = [[key, _text(value)] for key, value in facts.items()]
    return Table(caption, [("name", "text"), ("value", "text")], [Group("", "", rows)])


def _text(value):
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return NOTHING if value is None else str(value)


def _run_row(run):
    facts = run.facts or {}
    names = ", ".join(f"{suite} {arm}" for suite, arm in run.names)
    commit = _text(facts.get("commit"))
    return [
        run.folder.name,
        names or NOTHING,
        _text(facts.get("seed")),
        _text(facts.get("task")),
        run.state,
        f"{facts['seconds']:,.0f}" if "seconds" in facts else NOTHING,
        commit[:12] + "+" * commit.endswith("+"),
        _text(facts.get("sha256"))[:12],
        run.reason,
    ]


def _machines(runs):
    """What the runs were made on; several values where runs differ."""
    found = {}
    for run in runs:
        environment = dict(run.environment or {})
        environment |= environment.pop("versions", {})
        for key, value in environment.items():
            found.setdefault(key, set()).add(_text(value))
    found.pop("commit", None)
    rows = [[key, ", ".join(sorted(values))] for key, values in sorted(found.items())]
    return Table(
        "Machine and versions.", [("name", "text"), ("value", "text")], [Group("", "", rows)]
    )
