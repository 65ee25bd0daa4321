"""Kill -9 at random moments: run again, a stage ends as one that was never disturbed."""

import random
import shutil
from functools import partial

import pytest

from tests.reliability.conftest import SEED
from tests.reliability.stages import STAGES, call, finished, half_files, outcome, start

#: How often a stage is killed in every run of the tests, and in the slow tier.
FEW, MANY = 3, 50


@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_as_an_undisturbed_one(name, kills, given, undisturbed, tmp_path, note):
    whole, moments, interrupted = undisturbed(name), random.Random(f"{SEED} {name}"), 0
    for number in range(kills):
        folder = tmp_path / str(number)
        # By the clock or at one of its operations on files; the clock would miss a checkpoint,
        # which is written in a short time.
        if name == "checkpointing" or number % 2:
            fatal, seconds = moments.randrange(whole.operations), None
        else:
            fatal, seconds = None, moments.uniform(0, whole.seconds)
        moment = f"at operation {fatal}" if seconds is None else f"after {seconds:.3f} s"
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
