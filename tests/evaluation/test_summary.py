"""What evaluation reports, against scikit-learn and the closed forms."""

import json

import numpy as np
import pytest
from sklearn import metrics

from sssd_hf.evaluation.metrics import to_json
from sssd_hf.evaluation.summary import summarise

CALIBRATION = {"temperature": 2.0, "threshold": 0.4, "rule": "youden", "fitted_on": "9 images"}


@pytest.fixture
def case():
    """60 images of 20 patients, of one label each, with a moderate model."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(20), 3)
    labels = (groups % 2).astype(np.int64)
    logits = rng.normal(0, 2, 60) + 1.5 * (2 * labels - 1)
    positive = 1 / (1 + np.exp(-logits))
    return labels, np.stack([1 - positive, positive], 1), groups.astype(str), logits


def report(case, **options):
    labels, probabilities, groups, _ = case
    names = ["healthy", "ill"]
    return summarise(labels, probabilities, names, groups, num_resamples=50, **options)


def test_decisions_at_the_threshold_are_scikit_learns(case):
    labels, probabilities, _, logits = case
    point = report(case, calibration=CALIBRATION)["operating_point"]
    decided = 1 / (1 + np.exp(-logits / 2)) >= 0.4
    assert (decided != (probabilities[:, 1] >= 0.5)).any(), "the threshold must matter here"
    values = point["metrics"]
    assert values["recall"] == pytest.approx(metrics.recall_score(labels, decided))
    assert values["specificity"] == pytest.approx(metrics.recall_score(1 - labels, ~decided))
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(labels, decided))
    assert values["cohen_kappa"] == pytest.approx(metrics.cohen_kappa_score(labels, decided))
    assert not {"roc_auc", "log_loss"} & set(values), "decisions have no order among them"
    for name, (low, high) in point["intervals"].items():
        assert low <= values[name] <= high, name


def test_probabilities_before_and_after_the_temperature(case):
    labels, _, _, logits = case
    found = report(case, calibration=CALIBRATION)["calibration"]
    for kind, temperature in (("uncalibrated", 1.0), ("calibrated", 2.0)):
        positive = 1 / (1 + np.exp(-logits / temperature))
        assert found[kind]["log_loss"] == pytest.approx(metrics.log_loss(labels, positive))
        brier = metrics.brier_score_loss(labels, positive)
        assert found[kind]["brier"] == pytest.approx(brier)
    assert found["used"] == CALIBRATION


def test_the_headline_is_of_the_model_as_it_is(case):
    labels, probabilities, _, _ = case
    plain, calibrated = report(case), report(case, calibration=CALIBRATION)
    assert plain["calibration"] is plain["operating_point"] is None
    for name in ("accuracy", "log_loss", "roc_auc"):
        assert plain[name] == calibrated[name]
    predicted = probabilities.argmax(1)
    assert plain["confusion_matrix"] == metrics.confusion_matrix(labels, predicted).tolist()


def test_patients_by_the_mean_of_their_images(case):
    _, probabilities, groups, _ = case
    found = report(case)["aggregated"]
    means = [probabilities[groups == str(patient), 1].mean() for patient in range(20)]
    truth = np.arange(20) % 2
    assert found["count"] == 20
    assert found["metrics"]["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, means))
    assert report(case, aggregation="none")["aggregated"] is None


def test_a_patient_of_two_labels_costs_the_patients_figures_alone(case):
    labels, probabilities, groups, logits = case
    labels = labels.copy()
    labels[0] = 1 - labels[0]
    found = report((labels, probabilities, groups, logits))
    assert "metrics" not in found["aggregated"]
    assert "different labels" in found["aggregated"]["reason"]
    assert 0 < found["accuracy"] < 1


def test_most_confident_half(case):
    labels, probabilities, _, _ = case
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    best = np.argsort(-confidence)[:30]
    found = report(case)["selective"]
    assert found["accuracy_at"]["0.5"] == pytest.approx(right[best].mean())
    assert found["confidence_at"]["0.5"] == pytest.approx(confidence[best].min())


def test_subgroups_and_strict_json(case):
    labels, probabilities, _, _ = case
    scanner = np.where(np.arange(60) < 45, "A", "B").tolist()
    found = report(case, subgroup_columns={"scanner": scanner}, calibration=CALIBRATION)
    inside = np.array(scanner) == "B"
    expected = metrics.accuracy_score(labels[inside], probabilities[inside].argmax(1))
    values = found["subgroups"]["scanner"]["subgroups"]["B"]["metrics"]
    assert values["accuracy"] == pytest.approx(expected)
    json.dumps(to_json(found), allow_nan=False)


def test_one_class_alone_is_reported_with_reasons():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = summarise(np.ones(3, dtype=int), probabilities, ["a", "b"], num_resamples=20)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(found["roc_auc"])
    assert "roc_auc" in found["reasons"]
    assert "delong" not in found["independent_images"]


def test_three_classes_have_no_threshold():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 30)
    labels = rng.integers(0, 3, 30)
    calibration = {**CALIBRATION, "threshold": None, "rule": "argmax"}
    found = summarise(labels, probabilities, list("abc"), calibration=calibration, num_resamples=20)
    assert found["operating_point"] is None
    assert found["calibration"]["calibrated"]["log_loss"] != found["log_loss"]
