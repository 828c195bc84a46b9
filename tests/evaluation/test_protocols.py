"""Pooled and summarised figures against scikit-learn, SciPy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss, recall_score, roc_auc_score

from sssd_hf.evaluation.comparison import compare_models
from sssd_hf.evaluation.intervals import bootstrap_intervals
from sssd_hf.evaluation.protocols import (
    Draw,
    check_same_draws,
    compare_draws,
    compare_pooled,
    pool,
    pooled_results,
    size_ratio,
    summarise_draws,
)

COUNT, FOLDS = 60, 3


def draw(rng, rows, split="fold_0", repeat=0, seed=0, skill=1.0, num_train=40, decided=False):
    """Of images `rows`: labels and patients follow from the row, probabilities are drawn."""
    labels = np.array([row % 3 == 0 for row in rows]).astype(int)
    score = 1 / (1 + np.exp(-rng.normal(skill * (2 * labels - 1), 1)))
    return Draw(
        split=split,
        repeat=repeat,
        seed=seed,
        file_names=[f"{row:03d}.png" for row in rows],
        labels=labels,
        probabilities=np.stack([1 - score, score], axis=1),
        groups=np.array([f"p{row % 20}" for row in rows], dtype=object),
        num_train=num_train,
        decided=(score > 0.3).astype(int) if decided else None,
    )


def protocol(seed=0, seeds=(0,), repeats=1, **options):
    """Folds of all images, other ones in each repeat."""
    rng = np.random.default_rng(seed)
    draws = []
    for repeat in range(repeats):
        order = np.random.default_rng(100 + repeat).permutation(COUNT)
        for fold in range(FOLDS):
            for one in seeds:
                name = f"repeat_{repeat}_fold_{fold}"
                draws.append(draw(rng, order[fold::FOLDS], name, repeat, one, **options))
    return draws


def concatenated(draws):
    labels = np.concatenate([d.labels for d in draws])
    return labels, np.concatenate([d.probabilities for d in draws])


def test_pooled_metrics_are_scikit_learn_s_on_all_predictions():
    draws = protocol(decided=True)
    labels, probabilities = concatenated(draws)
    found = pooled_results(pool(draws), num_resamples=50)
    predicted, score = probabilities.argmax(axis=1), probabilities[:, 1]
    assert found["metrics"]["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(labels, score))
    assert found["metrics"]["log_loss"] == pytest.approx(log_loss(labels, score))
    decided = np.concatenate([d.decided for d in draws])
    assert found["decisions"]["metrics"]["recall"] == pytest.approx(recall_score(labels, decided))
    assert "roc_auc" not in found["decisions"]["metrics"]
    assert pooled_results(pool(protocol()), num_resamples=5)["decisions"] is None


def test_pooled_intervals_are_the_bootstrap_of_patients():
    (pooled,) = pool(protocol())
    found = pooled_results([pooled], num_resamples=200)
    expected = bootstrap_intervals(
        pooled.labels, pooled.probabilities, pooled.groups, num_resamples=200
    )
    assert found["intervals"] == expected
    assert found["each"][0]["intervals"] == expected


def test_the_mean_over_repeats_and_seeds_is_on_the_same_draws_of_patients():
    """Of equal predictions the mean is each one's, and so is its interval: as if independent it
    would be narrower by the root of four."""
    (one,) = pool(protocol())
    copies = [
        Draw(**{**one.__dict__, "repeat": repeat, "seed": seed})
        for repeat in range(2)
        for seed in range(2)
    ]
    several = pooled_results(copies, num_resamples=100)
    alone = pooled_results([one], num_resamples=100)
    for name, interval in alone["intervals"].items():
        assert several["intervals"][name] == pytest.approx(interval)
    draws = protocol(seeds=(0, 1), repeats=2)
    found = pooled_results(pool(draws), num_resamples=10)
    assert [(e["repeat"], e["seed"]) for e in found["each"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    values = []
    for repeat in range(2):
        for seed in range(2):
            part = [d for d in draws if (d.repeat, d.seed) == (repeat, seed)]
            labels, probabilities = concatenated(part)
            values.append(roc_auc_score(labels, probabilities[:, 1]))
    assert found["metrics"]["roc_auc"] == pytest.approx(np.mean(values))


def test_what_can_not_be_pooled():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"004\.png is tested more than once"):
        pool([draw(rng, range(5)), draw(rng, range(4, 9))])
    with pytest.raises(ValueError, match=r"different images or labels, such as 005\.png"):
        pool([draw(rng, range(5)), draw(rng, range(6), repeat=1)])


def test_draws_are_summarised_with_the_corrected_interval():
    rng = np.random.default_rng(1)
    draws = [draw(rng, rng.choice(COUNT, 20, False), f"s{i}", i, num_train=40) for i in range(5)]
    assert size_ratio(draws) == 0.5
    found = summarise_draws(draws)["accuracy"]
    values = [accuracy_score(d.labels, d.probabilities.argmax(axis=1)) for d in draws]
    assert list(found["values"].values()) == pytest.approx(values)
    mean, std = np.mean(values), np.std(values, ddof=1)
    assert (found["mean"], found["std"]) == pytest.approx((mean, std))
    assert (found["min"], found["max"]) == pytest.approx((min(values), max(values)))
    half = stats.t.ppf(0.975, 4) * std * math.sqrt(1 / 5 + 0.5)
    assert (found["low"], found["high"]) == pytest.approx((mean - half, min(1, mean + half)))


def test_seeds_of_a_split_count_as_one_value():
    draws = protocol(seeds=(0, 1, 2))
    found = summarise_draws(draws)["roc_auc"]
    assert found["num_splits"] == FOLDS
    first = [roc_auc_score(d.labels, d.probabilities[:, 1]) for d in draws[:3]]
    assert found["values"]["repeat_0_fold_0"] == pytest.approx(np.mean(first))


def test_an_undefined_value_is_left_out_and_named():
    rng = np.random.default_rng(2)
    draws = [draw(rng, range(i, i + 6), f"s{i}", i) for i in range(3)]
    draws.append(draw(rng, [1, 2, 4, 5], "all_clear", 3))
    found = summarise_draws(draws)["roc_auc"]
    assert found["undefined"] == ["all_clear"]
    assert found["num_splits"] == 3
    assert np.isfinite([found["mean"], found["low"], found["high"]]).all()
    alone = summarise_draws(draws[-1:])["roc_auc"]
    assert np.isnan([alone["mean"], alone["std"], alone["low"]]).all()
    assert "roc_auc" not in compare_draws(draws[2:], draws[2:])


def test_comparison_over_draws_is_nadeau_and_bengio_s():
    first, second = protocol(1, skill=2), protocol(2, skill=0.5, seeds=(0, 1))
    found = compare_draws(first, second)["roc_auc"]
    aucs = [roc_auc_score(d.labels, d.probabilities[:, 1]) for d in first + second]
    differences = np.array(aucs[:3]) - np.array(aucs[3:]).reshape(3, 2).mean(axis=1)
    ratio = np.mean([len(d.labels) / d.num_train for d in first])
    t = differences.mean() / (differences.std(ddof=1) * math.sqrt(1 / 3 + ratio))
    assert found["t"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert list(found["differences"].values()) == pytest.approx(differences)


def test_comparison_of_pooled_predictions_is_the_paired_bootstrap():
    (first,), (second,) = pool(protocol(1, skill=2)), pool(protocol(2, skill=0.5))
    found = compare_pooled([first], [second], num_resamples=100)
    expected = compare_models(
        first.labels, first.probabilities, second.probabilities, first.groups, num_resamples=100
    )["metrics"]
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, nan_ok=True)
    assert found["roc_auc"]["low"] > 0


def test_the_order_of_the_other_s_images_does_not_matter():
    (first,), (second,) = pool(protocol(1)), pool(protocol(2))
    order = np.random.default_rng(0).permutation(COUNT)
    other = Draw(
        **{
            **second.__dict__,
            "file_names": [second.file_names[i] for i in order],
            "labels": second.labels[order],
            "probabilities": second.probabilities[order],
        }
    )
    plain, shuffled = (compare_pooled([first], [o], num_resamples=20) for o in (second, other))
    assert plain["accuracy"] == shuffled["accuracy"]


def test_only_the_same_draws_are_compared():
    rng = np.random.default_rng(0)
    here = [draw(rng, range(10))]
    check_same_draws(here, [draw(rng, range(9, -1, -1))])
    with pytest.raises(ValueError, match="its splits are other, here they are fold_0"):
        check_same_draws(here, [draw(rng, range(10), "other")])
    with pytest.raises(ValueError, match="tests 11 images, here 10, 10 of them the same"):
        check_same_draws(here, [draw(rng, range(11))])
