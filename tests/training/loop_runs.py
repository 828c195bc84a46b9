"""What the tests of the loop share: models, stages, the plain loop they are compared with, and
processes that are threads."""

import math
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.training.feeds import ImageFeed
from sssd_hf.training.log import Log
from sssd_hf.training.loop import Stage, train
from sssd_hf.training.optimization import cosine_with_warmup
from sssd_hf.training.seeding import epoch_order, image_seeds

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
            unwrap_model=lambda model, **options: model,
            backward=lambda loss: loss.backward(),
        )

    def average_gradients(self, rank, optimizer):
        """As DistributedDataParallel does, before each step."""

        def average(optimizer, *unused):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = self.sum(rank, parameter.grad) / self.processes

        optimizer.register_step_pre_hook(average)
