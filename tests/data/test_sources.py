import json
import logging
import os

import datasets
import pytest
from PIL import Image

from sssd_hf.data.images import load_image
from sssd_hf.data.sources import column_texts, load_images, require_labels

TABLES = ["csv", "jsonl", "parquet"]


def make(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), i).save(path)


def write_table(folder, kind, rows):
    """One dict a row; a csv is written by hand, so that nothing of ours or pandas' is involved."""
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0])]
        lines += [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def labels_of(dataset):
    names = dataset.features["label"].names
    return {row["file_name"]: names[row["label"]] for row in dataset}


def refused(message, *args, **kwargs):
    with pytest.raises(ValueError, match=message) as caught:
        load_images(*args, **kwargs)
    return str(caught.value)


# ---- folders without a table


def test_class_folders(tmp_path, caplog):
    # file names with split words, deeper folders, upper case, hidden things and other files
    make(tmp_path, "b/train_1.png", "b/test_2.PNG", "a/deep/er/val.jpg", "a/x.tiff", ".h/y.png")
    make(tmp_path, "a/.hidden.png")
    (tmp_path / "a/notes.txt").touch()
    dataset = load_images(tmp_path)
    assert labels_of(dataset) == {
        "a/deep/er/val.jpg": "a",
        "a/x.tiff": "a",
        "b/test_2.PNG": "b",
        "b/train_1.png": "b",
    }
    assert dataset["file_name"][:] == sorted(dataset["file_name"][:])
    assert sorted(dataset.column_names) == ["file_name", "image", "label"]  # no "split"
    assert dataset.features["image"] == datasets.Image(decode=False)
    for row in dataset:
        assert row["image"] == {"path": str(tmp_path / row["file_name"]), "bytes": None}
        assert load_image(row["image"], 1).size == (4, 3)
    assert require_labels(dataset) == ["a", "b"]
    assert "1 files" in caplog.text
    assert "a/notes.txt" in caplog.text


def test_relative_folder_gives_absolute_paths(tmp_path, monkeypatch):
    make(tmp_path, "data/a/1.png", "data/b/1.png")
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "./data/", "data/../data"):
        assert load_images(folder)[0]["image"]["path"] == str(tmp_path / "data/a/1.png")


def test_split_folders(tmp_path):
    make(tmp_path, "Train/a/1.png", "Train/b/1.png", "val/a/1.png", "test/b/1.png")
    dataset = load_images(tmp_path)
    assert {row["file_name"]: row["split"] for row in dataset} == {
        "Train/a/1.png": "train",
        "Train/b/1.png": "train",
        "test/b/1.png": "test",
        "val/a/1.png": "val",
    }
    assert labels_of(dataset)["val/a/1.png"] == "a"
    assert require_labels(dataset) == ["a", "b"]


def test_flat_folder_and_flat_splits_have_no_labels(tmp_path):
    make(tmp_path, "flat/1.png", "flat/2.png", "splits/train/1.png", "splits/test/1.png")
    flat = load_images(tmp_path / "flat")
    assert sorted(flat.column_names) == ["file_name", "image"]
    with pytest.raises(ValueError, match=r"no labels.*--label_column_name.*file_name"):
        require_labels(flat)
    splits = load_images(tmp_path / "splits")
    assert "label" not in splits.column_names
    assert sorted(splits["split"][:]) == ["test", "train"]


def test_one_class(tmp_path):
    make(tmp_path, "covid/1.png", "covid/2.png")
    dataset = load_images(tmp_path)
    with pytest.raises(ValueError, match="one class only, 'covid', expected at least two"):
        require_labels(dataset)


def test_labels_can_be_left_out(tmp_path):
    make(tmp_path, "patient1/1.png", "patient2/1.png", "3.png")
    refused(r"1 of 3 images have no label.*'3\.png'", tmp_path)
    dataset = load_images(tmp_path, label_column_name=None)
    assert "label" not in dataset.column_names
    assert len(dataset) == 3


def test_bad_folders(tmp_path):
    refused(r"gone: does not exist, expected a folder", tmp_path / "gone")
    make(tmp_path, "mixed/train/a/1.png", "mixed/covid/1.png")
    refused(r"1 of 2 images lie beside the split folders.*'covid/1\.png'", tmp_path / "mixed")
    refused(r"1\.png: is a file, expected a folder", tmp_path / "mixed/covid/1.png")
    (tmp_path / "empty/class").mkdir(parents=True)
    (tmp_path / "empty/class/scan.mha").touch()
    refused(r"empty: found no images \(1 other files\).*\.png", tmp_path / "empty")
    make(tmp_path, "nested/train/1.png")
    write_table(tmp_path / "nested/train", "csv", [{"file_name": "1.png"}])
    refused(r"table train/metadata\.csv in a sub-folder.*top", tmp_path / "nested")
    make(tmp_path, "good/a/1.png", "good/b/1.png")
    refused("--label_column_name.*'grade'.*label", tmp_path / "good", label_column_name="grade")


def test_links(tmp_path):
    make(tmp_path, "store/1.png", "data/b/1.png")
    (tmp_path / "data/a").symlink_to(tmp_path / "store")
    (tmp_path / "data/b/loop").symlink_to(tmp_path / "data")
    assert labels_of(load_images(tmp_path / "data")) == {"a/1.png": "a", "b/1.png": "b"}


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_file_name_that_is_not_utf8(tmp_path):
    make(tmp_path, "a/1.png")
    (tmp_path / "a/1.png").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png"))
    refused("not UTF-8", tmp_path)


# ---- folders with a table


@pytest.mark.parametrize("kind", TABLES)
def test_table(kind, tmp_path):
    make(tmp_path, "x/1.png", "x/2.png", "y z/ü,3.png")
    rows = [
        {"file_name": "./x/2.png", "label": "ill", "patient_id": "007", "note": "NA"},
        {"file_name": "x/1.png", "label": "healthy", "patient_id": "08", "note": "nan"},
        {"file_name": '"y z/ü,3.png"', "label": "ill", "patient_id": "1e3", "note": "1.0"},
    ]
    if kind != "csv":
        rows[2]["file_name"] = rows[2]["file_name"].strip('"')
    write_table(tmp_path, kind, rows)
    dataset = load_images(tmp_path, group_column_name="patient_id")
    assert labels_of(dataset) == {"x/2.png": "ill", "x/1.png": "healthy", "y z/ü,3.png": "ill"}
    assert dataset.features["label"].names == ["healthy", "ill"]
    assert dataset["patient_id"][:] == ["007", "08", "1e3"]
    assert dataset["note"][:] == ["NA", "nan", "1.0"]
    assert all(os.path.isfile(row["image"]["path"]) for row in dataset)


@pytest.mark.parametrize("kind", TABLES)
def test_whole_numbers_are_sorted_as_numbers(kind, tmp_path):
    values = [10, 2, 0, 2]
    make(tmp_path, *(f"{i}.png" for i in range(4)))
    write_table(
        tmp_path, kind, [{"file_name": f"{i}.png", "label": v} for i, v in enumerate(values)]
    )
    dataset = load_images(tmp_path)
    assert dataset.features["label"].names == ["0", "2", "10"]
    assert list(labels_of(dataset).values()) == ["10", "2", "0", "2"]


@pytest.mark.parametrize("kind", TABLES)
def test_another_label_column(kind, tmp_path):
    make(tmp_path, "1.png", "2.png")
    rows = [
        {"file_name": "1.png", "label": "x", "grade": "high", "image": "a", "split": "one"},
        {"file_name": "2.png", "label": "x", "grade": "low", "image": "b", "split": "two"},
    ]
    write_table(tmp_path, kind, rows)
    dataset = load_images(tmp_path, label_column_name="grade")
    assert labels_of(dataset) == {"1.png": "high", "2.png": "low"}
    assert dataset["metadata_label"][:] == ["x", "x"]
    assert dataset["metadata_image"][:] == ["a", "b"]
    assert dataset["split"][:] == ["one", "two"]
    assert "grade" not in dataset.column_names
    message = refused(
        "--label_column_name.*'stage'.*columns found", tmp_path, label_column_name="stage"
    )
    assert "grade" in message
    refused("--group_column_name.*'patient'.*grade", tmp_path, group_column_name="patient")
    refused("--label_column_name", tmp_path, label_column_name="file_name")


def test_split_folders_fill_the_split_unless_the_table_has_it(tmp_path):
    make(tmp_path, "train/1.png", "val/2.png")
    write_table(tmp_path, "csv", [{"file_name": "train/1.png"}, {"file_name": "val/2.png"}])
    assert load_images(tmp_path)["split"][:] == ["train", "val"]
    rows = [{"file_name": "train/1.png", "split": "test"}, {"file_name": "val/2.png", "split": "x"}]
    write_table(tmp_path, "csv", rows)
    assert load_images(tmp_path)["split"][:] == ["test", "x"]


@pytest.mark.parametrize("kind", TABLES)
def test_empty_labels(kind, tmp_path):
    make(tmp_path, *(f"{i}.png" for i in range(8)))
    rows = [{"file_name": f"{i}.png", "label": "a" if i == 3 else None} for i in range(8)]
    write_table(tmp_path, kind, rows)
    message = refused("7 of 8 images have no label", tmp_path)
    assert "'0.png', '1.png', '2.png', '4.png', '5.png' and 2 more" in message
    assert len(load_images(tmp_path, label_column_name=None)) == 8
    write_table(tmp_path, kind, [{**row, "label": None} for row in rows])
    assert "label" not in load_images(tmp_path).column_names


def test_empty_groups(tmp_path):
    make(tmp_path, "1.png", "2.png")
    write_table(
        tmp_path, "csv", [{"file_name": "1.png", "p": "7"}, {"file_name": "2.png", "p": ""}]
    )
    refused(
        r"--group_column_name: column 'p' is empty for 1 of 2.*'2\.png'",
        tmp_path,
        group_column_name="p",
    )


@pytest.mark.parametrize("kind", TABLES)
def test_rows_that_do_not_fit_the_folder(kind, tmp_path):
    data = tmp_path / "data"
    make(data, "1.png", "2.png")
    make(tmp_path, "outside.png")
    leaving = ["../outside.png", str(tmp_path / "outside.png"), "a/../../outside.png", "C:\\1.png"]
    for name in [*leaving, "..\\1.png"]:
        write_table(data, kind, [{"file_name": "1.png"}, {"file_name": name}])
        refused("must stay inside the folder", data)
    write_table(data, kind, [{"file_name": f"{i}.png"} for i in range(1, 10)])
    message = refused("7 of 9 images are not there", data)
    assert "'3.png', '4.png', '5.png', '6.png', '7.png' and 2 more" in message
    write_table(
        data, kind, [{"file_name": "1.png"}, {"file_name": "2.png"}, {"file_name": "./1.png"}]
    )
    refused(r"several for '1\.png'", data)
    write_table(data, kind, [{"name": "1.png", "kind": "x"}])
    refused("no column 'file_name', columns found: name, kind", data)
    write_table(data, kind, [{"file_name": "1.png", "a": "x"}, {"file_name": None, "a": "y"}])
    refused("'file_name' is empty or no text in row 2", data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'file_name'"),
        (b"file_name,label\n", "has no rows"),
        (b"file_name;label\n1.png;a\n", "columns found: file_name;label.*separated by commas"),
        (b"file_name,label\n1.png,a,b\n", "line 2 has 3 cells, the header has 2"),
        (b"file_name,label\n1.png\n", "line 2 has 1 cells, the header has 2"),
        (b"file_name,label,label\n1.png,a,b\n", "'label' occur twice"),
        (b"file_name,label\n1.png,\xfc\n", "cannot be read as csv.*UTF-8"),
        (b'file_name,label\n1.png,"a\n', "cannot be read as csv"),
    ],
)
def test_broken_csv(content, message, tmp_path):
    make(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    refused(rf"(?s)metadata\.csv.*{message}", tmp_path)


def test_csv_from_a_spreadsheet(tmp_path):
    make(tmp_path, "1.png", "2.png")
    content = "\ufefffile_name, label \r\n1.png, ill \r\n\r\n2.png,well\r\n"
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    assert labels_of(load_images(tmp_path)) == {"1.png": "ill", "2.png": "well"}


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"file_name": 3}\n'])
def test_broken_jsonl(content, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(content)
    refused(r"metadata\.jsonl", tmp_path)


def test_broken_parquet_and_two_tables(tmp_path):
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 nothing else")
    refused(r"metadata\.parquet: cannot be read as parquet", tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name\n")
    refused(r"found metadata\.csv, metadata\.parquet, expected one table", tmp_path)


@pytest.mark.parametrize("label", [1.5, [1, 0], {"a": 1}])
def test_labels_of_another_kind(label, tmp_path):
    make(tmp_path, "1.png", "2.png")
    rows = [{"file_name": "1.png", "label": label}, {"file_name": "2.png", "label": label}]
    write_table(tmp_path, "jsonl", rows)
    refused("found the label .*, expected one text or whole number", tmp_path)


def test_columns_of_mixed_kinds(tmp_path):
    make(tmp_path, "1.png", "2.png")
    rows = [{"file_name": "1.png", "age": 3}, {"file_name": "2.png", "age": "old"}]
    write_table(tmp_path, "jsonl", rows)
    refused("column 'age' mixes kinds", tmp_path)


# ---- a table alone


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_paths_anywhere(kind, tmp_path):
    make(tmp_path, "images/1.png", "images/2.png", "lists/own.png", "images/left out.png")
    names = ["../images/1.png", str(tmp_path / "images/2.png"), "own.png"]
    rows = [{"file_name": n, "diagnosis": d, "split": "train"} for n, d in zip(names, "aba")]
    table = write_table(tmp_path / "lists", kind, rows).rename(tmp_path / f"lists/first.{kind}")
    dataset = load_images(table, label_column_name="diagnosis", group_column_name="split")
    assert labels_of(dataset) == dict(zip(names, "aba"))
    assert dataset["split"][:] == ["train"] * 3
    for row, value in zip(dataset, (0, 1, 2)):  # what `make` painted them with
        assert os.path.isabs(row["image"]["path"])
        assert load_image(row["image"], 1).getpixel((0, 0)) == value


def test_the_column_of_paths(tmp_path):
    make(tmp_path, "1.png", "2.png")
    table = tmp_path / "t.csv"
    table.write_text("image,scan\n1.png,2.png\n")
    assert load_images(table)["file_name"][:] == ["1.png"]
    assert load_images(table, image_column_name="scan")["file_name"][:] == ["2.png"]
    table.write_text("image,file_name\n1.png,2.png\n")
    dataset = load_images(table)
    assert dataset["file_name"][:] == ["2.png"]
    assert dataset["metadata_image"][:] == ["1.png"]
    table.write_text("x\n1.png\n")
    refused(r"no column 'image', columns found: x.*--image_column_name", table)
    refused(r"no column 'y', columns found: x", table, image_column_name="y")
    table.write_text("file_name\n1.png\ngone.png\n")
    refused(r"t\.csv: 1 of 2 images are not there: 'gone\.png'", table)


def test_a_table_in_its_folder_does_not_lead_out(tmp_path):
    """A downloaded folder is not to choose files outside of it; a table that was named may."""
    make(tmp_path, "outside.png", "data/1.png")
    path = write_table(tmp_path / "data", "csv", [{"file_name": "../outside.png"}])
    refused("must stay inside the folder", tmp_path / "data")
    assert len(load_images(path)) == 1


# ---- the Hub, as a local folder of parquet files


@pytest.fixture
def hub(tmp_path):
    """A function that writes splits of rows as parquet and loads them by their folder's name."""

    def load(splits, features=None, **options):
        folder = tmp_path / "hub"
        for name, rows in splits.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            part = datasets.Dataset.from_list(rows, features=features)
            part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
        return load_images(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"), **options)

    return load


def hub_features(**more):
    return datasets.Features({"image": datasets.Image(), "label": datasets.Value("string"), **more})


def rows(*labels, **more):
    return [{"image": Image.new("L", (4, 3), 9), "label": label, **more} for label in labels]


def test_hub_splits(hub):
    dataset = hub({"train": rows("b", "a", "b"), "test": rows("a")}, hub_features())
    assert dataset["split"][:] == ["train", "train", "train", "test"]
    assert len(set(dataset["file_name"][:])) == 4
    assert dataset["file_name"][3] == "test/0000000"
    assert list(labels_of(dataset).values()) == ["b", "a", "b", "a"]
    assert dataset.features["image"] == datasets.Image(decode=False)
    assert load_image(dataset[0]["image"], 1).getpixel((0, 0)) == 9
    assert require_labels(dataset) == ["a", "b"]


def test_hub_class_labels_keep_their_order(hub):
    features = hub_features(label=datasets.ClassLabel(names=["z", "a", "never"]))
    dataset = hub({"train": rows(1, 0)}, features)
    assert require_labels(dataset) == ["z", "a", "never"]
    assert list(labels_of(dataset).values()) == ["a", "z"]


def test_hub_hidden_labels(hub):
    features = hub_features(label=datasets.ClassLabel(names=["z", "a"]))
    with pytest.raises(ValueError, match=r"1 of 3 images have no label.*test/0000000"):
        hub({"train": rows(1, 0), "test": rows(-1)}, features)


def test_hub_columns(hub):
    features = hub_features(
        scan=datasets.Image(), split=datasets.Value("string"), file_name=datasets.Value("string")
    )
    own = rows("a", "b", scan=Image.new("L", (2, 2), 5), split="mine", file_name="same")
    splits = {"train": own, "test": own}
    dataset = hub(splits, features, image_column_name="scan")
    assert dataset["split"][:] == ["mine"] * 4
    assert dataset["metadata_file_name"][:] == ["same"] * 4  # not unique: rows are named anew
    assert len(set(dataset["file_name"][:])) == 4
    assert load_image(dataset[0]["image"], 1).size == (2, 2)
    assert isinstance(dataset[0]["metadata_image"], dict)  # reading a row decodes no other image
    with pytest.raises(ValueError, match=r"--image_column_name: there is no column 'x'.*scan"):
        hub(splits, features, image_column_name="x")
    with pytest.raises(ValueError, match=r"--label_column_name: there is no column 'x'.*scan"):
        hub(splits, features, label_column_name="x")


def test_without_patients_the_error_says_how_to_go_on(hub):
    dataset = hub({"train": rows("a", "b")}, hub_features())
    with pytest.raises(ValueError, match=r"no column 'patient_id'.*give --group_column_name ''"):
        column_texts(dataset, "patient_id", "--group_column_name")
    with pytest.raises(ValueError, match="no column 'part'") as caught:
        column_texts(dataset, "part", "--split_column")
    assert "group" not in str(caught.value)


def test_hub_column_that_holds_no_images(hub):
    features = datasets.Features({"image": datasets.Value("int64")})
    with pytest.raises(ValueError, match=r"--image_column_name 'image': found .*int64"):
        hub({"train": [{"image": 1}]}, features)


def test_hub_cannot_be_reached(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    refused("--dataset_name someone/x: cannot be loaded.*no network", dataset_name="someone/x")


def test_hub_options_are_passed_on(monkeypatch):
    calls = []

    def fail(*args, **kwargs):
        calls.append((args, kwargs))
        raise OSError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    refused(
        "cannot be loaded",
        dataset_name="a/b",
        dataset_config_name="c",
        dataset_revision="d",
        cache_dir="e",
    )
    assert calls == [(("a/b",), {"name": "c", "revision": "d", "cache_dir": "e"})]


def test_exactly_one_source(tmp_path):
    refused("found neither, expected exactly one")
    refused("found both, expected exactly one", tmp_path, "name")


def test_nothing_is_logged_about_a_clean_folder(tmp_path, caplog):
    make(tmp_path, "a/1.png", "b/1.png")
    with caplog.at_level(logging.WARNING):
        load_images(tmp_path)
    assert not caplog.records
