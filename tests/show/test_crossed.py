"""The second protocol's pages: what may be said, by hand-computed cases, and where it is shown."""

import re
import shutil

import pandas as pd
import pytest

from mvl.show import crossed
from mvl.show.results import answer_section, results_section
from mvl.show.sentences import effect as in_words
from mvl.study.inference import POOLED
from mvl.study.reference import REFERENCE
from tests.show.reports import Repository
from tests.show.second import ARMS, CHAOS, HIPPOCAMPUS, write_second

GAIN = "gain of 0.001 to 0.009"


def known(costs, verdicts, task=HIPPOCAMPUS):
    """Tables of a task with folds of 30 and 10 subjects, whose deletion costs so much."""
    rows = {"arm_b": ["none", "identity", "shuffled", "random"], "verdict": verdicts.split(", ")}
    contrasts = pd.DataFrame(rows).assign(task=task, arm_a="pretrained", synthetic=False)
    contrasts = contrasts.assign(n_subjects=40, n_seeds=5, ci_low=0.0012, ci_high=0.0088)
    use = pd.DataFrame({"n_subjects": [30, 10], "as trained": 0.8, "mean": 0.1, "permuted": 0.1})
    use = use.assign(task=task, arm="pretrained", deleted=[0.8 - cost for cost in costs])
    return {"contrasts": contrasts, "use": use}


@pytest.mark.parametrize(
    ("costs", "verdicts", "said"),
    [
        # (30 x 0.0006 + 10 x 0.0022) / 40 = 0.001
        ((0.0006, 0.0022), "better, better, better, better", "nothing is said about pre-training"),
        ((0.004, 0.008), "better, better, better, better", f"pre-training helps: .*{GAIN}"),
        (
            (0.02, 0.04),
            "worse, better, better, worse",
            "not help: it is worse than none .* It is better than its "
            "mappers alone and shuffled weights. It is worse than random weights of the same "
            "scale.",
        ),
        (
            (0.02, 0.04),
            "equivalent, worse, better, better",
            "does not help: it is equivalent to none",
        ),
        (
            *((0.02, 0.04), "better, equivalent, better, not decided"),
            "helps is not decided .* It is better than none and shuffled weights. It is equivalent "
            "to its mappers alone. It is not shown to differ from random weights of the same "
            "scale.",
        ),
    ],
)
def test_pretraining_has_a_verdict_where_the_block_is_used(costs, verdicts, said):
    text = crossed.claim_sentence(known(costs, verdicts), HIPPOCAMPUS)
    mean = (3 * costs[0] + costs[1]) / 4
    assert f"deletion costs {mean:.{3 if mean >= 0.005 else 4}f} in Dice" in text
    assert pd.Series([text]).str.contains(said)[0]
    assert ("uses the block" in text) == (mean >= 0.005) == ("help" in text)


def test_a_claim_of_several_tasks_needs_a_used_block_in_each():
    parts = [known((0.02, 0.02), "better, better, better, better", task) for task in (CHAOS, "B")]
    parts[0]["use"]["deleted"] = 0.799
    parts += [known((0, 0), "better, better, better, better", POOLED)]
    both = {name: pd.concat([part[name] for part in parts]) for name in ("contrasts", "use")}
    both["use"] = both["use"].query("task != @POOLED")
    assert crossed.claim_sentence(both, POOLED).startswith(
        f"Trained on {CHAOS}, the model does not use the block: its deletion costs 0.0010 in"
    )
    assert "pre-training helps" in crossed.claim_sentence(both, "B")


def test_the_report_says_first_what_the_second_protocol_found(tmp_path):
    repository = Repository(tmp_path)
    write_second(tmp_path / "results" / "reference" / "crossed", {HIPPOCAMPUS: 137})
    first, other = repository.report().index.select(".card")
    assert first.h3.get_text() == "The study" and "uses the block" in first.get_text()
    assert "5 bits and instruction-tuned" in first.get_text() and "first study" in other.get_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """References with synthetic tables of the second protocol: one task, whose block is not used,
    and two tasks."""
    folder, ignored = (
        tmp_path_factory.mktemp("second"),
        shutil.ignore_patterns("best", "figures", "crossed"),
    )
    for name, subjects in {"one": {HIPPOCAMPUS: 137}, "two": {HIPPOCAMPUS: 137, CHAOS: 20}}.items():
        shutil.copytree(REFERENCE, folder / name, ignore=ignored)
        arms = ARMS | {"pretrained": (-0.006, 0.001)} if name == "one" else ARMS
        write_second(folder / name / "crossed", subjects, arms)
    return folder


def test_the_readme_answers_with_the_second_protocol_first(pages):
    unused = {"one": "none: the block is not used", "two": "none: synthetic data"}
    for name, size in (("one", "1 task, 137 subjects, 5"), ("two", "2 tasks, 157 subjects, 10")):
        answer, _, _, *rows, picture = filter(None, answer_section(pages / name).splitlines())
        assert "llama_claim.png" in picture and "5 bits and instruction-tuned" in answer
        assert len(rows) == 6 and all(f"| {size} trainings |" in row for row in rows[:4])
        assert [row[:20] for row in rows[4:]] == ["| Hybrid attention a", "| Multi-scale fusion"]
        verdicts = [row.split(" | ")[2] for row in rows[:4]]
        assert verdicts == ["none: synthetic data", *3 * [unused[name]]]


def test_the_results_page_has_the_tables_of_each_task(pages):
    second = results_section(pages / "two")
    assert "Not run in the second protocol: `OpenKBP_HeadNeckCT`." in second
    tables = crossed.crossed_tables(pages / "two" / "crossed")
    cases = tables["cases"].query("arm == 'none' and task == @CHAOS")
    row = f"| `none` | 20 | 20 | 5 | 120 | {cases['dice'].mean():.3f} ± {cases['dice'].std():.3f} |"
    used = tables["use"].query("arm == 'random' and task == @CHAOS")
    cost = (used["as trained"] - used["deleted"]).mean()  # its folds have four subjects each
    chaos = second.partition(f"### {CHAOS}")[2].partition("### ")[0]
    assert row in chaos and re.search(rf"\| {cost:.4f} \| \S+ to \S+ \| yes \|", chaos)
    assert "| no |" in results_section(pages / "one")
    compared = tables["contrasts"].query("arm_b == 'shuffled' and task == @CHAOS").iloc[0]
    # Choices were made on folds 1 and 2 of Task04 alone.
    kept = (
        tables["cases"]
        .query("task == @HIPPOCAMPUS and fold not in (1, 2)")
        .pivot_table("dice", "subject", "arm")
    )
    apart = (kept["pretrained"] - kept["none"]).mean()
    without = second.partition("Without these folds:")[2].split("\n\n")[1]
    assert f"| `pretrained minus none` | {apart:+.3f} (" in without and "choices" not in chaos
    # Planned after the results; the loss of a control is none of the claim's comparisons.
    after = second.partition("after we knew the results")[2].split("\n\n")[1]
    assert [line.split("`")[1] for line in after.splitlines()[2:]] == [
        f"{arm} minus none" for arm in ("identity", "shuffled", "random")
    ]
    loss = tables["curves"].query("task == @CHAOS and arm == 'none' and epoch == 1")["train_loss"]
    assert f"{loss.mean():.3f} (`none`)" in chaos
    effect = f"{compared['difference']:+.3f} ({in_words(compared)})"
    assert f"{effect} | none: synthetic" in chaos


def test_the_picture_has_each_difference_and_each_cost(pages):
    shown = crossed.published(pages / "two")
    figure = crossed.picture(shown)
    places = {POOLED: 0, HIPPOCAMPUS: 1, CHAOS: 2}
    for row in shown["contrasts"].itertuples():
        lines = [list(line.get_xdata()) for line in figure.axes[2 * places[row.task]].lines]
        assert [row.difference] in lines and [row.ci_low, row.ci_high] in lines
    for task in (HIPPOCAMPUS, CHAOS):
        folds = [dots.get_offsets() for dots in figure.axes[2 * places[task] + 1].collections]
        use = shown["use"].query("task == @task and arm == 'pretrained'")
        assert sorted(folds[0][:, 0]) == pytest.approx(sorted(use["as trained"] - use["deleted"]))
    assert figure.get_figwidth() == pytest.approx(180 / 25.4)


def test_the_parts_have_rows_of_the_second_protocol_once_they_are_tested(tmp_path):
    gains = {f"{n:03b}": 0.02 * (n >> 1 & 1) + 0.05 * (n & 1) for n in range(8)}
    parts = {arm: (gain, 0.03 if arm[0] == "1" else None) for arm, gain in gains.items()}
    shutil.copy(REFERENCE / "contrasts.csv", tmp_path)
    write_second(tmp_path / "crossed", {HIPPOCAMPUS: 137})
    assert "first study: 27 subjects" in answer_section(tmp_path)
    write_second(tmp_path / "crossed", {HIPPOCAMPUS: 137}, synthetic=False, more={"parts": parts})
    known = crossed.published(tmp_path, crossed.PARTS)["contrasts"].set_index("arm_a")["difference"]
    assert known.round(2).to_dict() == {"?1?": 0.02, "??1": 0.05, "?11 ?00": 0.0, "111": 0.07}
    text, page = answer_section(tmp_path), results_section(tmp_path)
    assert "first study" not in text and "5 trainings" in text
    for name in ("Hybrid attention", "Multi-scale fusion", "Interaction of", "Block, hybrid"):
        assert f"\n| {name}" in page
    assert text.count("\n| Hybrid attention") == text.count("\n| Multi-scale fusion") == 1
    # The use of the block in 1xx alone.
    assert page.count("| `011` |") == 1 and page.count("| `110` |") == 2
