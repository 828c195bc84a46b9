"""Files of several images: what is in them, and one slice or frame of them."""

import os
from contextlib import closing
from typing import BinaryIO

from PIL import Image

from .files import ImageError, Kind, Source, kind_of, open_source
from .windows import Window


def describe(source: Source, slice_axis: str) -> dict:
    """What listing a file needs, from its header alone.

    Returns:
        "frames": slices or frames in it; None for an ordinary image, 0 for a DICOM file without
        pixels. "group": whom its images are of, a hash, or None. "group_from": the DICOM element
        that the group is of.

    Raises:
        ImageError: the header can't be read.
    """
    from .dicom import describe_dicom
    from .nifti import describe_nifti

    name, stream = open_source(source)
    with closing(stream):
        kind = kind_of(stream)
        if kind == "dicom":
            return describe_dicom(name, stream)
        if kind == "nifti":
            return describe_nifti(name, stream, slice_axis)
    return {"frames": None, "group": None, "group_from": None}


def load_slice(
    name: str,
    stream: BinaryIO,
    kind: Kind,
    frame: int | None,
    windows: tuple[Window, ...] | None,
    slice_axis: str,
) -> Image.Image:
    """One slice or frame of a DICOM or NIfTI file, mode "L" or "RGB"; see `dicom_image` and
    `nifti_image`."""
    from .dicom import dicom_image, read_dicom
    from .nifti import nifti_image, read_nifti

    read = read_dicom if kind == "dicom" else read_nifti
    volume = read(name, stream) if frame is None else _read_once(name, stream, read)
    if kind == "dicom":
        return dicom_image(name, volume, frame, windows)
    return nifti_image(name, volume, frame, windows, slice_axis)


# Slices of a file are asked for one after the other: it is read and decompressed once. The key and
# the volume are one value, so that threads see both of the same file.
_last: tuple[tuple | None, object] = (None, None)


def _read_once(name, stream, read):
    global _last
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # bytes in memory
        return read(name, stream)
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    last_key, volume = _last
    if key != last_key:
        _last = (None, None)  # or two volumes would be in memory at once
        volume = None
        try:
            volume = read(name, stream)
        except ImageError as error:  # all of its slices will fail, at once
            volume = error
        _last = (key, volume)
    if isinstance(volume, ImageError):
        raise volume
    return volume
