"""How long run_all.sh takes in a fresh clone, and again with nothing changed.

    python benchmarks/commands.py                     # the profile smoke: minutes
    python benchmarks/commands.py --profiles quick    # some 10 minutes

The clone has what is committed, and no results. MVL_DATA_ROOT names the folder with MSD's tasks for
quick; without it quick downloads Task04 in the time that is measured. The environment of this
Python is used, so that no installation is in the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", nargs="+", choices=["smoke", "quick"], default=["smoke"])
    parser.add_argument("--checkout", default=common.HERE.parent, help="what is cloned")
    options = parser.parse_args()
    for profile in options.profiles:
        found = measure(options.checkout, profile)
        common.record({f"commands_{profile}_{key}": value for key, value in found.items()})


def measure(checkout, profile):
    """dict of s and again_s, wall time of the first and of the second run.

    Args:
        checkout: folder of a git repository with a run_all.sh; it is cloned, not changed.
        profile: of run_all.sh.
    """
    # As a user has it, and whatever this process was started with.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONPATH")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"VIRTUAL_ENV": sys.prefix, "PATH": path}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "-q", checkout, clone], check=True)
        for name in ("s", "again_s"):
            started = time.perf_counter()
            subprocess.run(
                [clone / "run_all.sh", "--profile", profile],
                env=environment,
                stdout=sys.stderr,
                check=True,
            )
            seconds[name] = time.perf_counter() - started
    return seconds


if __name__ == "__main__":
    main()
