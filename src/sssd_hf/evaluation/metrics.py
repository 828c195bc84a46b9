"""Figures of merit of a classifier, from its labels and probabilities alone."""

from __future__ import annotations

import math

import numpy as np

LOWER_IS_BETTER = ("log_loss", "brier", "ece")
# what the scripts print
SHOWN = ("accuracy", "balanced_accuracy", "roc_auc", "recall", "specificity")


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


def confidence_bins(
    labels, probabilities, num_bins=15, class_index: int | None = None
) -> tuple[np.ndarray, ...]:
    """Counts, mean confidence and accuracy [B] in B equally wide bins of the confidence.

    The confidence of an image is the probability of its predicted class, between 1/K and 1; bin b
    of 0..B-1 holds b / B < confidence <= (b + 1) / B. Mean and accuracy of an empty bin are NaN.
    With `class_index` the probability of this class is binned, and accuracy is its share.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected at least 1")
    if class_index is None:
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        confidence, right = probabilities[:, class_index], labels == class_index
    confidence = confidence.clip(0, 1)
    index = np.ceil(confidence * num_bins).astype(int).clip(1, num_bins) - 1
    counts = np.bincount(index, minlength=num_bins)
    sums = [np.bincount(index, weights=value, minlength=num_bins) for value in (confidence, right)]
    mean_confidence, accuracy = (
        np.divide(total, counts, out=np.full(num_bins, np.nan), where=counts > 0) for total in sums
    )
    return counts, mean_confidence, accuracy


def expected_calibration_error(labels, probabilities, num_bins=15) -> float:
    """Mean distance of accuracy and confidence over `confidence_bins`, weighted by their counts.

    0..1; Naeini et al. 2015 in the form of Guo et al. 2017 (top label, 15 equally wide bins). The
    value depends on the bins and is above 0 for a perfectly calibrated model, more so for few
    images.
    """
    counts, confidence, accuracy = confidence_bins(labels, probabilities, num_bins)
    filled = counts > 0
    distance = np.abs(confidence - accuracy)[filled]
    return float((counts[filled] * distance).sum() / counts.sum())


def per_class_metrics(labels, probabilities) -> dict[str, np.ndarray]:
    """Each class against the rest [K]: support (images), precision, recall, specificity, f1,
    roc_auc and average_precision, by scikit-learn; NaN and 0 as in `classification_metrics`.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    labels, probabilities = check_predictions(labels, probabilities)
    count, num_classes = probabilities.shape
    classes = np.arange(num_classes)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    confusion = confusion_matrix(labels, predicted, labels=classes)  # (true, predicted)
    false_positives = confusion.sum(axis=0) - np.diag(confusion)
    negatives = count - support
    specificity = np.full(num_classes, np.nan)
    np.divide(negatives - false_positives, negatives, out=specificity, where=negatives > 0)

    roc_auc, average_precision = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for index in np.flatnonzero((support > 0) & (negatives > 0)):
        positive, score = labels == index, probabilities[:, index]
        roc_auc[index] = roc_auc_score(positive, score)
        average_precision[index] = average_precision_score(positive, score)
    return {
        "support": support,
        "precision": np.nan_to_num(precision),  # never predicted: 0, so that it counts in the mean
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def classification_metrics(labels, probabilities) -> dict[str, float]:
    """Point values for integer labels [N] in 0..K-1 and probabilities [N, K], N >= 1, K >= 2.

    The predicted class is the one of the highest probability (the lower index on a tie).

    - Two classes: precision, recall, specificity, f1, roc_auc and average_precision are those of
      class 1; brier is the mean squared error of its probability (0..1).
    - More classes: the same are means over the classes that occur in `labels`, each against the
      rest; brier is Brier's (1950) sum of squared errors over the classes (0..2).
    - balanced_accuracy is the mean recall of the classes that occur in `labels`; mcc (Matthews
      1975, Gorodkin 2004) and cohen_kappa (unweighted) are -1..1, mcc being 0 where all images
      were predicted as one class; log_loss is in nats, with probabilities clipped at machine
      precision; ece is `expected_calibration_error` with 15 bins.
    - Labels [N, K] of 0 and 1 are those of a multi-label task; see `multilabel_metrics`.

    What the labels leave undefined is NaN: roc_auc, average_precision, mcc and cohen_kappa where
    they hold one class only, recall without a positive, specificity without a negative, f1 with
    neither a positive label nor a positive prediction. The precision of a class that was never
    predicted is 0. `detailed_metrics` gives the reasons, the classes and the averages.

    Raises:
        ValueError: for N = 0 and as `check_predictions` does.
    """
    from sklearn.metrics import cohen_kappa_score, log_loss, matthews_corrcoef

    if np.ndim(labels) == 2:
        from sssd_hf.evaluation.details import multilabel_metrics

        return multilabel_metrics(labels, probabilities)
    labels, probabilities = check_predictions(labels, probabilities)
    count, num_classes = probabilities.shape
    if count == 0:
        raise ValueError("labels and probabilities are empty, expected at least one image")
    predicted = probabilities.argmax(axis=1)
    classes = per_class_metrics(labels, probabilities)
    present = np.flatnonzero(classes["support"])
    reported = np.array([1]) if num_classes == 2 else present
    several = len(present) > 1
    normalised = probabilities.clip(0) / probabilities.clip(0).sum(axis=1, keepdims=True)
    squared_error = ((normalised - np.eye(num_classes)[labels]) ** 2).sum(axis=1)
    means = {name: classes[name][reported].mean() for name in classes if name != "support"}
    values = {
        "accuracy": (predicted == labels).mean(),
        "balanced_accuracy": classes["recall"][present].mean(),
        **means,
        "mcc": matthews_corrcoef(labels, predicted) if several else np.nan,
        "cohen_kappa": cohen_kappa_score(labels, predicted) if several else np.nan,
        "log_loss": log_loss(labels, normalised, labels=np.arange(num_classes)),
        "brier": squared_error.mean() / (2 if num_classes == 2 else 1),
        "ece": expected_calibration_error(labels, probabilities),
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
