"""Real processes: `accelerate launch` with one and with two, signals and resuming."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
MODEL = [
    *("--image_size", "32", "--patch_size", "8", "--config_overrides"),
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64,distillation_num_prototypes=32,"
    "distillation_head_hidden_size=16,distillation_bottleneck_size=8",
]
# 29 training images in batches of 8 leave 5 at the end: 3 and 2 for two processes
IMAGES = 29
STEPS = 10
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ONE = [*LAUNCH, "--cpu", "--num_processes", "1", "--num_machines", "1"]
ONE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Split folders of class folders: 29 to train, 6 to validate, 4 to test."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 6), ("test", 4)):
        for i in range(count):
            pixels = rng.uniform(0, 60, (36, 36))
            pixels[18 * (i % 2) :][:18] += 100
            path = root / split / ("up" if i % 2 else "down") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def environment():
    # one thread a process: the order of a sum depends on the number of threads
    return {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def command(launcher, script, images, output, *argv):
    line = [*launcher, str(REPOSITORY / "scripts" / f"{script}.py"), "--data_dir", str(images)]
    line += ["--output_dir", str(output), "--max_train_steps", str(STEPS), "--logging_steps", "1"]
    line += ["--eval_epochs", "1", "--learning_rate", "2e-3", "--max_grad_norm", "1"]
    return [*line, *map(str, argv)]


def launch(launcher, script, images, output, *argv):
    line = command(launcher, script, images, output, *argv)
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "all_results.json").read_text())
    records = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    return results, records, done.stderr


def differences(records, others):
    """name -> largest relative difference of a logged value over the steps."""
    assert len(records) == len(others)
    found = {}
    for record, other in zip(records, others):
        assert set(record) == set(other)
        for name in set(record) - {"images_per_second"}:
            if record[name] is None:  # not known: the spread over images of a step of one image
                assert other[name] is None
                continue
            scale = max(abs(record[name]), 1e-12)
            found[name] = max(found.get(name, 0.0), abs(record[name] - other[name]) / scale)
    return found


def compare(one, two, folders, model_class, capsys, **inputs):
    """Logged values, results and outputs of both runs; what they differ by is shown."""
    (results, records, _), (other_results, other_records, messages) = one, two
    assert results["num_processes"] == 1
    assert other_results["num_processes"] == 2
    assert messages.count("2 process(es) on cpu") == 1, "each message once"
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1))
    relative = differences(records, other_records)
    models = [model_class.from_pretrained(folder).eval() for folder in folders]
    pixels = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [model(pixels, **inputs).logits for model in models]
    apart = (outputs[0] - outputs[1]).abs().max().item()
    with capsys.disabled():
        shown = ", ".join(f"{name} {value:.1e}" for name, value in sorted(relative.items()))
        print(f"\n{folders[1].name}: relative {shown}; outputs {apart:.1e}")
    losses = [name for name in relative if name.endswith("loss")]
    assert losses
    for name in losses:
        assert relative[name] < 1e-5, name
    assert relative["learning_rate"] == 0
    assert max(relative.values()) < 1e-3
    assert apart < 1e-4
    return models


@pytest.mark.parametrize("preset", ["stable", "sd_mae"])
def test_two_processes_pretrain_as_one(images, tmp_path, capsys, preset):
    options = [*MODEL, "--distillation", preset, "--label_column_name", ""]
    folders = [tmp_path / f"pretrain_{preset}_{n}" for n in (1, 2)]
    one = launch(
        [sys.executable],
        "pretrain",
        images,
        folders[0],
        *options,
        "--per_device_train_batch_size",
        8,
    )
    two = launch(TWO, "pretrain", images, folders[1], *options, "--per_device_train_batch_size", 4)
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    models = compare(one, two, folders, SSSDForPreTraining, capsys, noise=noise)
    teachers = [
        {k: v for k, v in model.state_dict().items() if ".teacher_" in k} for model in models
    ]
    assert teachers[0]
    for name, tensor in teachers[0].items():
        assert torch.allclose(tensor, teachers[1][name], atol=1e-5, rtol=1e-4), name
    assert teachers[1]["distillation.teacher_step"] == STEPS


def test_two_processes_fine_tune_as_one(images, tmp_path, capsys):
    """With drop path and class weights, and part batches of which the last ones are uneven."""
    model = [*MODEL[:-1], f"{MODEL[-1]},class_weights=[1,3]"]
    options = [*model, "--drop_path_rate", "0.3"]
    folders = [tmp_path / f"finetune_{n}" for n in (1, 2)]
    one = launch(ONE, "finetune", images, folders[0], *options, "--per_device_train_batch_size", 8)
    two = launch(
        TWO,
        "finetune",
        images,
        folders[1],
        *options,
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2),
        *("--per_device_eval_batch_size", 2),
    )
    compare(one, two, folders, SSSDForImageClassification, capsys)
    for name in ("best_step", "chosen_by", "num_train_images"):
        assert one[0][name] == two[0][name]
    splits = [json.loads((folder / "splits.json").read_text()) for folder in folders]
    assert splits[0] == splits[1]


def test_a_process_without_images_waits_for_the_other(images, tmp_path, capsys):
    """25 images in batches of 8 leave one: the second process has none in that step."""
    options = [*MODEL, "--max_train_samples", 25]
    folders = [tmp_path / f"uneven_{n}" for n in (1, 2)]
    one = launch(
        [sys.executable],
        "pretrain",
        images,
        folders[0],
        *options,
        "--per_device_train_batch_size",
        8,
    )
    two = launch(TWO, "pretrain", images, folders[1], *options, "--per_device_train_batch_size", 4)
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    compare(one, two, folders, SSSDForPreTraining, capsys, noise=noise)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_user_ends_all_processes(images, tmp_path, processes):
    line = command(
        {1: ONE, 2: TWO}[processes], "finetune", images, tmp_path / "out", "--image_size", "33"
    )
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment())
    assert done.returncode != 0
    assert "image_size=33" in done.stderr


def signal_when_training(line, output, number, to_group):
    """Send a signal once steps are logged; returns (exit status, output, seconds it took)."""
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        metrics, end = output / "metrics.jsonl", time.monotonic() + 200
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)
        sent = time.monotonic()
        os.killpg(process.pid, number) if to_group else process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, shown, time.monotonic() - sent


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


LONG = ["--max_train_steps", "400", "--distillation", "sd_mae", "--ema_decay", "0.99"]
RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    options = [*MODEL, *LONG, "--per_device_train_batch_size", 4]
    launch([sys.executable], "pretrain", images, output, *options)
    return output


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_loses_nothing(images, tmp_path, uninterrupted, name):
    """Ctrl-C and a cluster's preemption: saved, out within ten seconds with status 75, and the same
    command goes on to the same weights."""
    output = tmp_path / "out"
    options = [*MODEL, *LONG, "--per_device_train_batch_size", "4"]
    line = command([sys.executable], "pretrain", images, output, *options)
    number = getattr(signal, name)
    code, shown, seconds = signal_when_training(line, output, number, name == "SIGINT")
    assert code == 75, shown
    assert seconds < 10
    assert f"stopped by {name} after step" in shown
    assert "--resume_from_checkpoint latest" in shown
    assert "Traceback" not in shown
    assert not (output / "all_results.json").exists(), "it is not taken for a finished run"
    refused = subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment())
    assert refused.returncode == 1
    assert "checkpoints of a run that did not end" in refused.stderr
    _, records, messages = launch([sys.executable], "pretrain", images, output, *options, *RESUME)
    assert "going on after step" in messages
    assert weights(output) == weights(uninterrupted)
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    expected = [json.loads(text) for text in lines]
    assert max(differences(expected, records).values()) == 0, "the log too is that of one run"
    # asked again, there is nothing left to do
    done = subprocess.run(
        [*line, *RESUME], capture_output=True, text=True, timeout=200, env=environment()
    )
    assert done.returncode == 0
    assert "nothing is left to do" in done.stderr


def test_two_processes_stop_together_and_go_on_as_one(images, tmp_path, uninterrupted, capsys):
    """Ctrl-C at a launcher with two processes; resumed by one process."""
    output = tmp_path / "out"
    options = [*MODEL, *LONG]
    line = command(TWO, "pretrain", images, output, *options, "--per_device_train_batch_size", "2")
    code, shown, seconds = signal_when_training(line, output, signal.SIGINT, True)
    assert code != 0
    assert seconds < 20
    assert "the state is saved" in shown, shown
    assert not (output / "all_results.json").exists()
    one = [sys.executable], "pretrain", images, output, *options
    results, records, _ = launch(*one, "--per_device_train_batch_size", 4, *RESUME)
    assert results["num_processes"] == 1
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    relative = differences([json.loads(text) for text in lines], records)
    with capsys.disabled():
        print(f"\n2 processes, resumed by 1: relative {relative['loss']:.1e} in the loss")
    assert relative["loss"] < 1e-4  # of 400 steps, whose rounding differs adds up


# the script, of which one process gets a signal in a batch of its evaluations, which take long
SIGNALLED = """
import os, signal, sys, time
from sssd_hf.cli import batches, common, pretrain

rank_batches, begun = batches.rank_batches, []

def slow_batches(*arguments):
    for batch in rank_batches(*arguments):
        begun.append(batch)
        if os.environ["RANK"] == "1" and len(begun) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            print("SENT", time.time(), file=sys.stderr, flush=True)
        time.sleep(1)
        yield batch

batches.rank_batches = pretrain.rank_batches = slow_batches
common.run_script(pretrain.main)
"""


def test_two_processes_leave_an_evaluation_together(images, tmp_path):
    """3 batches of each process in an evaluation of 6 images; the second one is broken off."""
    options = [*MODEL, "--distillation", "sd_mae", "--ema_decay", "0.9", "--probe_epochs", "0"]
    options += ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "1"]
    whole, output, script = tmp_path / "whole", tmp_path / "out", tmp_path / "signalled.py"
    _, expected, _ = launch(TWO, "pretrain", images, whole, *options)
    script.write_text(SIGNALLED)
    line = command(TWO, "pretrain", images, output, *options)
    line[len(TWO)] = str(script)
    stopped = subprocess.run(line, capture_output=True, text=True, timeout=100, env=environment())
    assert stopped.returncode != 0
    assert time.time() - float(stopped.stderr.partition("SENT ")[2].split()[0]) < 10
    assert "after step 8 of 10; the state is saved" in stopped.stderr, stopped.stderr
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(differences(expected[: len(lines)], lines).values()) == 0
    assert [r["step"] for r in lines if "loss" not in r] == [4]
    _, records, messages = launch(TWO, "pretrain", images, output, *options, *RESUME)
    assert "going on after step 8" in messages
    assert max(differences(expected, records).values()) == 0
    assert weights(output) == weights(whole)


def test_a_second_run_into_the_folder_is_refused(images, tmp_path, uninterrupted):
    """Also one of two processes. The first goes on; killed, it holds up nobody."""
    output, options = tmp_path / "out", [*MODEL, *LONG, "--checkpointing_steps", "20"]
    line = command([sys.executable], "pretrain", images, output, *options)
    line += ["--per_device_train_batch_size", "4"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment()}
    first = subprocess.Popen(line, **quiet)
    try:
        while not list(output.glob("checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGSTOP)  # it would end before the others have begun
        for launcher in ([sys.executable], TWO):
            second = command(launcher, "pretrain", images, output, *options, *RESUME)
            done = subprocess.run(
                second, capture_output=True, text=True, timeout=100, env=environment()
            )
            assert done.returncode == 1
            assert f"error: --output_dir {output}: another run is writing there" in done.stderr
    finally:
        first.kill()
        first.wait()
    assert (output / ".run.lock").exists()
    launch(line[:1], "pretrain", images, output, *options, *line[-2:], *RESUME)
    assert weights(output) == weights(uninterrupted)
    assert not (output / ".run.lock").exists()


def test_another_global_batch_is_refused(images, tmp_path):
    output = tmp_path / "out"
    options = [*MODEL, "--checkpointing_steps", "4", "--per_device_train_batch_size"]
    launch([sys.executable], "pretrain", images, output, *options, "4")
    (output / "all_results.json").unlink()
    line = command([sys.executable], "pretrain", images, output, *options, "8", *RESUME)
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment())
    assert done.returncode == 1
    assert "began with 4 images a step, here it is 8" in done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Class folders of 24 images, whose file names say nothing of splits."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(1)
    for i in range(24):
        pixels = rng.uniform(0, 60, (36, 36))
        pixels[18 * (i % 2) :][:18] += 100
        path = root / ("up" if i % 2 else "down") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


FOLDS = ["--cross_validation", "2", "--num_resamples", "20", *MODEL]


def pooled(output):
    return json.loads((output / "all_results.json").read_text())["pooled"]["metrics"]


def test_a_cross_validation_killed_anywhere_goes_on(folders, tmp_path):
    line = command(ONE, "cross_validate", folders, tmp_path / "whole", *FOLDS)
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    line = command([sys.executable], "cross_validate", folders, tmp_path / "out", *FOLDS)
    line += ["--checkpointing_steps", "1"]
    for wanted in ("fold_0/pretrain/checkpoints", "fold_1/finetune/checkpoints"):
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
        )
        deadline = time.monotonic() + 240
        while not (tmp_path / "out" / wanted).is_dir():
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "out" / "all_results.json").exists()
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "done before" in done.stdout
    assert pooled(tmp_path / "out") == pooled(tmp_path / "whole")


def test_a_cross_validation_of_two_processes(folders, tmp_path):
    more = ["--skip_pretraining", "true", "--per_device_train_batch_size", "4"]
    for launcher, output in ((ONE, "one"), (TWO, "two")):
        batch = more if launcher is TWO else [*more[:3], "8"]
        line = command(launcher, "cross_validate", folders, tmp_path / output, *FOLDS, *batch)
        done = subprocess.run(line, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("[1/4] fold 1 of 2: fine-tuning") == 1
    one, two = pooled(tmp_path / "one"), pooled(tmp_path / "two")
    assert two["log_loss"] == pytest.approx(one["log_loss"], rel=1e-3)
