"""Evaluation of a fine-tuned classifier on the test split.

`python scripts/evaluate.py --model_name_or_path runs/finetuned --data_dir FOLDER`. Writes
all_results.json (metrics with 95 % intervals) and predictions.csv into --output_dir. Where the data
name no split, the one that finetune.py cut (its splits.json) is used.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from ..data.sources import require_labels
from ..evaluation.intervals import bootstrap_intervals
from ..evaluation.metrics import classification_metrics, to_json
from ..modeling_sssd import SSSDForImageClassification
from . import common
from .batches import predict_probabilities
from .data import decode_split, groups_of, load_data, preparation_of, split_data
from .parsing import parse

logger = logging.getLogger("sssd_hf")


def warn_of_seen_images(splits: Path, dataset: Any, rows: list[int]) -> None:
    """Name the images of the test split that the model's own splits use for something else."""
    if not splits.is_file():
        return
    stored = json.loads(splits.read_text(encoding="utf-8"))
    known = {name for part in ("train", "validation") for name in stored.get(part, [])}
    seen = [name for name in dataset.select(rows)["file_name"][:] if name in known]
    if seen:
        logger.warning(
            f"{len(seen)} of the {len(rows)} test images, such as {seen[0]}, are named in {splits} "
            "as training or validation images: if they are the same, the figures are too good"
        )


def main(argv: list[str] | None = None) -> int:
    import pandas as pd

    data_arguments, arguments = parse("evaluate", __doc__, argv)
    common.check_checkpoint(arguments.model_name_or_path)
    model = SSSDForImageClassification.from_pretrained(arguments.model_name_or_path).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    size = tuple(n * p for n, p in zip(model.config.grid_size, model.encoder.embeddings.patch))
    preparation = preparation_of(model.config, size, data_arguments)
    if preparation != preparation_of(model.config, size):
        logger.warning(
            "--window, --resize_mode or --slice_axis differ from those the model was trained with "
            f"({preparation_of(model.config, size).to_dict()})"
        )
    dataset = load_data(data_arguments, preparation.slice_axis)
    names = require_labels(dataset)
    known = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if not set(names) <= set(known):
        raise ValueError(
            f"The data have the labels {', '.join(names)}; the model {arguments.model_name_or_path}"
            f" knows {', '.join(known)}. Evaluate on data with the model's labels."
        )
    splits = split_data(dataset, data_arguments, arguments.seed, arguments.model_name_or_path)
    rows = splits["test"]
    if not rows:
        raise ValueError(
            "There is no test split. Name one by --split_column and --test_split, or let "
            "finetune.py cut one (--train_test_split)."
        )
    warn_of_seen_images(Path(arguments.model_name_or_path) / "splits.json", dataset, rows)
    output = Path(arguments.output_dir)
    (output / "bad_files.csv").unlink(missing_ok=True)
    test = decode_split(
        dataset, rows, preparation, data_arguments, title="test images", output=output
    )
    rows = test.rows.tolist()  # without the files left out by --skip_bad_files
    statistics = common.read_statistics(arguments.model_name_or_path, model.config.num_channels)
    probabilities = predict_probabilities(
        model, test, statistics, arguments.per_device_eval_batch_size
    )
    labels = torch.tensor([known.index(names[i]) for i in test.labels]).numpy()
    groups = groups_of(dataset, rows, data_arguments.group_column_name)
    metrics = classification_metrics(labels, probabilities)
    intervals = bootstrap_intervals(
        labels, probabilities, groups, num_resamples=arguments.num_resamples, seed=arguments.seed
    )
    output.mkdir(parents=True, exist_ok=True)
    part = dataset.select(rows)
    table = pd.DataFrame({"file_name": part["file_name"][:], "label": [known[i] for i in labels]})
    for i, name in enumerate(known):
        table[f"probability_{name}"] = probabilities[:, i]
    table.to_csv(output / "predictions.csv", index=False)
    results = {
        **metrics,
        "intervals": intervals,
        "interval_method": "95 % percentile bootstrap of "
        + (f"groups ({data_arguments.group_column_name})" if groups is not None else "images"),
        "num_test_images": len(rows),
        "num_test_groups": None if groups is None else len(set(groups)),
        "split_column": data_arguments.split_column,
        "test_split": data_arguments.test_split or "test",
        "labels": known,
        "positive_label": known[1] if len(known) == 2 else None,
        "model_name_or_path": arguments.model_name_or_path,
        "versions": common.versions(),
    }
    common.write_json(output / "all_results.json", to_json(results))
    if groups is None:
        logger.warning(
            "no --group_column_name: the intervals are too narrow if patients have several images"
        )
    for name in ("accuracy", "balanced_accuracy", "roc_auc", "recall", "specificity"):
        low, high = intervals[name]
        print(f"{name:18s} {metrics[name]:.3f}  (95 % interval {low:.3f} to {high:.3f})")
    print(f"on {len(rows)} test images; written to {output}")
    return 0
