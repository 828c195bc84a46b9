"""From slices to patients or series: one probability for each group of images."""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.intervals import check_groups
from sssd_hf.evaluation.metrics import check_predictions

METHODS = ("mean", "max", "noisy_or")


def aggregate(probabilities, groups, method: str = "mean", labels=None):
    """Probabilities [G, K] of the G groups that occur in `groups` (N ids), sorted by id.

    probabilities [N, K] of the images; labels, if given, [N] integers, one for each group.

    - "mean": the mean of the images' probabilities;
    - "max": of class 1 the largest (one slice with the finding is enough);
    - "noisy_or": of class 1, 1 - prod(1 - p): the chance that one slice at least shows it if the
      slices were independent, which neighbours are not, so that it is too sure with many.

    "max" and "noisy_or" treat class 0 as "nothing found": with K = 2 it gets the rest. With more
    classes they are taken for classes 1..K-1 each, class 0 gets its product (noisy_or) or least
    value (max) over the images, and the row is divided by its sum.

    Returns (ids [G], probabilities [G, K], labels [G] or None).

    Raises:
        ValueError: for another method, groups that do not match or are missing, a group whose
            labels disagree, and as `check_predictions`.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    count = len(np.asarray(probabilities))
    some = np.zeros(count, dtype=np.int64) if labels is None else labels
    checked, probabilities = check_predictions(some, probabilities)
    if count == 0:
        raise ValueError("probabilities and groups are empty, expected at least one image")
    ids, index = np.unique(check_groups(groups, count), return_inverse=True)
    sizes = np.bincount(index)
    num_classes = probabilities.shape[1]
    result = np.empty((len(ids), num_classes))
    if method == "mean":
        for column in range(num_classes):
            result[:, column] = np.bincount(index, weights=probabilities[:, column]) / sizes
    else:
        by_group = np.argsort(index, kind="stable")
        starts = np.append(0, np.cumsum(sizes)[:-1])
        ordered = probabilities[by_group].clip(0, 1)
        if method == "max":
            result[:] = np.maximum.reduceat(ordered, starts, axis=0)
            result[:, 0] = np.minimum.reduceat(ordered[:, 0], starts)
        else:
            result[:] = 1 - np.multiply.reduceat(1 - ordered, starts, axis=0)
            result[:, 0] = np.multiply.reduceat(ordered[:, 0], starts)
        if num_classes == 2:
            result[:, 0] = 1 - result[:, 1]
        result /= result.sum(axis=1, keepdims=True)
    if labels is None:
        return ids, result, None

    counts = np.zeros((len(ids), num_classes), dtype=np.int64)
    np.add.at(counts, (index, checked), 1)
    mixed = np.flatnonzero((counts > 0).sum(axis=1) > 1)
    if len(mixed):
        first = counts[mixed[0]]
        held = ", ".join(f"{first[label]} of label {label}" for label in np.flatnonzero(first))
        raise ValueError(
            f"{len(mixed)} of {len(ids)} groups have images of different labels, first "
            f"{ids[mixed[0]]!s}: {held}. A group can have one label only; group by something finer "
            "(a series, a lesion) or correct the labels"
        )
    return ids, result, counts.argmax(axis=1)
