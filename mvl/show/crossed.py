"""The second protocol's results on pages, in the README and in notebook 04.

Everything comes from the tables of `mvl.study.crossed`. There is a sentence about pre-training only
where the trained model uses its block (`mvl.experiment.block_use`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mvl.experiment.block_use import USED
from mvl.show import figures, tables
from mvl.show.notebook import show
from mvl.show.sentences import count, effect, estimate, no_verdict, trained_on
from mvl.study.crossed import (
    CHOSEN_ON,
    CONTRASTS,
    CROSSED,
    STUDY_TASKS,
    crossed_tables,
    without_choices,
)
from mvl.study.inference import DECIDED, POOLED, claim
from mvl.study.reference import REFERENCE
from mvl.study.suites import SUITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tables = dict[str, pd.DataFrame]

SUITE, ARM = CONTRASTS[0].suite, CONTRASTS[0].arm_a

#: The headline picture, below the reference's folder, and what it shows.
PICTURE = Path("figures") / "llama_claim.png"
PICTURE_TEXT = (
    "Differences in Dice between the pre-trained block and its controls, and what deletion of the "
    "block costs"
)

EFFECT = "effect on Dice (95 % interval)"

#: The suite of the paper's three parts, and its contrasts in words, by their first side.
PARTS = "parts"
_EFFECTS = {
    "?1?": "Hybrid attention, averaged over the other parts",
    "??1": "Multi-scale fusion, averaged over the other parts",
    "?11 ?00": "Interaction of hybrid attention and fusion",
    "111": "Block, hybrid attention and fusion together",
}

#: What the pre-trained block is compared with, in words.
_AGAINST = {
    "none": "none",
    "identity": "its mappers alone",
    "shuffled": "shuffled weights",
    "random": "random weights of the same scale",
}
_BLOCKS = {
    "package:smollm2-135m": "the last layer of SmolLM2-135M, a Llama-type model; its weights are "
    "quantised to 5 bits and instruction-tuned",
}
_CLAIMS = {
    "better": "pre-training helps: the pre-trained block is better than none and than each control",
    "worse": "the pre-trained block does not help: it is worse than none",
    "equivalent": "the pre-trained block does not help: it is equivalent to none",
    "not decided": "whether pre-training helps is not decided",
}
_VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "not decided": "not shown to differ from",
}


def published(reference: Path = REFERENCE, suite: str = SUITE) -> dict[str, pd.DataFrame]:
    """What the pages show of a reference's `crossed_tables`; empty where nothing is published.

    Contrasts are those that decide, without those of the controls, which have a table of their
    own. Trainings are called seeds, as `mvl.show.tables` knows them.
    """
    known = {
        name: table[table["suite"] == suite].rename(columns={"n_trainings": "n_seeds"})
        for name, table in crossed_tables(reference / CROSSED.name).items()
    }
    if not known or known["cases"].empty:
        return {}
    for name in ("cases", "summary", "contrasts"):
        known[name] = known[name][known[name]["structure"] == DECIDED["structure"]]
    contrasts = known["contrasts"].query("metric == 'dice'")
    known["controls"] = contrasts[contrasts["family"] == "controls"]
    known["contrasts"] = contrasts[contrasts["family"] != "controls"]
    return known


def tasks_of(published: Tables) -> list[str]:
    """Its tasks in the study's order, and last `POOLED` where several are pooled."""
    return [task for task in (*STUDY_TASKS, POOLED) if task in set(published["contrasts"]["task"])]


def _costs(published, task, arm=ARM):
    """What deletion costs in the models of an arm, by task."""
    costs = tables.mean_use(published["use"]).query("arm == @arm")["cost"].droplevel("arm")
    return costs if task == POOLED else costs[costs.index == task]


def claim_sentence(published: Tables, task: str) -> str:
    """What follows for a task, or the tasks of `POOLED`, and whether the block is used in them."""
    rows = published["contrasts"].query("task == @task")
    costs = _costs(published, task)
    unused = costs[costs < USED]
    names = _listed(list((unused if len(unused) else costs).index))
    if len(unused):
        values = ", ".join(f"{cost:.4f}" for cost in unused)
        text = f"Trained on {names}, the model does not use the block: its deletion costs {values} "
        return text + f"in Dice, less than {USED:g}. So nothing is said about pre-training."
    values = ", ".join(f"{cost:.3f}" for cost in costs)
    used = f"The trained model uses the block: its deletion costs {values} in Dice."
    controls = {arm: _costs(published, task, arm) for arm in ("shuffled", "random")}
    each = [f"{cost.iloc[0]:.3f} ({arm})" for arm, cost in controls.items() if len(cost)]
    if each and task != POOLED:
        used += f" Deletion of a control's block costs {_listed(each)}."
    if reasons := [reason for _, row in rows.iterrows() if (reason := no_verdict(row))]:
        return f"On {names}, no verdict on pre-training: {reasons[0]}. {used}"
    verdict = claim(rows)
    text = f"On {names}, {_CLAIMS[verdict]} (against none, in Dice: {effect(rows.iloc[0])})."
    # What the claim does not say of each comparison.
    rest = rows[rows["arm_b"] != "none"] if verdict in ("worse", "equivalent") else rows
    for word, than in _VERDICTS.items() if verdict != "better" else ():
        if arms := [_AGAINST[arm] for arm in rest["arm_b"][rest["verdict"] == word]]:
            text += f" It is {than} {_listed(arms)}."
    return f"{text} {used}"


def _listed(names):
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def claims(published: Tables) -> list[str]:
    """A `claim_sentence` for each task, then of the pooled ones, and `block_sentence`."""
    sentences = [claim_sentence(published, task) for task in tasks_of(published)]
    return [*sentences, block_sentence(published)]


def block_sentence(published: Tables) -> str:
    """What the block is, and that nothing is said about another."""
    block = published["contrasts"]["block"].iloc[0]
    return f"The block is {_BLOCKS.get(block, f'`{block}`')}. Nothing here is about another block."


def _comparisons(published, task):
    """The contrasts of a task as texts.

    Where the block is not used, one pre-training and another are not compared.
    """
    rows = published["contrasts"].query("task == @task")
    shown = tables.comparisons(rows).rename(columns={"seeds": "trainings"})
    if (rows["suite"] == PARTS).any():
        shown["comparison"] = [_EFFECTS[arm] for arm in rows["arm_a"]]
    shown[EFFECT] = [estimate(row) for _, row in rows.iterrows()]
    if (_costs(published, task) < USED).any():
        control = (rows["arm_b"] != "none").to_numpy()
        shown.loc[control, "verdict"] = "none: the block is not used"
    return shown


def answer_rows(published: Tables) -> list[dict[str, str]]:
    """The README's rows, by column: of the pooled tasks where several are pooled."""
    tasks = tasks_of(published)
    rows = published["contrasts"].query("task == @tasks[-1]")
    shown, size = _comparisons(published, tasks[-1]), count(len(set(tasks) - {POOLED}), "task")
    shown["question"] = [
        _EFFECTS.get(row.arm_a) or f"A pre-trained Llama-type block against {_AGAINST[row.arm_b]}"
        for row in rows.itertuples()
    ]
    shown["tested on"] = [
        f"{size}, {count(row.n_subjects, 'subject')}, {count(row.n_seeds, 'training')}"
        for row in rows.itertuples()
    ]
    return shown[["question", EFFECT, "verdict", "tested on"]].to_dict("records")


def section(published: Tables, picture: str) -> list[str]:
    """The paragraphs of docs/results.md about the block; `picture` links to `PICTURE`."""
    tasks = tasks_of(published)
    paragraphs = [
        "## Second protocol: does a Llama-type block help, and is it used?",
        f"{block_sentence(published)} Subjects are divided into five folds. A model tests the "
        "subjects of one fold, of which it has seen none; so each arm tests each subject once. "
        "Numbers are of the foreground, in native space. The runs were "
        f"{trained_on(published['runs'])}. [protocol](protocol.md) says what the arms are, "
        "[statistics](statistics.md) what an interval and a verdict mean. p is not adjusted, "
        "since the claim needs all four comparisons.",
        f"![{PICTURE_TEXT}]({picture})",
    ]
    for task in tasks:
        paragraphs += [f"### {'All tasks, each counts alike' if task == POOLED else task}"]
        paragraphs += [f"**{claim_sentence(published, task)}**"]
        if task == POOLED:
            paragraphs += [_compared(published, task)]
            continue
        paragraphs += [_means(published, task, SUITE), _compared(published, task)]
        if (controls := published["controls"])["task"].eq(task).any():
            paragraphs += ["The controls against none. We planned this after we knew the results:"]
            paragraphs += [_compared(published | {"contrasts": controls}, task)]
        if len(rest := without_choices(published["cases"], task)):
            rest = rest[rest["family"] == CONTRASTS[0].family]
            rest = rest.rename(columns={"n_trainings": "n_seeds"})
            paragraphs += [
                "The protocol's choices were made on subjects of the folds "
                f"{_listed(list(map(str, CHOSEN_ON[task])))}. Without these folds:",
                _compared(published | {"contrasts": rest}, task),
            ]
        paragraphs += [
            _losses(published, task),
            "Test Dice after a change of the block's term. *Deleted*: without it. *Mean*: each "
            "token has the average term. *Permuted*: terms are exchanged between tokens. In "
            f"`identity`, deletion halves the term. Used: deletion costs {USED:g} or more.",
            _use(published, task, SUITE),
        ]
    if missing := [f"`{task}`" for task in STUDY_TASKS if task not in tasks]:
        paragraphs += [f"Not run in the second protocol: {', '.join(missing)}."]
    return paragraphs


def parts_section(published: Tables) -> list[str]:
    """The paragraphs of docs/results.md about hybrid attention and multi-scale fusion."""
    paragraphs = [
        "## Second protocol: what do hybrid attention and multi-scale fusion add?",
        "The digits of an arm are language block, hybrid attention and multi-scale fusion. The "
        "interaction is what one part adds with the other, less what it adds without it. p is "
        "adjusted for the three comparisons that are averages.",
    ]
    for task in tasks_of(published):
        paragraphs += [f"### {task}: the three parts"]
        if task != POOLED:
            paragraphs += [_means(published, task, PARTS)]
        paragraphs += [_compared(published, task)]
        if published["use"]["task"].eq(task).any():
            paragraphs += ["Dice with the block's term replaced:", _use(published, task, PARTS)]
    return paragraphs


def _means(published, task, suite):
    summary = published["summary"].query("task == @task")
    return _markdown(tables.arms(summary, order=list(SUITES[suite])), "arm")


def _use(published, task, suite):
    use = published["use"].query("task == @task")
    return _markdown(tables.block_use(use, order=list(SUITES[suite])), "arm")


def _compared(published, task):
    """`_comparisons` as Markdown."""
    shown = _comparisons(published, task)
    columns = ["comparison", EFFECT, "verdict", "p", "adjusted p", "subjects", "trainings"]
    code = "" if (shown["comparison"].isin(_EFFECTS.values())).any() else "comparison"
    return _markdown(shown[[name for name in columns if name in shown]], code)


def _losses(published, task):
    """The training loss of each arm in its last epoch: an arm may be behind at this budget."""
    curves = published["curves"].query("task == @task")
    last = curves.sort_values("epoch").groupby(["arm", "fold", "repeat"])["train_loss"].last()
    means = last.groupby("arm").mean().sort_values()
    values = _listed([f"{loss:.3f} (`{arm}`)" for arm, loss in means.items()])
    return f"Training loss in the last epoch: {values}."


def _markdown(shown, code):
    shown = shown.rename(columns={"seeds": "trainings"})
    return tables.markdown(shown, code=(code,), aligned=False)


def picture(published: Tables) -> Figure:
    """The headline picture: the claim's comparisons, and the use of the block."""
    rows = published["contrasts"]
    place = {task: n for n, task in enumerate(STUDY_TASKS)} | {POOLED: -1}
    rows = rows.sort_values("task", key=lambda names: names.map(place), kind="stable")
    return figures.claim_and_use(published["cases"], rows, published["use"], USED)


def second_protocol(reference: Path = REFERENCE) -> None:
    """Show a notebook the picture and the claim of the committed tables."""
    known = published(reference)
    show(picture(known), "\n".join(f"- {text}" for text in claims(known)))
