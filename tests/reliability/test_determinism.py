"""The same machine gives the same bytes; another number of threads the same metrics to 1e-4."""

import pandas as pd
import torch

from mvl import figures
from mvl.metrics import METRICS
from tests.reliability import children, stages
from tests.reliability.stages import outcome, start

#: Of every metric, in its own unit.
TOLERANCE = 1e-4


def suite_with_figure(name, folder, given):
    """The stage `suite`, and a figure of its table."""
    status = stages.STAGES[name].call(folder, given)
    cases = pd.read_csv(folder / "results" / "suites" / "tiny.csv")
    figure = figures.paired_differences(cases, "plain", "hybrid")
    figures.save(figure, folder / "results" / "figure")
    return status


def test_two_runs_leave_the_same_bytes(given, tmp_path, note):
    first, second = (
        start("suite", tmp_path / name, given, suite_with_figure) for name in ("one", "two")
    )
    assert first.value == second.value == 0, first.output + second.output
    one, two = (outcome(tmp_path / name) for name in ("one", "two"))
    kinds = {name.rpartition(".")[2] for name in one}
    assert {"csv", "safetensors", "json", "png", "pdf", "svg"} <= kinds
    assert [name for name in one if one[name] != two.get(name)] == [] and one.keys() == two.keys()
    what = f"a suite and a figure, run twice: {len(one)} files ({', '.join(sorted(kinds))})"
    note("determinism", what=what, found="equal, byte for byte")


def train_and_test(folder, given, threads):
    """A run trained and tested with so many threads: its table."""
    torch.set_num_threads(threads)
    assert stages.train(given.phantom, folder) == 0
    (run,) = folder.iterdir()
    assert stages.mvl("evaluate", run, "--root", given.phantom) == 0
    return pd.read_csv(run / "cases.csv")


def test_another_number_of_threads_gives_the_same_metrics(given, tmp_path, note):
    one, two = (
        children.run(train_and_test, tmp_path / str(n), given, n, log=tmp_path / f"{n}.log")
        for n in (1, 2)
    )
    assert one.status == two.status == 0, one.output + two.output
    names = ["subject", "case", "structure"]
    pd.testing.assert_frame_equal(one.value[names], two.value[names])
    apart = (one.value[list(METRICS)] - two.value[list(METRICS)]).abs().max()
    assert (apart <= TOLERANCE).all(), apart
    what = f"a run of three epochs with one thread and with two: {len(one.value)} rows"
    note("determinism", what=what, found=f"metrics differ by {apart.max():.1e} at most")
