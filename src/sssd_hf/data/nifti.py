"""NIfTI volumes: slices along an axis of the patient."""

import gzip
import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from .files import MAX_FRAMES, MAX_PIXELS, MAX_VOLUME_BYTES, ImageError, check_bytes
from .windows import Window, apply_window, to_bytes

# of a volume turned so that its axes run to the patient's right, front and head
SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Volume:
    """A volume as stored, in memory.

    Args:
        values: (right, front, head) of any number type, not scaled.
        slope, intercept: what makes them units, HU for CT.
        low, high: smallest and largest finite value of the volume, scaled.
    """

    values: np.ndarray
    slope: float
    intercept: float
    low: float
    high: float

    def scaled(self, part: np.ndarray) -> np.ndarray:
        return part.astype(np.float64) * self.slope + self.intercept


def describe_nifti(name: str, stream: BinaryIO, slice_axis: str) -> dict:
    """{"frames": how many slices along the axis, "group": None, "group_from": None}."""
    try:
        header, _ = _read_header(name, stream)
        shape, orientation = _shape(name, header), _orientation(header)
    except ImageError:
        raise
    except Exception as exc:
        raise _unreadable(name, exc) from exc
    # orientation[i, 0]: which patient axis the i-th stored axis lies along
    stored_axis = orientation[:, 0].tolist().index(SLICE_AXES[slice_axis])
    return {"frames": shape[stored_axis], "group": None, "group_from": None}


def read_nifti(name: str, stream: BinaryIO) -> Volume:
    """The whole volume, since a compressed one cannot be read in parts.

    Raises:
        ImageError: damaged, over the caps, not three-dimensional, or not of plain numbers.
    """
    check_bytes(name, stream, MAX_VOLUME_BYTES)
    try:
        header, stream = _read_header(name, stream)
        shape, orientation = _shape(name, header), _orientation(header)
        header.set_data_shape(shape)
        values = header.raw_data_from_fileobj(stream)  # reads what the header says, no more
        slope, intercept = header.get_slope_inter()
        values = _turned(values, orientation)
        slope = 1.0 if slope is None else float(slope)
        intercept = 0.0 if intercept is None else float(intercept)
        low, high = (number * slope + intercept for number in _finite_range(values))
        return Volume(values, slope, intercept, min(low, high), max(low, high))
    except ImageError:
        raise
    except Exception as exc:
        raise _unreadable(name, exc) from exc


def nifti_image(
    name: str,
    volume: Volume,
    frame: int | None,
    windows: tuple[Window, ...] | None,
    slice_axis: str,
) -> Image.Image:
    """One slice as radiologists look at it: the patient's right at the image's left (sagittal: the
    front), the front or the head at its top. Mode "L", or "RGB" of three windows; without windows
    the volume's smallest to largest value. What is not finite is black.

    Raises:
        ImageError: several slices and none named, or no such slice.
    """
    axis = SLICE_AXES[slice_axis]
    frames = volume.values.shape[axis]
    if frame is None and frames > 1:
        raise ImageError(
            f"{name}: holds {frames} slices, expected one image: name the slice, or give its "
            "folder, where each slice counts as an image"
        )
    frame = frame or 0
    if not 0 <= frame < frames:
        raise ImageError(
            f"{name}: has no such slice, it holds {frames} along the {slice_axis} axis: list its "
            "slices anew, with the same --slice_axis"
        )
    plane = np.moveaxis(volume.values, axis, 0)[frame]  # a view: `take` copies the whole volume
    values = volume.scaled(plane[::-1, ::-1].T)
    values = np.where(np.isfinite(values), values, volume.low)
    if windows is None:
        # the volume's range and not the slice's, so that slices stay comparable
        span = (volume.high - volume.low) or 1.0  # a constant volume is black
        return Image.fromarray(to_bytes((values - volume.low) / span))
    channels = [Image.fromarray(apply_window(values, window)) for window in windows]
    return channels[0] if len(channels) == 1 else Image.merge("RGB", channels)


def _read_header(name, stream):
    """The header, and the stream (decompressed where it is compressed)."""
    try:
        import nibabel
    except ImportError as exc:
        raise ImageError(
            f"{name}: is a NIfTI file, and nibabel is not installed: pip install 'sssd_hf[medical]'"
        ) from exc
    if stream.read(2) == b"\x1f\x8b":
        stream.seek(0)
        stream = gzip.GzipFile(fileobj=stream)
    stream.seek(0)
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(0)
    second = size == 540 or size == int.from_bytes((540).to_bytes(4, "little"), "big")
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    return kind.from_fileobj(stream), stream


def _shape(name, header):
    """Three lengths, from the header alone."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape)) if len(shape) >= 2 else ()
    dtype = header.get_data_dtype()
    if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf":
        raise ImageError(
            f"{name}: found the shape {shape} of {dtype}, expected a volume of three dimensions "
            "and of whole or real numbers: save it so (a time series one volume at a time)"
        )
    if math.prod(shape) * dtype.itemsize > MAX_VOLUME_BYTES or max(shape) > MAX_FRAMES:
        raise ImageError(
            f"{name}: too large, {' x '.join(map(str, shape))} voxels of {dtype}, expected at most "
            f"{MAX_VOLUME_BYTES:,} bytes and {MAX_FRAMES:,} a side: reduce it or cut it first"
        )
    if max(a * b for a, b in zip(shape, shape[1:] + shape[:1])) > MAX_PIXELS:
        raise ImageError(f"{name}: too large, a slice has more than {MAX_PIXELS:,} pixels")
    return shape


def _orientation(header):
    from nibabel.orientations import io_orientation

    affine = np.asarray(header.get_best_affine(), np.float64)
    orientation = io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(orientation).all():  # an axis without direction: nothing to go by
        return np.array([[0, 1], [1, 1], [2, 1]])
    return orientation.astype(int)


def _turned(values, orientation):
    """A view along the patient's axes."""
    flips = tuple(slice(None, None, int(direction)) for direction in orientation[:, 1])
    return values[flips].transpose(np.argsort(orientation[:, 0]))


def _finite_range(values):
    """(smallest, largest) of what is finite, as stored; (0, 0) if nothing is."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    low, high = math.inf, -math.inf
    for plane in values:  # a mask of the whole volume would double its memory
        finite = plane[np.isfinite(plane)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _unreadable(name, exc):
    return ImageError(
        f"{name}: cannot be read as NIfTI ({type(exc).__name__}: {exc}), the file is truncated, "
        "damaged or of an unusual kind: copy it again or save it anew"
    )
