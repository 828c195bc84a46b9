"""Both heads under `transformers.Trainer`, and the callback that steps the teacher."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from model_helpers import images, largest_difference, randomize, tiny_config
from transformers import Trainer, TrainerCallback, TrainingArguments

from sssd_hf import DISTILLATION_PRESETS, SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.training.callbacks import SelfDistillationCallback

DINO = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}


def dataset(labels=False, count=16):
    """Stripes down or across, in two classes: easy to tell and to predict."""
    rows = []
    for i in range(count):
        wave = torch.sin(torch.arange(32.0) * 0.7 + i).expand(32, 32)
        pixels = (wave if i % 2 else wave.T).expand(3, 32, 32).contiguous()
        rows.append({"pixel_values": pixels, **({"labels": i % 2} if labels else {})})
    return rows


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        logging_steps=1, learning_rate=3e-3, seed=0,
        **{"per_device_train_batch_size": 8, **options},
    )  # fmt: skip


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("preset", DISTILLATION_PRESETS)
def test_pretraining_loss_falls(tmp_path, preset):
    fields = {"num_hidden_layers": 1, **DISTILLATION_PRESETS[preset]}
    model = SSSDForPreTraining(tiny_config(**fields))
    trainer = Trainer(
        model,
        # as transformers' own MAE example has it; without labels there is no loss in evaluation
        arguments(tmp_path, max_steps=25, label_names=["pixel_values"]),
        train_dataset=dataset(),
        eval_dataset=dataset(),
        callbacks=[SelfDistillationCallback()],
    )
    trainer.train()
    found = losses(trainer)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert trainer.evaluate()["eval_loss"] < found[0]
    if model.distillation is not None:
        assert model.distillation.teacher_step.item() == 25


def test_classifier_learns_and_predicts(tmp_path):
    model = SSSDForImageClassification(tiny_config(drop_path_rate=0.1))
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=30),
        train_dataset=dataset(labels=True),
        eval_dataset=dataset(labels=True),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    assert trainer.evaluate()["eval_accuracy"] == 1.0


class Witness(TrainerCallback):
    """Works out by itself what each step should make of the teacher; runs after the callback."""

    def __init__(self, model):
        self.model, self.outputs, self.checked = model, [], 0
        model.register_forward_hook(lambda _m, _a, out: self.outputs.append(out))

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = {k: v.clone() for k, v in self.model.distillation.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        head, before = self.model.distillation, self.before
        sums = [out.distillation_statistics for out in self.outputs]
        assert len(sums) == args.gradient_accumulation_steps
        images_seen = sum(s["images"] for s in sums)
        assert images_seen == 16
        assert head.teacher_step.item() == state.global_step
        warm = min(1.0, state.global_step / (0.5 * state.max_steps))
        assert head.teacher_weight.item() == pytest.approx(0.2 * warm)
        centre = sum(s["probability_sum"] for s in sums) / images_seen
        expected = 0.9 * before["teacher_center"] + 0.1 * centre
        assert largest_difference(head.teacher_center, expected) < 1e-6
        count = sum(s["count"] for s in sums)
        assert count == 16 * 4
        expected = 0.9 * before["teacher_mean"] + 0.1 * sum(s["sum"] for s in sums) / count
        assert largest_difference(head.teacher_mean, expected) < 1e-5
        expected = 0.996 * before["teacher_ema.prototypes"] + 0.004 * head.student_head.prototypes
        assert largest_difference(head.teacher_ema.prototypes, expected) < 1e-6
        moved = not torch.equal(head.student_head.prototypes, before["student_head.prototypes"])
        assert moved == (state.global_step > 1)  # the weight of the first step is zero
        self.outputs.clear()
        self.checked += 1


def test_the_callback_steps_the_teacher_once_an_optimiser_step(tmp_path):
    fields = {"distillation_target": "standardize", "distillation_warmup_ratio": 0.5, **DINO}
    model = SSSDForPreTraining(tiny_config(**fields))
    callback, witness = SelfDistillationCallback(), Witness(model)
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2),
        train_dataset=dataset(),
        callbacks=[callback, witness],
    )
    trainer.train()
    assert witness.checked == 4
    assert not callback.statistics
    assert callback.hook is None
    model.eval()(images(2, 3, 32, 32))  # after training nothing is collected
    assert not callback.statistics


def test_part_batches_make_the_step_of_the_whole_batch(tmp_path):
    """With labels in the batch, for which Trainer would leave the mean to a model that asks."""
    norms = []
    for batch, parts in ((16, 1), (4, 4)):
        torch.manual_seed(0)
        model = SSSDForImageClassification(tiny_config())
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        trainer = Trainer(
            model, arguments(tmp_path, max_steps=1, **options), train_dataset=dataset(labels=True)
        )
        trainer.train()
        (entry,) = [e for e in trainer.state.log_history if "grad_norm" in e]
        norms.append((entry["loss"], entry["grad_norm"]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_the_callback_wants_a_pretraining_model():
    with pytest.raises(TypeError, match="Linear"):
        SelfDistillationCallback().on_train_begin(None, None, None, model=torch.nn.Linear(1, 1))


def test_one_process_with_several_gpus_is_refused():
    """DataParallel runs replicas, whose statistics nobody would sum."""
    args, state = SimpleNamespace(n_gpu=2), SimpleNamespace(global_step=0, max_steps=10)
    model = SSSDForPreTraining(tiny_config())
    with pytest.raises(ValueError, match=r"2 GPUs .*accelerate launch"):
        SelfDistillationCallback().on_train_begin(args, state, None, model=model)
    plain = SSSDForPreTraining(tiny_config(distillation_weight=0.0))
    SelfDistillationCallback().on_train_begin(args, state, None, model=plain)


CHILD = """
import sys, types
import torch
torch.set_num_threads(1)
from sssd_hf import SSSDForPreTraining
from sssd_hf.training.callbacks import SelfDistillationCallback
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
model = SSSDForPreTraining.from_pretrained(folder).train()
pixels, noise = torch.load(f"{folder}/inputs.pt", weights_only=True)
state = types.SimpleNamespace(global_step=0, max_steps=10)
callback = SelfDistillationCallback()
callback.on_train_begin(types.SimpleNamespace(n_gpu=1), state, None, model=model)
mine = slice(0, 3) if rank == 0 else slice(3, 8)
model(pixels[mine], noise=noise[mine])
state.global_step = 1
callback.on_step_end(None, state, None, model=model)
torch.save(model.distillation.state_dict(), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_callback_sums_over_processes(tmp_path):
    fields = {"distillation_target": "standardize_per_position", **DINO}
    model = randomize(SSSDForPreTraining(tiny_config(**fields))).train()
    model.distillation.teacher_variance.abs_()
    model.save_pretrained(tmp_path)
    pixels, noise = images(8, 3, 32, 32), torch.rand(8, 16)
    torch.save((pixels, noise), tmp_path / "inputs.pt")
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(rank), str(tmp_path)], env=os.environ)
        for rank in range(2)
    ]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    statistics = model(pixels, noise=noise).distillation_statistics
    model.update_teacher(1, 10, statistics)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key, value in model.distillation.state_dict().items():
        assert torch.equal(states[0][key], states[1][key]), key
        assert largest_difference(states[0][key], value) < 1e-5, key


def test_predictions_are_the_reconstruction_alone(tmp_path):
    model = SSSDForPreTraining(tiny_config())
    trainer = Trainer(model, arguments(tmp_path, label_names=["pixel_values"]))
    assert trainer.predict(dataset(count=9)).predictions.shape == (9, 16, 192)
