"""Curves of a classifier with pointwise bootstrap bands: ROC, precision-recall, coverage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sssd_hf.evaluation.calibration import selective_prediction
from sssd_hf.evaluation.intervals import count_groups, resampled_weights, shows_every_class
from sssd_hf.evaluation.metrics import check_predictions

GRID = np.linspace(0, 1, 101)
# the first point that reaches a share is looked for from just below it: 0.3 has no exact binary
# fraction, and 0 is reached by the first image
REACHED = np.maximum(GRID - 1e-9, 1e-12)


@dataclass(frozen=True)
class Curve:
    """A curve of P points and its band, pointwise over `GRID` (101 points); all values in 0..1.

    low and high are None where the draws cannot show the spread: fewer than two groups, or a class
    that is the most frequent label of a single group.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def _steps(scores):
    """Order of falling scores, and the last position of each distinct one: ties enter together."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def _band(labels, num_classes, groups, values_of: Callable, options):
    """Pointwise percentile band of values_of(weights [N]) -> [101], over draws of whole groups."""
    if count_groups(labels, groups) < 2 or not shows_every_class(labels, num_classes, groups):
        return None, None
    options = dict(options)
    tail = (1 - options.pop("confidence")) / 2
    draws = resampled_weights(labels, num_classes, groups, **options)
    values = np.array([values_of(weights) for chunk in draws for weights in chunk])
    values = values[np.isfinite(values).all(axis=1)]
    return tuple(np.quantile(values, [tail, 1 - tail], axis=0)) if len(values) else (None, None)


def roc(
    labels, probabilities, class_index: int = 1, groups=None, *,
    num_resamples=1000, confidence=0.95, seed=0,
) -> Curve:  # fmt: skip
    """True (y) against false positive rate (x) of one class; points as scikit-learn's `roc_curve`.

    labels [N], probabilities [N, K], groups N ids or None. The band is that of the true positive
    rate at each false positive rate (vertical averaging, Fawcett 2006), the draws those of
    `bootstrap_intervals`.

    Raises:
        ValueError: where the class has no image or all images, and as `check_predictions`.
    """
    from sklearn.metrics import roc_curve

    labels, probabilities = check_predictions(labels, probabilities)
    positive, scores = _one_class(labels, probabilities, class_index)
    x, y, _ = roc_curve(positive, scores)
    order, ends = _steps(scores)
    hit = positive[order]

    def values_of(weights):
        weights = weights[order]
        hits, misses = np.cumsum(weights * hit)[ends], np.cumsum(weights * ~hit)[ends]
        if not (hits[-1] and misses[-1]):
            return np.full(len(GRID), np.nan)
        # of several points at one false positive rate np.interp takes the last, the highest
        return np.interp(GRID, np.append(0, misses / misses[-1]), np.append(0, hits / hits[-1]))

    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    return Curve(x, y, *_band(labels, probabilities.shape[1], groups, values_of, options))


def precision_recall(
    labels, probabilities, class_index: int = 1, groups=None, *,
    num_resamples=1000, confidence=0.95, seed=0,
) -> Curve:  # fmt: skip
    """Precision (y) against rising recall (x) of one class, as `precision_recall_curve` has them.

    Arguments and errors as `roc`. The curve is a step function: a point's precision holds back to
    the recall before it, as in average precision. The band is that of the precision at each recall.
    """
    from sklearn.metrics import precision_recall_curve

    labels, probabilities = check_predictions(labels, probabilities)
    positive, scores = _one_class(labels, probabilities, class_index)
    precision, recall, _ = precision_recall_curve(positive, scores)
    order, ends = _steps(scores)
    hit = positive[order]

    def values_of(weights):
        weights = weights[order]
        hits, all_above = np.cumsum(weights * hit)[ends], np.cumsum(weights)[ends]
        if not hits[-1]:
            return np.full(len(GRID), np.nan)
        reached = np.searchsorted(hits / hits[-1], REACHED)
        return hits[reached] / all_above[reached]

    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    band = _band(labels, probabilities.shape[1], groups, values_of, options)
    return Curve(recall[::-1], precision[::-1], *band)


def coverage(
    labels, probabilities, groups=None, *, num_resamples=1000, confidence=0.95, seed=0
) -> Curve:
    """Accuracy (y) of the most confident images against their share (x); `selective_prediction`.

    Arguments as `roc`, N >= 1. The band is that of the accuracy at each coverage.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    curve = selective_prediction(labels, probabilities)
    order, ends = _steps(probabilities.max(axis=1))
    right = (probabilities.argmax(axis=1) == labels)[order]

    def values_of(weights):
        weights = weights[order]
        total, correct = np.cumsum(weights)[ends], np.cumsum(weights * right)[ends]
        reached = np.searchsorted(total / total[-1], REACHED)
        return correct[reached] / total[reached]

    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    band = _band(labels, probabilities.shape[1], groups, values_of, options)
    return Curve(np.array(curve["coverage"]), np.array(curve["accuracy"]), *band)


def _one_class(labels, probabilities, class_index):
    positive = labels == class_index
    if positive.all() or not positive.any():
        raise ValueError(
            f"class {class_index} has {positive.sum()} of {len(labels)} images, expected some of "
            "this class and some of others"
        )
    return positive, probabilities[:, class_index]
