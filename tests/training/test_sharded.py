"""FSDP2: weights sharded over two processes train as one, and write the same checkpoints.

Accelerate makes no FSDP of CPU processes, so torch's `fully_shard` is applied here; the loop, the
checkpoints and the average then see what they see under `accelerate launch --use_fsdp`.
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
import json, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from sssd_hf.cli.runs import whole_model
from sssd_hf.training.averaging import WeightAverage
from sssd_hf.training.checkpoints import Checkpoints
from sssd_hf.training.loop import Log, LoopSettings, train
from sssd_hf.training.optimization import cosine_with_warmup
from test_loop import EPS, RATE, feed_of, pretraining_model, pretraining_stage

folder, resume, batch = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
accelerator = Accelerator(cpu=True)
model = pretraining_model("sd_mae")
if accelerator.num_processes > 1:
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(hasattr(p, "full_tensor") for p in model.parameters())
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=RATE, eps=EPS)
settings = LoopSettings(12, max_grad_norm=0.5, logging_steps=1)
feed = feed_of(batch, 1, accelerator.num_processes, accelerator.process_index)
average = WeightAverage(model, 0.9)
model.update_teacher(0, 12)
log = Log(folder / "metrics.jsonl" if accelerator.is_main_process else None)
schedule = partial(cosine_with_warmup, warmup_steps=2, total_steps=12)
checkpoints = Checkpoints(folder / "checkpoints", every_steps=5, limit=0)
stage = pretraining_stage(model, 12)
train(accelerator, model, optimizer, schedule, feed, stage, settings, log, average, checkpoints,
      resume)
average.copy_to_model()
whole = whole_model(model)
if accelerator.is_main_process:
    whole.save_pretrained(folder)
"""


def run(folder, processes, batch, resume=""):
    folder.mkdir(exist_ok=True)
    script = folder / "worker.py"
    script.write_text(f"TESTS = {str(Path(__file__).parent)!r}\n{WORKER}")
    line = [sys.executable]
    if processes > 1:
        line += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        line += [str(processes)]
    line += [str(script), str(folder), resume, str(batch)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(text)["loss"] for text in lines]
    return losses, load_file(folder / "model.safetensors")


def close(tensors, others):
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert value.shape == others[name].shape, name
        torch.testing.assert_close(value, others[name], atol=2e-5, rtol=1e-4, msg=name)


def test_sharded_weights_train_and_resume_as_whole_ones(tmp_path):
    losses, weights = run(tmp_path / "one", 1, 8)
    sharded_losses, sharded_weights = run(tmp_path / "two", 2, 4)
    assert sharded_losses == pytest.approx(losses, rel=1e-5)
    close(weights, sharded_weights)
    for step in (5, 10):
        name = f"checkpoints/step-{step:08d}"
        one, two = (tmp_path / part / name for part in ("one", "two"))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
        for part in ("model", "optimizer", "average"):
            close(load_file(one / f"{part}.safetensors"), load_file(two / f"{part}.safetensors"))
    # sharded ones go on from a whole one's checkpoint, and the other way round
    start = tmp_path / "one/checkpoints/step-00000005"
    _, resumed = run(tmp_path / "two_from_one", 2, 4, str(start))
    close(weights, resumed)
    start = tmp_path / "two/checkpoints/step-00000005"
    _, resumed = run(tmp_path / "one_from_two", 1, 8, str(start))
    close(weights, resumed)
