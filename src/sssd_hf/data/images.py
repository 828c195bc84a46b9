"""Reading one image file safely: the format is judged by content, the size before decoding."""

from contextlib import closing
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from .files import MAX_IMAGE_BYTES, MAX_PIXELS, ImageError, Source, check_bytes, open_source

ALLOWED_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_PHOTOMETRIC = 262  # TIFF 6.0's PhotometricInterpretation


def load_image(source: Source, num_channels: int) -> Image.Image:
    """Read one image as 8-bit grey (mode "L") or colour (mode "RGB").

    The result is what the stock pipeline sees: EXIF orientation applied, then Pillow's `convert`
    (alpha is dropped, not blended). Images deeper than 8 bits with one channel (modes I;16*, I, F)
    are scaled linearly from their own minimum..maximum to 0..255, a constant image to 0; Pillow
    itself reads 16-bit colour as its upper 8 bits. File metadata is not carried over.

    Args:
        source: path, encoded bytes, or the dict `{"path": ..., "bytes": ...}` that
            `datasets.Image(decode=False)` gives (bytes are preferred where both are there).
        num_channels: 1 or 3.

    Raises:
        ImageError: missing, empty, truncated or damaged file, a format outside
            `ALLOWED_FORMATS`, more than `MAX_PIXELS` pixels, more than one frame, or values that
            are not finite. No other exception leaves, whatever the bytes.
        ValueError: `num_channels` is neither 1 nor 3.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels is {num_channels!r}, expected 1 (grey) or 3 (colour)")
    name, stream = open_source(source)
    with closing(stream):
        return decode_image(name, stream, num_channels)


def decode_image(name: str, stream: BinaryIO, num_channels: int) -> Image.Image:
    """`load_image` of an open file."""
    try:
        check_bytes(name, stream, MAX_IMAGE_BYTES)
        return _decode(name, stream, "L" if num_channels == 1 else "RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(
            f"{name}: the content is not a readable {', '.join(ALLOWED_FORMATS)} image, DICOM or "
            "NIfTI file (the suffix does not count): convert it to PNG, or copy it again if it is "
            "damaged"
        ) from exc
    except Image.DecompressionBombError as exc:  # Pillow's own limit, reached inside open()
        raise ImageError(_too_large(name, str(exc))) from exc
    except Exception as exc:  # decoders raise anything on hostile bytes, MemoryError included
        raise ImageError(
            f"{name}: cannot be decoded ({type(exc).__name__}: {exc}), the file is truncated, "
            "damaged or of an unusual kind: copy it again or save it anew as 8-bit PNG"
        ) from exc


def _decode(name, stream, mode):
    with Image.open(stream, formats=ALLOWED_FORMATS) as image:
        width, height = image.size  # from the header, nothing is decoded yet
        if width * height > MAX_PIXELS:
            raise ImageError(_too_large(name, f"{width} x {height} pixels"))
        if image.tile and image.tile[0][3] == "LA;16B":  # how Pillow will read it
            raise ImageError(
                f"{name}: 16-bit grey with transparency, of which only the upper 8 bits could be "
                "read (most medical values lie below): save it without the alpha channel"
            )
        if _has_second_frame(image):
            raise ImageError(
                f"{name}: holds more than one frame, expected one image: split it into one file "
                "per frame (a volume into slices) and list each of them"
            )
        image.load()
        # Pillow heeds it in images of 8 bits alone
        white_is_zero = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _to_8_bit(name, image, white_is_zero)
        image.info.pop("transparency", None)  # alpha is dropped anyway, and Pillow would warn
        image = image.convert(mode)
    image.info = {}
    return image


def _has_second_frame(image):
    # seek(1), not n_frames: counting walks the whole file, which a hostile TIFF makes endless
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _to_8_bit(name, image, white_is_zero):
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(
            f"{name}: holds NaN or infinite values, expected finite ones: replace them by a number "
            "when the image is exported"
        )
    if white_is_zero:
        values = -values
    values -= values.min()
    span = values.max()
    if span > 0:
        values /= span
        values *= 255
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _too_large(name, found):
    return (
        f"{name}: too large, {found}, expected at most {MAX_PIXELS:,} pixels: "
        "reduce it or cut it into tiles first"
    )
