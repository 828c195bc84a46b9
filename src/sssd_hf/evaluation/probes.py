"""How well frozen features tell the labels apart: k nearest neighbours and a linear classifier."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

# inverse strengths of the L2 penalty, from which the validation split chooses
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NUM_NEIGHBORS = 20


def fit_knn(features: np.ndarray, labels: np.ndarray, num_neighbors: int = NUM_NEIGHBORS) -> Any:
    """A fitted k-NN: cosine distance, votes weighted by similarity plus one. Of fewer images than
    `num_neighbors` all vote."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbors = min(num_neighbors, len(labels))
    knn = KNeighborsClassifier(neighbors, metric="cosine", weights=lambda d: 2.0 - d)
    return knn.fit(features, labels)


def fit_linear(features: np.ndarray, labels: np.ndarray, strength: float, max_iter=1000) -> Any:
    """A fitted logistic regression (L2, C = `strength`) on features as they are."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to compare features
        return LogisticRegression(C=strength, max_iter=max_iter).fit(features, labels)


def standardize(train_features: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All of them in fp64, shifted and scaled to mean 0 and spread 1 of the training features."""
    from sklearn.preprocessing import StandardScaler

    parts = [np.asarray(features, dtype=np.float64) for features in (train_features, *others)]
    scaler = StandardScaler().fit(parts[0])
    return [scaler.transform(features) for features in parts]


def class_probabilities(classifier: Any, features: np.ndarray, num_classes: int) -> np.ndarray:
    """(images, num_classes); 0 for a class that the classifier has not seen."""
    result = np.zeros((len(features), num_classes))
    result[:, classifier.classes_] = classifier.predict_proba(features)
    return result


def choose_linear(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    num_classes: int,
    strengths: tuple[float, ...] = STRENGTHS,
) -> tuple[Any, float]:
    """(classifier, its strength): the logistic regression, fitted on the training images alone,
    that has the least log loss on the validation images; the most regularised one on a tie.

    Args:
        train_features, validation_features: (images, width), standardised.
        train_labels, validation_labels: (images,) integers, 0 to num_classes - 1.
    """
    from sklearn.metrics import log_loss

    best = None
    for strength in sorted(strengths):
        classifier = fit_linear(train_features, train_labels, strength)
        probabilities = class_probabilities(classifier, validation_features, num_classes)
        loss = log_loss(validation_labels, probabilities, labels=np.arange(num_classes))
        if best is None or loss < best[0]:
            best = loss, classifier, strength
    return best[1], best[2]


def probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_neighbors: int = NUM_NEIGHBORS,
) -> dict[str, float]:
    """A quick look: accuracies of `fit_knn` and of a logistic regression on standardised features,
    of one strength for all (C = 0.01).

    Args:
        train_features, test_features: (images, width).
        train_labels, test_labels: (images,) integers.

    Returns:
        `knn_accuracy`, `linear_accuracy`, 0 to 1, and with two classes `linear_roc_auc`; nothing
        where the training labels are all the same.
    """
    if len(np.unique(train_labels)) < 2:
        return {}
    from sklearn.metrics import roc_auc_score

    knn = fit_knn(train_features, train_labels, num_neighbors)
    train_scaled, test_scaled = standardize(train_features, test_features)
    linear = fit_linear(train_scaled, train_labels, 0.01, max_iter=200)
    result = {
        "knn_accuracy": float(knn.score(test_features, test_labels)),
        "linear_accuracy": float(linear.score(test_scaled, test_labels)),
    }
    if len(np.unique(train_labels)) == 2 and len(np.unique(test_labels)) == 2:
        scores = linear.decision_function(test_scaled)
        result["linear_roc_auc"] = float(roc_auc_score(test_labels, scores))
    return result
