"""The loop against plain loops over whole batches, written here with torch alone."""

import threading

import pytest
import torch
from loop_runs import (
    DECAY,
    EPS,
    FIELDS,
    IMAGES,
    RATE,
    SEED,
    Threads,
    check_equal,
    classification_loss,
    classifier,
    feed_of,
    finetuning_stage,
    pretraining_loss,
    pretraining_model,
    pretraining_stage,
    reference,
    run,
    schedule_of,
)

from sssd_hf import SSSDConfig, SSSDForPreTraining
from sssd_hf.training.log import Log
from sssd_hf.training.loop import LoopSettings, train
from sssd_hf.training.seeding import epoch_order


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
    torch.manual_seed(0)
    start = SSSDForPreTraining(SSSDConfig(**FIELDS, **fields)).state_dict()
    teacher = {k: v for k, v in model.state_dict().items() if k.startswith("distillation.teacher_")}
    moved = {k.split(".")[1] for k, v in teacher.items() if not torch.equal(v, start[k])}
    own = {"ema": {"teacher_ema"}, "standardize_per_position": {"teacher_mean", "teacher_variance"}}
    assert moved >= {"teacher_step", *own[kind]}


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
