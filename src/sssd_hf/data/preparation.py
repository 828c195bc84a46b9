"""From one encoded image to the uint8 pixels a model's images are made of."""

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import load_image

Source = str | os.PathLike | bytes | dict  # what `load_image` takes


@dataclass(frozen=True)
class Preparation:
    """How images become arrays of one shape; the same for training, evaluation and prediction.

    Args:
        size: (height, width) of the result.
        num_channels: 1 or 3.
    """

    size: tuple[int, int]
    num_channels: int = 1


def prepare_image(source: Source, preparation: Preparation) -> np.ndarray:
    """(channels, height, width) uint8: squashed to size by Pillow's bilinear filter, as
    `ViTImageProcessor` does it.

    Raises:
        ImageError: see `load_image`.
    """
    image = load_image(source, preparation.num_channels)
    height, width = preparation.size
    pixels = np.array(image.resize((width, height), resample=Image.Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
