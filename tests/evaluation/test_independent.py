"""DeLong against the formulas pair by pair and published values; McNemar against scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from sssd_hf.evaluation.independent import (
    delong_covariance,
    delong_interval,
    delong_test,
    mcnemar_test,
)


def delong_by_pairs(labels, scores):
    """The structural components of DeLong et al. (1988), one pair of images at a time."""
    positives = [i for i, label in enumerate(labels) if label == 1]
    negatives = [i for i, label in enumerate(labels) if label == 0]

    def psi(score, i, j):
        return 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0

    m, n = len(positives), len(negatives)
    aucs, first, second = [], [], []
    for score in scores:
        first.append([sum(psi(score, i, j) for j in negatives) / n for i in positives])
        second.append([sum(psi(score, i, j) for i in positives) / m for j in negatives])
        aucs.append(sum(first[-1]) / m)
    covariance = np.zeros((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = sum((a - aucs[r]) * (b - aucs[s]) for a, b in zip(first[r], first[s])) / (m - 1)
            s01 = sum((a - aucs[r]) * (b - aucs[s]) for a, b in zip(second[r], second[s])) / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return aucs, covariance


def case(seed, count=45, decimals=1):
    generator = np.random.default_rng(seed)
    labels = np.append([0, 0, 1, 1], generator.integers(2, size=count - 4))
    common = generator.normal(size=count)
    scores = labels + common + generator.normal(size=(3, count))
    return labels, np.round(scores, decimals)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [0, 6])
def test_delong_equals_the_formulas(seed, decimals):
    labels, scores = case(seed, decimals=decimals)
    aucs, covariance = delong_covariance(labels, scores)
    expected_aucs, expected = delong_by_pairs(labels, scores)
    np.testing.assert_allclose(aucs, expected_aucs, atol=1e-12)
    np.testing.assert_allclose(aucs, [roc_auc_score(labels, score) for score in scores])
    np.testing.assert_allclose(covariance, expected, atol=1e-14)
    found = delong_test(labels, scores[0], scores[1])
    error = math.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert found["z"] == pytest.approx((expected_aucs[0] - expected_aucs[1]) / error, abs=1e-9)
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(found["z"])), abs=1e-12)
    low, high = stats.norm.interval(0.9, expected_aucs[0] - expected_aucs[1], error)
    ninety = delong_test(labels, scores[0], scores[1], confidence=0.9)
    assert (ninety["low"], ninety["high"]) == pytest.approx((low, high), abs=1e-9)
    one = delong_interval(labels, scores[0])
    low, high = stats.norm.interval(0.95, expected_aucs[0], math.sqrt(expected[0, 0]))
    assert (one["low"], one["high"]) == pytest.approx((max(0, low), min(1, high)), abs=1e-9)


# Points of the ROC curve of serum S100B for the outcome of 113 patients with subarachnoid
# haemorrhage (Turck et al. 2010, Intensive Care Medicine 36:107), as images at or above each
# distinct value, from the highest down: 41 with poor, 72 with good outcome.
# fmt: off
S100B_POOR = [
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 12, 13, 14, 14, 14, 14, 16, 16, 17, 17, 18, 18, 19, 20, 21,
    21, 22, 23, 24, 24, 25, 26, 26, 26, 26, 27, 27, 28, 30, 31, 32, 34, 36, 37, 40, 40, 40, 40, 41,
]
S100B_GOOD = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 3, 5, 6, 7, 7, 8, 8, 9, 9, 10, 11, 12, 12, 13, 13, 13,
    13, 14, 14, 14, 16, 17, 19, 22, 26, 30, 33, 33, 37, 44, 50, 56, 62, 64, 67, 72, 72,
]
# fmt: on


def test_delong_equals_published_values():
    """AUC and variance of this curve as R's pROC has them, in its tests."""
    poor, good = np.diff(S100B_POOR, prepend=0), np.diff(S100B_GOOD, prepend=0)
    level = -np.arange(50.0)
    labels = np.repeat([1, 0], [41, 72])
    scores = np.concatenate([np.repeat(level, poor), np.repeat(level, good)])
    found = delong_interval(labels, scores)
    assert found["auc"] == pytest.approx(0.73136856368563685, abs=1e-12)
    assert found["variance"] == pytest.approx(0.00266868245717244, abs=1e-12)


def test_delong_without_spread():
    labels = [0, 0, 1, 1]
    same = delong_test(labels, [1, 2, 2, 4], [10, 20, 20, 40])
    assert (same["difference"], same["z"], same["p"]) == (0, 0, 1)
    clear = delong_test(labels, [1, 2, 3, 4], [4, 3, 2, 1])
    assert (clear["z"], clear["p"]) == (math.inf, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("labels", "auc"), [([0, 0, 0], math.nan), ([0, 0, 1], 1.0)])
def test_delong_of_too_few_is_nan(labels, auc):
    found = delong_interval(labels, [0.1, 0.2, 0.3])
    assert found["auc"] == pytest.approx(auc, nan_ok=True)
    assert all(math.isnan(found[name]) for name in ("variance", "low", "high"))
    assert math.isnan(delong_test(labels, [0.1, 0.2, 0.3], [0.3, 0.2, 0.1])["p"])


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 2], [0.1, 0.2]), ([0, 1], [0.1]), ([0, 1], [0.1, math.nan])]
)
def test_delong_says_what_is_wrong(labels, scores):
    with pytest.raises(ValueError, match=r"expected|must be"):
        delong_interval(labels, scores)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 9), (5, 5), (40, 18), (0, 6)])
def test_mcnemar_equals_binomial_test(only_a, only_b):
    right_a = np.repeat([True, False, True, False], [only_a, only_b, 7, 4])
    right_b = np.repeat([False, True, True, False], [only_a, only_b, 7, 4])
    found = mcnemar_test(right_a, right_b)
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    discordant = only_a + only_b
    if discordant == 0:
        assert found["p_exact"] == found["p_mid"] == 1
        return
    exact = stats.binomtest(only_a, discordant).pvalue
    assert found["p_exact"] == pytest.approx(exact, abs=1e-12)
    # half of the probability of all outcomes as extreme as the observed, and all of the further
    weight = [math.comb(discordant, k) / 2**discordant for k in range(discordant + 1)]
    distance = abs(only_a - discordant / 2)
    mid = sum(
        probability * (1 if abs(k - discordant / 2) > distance else 0.5)
        for k, probability in enumerate(weight)
        if abs(k - discordant / 2) >= distance
    )
    assert found["p_mid"] == pytest.approx(mid, abs=1e-12)


def test_mcnemar_wants_booleans():
    with pytest.raises(ValueError, match="expected booleans"):
        mcnemar_test([1, 0], [True, False])
