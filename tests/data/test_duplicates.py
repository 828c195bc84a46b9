"""Near copies: found although recompressed, brightened or trimmed; unrelated chests are not."""

import io
import sys

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sssd_hf.data import duplicates
from sssd_hf.data.duplicates import exact_sets, is_blank, near_pairs
from sssd_hf.data.phantom import make_phantoms


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(item.image) for item in make_phantoms(40, 1, 96, seed=1)]


def thumbnails(pictures):
    small = [p.convert("L").resize((64, 64), Image.Resampling.BILINEAR) for p in pictures]
    return np.stack([np.asarray(p) for p in small])


def found(pairs):
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def compressed(picture, quality):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


CHANGES = {
    "jpeg": lambda p: compressed(p, 30),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.15),
    "contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.3),
    "half the size": lambda p: p.resize((48, 48), Image.Resampling.BILINEAR),
    "trimmed": lambda p: p.crop((1, 1, 95, 95)),
    "colour": lambda p: p.convert("RGB"),
    "alpha": lambda p: p.convert("RGBA"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(pictures, change):
    images = pictures + [CHANGES[change](picture) for picture in pictures]
    pairs = found(near_pairs(thumbnails(images)))
    wanted = {(i, i + 40) for i in range(40)}
    assert pairs <= wanted  # patients differ
    assert len(pairs) >= 39  # 96 to 100 % of what is trimmed by a hundredth at each side


def test_unrelated_phantoms_are_no_copies_though_their_hashes_may_be_close():
    images = thumbnails([Image.fromarray(item.image) for item in make_phantoms(80, 1, 64, seed=2)])
    assert not found(near_pairs(images))
    assert found(near_pairs(images, min_correlation=-1.0, max_distance=14))


@pytest.mark.parametrize(("correlation", "distance"), [(0.8, 14), (0.6, 20), (0.7, 64), (-1, 12)])
def test_pairs_are_those_of_two_loops(pictures, monkeypatch, correlation, distance):
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    blank = [Image.new("L", (64, 64), 30)] * 3
    images = thumbnails(blank + pictures)
    pairs = near_pairs(images, correlation, distance)
    hashes = [imagehash.phash(Image.fromarray(image)) for image in images]
    means = [image.reshape(32, 2, 32, 2).mean((1, 3)).ravel() for image in images]
    expected = {}
    for i in range(3, len(images)):
        for j in range(i + 1, len(images)):
            r, bits = np.corrcoef(means[i], means[j])[0, 1], hashes[i] - hashes[j]
            if r >= correlation and bits <= distance:
                expected[i, j] = (r, bits)
    assert len(expected) > 5
    assert found(pairs) == set(expected)
    for i, j, r, bits in zip(pairs.first, pairs.second, pairs.correlation, pairs.distance):
        assert (r, bits) == (pytest.approx(expected[i, j][0], abs=1e-5), expected[i, j][1])


def test_too_many_pairs_are_cut_and_said_so(pictures, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    pairs = near_pairs(thumbnails([pictures[0]] * 8))
    assert len(pairs.first) == 10
    assert not pairs.complete
    assert near_pairs(thumbnails([pictures[0]] * 4)).complete


def test_many_alike_images_of_one_part_leave_room_for_copies_across_parts(pictures, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    images = thumbnails([pictures[0]] * 8 + pictures[1:6] + pictures[1:6])
    parts = np.array([0] * 13 + [1] * 5)
    pairs = near_pairs(images, parts=parts)
    assert {(k, k + 5) for k in range(8, 13)} <= found(pairs)
    assert (len(pairs.first), pairs.complete, pairs.complete_across) == (15, False, True)
    assert not near_pairs(images, parts=np.arange(18)).complete_across


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(pictures, count):
    images = thumbnails(pictures[:1])[:count]
    assert not found(near_pairs(images))
    assert is_blank(images).tolist() == [False] * count


def test_exact_sets():
    assert exact_sets(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4], [3]]


def test_without_imagehash_it_says_what_to_install(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ValueError, match=r"pip install 'sssd_hf\[audit\]'"):
        near_pairs(thumbnails(pictures))
