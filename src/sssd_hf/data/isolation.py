"""Opening many files at once, each in a child process.

Files from outside are hostile, and the decoders for them are C code with a history. So none is
decoded in this process: a file that crashes its decoder, hangs or fills the memory costs that file
only, and the child is replaced. On Linux a child's address space is limited; on macOS and Windows
time alone is.
"""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from .facts import check_facts
from .files import ImageError, Source, source_name
from .messages import read_message, write_message
from .preparation import Preparation

TIME_LIMIT = 60.0  # seconds for one image
MEMORY_LIMIT = 4 * 2**30  # bytes of a child: the largest allowed volume or image, and its copies
MAX_WORKERS = 32
_RUN = 16  # images that one child takes in a row; of a volume all slices: it reads the file once


def decode_all(
    sources: Sequence[Source],
    preparation: Preparation,
    workers: int | None = None,
    *,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    keep: "Decoders | None" = None,
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """(index, pixels or what is wrong with the file) for each source, in order of the sources.

    Args:
        sources: see `sources.image_sources`.
        workers: child processes; None: one a processor that this process may use.
        time_limit: seconds for one image.
        memory_limit: bytes of address space of a child (Linux).
        keep: takes the children from here and gives them back, for a caller that decodes batch
            after batch: starting one takes longer than decoding many images. None: they end with
            this call.

    Returns:
        Pixels are (channels, height, width) uint8, see `prepare_image`.

    Raises:
        OSError: no child process can be started.
    """
    request, read_pixels, limits = _pixel_request(preparation, time_limit, memory_limit)
    return _ask_all(sources, request, read_pixels, workers, limits, keep)


def inspect_all(
    sources: Sequence[Source],
    preparation: Preparation,
    workers: int | None = None,
    *,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[int, tuple[dict[str, Any], np.ndarray] | ImageError]]:
    """As `decode_all`, but (`facts.read_facts`, pixels) for each source that can be read; it is
    decoded once for both."""
    request, read_pixels, limits = _pixel_request(preparation, time_limit, memory_limit)

    def read_answer(values: dict, data: bytes) -> tuple[dict, np.ndarray]:
        return check_facts(values["facts"]), read_pixels(values, data)

    return _ask_all(sources, {**request, "facts": True}, read_answer, workers, limits)


def describe_all(
    sources: Sequence[Source],
    slice_axis: str = "axial",
    workers: int | None = None,
    *,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[int, dict[str, Any] | ImageError]]:
    """(index, `volumes.describe` or what is wrong with the file) for each source, in order."""

    def read_answer(values: dict, data: bytes) -> dict:
        result = values["result"]
        return {key: result[key] for key in ("frames", "group", "group_from")}

    limits = (time_limit, memory_limit, 0)
    return _ask_all(sources, {"slice_axis": slice_axis}, read_answer, workers, limits)


def available_processors() -> int:
    """Those this process may run on, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoders:
    """Child processes that outlive a call of `decode_all`. They end when this object does, with
    `close`, and with this process, however it ends. Several threads may use it at once. In a forked
    process it starts children of its own."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self.close = weakref.finalize(self, _close_all, self._idle)  # called at exit, too

    def take(self, count: int, limits: tuple[float, int, int]) -> "list[_Child]":
        children = []
        while len(children) < count:
            try:
                child = self._idle.pop()
            except IndexError:
                child = _Child(*limits)
            if (child.time_limit, child.memory_limit) != limits[:2]:  # set when it started
                child.close()
                continue
            child.max_data = limits[2]
            children.append(child)
        return children

    def give_back(self, children: "list[_Child]") -> None:
        self._idle.extend(children)
        if not self.close.alive:  # closed in the meantime
            _close_all(self._idle)


def _close_all(children):
    while children:
        children.pop().close()


def _pixel_request(preparation, time_limit, memory_limit):
    """What a child is asked for pixels, how its answer is read, and its limits."""
    shape = (preparation.num_channels, *preparation.size)
    request = {
        "preparation": preparation.to_dict(),
        "size": preparation.size,
        "num_channels": preparation.num_channels,
    }

    def read_pixels(values: dict, data: bytes) -> np.ndarray:
        if tuple(values["shape"]) != shape or len(data) != np.prod(shape):
            raise ValueError("pixels of another shape")
        return np.frombuffer(bytearray(data), np.uint8).reshape(shape)  # bytearray: writable

    return request, read_pixels, (time_limit, memory_limit, int(np.prod(shape)))


def _ask_all(sources, request, read_answer, workers, limits, keep=None):
    """The answers to `request` about each source, in order; few are computed ahead."""
    workers = workers or min(available_processors(), MAX_WORKERS)
    runs = list(_runs(sources, workers))
    count = max(1, min(workers, len(runs)))
    children = keep.take(count, limits) if keep else [_Child(*limits) for _ in range(count)]
    idle: SimpleQueue[_Child] = SimpleQueue()
    for child in children:
        idle.put(child)

    fatal: dict[Any, ImageError] = {}  # volumes that ended a child: their other slices would too

    def work(run: range) -> list:
        child = idle.get()
        try:
            return [ask(child, sources[i]) for i in run]
        finally:
            idle.put(child)

    def ask(child: _Child, source: Source) -> Any:
        volume = _volume(source)
        if volume in fatal:
            return fatal[volume]
        result = child.ask(source, request, read_answer)
        if volume is not None and child.process is None:
            fatal[volume] = result
        return result

    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(children, stop), daemon=True)
    watch.start()
    pool = ThreadPoolExecutor(count)
    finished = False
    try:
        ahead: deque = deque()
        for run in runs:
            ahead.append((run, pool.submit(work, run)))
            if len(ahead) > 2 * count:
                done, future = ahead.popleft()
                yield from zip(done, future.result())
        for done, future in ahead:
            yield from zip(done, future.result())
        finished = True
    finally:  # also where the caller stops early: a child may be busy then, and is not kept
        pool.shutdown(wait=False, cancel_futures=True)
        stop.set()
        if not (keep and finished):
            _close_all(children)
        pool.shutdown()
        watch.join()
        if keep:
            keep.give_back(children)


def _runs(sources, workers):
    """Ranges of at most _RUN consecutive sources; those of different volumes are not mixed. Of
    images that are no slices each worker gets some, also where a batch has few."""
    for volume, group in groupby(range(len(sources)), lambda i: _volume(sources[i])):
        indices = list(group)
        share = max(1, min(_RUN, math.ceil(len(indices) / workers)))
        length = len(indices) if volume else share
        for start in range(0, len(indices), length):
            yield range(indices[start], indices[min(start + length, len(indices)) - 1] + 1)


def _volume(source):
    """The path of the volume that a source is a slice of; None for what is no slice."""
    has_slices = isinstance(source, dict) and source.get("frame") is not None
    return source.get("path") if has_slices else None


def _watch(children, stop):
    while not stop.wait(0.1):
        for child in children:
            child.end_if_late()


_CHILDREN: "weakref.WeakSet[_Child]" = weakref.WeakSet()


def child_environment() -> dict[str, str]:
    """Ours without what looks like a secret, which a hostile file must not get at."""
    secret = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not secret.search(name)}
    # a thread for each processor would cost address space, and time with many children
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Child:
    """A process that opens files, started when it is first needed and again after it died."""

    def __init__(self, time_limit: float, memory_limit: int, max_data: int):
        self.time_limit, self.memory_limit, self.max_data = time_limit, memory_limit, max_data
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()
        self.deadline = float("inf")
        self.late = self.closed = False
        _CHILDREN.add(self)

    def ask(self, source: Source, request: dict, read_answer: Callable) -> Any:
        """The answer, or an ImageError."""
        place, data = _split(source)
        try:
            process = self._running()
            self.late, self.deadline = False, time.monotonic() + self.time_limit
            write_message(process.stdin, {**request, "source": place}, data)
            message = read_message(process.stdout, self.max_data)
            self.deadline = float("inf")
            if message is not None:
                values, pixels = message
                if "error" in values:
                    return ImageError(str(values["error"]))
                return read_answer(values, pixels)
            why = None
        except (BrokenPipeError, ConnectionResetError):
            why = None
        except (ValueError, KeyError, TypeError) as error:  # not what our code answers
            why = f"the process that read it gave a wrong answer ({error})"
        finally:
            self.deadline = float("inf")
        why = self._end() if why is None else (self._end(), why)[1]
        return ImageError(
            f"{source_name(source)}: {why}: the file is damaged, hostile or too much for its "
            "decoder; copy it again, save it anew or remove it"
        )

    def end_if_late(self) -> None:
        with self.lock:
            if self.process is not None and time.monotonic() > self.deadline:
                self.late = True
                self.process.kill()

    def close(self) -> None:
        with self.lock:
            self.closed = True
            if self.process is not None:
                self.process.kill()
        # the thread that asks, if one does, reads the end of the stream now
        self._end()

    def leave_to_parent(self) -> None:
        """In a forked process: the child is the parent's, and must see the end of its input when
        that dies. Should this object be used here, it starts a process of its own."""
        process, self.process, self.lock = self.process, None, threading.Lock()
        if process is not None:
            process.returncode = 0  # not for this process to wait for
            for pipe in (process.stdin, process.stdout):
                pipe.raw.close()  # without sending what a thread may have begun to write

    def _running(self):
        with self.lock:
            if self.process is not None:
                return self.process
            if self.closed:
                raise BrokenPipeError
            script = Path(__file__).with_name("worker.py")
            # a little later than the parent's: see worker.restart_clock
            limits = [str(self.time_limit + 5), str(self.memory_limit)]
            self.process = subprocess.Popen(
                # -P: the names of our files hide nobody's modules
                [sys.executable, "-P", str(script), *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs write there; it may quote the file
                env=child_environment(),
            )
        self.deadline = time.monotonic() + 60  # of starting, on a slow disk
        if read_message(self.process.stdout) is None and not self.closed:
            raise OSError(
                f"the process that opens image files does not start ({self._end()}): "
                f"{sys.executable} {script} {' '.join(limits)} < /dev/null shows why"
            )
        return self.process

    def _end(self) -> str:
        """End the process, and say what had happened to it."""
        with self.lock:
            process, self.process = self.process, None
        if process is None:
            return "was not read, for reading was stopped"
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not yet sent to the dead
                pipe.close()
        if self.late:
            return f"was not read within {self.time_limit:g} seconds"
        if code < 0:
            names = {s.value: s.name for s in signal.Signals}
            return f"the process that read it died ({names.get(-code, f'signal {-code}')})"
        return f"the process that read it ended (exit status {code})"


def _leave_to_parent():
    for child in list(_CHILDREN):
        child.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _split(source):
    """What is sent as JSON and what as bytes."""
    if isinstance(source, dict):
        data = source.get("bytes")
        path, frame = source.get("path"), source.get("frame")
        place = {"path": None if path is None else os.fspath(path)}
        return (place if frame is None else {**place, "frame": int(frame)}), data or b""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return {}, source
    return {"path": os.fspath(source)}, b""
