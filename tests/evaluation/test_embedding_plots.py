"""Maps of features and few-shot curves: what is projected and drawn, and how it fails."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sssd_hf.evaluation import embedding_plots
from sssd_hf.evaluation.embedding_plots import plot_embedding, plot_few_shot, project
from sssd_hf.evaluation.plots import BLUE, GREEN, ORANGE

SPLITS = ("train", "validation", "test")


def draw_map(path, count=60, classes=2, **changes):
    rng = np.random.default_rng(0)
    arguments = {
        "points": rng.normal(size=(count, 2)),
        "labels": np.arange(count) % classes,
        "splits": np.arange(count) // 7 % 3,
        "class_names": [f"class {i}" for i in range(classes)],
        "split_names": SPLITS,
        "axis_names": ["first", "second"],
        **changes,
    }
    plot_embedding(png_path=path, **arguments)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has(pixels, colour):
    """Whether some pixel has the colour, as the legend's markers do."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == rgb).all(-1).any())


def test_the_principal_components_are_those_of_the_images_fitted_on():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) * np.array([9, 5, 1, 1, 1, 1])
    fitted_on = np.arange(40) < 25
    points, names = project(features, fitted_on)
    centre = features[:25].mean(0)
    _, spread, axes = np.linalg.svd(features[:25] - centre)
    direct = (features - centre) @ axes[:2].T
    np.testing.assert_allclose(np.abs(points), np.abs(direct), atol=1e-9)
    shares = 100 * spread**2 / (spread**2).sum()
    assert names[0] == f"component 1 ({shares[0]:.0f} % of the variance)"


def test_umap_without_its_package_is_said(monkeypatch):
    monkeypatch.setattr(embedding_plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--projection umap: .* pip install umap-learn"):
        project(np.zeros((5, 3)), np.ones(5, bool), "umap")


def test_umap_gets_seed_and_features(monkeypatch):
    class UMAP:
        def __init__(self, **options):
            self.options = options

        def fit_transform(self, features):
            assert self.options["random_state"] == 4
            return features[:, :2]

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(embedding_plots.importlib.util, "find_spec", lambda name: module)
    features = np.random.default_rng(0).normal(size=(5, 3))
    points, names = project(features, np.ones(5, bool), "umap", seed=4)
    assert (points == features[:, :2]).all()
    assert names == ["UMAP 1", "UMAP 2"]


def test_a_map_has_a_panel_by_class_and_one_by_split(tmp_path):
    pixels = draw_map(tmp_path / "a.png")
    assert pixels.shape[1] == 1800
    left, right = pixels[:, :900], pixels[:, 900:]
    assert has(left, BLUE)
    assert has(left, ORANGE)
    assert not has(left, GREEN)  # two classes
    assert has(right, GREEN)  # three splits


def test_many_classes_and_a_single_split_can_be_drawn(tmp_path):
    pixels = draw_map(tmp_path / "a.png", 90, classes=30, splits=np.full(90, 2))
    assert pixels.shape[1] == 1800
    assert has(pixels[:, 900:], GREEN)
    assert not has(pixels[:, 900:], ORANGE)


def test_a_large_set_is_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_plots, "MAX_POINTS", 10)
    few = draw_map(tmp_path / "a.png", 5000)
    monkeypatch.setattr(embedding_plots, "MAX_POINTS", 5000)
    many = draw_map(tmp_path / "b.png", 5000)
    assert (few < 250).any(-1).sum() < (many < 250).any(-1).sum() / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"points": np.zeros((59, 2))},
        {"splits": np.zeros(3, int)},
        {"points": np.zeros((0, 2)), "labels": np.zeros(0, int), "splits": np.zeros(0, int)},
    ],
)
def test_shapes_that_do_not_match_are_named(tmp_path, changes):
    with pytest.raises(ValueError, match=r"points have shape"):
        draw_map(tmp_path / "a.png", **changes)


def draw_curve(path, **changes):
    arguments = {
        "percents": [1, 1, 10, 10, 100],
        "num_images": [4, 6, 40, 44, 420],
        "accuracy": [0.5, 0.6, 0.65, 0.7, 0.75],
        "roc_auc": [0.5, 0.55, 0.7, 0.75, 0.8],
        **changes,
    }
    plot_few_shot(png_path=path, **arguments)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_curve_has_a_panel_for_each_figure(tmp_path):
    intervals = {"accuracy": (0.7, 0.8), "roc_auc": (0.75, 0.85)}
    pixels = draw_curve(tmp_path / "a.png", majority=0.55, intervals=intervals)
    assert pixels.shape[1] == 1800
    assert has(pixels[:, :900], BLUE)
    assert has(pixels[:, 900:], BLUE)


def test_an_auc_that_is_not_defined_is_left_out(tmp_path):
    pixels = draw_curve(
        tmp_path / "a.png", roc_auc=[np.nan] * 5, intervals={"accuracy": (np.nan, np.nan)}
    )
    assert pixels.shape[1] == 1800


@pytest.mark.parametrize("changes", [{"accuracy": [0.5]}, {k: [] for k in ("percents",)}])
def test_columns_that_do_not_match_are_named(tmp_path, changes):
    with pytest.raises(ValueError, match="four equal shapes"):
        draw_curve(tmp_path / "a.png", **changes)
