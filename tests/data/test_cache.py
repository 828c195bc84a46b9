"""Decoded pixels against the stock image processor and Pillow, on the same files, wherever they
lie; and what happens to the store on disk when things go wrong."""

import csv
import errno
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.batches import normalize
from sssd_hf.cli.common import save_checkpoint
from sssd_hf.data import cache as cache_module
from sssd_hf.data import store
from sssd_hf.data.cache import Images, decode_once, free_memory
from sssd_hf.data.images import ImageError
from sssd_hf.data.preparation import Preparation

KEPT = [mode for mode in cache_module.CACHES if mode != "none"]
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


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """HF_HOME of one test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def files(tmp_path):
    """Twelve images, each of one grey value: 10, 20, ..."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{i:02d}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.new("L", (9, 7), 10 * (i + 1)).save(path)
    return paths


GREY = [10 * (i + 1) for i in range(12)]


def decode(sources, size=(8, 8), num_channels=1, **options):
    preparation = Preparation(size, num_channels)
    options = {"progress": False, **options}
    return decode_once(sources, preparation, list(range(len(sources))), **options)


def everything(images):
    return images.batch(torch.arange(len(images)), "cpu")


def grey_values(images):
    return [int(image.unique()) for image in everything(images)]


def folders(home):
    return sorted((home / "sssd_hf/decoded").iterdir())


@pytest.mark.parametrize("cache", cache_module.CACHES)
@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_equal_to_the_stock_processor(tmp_path, num_channels, size, cache):
    mean, std = (MEAN, STD) if num_channels == 3 else ([0.3] * 3, [0.2] * 3)
    processor = stock_processor(tmp_path / "model", num_channels, size, mean, std)
    mode = "L" if num_channels == 1 else "RGB"
    height, width = (size, size) if isinstance(size, int) else size
    shapes = [(45, 37), (200, 90), (16, 16), (width, height), (33, 301)]
    files = [write_image(tmp_path / f"{i}.png", mode, s, i) for i, s in enumerate(shapes)]
    stock = processor([Image.open(f).convert("RGB") for f in files], return_tensors="pt")
    stock = stock["pixel_values"]  # (5, 3, height, width); of a grey file three equal channels
    assert stock.shape == (5, 3, height, width)
    for _ in range(2):  # as decoded, and as found again
        images = decode(files, (height, width), num_channels, cache=cache)
        assert images.shape == (5, num_channels, height, width)
        pixels = everything(images)
        assert pixels.shape == images.shape
        assert pixels.dtype == torch.uint8
        step = 1 / 255 / torch.tensor(std).view(1, 3, 1, 1)
        # same decoder, same filter: equal but for the order of fp32 operations
        assert ((normalize(pixels, mean, std) - stock).abs() / step).max() < 0.01


def test_a_colour_file_for_a_grey_model_is_within_a_grey_level(tmp_path):
    """The stock way resizes in colour and the model makes it grey; decoding does it before."""
    processor = stock_processor(tmp_path / "model", 1, 32, [0.5] * 3, [0.5] * 3)
    file = write_image(tmp_path / "a.png", "RGB", (71, 54), 3)
    pixels = everything(decode([file], (32, 32)))
    stock = processor(Image.open(file), return_tensors="pt")["pixel_values"]
    grey = (stock * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    difference = (normalize(pixels, [0.5], [0.5]) - grey).abs() * 0.5 * 255
    # three roundings to whole grey levels against four
    assert difference.max() <= 1.5
    assert difference.mean() < 0.4


@pytest.mark.parametrize("cache", cache_module.CACHES)
def test_a_batch_is_in_the_order_of_its_index(files, cache):
    images = decode(files, cache=cache)
    index = torch.tensor([7, 0, 7, 11, 3])
    assert [int(image.unique()) for image in images.batch(index, "cpu")] == [80, 10, 80, 120, 40]
    assert images.batch(index[:0], "cpu").shape == (0, 1, 8, 8)


def test_rows_and_labels_go_with_their_images(files):
    rows, labels = list(range(100, 112)), [i % 3 for i in range(12)]
    images = decode_once(files, Preparation((8, 8)), rows, labels, progress=False)
    assert images.rows.tolist() == rows
    assert images.labels.tolist() == labels
    assert decode(files).labels is None


def test_height_comes_first(tmp_path):
    image = Image.new("RGB", (6, 4))
    image.putpixel((5, 0), (10, 20, 30))  # x = 5, y = 0
    image.save(tmp_path / "a.png")
    (pixels,) = everything(decode([tmp_path / "a.png"], (4, 6), 3))
    assert pixels.shape == (3, 4, 6)
    assert pixels[:, 0, 5].tolist() == [10, 20, 30]
    assert pixels.sum() == 60


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_paths_bytes_and_rows_of_a_data_set_are_the_same(tmp_path, cache):
    file = write_image(tmp_path / "a.png", "L", (20, 20), 0)
    data = file.read_bytes()
    sources = [file, str(file), data, {"path": str(file), "bytes": None}]
    sources += [{"path": "elsewhere.png", "bytes": data}]
    pixels = everything(decode(sources, (16, 16), cache=cache))
    expected = np.asarray(Image.open(file).resize((16, 16), Image.Resampling.BILINEAR))
    assert all(np.array_equal(image[0].numpy(), expected) for image in pixels)


# ---- where


class FakeDevice:
    type = "cuda"


@pytest.mark.parametrize(
    ("cache", "need", "device", "place"),
    [
        ("auto", 24, FakeDevice, "device"),
        ("auto", 26, FakeDevice, "memory"),  # a quarter of 100
        ("auto", 101, FakeDevice, "disk"),  # half of 200
        ("auto", 99, torch.device("cpu"), "memory"),
        ("auto", 101, torch.device("cpu"), "disk"),
        ("device", 1, torch.device("cpu"), "memory"),
        ("device", 1000, FakeDevice, "device"),
        ("memory", 1000, FakeDevice, "memory"),
        ("disk", 1, FakeDevice, "disk"),
        ("none", 1, FakeDevice, "none"),
    ],
)
def test_the_place_follows_from_what_is_free(cache, need, device, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert cache_module._choose(cache, need, device, 200)[0] == place


def test_free_memory_is_no_more_than_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory() < total


def test_only_disk_and_large_sets_leave_files(files, home, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for cache in ("auto", "memory", "device", "none"):
        decode(files, cache=cache)
    assert not home.exists()
    assert "--cache auto: memory (less than half of the free" in caplog.text
    assert "12 of 1 x 8 x 8, 0.0 MB" in caplog.text
    monkeypatch.setattr(cache_module, "WORTH_KEEPING", 12 * 8 * 8 - 1)
    decode(files, cache="auto")
    (folder,) = folders(home)
    assert str(folder) in caplog.text
    monkeypatch.setattr(cache_module, "free_memory", lambda: 100)
    images = decode(files, cache="auto", size=(9, 9))  # more than half of 100 bytes
    assert "--cache auto: disk" in caplog.text
    assert grey_values(images) == GREY


# ---- found again


def never(*args):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("embedded", [False, True])
def test_found_again_without_reading_the_files(files, embedded, monkeypatch):
    sources = [path.read_bytes() for path in files] if embedded else files
    decode(sources, cache="disk")
    monkeypatch.setattr(cache_module, "decode_all", never)
    if not embedded:  # of equal size and time: only reading them would show it
        for path in files:
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert grey_values(decode(sources, cache="disk")) == GREY


def test_a_changed_file_is_noticed_and_its_store_replaced(files, home, caplog):
    decode(files, cache="disk")
    Image.new("L", (9, 7), 11).save(files[4])
    with caplog.at_level(logging.WARNING):
        images = decode(files, cache="disk")
    assert "stale" in caplog.text
    assert grey_values(images) == [*GREY[:4], 11, *GREY[5:]]
    assert len(folders(home)) == 1
    caplog.clear()
    decode(files, cache="disk")
    assert "stale" not in caplog.text


def test_changed_bytes_are_another_set(files):
    sources = [path.read_bytes() for path in files]
    decode(sources, cache="disk")
    sources[4] = files[0].read_bytes()
    assert grey_values(decode(sources, cache="disk"))[4] == 10


def test_another_decoder_makes_a_store_stale(files, monkeypatch, caplog):
    decode(files, cache="disk")
    monkeypatch.setattr(store, "_version", lambda package: "99")
    decode(files, cache="disk")
    assert "stale" in caplog.text


def test_each_set_order_and_setting_has_its_own_store(files, home):
    assert grey_values(decode(files, cache="disk")) == GREY
    assert grey_values(decode(files[::-1], cache="disk")) == GREY[::-1]
    assert grey_values(decode(files[:5], cache="disk")) == GREY[:5]
    assert decode(files, (8, 16), cache="disk").shape == (12, 1, 8, 16)
    assert decode(files, (8, 8), 3, cache="disk").shape == (12, 3, 8, 8)
    assert len(folders(home)) == 5


# ---- damage


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.write_bytes(data)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


DAMAGE = [(flip, "pixels.bin", i) for i in (0, 1, 63, 64, 400, 767)]
DAMAGE += [(cut, "pixels.bin", i) for i in (0, 1, 64, 640, 767)]
DAMAGE += [(cut, "manifest.json", i) for i in (0, 1, 20, 100, -1)]
DAMAGE += [(lambda path, data: path.write_bytes(data), "manifest.json", d) for d in (b"{}", b"[]")]
DAMAGE += [(lambda path, _: path.write_bytes(path.read_bytes() + b"0"), "pixels.bin", None)]
DAMAGE += [(lambda path, _: path.unlink(), "pixels.bin", None)]


@pytest.mark.parametrize("cache", ["auto", "disk"])
@pytest.mark.parametrize(("damage", "name", "argument"), DAMAGE)
def test_damage_is_noticed_and_mended(
    damage, name, argument, cache, files, home, caplog, monkeypatch
):
    monkeypatch.setattr(cache_module, "WORTH_KEEPING", 0)
    decode(files, cache=cache)
    (folder,) = folders(home)
    damage(folder / name, argument)
    images = decode(files, cache=cache)
    assert f"the decoded images in {folder} are damaged" in caplog.text
    assert grey_values(images) == GREY
    caplog.clear()
    monkeypatch.setattr(cache_module, "decode_all", never)
    assert grey_values(decode(files, cache=cache)) == GREY
    assert not caplog.records


@pytest.mark.skipif(sys.platform != "linux", reason="knows no file with holes")
def test_a_set_larger_than_the_memory_is_mapped(tmp_path):
    size = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total)
    with (tmp_path / "pixels.bin").open("wb") as file:
        file.truncate(size - 1)
        file.seek(size - 1)
        file.write(b"\7")
    pixels = store._mapped(tmp_path / "pixels.bin", size)
    assert (len(pixels), pixels[0], pixels[-1]) == (size, 0, 7)


@pytest.mark.slow
def test_any_flipped_byte_of_the_manifest_is_harmless(files, home, caplog):
    """It is noticed, or (a space of the JSON) changes nothing."""
    decode(files, cache="disk")
    (folder,) = folders(home)
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    noticed = 0
    positions = range(0, len(whole), 3)
    for position in positions:
        caplog.clear()
        flip(manifest, position)
        assert grey_values(decode(files, cache="disk")) == GREY
        noticed += "damaged" in caplog.text or "stale" in caplog.text
        manifest.write_bytes(whole)
    assert noticed > 0.9 * len(positions)


# ---- several processes, and killed ones

CHILD = """
import os, sys, time
from pathlib import Path
import huggingface_hub.constants
from sssd_hf.data import cache
from sssd_hf.data.preparation import Preparation
home, folder, log, delay = sys.argv[1:]
huggingface_hub.constants.HF_HOME = home
decode_all = cache.decode_all

def slow(sources, preparation):
    for i, pixels in decode_all(sources, preparation):
        time.sleep(float(delay))
        with open(log, "a") as file:
            file.write(f"{i}\\n")
        yield i, pixels

cache.decode_all = slow
files = sorted(Path(folder).iterdir())
images = cache.decode_once(
    files, Preparation((8, 8)), list(range(len(files))), cache="disk", progress=False
)
print([int(image.unique()) for image in images.pixels])
"""


def start(files, home, log, delay):
    argv = [sys.executable, "-c", CHILD, str(home), str(files[0].parent), str(log), str(delay)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_writer_killed_midway_leaves_nothing_in_the_way(files, home, tmp_path, caplog):
    log = tmp_path / "log"
    child = start(files, home, log, 0.2)
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") >= 5):
            assert time.monotonic() < deadline
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    (folder,) = folders(home)
    assert (folder / "pixels.tmp").exists(), "it was to die while writing"
    assert not (folder / "manifest.json").exists()
    assert grey_values(decode(files, cache="disk")) == GREY
    assert sorted(p.name for p in folder.iterdir() if p.name != "lock") == [
        "manifest.json",
        "pixels.bin",
    ]
    assert not caplog.records


@pytest.mark.slow
def test_of_two_processes_one_decodes(files, home, tmp_path):
    log = tmp_path / "log"
    children = [start(files, home, log, 0.1) for _ in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    for out, err in outputs:
        assert out.strip() == str(GREY), err
    assert sorted(map(int, log.read_text().split())) == list(range(12))


def test_an_interrupted_writer_cleans_up(files, home, monkeypatch):
    def interrupted(sources, preparation):
        yield 0, np.zeros((1, 8, 8), np.uint8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decode_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decode(files, cache="disk")
    (folder,) = folders(home)
    assert [p.name for p in folder.iterdir()] in ([], ["lock"])
    assert grey_values(decode(files, cache="disk")) == GREY


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_stopped_between_any_two_renames(renames, files, home, monkeypatch):
    """New pixels beside the old manifest are not taken for what the manifest describes."""
    decode(files, cache="disk")
    Image.new("L", (9, 7), 99).save(files[0])
    replace = os.replace
    done = []

    def stop(source, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        if renames < 2:
            with pytest.raises(KeyboardInterrupt):
                decode(files, cache="disk")
        else:
            decode(files, cache="disk")
    assert len(done) == renames
    assert grey_values(decode(files, cache="disk")) == [99, *GREY[1:]]
    Image.new("L", (9, 7), 98).save(files[0])
    assert grey_values(decode(files, cache="disk")) == [98, *GREY[1:]]


def test_a_file_system_without_locks(files, monkeypatch, caplog):
    def none(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    assert grey_values(decode(files, cache="disk")) == GREY
    assert "has no locks" in caplog.text


# ---- bad files


@pytest.fixture
def spoiled(files):
    """Seven of the twelve: two cut short, one empty, one gone, three of another kind."""
    for i in (1, 2):
        files[i].write_bytes(files[i].read_bytes()[:45])
    files[5].write_bytes(b"")
    files[6].unlink()
    for i in (8, 9, 11):
        files[i].write_bytes(b"no image")
    return {str(files[i]) for i in (1, 2, 5, 6, 8, 9, 11)}


def listed(path):
    with path.open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("cache", KEPT)
def test_unreadable_files_stop_the_run_and_are_listed(files, spoiled, cache, home, tmp_path):
    table = tmp_path / "out/bad_files.csv"
    with pytest.raises(ValueError, match="7 of 12 images can't be read") as error:
        decode(files, cache=cache, title="training images", bad_files=table)
    message = str(error.value)
    assert "training images" in message
    assert str(table) in message
    assert sum(path in message for path in spoiled) == 5
    assert "0 bytes" in message
    assert "--skip_bad_files" in message, "what to do"
    reasons = listed(table)
    assert set(reasons) == spoiled
    assert "0 bytes" in reasons[str(files[5])]
    assert not list(home.rglob("*.bin")) + list(home.rglob("*.tmp"))


@pytest.mark.parametrize("cache", cache_module.CACHES)
def test_unreadable_files_can_be_left_out(files, spoiled, cache, tmp_path, caplog):
    table = tmp_path / "bad_files.csv"
    good = [0, 3, 4, 7, 10]
    for _ in range(2):  # as decoded, and as found again
        caplog.clear()
        table.unlink(missing_ok=True)
        images = decode_once(
            files,
            Preparation((8, 8)),
            list(range(50, 62)),
            [i % 5 for i in range(12)],
            cache=cache,
            skip_bad_files=True,
            bad_files=table,
            progress=False,
        )
        assert len(images) == images.shape[0] == 5
        assert images.rows.tolist() == [50 + i for i in good]
        assert images.labels.tolist() == [i % 5 for i in good]
        assert grey_values(images) == [GREY[i] for i in good]
        assert "7 of 12 images can't be read" in caplog.text
        assert set(listed(table)) == spoiled


def test_what_was_skipped_still_stops_a_run_that_does_not_skip(files, spoiled, home):
    decode(files, cache="disk", skip_bad_files=True)
    with pytest.raises(ValueError, match="7 of 12 images can't be read"):
        decode(files, cache="disk")


def test_a_file_that_failed_for_the_moment_comes_back(files, monkeypatch, caplog):
    decode_all = cache_module.decode_all

    def flaky(sources, preparation):
        for i, pixels in decode_all(sources, preparation):
            yield i, ImageError("the network is away") if i == 3 else pixels

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decode_all", flaky)
        assert len(decode(files, cache="disk", skip_bad_files=True)) == 11
    assert grey_values(decode(files, cache="disk", skip_bad_files=True)) == GREY


def test_two_splits_share_a_table_of_bad_files(files, spoiled, tmp_path):
    table = tmp_path / "bad_files.csv"
    for part in (files[:6], files[6:], files[:6]):
        decode(part, skip_bad_files=True, bad_files=table)
    assert set(listed(table)) == spoiled


def test_names_of_embedded_images(tmp_path):
    table = tmp_path / "bad_files.csv"
    with pytest.raises(ValueError, match="None is left"):
        decode([b"x", b"y"], names=["train/0", "train/1"], bad_files=table, skip_bad_files=True)
    assert set(listed(table)) == {"train/0", "train/1"}


def test_without_a_cache_a_bad_file_is_met_when_it_is_read(files, spoiled):
    images = decode(files, cache="none")
    assert images.batch(torch.tensor([0, 3]), "cpu").shape == (2, 1, 8, 8)
    with pytest.raises(ImageError, match="0 bytes"):
        images.batch(torch.tensor([0, 5]), "cpu")


# ---- a full disk


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (os, "replace"), (cache_module, "_require_space")]
)
def test_a_full_disk_falls_back_to_memory(owner, name, files, home, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        images = decode(files, cache="disk")
    assert grey_values(images) == GREY
    assert "No space left" in caplog.text
    assert "decoded into memory only" in caplog.text
    assert not list(home.rglob("*.bin")) + list(home.rglob("*.tmp")) + list(home.rglob("*.json"))
    caplog.clear()
    assert grey_values(decode(files, cache="disk")) == GREY
    assert not caplog.records


def test_a_full_disk_and_memory_is_an_error_with_a_way_out(files, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(cache_module, "free_memory", lambda: 100)
    with pytest.raises(OSError, match=r"No space left.*half of the 0\.0 MB.*HF_HOME.*--cache none"):
        decode(files, cache="auto")


def test_too_little_space_is_known_before_decoding(files, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000, 300, 700))
    with pytest.raises(OSError, match=r"0\.0 MB needed") as error:
        cache_module._require_space("x", 701)
    assert error.value.errno == errno.ENOSPC
    cache_module._require_space("x", 700)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system")
def test_a_really_full_disk(files, tmp_path, monkeypatch, caplog):
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(home)])
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
        monkeypatch.setattr(cache_module, "_require_space", lambda folder, need: None)
        images = decode(files, (128, 128), cache="disk")  # 196 kB
        assert grey_values(images) == GREY
        assert "No space left" in caplog.text
        assert not list(home.rglob("*.bin")) + list(home.rglob("*.tmp"))
        assert grey_values(decode(files, (16, 16), cache="disk")) == GREY
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_folder_that_cannot_be_written(files, home, caplog):
    home.write_text("in the way")
    assert grey_values(decode(files, cache="disk")) == GREY
    assert "decoded into memory only" in caplog.text


def test_images_of_pixels_alone():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    images = Images(torch.arange(2), None, pixels)
    assert len(images) == 2
    assert images.shape == (2, 1, 3, 4)
    assert torch.equal(images.batch(torch.tensor([1, 0]), "cpu"), pixels.flip(0))
