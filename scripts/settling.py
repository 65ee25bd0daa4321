"""The tables of docs/protocol.md, made of settling.csv and side.csv in results/reference.

    mvl suite use settling ... --results FOLDER    # writes FOLDER/suites/settling-use.csv
    python scripts/settling.py FOLDER/suites/settling-use.csv ... RUN ...

Tables are added to that in results/reference. A RUN is a folder of `mvl train --preset vit`, of
which the page says what sides it knows. The page is written from results/reference.
"""

import sys
from pathlib import Path

import pandas as pd

from mvl.files import read_json, with_section, write_text
from mvl.show.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "results" / "reference" / "settling.csv", ROOT / "docs" / "protocol.md"
SIDE = TABLE.with_name("side.csv")
#: What the page has around each table, by the table's name.
MARKS = {
    name: [f"<!-- {name}: {mark} -->" for mark in ("begin, written by scripts/settling.py", "end")]
    for name in ("settling", "longer", "side")
}
#: Columns of the table that the page shows, and their headings.
SHOWN = {
    "arm": "arm @ rate x mappers' factor",
    "epochs": "epochs",
    "validation_dice": "validation Dice on the grid",
    "as trained": "in native space",
    "deleted": "deleted",
    "cost": "cost of deletion",
    "mean": "mean",
    "permuted": "permuted",
}


def section(table: pd.DataFrame) -> str:
    """The table as Markdown: longer trainings first, then the best arm."""
    table = table.sort_values(["epochs", "validation_dice"], ascending=False)
    table = table.assign(cost=table["as trained"] - table["deleted"])
    shown = table[list(SHOWN)].rename(columns=SHOWN)
    for column in list(SHOWN.values())[2:]:
        shown[column] = shown[column].map(lambda dice: "-" if dice != dice else f"{dice:.3f}")
    shown.iloc[:, 0] = "`" + shown.iloc[:, 0] + "`"
    return markdown(shown.astype(str), aligned=False)


def longer_section(table: pd.DataFrame) -> str:
    """The block against none by budget: validation Dice on the grid, one training each."""
    arms = {"none@0.003": "`none`", "sum-pretrained@0.003x0.1": "`sum-pretrained`"}
    dice = table.pivot_table("validation_dice", "epochs", "arm")[list(arms)].dropna()
    dice["difference"] = dice.iloc[:, 1] - dice.iloc[:, 0]
    shown = dice.map("{:.3f}".format).rename(columns=arms).reset_index()
    return markdown(shown.astype(str), aligned=False)


def side_section(table: pd.DataFrame) -> str:
    """Validation Dice of each run as it is and with its cases mirrored, as Markdown."""
    shown = table[["command", "validation Dice", "mirrored"]].copy()
    for column in shown.columns[1:]:
        shown[column] = shown[column].map("{:.3f}".format)
    return markdown(shown.assign(command="`" + shown["command"] + "`"), aligned=False)


def side_of(run: Path) -> dict:
    """What a run folder of `vit` tells of the sides that it knows."""
    config = read_json(run / "config.json")["config"]
    as_is, mirrored = read_json(run / "domain.json")["sides_dice"]
    flips = f" --flips {config['data']['flips']}" if config["data"]["flips"] else ""
    row = {"command": f"mvl train --preset vit{flips}", "fingerprint": run.name}
    return row | {"validation Dice": as_is, "mirrored": mirrored}


def main() -> None:
    """Copy what is named, if anything is, and write the page."""
    named = [Path(argument) for argument in sys.argv[1:]]
    if tables := [pd.read_csv(path) for path in named if path.is_file()]:
        known = pd.concat([pd.read_csv(TABLE), *tables])
        # With one factor `mvl suite use` leaves it out of the name.
        bare = ~known["arm"].str.contains("x") & (known["mapper_rate"] != 1)
        known.loc[bare, "arm"] += "x" + known.loc[bare, "mapper_rate"].map("{:g}".format)
        known.drop_duplicates("fingerprint").to_csv(TABLE, index=False)
    if runs := [side_of(path) for path in named if path.is_dir()]:
        pd.DataFrame(runs).to_csv(SIDE, index=False)
    table = pd.read_csv(TABLE)
    sections = {"settling": section(table), "longer": longer_section(table)}
    sections["side"] = side_section(pd.read_csv(SIDE))
    for name, text in sections.items():
        write_text(PAGE, with_section(PAGE, *MARKS[name], text))
    print(PAGE)


if __name__ == "__main__":
    main()
