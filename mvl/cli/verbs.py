"""The verbs of notebooks, data and blocks; each imports what it needs, which is little for some."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from mvl.errors import MvlError
from mvl.files import REPOSITORY

if TYPE_CHECKING:
    from mvl.data.tasks import Task


def run(options: Namespace) -> int:
    from mvl.runner import execute, kernels
    from mvl.runner.profiles import default_profile

    if not options.profile:
        options.profile, why = default_profile()
        print(f"Profile {options.profile}{why and f': {why}'}")
    outcomes = execute.run(options.profile, options.only, options.start, options.force).values()
    page = REPOSITORY / "results" / options.profile / "report" / "index.html"
    # Where nothing was run, the report that is there says it all, and takes seconds to make.
    wanted = any(outcome.seconds for outcome in outcomes) or not page.is_file()
    if wanted and kernels.in_fork(_last_report, options.profile):
        return 1
    return 1 if any(outcome.status in ("failed", "incomplete") for outcome in outcomes) else 0


def _last_report(profile):
    """Also of a run that failed: it says so."""
    try:
        report(Namespace(place=profile, reference=False))
    except MvlError as error:
        print(f"no report: {error}", file=sys.stderr)


def report(options: Namespace) -> None:
    from mvl.runner.execute import outdated
    from mvl.show.report import write_folder_report, write_report, write_site
    from mvl.study.profiles import load_profile

    if options.reference:
        # Of several copies of a notebook, that with the longest training comes first.
        known = ("paper", "gpu", "quick", "smoke")
        ran = [name for name in known if (REPOSITORY / "results" / name / "notebooks").is_dir()]
        print(write_site({name: outdated(load_profile(name)) for name in ran or ["quick"]}))
    elif (REPOSITORY / "profiles" / f"{options.place}.yaml").is_file():
        parameters = load_profile(options.place)
        print(write_report(parameters, outdated(parameters)))
    else:
        print(write_folder_report(Path(options.place)))


def print_assumptions(task: "Task") -> None:
    """Print what the task's folder does not say, and is assumed of it."""
    for assumption in task.assumptions:
        print(f"assumed: {assumption}")


def check(options: Namespace) -> None:
    from mvl.data.checks import check_cases, require, unlisted
    from mvl.data.task_folder import find_task, task_and_cases

    folder = Path(options.task)
    if not (folder / "dataset.json").is_file():
        folder = find_task(options.task, options.root)
    task, cases = task_and_cases(folder)
    if unused := unlisted(folder, cases):
        print(f"not used: {len(unused)} images that dataset.json does not name, as {unused[0]}")
    require(cases, check_cases(task, cases), "fail")
    print(f"{folder}: {len(cases)} cases of {len({c.subject for c in cases})} subjects, no fault")
    print_assumptions(task)
    if not (folder / "subjects.csv").is_file() and len({case.subject for case in cases}) == len(
        cases
    ):
        print("assumed: each case is of another person (a subjects.csv says otherwise)")


def download(options: Namespace) -> None:
    from mvl.data.download import download

    print(download(options.task, options.root))


def convert(options: Namespace) -> None:
    from mvl.data.convert import convert
    from mvl.data.task_folder import list_cases
    from mvl.data.tasks import read_task

    folder = convert(options.release, options.folder, options.root)
    print(f"{folder}: {len(list_cases(folder))} of the study's {read_task(folder).cases} cases")


def phantom(options: Namespace) -> None:
    from mvl.data.phantom import make_phantom
    from mvl.data.task_folder import REPOSITORY_DATA

    root = options.root or REPOSITORY_DATA / "phantom"
    print(make_phantom(options.task, root, options.cases, options.scale, options.seed))


def block_list(options: Namespace) -> None:
    from mvl.blocks.families import FAMILIES
    from mvl.blocks.sources import offline_sources

    print(f"families: {', '.join(FAMILIES)}")
    print(f"sources here: {', '.join(offline_sources()) or 'none'}")


def block_show(options: Namespace) -> None:
    from mvl.blocks.extraction import block_sizes

    for name, value in block_sizes(options.source, options.layer).items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def block_scale(options: Namespace) -> None:
    from mvl.blocks.scale import hidden_scale

    print(hidden_scale(options.source).to_string(index=False, float_format="%.3f"))


def block_extract(options: Namespace) -> None:
    from mvl.blocks.extraction import extract_block
    from mvl.config import LanguageConfig

    config = LanguageConfig(source=options.source, layer=options.layer)
    print(f"SHA-256 {extract_block(config, options.output)}")
    print(f"path:{options.output}")
