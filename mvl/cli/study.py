"""The verbs of the study: suites, the reference, and the audit."""

import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd

from mvl import audit
from mvl.cli.train import data_config
from mvl.config import LEARNING_RATES, DataConfig
from mvl.data.task_folder import find_task, list_cases
from mvl.data.tasks import read_task
from mvl.errors import ConfigError, DataError, RunError
from mvl.experiment.block_use import EDITS, USED, use_row
from mvl.experiment.catalogue import find_run, results_root
from mvl.experiment.run import TRAINED, Run, collect, results_folder
from mvl.files import REPOSITORY, absolute_source, read_json, write_table
from mvl.show.audit import refresh_audit, sentences
from mvl.show.results import refresh_results, write_pages
from mvl.show.sentences import conclusion, count, name_of_check, no_verdict, sentence
from mvl.study import crossed
from mvl.study import reference as references
from mvl.study.cells import (
    CLOSED,
    are_crossed,
    fit_suite,
    run_suite,
    shard,
    status,
    trained_cells,
    tuning_table,
)
from mvl.study.inference import claim
from mvl.study.parallel import KILLED, fit_at_once
from mvl.study.suites import QUESTIONS, SUITES, is_crossed, suite_configs
from mvl.study.verify import verify as verified

_AS_ASKED = (
    "with this task, grid, block and budget, in this folder of results: give the options of "
    "'mvl suite run' again, or run it"
)


def suite_list(options: Namespace) -> None:
    for name, arms in SUITES.items():
        print(f"{name}: {QUESTIONS[name]}\n    {', '.join(arms)}")


def _results(options):
    return options.results or results_root() / "study"


def _suite_cells(options, **rates):
    """(cells of the suite, or of the audit; what the functions of `study.cells` take of them)."""
    data, where = data_config(options), {"root": options.root, "on_bad_case": options.on_bad_case}
    block = absolute_source(options.block)
    given = (data, options.seeds, block, options.epochs, options.arms)
    if options.suite == "audit":
        configs = audit.audit_configs(*given)
    else:
        # A factor of the mappers' rate that `suite tune` has shown to be better than the arm's.
        rates.setdefault("mapper_rates", options.mapper_rates)
        configs = suite_configs(options.suite, *given, **rates, **where)
        if is_crossed(options.suite):
            _require_no_fixed_test(options, data)
    if not configs:
        raise ConfigError(f"no arm of {options.suite} that was named can be made with this block")
    if options.block and not any(config.model.language for config in configs.values()):
        raise ConfigError(
            f"--block {options.block}: no arm here has a language block, so that it would not be "
            "used; 'mvl suite list' names the arms"
        )
    return configs, {"runs": _results(options) / "runs"} | where


def _require_no_fixed_test(options, data):
    """Refuse test cases of the task's own: the suite tests every subject in five folds."""
    cases = list_cases(find_task(data.task, options.root))
    if fixed := [case.name for case in cases if case.side == "test"]:
        raise DataError(
            f"suite {options.suite} tests every subject in five folds, but {data.task} names "
            f"{len(fixed)} test cases, such as {fixed[0]}: take them out of splits.json, or out of "
            "'test' in dataset.json"
        )


def suite_run(options: Namespace) -> int:
    configs, where = _suite_cells(options)
    more, failures, closed = where | {"track": options.track}, {}, False
    if options.on and options.jobs is not None:
        raise ConfigError("--jobs is for this machine; on a cluster (--on) Ray says how many")
    if options.shard:
        configs = shard(configs, options.shard)
    if options.on or options.jobs is not None:
        jobs = 1 if options.jobs is None else options.jobs
        trained, failures = fit_at_once(configs, jobs=jobs, on=options.on, **more)
        closed = KILLED in failures.values() or bool(failures) and are_crossed(configs)
        configs = {key: configs[key] for key in trained}  # what follows finds them trained
    if closed:
        print(f"{options.suite}: {CLOSED}")
    if closed or options.fit_only or options.shard:
        trained, failed = fit_suite(options.suite, configs, **more)
        _print_validation(trained)
    else:
        cases, failed = run_suite(options.suite, configs, **more)
        if len(cases):
            _write(options, options.suite, cases)
            print(crossed.tables_of(cases, options.suite)[0].to_string(float_format="%.4f"))
    return _report(failures | failed)


def _write(options, name, table):
    write_table(_results(options) / "suites" / f"{name}.csv", table)


def _print_validation(trained):
    for (arm, seed), (folder, _) in trained.items():
        score = read_json(folder / TRAINED)["validation_dice"]
        print(f"{arm}, seed {seed}: validation Dice {score:.4f}")


def _report(failures):
    for (arm, seed), reason in failures.items():
        print(f"failed: {arm}, seed {seed}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def suite_tune(options: Namespace) -> int:
    configs, where = _suite_cells(options, rates=options.rates or LEARNING_RATES)
    _, failures = fit_suite(options.suite, configs, **where)
    table = tuning_table(options.suite, configs, **where)
    _write(options, f"{options.suite}-tuning", table)
    _print_from_one(table)
    return _report(failures)


def _print_from_one(table):
    """Print a table; its file counts epochs from 0, a person from 1."""
    shown = table.assign(best_epoch=table["best_epoch"] + 1)
    print(shown.to_string(index=False, float_format="%.4f", na_rep="-"))


def suite_use(options: Namespace) -> None:
    configs, where = _suite_cells(options, rates=options.rates)
    rows = []
    for arm, seed, data, folder in trained_cells(configs, **where):
        config, row = configs[arm, seed], {"arm": arm, "seed": seed, "fingerprint": folder.name}
        row |= {"mapper_rate": config.training.mapper_rate, "epochs": config.training.epochs}
        row |= read_json(folder / TRAINED, "validation_dice", "best_epoch")
        if config.model.language:
            row |= use_row(Run.load(folder), data.side("validation"))
        rows.append(row)
    if not rows:
        raise RunError(f"no cell of suite {options.suite} is trained {_AS_ASKED}")
    columns = ["arm", "seed", "fingerprint", "mapper_rate", "epochs", "best_epoch"]
    columns += ["validation_dice", *EDITS]
    table = pd.DataFrame(rows).reindex(columns=columns)
    cost = table["as trained"] - table["deleted"]
    table["used"] = (cost >= USED).where(cost.notna())
    _write(options, f"{options.suite}-use", table)
    _print_from_one(table)


def suite_status(options: Namespace) -> None:
    configs, where = _suite_cells(options)
    table = status(configs, **where)
    table["reference"] = table["folder"].map(references.held()).fillna("-")
    print(table.to_string(index=False, float_format="%.0f", na_rep="?"))
    counts = table["state"].value_counts()
    left = table["seconds_left"].sum(skipna=False) / 3600
    hours = "unknown, since nothing is trained yet" if left != left else f"{left:.1f} h"
    print(f"{', '.join(f'{n} {state}' for state, n in counts.items())}; one after another: {hours}")
    known = (table["reference"] != "-").sum()
    print(f"results/reference has {known} of these {len(table)} cells, trained as its column says")


def suite_table(options: Namespace) -> None:
    configs, where = _suite_cells(options)
    cells = status(configs, **where)
    done = cells["state"] == "done"
    for cell in cells[~done & (cells["reason"] != "")].itertuples():
        print(f"{cell.state}: {cell.arm}, seed {cell.seed}: {cell.reason}", file=sys.stderr)
    if not done.any():
        raise RunError(f"no cell of suite {options.suite} is done {_AS_ASKED}")
    tables = [
        collect(where["runs"] / cell.folder, options.suite, cell.arm)
        for cell in cells[done].itertuples()
    ]
    cases = pd.concat(tables, ignore_index=True)
    summary, contrasts = crossed.tables_of(cases, options.suite)
    print(summary.to_string(index=False, float_format="%.4f"))
    for _, row in contrasts[contrasts["metric"] == "dice"].iterrows():
        print(f"\n- {sentence(row)}")
    first = crossed.CONTRASTS[0]
    decisive = contrasts.query("metric == 'dice' and structure == 'foreground'")
    if options.suite == first.suite and len(decisive):
        decisive = decisive[decisive["family"] == first.family]
        planned = sum(contrast.family == first.family for contrast in crossed.CONTRASTS)
        reasons = [reason for _, row in decisive.iterrows() if (reason := no_verdict(row))]
        if len(decisive) < planned:
            reasons.append(f"{planned - len(decisive)} of {planned} comparisons are not there")
        verdict = f"no verdict, {reasons[0]}" if reasons else claim(decisive)
        print(
            f"\nAll comparisons together: {verdict}. 'Pre-training helps' needs all to be better, "
            "and models that use their block ('mvl suite use')."
        )


def verify(options: Namespace) -> int:
    folder = Path(options.run)
    if (REPOSITORY / "profiles" / f"{options.run}.yaml").is_file():
        folder = results_folder(options.run)
    elif not folder.is_dir():
        folder = find_run(options.run)
    checks = verified(folder)
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
    data = DataConfig()
    if read_task(find_task(data.task, options.root)).synthetic:
        raise DataError(f"{data.task} is synthetic here: the reference is of real volumes")
    return data


def reference(options: Namespace) -> None:
    data, runs = _studys_data(options), _results(options) / "runs"
    if unknown := [suite for suite in options.suites if suite not in SUITES]:
        raise ConfigError(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    asked = [suite for suite in crossed.PUBLISHED if suite in (options.suites or crossed.PUBLISHED)]
    print("\n".join(crossed.update_crossed(runs, options.root, asked)))
    number = references.update_reference(data, runs, options.root, options.suites)
    write_pages()
    refresh_results()
    print(f"{references.REFERENCE} holds the {number} finished runs of {runs}")


def audit_list(options: Namespace) -> None:
    for switch in audit.SWITCHES.values():
        print(f"{switch.name} ({switch.kind}): {switch.released}")
        print(f"    here: {switch.study}\n    it changes: {switch.changes}")


def audit_table(options: Namespace) -> None:
    table = audit.write_audit(_studys_data(options), _results(options) / "runs", options.root)
    refresh_audit()
    print("\n".join(sentences(table)))
