"""The `mvl` command: each verb reads its arguments and calls one function of the package.

Nothing heavy is imported before a verb needs it, so that `mvl --help` answers at once.
"""

import argparse
import io
import os
import sys
from pathlib import Path

from mvl.errors import MvlError, out_of_memory


def main(arguments=None):
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


def _fault(said):
    print(f"mvl: {said}", file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="mvl", description="MedVisionLlama, replicated: train, evaluate, predict, reproduce."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    run = verbs.add_parser("run", help="execute the notebooks of a profile (run_all.sh)")
    run.add_argument(
        "--profile", metavar="NAME", help="default: quick, or smoke where memory is scarce"
    )
    run.add_argument("--only", metavar="NN", help="one notebook, by its number")
    run.add_argument("--from", dest="start", metavar="NN", help="this notebook and those after it")
    run.add_argument("--force", action="store_true", help="run unchanged notebooks, too")
    run.set_defaults(call=_run)

    report = verbs.add_parser("report", help="results of a profile as one static page")
    report.add_argument("profile", nargs="?", default="quick", metavar="PROFILE")
    report.set_defaults(call=_report_page)

    train = verbs.add_parser("train", help="train one experiment; the test set stays closed")
    train.add_argument("--preset", default="vit", help="default: vit")
    train.add_argument("--task", default="Task04_Hippocampus", help="default: Task04_Hippocampus")
    train.add_argument("--block", metavar="SOURCE", help="language block, if the preset has one")
    train.add_argument("--epochs", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--batch-size", type=int, help="cases a step")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--runs", type=Path, default=Path("results/runs"), help="folder of all runs")
    _track_option(train)
    _grid_options(train)
    _data_options(train)
    train.set_defaults(call=_train)

    evaluate = verbs.add_parser("evaluate", help="open the test set for a trained run")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    _data_options(evaluate)
    evaluate.set_defaults(call=_evaluate)

    predict = verbs.add_parser("predict", help="segment images with a trained model")
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
    predict.set_defaults(call=_predict)

    data = verbs.add_parser("data", help="check, download, convert or synthesise a task")
    data = data.add_subparsers(metavar="VERB", required=True)
    check = data.add_parser("check", help="examine every case, report all faults at once")
    check.add_argument("task", metavar="TASK", help="a task's name, or a task folder")
    check.add_argument("--root", help="folder that holds the task's folder")
    check.set_defaults(call=_check)
    download = data.add_parser("download", help="fetch a task of the decathlon")
    download.add_argument("task", metavar="TASK")
    download.add_argument("--root", help="where the task's folder goes")
    download.set_defaults(call=_download)
    convert = data.add_parser("convert", help="make the study's other tasks (docs/data.md)")
    convert.add_argument("release", choices=("openkbp", "chaos"))
    convert.add_argument("folder", metavar="FOLDER", help="a clone of the release's repository")
    convert.add_argument("-o", "--root", metavar="OUT", help="where the task's folder goes")
    convert.set_defaults(call=_convert)
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
    scale = block.add_parser("scale", help="how large the states are that each layer is used to")
    scale.set_defaults(call=_block_scale)
    for verb in (show, extract, scale):
        verb.add_argument("source", metavar="SOURCE", help="such as hub:OWNER/NAME, path:FOLDER")
    for verb in (show, extract):
        verb.add_argument(
            "--layer", type=int, default=-1, metavar="K", help="default: -1, the last"
        )

    suite = verbs.add_parser("suite", help="named suites: list, run, tune, status, table")
    suite = suite.add_subparsers(metavar="VERB", required=True)
    listing = suite.add_parser("list", help="the suites, their questions and their arms")
    listing.set_defaults(call=_suite_list)
    running = suite.add_parser("run", help="run what is not done yet, print the summary")
    running.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    running.add_argument(
        "--shard", metavar="I/N", help="train the i-th of n parts, for job arrays; tests nothing"
    )
    running.add_argument(
        "--jobs", type=int, metavar="N", help="train N cells at once, one thread each"
    )
    running.add_argument(
        "--on", metavar="CLUSTER", help="train on Ray: ray (here), HOST:PORT or ray://HOST:PORT"
    )
    _track_option(running)
    running.set_defaults(call=_suite_run)
    tuning = suite.add_parser("tune", help="train every arm with each learning rate, on validation")
    tuning.set_defaults(call=_suite_tune)
    use = suite.add_parser("use", help="do trained cells use their block? Dice without it")
    use.add_argument(
        "--side", choices=("validation", "test"), default="validation", help="default: validation"
    )
    use.set_defaults(call=_suite_use)
    for verb in (tuning, use):
        verb.add_argument(
            "--rates", type=float, nargs="+", help="learning rates; default: the study's three"
        )
        verb.add_argument(
            "--mapper-rates", type=float, nargs="+", help="of the mappers, in multiples of it"
        )
    state = suite.add_parser("status", help="what is done, running, failed; time left")
    state.set_defaults(call=_suite_status)
    table = suite.add_parser("table", help="summary and answers of what is done")
    table.set_defaults(call=_suite_table)
    for verb in (running, tuning, use, state, table):
        verb.add_argument("suite", metavar="NAME")
        verb.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
        verb.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
        verb.add_argument(
            "--task", default="Task04_Hippocampus", help="default: Task04_Hippocampus"
        )
        verb.add_argument("--block", metavar="SOURCE", help="language block in place of its own")
        verb.add_argument("--epochs", type=int, help="budget in place of its own")
        verb.add_argument("--results", type=Path, default=Path("results/study"))
        _grid_options(verb)
        _data_options(verb)

    verify = verbs.add_parser("verify", help="did I reproduce it? own runs against the reference")
    verify.add_argument(
        "place", nargs="?", default="quick", metavar="PROFILE|RUN", help="default: quick"
    )
    verify.set_defaults(call=_verify)

    links = verbs.add_parser("links", help="write the links to Binder and Colab everywhere")
    links.add_argument(
        "repository", nargs="?", metavar="OWNER/NAME", help="where it is hosted from now on"
    )
    links.set_defaults(call=_links)

    reference = verbs.add_parser(
        "reference", help="add trained suites to results/reference and the README's results"
    )
    reference.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    reference.add_argument("--results", type=Path, default=Path("results/study"))
    reference.add_argument("--root", help="folder that holds the task's folder")
    reference.set_defaults(call=_reference)

    audit = verbs.add_parser("audit", help="what the released code's protocol changes")
    audit = audit.add_subparsers(metavar="VERB", required=True)
    listing = audit.add_parser("list", help="what the released code does, and what we do")
    listing.set_defaults(call=_audit_list)
    running = audit.add_parser("run", help="train and test the arms that are not done yet")
    running.add_argument("--fit-only", action="store_true", help="leave the test set closed")
    running.set_defaults(call=_audit_run)
    state = audit.add_parser("status", help="what is done, running, failed; time left")
    state.set_defaults(call=_audit_status)
    for verb in (running, state):
        verb.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
        verb.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
        verb.add_argument("--block", metavar="SOURCE", help="language block in place of its own")
        verb.add_argument("--epochs", type=int, help="budget in place of its own")
        verb.add_argument(
            "--task", default="Task04_Hippocampus", help="default: Task04_Hippocampus"
        )
        verb.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail")
    table = audit.add_parser("table", help="add what is trained to the reference and the README")
    table.set_defaults(call=_audit_table)
    for verb in (running, state, table):
        verb.add_argument("--results", type=Path, default=Path("results/study"))
        verb.add_argument("--root", help="folder that holds the task's folder")
    return parser


def _grid_options(parser):
    parser.add_argument("--grid", type=int, nargs=3, metavar=("H", "W", "D"), help="in voxels")
    parser.add_argument(
        "--fit", choices=("pad", "resize", "crop"), help="how a volume comes to the grid"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("R", "A", "S"), help="mm a voxel, for crops"
    )
    parser.add_argument("--target", choices=("foreground", "labels"))
    parser.add_argument("--channels", choices=("all", "first"), help="which of an image's")
    parser.add_argument("--flips", choices=("left-right",), help="mirror training cases at random")


def _data_config(options):
    """The task's `DataConfig`, with what the command says otherwise."""
    from dataclasses import replace

    from mvl.config import task_data

    said = {name: getattr(options, name) for name in ("fit", "target", "channels", "flips")}
    said |= {"grid": options.grid and tuple(options.grid), "spacing_mm": options.spacing}
    return replace(task_data(options.task), **{k: v for k, v in said.items() if v is not None})


def _data_options(parser):
    parser.add_argument("--root", help="folder that holds the task's folder")
    parser.add_argument("--on-bad-case", choices=("fail", "skip"), default="fail")


def _track_option(parser):
    parser.add_argument(
        "--track", action="store_true", help="also write curves for TensorBoard (mvl[track])"
    )


def _run(options):
    from mvl.files import REPOSITORY
    from mvl.runner import execute as batch
    from mvl.runner.profiles import default_profile

    if not options.profile:
        options.profile, why = default_profile()
        print(f"Profile {options.profile}{why and f': {why}'}")
    outcomes = batch.run(options.profile, options.only, options.start, options.force).values()
    page = REPOSITORY / "results" / options.profile / "report" / "index.html"
    # Where nothing was run, the report that is there says it all, and takes seconds to make.
    if any(outcome.seconds for outcome in outcomes) or not page.is_file():
        try:
            _report_page(options)  # also of a run that failed: it says so
        except MvlError as error:
            print(f"no report: {error}", file=sys.stderr)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _report_page(options):
    from mvl.runner.execute import outdated
    from mvl.runner.profiles import load_profile
    from mvl.show.report import write_report

    parameters = load_profile(options.profile)
    print(write_report(parameters, outdated(parameters)))


def _train(options):
    from dataclasses import replace

    from mvl.config import ExperimentConfig, preset

    def given(**values):
        return {key: value for key, value in values.items() if value is not None}

    model, training = preset(options.preset, options.block)
    training = replace(
        training,
        **given(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
        ),
    )
    data_config = _data_config(options)
    config = ExperimentConfig(data_config, model, training, options.seed)

    from mvl.data.task_data import open_task
    from mvl.experiment.run import fit
    from mvl.experiment.training import processes
    from mvl.files import read_json

    data = open_task(data_config, options.seed, options.root, options.on_bad_case)
    if processes().is_main_process:
        _tell_assumptions(data.task)
    folder = fit(config, data, options.runs, track=options.track)
    if not processes().is_main_process:
        return  # one of several that train together says it
    trained = read_json(folder / "trained.json")
    print(f"validation Dice {trained['validation_dice']:.3f}, epoch {trained['best_epoch']}")
    print(folder)


def _tell_assumptions(task):
    for said in task.assumptions:
        print(f"assumed: {said}")


def _evaluate(options):
    from mvl.audit.released import AuditedConfig
    from mvl.data.task_data import open_task
    from mvl.experiment.metrics import METRICS
    from mvl.experiment.run import HEALTHY, read_config, test
    from mvl.files import read_table
    from mvl.show.sentences import count

    config = read_config(options.run, AuditedConfig)
    data = open_task(config.data, config.seed, options.root, options.on_bad_case)
    cases = test(options.run, data, kind=AuditedConfig)
    _tell_assumptions(data.task)
    subjects = cases.groupby(["structure", "subject"], sort=False)[list(METRICS)].mean()
    print(f"means over {count(cases['subject'].nunique(), 'test subject')}")
    means = subjects.groupby("structure", sort=False).mean()
    print(means.T.to_string(float_format="%.3f"))
    if (options.run / HEALTHY).exists():
        healthy = read_table(options.run / HEALTHY, ("subject", "case", "structure"))
        print("healthy test cases, in which nothing should be found")
        print(healthy.to_string(index=False, float_format="%.3f"))


def _predict(options):
    from mvl.data.task_folder import require_output

    folder = options.image.is_dir()
    if not folder:
        require_output(options.output, options.image)  # before what takes seconds to load
    from mvl.audit.released import AuditedConfig
    from mvl.experiment.identity import facts_changed
    from mvl.experiment.prediction import predict_file, predict_folder
    from mvl.experiment.run import load_predictor

    if options.run is None:
        from mvl.study.reference import BEST

        options.run = BEST
        print("with this replication's own model `best`, trained on MSD's Task04_Hippocampus")
    predictor = load_predictor(options.run, AuditedConfig)
    if said := facts_changed(options.run, predictor.task):
        print(f"with the model's own facts, since {predictor.task.name} has others now: {said}")
    if not folder:
        predict_file(options.image, options.output, predictor, options.anyway)
        print(options.output)
        return 0
    written, failures = predict_folder(options.image, options.output, predictor, options.anyway)
    print(written)
    for reason in failures.values():
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _check(options):
    from mvl.data.checks import check_cases, require, unlisted
    from mvl.data.task_folder import find_task, task_and_cases

    folder = Path(options.task)
    if not (folder / "dataset.json").is_file():
        folder = find_task(options.task, options.root)
    task, cases = task_and_cases(folder)
    if beside := unlisted(folder, cases):
        print(f"not used: {len(beside)} images that dataset.json does not name, as {beside[0]}")
    require(cases, check_cases(task, cases), "fail")
    print(f"{folder}: {len(cases)} cases of {len({c.subject for c in cases})} subjects, no fault")
    _tell_assumptions(task)


def _download(options):
    from mvl.data.download import download

    print(download(options.task, options.root))


def _convert(options):
    from mvl.data.convert import convert
    from mvl.data.task_folder import list_cases
    from mvl.data.tasks import read_task

    folder = convert(options.release, options.folder, options.root)
    print(f"{folder}: {len(list_cases(folder))} of the study's {read_task(folder).cases} cases")


def _phantom(options):
    from mvl.data.phantom import make_phantom
    from mvl.data.task_folder import REPOSITORY_DATA

    root = options.root or REPOSITORY_DATA / "phantom"
    print(make_phantom(options.task, root, options.cases, options.scale, options.seed))


def _block_list(options):
    from mvl.blocks.families import FAMILIES
    from mvl.blocks.sources import offline_sources

    print(f"families: {', '.join(FAMILIES)}")
    print(f"sources at hand: {', '.join(offline_sources()) or 'none'}")


def _block_show(options):
    from mvl.blocks.extraction import block_sizes

    for name, value in block_sizes(options.source, options.layer).items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def _block_scale(options):
    from mvl.blocks.scale import hidden_scale

    print(hidden_scale(options.source).to_string(index=False, float_format="%.3f"))


def _block_extract(options):
    from mvl.blocks.extraction import extract_block
    from mvl.config import LanguageConfig

    config = LanguageConfig(source=options.source, layer=options.layer)
    print(f"SHA-256 {extract_block(config, options.output)}")
    print(f"path:{options.output}")


def _suite_list(options):
    from mvl.study.suites import QUESTIONS, SUITES

    for name, arms in SUITES.items():
        print(f"{name}: {QUESTIONS[name]}\n    {', '.join(arms)}")


def _suite_cells(options, **more):
    """(cells of the suite, what the functions of `suites` take of them)."""
    from mvl.errors import ConfigError
    from mvl.study.suites import suite_configs

    data = _data_config(options)
    given = (options.block, options.epochs, options.arms)
    more |= {"root": options.root, "on_bad_case": options.on_bad_case}
    configs = suite_configs(options.suite, data, options.seeds, *given, **more)
    if not configs:
        raise ConfigError(f"no arm of {options.suite} that was named can be made with this block")
    return configs, _place(options)


def _place(options):
    return {
        "runs": options.results / "runs",
        "root": options.root,
        "on_bad_case": options.on_bad_case,
    }


def _suite_run(options):
    from mvl.files import write_table
    from mvl.study.cells import fit_suite, run_suite, shard
    from mvl.study.summary import summary_table

    configs, place = _suite_cells(options)
    more, failures = place | {"track": options.track}, {}
    if options.shard:
        configs = shard(configs, *_shard_of(options.shard))
    if options.on or options.jobs is not None:
        from mvl.study.parallel import fit_at_once

        jobs = 1 if options.jobs is None else options.jobs
        trained, failures = fit_at_once(configs, jobs=jobs, on=options.on, **more)
        configs = {key: configs[key] for key in trained}  # what follows finds them trained
    if options.fit_only or options.shard:
        trained, failed = fit_suite(options.suite, configs, **more)
        failures |= failed
        _print_validation(trained)
    elif configs:
        cases, failed = run_suite(options.suite, configs, **more)
        failures |= failed
        write_table(options.results / "suites" / f"{options.suite}.csv", cases)
        print(summary_table(cases).to_string(float_format="%.4f"))
    return _report(failures)


def _shard_of(text):
    from mvl.errors import ConfigError

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--shard {text}: expected I/N, such as 1/4")
    return int(index), int(count)


def _print_validation(trained):
    from mvl.files import read_json

    for (arm, seed), (folder, _) in trained.items():
        score = read_json(folder / "trained.json")["validation_dice"]
        print(f"{arm}, seed {seed}: validation Dice {score:.4f}")


def _report(failures):
    for (arm, seed), reason in failures.items():
        print(f"failed: {arm}, seed {seed}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _rated_cells(options):
    """`_suite_cells` with each of the learning rates that are tried."""
    from mvl.config import LEARNING_RATES

    rates = options.rates or LEARNING_RATES
    return _suite_cells(options, rates=rates, mapper_rates=options.mapper_rates)


def _suite_tune(options):
    from mvl.files import write_table
    from mvl.study.cells import fit_suite, tuning_table

    configs, place = _rated_cells(options)
    _, failures = fit_suite(options.suite, configs, **place)
    table = tuning_table(options.suite, configs, **place)
    write_table(options.results / "suites" / f"{options.suite}-tuning.csv", table)
    print(table.to_string(index=False, float_format="%.4f"))
    return _report(failures)


def _suite_use(options):
    import pandas as pd

    from mvl.data.task_data import open_task
    from mvl.errors import RunError
    from mvl.experiment.block_use import EDITS, block_use
    from mvl.experiment.run import TRAINED, Run, run_folder
    from mvl.files import read_json, write_table

    configs, place = _rated_cells(options)
    rows = []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, options.root, options.on_bad_case)
        folder = run_folder(config, data, place["runs"])
        if not (folder / TRAINED).exists():
            continue
        row = {"arm": arm, "seed": seed, "fingerprint": folder.name}
        row |= {"mapper_rate": config.training.mapper_rate, "epochs": config.training.epochs}
        row |= read_json(folder / TRAINED, "validation_dice", "best_epoch")
        if config.model.language:
            used = block_use(Run.load(folder), data.side(options.side))
            used = used[used["structure"] == used["structure"].iloc[0]]
            row |= used.groupby("edit")["dice"].mean()[list(EDITS)].to_dict()
        rows.append(row)
    if not rows:
        raise RunError(f"no cell of suite {options.suite} is trained")
    columns = ["arm", "seed", "fingerprint", "mapper_rate", "epochs", "best_epoch"]
    columns += ["validation_dice", *EDITS]
    table = pd.DataFrame(rows).reindex(columns=columns)
    write_table(options.results / "suites" / f"{options.suite}-use.csv", table)
    print(table.to_string(index=False, float_format="%.4f", na_rep="-"))


def _suite_status(options):
    from mvl.study.cells import status
    from mvl.study.reference import held

    configs, place = _suite_cells(options)
    table = status(configs, **place)
    table["reference"] = table["folder"].map(held()).fillna("-")
    _print_status(table)
    known = (table["reference"] != "-").sum()
    print(f"results/reference has {known} of these {len(table)} cells, trained as its column says")


def _print_status(table):
    print(table.to_string(index=False, float_format="%.0f", na_rep="?"))
    counts = table["state"].value_counts()
    left = table["seconds_left"].sum(skipna=False) / 3600
    said = "unknown, since nothing is trained yet" if left != left else f"{left:.1f} h"
    print(f"{', '.join(f'{n} {state}' for state, n in counts.items())}; one after another: {said}")


def _suite_table(options):
    import pandas as pd

    from mvl.errors import RunError
    from mvl.experiment.run import collect
    from mvl.show.sentences import sentence
    from mvl.study.cells import status
    from mvl.study.reference import study_contrasts
    from mvl.study.summary import summary_table

    configs, place = _suite_cells(options)
    cells = status(configs, **place)
    done = cells[cells["state"] == "done"]
    for cell in cells[(cells["state"] != "done") & (cells["reason"] != "")].itertuples():
        print(f"{cell.state}: {cell.arm}, seed {cell.seed}: {cell.reason}", file=sys.stderr)
    if done.empty:
        raise RunError(f"no cell of suite {options.suite} is done; 'mvl suite run' runs it")
    tables = [
        collect(place["runs"] / cell.folder, options.suite, cell.arm) for cell in done.itertuples()
    ]
    cases = pd.concat(tables, ignore_index=True)
    print(summary_table(cases).to_string(index=False, float_format="%.4f"))
    contrasts = study_contrasts(cases, options.suite)
    for _, row in contrasts[contrasts["metric"] == "dice"].iterrows():
        print(f"\n- {sentence(row)}")


def _verify(options):
    from mvl.experiment.run import results_folder
    from mvl.show.sentences import conclusion, name_of_check
    from mvl.study.verify import verify

    place = Path(options.place)
    checks = verify(place if place.is_dir() else results_folder(options.place))
    words = {True: "agrees", False: "DIFFERS", None: "-"}
    for row in checks.itertuples():
        name = name_of_check(row) or "not in the reference"
        print(f"{words[row.agrees]:8} {row.run:16}  {name}  {row.check}: {row.detail}")
    agrees, said = conclusion(checks)
    print(said)
    return 0 if agrees else 1


def _links(options):
    from mvl.show.links import write_links

    for path in write_links(options.repository):
        print(path)


def _studys_data(options):
    """The study's `DataConfig`, where the volumes at hand are real."""
    from mvl.config import DataConfig
    from mvl.data.task_folder import find_task
    from mvl.data.tasks import read_task
    from mvl.errors import DataError

    data = DataConfig()
    if read_task(find_task(data.task, options.root)).synthetic:
        raise DataError(f"{data.task} is synthetic here: the reference is of real volumes")
    return data


def _reference(options):
    from mvl.show.results import refresh_readme, write_pages
    from mvl.study.reference import GPU, REFERENCE, update_references

    data, runs = _studys_data(options), options.results / "runs"
    reference, count = update_references(data, runs, options.root, options.suites)
    for folder in (REFERENCE, REFERENCE / GPU):
        write_pages(folder)
    refresh_readme()
    print(f"{reference} holds the {count} finished runs of {runs}")


def _audit_list(options):
    from mvl.audit import SWITCHES

    for switch in SWITCHES.values():
        print(f"{switch.name} ({switch.kind}): {switch.released}")
        print(f"    here: {switch.study}\n    it changes: {switch.changes}")


def _audit_cells(options):
    from mvl.audit import audit_configs
    from mvl.config import task_data

    given = (options.seeds, options.block, options.epochs, options.arms)
    configs = audit_configs(task_data(options.task), *given)
    return configs, _place(options)


def _audit_run(options):
    from mvl.study.cells import fit_suite, run_suite

    configs, place = _audit_cells(options)
    if options.fit_only:
        trained, failures = fit_suite("audit", configs, **place)
        _print_validation(trained)
    else:
        cases, failures = run_suite("audit", configs, **place)
        print(cases.groupby(["arm", "seed"], sort=False)[["dice", "nsd", "hd95_mm"]].mean())
    return _report(failures)


def _audit_status(options):
    from mvl.study.cells import status

    configs, place = _audit_cells(options)
    _print_status(status(configs, **place))


def _audit_table(options):
    from mvl.audit import write_audit
    from mvl.show.audit import refresh_audit, sentences

    table = write_audit(_studys_data(options), options.results / "runs", options.root)
    refresh_audit()
    print("\n".join(sentences(table)))
