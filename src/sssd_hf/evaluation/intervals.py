"""Confidence intervals: the percentile bootstrap over images or patients, and Wilson's."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from sssd_hf.evaluation.metrics import check_predictions

NAMES = ("accuracy", "balanced_accuracy", "roc_auc", "recall", "specificity", "f1")
CHUNK_ELEMENTS = 2_000_000  # weights held at a time: 16 MB for each of about six arrays


def _ratio(numerator, denominator):
    """numerator / denominator, NaN where the denominator is 0."""
    result = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def _mean_of_defined(values):
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    return _ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))


def _weighted_auc(positive, scores, weights):
    """Area under the ROC curve [R] of `scores` [N] for `positive` (bool [N]), weights [R, N].

    The share of (positive, negative) pairs in the right order, ties counting half (Mann and
    Whitney 1947): the weight of the negatives below each positive is read off one running sum.
    """
    order = np.argsort(scores[~positive], kind="stable")
    negative_scores = scores[~positive][order]
    negative_weights = weights[:, np.flatnonzero(~positive)[order]]  # (resamples, negatives)
    positive_weights = weights[:, positive]  # (resamples, positives)
    running = np.zeros((len(weights), len(order) + 1))
    np.cumsum(negative_weights, axis=1, out=running[:, 1:])
    below = np.searchsorted(negative_scores, scores[positive], side="left")
    below_or_tied = np.searchsorted(negative_scores, scores[positive], side="right")
    pairs = np.einsum("rp,rp->r", positive_weights, running[:, below])
    pairs += np.einsum("rp,rp->r", positive_weights, running[:, below_or_tied])
    return _ratio(pairs / 2, positive_weights.sum(axis=1) * running[:, -1])


def resampled_metrics(labels, probabilities, weights) -> dict[str, np.ndarray]:
    """Six metrics [R] of R weighted samples: labels [N], probabilities [N, K], weights [R, N] >= 0.

    A weight of w counts an image w times, so that whole weights give what `classification_metrics`
    gives for the images repeated; the definitions and the NaNs are explained there.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(labels):
        raise ValueError(f"weights have shape {weights.shape}, expected (R, {len(labels)})")
    num_classes = probabilities.shape[1]
    actual = np.eye(num_classes)[labels]  # (images, classes)
    predicted = np.eye(num_classes)[probabilities.argmax(axis=1)]
    total = weights.sum(axis=1, keepdims=True)  # (resamples, 1)
    positives, called = weights @ actual, weights @ predicted  # (resamples, classes)
    hits = weights @ (actual * predicted)
    negatives = total - positives

    recall = _ratio(hits, positives)
    reported = [1] if num_classes == 2 else list(range(num_classes))
    # of more than two classes, those that a resample lacks do not enter its means
    left_out = (positives == 0) & (num_classes > 2)

    def mean_over_classes(values):
        return _mean_of_defined(np.where(left_out, np.nan, values)[:, reported])

    roc_auc = np.full_like(recall, np.nan)
    for index in reported:
        roc_auc[:, index] = _weighted_auc(labels == index, probabilities[:, index], weights)
    return {
        "accuracy": _ratio(hits.sum(axis=1), total[:, 0]),
        "balanced_accuracy": _mean_of_defined(recall),
        "roc_auc": mean_over_classes(roc_auc),
        "recall": mean_over_classes(recall),
        "specificity": mean_over_classes(_ratio(negatives - called + hits, negatives)),
        "f1": mean_over_classes(_ratio(2 * hits, positives + called)),
    }


def _group_indices(groups, count):
    """Map ids [N] to indices [N] in 0..G-1; without groups every image is its own."""
    if groups is None:
        return np.arange(count)
    groups = np.asarray(groups)
    if groups.shape != (count,):
        raise ValueError(f"groups have shape {groups.shape}, expected ({count},) as the labels")
    missing = sum(item is None or item != item for item in groups.tolist())
    if missing:
        raise ValueError(
            f"{missing} of {count} groups are missing (None or NaN); give each image an id, an "
            "image of an unknown patient one of its own"
        )
    return np.unique(groups, return_inverse=True)[1]


def _draw_multiplicities(generator, strata, num_resamples):
    """How often each group is drawn [R, G]: with replacement, within its stratum (int [G])."""
    multiplicities = np.empty((num_resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        draws = generator.integers(len(members), size=(num_resamples, len(members)))
        draws += len(members) * np.arange(num_resamples)[:, None]  # a range of its own for each row
        counts = np.bincount(draws.ravel(), minlength=draws.size)
        multiplicities[:, members] = counts.reshape(draws.shape)
    return multiplicities


def bootstrap_intervals(
    labels, probabilities, groups=None, *, num_resamples=2000, confidence=0.95, seed=0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap (Efron 1979) for labels [N], probabilities [N, K], group ids [N].

    Returns (low, high) for accuracy, balanced_accuracy, roc_auc, recall, specificity and f1. With
    `groups` (patients) whole groups are drawn, which keeps the dependence of their images; the
    draw is stratified by the label that most images of a group have, so that the classes stay
    present. Without, each image is a group.

    The spread of a class cannot be seen in a single group: where a class is the most frequent
    label of exactly one, the draw is not stratified and all but accuracy are (NaN, NaN); with
    fewer than two groups everything is. Resamples in which a metric is undefined do not enter its
    interval. A figure of exactly 0 or 1 has an interval without width here; Wilson's has one.

    Raises:
        ValueError: for num_resamples < 1, confidence outside 0..1, groups that do not match the
            labels or are missing, and as `check_predictions` does.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples is {num_resamples} and confidence {confidence}, expected at least 1 "
            "and a number between 0 and 1"
        )
    labels, probabilities = check_predictions(labels, probabilities)
    group_index = _group_indices(groups, len(labels))
    num_groups = int(group_index.max(initial=-1)) + 1
    if num_groups < 2:
        return {name: (float("nan"), float("nan")) for name in NAMES}

    num_classes = probabilities.shape[1]
    counts = np.bincount(group_index * num_classes + labels, minlength=num_groups * num_classes)
    strata = counts.reshape(num_groups, num_classes).argmax(axis=1)
    single = 1 in np.bincount(strata)
    if single:
        strata = np.zeros_like(strata)

    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // len(labels))
    samples = {name: [] for name in NAMES}
    for start in range(0, num_resamples, rows):
        drawn = _draw_multiplicities(generator, strata, min(rows, num_resamples - start))
        for name, values in resampled_metrics(labels, probabilities, drawn[:, group_index]).items():
            samples[name].append(values)

    intervals = {}
    for name in NAMES:
        values = np.concatenate(samples[name])
        values = values[np.isfinite(values)]
        if len(values) == 0 or (single and name != "accuracy"):
            values = np.array([np.nan])
        tail = (1 - confidence) / 2
        intervals[name] = tuple(np.quantile(values, [tail, 1 - tail]).tolist())
    return intervals


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (NaN, NaN) for total = 0.

    Raises:
        ValueError: unless 0 <= successes <= total and 0 < confidence < 1.
    """
    if not 0 <= successes <= total or not 0 < confidence < 1:
        raise ValueError(
            f"successes is {successes}, total {total}, confidence {confidence}; expected "
            "0 <= successes <= total and 0 < confidence < 1"
        )
    if total == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
