"""Fine-tuning: a classifier from a pretrained checkpoint (or from random weights).

`python scripts/finetune.py --model_name_or_path runs/pretrained --data_dir FOLDER`, or with
`accelerate launch`. The checkpoint is chosen on the validation split; the test split is never read.
Writes the checkpoint, metrics.jsonl, curves.png, splits.json, finetune_recipe.yaml and
all_results.json into --output_dir.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..configuration_sssd import SSSDConfig
from ..data.preparation import Preparation
from ..data.sources import require_labels
from ..evaluation.metrics import classification_metrics
from ..modeling_sssd import SSSDForImageClassification
from ..training.loop import Log, Stage, train
from . import common
from .arguments import ModelArguments, parse
from .runs import (
    augmentation_of,
    augmented_batch,
    config_options,
    finish_run,
    loop_settings,
    optimizer_and_schedule,
)

logger = logging.getLogger("sssd_hf")


def build_model(
    model: ModelArguments, training: Any, names: list[str]
) -> SSSDForImageClassification:
    options = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
        "drop_path_rate": training.drop_path_rate,
        "label_smoothing": training.label_smoothing,
        "pooling": training.pooling,
        **config_options(model),
    }
    name = model.model_name_or_path
    if name:
        loaded, info = SSSDForImageClassification.from_pretrained(
            name,
            revision=model.model_revision,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
        mismatched = sorted(key for key, *_ in info["mismatched_keys"])
        if not all(key.startswith("classifier.") for key in mismatched):
            raise ValueError(
                f"--model_name_or_path {name}: its weights have other shapes than the model asked "
                f"for, first {mismatched[0]}. Leave widths and the like as the checkpoint has them."
            )
        if mismatched:
            logger.info(f"{name} is a classifier of other classes: its head is replaced")
        return loaded
    options = {"image_size": 112, "num_channels": 1, **options}
    return SSSDForImageClassification(
        SSSDConfig.from_size(model.model_size, model.decoder, **options)
    )


class BestCheckpoint:
    """The weights (on the CPU) of the best evaluation so far, by one metric on validation."""

    def __init__(self, metric: str):
        self.metric = metric
        self.score: tuple[float, float] | None = None
        self.record: dict[str, float] = {}
        self.weights: dict[str, torch.Tensor] | None = None

    def offer(self, metrics: dict[str, float], step: int, model: torch.nn.Module) -> None:
        log_loss = metrics["eval_log_loss"]
        value = metrics[f"eval_{self.metric}"]
        if value != value:  # undefined, such as AUC with one class in validation
            value = 0.0
        # log loss decides between equals
        score = (-value if self.metric == "log_loss" else value, -log_loss)
        if self.score is None or score > self.score:
            self.score = score
            self.record = {"best_step": step, **{f"best_{k}": v for k, v in metrics.items()}}
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def main(argv: list[str] | None = None) -> int:
    arguments = parse("finetune", __doc__, argv)
    data_arguments, model_arguments, augmentation_arguments, training = arguments
    accelerator = common.start(training)
    output = Path(training.output_dir)
    common.check_checkpoint(model_arguments.model_name_or_path)
    dataset = common.load_data(data_arguments)
    names = require_labels(dataset)
    own = None if training.overwrite_output_dir else training.output_dir
    splits = common.split_data(
        dataset, data_arguments, training.seed, own, model_arguments.model_name_or_path
    )
    rows = common.choose_rows(splits["train"], data_arguments.max_train_samples, training.seed)
    model = build_model(model_arguments, training, names)
    config = model.config
    size = tuple(n * p for n, p in zip(config.grid_size, model.encoder.embeddings.patch))
    statistics = common.read_statistics(
        model_arguments.model_name_or_path, config.num_channels, model_arguments.model_revision
    )
    if accelerator.is_main_process:
        common.save_run(output, "finetune", arguments, dataset, splits, data_arguments)
        counts = ", ".join(f"{part} {len(part_rows)}" for part, part_rows in splits.items())
        logger.info(f"fine-tuning for {len(names)} classes ({', '.join(names)}); images: {counts}")
    preparation = Preparation(size, config.num_channels)
    working = replace(preparation, size=common.working_size(size, data_arguments.cache_size))
    images = common.decode_split(
        dataset, rows, working, data_arguments, accelerator, "training images", output
    )
    validation = None
    if splits["validation"]:
        validation = common.decode_split(
            dataset,
            splits["validation"],
            preparation,
            data_arguments,
            accelerator,
            "validation images",
            output,
        )
    elif training.metric_for_best_model != "last":
        logger.warning("no validation split: the last checkpoint is kept")

    settings = loop_settings(training, len(images), accelerator.num_processes)
    optimizer, scheduler, learning_rate = optimizer_and_schedule(
        model,
        training,
        settings,
        accelerator.num_processes,
        betas=(0.9, 0.999),
        layer_decay=training.layer_decay,
    )
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)
    augmentation = augmentation_of(augmentation_arguments)
    class_weights = torch.tensor(config.class_weights or [1.0] * len(names), dtype=torch.float32)
    class_weights = class_weights.to(accelerator.device)

    def make_batch(index: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        batch = augmented_batch(images, index, epoch, training.seed, augmentation, statistics, size)
        return {**batch, "labels": images.labels[index.to(images.labels.device)]}

    best = BestCheckpoint(training.metric_for_best_model)

    def evaluate(step: int) -> dict[str, float]:
        if validation is None:
            return {}
        probabilities = common.predict_probabilities(
            plain,
            validation,
            statistics,
            training.per_device_eval_batch_size,
            accelerator,
        )
        values = classification_metrics(validation.labels.cpu().numpy(), probabilities)
        metrics = {f"eval_{name}": value for name, value in values.items()}
        if training.metric_for_best_model != "last":
            best.offer(metrics, step, plain)
        return metrics

    stage = Stage(
        make_batch=make_batch,
        batch_weight=lambda batch: class_weights[batch["labels"]].sum(),
        log_values=lambda output: {},
        after_step=lambda step, sums: {},
        evaluate=evaluate,
    )
    log = Log(output / "metrics.jsonl" if accelerator.is_main_process else None)
    speed = train(accelerator, model, optimizer, scheduler, len(images), stage, settings, log)
    if not accelerator.is_main_process:
        return 0
    plain.eval()
    if best.weights is not None:
        plain.load_state_dict(best.weights)
    results = {
        "num_train_images": len(images),
        "learning_rate_peak": learning_rate,
        "chosen_by": training.metric_for_best_model if best.weights else "last",
        **best.record,
        **speed,
    }
    finish_run(output, plain, statistics, log, accelerator, results)
    return 0
