"""The same run on 1, 2 and 4 processes, and in accumulated part batches: how far apart?

    python tests/stress/invariance.py --output invariance.csv

Real processes (gloo on the CPU), 30 steps of a global batch of 8 of 29 images, so that the last
batch of an epoch is uneven; every augmentation, drop path, mixup, cutmix and class weights are on.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from kills import write_images

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli.common import cpu_has_bf16

REPOSITORY = Path(__file__).parents[2]
STEPS = 30
COMMON = [
    *("--image_size", "32", "--patch_size", "8", "--config_overrides"),
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64,distillation_num_prototypes=32,"
    "distillation_head_hidden_size=16,distillation_bottleneck_size=8",
    *("--max_train_steps", str(STEPS), "--logging_steps", "1", "--eval_epochs", "2"),
    *("--learning_rate", "2e-3", "--max_grad_norm", "1", "--ema_decay", "0.9"),
    *("--rotation", "15", "--shear", "5", "--translation", "0.05", "--gamma", "0.2"),
    *("--brightness", "0.1", "--contrast", "0.2", "--noise", "0.02", "--erasing", "0.3"),
    *("--max_crop_scale", "1.3", "--vertical_flip", "0.5", "--blur", "0.5"),
]
STAGES = {
    "pretrain": (["--distillation", "sd_mae", "--probe_epochs", "0"], SSSDForPreTraining),
    "finetune": (
        [
            *("--drop_path_rate", "0.3", "--mixup_alpha", "0.4", "--cutmix_alpha", "1"),
            *("--class_weights", "balanced", "--metric_for_best_model", "last"),
        ],
        SSSDForImageClassification,
    ),
}
# processes, images of a process and part batch, part batches
SHARES = [(1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 2, 2), (4, 2, 1)]


def run(stage: str, share: tuple, precision: str, data: Path, output: Path) -> list[dict]:
    """The records of metrics.jsonl."""
    processes, batch, parts = share
    line = [sys.executable]
    if processes > 1:
        line += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        line += ["--num_processes", str(processes), "--main_process_port", "0"]
        line += ["--mixed_precision", precision, "--dynamo_backend", "no"]
    line += [str(REPOSITORY / "scripts" / f"{stage}.py"), "--data_dir", str(data)]
    line += ["--output_dir", str(output), "--mixed_precision", precision, *COMMON]
    line += STAGES[stage][0]
    line += ["--per_device_train_batch_size", str(batch)]
    line += ["--gradient_accumulation_steps", str(parts)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    assert json.loads((output / "all_results.json").read_text())["num_processes"] == processes
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


def outputs(stage: str, folder: Path) -> torch.Tensor:
    """Of the final weights, on a fixed batch."""
    model = STAGES[stage][1].from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 1, 32, 32, generator=generator)
    noise = {"noise": torch.rand(4, 16, generator=generator)} if stage == "pretrain" else {}
    with torch.no_grad():
        return model(pixels, **noise).logits


def compare(folder: Path, precision: str = "no", shares=SHARES) -> list[dict]:
    """One row a share: the largest relative difference of a step's loss to one process with the
    whole batch, and the largest difference of outputs afterwards."""
    data = folder / "data"
    write_images(data)
    rows = []
    for stage in STAGES:
        losses = {}
        for share in shares:
            name = f"{stage}-{precision}-{'x'.join(map(str, share))}"
            records = run(stage, share, precision, data, folder / name)
            losses[share] = [r["loss"] for r in records if "loss" in r], folder / name
            assert len(losses[share][0]) == STEPS
            expected, whole = losses[shares[0]]
            apart = max(abs(a - b) / abs(b) for a, b in zip(losses[share][0], expected))
            difference = outputs(stage, folder / name) - outputs(stage, whole)
            rows.append(
                {
                    "stage": stage,
                    "precision": "fp32" if precision == "no" else precision,
                    "processes": share[0],
                    "batch x parts": f"{share[1]} x {share[2]}",
                    "loss, largest relative difference": f"{apart:.1e}",
                    "outputs, largest difference": f"{difference.abs().max().item():.1e}",
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="A CSV file for the table.")
    arguments = parser.parse_args()
    rows = []
    for precision in ("no", "bf16") if cpu_has_bf16() else ("no",):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(Path(folder), precision)
    if arguments.output:
        with open(arguments.output, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    bad = [
        row
        for row in rows
        if row["precision"] == "fp32"
        and (
            float(row["loss, largest relative difference"]) > 1e-5
            or float(row["outputs, largest difference"]) > 1e-4
        )
    ]
    print(f"{len(rows)} runs, {len(bad)} of those in fp32 too far apart")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
