"""Curves: points against scikit-learn, bands against a loop over repeated images."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve
from synthetic_evaluation import draw_predictions

from sssd_hf.evaluation import curves
from sssd_hf.evaluation.intervals import resampled_weights


@pytest.fixture(scope="module")
def predictions():
    labels, probabilities, groups = draw_predictions(40, 2, seed=3)
    rounded = probabilities.round(2)  # ties
    rounded[:, 0] = 1 - rounded[:, 1]
    return labels, rounded, groups


def test_points_are_those_of_scikit_learn(predictions):
    labels, probabilities, _ = predictions
    for index in (0, 1):
        positive, scores = labels == index, probabilities[:, index]
        curve = curves.roc(labels, probabilities, index, num_resamples=2)
        x, y, _ = roc_curve(positive, scores)
        np.testing.assert_array_equal((curve.x, curve.y), (x, y))
        curve = curves.precision_recall(labels, probabilities, index, num_resamples=2)
        precision, recall, _ = precision_recall_curve(positive, scores)
        np.testing.assert_array_equal((curve.x, curve.y), (recall[::-1], precision[::-1]))


def draws_as_rows(labels, groups, count):
    """Indices of the images of each draw, repeated as often as they are drawn."""
    (weights,) = resampled_weights(labels, 2, groups, num_resamples=count, seed=5)
    return [np.repeat(np.arange(len(labels)), row.astype(int)) for row in weights]


def quantiles(rows):
    return np.quantile(np.array(rows), [0.025, 0.975], axis=0)


def test_whole_groups_are_drawn_within_their_class(predictions):
    labels, _, groups = predictions
    (weights,) = resampled_weights(labels, 2, groups, num_resamples=50, seed=5)
    of_group = {group: labels[groups == group][0] for group in groups}
    per_class = np.bincount(list(of_group.values()))
    first = [np.flatnonzero(groups == group)[0] for group in of_group]
    for row in weights:
        for group in of_group:
            assert len(set(row[groups == group])) == 1
        for label in (0, 1):
            drawn = sum(row[i] for i in first if labels[i] == label)
            assert drawn == per_class[label]


def test_bands_are_those_of_a_loop_over_repeated_images(predictions):
    labels, probabilities, groups = predictions
    rows = draws_as_rows(labels, groups, 12)
    options = {"num_resamples": 12, "seed": 5}
    sensitivity, precision, accuracy = [], [], []
    for row in rows:
        x, y, _ = roc_curve(labels[row], probabilities[row, 1], drop_intermediate=False)
        sensitivity.append([np.interp(g, x, y) for g in curves.GRID])
        p, r, _ = precision_recall_curve(labels[row], probabilities[row, 1])
        p, r = p[:-1][::-1], r[:-1][::-1]  # by rising recall, without the added end at 0
        first = [
            min(i for i in range(len(r)) if r[i] >= g - 1e-9 and r[i] > 0) for g in curves.GRID
        ]
        precision.append(p[first])
        confidence = probabilities[row].max(axis=1)
        right = probabilities[row].argmax(axis=1) == labels[row]
        by_grid = []
        for g in curves.GRID:
            # the highest threshold that answers at least this share
            least = max(t for t in set(confidence) if (confidence >= t).mean() >= g - 1e-9)
            by_grid.append(right[confidence >= least].mean())
        accuracy.append(by_grid)
    for curve, expected in (
        (curves.roc(labels, probabilities, 1, groups, **options), sensitivity),
        (curves.precision_recall(labels, probabilities, 1, groups, **options), precision),
        (curves.coverage(labels, probabilities, groups, **options), accuracy),
    ):
        np.testing.assert_allclose((curve.low, curve.high), quantiles(expected), atol=1e-12)
        assert (curve.low <= curve.high).all()


def test_coverage_ends_at_the_accuracy(predictions):
    labels, probabilities, _ = predictions
    curve = curves.coverage(labels, probabilities, num_resamples=2)
    assert curve.x[-1] == 1
    assert curve.y[-1] == (probabilities.argmax(axis=1) == labels).mean()


def test_no_band_where_a_class_has_one_group():
    labels, scores = np.array([0, 0, 1]), np.array([0.2, 0.6, 0.9])
    probabilities = np.stack([1 - scores, scores], axis=1)
    assert curves.roc(labels, probabilities).low is None
    groups = ["a", "b", "c"]
    assert curves.coverage(labels, probabilities, groups).low is None


def test_one_class_has_no_curve():
    probabilities = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match="0 of 3 images"):
        curves.roc(np.zeros(3, dtype=int), probabilities)
    with pytest.raises(ValueError, match="3 of 3 images"):
        curves.precision_recall(np.ones(3, dtype=int), probabilities)
