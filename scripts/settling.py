"""The table of docs/protocol.md, made of results/reference/settling.csv.

    mvl suite use settling ... --results FOLDER    # writes FOLDER/suites/settling-use.csv
    python scripts/settling.py FOLDER/suites/settling-use.csv

The table is copied to results/reference, and the page is written from there.
"""

import sys
from pathlib import Path

import pandas as pd

from mvl.files import with_section, write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "results" / "reference" / "settling.csv", ROOT / "docs" / "protocol.md"
BEGIN, END = "<!-- settling: begin, written by scripts/settling.py -->", "<!-- settling: end -->"
#: Columns of the table that the page shows, and their headings.
SHOWN = {
    "arm": "arm @ rate x mappers' factor",
    "epochs": "epochs",
    "validation_dice": "validation Dice on the grid",
    "as trained": "in native space",
    "deleted": "deleted",
    "mean": "mean",
    "permuted": "permuted",
}


def section(table: pd.DataFrame) -> str:
    """The table as Markdown, the best arm first."""
    table = table.sort_values("validation_dice", ascending=False)
    lines = [f"| {' | '.join(SHOWN.values())} |", "| --- " * len(SHOWN) + "|"]
    for row in table[list(SHOWN)].itertuples(index=False):
        arm, epochs, *dice = row
        cells = [
            f"`{arm}`",
            str(epochs),
            *("-" if d != d else f"{d:.3f}" for d in dice),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Copy the table that is named, if one is, and write the page."""
    if sys.argv[1:]:
        TABLE.write_bytes(Path(sys.argv[1]).read_bytes())
    write_text(PAGE, with_section(PAGE, BEGIN, END, section(pd.read_csv(TABLE))))
    print(PAGE)


if __name__ == "__main__":
    main()
