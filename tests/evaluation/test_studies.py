"""Means, intervals and comparisons over runs, against loops and scipy."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

from sssd_hf.evaluation.intervals import MEANS_OVER_IMAGES, bootstrap_intervals
from sssd_hf.evaluation.protocols import Draw
from sssd_hf.evaluation.studies import REPORTED, adjust, compare_runs, summarise_runs


def make_runs(skill, draws=4, seed=0, same_test=False):
    """Draws of 40 of 100 images of 50 patients; a model as good as `skill`."""
    rng = np.random.default_rng(seed)
    truth = np.arange(100) // 2 % 2
    noise = np.random.default_rng(9).normal(size=(draws, 100))
    runs = []
    for k in range(draws):
        picks = np.random.default_rng(0 if same_test else 100 + k).permutation(100)[:40]
        logits = skill * (2 * truth[picks] - 1) + noise[k, picks] + 0.3 * rng.normal(size=40)
        positive = 1 / (1 + np.exp(-logits))
        runs.append(
            Draw(
                f"draw_{k}",
                k,
                0,
                [f"i{i}" for i in picks],
                truth[picks],
                np.stack([1 - positive, positive], 1),
                np.array([f"p{i // 2}" for i in picks]),
                60,
            )
        )
    return runs


def test_mean_and_spread_are_numpys_and_scikit_learns():
    runs = make_runs(0.8)
    found = summarise_runs(runs, num_resamples=100)
    accuracies = [accuracy_score(r.labels, r.probabilities.argmax(1)) for r in runs]
    areas = [roc_auc_score(r.labels, r.probabilities[:, 1]) for r in runs]
    for name, values in (("accuracy", accuracies), ("roc_auc", areas)):
        assert found[name]["values"] == pytest.approx(values)
        assert found[name]["mean"] == pytest.approx(np.mean(values))
        assert found[name]["std"] == pytest.approx(np.std(values, ddof=1))
        assert found[name]["low"] < found[name]["mean"] < found[name]["high"]


def test_the_bootstrap_draws_a_patient_in_all_runs_or_in_none():
    """The interval of the mean accuracy against a loop over drawn patients."""
    runs = make_runs(0.8)
    found = summarise_runs(runs, num_resamples=4000, seed=1)["accuracy"]
    patients = sorted({p for run in runs for p in run.groups})
    label = {p: int(y) for run in runs for p, y in zip(run.groups, run.labels)}
    rng = np.random.default_rng(7)
    means = []
    for _ in range(2000):
        times = dict.fromkeys(patients, 0)
        for stratum in (0, 1):
            members = [p for p in patients if label[p] == stratum]
            for p in rng.choice(members, len(members)):
                times[p] += 1
        shares = []
        for run in runs:
            weight = np.array([times[p] for p in run.groups])
            right = run.probabilities.argmax(1) == run.labels
            shares.append((weight * right).sum() / weight.sum())
        means.append(np.mean(shares))
    assert (found["low"], found["high"]) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.012
    )


def one_positive_patient(run):
    """All positive images are of one patient."""
    return dataclasses.replace(run, groups=np.where(run.labels == 1, "p1", run.groups))


@pytest.mark.parametrize("case", ["several", "one positive patient", "one patient"])
def test_the_interval_of_one_run_is_that_of_one_evaluation(case):
    (run,) = make_runs(0.8, draws=1)
    if case == "one positive patient":
        run = one_positive_patient(run)
    elif case == "one patient":
        run = dataclasses.replace(run, groups=np.full(40, "p"))
    found = summarise_runs([run], num_resamples=300, seed=3)
    expected = bootstrap_intervals(
        run.labels, run.probabilities, run.groups, num_resamples=300, seed=3
    )
    for name in REPORTED:
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(
            expected[name], nan_ok=True
        )


def test_a_class_in_one_patient_of_one_run_shows_no_spread():
    """The mean over the runs has no more than its least known part."""
    runs = make_runs(0.8, draws=3)
    runs[1] = one_positive_patient(runs[1])
    found = summarise_runs(runs, num_resamples=100)
    compared = compare_runs(runs, runs, num_resamples=100)
    for name in REPORTED:
        known = name in MEANS_OVER_IMAGES
        assert np.isfinite(found[name]["mean"])
        assert np.isfinite([found[name]["low"], found[name]["high"]]).all() == known
        assert np.isfinite(compared[name]["bootstrap"]["low"]) == known
        assert np.isfinite(compared[name]["bootstrap"]["p"]) == known


def test_images_are_the_units_where_patients_are_not_known():
    run = make_runs(0.8, draws=1)[0]
    alone = dataclasses.replace(run, groups=None)
    first, second = (summarise_runs([r], num_resamples=2000)["accuracy"] for r in (run, alone))
    assert first["mean"] == second["mean"]
    assert first["std"] is None
    assert first["low"] != second["low"]


def test_the_corrected_test_over_draws():
    """t = mean / sqrt((1/J + n_test/n_train) s^2), Nadeau and Bengio 2003, eq. 8."""
    a, b = make_runs(1.2, draws=5), make_runs(0.6, draws=5)
    row = compare_runs(a, b, num_resamples=200)["accuracy"]
    d = np.array(row["differences"])
    t = d.mean() / np.sqrt((1 / 5 + 40 / 60) * d.var(ddof=1))
    assert row["resampled_t"]["t"] == pytest.approx(t)
    assert row["resampled_t"]["p"] == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert row["bootstrap"]["low"] < d.mean() < row["bootstrap"]["high"]


def test_a_method_against_itself_differs_by_nothing():
    runs = make_runs(0.8)
    row = compare_runs(runs, runs, num_resamples=50)["roc_auc"]
    assert row["mean"] == 0
    assert row["bootstrap"]["low"] == row["bootstrap"]["high"] == 0
    assert row["resampled_t"]["p"] == 1


def test_seeds_on_one_test_set_are_no_draws():
    a, b = (make_runs(skill, same_test=True) for skill in (1.2, 0.6))
    assert compare_runs(a, b, num_resamples=50)["accuracy"]["resampled_t"] is None


def test_seeds_of_a_split_count_as_one_value():
    """Repeating each draw with other seeds must not make the test surer than the draws are."""
    a, b = make_runs(1.2, draws=3), make_runs(0.6, draws=3)
    once = compare_runs(a, b, num_resamples=20)["accuracy"]["resampled_t"]
    again = [
        [dataclasses.replace(run, seed=s) for run in runs for s in range(5)] for runs in (a, b)
    ]
    assert compare_runs(*again, num_resamples=20)["accuracy"]["resampled_t"] == pytest.approx(once)


def test_pairs_must_match():
    a = make_runs(1.0)
    with pytest.raises(ValueError, match="expected as many"):
        compare_runs(a, a[:-1])
    with pytest.raises(ValueError, match="different test images"):
        compare_runs(a, a[::-1])
    with pytest.raises(ValueError, match="at least one"):
        summarise_runs([])


def test_several_comparisons_are_adjusted():
    runs = [make_runs(skill, draws=5) for skill in (1.2, 1.0, 0.4)]
    found = [compare_runs(runs[0], other, num_resamples=100) for other in runs[1:]]
    adjust(found, "accuracy")
    plain = [row["accuracy"]["resampled_t"]["p"] for row in found]
    adjusted = [row["accuracy"]["resampled_t"]["p_holm"] for row in found]
    smallest = int(np.argmin(plain))
    assert adjusted[smallest] == pytest.approx(min(1, 2 * plain[smallest]))
    assert all(q >= p for p, q in zip(plain, adjusted))
