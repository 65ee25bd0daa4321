"""Saved, then loaded: the same logits, or one sentence that says why not."""

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mvl.blocks.language_part import block_reference, extract_block, merge_lora
from mvl.config import PRESETS, DataConfig, LanguageConfig
from mvl.data.tasks import TASKS
from mvl.errors import BlockError, RunError
from mvl.files import sha256_of
from mvl.models import folder as pretrained
from mvl.models.segmenter import MedVisionLlama, build_segmenter
from mvl.models.sizes import LLAMA_3_1_8B, PAPER_GRID

GRID = (16, 24, 16)
TASK = TASKS["Task04_Hippocampus"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTROLS = ("pretrained", "random", "shuffled", "identity", "trainable")


def small(name, **language):
    """A preset's parts, few blocks of them."""
    config = replace(PRESETS[name][0], width=16, heads=2, encoder_depth=2, decoder_depth=1)
    if language:
        config = replace(config, language=replace(config.language, **language))
    return config


def trained(config, seed=3, channels=1, classes=1):
    """A model of which no trained weight is where it started."""
    model = build_segmenter(config, channels, classes, GRID, seed)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def logits(model):
    volume = torch.randn(1, model.description.channels, *GRID, generator=torch.manual_seed(5))
    with torch.no_grad():
        return model(volume)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a v1 model, its folder); the tests copy it before they spoil it."""
    model, folder = trained(small("v1")), tmp_path_factory.mktemp("saved") / "v1"
    model.save_pretrained(folder, TASK, DataConfig(grid=GRID), {"Dice": 0.8431})
    return model, folder


@pytest.fixture
def folder(saved, tmp_path):
    for path in saved[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(folder, **values):
    """Change config.json; `...` drops a key."""
    path = folder / "config.json"
    stored = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in stored.items() if v is not ...}))


# ---------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(small(name), id=name) for name in PRESETS),
        *(pytest.param(small("v1", control=c), id=c) for c in CONTROLS[1:]),
        *(pytest.param(small("v3", control=c), id=f"lora-{c}") for c in CONTROLS[1:]),
        pytest.param(small("v3", dtype="bfloat16", layer=1, layers=2), id="bfloat16"),
    ],
)
def test_a_loaded_model_gives_the_same_logits(config, tmp_path):
    model = trained(config, channels=2, classes=3)
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    before = torch.random.get_rng_state()
    loaded = MedVisionLlama.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.training and loaded.description == model.description
    assert torch.equal(logits(loaded), logits(model))
    grads = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == grads


def test_the_seed_of_a_drawn_block_comes_back(tmp_path):
    """The random block is in no file; another seed would give another."""
    model = trained(small("v1", control="random"), seed=11)
    model.save_pretrained(tmp_path)
    assert not any("block." in key for key in load_file(tmp_path / "model.safetensors"))
    edit(tmp_path, seed=12)
    assert not torch.equal(logits(MedVisionLlama.from_pretrained(tmp_path)), logits(model))


def test_what_is_needed_on_an_image_comes_back(saved):
    about = MedVisionLlama.from_pretrained(saved[1]).description
    assert about.task == TASK and about.data == DataConfig(grid=GRID)


def test_saving_again_replaces_the_model_and_keeps_what_was_known(saved, folder):
    model = MedVisionLlama.from_pretrained(saved[1])
    with torch.no_grad():
        model.position += 1
    model.save_pretrained(folder)
    again = MedVisionLlama.from_pretrained(folder)
    assert again.description.task == TASK and torch.equal(again.position, model.position)


def test_a_model_at_the_papers_size_takes_at_most_12_mb(tmp_path):
    """v1 at 128^3 with a block of Llama-3.1-8B, counted on meta; the header counts, too."""
    config = PRESETS["v1"][0]
    config = replace(config, language=replace(config.language, source=LLAMA_3_1_8B))
    with torch.device("meta"):
        state = build_segmenter(config, 1, 1, PAPER_GRID, seed=0).trained_state()
    assert not any(".block." in name for name in state)
    assert state["position"].shape == (1, 16 * 16 * 16, 64)
    assert state["language.d1.weight"].shape == (4096, 64)
    zeros = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()}
    save_file(zeros, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size <= 12_000_000


# ---------------------------------------------------------------- the block


def test_the_block_may_come_from_elsewhere_if_it_is_the_same(saved, tmp_path):
    model, folder = saved
    extract_block(LanguageConfig(), tmp_path / "block")
    loaded = MedVisionLlama.from_pretrained(folder, block=f"path:{tmp_path / 'block'}")
    assert torch.equal(logits(loaded), logits(model))


def test_another_block_is_refused_by_name(saved, tmp_path):
    extract_block(LanguageConfig(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "block.json").unlink()
    with pytest.raises(BlockError, match="saved with a block of package:all-minilm.*but path:"):
        MedVisionLlama.from_pretrained(saved[1], block=f"path:{tmp_path}")


def test_a_recorded_block_that_changed_is_refused(folder):
    stored = json.loads((folder / "config.json").read_text())
    edit(folder, block=stored["block"] | {"sha256": "0" * 64})
    with pytest.raises(BlockError, match="SHA-256 000000000000"):
        MedVisionLlama.from_pretrained(folder)


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name@main"])
def test_a_block_of_the_hub_is_saved_by_its_commit(saved, tmp_path, monkeypatch, source):
    block = json.loads((saved[1] / "config.json").read_text())["block"]
    block |= {"source": source, "revision": COMMIT}
    monkeypatch.setattr(pretrained, "block_reference", lambda config: block)
    about = replace(saved[0].description, config=small("v1", source=source))
    pretrained.write_folder(tmp_path, about, {"w": torch.zeros(1)})
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model"]["language"]["source"] == f"hub:owner/name@{COMMIT}"
    assert COMMIT in (tmp_path / "README.md").read_text()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format_version": 2}, "format version 2, this mvl reads version 1"),
        ({"format_version": ...}, "format version None"),
        ({"model_type": "llama"}, "no model of mvl"),
        ({"seed": ...}, "missing key seed"),
        ({"more": 1}, "unknown key more"),
        ({"seed": "0"}, "seed must"),
        ({"classes": 0}, "classes 0"),
        ({"channels": True}, "channels True"),
        ({"grid": [16, 24]}, "grid"),
        ({"grid": [16, 24, 24]}, "is not the data's"),
        ({"model": {"widht": 16}}, "unknown key model.widht"),
        ({"task": {"name": "x"}}, "damaged"),
        ({"task": 7}, "damaged"),
        ({"block": None}, "does not say which block"),
        ({"weights_sha256": "0" * 64}, "vouches for"),
    ],
)
def test_a_changed_configuration_is_refused(folder, values, said):
    edit(folder, **values)
    with pytest.raises(RunError, match=re.escape(said)) as caught:
        MedVisionLlama.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(RunError, match="not readable JSON"):
        MedVisionLlama.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(RunError, match="no model of mvl"):
        MedVisionLlama.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match="config.json does not exist"):
        MedVisionLlama.from_pretrained(folder)


def test_tampered_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match="vouches for"):
        MedVisionLlama.from_pretrained(folder)
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        MedVisionLlama.from_pretrained(folder)


def test_pickle_is_never_read(folder):
    """A hub mixin would fall back to it."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RunError, match="model.safetensors cannot be read"):
        MedVisionLlama.from_pretrained(folder)
    torch.save({}, folder / "model.safetensors")
    edit(folder, weights_sha256=sha256_of(folder / "model.safetensors"))
    with pytest.raises(RunError, match="cannot be read"):
        MedVisionLlama.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("position"), "lacks position"),
        (lambda w: w.update(more=torch.zeros(1)), "it has more"),
        (lambda w: w.update(position=w["position"][:, 1:]), "position has shape"),
    ],
)
def test_weights_of_another_model_are_refused_even_if_vouched_for(folder, change, said):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({k: t.contiguous() for k, t in weights.items()}, path)
    edit(folder, weights_sha256=sha256_of(path))
    with pytest.raises(RunError, match=said):
        MedVisionLlama.from_pretrained(folder)


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    model = trained(small("v3"))
    merge_lora(model.language)
    with pytest.raises(RunError, match="before merge_lora"):
        model.save_pretrained(tmp_path)
    model = trained(small("vit"))
    for fault, said in [
        ({"data": DataConfig(grid=(16, 16, 16))}, "grid"),
        ({"task": TASKS["Task01_BrainTumour"]}, "channels"),
    ]:
        with pytest.raises(RunError, match=said):
            model.save_pretrained(tmp_path, **fault)
    model.description = None
    with pytest.raises(RunError, match="build_segmenter"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the card


def test_the_card_tells_source_licence_data_results_and_limits(saved):
    card = (saved[1] / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mvl\n")
    for said in (
        "`package:all-minilm-l6-v2`",
        "not in this file",
        "CC-BY-SA 4.0",
        "Antonelli",
        "| Dice | 0.8431 |",
        "not for clinical use",
        "16 x 24 x 16",
    ):
        assert said in card
    assert "own card says Apache-2.0" in card
    assert "SYNTHETIC" not in card and "Meta" not in card


def test_the_cards_header_is_what_the_hub_reads(saved):
    from huggingface_hub import ModelCard

    data = ModelCard.load(saved[1] / "README.md").data
    assert data.library_name == "mvl" and data.pipeline_tag == "image-segmentation"


def test_the_card_of_other_blocks_and_data(tmp_path):
    def card(config, task=None):
        trained(config).save_pretrained(tmp_path, task)
        return (tmp_path / "README.md").read_text()

    assert "## Language block" not in card(small("vit"))
    assert "Not recorded" in card(small("vit"))
    assert "SYNTHETIC" in card(small("vit"), replace(TASK, synthetic=True))
    own = card(small("vit"), replace(TASK, name="Mine"))
    assert "the user's own" in own and "Decathlon" not in own
    assert "derive from the source's" in card(small("v1", control="trainable"))
    for control, said in (("random", "drawn from the experiment's seed"), ("identity", "pass")):
        text = card(small("v1", control=control))
        assert said in text and "No weight of the source" in text and "of its configuration" in text
        assert "licence" not in text.partition("## Training data")[0]
    llama = block_reference(LanguageConfig()) | {"family": "llama", "source": "path:/llama"}
    description = trained(small("v1")).description
    assert "Meta's Llama" in pretrained.model_card(description, llama)


# ---------------------------------------------------------------- the hub, on this machine


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A server that speaks the hub's paths; `hub.status` makes it refuse."""
    from huggingface_hub import constants

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told = re.fullmatch(r"/owner/name/resolve/(main|v1\.0)/([\w.-]+)", self.path)
            path = saved[1] / told[2] if told else None
            status, code = self.server.refusal
            if status == 200 and not told:
                status, code = 404, "RevisionNotFound"
            elif status == 200 and not path.is_file():
                status, code = 404, "EntryNotFound"
            body = path.read_bytes() if status == 200 else b""
            self.server.seen.append((self.path, status))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            if body:
                self.send_header("ETag", f'"{sha256_of(path)}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.refusal, server.seen = (200, None), []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", [None, "v1.0"])
def test_a_model_from_the_hub(hub, saved, revision):
    loaded = MedVisionLlama.from_pretrained("owner/name", revision=revision)
    assert torch.equal(logits(loaded), logits(saved[0]))
    fetched = {path.rsplit("/", 1)[1] for path, _ in hub.seen}
    assert fetched == {"config.json", "model.safetensors"}
    assert all(f"/{revision or 'main'}/" in path for path, _ in hub.seen)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", "accept its licence"),
        (404, "RepoNotFound", "no such model or revision"),
        (404, "RevisionNotFound", "no such model or revision"),
        (404, "EntryNotFound", "has no config.json"),
        (400, None, "the hub"),
    ],
)
def test_the_hubs_refusals_are_one_sentence(hub, monkeypatch, status, code, said):
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettoken")
    hub.refusal = (status, code)
    with pytest.raises(RunError, match=said) as caught:
        MedVisionLlama.from_pretrained("owner/name")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_names_that_cannot_be_and_no_network(monkeypatch):
    with pytest.raises(RunError, match="no folder ./nowhere/at/all"):
        MedVisionLlama.from_pretrained("./nowhere/at/all")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="no folder owner/name.*cannot be reached"):
        MedVisionLlama.from_pretrained("owner/name")


def test_weights_carry_the_format_that_other_readers_ask_for(saved):
    with safe_open(saved[1] / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
