"""Contrasts of arms that were tested crosswise, by hand, SciPy, statsmodels and properties."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvl.errors import RunError
from mvl.study.inference import (
    COLUMNS,
    POOLED,
    Contrast,
    claim,
    contrasts_table,
    factorial,
    mean_square,
    paired_folds,
    step_down,
    verdict,
)

A_B = Contrast("language", "a", "b", "primary", adjusted=False)


def table(arms, suite="language", task="Task04_Hippocampus", **columns):
    """Cases from {arm: (folds, repeats, subjects of a fold) Dice}; a cell of NaN was not run."""
    rows = [
        {
            "suite": suite,
            "arm": arm,
            "fold": fold,
            "repeat": repeat,
            "task": task,
            "subject": f"{fold}_{subject}",
            "case": f"{fold}_{subject}",
            "structure": "foreground",
            "block": None if arm == "none" else "package:smollm2-135m",
            "protocol_version": 2,
            "synthetic": False,
            "dice": dice,
            "hd95_mm": 10 * dice,
        }
        for arm, values in arms.items()
        for (fold, repeat, subject), dice in np.ndenumerate(np.asarray(values, float))
        if not np.isnan(dice)
    ]
    return pd.DataFrame(rows).assign(**columns)


def simulated(arms=("a", "b", "c"), folds=5, repeats=1, size=6, training=0.004, seed=0):
    """Effects of subjects, trainings and single values, as `table` takes them."""
    generator = np.random.default_rng(seed)
    subjects = generator.normal(0.8, 0.05, (folds, 1, size))
    return {
        arm: subjects
        + training * generator.normal(size=(folds, repeats, 1))
        + 0.007 * generator.normal(size=(folds, repeats, size))
        for arm in arms
    }


def one(cases, contrast=A_B, **options):
    (_, row), *_ = contrasts_table(cases, [contrast], **options).iterrows()
    return row


def test_a_contrast_computed_by_hand():
    """Fold means .01, .02, .03: mean .02, sd .01, so that the standard error is .01 / sqrt(3)."""
    a = [[[0.81, 0.81]], [[0.80, 0.84]], [[0.83, 0.83]]]
    found = one(table({"a": a, "b": np.full((3, 1, 2), 0.8)}))
    assert list(found.index) == COLUMNS
    assert found["difference"] == pytest.approx(0.02)
    # Student's t with two degrees of freedom: t / sqrt(2 + t^2) is 1 - p.
    half = 0.95 * (2 / (1 - 0.95**2)) ** 0.5 * 0.01 / 3**0.5
    assert found[["ci_low", "ci_high"]].tolist() == pytest.approx([0.02 - half, 0.02 + half])
    t = 2 * 3**0.5
    assert found["p"] == found["p_holm"] == pytest.approx(1 - t / (2 + t**2) ** 0.5)
    assert (found["n_subjects"], found["n_trainings"]) == (6, 3)
    assert found["block"] == "package:smollm2-135m" and found["verdict"] == "not decided"


def test_the_mean_is_over_subjects_whatever_the_size_of_their_fold():
    a = [[[0.9, 0.9, 0.9]], [[0.8, np.nan, np.nan]], [[0.8, 0.8, np.nan]]]
    cases = table({"a": a, "b": np.where(np.isnan(a), np.nan, 0.8)})
    assert one(cases)["difference"] == pytest.approx(0.05)  # 3 of 6 subjects gain 0.1
    # A second case of a subject is averaged with its first.
    again = cases[cases["subject"] == "0_0"].assign(case="again")
    again.loc[again["arm"] == "a", "dice"] = 0.7
    assert one(pd.concat([cases, again]))["difference"] == pytest.approx(0.2 / 6)


def test_equal_folds_are_scipys_paired_t_test():
    dice = simulated(repeats=2)
    found = one(table(dice))
    a, b = (dice[arm].mean((1, 2)) for arm in "ab")
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval()
    assert found["p"] == pytest.approx(reference.pvalue, rel=1e-9)
    assert found["ci_low"] == pytest.approx(interval.low, rel=1e-9)
    assert found["ci_high"] == pytest.approx(interval.high, rel=1e-9)
    sided = [
        stats.ttest_1samp(a - b, bound, alternative=side).pvalue
        for bound, side in ((-0.01, "greater"), (0.01, "less"))
    ]
    assert found["p_tost"] == pytest.approx(max(sided), rel=1e-9)


def test_the_pooled_variance_is_that_of_a_mixed_model():
    """statsmodels' arm + (1|subject) + (1|training) by REML, on a balanced table."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    dice = simulated(size=8, training=0.01)
    # Folds that differ, so that no component of the variance is at its bound of zero.
    dice = {arm: values + np.linspace(0, 0.2, 5)[:, None, None] for arm, values in dice.items()}
    cases = table(dice)
    cases["training"] = cases["arm"] + cases["fold"].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = MixedLM.from_formula(
            "dice ~ arm",
            cases,
            groups="fold",
            re_formula="1",
            vc_formula={"subject": "0 + C(subject)", "training": "0 + C(training)"},
        ).fit(reml=True)
    by_fold = np.array([dice[arm].mean((1, 2)) for arm in "abc"])
    square, freedom = mean_square(by_fold)
    assert freedom == 8
    assert fitted.bse["arm[T.b]"] == pytest.approx((2 * square / 5) ** 0.5, rel=1e-3)
    estimate, _, _ = paired_folds(by_fold[1] - by_fold[0], np.full(5, 8))
    assert fitted.fe_params["arm[T.b]"] == pytest.approx(estimate, rel=1e-6)


def test_swapped_arms_mirror_the_interval():
    cases = table(simulated())
    found, swapped = one(cases), one(cases, A_B._replace(arm_a="b", arm_b="a"))
    assert swapped["difference"] == -found["difference"]
    assert (swapped["ci_low"], swapped["ci_high"]) == (-found["ci_high"], -found["ci_low"])
    assert swapped[["p", "p_tost"]].tolist() == found[["p", "p_tost"]].tolist()


def test_what_both_arms_share_changes_nothing_nor_does_the_order_of_rows():
    dice = simulated()
    found = one(table(dice))
    moved = one(table({arm: values + 0.125 for arm, values in dice.items()}))
    numbers = ["difference", "ci_low", "ci_high", "p", "p_tost"]
    assert moved[numbers].tolist() == pytest.approx(found[numbers].tolist(), rel=1e-9)
    shuffled = table(dice).sample(frac=1, random_state=0)
    assert one(shuffled).equals(found)


def test_a_copy_is_no_second_repeat_and_half_a_repeat_does_not_count():
    dice = simulated()
    found = one(table(dice))
    copied = one(table({arm: np.repeat(values, 2, axis=1) for arm, values in dice.items()}))
    assert copied["n_trainings"] == 10 and found["n_trainings"] == 5
    assert copied["ci_high"] == pytest.approx(found["ci_high"], abs=1e-12)
    begun = {arm: np.concatenate([values, values + 0.1], axis=1) for arm, values in dice.items()}
    begun["a"][3, 1] = np.nan
    assert one(table(begun)).equals(found)


def test_one_fold_has_the_noise_of_the_suites_trainings_and_no_verdict():
    dice = simulated(("a", "b", "c", "d"), size=30)
    for arm in "ab":
        dice[arm][1:] = np.nan
    found = one(table(dice))
    own = dice["a"][0, 0] - dice["b"][0, 0]
    assert found["difference"] == pytest.approx(own.mean()) and found["n_trainings"] == 1
    apart = dice["c"].mean((1, 2)) - dice["d"].mean((1, 2))
    # Two arms' difference has the variance of both of their fold means.
    half = stats.t.isf(0.025, 4) * apart.std(ddof=1)
    assert half > 2 * own.std(ddof=1) / 30**0.5, "the subjects alone would say less"
    assert found["ci_high"] - found["difference"] == pytest.approx(half)
    assert found[["p", "p_holm", "p_tost"]].isna().all() and found["verdict"] == ""
    # The same from another suite of the task, if the own one has no second fold.
    alone, other = ({arm: dice[arm] for arm in pair} for pair in ("ab", "cd"))
    borrowed = one(pd.concat([table(alone), table(other, suite="fusion")]))
    assert borrowed["ci_low"] == pytest.approx(found["ci_low"])
    assert np.isnan(one(table(alone))["ci_low"]), "nothing says how far trainings differ"
    quiet = {arm: np.full((5, 1, 30), 0.8) for arm in "cd"}  # trainings that do not differ
    found = one(pd.concat([table(alone), table(quiet, suite="fusion")]))
    half = stats.t.isf(0.025, 4) * own.std(ddof=1) / 30**0.5  # its subjects decide
    assert found["ci_high"] - found["difference"] == pytest.approx(half)


def test_few_subjects_and_other_metrics_have_no_verdict():
    few = {arm: values[:2, :, :2] for arm, values in simulated().items()}
    assert one(table(few))["verdict"] == "" and np.isnan(one(table(few))["p"])
    found = one(table(simulated()), metrics=["hd95_mm"])
    assert found["verdict"] == "" and found["ci_low"] < found["difference"] < found["ci_high"]


@pytest.mark.parametrize(
    ("difference", "p", "p_tost", "said"),
    [
        (0.02, 0.01, 0.9, "better"),
        (-0.02, 0.01, 0.9, "worse"),
        (0.002, 0.01, 0.001, "better"),  # by little, as its interval says
        (0.002, 0.3, 0.01, "equivalent"),
        (0.02, 0.3, 0.9, "not decided"),
    ],
)
def test_the_four_verdicts(difference, p, p_tost, said):
    assert verdict(difference, p, p_tost) == said


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["better"] * 4, "better"),
        (["better", "better", "not decided", "better"], "not decided"),
        (["equivalent", "better", "better", "better"], "equivalent"),
        (["worse", "better", "better", "better"], "worse"),
        (["better", "worse", "equivalent", "better"], "not decided"),
        (["better", "", "better", "better"], ""),
    ],
)
def test_a_claim_needs_each_of_its_contrasts(verdicts, said):
    assert claim(pd.DataFrame({"verdict": verdicts})) == said


def test_step_down_is_dunnetts_test_where_that_is_known():
    """Two-sided 5 % of many-to-one contrasts in Dunnett (1955): 2.44 with 2, 2.76 with 4, 20 df."""
    for contrasts, critical in ((2, 2.38), (4, 2.65)):
        weights = np.hstack([-np.ones((contrasts, 1)), np.eye(contrasts)])
        p = step_down(np.full(contrasts, critical), np.full(contrasts, 20), weights, 400_000)
        # Dunnett divides all by one standard error; ones of their own make the largest larger.
        assert (p > 0.05).all() and (p < 0.058).all()


def test_step_down_lies_between_no_adjustment_and_holms():
    t, freedom = np.array([4.0, -2.9, 1.0]), np.full(3, 4.0)
    p = 2 * stats.t.sf(np.abs(t), freedom)
    shared = step_down(t, freedom, np.array([[1, -1, 0, 0], [1, 0, -1, 0], [1, 0, 0, -1]]))
    assert (shared >= p).all() and (shared <= [3 * p[0] + 1e-3, 2 * p[1] + 1e-3, p[2] + 1e-3]).all()
    # Contrasts that share no arm: 1 - (1 - p)^n, step by step.
    apart = step_down(t, freedom, np.eye(3))
    assert apart[:2] == pytest.approx([1 - (1 - p[0]) ** 3, 1 - (1 - p[1]) ** 2], abs=3e-3)
    assert step_down(t[:1], freedom[:1], np.array([[1, -1]])) == pytest.approx(p[:1], abs=2e-3)


def test_a_family_is_adjusted_within_its_task_and_a_claim_is_not():
    cases = pd.concat([table(simulated(seed=n), task=f"t{n}") for n in range(2)])
    peers = [Contrast("language", arm, "a", "peers") for arm in "bc"]
    found = contrasts_table(cases, peers).set_index(["task", "arm_a"])
    alone = contrasts_table(cases[cases["task"] == "t1"], peers).set_index(["task", "arm_a"])
    assert (found["p_holm"] > found["p"]).any() and (found["p_holm"] >= found["p"]).all()
    assert found.loc["t1", "p_holm"].tolist() == alone["p_holm"].tolist()
    claims = contrasts_table(cases, [row._replace(adjusted=False) for row in peers])
    assert claims["p_holm"].tolist() == claims["p"].tolist()


def test_tasks_are_pooled_by_the_mean_of_their_estimates():
    cases = pd.concat([table(simulated(seed=n, size=4 + n), task=f"t{n}") for n in range(3)])
    found = contrasts_table(cases, [A_B]).set_index("task")
    tasks, pooled = found.drop(POOLED), found.loc[POOLED]
    assert pooled["difference"] == pytest.approx(tasks["difference"].mean())
    assert pooled["n_subjects"] == 5 * (4 + 5 + 6) and pooled["n_trainings"] == 15
    errors = (tasks["ci_high"] - tasks["ci_low"]) / 2 / stats.t.isf(0.025, 4)
    error = np.sqrt((errors**2).sum()) / 3
    freedom = (errors**2).sum() ** 2 / (errors**4).sum() * 4
    half = stats.t.isf(0.025, freedom) * error
    assert pooled["ci_high"] - pooled["difference"] == pytest.approx(half)
    assert half < (tasks["ci_high"] - tasks["difference"]).max()


def test_parts_and_their_interaction_are_what_was_put_in():
    parts = {"hybrid": 0.02, "fusion": 0.01, "interaction": -0.012}
    arms = {}
    for n in range(8):
        language, hybrid, fusion = (int(digit) for digit in f"{n:03b}")
        gain = parts["hybrid"] * hybrid + parts["fusion"] * fusion
        gain += parts["interaction"] * hybrid * fusion + 0.05 * language
        arms[f"{n:03b}"] = np.full((5, 1, 4), 0.7 + gain)
    found = contrasts_table(table(arms, suite="fusion"), factorial("fusion", "parts"))
    # A part's effect is averaged over the other being on and off: half of the interaction.
    assert found["difference"].tolist() == pytest.approx([0.014, 0.004, -0.012])
    assert found["arm_a"].tolist() == ["?1?", "??1", "?11 ?00"]


def test_two_arms_that_differ_in_nothing_are_equivalent():
    same = simulated(("a",))["a"]
    found = one(table({"a": same, "b": same}))
    assert (found["difference"], found["p"], found["verdict"]) == (0, 1, "equivalent")


def test_an_arm_that_was_not_run_gives_no_row():
    cases = table(simulated())
    assert contrasts_table(cases, [A_B._replace(arm_b="z")]).empty
    assert contrasts_table(cases, [A_B._replace(suite="peers")]).columns.tolist() == COLUMNS


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cases: pd.concat([cases, cases.head(1)]), "a, fold 0, repeat 0: case 0_0 is there"),
        (lambda cases: cases.iloc[1:], "a, fold 0, repeat 0 has no case 0_0"),
        (lambda cases: cases.assign(dice=[np.nan, *cases["dice"][1:]]), "case 0_0 has no dice"),
        (lambda cases: cases.assign(synthetic=[True, *cases["synthetic"][1:]]), "mixes synthetic"),
        (
            lambda cases: cases.assign(
                fold=cases["fold"].where(cases["repeat"] == 0, (cases["fold"] + 1) % 5)
            ),
            "is in fold 0 of some repeats only",
        ),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(spoil, said):
    with pytest.raises(RunError, match=said):
        contrasts_table(spoil(table(simulated(repeats=2))), [A_B])
