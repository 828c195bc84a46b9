"""Few-shot subsets: sizes, strata, whole groups; curves against scikit-learn."""

import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from sssd_hf.evaluation.few_shot import few_shot_curve, few_shot_subset, summarize
from sssd_hf.evaluation.probes import STRENGTHS

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


def grouped(seed, num_groups=40, classes=3):
    """(labels, ids) of groups of one to nine images, the rows in random order."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, num_groups)
    ids = rng.permutation(np.repeat(np.arange(num_groups), sizes))
    return ids % classes, np.array([f"patient {i}" for i in ids])


@pytest.mark.parametrize("fraction", [0.004, 0.03, 0.11, 0.26, 1.0])
def test_images_alone_are_drawn_by_class(fraction):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 5], [200, 97, 13]))
    chosen = few_shot_subset(labels, fraction, seed=1)
    assert (np.diff(chosen) > 0).all()
    for label, count in ((0, 200), (1, 97), (5, 13)):
        assert (labels[chosen] == label).sum() == max(1, round(fraction * count))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_groups_stay_whole_and_every_class_has_its_share(fraction, seed):
    labels, groups = grouped(seed)
    chosen = few_shot_subset(labels, fraction, seed, groups=groups)
    inside = set(groups[chosen])
    assert sorted(chosen) == [i for i, group in enumerate(groups) if group in inside]
    for label in range(3):
        count = (labels == label).sum()
        taken = (labels[chosen] == label).sum()
        sizes = pd.Series(groups[labels == label]).value_counts()
        if fraction * count >= sizes.max():  # at least one group: a small share may be exceeded
            assert abs(taken - fraction * count) <= sizes.max() / 2
        assert taken >= 1


def test_a_share_too_small_for_a_group_gets_one_group_a_class():
    labels, groups = grouped(1)
    chosen = few_shot_subset(labels, 1e-4, seed=0, groups=groups)
    assert sorted(labels[[np.flatnonzero(groups == g)[0] for g in set(groups[chosen])]]) == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("with_groups", [False, True])
def test_subsets_are_nested_within_a_repeat_and_differ_between_repeats(with_groups):
    labels, groups = grouped(3)
    groups = groups if with_groups else None
    for repeat in range(5):
        parts = [set(few_shot_subset(labels, f, 7, repeat, groups).tolist()) for f in FRACTIONS]
        assert all(small <= large for small, large in pairwise(parts))
        assert parts[-1] == set(range(len(labels)))
        again = few_shot_subset(labels, 0.1, 7, repeat, groups)
        assert set(again.tolist()) == parts[3]
    draws = {tuple(few_shot_subset(labels, 0.1, 7, repeat, groups)) for repeat in range(10)}
    assert len(draws) == 10
    assert tuple(few_shot_subset(labels, 0.1, 8, 0, groups)) != tuple(
        few_shot_subset(labels, 0.1, 7, 0, groups)
    )


def test_every_image_is_drawn_as_often():
    labels = np.repeat([0, 1], 10)
    counts = np.zeros(20)
    for repeat in range(2000):
        counts[few_shot_subset(labels, 0.2, 0, repeat)] += 1
    # 400 expected, standard deviation 18
    assert np.abs(counts - 400).max() < 80


def test_a_class_that_no_group_has_most_often_is_not_missing():
    groups = np.repeat(["a", "b", "c", "d"], 3)
    labels = np.array([0, 0, 2, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    for repeat in range(20):
        parts = [few_shot_subset(labels, f, 0, repeat, groups) for f in (0.01, 0.5)]
        assert all(set(labels[part]) == {0, 1, 2} for part in parts)
        assert set(parts[0]) <= set(parts[1])


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_share_is_above_zero_and_at_most_one(fraction):
    with pytest.raises(ValueError, match="fraction"):
        few_shot_subset([0, 1], fraction, 0)


def test_groups_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="groups are missing"):
        few_shot_subset([0, 1], 0.5, 0, groups=["a", None])


def draw(count, seed, classes=2):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return rng.normal(size=(count, 5)) + 0.8 * labels[:, None], labels


def test_a_curve_is_what_scikit_learn_says_of_its_subsets():
    train, validation, test = draw(60, 1), draw(30, 2), draw(50, 3)
    groups = np.arange(60) // 2 % 15  # both classes in each
    records = few_shot_curve(train, validation, test, 2, [100, 10], 3, seed=5, groups=groups)
    assert [(r["percent"], r["repeat"]) for r in records] == [(10, 0), (10, 1), (10, 2), (100, 0)]
    scaler = StandardScaler().fit(train[0])
    for record in records:
        chosen = few_shot_subset(train[1], record["percent"] / 100, 5, record["repeat"], groups)
        assert record["num_images"] == len(chosen)
        assert record["num_groups"] == len(set(groups[chosen]))
        best = None
        for strength in STRENGTHS:
            direct = LogisticRegression(C=strength, max_iter=1000)
            direct.fit(scaler.transform(train[0][chosen]), train[1][chosen])
            probabilities = direct.predict_proba(scaler.transform(validation[0]))
            loss = log_loss(validation[1], probabilities)
            if best is None or loss < best[0]:
                best = loss, strength, direct
        assert record["C"] == best[1]
        features = scaler.transform(test[0])
        assert record["accuracy"] == pytest.approx(best[2].score(features, test[1]))
        balanced = balanced_accuracy_score(test[1], best[2].predict(features))
        assert record["balanced_accuracy"] == pytest.approx(balanced)
        auc = roc_auc_score(test[1], best[2].decision_function(features))
        assert record["roc_auc"] == pytest.approx(auc)


def test_no_test_label_chooses_anything():
    train, validation, test = draw(60, 1), draw(30, 2), draw(50, 3)
    both = [
        few_shot_curve(train, validation, (test[0], labels), 2, [5, 100], 2)
        for labels in (test[1], 1 - test[1])
    ]
    for first, second in zip(*both, strict=True):
        assert first["C"] == second["C"]
        assert first["accuracy"] == pytest.approx(1 - second["accuracy"])
        assert first["roc_auc"] == pytest.approx(1 - second["roc_auc"])


def test_three_classes_in_single_precision_give_no_warning():
    train, validation, test = (draw(n, n, classes=3) for n in (60, 30, 45))
    train = train[0].astype(np.float32), train[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = few_shot_curve(train, validation, test, 3, [5], 2)
    assert all(0 < record["roc_auc"] < 1 for record in records)


def test_the_summary_is_pandas():
    records = few_shot_curve(draw(60, 1), draw(30, 2), draw(50, 3), 2, [5, 25, 100], 4)
    table = pd.DataFrame(records).groupby("percent")
    for row in summarize(records):
        part = table.get_group(row["percent"])
        assert row["repeats"] == len(part)
        assert row["num_images_mean"] == part["num_images"].mean()
        for name in ("accuracy", "balanced_accuracy", "roc_auc"):
            assert row[f"{name}_mean"] == pytest.approx(part[name].mean())
            assert row[f"{name}_std"] == pytest.approx(part[name].std(), nan_ok=True)
