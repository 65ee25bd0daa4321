"""What a trained model loses without its block, on models whose use of it is known."""

import pytest
import torch

from mvl.config import LanguageConfig
from mvl.data.task_data import open_task
from mvl.experiment.block_use import EDITS, block_use
from mvl.experiment.evaluation import evaluate
from mvl.experiment.run import Run, fit
from tests.experiment.common import LLAMA


@pytest.fixture(scope="module")
def run(tiny, phantom, tmp_path_factory):
    language = LanguageConfig(LLAMA, terms="contribution", scale=2.0, start="identity", skip=False)
    config = tiny(model={"language": language}, training={"epochs": 3, "learning_rate": 1e-2})
    data = open_task(config.data, 0, phantom, progress=False)
    return Run.load(fit(config, data, tmp_path_factory.mktemp("runs"), show=False)), data


def dice_of(table):
    return table.groupby("edit", sort=False)["dice"].mean()


def test_first_row_is_the_model_itself_and_nothing_stays_edited(run):
    model, data = run
    cases = data.side("validation")
    table = block_use(model, cases, show=False)
    assert list(dice_of(table).index) == list(EDITS)
    own = evaluate(model, cases, show=False)
    first = table[table["edit"] == "as trained"]
    assert first["dice"].tolist() == own["dice"].tolist()
    assert model.model.language.edit is None


def test_where_all_goes_through_the_block_it_is_used(run, monkeypatch):
    """The mean and zero then give every token the same update, whatever the volume holds."""
    model, data = run
    part = model.model.language
    monkeypatch.setattr(part, "config", LanguageConfig(LLAMA, residual=False, skip=False))
    seen = []
    hook = part.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        block_use(model, data.side("validation")[:2], show=False)
    finally:
        hook.remove()
    trained, deleted, mean, permuted = torch.cat(seen).unflatten(0, (4, 2))  # of two cases
    assert deleted.std(1).max() < 1e-6
    torch.testing.assert_close(mean, trained.mean((0, 1)).expand_as(mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.sort(1).values, trained.sort(1).values)
    assert not torch.equal(permuted, trained)
