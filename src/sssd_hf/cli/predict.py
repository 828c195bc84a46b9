"""Prediction: class probabilities of image files.

`python scripts/predict.py --model_name_or_path runs/finetuned --images FILES AND FOLDERS
--output_file predictions.csv`. A file that can't be read is reported and counted, the others go on;
the exit status is then 1.
"""

import csv
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.cache import Images
from ..data.images import IMAGE_SUFFIXES, ImageError
from ..data.isolation import decode_all
from ..data.preparation import Preparation
from ..modeling_sssd import SSSDForImageClassification
from . import common
from .arguments import parse

logger = logging.getLogger("sssd_hf")


def find_files(places: list[str]) -> list[Path]:
    """The files named, and the images in the folders named, searched through in order.

    Raises:
        ValueError: nothing was named or found, or a place does not exist.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            hidden = [any(q.startswith(".") for q in p.relative_to(place).parts) for p in inside]
            files += [p for p, left_out in zip(inside, hidden) if p.is_file() and not left_out]
        elif place.exists():
            files.append(place)
        else:
            raise ValueError(f"--images: {place} does not exist.")
    if not files:
        raise ValueError(
            f"--images: no images in {', '.join(places) or 'nothing'}; expected files or folders "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


class Writer:
    """One line a file: CSV, or JSON lines where the name ends in .jsonl."""

    def __init__(self, path: str | None, names: list[str]):
        if path and Path(path).suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output_file {path}: expected a name ending in .csv or .jsonl.")
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # surrogateescape: file names need not be UTF-8
        self.file = (
            open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            if path
            else sys.stdout
        )
        self.names, self.json = names, bool(path and path.endswith(".jsonl"))
        if not self.json:
            self.csv = csv.writer(self.file)
            self.csv.writerow(["file", "label", *(f"probability_{name}" for name in names)])

    def write(self, file: Path, probabilities: list[float]) -> None:
        label = self.names[max(range(len(self.names)), key=probabilities.__getitem__)]
        if self.json:
            record = {
                "file": str(file),
                "label": label,
                "probabilities": dict(zip(self.names, probabilities)),
            }
            self.file.write(json.dumps(record) + "\n")
        else:
            self.csv.writerow([file, label, *(f"{p:.6f}" for p in probabilities)])
        self.file.flush()


def readable_batches(
    files: list[Path], preparation: Preparation, batch_size: int, failures: list[str]
) -> Iterator[tuple[list[Path], Images]]:
    """(files, their images) in batches; what can't be read goes to `failures` and the log."""
    names: list[Path] = []
    pixels: list[torch.Tensor] = []
    decoded = decode_all(files, preparation)
    for i, result in tqdm(decoded, "predict", len(files), unit="img", file=sys.stderr):
        if isinstance(result, ImageError):
            failures.append(str(result))
            logger.error(str(result))
        else:
            pixels.append(torch.from_numpy(result))
            names.append(files[i])
        if names and (len(names) == batch_size or i == len(files) - 1):
            yield names, Images(torch.arange(len(names)), None, torch.stack(pixels))
            names, pixels = [], []


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse("predict", __doc__, argv)
    files = find_files(arguments.images)
    common.check_checkpoint(arguments.model_name_or_path)
    model = SSSDForImageClassification.from_pretrained(arguments.model_name_or_path).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    config = model.config
    size = tuple(n * p for n, p in zip(config.grid_size, model.encoder.embeddings.patch))
    statistics = common.read_statistics(arguments.model_name_or_path, config.num_channels)
    names = [config.id2label[i] for i in range(config.num_labels)]
    writer = Writer(arguments.output_file, names)
    failures: list[str] = []
    preparation = Preparation(size, config.num_channels)
    batches = readable_batches(files, preparation, arguments.per_device_eval_batch_size, failures)
    for batch_files, images in batches:
        probabilities = common.predict_probabilities(model, images, statistics, len(images))
        for file, row in zip(batch_files, probabilities.tolist()):
            writer.write(file, row)
    logger.info(f"{len(files) - len(failures)} of {len(files)} files classified")
    if failures:
        logger.error(f"{len(failures)} files could not be read (named above)")
    return 1 if failures else 0
