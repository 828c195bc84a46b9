"""Metrics of every class, their averages, why a value is missing; and multi-label tasks."""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.metrics import check_predictions, classification_metrics, per_class_metrics

ONE_CLASS = "the labels hold one class only ({name})"
NO_POSITIVE = "no image has the label {name}"
NO_NEGATIVE = "every image has the label {name}"
NEITHER = "no image has the label {name} and none was predicted as it"


def _class_names(class_names, num_classes):
    if class_names is None:
        return [str(index) for index in range(num_classes)]
    names = [str(name) for name in class_names]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ValueError(
            f"class_names are {names}, expected {num_classes} different names, one for each column "
            "of the probabilities"
        )
    return names


def _reasons(values, support, count, name):
    """Why each NaN in `values` (metric -> float) of one class against the rest is one."""
    explanations = {
        "recall": NO_POSITIVE,
        "specificity": NO_NEGATIVE,
        "f1": NEITHER,
        "roc_auc": NO_POSITIVE if support == 0 else NO_NEGATIVE,
        "average_precision": NO_POSITIVE if support == 0 else NO_NEGATIVE,
    }
    assert support in (0, count) or not any(np.isnan(value) for value in values.values())
    return {
        metric: explanations[metric].format(name=name)
        for metric, value in values.items()
        if np.isnan(value)
    }


def detailed_metrics(labels, probabilities, class_names=None) -> dict:
    """All values of `classification_metrics`, by class and averaged, with reasons for each NaN.

    labels [N] integers, probabilities [N, K], class_names K strings (else "0", "1", ...). Returns

    - "overall": what `classification_metrics` gives;
    - "per_class": name -> support (images) and each class against the rest;
    - "macro", "weighted": means over the classes that occur, plain or by support;
    - "reasons": path of a missing value, "roc_auc" or "per_class/NAME/roc_auc", -> why it is NaN.

    Raises:
        ValueError: as `classification_metrics`, and for names that do not match the columns.
    """
    overall = classification_metrics(labels, probabilities)
    labels, probabilities = check_predictions(labels, probabilities)
    count, num_classes = probabilities.shape
    names = _class_names(class_names, num_classes)
    classes = per_class_metrics(labels, probabilities)
    support = classes.pop("support")
    present = np.flatnonzero(support)

    per_class, reasons = {}, {}
    for index, name in enumerate(names):
        values = {metric: float(classes[metric][index]) for metric in classes}
        per_class[name] = {"support": int(support[index]), **values}
        for metric, reason in _reasons(values, support[index], count, name).items():
            reasons[f"per_class/{name}/{metric}"] = reason
    if len(present) == 1:
        reason = ONE_CLASS.format(name=names[present[0]])
        for metric, value in overall.items():
            if np.isnan(value):
                reasons[metric] = reason
                if metric == "f1":  # of class 1 with two classes, where it was not predicted either
                    reasons[metric] = NEITHER.format(name=names[1])
    averages = {
        "macro": {metric: float(values[present].mean()) for metric, values in classes.items()},
        "weighted": {
            metric: float(np.average(values[present], weights=support[present]))
            for metric, values in classes.items()
        },
    }
    for kind, values in averages.items():
        for metric, value in values.items():
            if np.isnan(value):
                reasons[f"{kind}/{metric}"] = ONE_CLASS.format(name=names[present[0]])
    return {"overall": overall, "per_class": per_class, **averages, "reasons": reasons}


def check_multilabel(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 [N, K] and probabilities as float64 [N, K], or say what is wrong.

    Raises:
        ValueError: on N = 0, other shapes, labels other than 0 and 1, probabilities outside 0..1.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != probabilities.shape or labels.size == 0:
        raise ValueError(
            f"multi-label: labels have shape {labels.shape} and probabilities "
            f"{probabilities.shape}, expected the same (images, labels), neither 0"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"multi-label: labels hold {np.setdiff1d(labels, (0, 1))[:5].tolist()}, expected 0 and "
            "1; for one class index an image pass labels of shape (images,)"
        )
    if not (
        np.isfinite(probabilities).all() and 0 <= probabilities.min() <= probabilities.max() <= 1
    ):
        raise ValueError(
            f"multi-label: probabilities span {probabilities.min():.4g}..{probabilities.max():.4g},"
            " expected 0..1; apply a sigmoid to logits"
        )
    return labels.astype(np.int64), probabilities


def _two_columns(positive):
    return np.stack([1 - positive, positive], axis=1)


def multilabel_details(labels, probabilities, label_names=None) -> dict:
    """Each label as a task of its own, and their averages; reasons as in `detailed_metrics`.

    labels [N, K] of 0 and 1, probabilities [N, K] of the label being 1, which need not sum to one.
    A label is predicted where its probability is above 0.5. "per_class" holds for each name its
    support (positives) and what `classification_metrics` gives for (1 - p, p); "macro" and
    "weighted" are means over the labels where a value is defined, plain or by support. "overall"
    is "macro" but for two: accuracy is the share of images with all labels right (scikit-learn's
    `accuracy_score`), label_accuracy the share of right labels (1 - Hamming loss).

    Raises:
        ValueError: as `check_multilabel`, and for names that do not match the columns.
    """
    labels, probabilities = check_multilabel(labels, probabilities)
    num_labels = labels.shape[1]
    names = _class_names(label_names, num_labels)
    support = labels.sum(axis=0)
    per_class, reasons = {}, {}
    for index, name in enumerate(names):
        values = classification_metrics(labels[:, index], _two_columns(probabilities[:, index]))
        per_class[name] = {"support": int(support[index]), **values}
        reason = (NO_POSITIVE if support[index] == 0 else NO_NEGATIVE).format(name=name)
        for metric, value in values.items():
            if np.isnan(value):
                reasons[f"per_class/{name}/{metric}"] = reason

    macro, weighted = {}, {}
    for metric in values:
        column = np.array([per_class[name][metric] for name in names])
        defined = np.isfinite(column)
        macro[metric] = float(column[defined].mean()) if defined.any() else float("nan")
        weight = support[defined]
        weighted[metric] = (
            float(np.average(column[defined], weights=weight)) if weight.sum() else float("nan")
        )
    for kind, averages in (("macro", macro), ("weighted", weighted)):
        for metric, value in averages.items():
            if np.isnan(value):
                reasons[f"{kind}/{metric}"] = "no label has a defined value of a weight above 0"
    right = (probabilities > 0.5) == labels
    overall = {
        **macro,
        "accuracy": float(right.all(axis=1).mean()),
        "label_accuracy": float(right.mean()),
    }
    for metric, value in overall.items():
        if np.isnan(value):
            reasons[metric] = reasons[f"macro/{metric}"]
    return {
        "overall": overall, "per_class": per_class, "macro": macro, "weighted": weighted,
        "reasons": reasons,
    }  # fmt: skip


def multilabel_metrics(labels, probabilities) -> dict[str, float]:
    """The "overall" values of `multilabel_details`: labels and probabilities [N, K]."""
    return multilabel_details(labels, probabilities)["overall"]
