"""The data that the options name: sources, splits, decoded images, streams."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from ..data.cache import Images, decode_once
from ..data.preparation import Preparation
from ..data.sources import column_texts, image_sources, load_images, order_labels
from ..data.splits import check_splits, make_splits, read_splits
from ..data.streams import ImageStream, open_stream
from ..data.windows import parse_windows
from ..training.seeding import epoch_order
from .arguments import DataArguments

logger = logging.getLogger("sssd_hf")


def preparation_of(
    config: Any, size: tuple[int, int], data: DataArguments | None = None
) -> Preparation:
    """How images are prepared for a model: as its config's `preparation` says, options of `data`
    that are given before it, and the defaults where neither says.

    Args:
        config: with num_channels, and `preparation` (`Preparation.to_dict`) where it has one.
        size: (height, width).

    Raises:
        ValueError: impossible values, such as two windows for a one-channel model.
    """
    values = dict(getattr(config, "preparation", None) or {})
    if data is not None:
        given = {
            "windows": data.window and parse_windows(data.window),
            "resize_mode": data.resize_mode,
            "slice_axis": data.slice_axis,
        }
        values |= {name: value for name, value in given.items() if value is not None}
    return Preparation.from_dict(values, size, config.num_channels)


def mark_preparation(config: Any, preparation: Preparation) -> None:
    """Note in a model's config what the stock image processor can't express, else nothing."""
    values = preparation.to_dict()
    plain = Preparation(preparation.size, preparation.num_channels).to_dict()
    config.preparation = None if values == plain else values


def stored_slice_axis(checkpoint: str | None, revision: str = "main") -> str | None:
    """The axis along which a checkpoint's training cut volumes."""
    if checkpoint is None or checkpoint.endswith(".pth"):
        return None
    config = PretrainedConfig.get_config_dict(checkpoint, revision=revision)[0]
    return (config.get("preparation") or {}).get("slice_axis")


def load_data(data: DataArguments, slice_axis: str | None = None) -> Any:
    """The `datasets.Dataset` that the data options name; `slice_axis` is the checkpoint's."""
    if data.streaming:
        raise ValueError("--streaming: this script needs all images at hand; leave it out.")
    dataset = load_images(
        data.data_dir,
        data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        image_column_name=data.image_column_name,
        label_column_name=data.label_column_name or None,
        group_column_name=data.group_column_name,
        dataset_revision=data.dataset_revision,
        cache_dir=data.cache_dir,
        slice_axis=data.slice_axis or slice_axis or "axial",
    )
    if data.positive_label is not None and "label" in dataset.column_names:
        return order_labels(dataset, data.positive_label)
    return dataset


def _open(data: DataArguments) -> Any:
    return open_stream(
        data.data_dir,
        data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        dataset_revision=data.dataset_revision,
        cache_dir=data.cache_dir,
        split=data.train_split,
        image_column_name=data.image_column_name,
        label_column_name=data.label_column_name or None,
    )


def stream_label_names(data: DataArguments) -> list[str]:
    """The classes of a stream, in the order of their numbers.

    Raises:
        ValueError: it has no labels, or the classes' names are not known, or known twice.
    """
    import datasets

    if data.positive_label is not None:
        raise ValueError(
            "--positive_label: the classes of a stream are numbered in its files, and class 1 is "
            "the positive one; leave the option out"
        )
    dataset = _open(data)
    label = (dataset.features or dataset._resolve_features().features).get("label")
    given = data.label_names and [name.strip() for name in data.label_names.split(",")]
    if label is None:
        raise ValueError(
            "--streaming: the images have no labels: name their column by --label_column_name "
            '(WebDataset: "cls")'
        )
    if isinstance(label, datasets.ClassLabel):
        if given and given != label.names:
            raise ValueError(
                f"--label_names {data.label_names}: the stream itself says "
                f"{','.join(label.names)}: leave the option out"
            )
        return label.names
    if not given or len(set(given)) != len(given) or len(given) < 2 or not all(given):
        raise ValueError(
            f"--label_names {data.label_names}: the labels are numbers of type {label.dtype}: "
            "expected the names of all classes by comma, in the order of the numbers 0, 1, ..."
        )
    return given


def load_stream(
    data: DataArguments,
    preparation: Preparation,
    seed: int,
    accelerator: Accelerator | None,
    num_classes: int | None = None,
) -> ImageStream:
    """This process's share (without an accelerator: all) of the stream that the options name."""
    return ImageStream(
        _open(data),
        preparation,
        seed=seed,
        buffer_size=data.shuffle_buffer_size,
        rank=accelerator.process_index if accelerator else 0,
        world=accelerator.num_processes if accelerator else 1,
        skip_bad_files=data.skip_bad_files,
        num_classes=num_classes,
    )


def hold_out(
    data: DataArguments,
    preparation: Preparation,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
    count: int = 1000,
) -> Images | None:
    """The first `count` images of a stream's --validation_split, where that is given.

    Raises:
        ValueError: shards of --data_dir have no splits.
    """
    if data.validation_split is None:
        return None
    if data.data_dir is not None:
        raise ValueError(
            f"--validation_split {data.validation_split}: the shards of --data_dir are of one "
            "split. Name their folder by --dataset_name instead, with files such as "
            "train-000.parquet and validation-000.parquet, or leave the option out."
        )
    alone = replace(data, train_split=data.validation_split, shuffle_buffer_size=1)
    stream = load_stream(alone, preparation, 0, None, num_classes)
    batches = []
    while sum(len(batch.positions) for batch in batches) < count:
        batches.append(stream.read(1))
        if batches[-1].epochs.any():  # the split has ended and begins anew
            batches.pop()
            break
    stream.close()
    labels = None
    if batches[0].labels is not None:
        labels = torch.cat([batch.labels for batch in batches]).to(device)
    elif num_classes is not None:
        raise ValueError(f"--validation_split {data.validation_split}: its images have no labels")
    if num_classes is not None and len(labels.unique()) < 2:
        raise ValueError(
            f"--validation_split {data.validation_split}: its first {len(labels)} images, those "
            "that are taken of a stream, are all of one class, so that nothing can be chosen by "
            "them; expected several: shuffle its shards, or leave the option out."
        )
    positions = torch.cat([batch.positions for batch in batches]).to(device)
    return Images(positions, labels, torch.cat([batch.pixels for batch in batches]))


def split_data(
    dataset: Any,
    data: DataArguments,
    seed: int,
    own: str | None,
    earlier: str | None = None,
    check: bool = True,
) -> dict[str, list[int]]:
    """Rows of each split: those of --splits_file; else from the split column; else those of
    `splits.json` in the folder `own`; else those of the folder `earlier`, if they serve here; else
    cut now. Without `check` a file's and the last may be unfit for training (see `check_splits`).
    """
    if data.splits_file is not None:
        splits = read_splits(data.splits_file, dataset)
        if check:
            check_splits(dataset, splits, data.group_column_name)
        return splits
    if split_column_of(dataset, data) is None:
        for folder in filter(None, (own, earlier)):
            path = Path(folder) / "splits.json"
            if not path.is_file():
                continue
            try:
                splits = read_splits(path, dataset)
                check_splits(dataset, splits, data.group_column_name)
                if folder != own:
                    _check_usable(dataset, splits, data)
            except ValueError as error:
                if folder == own:
                    raise
                logger.warning(f"not taking the splits of {path}, but cutting anew: {error}")
                continue
            logger.info(f"splits are those of {path}")
            return splits
    given = split_column_of(dataset, data) or data.group_column_name
    if given is None and "label" in dataset.column_names:
        logger.warning(
            "no --group_column_name: splits are cut image by image; if patients have several "
            "images, some are in training and some in test, and all figures are too good"
        )
    return make_splits(
        dataset,
        split_column=data.split_column,
        train_split=data.train_split,
        validation_split=data.validation_split,
        test_split=data.test_split,
        train_val_split=data.train_val_split,
        train_test_split=data.train_test_split if "label" in dataset.column_names else 0.0,
        group_column_name=data.group_column_name,
        seed=seed,
        check=check,
    )


def split_column_of(dataset: Any, data: DataArguments) -> str | None:
    """The column that says which split an image is in; None where there is none."""
    if data.split_column is not None:
        return data.split_column
    # a column of one value, as of a data set on the Hub that has "train" only, splits nothing
    named = "split" in dataset.column_names and len(set(dataset["split"][:])) > 1
    return "split" if named else None


def _check_usable(dataset: Any, splits: dict[str, list[int]], data: DataArguments) -> None:
    if data.train_test_split and not splits["test"]:
        raise ValueError("they have no test split")
    if data.group_column_name is not None:
        groups = [
            {*column_texts(dataset.select(rows), data.group_column_name, "--group_column_name")}
            for rows in splits.values()
            if rows
        ]
        if sum(map(len, groups)) > len(set().union(*groups)):
            raise ValueError(f"they separate images of the same {data.group_column_name}")


def choose_rows(rows: list[int], count: int | None, seed: int) -> list[int]:
    """`count` of `rows` by chance (class folders lie one after the other), in their order."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(epoch_order(seed, 0, len(rows))[:count].tolist())]


def working_size(size: tuple[int, int], cache_size: int | None) -> tuple[int, int]:
    """(height, width) that random crops are taken from, in the proportions of the model's `size`;
    `cache_size` is the shorter side. By default 1.25 times the model's: a crop of half the area
    still shows 0.88 of the model's pixels."""
    factor = 1.25 if cache_size is None else cache_size / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def decode_split(
    dataset: Any,
    rows: list[int],
    preparation: Preparation,
    data: DataArguments | None = None,
    accelerator: Accelerator | None = None,
    title: str = "images",
    output: Path | None = None,
) -> Images:
    """Decode the images of `rows` once, at one size. Images left out by --skip_bad_files are in
    neither `rows` nor `labels` of the result; `output` is where bad_files.csv goes."""
    part = dataset.select(rows)
    data = data or DataArguments()
    main = accelerator is None or accelerator.is_main_process
    images = decode_once(
        # a Hub's are read row by row: embedded images need not all be in memory
        part["image"] if data.dataset_name else image_sources(part),
        preparation,
        rows,
        part["label"][:] if "label" in part.column_names else None,
        cache=data.cache,
        device=accelerator.device if accelerator else "cpu",
        title=title,
        names=part["file_name"],
        skip_bad_files=data.skip_bad_files,
        bad_files=output / "bad_files.csv" if output and main else None,
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        progress=main,
    )
    if data.skip_bad_files and accelerator is not None and accelerator.num_processes > 1:
        # a file that one process alone could not read would set their batches against each other
        count = torch.full_like(images.rows[:1], len(images))
        marks = accelerator.gather(torch.stack([count, images.rows.pow(2).sum()[None]], dim=1))
        if (marks != marks[0]).any():
            raise ValueError(
                f"--skip_bad_files: the processes could read different numbers of {title} "
                f"({', '.join(map(str, marks[:, 0].tolist()))}): start again, and if it stays so "
                "remove the files named in bad_files.csv"
            )
    return images


def column_of(dataset: Any, rows: list[int], column: str, option: str) -> list[Any]:
    """Values of a column of the metadata, as they are.

    Raises:
        ValueError: there is no such column.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"{option}: there is no column {column!r}, columns found: "
            f"{', '.join(dataset.column_names)}: name one of these"
        )
    return dataset.select(rows)[column][:]


def groups_of(dataset: Any, rows: list[int], column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    return np.array(column_texts(dataset.select(rows), column, "--group_column_name"))
