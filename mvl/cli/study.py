"""The verbs of the study: suites, the reference, and the audit."""

import sys
from argparse import Namespace
from pathlib import Path

from mvl.cli.train import data_config


def suite_list(options: Namespace) -> None:
    from mvl.study.suites import QUESTIONS, SUITES

    for name, arms in SUITES.items():
        print(f"{name}: {QUESTIONS[name]}\n    {', '.join(arms)}")


def _results(options):
    from mvl.experiment.catalogue import results_root

    return options.results or results_root() / "study"


def _suite_cells(options, **more):
    """(cells of the suite, what the functions of `suites` take of them)."""
    from mvl.errors import ConfigError
    from mvl.study.suites import suite_configs

    data = data_config(options)
    given = (options.block, options.epochs, options.arms)
    more |= {"root": options.root, "on_bad_case": options.on_bad_case}
    configs = suite_configs(options.suite, data, options.seeds, *given, **more)
    if not configs:
        raise ConfigError(f"no arm of {options.suite} that was named can be made with this block")
    if options.block and not any(config.model.language for config in configs.values()):
        raise ConfigError(
            f"--block {options.block}: no arm here has a language block, so that it would not be "
            "used; 'mvl suite list' names the arms"
        )
    return configs, _where(options)


def _where(options):
    return {
        "runs": _results(options) / "runs",
        "root": options.root,
        "on_bad_case": options.on_bad_case,
    }


def suite_run(options: Namespace) -> int:
    from mvl.files import write_table
    from mvl.study.cells import fit_suite, run_suite, shard
    from mvl.study.summary import summary_table

    configs, where = _suite_cells(options)
    more, failures = where | {"track": options.track}, {}
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
        write_table(_results(options) / "suites" / f"{options.suite}.csv", cases)
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


def suite_tune(options: Namespace) -> int:
    from mvl.files import write_table
    from mvl.study.cells import fit_suite, tuning_table

    configs, where = _rated_cells(options)
    _, failures = fit_suite(options.suite, configs, **where)
    table = tuning_table(options.suite, configs, **where)
    write_table(_results(options) / "suites" / f"{options.suite}-tuning.csv", table)
    _print_from_one(table)
    return _report(failures)


def _print_from_one(table):
    """Print a table; its file counts epochs from 0, a person from 1."""
    shown = table.assign(best_epoch=table["best_epoch"] + 1)
    print(shown.to_string(index=False, float_format="%.4f", na_rep="-"))


def suite_use(options: Namespace) -> None:
    import pandas as pd

    from mvl.data.task_data import open_task
    from mvl.errors import RunError
    from mvl.experiment.block_use import EDITS, USED, use_row
    from mvl.experiment.run import TRAINED, Run, run_folder
    from mvl.files import read_json, write_table

    configs, where = _rated_cells(options)
    rows = []
    for (arm, seed), config in configs.items():
        data = open_task(config.data, seed, options.root, options.on_bad_case)
        folder = run_folder(config, data, where["runs"])
        if not (folder / TRAINED).exists():
            continue
        row = {"arm": arm, "seed": seed, "fingerprint": folder.name}
        row |= {"mapper_rate": config.training.mapper_rate, "epochs": config.training.epochs}
        row |= read_json(folder / TRAINED, "validation_dice", "best_epoch")
        if config.model.language:
            row |= use_row(Run.load(folder), data.side(options.side))
        rows.append(row)
    if not rows:
        raise RunError(f"no cell of suite {options.suite} is trained")
    columns = ["arm", "seed", "fingerprint", "mapper_rate", "epochs", "best_epoch"]
    columns += ["validation_dice", *EDITS]
    table = pd.DataFrame(rows).reindex(columns=columns)
    cost = table["as trained"] - table["deleted"]
    table["used"] = (cost >= USED).where(cost.notna())
    write_table(_results(options) / "suites" / f"{options.suite}-use.csv", table)
    _print_from_one(table)


def suite_status(options: Namespace) -> None:
    from mvl.study.cells import status
    from mvl.study.reference import held

    configs, where = _suite_cells(options)
    table = status(configs, **where)
    table["reference"] = table["folder"].map(held()).fillna("-")
    _print_status(table)
    known = (table["reference"] != "-").sum()
    print(f"results/reference has {known} of these {len(table)} cells, trained as its column says")


def _print_status(table):
    print(table.to_string(index=False, float_format="%.0f", na_rep="?"))
    counts = table["state"].value_counts()
    left = table["seconds_left"].sum(skipna=False) / 3600
    hours = "unknown, since nothing is trained yet" if left != left else f"{left:.1f} h"
    print(f"{', '.join(f'{n} {state}' for state, n in counts.items())}; one after another: {hours}")


def suite_table(options: Namespace) -> None:
    import pandas as pd

    from mvl.errors import RunError
    from mvl.experiment.run import collect
    from mvl.show.sentences import sentence
    from mvl.study.cells import status
    from mvl.study.reference import study_contrasts
    from mvl.study.summary import summary_table

    configs, where = _suite_cells(options)
    cells = status(configs, **where)
    done = cells[cells["state"] == "done"]
    for cell in cells[(cells["state"] != "done") & (cells["reason"] != "")].itertuples():
        print(f"{cell.state}: {cell.arm}, seed {cell.seed}: {cell.reason}", file=sys.stderr)
    if done.empty:
        raise RunError(f"no cell of suite {options.suite} is done; 'mvl suite run' runs it")
    tables = [
        collect(where["runs"] / cell.folder, options.suite, cell.arm) for cell in done.itertuples()
    ]
    cases = pd.concat(tables, ignore_index=True)
    print(summary_table(cases).to_string(index=False, float_format="%.4f"))
    contrasts = study_contrasts(cases, options.suite)
    for _, row in contrasts[contrasts["metric"] == "dice"].iterrows():
        print(f"\n- {sentence(row)}")


def verify(options: Namespace) -> int:
    from mvl.experiment.catalogue import find_run
    from mvl.experiment.run import results_folder
    from mvl.files import REPOSITORY
    from mvl.show.sentences import conclusion, count, name_of_check
    from mvl.study.verify import verify

    folder = Path(options.run)
    if (REPOSITORY / "profiles" / f"{options.run}.yaml").is_file():
        folder = results_folder(options.run)
    elif not folder.is_dir():
        folder = find_run(options.run)
    checks = verify(folder)
    agrees, text = conclusion(checks)
    print(text)
    words = {True: "agrees", False: "DIFFERS", None: "-"}
    unknown = 0
    for row in sorted(checks.itertuples(), key=lambda row: list(words).index(row.agrees)):
        name = name_of_check(row) or "not in the reference"
        if options.verbose:
            name = f"{row.run:16}  {name}"
        elif not row.suite and row.agrees is not False:
            unknown += 1
            continue
        print(f"{words[row.agrees]:8} {name}  {row.check}: {row.detail}")
    if unknown:
        print(f"--verbose shows {count(unknown, 'more check')}, of runs not in the reference")
    return 0 if agrees else 1


def _studys_data(options):
    """The study's `DataConfig`, where the volumes here are real."""
    from mvl.config import DataConfig
    from mvl.data.task_folder import find_task
    from mvl.data.tasks import read_task
    from mvl.errors import DataError

    data = DataConfig()
    if read_task(find_task(data.task, options.root)).synthetic:
        raise DataError(f"{data.task} is synthetic here: the reference is of real volumes")
    return data


def reference(options: Namespace) -> None:
    from mvl.show.answer import refresh_readme
    from mvl.show.results import refresh_results, write_pages
    from mvl.study.crossed import update_crossed
    from mvl.study.reference import GPU, REFERENCE, update_references

    data, runs = _studys_data(options), _results(options) / "runs"
    print("\n".join(update_crossed(runs, options.root)))
    folder, count = update_references(data, runs, options.root, options.suites)
    for written in (REFERENCE, REFERENCE / GPU):
        write_pages(written)
    refresh_results()
    refresh_readme()
    print(f"{folder} holds the {count} finished runs of {runs}")


def audit_list(options: Namespace) -> None:
    from mvl.audit import SWITCHES

    for switch in SWITCHES.values():
        print(f"{switch.name} ({switch.kind}): {switch.released}")
        print(f"    here: {switch.study}\n    it changes: {switch.changes}")


def _audit_cells(options):
    from mvl.audit import audit_configs
    from mvl.config import task_data

    given = (options.seeds, options.block, options.epochs, options.arms)
    configs = audit_configs(task_data(options.task), *given)
    return configs, _where(options)


def audit_run(options: Namespace) -> int:
    from mvl.study.cells import fit_suite, run_suite

    configs, where = _audit_cells(options)
    if options.fit_only:
        trained, failures = fit_suite("audit", configs, **where)
        _print_validation(trained)
    else:
        cases, failures = run_suite("audit", configs, **where)
        print(cases.groupby(["arm", "seed"], sort=False)[["dice", "nsd", "hd95_mm"]].mean())
    return _report(failures)


def audit_status(options: Namespace) -> None:
    from mvl.study.cells import status

    configs, where = _audit_cells(options)
    _print_status(status(configs, **where))


def audit_table(options: Namespace) -> None:
    from mvl.audit import write_audit
    from mvl.show.audit import refresh_audit, sentences

    table = write_audit(_studys_data(options), _results(options) / "runs", options.root)
    refresh_audit()
    print("\n".join(sentences(table)))
