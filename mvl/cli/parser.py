"""What the `mvl` command takes: verbs, options with their texts and defaults, examples.

A list of names that costs seconds to import is made when its help is asked for.
"""

import argparse
from pathlib import Path

from mvl import __version__
from mvl.cli import options, runs, study, train, verbs
from mvl.cli.options import TASK

_RUN = "a run's folder, its name, or the first digits of its fingerprint"
_MAINTAINERS = """verbs for maintainers:
    reference           add trained suites to results/reference and the README's results
    audit               what the released code's protocol changes: list, run, status, table"""


#: Verb -> what may follow it, for the end of its help.
EXAMPLES = {
    "run": ("--profile smoke --only 3",),
    "report": ("quick", "results/runs", "--reference"),
    "verify": ("results/study", "quick --verbose"),
    "train": (
        "--preset v1 --steps 2000",
        "--preset v1 --block path:/models/Llama-3.1-8B --set model.language.layer=15",
        "--preset unet --task MyTask --grid 64 64 64 --fit resize --name my-unet",
        "--config results/runs/0123456789abcdef/config.json --seed 1",
        "--task MyTask --folds 4 --fold 0",
    ),
    "evaluate": ("my-unet",),
    "predict": ("scan.nii.gz -o segmentation.nii.gz", "imagesTs --run my-unet -o segmentations"),
    "runs list": ("",),
    "runs show": ("my-unet", "3f2a"),
    "runs compare": ("my-unet 3f2a", "a0,a1,a2 b0,b1,b2    # trainings in pairs: seeds or folds"),
    "data check": ("MyTask", "/data/MyTask"),
    "data download": (TASK,),
    "data convert": ("openkbp open-kbp",),
    "data phantom": (f"{TASK} --cases 12 --scale 0.4",),
    "block list": ("",),
    "block show": ("path:/models/Llama-3.1-8B",),
    "block extract": ("hub:meta-llama/Llama-3.1-8B --layer 15 -o llama-15",),
    "block scale": ("package:smollm2-135m",),
    "suite list": ("",),
    "suite run": ("language --seeds 0 1 2 --jobs 2", "presets --task MyTask --arms vit v1"),
    "suite tune": ("language --arms none",),
    "suite use": ("language --seeds 0",),
    "suite status": ("language --seeds 0 1 2",),
    "suite table": ("language --seeds 0 1 2",),
    "reference": ("language",),
    "audit list": ("",),
    "audit run": ("--seeds 0 1 2",),
    "audit status": ("--seeds 0 1 2",),
    "audit table": ("",),
}


class Parser(argparse.ArgumentParser):
    """A parser whose help shows defaults, and whose epilog may be a function."""

    def __init__(self, **given) -> None:
        super().__init__(formatter_class=_Formatter, **given)

    def format_help(self) -> str:
        """The help, with the epilog as it is now."""
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, False) or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


def make_parser() -> Parser:
    """The parser of the whole command."""
    parser = Parser(
        prog="mvl",
        description="MedVisionLlama, replicated: train, evaluate, predict, reproduce.",
        epilog=f"{_MAINTAINERS}\n\n'mvl VERB --help' has every option, its default and examples.",
    )
    parser.add_argument("--version", action="version", version=f"mvl {__version__}")
    top = parser.add_subparsers(metavar="VERB", required=True, title="verbs")
    _notebook_verbs(top)
    _run_verbs(top)
    _data_verbs(_group(top, "data", "check, download, convert or synthesise a task"))
    _block_verbs(_group(top, "block", "blocks of language models: list, show, scale, extract"))
    _suite_verbs(_group(top, "suite", "named suites: list, run, tune, use, status, table"))
    _maintainers_verbs(top)
    return parser


def _notebook_verbs(top):
    run = _verb(top, "run", verbs.run, "execute the notebooks of a profile (run_all.sh)")
    run.add_argument(
        "--profile",
        metavar="NAME",
        help="smoke, quick, gpu or paper (default: quick, or smoke where memory is scarce)",
    )
    run.add_argument("--only", metavar="NN", help="one notebook, by its number (default: all)")
    run.add_argument(
        "--from",
        dest="start",
        metavar="NN",
        help="this notebook and those after it (default: the first)",
    )
    run.add_argument("--force", action="store_true", help="run unchanged notebooks, too")

    report = _verb(top, "report", verbs.report, "results as one static page")
    report.add_argument(
        "place",
        nargs="?",
        default="quick",
        metavar="PROFILE|FOLDER",
        help="a profile, or a folder with runs anywhere below it",
    )
    report.add_argument(
        "--reference", action="store_true", help="the study's site instead, to results/site"
    )

    text = "did I reproduce it? runs against the reference"
    verify = _verb(top, "verify", study.verify, text)
    verify.add_argument(
        "run", nargs="?", default="quick", metavar="PROFILE|FOLDER|RUN", help="what to compare"
    )
    verify.add_argument("--verbose", action="store_true", help="also name runs by fingerprint")


def _presets():
    from mvl.cli.train import architectures
    from mvl.config import PRESETS

    blocks = [name for name, (model, _) in PRESETS.items() if model.language]
    return (
        f"presets: {', '.join(PRESETS)} (with a language block: {', '.join(blocks)})\n"
        f"         {', '.join(architectures())} (the field's networks)"
    )


def _run_verbs(top):
    text = "train one experiment; the test set stays closed"
    trained = _verb(top, "train", train.train, text, more=_presets)
    what = trained.add_argument_group("what is trained")
    what.add_argument("--preset", metavar="NAME", help="model and training plan (default: vit)")
    what.add_argument(
        "--block",
        metavar="SOURCE",
        help="language block, such as path:FOLDER (default: the preset's, where it has one)",
    )
    what.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a configuration or a part of one, YAML or JSON, such as a run's config.json; "
        "options count more (default: none)",
    )
    what.add_argument(
        "--set",
        action="append",
        metavar="FIELD=VALUE",
        help="any field of the configuration, such as model.width=128; repeatable, and counts "
        "most (default: none)",
    )
    what.add_argument("--seed", type=int, help="of all that is random (default: 0)")
    plan = trained.add_argument_group("how long and how")
    length = plan.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help="default: the preset's, mostly 60")
    length.add_argument(
        "--steps", type=int, metavar="N", help="optimiser steps, rounded up to whole epochs; "
        "default: as the epochs give"
    )  # fmt: skip
    plan.add_argument("--learning-rate", type=float, metavar="X", help="default: the preset's")
    plan.add_argument("--batch-size", type=int, metavar="N", help="cases per step; default: 4")
    plan.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    options.track_option(plan)
    where = trained.add_argument_group("where it goes")
    where.add_argument("--name", metavar="NAME", help="what to call the run (default: no name)")
    where.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="folder of all runs (default: results/runs)"
    )
    data = trained.add_argument_group("data")
    data.add_argument("--task", metavar="NAME", help=f"a task's name (default: {TASK})")
    options.data_options(data)
    options.grid_options(data)
    sides = trained.add_argument_group("who is trained with, and who is tested")
    sides.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help='own sides or folds of cases: {"test": [...]}, {"folds": [[...], ...]} or nnU-Net\'s '
        'splits_final.json; of subjects with "by": "subject" in it (default: a fifth of the '
        "subjects is tested)",
    )
    sides.add_argument(
        "--folds",
        type=int,
        metavar="N",
        help="test across N folds: fold k is tested, the next one validates (default: 5 with "
        "--fold, else no folds are tested)",
    )
    sides.add_argument(
        "--fold", type=int, metavar="K", help="the fold, from 0 (default: the seed modulo N)"
    )

    evaluate = _verb(top, "evaluate", verbs.evaluate, "open the test set for a trained run")
    evaluate.add_argument("run", metavar="RUN", help=_RUN)
    options.data_options(evaluate)

    predict = _verb(top, "predict", verbs.predict, "segment images with a trained model")
    predict.add_argument(
        "image",
        type=Path,
        metavar="IMAGE|FOLDER",
        help="an image, a folder of images, or a task's, of which its imagesTs are segmented",
    )
    predict.add_argument(
        "--run", metavar="RUN", help=f"{_RUN}; or the folder of a saved model (default: our `best`)"
    )
    predict.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="for a folder, a folder"
    )
    predict.add_argument(
        "--anyway", action="store_true", help="segment what is unlike the training images, too"
    )

    group = _group(top, "runs", "trained runs: list, show, compare")
    _verb(group, "list", runs.runs_list, "every run below results/")
    show = _verb(group, "show", runs.runs_show, "what a run is, and how far")
    show.add_argument("run", metavar="RUN", help=_RUN)
    text = "the difference of two tested runs, paired by subject"
    compare = _verb(group, "compare", runs.runs_compare, text)
    for name in ("A", "B"):
        compare.add_argument(name.lower(), metavar=name, help=f"{_RUN}; several, by commas")


def _data_verbs(data):
    text = "examine every case, report all faults at once"
    check = _verb(data, "check", verbs.check, text)
    check.add_argument("task", metavar="TASK", help="a task's name, or a task folder")
    options.root_option(check)
    download = _verb(data, "download", verbs.download, "fetch a task of the decathlon")
    download.add_argument("task", metavar="TASK", help="a task's name")
    options.root_option(download, "--root", text="where the task's folder goes")
    text = "make the study's other tasks (docs/data.md)"
    convert = _verb(data, "convert", verbs.convert, text)
    convert.add_argument("release", choices=("openkbp", "chaos"), help="what is converted")
    convert.add_argument("folder", metavar="FOLDER", help="a clone of the release's repository")
    options.root_option(convert, "-o", "--root", metavar="OUT", text="where the task's folder goes")
    phantom = _verb(data, "phantom", verbs.phantom, "make a task's synthetic stand-in")
    phantom.add_argument("task", metavar="TASK", help="a task's name")
    phantom.add_argument(
        "--root", metavar="FOLDER", help="where the task's folder goes (default: data/phantom)"
    )
    phantom.add_argument("--cases", type=int, default=24, metavar="N", help="labelled cases")
    phantom.add_argument("--scale", type=float, default=1.0, metavar="X", help="of each axis")
    phantom.add_argument("--seed", type=int, default=0, help="of all that is random")


def _block_verbs(block):
    _verb(block, "list", verbs.block_list, "families that are known, sources that are here")
    show, extract, scale = (
        _verb(block, name, call, text)
        for name, call, text in (
            ("show", verbs.block_show, "sizes of a model and its block; reads no weights"),
            ("extract", verbs.block_extract, "copy a block out, for a machine without network"),
            ("scale", verbs.block_scale, "how large the states are that each layer is used to"),
        )
    )
    extract.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the copy goes"
    )
    for verb in (show, extract, scale):
        verb.add_argument("source", metavar="SOURCE", help="such as hub:OWNER/NAME, path:FOLDER")
    for verb in (show, extract):
        verb.add_argument(
            "--layer", type=int, default=-1, metavar="K", help="from 0, or from the end with -1"
        )


def _suites():
    from mvl.study.suites import SUITES

    return f"suites: {', '.join(SUITES)} ('mvl suite list' has their questions and arms)"


def _suite_verbs(suite):
    _verb(suite, "list", study.suite_list, "the suites, their questions and their arms")
    run, tune, use, status, table = (
        _verb(suite, name, call, text, more=_suites)
        for name, call, text in (
            ("run", study.suite_run, "run what is not done yet, print the summary"),
            ("tune", study.suite_tune, "train every arm with each learning rate, on validation"),
            ("use", study.suite_use, "do trained cells use their block? Dice without it"),
            ("status", study.suite_status, "what is done, running, failed; time left"),
            ("table", study.suite_table, "summary and answers of what is done"),
        )
    )
    run.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    run.add_argument(
        "--shard",
        metavar="I/N",
        help="train the i-th of n parts, for job arrays; tests nothing (default: all)",
    )
    run.add_argument(
        "--jobs", type=int, metavar="N", help="train N cells at once, a thread each (default: 1)"
    )
    run.add_argument(
        "--on",
        metavar="CLUSTER",
        help="train on Ray: ray (here), HOST:PORT or ray://HOST:PORT (default: no cluster)",
    )
    options.track_option(run)
    use.add_argument(
        "--side", choices=("validation", "test"), default="validation", help="whose Dice"
    )
    for verb in (tune, use):
        verb.add_argument(
            "--rates",
            type=float,
            nargs="+",
            metavar="X",
            help="learning rates (default: the study's three)",
        )
        verb.add_argument(
            "--mapper-rates",
            type=float,
            nargs="+",
            metavar="X",
            help="of the mappers, in multiples of it (default: the arm's)",
        )
    for verb in (run, tune, use, status, table):
        verb.add_argument("suite", metavar="NAME", help="a suite")
        options.cell_options(verb)
        options.grid_options(verb)


def _maintainers_verbs(top):
    """Verbs that `_MAINTAINERS` lists: without a text the list of all leaves them out."""
    reference = _verb(top, "reference", study.reference, None)
    reference.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    options.results_options(reference)
    audit = top.add_parser("audit").add_subparsers(metavar="VERB", required=True)
    _verb(audit, "list", study.audit_list, "what the released code does, and what we do")
    run, status = (
        _verb(audit, name, call, text)
        for name, call, text in (
            ("run", study.audit_run, "train and test the arms that are not done yet"),
            ("status", study.audit_status, "what is done, running, failed; time left"),
        )
    )
    run.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    for verb in (run, status):
        options.cell_options(verb)
    added = "add what is trained to the reference and the README"
    options.results_options(_verb(audit, "table", study.audit_table, added))


def _group(parent, name, text):
    return parent.add_parser(name, help=text).add_subparsers(metavar="VERB", required=True)


def _verb(parent, name, call, text, more=lambda: ""):
    listed = {"help": text} if text else {}
    parser = parent.add_parser(name, description=text, **listed)
    verb = parser.prog.removeprefix("mvl ")
    shown = "\n".join(f"    mvl {verb} {words}".rstrip() for words in EXAMPLES[verb])
    parser.epilog = lambda: f"{more()}\n\nexamples:\n{shown}".strip()
    parser.set_defaults(call=call)
    return parser
