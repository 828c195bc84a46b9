"""What the tests of the scripts share: small images, options, and readers of results."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = (
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64"
)
MODEL = ["--image_size", "32", "--patch_size", "8", "--config_overrides", SIZES]
TRAINING = ["--per_device_train_batch_size", "8", "--logging_steps", "2", "--seed", "3"]
PATIENTS = 12


def draw(path, label, seed, mode="L"):
    """Light below (1) or above (0), in noise: learnt in a few steps, and not by brightness."""
    rng = np.random.default_rng(seed)
    channels = 1 if mode == "L" else 3
    pixels = rng.uniform(0, 60, (40, 44, channels))
    pixels[20:] += 120 * label
    pixels[:20] += 120 * (1 - label)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8).squeeze()).save(path)


def read(path):
    return json.loads(Path(path).read_text(), parse_constant=pytest.fail)


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
