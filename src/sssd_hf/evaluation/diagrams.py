"""The diagrams of an evaluation, each as a matplotlib figure; `figures` writes and captions them.

They are one column wide (5.6 inches), so that their letters can be read on a phone.
"""

from __future__ import annotations

import math

import numpy as np

from sssd_hf.evaluation.curves import GRID, Curve
from sssd_hf.evaluation.plots import BLUE, GREEN, GREY, ORANGE, style_axes

# the rest of Okabe and Ito's palette but black and yellow, which is too light on white
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)
LINE_STYLES = ("-", "--", ":")  # further classes than colours
WIDTH, HEIGHT = 5.6, 4.4  # inches
MAX_BANDS = 3  # more of them hide each other
MAX_ROWS = 60  # of a forest plot


def cut(text, limit: int) -> str:
    """`text` from outside on one line of at most `limit` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(text, limit: int = 36) -> str:
    """`cut` text as a label of matplotlib's: no dollar sign starts mathematics, no underscore at
    its start leaves it out of a legend."""
    text = cut(text, limit)
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _figure(width=WIDTH, height=HEIGHT, **options):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white", **options)


def _look(index):
    """Colour and line style of the n-th class."""
    count = len(COLOURS)
    return COLOURS[index % count], LINE_STYLES[index // count % len(LINE_STYLES)]


def _legend(axes, **options):
    axes.legend(frameon=False, fontsize=9, labelcolor="#333333", **options)


def _unit_square(axes):
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(axis="both", color="#E4E4E4", linewidth=0.8)


def _draw_curves(axes, curves, drawstyle):
    for index, (label, curve) in enumerate(curves):
        colour, style = _look(index)
        axes.plot(
            curve.x, curve.y, color=colour, linestyle=style, linewidth=1.8, label=plain(label, 60),
            drawstyle=drawstyle, zorder=3,
        )  # fmt: skip
        if curve.low is not None and len(curves) <= MAX_BANDS:
            axes.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def _draw_point(axes, point):
    if point is not None:
        x, y, label = point
        axes.plot(
            x, y, marker="o", markersize=9, color="black", markeredgecolor="white",
            markeredgewidth=1.5, linestyle="none", label=plain(label, 60), zorder=4, clip_on=False,
        )  # fmt: skip


def roc_figure(curves: list[tuple[str, Curve]], point: tuple[float, float, str] | None = None):
    """ROC curves with their legend texts; point: false and true positive rate, and its text."""
    figure = _figure(height=5.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
    _draw_curves(axes, curves, "default")
    _draw_point(axes, point)
    style_axes(axes, "ROC", "1 - specificity (false alarms)", "sensitivity")
    _unit_square(axes)
    _legend(axes, loc="lower right")
    return figure


def precision_recall_figure(
    curves: list[tuple[str, Curve]], point: tuple[float, float, str] | None = None,
    share: float | None = None,
):  # fmt: skip
    """Precision-recall curves; point: recall, precision, text; share: of the positive images."""
    figure = _figure(height=5.4)
    axes = figure.subplots()
    if share is not None:
        axes.axhline(share, color="#999999", linewidth=1, linestyle=(0, (4, 3)))
    # a point's precision holds back to the recall before it
    _draw_curves(axes, curves, "steps-pre")
    _draw_point(axes, point)
    style_axes(
        axes, "Precision and recall", "recall (sensitivity)", "precision (right of those called)"
    )
    _unit_square(axes)
    _legend(axes, loc="lower left" if len(curves) == 1 else "best")
    return figure


def reliability_figure(series: list[tuple[str, list[dict]]], x_label: str, y_label: str):
    """Reliability of one or two series of `calibration.reliability_curve`, and their counts."""
    figure = _figure(height=5.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
    largest = 1
    for index, (label, bins) in enumerate(series):
        # what the model gives is orange, what calibration makes of it blue
        colour = (ORANGE, BLUE)[index] if len(series) > 1 else BLUE
        x, y = (np.array([row[key] for row in bins]) for key in ("confidence", "accuracy"))
        low, high = (np.array([row[f"accuracy_{end}"] for row in bins]) for end in ("low", "high"))
        axes.errorbar(
            x, y, yerr=(np.maximum(y - low, 0), np.maximum(high - y, 0)), color=colour,
            linewidth=1.4, elinewidth=1, capsize=2.5, marker="o", markersize=5, label=plain(label),
            zorder=3,
        )  # fmt: skip
        width = (bins[0]["high"] - bins[0]["low"]) / (len(series) + 0.5)
        left = [row["low"] + (index + 0.25) * width for row in bins]
        counts = [row["count"] for row in bins]
        below.bar(left, counts, width, align="edge", color=colour)
        largest = max(largest, *counts)
    style_axes(axes, "Calibration", "", y_label)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(axes, loc="upper left")
    style_axes(below, "", x_label, "images")
    below.set_ylim(0, 1.1 * largest)
    below.locator_params(axis="y", nbins=3, integer=True)
    return figure


def confusion_figure(matrix: np.ndarray, names: list[str], title: str):
    """Counts and row shares of a matrix [K, K], true classes in rows."""
    count = len(names)
    side = WIDTH if count <= 6 else min(0.75 * count + 1.6, 12)
    figure = _figure(width=side, height=0.82 * side)
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25)  # 1.25: no cell is too dark for its text
    size = 11 if count <= 4 else 8
    for row, column in np.ndindex(matrix.shape):
        text = f"{matrix[row, column]}"
        if count <= 10:
            text += f"\n{shares[row, column]:.0%}" if totals[row, 0] else "\n-"
        colour = "white" if shares[row, column] > 0.8 else "#222222"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    ticks = [plain(name, 18) for name in names]
    rotation = 0 if max(map(len, ticks)) * count <= 40 else 45
    axes.set_xticks(
        range(count), ticks, rotation=rotation, ha="right" if rotation else "center",
        rotation_mode="anchor" if rotation else "default",
    )  # fmt: skip
    axes.set_yticks(range(count), ticks)
    style_axes(axes, title, "decided", "label")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def scores_figure(panels: list[dict], threshold: float | None = None):
    """Histograms of probabilities; a panel has title and series, (label, probabilities [n]) each.

    Bars are shares of a series, so that a rare class is seen beside a frequent one.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = _figure(
        width=WIDTH * (1 if columns == 1 else 1.5), height=3.9 if rows == 1 else 2.6 * rows
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    edges = np.linspace(0, 1, 21)
    for axes, panel in zip(grid, panels, strict=False):
        for (label, values), colour in zip(panel["series"], (BLUE, ORANGE), strict=True):
            if len(values) == 0:
                continue
            heights = np.histogram(np.clip(values, 0, 1), edges)[0] / len(values)
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(heights, edges, color=colour, linewidth=1.4, label=plain(label, 30))
        if threshold is not None:
            axes.axvline(threshold, color="black", linewidth=1.2, linestyle=(0, (4, 3)))
        style_axes(axes, panel["title"], panel["x_label"], "share of images")
        _legend(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def coverage_figure(curve: Curve):
    """Accuracy of the most confident images against their share."""
    figure = _figure()
    axes = figure.subplots()
    _draw_curves(axes, [("", curve)], "steps-pre")
    axes.axhline(curve.y[-1], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
    style_axes(
        axes, "Answering only when confident", "share of images answered, most confident first",
        "accuracy of these",
    )  # fmt: skip
    shown = [curve.y[len(curve.y) // 20 :]] if curve.low is None else [curve.low, curve.y]
    lowest = min(values.min() for values in shown)
    axes.set(xlim=(0, 1.02), ylim=(max(0, min(0.5, lowest) - 0.02), 1.02))
    return figure


def forest_figure(rows: list[dict], metric: str, overall: float | None):
    """Estimates with intervals; a row has label and, unless it is the heading of a column,
    estimate, low, high (None where undefined) and small (drawn hollow)."""
    figure = _figure(height=0.3 * len(rows) + 1.1)
    axes = figure.subplots()
    for position, row in enumerate(rows):
        estimate = row.get("estimate")
        if estimate is None:
            continue
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [position] * 2, color=BLUE, linewidth=1.6)
        axes.plot(
            estimate, position, marker="s", markersize=6, color=BLUE, linestyle="none",
            markerfacecolor="white" if row["small"] else BLUE, zorder=3,
        )  # fmt: skip
    if overall is not None:
        axes.plot(
            [overall] * 2, [-0.6, len(rows) - 0.4], color=ORANGE, linewidth=1.4,
            linestyle=(0, (4, 3)), zorder=1,
        )  # fmt: skip
        axes.text(
            overall, -0.72, f"all images {overall:.3f}", color=ORANGE, fontsize=8, ha="center"
        )
    style_axes(axes, "", metric, "")
    axes.set_yticks(range(len(rows)), [plain(row["label"], 44) for row in rows], fontsize=9)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        if "estimate" not in row:
            tick.set(fontweight="bold")
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    return figure
