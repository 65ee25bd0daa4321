"""Broken inputs: each ends in a sentence that names file and reason, in bounded time and memory.

A table has one line per input: its name, what the sentence must contain, and what spoils a sound
folder. The rooms' own tests spoil more files.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
from functools import partial
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save

from mvl.data import download
from mvl.experiment.run import Run
from mvl.models.folder import save_model
from mvl.study.reference import BEST
from tests.blocks.fake_hub import COMMIT, Server, constants
from tests.data import test_checks as volumes
from tests.data.test_download import DESCRIPTION, EVIL, archive
from tests.reliability import children, stages
from tests.reliability.conftest import last_line

#: What an input may take, in seconds and in bytes above what the process had before.
SECONDS, MEMORY = 20, 256 << 20


def sound(folder, given, command):
    """Write what the capital words of a command name, and put their paths in their place."""
    run = folder / "runs" / given.trained.name
    places = {"TASK": folder / "task", "BLOCK": folder / "block", "RUN": run, "HERE": folder}
    places |= {"IMAGE": volumes.image_of(folder / "task"), "MODEL": folder / "model"}
    places |= {"OUT": folder / "out.nii.gz", "DATA": given.phantom}
    named = {*re.findall("|".join(places), command)}
    if {"TASK", "IMAGE"} & named:
        volumes.make_task(folder / "task")
    if "BLOCK" in named:
        (folder / "block").mkdir()
        (folder / B).write_text(stages.LLAMA.removeprefix("random:"))
    if "RUN" in named:
        shutil.copytree(given.trained, run)
        (folder / "run").symlink_to(run)
    if "MODEL" in named:
        shutil.copytree(BEST, folder / "model")
    fill = partial(re.sub, "|".join(places), lambda match: str(places[match[0]]))
    return [fill(word) for word in command.split()]


def test_names_that_are_no_text_are_no_fault(given, tmp_path):
    task = tmp_path / os.fsdecode(b"t\xffsk")
    volumes.make_task(task)
    output = task / os.fsdecode(b"\xfe.nii.gz")
    words = ("predict", volumes.image_of(task), "--run", given.trained, "-o", output)
    # This task is unlike the phantom that the model was trained on.
    assert stages.mvl("data", "check", task) == stages.mvl(*words, "--anyway") == 0


# --- what spoils a folder, a function of (folder, given) ------------------------------------


def put(file, content):
    return lambda folder, given: (folder / file).write_bytes(content)


def gone(file):
    return lambda folder, given: (folder / file).unlink()


def piped(file):
    return both(put(file, b""), gone(file), lambda folder, given: os.mkfifo(folder / file))


def forbidden(file):
    """Without permission to read it."""

    def spoil(folder, given):
        (folder / file).chmod(0)
        children.obey_permissions()

    return spoil


def linked(file, target):
    return both(gone(file), lambda folder, given: (folder / file).symlink_to(target))


def edited(file, *path, **changes):
    """Other values in a JSON file; `path` leads to the object, None takes a key out."""

    def spoil(folder, given):
        values = inner = json.loads((folder / file).read_text())
        for key in path:
            inner = inner[key]
        inner |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del inner[key]
        (folder / file).write_text(json.dumps(values))

    return spoil


def both(*spoils):
    return lambda folder, given: [spoil(folder, given) for spoil in spoils]


def of_data(name):
    """A fault of `tests/data`; its reason, and its spoil."""
    spoil, reason = volumes.FAULTS[name]
    return reason, lambda folder, given: spoil(folder / "task")


# --- the tables ----------------------------------------------------------------------------

#: (kind, name, command, what the sentence must contain, spoil).
INPUTS = []


def add(kind, command, table):
    """Add {name: (*words, spoil)}."""
    for name, (*words, spoil) in table.items():
        INPUTS.append(pytest.param(kind, name, command, words, spoil, id=f"{kind}: {name}"))


IMAGE, D, S = "task/imagesTr/b.nii.gz", "task/dataset.json", "task/subjects.csv"
B, W, C = "block/config.json", "block/model.safetensors", "run/config.json"
CASES, DONE = "run/cases.csv", "run/done.json"
NO_JSON, DENIED = "not readable JSON", "Permission denied"


def listed(image):
    return edited(D, training=[{"image": image, "label": "./labelsTr/a.nii.gz"}])


def language(**changes):
    return both(put(W, b""), edited(B, **changes))


def of_no_task(folder, given):
    shutil.rmtree(folder / "model")
    save_model(Run.load(given.trained).model, folder / "model")


def with_table(table):
    return both(put(DONE, b'{"test_cases": 1, "cases_sha256": ""}'), put(CASES, table))


# fmt: off
COSTLY = ("missing image", "a flipped byte", "a named pipe", "bomb")
add("A case's files", "data check TASK", {
    **{name: ("b  ", *of_data(name)) for name in COSTLY},
    "no permission": ("b  ", "unreadable (Permission denied)", forbidden(IMAGE)),
})
PREDICTED = {
    "NaN voxels": "NaN", "two channels": "2 channels", "5D": "5D", "huge sizes": "cannot hold",
    "a flipped byte": "gzip", "a named pipe": "regular file", "bomb": "bomb",
}
add("An image to segment", "predict IMAGE --run RUN -o OUT", {
    **{name: ("b.nii.gz", word, of_data(name)[1]) for name, word in PREDICTED.items()},
    "no permission": ("b.nii.gz", DENIED, forbidden(IMAGE)),
})
add("A task's description", "data check TASK", {
    "no labels": ("dataset.json", "'labels' is missing", edited(D, labels=None)),
    "a path with ..": ("dataset.json", "leads out", listed("../../etc/passwd")),
    "an absolute path": ("dataset.json", "leads out", listed("/etc/passwd")),
    "a name that is not UTF-8": ("dataset.json", "is not the path", listed("\udcff.nii.gz")),
    "an empty file": ("dataset.json", NO_JSON, put(D, b"")),
    "nested 100,000 times": ("dataset.json", NO_JSON, put(D, b"[" * 100_000)),
    "in UTF-16": ("dataset.json", NO_JSON, put(D, '{"a": 1}'.encode("utf-16"))),
    "a named pipe": ("no task", piped(D)),
    "without permission": ("dataset.json", f"cannot be read: {DENIED}", forbidden(D)),
    "a folder without permission": (DENIED, forbidden("task")),
    "a link that leads out": ("outside the task folder", linked(IMAGE, "/etc/passwd")),
    "a loop of links": ("dataset.json", "cannot be followed", linked(IMAGE, "b.nii.gz")),
})
add("A table of subjects", "data check TASK", {
    "a case is missing": ("subjects.csv", "lacks 1 of 3", put(S, b"case,subject\na,p\nb,q\n")),
    "a field of 1 MB": ("field larger than", put(S, b"case,subject\na," + bytes(1 << 20))),
    "not UTF-8": ("subjects.csv", "not a readable", put(S, b"case,subject\na,\xff\n")),
    "without permission": ("subjects.csv", DENIED, both(put(S, b""), forbidden(S))),
})
OTHER = save({"a": np.zeros(4, np.float32)})
add("A language model's block", "block extract path:BLOCK -o HERE/out", {
    "other tensors": ("no tensor's name", put(W, OTHER)),
    "weights without permission": (DENIED, both(put(W, OTHER), forbidden(W))),
    "no config.json": ("there is no config.json in", gone(B)),
    "a config.json that is a list": ("expected a JSON object", both(put(W, b""), put(B, b"[]"))),
    "a config.json without permission": (DENIED, both(put(W, b""), forbidden(B))),
    "a folder without permission": (DENIED, forbidden("block")),
    "an unknown family": ("nonsense", language(model_type="nonsense")),
    "a width that is text": ("config.json", "hidden_size", language(hidden_size="wide")),
    "a width that is negative": ("config.json", "negative", language(hidden_size=-32)),
    "heads that do not divide": ("attention heads (5)", language(num_attention_heads=5)),
})
add("A run folder", "evaluate RUN --root DATA", {
    "no config.json": ("no config.json", gone(C)),
    "config.json without config": ("config.json", "lacks 'config'", edited(C, config=None)),
    "of another version": ("protocol version 0", edited(C, protocol_version=0)),
    "task.json without labels": ("task.json", "labels", edited("run/task.json", labels=None)),
    "split.json without test": ("split.json", "lacks 'test'", edited("run/split.json", test=None)),
    "another split": ("split:", "now in test", edited("run/split.json", test=["x"])),
    "no subjects": ("lacks 'subjects'", edited("run/identity.json", subjects=None)),
    "weights missing": ("model.safetensors", "cannot be read", gone("run/model.safetensors")),
    "weights of another model": ("of another model", put("run/model.safetensors", OTHER)),
    "a table that is not text": ("cases.csv", "not a readable table", with_table(b"\xff\xfe\0\0")),
})
add("A run folder", "verify RUN", {
    "no metrics, verified": ("cases.csv", "lacks the column", with_table(b"case\na\n")),
    "done.json a list, verified": ("done.json", "lacks", put(DONE, b"[]")),
})
add("A saved model", "predict IMAGE --run MODEL -o OUT", {
    "other weights": ("vouches for", put("model/model.safetensors", OTHER)),
    "of no task": ("does not say how to prepare", of_no_task),
})
for name, command, *words in (
    ("a grid that the patch does not divide", "train --grid 7 7 7", "(7, 7, 7)"),
    ("a grid that no memory holds", "train --grid 80000 80000 80000", "out of memory"),
    ("a grid that no number holds", f"train --grid {10**30} 8 8", "must be less than 2147483648"),
    ("a task of 300 letters", f"train --task {'x' * 300}", "cannot look into", "name too long"),
    ("a suite without a run", "suite table tiny --root DATA --results HERE", "no cell of suite"),
):
    command = command.replace("train ", "train --root DATA --runs HERE --preset tiny ")
    add("The command line", command, {name: (*words, lambda folder, given: None)})


def resumed(state):
    return both(gone("run/trained.json"), put("run/state.safetensors", state))


RESUME = "train --root DATA --runs RUN/.. --preset tiny --grid 16 24 16"
RESTART = ("state.safetensors", "delete it to train")
add("A run folder", RESUME, {"a damaged state": (*RESTART, resumed(b"\xff" * 99))})
add("A run folder", RESUME, {"a state of another version": (*RESTART, resumed(OTHER))})


@contextlib.contextmanager
def published(content, folder, given):
    """An archive, for `mvl data download`; None is one with another MD5."""
    path = folder / "archive.tar"
    path.write_bytes(content or archive())
    md5 = hashlib.md5(content).hexdigest() if content else "0" * 32
    with mock.patch.object(download, "_published", lambda task: (path.as_uri(), md5)):
        yield


@contextlib.contextmanager
def answering(status, body, headers, folder, given):
    """A hub that gives one answer to everything."""
    server = Server(lambda handler: handler.reply(status, headers, body))
    values = constants(server.address, folder / "hub")
    with (
        mock.patch.dict(os.environ, {"MVL_CACHE": str(folder / "cache")}),
        mock.patch.multiple("huggingface_hub.constants", **values),
    ):
        yield
    server.close()


FIRST = (f"{stages.TASK}/dataset.json", DESCRIPTION)
LINK, BOMB = archive(FIRST, EVIL["symbolic link"]), gzip.compress(bytes(64 << 20), 1)
add("An archive", f"data download {stages.TASK} --root HERE/deep/root", {
    "a member with ..": ("be unpacked", partial(published, archive(FIRST, EVIL["parent"]))),
    "a symbolic link": ("be unpacked", partial(published, LINK)),
    "a bomb": ("be unpacked", partial(published, BOMB)),
    "another MD5": ("has MD5", partial(published, None)),
})
NAMED = {"X-Repo-Commit": COMMIT, "ETag": '"a"'}
HUGE, SHORT = NAMED | {"Content-Length": 100 << 30}, NAMED | {"Content-Length": 99}
add("A hub", "block show hub:owner/name", {
    "a model without config.json": ("hub:owner/name at http", partial(answering, 404, b"", {})),
    "a revision without commit": ("hub:owner/name at http", partial(answering, 200, b"", {})),
    "a config.json of 100 GB": ("hub:owner/name at http", partial(answering, 200, b"", HUGE)),
    "a config.json that breaks off": ("owner/name at http", partial(answering, 200, b"{", SHORT)),
    "a config.json that is not JSON": (NO_JSON, partial(answering, 200, b"{", NAMED)),
})
# fmt: on


@pytest.mark.parametrize(("kind", "name", "command", "words", "spoil"), INPUTS)
def test_a_broken_input_ends_in_a_sentence(
    kind, name, command, words, spoil, given, tmp_path, capfd, note
):
    with contextlib.ExitStack() as stack:
        stack.callback(children.obey_permissions, False)
        wanted = sound(tmp_path, given, command)
        context = spoil(tmp_path, given)
        if isinstance(context, contextlib.AbstractContextManager):
            stack.enter_context(context)
        capfd.readouterr()
        with children.bounded(SECONDS, 8 << 30) as cost:
            status = stages.mvl(*wanted)
    output = "".join(capfd.readouterr())
    assert status == 1 and "Traceback" not in output, output
    assert not [path for path in tmp_path.rglob("evil") if path.is_file()]
    sentence = output[output.rfind("mvl: ") :]  # after progress
    for word in words:
        assert word in sentence
    assert not re.search(r"<.* object at 0x", sentence)
    seconds, memory = cost
    assert seconds < SECONDS and memory < MEMORY
    line = next(line for line in sentence.splitlines() if words[-1] in line)
    costs = {"seconds": round(seconds, 2), "megabytes": round(memory / 1e6)}
    note("inputs", kind=kind, input=f"{kind}: {name}", said=last_line(line), **costs)
