"""Broken inputs, one a distinct check: how each is made, what is asked of it, what must be said.

An entry's recipe runs in a child process, in a folder of its own. It gives the words of an `mvl`
command, or a function to call; either has to end in a sentence that names the file and the
reason, in bounded time and memory.
"""

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from mvl.data import download
from mvl.errors import MvlError
from mvl.experiment.run import Run
from mvl.study import reference
from mvl.study.profiles import load_profile
from mvl.study.reference import BEST, REFERENCE
from tests.blocks.test_sources import COMMIT, _Server
from tests.data import test_checks as volumes
from tests.data.test_download import DESCRIPTION, archive, link
from tests.reliability import children, stages

TASK = stages.TASK
#: What an entry may take, in seconds and in bytes above what its process had before.
SECONDS, MEMORY = 20, 256 << 20


@dataclass(frozen=True)
class Entry:
    """One broken input.

    Attributes:
        kind: what it is a fault of.
        recipe: (folder, given) -> words of a command, or a function.
        said: what the sentence must contain: the name of the file, and of the fault.
    """

    kind: str
    recipe: Callable
    said: tuple[str, ...]


#: Name -> `Entry`.
CORPUS = {}


def _add(kind, name, said, recipe):
    assert name not in CORPUS, name
    CORPUS[name] = Entry(kind, recipe, said)


@dataclass(frozen=True)
class Answer:
    """What came of an entry.

    Attributes:
        status: the exit status.
        output: all that was printed.
        seconds: how long it took.
        memory: bytes at the peak, above those that the process held before.
    """

    status: int
    output: str
    seconds: float
    memory: int


def examine(names, folder, given):
    """Make inputs and use them, one after another; to be called in a child process.

    Returns:
        {name: `Answer`}.
    """
    return {name: _examine(name, folder / str(n), given) for n, name in enumerate(names)}


def _examine(name, folder, given):
    folder.mkdir()
    log = folder.with_suffix(".log")
    children.redirect(log)
    wanted = CORPUS[name].recipe(folder, given)
    # Not the limit of the test, but of what it may do to the machine.
    most = children.address_space() + (8 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    before = children.reset_peak_memory()
    start = time.monotonic()
    status = _in_words(wanted) if callable(wanted) else stages.mvl(*wanted)
    seconds = time.monotonic() - start
    output = log.read_text(encoding="utf-8", errors="replace")
    return Answer(status, output, seconds, children.peak_memory() - before)


def _in_words(function):
    """What the command line makes of a function's fault."""
    try:
        return function()
    except MvlError as error:
        print(f"mvl: {error}", flush=True)
        return 1


# --- the files of a case -------------------------------------------------------------------


def _case(kind, name, said, spoil):
    """A task of three sound cases, of which `spoil` breaks one; the check names it."""

    def recipe(folder, given):
        volumes.make_task(folder / "task")
        spoil(folder / "task")
        return "data", "check", folder / "task"

    _add(kind, name, said, recipe)


for _name, (_spoil, _text) in volumes.FAULTS.items():
    _case("A case's files", _name, ("b  ", _text), _spoil)


def _forbid(path):
    path.chmod(0)
    children.obey_permissions()


_case(
    "A case's files",
    "no permission to read the image",
    ("b  ", "image: unreadable (Permission denied)"),
    lambda task: _forbid(volumes.image_of(task)),
)


# --- a single image ------------------------------------------------------------------------


def _image(name, said, spoil):
    def recipe(folder, given):
        volumes.make_task(folder)
        spoil(folder)
        image = volumes.image_of(folder)
        return "predict", image, "--run", given.trained, "-o", folder / "out.nii.gz"

    _add("An image to segment", f"image to segment: {name}", ("b.nii.gz", *said), recipe)


for _name in ("truncated gzip", "a flipped byte", "wrong magic", "empty file", "a named pipe",
              "huge sizes", "zero spacing", "singular affine", "bomb", "2D", "5D",
              "missing image"):  # fmt: skip
    _spoil, _text = volumes.FAULTS[_name]
    _image(_name, (_text.removeprefix("image: "),), _spoil)
_image("NaN voxels", ("NaN or infinite",), volumes.FAULTS["NaN voxels"][0])
_image("two channels", ("has 2 channels",), volumes.FAULTS["two channels"][0])
_image("no permission", ("Permission denied",), lambda task: _forbid(volumes.image_of(task)))


# --- dataset.json and subjects.csv ---------------------------------------------------------


def _description(name, said, **changes):
    """dataset.json with other values; None takes a key out."""

    def spoil(task):
        path = task / "dataset.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    _case("dataset.json", name, ("dataset.json", *said), spoil)


def _entries(image):
    return [{"image": image, "label": "./labelsTr/a.nii.gz"}]


def _raw(name, said, content, file="dataset.json"):
    _case(file, name, (file, *said), lambda task: (task / file).write_bytes(content))


_description("no modality", ("'modality' is missing",), modality=None)
_description("no labels", ("'labels' is missing",), labels=None)
_description("labels without numbers", ("not a number",), labels={"one": "a"})
_description("no cases", ("'training' names no case",), training=[])
_description("cases missing", ("'training' is missing",), training=None)
_description("cases that are no list", ("'training' is missing or not a list",), training={"a": 1})
_description("a case without image", ("without 'image'",), training=[{"label": "a.nii.gz"}])
_description("one case twice", ("twice",), training=_entries("./imagesTr/a.nii.gz") * 2)
_description("a path with ..", ("leads out",), training=_entries("../../etc/passwd"))
_description("an absolute path", ("leads out",), training=_entries("/etc/passwd"))
_description("a name that is not UTF-8", ("is not the path",), training=_entries("\udcff.nii.gz"))
_description("a name with a zero byte", ("is not the path",), training=_entries("a\0.nii.gz"))
_description("a path that is a number", ("is not the path",), training=_entries(7))
_description("a tolerance without end", ("tolerance_mm",), tolerance_mm=float("inf"))
_description("a tolerance that is text", ("tolerance_mm",), tolerance_mm="2 mm")
_description("one label's number twice", ("in two ways",), labels={"1": "a", "01": "b"})
_description("one label's name twice", ("one name twice",), labels={"1": "a", "2": "a"})
_description("a label called foreground", ("all labels together",), labels={"1": "foreground"})
_description("no channel", ("at least one entry",), modality={})
_description("the background alone", ("at least one entry",), labels={"0": "background"})
_description("a window that is none", ("window_hu must be",), window_hu=[3, -3])
_description("synthetic as a text", ("'synthetic' must be",), synthetic="no")
_raw("dataset.json empty", ("not readable JSON",), b"")
_raw("dataset.json cut off", ("not readable JSON",), b'{"modality": {"0": "MRI"}, "lab')
_raw("dataset.json a list", ("expected a JSON object",), b"[]")
_raw("dataset.json nested 100,000 times", ("not readable JSON",), b"[" * 100_000)
_raw("dataset.json in UTF-16", ("not readable JSON",), '{"a": 1}'.encode("utf-16"))
_raw("subjects.csv without a case", ("lacks 1 of 3",), b"case,subject\na,p\nb,q\n", "subjects.csv")
_raw("subjects.csv with a case of two", ("has two subjects",),
     b"case,subject\na,p\na,q\nb,q\nc,q\n", "subjects.csv")  # fmt: skip
_raw("subjects.csv with a subject of white space", ("needs a 'case' and a 'subject'",),
     b"case,subject\na,p\nb, \nc,q\n", "subjects.csv")  # fmt: skip
_raw("subjects.csv with a field of 1 MB", ("field larger than",),
     b"case,subject\na," + bytes(1 << 20), "subjects.csv")  # fmt: skip
_raw("subjects.csv not UTF-8", ("not a readable table",), b"case,subject\na,\xff\n", "subjects.csv")
_raw("subjects.csv with other columns", ("needs a 'case'",), b"x,y\na,p\n", "subjects.csv")


def _link(task, target):
    (task / "imagesTr" / "a.nii.gz").unlink()
    (task / "imagesTr" / "a.nii.gz").symlink_to(target)


def _grown(path):
    path.touch()
    os.truncate(path, 100 << 30)


def _pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


for _name, _said, _spoil in (
    ("a link that leads out", ("dataset.json", "outside the task folder"),
     lambda task: _link(task, "/etc/passwd")),
    ("a loop of links", ("dataset.json", "cannot be followed"),
     lambda task: _link(task, task / "imagesTr" / "a.nii.gz")),
    ("dataset.json of 100 GB", ("dataset.json", "too large"),
     lambda task: _grown(task / "dataset.json")),
    ("dataset.json a named pipe", ("no task",), lambda task: _pipe(task / "dataset.json")),
    ("dataset.json without permission", ("dataset.json", "cannot be read: Permission denied"),
     lambda task: _forbid(task / "dataset.json")),
    ("a task folder without permission", ("Permission denied",), _forbid),
):  # fmt: skip
    _case("dataset.json", _name, _said, _spoil)
_case("subjects.csv", "subjects.csv of 100 GB", ("subjects.csv", "too large"),
      lambda task: _grown(task / "subjects.csv"))  # fmt: skip
_case("subjects.csv", "subjects.csv without permission", ("subjects.csv", "Permission denied"),
      lambda task: ((task / "subjects.csv").touch(), _forbid(task / "subjects.csv")))  # fmt: skip
_case("subjects.csv", "subjects.csv a named pipe", ("subjects.csv", "not a regular file"),
      lambda task: _pipe(task / "subjects.csv"))  # fmt: skip


# --- archives ------------------------------------------------------------------------------


def _archive(name, said, content, right=True):
    def recipe(folder, given):
        path = folder / "archive.tar"
        path.write_bytes(content() if callable(content) else content)
        digest = hashlib.md5(path.read_bytes()).hexdigest() if right else "0" * 32
        download._published = lambda task: (path.as_uri(), digest)
        return "data", "download", TASK, "--root", folder / "deep" / "root"

    _add("An archive", f"archive: {name}", said, recipe)


def _member(name, content):
    return archive((f"{TASK}/dataset.json", DESCRIPTION), (name, content))


def _device():
    info = tarfile.TarInfo()
    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 5
    return info


def _sparse():
    """A member of 1 TB that holds no byte."""
    info = tarfile.TarInfo(f"{TASK}/evil")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[482:483] = b"\0"
    block[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return archive((f"{TASK}/dataset.json", DESCRIPTION))[:1024] + bytes(block) + bytes(1024)


_EVIL = ("has a member", "not a plain file inside")
_archive("a member with ..", _EVIL, _member(f"{TASK}/../../evil", b"evil"))
_archive("an absolute member", _EVIL, _member("/tmp/mvl-evil", b"evil"))
_archive("a member beside the task", _EVIL, _member("elsewhere/evil", b"evil"))
_archive("a symbolic link", _EVIL, _member(f"{TASK}/evil", link(tarfile.SYMTYPE, "/etc/passwd")))
_archive("a hard link", _EVIL, _member(f"{TASK}/evil", link(tarfile.LNKTYPE, "/etc/passwd")))
_archive("a named pipe", _EVIL, _member(f"{TASK}/evil", link(tarfile.FIFOTYPE, "")))
_archive("a device", _EVIL, _member(f"{TASK}/evil", _device()))
_archive("a sparse member of 1 TB", _EVIL, _sparse)
_archive("packed by gzip, a bomb", ("not a sound tar",), lambda: gzip.compress(bytes(64 << 20)))
_archive(
    "cut off", ("not a sound tar",), archive((f"{TASK}/dataset.json", DESCRIPTION * 99))[:9000]
)
_archive("a web page", ("not a sound tar",), b"<html>log in first</html>" * 100)
_archive("without dataset.json", ("no Task04_Hippocampus/dataset.json",),
         archive((f"{TASK}/imagesTr/x", b"x")))  # fmt: skip
_archive("another MD5", ("has MD5", "expected 000"), _member(f"{TASK}/x", b""), right=False)


# --- a language model's block --------------------------------------------------------------

_LLAMA = json.loads(stages.LLAMA.removeprefix("random:"))


def _block(name, said, weights, file="model.safetensors", config=_LLAMA, spoil=None):
    """A checkpoint; `spoil` may do something more to its folder."""

    def recipe(folder, given):
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        (folder / "config.json").write_bytes(text)
        (folder / file).write_bytes(weights)
        if spoil:
            spoil(folder)
        return "block", "extract", f"path:{folder}", "-o", folder / "out"

    _add("A language model's block", f"block: {name}", said, recipe)


def _tensors(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _at(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


_DAMAGED = ("model.safetensors", "is damaged")
_block("a header longer than the file", _DAMAGED, _tensors({}, length=1 << 40))
_block("a header of 2^64 bytes", _DAMAGED, _tensors({}, length=2**64 - 1))
_block("a header that is no JSON", ("model.safetensors", "not readable JSON"), _tensors(b"{"))
_block("a header nested 100,000 times", ("not readable JSON",), _tensors(b"[" * 100_000))
_block("overlapping tensors", _DAMAGED, _tensors({"a": _at(0, 16, [4]), "b": _at(8, 16)}))
_block("a gap", _DAMAGED, _tensors({"a": _at(0, 4, [1]), "b": _at(8, 16)}))
_block("tensors beyond the file", _DAMAGED, _tensors({"a": _at(0, 1 << 40, [1 << 38])}))
_block("negative offsets", _DAMAGED, _tensors({"a": _at(-8, 0), "b": _at(0, 16, [4])}))
_block("a size that is not the shape's", _DAMAGED, _tensors({"a": _at(0, 16, [1 << 60])}))
_block("an unknown number format", _DAMAGED, _tensors({"a": _at(0, 16, [4], "F33")}))
_block("bytes that nobody owns", _DAMAGED, _tensors({"a": _at(0, 8)}))
_block("five bytes", ("model.safetensors", "truncated"), b"12345")
_block("other tensors", ("no tensor's name",), _tensors({"a": _at(0, 16, [4])}))
_block("pickled weights", ("pickle",), b"cos\nsystem\n", file="pytorch_model.bin")
_block("an index that leads out", ("no safetensors file beside it",),
       json.dumps({"weight_map": {"a": "../a.safetensors"}}).encode(),
       file="model.safetensors.index.json")  # fmt: skip
_INDEX = "model.safetensors.index.json"


def _index(name, said, index, spoil=None):
    _block(name, said, json.dumps(index).encode(), file=_INDEX, spoil=spoil)


_LAYER = [
    f"model.layers.1.{name}.weight"
    for name in (
        *("input_layernorm", "post_attention_layernorm"),
        *(f"self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
]
_index("an index that is a list", (_INDEX, "expected a JSON object"), [])
_index("an index of nothing", (_INDEX, "has no weight_map"), {})
_index("an index of a file that is missing", ("a.safetensors", "is missing"),
       {"weight_map": dict.fromkeys(_LAYER, "a.safetensors")})  # fmt: skip
_index(
    "an index of a tensor that its file lacks",
    ("a.safetensors", "lacks model.layers.1."),
    {"weight_map": dict.fromkeys(_LAYER, "a.safetensors")},
    lambda folder: (folder / "a.safetensors").write_bytes(_tensors({"a": _at(0, 16, [4])})),
)
_block("no weights", ("holds neither model.safetensors nor",), b"", file="README.md")
_block("no config.json", ("there is no config.json in",), b"",
       spoil=lambda folder: (folder / "config.json").unlink())  # fmt: skip
_block("a config.json of 100 GB", ("config.json is too large",), b"",
       spoil=lambda folder: _grown(folder / "config.json"))  # fmt: skip
_block("a config.json that is a list", ("config.json", "expected a JSON object"), b"",
       config=b"[]")  # fmt: skip
_block("a config.json without permission", ("cannot read", "config.json: Permission denied"), b"",
       spoil=lambda folder: _forbid(folder / "config.json"))  # fmt: skip
_block("weights without permission", ("cannot read", "model.safetensors: Permission denied"),
       _tensors({}), spoil=lambda folder: _forbid(folder / "model.safetensors"))  # fmt: skip
_block("a folder without permission", ("Permission denied",), b"", spoil=_forbid)
_block("a config.json that is no JSON", ("config.json", "not readable JSON"), b"", config=b"{")
_block("an unknown family", ("nonsense",), b"", config=_LLAMA | {"model_type": "nonsense"})
_block("a width that is text", ("config.json", "hidden_size"), b"",
       config=_LLAMA | {"hidden_size": "wide"})  # fmt: skip
_block("a width that is negative", ("config.json", "negative"), b"",
       config=_LLAMA | {"hidden_size": -32})  # fmt: skip
_block("heads that do not divide", ("config.json", "attention heads (5)"), b"",
       config=_LLAMA | {"num_attention_heads": 5})  # fmt: skip


# --- a hub ---------------------------------------------------------------------------------


def _hub(name, said, status, body=b"", revision="", **headers):
    """A hub that gives one answer to everything."""

    def recipe(folder, given):
        server = _Server(lambda handler: handler.reply(status, headers, body))
        os.environ |= {"HF_ENDPOINT": server.address, "MVL_CACHE": str(folder / "cache")}

        def ask():
            try:
                return stages.mvl("block", "show", f"hub:owner/name{revision}")
            finally:
                server.close()

        return ask

    _add("A hub", f"hub: {name}", ("hub:owner/name", *said), recipe)


_NAMED = {"X-Repo-Commit": COMMIT, "ETag": '"a"'}
_hub("a model without config.json", ("it has no config.json",), 404)
_hub("a commit without config.json", ("it has no config.json",), 404, revision=f"@{COMMIT}")
_hub("a revision without commit", ("names no commit for main",), 200)
_hub("a config.json of 100 GB", ("config.json is too large",), 200,
     **_NAMED, **{"Content-Length": 100 << 30})  # fmt: skip
_hub("a config.json that breaks off", ("config.json: the connection broke",), 200, b"{",
     **_NAMED, **{"Content-Length": 99})  # fmt: skip
_hub("a config.json that is no JSON", ("config.json is not readable JSON",), 200, b"{", **_NAMED)
_hub("a config.json that is a list", ("config.json: expected a JSON object",), 200, b"[]", **_NAMED)


# --- a run folder --------------------------------------------------------------------------


def _run(name, said, spoil, verb="evaluate"):
    def recipe(folder, given):
        run = folder / "runs" / given.trained.name
        shutil.copytree(given.trained, run)
        spoil(run)
        if verb == "train":
            return lambda: stages.train(given.phantom, run.parent)
        data = ("--root", given.phantom) if verb == "evaluate" else ()
        return verb, run, *data

    _add("A run folder", f"run: {name}", said, recipe)


def _edited(file, *path, **changes):
    """Change values of a run's JSON file; `path` leads to the object, None takes a key out."""

    def spoil(run):
        values = json.loads((run / file).read_text())
        inner = values
        for key in path:
            inner = inner[key]
        inner |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del inner[key]
        (run / file).write_text(json.dumps(values))

    return spoil


def _replaced(file, content):
    return lambda run: (run / file).write_bytes(content)


def _cut(file):
    return lambda run: os.truncate(run / file, (run / file).stat().st_size // 2)


def _resumed(content):
    """The state of a training that is to go on."""

    def spoil(run):
        (run / "trained.json").unlink()
        (run / "state.safetensors").write_bytes(content)

    return spoil


def _other_block(record):
    def spoil(run):
        _edited("config.json", "config", "model", language={"source": stages.LLAMA})(run)
        (run / "block.json").write_text(json.dumps(record))

    return spoil


def _tested(table):
    def spoil(run):
        (run / "done.json").write_text('{"test_cases": 1, "cases_sha256": ""}')
        (run / "cases.csv").write_bytes(table)

    return spoil


_CONFIG, _WEIGHTS, _STATE = "config.json", "model.safetensors", "state.safetensors"
_run("no config.json", ("no config.json",), lambda run: (run / _CONFIG).unlink())
_run("config.json cut off", (_CONFIG, "not readable JSON"), _cut(_CONFIG))
_run("config.json a list", (_CONFIG, "lacks 'config'"), _replaced(_CONFIG, b"[]"))
_run("config.json without config", (_CONFIG, "lacks 'config'"), _edited(_CONFIG, config=None))
_run("of another version", ("protocol version 0",), _edited(_CONFIG, protocol_version=0))
_run(
    "an unknown key",
    (_CONFIG, "unknown key model.depth"),
    _edited(_CONFIG, "config", "model", depth=9),
)
_run("a value of another type", (_CONFIG, "model.width must be a valid integer"),
     _edited(_CONFIG, "config", "model", width="wide"))  # fmt: skip
_run(
    "a value out of range",
    (_CONFIG, "epochs must", "got 0"),
    _edited(_CONFIG, "config", "training", epochs=0),
)
_run("a number that is none", (_CONFIG, "training.weight_decay must be a finite number"),
     _edited(_CONFIG, "config", "training", weight_decay=float("nan")))  # fmt: skip
_run("a number of 400 digits", (_CONFIG, "training.learning_rate must be a finite number"),
     _edited(_CONFIG, "config", "training", learning_rate=10**400))  # fmt: skip
_run("of another version, as a text", ("protocol version '1'",),
     _edited(_CONFIG, protocol_version="1"))  # fmt: skip
_run("task.json without labels", ("task.json", "labels"), _edited("task.json", labels=None))
_run("task.json of another version", ("task.json", "another version"), _edited("task.json", new=1))
_run("split.json without test", ("split.json", "lacks 'test'"), _edited("split.json", test=None))
_run("split.json with a number", ("split.json", "no split"), _edited("split.json", test=7))
_run("another split", ("split:", "now in test"), _edited("split.json", test=["x"]))
_run("identity.json without subjects", ("identity.json", "lacks 'subjects'"),
     _edited("identity.json", subjects=None))  # fmt: skip
_run("weights missing", (_WEIGHTS, "cannot be read"), lambda run: (run / _WEIGHTS).unlink())
_run("weights cut off", (_WEIGHTS, "cannot be read"), _cut(_WEIGHTS))
_run("weights with a lying header", (_WEIGHTS, "cannot be read"),
     _replaced(_WEIGHTS, _tensors({}, length=1 << 40)))  # fmt: skip
_run("weights of another model", (_WEIGHTS, "of another model"),
     _replaced(_WEIGHTS, _tensors({"a": _at(0, 16, [4])})))  # fmt: skip
_run("training not ended", ("training has not ended",), lambda run: (run / "trained.json").unlink())
_run("another block", ("another block",), _other_block({"sha256": "0" * 64}))
_run("block.json a list", ("block.json", "lacks 'sha256'"), _other_block([]))
_run("a table that is empty", ("cases.csv", "not a readable table"), _tested(b""))
_run("a table without columns", ("cases.csv", "lacks the column"), _tested(b"case\na\n"))
_run("a table that is no text", ("cases.csv", "not a readable table"), _tested(b"\xff\xfe\0\0\xff"))
_run("a table without metrics, verified", ("cases.csv", "lacks the column"), _tested(b"case\na\n"),
     "verify")  # fmt: skip
_run("done.json a list, verified", ("done.json", "lacks"), _replaced("done.json", b"[]"), "verify")
_run("a table of 100 GB", ("cases.csv", "too large"),
     lambda run: (_tested(b"")(run), _grown(run / "cases.csv")))  # fmt: skip
_run("a state that is no safetensors", (_STATE, "delete it to start anew"),
     _resumed(b"\xff" * 99), "train")  # fmt: skip
_run("a state with a lying header", (_STATE, "delete it to start anew"),
     _resumed(_tensors({}, length=1 << 40)), "train")  # fmt: skip
_run("a state of another version", (_STATE, "delete it to start anew"),
     _resumed(_tensors({"a": _at(0, 16, [4])})), "train")  # fmt: skip


def _saved(name, said, **values):
    def recipe(folder, given):
        volumes.make_task(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "medvisionllama"} | values))
        return "predict", volumes.image_of(folder), "--run", folder, "-o", folder / "out.nii.gz"

    _add("A saved model", f"saved model: {name}", said, recipe)


def _without_task(folder, given):
    volumes.make_task(folder)
    Run.load(given.trained).model.save_pretrained(folder / "model")
    image = volumes.image_of(folder)
    return "predict", image, "--run", folder / "model", "-o", folder / "out.nii.gz"


_add("A saved model", "saved model: of no task", ("/model does not say how an image",),
     _without_task)  # fmt: skip
_saved("of another format", ("format version 99",), format_version=99)
_saved("a missing key", ("config.json is damaged: missing key",), format_version=1)


def _committed(name, said, spoil):
    def recipe(folder, given):
        volumes.make_task(folder)
        shutil.copytree(BEST, folder / "model")
        spoil(folder / "model")
        image = volumes.image_of(folder)
        return "predict", image, "--run", folder / "model", "-o", folder / "out.nii.gz"

    _add("A saved model", f"saved model: {name}", said, recipe)


_committed("an unknown key", ("config.json is damaged: unknown key new",),
           _edited("config.json", new=1))  # fmt: skip
_committed("other weights", (_WEIGHTS, "vouches for"),
           _replaced(_WEIGHTS, _tensors({"a": _at(0, 16, [4])})))  # fmt: skip
_committed("weights missing", (_WEIGHTS, "cannot be read"),
           lambda model: (model / _WEIGHTS).unlink())  # fmt: skip


# --- profiles and the command's own values --------------------------------------------------


def _profile(name, said, change):
    def recipe(folder, given):
        (folder / "profiles").mkdir()
        path = folder / "profiles" / "smoke.yaml"
        text = (stages.ROOT / "profiles" / "smoke.yaml").read_text()
        path.write_bytes(change(text).encode())
        return lambda: load_profile("smoke", folder)

    _add("A profile", f"profile: {name}", ("smoke.yaml", *said), recipe)


_profile("an unknown key", ("unknown key colour",), lambda text: text + "colour: red\n")
_profile("a missing key", ("lacks epochs",), lambda text: text.replace("epochs: 2", ""))
_profile(
    "a value of another type", ("epochs must be",), lambda t: t.replace("epochs: 2", "epochs: two")
)
_profile("a task that is none", ("tasks.0 must be", "Task09_Spleen"),
         lambda t: t.replace("tasks: [", "tasks: [Task9_Spleen, "))  # fmt: skip
_profile("no epoch", ("epochs must be", "1, got 0"), lambda t: t.replace("epochs: 2", "epochs: 0"))
for _key, _value, _wanted in (
    ("grid", "[16, 24]", "at least 3 items"),
    ("seeds", "[a]", "seeds.0 must be a valid integer"),
    ("fit", "stretch", "must be 'pad' or 'resize'"),
    ("phantom_scale", ".nan", "must be"),
    ("fusion_arms", "[111]", "fusion_arms.0 must be a valid string"),
):
    _profile(
        f"{_key} {_value}",
        (_key, _wanted),
        lambda text, key=_key, value=_value: re.sub(f"(?m)^{key}:.*", f"{key}: {value}", text),
    )
_profile("no YAML", ("not readable YAML",), lambda text: text + "a: [\n")
_profile("nested 100,000 times", ("not readable YAML",), lambda text: "[" * 100_000)
_profile("a list", ("root must be",), lambda text: "- a\n- b\n")


def _asked(name, said, *words):
    def recipe(folder, given):
        return lambda: stages.train(given.phantom, folder / "runs", *words)

    _add("The command line", f"asked for: {name}", said, recipe)


_asked("a batch of 0 cases", ("batch_size must be", "got 0"), "--batch-size", "0")
_asked("a grid that the patch does not divide", ("(7, 7, 7)",), "--grid", "7", "7", "7")
_asked("a grid that no memory holds", ("out of memory",), *["--grid", *["80000"] * 3])
_asked(
    "a grid that no number holds",
    ("grid.0 must be less than 2147483648",),
    "--grid",
    str(10**30),
    "8",
    "8",
)
_asked("a learning rate of 0", ("learning_rate must be", "got 0.0"), "--learning-rate", "0")
_asked("a task of 300 letters", ("cannot look into", "File name too long"), "--task", "x" * 300)
_asked("a task that is not there", ("no task Nowhere",), "--task", "Nowhere")


def _answered(name, said, *words):
    """Something else that is asked of the command; a word "RUN" stands for a trained run."""

    def recipe(folder, given):
        volumes.make_task(folder)
        places = {"IMAGE": volumes.image_of(folder), "RUN": given.trained, "HERE": folder}
        places["DATA"] = given.phantom
        return [places.get(word, word) for word in words]

    _add("The command line", f"asked for: {name}", said, recipe)


_PREDICT = ("predict", "IMAGE", "--run", "RUN", "-o")
_answered("a segmentation as a picture", ("out.png does not end in",), *_PREDICT, "out.png")
_answered("a segmentation in place of its image", ("the image itself",), *_PREDICT, "IMAGE")
_SUITE = ("suite", "run", "tiny", "--root", "DATA", "--results", "HERE")
_answered("a suite of no epoch", ("epochs must be", "got 0"), *_SUITE, "--epochs", "0")
_answered("a shard of none", ("shard 1/0",), *_SUITE, "--shard", "1/0")
_answered("a shard that is no share", ("--shard one: expected I/N",), *_SUITE, "--shard", "one")
_answered("the table of a suite without a run", ("no cell of suite tiny is done",),
          *("suite", "table", "tiny", "--root", "DATA", "--results", "HERE"))  # fmt: skip


def _table_of_reference(name, content):
    def recipe(folder, given):
        shutil.copytree(REFERENCE, folder / "reference", ignore=shutil.ignore_patterns("best"))
        (folder / "reference" / name).write_bytes(content)
        return lambda: reference.curves_table(folder / "reference")

    return recipe


for _file, _name, _content, _fault in (
    ("curves.csv.gz", "cut off", gzip.compress(bytes(9999))[:20], "not a readable table"),
    ("curves.csv.gz", "not packed", b"fingerprint,epoch", "not a readable table"),
    ("curves.csv.gz", "of other columns", gzip.compress(b"a,b\n1,2\n"), "lacks the column"),
    ("validation.csv", "empty", b"", "not a readable table"),
    ("curves.csv.gz", "a bomb", gzip.compress(bytes(512 << 20), 1), "too large"),
):
    _add("The reference", f"reference: {_file} {_name}", (_file, _fault),
         _table_of_reference(_file, _content))  # fmt: skip


def _of_another_version(folder, given):
    shutil.copytree(REFERENCE, folder / "reference", ignore=shutil.ignore_patterns("best"))
    path = folder / "reference" / "summary.csv"
    reference.read_table(path).assign(protocol_version=0).to_csv(path, index=False)
    return lambda: reference.study_page(folder / "reference")


_add("The reference", "reference: summary.csv of another version",
     ("summary.csv", "protocol version 0"), _of_another_version)  # fmt: skip


def strange_names(folder, given):
    """Use a sound task and image whose names are no text; returns the two exit statuses."""
    task = folder / os.fsdecode(b"t\xffsk")
    volumes.make_task(task)
    output = task / os.fsdecode(b"\xfe.nii.gz")
    words = ("predict", volumes.image_of(task), "--run", given.trained, "-o", output)
    words += ("--anyway",)  # this task is unlike the phantom that was trained on
    return stages.mvl("data", "check", task), stages.mvl(*words)
