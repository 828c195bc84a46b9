"""Two models on the same images, or over draws of overlapping data; several tests at once."""

from __future__ import annotations

import math

import numpy as np

from sssd_hf.evaluation.independent import delong_test, mcnemar_test
from sssd_hf.evaluation.intervals import bootstrap_samples, percentile_interval
from sssd_hf.evaluation.metrics import check_predictions
from sssd_hf.evaluation.resampling import resampled_metrics


def bootstrap_p_value(differences) -> float:
    """Two-sided p of "no difference" from bootstrapped differences [R]; NaN where none is defined.

    Twice the smaller share of differences on one side of 0, zeros counting to both: the level at
    which the percentile interval just reaches 0. One is added to numerator and denominator
    (Davison and Hinkley 1997, 4.2), so that the least possible value is 2 / (R + 1).
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if len(differences) == 0:
        return float("nan")
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)))


def compare_models(
    labels, probabilities_a, probabilities_b, groups=None, *,
    num_resamples=2000, confidence=0.95, seed=0,
) -> dict:  # fmt: skip
    """Differences a - b of all metrics of two models on the same images.

    labels [N] integers, probabilities [N, K] of each model, groups N ids (patients) or None.
    Returns

    - "metrics": name -> a, b, difference, low, high, p. Both models are evaluated on the same
      draws of whole groups, as in `bootstrap_intervals`; p as in `bootstrap_p_value`. Lower is
      better for log_loss and brier;
    - "independent_images": "mcnemar" and, with two classes, "delong", which are too sure of
      themselves where images share a patient.

    Raises:
        ValueError: for probabilities of different shapes, and as `bootstrap_intervals`.
    """
    labels, first = check_predictions(labels, probabilities_a)
    _, second = check_predictions(labels, probabilities_b)
    if first.shape != second.shape or len(labels) == 0:
        raise ValueError(
            f"probabilities have shapes {first.shape} and {second.shape}, expected twice the same, "
            "for the same images (at least one) and classes in the same order"
        )
    samples_a, samples_b = bootstrap_samples(
        labels, [first, second], groups, num_resamples=num_resamples, seed=seed
    )
    whole = np.ones((1, len(labels)))
    values_a, values_b = (resampled_metrics(labels, part, whole) for part in (first, second))
    metrics = {}
    for name in samples_a:
        differences = samples_a[name] - samples_b[name]
        a, b = float(values_a[name][0]), float(values_b[name][0])
        low, high = percentile_interval(differences, confidence)
        metrics[name] = {
            "a": a, "b": b, "difference": a - b, "low": low, "high": high,
            "p": bootstrap_p_value(differences),
        }  # fmt: skip
    right_a, right_b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    independent = {"mcnemar": mcnemar_test(right_a, right_b)}
    if first.shape[1] == 2:
        independent["delong"] = delong_test(labels, first[:, 1], second[:, 1], confidence)
    return {"metrics": metrics, "independent_images": independent}


def corrected_resampled_t_test(
    differences, test_train_ratio: float, confidence: float = 0.95
) -> dict[str, float]:
    """Nadeau and Bengio's (2003) corrected resampled t-test of "the mean difference is 0".

    differences: J differences of two methods, one for each draw of a training and a test set from
    the same data (repeated splits, or repeats x folds of a cross-validation). The training sets
    overlap, so that the differences are dependent, and a paired t-test of them, or Wilcoxon's,
    finds differences where there are none. With their mean d and variance s^2 (divided by J - 1),

        t = d / sqrt((1 / J + test_train_ratio) s^2),   J - 1 degrees of freedom

    and test_train_ratio = images (or patients) in the test set / in the training set: 1/4 for
    five folds. With a ratio of 0 this is the paired t-test.

    Returns mean, low, high, t, degrees_of_freedom and the two-sided p. Equal differences other
    than 0 have t infinite and p 0, all 0 have t 0 and p 1.

    Raises:
        ValueError: for fewer than two differences, values not finite, a negative ratio.
    """
    from scipy.stats import t as student

    differences = np.asarray(differences, dtype=np.float64)
    count = differences.size
    if differences.ndim != 1 or count < 2 or not np.isfinite(differences).all():
        raise ValueError(
            f"differences have shape {differences.shape} and "
            f"{int((~np.isfinite(differences)).sum())} values that are not finite, expected at "
            "least two numbers, one for each draw"
        )
    if not (0 <= test_train_ratio < math.inf and 0 < confidence < 1):
        raise ValueError(
            f"test_train_ratio is {test_train_ratio} and confidence {confidence}, expected test "
            "images / training images (0.25 for five folds) and a number between 0 and 1"
        )
    mean = float(differences.mean())
    spread = 0.0 if np.ptp(differences) == 0 else float(differences.std(ddof=1))
    error = math.sqrt(1 / count + test_train_ratio) * spread
    if error == 0 and mean != 0:  # of equal differences no spread can be estimated
        unknown = dict.fromkeys(("low", "high", "t", "p"), math.nan)
        return {"mean": mean, "degrees_of_freedom": count - 1, **unknown}
    statistic = mean / error if error else 0.0
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * error
    return {
        "mean": mean, "low": mean - half, "high": mean + half, "t": statistic,
        "degrees_of_freedom": count - 1, "p": float(2 * student.sf(abs(statistic), count - 1)),
    }  # fmt: skip


def holm(p_values) -> np.ndarray:
    """Holm's (1979) adjusted p-values [M]: reject those below alpha, whatever the dependence.

    The i-th smallest of M is multiplied by M - i + 1 and made no smaller than those before it. A
    NaN (a test that could not be done) stays NaN and does not count in M.

    Raises:
        ValueError: for values outside 0..1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    defined = np.flatnonzero(~np.isnan(p_values))
    if p_values.ndim != 1 or ((p_values[defined] < 0) | (p_values[defined] > 1)).any():
        raise ValueError(f"p_values are {p_values.tolist()}, expected a list of numbers in 0..1")
    order = defined[np.argsort(p_values[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(p_values), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p_values[order]))
    return adjusted
