"""Calibration against known temperatures, brute-force searches and loops."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss, recall_score

from sssd_hf.evaluation.calibration import (
    TEMPERATURES,
    apply_calibration,
    choose_threshold,
    fit_calibration,
    fit_temperature,
    parse_rule,
    reliability_curve,
    selective_prediction,
)
from sssd_hf.evaluation.metrics import expected_calibration_error


def drawn_from(logits, seed=0):
    """Labels drawn from softmax(logits), of which these logits are then the calibrated ones."""
    probabilities = softmax(logits, axis=1)
    uniform = np.random.default_rng(seed).random((len(logits), 1))
    return (probabilities.cumsum(axis=1) < uniform).sum(axis=1).clip(max=logits.shape[1] - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_known_temperature_is_recovered(temperature, num_classes):
    logits = np.random.default_rng(1).normal(0, 2, size=(20_000, num_classes))
    labels = drawn_from(logits)
    found = fit_temperature(labels, logits * temperature)
    assert found == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(labels, log_softmax(logits * temperature, axis=1)) == pytest.approx(
        found
    )


@pytest.mark.parametrize("seed", range(6))
def test_fit_is_the_minimum_and_never_worse_than_none(seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, size=(25, 3))
    labels = generator.integers(3, size=25)
    labels[:12] = logits[:12].argmax(axis=1)

    def loss(temperature):
        return log_loss(labels, softmax(logits / temperature, axis=1), labels=[0, 1, 2])

    found = fit_temperature(labels, logits)
    assert loss(found) <= loss(1.0)
    reference = minimize(lambda x: loss(math.exp(x[0])), [0.0], method="Nelder-Mead")
    assert loss(found) <= reference.fun + 1e-9
    assert loss(found) <= min(loss(value) for value in np.geomspace(*TEMPERATURES, 200)) + 1e-12


def test_separable_data_get_the_bound_and_a_warning():
    labels = np.arange(20) % 2
    logits = np.stack([1.0 - labels, labels], axis=1)
    with pytest.warns(UserWarning, match=r"at its bound 0.05.*all are predicted rightly"):
        assert fit_temperature(labels, logits) == pytest.approx(TEMPERATURES[0])
    with pytest.warns(UserWarning, match=r"at its bound 20.*says little"):
        assert fit_temperature(1 - labels, logits) == pytest.approx(TEMPERATURES[1])


def test_temperature_of_nonsense_is_refused():
    with pytest.raises(ValueError, match="finite values"):
        fit_temperature([0, 1], [[0.0, -math.inf], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"labels hold \[5\]"):
        fit_temperature([0, 5], [[0.0, 1.0], [0.0, 1.0]])


def all_thresholds(scores):
    return [*np.unique(scores), 2.0]


def rates(labels, scores, threshold):
    decided = scores >= threshold
    return recall_score(labels, decided), recall_score(labels, decided, pos_label=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", ["youden", "sensitivity>=0.9", "sensitivity>=1", "cost=4"])
def test_threshold_is_the_best_of_all(seed, rule):
    generator = np.random.default_rng(seed)
    labels = np.append([0, 1], generator.random(38) < 0.4).astype(int)
    scores = np.round(1 / (1 + np.exp(-generator.normal(size=40) - labels)), 1 + seed % 2)
    sensitivity, specificity = rates(labels, scores, choose_threshold(labels, scores, rule))
    every = [rates(labels, scores, threshold) for threshold in all_thresholds(scores)]
    if rule == "youden":
        assert sensitivity + specificity == pytest.approx(max(map(sum, every)))
    elif rule == "cost=4":
        share = labels.mean()
        cost = [4 * share * (1 - a) + (1 - share) * (1 - b) for a, b in every]
        assert 4 * share * (1 - sensitivity) + (1 - share) * (1 - specificity) == pytest.approx(
            min(cost)
        )
    else:
        least = float(rule.split("=")[1])
        assert sensitivity >= least - 1e-12
        assert specificity == max(b for a, b in every if a >= least - 1e-12)


def test_thresholds_by_hand():
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]
    assert choose_threshold(labels, scores, "youden") == pytest.approx(0.25)  # 0.6 is as good
    assert choose_threshold(labels, scores, "sensitivity>=0.5") == pytest.approx(0.6)
    assert choose_threshold(labels, scores, "cost=0.1") == pytest.approx(0.6)
    assert choose_threshold([1, 0], [0.2, 1.0], "cost=0.1") > 1  # all negative is the cheapest
    assert choose_threshold([0, 1], [0.1, np.nextafter(0.1, 1)], "youden") > 0.1
    twenty = np.append(np.zeros(5), np.ones(20))
    scores = np.append(np.full(5, 0.05), np.linspace(0.1, 0.9, 20))
    chosen = choose_threshold(twenty, scores, "sensitivity>=0.95")
    assert (scores[5:] >= chosen).sum() == 19


@pytest.mark.parametrize("rule", ["f1", "sensitivity>=95", "cost=0", "cost=x", "sensitivity>="])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match="the rule of the threshold"):
        parse_rule(rule)


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 0], [0.1, 0.2]), ([0, 1], [0.1]), ([0, 1], [0.1, 3.0])]
)
def test_threshold_says_what_is_wrong(labels, scores):
    with pytest.raises(ValueError, match="threshold: "):
        choose_threshold(labels, scores)


def test_fitted_is_plain_and_applies_to_probabilities():
    logits = np.random.default_rng(2).normal(0, 2, size=(400, 2))
    labels = drawn_from(logits)
    calibration = fit_calibration(labels, logits * 2.5, "sensitivity>=0.9")
    calibration = json.loads(json.dumps(calibration))
    assert set(calibration) == {"temperature", "threshold", "rule", "fitted_on"}
    assert calibration["fitted_on"] == "validation"
    before = softmax(logits * 2.5, axis=1)
    after, decisions = apply_calibration(before, calibration)
    np.testing.assert_allclose(
        after, softmax(logits * 2.5 / calibration["temperature"], axis=1), atol=1e-9
    )
    assert log_loss(labels, after) < log_loss(labels, before)
    assert recall_score(labels, decisions) >= 0.9
    assert decisions.dtype == np.int64


def test_more_classes_and_no_calibration_decide_for_the_most_probable():
    logits = np.random.default_rng(3).normal(0, 2, size=(60, 3))
    calibration = fit_calibration(drawn_from(logits), logits)
    assert (calibration["threshold"], calibration["rule"]) == (None, "argmax")
    probabilities = softmax(logits, axis=1)
    assert (apply_calibration(probabilities, calibration)[1] == logits.argmax(axis=1)).all()
    same, decisions = apply_calibration(probabilities, None)
    assert (same == probabilities).all()
    assert (decisions == logits.argmax(axis=1)).all()


def test_certain_probabilities_stay_finite():
    calibrated, _ = apply_calibration([[1.0, 0.0]], {"temperature": 4.0, "threshold": None})
    assert np.isfinite(calibrated).all()
    assert calibrated[0, 0] > 0.99


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"temperature": 0.0, "threshold": None}, "temperature 0.0"),
        ({"temperature": 1.0, "threshold": 0.5}, "for 3 classes"),
        ({"temperature": 1.0}, "lacks threshold"),
    ],
)
def test_broken_calibration_is_refused(calibration, message):
    with pytest.raises(ValueError, match=message):
        apply_calibration([[0.2, 0.3, 0.5]], calibration)


def test_reliability_curve_adds_up_to_the_calibration_error():
    logits = np.random.default_rng(4).normal(0, 2, size=(300, 3))
    labels, probabilities = drawn_from(logits), softmax(2 * logits, axis=1)
    curve = reliability_curve(labels, probabilities, 10)
    assert sum(point["count"] for point in curve) == 300
    error = sum(point["count"] * abs(point["accuracy"] - point["confidence"]) for point in curve)
    assert error / 300 == pytest.approx(expected_calibration_error(labels, probabilities, 10))
    for point in curve:
        assert point["low"] < point["confidence"] <= point["high"]
        assert point["accuracy_low"] <= point["accuracy"] <= point["accuracy_high"]
    json.dumps(curve)


def test_selective_prediction_equals_a_loop():
    generator = np.random.default_rng(5)
    probabilities = softmax(np.round(generator.normal(size=(50, 3)), 0), axis=1)
    labels = drawn_from(np.log(probabilities))
    found = selective_prediction(labels, probabilities)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    area, before = 0.0, 0.0
    levels = sorted(set(confidence.tolist()), reverse=True)
    assert found["threshold"] == levels
    for level, coverage, accuracy in zip(levels, found["coverage"], found["accuracy"], strict=True):
        answered = confidence >= level
        assert coverage == pytest.approx(answered.mean())
        assert accuracy == pytest.approx(accuracy_score(labels[answered], predicted[answered]))
        area += (coverage - before) * accuracy
        before = coverage
    assert found["area"] == pytest.approx(area)
    assert found["coverage"][-1] == 1


def test_selective_prediction_by_hand():
    """Right, right, wrong by falling confidence; then all of one confidence."""
    found = selective_prediction([0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert found["area"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert selective_prediction([0, 0, 1], [[0.9, 0.1]] * 3)["area"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one"):
        selective_prediction([], np.zeros((0, 2)))
