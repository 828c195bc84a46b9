"""Figures: training curves, and what a masked autoencoder reconstructs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

# Okabe and Ito's palette (2008), which the common colour-vision deficiencies keep apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
WIDTH_INCHES, DPI = 9.0, 200  # 1800 pixels: sharp where a page shows them 900 wide

# panel: title, label of the vertical axis, curves as (key, legend, colour, held out?)
# fmt: off
PANELS = (
    ("Loss", "loss", (
        ("loss", "training", BLUE, False), ("eval_loss", "held out", ORANGE, True))),
    ("Reconstruction", "mean squared error", (
        ("reconstruction_loss", "training", BLUE, False),
        ("eval_reconstruction_loss", "held out", ORANGE, True))),
    ("Self-distillation", "distillation loss", (
        ("distillation_loss", "training", BLUE, False),
        ("eval_distillation_loss", "held out", ORANGE, True))),
    ("Distillation targets", "standard deviation", (("target_std", "training", BLUE, False),)),
    ("Held-out classification", "accuracy, ROC AUC", (
        ("eval_accuracy", "accuracy", ORANGE, True), ("eval_roc_auc", "ROC AUC", GREEN, True))),
    ("Probe of frozen features", "accuracy, ROC AUC", (
        ("probe_knn_accuracy", "k-NN accuracy", BLUE, True),
        ("probe_linear_accuracy", "linear accuracy", ORANGE, True),
        ("probe_linear_roc_auc", "linear ROC AUC", GREEN, True))),
    ("Learning rate", "learning rate", (("learning_rate", "training", GREY, False),)),
)
# fmt: on


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def read_metrics(metrics_jsonl_path) -> list[dict]:
    """Read one JSON object per line; a last line that a stopped run left unfinished is skipped.

    Raises:
        ValueError: for any other line that is no JSON object, with its number.
    """
    lines = Path(metrics_jsonl_path).read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number != lines[-1][0]:
            raise ValueError(f"{metrics_jsonl_path}, line {number}: no JSON object: {line[:60]!r}")
    return records


def _curve(records, x_key, key):
    """(x [n], y [n]) of the records that have both; a step that a resumed run repeats, once."""
    points = {}
    for record in records:
        x, y = record.get(x_key), record.get(key)
        if _is_number(x) and _is_number(y):
            points[x] = y
    x = sorted(points)
    return np.array(x, dtype=float), np.array([points[value] for value in x], dtype=float)


def _smooth(x, y):
    """Centred moving average over a twenty-fifth of the points, where that window is full."""
    half = max(1, len(y) // 50)
    window = 2 * half + 1
    return x[half:-half], np.convolve(y, np.full(window, 1 / window), mode="valid")


def style_axes(axes, title, x_label, y_label) -> None:
    """Title and axis labels, quiet spines and grid: what all figures have in common."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold", color="#222222")
    axes.set_xlabel(x_label, fontsize=10, color="#444444")
    axes.set_ylabel(y_label, fontsize=10, color="#444444")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=9, color="#999999", labelcolor="#444444")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_curve(axes, x, y, label, colour, held_out, smooth):
    if held_out:
        spacing = math.ceil(len(x) / 25)  # more markers than that run into a band
        axes.plot(
            x, y, color=colour, linewidth=1.4, marker="o", markersize=4.5, markevery=spacing,
            markeredgecolor="white", markeredgewidth=0.6, label=label, zorder=3,
        )  # fmt: skip
    elif len(x) < 50 or not smooth:
        marker = "o" if len(x) == 1 else None  # a line of one point would not show
        axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, label=label)
    else:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(*_smooth(x, y), color=colour, linewidth=1.8, label=label)


def training_figure(records: list[dict]):
    """Figure of the panels that `records` (see `plot_training_curves`) have data for.

    Raises:
        ValueError: where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    def rank(name):
        values = [record[name] for record in records if _is_number(record.get(name))]
        return len(values), len(set(values))

    # epochs where every line has one of its own; whole epochs would put all steps of one on a line
    x_key = max(("epoch", "step"), key=rank)
    panels = []
    for title, y_label, keys in PANELS:
        curves = [(*_curve(records, x_key, key), *rest) for key, *rest in keys]
        curves = [curve for curve in curves if len(curve[0])]
        if curves:
            panels.append((title, y_label, curves, len(keys) > 1))
    if any(panel[0] == "Reconstruction" for panel in panels):
        panels = [panel for panel in panels if panel[0] != "Loss"]  # the sum of what is drawn
    if not panels:
        raise ValueError("nothing to draw: no record has a step or epoch and a known metric")

    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = math.ceil(len(panels) / columns)
    height = {1: 4.0, 2: 3.1, 3: 2.8}[columns]
    figure = Figure(figsize=(WIDTH_INCHES, rows * height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, y_label, curves, legend) in zip(grid, panels, strict=False):
        values = np.concatenate([curve[1] for curve in curves])
        schedule = title == "Learning rate"
        scale = 1.0
        if schedule and values.max() > 0:
            # the power of ten belongs to the label: above the axis it would push the title up
            exponent = math.floor(math.log10(values.max()))
            scale, y_label = 10.0**exponent, f"learning rate / $10^{{{exponent}}}$"
        for x, y, *rest in curves:
            _draw_curve(axes, x, y / scale, *rest, smooth=not schedule)
        style_axes(axes, title, "epoch" if x_key == "epoch" else "optimiser step", y_label)
        if schedule:
            axes.set_ylim(bottom=0)
        elif title != "Held-out classification" and 0 < 20 * values.min() < values.max():
            axes.set_yscale("log")  # a first value far off would flatten all that follows
        if legend:
            axes.legend(frameon=False, fontsize=9, labelcolor="#444444")
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def plot_training_curves(metrics_jsonl_path, png_path) -> None:
    """Draw losses, held-out accuracy and AUC, probes and the learning rate of a run into a PNG.

    Each line of the file is one JSON object with "step", "epoch" or both, and any of "loss",
    "reconstruction_loss", "distillation_loss", "target_std", "learning_rate" (training, drawn raw
    and smoothed), and with "eval_" before the losses, "eval_accuracy", "eval_roc_auc" and the
    "probe_..." that `probes.probe` gives (held out, drawn with markers). Panels without data are
    left out, and the total loss where its parts are drawn. The PNG is 1800 pixels wide.

    Raises:
        ValueError: for a line that is no JSON object (but the last), and for nothing to draw.
    """
    figure = training_figure(read_metrics(metrics_jsonl_path))
    figure.savefig(png_path, dpi=DPI, format="png")


def plot_reconstructions(
    images, masked, reconstructions, pasted, png_path,
    titles=("input", "masked", "reconstruction", "pasted"),
) -> None:  # fmt: skip
    """Draw a grid of N rows and four titled columns into a PNG 1800 pixels wide.

    All four are float arrays [N, H, W] (grey) or [N, H, W, 3] in 0..1; values outside are clipped.

    Raises:
        ValueError: for N = 0, shapes that differ or are other than these, titles that are not four.
    """
    from matplotlib.figure import Figure

    columns = [np.asarray(column) for column in (images, masked, reconstructions, pasted)]
    shapes = [column.shape for column in columns]
    shape = shapes[0]
    known = len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)
    if len(set(shapes)) != 1 or not known or 0 in shape or len(titles) != 4:
        raise ValueError(
            f"columns have shapes {shapes} and {len(titles)} titles, expected four equal shapes "
            "[N, H, W] or [N, H, W, 3] with N >= 1 and four titles"
        )
    rows, height, width = shape[:3]
    gap, title_height = 0.06, 0.32  # inches
    cell = (WIDTH_INCHES - 3 * gap) / 4
    cell_height = cell * height / width
    total = title_height + rows * cell_height + (rows - 1) * gap
    figure = Figure(figsize=(WIDTH_INCHES, total), facecolor="white")
    for column, (values, title) in enumerate(zip(columns, titles, strict=True)):
        for row in range(rows):
            left = column * (cell + gap) / WIDTH_INCHES
            bottom = 1 - (title_height + row * gap + (row + 1) * cell_height) / total
            axes = figure.add_axes((left, bottom, cell / WIDTH_INCHES, cell_height / total))
            axes.imshow(values[row].clip(0, 1), cmap="gray", vmin=0, vmax=1, aspect="auto")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=12, color="#222222", pad=5)
    figure.savefig(png_path, dpi=DPI, format="png")
