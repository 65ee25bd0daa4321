"""A full disk, results that may not be written, too little memory: a sentence, and no harm."""

import contextlib
import io
import re
import resource
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
from tests.reliability.conftest import said
from tests.reliability.stages import STAGES, half_files, outcome, size_of, start

#: The stages that write, and the bytes that no file of theirs may exceed: some fit, some do not.
#: The longer stages are for the slow tier.
LIMITS = {
    "download": 1_000_000,
    "caching": 1_000_000,
    "synthesis": 1_000,
    "training": 100_000,
    "evaluation": 300,
    "suite": 100_000,
    "batch": 300,
}
WRITING = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("suite", "batch"))) for name in LIMITS
]


def _twice(name, folder, given, make_room):
    """A stage that fails, and again with room; what it left after each is copied away.

    Returns:
        (exit status, what was printed) of both.
    """
    ends = []
    for copy in ("starved", "after"):
        said = io.StringIO()  # a log might be what cannot grow
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = STAGES[name].call(folder, given)
        ends.append((status, said.getvalue()))
        if copy == "starved":
            make_room()
        shutil.copytree(folder / "results", folder / copy / "results")
    return ends


def on_a_small_disk(name, folder, given, share, whole):
    """A stage with room for a share of what it adds; its ends, or why nothing can be mounted."""
    (folder / "results").mkdir()
    try:
        disk = children.SmallDisk(folder / "results", 1 << 30)
    except OSError as error:
        return str(error)
    STAGES[name].prepare(folder, given)
    room = share * (whole - size_of(folder / "results"))
    disk.resize(shutil.disk_usage(folder / "results").used + max(1, int(room)))
    return _twice(name, folder, given, lambda: disk.resize(1 << 30))


def with_small_files(name, folder, given, size):
    """A stage none of whose files may have more than `size` bytes; its ends."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    make_room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    return _twice(name, folder, given, make_room)


@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.2, 0.9))]
)
@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_a_sentence_and_does_no_harm(
    name, share, given, undisturbed, tmp_path, note
):
    folder, whole = tmp_path / "stage", undisturbed(name)
    folder.mkdir()
    small = partial(on_a_small_disk, share=share, whole=whole.bytes)
    done = start(name, folder, given, small)
    if isinstance(done.value, str):
        pytest.skip(f"nothing can be mounted here: {done.value}")
    _assert_no_harm(folder, done, whole, "No space left on device")
    fault = f"room for {share:.0%} of its files" if share else "room for a page of 4 kB"
    note("disk", stage=name, fault=fault, said=said(done.value[0][1]))


@pytest.mark.parametrize("name", WRITING)
def test_files_that_cannot_grow_are_a_sentence_and_do_no_harm(
    name, given, undisturbed, tmp_path, note
):
    """As a full disk or a quota; needs no mount."""
    done = start(name, tmp_path / "stage", given, partial(with_small_files, size=LIMITS[name]))
    _assert_no_harm(tmp_path / "stage", done, undisturbed(name), "File too large")
    fault = f"no file above {LIMITS[name]:,} bytes"
    note("disk", stage=name, fault=fault, said=said(done.value[0][1]))


def _assert_no_harm(folder, done, whole, reason):
    assert done.status == 0, done.output
    (first, said), (second, after) = done.value
    assert first == 1 and "Traceback" not in said and reason in said.splitlines()[-1], said
    assert second == 0, after
    assert not half_files(folder / "starved", whole.outcome)
    assert outcome(folder / "after") == whole.outcome


def where_nothing_may_be_written(name, folder, given, finished):
    """A stage whose results may be read, but not written; its exit status."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    if finished:
        assert STAGES[name].call(folder, given) == 0
    for path in [results, *results.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    children.obey_permissions()
    return STAGES[name].call(folder, given)


@pytest.mark.parametrize("name", WRITING)
def test_results_that_may_not_be_written_are_a_sentence(name, given, tmp_path, note):
    folder = tmp_path / "stage"
    done = start(name, folder, given, partial(where_nothing_may_be_written, finished=False))
    assert done.value == 1 and "Traceback" not in done.output, done.output
    sentence = done.output.strip().splitlines()[-1]
    assert "Permission denied" in sentence and str(folder / "results") in sentence
    before = folder.with_name("before")
    before.mkdir()
    STAGES[name].prepare(before, given)
    assert outcome(folder) == outcome(before)
    note("disk", stage=name, fault="no permission to write", said=said(done.output))


@pytest.mark.parametrize("name", ["download", "caching", "synthesis", "training", "evaluation"])
def test_finished_results_are_used_where_they_may_not_be_written(name, given, tmp_path):
    reading = partial(where_nothing_may_be_written, finished=True)
    done = start(name, tmp_path / "stage", given, reading)
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
    preparation = Preparation(data.task, config.data)
    cases = preparation.load(data.side("train")[:4], progress=False)

    def attempt(config, name):
        network = build_segmenter(config.model, 1, 1, config.data.grid, 0)
        limit = children.address_space() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            train(network, cases, cases[:1], config, folder / name, show=False)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    try:
        attempt(config, "four")
    except RunError as error:
        said = str(error)
        fits = int(re.search(r"--batch-size (\d+)", said)[1])
        attempt(replace(config, training=replace(plan, batch_size=fits)), "fewer")
        return said, (folder / "fewer" / "model.safetensors").is_file()


def test_where_memory_runs_out_the_batch_that_fits_is_named(phantom, tmp_path, note):
    done = children.run(in_little_memory, phantom, tmp_path, 500 << 20, log=tmp_path / "log")
    assert done.status == 0 and done.value, done.output
    sentence, went_well = done.value
    assert re.search(
        r"four: out of memory at step \d of epoch 0 with 4 cases a batch; a batch of [12] fits: "
        r"choose --batch-size [12].*stays resumable",
        sentence,
    )
    assert went_well
    note("memory", what="a step of training", said=said(sentence))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_where_a_gpus_memory_runs_out_the_batch_that_fits_is_named(phantom, tiny, tmp_path, note):
    config = tiny(
        data={"grid": (64, 64, 64)}, model={"mlp_ratio": 4096.0}, training={"batch_size": 8}
    )
    data = open_task(config.data, 0, phantom, progress=False)
    cases = Preparation(data.task, config.data).load(data.side("train"), progress=False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * (1 << 30) / total)
    try:
        network = build_segmenter(config.model, 1, 1, config.data.grid, 0)
        with pytest.raises(RunError, match="out of memory.*--batch-size [124]") as caught:
            train(network, cases, cases[:1], config, tmp_path, show=False)
        note("memory", what=ON_GPU, said=said(str(caught.value)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
