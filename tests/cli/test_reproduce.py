"""A study in small: its runs, their records, and the tables made of these."""

import csv
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny_runs import SIZES

from sssd_hf.cli import reproduce
from sssd_hf.cli.external import write_external_table
from sssd_hf.cli.study_records import digest, draw_of, read_records

pytestmark = pytest.mark.usefixtures("no_figures")


def draw(path, light, seed):
    pixels = np.random.default_rng(seed).uniform(0, 90, (20, 20))
    pixels[10 * light :][:10] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images of 12 patients with two draws of a split, and beside them another set, of which
    two images are copies of images of the first."""
    root = tmp_path_factory.mktemp("study")
    rows = []
    for i in range(24):
        draw(root / "target" / f"scan_{i:02d}.png", i // 2 % 2, i)
        parts = ["test" if i // 2 % 3 == k else "train" for k in range(2)]
        rows.append([f"scan_{i:02d}.png", ["up", "down"][i // 2 % 2], f"Smith{i // 2}", *parts])
    with open(root / "target" / "metadata.csv", "w", newline="") as file:
        head = ["file_name", "label", "patient", "draw_0", "draw_1"]
        csv.writer(file).writerows([head, *rows])
    for i in range(6):
        draw(root / "other" / f"{i}.png", 0, 100 + i)
    for i, name in ((0, "copy_of_test"), (4, "copy_of_train")):
        source = root / "target" / f"scan_{i:02d}.png"
        (root / "other" / f"{name}.png").write_bytes(source.read_bytes())
    return root / "target"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    shape = {"image_size": 16, "patch_size": 8, "config_overrides": SIZES}
    content = {
        "common": {
            "group_column_name": "patient",
            "train_split": "train",
            "train_val_split": 0,
            **shape,
        },
        "pretrain": {"max_train_steps": 3, "per_device_train_batch_size": 4},
        "finetune": {"max_train_steps": 3, "metric_for_best_model": "last"},
        "evaluate": {"num_resamples": 20},
        "reproduce": {
            "data": "TINY",
            "protocols": {
                "random": {"title": "draws", "columns": ["draw_0", "draw_1"], "seeds": [0]}
            },
            "variants": {
                "stable": {"title": "ours"},
                "scratch": {"title": "random weights", "skip_pretraining": True},
                "external": {"external": ["other"]},
            },
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(recipe, images, root, *options):
    argv = ["--recipe", recipe, "--data_dir", images, "--output_dir", root / "runs"]
    argv += ["--results_dir", root / "results", *options]
    assert reproduce.main([str(word) for word in argv]) == 0


@pytest.fixture(scope="module")
def study(recipe, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    start(recipe, images, root)
    return root


def test_each_run_leaves_a_record(study):
    records = read_records(study / "results", "tiny")
    places = {("draw_0", 0), ("draw_1", 0)}
    assert {variant: set(found) for variant, found in records.items()} == {
        "stable": places,
        "scratch": places,
        "external": places,
    }
    scratch = records["scratch"]["draw_0", 0]
    assert set(scratch["minutes"]) == set(scratch["options"]) == {"finetune"}
    assert records["stable"]["draw_0", 0]["options"]["pretrain"]["max_train_steps"] == 3
    assert records["stable"]["draw_1", 0]["options"]["finetune"]["group_column_name"] == "patient"


def test_a_record_is_what_the_model_said(study):
    record = read_records(study / "results", "tiny")["stable"]["draw_1", 0]
    place = study / "runs/stable/draw_1-seed_0/draw_1/evaluate/predictions.csv"
    with open(place, newline="") as file:
        rows = {digest("TINY", row["file_name"]): row for row in csv.DictReader(file)}
    found = draw_of(record)
    assert set(found.file_names) == set(rows)
    for name, label, probability, group in zip(
        found.file_names, found.labels, found.probabilities, found.groups
    ):
        assert rows[name]["label"] == record["labels"][label]
        assert float(rows[name]["probability_up"]) == pytest.approx(probability[1], abs=1e-5)
        assert digest("TINY", rows[name]["group"]) == group
    assert record["metrics"]["roc_auc"] == pytest.approx(
        roc_auc_score(found.labels, found.probabilities[:, 1])
    )


def test_a_record_names_nobody(study, images):
    for path in (study / "results").rglob("*.json"):
        text = path.read_text()
        for private in ("Smith", "scan_", str(images), str(study)):
            assert private not in text


def test_tables_are_of_the_records(study):
    text = (study / "results/tiny.md").read_text()
    records = read_records(study / "results", "tiny")
    for variant, title in (("stable", "ours"), ("scratch", "random weights")):
        values = [100 * record["metrics"]["accuracy"] for record in records[variant].values()]
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} "))
        mean, spread = re.search(r"\| 2 \| ([\d.]+) ± ([\d.]+)", row).groups()
        assert float(mean) == pytest.approx(np.mean(values), abs=0.051)
        assert float(spread) == pytest.approx(np.std(values, ddof=1), abs=0.051)
    difference = np.mean([
        records["stable"][place]["metrics"]["accuracy"]
        - records["scratch"][place]["metrics"]["accuracy"]
        for place in records["stable"]
    ])  # fmt: skip
    row = next(line for line in text.splitlines() if line.startswith("| stable - scratch | 2 "))
    assert float(row.split("|")[3]) == pytest.approx(100 * difference, abs=0.051)


def test_what_is_there_is_not_run_again(study, recipe, images, monkeypatch):
    def refuse(*args):
        raise AssertionError("a run was started")

    monkeypatch.setattr(reproduce.cross_validate, "main", refuse)
    start(recipe, images, study)
    path = study / "results/tiny/stable/draw_0-seed_0.json"
    text = path.read_text()
    path.unlink()
    start(recipe, images, study, "--tables_only", "true")
    assert "| ours | 1 of 2 |" in (study / "results/tiny.md").read_text()
    path.write_text(text)


def test_copies_of_test_images_are_not_pretrained_on(images, tmp_path):
    path = tmp_path / "table" / "images.csv"
    counts = write_external_table(path, images, "draw_0", "train", [images.parent / "other"])
    assert counts == {"target": 16, "other": 7, "other, copies left out": 1}
    with open(path, newline="") as file:
        names = [row["file_name"].rsplit("/", 1)[1] for row in csv.DictReader(file)]
    assert "copy_of_test.png" not in names
    assert "copy_of_train.png" in names
    assert "scan_00.png" not in names  # a test image itself


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "best"], "the plan has stable"),
        (["--protocols", "official"], "the plan has random"),
    ],
)
def test_unknown_names(options, message, recipe, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(recipe, images, tmp_path, *options)


def test_values_of_a_plan_stay_as_they_are():
    options = {
        "positive_label": "CT_COVID",
        "skip_pretraining": True,
        "images": ["A", "b"],
        "x": None,
    }
    assert reproduce._words(options) == [
        "--positive_label", "CT_COVID", "--skip_pretraining", "true", "--images", "A", "b",
    ]  # fmt: skip


def test_a_recipe_without_a_plan(tmp_path, images):
    path = tmp_path / "plain.yaml"
    path.write_text("common: {seed: 1}")
    with pytest.raises(ValueError, match="section reproduce"):
        start(path, images, tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        start(tmp_path / "absent.yaml", images, tmp_path)


def test_a_broken_record_is_named(study, tmp_path):
    folder = tmp_path / "tiny" / "stable"
    folder.mkdir(parents=True)
    (folder / "draw_0-seed_0.json").write_text(json.dumps({"split": "draw_0"}))
    with pytest.raises(ValueError, match="no record"):
        read_records(tmp_path, "tiny")
