"""The same machine gives the same bytes; another number of threads the same metrics to 1e-4."""

import os
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import torch

from mvl.experiment.metrics import METRICS
from mvl.files import REPOSITORY
from tests.reliability import stages
from tests.reliability.stages import outcome, start

#: Of every metric, in its own unit.
TOLERANCE = 1e-4


def test_two_runs_leave_the_same_bytes(given, undisturbed, tmp_path, note):
    done = start("suite", tmp_path / "again", given)
    assert done.value and done.value[0] == 0, done.output
    one, two = undisturbed("suite").outcome, outcome(tmp_path / "again")
    assert {name for name in one | two if one.get(name) != two.get(name)} == set()
    note("determinism", what=f"a suite, run twice: {len(one)} files", found="the same bytes")


SUITE_AND_REPORT = """
import os, sys
from pathlib import Path
from mvl.files import REPOSITORY
from mvl.show.report.page import write_report
from mvl.study.profiles import load_profile
from tests.reliability.stages import mvl

root, folder = sys.argv[1], Path(sys.argv[2])
(folder / "results").mkdir(parents=True)
os.symlink(REPOSITORY / "results" / "reference", folder / "results" / "reference")
write_report(load_profile("smoke"), {}, folder)
sys.exit(mvl("suite", "run", "tiny", "--results", folder / "results", "--root", root))
"""


@pytest.mark.slow
def test_another_hash_seed_leaves_the_same_bytes(given, tmp_path, note):
    """Neither a suite nor the figures of a report depend on the order of a set."""
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SUITE_AND_REPORT, given.phantom, tmp_path / seed]
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, cwd=REPOSITORY, check=True)
    one, two = (outcome(tmp_path / seed) for seed in ("1", "2"))
    assert any(b"<svg" in one[name] for name in one if name.endswith(".html"))
    assert {name for name in one | two if one.get(name) != two.get(name)} == set()
    what = f"a suite and a report, other hash seed: {len(one)} files"
    note("determinism", what=what, found="the same bytes")


def train_and_test(name, folder, given, threads):
    """The tables of a run that so many threads have trained and tested."""
    torch.set_num_threads(threads)
    grid = ("--grid", "32", "40", "32")
    assert stages.train(given.phantom, folder / "runs", *grid, preset="small") == 0
    (run,) = (folder / "runs").iterdir()
    assert stages.mvl("evaluate", run, "--root", given.phantom) == 0
    return pd.read_csv(run / "curves.csv"), pd.read_csv(run / "cases.csv")


def test_another_number_of_threads_gives_the_same_metrics(given, tmp_path, note):
    tables = []
    for threads in (1, 2):
        function = partial(train_and_test, threads=threads)
        done = start("training", tmp_path / str(threads), given, function)
        assert done.status == 0, done.output
        tables.append(done.value)
    (curves, cases), (other_curves, others) = tables
    names = ["subject", "case", "structure"]
    pd.testing.assert_frame_equal(cases[names], others[names])
    apart = (cases[list(METRICS)] - others[list(METRICS)]).abs().max().max()
    loss = (curves["train_loss"] - other_curves["train_loss"]).abs().max()
    assert apart <= TOLERANCE and cases["dice"].nunique() > 2  # nothing constant, nor empty
    found = f"metrics differ by {apart:.1e} at most, the training loss by {loss:.1e}"
    what = f"trained and tested with one thread and two, {len(curves)} epochs"
    note("determinism", what=what, found=found)
