"""Aggregation to patients against loops."""

import math

import numpy as np
import pytest

from sssd_hf.evaluation.aggregation import METHODS, aggregate


def case(num_classes=2, count=60, seed=0):
    generator = np.random.default_rng(seed)
    groups = np.array([f"patient {i}" for i in generator.integers(12, size=count)])
    of_patient = {name: generator.integers(num_classes) for name in np.unique(groups)}
    labels = np.array([of_patient[name] for name in groups])
    probabilities = generator.dirichlet(np.ones(num_classes), size=count)
    return labels, 0.7 * probabilities + 0.3 * np.eye(num_classes)[labels], groups


def by_loop(probabilities, groups, method):
    rows = []
    for name in sorted(set(groups.tolist())):
        part = probabilities[groups == name]
        if method == "mean":
            row = part.mean(axis=0)
        elif method == "max":
            row = np.array([part[:, 0].min(), *part[:, 1:].max(axis=0)])
        else:
            shown = [1 - math.prod(1 - part[:, c]) for c in range(1, part.shape[1])]
            row = np.array([math.prod(part[:, 0]), *shown])
        if method != "mean" and part.shape[1] == 2:
            row[0] = 1 - row[1]
        rows.append(row / row.sum())
    return np.array(rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_groups_equal_a_loop(method, num_classes):
    labels, probabilities, groups = case(num_classes)
    ids, found, of_groups = aggregate(probabilities, groups, method, labels)
    assert ids.tolist() == sorted(set(groups.tolist()))
    np.testing.assert_allclose(found, by_loop(probabilities, groups, method), atol=1e-12)
    assert of_groups.tolist() == [labels[groups == name][0] for name in ids]
    assert aggregate(probabilities, groups, method)[2] is None


def test_methods_by_hand():
    probabilities = [[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]]
    for method, expected in (("mean", 0.35), ("max", 0.5), ("noisy_or", 0.6)):
        _, found, _ = aggregate(probabilities, [7, 7, 8], method)
        assert found[:, 1] == pytest.approx([expected, 0.1])


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_one_image_are_the_images(method):
    _, probabilities, _ = case()
    _, found, _ = aggregate(probabilities, np.arange(60), method)
    np.testing.assert_allclose(found, probabilities, atol=1e-12)


def test_disagreeing_labels_are_named():
    with pytest.raises(ValueError, match=r"1 of 2 groups .* first b: 2 of label 0, 1 of label 1"):
        aggregate([[0.5, 0.5]] * 4, ["a", "b", "b", "b"], "mean", [0, 0, 1, 0])


@pytest.mark.parametrize(
    ("groups", "method", "message"),
    [
        (["a"], "mean", r"groups have shape \(1,\)"),
        (["a", None], "mean", "1 of 2 groups are missing"),
        (["a", "b"], "median", "method is 'median', expected one of mean, max, noisy_or"),
    ],
)
def test_what_is_wrong_is_said(groups, method, message):
    with pytest.raises(ValueError, match=message):
        aggregate([[0.5, 0.5]] * 2, groups, method)
