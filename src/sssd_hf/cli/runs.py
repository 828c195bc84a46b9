"""What pretraining and fine-tuning share: options to objects, batches, the end of a run."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from ..configuration_sssd import SSSDConfig
from ..data.augment import NUM_UNIFORMS, Augmentation, augment
from ..data.cache import Images
from ..evaluation.metrics import to_json
from ..modeling_sssd import sample_uniform
from ..training.loop import Log, LoopSettings, steps_per_epoch
from ..training.optimization import cosine_with_warmup, parameter_groups
from ..training.seeding import image_seeds
from .arguments import ModelArguments, PretrainAugmentation, TrainingArguments
from .common import normalize, save_checkpoint, versions, write_json

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
        options[name.strip()] = yaml.safe_load(value)
    return options


def peak_learning_rate(training: TrainingArguments, global_batch: int, default: float) -> float:
    if training.learning_rate is not None and training.base_learning_rate is not None:
        raise ValueError("Give --learning_rate or --base_learning_rate, not both.")
    if training.base_learning_rate is not None:
        return training.base_learning_rate * global_batch / 256
    return default if training.learning_rate is None else training.learning_rate


def loop_settings(training: TrainingArguments, num_images: int, processes: int) -> LoopSettings:
    settings = LoopSettings(
        total_steps=1,
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.logging_steps,
        seed=training.seed,
    )
    per_epoch = steps_per_epoch(num_images, settings, processes)
    settings.total_steps = training.max_train_steps or max(
        1, round(training.num_train_epochs * per_epoch)
    )
    if training.eval_epochs:
        settings.eval_steps = max(1, round(training.eval_epochs * per_epoch))
    return settings


def augmentation_of(arguments: PretrainAugmentation) -> Augmentation:
    return Augmentation(
        min_scale=arguments.min_crop_scale,
        max_scale=arguments.max_crop_scale,
        flip=arguments.horizontal_flip,
        rotation=arguments.rotation,
        brightness=arguments.brightness,
        contrast=arguments.contrast,
    )


def augmented_batch(
    images: Images,
    index: torch.Tensor,
    epoch: int,
    seed: int,
    augmentation: Augmentation,
    statistics: tuple[list[float], list[float]],
    size: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """Normalised, augmented images of `size` and the seeds from which the model draws what is
    random."""
    device = images.rows.device
    rows = images.rows[index.to(device)]
    uniform = sample_uniform(image_seeds(seed, epoch, rows, "augment"), 0, NUM_UNIFORMS)
    pixels = augment(images.batch(index, device), size, uniform, augmentation)
    return {
        "pixel_values": normalize(pixels, *statistics),
        "sample_seeds": image_seeds(seed, epoch, rows, "model"),
    }


def optimizer_and_schedule(
    model: torch.nn.Module,
    training: TrainingArguments,
    settings: LoopSettings,
    processes: int,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, float]:
    """(AdamW, cosine schedule with warm-up, peak learning rate)."""
    global_batch = settings.batch_size * settings.accumulation * processes
    learning_rate = peak_learning_rate(training, global_batch, default=5e-4)
    groups = parameter_groups(model, learning_rate, training.weight_decay, layer_decay)
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    warmup = training.num_warmup_steps
    if warmup is None:
        warmup = round(training.warmup_ratio * settings.total_steps)
    return (
        optimizer,
        cosine_with_warmup(optimizer, warmup, settings.total_steps),
        learning_rate,
    )


def finish_run(
    output: Path,
    model: torch.nn.Module,
    statistics: tuple[list[float], list[float]],
    log: Log,
    accelerator: Accelerator,
    results: dict[str, Any],
) -> None:
    """Write the checkpoint, curves.png, and all_results.json: the last value of everything logged,
    and `results`."""
    from ..evaluation.plots import plot_training_curves

    save_checkpoint(model, output, statistics)
    plot_training_curves(output / "metrics.jsonl", output / "curves.png")
    last: dict[str, Any] = {"num_processes": accelerator.num_processes}
    for record in log.records:
        last |= record
    write_json(output / "all_results.json", to_json(last | results | {"versions": versions()}))
    minutes, rate = results["train_runtime"] / 60, results["train_images_per_second"]
    logger.info(f"done in {minutes:.1f} min, {rate:.0f} images/s; checkpoint in {output}")
