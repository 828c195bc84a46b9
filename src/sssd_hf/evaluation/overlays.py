"""Which images to show with their explanations, and the figure that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sssd_hf.evaluation.metrics import check_predictions

COLOURS = "plasma"  # perceptually uniform, told apart with colour-vision deficiencies, never grey
STRONGEST = 0.65  # opacity at a map's peak: the image stays visible
ITEMS_ACROSS, WIDTH_INCHES, DPI = 2, 9.0, 200


def choose_errors(labels, probabilities, count: int) -> np.ndarray:
    """Indices of the at most `count` wrongly classified images (labels [N], probabilities [N, K])
    of which the model was most certain, the most certain first."""
    labels, probabilities = check_predictions(labels, probabilities)
    wrong = probabilities.argmax(axis=1) != labels
    return _most_certain(np.flatnonzero(wrong), probabilities)[:count]


def choose_examples(labels, probabilities, count: int) -> np.ndarray:
    """Indices of at most `count` rightly classified images, the most certain of each class, as many
    of each as there are (at least one), class by class."""
    labels, probabilities = check_predictions(labels, probabilities)
    right = probabilities.argmax(axis=1) == labels
    classes = probabilities.shape[1]
    chosen = [
        _most_certain(np.flatnonzero(right & (labels == label)), probabilities)[
            : max(1, count // classes)
        ]
        for label in range(classes)
    ]
    return np.concatenate(chosen)[:count]


def _most_certain(indices, probabilities):
    return indices[np.argsort(-probabilities[indices].max(axis=1), kind="stable")]


def blend(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay of one image [H, W] or [H, W, 3] in 0..1 and one map [rows, columns] >= 0, as
    [H, W, 3]: the map scaled to its own peak, bilinear between cell centres, and the less visible
    the lower it is."""
    from matplotlib import colormaps

    height, width = image.shape[:2]
    peak = heat.max()
    scaled = Image.fromarray((heat / peak if peak > 0 else heat).astype(np.float32))
    resized = np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    opacity = STRONGEST * resized[..., None]
    base = image[..., None] if image.ndim == 2 else image
    return base.clip(0, 1) * (1 - opacity) + colormaps[COLOURS](resized)[..., :3] * opacity


def plot_explanations(
    images: Sequence[np.ndarray] | np.ndarray,
    maps: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    png_path: str | Path,
) -> None:
    """Draw each image beside its overlay, two pairs in a row with a title above each, into a PNG
    1800 pixels wide, with one colour bar.

    Args:
        images: [N, H, W] (grey) or [N, H, W, 3] in 0..1; values outside are clipped.
        maps: [N, rows, columns] >= 0; each is scaled to its own peak.

    Raises:
        ValueError: for N = 0, other shapes, other numbers of maps or titles, or negative maps.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    images, maps = np.asarray(images), np.asarray(maps)
    known = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if (
        not known
        or maps.ndim != 3
        or not len(images) == len(maps) == len(titles)
        or 0 in maps.shape
    ):
        raise ValueError(
            f"images have shape {images.shape}, maps {maps.shape}, and there are {len(titles)} "
            "titles; expected [N, H, W] or [N, H, W, 3], [N, rows, columns] and N, with N >= 1"
        )
    if not (maps >= 0).all():
        raise ValueError(f"maps go down to {maps.min()}; expected values of 0 or more")
    rows = -(-len(images) // ITEMS_ACROSS)
    gap, title_height, bar_height = 0.06, 0.40, 0.62  # inches
    item = (WIDTH_INCHES - (ITEMS_ACROSS + 1) * 2 * gap) / ITEMS_ACROSS
    cell = (item - gap) / 2
    cell_height = cell * images.shape[1] / images.shape[2]
    total = rows * (title_height + cell_height + gap) + bar_height
    figure = Figure(figsize=(WIDTH_INCHES, total), facecolor="white")

    def add_axes(left, top, width, height):
        box = (left / WIDTH_INCHES, 1 - (top + height) / total)
        return figure.add_axes((*box, width / WIDTH_INCHES, height / total))

    for index, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True)):
        row, column = divmod(index, ITEMS_ACROSS)
        left = 2 * gap + column * (item + 2 * gap)
        top = title_height + row * (title_height + cell_height + gap)
        for side, shown in enumerate((image.clip(0, 1), blend(image, heat))):
            axes = add_axes(left + side * (cell + gap), top, cell, cell_height)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect="auto")
            axes.set_axis_off()
            if side == 0:  # names come from files: no dollar sign of theirs is mathematics
                axes.set_title(
                    title, fontsize=8.5, loc="left", color="#222222", pad=4, parse_math=False
                )
    bar = add_axes(WIDTH_INCHES * 0.3, total - bar_height + 0.1, WIDTH_INCHES * 0.4, 0.11)
    figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), bar, orientation="horizontal")
    bar.set_xlabel("weight, as a share of the highest in each map", fontsize=8, color="#444444")
    bar.tick_params(labelsize=7, color="#999999", labelcolor="#444444")
    figure.savefig(png_path, dpi=DPI, format="png")
