"""Probes against scikit-learn called directly and against loops."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sssd_hf.evaluation.probes import (
    choose_linear,
    class_probabilities,
    fit_knn,
    fit_linear,
    probe,
    standardize,
)


def draw(count, classes=2, width=6, seed=0, distance=1.0):
    """(features, labels): classes apart along one axis, on another scale than the others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = rng.normal(size=(count, width)) * np.array([50.0, *[1.0] * (width - 1)]) + 3
    features[:, 1] += distance * labels
    return features, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_scikit_learn_s_with_the_best_strength_on_validation(classes):
    train, validation, test = (draw(n, classes, seed=n) for n in (40, 30, 50))
    strengths = (0.001, 0.1, 10.0)
    losses = {}
    for strength in strengths:
        direct = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        direct.fit(*train)
        losses[strength] = log_loss(validation[1], direct.predict_proba(validation[0])), direct
    wanted = min(losses, key=lambda strength: losses[strength][0])
    scaled = standardize(train[0], validation[0], test[0])
    found, strength = choose_linear(
        scaled[0], train[1], scaled[1], validation[1], classes, strengths[::-1]
    )
    assert strength == wanted
    direct = losses[wanted][1].predict_proba(test[0])
    np.testing.assert_allclose(class_probabilities(found, scaled[2], classes), direct, atol=1e-12)


def test_validation_decides_the_strength():
    """Labels without a pattern want the strongest penalty, a clear one a weak penalty."""
    features, labels = draw(60, distance=9.0)
    scaled = standardize(features)[0]
    train, validation = slice(0, 40), slice(40, 60)
    clear = choose_linear(scaled[train], labels[train], scaled[validation], labels[validation], 2)
    wrong = choose_linear(
        scaled[train], labels[train], scaled[validation], 1 - labels[validation], 2
    )
    assert clear[1] > 0.1
    assert wrong[1] == 1e-4


@pytest.mark.parametrize("num_neighbors", [1, 5, 100])
def test_neighbours_vote_by_similarity(num_neighbors):
    train, test = draw(21, 3, seed=1), draw(10, 3, seed=2)
    knn = fit_knn(*train, num_neighbors)
    found = class_probabilities(knn, test[0], 3)
    for row, image in zip(found, test[0], strict=True):
        norms = np.linalg.norm(train[0], axis=1) * np.linalg.norm(image)
        similarity = train[0] @ image / norms
        votes = np.zeros(3)
        for index in np.argsort(-similarity)[:num_neighbors]:
            votes[train[1][index]] += 1 + similarity[index]
        np.testing.assert_allclose(row, votes / votes.sum(), atol=1e-12)


def test_a_class_that_was_not_seen_has_no_probability():
    features, labels = draw(20, 2)
    found = class_probabilities(fit_linear(features, 2 * labels, 1.0), features, 4)
    assert found.shape == (20, 4)
    assert not found[:, [1, 3]].any()
    np.testing.assert_allclose(found.sum(1), 1)


def test_single_precision_features_are_standardised_in_double():
    scaled = standardize(draw(30)[0].astype(np.float32))[0]
    assert scaled.dtype == np.float64
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)


def test_the_quick_look_is_scikit_learn_s():
    train, test = draw(40, seed=3), draw(30, seed=4)
    direct = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(*train)
    found = probe(*train, *test)
    assert found["linear_accuracy"] == direct.score(*test)
    auc = roc_auc_score(test[1], direct.decision_function(test[0]))
    assert found["linear_roc_auc"] == pytest.approx(auc, abs=1e-12)
