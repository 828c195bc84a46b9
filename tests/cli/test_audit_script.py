"""scripts/audit.py from options to files and exit status."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "data"))
from planted_images import COUNTS, clean_folder, planted_folder

from sssd_hf.cli import audit


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean") / "set"
    clean_folder(root, 30)
    return root


def run(root, output, *options):
    status = audit.main(["--data_dir", str(root), "--output_dir", str(output), *options])
    text = (Path(output) / "audit.json").read_text()
    return status, json.loads(text, parse_constant=pytest.fail)


def kinds(result):
    return {one["kind"] for one in result["findings"]}


PATIENTS = ("--group_column_name", "patient_id")


def test_report_of_planted_problems(planted, tmp_path, capsys):
    status, result = run(planted, tmp_path, *PATIENTS)
    assert status == 0  # nothing was to fail
    leaks = [one["numbers"] for one in result["findings"] if one["kind"] == "leakage"]
    assert {(one["part"], one["by"]): one["images"] for one in leaks} == COUNTS
    assert {"label_conflict", "unreadable", "duplicates"} <= kinds(result)
    text = (tmp_path / "audit.txt").read_text()
    assert text in capsys.readouterr().out
    assert "images/same_bytes.png" in text
    assert text.index("CRITICAL") < text.index("WARNING") < text.index("NOTE")
    assert "Not checked" not in text
    pair = result["pairs"][0]
    assert {pair["first"]["label"], pair["second"]["label"]} == {"clear", "opacity"}
    assert pair["exact"]
    assert result["num_pairs"] == 8 - 1  # of p0001 to p0007, one each
    with Image.open(tmp_path / "pairs.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize("fail_on", ["leakage", "label_conflict, leakage", "unreadable", "any"])
def test_fail_on_gives_status_1(planted, tmp_path, fail_on, capsys):
    status, result = run(planted, tmp_path, *PATIENTS, "--fail_on", fail_on, "--max_pairs", "0")
    assert status == 1
    assert result["failed"]
    assert f"--fail_on {fail_on}" in capsys.readouterr().out
    assert not (tmp_path / "pairs.png").exists()


def test_a_clean_set_passes(clean, tmp_path):
    wanted = "leakage,label_conflict,unreadable,duplicates"
    status, result = run(clean, tmp_path, *PATIENTS, "--fail_on", wanted)
    assert status == 0
    assert kinds(result) <= {"class_balance", "shortcut"}
    assert result["shortcuts"]["part"] == "test"
    assert not (tmp_path / "pairs.png").exists()


def test_unknown_kinds_are_refused(clean, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(clean, tmp_path, "--fail_on", "leaks")
    assert stop.value.code == 2
    assert "leaks is no kind of finding; expected of leakage" in capsys.readouterr().err


def test_thresholds_are_options(planted, tmp_path):
    _, result = run(planted, tmp_path, "--near_correlation", "1", "--near_hash_distance", "0")
    leaks = [one["numbers"] for one in result["findings"] if one["kind"] == "leakage"]
    assert {one["by"] for one in leaks} == {"exact"}


def folder_of(root, classes, per_class=12):
    """Class folders of noise, without a table; "" puts the images into the folder itself."""
    for name in classes:
        for i in range(per_class):
            rng = np.random.default_rng([i, len(name)])
            path = root / name / f"{i:02d}{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return root


def test_without_splits_they_are_cut_as_in_training(tmp_path):
    status, result = run(folder_of(tmp_path / "set", ["a", "bb"]), tmp_path / "out")
    assert status == 0
    sizes = {part: sum(counts.values()) for part, counts in result["images"].items()}
    assert sum(sizes.values()) == 24
    assert set(sizes) == {"train", "validation", "test"}
    assert kinds(result) <= {"class_balance", "shortcut"}


def test_without_labels(tmp_path):
    status, result = run(folder_of(tmp_path / "set", [""]), tmp_path / "out", "--fail_on", "any")
    assert status == 0
    assert result["shortcuts"] == {"skipped": "the images have no labels"}
    text = (tmp_path / "out" / "audit.txt").read_text()
    assert "Labels: there are none." in text
    assert "--group_column_name" in text


def test_one_class(tmp_path):
    root = folder_of(tmp_path / "set", ["a"])
    status, result = run(root, tmp_path / "out", "--fail_on", "class_balance")
    assert status == 1
    assert "one class, a" in result["findings"][0]["text"]
    assert result["shortcuts"] == {"skipped": "training has fewer than two classes"}


def test_no_cut_at_all_leaves_one_part(tmp_path):
    root = folder_of(tmp_path / "set", ["a", "bb"])
    cuts = ("--train_val_split", "0", "--train_test_split", "0")
    _, result = run(root, tmp_path / "out", *cuts)
    assert list(result["images"]) == ["train"]
    assert "neither a test" in result["shortcuts"]["skipped"]


def test_everything_unreadable(tmp_path):
    root = tmp_path / "set"
    rows = []
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
        rows.append(path)
    status, result = run(root, tmp_path / "out", "--fail_on", "unreadable")
    assert status == 1
    assert "20 of 20" in next(
        one["text"] for one in result["findings"] if one["kind"] == "unreadable"
    )


def test_grey_colour_and_alpha_of_one_picture_are_one(tmp_path):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8))
        for mode, split in (("L", "train"), ("RGB", "val"), ("RGBA", "test")):
            picture.convert(mode).save(root / f"images/{i}{mode}.png")
            rows.append((f"images/{i}{mode}.png", "ab"[i % 2], split))
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "split"), *rows])
    _, result = run(root, tmp_path / "out")
    leaks = [one["numbers"] for one in result["findings"] if one["kind"] == "leakage"]
    assert [(one["part"], one["by"], one["images"]) for one in leaks] == [
        ("validation", "exact", 12),
        ("test", "exact", 12),
    ]
