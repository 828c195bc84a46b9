"""The scripts on a pretended GPU: nothing stays behind on the CPU, the numbers are the CPU's, and
between two log lines no operation makes the host wait for the device."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from script_runs import MODEL, read

from sssd_hf.cli import finetune, pretrain

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
# part of the loop, but not of each step; the last two: once a run
MAY_WAIT = {"_fetch", "_check_weights", "_evaluate", "keep", "_any_process", "restore_state"}
MAY_WAIT |= {"_on_device", "_beta_quantiles"}
STEPS = ["--max_train_steps", "8", "--logging_steps", "4", "--seed", "3"]
BATCH = ["--per_device_train_batch_size", "8"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("pretending a GPU needs Linux and a C++ compiler (Debian: apt-get install g++)")
    folder, path = Path(torch.__file__).parent, tmp_path_factory.mktemp("gpu") / "pretended.so"
    line = [compiler, "-std=c++20", "-shared", "-fPIC", str(HERE / "pretended_gpu.cpp"), "-o", path]
    line += [f"-I{folder}/include", f"-I{folder}/include/torch/csrc/api/include"]
    line += [f"-L{folder}/lib", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{compiler} compiles no C++20 against torch: {done.stderr[:500]}")
    return path


@pytest.fixture(scope="module")
def on_gpu(library, tmp_path_factory):
    def run(script, *argv):
        """Where the host waited."""
        notes = tmp_path_factory.mktemp("notes") / "waits.json"
        line = [sys.executable, HERE / "pretended_gpu.py", library, notes, script, *argv]
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(notes.read_text())

    return run


def in_steps(waits):
    """Those of the training steps themselves, and how many of each."""
    loop = [w for w in waits if "loop.train" in w]
    assert any("loop._fetch" in w for w in loop), "no step was looked at"
    own = [w for w in loop if not MAY_WAIT & {name.split(".")[-1] for name in w[1:]}]
    return dict(Counter(f"{w[0]} in {w[-1]}" for w in own))


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


PRETRAINING = {
    "stable": "",
    "sd_mae": "--distillation sd_mae",
    "parts": "--gradient_accumulation_steps 2 --max_grad_norm 1 --ema_decay 0.9",
    "augmented": "--rotation 10 --shear 3 --blur 1 --noise 0.1 --gamma 0.2 --erasing 1",
    "host": "--cache memory",
}
HEADS = (  # of sd_mae: its own are as wide as its authors'
    ",distillation_head_hidden_size=16,distillation_bottleneck_size=8,distillation_num_prototypes=24"
)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_pretraining(kind, on_gpu, class_folders, tmp_path, no_figures):
    model = [*MODEL[:-1], MODEL[-1] + HEADS]
    argv = ["--data_dir", str(class_folders), *model, *STEPS, *BATCH, *PRETRAINING[kind].split()]
    argv += ["--mixed_precision", "no"]
    waits = on_gpu("pretrain", *argv, "--output_dir", tmp_path / "gpu")
    assert in_steps(waits) == {}
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "cpu")]) == 0
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    assert "pretended" in str(read(tmp_path / "gpu" / "all_results.json")["hardware"])


@pytest.fixture(scope="module")
def pretrained(on_gpu, class_folders, tmp_path_factory):
    """In bf16, which is the default on a GPU."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    argv = ["--data_dir", class_folders, *MODEL, *STEPS, *BATCH, "--checkpointing_steps", "4"]
    waits = on_gpu("pretrain", *argv, "--output_dir", folder)
    assert in_steps(waits) == {}
    return folder


def test_resumed(pretrained, on_gpu, class_folders, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(pretrained, again)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    argv = ["--data_dir", class_folders, *MODEL, *STEPS, *BATCH, "--checkpointing_steps", "4"]
    on_gpu("pretrain", *argv, "--output_dir", again, "--resume_from_checkpoint", "latest")
    assert losses(again) == losses(pretrained)


def test_finetuning_and_what_follows(pretrained, on_gpu, class_folders, tmp_path, no_figures):
    argv = ["--data_dir", class_folders, "--model_name_or_path", pretrained, *STEPS, *BATCH]
    argv += "--mixup_alpha 0.8 --cutmix_alpha 1 --label_smoothing 0.1 --drop_path_rate 0.1".split()
    argv += "--balanced_sampling true --config_overrides class_weights=[1,2]".split()
    argv = [str(word) for word in [*argv, "--mixed_precision", "no"]]
    model = tmp_path / "gpu"
    assert in_steps(on_gpu("finetune", *argv, "--output_dir", model)) == {}
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "cpu")]) == 0
    assert losses(model) == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)

    data = ["--data_dir", class_folders, "--model_name_or_path", model]
    on_gpu("evaluate", *data, "--output_dir", tmp_path / "evaluation", "--num_resamples", "20")
    assert read(tmp_path / "evaluation" / "all_results.json")
    predict = ["--images", class_folders, "--model_name_or_path", model]
    on_gpu("predict", *predict, "--output_file", tmp_path / "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 40
    embed = ["--data_dir", class_folders, "--model_name_or_path", pretrained]
    on_gpu("embed", *embed, "--output_dir", tmp_path / "features")
    assert (tmp_path / "features" / "embeddings.parquet").exists()
