"""Downloads, from a server on this machine: resumed, checked, unpacked in one folder alone."""

import fcntl
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

TASK = "Task04_Hippocampus"
DESCRIPTION = json.dumps(
    {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": []}
).encode()
#: More than one block, so that a connection can break off in the middle.
VOXELS = bytes(range(256)) * 12_000


def archive(*members):
    """A tar of (name, content) pairs; content may be a ready `TarInfo` in place of bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
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

    def published(task_name):
        assert task_name == TASK
        return server.url, hashlib.md5(server.body).hexdigest()

    monkeypatch.setattr(module, "_published", published)
    yield server
    server.shutdown()
    server.server_close()


def names_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


WHOLE = [f"{TASK}/dataset.json", f"{TASK}/imagesTr/x.nii.gz"]


def test_a_length_that_is_no_number_is_told_in_a_sentence(server, tmp_path):
    server.length = "much"
    with pytest.raises(DataError, match="the server gives its length as 'much'"):
        download(TASK, tmp_path / "root", progress=False)


def test_a_server_that_hangs_up_is_told_in_a_sentence(server, tmp_path):
    server.silent = True
    with pytest.raises(DataError, match="it broke off .* run the command again"):
        download(TASK, tmp_path, progress=False)


def test_a_download_is_whole_and_leaves_nothing_else(server, tmp_path):
    folder = download(TASK, tmp_path / "root", progress=False)
    assert folder == find_task(TASK, tmp_path / "root")
    assert names_in(tmp_path / "root") == WHOLE
    assert (folder / "imagesTr/x.nii.gz").read_bytes() == VOXELS
    assert download(TASK, tmp_path / "root", progress=False) == folder
    assert len(server.ranges) == 1  # what is there is not fetched again


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_goes_on_and_is_never_taken_for_whole(server, tmp_path, resumes):
    server.cut, server.resumes = 2_000_000, resumes
    with pytest.raises(DataError, match="2,000,000 of .* run the command again"):
        download(TASK, tmp_path, progress=False)
    with pytest.raises(DataError, match="no task"):
        find_task(TASK, tmp_path)
    download(TASK, tmp_path, progress=False)
    assert server.ranges == [None, "bytes=2000000-"]
    assert names_in(tmp_path) == WHOLE


def test_one_that_was_killed_after_the_last_byte_goes_on(server, tmp_path):
    (tmp_path / f".{TASK}.tar.part").write_bytes(GOOD)
    (tmp_path / f".{TASK}.unpacking").mkdir()
    (tmp_path / f".{TASK}.unpacking/half").write_bytes(b"half")
    download(TASK, tmp_path, progress=False)
    assert names_in(tmp_path) == WHOLE


def test_a_wrong_md5_is_thrown_away(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_published", lambda _: (server.url, "0" * 32))
    with pytest.raises(DataError, match="expected 000.* thrown away"):
        download(TASK, tmp_path, progress=False)
    assert names_in(tmp_path) == []


def test_a_part_of_something_else_cannot_become_the_archive(server, tmp_path):
    (tmp_path / f".{TASK}.tar.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="MD5"):
        download(TASK, tmp_path, progress=False)
    download(TASK, tmp_path, progress=False)
    assert names_in(tmp_path) == WHOLE


def link(kind, target):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        (f"{TASK}/../../evil", b"evil"),
        ("../evil", b"evil"),
        ("/tmp/mvl-evil", b"evil"),
        ("elsewhere/evil", b"evil"),
        (f"{TASK}/link", link(tarfile.SYMTYPE, "/etc/passwd")),
        (f"{TASK}/link", link(tarfile.SYMTYPE, "dataset.json")),
        (f"{TASK}/hard", link(tarfile.LNKTYPE, f"{TASK}/dataset.json")),
        (f"{TASK}/pipe", link(tarfile.FIFOTYPE, "")),
        (f"{TASK}/device", link(tarfile.CHRTYPE, "")),
    ],
    ids=lambda member: member[0],
)
def test_a_member_that_leads_out_or_is_no_file_is_refused(server, tmp_path, member):
    server.body = archive((f"{TASK}/dataset.json", DESCRIPTION), member)
    root = tmp_path / "deep" / "place"
    with pytest.raises(DataError, match="not a plain file inside"):
        download(TASK, root, progress=False)
    assert not (root / TASK).exists()
    assert names_in(tmp_path) == [f"deep/place/.{TASK}.tar.part"]


@pytest.mark.parametrize(
    "body, reason",
    [
        (archive((f"{TASK}/imagesTr/x.nii.gz", VOXELS)), "no Task04_Hippocampus/dataset.json"),
        (b"<html>log in first</html>", "not a sound tar"),
        (GOOD[:1_000_000], "not a sound tar"),
    ],
)
def test_an_archive_that_is_none_is_refused(server, tmp_path, body, reason):
    server.body = body
    with pytest.raises(DataError, match=reason):
        download(TASK, tmp_path, progress=False)
    assert not (tmp_path / TASK).exists()


def test_without_network_one_sentence_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_published", lambda _: ("http://127.0.0.1:9/x.tar", "0" * 32))
    with pytest.raises(DataError) as caught:
        download(TASK, tmp_path, progress=False)
    message = str(caught.value)
    for part in ("http://127.0.0.1:9/x.tar", "MVL_DATA_ROOT", f"mvl data phantom {TASK}"):
        assert part in message
    assert "\n" not in message


def test_an_error_of_the_server_is_one_sentence(tmp_path, server, monkeypatch):
    server.body = b""
    with pytest.raises(DataError, match="the server answers HTTP Error 416"):
        download(TASK, tmp_path, progress=False)


def test_nothing_is_overwritten(server, tmp_path):
    with pytest.raises(DataError, match="no download of 'Task99"):
        download("Task99", tmp_path)
    (tmp_path / "a" / TASK).mkdir(parents=True)
    with pytest.raises(DataError, match="without a dataset.json"):
        download(TASK, tmp_path / "a", progress=False)
    make_phantom(TASK, tmp_path / "b", cases=1, scale=0.3, progress=False)
    with pytest.raises(DataError, match="synthetic phantom"):
        download(TASK, tmp_path / "b", progress=False)
    assert server.ranges == []


def test_two_downloads_at_once_do_not_mix(server, tmp_path):
    with open(tmp_path / f".{TASK}.tar.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            download(TASK, tmp_path, progress=False)


@pytest.mark.parametrize("ended", ["well", "with a wrong MD5"])
def test_one_that_ends_between_open_and_lock_is_seen(server, tmp_path, monkeypatch, ended):
    """The file that was opened is then no longer the one that bears the name."""
    part, flock, calls = tmp_path / f".{TASK}.tar.part", fcntl.flock, []

    def late(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            part.unlink()
            if ended == "well":
                module._unpack(whole, tmp_path / TASK, progress=False)
        flock(file, operation)

    whole = tmp_path / "whole.tar"
    whole.write_bytes(GOOD)
    monkeypatch.setattr(fcntl, "flock", late)
    folder = download(TASK, tmp_path, progress=False)
    assert len(calls) > 1
    assert len(server.ranges) == (0 if ended == "well" else 1)
    assert (folder / "imagesTr/x.nii.gz").read_bytes() == VOXELS
    assert names_in(tmp_path) == sorted([*WHOLE, whole.name])


def test_one_that_is_about_to_end_keeps_its_file(server, tmp_path):
    """It has put the folder in place and is to remove the partial file itself."""
    part = tmp_path / f".{TASK}.tar.part"
    folder = download(TASK, tmp_path, progress=False)
    with module._alone(part):
        assert download(TASK, tmp_path, progress=False) == folder
        part.unlink()
    part.touch()  # of one that was killed there
    assert download(TASK, tmp_path, progress=False) == folder
    assert names_in(tmp_path) == WHOLE


def test_a_root_that_cannot_be_written_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write .* choose another root"):
        download(TASK, tmp_path / "file", progress=False)


@pytest.mark.slow
def test_every_task_has_a_published_archive():
    """MONAI's tables know all ten; the network is not asked."""
    for name in module.TASKS:
        url, md5 = module._published(name)
        assert url.startswith("https://") and url.endswith(f"{name}.tar") and len(md5) == 32
