"""Figures of merit of a classifier, from its labels and probabilities alone."""

from __future__ import annotations

import math

import numpy as np


def check_predictions(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 [N] and probabilities as float64 [N, K], or say what is wrong.

    Rows may miss a sum of one by 1e-3, which is what half precision costs. N may be 0.

    Raises:
        ValueError: on other shapes, K < 2, labels that are no integers in 0..K-1, values that are
            not finite or outside 0..1, rows that do not sum to one.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(
            f"probabilities have shape {probabilities.shape}, expected (images, classes) with at "
            "least two classes; for a single sigmoid output p pass the columns 1 - p and p"
        )
    count, num_classes = probabilities.shape
    if labels.shape != (count,):
        raise ValueError(
            f"labels have shape {labels.shape}, expected ({count},): one for each of the {count} "
            "rows of probabilities"
        )
    if count == 0:
        return labels.astype(np.int64), probabilities
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels have dtype {labels.dtype}, expected integers (class indices)")
    labels = labels.astype(np.int64)
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if len(outside):
        raise ValueError(
            f"labels hold {outside[:5].tolist()}, expected 0..{num_classes - 1} because the "
            f"probabilities have {num_classes} columns"
        )
    bad_rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"probabilities are NaN or infinite in {len(bad_rows)} of {count} rows, first in row "
            f"{bad_rows[0]}; did the training diverge?"
        )
    sums = probabilities.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    # logits such as -3 and 4 can sum to one, so the range is checked as well
    if probabilities.min() < -1e-3 or abs(sums[worst] - 1) > 1e-3:
        raise ValueError(
            f"probabilities span {probabilities.min():.4g}..{probabilities.max():.4g} and row "
            f"{worst} sums to {sums[worst]:.4g}, expected 0..1 and 1; apply a softmax to logits"
        )
    return labels, probabilities


def classification_metrics(labels, probabilities) -> dict[str, float]:
    """Point values for integer labels [N] in 0..K-1 and probabilities [N, K], N >= 1, K >= 2.

    The predicted class is the one of the highest probability (the lower index on a tie).

    - Two classes: precision, recall, specificity, f1, roc_auc and average_precision are those of
      class 1; brier is the mean squared error of its probability (0..1).
    - More classes: the same are means over the classes that occur in `labels`, each against the
      rest; brier is Brier's (1950) sum of squared errors over the classes (0..2).
    - balanced_accuracy is the mean recall of the classes that occur in `labels`; log_loss is in
      nats, with probabilities clipped at machine precision.

    What the labels leave undefined is NaN: roc_auc and average_precision where they hold one class
    only, recall without a positive, specificity without a negative, f1 with neither a positive
    label nor a positive prediction. The precision of a class that was never predicted is 0.

    Raises:
        ValueError: for N = 0 and as `check_predictions` does.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        log_loss,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    labels, probabilities = check_predictions(labels, probabilities)
    count, num_classes = probabilities.shape
    if count == 0:
        raise ValueError("labels and probabilities are empty, expected at least one image")
    classes = np.arange(num_classes)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    precision = np.nan_to_num(precision)  # never predicted: 0, so that it counts in the mean

    confusion = confusion_matrix(labels, predicted, labels=classes)  # (true, predicted)
    false_positives = confusion.sum(axis=0) - np.diag(confusion)
    negatives = count - support
    specificity = np.full(num_classes, np.nan)
    np.divide(negatives - false_positives, negatives, out=specificity, where=negatives > 0)

    roc_auc, average_precision = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    present = np.flatnonzero(support)
    if len(present) > 1:
        for index in present:
            positive, score = labels == index, probabilities[:, index]
            roc_auc[index] = roc_auc_score(positive, score)
            average_precision[index] = average_precision_score(positive, score)

    reported = np.array([1]) if num_classes == 2 else present
    normalised = probabilities.clip(0) / probabilities.clip(0).sum(axis=1, keepdims=True)
    squared_error = ((normalised - np.eye(num_classes)[labels]) ** 2).sum(axis=1)
    values = {
        "accuracy": (predicted == labels).mean(),
        "balanced_accuracy": recall[present].mean(),
        "precision": precision[reported].mean(),
        "recall": recall[reported].mean(),
        "specificity": specificity[reported].mean(),
        "f1": f1[reported].mean(),
        "roc_auc": roc_auc[reported].mean(),
        "average_precision": average_precision[reported].mean(),
        "log_loss": log_loss(labels, normalised, labels=classes),
        "brier": squared_error.mean() / (2 if num_classes == 2 else 1),
    }
    return {name: float(value) for name, value in values.items()}


def to_json(value):
    """Return `value` in types that strict JSON has: NaN and infinities become None.

    Walks dicts, lists, tuples and NumPy arrays; NumPy scalars become Python's. Anything else is
    returned as it is, for `json.dumps` to judge.
    """
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
