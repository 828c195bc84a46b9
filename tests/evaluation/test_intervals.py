"""The bootstrap against scikit-learn on repeated images, exact distributions and simulation."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from sssd_hf.evaluation import intervals
from sssd_hf.evaluation.independent import wilson_interval
from sssd_hf.evaluation.intervals import bootstrap_intervals, resampled_metrics


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def random_case(seed, num_classes, count=60, decimals=0):
    """Labels and probabilities; with few decimals many images share a score."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=count)
    scores = generator.normal(size=(count, num_classes)) + np.eye(num_classes)[labels]
    return labels, softmax(np.round(scores, decimals))


def from_scores(score):
    score = np.asarray(score)
    return np.stack([1 - score, score], axis=1)


def repeated_by_scikit_learn(labels, probabilities, weights):
    index = np.repeat(np.arange(len(labels)), weights)
    labels, probabilities = labels[index], probabilities[index]
    predicted = probabilities.argmax(axis=1)
    if probabilities.shape[1] == 2:
        roc_auc = reference.roc_auc_score(labels, probabilities[:, 1])
        specificity = reference.recall_score(labels, predicted, pos_label=0)
        options = {"average": "binary"}
        average_precision = reference.average_precision_score(labels, probabilities[:, 1])
        brier = reference.brier_score_loss(labels, probabilities[:, 1])
    else:
        roc_auc = reference.roc_auc_score(labels, probabilities, multi_class="ovr")
        confusion = reference.multilabel_confusion_matrix(labels, predicted)
        specificity = (confusion[:, 0, 0] / confusion[:, 0].sum(axis=1)).mean()
        options = {"average": "macro"}
        one_hot = np.eye(probabilities.shape[1])[labels]
        average_precision = reference.average_precision_score(one_hot, probabilities)
        brier = reference.brier_score_loss(labels, probabilities, scale_by_half=False)
    return {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "roc_auc": roc_auc,
        "recall": reference.recall_score(labels, predicted, **options),
        "specificity": specificity,
        "f1": reference.f1_score(labels, predicted, **options),
        "precision": reference.precision_score(labels, predicted, **options),
        "average_precision": average_precision,
        "mcc": reference.matthews_corrcoef(labels, predicted),
        "cohen_kappa": reference.cohen_kappa_score(labels, predicted),
        "log_loss": reference.log_loss(labels, probabilities),
        "brier": brier,
    }


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("decimals", [0, 8])
def test_weighted_metrics_equal_scikit_learn_on_repeated_images(num_classes, decimals):
    labels, probabilities = random_case(3, num_classes, decimals=decimals)
    distinct = len(np.unique(probabilities[:, 1]))
    assert (distinct < 40) == (decimals == 0)  # the rounded case has ties, the other has none
    weights = np.random.default_rng(4).poisson(1, size=(100, len(labels)))
    found = resampled_metrics(labels, probabilities, weights)
    for row, weight in enumerate(weights):
        expected = repeated_by_scikit_learn(labels, probabilities, weight)
        assert {name: values[row] for name, values in found.items()} == pytest.approx(
            expected, abs=1e-9
        )


def test_class_missing_from_a_resample_leaves_its_means():
    labels, probabilities = random_case(5, 3)
    weights = np.ones((1, len(labels)))
    weights[0, labels == 2] = 0
    found = resampled_metrics(labels, probabilities, weights)
    kept = labels != 2
    predicted = probabilities[kept].argmax(axis=1)
    aucs = [reference.roc_auc_score(labels[kept] == c, probabilities[kept, c]) for c in (0, 1)]
    recall = reference.recall_score(labels[kept], predicted, labels=[0, 1], average="macro")
    f1 = reference.f1_score(labels[kept], predicted, labels=[0, 1], average="macro")
    assert found["roc_auc"][0] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert found["recall"][0] == found["balanced_accuracy"][0] == pytest.approx(recall, abs=1e-9)
    assert found["f1"][0] == pytest.approx(f1, abs=1e-9)


def test_undefined_resamples_are_nan():
    weights = [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    found = resampled_metrics([0, 0, 1, 1], from_scores([0.1, 0.6, 0.7, 0.8]), weights)
    nan = math.nan
    for name, expected in {
        "accuracy": [0.5, 1, nan],
        "balanced_accuracy": [0.5, 1, nan],
        "roc_auc": [nan, nan, nan],
        "recall": [nan, 1, nan],
        "specificity": [0.5, nan, nan],
        "f1": [0, 1, nan],
        "precision": [0, 1, nan],
        "average_precision": [nan, nan, nan],
        "mcc": [nan, nan, nan],
        "cohen_kappa": [nan, nan, nan],
    }.items():
        np.testing.assert_allclose(found[name], expected, err_msg=name)


@pytest.mark.parametrize("chunk", [intervals.CHUNK_ELEMENTS, 1400])
def test_accuracy_of_one_class_has_the_binomial_interval(monkeypatch, chunk):
    """Drawing 200 images of which 150 are right is Binomial(200, 0.75), in whatever chunks."""
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", chunk)
    probabilities = from_scores(np.where(np.arange(200) < 150, 0.9, 0.1))
    found = bootstrap_intervals(np.ones(200, int), probabilities, num_resamples=4000)
    expected = stats.binom.ppf([0.025, 0.975], 200, 0.75) / 200
    assert found["accuracy"] == pytest.approx(expected, abs=1.5 / 200)
    assert found["recall"] == found["accuracy"]
    assert all(math.isnan(value) for value in found["specificity"] + found["roc_auc"])
    narrower = bootstrap_intervals(np.ones(200, int), probabilities, confidence=0.5)["accuracy"]
    expected = stats.binom.ppf([0.25, 0.75], 200, 0.75) / 200
    assert narrower == pytest.approx(expected, abs=1.5 / 200)


def test_draw_is_stratified_by_label():
    """Every resample keeps 90 negatives and 10 positives: all wrong on one class stays at 0.9."""
    labels = np.repeat([0, 1], [90, 10])
    found = bootstrap_intervals(labels, from_scores(np.full(100, 0.2)), num_resamples=300)
    assert found["accuracy"] == (0.9, 0.9)


def test_stratum_of_a_mixed_group_is_its_majority():
    """Groups of one or two positives in three: each resample holds as many of either kind."""
    labels = [1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0]
    groups = np.repeat([1.5, 2.5, 3.5, 4.5], 3)
    found = bootstrap_intervals(labels, from_scores(np.full(12, 0.2)), groups, num_resamples=300)
    assert found["accuracy"] == (0.5, 0.5)


def test_whole_groups_are_drawn_from_the_stratum_of_their_majority():
    strata = np.array([0, 1, 0, 0, 1])
    drawn = intervals.draw_groups(np.random.default_rng(0), strata, 5000)
    assert (drawn[:, strata == 0].sum(axis=1) == 3).all()
    assert (drawn[:, strata == 1].sum(axis=1) == 2).all()
    # of three draws among three, each group is missing with (2/3)^3, and comes once on average
    assert (drawn[:, 0] == 0).mean() == pytest.approx((2 / 3) ** 3, abs=0.025)
    assert drawn.mean(axis=0) == pytest.approx(np.ones(5), abs=0.05)
    # rows are independent draws: all 3^3 = 27 ordered ones lead to 10 different counts
    assert len(np.unique(drawn[:, strata == 0], axis=0)) == 10


def test_groups_of_copies_have_the_interval_of_one_image_each():
    labels, probabilities = random_case(6, 2, count=80, decimals=3)
    groups = np.array([f"patient {index}" for index in range(80)])
    copies = np.random.default_rng(0).permutation(np.repeat(np.arange(80), 6))
    singles = bootstrap_intervals(labels, probabilities)
    grouped = bootstrap_intervals(labels[copies], probabilities[copies], groups[copies])
    naive = bootstrap_intervals(labels[copies], probabilities[copies])
    for name in intervals.NAMES:
        width = grouped[name][1] - grouped[name][0]
        assert grouped[name] == pytest.approx(singles[name], abs=0.03)
        assert 1.9 < width / (naive[name][1] - naive[name][0]) < 3.1  # the square root of 6 is 2.4


def test_coverage_on_simulated_data():
    """95 % intervals of 150 data sets hold the true AUC and recall about as often as they say."""
    generator = np.random.default_rng(7)
    labels = np.repeat([0, 1], 80)
    true_auc, true_recall = stats.norm.cdf(1 / math.sqrt(2)), stats.norm.cdf(0.5)
    held = {"roc_auc": 0, "recall": 0}
    for _ in range(150):
        score = generator.normal(size=160) + labels - 0.5
        found = bootstrap_intervals(labels, from_scores(stats.norm.cdf(score)), num_resamples=400)
        held["roc_auc"] += found["roc_auc"][0] <= true_auc <= found["roc_auc"][1]
        held["recall"] += found["recall"][0] <= true_recall <= found["recall"][1]
    for count in held.values():
        assert 0.88 <= count / 150 < 1


def test_seed_fixes_the_result():
    labels, probabilities = random_case(8, 3, decimals=6)
    first = bootstrap_intervals(labels, probabilities, seed=1, num_resamples=200)
    assert first == bootstrap_intervals(labels, probabilities, seed=1, num_resamples=200)
    assert first != bootstrap_intervals(labels, probabilities, seed=2, num_resamples=200)
    assert all(low <= high for low, high in first.values())


@pytest.mark.parametrize(
    ("labels", "groups"), [([1], None), ([0, 1, 1], ["a", "a", "a"]), ([], None)]
)
def test_fewer_than_two_groups_have_no_interval(labels, groups):
    found = bootstrap_intervals(labels, from_scores(np.full(len(labels), 0.7)), groups)
    assert set(found) == set(intervals.NAMES)
    assert all(math.isnan(value) for pair in found.values() for value in pair)


def test_single_positive_patient_shows_no_spread_of_its_class():
    labels = np.array([0] * 20 + [1] * 5)
    score = np.where(np.arange(25) % 3 == 0, 0.8, 0.2)
    found = bootstrap_intervals(labels, from_scores(score), [*range(20), *[99] * 5])
    for name in intervals.MEANS_OVER_IMAGES:
        low, high = found.pop(name)
        assert 0 <= low < high < 2
    assert all(math.isnan(value) for pair in found.values() for value in pair)


def test_two_patients_of_two_classes_are_drawn_from_one_pool():
    """Four right of five and one right of five: two draws have an accuracy of 0.2, 0.5 or 0.8."""
    score = [0.2, 0.2, 0.2, 0.2, 0.8, 0.2, 0.2, 0.2, 0.2, 0.8]
    found = bootstrap_intervals([0] * 5 + [1] * 5, from_scores(score), [0] * 5 + [1] * 5)
    assert found["accuracy"] == pytest.approx((0.2, 0.8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["a", "b"]}, r"groups have shape \(2,\), expected \(3,\)"),
        ({"groups": ["a", None, "b"]}, "1 of 3 groups are missing"),
        ({"groups": [1.0, math.nan, math.nan]}, "2 of 3 groups are missing"),
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"confidence": 95}, "confidence 95"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals([0, 1, 1], from_scores([0.2, 0.7, 0.6]), **arguments)


def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"weights have shape \(4, 3\), expected \(R, 2\)"):
        resampled_metrics([0, 1], from_scores([0.2, 0.7]), np.ones((4, 3)))


def test_ten_thousand_images_are_quick_and_small():
    """About 1 s; a loop over scikit-learn would take a minute, all weights at once 0.5 GB."""
    labels, probabilities = random_case(9, 2, count=10_000, decimals=8)
    tracemalloc.start()
    start = time.perf_counter()
    bootstrap_intervals(labels, probabilities)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 15  # generous: other processes may share the cores
    assert peak < 200e6


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (10, 10), (3, 10), (450, 500), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_equals_scipy(successes, total, confidence):
    expected = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    found = wilson_interval(successes, total, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found[0] <= found[1] <= 1


def test_wilson_of_nothing_and_of_nonsense():
    assert all(math.isnan(value) for value in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="successes is 3, total 2"):
        wilson_interval(3, 2)
