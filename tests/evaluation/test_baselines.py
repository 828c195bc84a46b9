import numpy as np
import pytest
import torch

from sssd_hf.evaluation.baselines import thumbnail_baselines, thumbnails


def brute_force_thumbnail(image):
    """Average over each of 16 x 16 cells, fractional pixels included, one pixel at a time."""
    channels, height, width = image.shape
    grey = (
        image[0] if channels == 1 else 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    ).astype(float)
    out = np.zeros((16, 16))
    for i in range(16):
        for j in range(16):
            total = weight = 0.0
            for row in range(i * height // 16, min(height, (i + 1) * height // 16 + 1)):
                for column in range(j * width // 16, min(width, (j + 1) * width // 16 + 1)):
                    high = min(row + 1, (i + 1) * height / 16) - max(row, i * height / 16)
                    wide = min(column + 1, (j + 1) * width / 16) - max(column, j * width / 16)
                    high, wide = max(high, 0), max(wide, 0)
                    total += high * wide * grey[row, column]
                    weight += high * wide
            out[i, j] = total / weight
    return out.ravel()


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 32, 48), (3, 37, 21), (1, 16, 16), (3, 50, 64)]
)
def test_thumbnails_average_areas(channels, height, width):
    images = np.random.default_rng(0).integers(0, 256, (2, channels, height, width), np.uint8)
    expected = np.stack([brute_force_thumbnail(image) for image in images])
    np.testing.assert_allclose(thumbnails(images), expected, atol=1e-9)
    np.testing.assert_allclose(thumbnails(torch.from_numpy(images)), expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(16, 16), (2, 2, 32, 32), (2, 1, 15, 32)])
def test_thumbnails_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match="channels"):
        thumbnails(np.zeros(shape, np.uint8))


@pytest.fixture(scope="module")
def sets():
    """Noise images with a faint class-dependent patch; classes 3 and 7, unbalanced."""
    rng = np.random.default_rng(1)
    train_labels = np.where(rng.random(36) < 0.65, 3, 7)
    test_labels = np.where(rng.random(24) < 0.5, 3, 7)

    def draw(labels):
        images = rng.integers(60, 160, (len(labels), 1, 32, 32))
        images[labels == 7, :, 4:12, 4:12] += 12
        images[:, :, :2, :2] = 0  # one cell that never changes
        return images.astype(np.uint8)

    return draw(train_labels), train_labels, draw(test_labels), test_labels


def test_nearest_neighbor_and_majority_against_loops(sets):
    train_images, train_labels, test_images, test_labels = sets
    train = np.stack([brute_force_thumbnail(image) for image in train_images])
    test = np.stack([brute_force_thumbnail(image) for image in test_images])
    hits, scores = 0, []
    deviation = np.sqrt(np.mean((train - train.mean(0)) ** 2, 0))
    moving = deviation > 0
    for picture, truth in zip(test, test_labels, strict=True):
        nearest, per_class = None, {3: np.inf, 7: np.inf}
        for other, label in zip(train, train_labels, strict=True):
            distance = np.sqrt(np.sum((((picture - other)[moving]) / deviation[moving]) ** 2))
            if nearest is None or distance < nearest[0]:
                nearest = (distance, label)
            per_class[label] = min(per_class[label], distance)
        hits += nearest[1] == truth
        scores.append(per_class[3] - per_class[7])
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, one in zip(scores, test_labels, strict=True)
        for b, two in zip(scores, test_labels, strict=True)
        if one == 7 and two == 3
    ]
    result = thumbnail_baselines(*sets)
    assert result["nearest_neighbor_accuracy"] == pytest.approx(hits / len(test))
    assert result["nearest_neighbor_auc"] == pytest.approx(np.mean(pairs))
    common = max({3, 7}, key=list(train_labels).count)
    assert result["majority_accuracy"] == pytest.approx(list(test_labels).count(common) / len(test))
    assert all(type(value) is float for value in result.values())


def test_ridge_against_closed_form(sets):
    """The best of the penalties' closed-form solutions bounds the figure; AUC goes with it."""
    train_images, train_labels, test_images, test_labels = sets
    train, test = thumbnails(train_images), thumbnails(test_images)
    spread = np.where(train.std(0) > 0, train.std(0), 1)
    train, test = (train - train.mean(0)) / spread, (test - train.mean(0)) / spread
    sign = np.where(train_labels == 7, 1.0, -1.0)
    figures = set()
    for alpha in np.logspace(0, 6, 13):
        gram = train.T @ train + alpha * np.eye(256)
        weights = np.linalg.solve(gram, train.T @ (sign - sign.mean()))
        predicted = np.where(test @ weights + sign.mean() > 0, 7, 3)
        figures.add(round(float(np.mean(predicted == test_labels)), 9))
    result = thumbnail_baselines(*sets)
    assert round(result["ridge_accuracy"], 9) in figures
    assert result["ridge_auc"] > 0.6  # the faint patch is there to be found


def test_three_classes_have_accuracies_only(sets):
    train_images, _, test_images, _ = sets
    labels = np.arange(36) % 3
    result = thumbnail_baselines(train_images, labels, test_images, np.arange(24) % 3)
    assert set(result) == {"majority_accuracy", "ridge_accuracy", "nearest_neighbor_accuracy"}


def test_one_training_class_is_refused(sets):
    train_images, _, test_images, test_labels = sets
    with pytest.raises(ValueError, match="one class"):
        thumbnail_baselines(train_images, np.zeros(36, int), test_images, test_labels)
