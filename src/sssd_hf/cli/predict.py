"""Prediction: class probabilities of image files.

`python scripts/predict.py --model_name_or_path runs/finetuned --images FILES AND FOLDERS
--output_file predictions.csv`. Of DICOM files and NIfTI volumes each frame or slice is classified,
windowed as the model's config has it. "probability" is the model's own, as the stock pipeline
gives it; "calibrated" and the label are by the temperature and threshold stored with the model,
where it has them. A file that can't be read is reported and counted, the others go on; the exit
status is then 1.
"""

import csv
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.cache import Images
from ..data.files import (
    IMAGE_SUFFIXES,
    MEDICAL_SUFFIXES,
    ImageError,
    may_have_slices,
)
from ..data.folders import split_by_suffix
from ..data.isolation import decode_all, describe_all
from ..data.preparation import Preparation
from ..evaluation.aggregation import aggregate
from ..evaluation.calibration import apply_calibration
from .classifiers import load_classifier
from .parsing import parse

logger = logging.getLogger("sssd_hf")


def find_files(places: list[str]) -> list[Path]:
    """The files named, and the images in the folders named, searched through in order; each once.

    Raises:
        ValueError: nothing was named or found, or a place does not exist.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files += [place / name for name in split_by_suffix(place, f"--images {place}")[0]]
        elif place.exists():
            files.append(place)
        else:
            raise ValueError(f"--images: {place} does not exist.")
    if not files:
        raise ValueError(
            f"--images: no images in {', '.join(places) or 'nothing'}; expected files or folders "
            f"with {', '.join(IMAGE_SUFFIXES + MEDICAL_SUFFIXES)}."
        )
    found = list({os.path.abspath(file): file for file in files}.values())
    if len(found) < len(files):
        logger.warning(f"--images: {len(files) - len(found)} files named twice are taken once")
    return found


@dataclass(frozen=True)
class Slice:
    """An image to classify: a file, or one slice or frame of it, counted from 0."""

    file: Path
    frame: int | None = None


def group_of(image: Slice, kind: str) -> str:
    """What an image belongs to: its file, or its file's folder."""
    return str(image.file if kind == "file" else image.file.parent)


def slices_of_files(files: list[Path], slice_axis: str, failures: dict[Path, str]) -> list[Slice]:
    """Files of several slices or frames as many; what can't be read goes to `failures` and the
    log, DICOM files without pixels (directories, reports) to neither."""
    counts: dict[Path, int | None] = {}
    asked = [file for file in files if may_have_slices(file)]
    for i, found in describe_all(asked, slice_axis):
        if isinstance(found, ImageError):
            report(asked[i], found, failures)
            counts[asked[i]] = 0
        else:
            counts[asked[i]] = found["frames"]
    slices: list[Slice] = []
    for file in files:
        count = counts.get(file)
        slices += [Slice(file)] if count in (None, 1) else [Slice(file, k) for k in range(count)]
    return slices


def report(file: Path, error: ImageError, failures: dict[Path, str]) -> None:
    if file not in failures:  # one of its slices tells enough
        failures[file] = str(error)
        logger.error(str(error))


class Writer:
    """One line an image: CSV, or JSON lines where the name ends in .jsonl. Which slice of its file
    it is says "frame": in CSV where `with_frames`, in JSON where there are several. With `whole`, a
    line for several images together, see `write_groups`."""

    def __init__(
        self,
        path: str | None,
        names: list[str],
        with_frames: bool = False,
        calibration: dict[str, Any] | None = None,
        whole: bool = False,
    ):
        if path and Path(path).suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output_file {path}: expected a name ending in .csv or .jsonl.")
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # surrogateescape: file names need not be UTF-8
        if not path and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")
        self.file = (
            open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            if path
            else sys.stdout
        )
        self.names, self.json = names, bool(path and path.endswith(".jsonl"))
        self.with_frames, self.calibration = with_frames, calibration
        if not self.json:
            self.csv = csv.writer(self.file)
            columns = ["file", *(["frame"] if with_frames else []), "label"]
            kinds = ["probability", *(["calibrated"] if calibration else [])]
            if whole:
                columns, kinds = ["file", "images", "label"], kinds[-1:]
            self.csv.writerow([*columns, *(f"{kind}_{name}" for kind in kinds for name in names)])

    def write(self, images: list[Slice], probabilities: np.ndarray) -> None:
        """probabilities: (images, classes), of the model as it is."""
        calibrated, decided = apply_calibration(probabilities, self.calibration)
        for image, row, other, label in zip(images, probabilities, calibrated, decided):
            kinds = {"probabilities": row.tolist()}
            if self.calibration:
                kinds["calibrated"] = other.tolist()
            self._write(image, self.names[label], kinds)
        self.file.flush()

    def write_groups(self, answers: list[tuple[str, np.ndarray]], method: str) -> None:
        """answers: (group, probabilities of the classes) of each image; see `aggregate`."""
        groups = [group for group, _ in answers]
        ids, probabilities, _ = aggregate(np.stack([row for _, row in answers]), groups, method)
        counts = Counter(groups)
        for group, row in zip(ids.tolist(), probabilities):
            label = self.names[int(row.argmax())]
            if self.json:
                shares = dict(zip(self.names, row.tolist()))
                record = {"file": group, "images": counts[group], "label": label}
                kind = "calibrated" if self.calibration else "probabilities"
                self.file.write(json.dumps({**record, kind: shares}) + "\n")
            else:
                self.csv.writerow([group, counts[group], label, *(f"{p:.6f}" for p in row)])
        self.file.flush()

    def _write(self, image: Slice, label: str, kinds: dict[str, list[float]]) -> None:
        if self.json:
            record = {
                "file": str(image.file),
                **({} if image.frame is None else {"frame": image.frame}),
                "label": label,
                **{kind: dict(zip(self.names, values)) for kind, values in kinds.items()},
            }
            self.file.write(json.dumps(record) + "\n")
        else:
            place = [image.file, *([image.frame] if self.with_frames else [])]
            numbers = [f"{p:.6f}" for values in kinds.values() for p in values]
            self.csv.writerow([*place, label, *numbers])


def readable_batches(
    slices: list[Slice], preparation: Preparation, batch_size: int, failures: dict[Path, str]
) -> Iterator[tuple[list[Slice], Images]]:
    """(slices, their images) in batches; what can't be read goes to `failures` and the log."""
    sources = [{"path": str(s.file), "bytes": None, "frame": s.frame} for s in slices]
    batch: list[Slice] = []
    pixels: list[torch.Tensor] = []
    results = decode_all(sources, preparation)
    for i, result in tqdm(results, "predict", len(slices), unit="img", file=sys.stderr):
        if isinstance(result, ImageError):
            report(slices[i].file, result, failures)
            continue
        batch.append(slices[i])
        pixels.append(torch.from_numpy(result))
        if len(batch) == batch_size:
            yield batch, Images(torch.arange(len(batch)), None, torch.stack(pixels))
            batch, pixels = [], []
    if batch:
        yield batch, Images(torch.arange(len(batch)), None, torch.stack(pixels))


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse("predict", __doc__, argv)
    files = find_files(arguments.images)
    classifier = load_classifier(arguments.model_name_or_path)
    names, preparation = classifier.label_names, classifier.preparation
    calibration = classifier.calibration
    failures: dict[Path, str] = {}
    slices = slices_of_files(files, preparation.slice_axis, failures)
    with_frames = any(image.frame is not None for image in slices)
    whole = arguments.aggregate_by != "none"
    writer = Writer(arguments.output_file, names, with_frames, calibration, whole)
    if calibration and calibration["threshold"] is not None and not whole:
        logger.info(
            f"the label is {names[1]} from a calibrated probability of "
            f"{calibration['threshold']:.3f} ({calibration['rule']}, fitted on "
            f"{calibration['fitted_on']})"
        )
    count = 0
    batches = readable_batches(slices, preparation, arguments.per_device_eval_batch_size, failures)
    answers: list[tuple[str, np.ndarray]] = []
    for batch, images in batches:
        probabilities = classifier.probabilities(images, len(images))
        if arguments.aggregate_by == "none":
            writer.write(batch, probabilities)
        else:
            calibrated = apply_calibration(probabilities, calibration)[0]
            answers += zip((group_of(image, arguments.aggregate_by) for image in batch), calibrated)
        count += len(batch)
    if answers:
        writer.write_groups(answers, arguments.aggregation)
    logger.info(f"{count} images of {len(files)} files classified")
    if failures:
        logger.error(f"{len(failures)} files could not be read (named above)")
    return 1 if failures else 0
