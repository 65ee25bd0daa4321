"""The `mvl` command: each verb reads its arguments and calls one function of the package.

Nothing heavy is imported before a verb needs it, so that `mvl --help` answers at once.
"""

import argparse
import sys
from pathlib import Path

from mvl.errors import MvlError


def main(arguments=None):
    """Run the command; returns its exit status: 0, 1 for a fault, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return options.call(options) or 0
    except MvlError as error:
        print(f"mvl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mvl: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="mvl", description="MedVisionLlama, replicated: train, evaluate, predict, reproduce."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    run = verbs.add_parser("run", help="execute the notebooks of a profile (run_all.sh)")
    run.add_argument("--profile", default="quick", metavar="NAME", help="default: quick")
    run.add_argument("--only", metavar="NN", help="one notebook, by its number")
    run.add_argument("--from", dest="start", metavar="NN", help="this notebook and those after it")
    run.add_argument("--force", action="store_true", help="run unchanged notebooks, too")
    run.set_defaults(call=_run)

    train = verbs.add_parser("train", help="train one experiment; the test set stays closed")
    train.add_argument("--preset", default="vit", help="default: vit")
    train.add_argument("--task", default="Task04_Hippocampus", help="default: Task04_Hippocampus")
    train.add_argument("--block", metavar="SOURCE", help="language block, if the preset has one")
    train.add_argument("--epochs", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--grid", type=int, nargs=3, metavar=("H", "W", "D"), help="in voxels")
    train.add_argument("--fit", choices=("pad", "resize"), help="how a volume comes to the grid")
    train.add_argument("--target", choices=("foreground", "labels"))
    train.add_argument("--runs", type=Path, default=Path("results/runs"), help="folder of all runs")
    _data_options(train)
    train.set_defaults(call=_train)

    evaluate = verbs.add_parser("evaluate", help="open the test set for a trained run")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    _data_options(evaluate)
    evaluate.set_defaults(call=_evaluate)

    predict = verbs.add_parser("predict", help="segment an image with a trained run")
    predict.add_argument("image", type=Path, metavar="IMAGE.nii.gz")
    predict.add_argument("--run", type=Path, required=True, help="a run folder")
    predict.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.nii.gz")
    predict.set_defaults(call=_predict)

    data = verbs.add_parser("data", help="check, download or synthesise a task")
    data = data.add_subparsers(metavar="VERB", required=True)
    check = data.add_parser("check", help="examine every case, report all faults at once")
    check.add_argument("task", metavar="TASK", help="a task's name, or a task folder")
    check.add_argument("--root", help="folder that holds the task's folder")
    check.set_defaults(call=_check)
    download = data.add_parser("download", help="fetch a task of the decathlon")
    download.add_argument("task", metavar="TASK")
    download.add_argument("--root", help="where the task's folder goes")
    download.set_defaults(call=_download)
    phantom = data.add_parser("phantom", help="make a task's synthetic stand-in")
    phantom.add_argument("task", metavar="TASK")
    phantom.add_argument("--root", help="where the task's folder goes; default: data/phantom")
    phantom.add_argument("--cases", type=int, default=24, help="default: 24")
    phantom.add_argument("--scale", type=float, default=1.0, help="of each axis; default: 1")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(call=_phantom)

    block = verbs.add_parser("block", help="blocks of language models: list, show, extract")
    block = block.add_subparsers(metavar="VERB", required=True)
    families = block.add_parser("list", help="families that are known, sources at hand")
    families.set_defaults(call=_block_list)
    show = block.add_parser("show", help="sizes of a model and its block; reads no weights")
    show.set_defaults(call=_block_show)
    extract = block.add_parser("extract", help="copy a block out, for a machine without network")
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    extract.set_defaults(call=_block_extract)
    for verb in (show, extract):
        verb.add_argument("source", metavar="SOURCE", help="such as hub:OWNER/NAME, path:FOLDER")
        verb.add_argument(
            "--layer", type=int, default=-1, metavar="K", help="default: -1, the last"
        )

    suite = verbs.add_parser("suite", help="named suites of experiments: list, run")
    suite = suite.add_subparsers(metavar="VERB", required=True)
    listing = suite.add_parser("list", help="the suites and their arms")
    listing.set_defaults(call=_suite_list)
    running = suite.add_parser("run", help="run what is not done yet, print the summary")
    running.add_argument("suite", metavar="NAME")
    running.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    running.add_argument("--task", default="Task04_Hippocampus", help="default: Task04_Hippocampus")
    running.add_argument("--block", metavar="SOURCE", help="language block in place of the suite's")
    running.add_argument("--results", type=Path, default=Path("results/study"))
    running.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    running.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    _data_options(running)
    running.set_defaults(call=_suite_run)
    reference = verbs.add_parser(
        "reference", help="write results/reference and the README's results from trained suites"
    )
    reference.add_argument("suites", nargs="+", metavar="SUITE")
    reference.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    reference.add_argument("--task", default="Task04_Hippocampus")
    reference.add_argument("--results", type=Path, default=Path("results/study"))
    reference.add_argument("--root", help="folder that holds the task's folder")
    reference.set_defaults(call=_reference)
    return parser


def _data_options(parser):
    parser.add_argument("--root", help="folder that holds the task's folder")
    parser.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail")


def _run(options):
    from mvl import batch

    return batch.run(options.profile, options.only, options.start, options.force)


def _train(options):
    from dataclasses import replace

    from mvl.config import DataConfig, ExperimentConfig, preset

    def given(**values):
        return {key: value for key, value in values.items() if value is not None}

    model, training = preset(options.preset, options.block)
    training = replace(
        training, **given(epochs=options.epochs, learning_rate=options.learning_rate)
    )
    grid = tuple(options.grid) if options.grid else None
    data_config = DataConfig(
        task=options.task, **given(grid=grid, fit=options.fit, target=options.target)
    )
    config = ExperimentConfig(data_config, model, training, options.seed)

    from mvl.data.loading import open_task
    from mvl.experiments import fit
    from mvl.files import read_json

    data = open_task(data_config, options.seed, options.root, options.on_bad_case)
    folder = fit(config, data, options.runs)
    trained = read_json(folder / "trained.json")
    print(f"validation Dice {trained['validation_dice']:.3f}, epoch {trained['best_epoch']}")
    print(folder)


def _evaluate(options):
    from mvl.config import ExperimentConfig
    from mvl.data.loading import open_task
    from mvl.errors import RunError
    from mvl.experiments import test
    from mvl.files import read_json
    from mvl.metrics import METRICS

    if not (options.run / "config.json").is_file():
        raise RunError(f"{options.run} is no run folder: it has no config.json")
    config = ExperimentConfig.from_dict(read_json(options.run / "config.json")["config"])
    data = open_task(config.data, config.seed, options.root, options.on_bad_case)
    cases = test(options.run, data)
    print(cases.groupby("structure")[list(METRICS)].mean().T.to_string(float_format="%.3f"))


def _predict(options):
    from mvl.evaluation import predict_file
    from mvl.experiments import Run

    run = Run.load(options.run)
    predict_file(
        options.image, options.output, run.model, run.preparation, run.task, run.config.data.target
    )
    print(options.output)


def _check(options):
    from mvl.data.checks import check_cases, require
    from mvl.data.sources import find_task, list_cases

    folder = Path(options.task)
    if not (folder / "dataset.json").is_file():
        folder = find_task(options.task, options.root)
    cases = list_cases(folder)
    require(cases, check_cases(folder, cases), "fail")
    print(f"{folder}: {len(cases)} cases of {len({c.subject for c in cases})} subjects, no fault")


def _download(options):
    from mvl.data.download import download

    print(download(options.task, options.root))


def _phantom(options):
    from mvl.data.phantom import make_phantom
    from mvl.data.sources import REPOSITORY_DATA

    root = options.root or REPOSITORY_DATA / "phantom"
    print(make_phantom(options.task, root, options.cases, options.scale, options.seed))


def _block_list(options):
    from mvl.models.checkpoint import sources_at_hand
    from mvl.models.language import FAMILIES

    print(f"families: {', '.join(FAMILIES)}")
    print(f"sources at hand: {', '.join(sources_at_hand()) or 'none'}")


def _block_show(options):
    from mvl.models.language import describe

    for name, value in describe(options.source, options.layer).items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def _block_extract(options):
    from mvl.config import LanguageConfig
    from mvl.models.language import extract_block

    config = LanguageConfig(source=options.source, layer=options.layer)
    print(f"SHA-256 {extract_block(config, options.output)}")
    print(f"path:{options.output}")


def _suite_list(options):
    from mvl.experiments import SUITES

    for name, arms in SUITES.items():
        print(f"{name}: {', '.join(arms)}")


def _suite_run(options):
    from mvl.config import DataConfig
    from mvl.errors import ConfigError
    from mvl.experiments import fit_suite, run_suite, suite_configs
    from mvl.files import read_json, write_table
    from mvl.statistics import summary_table

    data = DataConfig(task=options.task)
    configs = suite_configs(options.suite, data, options.seeds, options.block)
    arms = {arm for arm, _ in configs}
    if unknown := set(options.arms or ()) - arms:
        raise ConfigError(f"suite {options.suite} has no arm {unknown.pop()!r}, it has {arms}")
    if options.arms:
        configs = {key: config for key, config in configs.items() if key[0] in options.arms}
    given = (options.suite, configs, options.results / "runs", options.root)
    if options.fit_only:
        for (arm, seed), (folder, _) in fit_suite(*given, on_bad_case=options.on_bad_case).items():
            trained = read_json(folder / "trained.json")
            print(f"{arm}, seed {seed}: validation Dice {trained['validation_dice']:.4f}")
        return
    cases = run_suite(*given, on_bad_case=options.on_bad_case)
    write_table(options.results / "suites" / f"{options.suite}.csv", cases)
    print(summary_table(cases).to_string(float_format="%.4f"))


def _reference(options):
    from mvl.config import DataConfig
    from mvl.experiments import suite_configs, test, trained_runs
    from mvl.reference import refresh_readme, write_reference

    folders = {}
    for suite in options.suites:
        configs = suite_configs(suite, DataConfig(task=options.task), options.seeds)
        found = trained_runs(configs, options.results / "runs", options.root)
        for (arm, seed), (folder, data) in found.items():
            test(folder, data)
            folders[suite, arm, seed] = folder
        if untrained := sorted({arm for arm, _ in configs} - {arm for arm, _ in found}):
            print(f"{suite}: left out, since not trained: {', '.join(untrained)}")
    print(write_reference(folders).to_string(float_format="%.4f"))
    refresh_readme()
