"""Confidence intervals by the percentile bootstrap over images or patients.

Those that assume independent images are in `independent`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sssd_hf.evaluation.metrics import check_predictions
from sssd_hf.evaluation.resampling import NAMES, resampled_metrics

CHUNK_ELEMENTS = 1_000_000  # weights held at a time: 8 MB for each of about eight arrays
# plain means over the images; they alone keep a spread if a class is seen in one group only
MEANS_OVER_IMAGES = ("accuracy", "log_loss", "brier")


def check_groups(groups, count: int) -> np.ndarray:
    """Return the ids as an array [count].

    Raises:
        ValueError: for another number of ids, and for ids that are None or NaN.
    """
    groups = np.asarray(groups)
    if groups.shape != (count,):
        raise ValueError(f"groups have shape {groups.shape}, expected ({count},) as the labels")
    missing = sum(item is None or item != item for item in groups.tolist())
    if missing:
        raise ValueError(
            f"{missing} of {count} groups are missing (None or NaN); give each image an id, an "
            "image of an unknown patient one of its own"
        )
    return groups


def _group_indices(groups, count):
    """Map ids [N] to indices [N] in 0..G-1; without groups every image is its own."""
    if groups is None:
        return np.arange(count)
    return np.unique(check_groups(groups, count), return_inverse=True)[1]


def draw_groups(generator, strata, num_resamples):
    """How often each group is drawn [R, G]: with replacement, within its stratum (int [G])."""
    multiplicities = np.empty((num_resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        draws = generator.integers(len(members), size=(num_resamples, len(members)))
        draws += len(members) * np.arange(num_resamples)[:, None]  # a range of its own for each row
        counts = np.bincount(draws.ravel(), minlength=draws.size)
        multiplicities[:, members] = counts.reshape(draws.shape)
    return multiplicities


def count_groups(labels, groups=None) -> int:
    """How many independent units N labels have: the different ids, or N without ids."""
    return len(np.unique(_group_indices(groups, len(labels))))


def _strata(labels, num_classes, group_index):
    """The label that most images of each group have, int [G]."""
    num_groups = int(group_index.max(initial=-1)) + 1
    counts = np.bincount(group_index * num_classes + labels, minlength=num_groups * num_classes)
    return counts.reshape(num_groups, num_classes).argmax(axis=1)


def shows_every_class(labels, num_classes: int, groups=None) -> bool:
    """Whether draws show the spread of each class: none is the most frequent of one group only."""
    labels = np.asarray(labels)
    strata = _strata(labels, num_classes, _group_indices(groups, len(labels)))
    return 1 not in np.bincount(strata)


def draw_strata(labels, num_classes, groups=None) -> tuple[np.ndarray, np.ndarray]:
    """Index of each image's group, int [N], and the stratum in which each group is drawn, int [G]:
    one for all, where a stratum would have a single group, which was then drawn in every draw."""
    labels = np.asarray(labels)
    group_index = _group_indices(groups, len(labels))
    strata = _strata(labels, num_classes, group_index)
    return group_index, np.zeros_like(strata) if 1 in np.bincount(strata) else strata


def resampled_weights(
    labels, num_classes: int, groups=None, *, num_resamples=2000, seed=0
) -> Iterator[np.ndarray]:
    """The draws of `bootstrap_intervals`: how often each image is drawn, float [r, N] at a time.

    labels [N] in 0..num_classes-1, groups N ids or None. Whole groups are drawn with replacement,
    stratified by the label that most of their images have (see there for when they are not).
    """
    labels = np.asarray(labels)
    group_index, strata = draw_strata(labels, num_classes, groups)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // max(1, len(labels)))
    for start in range(0, num_resamples, rows):
        drawn = draw_groups(generator, strata, min(rows, num_resamples - start))
        yield drawn[:, group_index]  # (resamples, images)


def bootstrap_samples(
    labels, probabilities_of_models, groups=None, *, num_resamples=2000, seed=0
) -> list[dict[str, np.ndarray]]:
    """`resampled_metrics` [R] of each model, all on the same R draws; see `bootstrap_intervals`.

    labels [N]; probabilities_of_models: a sequence of [N, K]; groups: N ids or None. A metric
    whose spread the draws cannot show is all NaN.

    Raises:
        ValueError: as `bootstrap_intervals`.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, expected at least 1")
    checked = [
        check_predictions(labels, probabilities) for probabilities in probabilities_of_models
    ]
    labels, num_classes = checked[0][0], checked[0][1].shape[1]
    if count_groups(labels, groups) < 2:
        return [{name: np.full(num_resamples, np.nan) for name in NAMES} for _ in checked]

    single = not shows_every_class(labels, num_classes, groups)
    samples = [{name: [] for name in NAMES} for _ in checked]
    for weights in resampled_weights(
        labels, num_classes, groups, num_resamples=num_resamples, seed=seed
    ):
        for parts, (_, probabilities) in zip(samples, checked, strict=True):
            for name, values in resampled_metrics(labels, probabilities, weights).items():
                if single and name not in MEANS_OVER_IMAGES:
                    values = np.full_like(values, np.nan)
                parts[name].append(values)
    return [{name: np.concatenate(parts[name]) for name in NAMES} for parts in samples]


def percentile_interval(values, confidence=0.95) -> tuple[float, float]:
    """(low, high): the central share `confidence` of what is defined in values [R]; or two NaN."""
    if not 0 < confidence < 1:
        raise ValueError(f"found confidence {confidence}, expected a number between 0 and 1")
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    return tuple(np.quantile(values, [tail, 1 - tail]).tolist())


def bootstrap_intervals(
    labels, probabilities, groups=None, *, num_resamples=2000, confidence=0.95, seed=0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap (Efron 1979) for labels [N], probabilities [N, K], group ids [N].

    Returns (low, high) for each of `NAMES`. With `groups` (patients) whole groups are drawn, which
    keeps the dependence of their images; the draw is stratified by the label that most images of a
    group have, so that the classes stay present. Without, each image is a group.

    The spread of a class cannot be seen in a single group: where a class is the most frequent
    label of exactly one, the draw is not stratified and all but accuracy, log_loss and brier are
    (NaN, NaN); with fewer than two groups everything is. Resamples in which a metric is undefined
    do not enter its interval. A figure of exactly 0 or 1 has an interval without width here;
    Wilson's has one.

    Raises:
        ValueError: for num_resamples < 1, confidence outside 0..1, groups that do not match the
            labels or are missing, and as `check_predictions` does.
    """
    percentile_interval(np.empty(0), confidence)  # refuses the confidence before the work
    (samples,) = bootstrap_samples(
        labels, [probabilities], groups, num_resamples=num_resamples, seed=seed
    )
    return {name: percentile_interval(values, confidence) for name, values in samples.items()}
