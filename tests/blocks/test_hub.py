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
        for name in (".lock", "config.json", "model.safetensors", "block.json")
    }


def test_a_cached_block_of_a_named_commit_needs_no_network(hub, local, monkeypatch):
    pinned = LanguageConfig(source=f"hub:owner/name@{COMMIT}", layer=1)
    assert block_reference(pinned)["sha256"] == local["float32"]
    hub.status = 503
    asked = len(hub.hub.requests)
    assert block_reference(pinned)["sha256"] == local["float32"]
    assert len(hub.hub.requests) == asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BlockError, match="unset the .HF_HUB_OFFLINE"):
        block_reference(LanguageConfig(source="hub:owner/other"))


def test_a_pull_requests_revision(hub):
    source = "hub:owner/name@refs/pr/3"
    assert block_reference(LanguageConfig(source=source, layer=1))["revision"] == COMMIT
    with pytest.raises(BlockError, match="Revision Not Found"):
        open_checkpoint("hub:owner/name@refs/pr/4")


def test_sizes_are_told_without_weights(hub, sharded):
    sizes = block_sizes("hub:owner/name", layer=1)
    assert sizes["block_bytes"] == BLOCK_BYTES
    assert sizes["model_bytes"] == 4 * sum(p.numel() for p in sharded[1].parameters())
    assert hub.sent < headers_of(sharded[0])


def test_a_server_that_ignores_ranges_is_told(hub):
    hub.ranges = False
    with pytest.raises(BlockError, match="does not send ranges"):
        build_language(HUB, 8, seed=0)


def test_a_broken_connection_costs_a_piece(hub, sharded, local, monkeypatch):
    monkeypatch.setattr("mvl.blocks.hub.PIECE", 20_000)
    hub.flaky = True
    assert block_reference(HUB)["sha256"] == local["float32"]
    assert len(hub.broken) > BLOCK_BYTES / 20_000
    assert hub.sent <= 1.5 * (1.05 * BLOCK_BYTES + headers_of(sharded[0]))


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
        (401, "GatedRepo", "GatedRepoError.*owner/name"),
        (404, "RepoNotFound", "Repository Not Found"),
        (503, None, "503 Service Unavailable"),
    ],
)
def test_refusals_are_one_sentence_without_the_token(hub, caplog, status, code, match):
    hub.status, hub.code = status, code
    with caplog.at_level("DEBUG"), pytest.raises(BlockError, match=match) as caught:
        build_language(HUB, 8, seed=0)
    assert "\n" not in str(caught.value)
    assert hub.hub.requests[-1][1]["authorization"] == f"Bearer {TOKEN}"
    assert caught.value.__suppress_context__
    assert TOKEN not in str(caught.value) + caplog.text


def test_no_signature_is_told(hub):
    checkpoint = open_checkpoint("hub:owner/name")
    file = min(checkpoint.names().values())
    with pytest.raises(BlockError, match="416.*/model-") as caught:
        checkpoint._bytes(file, 1 << 40, 2 << 40)
    assert "Signature" not in str(caught.value)


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, capfd, caplog):
    with caplog.at_level("DEBUG"):
        block_reference(HUB)
    assert hub.store.requests
    assert not any("authorization" in headers for _, headers in hub.store.requests)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(TOKEN.encode() in data or b"Signature=" in data for data in files)
    assert TOKEN not in "".join(capfd.readouterr()) + caplog.text


@pytest.fixture
def downloaded(hub, sharded, tmp_path):
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
    hub.status = 503
    return snapshot


@pytest.mark.parametrize(
    ("offline", "source"), [(False, "hub:owner/name"), (True, f"hub:owner/name@{COMMIT}")]
)
def test_what_hf_download_left_needs_no_network(downloaded, local, monkeypatch, offline, source):
    """The same block as from the hub: its revision, and its weights' SHA-256."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    reference = block_reference(LanguageConfig(source=source, layer=1))
    assert reference["revision"] == COMMIT and reference["sha256"] == local["float32"]


def test_half_a_download_does_not_pass_for_the_model(downloaded):
    next(downloaded.glob("*.safetensors")).unlink()
    with pytest.raises(BlockError, match="503"):
        block_reference(HUB)
