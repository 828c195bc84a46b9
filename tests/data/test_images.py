import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sssd_hf.data.images import MAX_PIXELS, ImageError, load_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (13, 17, 4), dtype=np.uint8)


def encode(image, fmt, **options):
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def palette():
    image = Image.fromarray(GREY).convert("P")
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


ORDINARY = {
    "L.png": encode(Image.fromarray(GREY), "PNG"),
    "L.bmp": encode(Image.fromarray(GREY), "BMP"),
    "L.webp": encode(Image.fromarray(GREY), "WEBP", lossless=True),
    "L.jpg": encode(Image.fromarray(GREY), "JPEG"),
    "L.tif": encode(Image.fromarray(GREY), "TIFF"),
    "L-deflated.tif": encode(Image.fromarray(GREY), "TIFF", compression="tiff_deflate"),
    "RGB.png": encode(Image.fromarray(COLOUR), "PNG"),
    "RGB.jpg": encode(Image.fromarray(COLOUR), "JPEG"),
    "RGB.tif": encode(Image.fromarray(COLOUR), "TIFF"),
    "RGB.webp": encode(Image.fromarray(COLOUR), "WEBP"),
    "RGBA.png": encode(Image.fromarray(ALPHA), "PNG"),
    "RGBA.webp": encode(Image.fromarray(ALPHA), "WEBP", lossless=True, exact=True),
    "CMYK.jpg": encode(Image.fromarray(ALPHA, "CMYK"), "JPEG"),
    "P.png": encode(palette(), "PNG"),
    "P-transparent.png": encode(palette(), "PNG", transparency=bytes(range(256))),
    "LA.png": encode(Image.fromarray(ALPHA[..., :2].copy(), "LA"), "PNG"),
    "1.png": encode(Image.fromarray(GREY).convert("1"), "PNG"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_equals_pillows_own_conversion(name, tmp_path):
    (tmp_path / name).write_bytes(ORDINARY[name])
    for channels, mode in ((1, "L"), (3, "RGB")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about palettes with transparency
            expected = np.asarray(Image.open(tmp_path / name).convert(mode))
        path = tmp_path / name
        sources = [path, str(path), ORDINARY[name], {"path": str(path), "bytes": None}]
        sources.append({"path": "not there.png", "bytes": ORDINARY[name]})
        for source in sources:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                image = load_image(source, channels)
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), expected)
            assert image.info == {}


def test_known_values():
    red = encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")
    assert load_image(red, 3).getpixel((0, 0)) == (255, 0, 0)  # alpha dropped, not blended
    assert load_image(red, 1).getpixel((0, 0)) == round(0.299 * 255)


def test_suffix_does_not_count(tmp_path):
    path = tmp_path / "really a jpeg.png"
    path.write_bytes(ORDINARY["L.jpg"])
    expected = np.asarray(Image.open(io.BytesIO(ORDINARY["L.jpg"])))
    np.testing.assert_array_equal(np.asarray(load_image(path, 1)), expected)


# what each EXIF orientation asks for: numpy on the stored (rows, columns)
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(orientation, fmt):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encode(Image.fromarray(GREY), fmt)
    turned = encode(Image.fromarray(GREY), fmt, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(plain)).convert("L"))
    np.testing.assert_array_equal(np.asarray(load_image(turned, 1)), TURNS[orientation](stored))


def scaled(values):
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(), values.max()
    return np.round((values - low) / (high - low) * 255).astype(np.uint8)


DEEP = {
    "16.png": ("PNG", RNG.integers(300, 2000, (9, 7), dtype=np.uint16)),
    "16.tif": ("TIFF", RNG.integers(0, 65536, (9, 7), dtype=np.uint16)),
    "16-big-endian.tif": ("TIFF", RNG.integers(0, 65536, (9, 7)).astype(">u2")),
    "32.tif": ("TIFF", RNG.integers(-1024, 3000, (9, 7), dtype=np.int32)),
    "float.tif": ("TIFF", RNG.normal(size=(9, 7)).astype(np.float32)),
    "huge.tif": ("TIFF", (RNG.uniform(-1, 1, (9, 7)) * 3e38).astype(np.float32)),
    "tiny.tif": ("TIFF", (RNG.uniform(0, 1, (9, 7)) * 1e-40).astype(np.float32)),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_scaled(name):
    fmt, values = DEEP[name]
    data = encode(Image.fromarray(values), fmt)
    image = load_image(data, 1)
    np.testing.assert_array_equal(np.asarray(image), scaled(values))
    assert (np.asarray(image).min(), np.asarray(image).max()) == (0, 255)
    colour = np.asarray(load_image(data, 3))
    np.testing.assert_array_equal(colour, np.asarray(image)[..., None].repeat(3, 2))


@pytest.mark.parametrize("name", ["16.tif", "float.tif"])  # Pillow opens no other
def test_white_is_zero_in_deep_images_too(name, tmp_path):
    """As Pillow has it in those of 8 bits."""
    values = DEEP[name][1]
    data = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    found = np.asarray(load_image(data, 1))
    assert np.array_equal(found.argmax(), values.argmin())
    np.testing.assert_allclose(found, 255.0 - scaled(values), atol=1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_constant_deep_image_is_black(dtype):
    data = encode(Image.fromarray(np.full((4, 5), 1234, dtype)), "TIFF")
    assert not np.asarray(load_image(data, 1)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad, tmp_path):
    values = np.zeros((4, 5), np.float32)
    values[2, 3] = bad
    path = tmp_path / "map.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ImageError, match=r"map\.tif.*NaN or infinite"):
        load_image(path, 1)


def png_header(width, height, bits=8, colour=0, content=b""):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_grey_with_transparency_is_refused_as_it_would_come_out_black(tmp_path):
    path = tmp_path / "scan.png"
    row = b"\0" + struct.pack(">HHHH", 4000, 65535, 100, 65535)
    path.write_bytes(png_header(2, 2, 16, 4, zlib.compress(row * 2)))
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).max() == 4000 >> 8  # what Pillow makes of it
    with pytest.raises(ImageError, match=r"scan\.png: 16-bit grey with transp.*alpha channel"):
        load_image(path, 1)
    row = b"\0" + struct.pack(">HH", 4000, 100)
    path.write_bytes(png_header(2, 2, 16, 0, zlib.compress(row * 2)))
    assert np.asarray(load_image(path, 1)).ravel().tolist() == [255, 0, 255, 0]


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000), (MAX_PIXELS + 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_is_refused_by_the_header(size, tmp_path, monkeypatch):
    path = tmp_path / "slide.png"
    path.write_bytes(png_header(*size))
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # with and without Pillow's own guard
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"slide\.png: too large.*100,000,000.*tiles"):
            load_image(path, 1)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_the_largest_size_passes_the_header_check():
    # no pixel data follows, so it has to fail, but as damaged and not as too large
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(png_header(10_000, 1_000), 1)


def pages(fmt, **options):
    first, second = Image.fromarray(GREY), Image.fromarray(GREY.T.copy()).resize((17, 13))
    return encode(first, fmt, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize("fmt", ["TIFF", "PNG", "WEBP", "MPO"])
def test_more_than_one_frame(fmt, tmp_path):
    path = tmp_path / "volume.tif"
    path.write_bytes(pages(fmt))
    with pytest.raises(ImageError, match=r"volume\.tif.*more than one frame.*split"):
        load_image(path, 1)


@pytest.mark.parametrize("fmt", ["GIF", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
def test_formats_outside_the_list(fmt, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(Image.fromarray(COLOUR), fmt))
    with pytest.raises(ImageError, match=r"picture\.png.*PNG, JPEG, TIFF, BMP, WEBP.*convert"):
        load_image(path, 3)


@pytest.mark.parametrize("name", ["L.png", "RGB.jpg", "L.tif", "L.bmp", "RGB.webp"])
def test_truncated(name, tmp_path):
    big = Image.fromarray(RNG.integers(0, 256, (80, 90, 3), dtype=np.uint8))
    data = encode(big, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1].upper()))
    load_image(data, 3)
    for part in (0.5, 0.9):
        path = tmp_path / name
        path.write_bytes(data[: int(part * len(data))])
        for channels in (1, 3):
            with pytest.raises(ImageError, match=f"{name}.*again"):
                load_image(path, channels)


def test_not_a_file(tmp_path):
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    cases = [
        (tmp_path / "empty.png", r"empty\.png: is empty \(0 bytes\)"),
        (tmp_path / "gone.png", r"gone\.png: does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.png", "not a regular file"),
        ("a\0b.png", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        (b"", "is empty"),
        ({"path": "a.png", "bytes": b""}, r"a\.png: is empty"),
        ({"path": None, "bytes": None}, "expected a path"),
        (None, "expected a path"),
        ("", "expected a path"),
    ]
    for source, message in cases:
        with pytest.raises(ImageError, match=message):
            load_image(source, 1)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path):
    path = tmp_path / "locked.png"
    path.write_bytes(ORDINARY["L.png"])
    path.chmod(0)
    with pytest.raises(ImageError, match=r"locked\.png.*permission"):
        load_image(path, 1)


@pytest.mark.parametrize("channels", [0, 2, 4, "L", None])
def test_number_of_channels(channels):
    with pytest.raises(ValueError, match=r"expected 1 .* or 3"):
        load_image(ORDINARY["L.png"], channels)


def test_memory_error_becomes_image_error(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match="MemoryError"):
        load_image(ORDINARY["L.bmp"], 1)


@pytest.mark.filterwarnings("ignore")
def test_hostile_bytes_raise_nothing_else(monkeypatch):
    monkeypatch.setattr("sssd_hf.data.images.MAX_PIXELS", 1_000_000)  # large ones only take time
    seeds = [*ORDINARY.values(), pages("TIFF"), pages("WEBP")]
    seeds += [encode(Image.fromarray(values), fmt) for fmt, values in DEEP.values()]
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds += [encode(Image.fromarray(GREY), fmt, exif=exif) for fmt in ("JPEG", "PNG", "TIFF")]
    rng = np.random.default_rng(1)
    refused = 0
    for seed in seeds:
        for _ in range(60):
            data = bytearray(seed)
            for place in rng.integers(0, min(len(data), 400), rng.integers(1, 8)):
                data[place] = rng.integers(256)
            try:
                image = load_image(bytes(data), 1)
            except ImageError:
                refused += 1
            else:
                assert image.mode == "L"
    assert refused > 100  # the changes do reach the decoders


def test_files_found_in_the_wild():
    folder = os.environ.get("SSSD_DATA")
    if not folder or not Path(folder, "loader-samples").is_dir():
        pytest.skip("SSSD_DATA names no folder with loader-samples")
    files = [path for path in sorted(Path(folder, "loader-samples").iterdir()) if path.is_file()]
    assert files
    for path in files:
        with Image.open(path) as image:
            size, grey, colour = image.size, image.convert("L"), image.convert("RGB")
        for channels, expected in ((1, grey), (3, colour)):
            found = load_image(path, channels)
            assert found.size == size
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
