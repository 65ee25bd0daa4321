"""Did I reproduce it? A user's own finished runs, held against the committed reference.

A run is compared with the reference's run of the same fingerprint: same configuration, same
state of the task, same language block, same protocol. Five things are asked:

    file      cases.csv is the file that the evaluation wrote (its SHA-256 stands in done.json),
              and agrees with itself: Jaccard = Dice / (2 - Dice) in every row
    cases     on the same kind of machine (system, CPU, device, number format, threads, PyTorch),
              every metric of every case is the reference's, to the last written digit
    means     elsewhere, each metric's mean over the cases is within `tolerance` of the reference's
    task      the run's task is still what it was; a run of another state of it is said to be one
    contrast  of every comparison that the study planned and both of whose arms were run: its
              difference in Dice, over the seeds that were run, is the reference's, within
              sqrt(2 / seeds) of that tolerance (the mean over seeds of a difference of two arms;
              where the arms of a seed vary together, it varies less), and it has not changed its
              sign by more than the half-width of the reference's 95 % interval, widened by
              sqrt(seeds of the reference / seeds that were run); the interval of a single seed
              knows nothing of other seeds, so that there the tolerance decides alone

Training amplifies the last bit, so a run on another kind of machine is another draw, as another
seed would be: of all the means together, draws that differ as seeds do leave their tolerances once
in 370 times at most (three standard deviations, if one knew them), and so do all the contrasts.
A difference that is zero in truth changes its sign by more than its interval in some 3 % of draws.
One run says little; all seeds of two arms together say whether their difference came out again.
"""

from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mvl.errors import RunError
from mvl.experiment.identity import changed_since
from mvl.experiment.metrics import METRICS
from mvl.experiment.run import CASES, DONE, FAILED, read_cases
from mvl.files import read_json, sha256_of
from mvl.show.tables import count
from mvl.study.reference import CELL, CONTRASTS, MACHINE, REFERENCE, machine_of, read_table

#: Of a mean where no arm of the reference has two seeds yet: shares, and millimetres.
FALLBACK = {"": 0.02, "mm": 0.5}


def verify(place, reference=REFERENCE):
    """Compare finished runs with the reference.

    Args:
        place: a run folder, or a folder with runs in it (results/<profile>, or its runs/).
        reference: the folder of the reference.

    Returns:
        A table, a check a row: run, suite, arm, seed, check (see the module, or "state" of a run
        that was not finished), agrees (True, False, or None where nothing can be compared) and
        detail. A contrast has no run; its arm is "A minus B", its seed how many there are.

    Raises:
        RunError: there is no finished run, or no reference.
        MvlError: a file of a run is missing or damaged.
    """
    runs = pd.DataFrame(read_table(Path(reference) / "validation.csv"))
    cases = read_table(Path(reference) / "cases.csv.gz")
    summary = read_table(Path(reference) / "summary.csv")
    finished, unfinished = _runs(Path(place))
    checks = len(METRICS) * sum(folder.name in set(runs["fingerprint"]) for folder in finished)
    rows, own_cases, seen = [], {}, {}
    for folder in finished:
        if said := changed_since(folder, seen):
            about = {"run": folder.name, "suite": "", "arm": "", "seed": ""}
            rows.append(about | {"check": "task", "agrees": None, "detail": said})
        known = runs[runs["fingerprint"] == folder.name]
        about = {"run": folder.name, "suite": "", "arm": "", "seed": ""}
        if len(known):
            about |= {name: known.iloc[0][name] for name in CELL}
        rows.append(about | _file(folder))
        if known.empty:
            said = "the reference has no such run"
            rows.append(about | {"check": "cases", "agrees": None, "detail": said})
            continue
        row = known.iloc[0]
        theirs = cases[(cases[CELL] == row[CELL]).all(axis=1)]
        own = own_cases[folder.name] = read_cases(folder)
        place_of_run = machine_of(read_json(folder / "environment.json", "versions"))
        differing = [
            key
            for key in MACHINE
            if str(place_of_run[key]) != str(row[key]) or row[key] == "unknown"
        ]
        if not differing:
            rows.append(about | _exact(own, theirs))
        else:
            rows.append(about | _statistical(own, theirs, summary, checks, differing))
    contrasts = read_table(Path(reference) / "contrasts.csv")
    rows += _contrasts(own_cases, runs, cases, summary, contrasts)
    for folder in unfinished:
        failed = folder / FAILED
        said = read_json(failed, "reason")["reason"] if failed.is_file() else "not finished"
        about = {"run": folder.name, "suite": "", "arm": "", "seed": ""}
        rows.append(about | {"check": "state", "agrees": None, "detail": said})
    return pd.DataFrame(rows)


def name_of_check(row):
    """What a row of `verify`'s table is about, in words; empty where the reference has no name."""
    if not row.suite:
        return ""
    return f"{row.suite} {row.arm}, {row.seed if row.check == 'contrast' else f'seed {row.seed}'}"


def conclusion(checks):
    """What the checks say together.

    Args:
        checks: table of `verify`.

    Returns:
        (True, False, or None where nothing could be compared; the sentences).
    """
    runs = checks[checks["check"].isin(["cases", "means"])]
    known = int(runs["agrees"].notna().sum())
    wrong = int(checks["agrees"].eq(False).sum())
    contrasts, unfinished = ((checks["check"] == name).sum() for name in ("contrast", "state"))
    if wrong:
        agrees, said = False, f"Not reproduced: {wrong} of {len(checks)} checks differ."
    elif not known:
        agrees, said = None, "Nothing to compare: the reference has none of these runs."
    else:
        said = f"Reproduced: {known} of {len(runs)} runs are in the reference and agree."
        if contrasts:
            said += f" So {'does' if contrasts == 1 else 'do'} {count(contrasts, 'difference')} "
            said += "between arms."
        agrees = True
    if unfinished:
        said += f" Not compared, since not finished: {count(unfinished, 'run')}."
    return agrees, said


def _runs(place):
    """The run folders at or below a place, (finished, not finished)."""
    candidates = [place, *sorted(place.glob("*/")), *sorted(place.glob("runs/*/"))]
    folders = [folder for folder in candidates if (folder / "config.json").is_file()]
    finished = [folder for folder in folders if (folder / DONE).is_file()]
    if not finished:
        raise RunError(
            f"{place} holds no finished run; './run_all.sh' or 'mvl suite run' makes some"
        )
    return finished, [folder for folder in folders if folder not in finished]


def _file(folder):
    """Is cases.csv what the evaluation wrote?"""
    stored = read_json(folder / DONE, "cases_sha256")["cases_sha256"]
    own = read_cases(folder)
    dice, jaccard = own["dice"].to_numpy(), own["jaccard"].to_numpy()
    wrong = np.flatnonzero(~np.isclose(jaccard, dice / (2 - dice), rtol=0, atol=1e-6))
    if stored != sha256_of(folder / CASES):
        said = "cases.csv was changed after the evaluation: its SHA-256 is not that of done.json"
    elif len(wrong):
        said = f"case {own['case'].iloc[wrong[0]]}: Dice and Jaccard contradict each other"
    else:
        return {"check": "file", "agrees": True, "detail": "as the evaluation wrote it"}
    return {"check": "file", "agrees": False, "detail": said}


def _paired(own, theirs):
    """Own and reference rows of each case and structure; None if they are not the same ones."""
    keys = ["case", "structure"]
    both = own.merge(theirs, on=keys, suffixes=("", "_reference"), how="outer", indicator=True)
    return both if (both["_merge"] == "both").all() else None


def _exact(own, theirs):
    both = _paired(own, theirs)
    if both is None:
        return {"check": "cases", "agrees": False, "detail": "other cases than the reference's"}
    for metric in METRICS:
        other = both[f"{metric}_reference"]
        wrong = np.flatnonzero(both[metric].to_numpy() != other.to_numpy())
        if len(wrong):
            row = both.iloc[wrong[0]]
            return {
                "check": "cases",
                "agrees": False,
                "detail": f"{metric} of {row['case']} is {row[metric]:.9g}, the reference's "
                f"{row[f'{metric}_reference']:.9g}; {len(wrong)} of {len(both)} rows differ",
            }
    said = f"{len(both)} rows x {len(METRICS)} metrics, equal to the last digit"
    return {"check": "cases", "agrees": True, "detail": said}


def _statistical(own, theirs, summary, checks, differing):
    both = _paired(own, theirs)
    if both is None:
        return {"check": "means", "agrees": False, "detail": "other cases than the reference's"}
    apart = {}
    for metric in METRICS:
        difference = both[metric].mean() - both[f"{metric}_reference"].mean()
        limit = tolerance(summary, metric, checks)
        apart[metric] = (abs(difference) / limit, difference, limit)
    worst = max(apart, key=lambda metric: apart[metric][0])
    share, difference, limit = apart[worst]
    where = ", ".join(differing)
    return {
        "check": "means",
        "agrees": bool(share <= 1),
        "detail": f"another {where}; Dice differs by {apart['dice'][1]:+.4f} (tolerance "
        f"{apart['dice'][2]:.4f}), furthest off is {worst}: {difference:+.4f} of {limit:.4f}",
    }


def _contrasts(own_cases, runs, cases, summary, contrasts):
    """A row of each planned contrast that the own runs have a common seed of.

    Args:
        own_cases: {fingerprint: cases of an own run that the reference has}.
        runs, cases, summary, contrasts: the reference's.
    """
    means = {"own": {}, "reference": {}}
    shown = cases[cases["structure"] == "foreground"]
    by_subject = shown.groupby([*CELL, "subject"])["dice"].mean().groupby(CELL).mean()
    for run in runs[runs["fingerprint"].isin(own_cases)].itertuples():
        own = own_cases[run.fingerprint]
        own = own[own["structure"] == "foreground"]
        cell = run.suite, run.arm, run.seed
        means["own"][cell] = own.groupby("subject")["dice"].mean().mean()
        means["reference"][cell] = by_subject[cell]
    differences = {}
    for suite, a, b in CONTRASTS:
        in_a, in_b = (
            {seed for s, name, seed in means["own"] if (s, name) == (suite, arm)} for arm in (a, b)
        )
        if common := in_a & in_b:
            of = {
                side: np.mean([found[suite, a, seed] - found[suite, b, seed] for seed in common])
                for side, found in means.items()
            }
            # One comparison may have names in several suites; the first is the study's.
            differences.setdefault((of["own"], of["reference"]), (suite, a, b, common))
    shown = contrasts[(contrasts["metric"] == "dice") & (contrasts["structure"] == "foreground")]
    published = shown.set_index(["suite", "arm_a", "arm_b"])
    rows = []
    for (own, theirs), (suite, a, b, common) in differences.items():
        limit = sqrt(2 / len(common)) * tolerance(summary, "dice", len(differences))
        effect = f"{limit / abs(theirs):.1f} times the difference" if theirs else "of none"
        said = f"Dice {own:+.4f}, the reference's {theirs:+.4f} (tolerance {limit:.4f}, {effect})"
        row = published.loc[suite, a, b]
        half = (row["ci_high"] - row["ci_low"]) / 2 * sqrt(row["n_seeds"] / len(common))
        reversed_ = row["n_seeds"] > 1 and own * theirs < 0 and abs(own - theirs) > half
        if reversed_:
            said += f"; the sign is another, and the interval is ±{half:.4f}"
        rows.append(
            {
                "run": "",
                "suite": suite,
                "arm": f"{a} minus {b}",
                "seed": count(len(common), "seed"),
                "check": "contrast",
                "agrees": bool(abs(own - theirs) <= limit and not reversed_),
                "detail": said,
            }
        )
    return rows


def tolerance(summary, metric, checks=1):
    """How far a metric's mean may lie from the reference's: t sqrt(2) sd_seeds.

    A few seeds of one arm may lie together by chance. So sd_seeds is pooled over the arms (the
    root of the mean variance, by degrees of freedom), and t is Student's quantile with as many
    degrees of freedom, at the level of three standard deviations, divided by the number of checks
    (Bonferroni).

    Args:
        summary: the reference's summary.
        metric: a name of `METRICS`.
        checks: how many means are held against the reference's together.
    """
    found = summary[(summary["metric"] == metric) & (summary["n_seeds"] > 1)]
    # One experiment has names in several suites.
    found = found.drop_duplicates(["task", "structure", "mean", "sd_seeds", "n_seeds"])
    if found.empty:
        return FALLBACK[METRICS[metric].unit]
    freedoms = found["n_seeds"] - 1
    spread = sqrt((freedoms * found["sd_seeds"] ** 2).sum() / freedoms.sum())
    return float(stats.t.isf(stats.norm.sf(3) / checks, freedoms.sum())) * sqrt(2) * spread
