"""Per-class, averaged and multi-label metrics against scikit-learn; reasons for what is missing."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from sssd_hf.evaluation.details import detailed_metrics, multilabel_details
from sssd_hf.evaluation.metrics import classification_metrics


def softmax(scores):
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_classes_and_averages_equal_scikit_learn(num_classes):
    generator = np.random.default_rng(num_classes)
    labels = generator.integers(num_classes, size=90)
    scores = np.round(generator.normal(size=(90, num_classes)) + np.eye(num_classes)[labels], 1)
    probabilities = softmax(scores)
    predicted = probabilities.argmax(axis=1)
    names = list("abcd"[:num_classes])
    found = detailed_metrics(labels, probabilities, names)
    assert found["overall"] == classification_metrics(labels, probabilities)
    assert found["reasons"] == {}
    report = reference.classification_report(
        labels, predicted, target_names=names, output_dict=True
    )
    for name in names:
        one = found["per_class"][name]
        assert one["support"] == report[name]["support"]
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert one[ours] == pytest.approx(report[name][theirs], abs=1e-12)
    one_hot = np.eye(num_classes)[labels]
    for kind in ("macro", "weighted"):
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert found[kind][ours] == pytest.approx(report[f"{kind} avg"][theirs], abs=1e-12)
        for name in ("roc_auc", "average_precision"):
            score = getattr(reference, f"{name}_score")(one_hot, probabilities, average=kind)
            assert found[kind][name] == pytest.approx(score, abs=1e-12)
    for index, name in enumerate(names):
        score = reference.roc_auc_score(labels == index, probabilities[:, index])
        assert found["per_class"][name]["roc_auc"] == pytest.approx(score, abs=1e-12)


def missing(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from missing(value, f"{prefix}{name}/")
        elif isinstance(value, float) and math.isnan(value):
            yield f"{prefix}{name}"


def all_missing(found):
    parts = {name: found[name] for name in ("per_class", "macro", "weighted")}
    return set(missing(found["overall"])) | set(missing(parts))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("labels", "num_classes"), [([0, 0, 0], 2), ([1, 1], 2), ([2, 2, 2], 3), ([0, 1, 0], 3)]
)
@pytest.mark.parametrize("always_zero", [True, False])
def test_every_missing_value_has_a_reason(labels, num_classes, always_zero):
    scores = np.random.default_rng(0).normal(size=(len(labels), num_classes))
    scores[:, 0] += 9 * always_zero
    found = detailed_metrics(labels, softmax(scores))
    assert all_missing(found) == set(found["reasons"])
    assert found["reasons"]


@pytest.mark.filterwarnings("error")
def test_reasons_name_the_class():
    found = detailed_metrics([0, 0], [[0.9, 0.1], [0.6, 0.4]], ["healthy", "ill"])
    assert found["reasons"]["roc_auc"] == "the labels hold one class only (healthy)"
    assert found["reasons"]["per_class/ill/recall"] == "no image has the label ill"
    assert found["reasons"]["per_class/healthy/specificity"] == "every image has the label healthy"
    assert "none was predicted" in found["reasons"]["f1"]
    with pytest.raises(ValueError, match="expected 2 different names"):
        detailed_metrics([0, 0], [[0.9, 0.1], [0.6, 0.4]], ["healthy"])


def test_multilabel_equals_scikit_learn():
    generator = np.random.default_rng(1)
    labels = (generator.random((70, 3)) < [0.5, 0.2, 0.8]).astype(int)
    probabilities = np.round(0.7 * generator.random((70, 3)) + 0.3 * labels, 2)
    predicted = probabilities > 0.5
    found = multilabel_details(labels, probabilities, ["a", "b", "c"])
    overall = classification_metrics(labels, probabilities)
    assert overall == found["overall"]
    assert overall["accuracy"] == reference.accuracy_score(labels, predicted)
    assert overall["label_accuracy"] == pytest.approx(1 - reference.hamming_loss(labels, predicted))
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        each = score(labels, predicted, average=None)
        assert [found["per_class"][key][name] for key in "abc"] == pytest.approx(each, abs=1e-12)
        for kind in ("macro", "weighted"):
            expected = score(labels, predicted, average=kind)
            assert found[kind][name] == pytest.approx(expected, abs=1e-12)
    for name in ("roc_auc", "average_precision"):
        for kind in ("macro", "weighted"):
            expected = getattr(reference, f"{name}_score")(labels, probabilities, average=kind)
            assert found[kind][name] == pytest.approx(expected, abs=1e-12)
    for index, key in enumerate("abc"):
        one = found["per_class"][key]
        pair = labels[:, index], predicted[:, index]
        assert one["mcc"] == pytest.approx(reference.matthews_corrcoef(*pair), abs=1e-12)
        assert one["cohen_kappa"] == pytest.approx(reference.cohen_kappa_score(*pair), abs=1e-12)
        brier = reference.brier_score_loss(labels[:, index], probabilities[:, index])
        assert one["brier"] == pytest.approx(brier, abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [[[0, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]])
def test_label_without_positives_is_left_out_and_named(labels):
    found = multilabel_details(labels, [[0.1, 0.7], [0.3, 0.2]])
    assert all_missing(found) == set(found["reasons"])
    if labels[0] == [0, 1]:
        assert found["overall"]["roc_auc"] == found["per_class"]["1"]["roc_auc"] == 1
        assert found["reasons"]["per_class/0/roc_auc"] == "no image has the label 0"


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([[0, 1]], [[0.5, 0.5, 0.5]], r"shape \(1, 2\) and probabilities \(1, 3\)"),
        ([[0, 2]], [[0.5, 0.5]], r"labels hold \[2\], expected 0 and 1"),
        ([[0, 1]], [[0.5, 1.5]], r"span 0\.5\.\.1\.5"),
        ([[0, 1]], [[0.5, math.nan]], "apply a sigmoid"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "neither 0"),
    ],
)
def test_multilabel_says_what_is_wrong(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities)
