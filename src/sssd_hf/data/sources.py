"""One `datasets.Dataset` from a folder of images or from the Hub, with labels and groups."""

import logging
import math
import os
import re
from pathlib import Path

from sssd_hf.data.folders import examples, read_folder
from sssd_hf.data.nifti import SLICE_AXES

logger = logging.getLogger(__name__)


def load_images(
    data_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    *,
    dataset_config_name: str | None = None,
    image_column_name: str = "image",
    label_column_name: str | None = "label",
    group_column_name: str | None = None,
    dataset_revision: str | None = None,
    cache_dir: str | None = None,
    slice_axis: str = "axial",
):
    """All images of one source as a `datasets.Dataset`; no image is decoded.

    A folder holds a table (`metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`), or
    class folders (`<class>/**`), or split folders of these (`train/<class>/**`), or images alone.
    A table alone may lie anywhere; its paths start at its folder, or are absolute.
    A csv is text throughout ("007" stays "007", "NA" is no gap); only an empty cell is missing.

    Columns: "image" (`datasets.Image(decode=False)`; for a folder the absolute path), "file_name"
    (relative path; on the Hub "<split>/<row>" unless there is such a column), "label"
    (`datasets.ClassLabel`, names sorted; absent without labels), "split" (from split folders or
    Hub splits, unless there is such a column) and every other column. A column in the way, say
    "label" with `label_column_name="diagnosis"`, is kept as "metadata_label". Where a folder holds
    DICOM or NIfTI files there are "frame" and "patient_id" as well: see `listing.list_slices`.

    Args:
        data_dir, dataset_name: a folder or table, or a data set on the Hub (or a local folder of
            parquet files); exactly one of the two.
        image_column_name: on the Hub, and in a table alone (of paths there).
        label_column_name: None takes no labels, say to pretrain on whatever the folders are named.
        group_column_name: only checked here: it must exist and have no empty cell.
        slice_axis: along which axis of the patient NIfTI volumes are cut.

    Raises:
        ValueError: naming the option or file, what was found and what to do.
    """
    if (data_dir is None) == (dataset_name is None):
        found = "neither" if data_dir is None else "both"
        raise ValueError(
            f"--data_dir and --dataset_name: found {found}, expected exactly one of them: "
            "a folder of images or the name of a data set on the Hub"
        )
    if slice_axis not in SLICE_AXES:
        raise ValueError(f"--slice_axis is {slice_axis!r}, expected {', '.join(SLICE_AXES)}")
    if data_dir is not None:
        where = f"--data_dir {data_dir}"
        columns = read_folder(Path(data_dir), where, slice_axis, image_column_name)
        dataset = _from_columns(columns, where)
    else:
        where = f"--dataset_name {dataset_name}"
        dataset = _from_hub(
            dataset_name, where, dataset_config_name, dataset_revision, cache_dir, image_column_name
        )
    # the default may be missing, what was asked for may not
    usable = {None, "label", *dataset.column_names} - {"image", "file_name", "frame"}
    if label_column_name not in usable:
        raise ValueError(_no_column("--label_column_name", label_column_name, dataset))
    dataset = _rename(dataset, label_column_name, "label")
    if "label" in dataset.column_names:
        dataset = _encode_labels(dataset, where)
    if group_column_name is not None:
        column_texts(dataset, group_column_name, "--group_column_name")
    elif "frame" in dataset.column_names:
        logger.warning(
            "%s: slices of one patient may come into several splits, which makes results look too "
            "good: pass --group_column_name patient_id",
            where,
        )
    return dataset


def image_sources(dataset) -> list[dict]:
    """What `decode_all` takes for each row: {"path", "bytes"}, and "frame" for a slice."""
    sources = dataset["image"][:]
    if "frame" not in dataset.column_names:
        return sources
    frames = dataset["frame"][:]
    return [
        source if frame is None else {**source, "frame": frame}
        for source, frame in zip(sources, frames, strict=True)
    ]


def require_labels(dataset) -> list[str]:
    """The class names in the order of their indices.

    Raises:
        ValueError: the data set has no labels, or images of one class only.
    """
    if "label" not in dataset.column_names:
        raise ValueError(
            "the images have no labels, expected at least two classes: put them into one folder "
            "per class, or name the column of labels by --label_column_name (columns found: "
            f"{', '.join(dataset.column_names)})"
        )
    names = dataset.features["label"].names
    present = sorted(set(dataset["label"][:]))
    if len(present) < 2:
        raise ValueError(
            f"the images are of one class only, {names[present[0]]!r}, expected at least two: "
            "check the class folders or --label_column_name"
        )
    return names


def order_labels(dataset, positive_label: str):
    """The data set with the class `positive_label` as number 1 of two, as metrics count it.

    Raises:
        ValueError: there is no such class, or there are other than two.
    """
    import datasets

    names = dataset.features["label"].names
    if positive_label not in names or len(names) != 2:
        raise ValueError(
            f"--positive_label {positive_label}: found the classes {', '.join(names)}, expected it "
            "to be one of two: correct the name, or, where there are other than two classes, leave "
            "the option out"
        )
    if names[1] == positive_label:
        return dataset
    labels = [1 - label for label in dataset["label"][:]]
    feature = datasets.ClassLabel(names=names[::-1])
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def column_texts(dataset, column: str, option: str) -> list[str]:
    """A column as one text a row; `ValueError` where it is missing or has empty cells."""
    if column not in dataset.column_names:
        without = (
            "; or, where each image is of another patient or patients are not known, give "
            "--group_column_name ''"
            if option == "--group_column_name"
            else ""
        )
        raise ValueError(_no_column(option, column, dataset) + without)
    texts = [as_text(value) for value in dataset[column][:]]
    empty = [i for i, text in enumerate(texts) if not text]
    if empty:
        names = dataset.select(empty[:5])["file_name"][:]
        raise ValueError(
            f"{option}: column {column!r} is empty for {len(empty)} of {len(texts)} images, "
            f"expected a value for each: fill in {examples(names, count=len(empty))}"
        )
    return texts


def as_text(value) -> str:
    """ "" for what is missing; 2.0 is "2", for a column of whole numbers with gaps is floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _from_columns(columns, where):
    import datasets
    import pyarrow as pa

    for name, values in columns.items():
        try:
            pa.array(values)
        except pa.ArrowException as exc:
            raise ValueError(
                f"{where}: column {name!r} mixes kinds of values ({exc}), expected one kind: "
                "write all of them as text"
            ) from exc
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("image", datasets.Image(decode=False))


def _from_hub(dataset_name, where, config, revision, cache_dir, image_column):
    import datasets

    try:
        parts = datasets.load_dataset(
            dataset_name, name=config, revision=revision, cache_dir=cache_dir
        )
    except Exception as exc:  # network, access, name, configuration: each with its own class
        raise ValueError(
            f"{where}: cannot be loaded ({type(exc).__name__}: {exc}): check the name, "
            "--dataset_config_name, --dataset_revision and your access; a folder of images is "
            "given by --data_dir"
        ) from exc
    dataset = datasets.concatenate_datasets(list(parts.values()))
    split = [name for name, part in parts.items() for _ in range(len(part))]
    row = [f"{name}/{i:07d}" for name, part in parts.items() for i in range(len(part))]
    if not row:
        raise ValueError(f"{where}: has no rows, expected images: choose another data set")
    if image_column not in dataset.column_names:
        raise ValueError(_no_column("--image_column_name", image_column, dataset))
    dataset = _rename(dataset, image_column, "image")
    for name, feature in dataset.features.items():  # masks too: reading a row decodes nothing
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    try:
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
    except Exception as exc:  # pyarrow: the stored type is none of an image's
        raise ValueError(
            f"--image_column_name {image_column!r}: found {dataset.features['image']}, expected "
            f"images: name another column ({', '.join(dataset.column_names)})"
        ) from exc
    dataset = _rename(dataset, None, "frame")  # says which slice of a file, in our folders alone
    if "split" not in dataset.column_names:
        dataset = dataset.add_column("split", split)
    if "file_name" in dataset.column_names:
        names = dataset["file_name"][:]
        if all(isinstance(name, str) and name for name in names) and len({*names}) == len(names):
            return dataset
        dataset = _rename(dataset, None, "file_name")
    return dataset.add_column("file_name", row)


def _rename(dataset, old, new):
    """Column `old` under the name `new`; another column `new` in the way becomes "metadata_new"."""
    if old == new:
        return dataset
    if new in dataset.column_names:
        dataset = dataset.rename_column(new, f"metadata_{new}")
    return dataset if old is None else dataset.rename_column(old, new)


def _encode_labels(dataset, where):
    """The column "label" as ClassLabel; dropped where it is empty throughout."""
    import datasets

    feature = dataset.features["label"]
    values = dataset["label"][:]
    if isinstance(feature, datasets.ClassLabel):  # -1 is how data sets mark hidden labels
        values = [None if v is None or v < 0 else feature.names[v] for v in values]
    texts = [as_text(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if text and (
            not isinstance(value, (str, int, float)) or (isinstance(value, float) and "." in text)
        ):
            raise ValueError(
                f"{where}: found the label {value!r}, expected one text or whole number for each "
                "image: name another column by --label_column_name"
            )
    empty = [i for i, text in enumerate(texts) if not text]
    if len(empty) == len(texts):
        return dataset.remove_columns("label")
    if empty:
        names = dataset.select(empty[:5])["file_name"][:]
        raise ValueError(
            f"{where}: {len(empty)} of {len(texts)} images have no label, expected one for each or "
            f"none at all: fill in or remove {examples(names, count=len(empty))}; without a table, "
            "put every image into a class folder"
        )
    if isinstance(feature, datasets.ClassLabel):
        return dataset  # its order of names is already public
    names = sorted(set(texts))
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        names.sort(key=int)
    index = {name: i for i, name in enumerate(names)}
    return dataset.remove_columns("label").add_column(
        "label", [index[text] for text in texts], feature=datasets.ClassLabel(names=names)
    )


def _no_column(option, column, dataset):
    return (
        f"{option}: there is no column {column!r}, columns found: "
        f"{', '.join(dataset.column_names)}: name one of these"
    )
