"""Pairs of images side by side, to be judged by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLUMNS = 3  # pairs in a row


def plot_pairs(
    path: str | Path,
    pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    captions: Sequence[tuple[str, str, str]],
    title: str = "",
) -> None:
    """Write a PNG.

    Args:
        pairs: of grey images, uint8 (height, width); None where one cannot be shown.
        captions: of each pair: its title, and what stands under its two images.
    """
    from matplotlib.figure import Figure

    rows = max(1, -(-len(pairs) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * 4.6, rows * 3.0 + 0.6), dpi=100)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    outer = figure.add_gridspec(
        rows, COLUMNS, left=0.01, right=0.99, bottom=0.02, top=1 - 0.9 / (rows * 3.0 + 0.6),
        wspace=0.06, hspace=0.35,
    )  # fmt: skip
    for index, (pair, (heading, *below)) in enumerate(zip(pairs, captions, strict=True)):
        inner = outer[index // COLUMNS, index % COLUMNS].subgridspec(1, 2, wspace=0.03)
        for side, (pixels, text) in enumerate(zip(pair, below)):
            axes = figure.add_subplot(inner[side])
            axes.set_xticks([])
            axes.set_yticks([])
            if pixels is not None:
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            # names come from files: no dollar sign of theirs is mathematics
            axes.set_xlabel(text, fontsize=7, parse_math=False)
            if side == 0:
                axes.set_title(heading, fontsize=9, loc="left", parse_math=False)
    figure.savefig(path)
