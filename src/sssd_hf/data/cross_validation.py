"""Folds of a cross-validation: each image is tested once, by training on the images of others."""

import logging
import warnings
from collections import Counter

from sssd_hf.data.sources import column_texts
from sssd_hf.data.splits import check_splits, cut_rows, label_ranks

logger = logging.getLogger(__name__)


def fold_splits(
    dataset,
    num_folds: int,
    *,
    rows: list[int] | None = None,
    train_val_split: float = 0.15,
    group_column_name: str | None = None,
    seed: int = 0,
) -> list[dict[str, list[int]]]:
    """`num_folds` splits as `make_splits` gives; each of `rows` is in the test part of one of them.

    Folds are scikit-learn's StratifiedGroupKFold with groups, StratifiedKFold without, shuffled by
    `seed`; they depend on the set of file names, not on the order of rows. Of what is not tested
    `train_val_split` is cut off as validation, whole groups, as `make_splits` cuts.

    Args:
        dataset: with "file_name" and "label" (ClassLabel).
        rows: what to make folds of; None: all rows.

    Raises:
        ValueError: there are fewer groups, or images of every class, than folds; a fold whose
            training lacks a label that it tests.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names, labels = dataset["file_name"][:], dataset["label"][:]
    rows = sorted(range(len(names)) if rows is None else rows, key=names.__getitem__)
    groups = None
    if group_column_name is not None:
        groups = column_texts(dataset, group_column_name, "--group_column_name")
    y = np.array([labels[row] for row in rows])
    ids = None if groups is None else np.array([groups[row] for row in rows])
    _check_enough(y, ids, num_folds, dataset.features["label"].names, group_column_name)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes: `_check_enough` says more
        parts = list(splitter.split(np.zeros(len(y)), y, ids))
    folds = []
    for number, (inside, outside) in enumerate(parts):
        train, validation = [rows[i] for i in inside], []
        if train_val_split:
            train, validation = cut_rows(
                train, train_val_split, label_ranks(dataset), groups, seed, "--train_val_split"
            )
        split = {"train": train, "validation": validation, "test": [rows[i] for i in outside]}
        if not split["test"]:
            raise ValueError(
                f"--cross_validation {num_folds}: fold {number} tests no image, since a few groups "
                f"of {group_column_name} hold most of them; give fewer folds"
            )
        try:
            check_splits(dataset, split)
        except ValueError as error:
            raise ValueError(
                f"--cross_validation {num_folds}, fold {number}: {error}; fewer folds, or another "
                "--split_seed, may do"
            ) from error
        folds.append(split)
    return folds


def _check_enough(y, ids, num_folds, label_names, group_column_name):
    if num_folds < 2:
        raise ValueError(f"--cross_validation {num_folds}: expected at least 2 folds")
    things = "images" if ids is None else f"groups ({group_column_name})"
    total = len(y) if ids is None else len(set(ids.tolist()))
    if total < num_folds:
        raise ValueError(
            f"--cross_validation {num_folds}: there are {total} {things} only; give fewer folds"
        )
    pairs = enumerate(y.tolist()) if ids is None else set(zip(ids.tolist(), y.tolist()))
    members = Counter(label for _, label in pairs)
    if max(members.values()) < num_folds:
        raise ValueError(
            f"--cross_validation {num_folds}: no label has as many {things}; give fewer folds"
        )
    for label, count in sorted(members.items()):
        if count == 1:
            raise ValueError(
                f"--cross_validation {num_folds}: all images of the label {label_names[label]!r} "
                f"are of 1 of the {things}: the fold that tests it has none to train on; remove "
                "the label, or give more images of it"
            )
        if count < num_folds:
            logger.warning(
                "the label %r is of %d %s: some of the %d folds test none of it, and figures of a "
                "single fold may be undefined; the pooled ones are not",
                label_names[label],
                count,
                things,
                num_folds,
            )
