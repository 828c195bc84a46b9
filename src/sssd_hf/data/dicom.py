"""DICOM files: from stored values to grey levels or colours, as a viewer shows them.

A header names patients. Nothing of it is put into messages, and no warning of pydicom's (they quote
values) is let through.
"""

import hashlib
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image

from .files import MAX_FRAMES, MAX_PIXELS, MAX_VOLUME_BYTES, ImageError, check_bytes
from .windows import Window, apply_window, to_bytes

CT_RANGE = (-1024, 3071)  # HU that 12 bits hold; beyond are padding, metal and errors
# which elements make the picture; in enhanced files these lie in the functional groups instead
_LUT_KEYWORDS = (
    "RescaleSlope RescaleIntercept ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence"
).split()
_FUNCTIONAL_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def describe_dicom(name: str, stream: BinaryIO) -> dict:
    """{"frames": how many, 0 for a file without pixels (a directory, a report), "group": whom the
    images are of, "group_from": by which element}.

    The group is a hash of PatientID (of StudyInstanceUID where that is empty), so that the ID
    itself gets into no table and no log. Who knows the possible IDs can still find it out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags = ["PatientID", "StudyInstanceUID", "NumberOfFrames", "Rows", "Columns"]
        try:
            dataset = _pydicom(name).dcmread(stream, stop_before_pixels=True, specific_tags=tags)
            has_pixels = "Rows" in dataset and "Columns" in dataset
            frames = _count_frames(name, dataset) if has_pixels else 0
            for keyword in ("PatientID", "StudyInstanceUID"):
                text = str(dataset.get(keyword) or "").strip()
                if text:
                    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
                    return {"frames": frames, "group": digest[:16], "group_from": keyword}
        except ImageError:
            raise
        except Exception as exc:
            raise _unreadable(name, exc) from exc
    return {"frames": frames, "group": None, "group_from": None}


def read_dicom(name: str, stream: BinaryIO):
    """The `pydicom.Dataset` of a file, checked against the caps."""
    check_bytes(name, stream, MAX_VOLUME_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = _pydicom(name).dcmread(stream)
            rows, columns = dataset.get("Rows"), dataset.get("Columns")
            if not rows or not columns:
                raise ImageError(
                    f"{name}: is a DICOM file without an image (such as a directory or a report): "
                    "leave it out"
                )
            if rows * columns > MAX_PIXELS:
                raise ImageError(
                    f"{name}: too large, {columns} x {rows} pixels, expected at most "
                    f"{MAX_PIXELS:,} pixels: reduce it or cut it into tiles first"
                )
            _count_frames(name, dataset)
        except ImageError:
            raise
        except Exception as exc:
            raise _unreadable(name, exc) from exc
    return dataset


def dicom_image(
    name: str, dataset, frame: int | None, windows: tuple[Window, ...] | None
) -> Image.Image:
    """One frame, mode "L" or "RGB" (of a colour file, or of three windows).

    Grey files: the modality's rescaling or table gives HU or the like. With `windows` each gives a
    channel. Without, the file's own VOI table or first window is used; where there is none, the
    smallest to the largest value (of CT: within -1024..3071 HU). MONOCHROME1 is inverted. Padding
    is black and does not count. Windows do not apply to colour files.

    Raises:
        ImageError: several frames and none named, no such frame, pixels that can't be decoded.
    """
    frames = _count_frames(name, dataset)
    if frame is None and frames > 1:
        raise ImageError(
            f"{name}: holds {frames} frames, expected one image: name the frame, or give its "
            "folder, where each frame counts as an image"
        )
    frame = frame or 0
    if not 0 <= frame < frames:
        raise ImageError(f"{name}: has no such frame, it holds {frames}: list its frames anew")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = _decode_frame(name, dataset, frame, frames)
            if stored.shape == (dataset.Rows, dataset.Columns, 3):
                return _colour(stored, int(dataset.BitsStored))
            if stored.shape != (dataset.Rows, dataset.Columns):
                raise ImageError(
                    f"{name}: its pixels have the shape {stored.shape}, expected those of one grey "
                    "or RGB image: export it anew"
                )
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                from pydicom.pixels import apply_color_lut

                colours = apply_color_lut(stored, dataset)
                return _colour(colours, 8 * colours.dtype.itemsize)
            channels = [
                Image.fromarray(channel) for channel in _grey(name, dataset, stored, frame, windows)
            ]
            return channels[0] if len(channels) == 1 else Image.merge("RGB", channels)
        except ImageError:
            raise
        except Exception as exc:
            raise _unreadable(name, exc) from exc


def _grey(name, dataset, stored, frame, windows):
    """List of (rows, columns) uint8, one a window."""
    from pydicom.pixels import apply_modality_lut

    padding = _padding(dataset, stored)
    luts = _lookup_tables(dataset, frame)
    values = apply_modality_lut(stored, luts)
    if not np.isfinite(values).all():
        raise ImageError(
            f"{name}: holds NaN or infinite values, expected finite ones: export it anew"
        )
    if windows:
        channels = [apply_window(values, window) for window in windows]
    elif luts.get("VOILUTSequence") or _has_window(luts):
        channels = [_own_view(values, luts)]
    else:
        channels = [_full_range(values, padding, dataset.get("Modality") == "CT")]
    for channel in channels:
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            np.subtract(255, channel, out=channel)
        if padding is not None:
            channel[padding] = 0
    return channels


def _has_window(luts):
    """Some exporters write 0 for "none". DICOM PS3.3, C.11.2.1.2 has the least widths."""
    from pydicom.multival import MultiValue

    if "WindowCenter" not in luts or "WindowWidth" not in luts:
        return False
    widths = luts.WindowWidth
    width = widths[0] if isinstance(widths, MultiValue) else widths
    linear = luts.get("VOILUTFunction", "LINEAR") in ("LINEAR", "", None)
    return width >= 1 if linear else width > 0


def _own_view(values, luts):
    from pydicom import Dataset
    from pydicom.pixels import apply_voi, apply_windowing

    sequence = luts.get("VOILUTSequence")
    if sequence:
        bits = sequence[0].LUTDescriptor[2]
        table = apply_voi(np.rint(values).astype(np.int64), luts)
        return to_bytes(table / (2**bits - 1))
    view = Dataset()  # of 8 bits and without rescaling: pydicom then answers in 0..255
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if keyword in luts:
            view[keyword] = luts[keyword]
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 8, 0
    return to_bytes(apply_windowing(values, view) / 255)


def _full_range(values, padding, is_ct):
    values = values.astype(np.float64)
    if is_ct:
        values = values.clip(*CT_RANGE)
    counted = values if padding is None else values[~padding]
    if not counted.size:
        return np.zeros(values.shape, np.uint8)
    low, high = counted.min(), counted.max()
    return to_bytes((values - low) / ((high - low) or 1))


def _padding(dataset, stored):
    """Where there is no image, as a mask; None: everywhere is."""
    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    # written unsigned in some files of signed values: the same bits are meant
    ends = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    mask = (stored >= ends.min()) & (stored <= ends.max())
    return mask if mask.any() else None


def _lookup_tables(dataset, frame):
    """A Dataset of what applies to the frame: its own functional group wins, then the shared one,
    then the file."""
    from pydicom import Dataset

    tables = Dataset()
    tables.file_meta = dataset.file_meta
    places = [dataset]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        places += [item for name in _FUNCTIONAL_GROUPS for item in (group.get(name) or [])[:1]]
    for place in places:
        for keyword in _LUT_KEYWORDS:
            if keyword in place and place[keyword].value not in (None, ""):
                tables[keyword] = place[keyword]
    return tables


def _decode_frame(name, dataset, frame, frames):
    from pydicom.pixels import pixel_array

    try:
        return pixel_array(dataset, index=frame if frames > 1 else None)
    except Exception as exc:
        # these two are about the form of the pixels; others quote the header
        detail = type(exc).__name__
        if isinstance(exc, (RuntimeError, NotImplementedError)):
            detail += ": " + " ".join(str(exc).split())
        raise ImageError(
            f"{name}: its pixels cannot be decoded ({detail}): copy the file again, or save it "
            "anew uncompressed"
        ) from exc


def _colour(values, bits):
    if values.dtype != np.uint8:
        values = (values >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values)


def _count_frames(name, dataset):
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise ImageError(
            f"{name}: says it has {frames} frames, expected 1 to {MAX_FRAMES:,}: split it"
        )
    return frames


def _pydicom(name):
    try:
        import pydicom
    except ImportError as exc:
        raise ImageError(
            f"{name}: is a DICOM file, and pydicom is not installed: pip install 'sssd_hf[medical]'"
        ) from exc
    return pydicom


def _unreadable(name, exc):
    # pydicom's messages quote the header, hence the kind of error alone
    return ImageError(
        f"{name}: cannot be read as DICOM ({type(exc).__name__}), the file is truncated, damaged "
        "or of an unusual kind: copy it again or export it anew"
    )
