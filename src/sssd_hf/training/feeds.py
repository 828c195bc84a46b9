"""Which images an optimiser step learns from: a pure function of the step, cut into the shares of
the processes and into part batches."""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from ..modeling_sssd import sample_uniform
from .seeding import epoch_order, image_seeds


def to_device(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`values` on the device; from the host through page-locked memory, so that nobody waits."""
    copied = torch.device(device).type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if copied else values.to(device)


@dataclass(frozen=True)
class Draw:
    """The images of one part batch.

    Args:
        index: (batch,) int64, which images; in a stream their positions.
        epoch: (batch,) int64, with the index and the seed what an image's randomness is drawn from.
            An image that balanced sampling repeats within an epoch has another number each time.
        pixels: (batch, channels, H, W) uint8 where they were read together with the indices.
        labels: (batch,) int64, likewise.
    """

    index: torch.Tensor
    epoch: torch.Tensor
    pixels: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def part(self, rows: slice) -> "Draw":
        fields = {name: getattr(self, name) for name in ("index", "epoch", "pixels", "labels")}
        return Draw(**{k: None if v is None else v[rows] for k, v in fields.items()})


@dataclass(frozen=True)
class StepDraws:
    """What one process computes in a step.

    Args:
        parts: its part batches, as many as the other processes have: all must meet in the
            reductions. Where images are wanting, the last one is computed on another process's
            image, with weight 0.
        real: for each part whether it counts.
        count: images of the step, over all processes.
        epoch: epochs done after the step.
    """

    parts: list[Draw]
    real: list[bool]
    count: int
    epoch: float


@dataclass
class ImageFeed:
    """Every image once an epoch (or, with `labels`, every class equally often), in an order that is
    a function of (seed, epoch).

    Args:
        num_images: images 0 ... num_images - 1.
        batch_size: of one process and one part batch.
        labels: (num_images,) int64 for balanced sampling, else None.
    """

    num_images: int
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0
    seed: int = 0
    labels: torch.Tensor | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self._epoch, self._order = -1, (torch.empty(0), torch.empty(0))
        if self.labels is not None:
            self.labels = self.labels.cpu()  # once: fetched in each epoch they would be waited for

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_images / self.global_batch)

    def global_draw(self, step: int) -> Draw:
        """The images of a step (0-based) over all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            if self.labels is None:
                order = epoch_order(self.seed, epoch, self.num_images)
                times = torch.full_like(order, epoch)
            else:
                order, times = balanced_order(self.seed, epoch, self.labels)
            self._order = to_device(order, self.device), to_device(times, self.device)
            self._epoch = epoch
        rows = slice(place * self.global_batch, (place + 1) * self.global_batch)
        return Draw(*(values[rows] for values in self._order))

    def step(self, step: int) -> StepDraws:
        whole = self.global_draw(step)
        sizes = [len(part) for part in torch.arange(len(whole)).tensor_split(self.processes)]
        start = sum(sizes[: self.rank])
        share = whole.part(slice(start, start + sizes[self.rank]))
        starts = range(0, sizes[0], self.batch_size)  # the first share is the largest
        real = [i < len(share) for i in starts]
        parts = [
            share.part(slice(i, i + self.batch_size)) if counts else whole.part(slice(0, 1))
            for i, counts in zip(starts, real)
        ]
        return StepDraws(parts, real, len(whole), (step + 1) / self.steps_per_epoch)

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        """Nothing to load: all is a function of the step."""

    def close(self) -> None:
        """Nothing to end."""


def balanced_order(
    seed: int, epoch: int, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As many images as there are, each class equally often: (index, epoch number) of each.

    A small class's images come round again, in a new order and with a new epoch number each time, a
    large class's are cut; which class gets what a division leaves over changes by epoch.
    """
    classes = labels.unique().tolist()
    share, left = divmod(len(labels), len(classes))
    index, times = [], []
    for place, label in enumerate(classes):
        members = (labels == label).nonzero()[:, 0]
        quota = share + ((place + epoch) % len(classes) < left)
        for repeat in range(math.ceil(quota / len(members))):
            number = epoch + (repeat << 32)
            draws = sample_uniform(image_seeds(seed, number, members, "order"), 0, 1)[:, 0]
            chosen = members[draws.argsort(stable=True)][: quota - repeat * len(members)]
            index.append(chosen)
            times.append(torch.full_like(chosen, number))
    order, numbers = torch.cat(index), torch.cat(times)
    mixed = sample_uniform(image_seeds(seed, numbers, order, "order"), 1, 1)[:, 0]
    mixed = mixed.argsort(stable=True)
    return order[mixed], numbers[mixed]


class StreamFeed:
    """The next images of a stream, in whatever order it gives them.

    Args:
        stream: this process's share; see `data.streams.ImageStream`.
        batch_size, accumulation: images of a part batch, and part batches of a step.
        steps_per_epoch: what options in epochs count, since a stream's length is not known.
    """

    num_images = None

    def __init__(self, stream, batch_size: int, accumulation: int, processes: int, epoch: int):
        self.stream, self.batch_size, self.accumulation = stream, batch_size, accumulation
        self.global_batch = batch_size * accumulation * processes
        self.steps_per_epoch = epoch
        self.recent: deque[tuple[int, torch.Tensor]] = deque(maxlen=1000)  # for messages

    def step(self, step: int) -> StepDraws:
        parts = []
        for _ in range(self.accumulation):
            read = self.stream.read(self.batch_size)
            parts.append(Draw(read.positions, read.epochs, read.pixels, read.labels))
        self.recent.append((step, torch.cat([part.index for part in parts])))
        epoch = float(parts[-1].epoch[-1])
        return StepDraws(parts, [True] * len(parts), self.global_batch, epoch)

    def global_draw(self, step: int) -> Draw:
        """This process's positions of a step lately read; none of one long ago."""
        index = dict(self.recent).get(step, torch.empty(0, dtype=torch.int64))
        return Draw(index, torch.zeros_like(index))

    def state(self) -> dict:
        return self.stream.state_dict()

    def load_state(self, state: dict) -> None:
        self.stream.load_state_dict(state)

    def close(self) -> None:
        self.stream.close()


class Ahead:
    """A feed whose pixels are fetched one step ahead, in a thread, where reading them takes time.

    Args:
        fetch: index (batch,) -> uint8 pixels.
    """

    def __init__(self, feed: ImageFeed, fetch: Callable[[torch.Tensor], torch.Tensor]):
        self.feed, self.fetch = feed, fetch
        self.pool = ThreadPoolExecutor(1)
        self.waiting: tuple[int, object] | None = None

    def __getattr__(self, name):
        return getattr(self.feed, name)

    def close(self) -> None:
        """Stop reading ahead."""
        self.pool.shutdown(cancel_futures=True)
        self.feed.close()

    def _read(self, step: int) -> StepDraws:
        draws = self.feed.step(step)
        parts = [replace(part, pixels=self.fetch(part.index)) for part in draws.parts]
        return replace(draws, parts=parts)

    def step(self, step: int) -> StepDraws:
        if self.waiting is None or self.waiting[0] != step:
            self.waiting = (step, self.pool.submit(self._read, step))
        draws = self.waiting[1].result()
        self.waiting = (step + 1, self.pool.submit(self._read, step + 1))
        return draws
