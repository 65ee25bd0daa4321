"""Saved, then loaded: the same logits, or one sentence that says why not."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mvl.blocks.extraction import block_reference, extract_block
from mvl.config import PRESETS, DataConfig, LanguageConfig
from mvl.data.tasks import TASKS
from mvl.errors import BlockError, RunError
from mvl.files import sha256_of
from mvl.models import folder as folders
from mvl.models.card import model_card
from mvl.models.folder import load_model, load_trained_state, save_model, trained_state
from mvl.models.segmenter import build_segmenter
from mvl.models.sizes import LLAMA_3_1_8B, PAPER_GRID
from tests.blocks.fake_hub import COMMIT, TOKEN, served
from tests.blocks.merged import merge_adapters

GRID = (16, 24, 16)
TASK = TASKS["Task04_Hippocampus"]


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
    data = DataConfig(grid=GRID, splits=(("somebody", "test"),))  # who is not told on
    save_model(model, folder, TASK, data, {"Dice": 0.8431})
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


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(small(name), id=name) for name in PRESETS),
        *(pytest.param(small("v1", control=c), id=c) for c in ("random", "identity", "matched")),
        pytest.param(small("v3", control="trainable"), id="lora-trainable"),
        pytest.param(small("v3", dtype="bfloat16", layer=1, layers=2), id="bfloat16"),
    ],
)
def test_a_loaded_model_gives_the_same_logits(config, tmp_path):
    model = trained(config, channels=2, classes=3)
    save_model(model, tmp_path / "model")
    names = {"README.md", "config.json", "model.safetensors"}
    assert {p.name for p in (tmp_path / "model").iterdir()} == names
    before = torch.random.get_rng_state()
    loaded = load_model(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.training and loaded.description == model.description
    assert torch.equal(logits(loaded), logits(model))
    grads = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == grads


def test_the_seed_of_a_drawn_block_comes_back(tmp_path):
    """The random block is in no file; another seed would give another."""
    model = trained(small("v1", control="random"), seed=11)
    save_model(model, tmp_path)
    assert not any("block." in key for key in load_file(tmp_path / "model.safetensors"))
    edit(tmp_path, seed=12)
    assert not torch.equal(logits(load_model(tmp_path)), logits(model))


def test_saving_again_replaces_the_model_and_keeps_what_was_known(saved, folder):
    model = load_model(saved[1])
    with torch.no_grad():
        model.position += 1
    save_model(model, folder)
    again = load_model(folder)
    assert again.description.task == TASK and again.description.data == DataConfig(grid=GRID)
    assert torch.equal(again.position, model.position)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # other readers ask for it


def test_all_but_the_block_is_saved(saved):
    host = nn.ModuleDict({"other": nn.Linear(2, 2), "segmenter": saved[0]})
    left_out = host.state_dict().keys() - trained_state(host).keys()
    assert left_out and all(n.startswith("segmenter.language.block.layers.") for n in left_out)


def test_a_model_at_the_papers_size_takes_at_most_12_mb(tmp_path):
    """v1 at 128^3 with a block of Llama-3.1-8B, counted on meta; the header counts, too."""
    config = PRESETS["v1"][0]
    config = replace(config, language=replace(config.language, source=LLAMA_3_1_8B))
    with torch.device("meta"):
        state = trained_state(build_segmenter(config, 1, 1, PAPER_GRID, seed=0))
    assert state["language.d1.weight"].shape == (4096, 64)
    zeros = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()}
    save_file(zeros, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size <= 12_000_000


def test_the_block_may_come_from_elsewhere_if_it_is_the_same(saved, tmp_path):
    model, folder = saved
    extract_block(LanguageConfig(), tmp_path)
    assert torch.equal(logits(load_model(folder, block=f"path:{tmp_path}")), logits(model))
    weights = load_file(tmp_path / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(BlockError, match="block of package:all-minilm.*but path:"):
        load_model(folder, block=f"path:{tmp_path}")


def test_a_block_of_the_hub_is_saved_by_its_commit(saved, tmp_path, monkeypatch):
    source = "hub:owner/name@main"
    block = block_reference(LanguageConfig()) | {"source": source, "revision": COMMIT}
    monkeypatch.setattr(folders, "block_reference", lambda config: block)
    monkeypatch.setattr(folders, "_built", lambda about: saved[0])
    model = trained(small("v1"))
    model.description = replace(model.description, config=small("v1", source=source))
    save_model(model, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model"]["language"]["source"] == f"hub:owner/name@{COMMIT}"
    assert COMMIT in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"format_version": 2}, "format version 2, this mvl reads version 1"),
        ({"model_type": "llama"}, "not a model of mvl"),
        ({"seed": ...}, "damaged: 'seed'"),
        ({"block": None}, "which block"),
        ({"model": {"widht": 16}}, "unknown key model.widht"),
        ({"task": {"name": "x"}}, "damaged"),
        ("{", "not readable JSON"),
        (None, "config.json does not exist"),
    ],
)
def test_a_changed_configuration_is_refused(folder, values, match):
    path = folder / "config.json"
    if isinstance(values, dict):
        edit(folder, **values)
    else:
        path.write_text(values) if values else path.unlink()
    with pytest.raises(RunError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_were_changed_or_pickled_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match="vouches for"):
        load_model(folder)
    torch.save({}, path)
    edit(folder, weights_sha256=sha256_of(path))
    with pytest.raises(RunError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("position"), "a.file is of another model: it lacks position"),
        (lambda w: w.update(more=torch.zeros(1)), "it has more"),
        (lambda w: w.update(position=w["position"][:, 1:]), r"position has shape \(1, 11, 16\)"),
    ],
)
def test_a_state_of_another_model_is_refused(saved, change, match):
    state = dict(trained_state(saved[0]))
    change(state)
    with pytest.raises(RunError, match=match):
        load_trained_state(saved[0], state, "a.file")


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    model = trained(small("v3"))
    merge_adapters(model.language)
    with pytest.raises(RunError, match="changed"):
        save_model(model, tmp_path)
    model = trained(small("vit"))
    for task, data, match in [
        (None, DataConfig(grid=(16, 16, 16)), "grid"),
        (TASKS["Task01_BrainTumour"], None, "channels"),
    ]:
        with pytest.raises(RunError, match=match):
            save_model(model, tmp_path, task, data)
    model.description = None
    with pytest.raises(RunError, match="build_segmenter"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_card_names_source_licence_data_and_results(saved):
    from huggingface_hub import ModelCard

    card = ModelCard.load(saved[1] / "README.md")
    assert card.data.library_name == "mvl" and card.data.pipeline_tag == "image-segmentation"
    for part in ("`package:all-minilm-l6-v2`", "CC-BY-SA 4.0", "| Dice | 0.8431 |", "Apache-2.0"):
        assert part in card.text
    assert "SYNTHETIC" not in card.text and "Meta" not in card.text
    about, block = saved[0].description, block_reference(LanguageConfig())
    assert "SYNTHETIC" in model_card(replace(about, task=replace(TASK, synthetic=True)), None)
    assert "Meta's Llama" in model_card(about, block | {"family": "llama"})
    assert "licence" not in model_card(about, block | {"control": "random"})


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    yield from served(saved[1], tmp_path, monkeypatch)


@pytest.mark.parametrize("revision", [None, "v1.0"])
def test_a_model_from_the_hub(hub, saved, revision):
    loaded = load_model("owner/name", revision)
    assert torch.equal(logits(loaded), logits(saved[0]))
    paths = [path for path, _ in hub.hub.requests if "/resolve/" in path]
    assert paths and all(f"/{revision or 'main'}/" in path for path in paths)


def test_the_hubs_refusals_are_one_sentence(hub):
    hub.status, hub.code = 404, "EntryNotFound"
    with pytest.raises(RunError, match="no folder owner/name.*config.json") as caught:
        load_model("owner/name")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere/at/all", "owner/name"])
def test_names_that_cannot_be_and_no_network(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=f"no folder {name}, and hub:"):
        load_model(name)
