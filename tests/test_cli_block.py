"""`mvl block` as a user meets it."""

import pytest
import torch
from safetensors.torch import load_file

from mvl.blocks.extraction import block_reference
from mvl.blocks.families import FAMILIES
from mvl.cli import main
from mvl.config import LanguageConfig
from mvl.data.task_data import open_task
from mvl.errors import BlockError
from mvl.experiment.run import run_folder

PACKAGE = "package:all-minilm-l6-v2"
#: BERT's layer at width 384 and MLP width 1536, by hand: four square maps and the MLP, with
#: biases, and two norms.
WEIGHTS = 4 * (384 * 384 + 384) + (384 * 1536 + 1536) + (1536 * 384 + 384) + 2 * 2 * 384


def test_list_names_families_and_what_needs_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MVL_CACHE", str(tmp_path))
    kept = tmp_path / "blocks" / "owner--a--b@0123" / "layer3-3-float32"
    kept.mkdir(parents=True)
    assert main(["block", "list"]) == 0
    families, sources = capsys.readouterr().out.splitlines()
    assert families == "families: " + ", ".join(FAMILIES)
    assert PACKAGE in sources.removeprefix("sources here: ").split(", ")
    (kept / "model.safetensors").touch()
    assert main(["block", "list"]) == 0
    assert capsys.readouterr().out.endswith(", hub:owner/a--b@0123\n")


def test_show_tells_the_sizes(capsys):
    assert main(["block", "show", PACKAGE, "--layer", "2"]) == 0
    shown = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["source"] == PACKAGE and shown["family"] == "bert"
    assert shown["hidden_size"] == "384" and shown["model_layers"] == "6"
    assert shown["block_parameters"] == f"{WEIGHTS:,}"
    assert shown["block_bytes"] == f"{4 * WEIGHTS:,}"


def test_an_extracted_block_is_its_sources_layer(tmp_path, capsys, tiny, phantom):
    revision = block_reference(LanguageConfig(source=PACKAGE, layer=2))["revision"]
    assert main(["block", "extract", PACKAGE, "--layer", "2", "-o", str(tmp_path / "b")]) == 0
    told, source = capsys.readouterr().out.splitlines()
    assert source == f"path:{tmp_path / 'b'}"
    copied = load_file(tmp_path / "b" / "model.safetensors")
    assert {name.partition("layer.")[2].split(".")[0] for name in copied} == {"2"}
    assert sum(t.numel() for t in copied.values()) == WEIGHTS
    assert all(t.dtype == torch.float32 for t in copied.values())
    names = set()
    for origin in (PACKAGE, source):
        language = LanguageConfig(source=origin, layer=2)
        reference = block_reference(language)
        assert told == f"SHA-256 {reference['sha256']}" and reference["revision"] == revision
        config = tiny(model={"language": language})
        names.add(run_folder(config, open_task(config.data, 0, phantom, progress=False), "runs"))
    assert len(names) == 1  # a run with the copy is a run with the source
    with pytest.raises(BlockError, match="layer 2"):
        block_reference(LanguageConfig(source=source, layer=3))
