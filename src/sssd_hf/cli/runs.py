"""What pretraining and fine-tuning share: options to objects, batches, the end of a run."""

import logging
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..configuration_sssd import SSSDConfig
from ..data.cache import Images
from ..data.preparation import Preparation
from ..evaluation.metrics import to_json
from ..hub.cards import CardOptions, write_card
from ..training.averaging import WeightAverage
from ..training.checkpoints import Checkpoints, gather
from ..training.feeds import Ahead, ImageFeed, StreamFeed
from ..training.log import Log
from ..training.loop import LoopSettings, Stage, train
from ..training.optimization import cosine_with_warmup, parameter_groups, step_in_backward
from .arguments import DataArguments, ModelArguments, TrainingArguments
from .common import hardware, save_checkpoint, versions, write_json
from .data import decode_split, hold_out, load_stream, working_size
from .parsing import as_dict
from .uploads import RunUploads

logger = logging.getLogger("sssd_hf")


def config_options(model: ModelArguments) -> dict[str, Any]:
    """The fields of the config that the user gave."""
    options = {
        name: getattr(model, name)
        for name in ("image_size", "patch_size", "num_channels")
        if getattr(model, name) is not None
    }
    # commas in brackets belong to a value, such as class_weights=[1,2]
    for pair in filter(None, re.split(r",(?![^\[]*\])", model.config_overrides or "")):
        name, equals, value = pair.partition("=")
        if not equals or name.strip() not in SSSDConfig().to_dict():
            raise ValueError(
                f"--config_overrides: {pair!r}; expected name=value with a field of SSSDConfig."
            )
        options[name.strip()] = _value(value)
    return options


def _value(text: str) -> Any:
    """As YAML has it, and 1e-5 a number: YAML 1.1 asks for a point and a sign in it."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def peak_learning_rate(training: TrainingArguments, global_batch: int, default: float) -> float:
    if training.base_learning_rate is not None:
        return training.base_learning_rate * global_batch / 256
    return default if training.learning_rate is None else training.learning_rate


def open_images(
    dataset: Any | None,
    splits: dict[str, list[int]],
    rows: list[int],
    preparation: Preparation,
    data: DataArguments,
    training: TrainingArguments,
    accelerator: Accelerator,
    balanced: bool = False,
    num_classes: int | None = None,
) -> tuple[Images | None, Images | None, ImageFeed | Ahead | StreamFeed]:
    """(training images, held-out images, what a step learns from); without a `dataset` the options
    name a stream, of which there are no training images at hand.

    Args:
        balanced: show every class equally often.
        num_classes: that a stream's labels may have.

    Raises:
        ValueError: an option that a stream needs is missing, or does not go with one.
    """
    working = replace(preparation, size=working_size(preparation.size, data.cache_size))
    batch, parts = training.per_device_train_batch_size, training.gradient_accumulation_steps
    processes, rank = accelerator.num_processes, accelerator.process_index
    if dataset is None:
        if training.max_train_steps is None:
            raise ValueError("--streaming needs --max_train_steps: a stream's length is not known.")
        if data.max_train_samples is not None:
            raise ValueError("--max_train_samples does not go with --streaming: leave it out.")
        if balanced:
            raise ValueError(
                "--balanced_sampling does not go with --streaming, which reads images as they "
                "come: give --class_weights one number a class instead."
            )
        stream = load_stream(data, working, training.seed, accelerator, num_classes)
        logger.info(
            "a stream: an image's randomness is drawn from its position in the stream, which "
            "depends on the number of processes; mixup stays within a process's batch"
        )
        feed = StreamFeed(stream, batch, parts, processes, training.eval_steps or 1000)
        return None, hold_out(data, preparation, accelerator.device, num_classes), feed
    output = Path(training.output_dir)
    images = decode_split(dataset, rows, working, data, accelerator, "training images", output)
    held_out = None
    if splits["validation"]:
        title = "held-out images"
        held_out = decode_split(
            dataset, splits["validation"], preparation, data, accelerator, title, output
        )
    labels = images.labels if balanced else None
    # indices are drawn where the pixels lie: the host would wait to fetch them from the accelerator
    place = "cpu" if images.pixels is None else images.pixels.device
    feed = ImageFeed(len(images), batch, parts, processes, rank, training.seed, labels, place)
    if images.slow:
        feed = Ahead(feed, lambda index: images.batch(index, "cpu"))
    return images, held_out, feed


def names_of(dataset: Any | None, images: Images | None) -> Callable[[list[int]], list[str]]:
    """From indices that a feed draws to names for messages."""
    if dataset is None:
        return lambda index: [f"position {i}" for i in index]
    return lambda index: dataset.select(images.rows[index].tolist())["file_name"][:]


def loop_settings(training: TrainingArguments, per_epoch: int) -> LoopSettings:
    total_steps = training.max_train_steps or max(1, round(training.num_train_epochs * per_epoch))
    eval_steps = training.eval_steps or 0
    if not eval_steps and training.eval_epochs:
        eval_steps = max(1, round(training.eval_epochs * per_epoch))
    return LoopSettings(total_steps, training.max_grad_norm, training.logging_steps, eval_steps)


def warmup_steps(training: TrainingArguments, settings: LoopSettings, per_epoch: int) -> int:
    if training.num_warmup_steps is not None:
        return training.num_warmup_steps
    if training.num_warmup_epochs is not None:
        return round(training.num_warmup_epochs * per_epoch)
    return round(training.warmup_ratio * settings.total_steps)


class EarlyStopping:
    """Whether a score has not got better for `patience` evaluations; 0: never.

    Raises:
        ValueError: there are no images to evaluate on.
    """

    def __init__(self, patience: int, held_out: Images | None):
        if patience and held_out is None:
            raise ValueError(
                f"--early_stopping_patience {patience}: there are no held-out images to evaluate "
                "on. Give a --train_val_split above 0 or a --validation_split, or leave it out."
            )
        self.patience, self.best, self.since = patience, -math.inf, 0

    def offer(self, score: float) -> None:
        """Higher is better; a score that is not a number is no better."""
        better = score > self.best
        self.since = 0 if better else self.since + 1
        self.best = score if better else self.best

    def finished(self) -> bool:
        return 0 < self.patience <= self.since

    def finished_with(self, score: float) -> bool:
        """Whether it would be, were this score offered."""
        return 0 < self.patience <= self.since + 1 and not score > self.best

    def state(self) -> dict[str, float]:
        return {"best": self.best, "since": self.since}

    def load_state(self, state: dict[str, float]) -> None:
        self.best, self.since = state["best"], state["since"]


# options that a resumed run may be given anew without becoming another run
FREE_OPTIONS = {
    "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "data_dir", "cache_dir",
    "cache", "logging_steps", "report_to", "checkpointing_steps", "checkpointing_minutes",
    "save_total_limit", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "push_to_hub", "hub_model_id", "hub_private_repo",
    "hub_revision", "hub_tag",
}  # fmt: skip


def fit(
    accelerator: Accelerator,
    model: torch.nn.Module,
    feed: ImageFeed | Ahead | StreamFeed,
    stage: Stage,
    settings: LoopSettings,
    arguments: tuple,
    log: Log,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
    uploads: RunUploads | None = None,
) -> dict[str, float]:
    """Train `model` as the options (last of `arguments`: the training ones) say; AdamW, a cosine
    schedule with warm-up. Afterwards it is in evaluation mode, with the last weights or their
    average (--ema_decay).

    Returns:
        Speed and peak learning rate, for all_results.json.
    """
    training = arguments[-1]
    learning_rate = peak_learning_rate(training, feed.global_batch, default=5e-4)
    groups = parameter_groups(model, learning_rate, training.weight_decay, layer_decay)
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        # the fused attention's bf16 backward is half of a step on a CPU (torch 2.13)
        model.set_attn_implementation("eager")
    if training.torch_compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    whole = (  # on a GPU many small launches would cost more than the memory is worth
        accelerator.device.type == "cpu"
        and accelerator.distributed_type == DistributedType.NO
        and training.gradient_accumulation_steps == 1
        and not training.max_grad_norm
    )
    average = WeightAverage(model, training.ema_decay) if training.ema_decay else None
    warmup = warmup_steps(training, settings, feed.steps_per_epoch)
    every = training.checkpointing_steps
    every = feed.steps_per_epoch if every == "epoch" else int(every or 0)
    checkpoints = Checkpoints(
        Path(training.output_dir) / "checkpoints",
        every,
        training.checkpointing_minutes,
        training.save_total_limit,
        uploads.offer if uploads else None,
    )
    options = {k: v for k, v in as_dict(*arguments).items() if k not in FREE_OPTIONS}
    if training.report_to != "none":
        plain = {k: v if isinstance(v, (int, float)) else str(v) for k, v in options.items()}
        accelerator.init_trackers("sssd_hf", plain)
        log.tracker = accelerator.log
    try:
        with step_in_backward(optimizer) if whole else nullcontext():
            speed = train(
                accelerator,
                wrapped,
                optimizer,
                partial(cosine_with_warmup, warmup_steps=warmup, total_steps=settings.total_steps),
                feed,
                stage,
                settings,
                log,
                average,
                checkpoints,
                training.resume_from_checkpoint,
                {**options, "num_train_images": feed.num_images},
            )
    finally:
        feed.close()
    if average:
        average.copy_to_model()
    # what follows measures it as it will be used: without stochastic depth, and without the
    # autocast that Accelerate leaves around `forward`
    model.eval()
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)
    if training.report_to != "none":
        accelerator.end_training()
    return {"learning_rate_peak": learning_rate, **speed}


def whole_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, or, where FSDP2 has sharded it, a copy that is whole (on the CPU; all
    processes must call this)."""
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):
        return model
    weights = {name: gather(value) for name, value in model.state_dict().items()}
    copy = type(model)(model.config)
    copy.load_state_dict(weights)
    return copy


def finish_run(
    output: Path,
    model: torch.nn.Module,
    statistics: tuple[list[float], list[float]],
    log: Log,
    accelerator: Accelerator,
    results: dict[str, Any],
    uploads: RunUploads | None = None,
) -> None:
    """Write the checkpoint, curves.png, all_results.json (the last value of everything logged, and
    `results`) and the card, and publish them where --push_to_hub says so.

    Raises:
        HubError: all was written, but could not be published.
    """
    from ..evaluation.plots import plot_training_curves

    save_checkpoint(model, output, statistics)
    plot_training_curves(output / "metrics.jsonl", output / "curves.png")
    last = {"num_processes": accelerator.num_processes, **log.last, **results}
    last |= {"hardware": hardware(accelerator), "versions": versions()}
    write_json(output / "all_results.json", to_json(last))
    try:
        write_card(output, options=CardOptions(uploads.repo_id if uploads else None))
    except ValueError as error:  # somebody else's README.md; the run itself is done
        logger.warning(f"no card was written: {error}")
    minutes, rate = results["train_runtime"] / 60, results["train_images_per_second"]
    logger.info(f"done in {minutes:.1f} min, {rate:.0f} images/s; checkpoint in {output}")
    if uploads:
        uploads.finish()
