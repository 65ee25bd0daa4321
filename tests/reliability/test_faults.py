"""A full disk, results that may not be written, too little memory: a sentence, and no harm."""

import contextlib
import io
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from mvl.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.errors import RunError
from mvl.experiment.training import train
from mvl.models.segmenter import build_segmenter
from scripts.reliability import ON_GPU
from tests.reliability import children
from tests.reliability.conftest import last_line
from tests.reliability.stages import STAGES, half_files, outcome, prepare, size_of, start

SLOW = pytest.mark.slow
#: All stages, the slower ones in the slow tier; "checkpointing" is "training" again.
QUICK = ("download", "caching", "training", "evaluation")
NAMES = [pytest.param(n, marks=[SLOW] * (n not in QUICK)) for n in STAGES if n != "checkpointing"]


def starved(name, folder, given, share, whole):
    """A stage on a disk with room for a share of what it writes, and again with room for all.

    What it left after each is copied away.

    Returns:
        (exit status, what was printed) of both, or the reason why nothing can be mounted.
    """
    results, ends = folder / "results", []
    results.mkdir()
    try:
        children.mount(results, 1 << 30)
    except OSError as error:
        return str(error)
    prepare(name, folder, given)
    room = max(1, int(share * (whole - size_of(results))))
    children.resize(results, shutil.disk_usage(results).used + room)
    for copy in ("starved", "after"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = STAGES[name](folder, given)
        ends.append((status, printed.getvalue()))
        children.resize(results, 1 << 30)
        shutil.copytree(results, folder / copy / "results")
    return ends


@pytest.mark.parametrize("share", [0.5, *(pytest.param(s, marks=SLOW) for s in (0, 0.2, 0.9))])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_a_sentence_and_does_no_harm(
    name, share, given, undisturbed, tmp_path, note
):
    folder, whole = tmp_path / "stage", undisturbed(name)
    folder.mkdir()
    done = start(name, folder, given, partial(starved, share=share, whole=whole.bytes))
    if isinstance(done.value, str):
        pytest.skip(f"nothing can be mounted here: {done.value}")
    assert done.status == 0, done.output
    (first, sentence), (second, after) = done.value
    assert first == 1 and "Traceback" not in sentence, sentence
    assert "No space left on device" in sentence.splitlines()[-1]
    assert second == 0, after
    assert not half_files(folder / "starved", whole.outcome)
    assert outcome(folder / "after") == whole.outcome
    fault = f"room for {share:.0%} of its files"
    note("disk", stage=name, fault=fault, said=last_line(sentence))


def where_nothing_may_be_written(name, folder, given, finished):
    """The exit status of a stage whose results may be read, but not written."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    if finished:
        assert STAGES[name](folder, given) == 0
    for path in [results, *results.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    children.obey_permissions()
    return STAGES[name](folder, given)


@pytest.mark.parametrize("name", NAMES)
def test_results_that_may_not_be_written_are_a_sentence(name, given, tmp_path, note):
    folder, before = tmp_path / "stage", tmp_path / "before"
    done = start(name, folder, given, partial(where_nothing_may_be_written, finished=False))
    assert done.value == 1 and "Traceback" not in done.output, done.output
    sentence = done.output.strip().splitlines()[-1]
    assert "Permission denied" in sentence and str(folder / "results") in sentence
    before.mkdir()
    prepare(name, before, given)
    assert outcome(folder) == outcome(before)
    note("disk", stage=name, fault="no permission to write", said=last_line(done.output))


def test_what_is_finished_is_used_where_nothing_may_be_written(given, tmp_path):
    function = partial(where_nothing_may_be_written, finished=True)
    done = start("training", tmp_path / "stage", given, function)
    assert done.value == 0, done.output


def in_little_memory(root, folder, room):
    """Train with 4 cases a batch where `room` bytes are left, then as the sentence says.

    Returns:
        (the sentence, whether the second training went well).
    """
    # One wide layer: much memory for little work, about 150 MB a case.
    model = ModelConfig(width=16, encoder_depth=1, decoder_depth=0, heads=2, mlp_ratio=4096.0)
    plan = TrainingConfig(epochs=1, batch_size=4, warmup_epochs=0)
    config = ExperimentConfig(DataConfig(grid=(48, 48, 48)), model, plan)
    data = open_task(config.data, 0, root, progress=False)
    cases = Preparation(data.task, config.data).load(data.side("train")[:4], progress=False)

    def attempt(config, name):
        network = build_segmenter(config.model, 1, 1, config.data.grid, 0)
        with children.bounded(100, room):
            train(network, cases, cases[:1], config, folder / name, show=False)

    try:
        attempt(config, "four")
    except RunError as error:
        sentence = str(error)
        fits = int(re.search(r"--batch-size (\d+)", sentence)[1])
        attempt(replace(config, training=replace(plan, batch_size=fits)), "fewer")
        return sentence, (folder / "fewer" / "model.safetensors").is_file()


def test_where_memory_runs_out_the_batch_that_fits_is_named(phantom, tmp_path, note):
    done = children.run(in_little_memory, phantom, tmp_path, 500 << 20, log=tmp_path / "log")
    assert done.status == 0 and done.value, done.output
    sentence, went_well = done.value
    assert re.search(r"four: out of memory at step \d .* --batch-size [12].*resume", sentence)
    assert went_well
    note("memory", what="a step of training", said=last_line(sentence))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_where_a_gpus_memory_runs_out_the_batch_that_fits_is_named(phantom, tiny, tmp_path, note):
    wide = {"mlp_ratio": 4096.0}
    config = tiny(data={"grid": (64, 64, 64)}, model=wide, training={"batch_size": 8})
    data = open_task(config.data, 0, phantom, progress=False)
    cases = Preparation(data.task, config.data).load(data.side("train"), progress=False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * (1 << 30) / total)
    try:
        network = build_segmenter(config.model, 1, 1, config.data.grid, 0)
        with pytest.raises(RunError, match="out of memory.*--batch-size [124]") as caught:
            train(network, cases, cases[:1], config, tmp_path, show=False)
        note("memory", what=ON_GPU, said=last_line(str(caught.value)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
