"""Images that are copies of each other: exactly, or but for compression, brightness, an edge.

Near copies must agree in two ways. A perceptual hash alone matches unrelated chests, for all chests
have much the same outline; so the thumbnails must correlate as well. The defaults come from three
real sets and the phantoms, all pairs of each. At a correlation of 0.95 and 6 differing bits of 64:

- 1 of 499,000 pairs of slices from different scans (LUNA16) is a match, two abdomens with little
  in them; by the hash alone 405, by correlation alone 5. At 0.90 and 10 bits it would be 70.
- None of 44,700 pairs of phantoms of different patients.
- In COVID-CT every match of different patients is a known double entry (2 of 277,885 pairs).
- Of pictures saved as JPEG of quality 30, halved in size, or with contrast raised by 30 %, all are
  found; with brightness raised by 20 % (which clips) 98 to 100 %; with 1 % cut off all sides 96 to
  100 %. Cutting 2 % off all sides moves so much that most are missed.

Two of a million pairs by chance are one among 1,000 images and a hundred among 10,000, as 10,000
files made from 300 phantoms showed; most lie below a correlation of 0.97. Neighbouring slices of
one scan often match, too: for a split they are as bad as copies.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

SIDE = 64  # of the thumbnails, pixels
MIN_CORRELATION = 0.95
MAX_DISTANCE = 6
MAX_PAIRS = 200_000
_BLANK = 1.0  # standard deviation in grey levels below which a thumbnail shows nothing
_BLOCK = 1024


@dataclass(frozen=True)
class NearPairs:
    """Arrays of one length: pairs first < second, their correlation and hash distance in bits."""

    first: np.ndarray
    second: np.ndarray
    correlation: np.ndarray
    distance: np.ndarray
    complete: bool = True  # False: there are more than MAX_PAIRS within parts, here are the first
    complete_across: bool = True  # the same of pairs across parts


def exact_sets(digests: list[str]) -> list[list[int]]:
    """Indices with the same digest, in order of first appearance; a set of one where none is."""
    sets = defaultdict(list)
    for index, digest in enumerate(digests):
        sets[digest].append(index)
    return list(sets.values())


def is_blank(thumbnails: np.ndarray) -> np.ndarray:
    """Which of the uint8 (images, 64, 64) show nothing; bool (images,)."""
    blank = np.empty(len(thumbnails), bool)
    for start in range(0, len(thumbnails), _BLOCK):
        part = thumbnails[start : start + _BLOCK]
        blank[start : start + _BLOCK] = part.std(axis=(1, 2), dtype=np.float32) < _BLANK
    return blank


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Bits of imagehash's `phash` (signs of low frequencies about their median): bool (images, 64).

    Raises:
        ValueError: imagehash is not installed.
    """
    try:
        import imagehash
    except ImportError as exc:
        raise ValueError(
            "near duplicates are found with the package imagehash, which is not installed: "
            "pip install 'sssd_hf[audit]'"
        ) from exc
    from PIL import Image

    bits = np.empty((len(thumbnails), 64), bool)
    for index, thumbnail in enumerate(thumbnails):
        bits[index] = imagehash.phash(Image.fromarray(thumbnail), hash_size=8).hash.ravel()
    return bits


def centred_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Rows whose scalar products are correlations, from 32 x 32 means; float32 (images, 1024)."""
    rows = np.empty((len(thumbnails), 32 * 32), np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        part = thumbnails[start : start + _BLOCK].reshape(-1, 32, 2, 32, 2)
        small = part.mean(axis=(2, 4), dtype=np.float32).reshape(len(part), -1)
        small -= small.mean(axis=1, keepdims=True)
        small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)
        rows[start : start + _BLOCK] = small
    return rows


def near_pairs(
    thumbnails: np.ndarray,
    min_correlation: float = MIN_CORRELATION,
    max_distance: int = MAX_DISTANCE,
    parts: np.ndarray | None = None,
) -> NearPairs:
    """All pairs that agree in both ways; blank images are in none. Of pairs within a part and of
    pairs across parts the first `MAX_PAIRS` each, so that many alike images of one part leave room
    for the copies that leak.

    Args:
        thumbnails: uint8 (images, 64, 64), grey.
        min_correlation: of the 32 x 32 thumbnails, -1..1.
        max_distance: differing bits of the perceptual hash, 0..64.
        parts: int (images,), the part each image is in; None: all are in one.
    """
    parts = np.zeros(len(thumbnails), np.int64) if parts is None else parts
    indices = np.flatnonzero(~is_blank(thumbnails))
    # bits as -1 and 1: distances come from scalar products as well, by blocks of rows, so that no
    # images x images matrix is ever in memory
    bits = perceptual_hashes(thumbnails)[indices].astype(np.float32) * 2 - 1
    rows = centred_thumbnails(thumbnails)[indices]
    found, count = [], {False: 0, True: 0}  # across parts: how many
    for start in range(0, len(indices), _BLOCK):
        block = slice(start, start + _BLOCK)
        for other in range(start, len(indices), _BLOCK):
            columns = slice(other, other + _BLOCK)
            distance = (64 - bits[block] @ bits[columns].T) / 2
            close = distance <= max_distance
            if other == start:
                close = np.triu(close, 1)
            if not close.any():
                continue
            correlation = rows[block] @ rows[columns].T
            i, j = np.nonzero(close & (correlation >= min_correlation))
            first, second = indices[i + start], indices[j + other]
            across = parts[first] != parts[second]
            correlation, distance = correlation[i, j], distance[i, j]
            for kind in count:
                some = np.flatnonzero(across == kind)
                left = some[: max(0, MAX_PAIRS - count[kind])]
                count[kind] += len(some)
                found.append([a[left] for a in (first, second, correlation, distance)])
    if not found:
        none = np.empty(0, np.int64)
        return NearPairs(none, none, np.empty(0, np.float32), none)
    first, second, correlation, distance = (np.concatenate(arrays) for arrays in zip(*found))
    complete = (count[across] <= MAX_PAIRS for across in (False, True))
    return NearPairs(first, second, correlation, distance.astype(np.int64), *complete)
