"""Fine-tuning: a classifier from a pretrained checkpoint (or from random weights).

`python scripts/finetune.py --model_name_or_path runs/pretrained --data_dir FOLDER`, or with
`accelerate launch`. The checkpoint is chosen on the validation split; the test split is never read.
Writes the checkpoint, metrics.jsonl, curves.png, splits.json, finetune_recipe.yaml and
all_results.json into --output_dir.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..configuration_sssd import SSSDConfig, as_pair
from ..data.audit import audit_summary
from ..data.sources import require_labels
from ..evaluation.calibration import SMALLEST, fit_calibration
from ..evaluation.metrics import classification_metrics
from ..modeling_sssd import SSSDForImageClassification
from ..training.checkpoints import gather, load_model
from ..training.log import Log
from ..training.loop import Stage
from . import common
from .arguments import ModelArguments
from .batches import Batches, augmentation_of, label_weights, mixing_of, predict_probabilities
from .data import (
    choose_rows,
    load_data,
    mark_preparation,
    preparation_of,
    split_data,
    stored_slice_axis,
    stream_label_names,
)
from .parsing import parse
from .runs import (
    EarlyStopping,
    config_options,
    finish_run,
    fit,
    loop_settings,
    names_of,
    open_images,
    whole_model,
)
from .uploads import start_uploads

logger = logging.getLogger("sssd_hf")


def class_weights_of(option: str, names: list[str], labels: list[int] | None) -> list[float] | None:
    """The weights that --class_weights asks for; balanced ones as scikit-learn's. A stream's
    `labels` are not known (None).

    Raises:
        ValueError: other than none, balanced, or a positive number a class.
    """
    if option == "none":
        return None
    if option == "balanced" and labels is None:
        raise ValueError(
            "--class_weights balanced: how frequent the classes of a stream are is not known: give "
            "one number a class instead."
        )
    counts = Counter(labels)
    if option == "balanced":
        missing = [name for i, name in enumerate(names) if not counts[i]]
        if missing:
            raise ValueError(
                f"--class_weights balanced: no training image has the label {missing[0]}; give one "
                "number a class instead, or mend the splits."
            )
        return [len(labels) / (len(names) * counts[i]) for i in range(len(names))]
    try:
        weights = [float(word) for word in option.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"--class_weights {option}: expected none, balanced, or {len(names)} positive numbers "
            f"by comma, for {', '.join(names)} in this order."
        )
    return weights


def build_model(
    model: ModelArguments, training: Any, names: list[str], class_weights: list[float] | None = None
) -> SSSDForImageClassification:
    options = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
        # what is frozen is not regularised
        "drop_path_rate": 0.0 if training.freeze_encoder else training.drop_path_rate,
        "label_smoothing": training.label_smoothing,
        "pooling": training.pooling,
        "class_weights": class_weights,  # None too: not those of the checkpoint's own training
        "calibration": None,
        **config_options(model),
    }
    name = model.model_name_or_path
    if name:
        loaded, info = SSSDForImageClassification.from_pretrained(
            name,
            revision=model.model_revision,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,  # the weights that are trained, whatever they were saved in
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


def warn_of_findings(dataset: Any, splits: dict[str, list[int]]) -> None:
    """What an audit finds without decoding an image; test files are compared, not looked at. Groups
    in several splits were named when the splits were made."""
    for finding in audit_summary(dataset, splits):
        if finding.severity != "note":
            shown = f" ({'; '.join(finding.examples[:2])})" if finding.examples else ""
            logger.warning(f"{finding.text}{shown} {finding.advice} All of it: scripts/audit.py.")


def calibrate(
    labels: np.ndarray, probabilities: np.ndarray, rule: str, fitted_on: str
) -> dict[str, Any] | None:
    """The config's `calibration`, from validation images; None, with a warning, where they can't
    say, which must not cost the trained model."""
    logits = np.log(probabilities.clip(SMALLEST))
    if probabilities.shape[1] != 2 and rule not in ("none", "youden"):  # youden is the default
        logger.warning(
            f"--threshold_rule {rule} is for two classes; of {probabilities.shape[1]} the most "
            "probable one is decided for"
        )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = fit_calibration(labels, logits, None if rule == "none" else rule, fitted_on)
        for warning in caught:
            logger.warning(str(warning.message))
    except ValueError as error:
        logger.warning(f"the model is not calibrated: {error}")
        return None
    return found


class BestCheckpoint:
    """The weights (on the CPU) of the best evaluation so far, by one metric on validation."""

    def __init__(self, metric: str):
        self.metric = metric
        self.score: tuple[float, float] | None = None
        self.record: dict[str, float] = {}
        self.weights: dict[str, torch.Tensor] = {}

    def score_of(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Higher is better; log loss decides between equals."""
        log_loss = metrics["eval_log_loss"]
        if self.metric in ("log_loss", "last"):
            return -log_loss, -log_loss
        value = metrics[f"eval_{self.metric}"]
        # undefined, such as AUC with one class in validation
        return 0.0 if value != value else value, -log_loss

    def offer(self, metrics: dict[str, float], step: int, model: torch.nn.Module) -> None:
        score = self.score_of(metrics)
        if self.metric != "last" and (self.score is None or score > self.score):
            self.score = score
            self.record = {"best_step": step, **{f"best_{k}": v for k, v in metrics.items()}}
            self.weights = {k: gather(v).clone() for k, v in model.state_dict().items()}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return self.weights, {"score": self.score, "record": self.record}

    def load_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        self.weights, self.record = tensors, values["record"]
        self.score = values["score"] and tuple(values["score"])


def main(argv: list[str] | None = None) -> int:
    arguments = parse("finetune", __doc__, argv)
    with common.started(arguments[-1], arguments[1].model_name_or_path) as accelerator:
        if accelerator is not None:
            run(arguments, accelerator)
    return 0


def run(arguments: tuple, accelerator: Accelerator) -> None:
    data_arguments, model_arguments, augmentation_arguments, training = arguments
    output = Path(training.output_dir)
    common.check_checkpoint(model_arguments.model_name_or_path)
    if data_arguments.streaming:
        dataset, splits, rows, labels = None, {}, [], None
        names = stream_label_names(data_arguments)
    else:
        axis = stored_slice_axis(model_arguments.model_name_or_path, model_arguments.model_revision)
        dataset = load_data(data_arguments, axis)
        names = require_labels(dataset)
        own = training.output_dir if training.resume_from_checkpoint else None
        splits = split_data(
            dataset, data_arguments, training.seed, own, model_arguments.model_name_or_path
        )
        rows = choose_rows(splits["train"], data_arguments.max_train_samples, training.seed)
        labels = dataset.select(rows)["label"][:]
    if training.balanced_sampling and training.class_weights == "balanced":
        raise ValueError(
            "--class_weights balanced with --balanced_sampling true: each makes up for rare "
            "classes, and together they do it twice; give one of them."
        )
    weights = class_weights_of(training.class_weights, names, labels)
    model = build_model(model_arguments, training, names, weights)
    if training.freeze_encoder:
        model.encoder.requires_grad_(False)
    config = model.config
    size = as_pair(config.image_size)
    statistics = common.read_statistics(
        model_arguments.model_name_or_path, config.num_channels, model_arguments.model_revision
    )
    if accelerator.is_main_process:
        common.save_run(output, "finetune", arguments, dataset, splits, data_arguments)
        counts = ", ".join(f"{part} {len(part_rows)}" for part, part_rows in splits.items())
        logger.info(
            f"fine-tuning for {len(names)} classes ({', '.join(names)}); "
            f"images: {counts or 'a stream'}"
        )
        if dataset is not None:
            warn_of_findings(dataset, splits)
    preparation = preparation_of(config, size, data_arguments)
    mark_preparation(config, preparation)
    images, validation, feed = open_images(
        dataset,
        splits,
        rows,
        preparation,
        data_arguments,
        training,
        accelerator,
        training.balanced_sampling,
        len(names),
    )
    if validation is None and training.metric_for_best_model != "last":
        logger.warning("no validation split: the last checkpoint is kept")
    settings = loop_settings(training, feed.steps_per_epoch)
    batches = Batches(
        images,
        size,
        training.seed,
        augmentation_of(augmentation_arguments),
        statistics,
        accelerator.device,
    )
    mixing = mixing_of(augmentation_arguments)
    class_weights = torch.tensor(config.class_weights or [1.0] * len(names), dtype=torch.float32)
    class_weights = class_weights.to(accelerator.device)

    best = BestCheckpoint(training.metric_for_best_model)
    stopping = EarlyStopping(training.early_stopping_patience, validation)

    make_batch = batches.augmented
    if mixing:
        make_batch = partial(batches.mixed, mixing=mixing, num_classes=len(names))

    def evaluate(step: int, heed_signals: Callable[[], None]) -> dict[str, float]:
        if validation is None:
            return {}
        batch_size = training.per_device_eval_batch_size
        probabilities = predict_probabilities(
            model, validation, statistics, batch_size, accelerator, heed_signals
        )
        values = classification_metrics(validation.labels.cpu().numpy(), probabilities)
        metrics = {f"eval_{name}": value for name, value in values.items()}
        best.offer(metrics, step, model)
        stopping.offer(best.score_of(metrics)[0])
        return metrics

    def state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors, values = best.state()
        return tensors, {"best": values, "stopping": stopping.state()}

    def load_state(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        best.load_state(tensors, values["best"])
        stopping.load_state(values["stopping"])

    stage = Stage(
        make_batch=make_batch,
        batch_weight=lambda batch: label_weights(batch["labels"], class_weights),
        log_values=lambda output: {},
        after_step=lambda step, sums: {},
        evaluate=evaluate,
        finished=stopping.finished,
        state=state,
        load_state=load_state,
        image_names=names_of(dataset, images),
    )
    log = Log(output / "metrics.jsonl" if accelerator.is_main_process else None)
    uploads = start_uploads(training, accelerator, model, statistics, settings.total_steps)
    results = fit(
        accelerator,
        model,
        feed,
        stage,
        settings,
        arguments,
        log,
        betas=(0.9, 0.999),
        layer_decay=training.layer_decay,
        uploads=uploads,
    )
    if best.weights:
        load_model(model, best.weights)
    calibration = None
    if validation is not None:
        probabilities = predict_probabilities(
            model, validation, statistics, training.per_device_eval_batch_size, accelerator
        )
        if accelerator.is_main_process:
            labels = validation.labels.cpu().numpy()
            fitted_on = f"{len(labels)} validation images"
            fitted_on += ", which also chose the checkpoint" if best.weights else ""
            calibration = calibrate(labels, probabilities, training.threshold_rule, fitted_on)
    model = whole_model(model)
    if not accelerator.is_main_process:
        return
    model.eval()
    model.config.calibration = calibration
    results = {
        "calibration": calibration,
        "num_train_images": feed.num_images,
        "chosen_by": training.metric_for_best_model if best.weights else "last",
        **best.record,
        **results,
    }
    finish_run(output, model, statistics, log, accelerator, results, uploads)
