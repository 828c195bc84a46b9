"""A study in small: its images, its recipe, and how it is started."""

import csv

import numpy as np
import yaml
from PIL import Image
from tiny_runs import SIZES

from sssd_hf.cli import reproduce


def draw(path, light, seed):
    pixels = np.random.default_rng(seed).uniform(0, 90, (20, 20))
    pixels[10 * light :][:10] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_images(root):
    """24 images of 12 patients with two draws of a split, and beside them another set, of which
    two images are copies of images of the first."""
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


def write_recipe(path):
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
    argv += ["--results_dir", root / "results", "--cards_dir", root / "cards"]
    argv += ["--report", "false", *options]
    assert reproduce.main([str(word) for word in argv]) == 0


def changed(recipe, folder, change):
    """A recipe of the same name, with other content."""
    content = yaml.safe_load(recipe.read_text())
    change(content)
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
