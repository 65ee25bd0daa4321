"""What notebooks show of a model and of what was measured."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mvl.config import DataConfig, LanguageConfig, ModelConfig
from mvl.data.nifti import read_volume
from mvl.data.preparation import Preparation
from mvl.data.task_data import open_task
from mvl.models.activations import activations
from mvl.models.segmenter import build_segmenter
from mvl.show import figures, notebook
from mvl.show.sentences import sentence
from mvl.study.reference import REFERENCE, read_table
from mvl.study.stages import SHOWN_STAGES, stage_auroc

GRID = (24, 24, 24)
SMALL = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}


@pytest.fixture
def model(phantom):
    """A model that is not trained, and what it takes to use it on the phantom."""
    data = open_task(DataConfig(grid=GRID), 0, phantom, progress=False)
    network = build_segmenter(ModelConfig(**SMALL, language=LanguageConfig()), 1, 1, GRID, seed=0)
    preparation = Preparation(data.task, DataConfig(grid=GRID))
    return SimpleNamespace(model=network.eval(), preparation=preparation, data=data)


def test_maps_are_of_the_files_voxels_and_of_the_models_tokens(model):
    case = model.data.side("test")[0]
    row = notebook.activation_row(model, case, "Dice 0.50")
    assert list(row) == ["image", *SHOWN_STAGES.values()]
    volume = model.preparation.load([case], progress=False)[0]
    size = figures.View(*read_volume(case.image)).image.shape
    aurocs = stage_auroc(model.model, [case], model.preparation, show=False)
    aurocs = aurocs.set_index("stage")["auroc_stream"]
    tokens = activations(model.model, volume["image"].as_tensor()[None])
    for stage, name in SHOWN_STAGES.items():
        view = row[name]
        # The phantom is smaller than the grid along every axis: its padding is cut away.
        assert view.heat.shape == view.image.shape == view.truth.shape == size
        norms = tokens[stage].norm(dim=-1)
        assert norms.min() <= view.heat.min() <= view.heat.max() <= norms.max() + 1e-5
        value = aurocs[name]
        assert view.caption == ("no AUROC" if np.isnan(value) else f"AUROC {value:.2f}")
    assert row["image"].heat is None and row["image"].caption == "Dice 0.50"
    # What was cut off in front moves the origin along.
    moved = np.linalg.inv(np.asarray(volume["image"].affine)) @ row["image"].affine
    padded = (np.array(GRID) - size) // 2
    assert np.allclose(moved[:3, 3], padded, atol=1)
    assert volume["label"].sum() == row["image"].truth.sum()


def stages(**arms):
    """Eight subjects whose AUROC at each stage is as given, but for a little noise."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"suite": "language", "arm": arm, "seed": 0, "task": "T", "subject": f"s{k}"}
        | {"case": f"c{k}", "structure": "foreground", "block": "b" * (arm != "none")}
        | {"protocol_version": 1, "synthetic": True, "stage": SHOWN_STAGES[stage]}
        | {"auroc_stream": values[stage] + 0.002 * rng.random()}
        for stage in SHOWN_STAGES
        for arm, values in arms.items()
        for k in range(8)
        if stage in values
    )


def test_the_answer_compares_before_with_after_and_without_with_with():
    pretrained = {"encoder": 0.6, "update": 0.2, "after": 0.8, "decoder": 0.7}
    table = stages(none={"encoder": 0.5, "decoder": 0.9}, pretrained=pretrained)
    lines = notebook.activation_answer(table).data.splitlines()
    assert len(lines) == 3
    assert "pretrained after the block minus pretrained after the encoder is +0.2" in lines[0]
    assert "No verdict: synthetic data" in lines[0]
    said = re.search(
        "pretrained after the decoder minus none after the decoder is (.*?) ", lines[1]
    )
    assert float(said[1]) == pytest.approx(-0.2, abs=0.005)
    assert "No verdict" in lines[1] and lines[0].startswith("- Synthetic data: T, foreground (8")
    assert "none after the encoder 0.50, pretrained after the encoder 0.60, " in lines[2]
    assert "pretrained the block's update 0.20, pretrained after the block 0.80" in lines[2]
    assert "Nothing can be said" in notebook.activation_answer(table.iloc[:0]).data


def test_the_references_answer_is_that_of_its_tables():
    for suite in ("language", "peers", "fusion"):
        rows = read_table(REFERENCE / "contrasts.csv")
        rows = rows[(rows["suite"] == suite) & (rows["metric"] == "dice")]
        expected = [f"- {sentence(row)}" for _, row in rows.iterrows()]
        assert notebook.answer(suite).data.split("\n") == expected and len(expected) > 3
    assert notebook.answer("no such suite").data == "No two arms to compare are there."


def test_a_study_shows_the_reference_then_this_profile(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "show", lambda *things: shown.extend(things))
    cases = notebook.reference_cases("language")
    notebook.study("language", cases[cases["seed"] == 0], ("pretrained", "none"))
    texts = [getattr(thing, "data", thing) for thing in shown]
    profile, reference = (
        texts.index(f"### {name}") for name in ("This profile", "The committed reference")
    )
    assert reference < profile and texts[profile + 1] != texts[reference + 2]
    assert "| pretrained | 27 " in texts[reference + 2] and "1 seed" in texts[profile + 2]
    figures_of = [len(thing.axes) for thing in shown if hasattr(thing, "axes")]
    assert len(figures_of) == 2
    shown.clear()
    notebook.study("language", cases.iloc[:0], ("pretrained", "no such arm"))
    # The reference's heading, text, means and figure; then what to do to train an arm.
    assert len(shown) == 6 and "`language_arms`" in shown[-1]
