"""Metrics of subgroups against those of the images selected by hand."""

import json
import math

import numpy as np
import pytest

from sssd_hf.evaluation.intervals import bootstrap_intervals
from sssd_hf.evaluation.metrics import classification_metrics, to_json
from sssd_hf.evaluation.subgroups import MISSING, column_values, subgroup_metrics


def case(count=120):
    """Scanner B's scores are noise; scanner C has four images."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    scanner = np.array(["A"] * 70 + ["B"] * 46 + ["C"] * 4)
    score = np.where(scanner == "B", generator.random(count), 0.1 + 0.8 * labels)
    return labels, np.stack([1 - score, score], axis=1), scanner


def test_each_value_has_the_figures_of_its_images():
    labels, probabilities, scanner = case()
    groups = np.arange(120) // 2
    found = subgroup_metrics(labels, probabilities, scanner, groups, num_resamples=60)
    assert list(found["subgroups"]) == ["A", "B", "C"]
    for name, row in found["subgroups"].items():
        inside = scanner == name
        assert row["num_images"] == inside.sum()
        assert row["num_groups"] == len(set(groups[inside]))
        assert row["share_of_labels"] == [0.5, 0.5]
        pair = labels[inside], probabilities[inside]
        assert row["metrics"] == classification_metrics(*pair)
        expected = bootstrap_intervals(*pair, groups[inside], num_resamples=60)
        assert to_json(row["intervals"]) == to_json(expected)
    json.dumps(to_json(found), allow_nan=False)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "roc_auc", "brier"])
def test_worst_is_named(metric):
    labels, probabilities, scanner = case()
    found = subgroup_metrics(labels, probabilities, scanner, metric=metric, num_resamples=60)
    worst = found["worst"]
    assert (worst["value"], worst["metric"]) == ("B", metric)
    assert worst["overall"] == classification_metrics(labels, probabilities)[metric]
    assert worst["low"] <= worst["estimate"] <= worst["high"]


def test_small_ones_are_marked_and_never_the_worst():
    labels, probabilities, scanner = case()
    probabilities[scanner == "C"] = probabilities[scanner == "C"][:, ::-1]  # all wrong
    found = subgroup_metrics(labels, probabilities, scanner, num_resamples=20)
    assert [row["small"] for row in found["subgroups"].values()] == [False, False, True]
    assert found["worst"]["value"] == "B"
    every = subgroup_metrics(labels, probabilities, scanner, minimum=1, num_resamples=20)
    assert every["worst"]["value"] == "C"
    # 23 patients of two images each
    few = subgroup_metrics(
        labels, probabilities, scanner, np.arange(120) // 2, minimum=30, num_resamples=20
    )
    assert few["subgroups"]["B"]["small"]
    assert few["worst"] is None


@pytest.mark.filterwarnings("error")
def test_value_with_one_class_has_no_figure_and_is_not_the_worst():
    labels, probabilities, scanner = case()
    scanner = np.where(labels == 1, "A", scanner)
    found = subgroup_metrics(labels, probabilities, scanner, metric="roc_auc", num_resamples=20)
    assert math.isnan(found["subgroups"]["B"]["metrics"]["roc_auc"])
    assert found["worst"] is None


def test_columns_of_text_numbers_and_gaps():
    assert column_values(["f", None, "m", math.nan, ""]).tolist() == [
        "f", MISSING, "m", MISSING, MISSING
    ]  # fmt: skip
    assert column_values([1, 2, 1]).tolist() == ["1", "2", "1"]
    assert column_values([True, False]).tolist() == ["True", "False"]
    ages = column_values([*range(100), None])
    assert ages[[0, 24, 25, 49, 50, 75, 99, 100]].tolist() == [
        "[0, 24.75)", "[0, 24.75)", "[24.75, 49.5)", "[24.75, 49.5)", "[49.5, 74.25)",
        "[74.25, 99]", "[74.25, 99]", MISSING,
    ]  # fmt: skip
    assert len(column_values([])) == 0


@pytest.mark.parametrize("start", [20240101, 1e15, 0.5])
def test_ranges_of_close_numbers_have_different_names(start):
    """Days as numbers and the like: four ranges of 25, by the sorted numbers' quarters."""
    step = max(1e-9, np.spacing(start) * 4) if start < 1 else 1
    names = column_values([start + step * i for i in range(100)])
    assert len(set(names)) == 4
    assert [len(set(names[i : i + 25])) for i in (0, 25, 50, 75)] == [1] * 4


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [(["a"], {}, "1 values, expected 120"), (["a"] * 120, {"metric": "auc"}, "metric is 'auc'"),
     (["a"] * 120, {"minimum": 0}, "minimum 0")],
)  # fmt: skip
def test_what_is_wrong_is_said(values, options, message):
    labels, probabilities, _ = case()
    with pytest.raises(ValueError, match=message):
        subgroup_metrics(labels, probabilities, values, **options)


def test_values_that_lack_a_class_are_not_compared():
    """A mean over classes is a sensitivity where all are ill: all at one site are called so."""
    labels = np.array([1] * 20 + [0, 1] * 20)
    site = np.array(["A"] * 20 + ["B"] * 20 + ["C"] * 20)
    score = np.concatenate([np.full(20, 0.2), np.full(20, 0.9), 0.1 + 0.8 * labels[40:]])
    found = subgroup_metrics(
        labels, np.stack([1 - score, score], axis=1), site, num_resamples=20, minimum=5
    )
    assert found["subgroups"]["A"]["metrics"]["balanced_accuracy"] == 0
    assert found["worst"]["value"] == "B"
