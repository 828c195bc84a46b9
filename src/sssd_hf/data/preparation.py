"""From one encoded image to the uint8 pixels a model's images are made of."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .files import ImageError, Source, kind_of, open_source
from .images import decode_image
from .nifti import SLICE_AXES
from .volumes import load_slice
from .windows import Window, check_window

RESIZE_MODES = ("squash", "letterbox", "center_crop")


@dataclass(frozen=True)
class Preparation:
    """How images become arrays of one shape; the same for training, evaluation and prediction.

    Args:
        size: (height, width) of the result.
        num_channels: 1 or 3.
        resize_mode: "squash" to the size, as `ViTImageProcessor` does; "letterbox": the whole image
            in its aspect, black beside it; "center_crop": the shorter side to the size, the middle.
        windows: (centre, width) in HU, of DICOM and NIfTI values: one for grey, or as many as
            channels. None: what the file itself says. Other formats hold grey levels already.
        slice_axis: along which axis of the patient a NIfTI volume is cut: "axial", "coronal" or
            "sagittal".
    """

    size: tuple[int, int]
    num_channels: int = 1
    resize_mode: str = "squash"
    windows: tuple[Window, ...] | None = None
    slice_axis: str = "axial"

    def __post_init__(self) -> None:
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels!r}, expected 1 or 3")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"--resize_mode is {self.resize_mode!r}, expected {', '.join(RESIZE_MODES)}"
            )
        if self.slice_axis not in SLICE_AXES:
            raise ValueError(
                f"--slice_axis is {self.slice_axis!r}, expected {', '.join(SLICE_AXES)}"
            )
        if self.windows is not None:
            for window in self.windows:
                check_window(window)
            if len(self.windows) not in (1, self.num_channels):
                raise ValueError(
                    f"--window names {len(self.windows)} windows and the model has "
                    f"{self.num_channels} channel(s): name one, or three with --num_channels 3"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: all but size and channels, which the model's config has itself."""
        windows = None if self.windows is None else [list(window) for window in self.windows]
        return {
            "resize_mode": self.resize_mode,
            "windows": windows,
            "slice_axis": self.slice_axis,
        }

    @classmethod
    def from_dict(
        cls, values: dict[str, Any] | None, size: tuple[int, int], num_channels: int
    ) -> "Preparation":
        """What `to_dict` gave; None gives the defaults.

        Raises:
            ValueError: an unknown name or an impossible value.
        """
        values = dict(values or {})
        unknown = set(values) - {"resize_mode", "windows", "slice_axis"}
        if unknown:
            raise ValueError(
                f"preparation: found {', '.join(sorted(unknown))}, expected resize_mode, windows "
                "and slice_axis: the config is of another version, or damaged"
            )
        if values.get("windows") is not None:
            values["windows"] = tuple(tuple(map(float, window)) for window in values["windows"])
        return cls(tuple(size), num_channels, **values)


def read_image(source: Source, preparation: Preparation) -> Image.Image:
    """One image, slice or frame at its own size, mode "L" or "RGB"; see `prepare_image`."""
    name, stream = open_source(source)
    frame = source.get("frame") if isinstance(source, dict) else None
    with closing(stream):
        kind = kind_of(stream)
        if kind != "image":
            image = load_slice(
                name, stream, kind, frame, preparation.windows, preparation.slice_axis
            )
            return image.convert("L" if preparation.num_channels == 1 else "RGB")
        if frame is not None:
            raise ImageError(f"{name}: is an image without frames: list the files anew")
        return decode_image(name, stream, preparation.num_channels)


def prepare_image(source: Source, preparation: Preparation) -> np.ndarray:
    """(channels, height, width) uint8 of one image, slice or frame, by Pillow's bilinear filter.

    Decoders of unknown files belong into a process of their own: see `isolation.decode_all`.

    Raises:
        ImageError: see `load_image`, `dicom_image` and `nifti_image`.
    """
    image = read_image(source, preparation)
    pixels = np.array(resize(image, preparation.size, preparation.resize_mode))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """`image` at `size` (height, width) in one of `RESIZE_MODES`."""
    height, width = size
    bilinear = Image.Resampling.BILINEAR
    if mode == "squash":
        return image.resize((width, height), bilinear)
    scales = (width / image.width, height / image.height)
    if mode == "center_crop":
        scale = max(scales)
        cut_width, cut_height = width / scale, height / scale  # in the image's pixels
        left, top = (image.width - cut_width) / 2, (image.height - cut_height) / 2
        box = (max(left, 0), max(top, 0), left + cut_width, top + cut_height)
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
        return image.resize((width, height), bilinear, box=box)
    scale = min(scales)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    result = Image.new(image.mode, (width, height))
    result.paste(image.resize(inner, bilinear), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return result
