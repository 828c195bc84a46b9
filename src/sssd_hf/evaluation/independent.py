"""Intervals and tests that assume independent images: Wilson, DeLong and McNemar.

Where patients have several images they are too narrow and too sure; the bootstrap of groups in
`intervals` and `comparison` is not.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

ASSUMPTION = "assumes independent images"


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


def _check_scores(labels, scores):
    """labels as bool [N] and scores as float64 [M, N], for labels of 0 and 1."""
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if labels.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(labels):
        raise ValueError(
            f"labels have shape {labels.shape} and scores {scores.shape}, expected (images,) and "
            "as many scores for each model"
        )
    if not np.isin(labels, (0, 1)).all() or not np.isfinite(scores).all():
        raise ValueError(
            "DeLong: labels must be 0 and 1 and scores finite, found labels "
            f"{np.unique(labels)[:5].tolist()} and {int((~np.isfinite(scores)).sum())} other scores"
        )
    return labels == 1, scores


def delong_covariance(labels, scores) -> tuple[np.ndarray, np.ndarray]:
    """AUCs [M] of M scores for the same images, and their covariance [M, M].

    labels [N] of 0 and 1, scores [M, N]. With S the m positives and T the n negatives, and
    psi(s, t) = 1, 1/2, 0 for s >, =, < t, the covariance of DeLong, DeLong and Clarke-Pearson
    (1988) is cov(V10) / m + cov(V01) / n, where V10(i) is the mean of psi over the negatives for
    positive i, V01(j) the mean over the positives for negative j, and cov divides by m - 1 and
    n - 1. The means are differences of midranks (Sun and Xu 2014), in O(N log N).

    With fewer than two positives or negatives the covariance is NaN, without any the AUC too.

    Raises:
        ValueError: for shapes that do not match, labels other than 0 and 1, scores not finite.
    """
    from scipy.stats import rankdata

    positive, scores = _check_scores(labels, scores)
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    models = len(scores)
    if 0 in (num_positives, num_negatives):
        return np.full(models, np.nan), np.full((models, models), np.nan)
    ranks = rankdata(scores, axis=1)
    of_positives = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / num_negatives
    of_negatives = (
        1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / num_positives
    )
    aucs = of_positives.mean(axis=1)
    if min(num_positives, num_negatives) < 2:
        return aucs, np.full((models, models), np.nan)
    covariance = np.cov(of_positives) / num_positives + np.cov(of_negatives) / num_negatives
    return aucs, covariance.reshape(models, models)


def delong_interval(labels, scores, confidence: float = 0.95) -> dict[str, float]:
    """AUC, its variance and normal interval (low, high, cut at 0 and 1), by `delong_covariance`.

    labels [N] of 0 and 1, scores [N]. Assumes independent images. An AUC of 1 has no width here.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"found confidence {confidence}, expected a number between 0 and 1")
    (auc,), ((variance,),) = delong_covariance(labels, scores)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    low, high = float(np.clip(auc - half, 0, 1)), float(np.clip(auc + half, 0, 1))
    return {
        "auc": float(auc), "variance": float(variance), "low": low, "high": high,
        "assumption": ASSUMPTION,
    }  # fmt: skip


def delong_test(labels, scores_a, scores_b, confidence: float = 0.95) -> dict[str, float]:
    """Two-sided test of equal AUCs of two scores [N] for the same images (paired DeLong).

    Returns auc_a, auc_b, difference (a - b), its variance, interval (low, high), z and p. Assumes
    independent images. Where both rank alike the variance is 0: z is 0 and p 1 for equal AUCs;
    a difference without any variance has z infinite and p 0.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"found confidence {confidence}, expected a number between 0 and 1")
    aucs, covariance = delong_covariance(labels, [scores_a, scores_b])
    difference = float(aucs[0] - aucs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    scale = float(np.abs(covariance).max())
    variance = 0.0 if variance < 1e-12 * scale else variance  # rounding may leave -1e-19
    error = math.sqrt(variance)
    if error == 0:
        z = 0.0 if abs(difference) < 1e-12 else math.copysign(math.inf, difference)
    else:
        z = difference / error
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return {
        "auc_a": float(aucs[0]), "auc_b": float(aucs[1]), "difference": difference,
        "variance": variance, "low": difference - half, "high": difference + half, "z": z,
        "p": math.erfc(abs(z) / math.sqrt(2)), "assumption": ASSUMPTION,
    }  # fmt: skip


def mcnemar_test(right_a, right_b) -> dict[str, float]:
    """Two-sided McNemar test that two models are right equally often on the same images.

    right_a, right_b: booleans [N]. Only images that one model alone gets right tell: under equal
    accuracies their number `only_a` of `only_a + only_b` is binomial with 1/2. Returns these two,
    the exact p and the mid-p, which counts half of what is as extreme as the observed (Fagerland
    et al. 2013) and is less conservative; without such images both are 1. Assumes independent
    images.

    Raises:
        ValueError: for shapes that differ or are not (N,), values that are not booleans.
    """
    from scipy.stats import binom

    right_a, right_b = np.asarray(right_a), np.asarray(right_b)
    booleans = right_a.dtype == right_b.dtype == bool
    if right_a.shape != right_b.shape or right_a.ndim != 1 or not booleans:
        raise ValueError(
            f"McNemar: found shapes {right_a.shape} and {right_b.shape} of {right_a.dtype} and "
            f"{right_b.dtype}, expected booleans (images,) from both models: prediction == label"
        )
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    fewer, discordant = min(only_a, only_b), only_a + only_b
    exact = mid = 1.0
    if discordant:
        observed = float(binom.pmf(fewer, discordant, 0.5))
        exact = min(1.0, 2 * float(binom.cdf(fewer, discordant, 0.5)))
        # of an even split there is one outcome as extreme, else one in either tail
        mid = exact - observed / 2 if only_a == only_b else exact - observed
    return {
        "only_a": only_a, "only_b": only_b, "p_exact": exact, "p_mid": mid,
        "assumption": ASSUMPTION,
    }  # fmt: skip
