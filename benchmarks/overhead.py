"""What the suite itself costs before it does anything: `import mvl` and `mvl --help`.

python benchmarks/overhead.py
"""

import os
import subprocess
import sys
import time

import common

REPEATS = 5
LOADED = "import mvl, sys; print(sum(m in sys.modules for m in ('torch', 'monai')))"


def main():
    common.record({f"overhead_{key}": value for key, value in measure().items()})


def measure():
    """dict of seconds, and of how many of torch and MONAI `import mvl` loads."""
    return {
        "import_s": best("-c", "import mvl"),
        "help_s": best("-m", "mvl", "--help"),
        "import_loads_torch_or_monai": int(python("-c", LOADED)),
    }


def best(*arguments):
    """Wall time of the quickest of some processes of Python."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        python(*arguments)
        times.append(time.perf_counter() - started)
    return min(times)


def python(*arguments):
    """What Python says when it is run with arguments, with this checkout's package."""
    environment = os.environ | {"PYTHONPATH": str(common.HERE.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


if __name__ == "__main__":
    main()
