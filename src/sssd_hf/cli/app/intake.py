"""Taking uploaded files in: moved away from where they arrived, checked, decoded, deleted.

An uploaded file is hostile, and its name and header may say who the patient is. So a file gets a
number in place of its name before anything looks at it, only child processes decode it (see
`data.isolation`), and what remains in this process are the pixels a model is shown.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.files import ImageError, kind_of, open_source
from ...data.isolation import decode_all, describe_all
from ...data.preparation import Preparation


class Refused(ValueError):
    """What was uploaded is not taken; the message is for whoever uploaded it."""


@dataclass(frozen=True)
class Limits:
    """What one question may hold.

    Args:
        files: how many, at most.
        images: of all files, each slice or frame counted.
        file_bytes: of one file, and so of the largest upload.
        seconds: for decoding one image.
        workers: child processes that decode.
    """

    files: int = 300
    images: int = 1000
    file_bytes: int = 200 * 2**20
    seconds: float = 30.0
    workers: int = 2


@dataclass(frozen=True)
class Place:
    """One image of what was uploaded: file, counted from 1, and slice or frame, from 0."""

    file: int
    frame: int | None = None

    @property
    def name(self) -> str:
        return f"file {self.file}" + ("" if self.frame is None else f", slice {self.frame + 1}")


@dataclass(frozen=True)
class Intake:
    """What could be read.

    Args:
        places: of the images, in order.
        pixels: for each preparation asked for, (images, channels, height, width) uint8.
        problems: number of a file that could not be read -> why.
        count: files uploaded.
    """

    places: list[Place]
    pixels: dict[Preparation, np.ndarray]
    problems: dict[int, str]
    count: int


def in_natural_order(names: Sequence[str]) -> list[str]:
    """By name as people count: IM2 before IM10. Scanners number a series' files in their order."""

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d{1,18})", Path(name).name.lower())
        return [(1, int(p), "") if p.isascii() and p.isdigit() else (0, 0, p) for p in parts]

    return sorted(names, key=key)


@contextmanager
def taken(uploads: Sequence[str], root: Path) -> Iterator[list[Path]]:
    """The uploaded files, moved into a folder of their own under the names "file 1", "file 2";
    deleted when the context ends, however it does.

    Args:
        uploads: paths below `root`, in order. A file uploaded twice is one path twice, and so here.
        root: where uploads arrive.

    Raises:
        Refused: a file is gone, since an earlier answer has deleted it.
        ValueError: a path is not below `root`: it would be moved and deleted.
    """
    root = root.resolve()
    for upload in uploads:
        if not Path(upload).resolve().is_relative_to(root):
            raise ValueError("an upload does not lie where uploads arrive; it is not touched")
    with tempfile.TemporaryDirectory(prefix="question-", dir=root) as folder:
        moved: dict[str, Path] = {}
        try:
            for upload in uploads:
                if upload not in moved:
                    target = Path(folder) / f"file {len(moved) + 1}"
                    shutil.move(upload, target)
                    moved[upload] = target
                    _remove_if_empty(Path(upload).parent, root)
        except FileNotFoundError as error:
            raise Refused(
                "A file is no longer here: files are deleted once they were answered. Choose them "
                "again."
            ) from error
        finally:  # of files that were refused together with others, too
            for upload in set(uploads) - set(moved):
                Path(upload).unlink(missing_ok=True)
                _remove_if_empty(Path(upload).parent, root)
        yield list(moved.values())


def _remove_if_empty(folder: Path, root: Path) -> None:
    if folder.resolve() != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_sizes(files: Sequence[Path], limits: Limits) -> None:
    """Raises Refused for nothing, too many files, or one too large."""
    if not files:
        raise Refused("Choose an image or a series first.")
    if len(files) > limits.files:
        raise Refused(f"{len(files)} files were chosen; this page takes {limits.files} at once.")
    for number, file in enumerate(files, 1):
        if file.stat().st_size > limits.file_bytes:
            raise Refused(
                f"file {number} has {file.stat().st_size / 2**20:.0f} MB; this page takes files up "
                f"to {limits.file_bytes / 2**20:.0f} MB."
            )


def list_places(
    files: Sequence[Path], slice_axis: str, limits: Limits
) -> tuple[list[Place], dict[int, str]]:
    """(images in the files, problems by number of a file). What a file is says its content alone.

    Raises:
        Refused: more images than `limits` allows.
    """
    problems: dict[int, str] = {}
    medical: list[int] = []
    for number, file in enumerate(files, 1):
        try:
            with closing(open_source(file)[1]) as stream:
                if kind_of(stream) != "image":
                    medical.append(number)
        except ImageError as error:
            problems[number] = message_of(error, file, number)
    counts: dict[int, int | None] = {}
    asked = [files[number - 1] for number in medical]
    described = describe_all(asked, slice_axis, limits.workers, time_limit=limits.seconds)
    for number, (_, found) in zip(medical, described):
        if isinstance(found, ImageError):
            problems[number] = message_of(found, files[number - 1], number)
        elif found["frames"] == 0:
            problems[number] = f"file {number}: is a DICOM file without an image (a directory?)"
        else:
            counts[number] = found["frames"]
    total = sum(counts.get(number) or 1 for number in range(1, len(files) + 1))
    if total > limits.images:
        raise Refused(f"These are {total} slices; this page takes {limits.images} at once.")
    places = []
    for number in range(1, len(files) + 1):
        if number not in problems:
            count = counts.get(number)
            frames = [None] if count in (None, 1) else range(count)
            places += [Place(number, frame) for frame in frames]
    return places, problems


def take_in(
    uploads: Sequence[str], root: Path, preparations: Sequence[Preparation], limits: Limits
) -> Intake:
    """Read the uploaded files for each of the preparations, and delete them.

    Args:
        uploads, root: see `taken`.
        preparations: at least one, all with the same slice axis.

    Raises:
        Refused: nothing uploaded, or more than `limits` allows.
    """
    with taken(uploads, root) as files:
        check_sizes(files, limits)
        places, problems = list_places(files, preparations[0].slice_axis, limits)
        sources = [
            {"path": str(files[place.file - 1]), "bytes": None, "frame": place.frame}
            for place in places
        ]
        decoded: dict[Preparation, list[np.ndarray | None]] = {}
        for preparation in dict.fromkeys(preparations):
            decoded[preparation] = rows = []
            results = decode_all(sources, preparation, limits.workers, time_limit=limits.seconds)
            for i, result in results:
                wrong = isinstance(result, ImageError)
                rows.append(None if wrong else result)
                if wrong:
                    number = places[i].file
                    problems.setdefault(
                        number, message_of(result, files[number - 1], number, places[i].frame)
                    )
    kept = [i for i in range(len(places)) if all(rows[i] is not None for rows in decoded.values())]
    pixels = {
        preparation: np.stack([rows[i] for i in kept])
        if kept
        else np.zeros((0, preparation.num_channels, *preparation.size), np.uint8)
        for preparation, rows in decoded.items()
    }
    return Intake([places[i] for i in kept], pixels, dict(sorted(problems.items())), len(files))


def message_of(error: ImageError, file: Path, number: int, frame: int | None = None) -> str:
    """What an error says, with the file's number in place of its path."""
    text = str(error)
    for place in (str(file), repr(str(file))):
        text = text.replace(place, f"file {number}")
    if frame is not None:  # messages count frames from 0
        text = text.replace(f", frame {frame}", f", slice {frame + 1}")
    return text
