"""What a source of images is, before anything is decoded: its name, its bytes, its kind."""

import io
import os
import re
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

# a path, encoded bytes, or the dict of `datasets.Image(decode=False)`: "path", "bytes" and, for one
# slice of a volume or frame of a multi-frame file, "frame" (counted from 0)
Source = str | os.PathLike | bytes | dict
Kind = Literal["image", "dicom", "nifti"]

# What a folder walk picks up. A file's content decides how it is read, whatever its suffix says.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MEDICAL_SUFFIXES = (".dcm", ".dicom", ".ima", ".nii", ".nii.gz")

MAX_PIXELS = 100_000_000  # of one image, slice or frame
MAX_FRAMES = 10_000  # of one file
MAX_IMAGE_BYTES = 2**30  # of a file that Pillow reads
MAX_VOLUME_BYTES = 2**31  # of a DICOM or NIfTI file, and of a volume's voxels as stored

_HEAD = 4096  # bytes that tell the kind


class ImageError(ValueError):
    """An image that cannot be used; the message names the file, the reason and what to do."""


def source_name(source: Source) -> str:
    """What messages call a source."""
    if isinstance(source, dict):
        frame = "" if source.get("frame") is None else f", frame {source['frame']}"
        return str(source.get("path") or "image given as bytes") + frame
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "image given as bytes"
    return str(source)


def open_source(source: Source) -> tuple[str, BinaryIO]:
    """The name for messages and an open binary stream.

    Raises:
        ImageError: no path or bytes, a missing or empty file, a folder, a pipe, no permission.
    """
    name = source_name(source)
    if isinstance(source, dict):
        data = source.get("bytes")
        source = source.get("path") if data is None else data
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not source:
            raise ImageError(f"{name}: is empty (0 bytes): copy the file again or remove it")
        return name, io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ImageError(f"{name}: found {source!r}, expected a path or the bytes of an image file")
    path = Path(source)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path}: is a folder, expected an image file: give one file's path")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError(f"{path}: is not a regular file: copy the image to a normal file")
        if status.st_size == 0:
            raise ImageError(f"{path}: is empty (0 bytes): copy the file again or remove it")
        return name, path.open("rb")
    except FileNotFoundError as exc:
        raise ImageError(f"{path}: does not exist: check the path and the metadata row") from exc
    except ImageError:
        raise
    except (OSError, ValueError) as exc:  # ValueError: a NUL character in the path
        raise ImageError(
            f"{str(path)!r}: cannot be read ({exc}): check the path and its permissions"
        ) from exc


def kind_of(stream: BinaryIO) -> Kind:
    """By content: DICOM and NIfTI have their marks, all else is left to Pillow. The stream is at
    its start before and after."""
    head = stream.read(_HEAD)
    stream.seek(0)
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:2] == b"\x1f\x8b":  # gzip
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD)
        except zlib.error:
            return "image"
    # of NIfTI-1 and NIfTI-2, header and voxels in one file
    if head[344:348] == b"n+1\0" or head[4:12] == b"n+2\0\r\n\x1a\n":
        return "nifti"
    return "image"


def check_bytes(name: str, stream: BinaryIO, most: int) -> None:
    """Raises ImageError for a file of more than `most` bytes. The stream is at its start after."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size > most:
        raise ImageError(
            f"{name}: too large, {size:,} bytes, expected at most {most:,}: "
            "reduce it or cut it into parts first"
        )


def may_be_image(path: Path) -> bool:
    """Whether a folder walk takes a file: by suffix; without one by DICOM's mark in its content.
    Files named by a UID, such as 1.2.840.1, have no suffix either."""
    name = path.name.lower()
    return name.endswith(IMAGE_SUFFIXES + MEDICAL_SUFFIXES) or _is_dicom_without_suffix(path)


def may_have_slices(path: Path) -> bool:
    """Whether a file has to be asked how many slices it holds: what is no ordinary image."""
    return path.name.lower().endswith(MEDICAL_SUFFIXES) or _is_dicom_without_suffix(path)


def _is_dicom_without_suffix(path):
    if not re.fullmatch(r"(\.\d+)?", path.suffix):
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:  # reported when it is decoded, if somebody names it
        return False
