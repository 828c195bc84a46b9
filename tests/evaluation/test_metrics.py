"""Metrics against scikit-learn's own functions, and against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from sssd_hf.evaluation.metrics import (
    check_predictions,
    classification_metrics,
    confidence_bins,
    expected_calibration_error,
    to_json,
)

NAMES = {
    "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "roc_auc",
    "average_precision", "mcc", "cohen_kappa", "log_loss", "brier", "ece",
}  # fmt: skip


def random_case(seed, num_classes, count=80):
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=count)
    labels[:num_classes] = np.arange(num_classes)
    # one decimal: scores tie within and across classes
    scores = np.round(generator.normal(size=(count, num_classes)) + np.eye(num_classes)[labels], 1)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return labels, exponentials / exponentials.sum(axis=1, keepdims=True)


def calibration_error_by_loop(labels, probabilities, num_bins=15):
    total = 0.0
    for index in range(num_bins):
        inside = [
            (max(row), int(np.argmax(row) == label))
            for row, label in zip(probabilities, labels, strict=True)
            if index / num_bins < max(row) <= (index + 1) / num_bins
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(labels) * abs(confidence - right)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_binary_equals_scikit_learn(seed):
    labels, probabilities = random_case(seed, 2)
    predicted, score = probabilities.argmax(axis=1), probabilities[:, 1]
    assert classification_metrics(labels, probabilities) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "precision": reference.precision_score(labels, predicted),
            "recall": reference.recall_score(labels, predicted),
            "specificity": reference.recall_score(labels, predicted, pos_label=0),
            "f1": reference.f1_score(labels, predicted),
            "roc_auc": reference.roc_auc_score(labels, score),
            "average_precision": reference.average_precision_score(labels, score),
            "mcc": reference.matthews_corrcoef(labels, predicted),
            "cohen_kappa": reference.cohen_kappa_score(labels, predicted),
            "ece": calibration_error_by_loop(labels, probabilities),
            "log_loss": reference.log_loss(labels, probabilities),
            "brier": reference.brier_score_loss(labels, score),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("seed", range(5))
def test_three_classes_equal_scikit_learn(seed):
    labels, probabilities = random_case(seed, 3)
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(3)[labels]
    specificity = [((predicted != c) & (labels != c)).sum() / (labels != c).sum() for c in range(3)]
    assert classification_metrics(labels, probabilities) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "precision": reference.precision_score(labels, predicted, average="macro"),
            "recall": reference.recall_score(labels, predicted, average="macro"),
            "specificity": np.mean(specificity),
            "f1": reference.f1_score(labels, predicted, average="macro"),
            "roc_auc": reference.roc_auc_score(labels, probabilities, multi_class="ovr"),
            "average_precision": reference.average_precision_score(one_hot, probabilities),
            "mcc": reference.matthews_corrcoef(labels, predicted),
            "cohen_kappa": reference.cohen_kappa_score(labels, predicted),
            "ece": calibration_error_by_loop(labels, probabilities),
            "log_loss": reference.log_loss(labels, probabilities),
            "brier": sum(reference.brier_score_loss(one_hot[:, c], probabilities[:, c])
                         for c in range(3)),
        },
        abs=1e-12,
    )  # fmt: skip


def test_binary_by_hand():
    """Scores of class 1: positives 0.8, 0.4, 0.6; negatives 0.4, 0.7."""
    labels = [1, 1, 1, 0, 0]
    score = np.array([0.8, 0.4, 0.6, 0.4, 0.7])
    found = classification_metrics(labels, np.stack([1 - score, score], axis=1))
    assert set(found) == NAMES
    assert all(type(value) is float for value in found.values())
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(1 / 2)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["roc_auc"] == pytest.approx((2 + 0.5 + 1) / 6)
    assert found["brier"] == pytest.approx((0.04 + 0.36 + 0.16 + 0.16 + 0.49) / 5)
    expected = -np.log([0.8, 0.4, 0.6, 0.6, 0.3]).mean()
    assert found["log_loss"] == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        (0, {"recall", "roc_auc", "average_precision", "mcc", "cohen_kappa"}),
        (1, {"specificity", "roc_auc", "average_precision", "mcc", "cohen_kappa"}),
    ],
)
def test_one_class_only_leaves_nan(label, undefined):
    found = classification_metrics([label] * 3, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert found["accuracy"] == found["balanced_accuracy"] == pytest.approx([2 / 3, 1 / 3][label])


@pytest.mark.filterwarnings("error")
def test_one_class_and_nothing_else_predicted():
    found = classification_metrics([0, 0], [[1.0, 0.0], [0.8, 0.2]])
    assert math.isnan(found["f1"])  # neither a positive label nor a positive prediction
    assert found["precision"] == 0
    assert found["specificity"] == 1


@pytest.mark.filterwarnings("error")
def test_class_that_never_occurs_is_left_out_of_the_means():
    labels = [0, 0, 1, 1]
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]]
    found = classification_metrics(labels, probabilities)
    assert found["recall"] == found["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["precision"] == pytest.approx(1)
    assert found["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["specificity"] == pytest.approx(1)
    # class 0 against the rest: 0.7, 0.1 against 0.1, 0.2; class 1: 0.8, 0.7 against 0.2, 0.2
    assert found["roc_auc"] == pytest.approx((2.5 / 4 + 1) / 2)


@pytest.mark.filterwarnings("error")
def test_half_precision_rows_pass_and_certain_mistakes_stay_finite():
    labels, probabilities = random_case(0, 3)
    exact = classification_metrics(labels, probabilities)
    half = classification_metrics(labels, probabilities.astype(np.float16))
    assert half["log_loss"] == pytest.approx(exact["log_loss"], abs=1e-3)
    assert math.isfinite(classification_metrics([0, 1], [[0.0, 1.0], [0.0, 1.0]])["log_loss"])


def test_tie_of_probabilities_predicts_the_lower_class():
    assert classification_metrics([0, 1], [[0.5, 0.5], [0.5, 0.5]])["specificity"] == 1


def test_calibration_error_by_hand():
    """Confidences 0.55 (right, wrong) and 1 (right, right, wrong) in ten bins."""
    score = np.array([0.55, 0.45, 1.0, 1.0, 0.0])
    counts, confidence, accuracy = confidence_bins(
        [1, 1, 1, 1, 1], np.stack([1 - score, score], axis=1), 10
    )
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert (confidence[5], accuracy[5]) == (pytest.approx(0.55), 0.5)
    assert (confidence[9], accuracy[9]) == (1, pytest.approx(2 / 3))
    assert np.isnan(confidence[0])
    found = expected_calibration_error([1] * 5, np.stack([1 - score, score], axis=1), 10)
    assert found == pytest.approx(2 / 5 * 0.05 + 3 / 5 / 3)
    with pytest.raises(ValueError, match="num_bins is 0"):
        confidence_bins([0], [[0.5, 0.5]], 0)


def test_constant_prediction_has_no_correlation():
    found = classification_metrics([0, 1, 1], [[0.2, 0.8]] * 3)
    assert found["mcc"] == found["cohen_kappa"] == 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5], [math.nan, 0.5]], "NaN or infinite in 1 of 2 rows, first in row 1"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.502]], r"row 1 sums to 1\.002"),
        ([0, 1], [[0.5, 0.5], [-3.0, 4.0]], r"span -3\.\.4"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], r"labels hold \[2\], expected 0\.\.1"),
        ([0, -1], [[0.5, 0.5], [0.5, 0.5]], r"labels hold \[-1\]"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], "dtype float64"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"labels have shape \(1,\), expected \(2,\)"),
        ([0, 1], [0.5, 0.5], r"probabilities have shape \(2,\)"),
        ([0, 0], [[1.0], [1.0]], "at least two classes"),
        ([], np.zeros((0, 2)), "empty"),
    ],
)
def test_what_is_wrong_is_said(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities)


def test_rows_may_miss_one_by_a_thousandth():
    labels, _ = check_predictions([0, 1], [[0.5, 0.5], [0.5, 0.5005]])
    assert labels.dtype == np.int64


def test_to_json_is_strict_json():
    metrics = {
        "roc_auc": math.nan,
        "accuracy": np.float32(0.5),
        "intervals": {"f1": (np.float64(math.inf), 1.0)},
        "counts": np.array([1, 2]),
        "curve": np.array([0.5, math.nan]),
        "name": "fold 1",
        "found": True,
    }
    text = json.dumps(to_json(metrics), allow_nan=False)
    assert json.loads(text) == {
        "roc_auc": None,
        "accuracy": 0.5,
        "intervals": {"f1": [None, 1.0]},
        "counts": [1, 2],
        "curve": [0.5, None],
        "name": "fold 1",
        "found": True,
    }
