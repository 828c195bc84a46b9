"""Streams: sets too large for any disk, read forwards, shuffled in blocks, resumed exactly."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .images import ImageError
from .isolation import Decoders, decode_all
from .preparation import Preparation

logger = logging.getLogger(__name__)

BUILDERS = {".tar": "webdataset", ".parquet": "parquet"}
MAX_BYTES = 1 << 30  # of one image that is given by an address
SETTINGS = {  # of an ImageStream, that its position counts for -> what messages call them
    "seed": "--seed",
    "buffer_size": "--shuffle_buffer_size",
    "world": "a number of processes of",
    "rank": "the process",
}


def open_stream(
    data_dir: str | None = None,
    dataset_name: str | None = None,
    *,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    cache_dir: str | None = None,
    split: str = "train",
    image_column_name: str = "image",
    label_column_name: str | None = "label",
) -> Any:
    """A `datasets.IterableDataset` with "image" (still encoded) and, where there is one, "label".

    Args:
        data_dir: a folder of shards (searched through): WebDataset archives (*.tar), or Parquet
            files with embedded images, all of one split.
        dataset_name: a data set on the Hub, or a local folder in one of the forms it may have.
        split: of `dataset_name`.
        image_column_name: where there is none of this name, the only column of images is taken (a
            WebDataset names columns by suffix, such as "jpg").
        label_column_name: None takes no labels; "label" means "cls" in a WebDataset.

    Raises:
        ValueError: naming the option, what was found and what to do. Labels must be whole numbers
            or `ClassLabel`: the set of texts would be known at the stream's end only.
    """
    import datasets

    if (data_dir is None) == (dataset_name is None):
        raise ValueError("--streaming: expected exactly one of --data_dir and --dataset_name")
    options = {"streaming": True, "cache_dir": cache_dir}
    if data_dir is not None:
        where = f"--data_dir {data_dir} --streaming"
        shards, builder = _shards(Path(data_dir), where)
        arguments = (builder,)
        options |= {"data_files": {"train": shards}, "split": "train"}
    else:
        where = f"--dataset_name {dataset_name} --streaming"
        arguments = (dataset_name,)
        options |= {"name": dataset_config_name, "revision": dataset_revision, "split": split}
    try:
        dataset = datasets.load_dataset(*arguments, **options)
        # the first image tells the columns where the data set does not
        features = dataset.features or dataset._resolve_features().features
    except Exception as exc:  # network, access, form: each with its own class
        raise ValueError(
            f"{where}: cannot be opened ({type(exc).__name__}: {exc}): check the name, the split "
            f"{split!r}, the shards and your access"
        ) from exc
    image = _image_column(features, image_column_name, where)
    label = label_column_name
    if label == "label" and label not in features:
        label = "cls" if "cls" in features else None
    if label is not None:
        _check_label(features, label, where)
    # first: what comes after it would decode the images as Pillow alone does
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    dataset = dataset.select_columns([name for name in (image, label) if name is not None])
    renamed = {
        old: new for old, new in ((image, "image"), (label, "label")) if old not in (None, new)
    }
    return dataset.rename_columns(renamed) if renamed else dataset


def _shards(folder, where):
    if not folder.is_dir():
        raise ValueError(f"{where}: is no folder, expected one with shards (*.tar, *.parquet)")
    found = {suffix: sorted(map(str, folder.rglob(f"*{suffix}"))) for suffix in BUILDERS}
    kinds = [suffix for suffix, shards in found.items() if shards]
    if len(kinds) != 1:
        counts = ", ".join(f"{len(shards)} {suffix}" for suffix, shards in found.items())
        raise ValueError(
            f"{where}: found {counts} files, expected shards of one of these kinds; a folder of "
            "images is read without --streaming"
        )
    return found[kinds[0]], BUILDERS[kinds[0]]


def _image_column(features, name, where):
    import datasets

    columns = [n for n, feature in features.items() if isinstance(feature, datasets.Image)]
    if name in columns or (name in features and name != "image"):
        return name
    if name != "image" or len(columns) != 1:
        raise ValueError(
            f"{where} --image_column_name {name}: found the columns {', '.join(features)}, images "
            f"in {', '.join(columns) or 'none'}: name one of these"
        )
    return columns[0]


def _check_label(features, name, where):
    import datasets

    feature = features.get(name)
    if isinstance(feature, datasets.ClassLabel):
        return
    if not isinstance(feature, datasets.Value) or not feature.dtype.startswith(("int", "uint")):
        raise ValueError(
            f"{where} --label_column_name {name}: found {feature}, expected a column of whole "
            "numbers or a ClassLabel: convert it, or take no labels by --label_column_name ''"
        )


def _fetch(sources: list) -> list:
    """The same with the bytes of what is given by an address (hf://..., as `datasets` streams image
    folders on the Hub). A failing network is an error here, never an unreadable image."""
    import fsspec

    def read(source):
        remote = isinstance(source, dict) and source.get("bytes") is None
        if not remote or "://" not in (source.get("path") or ""):
            return source
        with fsspec.open(source["path"], "rb") as file:
            return {"path": source["path"], "bytes": file.read(MAX_BYTES)}

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, sources))


class StreamBatch(NamedTuple):
    """What `ImageStream.read` gives, on the host: for each image its position in its epoch (which
    its randomness is drawn from) and the epoch, (n,) int64 both; (n, channels, height, width)
    uint8; and (n,) int64 or None."""

    positions: torch.Tensor
    epochs: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor | None


@dataclass
class _Block:
    """Consecutive images of the stream, in shuffled order."""

    epoch: int
    number: int
    first: int  # place of its first image in this process's share of the epoch
    start: dict | None  # the data set's state before it; None: the epoch's start
    order: np.ndarray  # (images,) which one comes when, unreadable ones included
    pixels: dict[int, np.ndarray]  # of the readable ones
    labels: list[int] | None
    bad: list[str]


class ImageStream:
    """Endless images of one process's share of a stream.

    The share is `datasets.distributed.split_dataset_by_node`'s: whole shards where the processes
    divide their number, else every n-th image (then every process reads all bytes). An image's
    position is its place in the share times the number of processes plus the rank. When the share
    ends, the next epoch begins, also in the middle of a `read`; shares of unequal shards end at
    unequal times. Over all processes each epoch is the whole set, once.

    Shuffling: the order of shards by epoch (as `datasets` does it), and inside blocks of
    `buffer_size` consecutive images by a hash of (seed, epoch, process, block). Shards sorted by
    class are therefore not mixed: shuffle a set before it is cut into shards.

    The state is the place of the block, from which it is read again on resume, and how much of it
    was given out; hence the images after it are the same as without the stop, whenever that was.

    Args:
        dataset: `datasets.IterableDataset` with "image" (encoded) and perhaps "label" (integers).
        skip_bad_files: leave out unreadable images, with a warning, instead of an error.
        num_classes: labels must be below it.
    """

    def __init__(
        self,
        dataset: Any,
        preparation: Preparation,
        *,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world: int = 1,
        skip_bad_files: bool = False,
        num_classes: int | None = None,
    ):
        self.dataset, self.preparation = dataset, preparation
        self.seed, self.buffer_size, self.rank, self.world = seed, buffer_size, rank, world
        self.skip_bad_files, self.num_classes = skip_bad_files, num_classes
        self.skipped = 0  # unreadable images so far
        self._reader = ThreadPoolExecutor(1)  # reads and decodes one block ahead
        self._ahead: Future | None = None
        self._decoders = Decoders()
        self._go_to({"epoch": 0, "block": 0, "first": 0, "start": None, "offset": 0})

    def read(self, n: int) -> StreamBatch:
        """The next `n` images.

        Raises:
            ImageError: one can't be read (without `skip_bad_files`).
            ValueError: this process's share is empty, or none of it is readable; an image has no
                label, or one that is no class.
        """
        positions, epochs, pixels, labels = [], [], [], []
        while len(positions) < n:
            while self._block is None or self._place["offset"] == len(self._block.order):
                self._next_block()
            block = self._block
            place = int(block.order[self._place["offset"]])
            self._place["offset"] += 1
            if place not in block.pixels:
                self.skipped += 1
            else:
                positions.append((block.first + place) * self.world + self.rank)
                epochs.append(block.epoch)
                pixels.append(block.pixels[place])
                if block.labels is not None:
                    labels.append(block.labels[place])
        shape = (n, self.preparation.num_channels, *self.preparation.size)
        return StreamBatch(
            torch.tensor(positions, dtype=torch.int64),
            torch.tensor(epochs, dtype=torch.int64),
            torch.from_numpy(np.stack(pixels)) if n else torch.empty(shape, dtype=torch.uint8),
            torch.tensor(labels, dtype=torch.int64) if labels else None,
        )

    def state_dict(self) -> dict:
        """Where the next `read` begins; plain JSON values."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return {**settings, **self._place, "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken, by an `ImageStream` of the same data and settings.

        Raises:
            ValueError: the settings differ, such as the number of processes.
        """
        for name in SETTINGS:
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the stream was stopped with {SETTINGS[name]} {state[name]} and is now "
                    f"started with {getattr(self, name)}: resume it with the same --seed, "
                    "--shuffle_buffer_size and number of processes"
                )
        self.skipped = state["skipped"]
        self._go_to({name: state[name] for name in self._place})

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()

    def _go_to(self, place: dict) -> None:
        if self._ahead is not None and not self._ahead.cancel():
            self._ahead.exception()  # waits until it has ended
        self._blocks = self._read_blocks(*(place[k] for k in ("epoch", "block", "first", "start")))
        self._place, self._block, self._ahead = place, None, None

    def _next_block(self) -> None:
        if self._ahead is None:
            self._ahead = self._reader.submit(next, self._blocks)
        block = self._ahead.result()
        self._ahead = self._reader.submit(next, self._blocks)
        if self._block is not None:  # else the offset is that of the place to start from
            self._place = {"epoch": block.epoch, "block": block.number, "first": block.first}
            self._place |= {"start": block.start, "offset": 0}
        self._block = block
        if block.bad:
            logger.warning(
                "%d of %d images are left out (--skip_bad_files), the first: %s",
                len(block.bad),
                len(block.order),
                block.bad[0],
            )

    def _read_blocks(
        self, epoch: int, number: int, first: int, start: dict | None
    ) -> Iterator[_Block]:
        from datasets.distributed import split_dataset_by_node

        while True:
            dataset = split_dataset_by_node(self.dataset, self.rank, self.world)
            # datasets shuffles the shards by this number alone, and by 0 not at all
            mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint32)
            dataset.set_epoch(int(mixed[0]) + 1)
            if start is not None:
                dataset.load_state_dict(start)
            whole, readable = start is None, 0
            items = iter(dataset)
            while chunk := list(islice(items, self.buffer_size)):
                block = self._decode(chunk, epoch, number, first, start)
                readable += len(block.pixels)
                start = dataset.state_dict()
                yield block
                number, first = number + 1, first + len(chunk)
            if whole and not readable:
                raise ValueError(
                    f"--streaming: process {self.rank + 1} of {self.world} can read none of the "
                    f"{first} images of its share: check the data, or start fewer processes"
                )
            epoch, number, first, start = epoch + 1, 0, 0, None

    def _decode(self, chunk, epoch, number, first, start) -> _Block:
        pixels, bad = {}, []
        sources = _fetch([item["image"] for item in chunk])
        for i, result in decode_all(sources, self.preparation, keep=self._decoders):
            if isinstance(result, ImageError):
                bad.append(f"{result} (image {(first + i) * self.world + self.rank} of the stream)")
            else:
                pixels[i] = result
        if bad and not self.skip_bad_files:
            shown = "\n  ".join(bad[:5])
            raise ImageError(
                f"{len(bad)} of {len(chunk)} images in a row can't be read:\n  {shown}\n"
                "Repair them, or leave them out by --skip_bad_files."
            )
        labels = [item.get("label") for item in chunk] if "label" in chunk[0] else None
        if labels is not None and None in labels:
            raise ValueError(
                f"image {(first + labels.index(None)) * self.world + self.rank} of the stream has "
                "no label, expected one for each: take no labels by --label_column_name ''"
            )
        for i, label in enumerate(labels or ()):
            if self.num_classes is not None and not 0 <= label < self.num_classes:
                raise ValueError(
                    f"image {(first + i) * self.world + self.rank} of the stream has the label "
                    f"{label}, expected 0 to {self.num_classes - 1}: mend the labels, or name all "
                    "classes by --label_names"
                )
        # the bits of this generator and of SeedSequence never change, those of permutation() may
        seeds = np.random.SeedSequence([self.seed, epoch, self.rank, number])
        order = np.random.PCG64(seeds).random_raw(len(chunk)).argsort(kind="stable")
        return _Block(epoch, number, first, start, order, pixels, labels, bad)
