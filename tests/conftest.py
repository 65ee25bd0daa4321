"""What all tests share: the slow tier, skipped unless asked for."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: runs with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """A data root with a small synthetic Task04: 16 cases of 8 subjects, about 14 x 20 x 14."""
    from mvl.data.phantom import make_phantom

    root = tmp_path_factory.mktemp("phantom")
    make_phantom("Task04_Hippocampus", root, cases=16, scale=0.4, progress=False)
    return root


@pytest.fixture(scope="session")
def tiny():
    """An experiment on `phantom` that trains in a second; `tiny(model={...}, ...)` changes it."""
    from mvl.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig

    def make(seed=0, data=(), model=(), training=()):
        return ExperimentConfig(
            DataConfig(**{"grid": (16, 24, 16)} | dict(data)),
            ModelConfig(
                **{"width": 16, "encoder_depth": 2, "decoder_depth": 1, "heads": 2} | dict(model)
            ),
            TrainingConfig(**{"epochs": 3, "warmup_epochs": 1} | dict(training)),
            seed,
        )

    return make
