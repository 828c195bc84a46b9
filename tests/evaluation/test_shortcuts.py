"""Labels that file facts give away are found; labels by chance are not."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from sssd_hf.evaluation.contact_sheet import plot_pairs
from sssd_hf.evaluation.shortcuts import (
    NOTABLE_ACCURACY,
    auc_and_p,
    file_baselines,
    file_features,
    probe_shortcuts,
    verdict,
)

COUNT = 300
TRAIN, TEST = np.arange(200), np.arange(200, COUNT)


def draw_facts(seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "width": int(rng.integers(200, 300)),
            "height": int(rng.integers(200, 300)),
            "num_bytes": int(rng.integers(9000, 20000)),
            "mode": str(rng.choice(["L", "RGB"])),
            "format": str(rng.choice(["PNG", "JPEG"])),
        }
        for _ in range(COUNT)
    ]


def draw_labels(seed):
    return np.random.default_rng([seed, 1]).integers(0, 2, COUNT)


CHANGES = {
    "image size": lambda f, label: f | {"width": f["width"] + 60 * label},
    "file bytes": lambda f, label: f | {"num_bytes": f["num_bytes"] * (1 + label)},
    "colour mode": lambda f, label: f | {"mode": "RGBA" if label else f["mode"]},
    "container format": lambda f, label: f | {"format": "TIFF" if label else f["format"]},
}


@pytest.mark.parametrize("fact", CHANGES)
def test_a_fact_that_gives_the_label_away_is_found_and_named(fact):
    labels = draw_labels(0)
    facts = [CHANGES[fact](f, label) for f, label in zip(draw_facts(0), labels.tolist())]
    result = file_baselines(facts, labels, TRAIN, TEST)
    assert verdict(result, labels[TEST]) == "warning"
    assert max(result["each"], key=result["each"].get) == fact
    assert result["forest_accuracy"] > 0.7
    assert result["forest_auc"] > 0.75


def test_chance_is_no_shortcut():
    verdicts = []
    for seed in range(8):
        labels = draw_labels(seed)
        result = file_baselines(draw_facts(seed), labels, TRAIN, TEST)
        verdicts.append(verdict(result, labels[TEST]))
    assert verdicts == [""] * 8


def test_three_classes_have_accuracies_but_no_auc():
    labels = np.arange(COUNT) % 3
    facts = [f | {"width": 100 * (1 + label)} for f, label in zip(draw_facts(1), labels.tolist())]
    result = file_baselines(facts, labels, TRAIN, TEST)
    assert result["forest_accuracy"] > 0.95
    assert "forest_auc" not in result
    assert verdict(result, labels[TEST]) == "warning"


def test_majority_is_that_of_training():
    labels = (np.arange(COUNT) % 4 == 0).astype(int)
    labels[TEST] = 1 - labels[TEST]
    result = file_baselines(draw_facts(2), labels, TRAIN, TEST)
    assert result["majority_accuracy"] == 0.25
    # 0.75 of always naming the test's own majority is the rate to beat
    assert verdict({"x_accuracy": 0.76}, labels[TEST]) == ""
    assert verdict({"x_accuracy": 0.9}, labels[TEST]) == "warning"


def test_one_class_in_the_test_is_judged_by_accuracy_alone():
    labels = draw_labels(3)
    labels[TEST] = 1
    result = file_baselines(draw_facts(3), labels, TRAIN, TEST)
    assert "logistic_auc" not in result
    assert verdict(result, labels[TEST]) == ""


def test_one_class_in_training_is_refused():
    labels = np.zeros(COUNT, int)
    with pytest.raises(ValueError, match="one class only"):
        file_baselines(draw_facts(4), labels, TRAIN, TEST)


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(5)
    positive, scores = rng.random(80) < 0.4, rng.integers(0, 9, 80).astype(float)  # with ties
    auc, p = auc_and_p(positive, scores)
    assert auc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    drawn = [roc_auc_score(rng.permutation(positive), scores) >= auc for _ in range(400)]
    assert p == pytest.approx(np.mean(drawn), abs=0.08)


def test_thumbnails_that_tell_a_rare_class_are_found_by_their_auc_alone():
    rng = np.random.default_rng(7)
    labels = (rng.random(COUNT) < 0.1).astype(int)
    pixels = rng.normal(100, 20, (COUNT, 64, 64)) + 6 * labels[:, None, None]
    thumbnails = pixels.clip(0, 255).astype(np.uint8)
    result = probe_shortcuts(draw_facts(7), thumbnails, labels, TRAIN, TEST)["thumbnails"]
    assert result["ridge_accuracy"] < result["majority_accuracy"] + NOTABLE_ACCURACY
    assert result["ridge_auc"] > 0.8
    assert result["ridge_auc_p"] < 0.001
    assert result["verdict"] == "warning"


def test_features_of_files():
    facts = draw_facts(6)[:3]
    facts[0] |= {"mode": "L", "format": "PNG", "width": 100, "height": 50, "num_bytes": 1000}
    facts[1] |= {"mode": "RGB", "format": "PNG"}
    facts[2] |= {"mode": "L", "format": "PNG"}
    features, owners = file_features(facts)
    row = dict(zip(owners, features[0]))
    assert row["aspect_ratio"] == 2
    assert row["bytes_per_pixel"] == 0.2
    assert owners.count("mode") == 2
    assert features[:, owners.index("mode")].tolist() == [1, 0, 1]


def test_thumbnails_are_probed_too():
    rng = np.random.default_rng(7)
    labels = draw_labels(7)
    pictures = rng.integers(0, 200, (COUNT, 32, 32), np.uint8)
    pictures[labels == 1, :16] += 40
    result = probe_shortcuts(draw_facts(7), pictures, labels, TRAIN, TEST)
    assert result["thumbnails"]["verdict"] == "warning"
    assert result["files"]["verdict"] == ""
    assert (result["num_train"], result["num_test"]) == (200, 100)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_contact_sheet(tmp_path, count):
    picture = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    names = [("r 0.99", "cost_$5$.png\n(train, a)", "b^2.png\n(test, b)")] * count
    plot_pairs(tmp_path / "pairs.png", [(picture, None)] * count, names, "Copies")
    with Image.open(tmp_path / "pairs.png") as image:
        assert image.width > 1000
