"""Other sets of images for pretraining beside the target's, without copies of its test images."""

import csv
import logging
from pathlib import Path

import numpy as np

from ..data.audit import inspect_images
from ..data.duplicates import near_pairs
from ..data.sources import as_text, image_sources, load_images

logger = logging.getLogger("sssd_hf")


def write_external_table(
    path: Path, data_dir: Path, split_column: str, train_split: str | None, folders: list[Path]
) -> dict[str, int]:
    """Write a table of images to pretrain on, with a column "part" of which all is "train": those
    of the target that `split_column` says to train on, and all of `folders` but the near copies of
    the target's test images (`data.duplicates`: all its images that are not trained on).

    Returns:
        images kept, and left out as copies, by folder name.

    Raises:
        ValueError: as `load_images`; no image is to be trained on; one of `folders` has volumes, or
            more near copies than are listed.
    """
    target = load_images(data_dir)
    values = [as_text(value) for value in target[split_column][:]]
    wanted = {name.strip() for name in (train_split or "train").split(",")}
    train = [i for i, value in enumerate(values) if value in wanted]
    held_out = [i for i, value in enumerate(values) if value not in wanted]
    if not train:
        raise ValueError(
            f"--split_column {split_column}: no image of {', '.join(sorted(wanted))}, values found:"
            f" {', '.join(sorted(set(values)))}"
        )
    test_images = inspect_images(image_sources(target.select(held_out))).thumbnails
    files = [Path(target[i]["image"]["path"]).resolve() for i in train]
    counts = {data_dir.name: len(files)}
    for folder in folders:
        dataset = load_images(folder, label_column_name=None)
        sources = image_sources(dataset)
        if any("frame" in source for source in sources):
            raise ValueError(
                f"{folder}: has volumes or files of several frames, of which none could be left "
                "out by itself. Write their slices as single images first."
            )
        found = inspect_images(sources)
        thumbnails = np.concatenate([test_images, found.thumbnails])
        is_external = np.arange(len(thumbnails)) >= len(test_images)
        pairs = near_pairs(thumbnails, parts=is_external.astype(np.int64))
        if not pairs.complete_across:
            raise ValueError(
                f"{folder}: has more near copies than can be listed, so that not all copies of "
                "test images are known. Thin it out first: scripts/audit.py shows them."
            )
        across = (pairs.first < len(test_images)) & (pairs.second >= len(test_images))
        copies = set((pairs.second[across] - len(test_images)).tolist())
        kept = [p for i, p in enumerate(found.positions.tolist()) if i not in copies]
        files += [Path(sources[position]["path"]).resolve() for position in kept]
        counts |= {folder.name: len(kept), f"{folder.name}, copies left out": len(copies)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "part"])
        writer.writerows([str(name), "train"] for name in files)
    logger.info("pretraining images: " + ", ".join(f"{k}: {v}" for k, v in counts.items()))
    return counts
