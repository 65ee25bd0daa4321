r"""Frames of numbers become frames of texts, and these become Markdown, LaTeX and CSV.

`arms` is the one table of arms, `comparisons` the one table of contrasts. The CSV holds the numbers
with nine significant digits; the others hold what a reader sees, such as "0.828 ± 0.038". The
LaTeX needs \usepackage[T1]{fontenc} and \usepackage{booktabs}.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from mvl.experiment.block_use import EDITS, USED
from mvl.experiment.metrics import METRICS
from mvl.files import write_table, write_text
from mvl.show.sentences import NOTHING, interval, mean_and_spread, p_value, verdict_or_reason

#: The paper's numbers, each with its source.
PAPER = Path(__file__).parents[1] / "paper.csv"

#: The metrics of a table of arms, unless others are named.
SHOWN = ("dice", "nsd", "hd95_mm")


def arms(
    summary: pd.DataFrame,
    metrics: Sequence[str] = SHOWN,
    runs: pd.DataFrame | None = None,
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per task, structure, arm and number of epochs: mean ± standard deviation.

    Args:
        summary: rows of `summary_table`, of one suite; its order stays.
        runs: rows of `Source.runs` of the same suite; adds validation Dice, weights and rate.
        order: arms, in the order to show them in place of the summary's.

    Returns:
        Texts; task and structure are columns where there are several.
    """
    if len(order):
        place = {arm: n for n, arm in enumerate(order)}
        summary = summary.sort_values(
            "arm", key=lambda names: names.map(place), kind="stable", ignore_index=True
        )
    keys, rows = ["task", "structure", "arm", "epochs"], []
    for values, group in summary.groupby(keys, sort=False):
        row = dict(zip(keys, map(str, values), strict=True))
        row |= {name: str(group[f"n_{name}"].iloc[0]) for name in ("subjects", "cases", "seeds")}
        by_metric = group.drop_duplicates("metric").set_index("metric")
        row |= {METRICS[name].heading: mean_and_spread(by_metric, name) for name in metrics}
        if runs is not None:
            row |= _of_runs(runs, *(values[keys.index(key)] for key in ("task", "arm", "epochs")))
        rows.append(row)
    columns = ["task", "structure", "arm", "subjects", "cases", "seeds", "epochs"]
    columns += [METRICS[name].heading for name in metrics]
    columns += ["validation Dice", "trained weights", "learning rate"] * (runs is not None)
    return _without_alike(pd.DataFrame(rows, columns=columns))


def _of_runs(runs, task, arm, epochs):
    runs = runs[(runs["arm"] == arm) & (runs["epochs"] == epochs)]
    if "task" in runs:
        runs = runs[runs["task"] == task]
    if runs.empty:
        return dict.fromkeys(("validation Dice", "trained weights", "learning rate"), NOTHING)
    return {
        "validation Dice": f"{runs['validation_dice'].mean():.3f}",
        "trained weights": f"{runs['trained_parameters'].iloc[0]:,}",
        "learning rate": f"{runs['learning_rate'].iloc[0]:g}",
    }


def comparisons(contrasts: pd.DataFrame) -> pd.DataFrame:
    """One row of texts per row of `contrasts_table`; p is adjusted where it is one of a family.

    Task and structure are columns where there are several, p where some row has one.
    """
    adjusted = contrasts["p_holm"].notna() & (contrasts["p_holm"] != contrasts["p"])
    p = "adjusted p" if adjusted.any() else "p"
    rows = []
    for row, is_adjusted in zip(contrasts.to_dict("records"), adjusted, strict=True):
        plain = adjusted.any() and not is_adjusted and pd.notna(row["p"])
        shown = {
            "task": row["task"],
            "structure": row["structure"],
            "comparison": f"{row['arm_a']} minus {row['arm_b']}",
            "metric": METRICS[row["metric"]].heading,
            "subjects": str(row["n_subjects"]),
            "seeds": str(row["n_seeds"]),
            "difference": f"{row['difference']:+.4f}",
            "95 % interval": interval(row),
            p: p_value(row["p_holm"]) + " (not adjusted)" * bool(plain),
        }
        rows.append(shown | {"verdict": verdict_or_reason(row)})
    columns = ["task", "structure", "comparison", "metric", "subjects", "seeds"]
    columns += ["difference", "95 % interval", p, "verdict"]
    table = _without_alike(pd.DataFrame(rows, columns=columns))
    return table.drop(columns=p) if contrasts["p_holm"].isna().all() else table


def mean_use(use: pd.DataFrame) -> pd.DataFrame:
    """Means over all subjects by (task, arm) of rows of `use_row`, and "cost", that of deletion.

    `size`, `min` and `max` are the number of trainings and the range of their costs.
    """
    use = use.assign(cost=use["as trained"] - use["deleted"])
    arms = [use["task"], use["arm"]]
    sums = use[[*EDITS, "cost"]].mul(use["n_subjects"], axis=0).groupby(arms, sort=False).sum()
    means = sums.div(use.groupby(arms, sort=False)["n_subjects"].sum(), axis=0)
    return means.join(use.groupby(arms)["cost"].agg(["size", "min", "max"]))


def block_use(use: pd.DataFrame, order: Sequence[str] = ()) -> pd.DataFrame:
    """One row of texts per arm of one task's `use`: Dice as trained and with the block replaced."""
    used = mean_use(use).droplevel("task")
    used = used.loc[[arm for arm in order if arm in used.index] or used.index]
    shown = pd.DataFrame({"arm": used.index, "seeds": used["size"].map(str).to_numpy()})
    for edit in EDITS:
        shown[edit] = used[edit].map("{:.3f}".format).to_numpy()
    shown["cost of deletion"] = used["cost"].map("{:.4f}".format).to_numpy()
    shown["in each training"] = [f"{row.min:.4f} to {row.max:.4f}" for row in used.itertuples()]
    return shown.assign(used=["yes" if cost >= USED else "no" for cost in used["cost"]])


def _without_alike(table):
    alike = [name for name in ("task", "structure") if table[name].nunique() < 2]
    return table.drop(columns=alike)


def write(path: Path, rows: pd.DataFrame, shown: pd.DataFrame, caption: str) -> None:
    """Write `rows` as CSV and the texts `shown` as Markdown and LaTeX, to the same name.

    Raises:
        MvlError: a file cannot be written.
    """
    write_table(path.with_suffix(".csv"), rows)
    write_text(path.with_suffix(".md"), f"{caption}\n\n{markdown(shown)}\n")
    write_text(path.with_suffix(".tex"), latex(shown, caption, label=f"tab:{path.stem}"))


def markdown(shown: pd.DataFrame, code: Collection[str] = (), aligned: bool = True) -> str:
    """A frame of texts as a table in GitHub's Markdown; `code` names columns of code.

    Numbers are aligned to the right where `aligned`.
    """

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    def escaped(text):
        return re.sub(r"([\\|])", r"\\\1", str(text))

    right = of_numbers(shown)
    rule = line("---:" if name in right else "---" for name in shown)
    lines = [line(map(escaped, shown)), rule if aligned else "|---" * len(shown.columns) + "|"]
    for row in shown.to_dict("records"):
        lines.append(
            line(
                f"`{text}`" if name in code and text != NOTHING else escaped(text)
                for name, text in row.items()
            )
        )
    return "\n".join(lines)


def latex(shown: pd.DataFrame, caption: str, label: str) -> str:
    """A frame of texts as a LaTeX table with the rules of booktabs."""
    right = of_numbers(shown)
    # A sign, but no hyphen, becomes a minus.
    styled = shown.astype(str).map(lambda text: re.sub(r"(?<!\S)-(?=\d)", "−", text)).style
    styled = styled.format(escape="latex").format_index(escape="latex", axis="columns")
    return styled.hide(axis="index").to_latex(
        column_format="".join("r" if name in right else "l" for name in shown),
        hrules=True,
        position_float="centering",
        caption=re.sub(r"([&%$#_{}])", r"\\\1", caption),
        label=label,
    )


_ONE = r"[-+−<]? ?\d[\d.,]*(e[-+]?\d+)?( ?%)?"
#: A text that is a number: with a spread, an interval, or none.
_NUMBER = re.compile(
    rf"{_ONE}(( ±| to) {_ONE})?( \[{_ONE} to {_ONE}\]| \(not adjusted\))?|nan|NaN|{NOTHING}|"
)


def of_numbers(shown: pd.DataFrame) -> set[str]:
    """The columns of numbers, which are aligned to the right; arms such as "000" are names."""
    return {
        name
        for name in shown
        if name != "arm" and all(_NUMBER.fullmatch(str(text)) for text in shown[name])
    }
