"""The loop against plain loops over whole batches, written here with torch alone."""

import itertools
import json
import math
import os
import signal
import threading
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli.batches import rank_batches
from sssd_hf.training.averaging import WeightAverage
from sssd_hf.training.checkpoints import CheckpointError, Checkpoints, read_checkpoint
from sssd_hf.training.feeds import ImageFeed
from sssd_hf.training.log import Log
from sssd_hf.training.loop import LoopSettings, Stage, train
from sssd_hf.training.optimization import cosine_with_warmup
from sssd_hf.training.seeding import epoch_order, image_seeds
from sssd_hf.training.signals import BrokenOff, Interrupted, StopSignals

FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 1,
    "distillation_num_prototypes": 16,
    "distillation_head_hidden_size": 16,
    "distillation_bottleneck_size": 8,
}
IMAGES, SEED, RATE, DECAY = 26, 5, 2e-3, 0.05
# above the rounding of gradients that are zero, such as that of attention's key bias
EPS = 1e-4
PIXELS = torch.randn(IMAGES, 1, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 3, (IMAGES,), generator=torch.Generator().manual_seed(2))
CLASS_WEIGHTS = [0.5, 2.0, 1.25]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def pretraining_model(preset):
    torch.manual_seed(0)
    return SSSDForPreTraining(SSSDConfig.from_size("tiny", distillation=preset, **FIELDS))


def classifier(**fields):
    torch.manual_seed(0)
    options = {"num_labels": 3, "drop_path_rate": 0.3, "label_smoothing": 0.1, **fields}
    options.setdefault("class_weights", CLASS_WEIGHTS)
    return SSSDForImageClassification(SSSDConfig(**FIELDS, **options))


def loop_batch(draw, labels=False):
    return make_batch(draw.index, draw.epoch, labels)


def make_batch(index, epoch, labels=False):
    batch = {
        "pixel_values": PIXELS[index],
        "sample_seeds": image_seeds(SEED, epoch, index, "model"),
    }
    return {**batch, "labels": LABELS[index]} if labels else batch


def pretraining_stage(model, total_steps):
    def after_step(step, sums):
        if sums is None:
            return {}
        model.update_teacher(step, total_steps, sums)
        return {"target_std": model.distillation.target_std(sums)}

    return Stage(
        make_batch=loop_batch,
        batch_weight=lambda batch: torch.tensor(float(len(batch["pixel_values"]))),
        log_values=lambda output: {"reconstruction_loss": output.reconstruction_loss},
        after_step=after_step,
        evaluate=lambda step, heed_signals: {},
    )


def finetuning_stage(class_weights=CLASS_WEIGHTS):
    weights = torch.tensor(class_weights)
    return Stage(
        make_batch=lambda draw: loop_batch(draw, labels=True),
        batch_weight=lambda batch: weights[batch["labels"]].sum(),
        log_values=lambda output: {},
        after_step=lambda step, sums: {},
        evaluate=lambda step, heed_signals: {},
    )


def feed_of(batch_size, accumulation=1, processes=1, rank=0):
    return ImageFeed(IMAGES, batch_size, accumulation, processes, rank, SEED)


def schedule_of(settings):
    return partial(cosine_with_warmup, warmup_steps=2, total_steps=settings.total_steps)


def run(accelerator, model, stage, settings, feed, path=None, **options):
    """-> the log's records, the result of `train`; the model has the final weights."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY, eps=EPS
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    records = []
    log, schedule = Log(path, watch=records.append), schedule_of(settings)
    result = train(
        accelerator, prepared, optimizer, schedule, feed, stage, settings, log, **options
    )
    return records, result


def reference(model, total_steps, global_batch, loss_of, after_step=None, max_grad_norm=None):
    """One forward a step over the whole global batch; AdamW written out. -> losses, rates."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    first, second = ([torch.zeros_like(p) for p in trained] for _ in range(2))
    per_epoch = math.ceil(IMAGES / global_batch)
    losses, rates = [], []
    for step in range(total_steps):
        epoch, place = divmod(step, per_epoch)
        index = epoch_order(SEED, epoch, IMAGES)[place * global_batch :][:global_batch]
        progress = (step - 2) / max(1, total_steps - 2)
        rate = RATE * ((step + 1) / 2 if step < 2 else 0.5 + 0.5 * math.cos(math.pi * progress))
        loss, output = loss_of(model, index, epoch)
        model.zero_grad()
        loss.backward()
        gradients = [p.grad for p in trained]
        if max_grad_norm is not None:
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            gradients = [g * min(1.0, max_grad_norm / norm.item()) for g in gradients]
        with torch.no_grad():
            for p, g, m, v in zip(trained, gradients, first, second):
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                unbiased = v / (1 - 0.999 ** (step + 1))
                p.mul_(1 - rate * DECAY)
                p.sub_(rate * (m / (1 - 0.9 ** (step + 1))) / (unbiased.sqrt() + EPS))
        if after_step is not None:
            after_step(step + 1, output)
        losses.append(loss.item())
        rates.append(rate)
    return losses, rates


def pretraining_loss(model, index, epoch):
    output = model(**make_batch(index, epoch))
    return output.loss, output


def classification_loss(model, index, epoch):
    """Class weights and smoothing by their definition: a mean weighted by the labels' weights,
    of which smoothing gives each class its share of the (weighted) log-probabilities."""
    batch = make_batch(index, epoch)
    log_p = F.log_softmax(model(**batch).logits, dim=-1)
    weights, labels = torch.tensor(CLASS_WEIGHTS), LABELS[index]
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    loss = -(target * weights * log_p).sum() / weights[labels].sum()
    return loss, None


def check_equal(model, expected, losses, expected_losses):
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    pairs = zip(model.state_dict().items(), expected.state_dict().values())
    for (name, tensor), other in pairs:
        assert torch.allclose(tensor, other, atol=2e-6, rtol=1e-5), name


@pytest.mark.parametrize("preset", ["mae", "stable", "sd_mae", "global"])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2)])
def test_pretraining_equals_the_reference(accelerator, preset, batch_size, accumulation):
    settings = LoopSettings(9, logging_steps=1)
    model, expected = pretraining_model(preset), pretraining_model(preset)
    for each in (model, expected):
        each.update_teacher(0, 9)
    records, _ = run(
        accelerator,
        model,
        pretraining_stage(model, settings.total_steps),
        settings,
        feed_of(batch_size, accumulation),
    )

    def after_step(step, output):
        expected.update_teacher(step, 9, output.distillation_statistics)

    losses, rates = reference(expected, 9, 8, pretraining_loss, after_step)
    assert [r["learning_rate"] for r in records] == pytest.approx(rates)
    check_equal(model, expected, [r["loss"] for r in records], losses)
    if preset == "sd_mae":
        assert expected.distillation.teacher_center.abs().max() > 0
        assert expected.distillation.teacher_step == 9


@pytest.mark.parametrize("kind", ["ema", "standardize_per_position"])
def test_the_teacher_steps_once_a_step_whatever_the_parts(accelerator, kind):
    fields = {
        "ema": {"distillation_head": "dino", "distillation_distance": "cross_entropy"},
        "standardize_per_position": {"distillation_target": "standardize_per_position"},
    }[kind]
    results = []
    for batch_size, accumulation in ((16, 1), (2, 8)):
        settings = LoopSettings(6, logging_steps=1)
        torch.manual_seed(0)
        model = SSSDForPreTraining(SSSDConfig(**FIELDS, **fields))
        records, _ = run(
            accelerator,
            model,
            pretraining_stage(model, settings.total_steps),
            settings,
            feed_of(batch_size, accumulation),
        )
        results.append((model, [r["loss"] for r in records], [r["target_std"] for r in records]))
    (model, losses, spreads), (other, other_losses, other_spreads) = results
    check_equal(model, other, losses, other_losses)
    assert spreads == pytest.approx(other_spreads, rel=1e-3)
    moved = [k for k in model.state_dict() if k.startswith("distillation.teacher_")]
    assert len(moved) > 3


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (3, 3)])
def test_finetuning_equals_the_reference(accelerator, batch_size, accumulation):
    """With class weights: the parts of a batch do not weigh the same."""
    settings = LoopSettings(8, logging_steps=1)
    model, expected = classifier(), classifier()
    records, _ = run(
        accelerator, model, finetuning_stage(), settings, feed_of(batch_size, accumulation)
    )
    losses, _ = reference(expected, 8, batch_size * accumulation, classification_loss)
    check_equal(model, expected, [r["loss"] for r in records], losses)


def test_part_batches_of_another_mean_would_differ(accelerator):
    """The test above can fail: a plain mean of part batches' means is another loss."""
    index = epoch_order(SEED, 0, IMAGES)[:8]
    model = classifier(drop_path_rate=0.0)
    whole = classification_loss(model, index, 0)[0]
    parts = torch.stack([classification_loss(model, part, 0)[0] for part in index.split(2)])
    assert abs(parts.mean() - whole) > 1e-3 * whole


def test_accumulating_2_x_8_equals_16(accelerator):
    found = []
    for batch_size, accumulation in ((16, 1), (8, 2), (1, 16)):
        settings = LoopSettings(6, logging_steps=1)
        model = classifier()
        records, _ = run(
            accelerator, model, finetuning_stage(), settings, feed_of(batch_size, accumulation)
        )
        found.append([r["loss"] for r in records])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_clipping_is_of_the_whole_gradient(accelerator):
    settings = LoopSettings(4, max_grad_norm=0.05, logging_steps=1)
    model, expected = classifier(), classifier()
    records, _ = run(accelerator, model, finetuning_stage(), settings, feed_of(4, 2))
    losses, _ = reference(expected, 4, 8, classification_loss, max_grad_norm=0.05)
    check_equal(model, expected, [r["loss"] for r in records], losses)


def test_every_image_once_an_epoch(accelerator):
    """26 images in batches of 8 are 4 steps: 8, 8, 8 and 2; the next epoch starts anew."""
    seen = []
    stage = finetuning_stage()
    inner = stage.make_batch

    def make(draw):
        assert draw.epoch.unique().numel() == 1
        seen.append((draw.epoch[0].item(), draw.index.tolist()))
        return inner(draw)

    stage.make_batch = make
    settings = LoopSettings(9)
    assert feed_of(4, 2).steps_per_epoch == 4
    assert feed_of(4, 2, processes=2).steps_per_epoch == 2
    run(accelerator, classifier(), stage, settings, feed_of(4, 2))
    for epoch in (0, 1):
        images = [i for e, index in seen if e == epoch for i in index]
        assert sorted(images) == list(range(IMAGES))
    assert {e for e, _ in seen} == {0, 1, 2}
    assert max(len(index) for _, index in seen) == 4


class Threads:
    """What the loop asks of an accelerator, for processes that are threads here."""

    def __init__(self, processes):
        self.processes = processes
        self.barrier = threading.Barrier(processes, timeout=60)
        self.box = [None] * processes

    def sum(self, rank, tensor):
        self.box[rank] = tensor.detach()
        self.barrier.wait()
        total = torch.stack(list(self.box)).sum(0)
        self.barrier.wait()
        return total

    def accelerator(self, rank):
        def reduce(value, kind):
            assert kind == "sum"
            if isinstance(value, dict):
                return {key: self.sum(rank, tensor) for key, tensor in value.items()}
            return self.sum(rank, value)

        return SimpleNamespace(
            device=torch.device("cpu"),
            num_processes=self.processes,
            process_index=rank,
            is_main_process=rank == 0,
            reduce=reduce,
            no_sync=lambda model: nullcontext(),
            unwrap_model=lambda model: model,
            backward=lambda loss: loss.backward(),
        )

    def average_gradients(self, rank, optimizer):
        """As DistributedDataParallel does, before each step."""

        def average(optimizer, *unused):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = self.sum(rank, parameter.grad) / self.processes

        optimizer.register_step_pre_hook(average)


@pytest.mark.parametrize("preset", ["sd_mae", "stable"])
def test_shares_of_processes_give_the_reference(preset):
    """26 images in global batches of 12 leave 2 for three processes: one has none."""
    steps, threads = 7, Threads(3)
    settings = LoopSettings(steps, logging_steps=1)
    models = [pretraining_model(preset) for _ in range(3)]
    records, errors = [[] for _ in range(3)], []

    def work(rank):
        model = models[rank]
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, eps=EPS)
        threads.average_gradients(rank, optimizer)
        schedule, feed = schedule_of(settings), feed_of(2, 2, 3, rank)
        stage = pretraining_stage(model, steps)
        try:
            accelerator = threads.accelerator(rank)
            log = Log(None, watch=records[rank].append)
            train(accelerator, model, optimizer, schedule, feed, stage, settings, log)
        except Exception as error:
            errors.append(error)
            threads.barrier.abort()

    expected = pretraining_model(preset)
    for model in (*models, expected):
        model.update_teacher(0, steps)
    running = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not errors, errors

    def after_step(step, output):
        expected.update_teacher(step, steps, output.distillation_statistics)

    losses, _ = reference(expected, steps, 12, pretraining_loss, after_step)
    for model, lines in zip(models, records):
        check_equal(model, expected, [r["loss"] for r in lines], losses)


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
