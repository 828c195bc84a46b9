"""Windows of CT values: which Hounsfield units (HU) become black and which white."""

import math

import numpy as np

Window = tuple[float, float]  # centre, width in HU

# Of chest CT, as radiology teaching has them (Radiopaedia, "Windowing (CT)"): lungs W 1500 L -600,
# mediastinum W 350 L 50, bone W 1800 L 400.
NAMED_WINDOWS: dict[str, Window] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "bone": (400.0, 1800.0),
}


def parse_windows(text: str) -> tuple[Window, ...]:
    """ "lung", "-600/1500" (centre/width in HU), or several by comma, one a channel.

    Raises:
        ValueError: naming --window.
    """
    windows = []
    for part in text.split(","):
        word = part.strip().lower()
        try:
            window = NAMED_WINDOWS.get(word) or tuple(float(number) for number in word.split("/"))
            check_window(window)
        except ValueError as exc:
            raise ValueError(
                f"--window: found {part.strip()!r}, expected {', '.join(NAMED_WINDOWS)} or "
                "centre/width in HU with a width above 0, such as -600/1500; several by comma"
            ) from exc
        windows.append(window)
    return tuple(windows)


def check_window(window: Window) -> None:
    """Raises ValueError for what is no (centre, width)."""
    if len(window) != 2 or not all(map(math.isfinite, window)) or window[1] <= 0:
        raise ValueError(f"the window {window!r} is not (centre, width above 0) in HU")


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """uint8 of `values`' shape: centre - width/2 and below is 0, centre + width/2 and above 255,
    linear between (DICOM's LINEAR_EXACT, PS3.3 C.11.2.1.3.2)."""
    center, width = window
    return to_bytes((values.astype(np.float64) - center) / width + 0.5)


def to_bytes(shares: np.ndarray) -> np.ndarray:
    """0..1 to 0..255, rounded; what lies outside is clipped."""
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
