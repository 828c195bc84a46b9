"""What the loop keeps and tells: checkpoints, signals, resuming, and the log."""

import io
import itertools
import json
import math
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from loop_runs import (
    RATE,
    Threads,
    classifier,
    feed_of,
    finetuning_stage,
    run,
    schedule_of,
)

from sssd_hf.cli.batches import rank_batches
from sssd_hf.training import log as log_module
from sssd_hf.training.averaging import WeightAverage
from sssd_hf.training.checkpoints import CheckpointError, Checkpoints, read_checkpoint
from sssd_hf.training.log import Log
from sssd_hf.training.loop import LoopSettings, Stage, train
from sssd_hf.training.signals import BrokenOff, Interrupted, StopSignals


@pytest.mark.parametrize("told", [0, 1])
def test_processes_leave_an_evaluation_together(told):
    """Of 11 batches each of two processes has 6. One gets a signal in its third."""
    threads, begun, left = Threads(2), [0, 0], []

    def work(rank):
        accelerator, signals = threads.accelerator(rank), StopSignals()
        try:
            for _ in rank_batches(11, 1, accelerator, partial(signals.heed, accelerator)):
                begun[rank] += 1
                if rank == told and begun[rank] == 3:
                    signals.received = "SIGTERM"
        except BrokenOff:
            left.append(rank)

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert begun == [3, 3]
    assert sorted(left) == [0, 1]


@pytest.mark.parametrize("disk", ["free", "full"])
def test_a_checkpoint_by_time_is_written_once_a_time(disk, tmp_path, monkeypatch):
    """All processes start their clocks anew, not only the one that writes; a full disk is tried no
    more often."""
    clock, steps, threads = SimpleNamespace(now=time.monotonic()), 30, Threads(2)
    monkeypatch.setattr("sssd_hf.training.checkpoints.time.monotonic", lambda: clock.now)
    folder, tried, errors = tmp_path / "checkpoints", [], []
    save = Checkpoints.save

    def saved(self, step, *rest):
        tried.append(step)
        if disk == "full":
            raise OSError("No space left on device")
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", saved)

    def work(rank):
        model, settings = classifier(), LoopSettings(steps)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        threads.average_gradients(rank, optimizer)
        schedule, feed, stage = schedule_of(settings), feed_of(2, 1, 2, rank), finetuning_stage()
        make = stage.make_batch

        def slow(draw):
            clock.now += 5  # by each of two processes: 10 seconds a step
            return make(draw)

        stage.make_batch = slow
        kept = Checkpoints(folder, every_minutes=1)
        try:
            accelerator = threads.accelerator(rank)
            train(
                *(accelerator, model, optimizer, schedule, feed, stage, settings, Log(None)),
                checkpoints=kept,
            )
        except Exception as error:
            errors.append(error)
            threads.barrier.abort()

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not errors, errors
    assert 3 <= len(tried) <= 5, tried
    assert min(later - step for step, later in itertools.pairwise(tried)) >= 6


@pytest.mark.parametrize("moment", ["evaluate", "make_batch"])
def test_a_signal_costs_no_step_after_it(accelerator, tmp_path, moment):
    """Also one that comes at the end of an evaluation."""
    stage, calls = finetuning_stage(), []
    inner = getattr(stage, moment)

    def signalled(*arguments):
        calls.append(arguments)
        if len(calls) == (1 if moment == "evaluate" else 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*arguments)

    setattr(stage, moment, signalled)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Interrupted, match="SIGTERM after step 4 of 9"):
        run(
            *(accelerator, classifier(), stage, LoopSettings(9, eval_steps=4), feed_of(8)),
            checkpoints=checkpoints,
        )
    _, state = checkpoints.load_latest()
    assert len(state["progress"]["unlogged"]) == state["progress"]["step"] == 4


def test_each_process_resumes_its_own_random_state(accelerator, tmp_path, monkeypatch):
    """Attention dropout draws from torch's generator, as often as a process has images."""
    other = torch.Generator().manual_seed(9).get_state()

    def two(mine):
        return [
            *mine,
            {"cpu": other} if isinstance(mine[0], dict) and "cpu" in mine[0] else mine[0],
        ]

    monkeypatch.setattr("sssd_hf.training.state.gather_object", two)
    states = []
    for rank, resume in ((0, None), (0, "latest"), (1, "latest")):
        torch.manual_seed(4)
        expected = torch.get_rng_state()
        monkeypatch.setattr(type(accelerator), "process_index", rank)
        model = classifier()
        torch.set_rng_state(torch.Generator().manual_seed(5).get_state() if resume else expected)
        run(
            *(accelerator, model, finetuning_stage(), LoopSettings(2), feed_of(8)),
            checkpoints=Checkpoints(tmp_path, every_steps=2),
            resume=resume,
        )
        states.append(torch.get_rng_state())
    assert torch.equal(states[1], states[0])
    assert torch.equal(states[2], other)


def test_resuming_before_the_first_checkpoint_starts_the_log_anew(accelerator, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')  # of a run that was killed
    records, _ = run(
        *(accelerator, classifier(), finetuning_stage(), LoopSettings(3, logging_steps=1)),
        *(feed_of(8), path),
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
        resume="latest",
    )
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[0]["loss"] != 9.0


def test_what_watches_the_log_is_told_the_past(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "target_std": 0.5}\n{"step": 2, "target_std": 0.4}\n')
    seen = []
    Log(path, watch=seen.append).rewind(1)
    assert seen == [{"step": 1, "target_std": 0.5}]


def test_the_log_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Log(path).write({"step": 1, "a": math.inf, "b": -math.inf, "c": math.nan, "d": 2.5})
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "a": None, "b": None, "c": None, "d": 2.5}


def test_processes_that_go_on_from_other_steps_stop(accelerator, tmp_path, monkeypatch):
    """As where a second machine does not see the first one's checkpoints."""
    monkeypatch.setattr("sssd_hf.training.loop.gather_object", lambda mine: [5, *mine])
    with pytest.raises(CheckpointError, match=r"go on from the steps \[5, 0\].*--output_dir"):
        run(
            *(accelerator, classifier(), finetuning_stage(), LoopSettings(3), feed_of(8)),
            checkpoints=Checkpoints(tmp_path),
            resume="latest",
        )


def test_an_average_may_begin_at_a_resume(accelerator, tmp_path):
    """It begins with the weights of the checkpoint, not with those the model was made with."""
    for resume in (None, "latest"):
        model = classifier()
        average = WeightAverage(model, 0.5) if resume else None
        run(
            *(accelerator, model, finetuning_stage(), LoopSettings(3), feed_of(8)),
            average=average,
            checkpoints=Checkpoints(tmp_path, every_steps=3),
            resume=resume,
        )
    tensors, _ = read_checkpoint(tmp_path / "step-00000003")
    assert "average" not in tensors
    for name, value in average.values.items():
        assert torch.equal(value, tensors["model"][name]), name


def test_weights_that_are_not_finite_are_no_checkpoint(accelerator, tmp_path):
    """The loss of a step may be finite where its gradient is not: only the next one tells."""
    stage, model = finetuning_stage(), classifier()

    def after_step(step, sums):
        if step == 4:
            with torch.no_grad():
                model.classifier.bias[0] = math.inf
        return {}

    stage.after_step = after_step
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    with pytest.raises(FloatingPointError, match=r"not finite after step 4\. .*--learning_r"):
        run(
            *(accelerator, model, stage, LoopSettings(8), feed_of(8)),
            checkpoints=checkpoints,
        )
    assert [folder.name for folder in checkpoints.found()] == ["step-00000002"]


def test_nor_are_those_of_a_run_that_a_signal_ends_while_it_evaluates(accelerator, tmp_path):
    stage, model = finetuning_stage(), classifier()

    def evaluate(step, heed_signals):
        with torch.no_grad():
            model.classifier.bias[0] = math.nan
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    stage.evaluate = evaluate
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(FloatingPointError, match="not finite after step 4"):
        run(
            *(accelerator, model, stage, LoopSettings(8, eval_steps=4), feed_of(8)),
            checkpoints=checkpoints,
        )
    assert not checkpoints.found()


@pytest.mark.parametrize("options", [{"every_minutes": 10}, {"every_steps": 100}, {}])
def test_the_end_of_a_run_is_kept(options, accelerator, tmp_path, monkeypatch):
    """What follows, a plot on a full disk, may fail; but not where there is little to lose."""
    checkpoints = Checkpoints(tmp_path, **options)
    for seconds, kept in ((30, []), (90, ["step-00000003"] if options else [])):
        checkpoints._last = time.monotonic() - seconds
        run(
            *(accelerator, classifier(), finetuning_stage(), LoopSettings(3), feed_of(8)),
            checkpoints=checkpoints,
        )
        assert [folder.name for folder in checkpoints.found()] == kept
    if kept:
        never = Stage(*5 * [pytest.fail])
        _, result = run(
            *(accelerator, classifier(), never, LoopSettings(3), feed_of(8)),
            checkpoints=checkpoints,
            resume="latest",
        )
        assert result["train_steps"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_costs_the_log_alone(accelerator, caplog):
    records, _ = run(
        *(accelerator, classifier(), finetuning_stage(), LoopSettings(3, logging_steps=1)),
        *(feed_of(8), Path("/dev/full")),
    )
    assert [record["step"] for record in records] == [1, 2, 3]
    assert caplog.text.count("/dev/full could not be written") == 1


def test_a_line_of_the_log_is_whole_or_not_there(tmp_path, monkeypatch):
    path, full = tmp_path / "metrics.jsonl", [False, True, False]

    class Disk(io.FileIO):
        def write(self, line):
            return super().write(line[:5] if full.pop(0) else line)

    monkeypatch.setattr(log_module, "open", lambda p, *_, **__: Disk(p, "ab"), raising=False)
    log = Log(path)
    for step in (1, 2, 3):
        log.write({"step": step})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_value_that_is_not_known_is_no_part_of_a_mean(accelerator):
    stage, records = finetuning_stage(), []
    known = {1: 1.0, 2: math.nan, 3: 3.0, 4: math.nan}
    stage.after_step = lambda step, sums: {"spread": torch.tensor(known[step])}
    records, _ = run(
        *(accelerator, classifier(), stage, LoopSettings(4, logging_steps=2), feed_of(8))
    )
    assert [record["spread"] for record in records if "spread" in record] == [1, 3]


def test_log_is_json_lines(accelerator, tmp_path):
    path = tmp_path / "metrics.jsonl"
    stage = finetuning_stage()
    evaluated = []

    def evaluate(step, heed_signals):
        evaluated.append(step)
        return {"eval_accuracy": 0.5, "eval_roc_auc": math.nan}

    stage.evaluate = evaluate
    settings = LoopSettings(10, logging_steps=3, eval_steps=4)
    model = classifier(drop_path_rate=0.0)
    records, result = run(accelerator, model, stage, settings, feed_of(8), path)
    assert model.training, "evaluation gives the model back in training mode"
    lines = path.read_text().splitlines()
    parsed = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # no NaN
    assert parsed == records
    steps = [record["step"] for record in parsed if "loss" in record]
    assert steps == [3, 6, 9, 10]
    assert evaluated == [4, 8, 10]
    assert [r["step"] for r in parsed if "eval_accuracy" in r] == evaluated
    assert all(r["eval_roc_auc"] is None for r in parsed if "eval_accuracy" in r)
    assert all(r["epoch"] == r["step"] / 4 for r in parsed)
    assert result["train_runtime"] > 0
    assert result["train_images_per_second"] > 0
    # a line has the mean over its steps
    single = LoopSettings(10, logging_steps=1)
    every, _ = run(
        accelerator, classifier(drop_path_rate=0.0), finetuning_stage(), single, feed_of(8)
    )
    losses = [r["loss"] for r in every]
    found = [r["loss"] for r in parsed if "loss" in r]
    means = [sum(losses[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 9), (9, 10))]
    assert found == pytest.approx(means, rel=1e-5)


def test_speed_leaves_evaluation_out(accelerator, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("sssd_hf.training.loop.time.perf_counter", lambda: clock.now)
    stage = finetuning_stage()
    inner = stage.make_batch

    def make(draw):
        clock.now += 1
        return inner(draw)

    def evaluate(step, heed_signals):
        clock.now += 100
        return {"eval_accuracy": 1.0}

    stage.make_batch, stage.evaluate = make, evaluate
    settings = LoopSettings(3, logging_steps=1, eval_steps=1)
    records, result = run(accelerator, classifier(), stage, settings, feed_of(8))
    assert result["train_images_per_second"] == pytest.approx(8)
    assert result["train_runtime"] == pytest.approx(303)
    assert [r["images_per_second"] for r in records if "loss" in r] == pytest.approx([8] * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(accelerator, value, tmp_path):
    stage = finetuning_stage()
    inner = stage.make_batch
    calls = []

    def make(draw):
        calls.append(draw.index.tolist())
        batch = inner(draw)
        if len(calls) == 5:
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], value)
        return batch

    stage.make_batch = make
    settings = LoopSettings(50, logging_steps=4)
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(FloatingPointError, match=r"at step 5\..*--learning_rate") as caught:
        run(accelerator, classifier(), stage, settings, feed_of(8), path)
    assert len(calls) == 8, "noticed at the next line of the log"
    assert f"(indices {calls[4]})" in str(caught.value)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_an_evaluation_that_is_due_when_a_signal_comes_is_made_up_for(accelerator, tmp_path):
    """It may take long, and a cluster waits for seconds: the resumed run begins with it."""
    settings, evaluated = LoopSettings(6, logging_steps=1, eval_steps=2), []

    def stage_of(signal_at):
        stage, calls = finetuning_stage(), []
        inner = stage.make_batch

        def make(draw):
            calls.append(draw)
            if len(calls) == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(draw)

        def evaluate(step, heed_signals):
            evaluated.append(step)
            return {"eval_accuracy": step / 6}

        stage.make_batch, stage.evaluate = make, evaluate
        return stage

    path, checkpoints = tmp_path / "metrics.jsonl", Checkpoints(tmp_path / "checkpoints")
    arguments = (settings, feed_of(8), path)
    with pytest.raises(Interrupted, match="after step 4 of 6"):
        run(accelerator, classifier(), stage_of(4), *arguments, checkpoints=checkpoints)
    assert evaluated == [2]
    options = {"checkpoints": checkpoints, "resume": "latest"}
    records, _ = run(accelerator, classifier(), stage_of(0), *arguments, **options)
    assert evaluated == [2, 4, 6]
    whole, _ = run(accelerator, classifier(), stage_of(0), settings, feed_of(8))
    speed = "images_per_second"
    assert [{k: v for k, v in r.items() if k != speed} for r in records] == [
        {k: v for k, v in r.items() if k != speed} for r in whole
    ]


def test_weights_keep_their_names_where_accelerate_compiles(tmp_path):
    """As a dynamo backend in Accelerate's config asks it to."""
    accelerator = Accelerator(cpu=True, dynamo_backend="eager")
    model, checkpoints = classifier(), Checkpoints(tmp_path, every_steps=1)
    settings = LoopSettings(1, logging_steps=1)
    run(accelerator, model, finetuning_stage(), settings, feed_of(8, 1), checkpoints=checkpoints)
    tensors, _ = read_checkpoint(checkpoints.found()[0])
    assert set(tensors["model"]) == set(model.state_dict())
