"""Downloads, from a server on this machine: resumed, checked, unpacked in one folder alone."""

import hashlib
import http.server
import io
import json
import tarfile
import threading

import pytest

from mvl.data import download as module
from mvl.data.download import download
from mvl.data.phantom import make_phantom
from mvl.data.task_folder import find_task
from mvl.errors import DataError
from mvl.locks import locked

TASK = "Task04_Hippocampus"
DESCRIPTION = json.dumps(
    {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": []}
).encode()
#: More than one block, so that a connection can break off in the middle.
VOXELS = bytes(range(256)) * 12_000


def archive(*members):
    """A tar of (name, content) pairs; content may be a link, (its kind, its target), or bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                content = b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = archive(
    (f"{TASK}/dataset.json", DESCRIPTION),
    (f"._{TASK}", b"shadow"),
    (f"{TASK}/imagesTr/._x.nii.gz", b"shadow"),
    (f"{TASK}/imagesTr/x.nii.gz", VOXELS),
)


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; breaks off after `cut` bytes of an answer, once."""

    body, cut, resumes, length, silent = GOOD, None, True, None, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/task.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.silent:
            return None
        start = int(wanted[6:-1]) if wanted and server.resumes else 0
        if start >= len(server.body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", server.length or str(len(server.body) - start))
        self.end_headers()
        stop, server.cut = server.cut, None
        self.wfile.write(server.body[start:][:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    published = {TASK: lambda: (server.url, hashlib.md5(server.body).hexdigest())}
    monkeypatch.setattr(module, "_published", lambda name: published[name]())
    yield server
    server.shutdown()
    server.server_close()


def fetch(root):
    return download(TASK, root, progress=False)


def names_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


WHOLE = [f"{TASK}/dataset.json", f"{TASK}/imagesTr/x.nii.gz"]
ARCHIVE = f".{TASK}.download/archive.tar"


def test_a_download_is_whole_and_leaves_nothing_else(server, tmp_path):
    folder = fetch(tmp_path / "root")
    assert folder == find_task(TASK, tmp_path / "root")
    assert names_in(tmp_path / "root") == WHOLE
    assert (folder / "imagesTr/x.nii.gz").read_bytes() == VOXELS
    (tmp_path / "root" / ARCHIVE).parent.mkdir()
    (tmp_path / "root" / ARCHIVE).touch()  # of one that was killed at its very end
    assert fetch(tmp_path / "root") == folder and names_in(tmp_path / "root") == WHOLE
    assert len(server.ranges) == 1  # what exists is not fetched again


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_goes_on_and_is_never_taken_for_whole(server, tmp_path, resumes):
    server.cut, server.resumes = 2_000_000, resumes
    with pytest.raises(DataError, match="2,000,000 of .* run the command again"):
        fetch(tmp_path)
    with pytest.raises(DataError, match="no task"):
        find_task(TASK, tmp_path)
    fetch(tmp_path)
    assert server.ranges == [None, "bytes=2000000-"]
    assert names_in(tmp_path) == WHOLE


def test_one_that_was_killed_after_the_last_byte_goes_on(server, tmp_path):
    half = tmp_path / f".{TASK}.download/unpacked/half"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    (tmp_path / ARCHIVE).write_bytes(GOOD)
    fetch(tmp_path)
    assert server.ranges == [f"bytes={len(GOOD)}-"] and names_in(tmp_path) == WHOLE


def test_what_has_a_wrong_md5_is_deleted(server, tmp_path):
    (tmp_path / ARCHIVE).parent.mkdir()
    (tmp_path / ARCHIVE).write_bytes(b"x" * 1000)  # the part of something else
    with pytest.raises(DataError, match=f"expected {hashlib.md5(GOOD).hexdigest()}"):
        fetch(tmp_path)
    assert not (tmp_path / ARCHIVE).exists() and not (tmp_path / TASK).exists()
    fetch(tmp_path)
    assert names_in(tmp_path) == WHOLE


EVIL = {
    "parent": (f"{TASK}/../../evil", b"evil"),
    "outside": ("../evil", b"evil"),
    "symbolic link": (f"{TASK}/evil", (tarfile.SYMTYPE, "/etc/passwd")),
    "link to a parent": (f"{TASK}/evil", (tarfile.SYMTYPE, "../../evil")),
    "hard link": (f"{TASK}/evil", (tarfile.LNKTYPE, "../evil")),
    "pipe": (f"{TASK}/evil", (tarfile.FIFOTYPE, "")),
    "device": (f"{TASK}/evil", (tarfile.CHRTYPE, "")),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_member_that_leads_out_is_refused(server, tmp_path, kind):
    server.body = archive((f"{TASK}/dataset.json", DESCRIPTION), EVIL[kind])
    with pytest.raises(DataError, match=f"archive of {TASK} cannot be unpacked"):
        fetch(tmp_path / "deep" / "root")
    assert not (tmp_path / "deep" / "root" / TASK).exists()
    assert not [path for path in tmp_path.rglob("evil") if path.is_file()]


def test_a_member_beside_the_task_goes_nowhere(server, tmp_path):
    absolute = str(tmp_path / "evil")  # tar strips the slash
    more = [("elsewhere/evil", b"evil"), (absolute, b"evil")]
    server.body = archive((f"{TASK}/dataset.json", DESCRIPTION), *more)
    fetch(tmp_path / "root")
    assert names_in(tmp_path) == [f"root/{TASK}/dataset.json"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"length": "much"}, "'much'"),
        ({"silent": True}, "it broke off"),
        ({"body": b""}, "HTTP Error 416"),
        ({"server_port": 9}, "refused"),
    ],
)
def test_a_network_fault_is_one_sentence_with_the_ways_on(server, tmp_path, fault, words):
    vars(server).update(fault)
    with pytest.raises(DataError, match=words) as caught:
        fetch(tmp_path / "root")
    for part in (server.url, "run the command again", "MVL_DATA_ROOT", f"mvl data phantom {TASK}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(server, tmp_path):
    with pytest.raises(DataError, match="no download of 'Task99"):
        download("Task99", tmp_path)
    (tmp_path / "a" / TASK).mkdir(parents=True)
    with pytest.raises(DataError, match="without a dataset.json"):
        fetch(tmp_path / "a")
    make_phantom(TASK, tmp_path / "b", cases=1, scale=0.3, progress=False)
    with pytest.raises(DataError, match="synthetic phantom"):
        fetch(tmp_path / "b")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write .* choose another root"):
        fetch(tmp_path / "file")
    assert server.ranges == []


def test_two_downloads_at_once_do_not_mix(server, tmp_path):
    staging = tmp_path / f".{TASK}.download"
    with locked(staging, "holding"), pytest.raises(DataError, match="another process"):
        fetch(tmp_path)
    assert server.ranges == [] and fetch(tmp_path).is_dir()


def test_one_that_another_process_ended_before_the_lock_is_seen(server, tmp_path, monkeypatch):
    def late(folder, what):
        module.locked = locked
        fetch(tmp_path)  # the other process fetches, and removes its folder
        return locked(folder, what)

    monkeypatch.setattr(module, "locked", late)
    assert fetch(tmp_path) == tmp_path / TASK
    assert len(server.ranges) == 1 and names_in(tmp_path) == WHOLE


@pytest.mark.slow
def test_every_task_has_a_published_archive():
    """MONAI's tables know all ten; the network is not asked."""
    for name in module.TASKS:
        url, md5 = module._published(name)
        assert url.startswith("https://") and url.endswith(f"{name}.tar") and len(md5) == 32
