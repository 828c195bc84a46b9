"""Augmentation of a whole batch in tensor code, on the device the batch lies on.

In this order, each only where its option is on: crop, flips, rotation, shear and translation in one
resampling (antialiased, with the blur in the same filter); brightness and contrast; gamma; noise;
erasing. What an image gets is a function of its own random numbers, not of its neighbours in the
batch. On a CPU the result has the same bits in any batch. On a GPU matrix products and means of
another batch size, and between CPU and GPU all floating-point functions, may differ in the last
bits of fp32; TF32 products, where they are allowed, cost some tenths of a grey level. Call it
outside of autocast, whose products would cost a whole one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# sample(stream, *shape) -> (batch, *shape) fp32, uniform in [0, 1): an image's random numbers,
# independent in each stream
Sample = Callable[..., Tensor]

PARAMETERS_STREAM, NOISE_STREAM = 0, 1
# the numbers of the first stream, in this order; append new ones, so that old ones stay the same
PARAMETERS = (
    "scale aspect x y horizontal_flip rotation brightness contrast vertical_flip translation_x "
    "translation_y shear blur gamma noise erasing erased_area erased_aspect erased_x erased_y"
).split()
ERASED_AREA = (0.02, 0.2)  # of the image; arXiv 1708.04896 goes up to 0.4, which hides lesions
ERASED_ASPECT = 3.0
# of the filter before a rotation; where it would need more, the image is made smaller instead
MAX_PASSES = 4


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; zero switches one off, and scales of 1 the crops.

    Args:
        min_scale, max_scale: the smallest and largest area of a crop, as a share of the image's;
            above 1 it reaches beyond the image, which is mirrored there. With a mean of 1 things
            are as large in training as in evaluation (arXiv 1906.06423).
        max_aspect: a crop's sides differ by at most this factor, >= 1.
        flip, vertical_flip: probabilities.
        rotation: degrees to either side.
        shear: degrees that vertical lines lean to either side, below 90.
        translation: largest shift along each axis, as a share of the image's side.
        brightness, contrast: largest relative change, 0 to 1.
        gamma: exponents of the grey values (0 to 1) lie between 1 / (1 + gamma) and 1 + gamma.
        blur: largest standard deviation of the blur, in pixels of the result.
        noise: largest standard deviation of Gaussian noise, as a share of 255.
        erasing: probability that a rectangle is set to the image's mean.
    """

    min_scale: float = 1.0
    max_scale: float = 1.0
    max_aspect: float = 4 / 3
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erasing: float = 0.0


def augment(
    images: Tensor, size: tuple[int, int], sample: Sample, augmentation: Augmentation
) -> Tensor:
    """Images as a model sees them in training, before normalisation.

    Args:
        images: (batch, channels, H, W) uint8.
        size: (height, width) of the result.
        sample: (stream, *shape) -> (batch, *shape) fp32 uniform in [0, 1), on the images' device.

    Returns:
        (batch, channels, height, width) fp32 in 0 to 255.
    """
    numbers = sample(PARAMETERS_STREAM, len(PARAMETERS)).unbind(1)
    draw = dict(zip(PARAMETERS, numbers))
    shape = (images.shape[2], images.shape[3])
    center, matrix = placement(draw, augmentation, shape, size)
    squared_width = _squared_width(matrix, draw["blur"] * augmentation.blur)
    pixels = images.float()
    if augmentation.rotation or augmentation.shear:
        # three weights, such as 1 2 1, have a variance of at most 1/2; bilinear sampling has 1/6
        largest = (_largest_squared_width(augmentation, shape, size) - 1) / 6
        passes = math.ceil(2 * largest)
        if passes <= MAX_PASSES:
            variance = (squared_width - 1) / 6
            result = _turn_softened(pixels, center, matrix, variance, passes, size)
        else:
            result = _turn_reduced(pixels, center, matrix, squared_width, size, augmentation)
    else:
        steps = matrix.diagonal(dim1=1, dim2=2)
        result = resample(pixels, center, steps, squared_width.sqrt(), size)
    return _recolor(result, draw, sample, augmentation).clamp_(0, 255)


# ---------------------------------------------------------------------- geometry


def placement(
    draw: dict[str, Tensor],
    augmentation: Augmentation,
    shape: tuple[int, int],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Where in its image each result lies.

    Args:
        draw: name of `PARAMETERS` -> (batch,) in [0, 1).
        shape: (H, W) of the images.
        size: (height, width) of the results.

    Returns:
        center: (batch, 2), x and y in pixels of the image, whose corner is (0, 0).
        matrix: (batch, 2, 2): what is (x, y) pixels from the middle of the result is `matrix @
            (x, y)` pixels of the image from the center. Diagonal without rotation and shear.
    """
    scales = augmentation.max_scale - augmentation.min_scale
    side = (augmentation.max_scale - draw["scale"] * scales).sqrt()  # root of the crop's area
    aspect = augmentation.max_aspect ** (draw["aspect"] - 0.5)  # the root of width over height
    bound = torch.minimum(side, 1 / side)
    aspect = aspect.clamp(bound, 1 / bound)  # one side alone never leaves the image
    width, height = side * aspect, side / aspect
    shift_x = (2 * draw["translation_x"] - 1) * augmentation.translation
    shift_y = (2 * draw["translation_y"] - 1) * augmentation.translation
    center_x = 0.5 + (draw["x"] - 0.5) * (1 - width) + shift_x
    center_y = 0.5 + (draw["y"] - 0.5) * (1 - height) + shift_y
    center = torch.stack([center_x * shape[1], center_y * shape[0]], dim=1)
    step_x, step_y = width * (shape[1] / size[1]), height * (shape[0] / size[0])
    step_x = torch.where(draw["horizontal_flip"] < augmentation.flip, -step_x, step_x)
    step_y = torch.where(draw["vertical_flip"] < augmentation.vertical_flip, -step_y, step_y)
    # in pixels, so that a rotation does not shear an image that is not square
    angle = torch.deg2rad((2 * draw["rotation"] - 1) * augmentation.rotation)
    lean = torch.deg2rad((2 * draw["shear"] - 1) * augmentation.shear).tan()
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * step_x, (cos * lean - sin) * step_y, sin * step_x, (sin * lean + cos) * step_y]
    return center, torch.stack(rows, dim=1).unflatten(1, (2, 2))


def _squared_width(matrix: Tensor, blur: Tensor) -> Tensor:
    """(batch, 2): the triangle filter each result needs, as the square of its half-width along the
    image's x and y, in the image's pixels.

    The half-width is a pixel of the result, or of the image where that is larger, as in Pillow. A
    triangle's variance is a sixth of this square; `blur` (batch,), the standard deviation in pixels
    of the result, adds to it.
    """
    pitch = (matrix**2).sum(2)
    return pitch.clamp(min=1) + 6 * blur[:, None] ** 2 * pitch


def _largest_squared_width(
    augmentation: Augmentation, shape: tuple[int, int], size: tuple[int, int]
) -> float:
    """A bound of the same, without a look at the draws, which would make the host wait."""
    area = augmentation.max_scale * augmentation.max_aspect
    lean = _tan(augmentation.shear)
    pitch = max(shape[0] / size[0], shape[1] / size[1]) ** 2 * area * (1 + lean) ** 2
    return max(1, pitch) + 6 * augmentation.blur**2 * pitch


def _weights(position: Tensor, half_width: Tensor, length: int) -> Tensor:
    """(batch, results, length): the share of each of `length` pixels in a result.

    Beyond the edge lies what is as far inside; the filter itself ends at the edge, as Pillow's.

    Args:
        position: (batch, results), in pixels from the edge.
        half_width: (batch,) of the triangle, >= 1 pixel.
    """
    position = position.remainder(2 * length)
    position = torch.minimum(position, 2 * length - position)
    pixels = torch.arange(length, device=position.device) + 0.5
    weights = position[:, :, None] - pixels
    weights.abs_().mul_(-1 / half_width[:, None, None]).add_(1).relu_()
    return weights.div_(weights.sum(2, keepdim=True))


def _offsets(length: int, device: torch.device) -> Tensor:
    """(length,): from the middle to the pixel centres, in pixels."""
    return torch.arange(length, device=device) + (0.5 - length / 2)


def resample(
    pixels: Tensor, center: Tensor, steps: Tensor, half_width: Tensor, size: tuple[int, int]
) -> Tensor:
    """Crop, flip and resize by a triangle filter, as two matrix products an image.

    Equal to Pillow's `resize(box=..., resample=BILINEAR)`, but not rounded to 8 bits, and mirrored
    where the box leaves the image.

    Args:
        pixels: (batch, channels, H, W) fp32.
        center: (batch, 2) of the boxes, x and y in pixels.
        steps: (batch, 2), pixels from one of the result to the next; negative ones flip.
        half_width: (batch, 2) of the filter along x and y, in pixels, >= 1.
        size: (height, width) of the result.

    Returns:
        (batch, channels, height, width) fp32.
    """
    (height, width), device = size, pixels.device
    x = center[:, :1] + steps[:, :1] * _offsets(width, device)  # (batch, width)
    y = center[:, 1:] + steps[:, 1:] * _offsets(height, device)
    along_x = _weights(x, half_width[:, 0], pixels.shape[3])  # (batch, width, W)
    along_y = _weights(y, half_width[:, 1], pixels.shape[2])
    rows = pixels.flatten(1, 2) @ along_x.mT  # (batch, channels * H, width)
    return along_y[:, None] @ rows.unflatten(1, pixels.shape[1:3])


def _grid(center: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, height, width, 2): x and y of the result's pixels, `center + matrix @ offset`.

    One pass over the memory; F.affine_grid takes 8 times as long on a CPU.
    """
    (height, width), device = size, matrix.device
    columns = center[:, None] + matrix[:, None, :, 0] * _offsets(width, device)[:, None]
    columns = columns.flatten(1)[:, None]  # (batch, 1, 2 * width): x and y in turn
    step = matrix[:, :, 1].repeat(1, width)[:, None]
    rows = _offsets(height, device)[:, None]
    return torch.addcmul(columns, step, rows).unflatten(2, (width, 2))


def _turn_softened(
    pixels: Tensor, center: Tensor, matrix: Tensor, variance: Tensor, passes: int, size: tuple
) -> Tensor:
    """The result by one bilinear sampling of the image, filtered before: `passes` times along each
    axis with three weights, so that the variance (batch, 2) is added."""
    for dim, share in ((3, variance[:, 0]), (2, variance[:, 1])):
        share = share[:, None, None, None] / max(1, passes)
        pad, n = (1, 1, 0, 0) if dim == 3 else (0, 0, 1, 1), pixels.shape[dim]
        for _ in range(passes):
            padded = F.pad(pixels, pad, mode="replicate")
            both = padded.narrow(dim, 0, n) + padded.narrow(dim, 2, n)
            pixels = torch.lerp(pixels, both.mul_(0.5), share)
    halves = _pair(pixels.shape[3] / 2, pixels.shape[2] / 2, like=center)
    grid = _grid(center / halves - 1, matrix / halves[:, :, None], size)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _turn_reduced(
    pixels: Tensor,
    center: Tensor,
    matrix: Tensor,
    squared_width: Tensor,
    size: tuple[int, int],
    augmentation: Augmentation,
) -> Tensor:
    """The same where an image shrinks much: the upright box around the result is first resampled
    at sqrt(2) pixels to one of the result, so that it and the bilinear sampling blur alike."""
    angle = math.radians(min(augmentation.rotation, 45))
    grow = math.sqrt(2) * (math.cos(angle) + math.sin(angle) + _tan(augmentation.shear))
    height, width = (math.ceil(grow * n) for n in size)
    sides = (matrix.abs() * _pair(size[1], size[0], like=center)[:, None]).sum(2)  # of the box
    steps = sides / _pair(width, height, like=center)
    half_width = (squared_width - steps**2).clamp(min=1).sqrt()  # the sampling adds the rest
    pixels = resample(pixels, center, steps, half_width, (height, width))
    grid = _grid(torch.zeros_like(center), 2 * matrix / sides[:, :, None], size)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _pair(x: float, y: float, like: Tensor) -> Tensor:
    """(batch, 2) of the same two numbers; a copy from the host would make it wait."""
    return torch.stack([torch.full_like(like[:, 0], x), torch.full_like(like[:, 0], y)], dim=1)


def _tan(degrees: float) -> float:
    return math.tan(math.radians(degrees))


# ---------------------------------------------------------------------- grey values


def _recolor(
    pixels: Tensor, draw: dict[str, Tensor], sample: Sample, augmentation: Augmentation
) -> Tensor:
    """Brightness, contrast, gamma, noise and erasing of (batch, channels, height, width)."""
    draw = {name: number[:, None, None, None] for name, number in draw.items()}
    if augmentation.brightness or augmentation.contrast:
        brightness = 255 * augmentation.brightness * (2 * draw["brightness"] - 1)
        contrast = 1 + augmentation.contrast * (2 * draw["contrast"] - 1)
        # by rows first: a sum over a whole image is split differently in a batch of one
        mean = pixels.mean(3, keepdim=True).mean((1, 2), keepdim=True)
        pixels = torch.addcmul(mean * (1 - contrast) + brightness, pixels, contrast)
    if augmentation.gamma:
        exponent = (1 + augmentation.gamma) ** (2 * draw["gamma"] - 1)
        pixels = pixels.clamp(0, 255).div_(255).pow_(exponent).mul_(255)
    if augmentation.noise:
        uniform = sample(NOISE_STREAM, *pixels.shape[1:])
        # the middle of each of the 2^24 steps, so that -1 and 1 are never met
        normal = math.sqrt(2) * torch.erfinv(2 * uniform - (1 - 2.0**-24))
        pixels = torch.addcmul(pixels, normal, 255 * augmentation.noise * draw["noise"])
    if augmentation.erasing:
        mean = pixels.mean(3, keepdim=True).mean(2, keepdim=True)
        pixels = torch.where(_erased(draw, augmentation, pixels.shape[2:]), mean, pixels)
    return pixels


def _erased(draw: dict[str, Tensor], augmentation: Augmentation, size: tuple[int, int]) -> Tensor:
    """(batch, 1, height, width) bool."""
    smallest, largest = ERASED_AREA
    area = smallest + (largest - smallest) * draw["erased_area"]
    aspect = ERASED_ASPECT ** (draw["erased_aspect"] - 0.5)  # the root of width over height
    height, width = area.sqrt() / aspect, area.sqrt() * aspect
    top, left = draw["erased_y"] * (1 - height), draw["erased_x"] * (1 - width)
    box = torch.cat([top, left, top + height, left + width], dim=1).flatten(1)
    return inside(box, size)[:, None] & (draw["erasing"] < augmentation.erasing)


def inside(box: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, height, width) bool: pixels whose centres lie in a box.

    Args:
        box: (batch, 4), top, left, bottom and right as shares of the sides.
    """
    y, x = (_offsets(n, box.device) / n + 0.5 for n in size)
    top, left, bottom, right = box[:, :, None].unbind(1)  # (batch, 1) each
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]
