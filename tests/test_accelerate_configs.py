"""The configurations for `accelerate launch` and the SLURM script, as far as a CPU can run them."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cli"))
from test_launch import LONG, MODEL, command, environment, images, launch, weights

__all__ = ["images"]  # a fixture

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
SBATCH = REPOSITORY / "scripts/slurm/pretrain.sbatch"
PROCESSES = {"one_gpu": 1, "ddp": 4, "fsdp2": 4, "two_nodes": 8}


def launch_arguments(path):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return _validate_launch_command(arguments)[0]


def test_each_has_been_thought_of():
    assert {path.stem for path in CONFIGS} == set(PROCESSES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_it(path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    loaded = load_config_from_file(str(path))  # raises for an unknown key
    assert isinstance(loaded, ClusterConfig)
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(loaded.fsdp_config) <= options, "accelerate passes over unknown keys in here"
    arguments = launch_arguments(path)
    assert arguments.num_processes == PROCESSES[path.stem]
    assert arguments.num_machines == (2 if path.stem == "two_nodes" else 1)
    assert arguments.mixed_precision == "bf16"
    assert arguments.multi_gpu == (path.stem in ("ddp", "two_nodes"))
    assert arguments.use_fsdp == (path.stem == "fsdp2")


def test_what_fsdp_wraps(monkeypatch):
    """The layers of the model, by accelerate's own policy."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    from sssd_hf import SSSDConfig, SSSDForPreTraining
    from sssd_hf.modeling_sssd import SSSDLayer

    arguments = launch_arguments(REPOSITORY / "accelerate_configs/fsdp2.yaml")
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    model = SSSDForPreTraining(
        SSSDConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
        )
    )  # fmt: skip
    plugin.set_auto_wrap_policy(model)
    policy = plugin.auto_wrap_policy
    wrapped = [
        module
        for module in model.modules()
        if policy(module=module, recurse=False, nonwrapped_numel=0)
    ]
    assert len(wrapped) == 3
    assert all(isinstance(module, SSSDLayer) for module in wrapped)


@pytest.mark.slow
def test_two_processes_by_the_configuration(images, tmp_path):
    """Bfloat16 and four GPUs are overridden; two processes are two."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launcher += [str(REPOSITORY / "accelerate_configs/ddp.yaml"), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--main_process_port", "0"]
    results, records, messages = launch(
        launcher, "pretrain", images, tmp_path / "out", *MODEL, "--per_device_train_batch_size", 4
    )
    assert results["num_processes"] == 2
    assert "2 process(es) on cpu" in messages
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 11))


def test_the_slurm_script_is_one():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    text = SBATCH.read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH ")
    assert options["signal"] == "USR1@120"
    assert "requeue" in options
    assert options["ntasks-per-node"] == options["gpus-per-node"]


# `srun` starts two tasks with what SLURM tells each, passes signals on to their process groups, and
# ends with the highest status
SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = []
for rank in ("0", "1"):
    told = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": "2"}}
    environment = {{**os.environ, **told, "SLURM_NTASKS_PER_NODE": "2"}}
    tasks.append(subprocess.Popen(words, env=environment, start_new_session=True))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [os.killpg(t.pid, number) for t in tasks])
open("{pid}", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "{log}"
[ "$1" = show ] && echo 127.0.0.1 && echo other
exit 0
"""


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job on a cluster of two stand-ins; what `scontrol` was told; the process
    number of `srun`."""
    folder, log, pid = (tmp_path / name for name in ("slurm", "scontrol.log", "srun.pid"))
    folder.mkdir()
    (folder / "srun").write_text(SRUN.format(python=sys.executable, pid=pid))
    (folder / "scontrol").write_text(SCONTROL.format(log=log))
    for file in folder.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]"}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**environment(), **job, "PATH": path, "PYTHON": sys.executable}, log, pid


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_preempted_job_is_requeued_and_goes_on(images, tmp_path, slurm, name):
    """The script itself, with stand-ins for SLURM's two commands: two processes, both warned."""
    told, log, pid = slurm
    output, whole = tmp_path / "out", tmp_path / "whole"
    options = [*MODEL, *LONG, "--max_train_steps", "120", "--per_device_train_batch_size", "2"]

    def start(output):
        line = command([str(SBATCH)], "pretrain", images, output, *options)
        line = ["bash", line[0], *line[2:]]
        return subprocess.Popen(
            line, cwd=REPOSITORY, env=told, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    job = start(output)
    try:
        end = time.monotonic() + 200
        while not ((output / "metrics.jsonl").exists() and time.monotonic() < end):
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.1)
        os.kill(int(pid.read_text()), getattr(signal, name))
        shown, _ = job.communicate(timeout=100)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 75, shown
    assert "2 process(es) on cpu" in shown
    assert f"scontrol requeue {told['SLURM_JOB_ID']}" in log.read_text()
    assert not (output / "all_results.json").exists()
    log.unlink()
    for folder in (output, whole):
        shown, _ = start(folder).communicate(timeout=300)
        assert ("going on after step" in shown) == (folder == output), shown
        results = json.loads((folder / "all_results.json").read_text())
        assert results["num_processes"] == 2
        assert results["train_steps"] == 120
    assert "requeue" not in log.read_text()
    assert weights(output) == weights(whole)
