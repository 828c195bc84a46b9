"""Rows for the slices of volumes and the frames of DICOM files, and whom they are of."""

import logging
from pathlib import Path

from tqdm import tqdm

from .files import ImageError, may_have_slices
from .isolation import describe_all

logger = logging.getLogger(__name__)


def list_slices(columns: dict[str, list], slice_axis: str = "axial") -> dict[str, list]:
    """`columns` with a row for each slice of a NIfTI volume and each frame of a DICOM file.

    Unchanged where no file is DICOM or NIfTI. Otherwise such a file's row is repeated, its
    "file_name" becomes "scan.nii.gz#12", and there are two more columns:

    - "frame": counted from 0; None where the file is one image.
    - "patient_id", unless there is such a column: a hash of the DICOM PatientID (of the
      StudyInstanceUID where that is empty); of all other files "file:" and the name, so that at
      least the slices of a volume stay together.

    DICOM files without pixels (directories, reports) are left out. A file whose header can't be
    read keeps its row, and is reported when it is decoded.
    """
    paths = [Path(path) for path in columns["image"]]
    asked = [i for i, path in enumerate(paths) if may_have_slices(path)]
    if not asked:
        return columns
    found = dict(zip(asked, _describe([str(paths[i]) for i in asked], slice_axis)))
    _report(found, columns["file_name"])
    rows, frames, patients = [], [], []
    for i, file in enumerate(columns["file_name"]):
        info = found.get(i)
        known = info is not None and not isinstance(info, ImageError)
        count = info["frames"] if known else None
        each = [None] if count in (None, 1) else list(range(count))
        rows += [i] * len(each)
        frames += each
        patients += [(info["group"] if known else None) or f"file:{file}"] * len(each)
    result = {name: [values[i] for i in rows] for name, values in columns.items()}
    result["file_name"] = [
        name if frame is None else f"{name}#{frame}"
        for name, frame in zip(result["file_name"], frames)
    ]
    result["frame"] = frames
    result.setdefault("patient_id", patients)
    return result


def _describe(paths, slice_axis):
    bar = tqdm(total=len(paths), desc="read headers", unit="file", delay=2)
    for _, info in describe_all(paths, slice_axis):
        bar.update()
        yield info
    bar.close()


def _report(found, names):
    """Counts and file names; what a header says stays out of the log."""
    kinds = {
        "cannot be read": [i for i, info in found.items() if isinstance(info, ImageError)],
        "hold no image and are left out": [
            i for i, info in found.items() if isinstance(info, dict) and info["frames"] == 0
        ],
        "have no PatientID, their study takes its place": [
            i
            for i, info in found.items()
            if isinstance(info, dict) and info["group_from"] == "StudyInstanceUID"
        ],
    }
    for what, indices in kinds.items():
        if indices:
            logger.warning("%d files %s, such as %s", len(indices), what, names[indices[0]])
