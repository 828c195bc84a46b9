"""The whole way on generated chest phantoms: pretrain, fine-tune, evaluate, classify one image.

`python scripts/demo.py` (or `make demo`) writes everything into demo/.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from . import common, evaluate, finetune, pretrain
from .data import decode_split

RECIPE = Path(__file__).parents[3] / "recipes" / "demo.yaml"


def headline(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def score_thumbnails(data_dir: Path, finetuned: Path) -> dict[str, float]:
    """Ridge and nearest neighbour on 16 x 16 thumbnails: what no real method may fall below. They
    learn from training and validation images together."""
    import torch

    from ..data.preparation import Preparation
    from ..data.sources import load_images
    from ..data.splits import read_splits
    from ..evaluation.baselines import thumbnail_baselines

    dataset = load_images(data_dir)
    splits = read_splits(finetuned / "splits.json", dataset)
    values = []
    for rows in (splits["train"] + splits["validation"], splits["test"]):
        images = decode_split(dataset, rows, Preparation((64, 64), 1))
        values += [images.batch(torch.arange(len(images)), "cpu"), images.labels]
    return thumbnail_baselines(*values)


def classify_one(finetuned: Path, predictions: Path, data_dir: Path) -> str:
    """One test image through the stock pipeline, as a user would."""
    import csv

    from transformers import pipeline

    with open(predictions) as file:
        row = next(row for row in csv.DictReader(file) if row["label"] == "opacity")
    image = data_dir / row["file_name"]
    answer = pipeline("image-classification", model=str(finetuned))(str(image))
    shown = ", ".join(f"{a['label']} {100 * a['score']:.0f} %" for a in answer)
    return f"{image} (in truth: {row['label']}): {shown}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="demo", help="Where everything goes.")
    parser.add_argument("--num_patients", type=int, default=280, help="Phantoms, 4 slices each.")
    parser.add_argument("--max_train_steps", type=int, help="Shorten both trainings (for a trial).")
    arguments = parser.parse_args(argv)
    from ..data.phantom import write_phantoms

    started = time.perf_counter()
    output = Path(arguments.output_dir)
    data_dir = output / "data"
    pretrained, finetuned, evaluation = (
        output / name for name in ("pretrained", "finetuned", "evaluation")
    )
    steps = ["--max_train_steps", str(arguments.max_train_steps)] * bool(arguments.max_train_steps)
    options = ["--recipe", str(RECIPE), "--data_dir", str(data_dir)]
    overwrite = ["--overwrite_output_dir", "true"]

    headline(1, f"generating slices of {arguments.num_patients} chest phantoms")
    write_phantoms(data_dir, num_patients=arguments.num_patients)
    headline(2, "pretraining with self-distillation on the training patients, without labels")
    pretrain.main([*options, *steps, *overwrite, "--output_dir", str(pretrained)])
    headline(3, "fine-tuning a classifier; the checkpoint is chosen on validation patients")
    start = ["--model_name_or_path", str(pretrained), "--output_dir", str(finetuned)]
    finetune.main([*options, *steps, *overwrite, *start])
    headline(4, "evaluating on held-out patients")
    start = ["--model_name_or_path", str(finetuned), "--output_dir", str(evaluation)]
    evaluate.main([*options, *start])
    headline(5, "classifying one held-out slice with the stock pipeline")
    answer = classify_one(finetuned, evaluation / "predictions.csv", data_dir)
    print(answer)

    baselines = score_thumbnails(data_dir, finetuned)
    pretraining = json.loads((pretrained / "all_results.json").read_text())
    results = json.loads((evaluation / "all_results.json").read_text())
    shutil.copyfile(pretrained / "reconstructions.png", output / "reconstructions.png")
    shutil.copyfile(pretrained / "curves.png", output / "curves.png")
    minutes = (time.perf_counter() - started) / 60
    summary = {
        "accuracy": results["accuracy"],
        "accuracy_interval": results["intervals"]["accuracy"],
        "roc_auc": results["roc_auc"],
        "roc_auc_interval": results["intervals"]["roc_auc"],
        "thumbnail_baselines": baselines,
        "eval_reconstruction_ratio": pretraining["eval_reconstruction_ratio"],
        "pretrain_images_per_second": pretraining["train_images_per_second"],
        "num_test_images": results["num_test_images"],
        "num_test_patients": results["num_test_groups"],
        "minutes": minutes,
    }
    common.write_json(output / "all_results.json", summary)
    low, high = (100 * value for value in summary["accuracy_interval"])
    print(f"""
What was made, in {minutes:.1f} minutes:
  {finetuned}/ holds a classifier that Hugging Face programs load;
  {pretrained}/ the encoder and decoder it came from;
  {evaluation}/report.html tells how good it is, in words and figures: open it in a browser;
  {output}/reconstructions.png and {output}/curves.png show what was learned, and how.

How good it is: {100 * results["accuracy"]:.1f} % of {results["num_test_images"]} slices of \
{results["num_test_groups"]} patients it never saw are classified
  correctly (95 % interval over patients: {low:.1f} to {high:.1f} %). Tiny thumbnails with ridge
  regression reach {100 * baselines["ridge_accuracy"]:.1f} %, with the nearest neighbour \
{100 * baselines["nearest_neighbor_accuracy"]:.1f} %. Its error on hidden patches is
  {100 * summary["eval_reconstruction_ratio"]:.0f} % of that of guessing each patch's mean.

These are drawings, not patients: the figure says that the software works, nothing about medicine.

Next, on your own images, a folder with metadata.csv (file_name, label, patient_id):
  .venv/bin/python scripts/pretrain.py --recipe recipes/own_images_cpu.yaml \\
      --data_dir MY_IMAGES --output_dir runs/pretrained
  .venv/bin/python scripts/finetune.py --recipe recipes/own_images_cpu.yaml \\
      --data_dir MY_IMAGES --model_name_or_path runs/pretrained --output_dir runs/finetuned
  .venv/bin/python scripts/evaluate.py --recipe recipes/own_images_cpu.yaml \\
      --data_dir MY_IMAGES --model_name_or_path runs/finetuned
README.md tells more, also of folders without such a table.""")
    return 0
