"""How the cost of pretraining grows: with images, their size, the model, the batch, processes.

From one setting (tiny, 112 pixels, batch 64) one thing is changed at a time; each is a run of
scripts/pretrain.py for a fixed number of steps, images a second while training and the most memory
of the process. More images are the same ones repeated.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from files import phantom_folder
from measuring import REPOSITORY, options, write

BASE = {"images": 600, "image_size": 112, "model_size": "tiny", "batch": 64, "processes": 1}
CHANGES = {
    "images": (600, 5_000, 20_000, 100_000),
    "image_size": (64, 112, 224, 448),
    "model_size": ("tiny", "small", "base"),
    "batch": (16, 64, 256),
    "processes": (1, 2),
}


def run(data: Path, setting: dict, steps: int, threads: int, device: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        line = [str(REPOSITORY / "scripts/pretrain.py"), "--data_dir", str(data)]
        line += ["--output_dir", f"{folder}/out", "--split_column", "split"]
        line += ["--train_val_split", "0", "--eval_epochs", "0", "--max_train_steps", str(steps)]
        line += ["--logging_steps", "2"]
        line += ["--image_size", str(setting["image_size"]), "--model_size", setting["model_size"]]
        share = setting["batch"] // setting["processes"]
        line += ["--per_device_train_batch_size", str(share)]
        start = [sys.executable]
        if setting["processes"] > 1:
            start += ["-m", "torch.distributed.run", "--nproc_per_node", str(setting["processes"])]
        environment = {"PYTHONPATH": str(REPOSITORY / "src"), "HF_HOME": f"{folder}/home"}
        environment["OMP_NUM_THREADS"] = str(max(1, threads // setting["processes"]))
        if device == "cpu":
            environment["ACCELERATE_USE_CPU"] = "1"
        began = time.perf_counter()
        process = subprocess.Popen(
            [*start, *line],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak = {"megabytes": 0.0}
        watch = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watch.start()
        if process.wait():
            return {**setting, "failed": process.returncode}
        watch.join()
        seconds = time.perf_counter() - began
        records = Path(f"{folder}/out/metrics.jsonl").read_text().splitlines()
    # from the first record on: what the steps before it create, the others use
    records = [r for r in map(json.loads, records) if "images_per_second" in r]
    done = [r["step"] * setting["batch"] for r in records]
    spent = [images / r["images_per_second"] for images, r in zip(done, records)]
    rate = (done[-1] - done[0]) / (spent[-1] - spent[0])
    return {**setting, "images_per_second": rate, "seconds": seconds, **peak}


def _watch(process: subprocess.Popen, peak: dict) -> None:
    """The most resident memory of the process and its children together."""
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
            total = sum(p.memory_info().rss for p in family) / 2**20
        except psutil.NoSuchProcess:
            total = 0.0
        peak["megabytes"] = max(peak["megabytes"], total)
        time.sleep(0.2)


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv, steps=8, most_images=100_000)
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for name, values in CHANGES.items():
            for value in values[:2] if arguments.quick else values:
                setting = {**BASE, name: value}
                if setting["images"] > arguments.most_images:
                    continue
                data = phantom_folder(Path(home), setting["images"], 256)
                result = run(data, setting, arguments.steps, arguments.threads, arguments.device)
                print("growth", name, value, result, flush=True)
                found.setdefault(name, []).append(result)
    write("growth", arguments, found)


if __name__ == "__main__":
    main()
