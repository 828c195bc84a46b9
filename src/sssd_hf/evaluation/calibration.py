"""Temperature and threshold, fitted on validation and kept with the model; selective prediction.

Both travel as one plain dict, `calibration = {"temperature": float, "threshold": float or None,
"rule": str, "fitted_on": str}`, which `fit_calibration` makes and `apply_calibration` uses.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from sssd_hf.evaluation.metrics import check_predictions, confidence_bins

TEMPERATURES = (0.05, 20.0)  # the bounds of the fit
SMALLEST = 1e-12  # of a probability before its logarithm


def _log_probabilities(logits):
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def fit_temperature(labels, logits) -> float:
    """The temperature T (Guo et al. 2017) that minimises the log loss of softmax(logits / T).

    labels [N] in 0..K-1, logits [N, K]; log-probabilities are logits too. The loss is convex in
    1 / T, so that the minimum within `TEMPERATURES` is the only one; it is never above the loss at
    T = 1. One number for all classes: the predicted class stays.

    Warns:
        UserWarning: where the loss falls up to a bound, which is then returned: at the lower one
            every validation image is right (or nearly), and the data do not say how sure the model
            may be; at the upper one the model says little about the labels.

    Raises:
        ValueError: for logits that are not finite or of another shape, and other labels.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all() or len(logits) == 0:
        raise ValueError(
            f"logits have shape {logits.shape}, expected (images, classes), at least one image and "
            "finite values; clip probabilities before their logarithm"
        )
    labels, _ = check_predictions(labels, np.exp(_log_probabilities(logits)))
    rows = np.arange(len(labels))

    def loss(log_temperature):
        return -_log_probabilities(logits / math.exp(log_temperature))[rows, labels].mean()

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = float(
        minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x
    )
    best = min((found, low, high, 0.0), key=loss)  # the search itself never tries a bound
    if best in (low, high):
        why = (
            "all are predicted rightly" if best == low else "the model says little about the labels"
        )
        warnings.warn(
            f"the temperature is at its bound {math.exp(best):g}: the log loss of the "
            f"{len(labels)} validation images has no minimum between {TEMPERATURES[0]:g} and "
            f"{TEMPERATURES[1]:g}, as where {why}; the calibrated probabilities are not to be "
            "trusted, use more validation images",
            stacklevel=2,
        )
    return math.exp(best)


def parse_rule(rule: str) -> tuple[str, float | None]:
    """Name and number of a rule: "youden" (None), "sensitivity>=s" (s) or "cost=r" (r).

    Raises:
        ValueError: for another text, s outside 0..1 or r <= 0.
    """
    if rule == "youden":
        return rule, None
    for name, separator in (("sensitivity", ">="), ("cost", "=")):
        if rule.startswith(name + separator):
            try:
                value = float(rule[len(name + separator) :])
            except ValueError:
                break
            if 0 < value < math.inf and (name == "cost" or value <= 1):
                return name, value
    raise ValueError(
        f"the rule of the threshold is {rule!r}, expected 'youden', 'sensitivity>=0.95' (a number "
        "above 0, at most 1) or 'cost=5' (one missed positive costs as much as 5 false alarms)"
    )


def choose_threshold(labels, scores, rule: str = "youden") -> float:
    """The threshold on `scores` from which an image (score >= threshold) counts as positive.

    labels [N] of 0 and 1 with both present, scores [N] in 0..1, both of the validation set. Rules:

    - "youden": the greatest sensitivity + specificity - 1 (Youden 1950);
    - "sensitivity>=s": the greatest specificity of those with a sensitivity of at least s;
    - "cost=r": the least cost, false alarms + r x missed positives, at the validation set's share
      of positives.

    Of equally good ones the lowest, that with the highest sensitivity, except for "sensitivity>=s",
    where the highest. It lies halfway between two neighbouring scores, so that it does not hang on
    one image's last digit; the least and greatest are 0 and just above the largest score.

    Raises:
        ValueError: for a class that is absent, other labels, scores outside 0..1, other rules.
    """
    name, value = parse_rule(rule)
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1 or set(np.unique(labels)) != {0, 1}:
        raise ValueError(
            f"threshold: found labels {np.unique(labels)[:5].tolist()} of shape {labels.shape} and "
            f"scores of shape {scores.shape}, expected 0 and 1, both present, and as many scores; "
            "the validation split must hold both classes"
        )
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(f"threshold: scores span {scores.min()}..{scores.max()}, expected 0..1")
    distinct = np.unique(scores)
    middle = (distinct[:-1] + distinct[1:]) / 2
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])  # neighbours in floating point
    thresholds = np.concatenate([[0.0], middle, [np.nextafter(distinct[-1], 2.0)]])
    positives, negatives = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    missed = np.searchsorted(positives, thresholds, side="left")
    alarms = len(negatives) - np.searchsorted(negatives, thresholds, side="left")
    if name == "sensitivity":
        # a share such as 0.95 has no exact binary fraction: 19 of 20 must satisfy it
        enough = len(positives) - missed >= value * len(positives) - 1e-9
        return float(thresholds[np.flatnonzero(enough)[-1]])
    if name == "cost":
        cost = alarms + value * missed
    else:
        cost = alarms * len(positives) + missed * len(negatives)  # in whole numbers: ties are exact
    return float(thresholds[cost.argmin()])


def fit_calibration(
    labels, logits, rule: str | None = "youden", fitted_on: str = "validation"
) -> dict:
    """`{temperature, threshold, rule, fitted_on}` from validation labels [N] and logits [N, K].

    With two classes the threshold is for the calibrated probability of class 1. With more, or
    where `rule` is None, it is None, the rule "argmax" and the class the most probable one.

    Warns and raises as `fit_temperature` and `choose_threshold`.
    """
    temperature = fit_temperature(labels, logits)
    probabilities = np.exp(_log_probabilities(np.asarray(logits, dtype=np.float64) / temperature))
    threshold = None
    if rule is not None and probabilities.shape[1] == 2:
        threshold = choose_threshold(labels, probabilities[:, 1], rule)
    return {
        "temperature": temperature, "threshold": threshold,
        "rule": "argmax" if threshold is None else rule, "fitted_on": fitted_on,
    }  # fmt: skip


def apply_calibration(probabilities, calibration: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities [N, K] and the decided classes [N] (int64).

    probabilities: [N, K] of the model as it is, softmax(logits); softmax(log(p) / T) is
    softmax(logits / T). None for `calibration` changes nothing and decides for the most probable.

    Raises:
        ValueError: for a temperature that is not positive, a threshold with K > 2, missing keys,
            and probabilities as in `check_predictions`.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    check_predictions(np.zeros(len(probabilities), dtype=np.int64), probabilities)
    calibration = {"temperature": 1.0, "threshold": None} if calibration is None else calibration
    missing = {"temperature", "threshold"} - set(calibration)
    if missing:
        raise ValueError(
            f"calibration lacks {', '.join(sorted(missing))}, found {sorted(calibration)}; fit it "
            "again"
        )
    temperature, threshold = calibration["temperature"], calibration["threshold"]
    num_classes = probabilities.shape[1]
    if not 0 < temperature < math.inf or (threshold is not None and num_classes != 2):
        raise ValueError(
            f"calibration has temperature {temperature} and threshold {threshold} for "
            f"{num_classes} classes, expected a positive temperature and a threshold for two "
            "classes only"
        )
    if temperature != 1:
        logits = np.log(probabilities.clip(SMALLEST)) / temperature
        probabilities = np.exp(_log_probabilities(logits))
    if threshold is None:
        return probabilities, probabilities.argmax(axis=1)
    return probabilities, (probabilities[:, 1] >= threshold).astype(np.int64)


def reliability_curve(
    labels, probabilities, num_bins: int = 15, class_index: int | None = None
) -> list[dict[str, float]]:
    """The filled bins of `confidence_bins`, by rising confidence, as plain numbers for a figure.

    Each has low, high (its edges), count, confidence (mean), accuracy and the Wilson interval
    accuracy_low, accuracy_high, which assumes independent images.
    """
    from sssd_hf.evaluation.independent import wilson_interval

    counts, confidence, accuracy = confidence_bins(labels, probabilities, num_bins, class_index)
    curve = []
    for index in np.flatnonzero(counts):
        count = int(counts[index])
        low, high = wilson_interval(round(accuracy[index] * count), count)
        curve.append({
            "low": index / num_bins, "high": (index + 1) / num_bins, "count": count,
            "confidence": float(confidence[index]), "accuracy": float(accuracy[index]),
            "accuracy_low": low, "accuracy_high": high,
        })  # fmt: skip
    return curve


def selective_prediction(labels, probabilities) -> dict:
    """Accuracy where the model answers for its most confident images alone.

    labels [N], probabilities [N, K], N >= 1. Returns "coverage" (share answered), "accuracy" (of
    these) and "threshold" (the least confidence answered), lists from the most confident images to
    all, images of one confidence entering together; and "area" in 0..1, the mean accuracy over the
    coverages from 0 to 1, each point holding for the coverage since the one before. 1 - area is the
    area under the risk-coverage curve (Geifman and El-Yaniv 2017).
    """
    labels, probabilities = check_predictions(labels, probabilities)
    if len(labels) == 0:
        raise ValueError("labels and probabilities are empty, expected at least one image")
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    right = np.cumsum(probabilities.argmax(axis=1)[order] == labels[order])[ends]
    coverage, accuracy = (ends + 1) / len(labels), right / (ends + 1)
    return {
        "coverage": coverage.tolist(), "accuracy": accuracy.tolist(),
        "threshold": confidence[order][ends].tolist(),
        "area": float((np.diff(coverage, prepend=0) * accuracy).sum()),
    }  # fmt: skip
