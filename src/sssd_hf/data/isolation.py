"""Decoding many images at once."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .images import ImageError
from .preparation import Preparation, Source, prepare_image


def decode_all(
    sources: Sequence[Source], preparation: Preparation, workers: int | None = None
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """(index, pixels or what is wrong with the file) for each source, in order of the sources.

    Args:
        workers: how many at a time; None: one a processor.
    """

    def work(i: int) -> tuple[int, np.ndarray | ImageError]:
        try:
            return i, prepare_image(sources[i], preparation)
        except ImageError as error:
            return i, error

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(work, range(len(sources)))
