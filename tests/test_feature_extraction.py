"""The encoder in transformers' `pipeline("image-feature-extraction")`."""

import numpy as np
import pytest
import torch
from model_helpers import largest_difference, randomize, tiny_config
from PIL import Image
from transformers import ViTImageProcessor, pipeline

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining, SSSDModel
from sssd_hf.cli.common import save_checkpoint

STATISTICS = [0.4, 0.4, 0.4], [0.2, 0.2, 0.2]


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for mode, shape in (("L", (40, 30)), ("RGB", (25, 50, 3))):
        paths.append(tmp_path / f"{mode}.png")
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(paths[-1])
    return [str(path) for path in paths]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [SSSDModel, SSSDForPreTraining, SSSDForImageClassification])
def test_features_are_the_encoder_s_output(tmp_path, files, kind, channels, pooling):
    model = randomize(kind(tiny_config(num_channels=channels, pooling=pooling))).eval()
    save_checkpoint(model, tmp_path / "model", STATISTICS)
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "model"), device="cpu")
    assert type(extract.model) is SSSDModel
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=STATISTICS[0], image_std=STATISTICS[1]
    )
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        wanted = model.base_model(processor(pictures, return_tensors="pt").pixel_values)
    tokens = torch.cat(extract(files, return_tensors=True))
    assert largest_difference(tokens, wanted.last_hidden_state) < 1e-4
    pooled = torch.tensor(extract(files, pool=True))[:, 0]  # a list for each image
    assert largest_difference(pooled, wanted.pooler_output) < 1e-4
    chosen = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)
    assert largest_difference(pooled, chosen) < 1e-4
    assert largest_difference(pooled[0], pooled[1]) > 0.01
