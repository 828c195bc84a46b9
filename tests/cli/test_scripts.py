"""The scripts' main functions, one after the other, on tiny generated folders."""

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining
from transformers import pipeline as stock_pipeline

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import common, evaluate, finetune, predict, pretrain
from sssd_hf.cli import data as cli_data
from sssd_hf.cli.batches import normalize
from sssd_hf.cli.data import choose_rows

SIZES = (
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,"
    "decoder_intermediate_size=64"
)
MODEL = ["--image_size", "32", "--patch_size", "8", "--config_overrides", SIZES]
TRAINING = ["--per_device_train_batch_size", "8", "--logging_steps", "2", "--seed", "3"]
PATIENTS = 12


def draw(path, label, seed, mode="L"):
    """Light below (1) or above (0), in noise: learnt in a few steps, and not by brightness."""
    rng = np.random.default_rng(seed)
    channels = 1 if mode == "L" else 3
    pixels = rng.uniform(0, 60, (40, 44, channels))
    pixels[20:] += 120 * label
    pixels[:20] += 120 * (1 - label)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8).squeeze()).save(path)


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    """40 images in two class folders, of which there is no metadata."""
    root = tmp_path_factory.mktemp("folders") / "images"
    for i in range(40):
        draw(root / ("up" if i % 2 else "down") / f"{i:02d}.png", i % 2, i)
    return root


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """48 colour images of 12 patients, with a table: label, patient, and a split by patient."""
    root = tmp_path_factory.mktemp("patients") / "images"
    rows = []
    for patient in range(PATIENTS):
        split = "train" if patient < 8 else "val" if patient < 10 else "test"
        for i in range(4):
            name = f"slices/p{patient:02d}_{i}.png"
            draw(root / name, patient % 2, 100 * patient + i, "RGB")
            rows.append([name, ["down", "up"][patient % 2], f"P{patient}", split])
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "diagnosis", "patient_id", "protocol"], *rows])
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, class_folders):
    """The whole way on the class folders, with one channel."""
    root = tmp_path_factory.mktemp("runs")
    data = ["--data_dir", str(class_folders)]
    options = [*MODEL, *TRAINING, "--num_channels", "1"]
    argv = [*data, *options, "--max_train_steps", "6", "--eval_epochs", "1"]
    assert pretrain.main([*argv, "--output_dir", str(root / "pretrained")]) == 0
    argv = [*data, *TRAINING, "--max_train_steps", "24", "--learning_rate", "3e-3"]
    argv += ["--model_name_or_path", str(root / "pretrained")]
    assert finetune.main([*argv, "--output_dir", str(root / "finetuned")]) == 0
    argv = [*data, "--model_name_or_path", str(root / "finetuned"), "--num_resamples", "50"]
    assert evaluate.main([*argv, "--output_dir", str(root / "evaluation")]) == 0
    return root


@pytest.fixture(scope="module")
def colour_runs(tmp_path_factory, patients):
    """Fine-tuning of three channels from random weights, with the table's columns."""
    root = tmp_path_factory.mktemp("colour")
    columns = ["--label_column_name", "diagnosis", "--group_column_name", "patient_id"]
    data = ["--data_dir", str(patients), *columns, "--split_column", "protocol"]
    argv = [*data, *MODEL, *TRAINING, "--num_channels", "3", "--max_train_steps", "16"]
    argv += ["--learning_rate", "3e-3"]
    assert finetune.main([*argv, "--output_dir", str(root / "finetuned")]) == 0
    argv = [*data, "--model_name_or_path", str(root / "finetuned"), "--num_resamples", "50"]
    assert evaluate.main([*argv, "--output_dir", str(root / "evaluation")]) == 0
    return root


def read(path):
    return json.loads(Path(path).read_text(), parse_constant=pytest.fail)


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_pretraining_writes_its_results(runs):
    folder = runs / "pretrained"
    results = read(folder / "all_results.json")
    splits = read(folder / "splits.json")
    assert results["num_train_images"] == len(splits["train"])
    assert results["num_processes"] == 1
    assert results["step"] == 6
    assert results["learning_rate_peak"] == 5e-4
    for name in ("loss", "reconstruction_loss", "distillation_loss", "eval_reconstruction_loss"):
        assert 0 < results[name] < 10, name
    assert results["eval_reconstruction_ratio"] > 0
    assert results["target_std"] > 0
    assert results["train_images_per_second"] > 0
    assert {"torch", "transformers", "accelerate", "sssd_hf"} <= set(results["versions"])
    for name in ("metrics.jsonl", "curves.png", "reconstructions.png", "pretrain_recipe.yaml"):
        assert (folder / name).stat().st_size > 0
    assert SSSDForPreTraining.from_pretrained(folder).config.num_channels == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 4


def test_finetuning_writes_its_results(runs):
    folder = runs / "finetuned"
    results = read(folder / "all_results.json")
    assert results["chosen_by"] == "roc_auc"
    assert results["step"] == 24
    assert 0 < results["best_step"] <= 24
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [m for m in metrics if "eval_roc_auc" in m]
    best = max(evaluations, key=lambda m: (m["eval_roc_auc"], -m["eval_log_loss"]))
    assert results["best_step"] == best["step"]
    assert results["best_eval_accuracy"] == best["eval_accuracy"]
    assert (folder / "finetune_recipe.yaml").exists()
    model = SSSDForImageClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "down", 1: "up"}
    assert model.config.label2id == {"down": 0, "up": 1}


def test_the_saved_weights_are_those_of_the_chosen_step(runs, class_folders):
    """Validation evaluated again from the folder gives the best evaluation, not the last one."""
    results, splits = (
        read(runs / "finetuned/all_results.json"),
        read(runs / "finetuned/splits.json"),
    )
    classify = stock_pipeline("image-classification", model=str(runs / "finetuned"))
    loss = 0.0
    for name in splits["validation"]:
        scores = {r["label"]: r["score"] for r in classify(str(class_folders / name))}
        loss -= math.log(scores[name.split("/")[0]]) / len(splits["validation"])
    assert loss == pytest.approx(results["best_eval_log_loss"], abs=2e-3)


def test_the_stages_share_one_split(runs, class_folders):
    """Fine-tuning reads pretraining's, evaluation fine-tuning's, though its seed is another."""
    first, second = read(runs / "pretrained/splits.json"), read(runs / "finetuned/splits.json")
    for part in ("train", "validation", "test"):
        assert sorted(first[part]) == sorted(second[part])
        assert first[part]
    predicted = [row["file_name"] for row in read_table(runs / "evaluation/predictions.csv")]
    assert sorted(predicted) == sorted(second["test"])
    assert sum(len(first[part]) for part in ("train", "validation", "test")) == 40


def test_evaluation_writes_its_results(runs):
    results = read(runs / "evaluation/all_results.json")
    rows = read_table(runs / "evaluation/predictions.csv")
    assert results["num_test_images"] == len(rows) == 8
    assert results["labels"] == ["down", "up"]
    assert results["positive_label"] == "up"
    right = [
        row["label"] == max(("down", "up"), key=lambda n: float(row[f"probability_{n}"]))
        for row in rows
    ]
    assert results["accuracy"] == pytest.approx(sum(right) / len(right))
    assert results["accuracy"] > 0.7, "the classes are easy"
    for name, (low, high) in results["intervals"].items():
        assert low <= results[name] <= high, name
    for row in rows:
        total = float(row["probability_down"]) + float(row["probability_up"])
        assert total == pytest.approx(1, abs=1e-5)
    assert "images" in results["interval_method"]


def test_a_column_of_splits_is_followed(colour_runs, patients):
    table = read_table(patients / "metadata.csv")
    splits = read(colour_runs / "finetuned/splits.json")
    for part, value in (("train", "train"), ("validation", "val"), ("test", "test")):
        expected = sorted(row["file_name"] for row in table if row["protocol"] == value)
        assert sorted(splits[part]) == expected
    results = read(colour_runs / "evaluation/all_results.json")
    assert results["num_test_images"] == 8
    assert results["num_test_groups"] == 2
    assert "patient_id" in results["interval_method"]


def test_groups_are_never_broken(tmp_path, patients):
    """Both stages cut the same whole patients; no column of splits is named."""
    columns = ["--label_column_name", "diagnosis", "--group_column_name", "patient_id"]
    argv = ["--data_dir", str(patients), *columns, *MODEL, *TRAINING, "--max_train_steps", "1"]
    pretrain.main([*argv, "--output_dir", str(tmp_path / "pretrained")])
    argv += ["--model_name_or_path", str(tmp_path / "pretrained"), "--seed", "8"]
    finetune.main([*argv, "--output_dir", str(tmp_path / "finetuned")])
    patient = {row["file_name"]: row["patient_id"] for row in read_table(patients / "metadata.csv")}
    splits = read(tmp_path / "finetuned/splits.json")
    assert splits == {**read(tmp_path / "pretrained/splits.json"), "how": splits["how"]}
    sets = [{patient[name] for name in splits[part]} for part in ("train", "validation", "test")]
    assert all(sets)
    assert sum(map(len, sets)) == len(set().union(*sets)) == PATIENTS


def test_splits_that_break_groups_are_not_taken_over(tmp_path, patients, caplog):
    """Pretraining knew nothing of patients."""
    argv = ["--data_dir", str(patients), "--label_column_name", "diagnosis"]
    argv += [*MODEL, *TRAINING, "--max_train_steps", "1"]
    pretrain.main([*argv, "--output_dir", str(tmp_path / "pretrained")])
    argv += ["--model_name_or_path", str(tmp_path / "pretrained")]
    argv += ["--group_column_name", "patient_id", "--output_dir", str(tmp_path / "finetuned")]
    with caplog.at_level(logging.WARNING, logger="sssd_hf"):
        finetune.main(argv)
    assert "separate images of the same patient_id" in caplog.text
    patient = {row["file_name"]: row["patient_id"] for row in read_table(patients / "metadata.csv")}
    splits = read(tmp_path / "finetuned/splits.json")
    sets = [{patient[name] for name in splits[part]} for part in ("train", "validation", "test")]
    assert sum(map(len, sets)) == PATIENTS


def test_pretraining_on_other_images_leaves_finetuning_its_own_splits(
    tmp_path, runs, patients, caplog
):
    """The checkpoint's splits name files that these data do not have."""
    argv = ["--data_dir", str(patients), "--label_column_name", "diagnosis", *TRAINING]
    argv += ["--model_name_or_path", str(runs / "pretrained"), "--max_train_steps", "1"]
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    assert "cutting anew" in caplog.text
    assert all(read(tmp_path / "out/splits.json")[part] for part in ("train", "validation", "test"))


def test_pretraining_without_labels_leaves_finetuning_a_test_split(tmp_path, class_folders):
    data = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    pretrained = str(tmp_path / "pretrained")
    pretrain.main([*data, *MODEL, "--label_column_name", "", "--output_dir", pretrained])
    splits = read(tmp_path / "pretrained/splits.json")
    assert splits["test"] == []
    argv = [*data, "--model_name_or_path", pretrained]
    finetune.main([*argv, "--output_dir", str(tmp_path / "finetuned")])
    assert read(tmp_path / "finetuned/splits.json")["test"]


@pytest.mark.parametrize("script", [pretrain, finetune])
def test_test_images_are_never_decoded(tmp_path, monkeypatch, class_folders, runs, script):
    decoded = []
    decode_once = cli_data.decode_once

    def spy(sources, *args, **kwargs):
        decoded.extend(source["path"] for source in sources)
        return decode_once(sources, *args, **kwargs)

    monkeypatch.setattr(cli_data, "decode_once", spy)
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    argv += ["--model_name_or_path", str(runs / "pretrained")]
    script.main([*argv, "--output_dir", str(tmp_path / "out")])
    splits = read(tmp_path / "out/splits.json")
    expected = [str(class_folders / name) for name in splits["train"] + splits["validation"]]
    assert sorted(decoded) == sorted(expected)


def three_ways(folder, files):
    """name -> {label: probability} by predict.py (JSON lines) and by the stock pipeline."""
    output = folder.parent / "predictions.jsonl"
    argv = ["--model_name_or_path", str(folder), "--images", *map(str, files)]
    argv += ["--output_file", str(output), "--per_device_eval_batch_size", "3"]
    assert predict.main(argv) == 0
    own = {}
    for line in output.read_text().splitlines():
        record = json.loads(line)
        own[record["file"]] = record["probabilities"]
    classify = stock_pipeline("image-classification", model=str(folder))
    stock = {str(f): {r["label"]: r["score"] for r in classify(str(f))} for f in files}
    return own, stock


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_prediction_and_the_stock_pipeline_agree(
    channels, runs, colour_runs, class_folders, patients
):
    root, data = (runs, class_folders) if channels == 1 else (colour_runs, patients)
    assert SSSDForImageClassification.from_pretrained(root / "finetuned").config.num_channels == (
        channels
    )
    rows = read_table(root / "evaluation/predictions.csv")
    files = [data / row["file_name"] for row in rows]
    own, stock = three_ways(root / "finetuned", files)
    assert list(own) == [str(file) for file in files], "the order is that of the command line"
    for row, file in zip(rows, files):
        evaluated = {name: float(row[f"probability_{name}"]) for name in ("down", "up")}
        for other in (own[str(file)], stock[str(file)]):
            assert set(other) == {"down", "up"}
            assert max(evaluated, key=evaluated.get) == max(other, key=other.get)
            for name, probability in evaluated.items():
                assert other[name] == pytest.approx(probability, abs=0.01)


def test_colour_files_for_a_grey_model_agree_too(runs, patients):
    files = sorted((patients / "slices").glob("*.png"))[:20]
    own, stock = three_ways(runs / "finetuned", files)
    for file in map(str, files):
        assert max(own[file], key=own[file].get) == max(stock[file], key=stock[file].get)
        assert own[file]["up"] == pytest.approx(stock[file]["up"], abs=0.01)


def test_prediction_goes_on_past_a_truncated_file(tmp_path, runs, class_folders, caplog):
    folder = tmp_path / "images"
    for i, source in enumerate(sorted(class_folders.rglob("*.png"))[:5]):
        target = folder / "deep" / f"{i}.PNG"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (folder / "deep" / "2.PNG").write_bytes((folder / "deep" / "2.PNG").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.png").write_bytes(b"")
    extra = sorted(class_folders.rglob("*.png"))[-1]
    argv = ["--model_name_or_path", str(runs / "finetuned"), "--images", str(folder), str(extra)]
    argv += ["--per_device_eval_batch_size", "2"]
    output = tmp_path / "new" / "predictions.csv"
    assert predict.main([*argv, "--output_file", str(output)]) == 1
    rows = read_table(output)
    expected = [str(folder / "deep" / f"{i}.PNG") for i in (0, 1, 3, 4)]
    assert [row["file"] for row in rows] == [*expected, str(extra)]
    kinds = [f"{kind}_{name}" for kind in ("probability", "calibrated") for name in ("down", "up")]
    assert list(rows[0]) == ["file", "label", *kinds]
    for row in rows:
        assert row["label"] in ("down", "up")
        total = float(row["probability_down"]) + float(row["probability_up"])
        assert total == pytest.approx(1, abs=1e-5)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "2.PNG" in errors[0]
    assert "1 files could not be read" in errors[-1]


def test_prediction_to_the_screen(runs, class_folders, capsys):
    file = next(class_folders.rglob("*.png"))
    argv = ["--model_name_or_path", str(runs / "finetuned"), "--images", str(file)]
    assert predict.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("file,label,probability_down,probability_up")
    assert lines[1].startswith(f"{file},")
    assert len(lines) == 2


def test_the_recipe_written_beside_the_result_repeats_the_run(tmp_path, runs, class_folders):
    argv = ["--recipe", str(runs / "pretrained/pretrain_recipe.yaml")]
    pretrain.main([*argv, "--output_dir", str(tmp_path / "again")])
    for name in ("loss", "eval_reconstruction_loss", "learning_rate"):
        first, second = (
            read(f / "all_results.json") for f in (runs / "pretrained", tmp_path / "again")
        )
        assert first[name] == pytest.approx(second[name], rel=1e-6)
    before = (runs / "pretrained/pretrain_recipe.yaml").read_text().splitlines()
    after = (tmp_path / "again/pretrain_recipe.yaml").read_text().splitlines()
    assert [line for line in before if "output_dir:" not in line] == [
        line for line in after if "output_dir:" not in line
    ]


def finetuned_from(checkpoint, tmp_path, data, *argv):
    argv = ["--model_name_or_path", str(checkpoint), *argv]
    argv = ["--data_dir", str(data), *TRAINING, "--max_train_steps", "1", *argv]
    argv += ["--layer_decay", "1e-9", "--learning_rate", "1e-9", "--pooling", "cls"]
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    return SSSDForImageClassification.from_pretrained(tmp_path / "out").eval()


STOCK = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("with_processor", [True, False])
def test_from_a_stock_vit_mae_folder(tmp_path, class_folders, with_processor):
    decoder = {f"decoder_{k}": v for k, v in STOCK.items() if not k.endswith(("_size",))}
    decoder |= {"decoder_hidden_size": 32, "decoder_intermediate_size": 64}
    stock = ViTMAEForPreTraining(ViTMAEConfig(**STOCK, **decoder, mask_ratio=0.0)).eval()
    stock.save_pretrained(tmp_path / "stock")
    if with_processor:
        processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
        processor["image_std"] = [0.4, 0.5, 0.6]
        (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    model = finetuned_from(tmp_path / "stock", tmp_path, class_folders)
    saved = read(tmp_path / "out/preprocessor_config.json")
    if with_processor:
        assert saved["image_mean"] == [0.1, 0.2, 0.3]
    else:  # what MAE was trained with
        assert saved["image_mean"] == [0.485, 0.456, 0.406]
        assert saved["image_std"] == [0.229, 0.224, 0.225]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        noise = torch.arange(16.0).expand(2, -1)
        expected = stock.vit(images, noise=noise).last_hidden_state
        found = model.encoder(images).last_hidden_state
    assert (found - expected).abs().max() < 1e-4
    pretrain_argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    pretrain_argv += ["--model_name_or_path", str(tmp_path / "stock"), "--mask_ratio", "0.5"]
    assert pretrain.main([*pretrain_argv, "--output_dir", str(tmp_path / "further")]) == 0
    assert SSSDForPreTraining.from_pretrained(tmp_path / "further").config.mask_ratio == 0.5


def test_from_a_stock_vit_folder_to_one_channel(tmp_path, class_folders):
    """The processor of the result has the statistics that the conversion assumes."""
    labels = {
        "id2label": {0: "cat", 1: "dog", 2: "cow"},
        "label2id": {"cat": 0, "dog": 1, "cow": 2},
    }
    stock = ViTForImageClassification(ViTConfig(**STOCK, **labels)).eval()
    stock.save_pretrained(tmp_path / "stock")
    mean, std = [0.2, 0.4, 0.6], [0.2, 0.3, 0.4]
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": std}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    model = finetuned_from(tmp_path / "stock", tmp_path, class_folders, "--num_channels", "1")
    assert model.config.id2label == {0: "down", 1: "up"}
    saved = read(tmp_path / "out/preprocessor_config.json")
    assert saved["image_mean"] == pytest.approx([0.4] * 3)
    assert saved["image_std"] == pytest.approx([0.3] * 3)
    pixels = torch.randint(0, 256, (2, 1, 32, 32)).byte()
    grey = normalize(pixels, saved["image_mean"], saved["image_std"])
    colour = normalize(pixels.expand(-1, 3, -1, -1), mean, std)
    with torch.no_grad():
        found = model.encoder(grey).last_hidden_state
        expected = stock.vit(colour).last_hidden_state
    assert (found - expected).abs().max() < 1e-4


def test_from_an_original_mae_file(tmp_path, class_folders):
    """No folder and so no processor: MAE's own statistics."""
    model = SSSDForPreTraining.from_pretrained  # the conversion itself is tested elsewhere
    weights = {}
    width, decoder = 64, 32
    generator = torch.Generator().manual_seed(0)

    def fill(name, *shape):
        weights[name] = 0.02 * torch.randn(*shape, generator=generator)

    fill("cls_token", 1, 1, width)
    fill("pos_embed", 1, 17, width)
    fill("patch_embed.proj.weight", width, 3, 8, 8)
    fill("patch_embed.proj.bias", width)
    fill("mask_token", 1, 1, decoder)
    fill("decoder_pos_embed", 1, 17, decoder)
    for prefix, size in (("blocks.0", width), ("decoder_blocks.0", decoder)):
        for name, shape in (
            ("norm1.weight", (size,)),
            ("norm1.bias", (size,)),
            ("attn.qkv.weight", (3 * size, size)),
            ("attn.qkv.bias", (3 * size,)),
            ("attn.proj.weight", (size, size)),
            ("attn.proj.bias", (size,)),
            ("norm2.weight", (size,)),
            ("norm2.bias", (size,)),
            ("mlp.fc1.weight", (4 * size, size)),
            ("mlp.fc1.bias", (4 * size,)),
            ("mlp.fc2.weight", (size, 4 * size)),
            ("mlp.fc2.bias", (size,)),
        ):
            fill(f"{prefix}.{name}", *shape)
    for name, out, size in (
        ("norm", None, width),
        ("decoder_norm", None, decoder),
        ("decoder_embed", decoder, width),
        ("decoder_pred", 192, decoder),
    ):
        fill(f"{name}.weight", *((size,) if out is None else (out, size)))
        fill(f"{name}.bias", out or size)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    argv += ["--model_name_or_path", str(tmp_path / "mae.pth"), "--learning_rate", "1e-9"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out/preprocessor_config.json")["image_mean"] == [0.485, 0.456, 0.406]
    found = model(tmp_path / "out").state_dict()["encoder.layers.0.attention.qkv.weight"]
    assert torch.allclose(found, weights["blocks.0.attn.qkv.weight"], atol=1e-6)


def test_a_finetuned_checkpoint_can_be_finetuned_for_other_classes(tmp_path, runs):
    """Its head is left behind, its encoder is not."""
    for i in range(18):
        draw(tmp_path / "images" / f"class{i % 3}" / f"{i}.png", i % 2, i)
    model = finetuned_from(runs / "finetuned", tmp_path, tmp_path / "images")
    assert model.config.num_labels == 3
    assert list(model.config.id2label.values()) == ["class0", "class1", "class2"]
    before = SSSDForImageClassification.from_pretrained(runs / "finetuned").state_dict()
    name = "encoder.layers.1.mlp.fc1.weight"
    assert torch.allclose(model.state_dict()[name], before[name], atol=1e-5)


@pytest.mark.parametrize("preset", ["sd_mae", "global", "mae", "stable"])
def test_the_preset_decides_the_loss_whatever_the_checkpoint(tmp_path, runs, preset, class_folders):
    head = "distillation_num_prototypes=8,distillation_head_hidden_size=8"
    head += ",distillation_bottleneck_size=4"
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    argv += ["--model_name_or_path", str(runs / "pretrained"), "--config_overrides", head]
    first = [*argv, "--distillation", preset, "--output_dir", str(tmp_path / "first")]
    assert pretrain.main(first) == 0
    model = SSSDForPreTraining.from_pretrained(tmp_path / "first")
    assert (model.distillation is None) == (preset == "mae")
    argv[argv.index(str(runs / "pretrained"))] = str(tmp_path / "first")
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "second")]) == 0
    config = SSSDForPreTraining.from_pretrained(tmp_path / "second").config
    fresh = SSSDForPreTraining.from_pretrained(runs / "pretrained").config
    for name in ("head", "distance", "pooling", "weight", "weighting", "stop_gradient"):
        name = f"distillation_{name}"
        assert getattr(config, name) == getattr(fresh, name), "stable, the default"


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path, runs, class_folders):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--output_dir", str(tmp_path / "out")]
    assert finetune.main(argv) == 0
    kept = read(tmp_path / "out/all_results.json")
    for script in (finetune, pretrain):
        with pytest.raises(ValueError, match="--overwrite_output_dir"):
            script.main(argv)
    assert read(tmp_path / "out/all_results.json") == kept
    argv += ["--overwrite_output_dir", "--seed", "77", "--train_test_split", "0.4"]
    before = read(tmp_path / "out/splits.json")
    assert finetune.main(argv) == 0
    after = read(tmp_path / "out/splits.json")
    assert len(after["test"]) == 16, "the new options count, not the old run's splits"
    assert len(before["test"]) == 8
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 1


def test_an_overwritten_run_that_fails_leaves_no_old_result(tmp_path, class_folders):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--output_dir", str(tmp_path / "out"), "--overwrite_output_dir"]
    assert finetune.main(argv) == 0
    argv[argv.index("--image_size") + 1] = "33"
    with pytest.raises(ValueError, match="image_size=33"):
        finetune.main(argv)
    assert not (tmp_path / "out/all_results.json").exists()


def test_an_unfinished_runs_splits_are_read_back(tmp_path, class_folders, monkeypatch):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--output_dir", str(tmp_path / "out")]

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(argv)
    before = read(tmp_path / "out/splits.json")
    assert finetune.main([*argv, "--seed", "50"]) == 0
    assert read(tmp_path / "out/splits.json")["test"] == before["test"]


def test_a_trial_takes_images_of_all_classes(tmp_path, class_folders):
    """By chance and not the first ones: class folders lie one after the other."""
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--max_train_samples", "12"]
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out/all_results.json")["num_train_images"] == 12
    rows = list(range(100, 200))
    chosen = choose_rows(rows, 20, seed=1)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(rows)
    assert len(chosen) == 20
    assert max(chosen) > 150
    assert chosen != choose_rows(rows, 20, seed=2)
    assert choose_rows(rows, None, 0) == choose_rows(rows, 1000, 0) == rows


def test_class_weights_reach_the_loss(tmp_path, class_folders):
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "2"]
    argv += ["--image_size", "32", "--patch_size", "8", "--label_smoothing", "0"]
    overrides = f"{SIZES},class_weights=[1,3]"
    argv += ["--config_overrides", overrides, "--output_dir", str(tmp_path / "out")]
    assert finetune.main(argv) == 0
    config = SSSDForImageClassification.from_pretrained(tmp_path / "out").config
    assert config.class_weights == [1, 3]
    argv[argv.index(overrides)] = SIZES
    argv[argv.index(str(tmp_path / "out"))] = str(tmp_path / "plain")
    assert finetune.main(argv) == 0
    first, second = (read(tmp_path / name / "all_results.json") for name in ("out", "plain"))
    assert first["loss"] != pytest.approx(second["loss"], rel=1e-4)


# ---------------------------------------------------------------------- mistakes


@pytest.fixture
def untrained(monkeypatch):
    """Fails the test where a training begins: mistakes must show before."""

    def train(*args, **kwargs):
        pytest.fail("the training began")

    monkeypatch.setattr(pretrain, "fit", train)
    monkeypatch.setattr(finetune, "fit", train)


def error_of(capsys, main, *argv):
    """What `run_script` shows and leaves with."""
    with pytest.raises(SystemExit) as stop:
        common.run_script(lambda: main([str(a) for a in argv]))
    assert stop.value.code not in (0, None)
    shown = f"{capsys.readouterr().err}\n{stop.value.code}"
    assert "Traceback" not in shown
    assert "error:" in shown
    return " ".join(shown.split())


def test_one_class(tmp_path, capsys, untrained):
    for i in range(6):
        draw(tmp_path / "images/only" / f"{i}.png", 0, i)
    argv = ("--data_dir", tmp_path / "images", "--output_dir", tmp_path / "out", *MODEL)
    message = error_of(capsys, finetune.main, *argv)
    assert "'only'" in message
    assert "at least two" in message


def test_pretraining_needs_no_classes(tmp_path):
    for i in range(8):
        draw(tmp_path / "images" / f"{i}.png", 0, i)
    argv = ["--data_dir", str(tmp_path / "images"), *MODEL, *TRAINING, "--max_train_steps", "1"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("script", [pretrain, finetune])
def test_empty_folder_and_no_folder(tmp_path, capsys, untrained, script):
    (tmp_path / "empty").mkdir()
    argv = ("--output_dir", tmp_path / "out", *MODEL)
    message = error_of(capsys, script.main, "--data_dir", tmp_path / "empty", *argv)
    assert "no images" in message
    message = error_of(capsys, script.main, "--data_dir", tmp_path / "gone", *argv)
    assert "does not exist" in message
    message = error_of(capsys, script.main, *argv)
    assert "--data_dir" in message


def test_a_split_that_does_not_exist(tmp_path, capsys, untrained, patients):
    argv = ("--data_dir", patients, "--label_column_name", "diagnosis", *MODEL)
    argv += ("--output_dir", tmp_path / "out", "--split_column", "protocol")
    message = error_of(capsys, finetune.main, *argv, "--validation_split", "tuning")
    assert "'tuning'" in message
    assert "'val'" in message
    message = error_of(capsys, finetune.main, *argv[:-1], "procotol")
    assert "'procotol'" in message
    assert "protocol" in message


def test_a_label_that_training_lacks(tmp_path, capsys, untrained):
    for i in range(12):
        draw(tmp_path / "images/train" / f"class{i % 2}" / f"{i}.png", i % 2, i)
    for i in range(3):
        draw(tmp_path / "images/val" / f"class{i}" / f"v{i}.png", i % 2, i)
    argv = ("--data_dir", tmp_path / "images", "--output_dir", tmp_path / "out", *MODEL)
    message = error_of(capsys, finetune.main, *argv)
    assert "'class2'" in message
    assert "validation" in message


def test_labels_that_the_model_does_not_know(tmp_path, capsys, runs):
    for i in range(12):
        draw(tmp_path / "images" / ["up", "sideways"][i % 2] / f"{i}.png", i % 2, i)
    argv = ("--data_dir", tmp_path / "images", "--output_dir", tmp_path / "out")
    argv += ("--model_name_or_path", runs / "finetuned")
    message = error_of(capsys, evaluate.main, *argv)
    assert "sideways" in message
    assert "down, up" in message


@pytest.mark.parametrize("script", [pretrain, finetune])
def test_unreadable_images_show_before_the_training(
    tmp_path, capsys, untrained, class_folders, script
):
    for source in class_folders.rglob("*.png"):
        target = tmp_path / "images" / source.relative_to(class_folders)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    argv = ["--data_dir", str(tmp_path / "images"), *MODEL, *TRAINING]
    for split in (0, 0.5):  # whichever part it falls into
        (tmp_path / "images/up/01.png").write_bytes(b"")
        (tmp_path / "images/down/02.png").write_bytes(b"\x89PNG")
        options = ["--train_test_split", "0", "--train_val_split", str(split)]
        message = error_of(capsys, script.main, *argv, *options, "--output_dir", tmp_path / "out")
        assert "can't be read" in message
        assert "01.png" in message or "02.png" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--image_size", "33"], "image_size=33"),
        (["--num_channels", "2"], "num_channels=2"),
        (["--config_overrides", "hidden_sise=3"], "hidden_sise"),
        (["--config_overrides", "to_dict=3"], "to_dict"),
        (["--config_overrides", "hidden_size"], "name=value"),
        (["--config_overrides", "hidden_size=wide"], "hidden_size"),
        (["--learning_rate", "1", "--base_learning_rate", "1"], "not both"),
        (["--metric_for_best_model", "auroc"], "roc_auc"),
        (["--drop_path_rate", "2"], "drop_path_rate"),
        (["--model_name_or_path", "no/such/folder"], "no/such/folder"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size"),
    ],
)
def test_wrong_options_show_before_the_training(
    tmp_path, capsys, untrained, class_folders, options, named
):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, *options]
    assert named in error_of(capsys, finetune.main, *argv, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--mask_ratio", "0.99"], "mask_ratio=0.99"),
        (["--mask_ratio", "0"], "mask_ratio"),
        (["--distillation_weight", "-1"], "distillation_weight"),
        (["--distillation", "dino"], "sd_mae"),
    ],
)
def test_wrong_losses_show_before_the_training(
    tmp_path, capsys, untrained, class_folders, options, named
):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, *options]
    assert named in error_of(capsys, pretrain.main, *argv, "--output_dir", tmp_path / "out")


def test_evaluation_and_prediction_of_no_classifier(tmp_path, capsys, class_folders):
    (tmp_path / "empty").mkdir()
    for script, option in ((evaluate, "--data_dir"), (predict, "--images")):
        argv = ("--model_name_or_path", tmp_path / "empty", option, class_folders)
        assert str(tmp_path / "empty") in error_of(capsys, script.main, *argv)


def test_prediction_without_images_or_with_a_wrong_name(tmp_path, capsys, runs, class_folders):
    model = ("--model_name_or_path", runs / "finetuned")
    (tmp_path / "empty").mkdir()
    assert "--images" in error_of(capsys, predict.main, *model)
    message = error_of(capsys, predict.main, *model, "--images", tmp_path / "empty")
    assert "no images" in message
    argv = ("--images", class_folders, "--output_file", tmp_path / "a.xlsx")
    assert ".csv or .jsonl" in error_of(capsys, predict.main, *model, *argv)


def test_evaluation_without_a_test_split(tmp_path, capsys, class_folders):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--train_test_split", "0", "--output_dir", str(tmp_path / "out")]
    assert finetune.main(argv) == 0
    argv = ("--data_dir", class_folders, "--model_name_or_path", tmp_path / "out")
    message = error_of(capsys, evaluate.main, *argv, "--output_dir", tmp_path / "evaluation")
    assert "no test split" in message


def test_evaluation_on_images_that_were_trained_on_is_said(tmp_path, colour_runs, patients, caplog):
    argv = ["--data_dir", str(patients), "--label_column_name", "diagnosis"]
    argv += ["--model_name_or_path", str(colour_runs / "finetuned"), "--num_resamples", "10"]
    argv += ["--output_dir", str(tmp_path / "out"), "--split_column", "protocol"]
    assert evaluate.main([*argv, "--test_split", "train", "--train_split", "test"]) == 0
    assert "32 of the 32 test images" in caplog.text
    assert read(tmp_path / "out/all_results.json")["num_test_images_seen"] == 32
    caplog.clear()
    assert evaluate.main(argv) == 0
    assert "as training or validation images" not in caplog.text
    assert read(tmp_path / "out/all_results.json")["num_test_images_seen"] == 0


def test_a_loss_that_is_not_finite_is_an_error(tmp_path, capsys, class_folders):
    argv = ["--data_dir", class_folders, *MODEL, *TRAINING, "--max_train_steps", "40"]
    argv += ["--learning_rate", "1e30", "--num_warmup_steps", "0"]
    message = error_of(capsys, pretrain.main, *argv, "--output_dir", tmp_path / "out")
    assert "The loss is nan" in message
    assert "--learning_rate" in message
    assert not (tmp_path / "out/all_results.json").exists()


def test_shapes_that_a_checkpoint_does_not_have(tmp_path, capsys, runs, class_folders):
    """Only a head may be replaced."""
    argv = ("--data_dir", class_folders, "--model_name_or_path", runs / "finetuned", *TRAINING)
    argv += ("--config_overrides", "intermediate_size=48", "--output_dir", tmp_path / "out")
    assert "encoder.layers.0.mlp.fc1" in error_of(capsys, finetune.main, *argv)
