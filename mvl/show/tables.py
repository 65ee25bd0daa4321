r"""Result tables for people and for programs: CSV, Markdown and LaTeX.

The CSV holds the rows as they are, with nine significant digits, for whoever goes on from them;
Markdown and LaTeX hold what a reader sees, such as "0.828 ± 0.038". The LaTeX wants
\usepackage{booktabs}.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.experiment.metrics import METRICS
from mvl.files import write_table, write_text

#: The paper's own numbers, each with its source.
PAPER = Path(__file__).parents[1] / "paper.csv"

NOTHING = "–"


def means(summary, metrics=("dice", "nsd", "hd95_mm")):
    """Arms by metric, as a reader sees them: mean ± standard deviation over subjects.

    Args:
        summary: rows as `mvl.study.statistics.summary_table` gives them.
        metrics: names of `mvl.experiment.metrics.METRICS`, a column each.

    Returns:
        A table of texts, a task, structure and arm a row, in the order of `summary`: task and
        structure where there are several, arm, subjects, cases, seeds, epochs, and the metrics.
        Seeds of one arm with different budgets stand in rows of their own.
    """
    keys = ["task", "structure", "arm", "epochs"]
    rows = []
    for values, own in summary.groupby(keys, sort=False):
        first, by_metric = own.iloc[0], own.drop_duplicates("metric").set_index("metric")
        row = dict(zip(keys, values, strict=True))
        row |= {name: first[f"n_{name}"] for name in ("subjects", "cases", "seeds")}
        row |= {METRICS[metric].heading: mean_and_spread(by_metric, metric) for metric in metrics}
        rows.append({name: str(value) for name, value in row.items()})
    columns = ["task", "structure", "arm", "subjects", "cases", "seeds", "epochs"]
    table = pd.DataFrame(rows, columns=columns + [METRICS[metric].heading for metric in metrics])
    alike = [name for name in ("task", "structure") if table[name].nunique() < 2]
    return table.drop(columns=alike)


def differences(contrasts):
    """Comparisons as a reader sees them.

    Args:
        contrasts: rows as `mvl.study.statistics.contrasts_table` gives them.

    Returns:
        A table of texts, a comparison a row: task and structure where there are several,
        comparison, metric, subjects, seeds, difference, 95 % interval, p (adjusted, where it is
        one of a family) and verdict.
    """
    rows = [
        {
            "task": row.task,
            "structure": row.structure,
            "comparison": f"{row.arm_a} minus {row.arm_b}",
            "metric": METRICS[row.metric].heading,
            "subjects": str(row.n_subjects),
            "seeds": str(row.n_seeds),
            "difference": f"{row.difference:+.4f}",
            "95 % interval": NOTHING
            if np.isnan(row.ci_low)
            else f"{row.ci_low:+.4f} to {row.ci_high:+.4f}",
            "p": p_value(row.p_holm),
            "verdict": row.verdict,
        }
        for row in contrasts.itertuples()
    ]
    columns = ("task", "structure", "comparison", "metric", "subjects", "seeds")
    columns += ("difference", "95 % interval", "p", "verdict")
    table = pd.DataFrame(rows, columns=columns)
    alike = [name for name in ("task", "structure") if table[name].nunique() < 2]
    return table.drop(columns=alike)


def write(path, rows, shown, caption):
    """Write a table as CSV, Markdown and LaTeX, each whole or not at all.

    Args:
        path: of the files; the endings take the place of its own, if it has one.
        rows: the table that the CSV holds.
        shown: the table of texts that Markdown and LaTeX hold.
        caption: what it is, with its size.

    Raises:
        MvlError: a file cannot be written.
    """
    path = Path(path)
    write_table(path.with_suffix(".csv"), rows)
    write_text(path.with_suffix(".md"), markdown(shown, caption))
    write_text(path.with_suffix(".tex"), latex(shown, caption, label=f"tab:{path.stem}"))


def markdown(shown, caption):
    """A table of texts in GitHub's Markdown, below its caption."""
    lines = [caption, "", _markdown_row(shown.columns)]
    lines.append(_markdown_row(["---:" if right else "---" for right in _right(shown)]))
    lines += [_markdown_row(row) for row in shown.to_numpy()]
    return "\n".join(lines) + "\n"


def _markdown_row(cells):
    return "| " + " | ".join(re.sub(r"([\\|])", r"\\\1", str(cell)) for cell in cells) + " |"


def latex(shown, caption, label):
    """A table of texts as a LaTeX table with the rules of booktabs."""
    escaped = shown.astype(str).map(_escaped).rename(columns=_escaped)
    columns = "".join("r" if right else "l" for right in _right(shown))
    return escaped.style.hide(axis="index").to_latex(
        column_format=columns,
        hrules=True,
        position_float="centering",
        caption=_escaped(caption),
        label=label,
    )


#: What LaTeX would take for markup, or does not have in its text fonts.
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{character: f"${character}$" for character in "<>|"},
        "±": r"$\pm$",
        "×": r"$\times$",
        "–": "--",
    }
)


def _escaped(text):
    # A sign, but no hyphen, becomes LaTeX's minus or plus.
    return re.sub(r"(?<!\S)([-+])(?=\d)", r"$\1$", text.translate(_LATEX))


def _right(shown):
    """Which columns are numbers, and so aligned to the right."""
    number = re.compile(rf"[-+<]? ?\d[\d.,]*( ± .*)?|{NOTHING}|")
    # Arms such as "000" are names.
    return [
        name != "arm" and all(number.fullmatch(str(cell)) for cell in shown[name]) for name in shown
    ]


def mean_and_spread(by_metric, metric):
    """A metric's mean ± standard deviation over subjects, which one subject has not.

    Args:
        by_metric: rows of `study.statistics.summary_table`, of one arm, with the metric as index.
        metric: one of `mvl.experiment.metrics.METRICS`.

    Returns:
        A text; `NOTHING` where the metric was not measured.
    """
    if metric not in by_metric.index:
        return NOTHING
    row, digits = by_metric.loc[metric], METRICS[metric].digits
    spread = "" if np.isnan(row["sd_subjects"]) else f" ± {row['sd_subjects']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread}"


def count(number, noun, nouns=None):
    """A number of things in words: "1 seed", "12,000 seeds"."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def p_value(p):
    """A p value as tables show it."""
    if np.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
