"""Which images are evaluated on, and whence a run's splits are known."""

import shlex
from pathlib import Path
from typing import Any

from ..data.splits import make_splits, read_splits
from ..evaluation.run_files import read_object
from .arguments import DataArguments
from .data import split_column_of

ALL_IMAGES = "all"  # --test_split of evaluate.py


def rows_to_evaluate(dataset: Any, data: DataArguments, model: str) -> tuple[list[int], str]:
    """Rows of the test images, and whence they are known: all for --test_split all; else those of
    --splits_file; else of the split column, which may have test images only; else of splits.json
    in the folder `model`.

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
    elif stored.is_file():
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
