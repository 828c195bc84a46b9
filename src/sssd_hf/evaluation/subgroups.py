"""Metrics for each value of a column of the metadata, and the value where the model is worst."""

from __future__ import annotations

import itertools
import math

import numpy as np

from sssd_hf.evaluation.intervals import bootstrap_intervals, check_groups
from sssd_hf.evaluation.metrics import (
    LOWER_IS_BETTER,
    check_predictions,
    classification_metrics,
)

MISSING = "(missing)"
MAX_NUMBERS = 10  # a column with more different numbers is cut at its quartiles


def column_values(values) -> np.ndarray:
    """The subgroup of each image, as text [N]: a column's values, or ranges of its numbers.

    None, NaN and empty text become "(missing)". Numbers of more than `MAX_NUMBERS` different values
    become up to four ranges of about as many images, such as "[40, 55)", the last one closed.
    """
    values = list(values)
    missing = np.array([v is None or v != v or v == "" for v in values], dtype=bool)
    present = [value for value, absent in zip(values, missing, strict=True) if not absent]
    names = np.full(len(values), MISSING, dtype=object)
    is_number = all(
        isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        for value in present
    )
    if is_number and len(set(present)) > MAX_NUMBERS:
        numbers = np.array(present, dtype=np.float64)
        edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
        ranges = [f"[{low}, {high})" for low, high in itertools.pairwise(_short_texts(edges))]
        ranges[-1] = ranges[-1][:-1] + "]"
        index = np.searchsorted(edges[1:-1], numbers, side="right")
        names[~missing] = [ranges[i] for i in index]
    else:
        names[~missing] = [str(value) for value in present]
    return names


def _short_texts(numbers: np.ndarray) -> list[str]:
    """Different numbers as different texts, of six digits where these tell them apart."""
    for digits in range(6, 17):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(texts):
            return texts
    return [repr(float(number)) for number in numbers]


def subgroup_metrics(
    labels, probabilities, values, groups=None, *, metric: str = "balanced_accuracy",
    minimum: int = 20, num_resamples=2000, confidence=0.95, seed=0,
) -> dict:  # fmt: skip
    """Metrics with intervals for each value of a column, and the worst value by `metric`.

    labels [N], probabilities [N, K], values N entries of any column (see `column_values`), groups N
    ids or None. Returns

    - "subgroups": value -> num_images, num_groups (patients; None without), share_of_labels [K],
      small, metrics (`classification_metrics`) and intervals (`bootstrap_intervals`), by falling
      number of images. Small is one with fewer than `minimum` groups (images where there are no
      groups): its figures say little.
    - "worst": value, metric, estimate, low, high and overall (the figure of all images) of the
      worst subgroup that is neither small nor without the metric; None where there are fewer than
      two of these. The worst of many is partly chance: its interval is not corrected for that.

    Raises:
        ValueError: for values that do not match the labels, an unknown metric, minimum < 1, and as
            `bootstrap_intervals`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    overall = classification_metrics(labels, probabilities)
    if metric not in overall or minimum < 1:
        raise ValueError(
            f"metric is {metric!r} and minimum {minimum}, expected one of {', '.join(overall)} and "
            "at least 1"
        )
    names = column_values(values)
    if len(names) != len(labels):
        raise ValueError(
            f"the column has {len(names)} values, expected {len(labels)}, one for each image"
        )
    groups = None if groups is None else check_groups(groups, len(labels))
    subgroups = {}
    for name in sorted(set(names), key=lambda name: (-(names == name).sum(), name)):
        inside = names == name
        part = None if groups is None else groups[inside]
        num_groups = None if part is None else len(np.unique(part))
        num_images = int(inside.sum())
        subgroups[name] = {
            "num_images": num_images,
            "num_groups": num_groups,
            "share_of_labels": (
                np.bincount(labels[inside], minlength=probabilities.shape[1]) / num_images
            ).tolist(),
            "small": (num_images if num_groups is None else num_groups) < minimum,
            "metrics": classification_metrics(labels[inside], probabilities[inside]),
            "intervals": bootstrap_intervals(
                labels[inside], probabilities[inside], part,
                num_resamples=num_resamples, confidence=confidence, seed=seed,
            ),
        }  # fmt: skip

    # with a class missing, a mean over classes is of others than elsewhere
    present = np.unique(labels).size
    compared = [
        name
        for name, row in subgroups.items()
        if not row["small"]
        and not math.isnan(row["metrics"][metric])
        and np.count_nonzero(row["share_of_labels"]) == present
    ]
    worst = None
    if len(compared) > 1:
        choose = max if metric in LOWER_IS_BETTER else min
        name = choose(compared, key=lambda name: subgroups[name]["metrics"][metric])
        low, high = subgroups[name]["intervals"].get(metric, (math.nan, math.nan))
        worst = {
            "value": name, "metric": metric, "estimate": subgroups[name]["metrics"][metric],
            "low": low, "high": high, "overall": overall[metric],
        }  # fmt: skip
    return {"subgroups": subgroups, "worst": worst}
