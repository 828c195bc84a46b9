"""Folds against brute-force checks and against scikit-learn itself."""

import logging
from collections import Counter

import datasets
import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from sssd_hf.data.cross_validation import fold_splits

NAMES = ["clear", "opaque"]


def table(labels, patients, order=None):
    """One row an image, named by its number; `order` of the rows."""
    order = range(len(labels)) if order is None else order
    columns = {
        "file_name": [f"{i:03d}.png" for i in order],
        "label": [int(labels[i]) for i in order],
        "patient": [f"p{patients[i]}" for i in order],
    }
    features = datasets.Features(
        {
            "file_name": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            "patient": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def images(seed, patients=30, share=0.3):
    """Patients of 1 to 4 images, of one label each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, patients)
    of_patients = (np.arange(patients) < share * patients).astype(int)
    return np.repeat(of_patients, counts), np.repeat(np.arange(patients), counts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("folds", [2, 5])
def test_each_image_is_tested_once_and_no_patient_is_divided(seed, folds):
    labels, patients = images(seed)
    splits = fold_splits(table(labels, patients), folds, group_column_name="patient", seed=seed)
    assert len(splits) == folds
    assert sorted(row for s in splits for row in s["test"]) == list(range(len(labels)))
    for split in splits:
        assert sorted(row for part in split.values() for row in part) == list(range(len(labels)))
        inside = [{patients[row] for row in split[part]} for part in split]
        for i, first in enumerate(inside):
            assert all(not first & second for second in inside[i + 1 :])
        assert {labels[row] for row in split["test"]} == {0, 1}
        held_out = len(split["validation"]) / (len(labels) - len(split["test"]))
        assert 0.1 < held_out < 0.2


def test_folds_are_scikit_learn_s_and_have_each_class_in_its_share():
    labels, patients = images(7)
    splits = fold_splits(
        table(labels, patients), 5, train_val_split=0, group_column_name="patient", seed=3
    )
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    expected = splitter.split(labels, labels, [f"p{i}" for i in patients])
    for split, (train, test) in zip(splits, expected, strict=True):
        assert split == {"train": train.tolist(), "validation": [], "test": test.tolist()}
        share = labels[split["test"]].mean()
        assert abs(share - labels.mean()) < 0.1
    shares = []  # random folds of patients are further off
    rng = np.random.default_rng(0)
    for _ in range(200):
        fold = rng.permutation(patients.max() + 1) % 5
        shares.append(
            max(abs(labels[fold[patients] == k].mean() - labels.mean()) for k in range(5))
        )
    worst = max(abs(labels[split["test"]].mean() - labels.mean()) for split in splits)
    assert worst < np.quantile(shares, 0.2)


def test_without_groups_every_fold_has_each_class_up_to_one_image():
    labels = np.array([0] * 33 + [1] * 14)
    splits = fold_splits(table(labels, range(47)), 4, seed=1)
    for label, total in Counter(labels.tolist()).items():
        counts = [sum(labels[row] == label for row in split["test"]) for split in splits]
        assert set(counts) <= {total // 4, -(-total // 4)}


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    labels, patients = images(2)
    shuffled = np.random.default_rng(5).permutation(len(labels))

    def names(order, seed):
        dataset = table(labels, patients, order)
        splits = fold_splits(dataset, 3, group_column_name="patient", seed=seed)
        return [{part: dataset.select(s[part])["file_name"][:] for part in s} for s in splits]

    assert names(None, 0) == names(shuffled, 0)
    assert names(None, 0) != names(None, 1)


def test_folds_of_a_part_of_the_images():
    labels, patients = images(4)
    rows = [row for row in range(len(labels)) if patients[row] % 3]
    splits = fold_splits(table(labels, patients), 3, rows=rows, group_column_name="patient")
    assert sorted(row for s in splits for row in s["test"]) == rows
    assert all({row for part in s.values() for row in part} == set(rows) for s in splits)


def test_what_can_not_be_divided():
    labels, patients = images(0, patients=10)
    dataset = table(labels, patients)
    for folds, words in ((1, "at least 2"), (11, "there are 10 groups"), (8, "no label has")):
        with pytest.raises(ValueError, match=f"--cross_validation {folds}.*{words}"):
            fold_splits(dataset, folds, group_column_name="patient")
    alone = np.array([1] + [0] * 9)
    with pytest.raises(ValueError, match="'opaque' are of 1 of the images"):
        fold_splits(table(alone, range(10)), 3)


def test_a_rare_class_is_named(caplog):
    labels = np.array([1] * 3 + [0] * 20)
    with caplog.at_level(logging.WARNING, logger="sssd_hf"):
        splits = fold_splits(table(labels, range(23)), 5, train_val_split=0)
    assert "'opaque' is of 3 images: some of the 5 folds test none" in caplog.text
    assert sorted(labels[s["test"]].sum() for s in splits) == [0, 0, 1, 1, 1]
