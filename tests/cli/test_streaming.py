"""Both trainings from streams: run, stopped in the middle and resumed to the same weights, told
what is held out and what the classes are called."""

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_launch import MODEL, TWO, environment

from sssd_hf import SSSDForImageClassification
from sssd_hf.cli import finetune, pretrain
from sssd_hf.cli.arguments import DataArguments
from sssd_hf.cli.data import hold_out
from sssd_hf.data.preparation import Preparation, prepare_image
from sssd_hf.training.feeds import StreamFeed
from sssd_hf.training.signals import Interrupted

REPOSITORY = Path(__file__).parents[2]
SHARDS, IMAGES, HELD_OUT, STEPS = 4, 40, 6, 12
NAMES = ["down", "up"]
TRAINING = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
TRAINING += ["--logging_steps", "1", "--max_train_steps", STEPS, "--learning_rate", "2e-3"]
TRAINING += ["--streaming", "--shuffle_buffer_size", "7"]
RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for name in ("plot_training_curves", "plot_reconstructions"):
        monkeypatch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)


def png(number):
    """The upper or the lower half is bright: label 1 or 0."""
    pixels = np.random.default_rng(number).uniform(0, 60, (36, 36))
    pixels[18 * (1 - number % 2) :][:18] += 100
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


def write_tar(path, numbers):
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            for suffix, content in (("png", png(i)), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(path, numbers, label):
    rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """tar: shards with numbers as labels; parquet: the same with names; hub: train and validation
    in the form that the Hub's data sets have."""
    root = tmp_path_factory.mktemp("streams")
    names = datasets.ClassLabel(names=NAMES)
    for folder in ("tar", "parquet", "hub/data"):
        (root / folder).mkdir(parents=True)
    for shard in range(SHARDS):
        numbers = range(shard, IMAGES, SHARDS)
        write_tar(root / f"tar/{shard}.tar", numbers)
        write_parquet(root / f"parquet/{shard}.parquet", numbers, names)
        write_parquet(root / f"hub/data/train-{shard:05d}-of-00004.parquet", numbers, names)
    held_out = range(1000, 1000 + HELD_OUT)
    write_parquet(root / "hub/data/validation-00000-of-00001.parquet", held_out, names)
    return root


def train(script, output, *argv):
    argv = [*argv, *TRAINING, *MODEL, "--output_dir", output]
    assert script.main(list(map(str, argv))) == 0
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def without_rate(records):
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def sigterm_in_step(monkeypatch, step):
    """The signal comes while the images of the step (counted from 0) are read."""
    read = StreamFeed.step

    def step_with_signal(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, number)

    monkeypatch.setattr(StreamFeed, "step", step_with_signal)
    return lambda: monkeypatch.setattr(StreamFeed, "step", read)


@pytest.mark.parametrize("script", [pretrain, finetune], ids=["pretrain", "finetune"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_stopped_in_the_middle_and_resumed(folders, tmp_path, monkeypatch, caplog, kind, script):
    """96 images of a set of 40, in blocks of 7: the middle of an epoch, of a shard and of a
    block."""
    options = ["--data_dir", folders / kind, "--ema_decay", "0.9"]
    if script is finetune:
        options += ["--mixup_alpha", "0.4", "--drop_path_rate", "0.3"]
        options += ["--label_names", "down,up"] if kind == "tar" else []
    with caplog.at_level("INFO"):
        whole = train(script, tmp_path / "whole", *options)
    assert "drawn from its position in the stream" in caplog.text
    losses = [record["loss"] for record in whole if "loss" in record]
    assert len(losses) == STEPS
    assert [record["epoch"] for record in whole] == sorted(record["epoch"] for record in whole)
    assert whole[-1]["epoch"] == 2
    for step in (3, 7):
        undo = sigterm_in_step(monkeypatch, step)
        with pytest.raises(Interrupted, match=f"after step {step + 1} of {STEPS}"):
            train(script, tmp_path / "stopped", *options, *RESUME)
        undo()
    resumed = train(script, tmp_path / "stopped", *options, *RESUME)
    assert without_rate(resumed) == without_rate(whole)
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
    if script is finetune:
        model = SSSDForImageClassification.from_pretrained(tmp_path / "whole")
        assert model.config.id2label == {0: "down", 1: "up"}


def test_what_is_held_out_of_a_hub_data_set(folders, tmp_path):
    data = DataArguments(
        dataset_name=str(folders / "hub"), validation_split="validation", streaming=True
    )
    preparation = Preparation((32, 32), 1)
    held_out = hold_out(data, preparation)
    expected = [prepare_image(png(1000 + i), preparation) for i in range(HELD_OUT)]
    assert np.array_equal(held_out.pixels, expected)
    assert held_out.labels.tolist() == [i % 2 for i in range(HELD_OUT)]
    assert held_out.rows.tolist() == list(range(HELD_OUT))
    few = hold_out(data, preparation, count=4)
    with pytest.raises(ValueError, match=r"its first 1 images, .* are all of one class"):
        hold_out(data, preparation, num_classes=2, count=1)
    assert torch.equal(few.pixels, held_out.pixels[:4])
    options = ["--dataset_name", folders / "hub", "--validation_split", "validation"]
    records = train(pretrain, tmp_path / "pretrained", *options, "--eval_steps", "5")
    steps = [r["step"] for r in records if "eval_reconstruction_loss" in r]
    assert steps == [5, 10, STEPS]
    options += ["--model_name_or_path", tmp_path / "pretrained", "--eval_steps", "4"]
    records = train(finetune, tmp_path / "finetuned", *options)
    assert [r["step"] for r in records if "eval_roc_auc" in r] == [4, 8, STEPS]
    results = json.loads((tmp_path / "finetuned/all_results.json").read_text())
    assert results["chosen_by"] == "roc_auc"
    assert results["best_step"] in (4, 8, STEPS)


def test_options_that_do_not_go_with_a_stream(folders, tmp_path):
    tar, hub = ["--data_dir", folders / "tar"], ["--dataset_name", folders / "hub"]
    named = [*tar, "--label_names", "down,up"]
    refused = [
        (pretrain, [*tar, "--max_train_samples", "3"], "--max_train_samples does not go"),
        (pretrain, [*tar, "--validation_split", "val"], "shards of --data_dir are of one split"),
        (finetune, [*named, "--class_weights", "balanced"], "--class_weights balanced: how"),
        (finetune, [*named, "--class_weights", "1,2,3"], "or 2 positive numbers"),
        (finetune, [*named, "--balanced_sampling", "true"], "--balanced_sampling does not go"),
        (finetune, tar, "--label_names None: the labels are numbers of type int64"),
        (finetune, [*tar, "--label_names", "down,"], "expected the names of all classes"),
        (finetune, [*hub, "--label_names", "up,down"], "the stream itself says down,up"),
        (finetune, [*tar, "--label_column_name", ""], "the images have no labels"),
    ]
    for script, options, message in refused:
        with pytest.raises(ValueError, match=message):
            train(script, tmp_path / "out", *options)
        assert not (tmp_path / "out/metrics.jsonl").exists()
    (tmp_path / "three").mkdir()
    features = datasets.Value("int64")
    write_parquet(tmp_path / "three/0.parquet", [0, 2, 1, 4, 6], features)
    options = ["--data_dir", tmp_path / "three", "--label_names", "one,two"]
    train(finetune, tmp_path / "out", *options)
    rows = [{"image": {"bytes": png(0), "path": None}, "label": label} for label in (0, 1, 2)]
    features = datasets.Features({"image": datasets.Image(), "label": features})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "three/0.parquet")
    with pytest.raises(ValueError, match="image 2 of the stream has the label 2, expected 0 to 1"):
        train(finetune, tmp_path / "other", *options)
    line = ["--data_dir", folders / "tar", "--streaming", "--output_dir", tmp_path / "endless"]
    with pytest.raises(ValueError, match="--streaming needs --max_train_steps"):
        pretrain.main(list(map(str, [*line, *MODEL])))


@pytest.mark.slow
def test_two_processes_share_a_stream(folders, tmp_path, monkeypatch):
    """Resumed by as many to the same weights, by another number refused."""
    options = ["--data_dir", folders / "tar", "--checkpointing_steps", "5", "--save_total_limit"]
    options += ["0", *TRAINING, *MODEL]

    def launch(output, launcher=TWO, *argv):
        line = [*launcher, REPOSITORY / "scripts/pretrain.py", *options, "--output_dir", output]
        line = list(map(str, [*line, *argv]))
        return subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment())

    done = launch(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "whole/all_results.json").read_text())
    assert results["num_processes"] == 2
    assert "2 process(es) on cpu" in done.stderr
    state = tmp_path / "whole/checkpoints/step-00000005/state.json"
    positions = json.loads(state.read_text())["feed"]
    assert [(own["rank"], own["world"]) for own in positions] == [(0, 2), (1, 2)]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole/checkpoints").rename(tmp_path / "stopped/checkpoints")
    for late in (tmp_path / "stopped/checkpoints").glob("step-0000001*"):
        late.rename(tmp_path / late.name)
    alone = [TWO[0], *TWO[1:3], "--cpu", "--num_processes", "1", "--num_machines", "1"]
    alone += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    refused = launch(tmp_path / "stopped", alone, *RESUME, "--per_device_train_batch_size", "8")
    assert refused.returncode != 0
    assert "stopped with a number of processes of 2 and is now started with 1" in refused.stderr
    resumed = launch(tmp_path / "stopped", TWO, *RESUME)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 5" in resumed.stderr
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
