"""Runs of seconds: a tiny model on generated images, started by the scripts' main functions."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

SIZES = (
    "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=48,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=48,distillation_num_prototypes=16,"
    "distillation_head_hidden_size=16,distillation_bottleneck_size=8"
)
MODEL = ["--image_size", "16", "--patch_size", "8", "--config_overrides", SIZES]
TRAINING = ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--seed", "3"]
COUNTS = {"train": (15, 7), "val": (4, 4), "test": (3, 3)}  # of "down" and of "up"


def write_images(root):
    """Split folders of class folders; light below ("down") or above, in noise."""
    rng = np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for label, count in zip(("down", "up"), counts, strict=True):
            for i in range(count):
                pixels = rng.uniform(0, 90, (20, 20))
                pixels[10 * (label == "down") :][:10] += 120
                path = root / split / label / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def run(script, images, output, *options, steps=6):
    """The script on `images` into `output` -> `output`."""
    argv = ["--data_dir", images, "--output_dir", output, "--max_train_steps", steps, *TRAINING]
    if "--model_name_or_path" not in options:
        argv += MODEL
    assert script.main([str(word) for word in [*argv, *options]]) == 0
    return output


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def records(output):
    """The lines of the log."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def digest(output):
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
