"""Which images are shown, and what an overlay looks like."""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from sssd_hf.evaluation.overlays import (
    COLOURS,
    STRONGEST,
    blend,
    choose_errors,
    choose_examples,
    plot_explanations,
)

LABELS = np.array([0, 0, 1, 1, 1, 0])
POSITIVE = np.array([0.9, 0.2, 0.3, 0.8, 0.05, 0.7])  # wrong: 0, 2, 4, 5
PROBABILITIES = np.stack([1 - POSITIVE, POSITIVE], axis=1)


def test_the_most_certain_errors_come_first():
    assert choose_errors(LABELS, PROBABILITIES, 3).tolist() == [4, 0, 2]
    assert choose_errors(LABELS, PROBABILITIES, 9).tolist() == [4, 0, 2, 5]
    assert choose_errors(LABELS, PROBABILITIES, 0).tolist() == []
    assert choose_errors([1], [[0.2, 0.8]], 3).tolist() == []


def test_examples_are_right_and_of_each_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.full((6, 3), 0.2)
    probabilities[np.arange(6), [0, 0, 0, 1, 1, 0]] = 0.6  # the last one is wrong
    probabilities[1] = 0.9, 0.05, 0.05
    assert choose_examples(labels, probabilities, 6).tolist() == [1, 0, 3, 4]
    assert choose_examples(labels, probabilities, 3).tolist() == [1, 3]
    assert choose_examples(labels, probabilities, 1).tolist() == [1]
    assert choose_examples(LABELS, PROBABILITIES, 8).tolist() == [1, 3]


def test_an_overlay_is_the_image_where_the_map_is_zero_and_coloured_at_its_peak():
    image, heat = np.full((8, 8), 0.5), np.zeros((2, 2))
    assert blend(image, heat) == pytest.approx(np.full((8, 8, 3), 0.5))
    heat[0, 0] = 7.0
    found = blend(image, heat)
    peak = np.array(colormaps[COLOURS](1.0)[:3])
    assert found[0, 0] == pytest.approx((1 - STRONGEST) * 0.5 + STRONGEST * peak, abs=1e-6)
    assert found[7, 7] == pytest.approx(0.5, abs=1e-6)
    assert blend(image, 3 * heat) == pytest.approx(found)  # a map has no scale of its own
    colour = np.random.default_rng(0).random((8, 8, 3))
    assert blend(colour, heat)[7, 7] == pytest.approx(colour[7, 7])


@pytest.mark.parametrize("shape", [(3, 24, 16), (1, 24, 16, 3)])
def test_the_figure_is_a_png_that_shows_the_maps(tmp_path, shape):
    images = np.random.default_rng(0).random(shape)
    maps, titles = np.zeros((shape[0], 3, 2)), [f"$name_{i}\nclass 9 %" for i in range(shape[0])]
    found = []
    for peak in (0.0, 1.0):
        maps[:, 0, 0] = peak
        plot_explanations(images, maps, titles, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as picture:
            assert picture.format == "PNG"
            assert picture.width == 1800
            found.append(np.asarray(picture.convert("RGB"), dtype=float))
    differs = np.abs(found[0] - found[1]).max(axis=(0, 2)) > 20  # by column
    assert differs.any()
    assert not differs[:430].any()  # the plain images at the left stay as they are
    assert differs[450:900].any()


@pytest.mark.parametrize(
    ("images", "maps", "titles", "message"),
    [
        ((2, 8), (2, 2, 2), 2, r"\(2, 8\)"),
        ((2, 8, 8, 4), (2, 2, 2), 2, r"\(2, 8, 8, 4\)"),
        ((2, 8, 8), (1, 2, 2), 2, r"maps \(1, 2, 2\)"),
        ((2, 8, 8), (2, 2, 2), 1, "1 titles"),
        ((0, 8, 8), (0, 2, 2), 0, "N >= 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, images, maps, titles, message):
    with pytest.raises(ValueError, match=message):
        plot_explanations(np.zeros(images), np.zeros(maps), ["x"] * titles, tmp_path / "x.png")


def test_negative_maps_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"-1\.0"):
        plot_explanations(np.zeros((1, 8, 8)), -np.ones((1, 2, 2)), ["x"], tmp_path / "x.png")
