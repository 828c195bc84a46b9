"""Pretraining: masked autoencoding with self-distillation, on the training images alone.

`python scripts/pretrain.py --data_dir FOLDER`, or `accelerate launch scripts/pretrain.py ...`.
Writes a checkpoint for `finetune.py`, metrics.jsonl, curves.png, reconstructions.png,
splits.json, pretrain_recipe.yaml and all_results.json into --output_dir.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..configuration_sssd import DISTILLATION_PRESETS, SSSDConfig
from ..data.cache import Images
from ..data.preparation import Preparation
from ..modeling_sssd import SSSDForPreTraining
from ..training.loop import Log, Stage, train
from ..training.seeding import image_seeds
from . import common
from .arguments import DistillationArguments, ModelArguments, parse
from .runs import (
    augmentation_of,
    augmented_batch,
    config_options,
    finish_run,
    loop_settings,
    optimizer_and_schedule,
)

logger = logging.getLogger("sssd_hf")


def build_model(model: ModelArguments, losses: DistillationArguments) -> SSSDForPreTraining:
    # the preset decides every field of the loss, whatever the checkpoint was trained with
    options = {k: v for k, v in SSSDConfig().to_dict().items() if k.startswith("distillation_")}
    options |= DISTILLATION_PRESETS[losses.distillation]
    for name in ("mask_ratio", "norm_pix_loss", "distillation_weight"):
        if getattr(losses, name) is not None:
            options[name] = getattr(losses, name)
    options |= config_options(model)
    if model.model_name_or_path:
        return SSSDForPreTraining.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, **options
        )
    options = {"image_size": 112, "num_channels": 1, **options}
    return SSSDForPreTraining(SSSDConfig.from_size(model.model_size, model.decoder, **options))


@torch.no_grad()
def held_out_losses(
    model: SSSDForPreTraining,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Any = None,
) -> dict[str, float]:
    """Losses on held-out images, whole and with one fixed mask each, and the reconstruction loss as
    a share of what predicting every patch's mean costs."""
    processes = accelerator.num_processes if accelerator else 1
    rank = accelerator.process_index if accelerator else 0
    sums = torch.zeros(4, device=images.rows.device, dtype=torch.float64)
    for i, index in enumerate(torch.arange(len(images)).split(batch_size)):
        if i % processes != rank:
            continue
        pixel_values = common.normalize(images.batch(index, sums.device), *statistics)
        seeds = image_seeds(0, 0, images.rows[index.to(sums.device)], "evaluate")
        output = model(pixel_values, sample_seeds=seeds)
        target = model.patchify(pixel_values)
        flat = target.mean(-1, keepdim=True).expand_as(target)  # predicts each patch's mean
        if model.config.norm_pix_loss:
            flat = torch.zeros_like(flat)
        flat_loss = model.reconstruction_loss(pixel_values, flat, output.mask)
        distillation = output.distillation_loss
        if distillation is None:
            distillation = torch.zeros_like(flat_loss)
        values = [output.reconstruction_loss, flat_loss, distillation, torch.ones_like(flat_loss)]
        sums += torch.stack(values).to(sums) * len(index)
    if processes > 1:
        sums = accelerator.reduce(sums, "sum")
    reconstruction, flat, distillation, count = sums.tolist()
    metrics = {
        "eval_reconstruction_loss": reconstruction / count,
        "eval_reconstruction_ratio": reconstruction / flat,
    }
    if model.distillation is not None:
        metrics["eval_distillation_loss"] = distillation / count
    return metrics


@torch.no_grad()
def write_reconstructions(
    model: SSSDForPreTraining,
    images: Images,
    statistics: tuple[list[float], list[float]],
    path: Path,
    count: int = 4,
) -> None:
    """Input, masked, reconstruction, and the reconstruction pasted into the visible patches. With
    pixels normalised by patch, each patch's mean and contrast are taken from the input."""
    from ..evaluation.plots import plot_reconstructions

    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    chosen = chosen.to(images.rows.device)
    pixel_values = common.normalize(images.batch(chosen, chosen.device), *statistics)
    seeds = image_seeds(0, 0, images.rows[chosen], "evaluate")
    output = model(pixel_values, sample_seeds=seeds)
    target, predicted = model.patchify(pixel_values), output.logits.float()
    if model.config.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    hidden = output.mask[..., None]

    def show(patches: torch.Tensor) -> Any:
        x = model.unpatchify(patches, model.config.grid_size).permute(0, 2, 3, 1)
        mean, std = (torch.tensor(v[: x.shape[-1]], device=x.device) for v in statistics)
        return (x * std + mean).clamp(0, 1).squeeze(-1).cpu().numpy()

    grey = torch.full_like(target, (0.5 - statistics[0][0]) / statistics[1][0])
    plot_reconstructions(
        show(target),
        show(torch.where(hidden > 0, grey, target)),
        show(predicted),
        show(torch.where(hidden > 0, predicted, target)),
        path,
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse("pretrain", __doc__, argv)
    data_arguments, model_arguments, losses, augmentation_arguments, training = arguments
    accelerator = common.start(training)
    output = Path(training.output_dir)
    common.check_checkpoint(model_arguments.model_name_or_path)
    dataset = common.load_data(data_arguments)
    if "label" in dataset.column_names and len(set(dataset["label"][:])) < 2:
        dataset = dataset.remove_columns("label")  # one folder of images is no class
    own = None if training.overwrite_output_dir else training.output_dir
    splits = common.split_data(dataset, data_arguments, training.seed, own)
    rows = common.choose_rows(splits["train"], data_arguments.max_train_samples, training.seed)
    model = build_model(model_arguments, losses)
    config = model.config
    size = tuple(n * p for n, p in zip(config.grid_size, model.encoder.embeddings.patch))
    statistics = common.read_statistics(
        model_arguments.model_name_or_path, config.num_channels, model_arguments.model_revision
    )
    if accelerator.is_main_process:
        common.save_run(output, "pretrain", arguments, dataset, splits, data_arguments)
        logger.info(
            f"pretraining on {len(rows)} images, {len(splits['validation'])} held out; "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
        )
    preparation = Preparation(size, config.num_channels)
    working = replace(preparation, size=common.working_size(size, data_arguments.cache_size))
    images = common.decode_split(
        dataset, rows, working, data_arguments, accelerator, "training images", output
    )
    held_out = None
    if splits["validation"]:
        held_out = common.decode_split(
            dataset,
            splits["validation"],
            preparation,
            data_arguments,
            accelerator,
            "held-out images",
            output,
        )

    settings = loop_settings(training, len(images), accelerator.num_processes)
    optimizer, scheduler, learning_rate = optimizer_and_schedule(
        model, training, settings, accelerator.num_processes, betas=(0.9, 0.95)
    )
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)
    augmentation = augmentation_of(augmentation_arguments)

    def log_values(output: Any) -> dict[str, torch.Tensor]:
        values = {"reconstruction_loss": output.reconstruction_loss}
        if output.distillation_loss is not None:
            values["distillation_loss"] = output.distillation_loss
        return values

    def after_step(step: int, sums: dict | None) -> dict[str, torch.Tensor]:
        if sums is None:
            return {}
        plain.update_teacher(step, settings.total_steps, sums)
        return {
            "distillation_weight": plain.distillation.teacher_weight.clone(),
            "target_std": plain.distillation.target_std(sums),
        }

    def evaluate(step: int) -> dict[str, float]:
        if held_out is None:
            return {}
        batch_size = training.per_device_eval_batch_size
        return held_out_losses(plain, held_out, statistics, batch_size, accelerator)

    stage = Stage(
        make_batch=lambda index, epoch: augmented_batch(
            images, index, epoch, training.seed, augmentation, statistics, size
        ),
        batch_weight=lambda batch: torch.full(
            (), float(len(batch["pixel_values"])), device=accelerator.device
        ),
        log_values=log_values,
        after_step=after_step,
        evaluate=evaluate,
    )
    plain.update_teacher(0, settings.total_steps)
    log = Log(output / "metrics.jsonl" if accelerator.is_main_process else None)
    speed = train(accelerator, model, optimizer, scheduler, len(images), stage, settings, log)
    if not accelerator.is_main_process:
        return 0
    plain.eval()
    if held_out is not None:
        write_reconstructions(plain, held_out, statistics, output / "reconstructions.png")
    results = {"num_train_images": len(images), "learning_rate_peak": learning_rate, **speed}
    finish_run(output, plain, statistics, log, accelerator, results)
    return 0
