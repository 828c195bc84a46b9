"""The training loop of both stages.

The order of the images is a function of (seed, epoch), and a global batch is cut into the shares of
processes and part batches afterwards. The loss is the sum over the global batch divided by its
count, so that the curve does not depend on how many processes or part batches share the work.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from .seeding import epoch_order


@dataclass
class LoopSettings:
    """How long and how to train; steps are optimiser steps."""

    total_steps: int
    batch_size: int  # of one process and one part batch
    accumulation: int = 1
    max_grad_norm: float | None = None
    logging_steps: int = 10
    eval_steps: int = 0  # 0: at the end alone
    seed: int = 0


@dataclass
class Stage:
    """What pretraining and fine-tuning do differently.

    Args:
        make_batch: (indices, epoch) -> keyword arguments of the model.
        batch_weight: batch -> what its mean loss is a mean over (images, or sums of class weights),
            a scalar tensor.
        log_values: model output -> scalars to log, averaged over images.
        after_step: (step, sums over the global batch of the output's statistics or None) -> more
            scalars to log.
        evaluate: step -> metrics.
    """

    make_batch: Callable[[torch.Tensor, int], dict[str, Any]]
    batch_weight: Callable[[dict[str, Any]], torch.Tensor]
    log_values: Callable[[Any], dict[str, torch.Tensor]]
    after_step: Callable[[int, dict[str, torch.Tensor] | None], dict[str, torch.Tensor]]
    evaluate: Callable[[int], dict[str, float]]


@dataclass
class Log:
    """`metrics.jsonl`: one object a line, written by the main process."""

    path: Path | None
    records: list[dict] = field(default_factory=list)

    def write(self, record: dict[str, Any]) -> None:
        record = {k: None if v != v else v for k, v in record.items()}  # JSON knows no NaN
        self.records.append(record)
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")


def steps_per_epoch(num_images: int, settings: LoopSettings, processes: int) -> int:
    return math.ceil(num_images / (settings.batch_size * settings.accumulation * processes))


def _sum_statistics(total: dict | None, statistics: dict | None) -> dict | None:
    if total is None or statistics is None:
        return statistics if total is None else total
    return {key: total[key] + value for key, value in statistics.items()}


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    num_images: int,
    stage: Stage,
    settings: LoopSettings,
    log: Log,
) -> dict[str, float]:
    """Train `model`, already prepared by `accelerator`, on the images 0 ... num_images - 1.

    Returns:
        `train_runtime` (seconds, evaluations included) and `train_images_per_second` (without).

    Raises:
        FloatingPointError: the loss is not finite.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    global_batch = settings.batch_size * settings.accumulation * processes
    epoch_steps = steps_per_epoch(num_images, settings, processes)
    started, evaluating, seen, waiting = time.perf_counter(), 0.0, 0, []
    epoch = -1
    bar = tqdm(
        total=settings.total_steps,
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    model.train()
    for step in range(settings.total_steps):
        if step // epoch_steps != epoch:
            epoch = step // epoch_steps
            # on the device once an epoch: a copy in each step would make the host wait
            order = epoch_order(settings.seed, epoch, num_images).to(accelerator.device)
        place = step % epoch_steps
        batch_indices = order[place * global_batch : (place + 1) * global_batch]
        share = batch_indices.tensor_split(processes)[rank]
        # an empty share (fewer images left than processes) computes with weight 0: all must meet
        parts = share.split(settings.batch_size) if len(share) else [batch_indices[:1]]
        batches = [stage.make_batch(part, epoch) for part in parts]
        weights = [stage.batch_weight(batch) * (len(share) > 0) for batch in batches]
        total_weight = accelerator.reduce(torch.stack(weights).sum(), "sum")

        statistics, logged = None, []
        for i, (batch, weight) in enumerate(zip(batches, weights)):
            last = i == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(model):
                output = model(**batch)
                # gradients are averaged over processes: times their number makes it the sum
                accelerator.backward(output.loss * (weight * processes / total_weight))
            sums = getattr(output, "distillation_statistics", None)
            if sums is not None and len(share) == 0:
                sums = {key: torch.zeros_like(value) for key, value in sums.items()}
            statistics = _sum_statistics(statistics, sums)
            values = {"loss": output.loss, **stage.log_values(output)}
            logged.append({k: v.detach().float() * weight for k, v in values.items()})
        if settings.max_grad_norm:
            accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        learning_rate = max(group["lr"] for group in optimizer.param_groups)
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if statistics is not None:
            statistics = accelerator.reduce(statistics, "sum")
        extra = stage.after_step(step + 1, statistics)
        means = {k: sum(values[k] for values in logged) / total_weight for k in logged[0]}
        waiting.append((means, extra))
        seen += len(batch_indices)
        bar.update()

        done = step + 1 == settings.total_steps
        if done or (step + 1) % settings.logging_steps == 0:
            record = _fetch(accelerator, waiting)  # the only time the host waits for the device
            waiting = []
            if not math.isfinite(record["loss"]):
                raise FloatingPointError(
                    f"The loss is {record['loss']} at step {step + 1} (epoch {epoch}). Lower "
                    "--learning_rate, set --max_grad_norm 1, or use --mixed_precision no."
                )
            rate = seen / (time.perf_counter() - started - evaluating)
            log.write(
                {"step": step + 1, "epoch": (step + 1) / epoch_steps, **record}
                | {"learning_rate": learning_rate, "images_per_second": rate}
            )
            bar.set_postfix({"loss": f"{record['loss']:.4f}", "img/s": f"{rate:.0f}"})
        if done or (settings.eval_steps and (step + 1) % settings.eval_steps == 0):
            before = time.perf_counter()
            model.eval()
            metrics = stage.evaluate(step + 1)
            model.train()
            evaluating += time.perf_counter() - before
            if metrics:
                log.write({"step": step + 1, "epoch": (step + 1) / epoch_steps, **metrics})
    bar.close()
    runtime = time.perf_counter() - started
    return {"train_runtime": runtime, "train_images_per_second": seen / (runtime - evaluating)}


def _fetch(accelerator: Accelerator, waiting: list[tuple[dict, dict]]) -> dict[str, float]:
    """Means over the steps since the last call; a step's losses are summed over processes."""
    means = {k: torch.stack([m[k] for m, _ in waiting]).mean() for k in waiting[0][0]}
    means = accelerator.reduce(means, "sum")
    extra = {k: torch.stack([e[k] for _, e in waiting]).mean() for k in waiting[0][1]}
    return {k: v.item() for k, v in {**means, **extra}.items()}
