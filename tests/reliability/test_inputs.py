"""Broken inputs: each ends in a sentence that names file and reason, in bounded time and memory.

A table has one line per input: its name, what the sentence must contain, and what spoils a sound
folder. A recipe makes the folder, and says which command (or function) is to use it.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import struct
from unittest import mock

import pytest

from mvl.data import download
from mvl.errors import MvlError
from mvl.experiment.run import Run
from mvl.files import REPOSITORY
from mvl.models.folder import save_model
from mvl.show.results import study_page
from mvl.study import reference
from mvl.study.profiles import load_profile
from mvl.study.reference import BEST, REFERENCE
from tests.blocks.fake_hub import COMMIT, Server
from tests.data import test_checks as volumes
from tests.data.test_download import DESCRIPTION, EVIL, archive
from tests.reliability import children, stages
from tests.reliability.conftest import last_line

TASK = stages.TASK
#: What an input may take, in seconds and in bytes above what the process had before.
SECONDS, MEMORY = 20, 256 << 20

#: Name -> (kind, what the sentence must contain, recipe, spoil).
INPUTS = {}


def add(kind, recipe, table):
    """Add a table {name: (*words, spoil)}; `recipe(folder, given, spoil)` gives a command."""
    for name, (*words, spoil) in table.items():
        INPUTS[f"{kind}: {name}"] = (kind, words, recipe, spoil)


def test_names_that_are_no_text_are_no_fault(given, tmp_path):
    task = tmp_path / os.fsdecode(b"t\xffsk")
    volumes.make_task(task)
    output = task / os.fsdecode(b"\xfe.nii.gz")
    words = ("predict", volumes.image_of(task), "--run", given.trained, "-o", output)
    # This task is unlike the phantom that the model was trained on.
    assert stages.mvl("data", "check", task) == stages.mvl(*words, "--anyway") == 0


# --- what spoils a folder ------------------------------------------------------------------


def put(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def gone(file):
    return lambda folder: (folder / file).unlink()


def half(file):
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def grown(file):
    """100 GB that take no room."""

    def spoil(folder):
        (folder / file).touch()
        os.truncate(folder / file, 100 << 30)

    return spoil


def piped(file):
    return lambda folder: ((folder / file).unlink(missing_ok=True), os.mkfifo(folder / file))


def forbidden(file):
    """Without permission to read it."""

    def spoil(folder):
        path = folder / file
        path.exists() or path.touch()
        path.chmod(0)
        children.obey_permissions()

    return spoil


def linked(file, target):
    return lambda folder: ((folder / file).unlink(), (folder / file).symlink_to(target))


def edited(file, *path, **changes):
    """Other values in a JSON file; `path` leads to the object, None takes a key out."""

    def spoil(folder):
        values = inner = json.loads((folder / file).read_text())
        for key in path:
            inner = inner[key]
        inner |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del inner[key]
        (folder / file).write_text(json.dumps(values))

    return spoil


def both(*spoils):
    return lambda folder: [spoil(folder) for spoil in spoils]


# --- a task --------------------------------------------------------------------------------


def check(folder, given, spoil):
    volumes.make_task(folder / "task")
    spoil(folder / "task")
    return "data", "check", folder / "task"


def predict(folder, given, spoil):
    volumes.make_task(folder)
    spoil(folder)
    image = volumes.image_of(folder)
    return "predict", image, "--run", given.trained, "-o", folder / "out.nii.gz"


IMAGE = "imagesTr/b.nii.gz"
of_a_case = {name: ("b  ", fault, spoil) for name, (spoil, fault) in volumes.FAULTS.items()}
of_a_case["no permission"] = ("b  ", "unreadable (Permission denied)", forbidden(IMAGE))
add("A case's files", check, of_a_case)
of_an_image = ("truncated gzip", "a flipped byte", "wrong magic", "empty file", "a named pipe")
of_an_image += ("huge sizes", "zero spacing", "singular affine", "bomb", "2D", "5D")
to_segment = {
    name: ("b.nii.gz", volumes.FAULTS[name][1].removeprefix("image: "), volumes.FAULTS[name][0])
    for name in (*of_an_image, "missing image")
}
to_segment["NaN voxels"] = ("b.nii.gz", "NaN or infinite", volumes.FAULTS["NaN voxels"][0])
to_segment["two channels"] = ("b.nii.gz", "has 2 channels", volumes.FAULTS["two channels"][0])
to_segment["no permission"] = ("b.nii.gz", "Permission denied", forbidden(IMAGE))
add("An image to segment", predict, to_segment)


def description(**changes):
    return edited("dataset.json", **changes)


def listed(image):
    return description(training=[{"image": image, "label": "./labelsTr/a.nii.gz"}])


D, S = "dataset.json", "subjects.csv"
# fmt: off
add("A task's description", check, {
    "no labels": (D, "'labels' is missing", description(labels=None)),
    "no cases": (D, "'training' names no case", description(training=[])),
    "a path with ..": (D, "leads out", listed("../../etc/passwd")),
    "an absolute path": (D, "leads out", listed("/etc/passwd")),
    "a name that is not UTF-8": (D, "is not the path", listed("\udcff.nii.gz")),
    "a name with a zero byte": (D, "is not the path", listed("a\0.nii.gz")),
    "a tolerance without end": (D, "tolerance_mm", description(tolerance_mm=float("inf"))),
    "an empty file": (D, "not readable JSON", put(D, b"")),
    "a file cut off": (D, "not readable JSON", put(D, b'{"modality": {"0": "MRI"}, "lab')),
    "a list": (D, "expected a JSON object", put(D, b"[]")),
    "nested 100,000 times": (D, "not readable JSON", put(D, b"[" * 100_000)),
    "in UTF-16": (D, "not readable JSON", put(D, '{"a": 1}'.encode("utf-16"))),
    "100 GB": (D, "too large", grown(D)),
    "a named pipe": ("no task", piped(D)),
    "without permission": (D, "cannot be read: Permission denied", forbidden(D)),
    "a folder without permission": ("Permission denied", forbidden("")),
    "a link that leads out": (D, "outside the task folder", linked(IMAGE, "/etc/passwd")),
    "a loop of links": (D, "cannot be followed", linked(IMAGE, "b.nii.gz")),
})
add("A table of subjects", check, {
    "a case is missing": (S, "lacks 1 of 3", put(S, b"case,subject\na,p\nb,q\n")),
    "a case of two": (S, "has two subjects", put(S, b"case,subject\na,p\na,q\nb,q\nc,q\n")),
    "a field of 1 MB": (S, "field larger than", put(S, b"case,subject\na," + bytes(1 << 20))),
    "not UTF-8": (S, "not a readable table", put(S, b"case,subject\na,\xff\n")),
    "other columns": (S, "needs a 'case'", put(S, b"x,y\na,p\n")),
    "100 GB": (S, "too large", grown(S)),
    "without permission": (S, "Permission denied", forbidden(S)),
    "a named pipe": (S, "not a regular file", piped(S)),
})


# --- an archive ----------------------------------------------------------------------------


def fetch(folder, given, content):
    path, right = folder / "archive.tar", content is not None
    path.write_bytes(content if right else archive())
    published = path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest() if right else "0" * 32

    def use():
        with mock.patch.object(download, "_published", lambda task: published):
            return stages.mvl("data", "download", TASK, "--root", folder / "deep" / "root")

    return use


SOUND = (f"{TASK}/dataset.json", DESCRIPTION)
DAMAGED_TAR = "cannot be unpacked"
add("An archive", fetch, {
    **{name: (DAMAGED_TAR, archive(SOUND, member)) for name, member in EVIL.items()},
    "packed by gzip, a bomb": (DAMAGED_TAR, gzip.compress(bytes(64 << 20), 1)),
    "cut off": (DAMAGED_TAR, archive((SOUND[0], DESCRIPTION * 99))[:9000]),
    "a web page": (DAMAGED_TAR, b"<html>log in first</html>" * 100),
    "without dataset.json": (f"no {SOUND[0]}", archive((f"{TASK}/imagesTr/x", b"x"))),
    "another MD5": ("has MD5", "expected 000", None),
})


# --- a language model's block --------------------------------------------------------------

LLAMA = json.loads(stages.LLAMA.removeprefix("random:"))
C, M, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def extract(folder, given, spoil):
    (folder / C).write_text(json.dumps(LLAMA))
    spoil(folder)
    return "block", "extract", f"path:{folder}", "-o", folder / "out"


def tensors(header, data=bytes(16), length=None):
    """A safetensors file, whose header may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def at(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def weights(*arguments, **options):
    return put(M, tensors(*arguments, **options))


def index(value):
    return put(INDEX, json.dumps(value).encode())


def config(**changes):
    return both(put(M, b""), edited(C, **changes))


OTHER = tensors({"a": at(0, 16, [4])})
PARTS = [f"self_attn.{letter}_proj" for letter in "qkvo"]
PARTS += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
PARTS += ["input_layernorm", "post_attention_layernorm"]
LAYER = {"weight_map": {f"model.layers.1.{part}.weight": "a.safetensors" for part in PARTS}}
DAMAGED = (M, "is damaged")
add("A language model's block", extract, {
    "a header longer than the file": (*DAMAGED, weights({}, length=1 << 40)),
    "a header of 2^64 bytes": (*DAMAGED, weights({}, length=2**64 - 1)),
    "a header that is not JSON": (*DAMAGED, weights(b"{")),
    "a header nested 100,000 times": (*DAMAGED, weights(b"[" * 100_000)),
    "overlapping tensors": (*DAMAGED, weights({"a": at(0, 16, [4]), "b": at(8, 16)})),
    "a gap": (*DAMAGED, weights({"a": at(0, 4, [1]), "b": at(8, 16)})),
    "tensors beyond the file": (*DAMAGED, weights({"a": at(0, 1 << 40, [1 << 38])})),
    "negative offsets": (*DAMAGED, weights({"a": at(-8, 0), "b": at(0, 16, [4])})),
    "a size that is not the shape's": (*DAMAGED, weights({"a": at(0, 16, [1 << 60])})),
    "an unknown number format": (*DAMAGED, weights({"a": at(0, 16, [4], "F33")})),
    "bytes of no tensor": (*DAMAGED, weights({"a": at(0, 8)})),
    "five bytes": (*DAMAGED, put(M, b"12345")),
    "other tensors": ("no tensor's name", put(M, OTHER)),
    "pickled weights": ("pickle", put("pytorch_model.bin", b"cos\nsystem\n")),
    "an index that leads out": ("names '../a.bin'", index({"weight_map": {"a": "../a.bin"}})),
    "an index that is a list": (INDEX, "expected a JSON object", index([])),
    "an index of nothing": (INDEX, "has no weight_map", index({})),
    "an index of a missing file": ("a.safetensors", "is missing", index(LAYER)),
    "an index of a missing tensor": ("a.safetensors", "lacks model.layers.1.",
                                     both(index(LAYER), put("a.safetensors", OTHER))),
    "no weights": ("holds neither model.safetensors nor", put("README.md", b"")),
    "weights without permission": (M, "Permission denied", both(weights({}), forbidden(M))),
    "no config.json": ("there is no config.json in", gone(C)),
    "a config.json of 100 GB": ("config.json is too large", both(put(M, b""), grown(C))),
    "a config.json that is a list": (C, "expected a JSON object", both(put(M, b""), put(C, b"[]"))),
    "a config.json that is not JSON": (C, "not readable JSON", both(put(M, b""), put(C, b"{"))),
    "a config.json without permission": (C, "Permission denied", both(put(M, b""), forbidden(C))),
    "a folder without permission": ("Permission denied", forbidden("")),
    "an unknown family": ("nonsense", config(model_type="nonsense")),
    "a width that is text": (C, "hidden_size", config(hidden_size="wide")),
    "a width that is negative": (C, "negative", config(hidden_size=-32)),
    "heads that do not divide": (C, "attention heads (5)", config(num_attention_heads=5)),
})


def ask_hub(folder, given, answer):
    """A hub that gives one answer to everything."""
    revision, status, body, headers = answer
    server = Server(lambda handler: handler.reply(status, headers, body))

    def use():
        places = {"HF_ENDPOINT": server.address, "MVL_CACHE": str(folder / "cache")}
        places["HF_HUB_CACHE"] = str(folder / "hub")
        try:
            with mock.patch.dict(os.environ, places):
                return stages.mvl("block", "show", f"hub:owner/name{revision}")
        finally:
            server.close()

    return use


HUB, NAMED = "hub:owner/name", {"X-Repo-Commit": COMMIT, "ETag": '"a"'}
HUGE, SHORT = NAMED | {"Content-Length": 100 << 30}, NAMED | {"Content-Length": 99}
add("A hub", ask_hub, {
    "a model without config.json": (HUB, "no config.json", ("", 404, b"", {})),
    "a commit without config.json": (HUB, "no config.json", (f"@{COMMIT}", 404, b"", {})),
    "a revision without commit": (HUB, "is not a hub", ("", 200, b"", {})),
    "a config.json of 100 GB": (HUB, "is not a hub", ("", 200, b"", HUGE)),
    "a config.json that breaks off": (HUB, "cannot be reached", ("", 200, b"{", SHORT)),
    "a config.json that is not JSON": (C, "not readable JSON", ("", 200, b"{", NAMED)),
    "a config.json that is a list": (C, "expected a JSON object", ("", 200, b"[]", NAMED)),
})


# --- a run folder and a saved model --------------------------------------------------------


def copied(folder, given, spoil):
    run = folder / "runs" / given.trained.name
    shutil.copytree(given.trained, run)
    spoil(run)
    return run


def evaluate(folder, given, spoil):
    return "evaluate", copied(folder, given, spoil), "--root", given.phantom


def verify(folder, given, spoil):
    return "verify", copied(folder, given, spoil)


def resume(folder, given, state):
    """Go on with a training, from a damaged state."""
    run = copied(folder, given, both(gone("trained.json"), put("state.safetensors", state)))
    return lambda: stages.train(given.phantom, run.parent)


def with_table(table):
    done = put("done.json", b'{"test_cases": 1, "cases_sha256": ""}')
    return both(done, put("cases.csv", table))


def with_block(record):
    language = edited(C, "config", "model", language={"source": stages.LLAMA})
    return both(language, put("block.json", json.dumps(record).encode()))


MODEL, PLAN = ("config", "model"), ("config", "training")
FINITE = "must be a finite number"
add("A run folder", evaluate, {
    "no config.json": ("no config.json", gone(C)),
    "config.json cut off": (C, "not readable JSON", half(C)),
    "config.json a list": (C, "lacks 'config'", put(C, b"[]")),
    "config.json without config": (C, "lacks 'config'", edited(C, config=None)),
    "of another version": ("protocol version 0", edited(C, protocol_version=0)),
    "of another version, as a text": ("protocol version '1'", edited(C, protocol_version="1")),
    "an unknown key": (C, "unknown key model.depth", edited(C, *MODEL, depth=9)),
    "another type": (C, "model.width must be a valid integer", edited(C, *MODEL, width="wide")),
    "out of range": (C, "epochs must", edited(C, *PLAN, epochs=0)),
    "NaN": (C, f"weight_decay {FINITE}", edited(C, *PLAN, weight_decay=float("nan"))),
    "400 digits": (C, f"learning_rate {FINITE}", edited(C, *PLAN, learning_rate=10**400)),
    "task.json without labels": ("task.json", "labels", edited("task.json", labels=None)),
    "task.json of another version": ("task.json", "another version", edited("task.json", new=1)),
    "split.json without test": ("split.json", "lacks 'test'", edited("split.json", test=None)),
    "split.json with a number": ("split.json", "not a split", edited("split.json", test=7)),
    "another split": ("split:", "now in test", edited("split.json", test=["x"])),
    "no subjects": ("identity.json", "lacks 'subjects'", edited("identity.json", subjects=None)),
    "weights missing": (M, "cannot be read", gone(M)),
    "weights cut off": (M, "cannot be read", half(M)),
    "weights with a lying header": (M, "cannot be read", weights({}, length=1 << 40)),
    "weights of another model": (M, "of another model", put(M, OTHER)),
    "training not ended": ("training has not ended", gone("trained.json")),
    "another block": ("another block", with_block({"sha256": "0" * 64})),
    "block.json a list": ("block.json", "lacks 'sha256'", with_block([])),
    "an empty table": ("cases.csv", "not a readable table", with_table(b"")),
    "a table without columns": ("cases.csv", "lacks the column", with_table(b"case\na\n")),
    "a table that is not text": ("cases.csv", "not a readable table", with_table(b"\xff\xfe\0\0")),
    "a table of 100 GB": ("cases.csv", "too large", both(with_table(b""), grown("cases.csv"))),
})
add("A run folder", verify, {
    "no metrics, verified": ("cases.csv", "lacks the column", with_table(b"case\na\n")),
    "done.json a list, verified": ("done.json", "lacks", put("done.json", b"[]")),
})
RESTART = ("state.safetensors", "delete it to train")
add("A run folder", resume, {
    "a state that is not safetensors": (*RESTART, b"\xff" * 99),
    "a state with a lying header": (*RESTART, tensors({}, length=1 << 40)),
    "a state of another version": (*RESTART, OTHER),
})


def predict_with(folder, given, spoil):
    volumes.make_task(folder)
    shutil.copytree(BEST, folder / "model")
    spoil(folder / "model")
    image = volumes.image_of(folder)
    return "predict", image, "--run", folder / "model", "-o", folder / "out.nii.gz"


def of_no_task(folder, given, spoil):
    save_model(Run.load(given.trained).model, folder / "of no task")
    return predict_with(folder, given, spoil)[:3] + (folder / "of no task", "-o", "out.nii.gz")


OLD = put(C, b'{"model_type": "medvisionllama", "format_version": 1}')
add("A saved model", predict_with, {
    "of another format": ("format version 99", edited(C, format_version=99)),
    "a missing key": ("config.json is damaged: missing key", OLD),
    "an unknown key": ("config.json is damaged: unknown key new", edited(C, new=1)),
    "other weights": (M, "vouches for", put(M, OTHER)),
    "weights missing": (M, "cannot be read", gone(M)),
})
add("A saved model", of_no_task, {"of no task": ("does not say how to prepare", lambda model: 0)})


# --- profiles, the command's own values, the reference --------------------------------------


def profile(folder, given, change):
    (folder / "profiles").mkdir()
    text = (REPOSITORY / "profiles" / "smoke.yaml").read_text()
    (folder / "profiles" / "smoke.yaml").write_bytes(change(text).encode())
    return lambda: load_profile("smoke", folder)


def setting(key, value):
    return lambda text: re.sub(f"(?m)^{key}:.*", f"{key}: {value}" if value else "", text)


P = "smoke.yaml"
add("A profile", profile, {
    "an unknown key": (P, "unknown key colour", lambda text: text + "colour: red\n"),
    "a missing key": (P, "lacks epochs", setting("epochs", "")),
    "another type": (P, "epochs must be", setting("epochs", "two")),
    "an unknown task": (P, "tasks.0 must be", setting("tasks", "[Task9_Spleen]")),
    "no epoch": (P, "epochs must be", "got 0", setting("epochs", "0")),
    "a grid of two": (P, "grid", "at least 3 items", setting("grid", "[16, 24]")),
    "a seed that is text": (P, "seeds.0 must be", "integer", setting("seeds", "[a]")),
    "an unknown fit": (P, "fit must be", "'resize'", setting("fit", "stretch")),
    "NaN": (P, "phantom_scale must be", "got nan", setting("phantom_scale", ".nan")),
    "an arm as a number": (P, "fusion_arms.0 must be", "string", setting("fusion_arms", "[111]")),
    "no YAML": (P, "not readable YAML", lambda text: text + "a: [\n"),
    "nested 100,000 times": (P, "not readable YAML", lambda text: "[" * 100_000),
    "a list": (P, "root must be", lambda text: "- a\n- b\n"),
})


def train(folder, given, words):
    return lambda: stages.train(given.phantom, folder / "runs", *words.split())


def command(folder, given, words):
    volumes.make_task(folder)
    places = {"IMAGE": volumes.image_of(folder), "RUN": given.trained, "HERE": folder}
    return [{**places, "DATA": given.phantom}.get(word, word) for word in words.split()]


add("The command line", train, {
    "a batch of 0 cases": ("--batch-size must be", "--batch-size 0"),
    "a grid that the patch does not divide": ("(7, 7, 7)", "--grid 7 7 7"),
    "a grid that no memory holds": ("out of memory", "--grid 80000 80000 80000"),
    "a grid that no number holds": ("--grid must be less than 2147483648", f"--grid {10**30} 8 8"),
    "a learning rate of 0": ("--learning-rate must be", "--learning-rate 0"),
    "a task of 300 letters": ("cannot look into", "name too long", f"--task {'x' * 300}"),
    "a task that is not there": ("no task Nowhere", "--task Nowhere"),
})
SUITE = "suite run tiny --root DATA --results HERE"
add("The command line", command, {
    "a segmentation as a picture": ("out.png does not end", "predict IMAGE --run RUN -o out.png"),
    "in place of its image": ("the image itself", "predict IMAGE --run RUN -o IMAGE"),
    "a suite of no epoch": ("epochs must be", f"{SUITE} --epochs 0"),
    "a shard of none": ("shard 1/0", f"{SUITE} --shard 1/0"),
    "a shard that is not share": ("--shard one: expected I/N", f"{SUITE} --shard one"),
    "a suite without a run": ("no cell of suite tiny", SUITE.replace("run tiny", "table tiny")),
})


def read_reference(folder, given, spoil):
    copy = shutil.ignore_patterns("best")
    shutil.copytree(REFERENCE, folder / "reference", ignore=copy)
    spoil(folder / "reference")
    return lambda: (
        reference.curves_table(folder / "reference"),
        study_page(folder / "reference"),
    )


def of_version_0(folder):
    path = folder / "summary.csv"
    reference.read_table(path).assign(protocol_version=0).to_csv(path, index=False)


CURVES = "curves.csv.gz"
add("The reference", read_reference, {
    "cut off": (CURVES, "not a readable table", half(CURVES)),
    "not packed": (CURVES, "not a readable table", put(CURVES, b"fingerprint,epoch")),
    "other columns": (CURVES, "lacks the column", put(CURVES, gzip.compress(b"a,b\n1,2\n"))),
    "a bomb": (CURVES, "too large", put(CURVES, gzip.compress(bytes(512 << 20), 1))),
    "empty": ("validation.csv", "not a readable table", put("validation.csv", b"")),
    "of another version": ("summary.csv", "protocol version 0", of_version_0),
})
# fmt: on


# --- the test -------------------------------------------------------------------------------


def in_words(function):
    """What the command line makes of a function's fault."""
    try:
        return function()
    except MvlError as error:
        print(f"mvl: {error}")
        return 1


@pytest.mark.parametrize("name", INPUTS)
def test_a_broken_input_ends_in_a_sentence(name, given, tmp_path, capfd, note):
    kind, words, recipe, spoil = INPUTS[name]
    try:
        wanted = recipe(tmp_path, given, spoil)
        capfd.readouterr()
        with children.bounded(SECONDS, 8 << 30) as cost:
            status = in_words(wanted) if callable(wanted) else stages.mvl(*wanted)
    finally:
        children.obey_permissions(False)
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
    note("inputs", kind=kind, input=name, said=last_line(line), **costs)
