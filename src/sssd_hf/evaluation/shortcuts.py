"""How much of the label can be told without medicine: from facts about the file, from thumbnails.

Where a class came from another hospital, scanner or website, its files differ in size, format or
brightness, and a model learns that first. What these probes reach, a real method must beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .baselines import auc_and_p, thumbnail_baselines

# what is asked for alone, and the columns of `file_features` that tell it
FACTS = {
    "image size": ("width", "height", "aspect_ratio"),
    "file bytes": ("log_bytes", "bytes_per_pixel"),
    "colour mode": ("mode",),
    "container format": ("format",),
}
MAX_TRAIN, MAX_TEST = 10_000, 2_000  # of the thumbnails, whose distances are held in memory
NOTABLE_ACCURACY, NOTABLE_AUC = 0.1, 0.7  # above the majority rate; of a warning
SIGNIFICANT = 0.01


def file_features(facts: Sequence[dict[str, Any]]) -> tuple[np.ndarray, list[str]]:
    """Numbers about the files, and the fact that each column belongs to.

    facts: of each image, with "width" and "height" in pixels, "num_bytes", "mode" and "format".
    Returns float64 (images, columns), modes and formats as one column each value, 0 or 1.
    """
    width, height, size = (
        np.array([f[name] for f in facts], float) for name in ("width", "height", "num_bytes")
    )
    columns = {
        "width": [width],
        "height": [height],
        "aspect_ratio": [width / height],
        "log_bytes": [np.log(size)],
        "bytes_per_pixel": [size / (width * height)],
    }
    for name in ("mode", "format"):
        values = np.array([f[name] for f in facts])
        columns[name] = [(values == value).astype(float) for value in sorted(set(values))]
    owners = [name for name, parts in columns.items() for _ in parts]
    return np.stack([part for parts in columns.values() for part in parts], axis=1), owners


def file_baselines(
    facts: Sequence[dict[str, Any]], labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """What file facts alone tell of the label on the test images, pictures unseen.

    Args:
        facts: see `file_features`.
        labels: integers (images,).
        train, test: indices of the images to learn from and to judge on.

    Returns:
        "majority_accuracy" of always naming the most frequent class of training;
        "logistic_accuracy" and "forest_accuracy" (0..1); with two classes in both parts also
        "logistic_auc", "forest_auc", "logistic_auc_p" and "forest_auc_p" (see `auc_and_p`);
        "each": of every fact alone a small tree's accuracy.

    Raises:
        ValueError: training holds one class only.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    features, owners = file_features(facts)
    classes, counts = np.unique(labels[train], return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"file_baselines: training labels hold one class only, {classes}")
    result: dict[str, Any] = {
        "majority_accuracy": float(np.mean(labels[test] == classes[counts.argmax()]))
    }
    models = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "forest": RandomForestClassifier(200, min_samples_leaf=3, random_state=0),
    }
    for name, model in models.items():
        model.fit(features[train], labels[train])
        predicted = model.predict(features[test])
        result[f"{name}_accuracy"] = float(np.mean(predicted == labels[test]))
        if len(classes) == 2 and np.array_equal(np.unique(labels[test]), classes):
            scores = model.predict_proba(features[test])[:, 1]
            auc, p = auc_and_p(labels[test] == classes[1], scores)
            result |= {f"{name}_auc": auc, f"{name}_auc_p": p}
    result["each"] = {}
    for fact, parts in FACTS.items():
        columns = [i for i, owner in enumerate(owners) if owner in parts]
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=0)
        tree.fit(features[np.ix_(train, columns)], labels[train])
        predicted = tree.predict(features[np.ix_(test, columns)])
        result["each"][fact] = float(np.mean(predicted == labels[test]))
    return result


def probe_shortcuts(
    facts: Sequence[dict[str, Any]],
    thumbnails: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
) -> dict[str, Any]:
    """`file_baselines` as "files" and `thumbnail_baselines` as "thumbnails", each with "verdict".

    Args:
        thumbnails: uint8 (images, height, width), grey; others as for `file_baselines`. Of more
            than 10,000 training or 2,000 test images so many are drawn for the thumbnails.
    """
    rng = np.random.default_rng(0)
    some_train = np.sort(rng.permutation(train)[:MAX_TRAIN])
    some_test = np.sort(rng.permutation(test)[:MAX_TEST])
    files = file_baselines(facts, labels, train, test)
    pictures = thumbnail_baselines(
        thumbnails[some_train, None], labels[some_train], thumbnails[some_test, None],
        labels[some_test],
    )  # fmt: skip
    files["verdict"] = verdict(files, labels[test])
    pictures["verdict"] = verdict(pictures, labels[some_test])
    return {"num_train": len(train), "num_test": len(test), "files": files, "thumbnails": pictures}


def verdict(result: dict[str, Any], test_labels: np.ndarray) -> str:
    """ "warning", "note" or "" (no more than chance) on accuracies and AUCs of a probe.

    The rate to beat is that of the most frequent class of the test itself, at a one-sided binomial
    test's 1 % divided by the number of figures looked at; images count as independent, as copies
    and slices of one patient are not. A warning needs 10 points more than it, or an AUC of 0.7.
    """
    from scipy.stats import binomtest

    count = len(test_labels)
    majority = np.unique(test_labels, return_counts=True)[1].max() / count
    accuracies = [
        value
        for name, value in result.items()
        if name.endswith("_accuracy") and not name.startswith("majority")
    ]
    aucs = [value for name, value in result.items() if name.endswith("_auc")]
    chances = [value for name, value in result.items() if name.endswith("_auc_p")]
    limit = SIGNIFICANT / (len(accuracies) + len(aucs))
    for accuracy in accuracies:
        chances.append(binomtest(round(accuracy * count), count, majority, "greater").pvalue)
    if min(chances) >= limit:
        return ""
    strong = max(accuracies) >= majority + NOTABLE_ACCURACY or max(aucs, default=0) >= NOTABLE_AUC
    return "warning" if strong else "note"
