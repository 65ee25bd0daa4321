"""The `mvl` command: each verb reads its arguments and calls one function of the package.

Nothing heavy is imported before a verb needs it, so that `mvl --help` answers at once.
"""

import argparse
import io
import os
import sys
from pathlib import Path

from mvl.cli import study, verbs
from mvl.errors import MvlError, out_of_memory

_TASK = "Task04_Hippocampus"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for a fault, 2 for wrong usage.

    As for any command that a signal ends, it is 130 for Ctrl-C and 141 where nobody reads on.
    """
    try:
        try:
            return _status(arguments)
        finally:
            if sys.stdout:  # None where the shell has closed it
                sys.stdout.flush()  # while what it raises can still be put into words
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return _fault(f"cannot write to standard output: {error.strerror or error}")


def _status(arguments):
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        return options.call(options) or 0
    except MvlError as error:
        return _fault(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file that no reader or writer of ours has put into words
        return _fault(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not (reason := out_of_memory(error)):
            raise
        return _fault(f"out of memory ({reason}); a machine with more of it would do")
    except KeyboardInterrupt:
        print("mvl: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _drop_output():
    """Keep Python from writing, and failing, once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fault(message):
    print(f"mvl: {message}", file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="mvl", description="MedVisionLlama, replicated: train, evaluate, predict, reproduce."
    )
    top = parser.add_subparsers(metavar="VERB", required=True)

    run = _verb(top, "run", verbs.run, "execute the notebooks of a profile (run_all.sh)")
    run.add_argument(
        "--profile", metavar="NAME", help="default: quick, or smoke where memory is scarce"
    )
    run.add_argument("--only", metavar="NN", help="one notebook, by its number")
    run.add_argument("--from", dest="start", metavar="NN", help="this notebook and those after it")
    run.add_argument("--force", action="store_true", help="run unchanged notebooks, too")

    report = _verb(top, "report", verbs.report, "results as one static page")
    report.add_argument(
        "place",
        nargs="?",
        default="quick",
        metavar="PROFILE|FOLDER",
        help="a profile, or a folder with runs anywhere below it; default: quick",
    )
    report.add_argument(
        "--reference", action="store_true", help="the study's site instead, to results/site"
    )

    train = _verb(top, "train", verbs.train, "train one experiment; the test set stays closed")
    train.add_argument("--preset", default="vit", help="default: vit")
    train.add_argument("--task", default=_TASK, help=f"default: {_TASK}")
    train.add_argument("--block", metavar="SOURCE", help="language block, if the preset has one")
    train.add_argument("--epochs", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--batch-size", type=int, help="cases per step")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--runs", type=Path, default=Path("results/runs"), help="folder of all runs")
    _track_option(train)
    _grid_options(train)
    _data_options(train)

    evaluate = _verb(top, "evaluate", verbs.evaluate, "open the test set for a trained run")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    _data_options(evaluate)

    predict = _verb(top, "predict", verbs.predict, "segment images with a trained model")
    predict.add_argument(
        "image",
        type=Path,
        metavar="IMAGE|FOLDER",
        help="a folder of images, or a task's, of which its imagesTs are segmented",
    )
    predict.add_argument(
        "--run", type=Path, metavar="FOLDER", help="a run or a saved model; default: our `best`"
    )
    predict.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="for a folder, a folder"
    )
    predict.add_argument(
        "--anyway", action="store_true", help="segment what is unlike the training images, too"
    )

    _data_verbs(_group(top, "data", "check, download, convert or synthesise a task"))
    _block_verbs(_group(top, "block", "blocks of language models: list, show, extract"))
    _suite_verbs(_group(top, "suite", "named suites: list, run, tune, status, table"))

    verify = _verb(top, "verify", study.verify, "did I reproduce it? runs against the reference")
    verify.add_argument(
        "run", nargs="?", default="quick", metavar="PROFILE|RUN", help="default: quick"
    )
    reference = _verb(
        top,
        "reference",
        study.reference,
        "add trained suites to results/reference and the README's results",
    )
    reference.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    _results_options(reference)

    _audit_verbs(_group(top, "audit", "what the released code's protocol changes"))
    return parser


def _data_verbs(data):
    check = _verb(data, "check", verbs.check, "examine every case, report all faults at once")
    check.add_argument("task", metavar="TASK", help="a task's name, or a task folder")
    _root_option(check)
    download = _verb(data, "download", verbs.download, "fetch a task of the decathlon")
    download.add_argument("task", metavar="TASK")
    _root_option(download, "--root", help="where the task's folder goes")
    convert = _verb(data, "convert", verbs.convert, "make the study's other tasks (docs/data.md)")
    convert.add_argument("release", choices=("openkbp", "chaos"))
    convert.add_argument("folder", metavar="FOLDER", help="a clone of the release's repository")
    _root_option(convert, "-o", "--root", metavar="OUT", help="where the task's folder goes")
    phantom = _verb(data, "phantom", verbs.phantom, "make a task's synthetic stand-in")
    phantom.add_argument("task", metavar="TASK")
    _root_option(phantom, "--root", help="where the task's folder goes; default: data/phantom")
    phantom.add_argument("--cases", type=int, default=24, help="default: 24")
    phantom.add_argument("--scale", type=float, default=1.0, help="of each axis; default: 1")
    phantom.add_argument("--seed", type=int, default=0)


def _block_verbs(block):
    _verb(block, "list", verbs.block_list, "families that are known, sources that are here")
    show = _verb(
        block, "show", verbs.block_show, "sizes of a model and its block; reads no weights"
    )
    extract = _verb(
        block, "extract", verbs.block_extract, "copy a block out, for a machine without network"
    )
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    scale = _verb(
        block, "scale", verbs.block_scale, "how large the states are that each layer is used to"
    )
    for verb in (show, extract, scale):
        verb.add_argument("source", metavar="SOURCE", help="such as hub:OWNER/NAME, path:FOLDER")
    for verb in (show, extract):
        verb.add_argument(
            "--layer", type=int, default=-1, metavar="K", help="default: -1, the last"
        )


def _suite_verbs(suite):
    _verb(suite, "list", study.suite_list, "the suites, their questions and their arms")
    run = _verb(suite, "run", study.suite_run, "run what is not done yet, print the summary")
    run.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    run.add_argument(
        "--shard", metavar="I/N", help="train the i-th of n parts, for job arrays; tests nothing"
    )
    run.add_argument(
        "--jobs", type=int, metavar="N", help="train N cells at once, a thread for each"
    )
    run.add_argument(
        "--on", metavar="CLUSTER", help="train on Ray: ray (here), HOST:PORT or ray://HOST:PORT"
    )
    _track_option(run)
    tune = _verb(
        suite, "tune", study.suite_tune, "train every arm with each learning rate, on validation"
    )
    use = _verb(suite, "use", study.suite_use, "do trained cells use their block? Dice without it")
    use.add_argument(
        "--side", choices=("validation", "test"), default="validation", help="default: validation"
    )
    for verb in (tune, use):
        verb.add_argument(
            "--rates", type=float, nargs="+", help="learning rates; default: the study's three"
        )
        verb.add_argument(
            "--mapper-rates", type=float, nargs="+", help="of the mappers, in multiples of it"
        )
    status = _verb(suite, "status", study.suite_status, "what is done, running, failed; time left")
    table = _verb(suite, "table", study.suite_table, "summary and answers of what is done")
    for verb in (run, tune, use, status, table):
        verb.add_argument("suite", metavar="NAME")
        _cell_options(verb)
        _grid_options(verb)


def _audit_verbs(audit):
    _verb(audit, "list", study.audit_list, "what the released code does, and what we do")
    run = _verb(audit, "run", study.audit_run, "train and test the arms that are not done yet")
    run.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    status = _verb(audit, "status", study.audit_status, "what is done, running, failed; time left")
    for verb in (run, status):
        _cell_options(verb)
    table = _verb(
        audit, "table", study.audit_table, "add what is trained to the reference and the README"
    )
    _results_options(table)


def _group(parent, name, text):
    return parent.add_parser(name, help=text).add_subparsers(metavar="VERB", required=True)


def _verb(parent, name, call, text):
    parser = parent.add_parser(name, help=text)
    parser.set_defaults(call=call)
    return parser


def _cell_options(parser):
    """Which cells of a suite or of the audit, and where they are."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument("--task", default=_TASK, help=f"default: {_TASK}")
    parser.add_argument("--block", metavar="SOURCE", help="language block instead of its own")
    parser.add_argument("--epochs", type=int, help="budget instead of its own")
    parser.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail")
    _results_options(parser)


def _results_options(parser):
    parser.add_argument("--results", type=Path, default=Path("results/study"))
    _root_option(parser)


def _data_options(parser):
    parser.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail")
    _root_option(parser)


def _root_option(parser, *names, **described):
    described = described or {"help": "folder that holds the task's folder"}
    parser.add_argument(*(names or ("--root",)), **described)


def _grid_options(parser):
    parser.add_argument("--grid", type=int, nargs=3, metavar=("H", "W", "D"), help="in voxels")
    parser.add_argument(
        "--fit", choices=("pad", "resize", "crop"), help="how a volume comes to the grid"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("R", "A", "S"), help="mm per voxel, for crops"
    )
    parser.add_argument("--target", choices=("foreground", "labels"))
    parser.add_argument("--channels", choices=("all", "first"), help="which of an image's")
    parser.add_argument("--flips", choices=("left-right",), help="mirror training cases at random")


def _track_option(parser):
    parser.add_argument(
        "--track", action="store_true", help="also write curves for TensorBoard (mvl[track])"
    )
