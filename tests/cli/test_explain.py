"""The figures of an evaluation, from a model and decoded images to the files."""

import numpy as np
import torch
from PIL import Image

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.batches import predict_probabilities
from sssd_hf.cli.explain import write_explanations
from sssd_hf.data.cache import Images

STATISTICS = ([0.5] * 3, [0.25] * 3)
NAMES = ["clear", "opacity"]


def tiny_evaluation(size=32):
    torch.manual_seed(0)
    config = SSSDConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_channels=1, num_labels=2, initializer_range=1.0,
    )  # fmt: skip
    model = SSSDForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (10, 1, size, size), dtype=torch.uint8, generator=generator)
    images = Images(torch.arange(10), None, pixels)
    probabilities = predict_probabilities(model, images, STATISTICS, 4)
    return model, images, probabilities


def test_errors_and_examples_are_drawn_and_listed(tmp_path):
    model, images, probabilities = tiny_evaluation(size=40)  # made the model's size on the way
    labels = probabilities.argmax(1)
    labels[[2, 5, 7]] = 1 - labels[[2, 5, 7]]
    files = [f"images/{i}.png" for i in range(10)]
    facts = write_explanations(
        model, images, STATISTICS, labels, probabilities, files, NAMES, tmp_path / "figures", 2
    )
    certainty = probabilities.max(1)
    wrong = sorted([2, 5, 7], key=lambda i: -certainty[i])
    assert [fact["file_name"] for fact in facts["errors"]] == [files[i] for i in wrong[:2]]
    assert facts["num_errors"] == 3
    for fact in facts["errors"]:
        i = files.index(fact["file_name"])
        assert fact["label"] == NAMES[labels[i]] != fact["predicted"]
        assert fact["probability"] == certainty[i]
    assert facts["examples"]
    assert all(fact["label"] == fact["predicted"] for fact in facts["examples"])
    assert facts["figures"] == ["errors.png", "examples.png"]
    for name in facts["figures"]:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert picture.width == 1800
    assert -1 <= facts["randomisation"]["all_layers_correlation"] <= 1
    assert facts["randomisation"]["num_images"] == len(facts["errors"] + facts["examples"])


def test_without_errors_there_is_no_figure_of_them_nor_an_old_one(tmp_path):
    model, images, probabilities = tiny_evaluation()
    (tmp_path / "errors.png").write_bytes(b"of a run before")
    facts = write_explanations(
        model, images, STATISTICS, probabilities.argmax(1), probabilities, list("abcdefghij"),
        NAMES, tmp_path, 4,
    )  # fmt: skip
    assert facts["num_errors"] == 0
    assert facts["errors"] == []
    assert facts["figures"] == ["examples.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["examples.png"]


def test_three_channels_are_drawn_in_colour(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "sssd_hf.cli.explain.plot_explanations", lambda images, *_: drawn.append(images)
    )
    model, images, probabilities = tiny_evaluation()
    images = Images(images.rows, None, images.pixels.expand(-1, 3, -1, -1).contiguous())
    write_explanations(
        model, images, STATISTICS, probabilities.argmax(1), probabilities, list("abcdefghij"),
        NAMES, tmp_path, 4,
    )  # fmt: skip
    assert drawn[0].shape[1:] == (32, 32, 3)
    assert np.array_equal(drawn[0][..., 0], drawn[0][..., 2])
