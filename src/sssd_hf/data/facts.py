"""What a file says beside its picture: size, format, bytes, and digests that find copies.

`read_facts` runs in the child process that decodes (see `isolation`), `check_facts` in the parent.
"""

import hashlib
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image

from .files import Source, kind_of, open_source
from .images import ALLOWED_FORMATS
from .preparation import Preparation, read_image, resize

_NUMBERS = ("width", "height", "num_bytes")
_WORDS = ("mode", "format", "pixel_digest")


def read_facts(source: Source, preparation: Preparation) -> tuple[dict[str, Any], np.ndarray]:
    """The facts of one image, slice or frame, and its pixels as `prepare_image` gives them.

    Returns:
        Facts: "width" and "height" as stored (before EXIF's orientation), "mode" (Pillow's),
        "format" ("PNG", ..., "DICOM", "NIFTI"), "num_bytes" of the file, "pixel_digest" of the
        decoded pixels at full size, and "file_digest" of the bytes; None for one of several slices
        of a file. Digests are SHA-256 in hexadecimal. Pixels: (channels, height, width) uint8.

    Raises:
        ImageError: see `prepare_image`.
    """
    image = read_image(source, preparation)
    facts = {"width": image.width, "height": image.height, "mode": image.mode}
    frame = source.get("frame") if isinstance(source, dict) else None
    with closing(open_source(source)[1]) as stream:
        kind = kind_of(stream)
        facts["format"] = kind.upper()
        if kind == "image":
            with Image.open(stream, formats=ALLOWED_FORMATS) as header:  # nothing is decoded
                facts |= {"width": header.width, "height": header.height, "mode": header.mode}
                facts["format"] = header.format
        facts["num_bytes"] = stream.seek(0, 2)
        facts["file_digest"] = None
        if frame is None:
            stream.seek(0)
            facts["file_digest"] = hashlib.file_digest(stream, "sha256").hexdigest()
    shape = f"{image.width}x{image.height}x{len(image.getbands())}:".encode()
    facts["pixel_digest"] = hashlib.sha256(shape + image.tobytes()).hexdigest()
    pixels = np.array(resize(image, preparation.size, preparation.resize_mode))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return facts, np.ascontiguousarray(pixels)


def check_facts(facts: Any) -> dict[str, Any]:
    """`facts` as `read_facts` gives them.

    Raises:
        ValueError: anything else; the process that answered has read a hostile file.
    """
    if not (
        isinstance(facts, dict)
        and all(type(facts.get(name)) is int and facts[name] > 0 for name in _NUMBERS)
        and all(isinstance(facts.get(name), str) and len(facts[name]) <= 64 for name in _WORDS)
        and isinstance(facts.get("file_digest"), str | None)
    ):
        raise ValueError("facts of another form")
    return {name: facts.get(name) for name in (*_NUMBERS, *_WORDS, "file_digest")}
