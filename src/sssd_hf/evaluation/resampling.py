"""Metrics of thousands of weighted samples at once: what the bootstrap needs, by array code."""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.metrics import check_predictions

NAMES = (
    "accuracy", "balanced_accuracy", "roc_auc", "average_precision", "precision", "recall",
    "specificity", "f1", "mcc", "cohen_kappa", "log_loss", "brier",
)  # fmt: skip


def _ratio(numerator, denominator):
    """numerator / denominator, NaN where the denominator is 0."""
    result = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def _mean_of_defined(values):
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    return _ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))


def _weighted_ranking(positive, scores, weights):
    """ROC AUC and average precision [R] of `scores` [N] for `positive` (bool [N]), weights [N, R].

    Going down the scores, the weights of positives and negatives above each distinct score are
    running sums; tied images enter together. AUC is the area by trapezia, which counts a tied
    pair half (Mann and Whitney 1947); average precision is the sum of the steps of the recall,
    each times the precision after it, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # last of each tied score
    starts = np.append(0, ends[:-1] + 1)
    ordered, positive = weights[order], positive[order]
    tied = len(ends) < len(order)

    def by_score(steps):  # (images, resamples) to (distinct scores, resamples)
        return np.add.reduceat(steps, starts, axis=0) if tied else steps

    new_hits = by_score(ordered * positive[:, None])
    new_misses = by_score(ordered * ~positive[:, None])
    hits, misses = np.cumsum(new_hits, axis=0), np.cumsum(new_misses, axis=0)
    all_positives, all_negatives = hits[-1], misses[-1].copy()  # misses is overwritten below
    # positives above each negative, tied ones half: hits after the step minus half the step
    pairs = np.einsum("sr,sr->r", new_misses, hits) - 0.5 * np.einsum(
        "sr,sr->r", new_misses, new_hits
    )
    misses += hits  # now all above
    np.maximum(misses, np.finfo(np.float64).tiny, out=misses)  # no image above: 0 / tiny
    precision = np.divide(hits, misses, out=misses)
    precision_sum = np.einsum("sr,sr->r", new_hits, precision)
    two_classes = (all_positives > 0) & (all_negatives > 0)
    denominator = np.where(two_classes, all_positives, 0)
    return _ratio(pairs, denominator * all_negatives), _ratio(precision_sum, denominator)


def resampled_metrics(labels, probabilities, weights) -> dict[str, np.ndarray]:
    """`NAMES` [R] of R weighted samples: labels [N], probabilities [N, K], weights [R, N] >= 0.

    A weight of w counts an image w times, so that whole weights give what `classification_metrics`
    gives for the images repeated; the definitions and the NaNs are explained there. The calibration
    error is left out: drawing with replacement adds to it, so that its bootstrap interval lies too
    high and may miss the value itself.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(labels):
        raise ValueError(f"weights have shape {weights.shape}, expected (R, {len(labels)})")
    num_classes = probabilities.shape[1]
    actual = np.eye(num_classes)[labels]  # (images, classes)
    predicted = np.eye(num_classes)[probabilities.argmax(axis=1)]
    normalised = probabilities.clip(0)
    normalised = normalised / np.maximum(normalised.sum(axis=1, keepdims=True), 1e-300)
    smallest = np.finfo(np.float64).eps
    surprise = -np.log((normalised * actual).sum(axis=1).clip(smallest, 1 - smallest))
    squared_error = ((normalised - actual) ** 2).sum(axis=1) / (2 if num_classes == 2 else 1)

    # one product for all that is a weighted sum over images
    columns = [actual, predicted, actual * predicted, surprise[:, None], squared_error[:, None]]
    sums = weights @ np.concatenate(columns, axis=1)
    positives, called, hits = np.split(
        sums[:, : 3 * num_classes], 3, axis=1
    )  # (resamples, classes)
    total = weights.sum(axis=1, keepdims=True)  # (resamples, 1)
    negatives = total - positives

    recall = _ratio(hits, positives)
    precision = np.where(called > 0, _ratio(hits, called), 0.0)  # never predicted: 0
    reported = [1] if num_classes == 2 else list(range(num_classes))
    # of more than two classes, those that a resample lacks do not enter its means
    left_out = (total == 0) | ((positives == 0) & (num_classes > 2))

    def mean_over_classes(values):
        return _mean_of_defined(np.where(left_out, np.nan, values)[:, reported])

    roc_auc, average_precision = np.full_like(recall, np.nan), np.full_like(recall, np.nan)
    transposed = np.ascontiguousarray(weights.T)  # running sums over images, whole rows at a time
    for index in reported:
        roc_auc[:, index], average_precision[:, index] = _weighted_ranking(
            labels == index, probabilities[:, index], transposed
        )

    # Gorodkin (2004) and Cohen (1960) from the margins; undefined where one class is all there is
    total, right = total[:, 0], hits.sum(axis=1)
    several = (positives > 0).sum(axis=1) > 1
    constant = (called > 0).sum(axis=1) < 2
    chance = (positives * called).sum(axis=1)
    spread = (total**2 - (positives**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
    correlation = _ratio(right * total - chance, np.sqrt(np.where(constant, 0, spread)))
    correlation = np.where(constant, 0.0, correlation)
    kappa = _ratio(right * total - chance, np.where(several, total**2 - chance, 0))
    return {
        "accuracy": _ratio(right, total),
        "balanced_accuracy": _mean_of_defined(recall),
        "roc_auc": mean_over_classes(roc_auc),
        "average_precision": mean_over_classes(average_precision),
        "precision": mean_over_classes(precision),
        "recall": mean_over_classes(recall),
        "specificity": mean_over_classes(_ratio(negatives - called + hits, negatives)),
        "f1": mean_over_classes(_ratio(2 * hits, positives + called)),
        "mcc": np.where(several, correlation, np.nan),
        "cohen_kappa": kappa,
        "log_loss": _ratio(sums[:, -2], total),
        "brier": _ratio(sums[:, -1], total),
    }
