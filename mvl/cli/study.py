"""The verbs of the study: suites, the reference, and the audit."""

import sys
from argparse import Namespace
from pathlib import Path

from mvl.cli.verbs import data_config


def suite_list(options: Namespace) -> None:
    from mvl.study.suites import QUESTIONS, SUITES

    for name, arms in SUITES.items():
        print(f"{name}: {QUESTIONS[name]}\n    {', '.join(arms)}")


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
    return configs, _where(options)


def _where(options):
    return {
        "runs": options.results / "runs",
        "root": options.root,
        "on_bad_case": options.on_bad_case,
    }


def suite_run(options: Namespace) -> int:
    from mvl.files import write_table
    from mvl.study.statistics import summary_table
    from mvl.study.suites import fit_suite, run_suite, shard

    configs, where = _suite_cells(options)
    more, failures = where | {"track": options.track}, {}
    if options.shard:
        configs = shard(configs, *_shard_of(options.shard))
    if options.on or options.jobs:
        from mvl.study.parallel import fit_at_once, fit_on_ray

        if options.on:
            trained, failures = fit_on_ray(configs, on=options.on, **more)
        else:
            trained, failures = fit_at_once(configs, jobs=options.jobs, **more)
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


def suite_tune(options: Namespace) -> int:
    from mvl.files import write_table
    from mvl.study.suites import fit_suite, tuning_table

    configs, where = _rated_cells(options)
    _, failures = fit_suite(options.suite, configs, **where)
    table = tuning_table(options.suite, configs, **where)
    write_table(options.results / "suites" / f"{options.suite}-tuning.csv", table)
    print(table.to_string(index=False, float_format="%.4f"))
    return _report(failures)


def suite_use(options: Namespace) -> None:
    import pandas as pd

    from mvl.data.task_data import open_task
    from mvl.errors import RunError
    from mvl.experiment.block_use import EDITS, block_use
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


def suite_status(options: Namespace) -> None:
    from mvl.study.reference import held
    from mvl.study.suites import status

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
    from mvl.study.reference import study_contrasts
    from mvl.study.statistics import sentence, summary_table
    from mvl.study.suites import status

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
    from mvl.experiment.run import results_folder
    from mvl.study.verify import conclusion, name_of_check, verify

    folder = Path(options.run)
    checks = verify(folder if folder.is_dir() else results_folder(options.run))
    words = {True: "agrees", False: "DIFFERS", None: "-"}
    for row in checks.itertuples():
        name = name_of_check(row) or "not in the reference"
        print(f"{words[row.agrees]:8} {row.run:16}  {name}  {row.check}: {row.detail}")
    agrees, text = conclusion(checks)
    print(text)
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
    import pandas as pd

    from mvl.config import LEARNING_RATES
    from mvl.data.task_data import open_task
    from mvl.experiment.run import TRAINED, run_folder, test
    from mvl.study.reference import (
        GPU,
        REFERENCE,
        SEEDS,
        measure_mechanism,
        reference_of,
        refresh_readme,
        write_reference,
    )
    from mvl.study.suites import SUITES, suite_configs, tuning_table

    # One table, one task: the study's.
    data, runs = _studys_data(options), options.results / "runs"
    trained, expected, tuned = {}, {}, []
    for suite in SUITES:
        for (arm, seed), config in suite_configs(suite, data, SEEDS, root=options.root).items():
            task = open_task(config.data, seed, options.root, progress=False)
            folder = run_folder(config, task, runs)
            expected[suite, arm, seed] = folder.name
            chosen = not options.suites or suite in options.suites
            if chosen and (folder / TRAINED).exists():
                test(folder, task)
                trained[suite, arm, seed] = folder, task
        rates = suite_configs(suite, data, [0], rates=LEARNING_RATES, root=options.root)
        tuned.append(tuning_table(suite, rates, runs, options.root))
    folders = {cell: folder for cell, (folder, _) in trained.items()}
    reference = reference_of(set(folders.values()))
    measured = [measure_mechanism(cell[0], *run, reference) for cell, run in trained.items()]
    mechanism = [table for table in measured if table is not None]
    write_reference(folders, expected, pd.concat(tuned), mechanism, reference)
    # The other device's tables have no new run, but are adjusted for the same comparisons.
    for other in {REFERENCE, REFERENCE / GPU} - {reference}:
        write_reference({}, expected, pd.DataFrame(), reference=other)
    refresh_readme()
    print(f"{reference} holds the {len(set(folders.values()))} finished runs of {runs}")


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
    from mvl.study.suites import fit_suite, run_suite

    configs, where = _audit_cells(options)
    if options.fit_only:
        trained, failures = fit_suite("audit", configs, **where)
        _print_validation(trained)
    else:
        cases, failures = run_suite("audit", configs, **where)
        print(cases.groupby(["arm", "seed"], sort=False)[["dice", "nsd", "hd95_mm"]].mean())
    return _report(failures)


def audit_status(options: Namespace) -> None:
    from mvl.study.suites import status

    configs, where = _audit_cells(options)
    _print_status(status(configs, **where))


def audit_table(options: Namespace) -> None:
    from mvl.audit import refresh_readme, sentences, write_audit

    table = write_audit(_studys_data(options), options.results / "runs", options.root)
    refresh_readme()
    print("\n".join(sentences(table)))
