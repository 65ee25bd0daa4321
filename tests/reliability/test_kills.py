"""A stage that is killed at any moment and called again ends as one that was never disturbed."""

import random
import shutil
from functools import partial

import pytest

from tests.reliability.conftest import SEED
from tests.reliability.stages import STAGES, call, finished, half_files, outcome, start

#: How often a stage is killed in the slow tier, and how often in every run of the tests.
MANY, FEW = 50, 3
# Killed at a change of a file, "checkpointing" is "training" again.
CASES = [(name, FEW) for name in STAGES if name != "checkpointing"]
CASES += [pytest.param(name, MANY, marks=pytest.mark.slow) for name in STAGES]


@pytest.mark.parametrize(("name", "kills"), CASES)
def test_a_killed_stage_ends_as_an_undisturbed_one(name, kills, given, undisturbed, tmp_path, note):
    whole, moments, interrupted = undisturbed(name), random.Random(f"{SEED} {name}"), 0
    for number in range(kills):
        folder = tmp_path / str(number)
        # At a change of a file, or by the clock, which would miss a checkpoint's short time.
        fatal, seconds = moments.randrange(whole.operations), 300
        if number % 2 and name != "checkpointing":
            fatal, seconds = None, moments.uniform(0, whole.seconds)
        moment = f"before change {fatal}" if seconds == 300 else f"after {seconds:.3f} s"
        killed = start(name, folder, given, partial(call, fatal=fatal), kill=seconds)
        interrupted += killed.status == -9
        assert not half_files(folder, whole.outcome), moment
        kept = finished(folder)
        again = start(name, folder, given)
        assert again.status == 0 and again.value[0] == 0, f"{moment}: {again.output}"
        assert outcome(folder) == whole.outcome, moment
        assert finished(folder).items() >= kept.items(), f"{moment}: done again"
        shutil.rmtree(folder)
    assert interrupted
    counts = {"kills": kills, "interrupted": interrupted, "equal": kills}
    note("kills", stage=name, operations=whole.operations, **counts)
