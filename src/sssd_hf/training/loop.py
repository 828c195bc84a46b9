"""The training loop of both stages.

What a step learns from is a function of its number (feeds.py), a global batch is cut into the
shares of processes and part batches afterwards, and the loss is the sum over the global batch
divided by its count. So the curve depends neither on how many processes or part batches share the
work nor on how often the run was interrupted.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from .averaging import WeightAverage
from .checkpoints import CheckpointError, Checkpoints, reshard
from .feeds import Draw, ImageFeed
from .log import Log
from .optimization import set_learning_rate
from .signals import BrokenOff, Interrupted, SharedWishes, StopSignals
from .state import Progress, collect_state, restore_state

logger = logging.getLogger("sssd_hf")


@dataclass
class LoopSettings:
    """How long to train and when to look; steps are optimiser steps."""

    total_steps: int
    max_grad_norm: float | None = None
    logging_steps: int = 10
    eval_steps: int = 0  # 0: at the end alone


@dataclass
class Stage:
    """What pretraining and fine-tuning do differently.

    Args:
        make_batch: the images of a part batch -> keyword arguments of the model.
        batch_weight: batch -> what its mean loss is a mean over (images, or sums of class weights),
            a scalar tensor.
        log_values: model output -> scalars to log, averaged over images.
        after_step: (step, sums over the global batch of the output's statistics or None) -> more
            scalars to log.
        evaluate: (step, heed_signals) -> metrics. `heed_signals`, called before each batch, raises
            BrokenOff where the evaluation is to be left; until its end it must change no state.
        finished: whether the metrics say to stop early.
        state, load_state: what else a resumed run needs: tensors by name, plain values.
        image_names: image indices -> names, for messages.
    """

    make_batch: Callable[[Draw], dict[str, Any]]
    batch_weight: Callable[[dict[str, Any]], torch.Tensor]
    log_values: Callable[[Any], dict[str, torch.Tensor]]
    after_step: Callable[[int, dict[str, torch.Tensor] | None], dict[str, torch.Tensor]]
    evaluate: Callable[[int, Callable[[], None]], dict[str, float]]
    finished: Callable[[], bool] = lambda: False
    state: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]] = lambda: ({}, {})
    load_state: Callable[[dict[str, torch.Tensor], dict[str, Any]], None] = lambda t, v: None
    image_names: Callable[[list[int]], list[str]] = lambda index: [str(i) for i in index]


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    feed: ImageFeed,
    stage: Stage,
    settings: LoopSettings,
    log: Log,
    average: WeightAverage | None = None,
    checkpoints: Checkpoints | None = None,
    resume: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train `model`, already prepared by `accelerator`.

    Args:
        schedule: step (0-based) -> share of each group's peak learning rate.
        average: kept up to date, and in the model's place while it is evaluated.
        checkpoints: where and how often to write the state; None: not at all.
        resume: go on from this checkpoint's folder, or from the "latest" whole one, if any.
        options: the run's options, kept in checkpoints; a resumed run is told what differs.

    Returns:
        `train_runtime` (seconds, evaluations included), `train_images_per_second` (without), and
        `train_steps`; all sessions of a resumed run together.

    Raises:
        FloatingPointError: the loss is not finite, or the weights that are to be kept.
        Interrupted: a signal came; the state was saved.
    """
    # Accelerate's own compilation, asked for in its config, would put "_orig_mod." before each name
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    saved = checkpoints.load(resume) if resume and checkpoints else None
    progress = Progress()
    if saved:
        progress = restore_state(
            accelerator, plain, optimizer, feed, stage, average, options, *saved
        )
        saved = None  # as large as weights, averages and optimiser, in each process
        logger.info(f"going on after step {progress.step}")
    if resume:
        _check_agreement(progress.step)
        log.rewind(progress.step)  # also what was written before there was a checkpoint
    bar = tqdm(
        total=settings.total_steps,
        initial=progress.step,
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    # read two steps late on an accelerator, so that the host need not wait for it
    flags: deque[SharedWishes] = deque(maxlen=1 if accelerator.device.type == "cpu" else 3)
    waiting: list[tuple[dict, dict]] = []

    def keep(must: bool) -> None:
        _fetch(accelerator, waiting, progress, feed, stage, checkpoints)
        _check_weights(accelerator, plain, progress.step, feed, stage, checkpoints)
        state = collect_state(accelerator, plain, optimizer, feed, stage, average, progress)
        _save(accelerator, checkpoints, progress.step, *state, options, must)

    model.train()
    with StopSignals() as signals, bar:
        heed_signals = partial(signals.heed, accelerator)
        if progress.evaluation_due:
            _evaluate(model, plain, stage, average, progress, log, heed_signals)
        stop = progress.evaluation_due
        while not stop and progress.step < settings.total_steps and not progress.ended_early:
            started = time.perf_counter()
            step = progress.step
            learning_rate = set_learning_rate(optimizer, schedule(step))
            draws = feed.step(step)
            batches = [stage.make_batch(part) for part in draws.parts]
            weights = [stage.batch_weight(b) * r for b, r in zip(batches, draws.real)]
            # one reduction for the weight and for what the processes must agree upon
            wishes = [signals.received is not None, bool(checkpoints and checkpoints.due_by_time())]
            asked = [torch.full_like(weights[0], float(wish)) for wish in wishes]
            totals = accelerator.reduce(torch.stack([torch.stack(weights).sum(), *asked]), "sum")
            total_weight = totals[0]
            if accelerator.num_processes > 1:
                flags.append(SharedWishes.of(totals[1:]))
            shares = [weight / total_weight for weight in weights]
            statistics, means = _backward(accelerator, model, stage, batches, shares, draws.real)
            if settings.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if statistics is not None:
                statistics = accelerator.reduce(statistics, "sum")
            extra = stage.after_step(step + 1, statistics)
            if average:
                average.update(step + 1)
            waiting.append((means, extra))
            progress.step, progress.seen = step + 1, progress.seen + draws.count
            bar.update()

            done = progress.step == settings.total_steps
            log_now = done or progress.step % settings.logging_steps == 0
            stop, save = _agreed(accelerator, flags, wishes)
            save = save or bool(checkpoints and checkpoints.due_by_step(progress.step))
            due = done or (settings.eval_steps and progress.step % settings.eval_steps == 0)
            if log_now or stop or save or due:  # a loss that is not finite ends the run here
                _fetch(accelerator, waiting, progress, feed, stage, checkpoints)
            if done or stop or save:
                _check_weights(accelerator, plain, progress.step, feed, stage, checkpoints)
            progress.seconds += time.perf_counter() - started
            progress.epoch, progress.evaluation_due = draws.epoch, bool(due)
            if log_now:
                _log(log, bar, progress, learning_rate)
            if due and not stop:
                _evaluate(model, plain, stage, average, progress, log, heed_signals)
            stop = stop or progress.evaluation_due
            if accelerator.num_processes == 1:  # a signal during the evaluation costs no more steps
                stop = signals.received is not None
            if checkpoints and save and not stop:
                keep(must=False)
                flags.clear()  # else what was wished before the save would be granted after it
        if stop:
            if checkpoints:
                keep(must=True)
            raise Interrupted(
                f"stopped by {signals.received or 'a signal to another process'} after step "
                f"{progress.step} of {settings.total_steps}; the state is saved: the same "
                "command with --resume_from_checkpoint latest goes on from here"
            )
        if checkpoints and _any_process(accelerator, checkpoints.due_at_end()):
            keep(must=False)  # what follows, the last predictions and plots, may fail
    if progress.ended_early and progress.step < settings.total_steps:
        logger.info(f"ended early after step {progress.step}: the metric no longer improves")
    return {
        "train_runtime": progress.seconds + progress.evaluating,
        "train_images_per_second": progress.seen / max(progress.seconds, 1e-9),
        "train_steps": progress.step,
    }


def _backward(accelerator, model, stage, batches, shares, real) -> tuple[dict | None, dict]:
    """The gradient of a step, part batch by part batch.

    Args:
        shares: of each part batch in the loss of the global batch.
        real: whether it counts in the statistics.

    Returns:
        The sums of the outputs' statistics, if any, and what this process adds to the means that
        are logged.
    """
    statistics, logged = None, []
    for i, (batch, share, counts) in enumerate(zip(batches, shares, real)):
        last = i == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            output = model(**batch)
            # gradients are averaged over processes: times their number makes it the sum
            accelerator.backward(output.loss * (share * accelerator.num_processes))
        statistics = _add(statistics, getattr(output, "distillation_statistics", None), counts)
        values = {"loss": output.loss, **stage.log_values(output)}
        logged.append({k: v.detach().float() * share for k, v in values.items()})
    return statistics, {k: sum(values[k] for values in logged) for k in logged[0]}


def _log(log, bar, progress, learning_rate) -> None:
    record, rate = _means(progress.unlogged), progress.seen / progress.seconds
    place = {"step": progress.step, "epoch": progress.epoch}
    log.write(place | record | {"learning_rate": learning_rate, "images_per_second": rate})
    progress.unlogged = []
    bar.set_postfix({"loss": f"{record['loss']:.4f}", "img/s": f"{rate:.0f}"})


def _evaluate(model, plain, stage, average, progress, log, heed_signals) -> None:
    """Still due afterwards where a signal broke it off: the resumed run begins it anew."""
    started, metrics = time.perf_counter(), None
    model.eval()
    with average.applied() if average else nullcontext():
        with suppress(BrokenOff):
            metrics = stage.evaluate(progress.step, heed_signals)
        reshard(plain)
    model.train()
    progress.evaluating += time.perf_counter() - started
    progress.evaluation_due = metrics is None
    if metrics:
        log.write({"step": progress.step, "epoch": progress.epoch, **metrics})
    if metrics is not None:
        progress.ended_early = stage.finished()


def _check_agreement(step: int) -> None:
    """Processes that go on from different steps would wait for each other forever."""
    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"--resume_from_checkpoint: the processes go on from the steps {steps}; expected the "
            "same one. All must see the same --output_dir: put it on a drive that they share."
        )


def _add(total: dict | None, sums: dict | None, real: bool) -> dict | None:
    if sums is not None and not real:
        sums = {key: torch.zeros_like(value) for key, value in sums.items()}
    if total is None or sums is None:
        return sums if total is None else total
    return {key: total[key] + value for key, value in sums.items()}


def _agreed(accelerator, flags: deque, wishes: list[bool]) -> tuple[bool, bool]:
    """(stop, save), the same on all processes; alone, there is nobody to wait for."""
    if accelerator.num_processes == 1:
        return wishes[0], wishes[1]
    if len(flags) < flags.maxlen:
        return False, False
    stop, save = flags[0].tolist()
    return stop > 0, save > 0


def _any_process(accelerator, wish: bool) -> bool:
    mine = torch.tensor(float(wish), device=accelerator.device)
    return accelerator.reduce(mine, "sum").item() > 0


def _fetch(accelerator, waiting, progress, feed, stage, checkpoints) -> None:
    """The logged values of the steps since the last call, as numbers: here the host waits for
    the device. A step's losses are summed over processes.

    Raises:
        FloatingPointError: a step's loss is not finite.
    """
    if not waiting:
        return
    means = {k: torch.stack([m[k] for m, _ in waiting]) for k in waiting[0][0]}
    means = accelerator.reduce(means, "sum")
    extra = {k: torch.stack([e[k] for _, e in waiting]) for k in waiting[0][1]}
    columns = {k: v.tolist() for k, v in {**means, **extra}.items()}
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    waiting.clear()
    for step, row in enumerate(rows, progress.step - len(rows) + 1):
        if not math.isfinite(row["loss"]):
            raise _diverged(f"The loss is {row['loss']} at", step, feed, stage, checkpoints)
    progress.unlogged += rows


def _check_weights(accelerator, plain, step, feed, stage, checkpoints) -> None:
    """Before they are kept: a gradient may be infinite where the loss of its step is not. Each
    process looks at its own part of sharded weights.

    Raises:
        FloatingPointError: weights are not finite.
    """
    own = [p.to_local() if hasattr(p, "to_local") else p for p in plain.parameters()]
    wrong = torch.stack([~p.isfinite().all() for p in own]).any().float()
    if accelerator.reduce(wrong, "sum").item():
        raise _diverged("Weights are not finite after", step, feed, stage, checkpoints)


def _diverged(what, step, feed, stage, checkpoints) -> FloatingPointError:
    index = feed.global_draw(step - 1).index.tolist()
    names = ", ".join(stage.image_names(index[:64]))
    kept = checkpoints.found() if checkpoints else []
    return FloatingPointError(
        f"{what} step {step}. The images of this step (indices {index[:64]}): {names}. The last "
        f"good checkpoint: {kept[0] if kept else 'none'}. Look at these images, or lower "
        "--learning_rate, set --max_grad_norm 1, or use --mixed_precision no; then go on with "
        "--resume_from_checkpoint latest."
    )


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """NaN, a step's value that is not known, does not count."""
    known = {key: [row[key] for row in rows if not math.isnan(row[key])] for key in rows[0]}
    return {key: sum(many) / len(many) if many else math.nan for key, many in known.items()}


def _save(accelerator, checkpoints, step, tensors, values, options, must) -> None:
    """Written by the main process; where that fails the run goes on, unless it is about to stop."""
    failed = torch.zeros((), device=accelerator.device)
    if accelerator.is_main_process:
        try:
            checkpoints.save(step, tensors, {**values, "options": options or {}})
        except OSError as error:
            kept = checkpoints.found()
            logger.error(
                f"the checkpoint of step {step} could not be written ({error}); "
                + (f"the last one is {kept[0]}" if kept else "there is none yet")
            )
            failed.fill_(1.0)
    checkpoints.restart_clock()
    if accelerator.reduce(failed, "sum").item() and must:
        raise OSError(f"stopped after step {step}, but its state could not be saved (see above)")
