"""Makes the pages again that show results: of the reference, README, docs, benchmarks.

    python scripts/pages.py             # with --figures: those of results/reference, too

`mvl reference`, `mvl audit table` and the benchmarks make them after they have added results.
"""

import sys
from pathlib import Path

from mvl.files import read_json, with_section, write_text
from mvl.show.audit import refresh_audit
from mvl.show.charts import draw_reference
from mvl.show.results import STUDY, refresh_results, study_page
from mvl.study.reference import REFERENCE

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def main() -> None:
    """Write the pages."""
    if "--figures" in sys.argv[1:]:
        draw_reference()
    write_text(REFERENCE / STUDY, study_page())
    refresh_results()
    refresh_audit()
    sys.path.insert(0, str(BENCHMARKS))
    from common import BEGIN, END, PAGE, RESULTS, tables

    section = tables(read_json(RESULTS)).removesuffix("\n")
    write_text(PAGE, with_section(PAGE, BEGIN, END, section))
    print("README.md", "docs/results.md", "docs/audit.md", "benchmarks/README.md")


if __name__ == "__main__":
    main()
