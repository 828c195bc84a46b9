"""Decoding once: the images of a small data set as one uint8 tensor in memory."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .images import load_image


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """(channels, height, width) uint8: squashed to `size` (height, width) by Pillow's bilinear
    filter, as `ViTImageProcessor` does it."""
    resized = image.resize((size[1], size[0]), resample=Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def decode(
    sources: list,
    sizes: list[tuple[int, int]],
    num_channels: int,
    progress: bool = True,
) -> list[torch.Tensor]:
    """Each image once from its file, at each of `sizes`.

    Args:
        sources: paths, bytes, or the dicts of `datasets.Image(decode=False)`.
        sizes: (height, width) pairs.
        num_channels: 1 or 3.

    Returns:
        For each size a uint8 tensor (images, channels, height, width).

    Raises:
        ValueError: files can't be read; the message lists the first ones and the reasons.
    """
    shapes = [(len(sources), num_channels, *size) for size in sizes]
    tensors = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
    failures: list[str] = []

    def work(i: int) -> None:
        try:
            image = load_image(sources[i], num_channels)
        except ValueError as error:
            failures.append(str(error))
            return
        for tensor, size in zip(tensors, sizes):
            tensor[i] = to_pixels(image, size)

    # Pillow decodes and resizes outside the interpreter's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(total=len(sources), desc="decode", unit="img", disable=not progress, delay=1)
        for _ in pool.map(work, range(len(sources))):
            bar.update()
        bar.close()
    if failures:
        shown = "\n  ".join(sorted(failures)[:5])
        raise ValueError(
            f"{len(failures)} of {len(sources)} images can't be read:\n  {shown}\n"
            "Repair or remove these files (and their rows in metadata.csv), then start again."
        )
    return tensors
