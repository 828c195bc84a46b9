"""The baselines of a study, on images whose label is the half that is light."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from sssd_hf.cli import reproduce
from sssd_hf.cli.simple_runs import KINDS, run_simple
from sssd_hf.evaluation.baselines import thumbnail_baselines, thumbnail_scores, thumbnails

pytestmark = pytest.mark.usefixtures("no_figures")


def write_set(root, count=40):
    """Light above or below; files of one class are larger. Two images in five are for testing."""
    rows = []
    for i in range(count):
        pixels = np.random.default_rng(i).uniform(0, 90, (32 + 8 * (i % 2), 32))
        half = len(pixels) // 2
        pixels[: half if i % 2 else None][-half:] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"scan_{i:02d}.png")
        part = "test" if i % 5 < 2 else "train"
        rows.append([f"scan_{i:02d}.png", ["down", "up"][i % 2], f"Smith{i}", part])
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "patient", "draw"], *rows])
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("halves"))


def words(images, output, *more):
    options = ["--data_dir", images, "--split_column", "draw", "--train_val_split", 0]
    options += ["--image_size", 32, "--group_column_name", "patient", "--output_dir", output]
    options += ["--per_device_train_batch_size", 8, "--num_train_epochs", 6, *more]
    return [str(word) for word in options]


@pytest.mark.parametrize("kind", KINDS)
def test_each_baseline_tells_the_halves_apart(kind, images, tmp_path):
    found = run_simple(kind, words(images, tmp_path, "--learning_rate", 1e-3))
    shares = found["probabilities"]
    assert found["labels"] == ["down", "up"]
    assert found["num_train_images"] == 24
    assert shares.shape == (16, 2)
    assert np.allclose(shares.sum(1), 1)
    assert sorted(found["images"]) == [f"scan_{i:02d}.png" for i in range(40) if i % 5 < 2]
    for name, group, truth in zip(found["images"], found["groups"], found["truth"]):
        number = int(name[5:7])
        assert (group, truth) == (f"Smith{number}", number % 2)
    assert np.mean(shares.argmax(1) == found["truth"]) == 1.0


def test_a_resnet_depends_on_its_seed_alone(images, tmp_path):
    def shares(seed):
        more = "--seed", seed, "--max_train_steps", 2
        return run_simple("resnet18", words(images, tmp_path, *more))["probabilities"]

    assert np.array_equal(shares(3), shares(3))
    assert not np.allclose(shares(3), shares(4), atol=1e-3)


def test_a_resnet_refuses_what_it_would_not_heed(images, tmp_path):
    with pytest.raises(ValueError, match="--cutmix_alpha is not for it"):
        run_simple("resnet18", words(images, tmp_path, "--cutmix_alpha", 1.0))


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 1, 32, 32), dtype=np.uint8)
    labels = np.arange(60) % 3
    pixels[labels == 1, :, :16] //= 2
    train, test = slice(0, 40), slice(40, 60)
    scores = thumbnail_scores(pixels[train], labels[train], pixels[test])
    scaler = StandardScaler().fit(thumbnails(pixels[train]))
    ridge = RidgeClassifierCV(alphas=np.logspace(0, 6, 13))
    ridge.fit(scaler.transform(thumbnails(pixels[train])), labels[train])
    expected = ridge.decision_function(scaler.transform(thumbnails(pixels[test])))
    assert np.allclose(scores["ridge"], expected)
    for i, image in enumerate(scaler.transform(thumbnails(pixels[test]))):
        known = scaler.transform(thumbnails(pixels[train]))
        nearest = labels[train][np.linalg.norm(known - image, axis=1).argmin()]
        assert scores["nearest_neighbor"][i].argmax() == nearest
    found = thumbnail_baselines(pixels[train], labels[train], pixels[test], labels[test])
    assert found["ridge_accuracy"] == np.mean(expected.argmax(1) == labels[test])
    with pytest.raises(ValueError, match="one class only"):
        thumbnail_scores(pixels[train], np.ones(40, int), pixels[test])


def test_a_study_has_baselines_beside_its_models(images, tmp_path):
    recipe = tmp_path / "study.yaml"
    content = {
        "common": {
            "group_column_name": "patient", "train_split": "train", "train_val_split": 0,
            "image_size": 32,
        },
        "finetune": {"max_train_steps": 2, "per_device_train_batch_size": 8},
        "reproduce": {
            "data": "HALVES",
            "protocols": {"random": {"title": "draws", "columns": ["draw"], "seeds": [0]}},
            "variants": {
                "ridge": {"title": "ridge on thumbnails", "baseline": "ridge"},
                "resnet18": {
                    "title": "ResNet-18", "baseline": "resnet18", "learning_rate": 1e-3,
                    "mixed_precision": "bf16",  # another one than of the run before
                },
            },
        },
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))

    def start(*more):
        argv = ["--recipe", recipe, "--data_dir", images, "--output_dir", tmp_path / "runs"]
        argv += ["--results_dir", tmp_path / "results", *more]
        return reproduce.main([str(word) for word in argv])

    assert start() == 0
    paths = sorted((tmp_path / "results/study").rglob("*.json"))
    assert (tmp_path / "results/cards/study.md").is_file()
    assert [path.parent.name for path in paths] == ["resnet18", "ridge"]
    for path in paths:
        text = path.read_text()
        assert "Smith" not in text
        assert "scan_" not in text
        assert str(images) not in text
    resnet, ridge = (json.loads(path.read_text()) for path in paths)
    assert resnet["options"]["finetune"]["learning_rate"] == 1e-3
    assert ridge["metrics"]["accuracy"] == 1.0
    assert len(ridge["images"]) == 16
    written = [path.stat().st_mtime_ns for path in paths]
    assert start() == 0  # nothing is done again
    assert [path.stat().st_mtime_ns for path in paths] == written
    table = (tmp_path / "results" / "study.md").read_text()
    assert "| ridge on thumbnails | 1 | 100.0 |" in table
    assert "| ResNet-18 | 1 |" in table
    # a record of other options is refused
    content["reproduce"]["variants"]["resnet18"]["learning_rate"] = 1e-4
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=r"resnet18.*learning_rate"):
        start()
    paths[0].unlink()  # the ridge's training has no learning rate, and its record stays good
    assert start("--variants", "ridge") == 0
    content["reproduce"]["variants"]["ridge"]["baseline"] = "oracle"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="no baseline 'oracle'; there are ridge"):
        start()


@pytest.mark.parametrize("kind", ["ridge", "nearest_neighbor", "file_facts"])
def test_a_class_without_training_images_has_its_column(kind, tmp_path):
    """And no share: the columns are those of all names, "never" the second of them."""
    write_set(tmp_path)
    table = (tmp_path / "metadata.csv").read_text() + "\n"
    table = table.replace(",up,", ",upward,").replace("\r", "")
    Image.new("L", (32, 32)).save(tmp_path / "other.png")
    (tmp_path / "metadata.csv").write_text(table + "other.png,never,Else,unused\n")
    found = run_simple(kind, words(tmp_path, tmp_path / "out"))
    assert found["labels"] == ["down", "never", "upward"]
    assert found["probabilities"].shape == (16, 3)
    assert not found["probabilities"][:, 1].any()
    assert np.mean(found["probabilities"].argmax(1) == found["truth"]) == 1.0
