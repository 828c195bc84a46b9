"""Kills runs at random moments, resumes them, and compares the weights with an uninterrupted run's.

    python tests/stress/kills.py --kills 50 --output kills.csv

Each run is a child forked from this process, which has imported everything already: a kill then
falls into training, checkpointing, evaluation or saving, and seldom into the start. What a killed
run leaves is what the disk holds: SIGKILL can't be caught.
"""

import argparse
import csv
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sssd_hf.cli import finetune, pretrain

STAGES = {"pretrain": pretrain, "finetune": finetune}
OPTIONS = [
    *("--image_size", "32", "--patch_size", "8", "--config_overrides"),
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64,distillation_num_prototypes=32,"
    "distillation_head_hidden_size=16,distillation_bottleneck_size=8",
    *("--max_train_steps", "60", "--per_device_train_batch_size", "4"),
    *("--gradient_accumulation_steps", "2", "--learning_rate", "2e-3", "--logging_steps", "3"),
    *("--eval_epochs", "2", "--ema_decay", "0.95", "--checkpointing_steps", "2"),
]
OF_STAGE = {
    "pretrain": ["--distillation", "sd_mae", "--probe_epochs", "0"],
    "finetune": ["--drop_path_rate", "0.3", "--balanced_sampling", "true"],
}


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 29), ("val", 6)):
        for i in range(count):
            pixels = rng.uniform(0, 60, (36, 36))
            pixels[18 * (i % 2) :][:18] += 100
            path = root / split / ("up" if i % 3 else "down") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def start(stage: str, data: Path, output: Path, resume: bool) -> int:
    """Process number of a forked child that runs the script."""
    child = os.fork()
    if child:
        return child
    sink = os.open(output.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    argv = ["--data_dir", str(data), "--output_dir", str(output), *OPTIONS, *OF_STAGE[stage]]
    argv += ["--resume_from_checkpoint", "latest"] if resume else []
    status = 1
    try:
        status = STAGES[stage].main(argv)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int) -> int | None:
    """The exit status, negative for a signal; None where it still runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def finish(child: int, output: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while (status := status_of(child)) is None and time.monotonic() < end:
        time.sleep(0.01)
    if status != 0:
        raise RuntimeError(f"status {status}: {output.with_suffix('.log').read_text()}")


def kill_somewhere(child: int, output: Path, rng: random.Random, writing: bool) -> str | None:
    """Kill a run some time after a random step, where `writing` during the write of a checkpoint;
    says where that was, or None where the run had ended."""
    # beyond what the log has already, from before an earlier kill
    step, delay = rng.randint(min(logged(output) + 3, 60), 60), rng.uniform(0, 0.1)
    end = time.monotonic() + 300
    while logged(output) < step or (writing and not list(output.glob("checkpoints/.writing-*"))):
        status = status_of(child)
        if status == 0:
            return None
        if status is not None or time.monotonic() > end:
            raise RuntimeError(f"status {status}: {output.with_suffix('.log').read_text()}")
        time.sleep(0.0005 if writing else 0.005)
    if not writing:
        time.sleep(delay)
    status = status_of(child)
    if status is not None:
        return None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return describe(output)


def logged(output: Path) -> int:
    """The last step that the log has."""
    path = output / "metrics.jsonl"
    return path.read_text().count('"loss"') * 3 if path.exists() else 0


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def run_kills(kills: int, seed: int, folder: Path) -> list[dict]:
    """One row a killed run: where it was killed, and whether the resumed one ended as it should."""
    torch.set_num_threads(1)
    data, rng = folder / "data", random.Random(seed)
    write_images(data)
    expected = {}
    for stage in STAGES:
        output = folder / f"{stage}-whole"
        finish(start(stage, data, output, False), output)
        expected[stage] = digest(output)
    rows = []
    for number in range(kills):
        stage = sorted(STAGES)[number % 2]
        output = folder / f"{stage}-{number}"
        moments = []
        while not moments:  # a run that ended before it was killed does not count
            shutil.rmtree(output, ignore_errors=True)
            # every third is killed while a checkpoint is being written
            where = kill_somewhere(start(stage, data, output, False), output, rng, number % 3 == 0)
            moments += [where] if where else []
        child = start(stage, data, output, True)
        if number % 2:  # every second one is killed once more
            where = kill_somewhere(child, output, rng, False)
            moments += [where] if where else []
            child = start(stage, data, output, True)
        finish(child, output)
        same = digest(output) == expected[stage]
        left = sorted(p.name for p in output.rglob("*") if p.name.startswith(".writing"))
        rows.append(
            {
                "run": number,
                "stage": stage,
                "killed": "; ".join(moments),
                "weights": "identical" if same else "DIFFERENT",
                "left over": len(left),
            }
        )
        shutil.rmtree(output)
    return rows


def describe(output: Path) -> str:
    """What the killed run was at."""
    found = sorted(p.name for p in output.glob("checkpoints/step-*"))
    at = f"after step {logged(output)}"
    if list(output.glob("checkpoints/.writing-*")):
        at += ", writing a checkpoint"
    return f"{at} (newest checkpoint {int(found[-1][5:]) if found else 'none'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="A CSV file for the table.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_kills(arguments.kills, arguments.seed, Path(folder))
    files = [sys.stdout]
    if arguments.output:
        files.append(open(arguments.output, "w", newline=""))  # noqa: SIM115
    for file in files:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
    bad = sum(row["weights"] != "identical" for row in rows)
    print(f"{len(rows)} runs killed and resumed, {bad} with other weights")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
