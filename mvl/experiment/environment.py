"""What a result may depend on besides its configuration: versions, device, threads, commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mvl.config import ExperimentConfig
from mvl.experiment.training import processes
from mvl.files import REPOSITORY


def environment(config: ExperimentConfig) -> dict[str, Any]:
    """The content of environment.json."""
    packages = ("torch", "monai", "transformers", "numpy", "scipy", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": config.training.precision,
        "threads": torch.get_num_threads(),
        "processes": processes().num_processes,
        "commit": _commit(),
    }


def _cpu():
    """The processor's kind: maths libraries choose their code by it, and with it the last bits."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or "unknown"
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    entries = {key.strip(): value.strip() for key, value in pairs}
    names = ("vendor_id", "cpu family", "model", "stepping")
    return " ".join(entries[name] for name in names if name in entries) or "unknown"


def _commit():
    """The repository's commit, with "+" where files differ from it; None outside a checkout."""

    def git(*arguments):
        command = ["git", "-C", os.fspath(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "mvl") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def joined(before: Any, now: Any) -> Any:
    """An environment, or an entry of it, of a training that was resumed elsewhere."""
    if isinstance(before, dict) and isinstance(now, dict):
        return now | {key: joined(value, now.get(key)) for key, value in before.items()}
    if before == now or str(before).endswith(f", then {now}"):
        return before
    return f"{before}, then {now}"
