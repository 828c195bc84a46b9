"""Decoded images kept on disk: one folder a set, complete or not there, checked when it is opened.

    <HF_HOME>/sssd_hf/decoded/<name>/pixels.bin     (images, channels, height, width) uint8
                                     manifest.json  what it holds and its checksum, written last
                                     lock           held by the process that writes

A folder may be deleted at any time when no run uses it; the next run decodes again.
"""

import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .images import ImageError
from .preparation import Preparation, Source

logger = logging.getLogger(__name__)

FORMAT = 2  # to be raised when the layout changes, or what `prepare_image` makes of a file
DECODERS = ("pillow", "pydicom", "nibabel")  # a new release may decode to other pixels
CHUNK = 64 << 20  # bytes read at a time


@dataclass(frozen=True)
class Fingerprint:
    """Which store a set of images has, and whether it still fits them.

    Args:
        name: hash of the paths and settings; names the folder, so that a changed file or a new
            release replaces the store instead of leaving it behind.
        content: hash of the size and modification time of each file (of the bytes where an image
            comes as bytes) and of the decoders' versions. No file is opened: whatever writes a
            file in the ordinary way changes its time in nanoseconds, its size, or both. (Other
            content of the same size with the old time set back on it is not noticed.)
        encoded_bytes: sum over the images; what decoding them all would read.
    """

    name: str
    content: str
    encoded_bytes: int


def fingerprint(sources: Sequence[Source], preparation: Preparation) -> Fingerprint:
    """Of the images in this order; one `stat` a file, one hash of embedded bytes."""
    settings = json.dumps(asdict(preparation), sort_keys=True, default=str)
    name, content = hashlib.blake2b(settings.encode(), digest_size=16), hashlib.blake2b()
    content.update(json.dumps([FORMAT, *map(_version, DECODERS)]).encode())
    encoded = 0
    for source in sources:
        place, state, size = _describe(source)
        name.update(place.encode("utf-8", "surrogateescape") + b"\0")
        content.update(state.encode() + b"\0")
        encoded += size
    content.update(name.digest())
    return Fingerprint(name.hexdigest(), content.hexdigest()[:32], encoded)


def _describe(source: Source) -> tuple[str, str, int]:
    """(which image, in which state, encoded bytes)"""
    more = ""
    if isinstance(source, dict):
        rest = {k: v for k, v in source.items() if k not in ("path", "bytes")}
        more = json.dumps(rest, sort_keys=True, default=str) if rest else ""
        data = source.get("bytes")
        source = source.get("path") if data is None else data
    if isinstance(source, (bytes, bytearray, memoryview)):
        digest = hashlib.blake2b(source, digest_size=16).hexdigest()
        return digest + more, "", len(source)
    path = os.path.abspath(os.fspath(source)) if source else ""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # decoding will say what is wrong with it
        return path + more, "cannot be read", 0
    return path + more, f"{status.st_size} {status.st_mtime_ns}", status.st_size


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def store_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "sssd_hf" / "decoded" / name


@contextmanager
def locked(folder: Path):
    """One process at a time writes; the system frees the lock of a process that died."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        logger.info("another process decodes these images (%s), waiting for it", folder)
        lock.acquire()
    except NotImplementedError as error:  # some network drives
        raise OSError(f"{folder}: the file system has no locks ({error})") from error
    try:
        yield
    finally:
        lock.release()


def written_at(folder: Path) -> tuple[int, int] | None:
    """Tells one writing of a store from another; None where there is none."""
    try:
        status = (folder / "manifest.json").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def write_store(
    folder: Path,
    content: str,
    shape: tuple[int, int, int],
    items: Iterable[tuple[int, np.ndarray | ImageError]],
    keep_if_bad: bool,
) -> dict[int, str]:
    """Write images as they are decoded; to be called inside `locked(folder)`.

    Args:
        content: `Fingerprint.content`.
        shape: (channels, height, width) of every image.
        items: (index, uint8 pixels or what is wrong), in order.
        keep_if_bad: else a set with unreadable images leaves nothing on disk.

    Returns:
        What is wrong, by index.

    Raises:
        OSError: the disk is full or cannot be written; nothing half-written is left.
    """
    draft = folder / "pixels.tmp"  # what a killed process left is overwritten
    bad: dict[int, str] = {}
    count = checksum = number = 0
    try:
        # written as a file and not through a memory map, where a full disk kills the process
        with draft.open("wb") as file:
            for index, pixels in items:
                number += 1
                if isinstance(pixels, ImageError):
                    bad[index] = str(pixels)
                    continue
                data = np.ascontiguousarray(pixels).data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if count and (keep_if_bad or not bad):
            os.replace(draft, folder / "pixels.bin")
            facts = {"format": FORMAT, "content": content, "sources": number}
            facts |= {"shape": [count, *shape], "crc32": checksum, "bad": list(bad.items())}
            _write_manifest(folder, facts)
    finally:
        draft.unlink(missing_ok=True)
    return bad


def _write_manifest(folder: Path, facts: dict) -> None:
    draft = folder / "manifest.tmp"
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"facts": facts, "crc32": _checksum_of(facts)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, folder / "manifest.json")
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":  # the renames themselves are on disk after this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum_of(facts: dict) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def read_store(
    folder: Path,
    content: str,
    sources: int,
    shape: tuple[int, int, int],
    progress: bool = True,
    warn: bool = True,
) -> tuple[torch.Tensor, dict[int, str]] | None:
    """The images, mapped from disk, and which indices are missing and why.

    All bytes are read once and compared with their CRC-32, at some GB/s: it finds every error of up
    to 32 bits in a row and all others but one in 4e9. Needs no lock: what another process is just
    replacing looks damaged.

    Returns:
        ((images, channels, height, width) uint8, {index: reason}); None where there is no store, or
        a damaged or stale one, which is logged as a warning.
    """
    if not (folder / "manifest.json").exists():
        return None
    level = logging.WARNING if warn else logging.DEBUG
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        facts = manifest["facts"]
        if manifest["crc32"] != _checksum_of(facts):
            raise ValueError("manifest.json is damaged")
        if facts["content"] != content or facts["format"] != FORMAT:
            logger.log(
                level,
                "the decoded images in %s are stale (a file or a decoder has changed since): "
                "decoding again",
                folder,
            )
            return None
        count = facts["shape"][0]
        bad = {int(index): reason for index, reason in facts["bad"]}
        if facts["shape"][1:] != list(shape) or count + len(bad) != sources:
            raise ValueError(f"it holds {facts['shape']} pixels")
        path, size = folder / "pixels.bin", count * int(np.prod(shape))
        if path.stat().st_size != size:
            raise ValueError(f"pixels.bin has {path.stat().st_size} bytes, expected {size}")
        if _checksum_of_file(path, progress) != facts["crc32"]:
            raise ValueError("pixels.bin does not match its checksum")
        pixels = _mapped(path, size)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        logger.log(
            level, "the decoded images in %s are damaged (%s): decoding again", folder, error
        )
        return None
    return pixels.view(count, *shape), bad


def _mapped(path: Path, size: int) -> torch.Tensor:
    """The file's bytes, read as they are needed. For reading alone: of a private mapping that can
    be written to, Linux wants as much free memory as it could take, and such a set may be larger.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=(size,)))


def _checksum_of_file(path: Path, progress: bool) -> int:
    checksum = 0
    bar = tqdm(
        total=path.stat().st_size,
        desc="check decoded images",
        unit="B",
        unit_scale=True,
        delay=1,
        disable=not progress,
    )
    with path.open("rb") as file, bar:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
            bar.update(len(chunk))
    return checksum
