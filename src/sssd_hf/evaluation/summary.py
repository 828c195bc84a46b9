"""All that is reported of a classifier on one set of images, as one dict of plain values."""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.aggregation import aggregate
from sssd_hf.evaluation.calibration import apply_calibration, selective_prediction
from sssd_hf.evaluation.details import detailed_metrics
from sssd_hf.evaluation.independent import delong_interval, wilson_interval
from sssd_hf.evaluation.intervals import bootstrap_intervals
from sssd_hf.evaluation.metrics import classification_metrics
from sssd_hf.evaluation.subgroups import subgroup_metrics

CALIBRATION_METRICS = ("log_loss", "brier", "ece")
# of the decided classes, which have no order among them
DECISION_METRICS = (
    "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "mcc",
    "cohen_kappa",
)  # fmt: skip
COVERAGES = (0.5, 0.8, 0.9)


def summarise(
    labels, probabilities, names, groups=None, *, calibration=None, subgroup_columns=None,
    aggregation="mean", num_resamples=2000, confidence=0.95, seed=0,
) -> dict:  # fmt: skip
    """Metrics, intervals and everything else that evaluation reports.

    Args:
        labels: [N] integers; probabilities: [N, K] of the model as it is; names: of the K classes.
        groups: [N] ids of what an image belongs to (patients), or None.
        calibration: see `calibration.fit_calibration`; None where the model has none.
        subgroup_columns: name -> [N] values of a column.
        aggregation: how a group's images become one probability (`aggregation.METHODS`).

    Returns:
        the metrics of `classification_metrics`, of the most probable class and of probabilities as
        they are, and with them

        - intervals: metric -> (low, high), the bootstrap of groups (of images without groups);
        - per_class, macro, weighted, reasons: see `detailed_metrics`;
        - confusion_matrix: images by true (rows) and most probable class;
        - independent_images: intervals that take images for independent of each other;
        - calibration: log loss, Brier score and ECE before and after, or None;
        - operating_point: the metrics of the classes that the threshold decides for, or None;
        - selective: accuracy where only the most confident answers are given;
        - aggregated: metrics of groups, or None; subgroups: see `subgroup_metrics`.

    Raises:
        ValueError: as those functions.
    """
    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    details = detailed_metrics(labels, probabilities, names)
    calibrated, decided = apply_calibration(probabilities, calibration)
    predicted = np.asarray(probabilities).argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (np.asarray(labels), predicted), 1)
    columns = subgroup_columns or {}
    return {
        **details.pop("overall"),
        "intervals": bootstrap_intervals(labels, probabilities, groups, **options),
        **details,
        "confusion_matrix": confusion.tolist(),
        "independent_images": _independent(labels, probabilities, confidence),
        "calibration": calibration and _calibration(labels, probabilities, calibrated, calibration),
        "operating_point": _operating_point(labels, decided, groups, calibration, names, options),
        "selective": _selective(labels, probabilities),
        "aggregated": _aggregated(labels, calibrated, groups, aggregation, calibration, options),
        "subgroups": {
            name: subgroup_metrics(labels, probabilities, values, groups, **options)
            for name, values in columns.items()
        },
    }


def _independent(labels, probabilities, confidence):
    """Wilson's intervals, and DeLong's with two classes."""
    labels, right = np.asarray(labels), probabilities.argmax(axis=1) == labels
    result = {
        "note": "assumes independent images",
        "wilson": {"accuracy": wilson_interval(int(right.sum()), len(right), confidence)},
    }
    if probabilities.shape[1] == 2 and len(np.unique(labels)) == 2:
        for name, label in (("recall", 1), ("specificity", 0)):
            part = right[labels == label]
            result["wilson"][name] = wilson_interval(int(part.sum()), len(part), confidence)
        if np.bincount(labels).min() > 1:  # of one image a class there is no variance
            result["delong"] = delong_interval(labels, probabilities[:, 1], confidence)
    return result


def _calibration(labels, probabilities, calibrated, calibration):
    before, after = (classification_metrics(labels, part) for part in (probabilities, calibrated))
    return {
        "used": calibration,
        "uncalibrated": {name: before[name] for name in CALIBRATION_METRICS},
        "calibrated": {name: after[name] for name in CALIBRATION_METRICS},
    }


def _operating_point(labels, decided, groups, calibration, names, options):
    if not calibration or calibration["threshold"] is None:
        return None
    certain = np.eye(len(names))[decided]
    metrics = classification_metrics(labels, certain)
    intervals = bootstrap_intervals(labels, certain, groups, **options)
    return {
        "threshold": calibration["threshold"], "rule": calibration["rule"],
        "fitted_on": calibration["fitted_on"], "positive_label": names[1],
        "metrics": {name: metrics[name] for name in DECISION_METRICS},
        "intervals": {name: intervals[name] for name in DECISION_METRICS},
    }  # fmt: skip


def _selective(labels, probabilities):
    curve = selective_prediction(labels, probabilities)
    coverage, accuracy = np.array(curve["coverage"]), curve["accuracy"]
    reached = {share: int(np.searchsorted(coverage, share - 1e-9)) for share in COVERAGES}
    return {
        "area": curve["area"],
        "accuracy_at": {f"{share:g}": accuracy[index] for share, index in reached.items()},
        "confidence_at": {f"{s:g}": curve["threshold"][i] for s, i in reached.items()},
    }


def _aggregated(labels, probabilities, groups, method, calibration, options):
    """Metrics of whole groups; a reason instead where a group's images have several labels."""
    if groups is None or method == "none":
        return None
    try:
        ids, of_groups, group_labels = aggregate(probabilities, groups, method, labels)
    except ValueError as error:
        return {"method": method, "count": len(set(groups)), "reason": str(error)}
    metrics = classification_metrics(group_labels, of_groups)
    return {
        "method": method, "count": len(ids), "metrics": metrics,
        "probabilities": "calibrated" if calibration else "as they are",
        "intervals": bootstrap_intervals(group_labels, of_groups, **options),
    }  # fmt: skip
