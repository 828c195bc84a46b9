"""What a classifier must beat: the majority class, and two simple ones on 16 x 16 thumbnails.

Where these score high, the classes differ in brightness, framing or scanner, and a deep model's
figure says little about the disease.
"""

from __future__ import annotations

import numpy as np

SIDE = 16


def thumbnails(images) -> np.ndarray:
    """Area-averaged grey thumbnails.

    images: uint8 (images, channels, height, width), a tensor or an array, 1 or 3 channels, at
    least 16 pixels a side. Returns float64 (images, 256), values 0..255, row by row.
    Raises ValueError for other shapes.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SIDE:
        raise ValueError(
            "thumbnails: images must be (images, 1 or 3 channels, height, width) with sides of at "
            f"least {SIDE} pixels, found {tuple(images.shape)}"
        )
    weights = np.array([1.0] if images.shape[1] == 1 else [0.299, 0.587, 0.114])
    rows, columns = _area_weights(images.shape[2]), _area_weights(images.shape[3])
    small = np.empty((len(images), SIDE * SIDE))
    for index, image in enumerate(images):  # one by one: a large set need not fit as floats
        grey = np.tensordot(weights, image, axes=1)  # (height, width)
        small[index] = (rows @ grey @ columns.T).ravel()
    return small


def _area_weights(length: int) -> np.ndarray:
    """Share of each of `length` pixels in each of the 16 cells; rows sum to 1; (16, length)."""
    edges = np.arange(SIDE + 1) * length / SIDE
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * SIDE / length


def thumbnail_scores(train_images, train_labels, test_images) -> dict[str, np.ndarray]:
    """Of "ridge" and "nearest_neighbor" a score for each test image and class, float64 (test
    images, classes); the class with the highest one is the answer.

    Images as for `thumbnails`, labels as integers (images,); columns are the training classes in
    their order. The ridge penalty is chosen inside the training set; its scores are the decision
    function, of two classes half of it with either sign. The neighbour's score of a class is minus
    the distance to its nearest training image.
    Raises ValueError where training has one class only.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.metrics.pairwise import euclidean_distances

    train_labels = np.asarray(train_labels)
    classes = np.unique(train_labels)
    if len(classes) < 2:
        raise ValueError(f"thumbnail_scores: training labels hold one class only, {classes}")
    train, test = thumbnails(train_images), thumbnails(test_images)
    centre, spread = train.mean(0), train.std(0)
    spread[spread < 1e-6] = 1.0  # a cell that never changes, a black corner, carries nothing
    train, test = (train - centre) / spread, (test - centre) / spread

    ridge = RidgeClassifierCV(alphas=np.logspace(0, 6, 13)).fit(train, train_labels)
    decision = ridge.decision_function(test)
    distances = euclidean_distances(test, train)  # (test images, training images)
    nearest = [-distances[:, train_labels == name].min(1) for name in classes]
    return {
        "ridge": decision if decision.ndim == 2 else np.stack([-decision, decision], 1) / 2,
        "nearest_neighbor": np.stack(nearest, axis=1),
    }


def thumbnail_baselines(train_images, train_labels, test_images, test_labels) -> dict[str, float]:
    """Test accuracies (0..1) of the majority class, ridge and 1-nearest-neighbour.

    Arguments and errors as of `thumbnail_scores`. With two classes in the test set also the areas
    under the ROC curve, the larger label being the positive one, and their p (see `auc_and_p`).
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    classes, counts = np.unique(train_labels, return_counts=True)
    majority = classes[counts.argmax()]
    result = {"majority_accuracy": float(np.mean(test_labels == majority))}
    scores = thumbnail_scores(train_images, train_labels, test_images)
    for name, values in scores.items():
        result[f"{name}_accuracy"] = float(np.mean(classes[values.argmax(1)] == test_labels))
    if len(classes) == 2 and np.array_equal(np.unique(test_labels), classes):
        for name, values in scores.items():
            area, p = auc_and_p(test_labels == classes[1], values[:, 1] - values[:, 0])
            result |= {f"{name}_auc": area, f"{name}_auc_p": p}
    return result


def auc_and_p(positive: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve, and how often chance gives as much (Mann-Whitney, one-sided)."""
    from scipy.stats import mannwhitneyu

    first, second = scores[positive], scores[~positive]
    test = mannwhitneyu(first, second, alternative="greater")
    return float(test.statistic / (len(first) * len(second))), float(test.pvalue)
