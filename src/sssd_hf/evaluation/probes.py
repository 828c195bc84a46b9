"""How well frozen features tell the labels apart: k nearest neighbours and a linear classifier."""

import warnings

import numpy as np


def probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_neighbors: int = 20,
) -> dict[str, float]:
    """Accuracies of a k-NN (cosine, votes weighted by similarity) and of a logistic regression on
    standardised features, both by scikit-learn.

    Args:
        train_features, test_features: (images, width).
        train_labels, test_labels: (images,) integers.

    Returns:
        `knn_accuracy`, `linear_accuracy`, 0 to 1, and with two classes `linear_roc_auc`; nothing
        where the training labels are all the same.
    """
    if len(np.unique(train_labels)) < 2:
        return {}
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    neighbors = min(num_neighbors, len(train_labels))
    knn = KNeighborsClassifier(neighbors, metric="cosine", weights=lambda d: 2.0 - d)
    knn.fit(train_features, train_labels)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a look
        linear.fit(train_features, train_labels)
    result = {
        "knn_accuracy": float(knn.score(test_features, test_labels)),
        "linear_accuracy": float(linear.score(test_features, test_labels)),
    }
    if len(np.unique(train_labels)) == 2 and len(np.unique(test_labels)) == 2:
        scores = linear.decision_function(test_features)
        result["linear_roc_auc"] = float(roc_auc_score(test_labels, scores))
    return result
