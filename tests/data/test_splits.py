import json
import logging
import os
from collections import Counter, defaultdict

import datasets
import numpy as np
import pytest

from sssd_hf.data.splits import make_splits, read_splits, write_splits

PARTS = ["train", "validation", "test"]


def build(labels=None, n=None, **columns):
    """A data set of names without images; `labels` are class indices."""
    n = len(labels) if labels is not None else n or len(next(iter(columns.values())))
    data = {"file_name": [f"{i:05d}.png" for i in range(n)], **columns}
    if labels is None:
        return datasets.Dataset.from_dict(data)
    feature = datasets.ClassLabel(names=[f"class{i}" for i in range(max(labels) + 1)])
    return datasets.Dataset.from_dict(data).add_column("label", list(labels), feature=feature)


def sizes(splits):
    return [len(splits[part]) for part in PARTS]


def named(dataset, splits):
    names = dataset["file_name"][:]
    return {part: [names[row] for row in rows] for part, rows in splits.items()}


def assert_partition(splits, n):
    assert list(splits) == PARTS
    assert sorted(row for rows in splits.values() for row in rows) == list(range(n))


def assert_groups_whole(splits, groups):
    seen = defaultdict(set)
    for part, rows in splits.items():
        for row in rows:
            seen[groups[row]].add(part)
    assert max(map(len, seen.values())) == 1


def random_patients(seed):
    """Images of patients of very unequal size; most patients have one label, some have two."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 5))
    labels, groups = [], []
    for patient in range(int(rng.integers(40, 120))):
        main = patient % classes
        for _ in range(int(rng.integers(1, 12))):
            labels.append(main if rng.random() < 0.9 else int(rng.integers(classes)))
            groups.append(f"P {patient}")
    order = rng.permutation(len(labels))
    return [labels[i] for i in order], [groups[i] for i in order]


# ---- cuts


@pytest.mark.parametrize("seed", range(12))
def test_groups_stay_whole_and_shares_are_kept(seed):
    labels, groups = random_patients(seed)
    dataset = build(labels, patient=groups)
    n = len(labels)
    for labelled in (True, False):
        chosen = dataset if labelled else dataset.remove_columns("label")
        splits = make_splits(chosen, group_column_name="patient", seed=seed)
        assert_partition(splits, n)
        assert_groups_whole(splits, groups)
        tolerance = 0.02 if labelled else 0.005
        assert abs(len(splits["test"]) / n - 0.2) < tolerance
        assert abs(len(splits["validation"]) / n - 0.15 * 0.8) < tolerance
        if labelled:
            for label, count in Counter(labels).items():
                for part, share in (("test", 0.2), ("validation", 0.12)):
                    found = sum(labels[row] == label for row in splits[part])
                    assert abs(found / count - share) < 0.07


@pytest.mark.parametrize("seed", range(6))
def test_close_to_the_best_of_all_choices_of_groups(seed):
    rng = np.random.default_rng(seed)
    count = 9
    sizes_, label_of = rng.integers(1, 15, count), np.arange(count) % 2
    groups = [f"g{i}" for i in range(count) for _ in range(sizes_[i])]
    labels = [int(label_of[i]) for i in range(count) for _ in range(sizes_[i])]
    totals = np.bincount(labels)

    def distance(counts):
        return np.abs(counts - 0.25 * totals).sum()

    best = min(
        distance(counts)
        for choice in range(1, 2**count - 1)
        for inside in [np.array([choice >> i & 1 for i in range(count)], dtype=bool)]
        for counts in [np.bincount(label_of[inside], sizes_[inside], minlength=2)]
        if (counts < totals).all()
    )
    dataset = build(labels, patient=groups)
    splits = make_splits(
        dataset, group_column_name="patient", train_test_split=0.25, train_val_split=0, seed=seed
    )
    found = distance(np.bincount([labels[row] for row in splits["test"]], minlength=2))
    assert found <= best + 0.02 * len(labels)


def test_one_very_large_group():
    groups = ["big"] * 80 + [f"small{i}" for i in range(20)]
    dataset = build(n=100, patient=groups)
    splits = make_splits(dataset, group_column_name="patient", train_val_split=0)
    assert sizes(splits) == [80, 0, 20]


def test_a_label_of_one_group_stays_in_training():
    # cutting off "only" would come closest to 20 % of each label: (0, 0, 6) for (8, 8, 1.2)
    labels = [0, 1] * 40 + [2] * 6
    groups = ["a"] * 40 + ["b"] * 40 + ["only"] * 6
    for seed in range(4):
        splits = make_splits(
            build(labels, p=groups), group_column_name="p", train_val_split=0, seed=seed
        )
        assert sizes(splits) == [46, 0, 40]
        assert set(range(80, 86)) <= set(splits["train"])


@pytest.mark.parametrize("seed", range(4))
def test_without_groups_the_shares_are_exact(seed):
    labels = [0] * 300 + [1] * 100 + [2]
    splits = make_splits(build(labels), seed=seed, train_test_split=0.25, train_val_split=0.2)
    assert_partition(splits, 401)
    assert Counter(labels[row] for row in splits["test"]) == {0: 75, 1: 25}
    assert Counter(labels[row] for row in splits["validation"]) == {0: 45, 1: 15}
    assert 400 in splits["train"]  # the only image of its class


def test_without_labels():
    splits = make_splits(build(n=1000), train_test_split=0.3, train_val_split=0.1)
    assert_partition(splits, 1000)
    assert sizes(splits) == [630, 70, 300]


def test_zero_switches_a_cut_off():
    dataset = build([0, 1] * 50)
    assert sizes(make_splits(dataset, train_test_split=0, train_val_split=0)) == [100, 0, 0]
    assert sizes(make_splits(dataset, train_test_split=0)) == [85, 15, 0]
    assert sizes(make_splits(dataset, train_val_split=0)) == [80, 0, 20]


@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("column", [None, "official"])
def test_order_of_rows_does_not_matter(group, column):
    labels, groups = random_patients(3)
    official = ["test" if i % 5 == 0 else "train" for i in range(len(labels))]
    dataset = build(labels, patient=groups, official=official)
    options = {"group_column_name": group, "split_column": column}
    expected = named(dataset, make_splits(dataset, **options))
    for seed in range(3):
        shuffled = dataset.shuffle(seed=seed)
        assert shuffled["file_name"][:] != dataset["file_name"][:]
        found = make_splits(shuffled, **options)
        assert named(shuffled, found) == expected  # the order inside the parts too
    assert named(dataset, make_splits(dataset, **options)) == expected
    others = [named(dataset, make_splits(dataset, seed=seed, **options)) for seed in (1, 2)]
    assert others[0] != expected != others[1] != others[0]


# ---- splits from a column


def by_column(values, **options):
    dataset = build([i % 2 for i in range(len(values))], part=values)
    return make_splits(dataset, split_column="part", **options)


def rows_of(values, *wanted):
    return [i for i, value in enumerate(values) if value in wanted]


def test_values_of_a_column():
    values = ["train", "train", "val", "test", "test", "val"] * 5
    expected = {
        "train": rows_of(values, "train"),
        "validation": rows_of(values, "val"),
        "test": rows_of(values, "test"),
    }
    assert by_column(values) == expected
    assert by_column(values, validation_split="validation", test_split="test") == expected
    assert by_column(values, validation_split="dev") == expected


def test_the_column_split_is_used_by_itself():
    values = ["train"] * 10 + ["test"] * 4
    dataset = build([0, 1] * 7, split=values)
    splits = make_splits(dataset, train_val_split=0)
    assert splits == {"train": list(range(10)), "validation": [], "test": list(range(10, 14))}


def test_a_column_split_of_one_value_is_no_split():
    dataset = build([0, 1] * 50, split=["train"] * 100)
    assert sizes(make_splits(dataset)) == [68, 12, 20]
    assert sizes(make_splits(dataset, split_column="split")) == [85, 15, 0]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_names_of_validation(name):
    values = ["Training", "Training", name, "Testing"] * 4
    assert by_column(values) == {
        "train": rows_of(values, "Training"),
        "validation": rows_of(values, name),
        "test": rows_of(values, "Testing"),
    }


@pytest.mark.parametrize("name", ["val", "validation"])
def test_several_values_of_training(name):
    values = ["train", "train", name, name, "test", "test"] * 10
    splits = by_column(values, train_split=f"train, {name}", train_val_split=0.25)
    assert splits["test"] == rows_of(values, "test")
    assert sorted(splits["train"] + splits["validation"]) == rows_of(values, "train", name)
    assert sizes(splits) == [30, 10, 20]  # the value is training's, so validation is cut


def test_validation_is_cut_by_groups_when_the_column_has_none():
    labels, groups = random_patients(5)
    part = ["test" if int(group[2:]) % 4 == 0 else "train" for group in groups]
    dataset = build(labels, patient=groups, part=part)
    splits = make_splits(dataset, split_column="part", group_column_name="patient")
    assert_partition(splits, len(labels))
    assert_groups_whole(splits, groups)
    assert splits["test"] == rows_of(part, "test")
    assert abs(len(splits["validation"]) / part.count("train") - 0.15) < 0.03


def test_no_test_value():
    values = ["train", "train", "val", "val"] * 5
    assert by_column(values)["test"] == []
    with pytest.raises(
        ValueError, match=r"--test_split: .*'test'.*'train' \(10 images\), 'val' \(10"
    ):
        by_column(values, test_split="test")


@pytest.mark.parametrize("part", PARTS)
def test_value_that_does_not_exist(part):
    values = ["train", "train", "val", "test"] * 2
    message = rf"--{part}_split: column 'part' has no value 'fold7'.*'train' \(4 images\)"
    with pytest.raises(ValueError, match=message):
        by_column(values, **{f"{part}_split": "fold7"})


def test_one_value_for_two_parts():
    values = ["train", "train", "test", "test"] * 2
    with pytest.raises(ValueError, match="both take the value 'test'"):
        by_column(values, validation_split="test", test_split="test")
    with pytest.raises(ValueError, match="both take the value 'train'"):
        by_column(values, test_split="train")


def test_whole_numbers_as_folds_and_unused_rows(caplog):
    values = [0, 0, 1, 1, 2, 2, 3, 3]
    splits = by_column(values, train_split="0,1", validation_split="2", train_val_split=0)
    assert splits == {"train": [0, 1, 2, 3], "validation": [4, 5], "test": []}
    assert "2 images are not used" in caplog.text


def test_missing_columns():
    dataset = build([0, 1] * 10)
    with pytest.raises(ValueError, match=r"--split_column.*'fold'.*file_name, label"):
        make_splits(dataset, split_column="fold")
    with pytest.raises(ValueError, match=r"--group_column_name.*'patient'.*file_name, label"):
        make_splits(dataset, group_column_name="patient")


# ---- checks


def test_label_that_training_lacks():
    part = ["train"] * 4 + ["val"] * 3 + ["test"] * 2
    dataset = build([0, 1, 0, 1, 0, 2, 2, 0, 1], part=part)
    with pytest.raises(
        ValueError, match="'class2' has 2 images in validation and none in training"
    ):
        make_splits(dataset, split_column="part")
    dataset = build([0, 1, 0, 1, 0, 1, 0, 2, 1], part=part)
    with pytest.raises(ValueError, match="'class2' has 1 images in test and none in training"):
        make_splits(dataset, split_column="part")


def test_training_of_one_class_and_empty_training():
    part = ["train"] * 4 + ["test"] * 2
    with pytest.raises(ValueError, match=r"one class only \(\{'class0': 4\}\)"):
        make_splits(build([0] * 4 + [0] * 2, part=part), split_column="part", train_val_split=0)
    with pytest.raises(ValueError, match="training has none of the 0 images"):
        make_splits(build(n=0, labels=None, x=[]), train_val_split=0, train_test_split=0)


@pytest.mark.parametrize("option", ["train_val_split", "train_test_split"])
@pytest.mark.parametrize("fraction", [-0.1, 1, 15, float("nan")])
def test_fraction_out_of_range(option, fraction):
    with pytest.raises(ValueError, match=f"--{option} is .*from 0 to below 1"):
        make_splits(build([0, 1] * 20), **{option: fraction})


def test_too_few_to_cut():
    with pytest.raises(
        ValueError, match=r"--train_test_split 0\.2: 3 images of 3 classes.*too few"
    ):
        make_splits(build([0, 1, 2]))
    with pytest.raises(ValueError, match=r"--train_val_split 0\.75: 4 images of 2 .*too few"):
        make_splits(build([0, 0, 1, 1]), train_test_split=0, train_val_split=0.75)
    with pytest.raises(ValueError, match="of one group"):
        make_splits(build([0, 1, 0, 1], patient=["a"] * 4), group_column_name="patient")


def test_empty_group_cell():
    dataset = build([0, 1] * 3, patient=["a", "b", "c", None, "d", ""])
    with pytest.raises(ValueError, match=r"empty for 2 of 6.*'00003\.png', '00005\.png'"):
        make_splits(dataset, group_column_name="patient")


def test_leak_of_groups_is_counted(caplog):
    part = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    patient = ["a", "a", "b", "b", "c", "d", "e", "f", "a", "a", "b", "g"]
    dataset = build([0, 1] * 6, part=part, patient=patient)
    with caplog.at_level(logging.WARNING):
        splits = make_splits(dataset, split_column="part", group_column_name="patient")
    assert sizes(splits) == [6, 2, 4]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert (
        "leak between train and test: 2 of the 3 groups of test, with 3 of its 4 images" in message
    )


def test_no_warning_without_a_leak(caplog):
    labels, groups = random_patients(1)
    make_splits(build(labels, patient=groups), group_column_name="patient")
    assert not caplog.records


def test_the_test_part_alone_of_a_column():
    dataset = build([0, 1, 0, 1], part=["test", "test", "none", "test"])
    with pytest.raises(ValueError, match="no value 'train'"):
        make_splits(dataset, split_column="part", check=False)
    splits = make_splits(dataset, split_column="part", train_split="train,val", test_only=True)
    assert splits == {"train": [], "validation": [], "test": [0, 1, 3]}
    with pytest.raises(ValueError, match="no value 'tests'"):
        make_splits(dataset, split_column="part", test_split="tests", test_only=True)
    with pytest.raises(ValueError, match="split column"):
        make_splits(build([0, 1]), test_only=True)


# ---- the file


def test_file_round_trip(tmp_path):
    dataset = build([0, 1] * 20)
    splits = make_splits(dataset)
    path = tmp_path / "new folder" / "splits.json"
    write_splits(path, dataset, splits, {"seed": 0})
    content = json.loads(path.read_text())
    assert content["how"] == {"seed": 0}
    assert {part: content[part] for part in PARTS} == named(dataset, splits)
    assert read_splits(path, dataset) == splits
    shuffled = dataset.shuffle(seed=1)
    assert named(shuffled, read_splits(path, shuffled)) == named(dataset, splits)
    assert os.listdir(path.parent) == ["splits.json"]


def test_writing_is_atomic(tmp_path, monkeypatch):
    dataset = build([0, 1] * 20)
    path = tmp_path / "splits.json"
    write_splits(path, dataset, make_splits(dataset), {})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_splits(path, dataset, make_splits(dataset, seed=1), {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["splits.json"]


def test_images_the_data_set_lacks_or_adds(tmp_path, caplog):
    dataset = build([0, 1] * 20)
    path = tmp_path / "splits.json"
    write_splits(path, dataset, make_splits(dataset), {})
    with pytest.raises(ValueError, match=r"10 of 40 images are not in the data set.* and 5 more"):
        read_splits(path, dataset.select(range(30)))
    assert not caplog.records
    larger = build([0, 1] * 21)
    assert read_splits(path, larger) == read_splits(path, dataset)
    assert "2 of 42 images" in caplog.text
    assert "'00040.png', '00041.png'" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as splits"),
        ("{", "cannot be read as splits"),
        ("[]", "no list of file names under 'train'"),
        ('{"train": ["00000.png"], "validation": []}', "under 'test'"),
        ('{"train": [1], "validation": [], "test": []}', "under 'train'"),
        (
            '{"train": ["00000.png"], "validation": [], "test": ["00000.png"]}',
            r"more than once, '00000\.png'",
        ),
    ],
)
def test_broken_file(content, message, tmp_path):
    path = tmp_path / "splits.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"splits\.json.*{message}"):
        read_splits(path, build([0, 1]))


def test_names_that_are_not_unique(tmp_path):
    dataset = datasets.Dataset.from_dict({"file_name": ["a", "a"]})
    with pytest.raises(ValueError, match="names images twice, 'a'"):
        write_splits(tmp_path / "splits.json", dataset, {"train": [0]}, {})


@pytest.mark.parametrize("group", [None, "patient"])
def test_which_class_is_positive_moves_no_cut(group):
    """`--positive_label` puts its class last: the audit's cut, made without it, is the same."""
    labels = [0, 1, 1, 0, 1, 0, 0, 1] * 6
    patients = [f"p{i // 2}" for i in range(len(labels))]
    first = build(labels, patient=patients)
    turned = build(labels, patient=patients).remove_columns("label")
    feature = datasets.ClassLabel(names=["class1", "class0"])
    turned = turned.add_column("label", [1 - label for label in labels], feature=feature)
    cuts = [make_splits(data, seed=3, group_column_name=group) for data in (first, turned)]
    assert cuts[0] == cuts[1]
