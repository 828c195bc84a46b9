"""The module of `evaluate`: no network, batches, combination with others."""

import socket

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")
evaluate = pytest.importorskip("evaluate")

from sssd_hf.evaluation.details import multilabel_details  # noqa: E402
from sssd_hf.evaluation.metric import FROM_PROBABILITIES, ClassificationMetrics  # noqa: E402
from sssd_hf.evaluation.metrics import classification_metrics  # noqa: E402


class CountRight(evaluate.Metric):
    """A module of class indices, as the accuracy on the Hub is."""

    def _info(self):
        index = datasets.Value("int64")
        features = datasets.Features(predictions=index, references=index)
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"right": int((np.asarray(predictions) == np.asarray(references)).sum())}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def case(num_classes=3, count=30):
    generator = np.random.default_rng(0)
    labels = generator.integers(num_classes, size=count)
    probabilities = generator.dirichlet(np.ones(num_classes), size=count)
    return labels, probabilities


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_give_the_value_of_the_whole(keep_in_memory):
    labels, probabilities = case()
    metric = ClassificationMetrics(keep_in_memory=keep_in_memory)
    for part in (slice(0, 11), slice(11, 29)):
        metric.add_batch(predictions=probabilities[part], references=labels[part])
    metric.add(prediction=probabilities[29], reference=labels[29])
    assert metric.compute() == classification_metrics(labels, probabilities)
    assert metric.compute(predictions=probabilities[:9], references=labels[:9]) == (
        classification_metrics(labels[:9], probabilities[:9])
    )


def test_multilabel_and_details():
    _, probabilities = case()
    labels = (probabilities > 0.4).astype(int)
    found = ClassificationMetrics().compute(
        predictions=probabilities.tolist(), references=labels.tolist(), details=True
    )
    expected = multilabel_details(labels, probabilities)
    assert found.pop("roc_auc") == 1
    assert found["per_class"] == expected["per_class"]
    assert found["reasons"] == {}


def test_combined_with_a_module_of_class_indices():
    labels, probabilities = case()
    predicted = probabilities.argmax(axis=1)
    combined = evaluate.combine([ClassificationMetrics(), CountRight()])
    for part in (slice(0, 20), slice(20, 30)):
        combined.add_batch(predictions=predicted[part], references=labels[part])
    found = combined.compute()
    assert found.pop("right") == (predicted == labels).sum()
    expected = classification_metrics(labels, probabilities)
    for name, value in found.items():
        assert value == expected[name] or (name in FROM_PROBABILITIES and np.isnan(value))
    details = ClassificationMetrics().compute(
        predictions=predicted, references=labels, details=True
    )
    assert details["reasons"]["roc_auc"] == "the predictions are class indices"


def test_combined_with_itself():
    labels, probabilities = case()
    combined = evaluate.combine({"one": ClassificationMetrics(), "two": ClassificationMetrics()})
    found = combined.compute(predictions=probabilities, references=labels)
    expected = classification_metrics(labels, probabilities)
    assert found == {f"{name}_{key}": expected[key] for name in ("one", "two") for key in expected}


def test_class_that_nobody_saw_is_counted_by_num_labels():
    metric = ClassificationMetrics(num_labels=3)
    found = metric.compute(predictions=[0, 1], references=[0, 1], details=True)
    assert found["per_class"]["2"]["support"] == 0
