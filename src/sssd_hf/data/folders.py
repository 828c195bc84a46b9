"""Reading a folder of images and its table into plain columns; no image is decoded.

The folder is walked here and not by datasets' imagefolder, which reads words such as "train" or
"test" inside file names as splits.
"""

import csv
import json
import logging
import os
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

from .files import IMAGE_SUFFIXES, MEDICAL_SUFFIXES, may_be_image
from .listing import list_slices

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
SPLIT_FOLDERS = ("train", "training", "validation", "val", "valid", "dev", "test", "testing")


def read_folder(
    folder: Path, where: str, slice_axis: str = "axial", image_column: str = "image"
) -> dict[str, list]:
    """Columns of equal length: "image" (absolute path), "file_name" (relative) and more.

    `folder` may also be a table alone, anywhere: then "file_name", or else `image_column`, holds
    paths from the table's folder, which may lead out of it, or absolute ones. A DICOM file of
    several frames and a volume have a row for each; see `list_slices` for their columns "frame" and
    "patient_id".

    With a table they are the table's columns (a column "image" becomes "metadata_image");
    without one "label" is the class folder's name, "" for an image outside of any. "split" is the
    split folder's name in lower case where all images lie in split folders and no table says else.

    Raises:
        ValueError: beginning with `where` or the table's path.
    """
    alone = folder.is_file() and folder.suffix.lower() in TABLE_SUFFIXES
    if not folder.is_dir() and not alone:
        found = "is a file" if folder.exists() else "does not exist"
        raise ValueError(
            f"{where}: {found}, expected a folder of images or a table "
            f"({', '.join(TABLE_SUFFIXES)}): check the path"
        )
    tables = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    tables = [folder] if alone else tables
    if len(tables) > 1:
        raise ValueError(
            f"{where}: found {', '.join(table.name for table in tables)}, expected one table: "
            "remove or rename the others"
        )
    if tables:
        columns = read_table(tables[0], image_column if alone else None)
    else:
        columns = {"file_name": walk_images(folder, where)}
    files = columns["file_name"]
    parts = [PurePosixPath(file).parts for file in files]
    outside = [
        file
        for file, p in zip(files, parts, strict=True)
        if len(p) == 1 or p[0].lower() not in SPLIT_FOLDERS
    ]
    if not outside and "split" not in columns:
        columns["split"] = [p[0].lower() for p in parts]
    if not tables:
        if 0 < len(outside) < len(files):
            raise ValueError(
                f"{where}: {len(outside)} of {len(files)} images lie beside the split folders "
                "(train, val, test), expected all images inside of them or no such folders: move "
                + examples(outside)
            )
        class_depth = 1 if not outside else 0
        columns["label"] = [p[class_depth] if len(p) > class_depth + 1 else "" for p in parts]
    for name in ("image", "frame"):  # these are ours
        if name in columns:
            columns[f"metadata_{name}"] = columns.pop(name)
    root = os.path.abspath(folder.parent if alone else folder)
    images = [os.path.join(root, file) for file in files]
    columns = list_slices({"image": images, **columns}, slice_axis)
    if not columns["image"]:
        raise ValueError(
            f"{where}: none of its {len(files)} files holds an image, expected some: check what "
            "they are (DICOM directories and reports have no pixels)"
        )
    return columns


def split_by_suffix(folder: Path, where: str) -> tuple[list[str], list[str]]:
    """Relative paths of what may be images below `folder`, and of what may not (with a warning),
    both sorted; what is hidden (.name) is left out, links are followed."""

    def refuse(error):  # os.walk would leave an unreadable folder out without a word
        raise ValueError(f"{where}: cannot be read ({error}): check the permissions") from error

    files, skipped, seen = [], [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if os.path.realpath(root) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = Path(root, name)
                kind = files if may_be_image(path) else skipped
                kind.append(path.relative_to(folder).as_posix())
    others = [file for file in skipped if PurePosixPath(file).name not in METADATA_FILES]
    if others:
        logger.warning(
            "%s: %d files are no images by their suffix and are left out: %s",
            where,
            len(others),
            examples(sorted(others)),
        )
    return sorted(files), sorted(skipped)


def walk_images(folder: Path, where: str) -> list[str]:
    """Sorted relative paths of the images below `folder`; what is hidden (.name) is left out."""

    files, skipped = split_by_suffix(folder, where)
    tables = [file for file in (*files, *skipped) if PurePosixPath(file).name in METADATA_FILES]
    if tables:
        raise ValueError(
            f"{where}: found the table {tables[0]} in a sub-folder, expected it at the top: "
            "join the tables into one there, with paths relative to it"
        )
    if not files:
        raise ValueError(
            f"{where}: found no images ({len(skipped)} other files), expected files ending in "
            f"{', '.join(IMAGE_SUFFIXES + MEDICAL_SUFFIXES)}: put them there, at best in one "
            "folder per class"
        )
    not_utf8 = [file for file in files if not _is_utf8(file)]  # Arrow cannot hold such names
    if not_utf8:
        raise ValueError(f"{where}: file names are not UTF-8: rename {examples(not_utf8)}")
    return files


def read_table(path: Path, image_column: str | None = None) -> dict[str, list]:
    """The columns of a table, "file_name" first, checked and in the form "a/b.png".

    Args:
        image_column: for a table that the user named and did not come with its folder: paths may
            lead anywhere, and this column holds them (the default, "image", only where there is no
            "file_name"). None: "file_name" holds them, inside the table's folder.
    """
    suffix = path.suffix.lower()
    read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix]
    try:
        columns = read(path)
    except Exception as exc:  # pyarrow, csv and json each have their own
        raise ValueError(
            f"{path}: cannot be read as {suffix[1:]} ({exc}): correct it or save it anew, as UTF-8"
        ) from exc
    named = image_column is not None and (image_column != "image" or "file_name" not in columns)
    wanted = image_column if named else "file_name"
    if wanted not in columns:
        other = " or name another by --image_column_name" * named
        raise ValueError(
            f"{path}: there is no column {wanted!r}, columns found: {', '.join(columns)}: add it, "
            f"with paths relative to the table's folder (a csv is separated by commas){other}"
        )
    files = _checked_files(path, wanted, columns.pop(wanted), inside=image_column is None)
    if "file_name" in columns:
        columns["metadata_file_name"] = columns.pop("file_name")
    return {"file_name": files, **columns}


def _read_csv(path):
    # csv and not pandas: all text ("007", "NA"), and a row too long or short is an error
    with path.open(newline="", encoding="utf-8-sig") as stream:  # Excel writes a byte order mark
        reader = csv.reader(stream, strict=True)
        header = [name.strip() for name in next(reader, [])]
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValueError(f"the columns {', '.join(map(repr, twice))} occur twice")
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} cells, the header has {len(header)}"
                )
            if row:
                rows.append(row)
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _read_jsonl(path):
    with path.open(encoding="utf-8-sig") as stream:
        rows = [json.loads(line) for line in stream if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one JSON object a line")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path):
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read().to_pydict()


def _checked_files(path, column, files, inside):
    if not files:
        raise ValueError(f"{path}: has no rows, expected one for each image: fill it in")
    empty = [i + 1 for i, file in enumerate(files) if not isinstance(file, str) or not file]
    if empty:
        raise ValueError(
            f"{path}: {column!r} is empty or no text in {examples(empty, 'row')}: fill it in "
            "(tables with images inside, instead of paths, are read by --dataset_name FOLDER)"
        )
    leaving = [
        file
        for file in files
        if PurePosixPath(file).is_absolute()
        or PureWindowsPath(file).anchor
        or ".." in PureWindowsPath(file).parts  # these split at / as well as at \
    ]
    if leaving and inside:
        raise ValueError(
            f"{path}: {column!r} must stay inside the folder (relative, without '..'), found "
            f"{examples(leaving)}: move these images into the folder"
        )
    files = [PurePosixPath(file).as_posix() for file in files]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(
            f"{path}: expected one row for each image, found several for {examples(twice)}: "
            "keep one of them"
        )
    missing = [file for file in files if not _is_file(path.parent / file)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(files)} images are not there: {examples(missing)}: "
            "correct the names (relative to the table's folder, with forward slashes) or drop "
            "the rows"
        )
    return files


def examples(items: list, kind: str = "", count: int | None = None) -> str:
    """Up to five of `count` items: "'a.png', 'b.png'", or with a kind "row 1, row 2"."""
    more = (len(items) if count is None else count) - 5
    shown = ", ".join(f"{kind} {item}" if kind else repr(item) for item in items[:5])
    return shown + (f" and {more} more" if more > 0 else "")


def _is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_file(path):
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a NUL character
        return False
