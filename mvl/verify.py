"""Did I reproduce it? A user's own finished runs, held against the committed reference.

A run is compared with the reference's run of the same fingerprint: same configuration, same
voxels, same language block, same protocol. Three things are asked of it:

    file    cases.csv is the file that the evaluation wrote (its SHA-256 stands in done.json), and
            agrees with itself: Jaccard = Dice / (2 - Dice) in every row
    cases   on the same kind of machine (system, CPU, device, number format, threads, PyTorch),
            every metric of every case is the reference's, to the last written digit
    means   elsewhere, each metric's mean over the cases is within `tolerance` of the reference's

Training amplifies the last bit, so a run on another kind of machine is another draw, as another
seed would be: of the means of all runs and metrics together, draws that differ as seeds do leave
their tolerances once in 370 times at most (three standard deviations, if one knew them).
"""

from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mvl.errors import RunError
from mvl.files import read_json, sha256_of
from mvl.metrics import METRICS
from mvl.reference import MACHINE, REFERENCE, machine_of, read_table

#: Of a mean where no arm of the reference has two seeds yet: shares, and millimetres.
FALLBACK = {"": 0.02, "mm": 0.5}


def verify(place, reference=REFERENCE):
    """Compare finished runs with the reference.

    Args:
        place: a run folder, or a folder with runs in it (results/<profile>, or its runs/).
        reference: the folder of the reference.

    Returns:
        A table, a check a row: run, suite, arm, seed, check ("file", "cases" or "means"),
        agrees (True, False, or None where the reference has no such run) and detail.

    Raises:
        RunError: there is no finished run, or no reference.
    """
    runs = pd.DataFrame(read_table(Path(reference) / "validation.csv"))
    cases = read_table(Path(reference) / "cases.csv.gz")
    summary = read_table(Path(reference) / "summary.csv")
    rows, finished = [], _finished(Path(place))
    checks = len(METRICS) * sum(folder.name in set(runs["fingerprint"]) for folder in finished)
    for folder in finished:
        known = runs[runs["fingerprint"] == folder.name]
        about = {"run": folder.name, "suite": "", "arm": "", "seed": ""}
        rows.append(about | _file(folder))
        if known.empty:
            rows.append(
                about
                | {"check": "cases", "agrees": None, "detail": "the reference has no such run"}
            )
            continue
        row = known.iloc[0]
        about |= {name: row[name] for name in ("suite", "arm", "seed")}
        rows[-1] |= about
        theirs = cases
        for name in ("suite", "arm", "seed"):
            theirs = theirs[theirs[name] == row[name]]
        own = read_table(folder / "cases.csv", numbers=METRICS)
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
    return pd.DataFrame(rows)


def _finished(place):
    """The finished run folders at or below a place."""
    candidates = [place, *sorted(place.glob("*/")), *sorted(place.glob("runs/*/"))]
    finished = [folder for folder in candidates if (folder / "done.json").is_file()]
    if not finished:
        raise RunError(
            f"{place} holds no finished run; './run_all.sh' or 'mvl suite run' makes some"
        )
    return finished


def _file(folder):
    """Is cases.csv what the evaluation wrote?"""
    stored = read_json(folder / "done.json", "test_cases").get("cases_sha256")
    own = read_table(folder / "cases.csv", numbers=METRICS)
    dice, jaccard = own["dice"].to_numpy(), own["jaccard"].to_numpy()
    wrong = np.flatnonzero(~np.isclose(jaccard, dice / (2 - dice), rtol=0, atol=1e-6))
    if stored is not None and stored != sha256_of(folder / "cases.csv"):
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
