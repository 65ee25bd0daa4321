"""Makes the pages that show results again: the README's two sections and the benchmarks' tables.

    python scripts/readme.py

`mvl reference`, `mvl audit table` and the benchmarks make them after they have added results.
"""

import sys
from pathlib import Path

from mvl import audit
from mvl.files import read_json, with_section, write_text
from mvl.study import reference

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def main() -> None:
    """Write the pages."""
    reference.refresh_readme()
    audit.refresh_readme()
    sys.path.insert(0, str(BENCHMARKS))
    from common import BEGIN, END, PAGE, RESULTS, tables

    section = tables(read_json(RESULTS)).removesuffix("\n")
    write_text(PAGE, with_section(PAGE, BEGIN, END, section))
    print("README.md", "benchmarks/README.md")


if __name__ == "__main__":
    main()
