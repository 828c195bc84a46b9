"""Decoded pixels against the stock image processor, on the same files."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.common import normalize, save_checkpoint
from sssd_hf.data.cache import decode, to_pixels

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_image(path, mode, size, seed):
    """Noise over a ramp: any other filter or order of steps shows."""
    width, height = size
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 30, height)[:, None, None]
    pixels = (ramp + rng.uniform(-25, 25, (height, width, channels))).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8).squeeze()).save(path)
    return path


def stock_processor(folder, num_channels, size, mean, std):
    config = SSSDConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        decoder_hidden_size=16,
        decoder_num_attention_heads=1,
        num_channels=num_channels,
        image_size=size,
        patch_size=8,
        num_labels=2,
    )
    save_checkpoint(SSSDForImageClassification(config), folder, (mean, std))
    return AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_equal_to_the_stock_processor(tmp_path, num_channels, size):
    mean, std = (MEAN, STD) if num_channels == 3 else ([0.3] * 3, [0.2] * 3)
    processor = stock_processor(tmp_path / "model", num_channels, size, mean, std)
    mode = "L" if num_channels == 1 else "RGB"
    height, width = (size, size) if isinstance(size, int) else size
    shapes = [(45, 37), (200, 90), (16, 16), (width, height), (33, 301)]
    files = [write_image(tmp_path / f"{i}.png", mode, s, i) for i, s in enumerate(shapes)]
    (pixels,) = decode(files, [(height, width)], num_channels, progress=False)
    assert pixels.shape == (5, num_channels, height, width)
    assert pixels.dtype == torch.uint8
    own = normalize(pixels, mean, std)
    stock = processor([Image.open(f).convert("RGB") for f in files], return_tensors="pt")
    stock = stock["pixel_values"]  # (5, 3, height, width); of a grey file three equal channels
    assert stock.shape == (5, 3, height, width)
    step = 1 / 255 / torch.tensor(std).view(1, 3, 1, 1)
    # same decoder, same filter: equal but for the order of fp32 operations
    assert ((own - stock).abs() / step).max() < 0.01


def test_a_colour_file_for_a_grey_model_is_within_a_grey_level(tmp_path):
    """The stock way resizes in colour and the model makes it grey; `decode` does it before."""
    processor = stock_processor(tmp_path / "model", 1, 32, [0.5] * 3, [0.5] * 3)
    file = write_image(tmp_path / "a.png", "RGB", (71, 54), 3)
    (pixels,) = decode([file], [(32, 32)], 1, progress=False)
    stock = processor(Image.open(file), return_tensors="pt")["pixel_values"]
    grey = (stock * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    difference = (normalize(pixels, [0.5], [0.5]) - grey).abs() * 0.5 * 255
    # three roundings to whole grey levels against four
    assert difference.max() <= 1.5
    assert difference.mean() < 0.4


def test_several_sizes_keep_the_order_of_the_files(tmp_path):
    files = []
    for i in range(20):
        files.append(tmp_path / f"{i}.png")
        Image.new("L", (10 + i, 12), i * 10).save(files[-1])
    small, large = decode(files, [(8, 8), (10, 12)], 1, progress=False)
    assert small.shape == (20, 1, 8, 8)
    assert large.shape == (20, 1, 10, 12)
    for tensor in (small, large):
        assert [int(image.unique()) for image in tensor] == [10 * i for i in range(20)]


def test_height_comes_first():
    image = Image.new("RGB", (6, 4))
    image.putpixel((5, 0), (10, 20, 30))  # x = 5, y = 0
    pixels = to_pixels(image, (4, 6))
    assert pixels.shape == (3, 4, 6)
    assert pixels[:, 0, 5].tolist() == [10, 20, 30]
    assert pixels.sum() == 60


def test_paths_bytes_and_rows_of_a_data_set_are_the_same(tmp_path):
    file = write_image(tmp_path / "a.png", "L", (20, 20), 0)
    sources = [file, str(file), file.read_bytes(), {"path": str(file), "bytes": None}]
    (pixels,) = decode(sources, [(16, 16)], 1, progress=False)
    assert all(torch.equal(image, pixels[0]) for image in pixels)


def test_unreadable_files_are_counted_and_named(tmp_path):
    good = write_image(tmp_path / "good.png", "L", (20, 20), 0)
    names = [f"bad{i}.png" for i in range(7)]
    for name in names:
        (tmp_path / name).write_bytes(good.read_bytes()[:60])
    (tmp_path / "bad1.png").write_bytes(b"")
    sources = [good, *(tmp_path / name for name in names), tmp_path / "gone.png"]
    with pytest.raises(ValueError, match="8 of 9 images can't be read") as error:
        decode(sources, [(8, 8)], 1, progress=False)
    message = str(error.value)
    for name in names[:5]:
        assert str(tmp_path / name) in message
    assert "good.png" not in message
    assert "0 bytes" in message
    assert "metadata.csv" in message, "what to do"
