"""Resize modes against Pillow's own, windows by name, and what a config stores."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from sssd_hf.data.preparation import RESIZE_MODES, Preparation, prepare_image, resize
from sssd_hf.data.windows import NAMED_WINDOWS, apply_window, parse_windows

BILINEAR = Image.Resampling.BILINEAR
SHAPES = [(45, 37), (200, 90), (16, 16), (33, 301), (1, 400), (400, 1), (2, 2)]


def picture(shape, mode="L", seed=0):
    """Noise without black, (width, height)."""
    size = (shape[1], shape[0], *((3,) if mode == "RGB" else ()))
    return Image.fromarray(np.random.default_rng(seed).integers(40, 256, size, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_shows_all_in_its_aspect(shape, size, mode):
    image = picture(shape, mode)
    found = resize(image, size, "letterbox")
    assert found.size == (size[1], size[0])
    if min(shape) > 1:  # Pillow's own fails where a side is rounded to nothing
        inner = ImageOps.contain(image, found.size, BILINEAR)
        expected = ImageOps.pad(image, found.size, BILINEAR, color=None, centering=(0.5, 0.5))
        assert abs(np.asarray(expected, int) - np.asarray(found)).mean() < 60  # by a row at most
        values = np.asarray(found).reshape(*size, -1)
        rows, columns = values.any((1, 2)), values.any((0, 2))
        assert (columns.sum(), rows.sum()) == pytest.approx(inner.size, abs=1)
        top, left = rows.argmax(), columns.argmax()
        assert abs(2 * top + rows.sum() - size[0]) <= 1  # in the middle
        assert abs(2 * left + columns.sum() - size[1]) <= 1
        cut = values[top : top + rows.sum(), left : left + columns.sum()]
        exact = image.resize((int(columns.sum()), int(rows.sum())), BILINEAR)
        np.testing.assert_array_equal(cut, np.asarray(exact).reshape(cut.shape))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
@pytest.mark.parametrize("shape", SHAPES)
def test_center_crop_is_pillows_fit(shape, size):
    image = picture(shape)
    found = resize(image, size, "center_crop")
    expected = ImageOps.fit(image, (size[1], size[0]), BILINEAR)
    difference = np.asarray(found, int) - np.asarray(expected)
    # Pillow rounds the cut differently in the last bits
    assert abs(difference).max() <= 1


def test_of_the_models_aspect_all_modes_are_the_same():
    image = picture((96, 64))
    results = [np.asarray(resize(image, (32, 48), mode)) for mode in RESIZE_MODES]
    np.testing.assert_array_equal(results[0], np.asarray(image.resize((48, 32), BILINEAR)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_windows_do_not_touch_ordinary_images(tmp_path):
    picture((30, 20), "RGB").save(tmp_path / "a.png")
    plain = prepare_image(tmp_path / "a.png", Preparation((8, 8), 3))
    windows = parse_windows("lung,mediastinum,bone")
    np.testing.assert_array_equal(
        prepare_image(tmp_path / "a.png", Preparation((8, 8), 3, windows=windows)), plain
    )


def test_window_by_name_and_by_numbers():
    assert parse_windows("lung") == ((-600, 1500),)
    assert parse_windows("-600/1500") == parse_windows("Lung ")
    assert parse_windows("lung, 40.5/400,bone") == ((-600, 1500), (40.5, 400), (400, 1800))
    for text in ("", "liver", "40", "40/0", "40/-3", "nan/4", "4/inf", "1/2/3", "lung,,bone"):
        with pytest.raises(ValueError, match=r"--window: found .*lung, mediastinum, bone.*-600/1"):
            parse_windows(text)


def test_window_in_closed_form():
    values = np.array([-5000, -1350, -1344, -600, 149, 150, 151, 9000], np.int16)
    levels = [0, 0, round(6 / 1500 * 255), 128, 255, 255, 255, 255]
    assert apply_window(values, NAMED_WINDOWS["lung"]).tolist() == levels


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("windows", [None, "lung", "lung,mediastinum,bone"])
def test_stored_as_json_and_read_back(mode, windows):
    windows = windows and parse_windows(windows)
    preparation = Preparation((32, 48), 3, mode, windows, "coronal")
    stored = json.loads(json.dumps(preparation.to_dict()))
    assert set(stored) == {"resize_mode", "windows", "slice_axis"}
    assert Preparation.from_dict(stored, (32, 48), 3) == preparation
    assert Preparation.from_dict(None, (8, 8), 1) == Preparation((8, 8))


def test_impossible_values():
    for message, options in [
        ("--resize_mode is 'crop', expected squash, letterbox", {"resize_mode": "crop"}),
        ("--slice_axis is 2, expected sagittal, coronal, axial", {"slice_axis": 2}),
        (r"2 windows and the model has 3", {"windows": ((0, 1), (0, 2))}),
        (r"not \(centre, width", {"windows": ((0, 0),)}),
        ("preparation: found colour", {"colour": 1}),
    ]:
        with pytest.raises(ValueError, match=message):
            Preparation.from_dict(options, (8, 8), 3)
    with pytest.raises(ValueError, match="3 windows and the model has 1"):
        Preparation((8, 8), 1, windows=parse_windows("lung,mediastinum,bone"))
