"""The table of docs/protocol.md, made of results/reference/settling.csv.

    mvl suite use settling ... --results FOLDER    # writes FOLDER/suites/settling-use.csv
    python scripts/settling.py FOLDER/suites/settling-use.csv ...

Tables are joined in results/reference, and the page is written from there.
"""

import sys
from pathlib import Path

import pandas as pd

from mvl.files import with_section, write_text
from mvl.show.tables import markdown

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
    """The table as Markdown: longer trainings first, then the best arm."""
    table = table.sort_values(["epochs", "validation_dice"], ascending=False)
    shown = table[list(SHOWN)].rename(columns=SHOWN)
    for column in list(SHOWN.values())[2:]:
        shown[column] = shown[column].map(lambda dice: "-" if dice != dice else f"{dice:.3f}")
    shown.iloc[:, 0] = "`" + shown.iloc[:, 0] + "`"
    return markdown(shown.astype(str), aligned=False)


def main() -> None:
    """Copy the tables that are named, if any are, and write the page."""
    if sys.argv[1:]:
        tables = [pd.read_csv(path) for path in sys.argv[1:]]
        pd.concat(tables).drop_duplicates("fingerprint").to_csv(TABLE, index=False)
    write_text(PAGE, with_section(PAGE, BEGIN, END, section(pd.read_csv(TABLE))))
    print(PAGE)


if __name__ == "__main__":
    main()
