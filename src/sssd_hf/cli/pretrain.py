"""Pretraining: masked autoencoding with self-distillation, on the training images alone.

`python scripts/pretrain.py --data_dir FOLDER`, or `accelerate launch scripts/pretrain.py ...`.
Writes a checkpoint for `finetune.py`, metrics.jsonl, curves.png, reconstructions.png,
splits.json, pretrain_recipe.yaml and all_results.json into --output_dir.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..configuration_sssd import DISTILLATION_PRESETS, SSSDConfig, as_pair
from ..data.cache import Images
from ..modeling_sssd import SSSDForPreTraining
from ..training.log import Log
from ..training.loop import LoopSettings, Stage
from ..training.seeding import image_seeds
from . import common
from .arguments import DistillationArguments, ModelArguments, PretrainTraining
from .batches import Batches, augmentation_of, image_features, normalize, rank_batches
from .data import (
    choose_rows,
    load_data,
    mark_preparation,
    preparation_of,
    split_data,
    stored_slice_axis,
)
from .parsing import parse
from .reconstructions import reconstruct
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


def build_model(model: ModelArguments, losses: DistillationArguments) -> SSSDForPreTraining:
    # the preset decides every field of the distillation, whatever the checkpoint was trained with
    options = {k: v for k, v in SSSDConfig().to_dict().items() if k.startswith("distillation_")}
    options |= DISTILLATION_PRESETS[losses.distillation]
    for name in ("mask_ratio", "norm_pix_loss", "distillation_weight"):
        if getattr(losses, name) is not None:
            options[name] = getattr(losses, name)
    options |= {"calibration": None} | config_options(model)  # a classifier's own
    if model.model_name_or_path:
        return SSSDForPreTraining.from_pretrained(
            model.model_name_or_path,
            revision=model.model_revision,
            dtype=torch.float32,  # the weights that are trained, whatever they were saved in
            **options,
        )
    options = {"image_size": 112, "num_channels": 1, **options}
    return SSSDForPreTraining(SSSDConfig.from_size(model.model_size, model.decoder, **options))


def fixed_seeds(images: Images, index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(batch,) int64: each held-out image has the same mask in every evaluation."""
    rows = images.rows[index.to(images.rows.device)].to(device)
    return image_seeds(0, 0, rows, "evaluate")


@torch.no_grad()
def held_out_losses(
    model: SSSDForPreTraining,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Any = None,
    heed_signals: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Losses on held-out images, whole and with one fixed mask each, and the reconstruction loss as
    a share of what predicting every patch's mean costs."""
    device = next(model.parameters()).device  # the images of a stream lie on the host
    exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
    sums = torch.zeros(4, device=device, dtype=exact)
    for index, real in rank_batches(len(images), batch_size, accelerator, heed_signals):
        pixel_values = normalize(images.batch(index, device), *statistics)
        output = model(pixel_values, sample_seeds=fixed_seeds(images, index, device))
        target = model.patchify(pixel_values)
        flat = target.mean(-1, keepdim=True).expand_as(target)  # predicts each patch's mean
        if model.config.norm_pix_loss:
            flat = torch.zeros_like(flat)
        flat_loss = model.reconstruction_loss(pixel_values, flat, output.mask)
        distillation = output.distillation_loss
        if distillation is None:
            distillation = torch.zeros_like(flat_loss)
        values = [output.reconstruction_loss, flat_loss, distillation, torch.ones_like(flat_loss)]
        sums += torch.stack(values).to(sums) * len(index) * real
    if accelerator and accelerator.num_processes > 1:
        sums = accelerator.reduce(sums, "sum")
    reconstruction, flat, distillation, count = sums.tolist()
    metrics = {
        "eval_reconstruction_loss": reconstruction / count,
        "eval_reconstruction_ratio": reconstruction / flat if flat else math.nan,
    }
    if model.distillation is not None:
        metrics["eval_distillation_loss"] = distillation / count
    return metrics


def probe_due(
    step: int,
    training: PretrainTraining,
    settings: LoopSettings,
    per_epoch: int,
    images: Images | None,
    held_out: Images,
    last: bool = False,
) -> bool:
    """Whether this evaluation is the first after a multiple of --probe_epochs, or the last one, and
    the images have labels to probe for."""
    if not training.probe_epochs or images is None:
        return False
    if images.labels is None or held_out.labels is None:
        return False
    every = max(1, round(training.probe_epochs * per_epoch))
    if len(images.labels.unique()) < 2:
        return False
    since = settings.eval_steps or settings.total_steps
    return last or step == settings.total_steps or step // every > (step - since) // every


def probe_features(
    model: SSSDForPreTraining,
    images: Images,
    held_out: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Any = None,
    heed_signals: Callable[[], None] | None = None,
    limit: int = 5000,
) -> dict[str, float]:
    """What frozen features tell of the labels of held-out images; see `probes.probe`. Of more than
    `limit` training images every n-th is taken."""
    from ..evaluation.probes import probe

    chosen = torch.arange(0, len(images), max(1, len(images) // limit))
    train = images.select(chosen)
    features = [
        image_features(model, part, statistics, batch_size, accelerator, heed_signals)
        for part in (train, held_out)
    ]
    labels = [part.labels.cpu().numpy() for part in (train, held_out)]
    found = probe(features[0], labels[0], features[1], labels[1])
    return {f"probe_{name}": value for name, value in found.items()}


class CollapseMonitor:
    """Warns once where the teacher's outputs come to be the same for all images: a tenth of the
    spread over images that they had at most."""

    def __init__(self) -> None:
        self.largest, self.warned = 0.0, False

    def __call__(self, record: dict[str, Any]) -> None:
        spread = record.get("target_std")
        if spread is None or math.isnan(spread) or self.warned:  # NaN: of one image alone
            return
        self.largest = max(self.largest, spread)
        if spread < 0.1 * self.largest or spread < 1e-4:
            self.warned = True
            logger.warning(
                f"step {record['step']}: the self-distillation targets are nearly the same for all "
                f"images (target_std {spread:.2g}, at most {self.largest:.2g} before): the loss "
                "teaches nothing about them. Try --distillation stable with --config_overrides "
                "distillation_target=standardize, a smaller --distillation_weight, or "
                "--distillation mae"
            )


@torch.no_grad()
def write_reconstructions(
    model: SSSDForPreTraining,
    images: Images,
    statistics: tuple[list[float], list[float]],
    path: Path,
    count: int = 4,
) -> None:
    """The figure of `reconstruct` for a few of the images, from the first to the last."""
    from ..evaluation.plots import plot_reconstructions

    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    device = next(model.parameters()).device  # the whole copy of a sharded model is on the host
    pixel_values = normalize(images.batch(chosen, device), *statistics)
    seeds = fixed_seeds(images, chosen, device)
    pictures = reconstruct(model, pixel_values, statistics, sample_seeds=seeds)
    plot_reconstructions(*pictures, path)


def main(argv: list[str] | None = None) -> int:
    arguments = parse("pretrain", __doc__, argv)
    with common.started(arguments[-1], arguments[1].model_name_or_path) as accelerator:
        if accelerator is not None:
            run(arguments, accelerator)
    return 0


def run(arguments: tuple, accelerator: Accelerator) -> None:
    data_arguments, model_arguments, losses, augmentation_arguments, training = arguments
    output = Path(training.output_dir)
    common.check_checkpoint(model_arguments.model_name_or_path)
    dataset, splits, rows = None, {}, []
    if not data_arguments.streaming:
        axis = stored_slice_axis(model_arguments.model_name_or_path, model_arguments.model_revision)
        dataset = load_data(data_arguments, axis)
        if "label" in dataset.column_names and len(set(dataset["label"][:])) < 2:
            dataset = dataset.remove_columns("label")  # one folder of images is no class
        own = training.output_dir if training.resume_from_checkpoint else None
        splits = split_data(dataset, data_arguments, training.seed, own)
        rows = choose_rows(splits["train"], data_arguments.max_train_samples, training.seed)
    model = build_model(model_arguments, losses)
    config = model.config
    size = as_pair(config.image_size)
    statistics = common.read_statistics(
        model_arguments.model_name_or_path, config.num_channels, model_arguments.model_revision
    )
    if accelerator.is_main_process:
        common.save_run(output, "pretrain", arguments, dataset, splits, data_arguments)
        logger.info(
            f"pretraining on {len(rows) or 'a stream of'} images, "
            f"{len(splits.get('validation', []))} held out; "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
        )
    preparation = preparation_of(config, size, data_arguments)
    mark_preparation(config, preparation)
    images, held_out, feed = open_images(
        dataset, splits, rows, preparation, data_arguments, training, accelerator
    )
    settings = loop_settings(training, feed.steps_per_epoch)
    batches = Batches(
        images,
        size,
        training.seed,
        augmentation_of(augmentation_arguments),
        statistics,
        accelerator.device,
    )
    stopping = EarlyStopping(training.early_stopping_patience, held_out)

    def log_values(output: Any) -> dict[str, torch.Tensor]:
        values = {"reconstruction_loss": output.reconstruction_loss}
        if output.distillation_loss is not None:
            values["distillation_loss"] = output.distillation_loss
        return values

    def after_step(step: int, sums: dict | None) -> dict[str, torch.Tensor]:
        if sums is None:
            return {}
        model.update_teacher(step, settings.total_steps, sums)
        return {
            "distillation_weight": model.distillation.teacher_weight.clone(),
            "target_std": model.distillation.target_std(sums),
        }

    def evaluate(step: int, heed_signals: Callable[[], None]) -> dict[str, float]:
        if held_out is None:
            return {}
        shared = statistics, training.per_device_eval_batch_size, accelerator, heed_signals
        # before the encoder alone: FSDP2's very first forward must be the whole model's
        metrics = held_out_losses(model, held_out, *shared)
        score, per_epoch = -metrics["eval_reconstruction_loss"], feed.steps_per_epoch
        last = stopping.finished_with(score)
        if probe_due(step, training, settings, per_epoch, images, held_out, last):
            metrics |= probe_features(model, images, held_out, *shared)
        stopping.offer(score)
        return metrics

    stage = Stage(
        make_batch=partial(batches.augmented, with_labels=False),
        batch_weight=lambda batch: torch.full(
            (), float(len(batch["pixel_values"])), device=accelerator.device
        ),
        log_values=log_values,
        after_step=after_step,
        evaluate=evaluate,
        finished=stopping.finished,
        state=lambda: ({}, stopping.state()),
        load_state=lambda tensors, values: stopping.load_state(values),
        image_names=names_of(dataset, images),
    )
    model.update_teacher(0, settings.total_steps)
    log = Log(
        output / "metrics.jsonl" if accelerator.is_main_process else None, watch=CollapseMonitor()
    )
    uploads = start_uploads(training, accelerator, model, statistics, settings.total_steps)
    results = fit(
        accelerator,
        model,
        feed,
        stage,
        settings,
        arguments,
        log,
        betas=(0.9, 0.95),
        uploads=uploads,
    )
    model = whole_model(model)
    if not accelerator.is_main_process:
        return
    model.eval()
    if held_out is not None:
        write_reconstructions(model, held_out, statistics, output / "reconstructions.png")
    results = {"num_train_images": feed.num_images, **results}
    finish_run(output, model, statistics, log, accelerator, results, uploads)
