"""Decode once: the images of one split as one uint8 array, on the accelerator, in memory or on
disk, whichever they fit."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .images import ImageError
from .isolation import Decoders, decode_all
from .preparation import Preparation, Source
from .store import fingerprint, locked, read_store, store_folder, write_store, written_at

logger = logging.getLogger(__name__)

CACHES = ("auto", "device", "memory", "disk", "none")
DEVICE_SHARE, MEMORY_SHARE = 0.25, 0.5  # of what is free; the rest is for the training
WORTH_KEEPING = 64 << 20  # bytes, of files or pixels: more than some seconds of decoding


@dataclass
class Images:
    """The images of one split.

    Args:
        rows: (images,) int64, their rows in the data set: what their randomness is drawn from.
        labels: (images,) int64 on the device of `rows`, or None.
        pixels: (images, channels, height, width) uint8, on the accelerator, in the host's memory or
            mapped from disk; None: decoded from `sources` at each access.
        mapped: whether `pixels` are mapped from disk.
        sources, kept, preparation, decoders: where `pixels` is None, the images, which of them are
            used ((images,) int64), how they are decoded and by whom.
    """

    rows: torch.Tensor
    labels: torch.Tensor | None
    pixels: torch.Tensor | None
    mapped: bool = False
    sources: Sequence[Source] = field(default=(), repr=False)
    kept: torch.Tensor | None = None
    preparation: Preparation | None = None
    decoders: Decoders | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, height, width)"""
        if self.pixels is not None:
            return tuple(self.pixels.shape)
        return len(self), *_image_shape(self.preparation)

    @property
    def slow(self) -> bool:
        """Whether a batch takes reading or decoding, so that fetching it ahead pays."""
        return self.pixels is None or self.mapped

    def select(self, index: torch.Tensor) -> "Images":
        """The images `index` (images,), nothing copied or decoded yet where that can wait."""
        here = index.to(self.rows.device)
        labels = None if self.labels is None else self.labels[here]
        if self.pixels is None:
            kept = self.kept[index.cpu()]
            return replace(self, rows=self.rows[here], labels=labels, kept=kept)
        return Images(self.rows[here], labels, self.pixels[index.to(self.pixels.device)])

    def batch(self, index: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        """(batch,) int64 -> (batch, channels, height, width) uint8 on `device`.

        Where the pixels lie on the accelerator nothing is copied and nobody waits. From the host
        they are gathered into page-locked memory and copied while the host goes on; an `index` on
        the accelerator must be fetched first, which makes the host wait for it.

        Raises:
            ImageError: an image can't be read (only where each access decodes).
        """
        device = torch.device(device)
        if self.pixels is not None and self.pixels.device.type != "cpu":
            return self.pixels[index.to(self.pixels.device)].to(device)
        index = index.cpu()
        shape, cuda = (len(index), *self.shape[1:]), device.type == "cuda"
        # the allocator of page-locked memory keeps a batch until its copy has ended
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        if self.pixels is not None:
            torch.index_select(self.pixels, 0, index, out=batch)
        else:
            chosen = [self.sources[i] for i in self.kept[index].tolist()]
            for i, pixels in decode_all(chosen, self.preparation, keep=self.decoders):
                if isinstance(pixels, ImageError):
                    raise pixels
                batch[i] = torch.from_numpy(pixels)
        return batch.to(device, non_blocking=cuda)


def decode_once(
    sources: Sequence[Source],
    preparation: Preparation,
    rows: list[int],
    labels: list[int] | None = None,
    *,
    cache: str = "auto",
    device: torch.device | str = "cpu",
    title: str = "images",
    names: Sequence[str] | None = None,
    skip_bad_files: bool = False,
    bad_files: Path | None = None,
    local_processes: int = 1,
    progress: bool = True,
) -> Images:
    """Decode the images of a split, or find them decoded by an earlier run.

    `cache` says where the array lies: on the "device", in "memory", on "disk" (mapped from a file,
    see `store`), or nowhere ("none": decoded at each access). "auto" takes the device if it is a
    GPU and the array fits into a quarter of its free memory, else memory if it fits into half of
    what is free, else disk. "disk" keeps the pixels for later runs, and so does "auto" where files
    or pixels exceed 64 MB; the others leave nothing on disk. Several processes of one machine
    decode what is kept only once: the first writes, the others wait.

    Args:
        rows, labels: one for each source.
        device: where `Images.rows` and `labels` go, and the pixels if they fit.
        title: what the images are, for messages.
        names: what `bad_files` calls each image; None: its path.
        skip_bad_files: leave out what can't be read, with a warning, instead of an error.
        bad_files: a CSV (file, reason) that unreadable images are added to.
        local_processes: how many share this machine's memory.

    Raises:
        ValueError: images can't be read; all of them are named in `bad_files`.
        OSError: the pixels fit neither the disk nor half of the free memory.
    """
    split = _Split(sources, preparation, title, names, skip_bad_files, bad_files, progress)
    need = len(sources) * int(np.prod(_image_shape(preparation)))
    mark = fingerprint(sources, preparation) if cache in ("auto", "disk") else None
    free = free_memory() / local_processes
    place, why = _choose(cache, need, torch.device(device), free)
    keep = place == "disk"
    keep |= cache == "auto" and max(need, mark.encoded_bytes) > WORTH_KEEPING
    folder = store_folder(mark.name) if keep else None
    size = f"{len(sources)} of {' x '.join(map(str, _image_shape(preparation)))}, {_bytes(need)}"
    kept_where = f"kept in {folder} (delete it to free the space)" if keep else "not kept on disk"
    logger.info(f"{title}: {size}; --cache {cache}: {place} ({why}), {kept_where}")

    pixels, bad = None, {}
    if keep:
        try:
            pixels, bad = _through_store(split, folder, mark.content)
            if place != "disk":
                pixels = pixels.clone() if place == "memory" else pixels.to(device)
        except OSError as error:
            if place == "disk" and need > MEMORY_SHARE * free:
                raise OSError(
                    f"{title}: the decoded images ({_bytes(need)}) can't be kept in {folder} "
                    f"({error}) and do not fit into half of the {_bytes(free)} of free memory: "
                    "free some disk space, point HF_HOME to a larger disk, lower --cache_size, or "
                    "decode at each access by --cache none"
                ) from error
            place = "memory" if place == "disk" else place
            logger.warning(f"can't write {folder} ({error}): {title} are decoded into {place} only")
    if pixels is None and place != "none":
        pixels, bad = _into_memory(split, device if place == "device" else "cpu")
    elif place == "none" and skip_bad_files:  # which ones are bad shows only when all are decoded
        bad = {i: str(result) for i, result in split.decode() if isinstance(result, ImageError)}
        split.report(bad)
    kept = torch.tensor([i for i in range(len(sources)) if i not in bad], dtype=torch.int64)
    return Images(
        torch.tensor(rows, dtype=torch.int64)[kept].to(device),
        None if labels is None else torch.tensor(labels, dtype=torch.int64)[kept].to(device),
        pixels,
        pixels is not None and place == "disk",
        *((sources, kept, preparation, Decoders()) if pixels is None else ()),
    )


@dataclass
class _Split:
    """What decoding and its complaints need to know; see `decode_once`."""

    sources: Sequence[Source]
    preparation: Preparation
    title: str
    names: Sequence[str] | None
    skip_bad_files: bool
    bad_files: Path | None
    progress: bool

    def decode(self) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """(index, pixels or what is wrong) in order, under a progress bar."""
        items = decode_all(self.sources, self.preparation)
        title, hidden = f"decode {self.title}", not self.progress
        yield from tqdm(items, title, len(self.sources), unit="img", delay=1, disable=hidden)

    def report(self, bad: dict[int, str]) -> None:
        """List unreadable images in the table, then warn of them or raise ValueError."""
        if not bad:
            return
        if self.bad_files is not None:
            _write_bad_files(self.bad_files, {self._name(i): reason for i, reason in bad.items()})
        reasons = [bad[i] for i in sorted(bad)]
        shown = "\n  ".join(reasons[:5] + ["..."] * (len(reasons) > 5))
        listed = f"; all are listed in {self.bad_files}" if self.bad_files is not None else ""
        message = (
            f"{self.title}: {len(bad)} of {len(self.sources)} images can't be read{listed}:\n"
            f"  {shown}\n"
        )
        if len(bad) == len(self.sources):
            raise ValueError(f"{message}None is left: check --data_dir or --dataset_name.")
        if not self.skip_bad_files:
            raise ValueError(
                f"{message}Repair or remove these files (and their rows in metadata.csv), or leave "
                "them out by --skip_bad_files, then start again."
            )
        logger.warning(
            f"{message}They are left out (--skip_bad_files); splits.json still names them."
        )

    def _name(self, index: int) -> str:
        source = self.sources[index] if self.names is None else self.names[index]
        if isinstance(source, dict):
            source = source.get("path")
        return str(index) if isinstance(source, bytes) or not source else os.fspath(source)


def _through_store(split: _Split, folder: Path, content: str):
    """(pixels mapped from the store, which is written first where it is not there; {index: what is
    wrong})"""
    sources, shape = split.sources, _image_shape(split.preparation)

    def usable(warn):
        found = read_store(folder, content, len(sources), shape, split.progress, warn)
        if found and found[1]:
            # a file may have failed for the moment (a lost network drive): then it is read again
            again = decode_all([sources[i] for i in found[1]], split.preparation)
            if any(not isinstance(result, ImageError) for _, result in again):
                logger.warning("images that could not be read before now can: decoding again")
                return None
            split.report(found[1])
        return found

    before = written_at(folder)
    found = usable(warn=True)
    if found is None:
        with locked(folder):
            others = written_at(folder) != before  # by another process in the meantime
            if not others:
                _require_space(folder, len(sources) * int(np.prod(shape)))
                split.report(
                    write_store(folder, content, shape, split.decode(), split.skip_bad_files)
                )
        # not while it is locked: each process reads all bytes, and they would do so in turn
        found = read_store(folder, content, len(sources), shape, split.progress)
        if found is None and others:
            return _through_store(split, folder, content)  # of other files, or damaged since
        if others:
            split.report(found[1])
        if found is None:
            raise OSError(f"{folder} does not give back what was written to it")
    return found


def _into_memory(split: _Split, device: torch.device | str):
    """(pixels of the readable images, {index: what is wrong})"""
    shape = (len(split.sources), *_image_shape(split.preparation))
    pixels = torch.empty(shape, dtype=torch.uint8, device=device)
    bad: dict[int, str] = {}
    count = 0
    for index, result in split.decode():
        if isinstance(result, ImageError):
            bad[index] = str(result)
        else:
            pixels[count] = torch.from_numpy(result)
            count += 1
    split.report(bad)
    return pixels[:count], bad


def _choose(cache, need, device, free) -> tuple[str, str]:
    """(device, memory, disk or none; why)"""
    gpu = device.type == "cuda"
    if cache == "device" and device.type == "cpu":
        return "memory", "the device is the CPU"
    if cache != "auto":
        return cache, "as asked"
    if gpu:
        on_device = torch.cuda.mem_get_info(device)[0]
        if need < DEVICE_SHARE * on_device:
            return "device", f"less than a quarter of its free {_bytes(on_device)}"
    if need < MEMORY_SHARE * free:
        return "memory", f"less than half of the free {_bytes(free)} a process"
    return "disk", f"more than half of the free {_bytes(free)} of memory a process"


def free_memory() -> int:
    """Bytes of the host that this process can still take; a container's or batch job's limit
    (control groups, version 2) counts, which `psutil` does not know of."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("0::/")[2].splitlines()[0]
        group = Path("/sys/fs/cgroup") / own
        for level in (group, *group.parents):
            limit = level / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()) != "max":
                used = int((level / "memory.current").read_text())
                stat = dict(line.split() for line in (level / "memory.stat").open())
                used -= int(stat["inactive_file"])  # copies of files, given up when needed
                free = min(free, int(text) - used)
    except (OSError, ValueError, IndexError, KeyError):
        pass  # no Linux, or no control groups
    return max(free, 0)


def _require_space(folder, need):
    import errno
    import shutil

    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{_bytes(need)} needed, {_bytes(free)} free")


def _write_bad_files(path, reasons):
    """Add to the table, each file once: training and validation images are decoded one after the
    other."""
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)} | reasons
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reason"])
        writer.writerows(reasons.items())
    os.replace(draft, path)


def _image_shape(preparation):
    return preparation.num_channels, *preparation.size


def _bytes(size):
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
