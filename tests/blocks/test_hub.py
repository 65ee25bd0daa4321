"""Single layers from a hub on this machine: bytes sent, faults, secrets, work without network."""

import hashlib

import pytest
import torch

from mvl.blocks.extraction import block_reference, block_sizes
from mvl.blocks.language_part import build_language
from mvl.blocks.sources import open_checkpoint
from mvl.config import LanguageConfig
from mvl.errors import BlockError
from tests.blocks.fake_hub import COMMIT, TOKEN, served
from tests.blocks.test_checkpoints import claim, file_of

#: Bytes of one layer of `sharded`, in float32: 4 x 96 x 96 + 3 x 96 x 200 + 2 x 96 weights.
BLOCK_BYTES = 4 * (4 * 96 * 96 + 3 * 96 * 200 + 2 * 96)
HUB = LanguageConfig(source="hub:owner/name", layer=1)


def headers_of(folder):
    """Bytes of all JSON and safetensors headers of a checkpoint."""
    total = sum(p.stat().st_size for p in folder.glob("*.json"))
    for path in folder.glob("*.safetensors"):
        total += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return total


@pytest.fixture
def hub(sharded, tmp_path, monkeypatch):
    yield from served(sharded[0], tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def local(sharded):
    """{number format: SHA-256} of layer 1, read from the folder."""
    source = f"path:{sharded[0]}"
    return {
        dtype: block_reference(LanguageConfig(source, layer=1, dtype=dtype))["sha256"]
        for dtype in ("float32", "bfloat16")
    }


def test_the_same_block_for_as_many_bytes(hub, sharded, local, tmp_path):
    part = build_language(HUB, 8, seed=0)
    assert hub.sent <= 1.05 * BLOCK_BYTES + headers_of(sharded[0])
    expected = build_language(LanguageConfig(f"path:{sharded[0]}", layer=1), 8, seed=0)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(part.state_dict()[name], tensor)
    reference = block_reference(HUB)
    assert reference["revision"] == COMMIT and reference["sha256"] == local["float32"]
    half = LanguageConfig("hub:owner/name", layer=1, dtype="bfloat16")
    assert block_reference(half)["sha256"] == local["bfloat16"]
    folders = (tmp_path / "cache" / "blocks" / f"owner--name@{COMMIT}").iterdir()
    kept = {f"{path.parent.name}/{path.name}" for folder in folders for path in folder.iterdir()}
    assert kept == {
        f"layer1-1-{dtype}/{name}"
        for dtype in ("float32", "bfloat16")
        for name in ("config.json", "model.safetensors", "block.json")
    }


def test_a_cached_block_of_a_named_commit_needs_no_network(hub, local, tmp_path, monkeypatch):
    pinned = LanguageConfig(source=f"hub:owner/name@{COMMIT}", layer=1)
    assert block_reference(pinned)["sha256"] == local["float32"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = len(hub.hub.requests)
    assert block_reference(pinned)["sha256"] == local["float32"]
    assert len(hub.hub.requests) == asked
    with pytest.raises(BlockError, match=f"127.0.0.1 cannot be reached.*cache.*@{COMMIT}"):
        block_reference(HUB)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BlockError, match="HF_HUB_OFFLINE"):
        block_reference(HUB)


def test_a_pull_requests_revision(hub):
    source = "hub:owner/name@refs/pr/3"
    assert block_reference(LanguageConfig(source=source, layer=1))["revision"] == COMMIT
    with pytest.raises(BlockError, match="no such model or revision"):
        open_checkpoint("hub:owner/name@refs/pr/4")


def test_sizes_are_told_without_weights(hub, sharded):
    sizes = block_sizes("hub:owner/name", layer=1)
    assert sizes["block_bytes"] == BLOCK_BYTES
    assert sizes["model_bytes"] == 4 * sum(p.numel() for p in sharded[1].parameters())
    assert hub.sent < headers_of(sharded[0])


def _alone(hub, tmp_path, weights):
    """Make the hub's model one of a single file."""
    config = (hub.folder / "config.json").read_bytes()
    hub.folder = tmp_path / "alone"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_bytes(config)
    (hub.folder / "model.safetensors").write_bytes(weights)
    return open_checkpoint("hub:owner/name")


def test_a_server_that_ignores_ranges_is_noticed_at_once(hub, tmp_path):
    hub.ranges = False
    checkpoint = _alone(hub, tmp_path, bytes(64 << 20))  # no socket buffer swallows that
    with pytest.raises(BlockError, match="ignores byte ranges"):
        checkpoint.names()
    assert hub.store.sent < 32 << 20


@pytest.mark.parametrize(
    "header",
    [
        {"a": claim(-8, 0), "b": claim(0, 16, (4,))},
        {"a": claim(0, 16)},
        {"a": {"dtype": "F32", "shape": [4]}},
        [],
        b"[" * 100_000,
    ],
)
def test_lying_headers(hub, tmp_path, header):
    checkpoint = _alone(hub, tmp_path, file_of(header))
    with pytest.raises(BlockError, match="damaged|quantised"):
        checkpoint.read(["a"], torch.float32)


def test_a_header_without_end(hub, tmp_path):
    with pytest.raises(BlockError, match="damaged"):
        _alone(hub, tmp_path, file_of(b"", length=2**63)).names()


def test_a_broken_connection_goes_on_where_it_stopped(hub, sharded, local):
    hub.cut = 50_000
    assert block_reference(HUB)["sha256"] == local["float32"]
    assert len(hub.store.requests) > BLOCK_BYTES / hub.cut
    assert hub.sent <= 1.05 * BLOCK_BYTES + headers_of(sharded[0])


def test_a_broken_run_goes_on_where_it_stopped(hub, sharded, local, tmp_path):
    """The connection dies for good on the way; the next run asks for the rest alone."""
    hub.cut, hub.limit = 60_000, BLOCK_BYTES / 2
    with pytest.raises(BlockError, match="broke 5 times.*goes on there"):
        build_language(HUB, 8, seed=0)
    assert BLOCK_BYTES / 2 < hub.sent < BLOCK_BYTES
    assert len(list(tmp_path.rglob("partial"))) == 1
    hub.cut = hub.limit = None
    assert block_reference(HUB)["sha256"] == local["float32"]
    # Headers are read again.
    assert hub.sent <= 1.05 * BLOCK_BYTES + 2 * headers_of(sharded[0])
    assert not list(tmp_path.rglob("partial"))


@pytest.mark.parametrize("what", ["etag", "commit"])
def test_a_file_that_changes_on_the_way_is_noticed(hub, tmp_path, what):
    checkpoint = open_checkpoint("hub:owner/name")
    names = [n for n in checkpoint.names() if n.startswith("model.layers.1.")]
    checkpoint.entries(names)
    setattr(hub, what, "f" * 40)
    with pytest.raises(BlockError, match="changed"), open(tmp_path / "partial", "a+b") as partial:
        checkpoint.read(names, torch.float32, partial)


def test_a_damaged_cache_is_noticed(hub, tmp_path):
    block_reference(HUB)
    weights = next((tmp_path / "cache").rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BlockError, match="delete it"):
        build_language(HUB, 8, seed=0)


@pytest.mark.parametrize(
    ("status", "code", "match"),
    [
        (401, "GatedRepo", "https://huggingface.co/owner/name, then log in"),
        (403, "GatedRepo", "accept its licence"),
        (403, None, "set HF_TOKEN"),
        (404, "RepoNotFound", "no such model"),
        (503, None, "answered 503"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_refusals_are_one_sentence_without_the_token(hub, caplog, late, status, code, match):
    """At the first request, and between configuration and weights."""
    if late:
        checkpoint = open_checkpoint("hub:owner/name")
    hub.status, hub.code = status, code
    with caplog.at_level("DEBUG"), pytest.raises(BlockError, match=match) as caught:
        checkpoint.names() if late else build_language(HUB, 8, seed=0)
    assert "\n" not in str(caught.value)
    assert hub.hub.requests[0][1]["authorization"] == f"Bearer {TOKEN}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert TOKEN not in str(caught.value) + caplog.text


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, capfd, caplog):
    with caplog.at_level("DEBUG"):
        block_reference(HUB)
    assert hub.store.requests
    assert not any("authorization" in headers for _, headers in hub.store.requests)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(TOKEN.encode() in data or b"Signature=" in data for data in files)
    assert TOKEN not in "".join(capfd.readouterr()) + caplog.text


@pytest.fixture
def downloaded(hub, sharded, tmp_path, monkeypatch):
    """Hugging Face's cache as `hf download owner/name` leaves it, and no way to the hub."""
    model = tmp_path / "hf" / "models--owner--name"
    snapshot = model / "snapshots" / COMMIT
    for folder in (model / "blobs", model / "refs", snapshot):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for path in sharded[0].iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        (model / "blobs" / blob).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return snapshot


@pytest.mark.parametrize(
    ("offline", "source"), [(False, "hub:owner/name"), (True, f"hub:owner/name@{COMMIT}")]
)
def test_what_hf_download_left_needs_no_network(downloaded, local, monkeypatch, offline, source):
    """The same block as from the hub: its revision, and its weights' SHA-256."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    reference = block_reference(LanguageConfig(source=source, layer=1))
    assert reference["revision"] == COMMIT and reference["sha256"] == local["float32"]


def test_a_partial_copy_of_another_version_starts_again(hub, local, tmp_path):
    folder = tmp_path / "cache" / "blocks" / f"owner--name@{COMMIT}" / "layer1-1-float32"
    folder.mkdir(parents=True)
    (folder / "partial").write_bytes(b"of another version " * 1000)
    assert block_reference(HUB)["sha256"] == local["float32"]


def test_half_a_download_does_not_pass_for_the_model(downloaded):
    next(downloaded.glob("*.safetensors")).unlink()
    with pytest.raises(BlockError, match="cannot be reached"):
        block_reference(HUB)
