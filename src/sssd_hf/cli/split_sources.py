"""Which images are evaluated on, what of them the model has seen, and whence a run's splits are
known."""

import logging
import shlex
from pathlib import Path
from typing import Any

from ..data.splits import make_splits, read_splits
from ..evaluation.run_files import read_object
from .arguments import DataArguments
from .data import groups_of, split_column_of

logger = logging.getLogger("sssd_hf")

ALL_IMAGES = "all"  # --test_split of evaluate.py


def rows_to_evaluate(
    dataset: Any, data: DataArguments, model: str, other_data: bool = False
) -> tuple[list[int], str]:
    """Rows of the test images, and whence they are known: all for --test_split all; else those of
    --splits_file; else of the split column, which may have test images only; else, unless the data
    are others than the model's, of splits.json in the folder `model`.

    Raises:
        ValueError: the data and the model name no test images, or none is left. Nothing is cut:
            chance would take images of the model's training.
    """
    advice = (
        "name the test images by --split_column and --test_split or by --splits_file, or take all "
        "images by --test_split all"
    )
    stored = Path(model) / "splits.json"
    if data.test_split == ALL_IMAGES:
        if data.splits_file is not None:
            raise ValueError("--test_split all takes all images: leave out --splits_file.")
        names = dataset["file_name"][:]
        rows, source = sorted(range(len(names)), key=names.__getitem__), "all images of the data"
    elif data.splits_file is not None:
        rows = read_splits(data.splits_file, dataset)["test"]
        source = file_source(Path(data.splits_file))
    elif (column := split_column_of(dataset, data)) is not None:
        splits = make_splits(
            dataset,
            split_column=column,
            train_split=data.train_split,
            validation_split=data.validation_split,
            test_split=data.test_split,
            test_only=True,
        )
        rows, source = splits["test"], f"the column {column}"
    elif stored.is_file() and not other_data:
        try:
            rows = read_splits(stored, dataset)["test"]
        except ValueError as error:
            raise ValueError(f"{error}; or, for other data, {advice}") from error
        source = file_source(stored)
    else:
        raise ValueError(f"Neither the data nor the model {model} name test images: {advice}.")
    if not rows:
        raise ValueError(f"There is no test split: {advice}.")
    return rows, source


def names_trained_on(splits: Path) -> set[str] | None:
    """File names of a model's training and validation images; None where its splits.json is
    missing (a model on the Hub) or broken."""
    stored = read_object(splits)
    if stored is None:
        return None
    return {name for part in ("train", "validation") for name in stored.get(part) or []}


def rows_pretrained_on(start: str | None, dataset: Any, test: list[int]) -> list[int] | None:
    """Test images that the checkpoint `start`, a folder, was trained on, by its splits.json, with a
    warning: labels do not leak so, but what is new to the model are they not. None where that is
    not known: it has none (on the Hub), or what it started from itself has none."""
    if not start or not test:
        return []
    stored = read_object(Path(start) / "splits.json")
    if not stored:
        return None
    unknown = stored.get("pretrained_on", []) is None
    known = {*(stored.get("train") or []), *(stored.get("pretrained_on") or [])}
    names = dataset.select(test)["file_name"][:]
    rows = [row for row, name in zip(test, names) if name in known]
    if rows:
        logger.warning(
            f"{len(rows)} of the {len(test)} test images, such as {names[test.index(rows[0])]}, "
            f"are named in {Path(start) / 'splits.json'} as training images: {start} has seen them "
            "(unless these are other images called so by chance). For a test on images that are "
            "new to the model, pretrain with the splits of this run (--splits_file)."
        )
    return None if unknown and not rows else rows


def count_pretrained_on(splits: Path, dataset: Any, rows: list[int]) -> int | None:
    """How many of the images `rows` the model's pretraining learned from, as far as its splits.json
    tells; None where it does not."""
    stored = read_object(splits)
    if stored is None or stored.get("pretrained_on", []) is None:
        return None
    known = set(stored.get("pretrained_on") or [])
    return sum(name in known for name in dataset.select(rows)["file_name"][:])


def warn_of_seen_images(splits: Path, dataset: Any, rows: list[int]) -> int | None:
    """How many test images the model's own splits use for something else, by their file names, with
    a warning that names one; None where the splits are not known."""
    known = names_trained_on(splits)
    if known is None:
        return None
    seen = [name for name in dataset.select(rows)["file_name"][:] if name in known]
    if seen:
        logger.warning(
            f"{len(seen)} of the {len(rows)} test images, such as {seen[0]}, are named in {splits} "
            "as training or validation images: the figures are too good (unless these are other "
            "images called so by chance; evaluate.py then takes --other_data true)"
        )
    return len(seen)


def count_shared_groups(
    splits: Path, dataset: Any, rows: list[int], column: str | None
) -> int | None:
    """How many groups of the test images are also those of training or validation images; None
    where the data do not tell: no column, no splits of the model, or data without its images."""
    known = names_trained_on(splits)
    if known is None or column is None:
        return None
    names = dataset["file_name"][:]
    trained = [i for i, name in enumerate(names) if name in known]
    tested = set(groups_of(dataset, rows, column))
    shared = tested & set(groups_of(dataset, trained, column))
    if shared:
        logger.warning(
            f"{len(shared)} of the {len(tested)} groups ({column}) of the test images, such as "
            f"{min(shared)}, are also those of training or validation images: the figures are too "
            "good (unless these are other ones called so by chance; then say --other_data true)"
        )
    complete = known <= set(names)  # else others may be shared, which can't be seen here
    return len(shared) if shared or complete else None


def split_source(
    dataset: Any,
    splits: dict[str, list[int]],
    data: DataArguments,
    seed: int,
    own: Path,
    earlier: str | None,
) -> str:
    """Whence `splits`, which `split_data` gave, are known, in words for people: a file, a column,
    splits.json of the folder `earlier`, or chance. What the folder `own` tells of the same splits
    stays, as where a run goes on."""
    if data.splits_file is not None:
        return file_source(Path(data.splits_file))
    column = split_column_of(dataset, data)
    if column is not None:
        return f"the column {column}"
    names = dataset["file_name"][:]
    named = {part: [names[row] for row in rows] for part, rows in splits.items()}
    for folder in filter(None, (own, earlier)):
        path = Path(folder) / "splits.json"
        stored = read_object(path) or {}
        if not all(stored.get(part) == files for part, files in named.items()):
            continue
        if folder != own:
            return file_source(path)
        if source := _stored_source(stored):
            return source
    group = data.group_column_name
    shares = {"train_test_split": data.train_test_split, "train_val_split": data.train_val_split}
    if "label" not in dataset.column_names:
        del shares["train_test_split"]  # not cut there, see `split_data`
    unit = "single images" if group is None else f"whole groups of the column {group}"
    told = "; ".join(f"{name} {share:g}" for name, share in shares.items())
    return f"cut by chance, {unit}; {told}; seed {seed}"


def file_source(path: Path) -> str:
    """A file of splits, and what it says of its own source."""
    source = _stored_source(read_object(path) or {})
    # quoted where it has spaces, so that publishing finds the path's end (hub/clean.py)
    return f"the file {shlex.quote(str(path))}" + (f" ({source})" if source else "")


def _stored_source(stored: dict[str, Any]) -> str | None:
    how = stored.get("how")
    source = how.get("source") if isinstance(how, dict) else None
    return source if isinstance(source, str) else None
