"""Few-shot curves: a linear probe of frozen features, fitted on a small share of the labels."""

from __future__ import annotations

import numpy as np

from sssd_hf.evaluation.intervals import check_groups
from sssd_hf.evaluation.metrics import classification_metrics
from sssd_hf.evaluation.probes import choose_linear, class_probabilities, standardize

METRICS = ("accuracy", "balanced_accuracy", "roc_auc")


def few_shot_subset(labels, fraction: float, seed: int, repeat: int = 0, groups=None) -> np.ndarray:
    """Positions [M] of a random share of the images, in rising order.

    The draw is stratified and takes whole groups (patients): each group belongs to the class that
    most of its images have; in each class the groups are put in a random order, and as many of the
    first are taken as come closest to the share of these groups' images, at least one. Without
    groups each image is one. A class that no group has most often gets the first group it occurs
    in, so that none is missing. The orders depend on seed and repeat alone: within a repeat a
    smaller share's images are among those of a larger one (the subsets are nested), and repeats are
    independent.

    Args:
        labels: [N] integers.
        fraction: above 0, at most 1.
        groups: N ids, or None.

    Raises:
        ValueError: another fraction, or groups that do not match or are missing.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"found the fraction {fraction}, expected one above 0, at most 1")
    labels = np.asarray(labels)
    group_of = np.arange(len(labels))
    if groups is not None:
        group_of = np.unique(check_groups(groups, len(labels)), return_inverse=True)[1]
    classes, label_index = np.unique(labels, return_inverse=True)
    table = np.zeros((group_of.max(initial=-1) + 1, len(classes)), dtype=np.int64)
    np.add.at(table, (group_of, label_index), 1)  # (groups, classes) images
    order = np.random.default_rng([seed, repeat]).permutation(len(table))
    majority = table.argmax(axis=1)
    chosen = np.zeros(len(table), dtype=bool)
    for index in range(len(classes)):
        members = order[majority[order] == index]
        if len(members):
            sizes = table[members].sum(axis=1).cumsum()
            chosen[members[: np.abs(sizes - fraction * sizes[-1]).argmin() + 1]] = True
        else:  # by the order alone, not by what other classes chose: subsets stay nested
            chosen[order[table[order, index] > 0][0]] = True
    return np.flatnonzero(chosen[group_of])


def few_shot_curve(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    percents,
    repeats: int = 10,
    seed: int = 0,
    groups=None,
) -> list[dict[str, float]]:
    """Test figures of linear probes fitted on `percents` of the training labels.

    The strength of the penalty is chosen anew for each subset by the log loss on all validation
    images (`choose_linear`): their labels come on top of the share. All features are standardised
    by those of all training images, which takes no labels. Test labels enter the figures alone.

    Args:
        train, validation, test: (features [N, width], labels [N], 0 to num_classes - 1).
        percents: above 0, at most 100; at 100 there is one subset, and no repeat.
        groups: of the training images, which a subset keeps whole; or None.

    Returns:
        One record for each share and repeat: percent, repeat, num_images, num_groups, C, and
        `METRICS` (0 to 1; NaN where the test labels leave it undefined).
    """
    features = standardize(train[0], validation[0], test[0])
    labels = np.asarray(train[1])
    group_ids = np.arange(len(labels)) if groups is None else np.asarray(groups)
    records = []
    for percent in sorted(set(percents)):
        for repeat in range(1 if percent == 100 else repeats):
            chosen = few_shot_subset(labels, percent / 100, seed, repeat, groups)
            classifier, strength = choose_linear(
                features[0][chosen], labels[chosen], features[1], validation[1], num_classes
            )
            probabilities = class_probabilities(classifier, features[2], num_classes)
            metrics = classification_metrics(test[1], probabilities)
            records.append(
                {
                    "percent": percent,
                    "repeat": repeat,
                    "num_images": len(chosen),
                    "num_groups": len(set(group_ids[chosen].tolist())),
                    "C": strength,
                    **{name: metrics[name] for name in METRICS},
                }
            )
    return records


def summarize(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """For each share the mean over its subsets of num_images, num_groups and `METRICS`, and the
    metrics' standard deviation (n - 1; NaN of a single subset): the spread over subsets, which says
    nothing of the test images."""
    result = []
    for percent in sorted({record["percent"] for record in records}):
        part = [record for record in records if record["percent"] == percent]
        row = {"percent": percent, "repeats": len(part)}
        for name in ("num_images", "num_groups", *METRICS):
            values = np.array([record[name] for record in part], dtype=float)
            row[f"{name}_mean"] = float(values.mean())
            if name in METRICS:
                row[f"{name}_std"] = float(values.std(ddof=1)) if len(part) > 1 else float("nan")
        result.append(row)
    return result
