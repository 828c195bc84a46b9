"""Figures of frozen features: a map of the images, and few-shot curves."""

from __future__ import annotations

import importlib.util

import numpy as np

from sssd_hf.evaluation.plots import BLUE, DPI, GREEN, GREY, ORANGE, WIDTH_INCHES, style_axes

# Okabe and Ito's colours that are dark enough for points; more classes share a colour wheel
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#222222")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
MAX_POINTS = 10_000  # more would hide each other
MAX_LEGEND = 20  # classes named


def check_projection(method: str) -> None:
    """Raises ValueError for a method whose package is not installed."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ValueError(
            "--projection umap: the package is not installed: pip install umap-learn, or take "
            "--projection pca"
        )


def project(features, fitted_on, method: str = "pca", seed: int = 0) -> tuple[np.ndarray, list]:
    """(points [N, 2], names of the two axes) of features [N, width].

    "pca": the first two principal components of the features `fitted_on` (bool [N], say training
    images), by scikit-learn. "umap": McInnes et al. 2018, by cosine distance, of all features.
    """
    features = np.asarray(features)
    if method == "umap":
        check_projection(method)
        from umap import UMAP

        points = UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(features)
        return points, ["UMAP 1", "UMAP 2"]
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=seed).fit(features[np.asarray(fitted_on)])
    shares = pca.explained_variance_ratio_
    names = [
        f"component {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares)
    ]
    return pca.transform(features), names


def _colours(count):
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["hsv"](index / count) for index in range(count)]


def plot_embedding(
    points, labels, splits, class_names, split_names, axis_names, png_path, title=None
) -> None:
    """Draw a map of images into a PNG 1800 pixels wide: the left panel coloured by class, the right
    one by split; the marker is the split's in both.

    Args:
        points: [N, 2].
        labels, splits: [N] indices of class_names and split_names (at most seven splits).
        axis_names: two texts.

    Of more than 10,000 images as many are drawn by chance, which the axis tells.

    Raises:
        ValueError: for shapes that do not match, and for nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    points, labels, splits = np.asarray(points), np.asarray(labels), np.asarray(splits)
    if points.shape != (len(labels), 2) or splits.shape != labels.shape or not len(labels):
        raise ValueError(
            f"points have shape {points.shape}, labels {labels.shape}, splits {splits.shape}; "
            "expected (N, 2), (N,), (N,) with N >= 1"
        )
    # in random order, so that no class lies on top of the others
    shown = np.random.default_rng(0).permutation(len(labels))[:MAX_POINTS]
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    size = 26 if len(shown) <= 500 else 12 if len(shown) <= 3000 else 5
    panels = (("By class", labels, class_names), ("By split (marker)", splits, split_names))
    for axes, (panel, values, names) in zip(figure.subplots(1, 2), panels, strict=True):
        colours = np.array([*map(_rgba, _colours(len(names)))])
        for split in np.unique(splits):
            chosen = shown[splits[shown] == split]
            axes.scatter(
                *points[chosen].T, c=colours[values[chosen]], marker=MARKERS[split], s=size,
                alpha=0.7, linewidths=0.3, edgecolors="white",
            )  # fmt: skip
        drawn = "" if len(shown) == len(labels) else f" ({len(shown)} of {len(labels)} images)"
        style_axes(axes, panel, axis_names[0] + drawn, axis_names[1])
        present = np.unique(values[shown]).tolist()
        handles = [
            Line2D(
                [], [], color=colours[index], label=names[index], linestyle="", markersize=6,
                marker="o" if values is labels else MARKERS[index],
            )
            for index in present[:MAX_LEGEND]
        ]  # fmt: skip
        axes.legend(handles=handles, fontsize=8, labelcolor="#444444", framealpha=0.8, ncols=1)
    if title:
        figure.suptitle(title, fontsize=11, color="#222222")
    figure.savefig(png_path, dpi=DPI, format="png")


def _rgba(colour):
    from matplotlib.colors import to_rgba

    return to_rgba(colour)


def plot_few_shot(
    percents, num_images, accuracy, roc_auc, png_path, majority=None, intervals=None
) -> None:
    """Draw test figures over the share of training labels into a PNG 1800 pixels wide: each subset
    a dot, the mean a line, one standard deviation over the subsets a band.

    Args:
        percents, num_images, accuracy, roc_auc: [N], one entry for each share and repeat. The panel
            of the AUC is left out where it is NaN throughout.
        majority: accuracy of the majority class, drawn as a dotted line (0.5 for the AUC).
        intervals: {"accuracy": (low, high), "roc_auc": ...} of the largest share, over test images.

    Raises:
        ValueError: for shapes that do not match, and for nothing to draw.
    """
    from matplotlib.figure import Figure

    columns = [np.asarray(column, dtype=float) for column in (num_images, accuracy, roc_auc)]
    percents = np.asarray(percents, dtype=float)
    if {column.shape for column in columns} != {percents.shape} or percents.shape in ((), (0,)):
        raise ValueError(
            f"columns have shapes {[percents.shape, *(column.shape for column in columns)]}, "
            "expected four equal shapes (N,) with N >= 1"
        )
    shares = np.unique(percents)
    ticks = [f"{share:g} %\n({columns[0][percents == share].mean():.0f})" for share in shares]
    panels = [("accuracy", "accuracy", columns[1], majority)]
    if np.isfinite(columns[2]).any():
        panels.append(("roc_auc", "ROC AUC", columns[2], 0.5))
    figure = Figure(figsize=(WIDTH_INCHES, 4.0), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (key, name, values, chance) in zip(grid, panels, strict=True):
        parts = [values[percents == share] for share in shares]
        means = np.array([part.mean() for part in parts])
        # a single subset has no spread
        spreads = [part.std(ddof=1) if len(part) > 1 else np.nan for part in parts]
        low, high = means - spreads, means + spreads
        axes.fill_between(
            shares, low, high, color=BLUE, alpha=0.18, linewidth=0,
            label="standard deviation over subsets",
        )  # fmt: skip
        axes.plot(percents, values, ".", color=BLUE, alpha=0.35, markersize=5, label="subset")
        axes.plot(shares, means, color=BLUE, linewidth=1.8, marker="o", label="mean")
        if intervals is not None and np.isfinite(intervals[key]).all():
            low, high = intervals[key]
            axes.vlines(
                shares[-1], low, high, color=GREY, linewidth=1.4, zorder=0,
                label="95 % interval over test images",
            )  # fmt: skip
        if chance is not None:
            axes.axhline(
                chance, color=GREY, linestyle=":", linewidth=1.2, label="chance (majority, 0.5)"
            )
        axes.set_xscale("log")
        axes.set_xticks(shares, ticks)
        axes.minorticks_off()
        style_axes(
            axes, f"Linear probe: {name}", "share of training labels (images)", f"test {name}"
        )
    handles, texts = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=5, frameon=False, fontsize=8,
        labelcolor="#444444",
    )  # fmt: skip
    figure.savefig(png_path, dpi=DPI, format="png")
