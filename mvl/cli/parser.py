"""What the `mvl` command takes: verbs, options with their texts and defaults, examples."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from mvl import __version__

#: The task where nobody names one.
TASK = "Task04_Hippocampus"
_RUN = "a run's folder, its name, or the first digits of its fingerprint"
_PRESETS = (
    "presets: vit, best; with a language block v1, v3, released; the field's networks unet,\n"
    "         unet++, unetr, swin-unetr, segresnet, dynunet"
)


def make_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = ArgumentParser(
        prog="mvl",
        description="MedVisionLlama, replicated: train, evaluate, predict, reproduce.",
        epilog="'mvl VERB --help' has every option, its default and examples.",
    )
    parser.add_argument("--version", action="version", version=f"mvl {__version__}")
    top = parser.add_subparsers(metavar="VERB", required=True, title="verbs")
    _notebook_verbs(top)
    _train_verb(top)
    _run_verbs(top)
    _data_verbs(_group(top, "data", "check, download, convert or synthesise a task"))
    _block_verbs(_group(top, "block", "blocks of language models: list, show, scale, extract"))
    _suite_verbs(_group(top, "suite", "named suites: list, run, tune, use, status, table"))
    _maintainers_verbs(top)
    return parser


def _group(parent, name, text):
    return parent.add_parser(name, help=text).add_subparsers(metavar="VERB", required=True)


def _verb(parent, name, call, text, *examples, epilog=""):
    """Add a verb; `call` is a module of mvl.cli and its function, imported when it is called."""
    parser = parent.add_parser(
        name, help=text, description=text, formatter_class=RawDescriptionHelpFormatter
    )
    lines = [epilog, "examples:", *(f"    {parser.prog} {words}" for words in examples or [""])]
    parser.epilog = "\n".join(lines).strip()
    parser.set_defaults(call=call)
    return parser


def _notebook_verbs(top):
    text = "execute the notebooks of a profile (run_all.sh)"
    run = _verb(top, "run", "verbs.run", text, "--profile smoke --only 3")
    text = "smoke, quick, gpu or paper (default: quick, or smoke where memory is scarce)"
    run.add_argument("--profile", metavar="NAME", help=text)
    part = run.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="NN", help="one notebook, by its number (default: all)")
    text = "this notebook and those after it (default: the first)"
    part.add_argument("--from", dest="start", metavar="NN", help=text)
    run.add_argument("--force", action="store_true", help="run unchanged notebooks, too")

    examples = ("quick", "results/runs", "--reference")
    report = _verb(top, "report", "verbs.report", "results as one static page", *examples)
    text = "a profile, or a folder with runs anywhere below it (default: %(default)s)"
    report.add_argument("place", nargs="?", default="quick", metavar="PROFILE|FOLDER", help=text)
    text = "the study's site instead, to results/site"
    report.add_argument("--reference", action="store_true", help=text)

    text = "did I reproduce it? runs against the reference"
    verify = _verb(top, "verify", "study.verify", text, "results/study", "quick --verbose")
    text, names = "what to compare (default: %(default)s)", "PROFILE|FOLDER|RUN"
    verify.add_argument("run", nargs="?", default="quick", metavar=names, help=text)
    verify.add_argument("--verbose", action="store_true", help="also name runs by fingerprint")


def _train_verb(top):
    text = "train one experiment; the test set stays closed"
    train = _verb(
        top,
        "train",
        "train.train",
        text,
        "--preset v1 --steps 2000",
        "--preset v1 --block path:/models/Llama-3.1-8B --set model.language.layer=15",
        "--preset unet --task MyTask --grid 64 64 64 --fit resize --name my-unet",
        "--config results/runs/0123456789abcdef/config.json --seed 1",
        "--task MyTask --folds 4 --fold 0",
        epilog=_PRESETS + "\n",
    )
    what = train.add_argument_group("what is trained")
    what.add_argument("--preset", metavar="NAME", help="model and training plan (default: vit)")
    text = "language block, such as path:FOLDER (default: the preset's, where it has one)"
    what.add_argument("--block", metavar="SOURCE", help=text)
    text = "a configuration or a part of one, YAML or JSON, such as a run's config.json; "
    text += "options count more (default: none)"
    what.add_argument("--config", type=Path, metavar="FILE", help=text)
    text = "any field of the configuration, such as model.width=128; repeatable, and counts "
    text += "most (default: none)"
    what.add_argument("--set", action="append", metavar="FIELD=VALUE", help=text)
    what.add_argument("--seed", type=int, help="of all that is random (default: 0)")
    plan = train.add_argument_group("how long and how")
    length = plan.add_mutually_exclusive_group()
    text = "default: the preset's, mostly 60"
    length.add_argument("--epochs", type=int, metavar="N", help=text)
    text = "optimiser steps, rounded up to whole epochs; default: as the epochs give"
    length.add_argument("--steps", type=int, metavar="N", help=text)
    plan.add_argument("--learning-rate", type=float, metavar="X", help="default: the preset's")
    plan.add_argument("--batch-size", type=int, metavar="N", help="cases per step; default: 4")
    _device_option(plan)
    _track_option(plan)
    where = train.add_argument_group("where it goes")
    where.add_argument("--name", metavar="NAME", help="what to call the run (default: no name)")
    text = "folder of all runs (default: results/runs)"
    where.add_argument("--runs", type=Path, metavar="FOLDER", help=text)
    data = train.add_argument_group("data")
    data.add_argument("--task", metavar="NAME", help=f"a task's name (default: {TASK})")
    _data_options(data)
    _grid_options(data)
    sides = train.add_argument_group("who is trained with, and who is tested")
    text = 'own sides or folds of cases: {"test": [...]}, {"folds": [[...], ...]} or nnU-Net\'s '
    text += 'splits_final.json; of subjects with "by": "subject" in it (default: a fifth of the '
    text += "subjects is tested)"
    sides.add_argument("--splits", type=Path, metavar="FILE", help=text)
    text = "test across N folds: fold k is tested, the next one validates (default: 5 with "
    text += "--fold, else no folds are tested)"
    sides.add_argument("--folds", type=int, metavar="N", help=text)
    text = "the fold, from 0 (default: the seed modulo N)"
    sides.add_argument("--fold", type=int, metavar="K", help=text)


def _device_option(verb):
    text = "cpu, cuda or cuda:N (default: a GPU where there is one)"
    verb.add_argument("--device", metavar="NAME", help=text)


def _run_verbs(top):
    text = "open the test set for a trained run"
    evaluate = _verb(top, "evaluate", "runs.evaluate", text, "my-unet")
    evaluate.add_argument("run", metavar="RUN", help=_RUN)
    _data_options(evaluate)
    _device_option(evaluate)

    text = "segment images with a trained model"
    examples = (
        "scan.nii.gz -o segmentation.nii.gz",
        "imagesTs --run my-unet -o segmentations",
    )
    predict = _verb(top, "predict", "runs.predict", text, *examples)
    text = "an image, a folder of images, or a task's, of which its imagesTs are segmented"
    predict.add_argument("image", type=Path, metavar="IMAGE|FOLDER", help=text)
    text = f"{_RUN}; or the folder of a saved model (default: our `best`)"
    predict.add_argument("--run", metavar="RUN", help=text)
    out = {"type": Path, "required": True, "metavar": "OUT"}
    predict.add_argument("-o", "--output", **out, help="for a folder, a folder")
    text = "segment what is unlike the training images, too"
    predict.add_argument("--anyway", action="store_true", help=text)
    text = "where a saved model's language block is on this machine (default: as it was saved)"
    predict.add_argument("--block", metavar="SOURCE", help=text)
    _device_option(predict)

    runs = _group(top, "runs", "trained runs: list, show, compare")
    _verb(runs, "list", "runs.runs_list", "every run below results/")
    show = _verb(runs, "show", "runs.runs_show", "what a run is, and how far", "my-unet", "3f2a")
    show.add_argument("run", metavar="RUN", help=_RUN)
    text = "the difference of two tested runs, paired by subject"
    examples = ("my-unet 3f2a", "a0,a1,a2 b0,b1,b2    # trainings in pairs: seeds or folds")
    compare = _verb(runs, "compare", "runs.runs_compare", text, *examples)
    for name in ("A", "B"):
        compare.add_argument(name.lower(), metavar=name, help=f"{_RUN}; several, by commas")


def _data_verbs(data):
    text = "examine every case, report all faults at once"
    check = _verb(data, "check", "verbs.check", text, "MyTask", "/data/MyTask")
    check.add_argument("task", metavar="TASK", help="a task's name, or a task folder")
    _root_option(check)
    download = _verb(data, "download", "verbs.download", "fetch a task of the decathlon", TASK)
    download.add_argument("task", metavar="TASK", help="a task's name")
    _root_option(download)
    text = "make the study's other tasks (docs/data.md)"
    convert = _verb(data, "convert", "verbs.convert", text, "openkbp open-kbp")
    convert.add_argument("release", choices=("openkbp", "chaos"), help="what is converted")
    convert.add_argument("folder", metavar="FOLDER", help="a clone of the release's repository")
    _root_option(convert, "-o", "--root")
    example = f"{TASK} --cases 12 --scale 0.4"
    phantom = _verb(data, "phantom", "verbs.phantom", "make a task's synthetic stand-in", example)
    phantom.add_argument("task", metavar="TASK", help="a task's name")
    text = "where the task's folder goes (default: data/phantom)"
    phantom.add_argument("--root", metavar="FOLDER", help=text)
    default = "(default: %(default)s)"
    text = f"labelled cases {default}"
    phantom.add_argument("--cases", type=int, default=24, metavar="N", help=text)
    text = f"of each axis {default}"
    phantom.add_argument("--scale", type=float, default=1.0, metavar="X", help=text)
    phantom.add_argument("--seed", type=int, default=0, help=f"of all that is random {default}")


def _block_verbs(block):
    _verb(block, "list", "verbs.block_list", "families that are known, sources that are here")
    text = "sizes of a model and its block; reads no weights"
    show = _verb(block, "show", "verbs.block_show", text, "path:/models/Llama-3.1-8B")
    text = "copy a block out, for a machine without network"
    example = "hub:meta-llama/Llama-3.1-8B --layer 15 -o llama-15"
    extract = _verb(block, "extract", "verbs.block_extract", text, example)
    out = {"type": Path, "required": True, "metavar": "FOLDER"}
    extract.add_argument("-o", "--output", **out, help="where the copy goes")
    text = "how large the states are that each layer is used to"
    scale = _verb(block, "scale", "verbs.block_scale", text, "package:smollm2-135m")
    for verb in (show, extract, scale):
        verb.add_argument("source", metavar="SOURCE", help="such as hub:OWNER/NAME, path:FOLDER")
    text = "from 0, or from the end with -1 (default: %(default)s)"
    for verb in (show, extract):
        verb.add_argument("--layer", type=int, default=-1, metavar="K", help=text)


def _suite_verbs(suite):
    _verb(suite, "list", "study.suite_list", "the suites, their questions and their arms")
    text = "run what is not done yet, print the summary"
    seeds = "language --seeds 0 1 2"
    examples = (f"{seeds} --jobs 2", "presets --task MyTask --arms vit v1")
    run = _verb(suite, "run", "study.suite_run", text, *examples)
    _training_options(run)
    text = "train every arm with each learning rate, on validation"
    tune = _verb(suite, "tune", "study.suite_tune", text, "language --arms none")
    text = "do trained cells use their block? validation Dice without it"
    use = _verb(suite, "use", "study.suite_use", text, "language --seeds 0")
    rates = {"type": float, "nargs": "+", "metavar": "X"}
    for verb, default in ((tune, "the study's three"), (use, "the arm's")):
        text = f"learning rates (default: {default})"
        verb.add_argument("--rates", **rates, help=text)
        text = "of the mappers, in multiples of it (default: the arm's)"
        verb.add_argument("--mapper-rates", **rates, help=text)
    text = "what is done, running, failed; time left"
    status = _verb(suite, "status", "study.suite_status", text, seeds)
    text = "summary and answers of what is done"
    table = _verb(suite, "table", "study.suite_table", text, seeds)
    for verb in (run, status, table):
        text = "of the mappers, in multiples of the learning rate (default: the arm's)"
        verb.add_argument("--mapper-rates", type=float, nargs=1, metavar="X", help=text)
    for verb in (run, tune, use, status, table):
        verb.add_argument("suite", metavar="NAME", help="a suite, of 'mvl suite list'")
        _cell_options(verb)


def _maintainers_verbs(top):
    text = "add trained suites to results/reference and the README (for maintainers)"
    reference = _verb(top, "reference", "study.reference", text, "language")
    reference.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    _results_options(reference)
    audit = _group(top, "audit", "the released code's protocol: list, run, status, table")
    _verb(audit, "list", "study.audit_list", "what the released code does, and what we do")
    text = "train and test the arms that are not done yet"
    run = _verb(audit, "run", "study.suite_run", text, "--seeds 0 1 2")
    _training_options(run)
    text = "what is done, running, failed; time left"
    status = _verb(audit, "status", "study.suite_status", text, "--seeds 0 1 2")
    for verb in (run, status):
        verb.set_defaults(suite="audit")
        _cell_options(verb)
    text = "add what is trained to the reference and the README (for maintainers)"
    _results_options(_verb(audit, "table", "study.audit_table", text))


def _training_options(parser):
    """How the cells of a suite or of the audit are trained."""
    parser.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    text = "train the i-th of n parts, for job arrays; tests nothing (default: all)"
    parser.add_argument("--shard", metavar="I/N", help=text)
    text = "train N cells at once, a thread each (default: 1)"
    parser.add_argument("--jobs", type=int, metavar="N", help=text)
    text = "train on Ray: ray (here), HOST:PORT or ray://HOST:PORT (default: no cluster)"
    parser.add_argument("--on", metavar="CLUSTER", help=text)
    _track_option(parser)


def _cell_options(parser):
    """Which cells of a suite or of the audit, and where they are."""
    seeds = {"type": int, "nargs": "+", "default": [0], "metavar": "N"}
    parser.add_argument("--seeds", **seeds, help="one or more (default: 0)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="which of them (default: all)")
    text = "a task's name (default: %(default)s)"
    parser.add_argument("--task", default=TASK, metavar="NAME", help=text)
    text = "language block (default: the suite's own)"
    parser.add_argument("--block", metavar="SOURCE", help=text)
    parser.add_argument("--epochs", type=int, metavar="N", help="budget (default: the suite's own)")
    _bad_case_option(parser)
    _results_options(parser)
    _grid_options(parser)


def _results_options(parser):
    """Where the runs of a study are, and its data."""
    text = "where runs go (default: results/study)"
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=text)
    _root_option(parser)


def _data_options(parser):
    _bad_case_option(parser)
    _root_option(parser)


def _bad_case_option(parser):
    text = "what a faulty case does (default: %(default)s)"
    parser.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail", help=text)


def _root_option(parser, *names):
    text = "folder that holds the task's folder (default: MVL_DATA_ROOT, else data)"
    parser.add_argument(*(names or ["--root"]), metavar="FOLDER", help=text)


def _grid_options(parser):
    """How a task comes to a model."""
    text = "in voxels (default: the task's own)"
    parser.add_argument("--grid", type=int, nargs=3, metavar=("H", "W", "D"), help=text)
    text = "how a volume comes to the grid (default: the task's own)"
    parser.add_argument("--fit", choices=("pad", "resize", "crop"), help=text)
    text = "mm per voxel, for crops (default: none)"
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("R", "A", "S"), help=text)
    text = "all structures as one, or each as a class (default: foreground)"
    parser.add_argument("--target", choices=("foreground", "labels"), help=text)
    text = "which of an image's (default: all)"
    parser.add_argument("--channels", choices=("all", "first"), help=text)
    text = "mirror training cases at random (default: not)"
    parser.add_argument("--flips", choices=("left-right",), help=text)


def _track_option(parser):
    text = "also write curves for TensorBoard (mvl[track])"
    parser.add_argument("--track", action="store_true", help=text)
