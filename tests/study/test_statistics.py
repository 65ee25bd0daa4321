"""Statistics on simulated tables whose truth is known, and on tables computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvl.errors import RunError
from mvl.experiment.metrics import METRICS
from mvl.study.statistics import (
    CONTRAST_COLUMNS,
    PARTS,
    PRIMARY,
    SUMMARY_COLUMNS,
    by_part,
    contrast,
    contrasts_table,
    noise_floor,
    sentence,
    summary_table,
    verdict,
)

TASK = "Task04_Hippocampus"
BLOCK = "package:all-minilm-l6-v2"


def table(arms, suite="language", cases_per_subject=1, **columns):
    """A table `cases` from {arm: (seeds, subjects) array of Dice}."""
    rows = [
        {
            "suite": suite,
            "arm": arm,
            "seed": seed,
            "task": TASK,
            "subject": f"s{subject:02d}",
            "case": f"s{subject:02d}_{case}",
            "structure": "foreground",
            "block": None if arm in ("none", "vit") else BLOCK,
            "host": "vit",
            "fraction": 1.0,
            "epochs": 60,
            "protocol_version": 1,
            "synthetic": False,
            "dice": dice,
            "hd95_mm": 10 * (1 - dice),
            "nsd": dice,
        }
        for arm, matrix in arms.items()
        for (seed, subject), dice in np.ndenumerate(np.asarray(matrix, dtype=float))
        for case in range(cases_per_subject)
    ]
    return pd.DataFrame(rows).assign(**columns)


def simulated(generator, effect=0.0, seeds=5, subjects=27, sd=(0.01, 0.005, 0.01), skewed=False):
    """(seeds, subjects) differences: effect + subject + seed + interaction, of the given SDs."""
    of_subjects = generator.normal(size=subjects)
    if skewed:  # mean 0 and variance 1, skewness over 3
        of_subjects = generator.exponential(size=subjects) ** 1.5
        of_subjects = (of_subjects - math.gamma(2.5)) / math.sqrt(6 - math.gamma(2.5) ** 2)
    of_seeds = generator.normal(size=(seeds, 1))
    rest = generator.normal(size=(seeds, subjects))
    return effect + sd[0] * of_subjects + sd[1] * of_seeds + sd[2] * rest


def compared(differences, **options):
    """`contrast` of two arms that differ by `differences`; the level of a subject cancels."""
    level = np.linspace(0.7, 0.9, differences.shape[1])
    arms = {"a": level + differences, "b": np.broadcast_to(level, differences.shape)}
    return contrast(table(arms), "a", "b", **options)


def rates(repetitions, effect=0.0, **options):
    """Shares of simulated tables: interval covers the effect, p < 0.05, p of seeds < 0.05."""
    generator = np.random.default_rng(7)
    found = [
        compared(simulated(generator, effect, **options), draws=1000, seed=n)
        for n in range(repetitions)
    ]
    return (
        np.mean([row["ci_low"] <= effect <= row["ci_high"] for row in found]),
        np.mean([row["p"] < 0.05 for row in found]),
        np.mean([row["p_seeds"] < 0.05 for row in found]),
    )


# Simulated truth


def test_intervals_cover_and_nulls_are_kept():
    coverage, false_positives, _ = rates(300)
    # Binomial noise of 300 repetitions is 1.3 %; three of them either way.
    assert 0.91 <= coverage <= 0.99
    assert 0.01 <= false_positives <= 0.09


def test_few_seeds_widen_the_interval():
    # An uncorrected bootstrap of three seeds covers 76 % here; a t quantile is what is missing.
    coverage, _, _ = rates(200, seeds=3, sd=(0.001, 0.005, 0.003))
    assert coverage >= 0.89


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        # The regimes of the module's docstring; 600 tables have 0.9 % of binomial noise.
        ({"sd": (0.01, 0.0, 0.003)}, 0.93, 0.97),
        ({"sd": (0.001, 0.005, 0.003)}, 0.92, 0.97),
        ({"sd": (0.001, 0.005, 0.003), "seeds": 3}, 0.91, 0.96),
        ({"sd": (0.001, 0.005, 0.003), "seeds": 2}, 0.86, 0.94),
        ({"sd": (0.01, 0.0043, 0.01)}, 0.93, 0.98),
        ({"sd": (0.0, 0.0, 0.01)}, 0.97, 1.0),
        ({"sd": (0.01, 0.002, 0.005), "skewed": True}, 0.88, 0.96),
        ({"sd": (0.01, 0.005, 0.01), "subjects": 8}, 0.93, 0.98),
        ({"sd": (0.01, 0.0, 0.01), "seeds": 1}, 0.93, 0.97),
    ],
)
def test_coverage_in_the_regimes_that_are_stated(options, least, most):
    coverage, false_positives, _ = rates(600, **options)
    assert least <= coverage <= most
    assert abs(1 - coverage - false_positives) < 0.01


def test_seeds_alone_are_no_test_for_other_subjects():
    # The reason why p is not the t test on per-seed means.
    _, crossed, of_seeds = rates(150, sd=(0.01, 0.0, 0.003))
    assert crossed < 0.12
    assert of_seeds > 0.5


@pytest.mark.parametrize("effect", [0.003, 0.006])
def test_power_is_what_the_variance_components_say(effect):
    seeds, subjects, sd = 5, 27, (0.01, 0.001, 0.003)
    variance = sd[0] ** 2 / subjects + sd[1] ** 2 / seeds + sd[2] ** 2 / (seeds * subjects)
    expected = 1 - stats.nct.cdf(
        stats.t.ppf(0.975, subjects - 1), subjects - 1, effect / math.sqrt(variance)
    )
    _, power, _ = rates(200, effect, seeds=seeds, subjects=subjects, sd=sd)
    assert power == pytest.approx(expected, abs=0.1)


def test_the_test_of_equivalence_keeps_its_level_at_the_bound():
    generator = np.random.default_rng(3)
    found = [
        compared(simulated(generator, 0.01), draws=1000, seed=n)["p_tost"] < 0.05
        for n in range(200)
    ]
    assert np.mean(found) <= 0.10


# One contrast


@pytest.mark.parametrize("subjects", [6, 27])
def test_with_one_seed_the_interval_is_on_average_the_paired_t_interval(subjects):
    generator = np.random.default_rng(1)
    widths = []
    for _ in range(40):
        differences = simulated(generator, 0.004, seeds=1, subjects=subjects)
        row = compared(differences)
        expected = stats.ttest_1samp(differences[0], 0)
        interval = expected.confidence_interval()
        assert row["resampled"] == "subjects"
        assert row["p"] == pytest.approx(expected.pvalue, abs=0.1)
        assert math.isnan(row["p_seeds"])
        widths.append((row["ci_high"] - row["ci_low"]) / (interval.high - interval.low))
    assert np.mean(widths) == pytest.approx(1, abs=0.02)


def test_p_of_seeds_is_the_paired_t_test_of_the_seeds_means():
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.8, 0.02, (5, 9)), generator.normal(0.8, 0.02, (5, 9))
    row = contrast(table({"a": a, "b": b}), "a", "b")
    expected = stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).pvalue
    assert row["p_seeds"] == pytest.approx(expected)
    assert row["difference"] == pytest.approx(a.mean() - b.mean())
    assert (row["n_seeds"], row["n_subjects"]) == (5, 9)


def test_interval_p_and_equivalence_never_contradict_each_other():
    generator = np.random.default_rng(4)
    for n in range(60):
        row = compared(simulated(generator, generator.uniform(-0.015, 0.015)), draws=999, seed=n)
        excludes_zero = row["ci_low"] > 0 or row["ci_high"] < 0
        within = row["ci90_low"] > -0.01 and row["ci90_high"] < 0.01
        # The draw that is the observed result itself shifts p by up to 2 / 1000.
        assert excludes_zero == (row["p"] < 0.05) or abs(row["p"] - 0.05) < 0.004
        assert within == (row["p_tost"] < 0.05) or abs(row["p_tost"] - 0.05) < 0.004


def test_swapping_the_arms_mirrors_everything():
    generator = np.random.default_rng(5)
    cases = table({"a": generator.normal(0.8, 0.02, (3, 9)), "b": np.full((3, 9), 0.79)})
    one, other = contrast(cases, "a", "b"), contrast(cases, "b", "a")
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["ci_low"] == pytest.approx(-other["ci_high"])
    assert one["ci_high"] == pytest.approx(-other["ci_low"])
    assert one["p"] == pytest.approx(other["p"])
    assert one["p_tost"] == pytest.approx(other["p_tost"])


def test_the_order_of_rows_and_the_bootstraps_seed():
    cases = table({"a": simulated(np.random.default_rng(6)), "b": np.zeros((5, 27))})
    one = contrast(cases, "a", "b")
    assert contrast(cases.sample(frac=1, random_state=0), "a", "b") == one
    assert contrast(cases, "a", "b", seed=1)["ci_low"] != one["ci_low"]


def test_a_subject_counts_once_however_many_cases_it_has():
    cases = table({"a": [[0.9, 0.5]], "b": [[0.8, 0.6]]})
    more = cases[cases["subject"] == "s00"]
    extra = [more.assign(case=f"s00_{n}") for n in range(1, 9)]
    row = contrast(pd.concat([cases, *extra]), "a", "b")
    assert row["n_subjects"] == 2
    assert row["difference"] == pytest.approx(0.0)


def test_equal_arms_are_equivalent():
    row = contrast(table({"a": np.full((2, 5), 0.8), "b": np.full((2, 5), 0.8)}), "a", "b")
    assert (row["difference"], row["ci_low"], row["ci_high"], row["p"]) == (0, 0, 0, 1)
    assert row["verdict"] == "equivalent"
    assert row["p_seeds"] == 1


def test_one_seed_shows_no_equivalence():
    """Seeds may lie further apart than the bound; better or worse one seed may show."""
    same = table({"a": np.full((1, 9), 0.8), "b": np.full((1, 9), 0.8)})
    row = contrast(same, "a", "b")
    assert (row["ci_low"], row["ci_high"], row["verdict"]) == (0, 0, "undecided")
    assert math.isnan(row["p_tost"])
    less = table({"a": np.full((1, 9), 0.805), "b": np.full((1, 9), 0.8)})
    assert contrast(less, "a", "b")["verdict"] == "better"


def test_one_subject_gives_no_interval():
    row = contrast(table({"a": [[0.9], [0.8]], "b": [[0.7], [0.7]]}), "a", "b")
    assert row["difference"] == pytest.approx(0.15)
    assert all(math.isnan(row[key]) for key in ("ci_low", "ci_high", "p", "p_tost"))
    assert row["verdict"] == "undecided"


def test_seeds_of_one_arm_alone_are_left_out():
    cases = table({"a": [[0.9, 0.8], [0.1, 0.1]], "b": [[0.8, 0.7], [0.8, 0.7]]})
    cases = cases[~((cases["arm"] == "b") & (cases["seed"] == 1))]
    row = contrast(cases, "a", "b")
    assert row["n_seeds"] == 1
    assert row["difference"] == pytest.approx(0.1)


def broken_tables():
    good = table({"a": np.full((2, 3), 0.8), "b": np.full((2, 3), 0.7)})
    b, late = good["arm"] == "b", good["seed"] == 1
    return {
        "different cases": good[~(b & (good["subject"] == "s02"))],
        "every seed needs": good[~(b & late & (good["subject"] == "s02"))],
        "has no dice": good.assign(dice=good["dice"].where(~(b & late))),
        "there twice": pd.concat([good, good.iloc[:1]]),
        "no seed in common": good.assign(seed=good["seed"] + 10 * b),
        "run that arm first": good[~b],
        "mixes protocol_version 1 and 2": good.assign(protocol_version=1 + late),
        "mixes device cpu and cuda": good.assign(device=np.where(late, "cuda", "cpu")),
        "mixes dtype": good.assign(dtype=np.where(late, "bfloat16", "float32")),
        "mixes synthetic": good.assign(synthetic=b),
        "mixes structure": good.assign(structure=np.where(late, "anterior", "posterior")),
        "no metric 'dice'": good.drop(columns="dice"),
    }


@pytest.mark.parametrize("said", broken_tables())
def test_tables_that_cannot_be_compared_are_refused(said):
    with pytest.raises(RunError, match=said):
        contrast(broken_tables()[said], "a", "b")


def test_only_runs_of_one_protocol_device_and_dtype_share_a_table():
    cases = table({"pretrained": np.full((2, 3), 0.8), "random": np.full((2, 3), 0.7)})
    for column in ("protocol_version", "device", "dtype"):
        mixed = cases.assign(**{column: cases["seed"]})
        with pytest.raises(RunError, match=f"mixes {column} 0 and 1"):
            summary_table(mixed, ["dice"])
        with pytest.raises(RunError, match=f"mixes {column} 0 and 1"):
            contrasts_table(mixed, [("language", "pretrained", "random")])


# Verdicts


@pytest.mark.parametrize(
    ("metric", "ci_low", "ci_high", "p", "p_tost", "said"),
    [
        ("dice", 0.012, 0.030, 0.001, 0.99, "better by at least 0.01"),
        ("dice", 0.012, 0.030, 0.060, 0.99, "undecided"),  # not after adjustment
        ("dice", 0.004, 0.030, 0.010, 0.90, "better"),
        ("dice", 0.001, 0.007, 0.010, 0.001, "better but negligible"),
        ("dice", -0.003, 0.004, 0.700, 0.001, "equivalent"),
        ("dice", -0.007, -0.001, 0.010, 0.001, "worse but negligible"),
        ("dice", -0.007, -0.001, 0.060, 0.001, "equivalent"),  # not after adjustment
        ("dice", -0.030, -0.004, 0.010, 0.90, "worse"),
        ("dice", -0.020, 0.030, 0.600, 0.40, "undecided"),
        ("nsd", 0.012, 0.030, 0.001, 0.99, "better by at least 0.01"),
        ("hd95_mm", -0.5, -0.2, 0.001, math.nan, "better"),
        ("hd95_mm", 0.2, 0.5, 0.001, math.nan, "worse"),
        ("hd95_mm", -0.001, 0.001, 0.900, math.nan, "undecided"),
        ("dice", math.nan, math.nan, math.nan, math.nan, "undecided"),
    ],
)
def test_verdicts(metric, ci_low, ci_high, p, p_tost, said):
    assert verdict(metric, ci_low, ci_high, p, p_tost) == said


@pytest.mark.parametrize(
    ("effect", "noise", "said", "distance"),
    [
        (0.05, 0.005, "better by at least 0.01", "better"),
        (0.005, 0.001, "better but negligible", "better"),
        (0.0, 0.002, "equivalent", "undecided"),
        (-0.005, 0.001, "worse but negligible", "worse"),
        (-0.05, 0.005, "worse", "worse"),
        (0.0, 0.1, "undecided", "undecided"),
    ],
)
def test_a_known_effect_gets_its_verdict(effect, noise, said, distance):
    differences = simulated(np.random.default_rng(8), effect, sd=(noise, noise / 2, noise))
    assert compared(differences)["verdict"] == said
    # The table's HD95 falls where its Dice rises.
    row = compared(differences, metric="hd95_mm")
    assert row["verdict"] == distance
    assert row["difference"] == pytest.approx(-10 * differences.mean())
    assert math.isnan(row["p_tost"])


# Tables


def study(generator, effects, seeds=3, subjects=12):
    level = generator.normal(0.8, 0.03, subjects)
    return table(
        {
            arm: level + simulated(generator, e, seeds, subjects, (0.004, 0.002, 0.004))
            for arm, e in effects.items()
        }
    )


def test_contrasts_table_and_holm_by_hand():
    cases = study(
        np.random.default_rng(9),
        {"none": 0, "pretrained": 0.006, "random": 0.004, "shuffled": 0.003, "identity": 0},
    )
    pairs = [("language", "pretrained", arm) for arm in ("none", "random", "shuffled", "identity")]
    found = contrasts_table(cases, [*pairs, ("language", "pretrained", "absent")])
    assert list(found.columns) == CONTRAST_COLUMNS
    assert len(found) == 4
    primary = (found["arm_b"] == "random").to_numpy()
    assert found.loc[primary, "p_holm"].equals(found.loc[primary, "p"])

    # Holm: the smallest of three times 3, the next times 2, the last as it is, never falling.
    family = found[~primary].sort_values("p")
    expected = np.minimum(np.maximum.accumulate(family["p"].to_numpy() * [3, 2, 1]), 1)
    assert family["p_holm"].to_numpy() == pytest.approx(expected)
    assert set(found["block"]) == {BLOCK}
    for row in found.itertuples():
        alone = contrast(cases, row.arm_a, row.arm_b)
        assert (row.ci_low, row.ci_high, row.p) == (alone["ci_low"], alone["ci_high"], alone["p"])


def test_no_p_rises_when_more_of_the_planned_comparisons_are_run():
    arms = {"none": 0, "pretrained": 0.006, "random": 0.004, "shuffled": 0.003, "identity": 0}
    cases = study(np.random.default_rng(9), arms)
    pairs = [("language", "pretrained", arm) for arm in ("none", "shuffled", "identity")]
    few, all_of_them = (contrasts_table(cases, some, family=8) for some in (pairs[1:2], pairs))
    assert few["p_holm"].tolist() == pytest.approx((8 * few["p"]).clip(upper=1).tolist())
    shuffled = all_of_them[all_of_them["arm_b"] == "shuffled"]["p_holm"].item()
    assert shuffled <= few["p_holm"].item()
    ordered = all_of_them.sort_values("p")
    expected = np.minimum(np.maximum.accumulate(ordered["p"].to_numpy() * [8, 7, 6]), 1)
    assert ordered["p_holm"].to_numpy() == pytest.approx(expected)


def test_the_primary_contrast_is_the_protocols():
    assert PRIMARY == {
        "suite": "language",
        "arm_a": "pretrained",
        "arm_b": "random",
        "task": "Task04_Hippocampus",
        "structure": "foreground",
        "metric": "dice",
    }


def test_holm_costs_a_verdict():
    # Twenty arms of no effect and one of a small one, that is better only as long as it is alone.
    generator = np.random.default_rng(10)
    effects = {"a": 0.004, **{f"b{n}": 0.0 for n in range(20)}}
    cases = study(generator, effects)
    alone = contrasts_table(cases, [("language", "a", "b0")])
    among = contrasts_table(cases, [("language", "a", f"b{n}") for n in range(20)])
    assert alone["p_holm"][0] == alone["p"][0] == among["p"][0]
    assert among["p_holm"][0] > among["p"][0]
    assert (among["p_holm"] >= among["p"]).all()


def test_one_comparison_under_two_names_counts_once():
    cases = study(np.random.default_rng(11), {"none": 0, "pretrained": 0.006, "identity": 0.002})
    again = cases.assign(suite="fusion", arm=cases["arm"].replace({"none": "000"}))
    pairs = [("language", "pretrained", "none"), ("language", "pretrained", "identity")]
    family = contrasts_table(cases, pairs)
    both = contrasts_table(pd.concat([cases, again]), [*pairs, ("fusion", "pretrained", "000")])
    assert both["p_holm"].tolist() == [*family["p_holm"], family["p_holm"][0]]


def test_contrasts_keep_tasks_structures_and_synthetic_data_apart():
    real = study(np.random.default_rng(11), {"pretrained": 0.0, "none": 0.0})
    other = real.assign(task="Task09_Spleen", synthetic=True)
    parts = pd.concat([real, real.assign(structure="anterior"), other])
    found = contrasts_table(parts, [("language", "pretrained", "none")], ["dice", "hd95_mm"])
    keys = found[["task", "structure", "metric", "synthetic"]]
    assert keys.values.tolist() == [
        [TASK, "anterior", "dice", False],
        [TASK, "anterior", "hd95_mm", False],
        [TASK, "foreground", "dice", False],
        [TASK, "foreground", "hd95_mm", False],
        ["Task09_Spleen", "foreground", "dice", True],
        ["Task09_Spleen", "foreground", "hd95_mm", True],
    ]


def test_no_pair_gives_an_empty_table_with_its_columns():
    found = contrasts_table(table({"vit": np.ones((1, 2))}), [("language", "pretrained", "none")])
    assert found.empty
    assert list(found.columns) == CONTRAST_COLUMNS


def test_summary_table_by_hand():
    # Two seeds; subject s00 has the values 0.6 and 0.8, subject s01 0.7 and 0.9.
    cases = table({"none": [[0.6, 0.7], [0.8, 0.9]]}, cases_per_subject=2)
    found = summary_table(cases, ["dice", "hd95_mm"])
    assert list(found.columns) == SUMMARY_COLUMNS
    dice, distance = found.to_dict("records")
    assert (dice["n_subjects"], dice["n_cases"], dice["n_seeds"]) == (2, 4, 2)
    assert dice["mean"] == pytest.approx(0.75)
    assert dice["sd_subjects"] == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert dice["sd_seeds"] == pytest.approx(np.std([0.65, 0.85], ddof=1))
    assert distance["mean"] == pytest.approx(2.5)
    assert (dice["epochs"], dice["host"], dice["fraction"]) == (60, "vit", 1.0)
    assert pd.isna(dice["block"])


def test_summary_table_has_every_metric_of_every_arm():
    cases = table({"none": np.full((1, 3), 0.7), "pretrained": np.full((1, 3), 0.8)})
    found = summary_table(cases.assign(**dict.fromkeys(METRICS, 0.5)))
    assert found.groupby("arm", sort=False)["metric"].apply(list).to_dict() == {
        "none": list(METRICS),
        "pretrained": list(METRICS),
    }
    assert found["sd_seeds"].isna().all()


def test_noise_floor_by_hand():
    cases = table({"vit": [[0.70, 0.72], [0.73, 0.73], [0.71, 0.71]], "other": np.zeros((3, 2))})
    found = noise_floor(cases, "vit")
    assert found["n_seeds"] == 3
    assert found["sd_seeds"] == pytest.approx(np.std([0.71, 0.73, 0.71], ddof=1))
    assert found["mean_difference"] == pytest.approx(0.04 / 3)
    assert found["largest_difference"] == pytest.approx(0.02)
    one = noise_floor(cases[cases["seed"] == 0], "vit")
    assert one["n_seeds"] == 1
    assert all(math.isnan(one[key]) for key in set(one) - {"n_seeds"})


def test_what_a_part_earns_is_of_seeds_with_all_combinations():
    worth = {"0": 0.0, "1": 1.0}
    arms = [f"{a}{b}{c}" for a in "01" for b in "01" for c in "01"]
    effects = {arm: 0.7 + 0.01 * worth[arm[0]] - 0.02 * worth[arm[2]] for arm in arms}
    subjects = np.array([0.0, 0.01, 0.05])
    whole = table(
        {arm: effect + np.stack([subjects, 2 * subjects]) for arm, effect in effects.items()}
    )
    found = by_part(whole)
    assert list(found) == list(PARTS)
    for part, effect in zip(PARTS, (0.01, 0.0, -0.02), strict=True):
        row = contrast(found[part], "on", "off")
        assert row["difference"] == pytest.approx(effect) and row["n_seeds"] == 2
    # A seed of some arms alone would compare other combinations.
    lone = table({"000": np.full((1, 3), 0.1), "100": np.full((1, 3), 0.9)}).assign(seed=2)
    more = by_part(pd.concat([whole, lone], ignore_index=True))
    pd.testing.assert_frame_equal(more["language block"], found["language block"])
    assert by_part(whole[whole["arm"] != "010"]) == {}


# Sentences

ROW = {
    "suite": "language",
    "arm_a": "pretrained",
    "arm_b": "random",
    "task": TASK,
    "structure": "foreground",
    "metric": "dice",
    "block": BLOCK,
    "n_subjects": 27,
    "n_seeds": 5,
    "difference": 0.00123,
    "ci_low": -0.00211,
    "ci_high": 0.00456,
    "p": 0.4,
    "p_holm": 0.412,
    "p_tost": 0.0002,
    "verdict": "equivalent",
    "protocol_version": 1,
    "synthetic": False,
}


def test_a_sentence_says_it_all():
    assert sentence(ROW) == (
        "Task04_Hippocampus, foreground (27 subjects, 5 seeds): in Dice, pretrained minus random "
        "is +0.0012 (95 % interval -0.0021 to +0.0046, adjusted p = 0.412). Verdict: equivalent, "
        "pretrained and random differ by less than 0.01. This is about the block "
        "package:all-minilm-l6-v2 and decides nothing about another."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"synthetic": True}, "Synthetic data: Task04"),
        ({"n_seeds": 1, "n_subjects": 1}, "(1 subject, 1 seed)"),
        ({"n_seeds": 1}, "other seeds may differ"),
        ({"block": ""}, "No language block is involved."),
        ({"block": math.nan}, "No language block is involved."),
        ({"p_holm": 0.0002}, "adjusted p < 0.001"),
        ({"p": 0.412}, "+0.0046, p = 0.412"),
        ({"metric": "hd95_mm", "difference": -0.4}, "in HD95, pretrained minus random is -0.40 mm"),
        ({"metric": "nsd"}, "in NSD"),
        ({"verdict": "better by at least 0.01"}, "pretrained is better than random by at least"),
        ({"verdict": "better but negligible"}, "beats random by less than 0.01"),
        ({"verdict": "worse but negligible"}, "trails random by less than 0.01"),
        ({"verdict": "worse"}, "pretrained is worse than random, maybe by less than 0.01."),
        ({"verdict": "worse", "ci_low": -0.03, "ci_high": -0.01}, "than random, by at least 0.01."),
        ({"verdict": "worse", "metric": "hd95_mm"}, "pretrained is worse than random."),
        ({"verdict": "undecided"}, "undecided between pretrained and random"),
        ({"verdict": "better", "ci_low": 0.004}, "better than random, maybe by less than 0.01."),
        ({"ci_low": math.nan, "verdict": "undecided"}, "one subject gives none"),
    ],
)
def test_what_a_sentence_has_to_say(changes, said):
    assert said in sentence(ROW | changes)


def test_every_row_of_a_table_has_its_sentence():
    cases = study(np.random.default_rng(12), {"pretrained": 0.05, "none": 0.0})
    found = contrasts_table(cases, [("language", "pretrained", "none")], ["dice", "hd95_mm"])
    dice, distance = (sentence(row) for _, row in found.iterrows())
    assert "pretrained is better than none by at least 0.01." in dice
    assert "pretrained is better than none." in distance
