"""The batched augmentation against one image at a time, in Pillow, NumPy and SciPy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch.utils._python_dispatch import TorchDispatchMode

from sssd_hf.data.augment import (
    ERASED_AREA,
    NOISE_STREAM,
    PARAMETERS,
    PARAMETERS_STREAM,
    Augmentation,
    augment,
    inside,
    placement,
)
from sssd_hf.data.phantom import make_phantoms
from sssd_hf.modeling_sssd import sample_uniform

OFF = Augmentation(min_scale=1.0, flip=0.0)
CROPS = Augmentation(min_scale=0.4, vertical_flip=0.5)
TURNED = Augmentation(min_scale=0.7, max_scale=1.3, vertical_flip=0.5, rotation=20, shear=10)
# every option on; at the test's sizes the first filters before the rotation, the last reduces
ALL = {
    "crops": {"rotation": 0, "shear": 0, "blur": 0.5},
    "softened": {"rotation": 20, "shear": 10, "blur": 0.3},
    "reduced": {"rotation": 20, "shear": 10, "blur": 3.0},
}
ALL = {
    name: Augmentation(
        min_scale=0.5,
        max_scale=1.2,
        vertical_flip=0.5,
        translation=0.1,
        brightness=0.2,
        contrast=0.3,
        gamma=0.4,
        noise=0.1,
        erasing=0.5,
        **options,
    )
    for name, options in ALL.items()
}
LAST = 1 - 2.0**-24  # the largest number that is drawn


def random_images(count, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()


def phantoms(count, size):
    pictures = [phantom.image for phantom in make_phantoms(count, 1, size, seed=0)]
    return torch.from_numpy(np.stack(pictures))[:, None]


def draws(count, seed=0, **fixed):
    """A `sample` of independent numbers, some of the parameters fixed."""
    seeds = torch.arange(count) * 1000 + seed

    def sample(stream, *shape):
        numbers = sample_uniform(seeds, stream, *shape)
        if stream == PARAMETERS_STREAM:
            for name, value in fixed.items():
                numbers[:, PARAMETERS.index(name)] = torch.as_tensor(value)
        return numbers

    return sample


def parameters(sample):
    """For each image a dict of its numbers, in fp64."""
    numbers = sample(PARAMETERS_STREAM, len(PARAMETERS)).double().numpy()
    return [dict(zip(PARAMETERS, row)) for row in numbers]


def crop_of(u, options, shape):
    """Centre and sides (x before y) of an image's crop in pixels, as fractions of a pixel."""
    (height, width) = shape
    area = options.max_scale - u["scale"] * (options.max_scale - options.min_scale)
    ratio = options.max_aspect ** (2 * u["aspect"] - 1)  # of width over height
    longest = max(area, 1 / area)
    ratio = min(max(ratio, 1 / longest), longest)
    sides = width * math.sqrt(area * ratio), height * math.sqrt(area / ratio)
    shift_x = (2 * u["translation_x"] - 1) * options.translation
    shift_y = (2 * u["translation_y"] - 1) * options.translation
    centre_x = width / 2 + (u["x"] - 0.5) * (width - sides[0]) + shift_x * width
    centre_y = height / 2 + (u["y"] - 0.5) * (height - sides[1]) + shift_y * height
    return (centre_x, centre_y), sides


def flipped(image, u, options):
    """(channels, height, width), last step of an upright crop."""
    if u["horizontal_flip"] < options.flip:
        image = image[:, :, ::-1]
    return image[:, ::-1] if u["vertical_flip"] < options.vertical_flip else image


def pillow_crop(image, size, u, options, margin=0):
    """One image (channels, H, W) by Pillow, in fp32 (mode F), where the crop lies inside; with a
    margin it may reach that many pixels beyond."""
    (x, y), (width, height) = crop_of(u, options, image.shape[1:])
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) + margin
    limit = (padded.shape[2], padded.shape[1]) * 2
    box = tuple(np.clip(box, 0, limit).tolist())  # clipped by rounding errors alone
    results = [
        Image.fromarray(channel.astype(np.float32)).resize(size[::-1], Image.BILINEAR, box=box)
        for channel in padded
    ]
    return flipped(np.stack([np.asarray(result) for result in results]), u, options)


def linear_map(u, options, shape):
    """Centre, and the matrix from the result (-0.5 to 0.5) to pixels of the image, in fp64."""
    centre, (width, height) = crop_of(u, options, shape)
    angle = math.radians((2 * u["rotation"] - 1) * options.rotation)
    lean = math.tan(math.radians((2 * u["shear"] - 1) * options.shear))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    signs = [1 - 2 * (u["horizontal_flip"] < options.flip)]
    signs += [1 - 2 * (u["vertical_flip"] < options.vertical_flip)]
    scale = np.diag([width * signs[0], height * signs[1]])
    return centre, rotation @ np.array([[1, lean], [0, 1]]) @ scale


def positions(centre, matrix, size):
    """x and y, (height, width) each, in the image's pixels, 0.5 in the middle of the first."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in size), indexing="ij")
    return (
        centre[0] + matrix[0, 0] * x + matrix[0, 1] * y,
        centre[1] + matrix[1, 0] * x + matrix[1, 1] * y,
    )


def scipy_turn(image, size, u, options):
    """One image, filtered by three weights along each axis as far as it shrinks, then bilinear;
    "grid-mirror" is d c b a | a b c d."""
    centre, matrix = linear_map(u, options, image.shape[1:])
    x, y = positions(centre, matrix, size)
    pitch = (matrix / size[::-1]) ** 2  # squared pixels of the image to a step in the result
    results = []
    for channel in image.astype(np.float64):
        for axis, squared in ((1, pitch[0].sum()), (0, pitch[1].sum())):
            share = max(0, squared - 1) / 6
            weights = [share / 2, 1 - share, share / 2]
            channel = ndimage.correlate1d(channel, weights, axis, mode="nearest")
        results.append(
            ndimage.map_coordinates(channel, [y - 0.5, x - 0.5], order=1, mode="grid-mirror")
        )
    return np.stack(results)


def compare(images, size, options, reference, tolerance, **fixed):
    sample = draws(len(images), **fixed)
    found = augment(images, size, sample, options)
    assert found.shape == (*images.shape[:2], *size)
    assert found.dtype == torch.float32
    for image, u, result in zip(images.numpy(), parameters(sample), found.numpy()):
        np.testing.assert_allclose(result, reference(image, size, u, options), atol=tolerance)


# ---------------------------------------------------------------------- geometry

SHAPES = {"grey": (1, 40, 40), "colour": (3, 40, 40), "wide": (1, 24, 52), "tall": (3, 52, 24)}
SIZES = [(32, 32), (40, 40), (56, 48), (9, 13), (1, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options",
    [OFF, CROPS, Augmentation(min_scale=0.05, max_aspect=5.0), Augmentation(min_scale=0.95)],
    ids=["off", "crops", "small and long", "large"],
)
def test_crops_are_those_of_pillow(options, shape, size):
    compare(random_images(16, *shape), size, options, pillow_crop, tolerance=0.02)


def test_crops_are_within_a_grey_level_of_pillow_s_bytes():
    images, sample = random_images(16, 1, 50, 50), draws(16)
    found = augment(images, (32, 32), sample, CROPS)
    for image, u, result in zip(images.numpy(), parameters(sample), found.numpy()):
        (x, y), (width, height) = crop_of(u, CROPS, (50, 50))
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        expected = Image.fromarray(image[0]).resize((32, 32), Image.BILINEAR, box=box)
        expected = flipped(np.asarray(expected)[None], u, CROPS).astype(np.float64)
        assert np.abs(result - expected).max() <= 1.0


@pytest.mark.parametrize("options", [{"max_scale": 4.0}, {"translation": 0.5}], ids=str)
def test_what_lies_beyond_the_edge_is_mirrored(options):
    """Pillow on the mirrored image; the result is larger than the image, so that nothing shrinks
    and Pillow's filter, which would go on beyond the edge, gives the same."""
    options = Augmentation(vertical_flip=0.5, **options)
    reference = partial(pillow_crop, margin=40)
    compare(random_images(32, 1, 20, 24), (50, 60), options, reference, tolerance=0.02)


def test_mirrored_crops_that_shrink_are_pillow_s_far_from_the_edges():
    options, images, sample = Augmentation(max_scale=2.0), random_images(32, 1, 60, 60), draws(32)
    found = augment(images, (40, 40), sample, options)
    compared = 0
    for image, u, result in zip(images.numpy(), parameters(sample), found.numpy()):
        expected = pillow_crop(image, (40, 40), u, options, margin=60)
        centre, matrix = linear_map(u, options, (60, 60))
        half_width = np.abs(matrix).max() / 40
        away = np.ones((40, 40), bool)
        for place in positions(centre, matrix, (40, 40)):
            away &= np.abs((place + 30) % 60 - 30) > half_width
        compared += away.sum()
        np.testing.assert_allclose(result[:, away], expected[:, away], atol=0.02)
    assert compared > 0.5 * found.numel()


@pytest.mark.parametrize("scales", [(0.95, 0.95), (1.2, 0.9), (0.9, 1.05)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        Augmentation(flip=0.0, rotation=45, max_aspect=1.0),
        Augmentation(flip=0.0, shear=30, max_aspect=1.0),
        TURNED,
        Augmentation(min_scale=0.3, rotation=180, translation=0.4),
    ],
    ids=["rotation", "shear", "both", "far"],
)
def test_rotation_and_shear_are_those_of_scipy(options, shape, scales):
    """Where one pass of three weights is enough; see below for what shrinks more."""
    size = (round(shape[1] * scales[0]), round(shape[2] * scales[1]))
    compare(random_images(16, *shape), size, options, scipy_turn, tolerance=0.03)


def ideal(image, size, u, options):
    """One image by a triangle filter that is turned with the result: what the two fast ways are
    to come near to. As wide as a pixel of the result, or of the image where that is larger."""
    centre, matrix = linear_map(u, options, image.shape[1:])
    x, y = positions(centre, matrix, size)
    x, y = x.ravel()[:, None, None], y.ravel()[:, None, None]
    margin = 30
    padded = np.pad(image[0].astype(np.float64), margin, mode="symmetric")
    rows, columns = (np.arange(-margin, n + margin) + 0.5 for n in image.shape[1:])
    width, height = np.maximum(1, np.linalg.norm(matrix, axis=0) / size[::-1])
    (cos, sin), length = matrix[:, 0], np.linalg.norm(matrix[:, 0])
    dx, dy = columns[None, None, :] - x, rows[None, :, None] - y
    along = np.abs(cos * dx + sin * dy) / length / width
    across = np.abs(cos * dy - sin * dx) / length / height
    weights = np.maximum(0, 1 - along) * np.maximum(0, 1 - across)
    result = (weights * padded).sum((1, 2)) / weights.sum((1, 2))
    return result.reshape(1, *size)


@pytest.mark.parametrize("working_size", [40, 56, 100], ids="one_pass four_passes reduced".split())
def test_rotations_are_antialiased(working_size):
    """On pictures, the error to a turned triangle filter is small, and far below that of sampling
    the image as it is, which grows with the shrinking."""
    images, size = phantoms(4, working_size), (32, 32)
    options = Augmentation(min_scale=0.8, max_scale=1.2, rotation=30)
    sample = draws(4, seed=3)
    found = augment(images, size, sample, options).numpy()
    errors, bilinear_errors = [], []
    for image, u, result in zip(images.numpy(), parameters(sample), found):
        expected = ideal(image, size, u, options)
        x, y = positions(*linear_map(u, options, image.shape[1:]), size)
        bilinear = ndimage.map_coordinates(
            image[0].astype(np.float64), [y - 0.5, x - 0.5], order=1, mode="grid-mirror"
        )
        errors.append(np.square(result - expected).mean())
        bilinear_errors.append(np.square(bilinear - expected).mean())
    error, bilinear_error = math.sqrt(np.mean(errors)), math.sqrt(np.mean(bilinear_errors))
    assert error < 3.0
    assert error < 0.8 * bilinear_error


def test_everything_off_is_the_plain_resize():
    images = random_images(16, 3, 20, 28)
    assert torch.equal(augment(images, (20, 28), draws(16), OFF), images.float())
    expected = torch.nn.functional.interpolate(
        images.float(), (13, 17), mode="bilinear", antialias=True, align_corners=False
    )
    assert (augment(images, (13, 17), draws(16), OFF) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "dim"), [("flip", 3), ("vertical_flip", 2)])
def test_flips_happen_with_their_probability_and_are_exact(name, dim, probability):
    count = 2000
    images = random_images(1, 1, 6, 6).expand(count, -1, -1, -1)
    options = Augmentation(**{"flip": 0.0, name: probability})
    found = augment(images, (6, 6), draws(count), options)
    mirrored = (found == images.float().flip(dim)).all(3).all(2)[:, 0]
    kept = (found == images.float()).all(3).all(2)[:, 0]
    assert (mirrored ^ kept).all(), "each is one of the two"
    flips = int(mirrored.sum())
    if probability in (0.0, 1.0):
        assert flips == count * probability
    else:
        assert stats.binomtest(flips, count, probability).pvalue > 1e-4


def corners(sample, options, shape=(1, 1)):
    """(batch, 4, 2): where in the image the result's corners lie."""
    draw = dict(zip(PARAMETERS, sample(PARAMETERS_STREAM, len(PARAMETERS)).unbind(1)))
    center, matrix = placement(draw, options, shape, (2, 2))
    ends = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2)
    return center[:, None] + ends @ matrix.mT


@pytest.mark.parametrize("min_scale", [0.08, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("max_aspect", [1.0, 4 / 3, 6.0])
def test_crops_stay_inside_and_keep_their_area(min_scale, max_aspect):
    options = Augmentation(min_scale=min_scale, max_aspect=max_aspect, flip=0.5)
    ends = torch.cartesian_prod(*[torch.tensor([0.0, LAST])] * 4).T
    ends = dict(zip(("scale", "aspect", "x", "y"), ends))
    points = torch.cat([corners(draws(5000), options), corners(draws(16, **ends), options)])
    assert points.min() >= -1e-6
    assert points.max() <= 1 + 1e-6
    width, height = (points.amax(1) - points.amin(1)).unbind(1)
    area, aspect = width * height, width / height
    assert area.min() >= min_scale - 1e-5
    assert aspect.max() <= max_aspect * (1 + 1e-5)
    assert aspect.min() >= 1 / max_aspect * (1 - 1e-5)
    if min_scale < 1:  # the area is uniform from min_scale to 1, wherever the aspect went
        p = stats.kstest(area[:5000].numpy(), "uniform", (min_scale, 1 - min_scale)).pvalue
        assert p > 1e-4


def test_translation_is_uniform_and_no_larger_than_asked():
    middle = corners(draws(5000), Augmentation(translation=0.25), (40, 80)).mean(1)
    for place, side in zip(middle.unbind(1), (80, 40)):
        shift = place.numpy() / side - 0.5
        assert stats.kstest(shift, "uniform", (-0.25, 0.5)).pvalue > 1e-4


def test_a_crop_without_rotation_shows_nothing_outside_of_the_image():
    images = torch.full((64, 1, 40, 40), 7, dtype=torch.uint8)
    found = augment(images, (32, 32), draws(64), Augmentation(min_scale=0.2))
    assert (found - 7).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("rotation", "blur", "tolerance"),
    [(0, 2.0, 0.05), (1e-6, 0.5, 1e-3), (1e-6, 1.0, 1e-3), (1e-6, 3.0, 0.05)],
    ids=["crops", "softened", "softened twice", "reduced"],
)
def test_blur_has_the_standard_deviation_asked_for(rotation, blur, tolerance):
    """The second moment of what becomes of a single pixel. Where the filter also interpolates, the
    triangle's own 1/6 comes on top."""
    image = torch.zeros(1, 1, 61, 61, dtype=torch.uint8)
    image[:, :, 30, 30] = 255
    options = Augmentation(flip=0.0, rotation=rotation, blur=blur)
    found = augment(image, (61, 61), draws(1, blur=LAST, x=0.5, y=0.5), options)[0, 0].double()
    assert abs(found.sum().item() - 255) < 3.0
    distance = torch.arange(61) - 30.0
    for dim in (0, 1):
        variance = (found.sum(dim) * distance**2).sum().item() / found.sum().item()
        own = 0 if tolerance < 0.01 else 1 / 6
        assert variance == pytest.approx(blur**2 + own, rel=tolerance)


# ---------------------------------------------------------------------- grey values


def test_brightness_and_contrast():
    images, sample = random_images(16, 3, 12, 14), draws(16)
    found = augment(images, (12, 14), sample, Augmentation(flip=0, brightness=0.4, contrast=0.9))
    for image, u, result in zip(images.numpy().astype(float), parameters(sample), found.numpy()):
        expected = (image - image.mean()) * (1 + 0.9 * (2 * u["contrast"] - 1)) + image.mean()
        expected = (expected + 255 * 0.4 * (2 * u["brightness"] - 1)).clip(0, 255)
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_gamma():
    images, sample = random_images(32, 1, 12, 14), draws(32, gamma=torch.linspace(0, LAST, 32))
    found = augment(images, (12, 14), sample, Augmentation(flip=0, gamma=0.5))
    for image, u, result in zip(images.numpy() / 255, parameters(sample), found.numpy()):
        exponent = math.exp(math.log(1.5) * (2 * u["gamma"] - 1))
        np.testing.assert_allclose(result, 255 * image**exponent, atol=2e-3)


def test_noise_is_gaussian_and_of_the_size_drawn():
    images = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    sizes = torch.linspace(0.1, LAST, 8)
    found = augment(images, (64, 64), draws(8, noise=sizes), Augmentation(noise=0.08)) - 128
    for noise, size in zip(found.double().numpy(), sizes.tolist()):
        p = stats.kstest(noise.ravel(), "norm", (0, 255 * 0.08 * size)).pvalue
        assert p > 1e-4
    flat = found.flatten(1).double().numpy()
    channels = found.permute(1, 0, 2, 3).flatten(1).double().numpy()
    for rows in (flat, channels):  # images and channels are independent of each other
        off_diagonal = np.corrcoef(rows)[~np.eye(len(rows), dtype=bool)]
        assert np.abs(off_diagonal).max() < 5 / math.sqrt(rows.shape[1])


def test_noise_of_the_first_and_last_number_is_finite():
    def sample(stream, *shape):
        numbers = torch.full((1, *shape), 0.5)
        if stream == NOISE_STREAM:
            numbers[..., ::2] = 0.0
            numbers[..., 1::2] = LAST
        return numbers

    images = torch.full((1, 1, 8, 8), 128, dtype=torch.uint8)
    found = augment(images, (8, 8), sample, Augmentation(noise=0.1)) - 128
    largest = stats.norm.ppf(1 - 2.0**-25) * 255 * 0.05
    assert found.max().item() == pytest.approx(largest, rel=1e-3)
    assert found.min().item() == pytest.approx(-largest, rel=1e-3)


def test_erasing_sets_rectangles_to_the_mean():
    count, side = 600, 60
    images = random_images(count, 2, side, side)  # two channels: each has its own mean
    found = augment(images, (side, side), draws(count), Augmentation(flip=0, erasing=0.7))
    changed = (found != images).any(1).numpy()
    assert stats.binomtest(int(changed.any((1, 2)).sum()), count, 0.7).pvalue > 1e-4
    areas, rows_first = [], []
    for image, result, mask in zip(images.numpy(), found.numpy(), changed):
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        mean = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)
        np.testing.assert_allclose(result[box], mean[box], atol=1e-3)
        areas.append(len(rows) * len(columns) / side**2)
        rows_first.append(rows[0] / (side - len(rows)))
    assert min(areas) > ERASED_AREA[0] * 0.7  # the edges are rounded to pixels
    assert max(areas) < ERASED_AREA[1] * 1.1
    width = ERASED_AREA[1] - ERASED_AREA[0]
    assert stats.kstest(areas, "uniform", (ERASED_AREA[0], width)).statistic < 0.1
    assert stats.kstest(rows_first, "uniform").statistic < 0.1


def test_pixels_inside_a_box():
    box = torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.9]])
    found = inside(box, (4, 8))
    expected = torch.zeros(3, 4, 8, dtype=torch.bool)
    expected[0, :2, 2:6] = True
    expected[1] = True
    assert torch.equal(found, expected)


# ---------------------------------------------------------------------- all of it


@pytest.mark.parametrize("options", ALL.values(), ids=ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_has_the_same_bits_in_any_batch(options, channels):
    images, seeds = random_images(9, channels, 40, 44), torch.arange(9) * 7919
    whole = augment(images, (32, 36), partial(sample_uniform, seeds), options)
    for part in ([0], [4], [8], [3, 1], [8, 7, 6, 5, 4, 3, 2, 1, 0]):
        sample = partial(sample_uniform, seeds[part])
        assert torch.equal(augment(images[part], (32, 36), sample, options), whole[part])


@pytest.mark.parametrize("value", [0.0, 0.5, LAST])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 90), (3, 33, 31)], ids=str)
def test_extreme_values_stay_in_0_to_255(shape, value):
    images = random_images(16, *shape) // 128 * 255
    extreme = Augmentation(
        min_scale=0.01,
        max_scale=4.0,
        max_aspect=4.0,
        flip=1.0,
        vertical_flip=1.0,
        rotation=180,
        shear=45,
        translation=1.0,
        brightness=1.0,
        contrast=1.0,
        gamma=4.0,
        blur=10.0,
        noise=1.0,
        erasing=1.0,
    )
    drawn = draws(16, **dict.fromkeys(PARAMETERS, value))
    upright = Augmentation(**{**vars(extreme), "rotation": 0, "shear": 0})
    mild = Augmentation(**{**vars(extreme), "blur": 0, "max_scale": 1.0, "shear": 1})
    for options in (extreme, upright, mild):
        for size in ((1, 1), (16, 24), (64, 64)):
            for sample in (drawn, draws(16)):
                found = augment(images, size, sample, options)
                assert found.isfinite().all()
                assert found.min() >= 0
                assert found.max() <= 255


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_what_is_off_costs_nothing():
    streams = []

    def sample(stream, *shape):
        streams.append(stream)
        return torch.full((4, *shape), 0.3)

    images = random_images(4, 1, 20, 20)
    costly = {"grid_sampler_2d", "erfinv", "mean", "replication_pad2d", "where"}
    with Operations() as operations:
        augment(images, (16, 16), sample, OFF)
    assert streams == [PARAMETERS_STREAM]
    assert not costly - {"where"} & operations.names
    with Operations() as operations:
        augment(images, (16, 16), sample, ALL["softened"])
    assert costly <= operations.names
    assert streams[1:] == [PARAMETERS_STREAM, NOISE_STREAM]


@pytest.mark.parametrize("options", ALL.values(), ids=ALL)
def test_nothing_is_read_by_the_host(options):
    """Tensors on the meta device have no values, and mix with no tensor of another device."""

    def sample(stream, *shape):
        return torch.empty((4, *shape), device="meta")

    images = torch.empty((4, 1, 40, 40), dtype=torch.uint8, device="meta")
    assert augment(images, (32, 32), sample, options).shape == (4, 1, 32, 32)
