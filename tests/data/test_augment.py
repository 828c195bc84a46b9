"""The batched augmentation against one image at a time, in NumPy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from sssd_hf.data.augment import NUM_UNIFORMS, Augmentation, affine_matrices, augment

OFF = Augmentation(min_scale=1.0, flip=0.0)
ALL = Augmentation(min_scale=0.4, flip=0.5, rotation=20, brightness=0.2, contrast=0.3)


def random_images(count, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()


def random_uniforms(count, seed=1):
    return torch.rand(count, NUM_UNIFORMS, generator=torch.Generator().manual_seed(seed))


def reference(image, size, u, options):
    """One image (channels, H, W), one pixel position at a time, in pixel coordinates and fp64."""
    image_height, image_width = image.shape[1:]
    height, width = size
    area = 1 - u[0] * (1 - options.min_scale)
    root = math.sqrt(options.max_aspect ** (2 * u[1] - 1))  # of the crop's width over its height
    root = min(max(root, math.sqrt(area)), 1 / math.sqrt(area))
    crop_width = image_width * math.sqrt(area) * root
    crop_height = image_height * math.sqrt(area) / root
    centre_x = image_width / 2 + (u[2] - 0.5) * (image_width - crop_width)
    centre_y = image_height / 2 + (u[3] - 0.5) * (image_height - crop_height)
    angle = math.radians((2 * u[5] - 1) * options.rotation)
    # pixel centres of the result, relative to the crop's centre
    x = ((np.arange(width) + 0.5) / width - 0.5)[None, :] * crop_width
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None] * crop_height
    if u[4] < options.flip:
        x = -x
    source_x = centre_x + math.cos(angle) * x - math.sin(angle) * y - 0.5
    source_y = centre_y + math.sin(angle) * x + math.cos(angle) * y - 0.5
    result = np.stack(
        [
            # "grid-mirror" is d c b a | a b c d, as reflection about the outer edge of the pixels
            ndimage.map_coordinates(
                channel.astype(np.float64), [source_y, source_x], order=1, mode="grid-mirror"
            )
            for channel in image
        ]
    )
    if options.brightness or options.contrast:
        mean = result.mean()
        result = (result - mean) * (1 + options.contrast * (2 * u[7] - 1)) + mean
        result = (result + 255 * options.brightness * (2 * u[6] - 1)).clip(0, 255)
    return result


@pytest.mark.parametrize(
    "options",
    [
        OFF,
        Augmentation(min_scale=0.3, flip=0.0),
        Augmentation(min_scale=0.9, flip=0.0, max_aspect=3.0),
        Augmentation(flip=0.5),
        Augmentation(flip=0.0, rotation=45),
        Augmentation(flip=0.0, brightness=0.5),
        Augmentation(flip=0.0, contrast=0.9),
        ALL,
    ],
    ids=["off", "crop", "long", "flip", "rotation", "brightness", "contrast", "all"],
)
@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 24, 36)], ids=["grey", "colour"])
def test_equal_to_the_reference(options, shape):
    images, uniform = random_images(24, *shape), random_uniforms(24)
    size = (round(shape[1] * 0.8), round(shape[2] * 0.8))
    found = augment(images, size, uniform, options)
    assert found.shape == (24, shape[0], *size)
    assert found.dtype == torch.float32
    for image, u, result in zip(images.numpy(), uniform.double().numpy(), found.numpy()):
        np.testing.assert_allclose(result, reference(image, size, u, options), atol=0.02)


def test_identity_when_everything_is_off():
    images = random_images(16, 3, 20, 28)
    found = augment(images, (20, 28), random_uniforms(16), OFF)
    assert (found - images.float()).abs().max() < 1e-3


def test_an_image_does_not_depend_on_its_batch():
    images, uniform = random_images(9, 1, 32, 32), random_uniforms(9)
    whole = augment(images, (24, 24), uniform, ALL)
    for i in (0, 4, 8):
        alone = augment(images[i : i + 1], (24, 24), uniform[i : i + 1], ALL)
        assert (alone[0] - whole[i]).abs().max() < 1e-3
    turned = augment(images.flip(0), (24, 24), uniform.flip(0), ALL).flip(0)
    assert (turned - whole).abs().max() < 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_happen_with_their_probability_and_are_exact(probability):
    count = 2000
    images = random_images(1, 1, 6, 6).expand(count, -1, -1, -1)
    options = Augmentation(min_scale=1.0, flip=probability)
    found = augment(images, (6, 6), random_uniforms(count), options)
    mirrored = (found - images.float().flip(3)).abs().amax((1, 2, 3)) < 1e-2
    kept = (found - images.float()).abs().amax((1, 2, 3)) < 1e-2
    assert (mirrored ^ kept).all(), "each is one of the two"
    flips = int(mirrored.sum())
    if probability in (0.0, 1.0):
        assert flips == count * probability
    else:
        assert stats.binomtest(flips, count, probability).pvalue > 1e-4


def corners(matrices):
    """Input coordinates of the result's four corners: (batch, 4, 2)."""
    ends = torch.tensor([(x, y, 1.0) for x in (-1, 1) for y in (-1, 1)])
    return torch.einsum("bij,cj->bci", matrices, ends)


@pytest.mark.parametrize("min_scale", [0.08, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("max_aspect", [1.0, 4 / 3, 6.0])
def test_crops_stay_inside_and_keep_their_area(min_scale, max_aspect):
    options = Augmentation(min_scale=min_scale, max_aspect=max_aspect, flip=0.5)
    uniform = random_uniforms(5000)
    uniform[:64] = torch.cartesian_prod(*[torch.tensor([0.0, 0.9999999])] * 6).repeat(1, 2)[:, :8]
    points = corners(affine_matrices(uniform, options))
    assert points.abs().max() <= 1 + 1e-5
    width, height = (points.amax(1) - points.amin(1)).div(2).unbind(1)
    area, aspect = width * height, width / height
    assert area.min() >= min_scale - 1e-5
    assert aspect.max() <= max_aspect * (1 + 1e-5)
    assert aspect.min() >= 1 / max_aspect * (1 - 1e-5)
    if min_scale < 1:  # the area is uniform from min_scale to 1, wherever the aspect went
        p = stats.kstest(area[64:].numpy(), "uniform", (min_scale, 1 - min_scale)).pvalue
        assert p > 1e-4


def test_a_crop_without_rotation_shows_nothing_outside_of_the_image():
    """A bright frame two pixels outside of the crops would show, were it read."""
    images = torch.full((64, 1, 40, 40), 7, dtype=torch.uint8)
    found = augment(images, (32, 32), random_uniforms(64), Augmentation(min_scale=0.2))
    assert (found - 7).abs().max() < 1e-4


def test_values_stay_in_0_to_255():
    images = random_images(64, 1, 16, 16) // 128 * 255
    strong = Augmentation(min_scale=0.2, rotation=180, brightness=1.0, contrast=1.0)
    found = augment(images, (16, 16), random_uniforms(64), strong)
    assert found.min() >= 0
    assert found.max() <= 255
    assert found.min() == 0, "and the clamp is reached"
    assert found.max() == 255


def test_rotation_does_not_shear_a_wide_image():
    matrices = affine_matrices(
        torch.full((1, NUM_UNIFORMS), 1.0), Augmentation(flip=0.0, rotation=30), ratio=0.5
    )
    half = torch.tensor([[2.0], [1.0]])  # width and height of the image
    linear = matrices[0, :, :2] * half / half.T  # in pixels, not in [-1, 1]
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    assert torch.allclose(linear, torch.tensor([[cos, -sin], [sin, cos]]), atol=1e-6)
