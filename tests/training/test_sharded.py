"""FSDP2: weights sharded over two processes train as one, and write the same checkpoints.

Accelerate makes no FSDP of CPU processes by itself; told to, its own code shards the model here, as
under `accelerate launch --use_fsdp`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

WORKER = """
import json, os, signal, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sssd_hf.cli.batches import image_features, predict_probabilities
from sssd_hf.cli.pretrain import held_out_losses
from sssd_hf.cli.runs import whole_model
from sssd_hf.data.cache import Images
from sssd_hf.training.averaging import WeightAverage
from sssd_hf.training.checkpoints import Checkpoints
from sssd_hf.training.log import Log
from sssd_hf.training.loop import LoopSettings, train
from sssd_hf.training.optimization import cosine_with_warmup
from sssd_hf.training.signals import Interrupted
from sssd_hf.cli.common import leave_processes
from loop_runs import (
    EPS, RATE, classifier, feed_of, finetuning_stage, pretraining_model, pretraining_stage)

folder, resume, batch = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
kind, policy = sys.argv[4:6]
signal_at = int(sys.argv[6])  # batch of its evaluations in which the second process is told to stop
accelerator = Accelerator(cpu=True)
if accelerator.num_processes > 1:
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=policy, cpu_ram_efficient_loading=False)
model = pretraining_model("sd_mae") if kind == "pretrain" else classifier()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=RATE, eps=EPS)
prepared, optimizer = accelerator.prepare(model, optimizer)
assert prepared is model
if accelerator.num_processes > 1:
    assert all(hasattr(p, "full_tensor") for p in model.parameters())
settings = LoopSettings(12, max_grad_norm=0.5, logging_steps=1, eval_steps=4)
feed = feed_of(batch, 1, accelerator.num_processes, accelerator.process_index)
average = WeightAverage(model, 0.9)
log = Log(folder / "metrics.jsonl" if accelerator.is_main_process else None)
schedule = partial(cosine_with_warmup, warmup_steps=2, total_steps=12)
checkpoints = Checkpoints(folder / "checkpoints", every_steps=5, limit=0)
held_out = torch.randint(0, 256, (7, 1, 32, 32), generator=torch.Generator().manual_seed(7))
held_out = Images(torch.arange(7), None, held_out.byte())
common = held_out, ([0.5], [0.5]), 2

batches = []

def evaluate(step, heed):
    def heed_signals():
        heed()
        batches.append(step)
        if accelerator.process_index == 1 and len(batches) == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    if kind == "finetune":
        values = predict_probabilities(model, *common, accelerator, heed_signals)
        return {"eval_probability": values[:, 0].mean()}
    if resume and not batches:  # FSDP2's very first forward must be the whole model's, as it is in
        held_out_losses(model, *common, accelerator)  # the evaluation of cli/pretrain.py
    # the encoder alone first: its weights must be gathered without the whole model's being called
    features = image_features(model, *common, accelerator, heed_signals)
    losses = held_out_losses(model, *common, accelerator, heed_signals)
    return {"eval_feature": abs(features).mean(), **losses}

if kind == "pretrain":
    model.update_teacher(0, 12)
    stage = pretraining_stage(model, 12)
else:
    stage = finetuning_stage()
stage.evaluate = evaluate
try:
    train(accelerator, model, optimizer, schedule, feed, stage, settings, log, average, checkpoints,
          resume)
except Interrupted as stop:
    assert f"after step {batches[-1]} of 12" in str(stop), stop
    assert len(batches) == signal_at, (batches, signal_at)
    sys.stdout.flush()
    os._exit(0)  # as run_script leaves: gloo's threads may abort a plain exit
assert not signal_at
average.copy_to_model()
whole = whole_model(model)
if accelerator.is_main_process:
    whole.save_pretrained(folder)
leave_processes()
"""


def run(folder, processes, batch, resume="", kind="pretrain", policy="no_wrap", signal_at=0):
    """-> the log, the weights; of a run that was stopped, only the former."""
    folder.mkdir(exist_ok=True)
    script = folder / "worker.py"
    script.write_text(f"TESTS = {str(Path(__file__).parent)!r}\n{WORKER}")
    line = [sys.executable]
    if processes > 1:
        line += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        line += [str(processes)]
    line += [str(script), str(folder), resume, str(batch), kind, policy, str(signal_at)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    values = [{**json.loads(text), "images_per_second": 0} for text in lines]
    return values, None if signal_at else load_file(folder / "model.safetensors")


def close(tensors, others):
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert value.shape == others[name].shape, name
        torch.testing.assert_close(value, others[name], atol=2e-5, rtol=1e-4, msg=name)


def check_logs(log, expected):
    """Steps are logged with the weights, evaluations in between with their average."""
    assert len(log) == len(expected) == 15
    for line, other in zip(log, expected):
        assert line == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "policy"), [("pretrain", "transformer_based_wrap"), ("finetune", "no_wrap")]
)
def test_sharded_weights_train_and_resume_as_whole_ones(tmp_path, kind, policy):
    options = {"kind": kind, "policy": policy}
    log, weights = run(tmp_path / "one", 1, 8, **options)
    sharded_log, sharded_weights = run(tmp_path / "two", 2, 4, **options)
    check_logs(sharded_log, log)
    close(weights, sharded_weights)
    for step in (5, 10):
        name = f"checkpoints/step-{step:08d}"
        one, two = (tmp_path / part / name for part in ("one", "two"))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
        for part in ("model", "optimizer", "average"):
            close(load_file(one / f"{part}.safetensors"), load_file(two / f"{part}.safetensors"))
    # sharded ones go on from a whole one's checkpoint, and the other way round
    start = tmp_path / "one/checkpoints/step-00000005"
    _, resumed = run(tmp_path / "two_from_one", 2, 4, str(start), **options)
    close(weights, resumed)
    start = tmp_path / "two/checkpoints/step-00000005"
    _, resumed = run(tmp_path / "one_from_two", 1, 8, str(start), **options)
    close(weights, resumed)


@pytest.mark.parametrize(
    ("kind", "policy", "signal_at"),
    [("pretrain", "transformer_based_wrap", 4 + 3), ("finetune", "no_wrap", 2 + 1)],
)
def test_sharded_processes_leave_an_evaluation_together(tmp_path, kind, policy, signal_at):
    """In the second evaluation, of which each process has 4 batches, or 2; its layers gather their
    weights from both processes, so that one which left alone would hold up the other forever."""
    options = {"kind": kind, "policy": policy}
    expected, weights = run(tmp_path / "whole", 2, 4, **options)
    log, _ = run(tmp_path / "out", 2, 4, **options, signal_at=signal_at)
    assert log == expected[: len(log)]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 4, 5, 6, 7, 8], "not the evaluation's"
    log, resumed = run(tmp_path / "out", 2, 4, "latest", **options)
    assert log == expected
    assert resumed.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(value, resumed[name]), name


HALF = """
import sys
sys.path.insert(0, TESTS)
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sssd_hf import SSSDConfig, SSSDForPreTraining
from sssd_hf.cli.common import prepare_sharding
from loop_runs import FIELDS, PIXELS

accelerator = Accelerator(cpu=True, mixed_precision="bf16")
plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False)
plugin.set_mixed_precision("bf16")
prepare_sharding(plugin)
AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
AcceleratorState._shared_state["fsdp_plugin"] = plugin
torch.manual_seed(0)
dino = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}
model = SSSDForPreTraining(SSSDConfig(**FIELDS, **dino))
seeds = torch.arange(4)
exact = model(PIXELS[:4], sample_seeds=seeds)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
model, optimizer = accelerator.prepare(model, optimizer)
output = model(PIXELS[:4], sample_seeds=seeds)
accelerator.backward(output.loss)
optimizer.step()
model.update_teacher(1, 10, output.distillation_statistics)
assert output.logits.dtype == torch.bfloat16, "the layers compute in half precision"
assert output.loss.dtype == torch.float32
assert all(v.dtype == torch.float32 for v in output.distillation_statistics.values())
torch.testing.assert_close(output.loss, exact.loss, rtol=2e-2, atol=0)
assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
"""


def test_losses_and_the_teacher_are_exact_in_half_precision(tmp_path):
    """The default teacher of a DINO head is an average in fp32, which FSDP2 casts as the rest."""
    script = tmp_path / "worker.py"
    script.write_text(f"TESTS = {str(Path(__file__).parent)!r}\n{HALF}")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, str(script)], capture_output=True, text=True, timeout=90, env=environment
    )
    assert done.returncode == 0, done.stderr
