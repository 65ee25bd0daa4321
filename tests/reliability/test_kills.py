"""Kill -9 at random moments: run again, a stage ends as one that was never disturbed."""

import random

import pytest

from tests.reliability import children
from tests.reliability.stages import STAGES, half_files, outcome

#: A stage is killed as often in every run of the tests, and in the slow tier.
FEW, MANY = 3, 50
#: The moments are a function of this seed and the stage's name.
SEED = 20


def call(name, folder, given, fatal=None):
    """A stage, in a child process: (exit status, operations on files below `results`)."""
    operations = children.FileOperations(folder / "results", fatal)
    return STAGES[name].call(folder, given), operations.count


def start(name, folder, given, **options):
    fatal = options.pop("fatal", None)
    environment = STAGES[name].environment(folder, given)
    return children.run(
        call, name, folder, given, fatal, log=folder / "log", environment=environment, **options
    )


@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_as_an_undisturbed_one(name, kills, given, tmp_path):
    def place(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        STAGES[name].prepare(folder, given)
        return folder

    undisturbed = place("undisturbed")
    done = start(name, undisturbed, given)
    assert done.status == 0 and done.value[0] == 0, done.output
    whole, operations = outcome(undisturbed), done.value[1]
    moments, interrupted = random.Random(f"{SEED} {name}"), 0
    for number in range(kills):
        folder = place(number)
        # Checkpoints are written in so little time that a clock would miss them.
        if name == "checkpointing" or number % 2:
            moment = {"fatal": moments.randrange(operations)}
        else:
            moment = {"kill": moments.uniform(0, done.seconds)}
        killed = start(name, folder, given, **moment)
        interrupted += killed.status == -9
        assert not half_files(folder, whole), moment
        again = start(name, folder, given)
        assert again.status == 0 and again.value[0] == 0, (moment, again.output)
        assert outcome(folder) == whole, moment
    print(name, f"T {done.seconds:.2f}", operations, interrupted, kills)
    assert interrupted >= kills / 2
