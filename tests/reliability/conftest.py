"""What the tests of reliability share: what the stages start from, and the record of the outcome.

`pytest tests/reliability --slow --record` writes docs/reliability.json and the page made of it.
"""

import hashlib
import json
import os
import platform
import re
from datetime import timedelta
from functools import cache
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from transformers import LlamaConfig, LlamaForCausalLM

from scripts import reliability
from tests.blocks.fake_hub import FakeHub
from tests.data.test_download import DESCRIPTION, Server, archive
from tests.reliability import children
from tests.reliability.stages import TASK, Given, Whole, outcome, size_of, start, train

#: The moments of the kills are a function of this seed and the stage's name.
SEED = 20

_NOTES = pytest.StashKey[dict]()

_BOUNDED = settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    # The same examples every time, so that the tests fail for a change of the code alone.
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("every change", _BOUNDED)
# Other examples every time; one that fails is printed, to be run again.
settings.register_profile("slow", _BOUNDED, max_examples=3000, derandomize=False, print_blob=True)


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write docs/reliability.json and .md")


def pytest_configure(config):
    settings.load_profile("slow" if config.getoption("--slow") else "every change")


@pytest.fixture(scope="session")
def note(request):
    """A function that notes an outcome: note(section, **values)."""
    notes = request.config.stash.setdefault(_NOTES, {name: [] for name in reliability.SECTIONS})
    return lambda section, **values: notes[section].append(values)


def last_line(output):
    """The last line of an output, with the paths of this run's files shortened."""
    line = output.strip().splitlines()[-1]
    return re.sub(r"/\S*?/pytest-of-[^/]+/pytest-\d+/[^/\s]+", "…", line).removeprefix("mvl: ")


def pytest_sessionfinish(session, exitstatus):
    if exitstatus != 0 or not session.config.getoption("--record", default=False):
        return
    machine = {"Python": platform.python_version(), "PyTorch": version("torch")}
    machine["cores"] = os.cpu_count()
    record = {
        "version": reliability.VERSION,
        "seed": SEED,
        "slow": session.config.getoption("--slow"),
        "machine": machine,
        "notes": session.config.stash[_NOTES],
    }
    text = reliability.page(record)  # refuses a record that is not whole
    reliability.RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    reliability.PAGE.write_text(text)


@pytest.fixture(scope="session")
def given(phantom, tmp_path_factory):
    """What the stages start from: data, a trained run, and servers on this machine."""
    folder = tmp_path_factory.mktemp("given")
    done = children.run(train, phantom, folder / "runs", log=folder / "log")
    assert done.status == 0, done.output
    (trained,) = (folder / "runs").iterdir()
    # A Llama of two layers in the layout of a hub's repository, 4 MB a layer.
    sizes = {"vocab_size": 8, "hidden_size": 256, "intermediate_size": 1000}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    server, hub = Server(), FakeHub(folder / "model")
    voxels = np.random.default_rng(0).bytes(1_000_000)
    files = [(f"{TASK}/imagesTr/{n}.nii.gz", voxels) for n in range(20)]
    server.body = archive((f"{TASK}/dataset.json", DESCRIPTION), *files)
    for one in (server, hub.hub.http, hub.store.http):
        one.handle_error = lambda *_: None  # of a client that was killed
    md5 = hashlib.md5(server.body).hexdigest()
    yield Given(phantom, trained, (server.url, md5), hub.hub.address)
    hub.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def undisturbed(given, tmp_path_factory):
    """A function: name of a stage -> its `Whole`."""

    @cache
    def of(name):
        folder = tmp_path_factory.mktemp("undisturbed") / "stage"
        done = start(name, folder, given)
        assert done.status == 0 and done.value[0] == 0, done.output
        return Whole(outcome(folder), size_of(folder / "results"), done.value[1], done.seconds)

    return of
