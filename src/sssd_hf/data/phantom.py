"""Generated chest CT slices: the data set that the package carries inside itself.

Every picture is drawn from formulas and random numbers; no patient and no scan stands behind it.
Half of the patients carry opacities in the lungs (ground glass and consolidation). Everything else
is drawn the same way for both classes, and varies so much from patient to patient (position, size,
window, lung density, vessels) that a 16 x 16 thumbnail tells little about the class.

Lengths are in units of half the image side, x to the right and y down (patient's left is on the
right, front is up), z runs from 0 (lung tops) to 1 (diaphragm). Densities are in Hounsfield units.
"""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

CLASS_NAMES = ("clear", "opacity")
SPLIT_SHARES = {"train": 0.60, "validation": 0.15, "test": 0.25}
# Raise this when a change alters the pictures, so that folders written before are written anew.
VERSION = 3

AIR, FAT, SOFT, BONE = -1000.0, -100.0, 45.0, 420.0


@dataclass(frozen=True)
class PhantomSlice:
    """One slice: grey picture, class, and where the lesions are (all False for class 0)."""

    image: np.ndarray  # uint8 (height, width)
    label: int  # 0 clear, 1 opacity
    patient_id: str
    slice_index: int
    lesion_mask: np.ndarray  # bool (height, width)


@dataclass(frozen=True)
class _Lesion:
    right_image_side: bool
    place: tuple[float, float]  # share of the lung's height and of its width at that height, 0..1
    drift: tuple[float, float]  # change of the place from the first slice to the last
    size: float  # diameter as a share of the lung's mean diameter
    stretch: float
    angle: float
    lobes: np.ndarray  # amplitude and phase of the outline's waves, (waves, 2)
    density: float  # what is added (ground glass) or reached (consolidation), HU
    solid: bool
    centre_z: float
    reach_z: float


@dataclass(frozen=True)
class _Patient:
    traits: dict[str, float]
    vessels: np.ndarray  # points on the vessel trees: x, y, z, radius; (points, 4)
    lesions: tuple[_Lesion, ...]
    label: int


def make_phantoms(
    num_patients: int, slices_per_patient: int = 4, image_size: int = 128, seed: int = 0
) -> list[PhantomSlice]:
    """All slices of patients 1 to num_patients, patient by patient.

    A patient depends on the seed and his number alone: asking for more patients changes none of
    the earlier ones. Of patients 1 and 2, 3 and 4, ... one is clear and one has opacities.
    """
    slices = []
    for number in range(1, num_patients + 1):
        patient = _draw_patient(seed, number)
        for index in range(slices_per_patient):
            slices.append(_render(patient, seed, number, index, slices_per_patient, image_size))
    return slices


def write_phantoms(
    folder: str | Path,
    num_patients: int = 200,
    slices_per_patient: int = 4,
    image_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write `images/*.png` (8-bit grey), `metadata.csv` and, last, `phantom.json`.

    Returns the folder. Does nothing where `phantom.json` already tells of the same set. Whole
    patients go to train, validation and test, 60, 15 and 25 % of each class.
    """
    from tqdm import tqdm

    folder = Path(folder)
    wanted = {
        "version": VERSION,
        "num_patients": num_patients,
        "slices_per_patient": slices_per_patient,
        "image_size": image_size,
        "seed": seed,
        "classes": list(CLASS_NAMES),
    }
    note = folder / "phantom.json"
    if note.exists() and json.loads(note.read_text()) == wanted:
        return folder
    # The note is the sign of a complete set: it goes first and comes back last.
    note.unlink(missing_ok=True)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for stale in (folder / "images").glob("p*_s*.png"):
        stale.unlink()

    patients = [_draw_patient(seed, number) for number in range(1, num_patients + 1)]
    splits = _split_patients([patient.label for patient in patients], seed)
    rows = []
    for number, patient in enumerate(tqdm(patients, "phantoms", disable=not progress), start=1):
        for index in range(slices_per_patient):
            item = _render(patient, seed, number, index, slices_per_patient, image_size)
            name = f"images/{item.patient_id}_s{index}.png"
            Image.fromarray(item.image).save(folder / name)
            rows.append((name, CLASS_NAMES[item.label], item.patient_id, splits[number - 1]))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "label", "patient_id", "split"))
        writer.writerows(rows)
    note.write_text(json.dumps(wanted, indent=2) + "\n")
    return folder


def lesion_masks(folder: str | Path, file_names: list[str]) -> np.ndarray:
    """Where the lesions are in slices that `write_phantoms` wrote: (slices, size, size) bool.

    Nothing of it lies in the folder: the slices are drawn again from what `phantom.json` tells.

    Args:
        file_names: as in metadata.csv, `images/p0001_s0.png`.

    Raises:
        FileNotFoundError: the folder holds no phantoms.
        ValueError: it was written by another version, or a name is not of one of its slices.
    """
    note = Path(folder) / "phantom.json"
    if not note.is_file():
        raise FileNotFoundError(f"{note} is missing: {folder} is no folder of phantoms")
    told = json.loads(note.read_text())
    if told["version"] != VERSION:
        raise ValueError(
            f"{note} is of version {told['version']}, this package draws version {VERSION}; write "
            "the phantoms anew"
        )
    seed, slices, size = (told[name] for name in ("seed", "slices_per_patient", "image_size"))
    masks = np.zeros((len(file_names), size, size), bool)
    patients: dict[int, _Patient] = {}
    for mask, name in zip(masks, file_names, strict=True):
        found = re.fullmatch(r"images/p(\d{4,})_s(\d+)\.png", name)
        number, index = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= told["num_patients"] or index >= slices:
            raise ValueError(
                f"{name} is no slice of the {told['num_patients']} phantoms in {folder}"
            )
        if number not in patients:
            patients[number] = _draw_patient(seed, number)
        mask[:] = _render(patients[number], seed, number, index, slices, size).lesion_mask
    return masks


def _split_patients(labels: list[int], seed: int) -> list[str]:
    """A split name for each patient, every class divided by SPLIT_SHARES."""
    splits = [""] * len(labels)
    bounds = np.cumsum(list(SPLIT_SHARES.values()))
    for label in range(len(CLASS_NAMES)):
        members = np.flatnonzero(np.asarray(labels) == label)
        members = np.random.default_rng([seed, 0, label]).permutation(members)
        ends = np.rint(bounds * len(members)).astype(int)
        for rank, member in enumerate(members):
            splits[member] = list(SPLIT_SHARES)[int(np.searchsorted(ends, rank, side="right"))]
    return splits


# --- drawing lots for a patient ------------------------------------------------------------------


def _draw_patient(seed: int, number: int) -> _Patient:
    rng = np.random.default_rng([seed, number])
    ranges = {
        # pose and acquisition
        "zoom": (0.86, 1.10), "shift_x": (-0.10, 0.10), "shift_y": (-0.14, 0.14),
        "turn": (-0.20, 0.20), "black": (-960, -880), "white": (180, 480),
        "noise": (9, 24), "grain": (0.5, 0.9), "streak": (2, 11), "blur": (0.25, 0.6),
        "motion": (-0.6, 0.9), "table": (-1, 1), "top": (0.08, 0.28), "bottom": (0.74, 0.96),
        # body
        "body_a": (0.80, 0.93), "body_b": (0.60, 0.73), "square": (2.1, 2.7), "fat": (0.02, 0.085),
        "wall": (0.065, 0.10), "wave1": (0, 6.28), "wave2": (0, 6.28), "lean": (-0.05, 0.05),
        "heart": (0.80, 1.25), "middle": (0.10, 0.155), "dome": (0.72, 1.15),
        "enhanced": (-120, 190), "rib": (0, 6.28), "rib_slope": (3, 7), "bone": (0.7, 1.3),
        # lungs
        "lung": (-900, -770), "gradient": (0, 210), "gradient_power": (1.0, 3.0),
        "uneven": (-45, 45), "mottle": (0, 45), "vessel": (0.55, 1.15), "fissure": (-0.25, 0.22),
    }  # fmt: skip
    traits = {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}
    vessels = _draw_vessels(rng)
    # The lot is drawn for a pair of patients, so that the classes are balanced and yet the
    # parity of the number tells nothing.
    first_is_positive = np.random.default_rng([seed, 0, 2, (number + 1) // 2]).random() < 0.5
    label = int(first_is_positive == (number % 2 == 1))
    lesions = _draw_lesions(rng) if label else ()
    return _Patient(traits, vessels, lesions, label)


def _draw_vessels(rng: np.random.Generator) -> np.ndarray:
    """Points on trees that grow from both hila by forking; (points, 4) as x, y, z, radius."""
    points = []
    density = rng.uniform(0.6, 1.3)
    for side in (-1.0, 1.0):
        count = int(rng.integers(12, 17) * density) + 4
        start = np.tile([side * 0.20, 0.02, 0.45], (count, 1)) + rng.normal(0, 0.03, (count, 3))
        heading = rng.normal(0, 1, (count, 3)) + np.array([side * 0.6, 0.0, 0.0])
        radius = rng.uniform(0.013, 0.022, count)
        for depth in range(6):
            heading /= np.linalg.norm(heading, axis=1, keepdims=True)
            length = rng.uniform(0.10, 0.20, len(start)) * 0.93**depth
            bend = rng.normal(0, 0.18, heading.shape)
            t = np.linspace(0, 1, 20)[None, :, None]
            path = start[:, None] + length[:, None, None] * (
                heading[:, None] * t + bend[:, None] * t**2
            )
            thick = np.repeat(radius[:, None, None], 20, axis=1)
            points.append(np.concatenate([path, thick], axis=2).reshape(-1, 4))
            start = np.repeat(path[:, -1], 2, axis=0)
            heading = np.repeat(heading + 2 * bend, 2, axis=0) + rng.normal(0, 0.42, start.shape)
            radius = np.repeat(radius, 2) * rng.uniform(0.62, 0.88, len(start))
            alive = (np.abs(start[:, 0]) > 0.1) & (rng.random(len(start)) < 0.85)
            start, heading, radius = start[alive], heading[alive], radius[alive]
    return np.concatenate(points)


def _draw_lesions(rng: np.random.Generator) -> tuple[_Lesion, ...]:
    """Three to seven lesions; two of them reach through all slices, so that none goes without."""
    lesions = []
    for position in range(int(rng.integers(3, 8))):
        leading = position < 2
        solid = bool(rng.random() < 0.4)
        lesions.append(
            _Lesion(
                right_image_side=bool(rng.random() < 0.5),
                place=(rng.uniform(0.12, 0.88), rng.uniform(0.15, 0.85)),
                drift=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
                size=rng.uniform(0.42, 0.58) if leading else rng.uniform(0.20, 0.50),
                stretch=rng.uniform(0.75, 1.35),
                angle=rng.uniform(0, np.pi),
                lobes=np.stack([rng.uniform(0.02, 0.16, 4), rng.uniform(0, 6.28, 4)], axis=1),
                density=rng.uniform(-60, 40) if solid else rng.uniform(330, 450),
                solid=solid,
                centre_z=rng.uniform(0.1, 0.9),
                reach_z=9.0 if leading else rng.uniform(0.2, 0.5),
            )
        )
    return tuple(lesions)


# --- drawing a slice -----------------------------------------------------------------------------


def _render(
    patient: _Patient, seed: int, number: int, index: int, slices: int, size: int
) -> PhantomSlice:
    """Slice `index` of a patient. Noise has its own lots: lesions do not change it."""
    p = patient.traits
    rng = np.random.default_rng([seed, number, index + 1])
    share = (index + 0.5) / slices
    z = p["top"] + (p["bottom"] - p["top"]) * share
    pixel = 2 / size / p["zoom"]

    # From pixels to the patient's own axes, and a slow warp: ellipses shall look grown.
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    u, v = np.meshgrid(ticks - np.float32(p["shift_x"]), ticks - np.float32(p["shift_y"]))
    cos, sin = math.cos(p["turn"]), math.sin(p["turn"])
    x, y = (cos * u + sin * v) / p["zoom"], (cos * v - sin * u) / p["zoom"]
    x = x + 0.018 * np.sin(4.1 * y + p["wave1"] + z) + p["lean"] * y
    y = y + 0.016 * np.sin(3.7 * x + p["wave2"] - z)

    hu, lung_field = _draw_body(p, x, y, z, pixel)
    lung = np.clip(0.5 - lung_field / (1.5 * pixel), 0, 1)
    tissue = _draw_lungs(p, x, y, rng)
    mask = np.zeros(lung.shape, bool)
    for lesion in patient.lesions:
        cover = _lesion_cover(lesion, x, y, z, share, lung > 0.9, pixel)
        if lesion.solid:
            tissue += np.clip(2.2 * cover - 0.6, 0, 1) * (lesion.density - tissue)
        else:
            tissue += cover * lesion.density
        mask |= (cover > 0.5) & (lung > 0.5)
    vessels = _draw_vessel_image(patient.vessels, p, z, size)
    vessels *= np.clip(-lung_field / 0.05 - 0.3, 0, 1)
    # Vessels come last and only brighten: they stay visible in ground glass, not in consolidation.
    tissue += vessels * np.maximum(SOFT - tissue, 0)
    hu += lung * (np.minimum(tissue, SOFT) - hu)
    image = _scan(hu, p, z, rng)
    return PhantomSlice(image, patient.label, f"p{number:04d}", index, mask)


def _ellipse(x, y, cx, cy, a, b, power=2.0):
    """Roughly the signed distance to a (super)ellipse: negative inside."""
    dx, dy = (x - cx) / a, (y - cy) / b
    if power == 2.0:
        return (np.sqrt(dx * dx + dy * dy) - 1) * min(a, b)
    return ((np.abs(dx) ** power + np.abs(dy) ** power) ** (1 / power) - 1) * min(a, b)


def _join(f, g, soft):
    """Smooth minimum: the union of two shapes with a rounded seam of width `soft`."""
    h = np.clip(0.5 + 0.5 * (g - f) / soft, 0, 1)
    return g + (f - g) * h - soft * h * (1 - h)


def _draw_body(p, x, y, z, pixel):
    """Densities of everything but the lungs, and the lungs' signed distance (negative inside)."""
    hu = np.full_like(x, AIR)

    def paint(field, value, edge=1.5 * pixel):
        np.add(hu, np.clip(0.5 - field / edge, 0, 1) * (value - hu), out=hu)

    # Table, skin, fat, muscle.
    a, b, bone = p["body_a"], p["body_b"], BONE * p["bone"]
    if p["table"] > 0:
        bow = np.abs(y - b - 0.09 + 0.10 * x**2) - 0.012
        paint(np.maximum(bow, np.abs(x) - 0.75), -350)
    body = _ellipse(x, y, 0, 0, a, b, p["square"])
    paint(body - 0.008, 20)
    paint(body, FAT)
    inner_a, inner_b = a - p["fat"], b - 0.8 * p["fat"]
    paint(_ellipse(x, y, 0, 0, inner_a, inner_b, p["square"]), SOFT + 10)

    # The chest wall: a seam of fat, ribs that slide along it from slice to slice, breastbone.
    ca, cb = (inner_a - p["wall"]) * (0.90 + 0.10 * z), (inner_b - p["wall"]) * (0.88 + 0.12 * z)
    chest = _ellipse(x, y, 0, -0.01, ca, cb, 2.3)
    paint(np.abs(chest - 0.062) - 0.007, FAT + 30, 0.02)
    arcs = np.cos(9 * np.arctan2(y / cb, np.abs(x) / ca) + p["rib"] + p["rib_slope"] * z)
    rib = np.maximum(np.abs(chest - 0.030) - 0.020, 0.08 * (0.25 - arcs))
    rib = np.maximum(rib, 0.13 - np.abs(x))
    paint(rib, bone)
    paint(rib + 0.014, 0.45 * bone)
    paint(_ellipse(x, y, 0, -cb - 0.05, 0.085, 0.026), 0.6 * bone)
    if z < 0.5:  # shoulder blades
        along, across = 0.6 * np.abs(x) - 0.8 * y, 0.8 * np.abs(x) + 0.6 * y
        out = 0.8 * 0.80 * ca + 0.6 * 0.72 * cb + 0.055
        paint(_ellipse(across, along, out, 0.05 - 0.1 * z, 0.018, 0.20 - 0.2 * z), bone)

    # Mediastinum, heart and spine; the lungs get what these leave of the chest.
    spine, thick = cb - 0.13, p["middle"]
    middle = _ellipse(x, y, 0.01, -0.08, thick * (1.1 - 0.3 * z), 0.46)
    middle = _join(middle, _ellipse(x, y, 0, spine + 0.06, 0.135, 0.19), 0.06)
    middle = _join(middle, _ellipse(x, y, 0.115, spine - 0.13, 0.08, 0.08), 0.03)
    swell = p["heart"] * min(max((z - 0.2) / 0.5, 0), 1)
    heart = _ellipse(
        0.88 * x + 0.47 * y, 0.88 * y - 0.47 * x, 0.04, -0.20,
        0.15 + 0.17 * swell, 0.11 + 0.12 * swell,
    )  # fmt: skip
    middle = _join(middle, heart, 0.05)
    # Capped, because a lung without room could carry no lesion.
    dome = min(1.2 * (z - p["dome"]) + 0.1, 0.2)
    if dome > 0:  # the liver pushes up from below
        liver = _ellipse(x, y, -0.36, 0.02, 0.12 + dome, 0.16 + dome, 2.4)
        paint(liver - 0.1, SOFT + 15)
        middle = np.minimum(middle, liver)
    lungs = -_join(-chest, middle, 0.05)

    # Contents of the middle: fat around heart and great vessels, airways, spine.
    blood = SOFT + max(p["enhanced"], 0)
    paint(np.maximum(_ellipse(x, y, 0.01, -0.12, 0.5 * thick + 0.05, 0.34), chest), -60, 0.06)
    paint(heart + 0.02, blood - 0.2 * max(p["enhanced"], 0), 0.03)
    paint(_ellipse(x, y, 0.115, spine - 0.13, 0.058, 0.058), blood)
    paint(_ellipse(x, y, -0.03, -0.20 + 0.1 * z, 0.075, 0.07), blood)
    paint(_ellipse(x, y, -0.105, -0.15, 0.036, 0.04), blood + 40)
    if z < 0.55:
        fork = 0.42 * max(z - 0.28, 0)  # the windpipe divides
        paint(_ellipse(np.abs(x - 0.005), y, fork, 0.02 + 0.1 * fork, 0.036, 0.038), -960)
    paint(_ellipse(np.abs(x), y, 0.09, spine + 0.13, 0.11, 0.024), 0.8 * bone)
    paint(_ellipse(x, y, 0, spine + 0.19, 0.020, 0.09), 0.8 * bone)
    paint(_ellipse(x, y, 0, spine, 0.098, 0.078), bone)
    paint(_ellipse(x, y, 0, spine, 0.078, 0.058), 0.5 * bone, 0.02)
    paint(_ellipse(x, y, 0, spine + 0.115, 0.045, 0.036), 30)
    return hu, lungs


def _draw_lungs(p, x, y, rng):
    """Air-filled lung: heavier towards the back, a little mottled, crossed by a fissure."""
    depth = np.clip(y + 0.5, 0, 1)
    mottle = ndimage.gaussian_filter(rng.standard_normal(x.shape, np.float32), x.shape[0] / 14)
    mottle *= p["mottle"] / mottle.std()
    fissure = np.exp(-(((y - p["fissure"] - 0.5 * (np.abs(x) - 0.4) ** 2) / 0.012) ** 2))
    tissue = p["lung"] + p["gradient"] * depth ** p["gradient_power"] + mottle + 90 * fissure
    return tissue + p["uneven"] * np.clip(5 * x, -1, 1)


def _lesion_cover(lesion, x, y, z, share, lung, pixel):
    """How much of each pixel the lesion fills, 0..1, with a soft, lobed outline."""
    side = lung & ((x > 0) == lesion.right_image_side)
    if side.sum() < 0.2 * lung.sum():  # liver or heart leave that lung no room
        side = lung & ~side
    fade = 1 - ((z - lesion.centre_z) / lesion.reach_z) ** 2
    if fade <= 0.2:
        return np.zeros_like(x)
    # The place is a share of the lung's height, then of its width there: always inside the lung.
    rows = np.flatnonzero(side.any(axis=1))
    down, across = np.clip(np.add(lesion.place, np.multiply(lesion.drift, share - 0.5)), 0.08, 0.92)
    row = rows[int(down * (len(rows) - 1))]
    columns = np.flatnonzero(side[row])
    column = columns[int(across * (len(columns) - 1))]
    dx, dy = x - x[row, column], y - y[row, column]
    cos, sin = math.cos(lesion.angle), math.sin(lesion.angle)
    dx, dy = (cos * dx + sin * dy) * lesion.stretch, (cos * dy - sin * dx) / lesion.stretch
    turn = np.arctan2(dy, dx)
    outline = 1 + sum(a * np.cos((k + 2) * turn + f) for k, (a, f) in enumerate(lesion.lobes))
    # A lung's mean diameter is taken as that of a disc of the same area.
    radius = lesion.size * pixel * math.sqrt(side.sum() / math.pi) * math.sqrt(fade)
    return np.clip(1.6 - 1.1 * np.sqrt(dx * dx + dy * dy) / (radius * outline), 0, 1)


def _draw_vessel_image(points, p, z, size):
    """Vessels within a thick slice, 0..1: tree points dropped on the grid, then widened."""
    near = points[np.abs(points[:, 2] - z) < 0.08]
    weight = np.exp(-(((near[:, 2] - z) / 0.04) ** 2))
    cos, sin = math.cos(p["turn"]) * p["zoom"], math.sin(p["turn"]) * p["zoom"]
    column = (cos * near[:, 0] - sin * near[:, 1] + p["shift_x"] + 1) * size / 2
    row = (sin * near[:, 0] + cos * near[:, 1] + p["shift_y"] + 1) * size / 2
    column, row = np.clip(column, 0, size - 1).astype(int), np.clip(row, 0, size - 1).astype(int)
    image = np.zeros((size, size))
    for low, high in ((0.0, 0.006), (0.006, 0.011), (0.011, 1.0)):
        chosen = (near[:, 3] >= low) & (near[:, 3] < high)
        if not chosen.any():
            continue
        sigma = 0.7 * near[chosen, 3].mean() * p["zoom"] * size / 2
        drops = np.bincount(row[chosen] * size + column[chosen], weight[chosen], size * size)
        drops = np.minimum(drops.reshape(size, size), 1.2)
        strength = 3.2 * sigma * min(1.0, sigma + 0.3)
        image += strength * ndimage.gaussian_filter(drops, max(sigma, 0.35))
    return np.clip(p["vessel"] * image, 0, 1)


def _scan(hu, p, z, rng):
    """What scanner and window make of the densities: blur, grainy noise, streaks; uint8."""
    blur = p["blur"] * hu.shape[0] / 128
    hu = ndimage.gaussian_filter(hu, (blur + max(p["motion"], 0), blur))
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), p["grain"])
    hu += noise * (p["noise"] / noise.std())
    streak = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0.6, 14))
    hu += streak * (p["streak"] * (1.4 - z) / streak.std())
    grey = (np.maximum(hu, -1024) - p["black"]) / (p["white"] - p["black"])
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
