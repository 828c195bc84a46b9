"""Images a second that each cache setting starts with and gives out, on one core.

`python benchmarks/caches.py --data_dir FOLDER`. "cold" drops the files from the system's page cache
first (Linux). The store on disk is written into a temporary folder.
"""

import argparse
import os
import tempfile
import time

import torch
from huggingface_hub import constants

from sssd_hf.data.cache import CACHES, decode_once
from sssd_hf.data.preparation import Preparation
from sssd_hf.data.sources import load_images


def drop(paths):
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(function):
    """(seconds, of them on the processor, result)"""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - processor, result


def measure(cache, sources, options):
    """What is measured -> (seconds, of them on the processor)"""
    preparation = Preparation((options.size, options.size), 1)
    rows = list(range(len(sources)))

    def start():
        return decode_once(
            sources, preparation, rows, cache=cache, device=options.device, progress=False
        )

    def one_epoch():
        for index in torch.randperm(len(sources)).split(options.batch_size):
            images.batch(index, options.device)
        if options.device == "cuda":
            torch.cuda.synchronize()

    times = {}
    with tempfile.TemporaryDirectory() as home:
        constants.HF_HOME = os.path.join(home, "first")
        drop([source["path"] for source in sources])
        *times["cold"], images = timed(start)
        *times["again"], images = timed(start)
        constants.HF_HOME = os.path.join(home, "second")
        *times["warm"], images = timed(start)
        one_epoch()
        *times["batch"], _ = timed(one_epoch)
    return {"batch": times["batch"]} if cache == "none" else times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--size", type=int, default=140)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    sources = load_images(options.data_dir)["image"][:]
    print(
        f"{len(sources)} images at {options.size} px on {options.device}; images/s, best of", end=""
    )
    print(f" {options.repeats}, by the clock (by processor time)")
    print(
        f"{'cache':8s}{'start, cold':>20s}{'start, warm':>20s}{'start again':>20s}{'batch()':>24s}"
    )
    for cache in CACHES[1:]:
        best = {}
        for _ in range(options.repeats):
            for name, times in measure(cache, sources, options).items():
                best[name] = [min(pair) for pair in zip(times, best.get(name, times))]
        row = [f"{cache:8s}"]
        for name in ("cold", "warm", "again", "batch"):
            rates = (f"{len(sources) / seconds:,.0f}" for seconds in best.get(name, ()))
            text = "{} ({})".format(*rates) if name in best else "-"
            row.append(text.rjust(24 if name == "batch" else 20))
        print("".join(row), flush=True)


if __name__ == "__main__":
    main()
