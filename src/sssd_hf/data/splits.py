"""Which image belongs to training, validation and test: by a column, or cut by whole groups."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from sssd_hf.data.folders import examples
from sssd_hf.data.sources import as_text, column_texts

logger = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
# Names understood as each other, in any case, when the one asked for is not in the column.
ALIASES = (
    {"train", "training"},
    {"validation", "val", "valid", "dev"},
    {"test", "testing"},
)
GROUP_ORDERS = 200


def make_splits(
    dataset,
    *,
    split_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    train_val_split: float = 0.15,
    train_test_split: float = 0.2,
    group_column_name: str | None = None,
    seed: int = 0,
    check: bool = True,
    test_only: bool = False,
) -> dict[str, list[int]]:
    """Row indices under "train", "validation" and "test", each in the order of "file_name".

    With `split_column` (None: a column "split" with at least two values) the rows go by its values;
    `*_split` names one value or several with commas ("train,val"). For validation and test None
    means "if it is there". Without a validation value `train_val_split` of the training images is
    cut off, without a test value test is empty. Without a column `train_test_split` of all images
    is cut off as test, then `train_val_split` of the rest as validation.

    A cut is seeded, follows the shares of the labels and depends on the set of file names, not on
    the order of rows. Without groups it is scikit-learn's StratifiedShuffleSplit (the only image
    of a class stays in training). With groups it keeps each whole: of 200 random orders of the
    groups, each cut off at its best place, it takes the one closest to the wanted number of images
    of each class. Measured at 20 to 2,000 groups and 2 to 14 classes that is at most about 2 % of
    the images off; the best of 200 draws of GroupShuffleSplit is off by up to 3 %, and
    StratifiedGroupKFold, whose fractions are 1/k only, takes 20 times as long.

    Args:
        dataset: with "file_name"; "label" (ClassLabel) where there are labels.
        train_val_split, train_test_split: 0 <= fraction < 1; 0 switches the cut off.
        group_column_name: images with the same value (patient) are never separated by a cut. A
            split column may separate them, as published protocols do: that is logged as a warning.
        test_only: the test part of a split column is wanted alone, such as of data that are no
            training's: the column may lack the others, nothing is cut, and nothing is checked.

    Raises:
        ValueError: a column or value is missing, a cut is impossible, training is empty or of one
            class, or validation or test has a label that training lacks.
    """
    for option, fraction in (
        ("--train_val_split", train_val_split),
        ("--train_test_split", train_test_split),
    ):
        if not 0 <= fraction < 1:
            raise ValueError(f"{option} is {fraction}, expected a fraction from 0 to below 1")
    names = dataset["file_name"][:]
    rows = sorted(range(len(names)), key=names.__getitem__)
    labels = label_ranks(dataset) if "label" in dataset.column_names else [0] * len(rows)
    groups = None
    if group_column_name is not None:
        groups = column_texts(dataset, group_column_name, "--group_column_name")
    if split_column is None and "split" in dataset.column_names:
        # one value alone, as of a data set on the Hub that has "train" only, splits nothing
        split_column = "split" if len(set(dataset["split"][:])) > 1 else None

    def cut(rows, fraction, option):
        if not fraction or not rows:
            return rows, []
        return cut_rows(rows, fraction, labels, groups, seed, option)

    if test_only and split_column is None:
        raise ValueError("test_only needs a split column, and found none")
    if split_column is None:
        rest, test = cut(rows, train_test_split, "--train_test_split")
        train, validation = cut(rest, train_val_split, "--train_val_split")
    else:
        wanted = {"train": train_split, "validation": validation_split, "test": test_split}
        optional = ("train", "validation") if test_only else ()
        train, validation, test = _by_column(dataset, rows, split_column, wanted, optional)
        if test_only:
            return {"train": train, "validation": validation or [], "test": test}
        if validation is None:
            train, validation = cut(train, train_val_split, "--train_val_split")
    splits = {"train": train, "validation": validation, "test": test}
    if check:
        check_splits(dataset, splits, group_column_name)
    return splits


def label_ranks(dataset) -> list[int]:
    """Labels by the names of the classes: their order in the data set, in which --positive_label
    is the last, must not move a cut."""
    names = getattr(dataset.features["label"], "names", None)
    if names is None:
        return dataset["label"][:]
    order = {names.index(name): rank for rank, name in enumerate(sorted(names))}
    return [order[label] for label in dataset["label"][:]]


def check_splits(dataset, splits: dict[str, list[int]], group_column_name=None) -> None:
    """Warn of groups in more than one part.

    Raises:
        ValueError: training is empty or of one class, or validation or test has a label that
            training lacks.
    """
    _check_labels(dataset, splits)
    if group_column_name is not None:
        groups = column_texts(dataset, group_column_name, "--group_column_name")
        _warn_of_shared_groups(splits, groups, group_column_name)


def _by_column(dataset, rows, column, wanted, optional=()):
    """Rows of the three parts; validation is None where the column has none of it. The column may
    lack the values of the parts in `optional`, even if they are named."""
    if column not in dataset.column_names:
        raise ValueError(
            f"--split_column: there is no column {column!r}, columns found: "
            f"{', '.join(dataset.column_names)}: name one of these"
        )
    values = [as_text(value) for value in dataset[column][:]]
    counts = Counter(values)
    found = ", ".join(f"{value!r} ({n} images)" for value, n in sorted(counts.items())[:20])
    found += f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    taken = {}
    # explicit names first, so that "train,val" for training leaves no "val" to be taken by default
    for part in sorted(PARTS, key=lambda part: wanted[part] is None):
        asked = (wanted[part] or part).split(",")
        for name in (name.strip() for name in asked):
            value = name if name in counts else _alias(name, set(counts) - set(taken))
            if value is None or (wanted[part] is None and value in taken):
                if wanted[part] is not None and part not in optional:
                    raise ValueError(
                        f"--{part}_split: column {column!r} has no value {name!r}, values found: "
                        f"{found}: name one of these"
                    )
                continue
            if taken.get(value, part) != part:
                raise ValueError(
                    f"--{part}_split and --{taken[value]}_split both take the value {value!r} of "
                    f"column {column!r} (found: {found}): give each part its own values"
                )
            taken[value] = part
    unused = len(values) - sum(counts[value] for value in taken)
    if unused:
        logger.warning(
            "--split_column %s: %d images are not used, values found: %s; taken: %s",
            column,
            unused,
            found,
            ", ".join(map(repr, taken)),
        )
    parts = {part: [row for row in rows if taken.get(values[row]) == part] for part in PARTS}
    return parts["train"], parts["validation"] or None, parts["test"]


def _alias(name, values):
    """The one value meant by `name`; None if there is none, or several."""
    meant = next((aliases for aliases in ALIASES if name.lower() in aliases), {name.lower()})
    hits = [value for value in values if value.lower() in meant]
    return hits[0] if len(hits) == 1 else None


def cut_rows(rows, fraction, labels, groups, seed, option):
    """Split `rows` into what stays and what is cut off, both in the given order; see `make_splits`.

    Args:
        fraction: 0 < fraction < 1 of the images, about.
        labels, groups: of all rows of the data set; without `groups` each image is its own.
        option: the one that `fraction` was given by, for messages.

    Raises:
        ValueError: there are too few images or groups to cut.
    """
    import numpy as np

    y = np.array([labels[row] for row in rows])
    where = f"{option} {fraction}"
    if groups is None:
        picked = _pick_rows(y, fraction, seed, where)
    else:
        texts = [groups[row] for row in rows]
        order = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        picked = _pick_groups(y, np.array([order[text] for text in texts]), fraction, seed, where)
    picked = set(picked.tolist())
    stay = [row for i, row in enumerate(rows) if i not in picked]
    return stay, [row for i, row in enumerate(rows) if i in picked]


def _pick_rows(y, fraction, seed, where):
    import numpy as np
    from sklearn.model_selection import StratifiedShuffleSplit

    classes, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(counts[inverse] > 1)  # the only image of a class is for training
    kinds = int((counts > 1).sum())
    size = max(round(fraction * len(y)), kinds)
    if not kinds or len(usable) - size < kinds:
        raise ValueError(
            f"{where}: {len(y)} images of {len(classes)} classes are too few to cut off "
            f"{max(size, 1)}: give more images, a smaller fraction, or 0 for no cut"
        )
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed)
    _, picked = next(splitter.split(usable, y[usable]))
    return usable[picked]


def _pick_groups(y, groups, fraction, seed, where):
    import numpy as np

    number = groups.max() + 1
    if number < 2:
        raise ValueError(
            f"{where}: all {len(y)} images are of one group, expected at least two: check "
            "--group_column_name, or give 0 for no cut"
        )
    classes, y = np.unique(y, return_inverse=True)
    table = np.zeros((number, len(classes)), dtype=np.int64)  # (groups, classes) images
    np.add.at(table, (groups, y), 1)
    totals = table.sum(axis=0)
    rng = np.random.default_rng(seed)
    best = None
    for _ in range(GROUP_ORDERS):
        order = rng.permutation(number)
        counts = table[order].cumsum(axis=0)[:-1]  # (ends, classes); one group at least stays
        distance = np.abs(counts - fraction * totals).sum(axis=1)
        distance += 2 * len(y) * (counts == totals).sum(axis=1)  # labels training would lack
        end = int(distance.argmin())
        if best is None or distance[end] < best[0]:
            best = distance[end], order[: end + 1]
    return np.flatnonzero(np.isin(groups, best[1]))


def _check_labels(dataset, splits):
    if not splits["train"]:
        raise ValueError(
            f"training has none of the {len(dataset)} images: check --train_split, --split_column "
            "and the fractions"
        )
    if "label" not in dataset.column_names:
        return
    names, labels = dataset.features["label"].names, dataset["label"][:]
    counts = {part: Counter(names[labels[row]] for row in rows) for part, rows in splits.items()}
    for part in ("validation", "test"):
        for name in sorted(set(counts[part]) - set(counts["train"])):
            raise ValueError(
                f"the label {name!r} has {counts[part][name]} images in {part} and none in "
                f"training ({dict(counts['train'])}): move some to training, or remove the label"
            )
    if len(counts["train"]) < 2:
        raise ValueError(
            f"training has one class only ({dict(counts['train'])}), expected at least two: check "
            "--train_split, or take no labels to pretrain"
        )


def _warn_of_shared_groups(splits, groups, column):
    """Count what two parts share; only a split column can do this, a cut never does."""
    for first, second in combinations(PARTS, 2):
        inside = {groups[row] for row in splits[first]}
        shared = [row for row in splits[second] if groups[row] in inside]
        if shared:
            logger.warning(
                "groups (%s) leak between %s and %s: %d of the %d groups of %s, with %d of its %d "
                "images, are in both; figures on it will be too good",
                column,
                first,
                second,
                len({groups[row] for row in shared}),
                len({groups[row] for row in splits[second]}),
                second,
                len(shared),
                len(splits[second]),
            )


def write_splits(
    path: str | os.PathLike,
    dataset,
    splits: dict[str, list[int]],
    how: dict,
    pretrained_on: Sequence[int] | None = (),
) -> None:
    """Write `{"how": how, "train": [file names], "validation": ..., "test": ...}` atomically.

    Args:
        how: what `splits` came from (options, seed), to be read by people; JSON values.
        pretrained_on: rows of test images that an earlier pretraining learned from, written as
            "pretrained_on" where there are any; None (null): that is not known.
    """
    names = list(_rows_by_name(dataset))
    content = {"how": how, **{part: [names[row] for row in splits.get(part, [])] for part in PARTS}}
    if pretrained_on is None or len(pretrained_on):
        known = pretrained_on is not None
        content["pretrained_on"] = [names[row] for row in pretrained_on] if known else None
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # the same folder: renaming is atomic
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_splits(path: str | os.PathLike, dataset) -> dict[str, list[int]]:
    """What `write_splits` wrote, as rows of `dataset`, found by "file_name".

    Images of the data set that the file does not name are unused, which is logged as a warning.

    Raises:
        ValueError: the file is missing or of another form, names an image twice, or one that the
            data set does not have.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ValueError(
            f"{path}: cannot be read as splits ({exc}): give a splits.json that this package wrote"
        ) from exc
    names = {part: content.get(part) for part in PARTS} if isinstance(content, dict) else {}
    for part in PARTS:
        files = names.get(part)
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError(
                f"{path}: found no list of file names under {part!r}, expected one for each of "
                f"{', '.join(PARTS)}: give a splits.json that this package wrote"
            )
    rows = _rows_by_name(dataset)
    listed = Counter(file for part in PARTS for file in names[part])
    twice = [file for file, count in listed.items() if count > 1]
    if twice:
        raise ValueError(f"{path}: names images more than once, {examples(twice)}: keep one each")
    unknown = [file for file in listed if file not in rows]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(listed)} images are not in the data set: "
            f"{examples(unknown)}: give the data set the splits were made for"
        )
    unused = [file for file in rows if file not in listed]
    if unused:
        logger.warning(
            "%s: %d of %d images of the data set are in no split and unused: %s",
            path,
            len(unused),
            len(rows),
            examples(unused),
        )
    return {part: [rows[file] for file in names[part]] for part in PARTS}


def _rows_by_name(dataset):
    names = dataset["file_name"][:]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(
            f"the column 'file_name' names images twice, {examples(twice)}: give each its own name"
        )
    return rows
