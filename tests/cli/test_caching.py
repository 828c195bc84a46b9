"""Where decoded images lie changes no number; what can't be read stops a run or is left out."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from sssd_hf.cli import data as cli_data
from sssd_hf.cli import evaluate, finetune, pretrain
from sssd_hf.cli.arguments import DataArguments
from sssd_hf.cli.data import load_data, load_stream, working_size
from sssd_hf.data.cache import CACHES
from sssd_hf.data.preparation import Preparation

SIZES = (
    "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64"
)
MODEL = ["--image_size", "32", "--patch_size", "8", "--config_overrides", SIZES]
TRAINING = ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--max_train_steps", "5"]
COUNTS = {"train": 20, "val": 6, "test": 8}
BAD = ["train/up/07.png", "train/down/08.png", "val/up/03.png", "test/down/02.png"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    for name in ("plot_training_curves", "plot_reconstructions"):
        monkeypatch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)
    return tmp_path / "home"


@pytest.fixture
def images(tmp_path):
    """Split folders of two classes; names count on inside a split."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for i in range(count):
            pixels = rng.uniform(0, 60, (40, 44))
            pixels[20 * (i % 2) :][:20] += 120
            path = tmp_path / "images" / split / ("up" if i % 2 else "down") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def spoiled(images):
    for name in BAD:
        (images / name).write_bytes((images / name).read_bytes()[:70])
    return images


def the_whole_way(folder, output, *argv):
    argv = ["--data_dir", str(folder), *argv]
    start = [*MODEL, *TRAINING, "--seed", "3"]
    assert pretrain.main([*argv, *start, "--output_dir", str(output / "pretrained")]) == 0
    start = ["--model_name_or_path", str(output / "pretrained"), *TRAINING, "--eval_epochs", "1"]
    assert finetune.main([*argv, *start, "--output_dir", str(output / "finetuned")]) == 0
    start = ["--model_name_or_path", str(output / "finetuned"), "--num_resamples", "20"]
    assert evaluate.main([*argv, *start, "--output_dir", str(output / "evaluation")]) == 0


def curve(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(s).items() if k != "images_per_second"} for s in lines]


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_no_number_depends_on_the_cache(images, home, tmp_path):
    outputs = {}
    for cache in (*CACHES, "disk"):  # the second time from what the first one kept
        output = tmp_path / f"{cache}{len(outputs)}"
        the_whole_way(images, output, "--cache", cache)
        outputs[output.name] = [
            curve(output / "pretrained"),
            curve(output / "finetuned"),
            read_table(output / "evaluation/predictions.csv"),
        ]
    first, *others = outputs.values()
    assert all(len(part) >= 5 for part in first)
    assert all(other == first for other in others)
    # pretraining and fine-tuning share the training images' store and the validation images'
    assert len(list(home.glob("sssd_hf/decoded/*/manifest.json"))) == 3


@pytest.mark.parametrize(
    ("argv", "size"), [([], (40, 40)), (["--cache_size", "36"], (36, 36))], ids=["default", "36"]
)
def test_each_image_is_decoded_once_at_its_own_size(images, tmp_path, monkeypatch, argv, size):
    decoded = []
    decode_once = cli_data.decode_once

    def spy(sources, preparation, *args, **kwargs):
        decoded.extend((source["path"], preparation.size) for source in sources)
        return decode_once(sources, preparation, *args, **kwargs)

    monkeypatch.setattr(cli_data, "decode_once", spy)
    argv = ["--data_dir", str(images), *MODEL, *TRAINING, *argv]
    pretrain.main([*argv, "--output_dir", str(tmp_path / "out")])
    expected = {(str(p), size) for p in (images / "train").rglob("*.png")}
    expected |= {(str(p), (32, 32)) for p in (images / "val").rglob("*.png")}
    assert len(decoded) == len(expected) == COUNTS["train"] + COUNTS["val"]
    assert set(decoded) == expected


def test_the_working_size_has_the_models_proportions():
    assert working_size((112, 112), None) == (140, 140)
    assert working_size((64, 96), None) == (80, 120)
    assert working_size((64, 96), 128) == (128, 192)
    assert working_size((96, 64), 32) == (48, 32)


def test_bad_files_stop_the_run_before_training(spoiled, tmp_path):
    output = tmp_path / "out"
    argv = ["--data_dir", str(spoiled), *MODEL, *TRAINING, "--output_dir", str(output)]
    with pytest.raises(ValueError, match=r"training images: 2 of 20 .*(?s:.*)--skip_bad_files"):
        pretrain.main(argv)
    assert {row["file"] for row in read_table(output / "bad_files.csv")} == set(BAD[:2])
    assert not (output / "metrics.jsonl").exists()
    assert not (output / "all_results.json").exists()


@pytest.mark.parametrize("cache", CACHES)
def test_bad_files_can_be_left_out(spoiled, tmp_path, cache):
    the_whole_way(spoiled, tmp_path, "--cache", cache, "--skip_bad_files")
    for name, bad in (("pretrained", BAD[:3]), ("finetuned", BAD[:3]), ("evaluation", BAD[3:])):
        assert {row["file"] for row in read_table(tmp_path / name / "bad_files.csv")} == set(bad)
        results = json.loads((tmp_path / name / "all_results.json").read_text())
        count = results["num_test_images" if name == "evaluation" else "num_train_images"]
        assert count == (7 if name == "evaluation" else 18)
    predictions = read_table(tmp_path / "evaluation/predictions.csv")
    assert [row["file_name"] for row in predictions] == sorted(
        p.relative_to(spoiled).as_posix()
        for p in (spoiled / "test").rglob("*.png")
        if p.relative_to(spoiled).as_posix() not in BAD
    )
    assert all(row["label"] in row["file_name"] for row in predictions)
    splits = json.loads((tmp_path / "finetuned/splits.json").read_text())
    assert BAD[0] in splits["train"], "they stay named"


def test_mended_files_leave_no_old_list(spoiled, images, tmp_path):
    output = tmp_path / "out"
    argv = ["--data_dir", str(spoiled), *MODEL, *TRAINING, "--output_dir", str(output)]
    with pytest.raises(ValueError, match="can't be read"):
        pretrain.main(argv)
    for name in BAD:
        Image.new("L", (40, 44), 9).save(spoiled / name)
    assert pretrain.main(argv) == 0
    assert not (output / "bad_files.csv").exists()


def test_a_stream_by_its_options(images, tmp_path):
    rows = [{"image": {"bytes": p.read_bytes()}, "label": 1} for p in images.rglob("*.png")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "shards").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "shards/0.parquet")
    data = DataArguments(data_dir=str(tmp_path / "shards"), streaming=True, label_column_name="")
    place = SimpleNamespace(process_index=1, num_processes=2)
    stream = load_stream(data, Preparation((8, 8)), 5, place)
    batch = stream.read(17)
    assert sorted(batch.positions.tolist()) == list(range(1, 34, 2))
    assert batch.labels is None
    with pytest.raises(ValueError, match="--streaming"):
        load_data(data)


@pytest.mark.slow
def test_two_processes_decode_once_and_skip_the_same(spoiled, home, tmp_path):
    script = Path(__file__).parents[2] / "scripts/pretrain.py"
    line = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines"]
    line += ["1", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    line += ["--main_process_port", "0", str(script), "--data_dir", str(spoiled), *MODEL]
    line += [*TRAINING, "--output_dir", str(tmp_path / "out"), "--cache", "disk"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "HF_HOME": str(home)}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(
        [*line, "--skip_bad_files"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "out/all_results.json").read_text())
    assert results["num_processes"] == 2
    assert results["num_train_images"] == 18
    assert len(list(home.glob("sssd_hf/decoded/*/manifest.json"))) == 2
    assert {row["file"] for row in read_table(tmp_path / "out/bad_files.csv")} == set(BAD[:3])
