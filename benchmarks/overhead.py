"""What the suite itself costs before it does anything: `import mvl` and `mvl --help`.

python benchmarks/overhead.py
"""

import resource
import subprocess
import sys

import common

LOADED = "import mvl, sys; print(sum(m in sys.modules for m in ('torch', 'monai')))"


def main():
    said = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    common.record(
        {
            "overhead_import_s": best("-c", "import mvl"),
            "overhead_help_s": best("-m", "mvl", "--help"),
            "overhead_import_loads_torch_or_monai": int(said.stdout),
        }
    )


def best(*arguments):
    """Processor time of the quickest of five processes."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


if __name__ == "__main__":
    main()
