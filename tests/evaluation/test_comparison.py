"""Comparison of models against loops, scipy, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

from sssd_hf.evaluation.comparison import (
    bootstrap_p_value,
    compare_models,
    corrected_resampled_t_test,
    holm,
)
from sssd_hf.evaluation.metrics import classification_metrics
from sssd_hf.evaluation.resampling import NAMES


def two_models(seed=0, count=120, lead=0.8):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    common = generator.normal(size=count)
    scores = [lead * 2 * labels + common, labels + common + generator.normal(size=count)]
    columns = [1 / (1 + np.exp(-score + score.mean())) for score in scores]
    return labels, *(np.stack([1 - column, column], axis=1) for column in columns)


def test_points_are_those_of_each_model_and_swapping_turns_the_sign():
    labels, first, second = two_models()
    found = compare_models(labels, first, second, num_resamples=300)["metrics"]
    swapped = compare_models(labels, second, first, num_resamples=300)["metrics"]
    a, b = classification_metrics(labels, first), classification_metrics(labels, second)
    assert set(found) == set(NAMES)
    for name, row in found.items():
        assert (row["a"], row["b"]) == pytest.approx((a[name], b[name]), abs=1e-12)
        assert row["difference"] == row["a"] - row["b"]
        assert row["low"] <= row["high"]
        turned = swapped[name]
        assert (turned["low"], turned["high"]) == pytest.approx((-row["high"], -row["low"]))
        assert turned["p"] == row["p"]


def test_pairs_of_draws_are_the_same_images():
    """Against a loop over scikit-learn with draws of its own: same interval but for chance."""
    labels, first, second = two_models(1)
    found = compare_models(labels, first, second, num_resamples=4000)["metrics"]
    generator, differences = np.random.default_rng(9), []
    for _ in range(1500):
        index = np.concatenate([generator.choice(np.flatnonzero(labels == c), 60) for c in (0, 1)])
        pair = [
            (
                roc_auc_score(labels[index], probabilities[index, 1]),
                accuracy_score(labels[index], probabilities[index].argmax(axis=1)),
            )
            for probabilities in (first, second)
        ]
        differences.append(np.subtract(*pair))
    for column, name in enumerate(("roc_auc", "accuracy")):
        expected = np.quantile(np.array(differences)[:, column], [0.025, 0.975])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(expected, abs=0.02)


def test_a_model_against_itself_does_not_differ():
    labels, first, _ = two_models()
    found = compare_models(labels, first, first, num_resamples=50)
    for row in found["metrics"].values():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert found["independent_images"]["mcnemar"]["p_exact"] == 1
    assert found["independent_images"]["delong"]["p"] == 1
    assert "independent" in found["independent_images"]["delong"]["assumption"]


def test_copies_of_a_patient_make_only_the_image_tests_surer():
    labels, first, second = two_models(2, count=80)
    copies = np.repeat(np.arange(80), 6)
    once = compare_models(labels, first, second)
    many = compare_models(labels[copies], first[copies], second[copies], groups=copies)
    width = [found["metrics"]["roc_auc"]["high"] - found["metrics"]["roc_auc"]["low"]
             for found in (once, many)]  # fmt: skip
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert many["independent_images"]["delong"]["p"] < once["independent_images"]["delong"]["p"]


def test_three_classes_have_no_delong_and_one_group_no_interval():
    generator = np.random.default_rng(3)
    labels = np.arange(30) % 3
    first, second = generator.dirichlet(np.ones(3), size=(2, 30))
    found = compare_models(labels, first, second, groups=np.zeros(30), num_resamples=20)
    assert set(found["independent_images"]) == {"mcnemar"}
    assert math.isnan(found["metrics"]["accuracy"]["p"])
    assert not math.isnan(found["metrics"]["accuracy"]["difference"])


def test_models_of_other_shapes_are_refused():
    labels, first, _ = two_models()
    with pytest.raises(ValueError, match="expected twice the same"):
        compare_models(labels, first, np.full((120, 3), 1 / 3))


def test_bootstrap_p_value_by_hand():
    assert bootstrap_p_value([1, 2, 3, -1]) == pytest.approx(2 * 2 / 5)
    assert bootstrap_p_value([1] * 999) == pytest.approx(2 / 1000)
    assert bootstrap_p_value([0, 0, 1]) == 1
    assert math.isnan(bootstrap_p_value([math.nan]))


def test_p_value_is_small_as_rarely_as_it_says_where_models_are_alike():
    """Two scores of the same quality: p < 0.2 in about a fifth of 120 data sets."""
    generator, below = np.random.default_rng(7), 0
    labels = np.arange(80) % 2
    for _ in range(120):
        scores = labels + generator.normal(size=80) + generator.normal(size=(2, 80))
        columns = 1 / (1 + np.exp(-scores))
        models = [np.stack([1 - column, column], axis=1) for column in columns]
        below += compare_models(labels, *models, num_resamples=200)["metrics"]["roc_auc"]["p"] < 0.2
    assert 10 <= below <= 40


def test_t_test_without_overlap_is_scipys_paired_one():
    differences = np.random.default_rng(4).normal(0.3, 1, size=12)
    found = corrected_resampled_t_test(differences, 0, confidence=0.9)
    expected = stats.ttest_1samp(differences, 0)
    assert (found["t"], found["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval(0.9)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_t_test_by_hand():
    """Mean 0.02, variance 0.0001 x 5 / 2, ratio 1/4: t = 0.02 / sqrt((1/5 + 1/4) 0.00025)."""
    found = corrected_resampled_t_test([0.00, 0.01, 0.02, 0.03, 0.04], 0.25)
    assert found["mean"] == pytest.approx(0.02)
    assert found["degrees_of_freedom"] == 4
    assert found["t"] == pytest.approx(0.02 / math.sqrt(0.45 * 0.00025))
    assert found["p"] == pytest.approx(2 * stats.t.sf(found["t"], 4))


def test_t_test_without_spread():
    assert corrected_resampled_t_test([0, 0, 0], 0.25)["p"] == 1
    found = corrected_resampled_t_test([0.1, 0.1, 0.1], 0.25)
    assert found["mean"] == pytest.approx(0.1)
    assert all(math.isnan(found[name]) for name in ("low", "high", "t", "p")), "nothing to go by"


def test_t_test_keeps_its_level_on_overlapping_draws():
    """Draws of 80 of 100 equal differences: plain t rejects far too often, the corrected not."""
    generator, plain, corrected = np.random.default_rng(5), 0, 0
    for _ in range(200):
        images = generator.normal(size=100)  # what each image adds to a difference
        draws = [images[generator.permutation(100)[:80]].mean() for _ in range(10)]
        plain += corrected_resampled_t_test(draws, 0)["p"] < 0.05
        corrected += corrected_resampled_t_test(draws, 4.0)["p"] < 0.05
    assert plain > 60
    assert corrected < plain / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([0.1], 0.25), "at least two"), (([0.1, math.nan], 0.25), "1 values"),
     (([0.1, 0.2], -1), "test_train_ratio is -1")],
)  # fmt: skip
def test_t_test_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrected_resampled_t_test(*arguments)


def test_holm_by_hand_and_by_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    generator = np.random.default_rng(6)
    for _ in range(20):
        values = generator.random(7) ** 3
        adjusted = holm(values)
        for alpha in (0.01, 0.05, 0.2, 0.7):
            rejected = set()  # Holm's step-down rule itself
            for step, index in enumerate(np.argsort(values)):
                if values[index] > alpha / (7 - step):
                    break
                rejected.add(int(index))
            assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected


def test_holm_leaves_out_what_is_missing():
    assert holm([0.02, math.nan, 0.5]).tolist() == pytest.approx([0.04, math.nan, 0.5], nan_ok=True)
    assert len(holm([])) == 0
    with pytest.raises(ValueError, match=r"numbers in 0\.\.1"):
        holm([1.5])
