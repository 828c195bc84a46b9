"""Augmentation of a whole batch in tensor code, on the device the batch lies on.

Every function takes the random numbers as an argument, uniform in [0, 1), one row an image: what an
image gets does not depend on its neighbours in the batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

NUM_UNIFORMS = 8  # numbers an image needs


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; zero switches one off, and scales of 1 the crops.

    Args:
        min_scale, max_scale: the smallest and largest area of a crop, as a share of the image's;
            above 1 it reaches beyond the image, which is mirrored there. With a mean of 1 things
            are as large in training as in evaluation (arXiv 1906.06423).
        max_aspect: a crop's sides differ by at most this factor, >= 1.
        flip: probability of a horizontal flip.
        rotation: degrees to either side.
        brightness, contrast: largest relative change, 0 to 1.
    """

    min_scale: float = 1.0
    max_scale: float = 1.0
    max_aspect: float = 4 / 3
    flip: float = 0.5
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0


def affine_matrices(
    uniform: torch.Tensor, augmentation: Augmentation, ratio: float = 1.0
) -> torch.Tensor:
    """(batch, 2, 3) matrices from output to input, both in [-1, 1] (x right, y down); `ratio` is
    the images' height over width, so that a rotation does not shear."""
    scales = augmentation.max_scale - augmentation.min_scale
    side = (augmentation.max_scale - uniform[:, 0] * scales).sqrt()  # root of the crop's area
    aspect = augmentation.max_aspect ** (uniform[:, 1] - 0.5)  # the root of width over height
    bound = torch.minimum(side, 1 / side)
    aspect = aspect.clamp(bound, 1 / bound)  # one side alone never leaves the image
    width, height = side * aspect, side / aspect
    center_x = (2 * uniform[:, 2] - 1) * (1 - width)
    center_y = (2 * uniform[:, 3] - 1) * (1 - height)
    width = torch.where(uniform[:, 4] < augmentation.flip, -width, width)
    angle = torch.deg2rad((2 * uniform[:, 5] - 1) * augmentation.rotation)
    cos, sin = angle.cos(), angle.sin()
    rows = [width * cos, -height * sin * ratio, center_x]
    rows += [width * sin / ratio, height * cos, center_y]
    return torch.stack(rows, dim=1).unflatten(1, (2, 3))


def augment(
    images: torch.Tensor,
    size: tuple[int, int],
    uniform: torch.Tensor,
    augmentation: Augmentation,
) -> torch.Tensor:
    """Random resized crop, flip, rotation, brightness and contrast.

    Args:
        images: (batch, channels, H, W) uint8.
        size: (height, width) of the result.
        uniform: (batch, NUM_UNIFORMS) in [0, 1).

    Returns:
        (batch, channels, height, width) fp32 in 0 to 255.
    """
    matrices = affine_matrices(uniform, augmentation, images.shape[2] / images.shape[3])
    grid = F.affine_grid(matrices, [len(images), 1, *size], align_corners=False)
    result = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if augmentation.brightness or augmentation.contrast:
        brightness = 255 * augmentation.brightness * (2 * uniform[:, 6] - 1)
        contrast = 1 + augmentation.contrast * (2 * uniform[:, 7] - 1)
        mean = result.mean((1, 2, 3), keepdim=True)
        result = (result - mean) * contrast.view(-1, 1, 1, 1) + mean + brightness.view(-1, 1, 1, 1)
        result = result.clamp(0, 255)
    return result
