"""The scripts' main functions, one after the other, on tiny generated folders."""

import io
import json
import logging
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from script_runs import MODEL, PATIENTS, SIZES, TRAINING, read, read_table
from transformers import pipeline as stock_pipeline

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import data as cli_data
from sssd_hf.cli import evaluate, finetune, predict, pretrain
from sssd_hf.cli.data import choose_rows

pytestmark = pytest.mark.usefixtures("no_figures")


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


def test_pretraining_without_labels_leaves_finetuning_a_test_split(tmp_path, class_folders, caplog):
    data = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    pretrained = str(tmp_path / "pretrained")
    pretrain.main([*data, *MODEL, "--label_column_name", "", "--output_dir", pretrained])
    splits = read(tmp_path / "pretrained/splits.json")
    assert splits["test"] == []
    argv = [*data, "--model_name_or_path", pretrained]
    caplog.clear()
    finetune.main([*argv, "--output_dir", str(tmp_path / "finetuned")])
    found = read(tmp_path / "finetuned/splits.json")
    assert found["test"]
    # most of them the pretraining has seen, and that is said, also of what starts from this one
    seen = sorted(set(found["test"]) & set(splits["train"]))
    assert sorted(found["pretrained_on"]) == seen
    assert 0 < len(seen) < len(found["test"])
    assert f"{len(seen)} of the {len(found['test'])} test images" in caplog.text
    argv = ["--data_dir", str(class_folders), "--model_name_or_path", str(tmp_path / "finetuned")]
    argv += ["--num_resamples", "10", "--output_dir", str(tmp_path / "evaluation")]
    assert evaluate.main(argv) == 0
    results = read(tmp_path / "evaluation/all_results.json")
    assert (results["num_test_images_seen"], results["num_test_images_pretrained_on"]) == (
        0,
        len(seen),
    )
    argv = [*data, "--model_name_or_path", str(tmp_path / "finetuned")]
    finetune.main([*argv, "--output_dir", str(tmp_path / "again")])
    assert sorted(read(tmp_path / "again/splits.json")["pretrained_on"]) == seen


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


def test_files_to_classify_are_found_as_in_training_and_taken_once(tmp_path, caplog):
    patient, place = tmp_path / "elsewhere" / "p1", tmp_path / "images"
    for file in (patient / "a.png", patient / "b.IMA", place / "c.gif", place / "d.jpg"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (place / "linked").symlink_to(patient)
    found = predict.find_files([str(place), str(place / "d.jpg")])
    assert found == [place / "d.jpg", place / "linked/a.png", place / "linked/b.IMA"]
    assert "1 files are no images by their suffix and are left out: 'c.gif'" in caplog.text
    assert "1 files named twice are taken once" in caplog.text


def test_a_name_that_is_not_utf8_reaches_the_screen(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, "utf-8", errors="strict"))
    writer = predict.Writer(None, ["down", "up"])
    writer.write([predict.Slice(Path(os.fsdecode(b"\xff.png")))], np.array([[0.25, 0.75]]))
    assert stream.getvalue().splitlines()[1] == b"\xff.png,up,0.250000,0.750000"


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
    # nor an earlier model beside the splits of this run, which do not tell what it has seen
    assert not {"model.safetensors", "config.json"} & {p.name for p in (tmp_path / "out").iterdir()}


def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path, class_folders):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    argv += ["--output_dir", str(tmp_path / "out")]
    assert pretrain.main(argv) == 0
    shutil.copytree(tmp_path / "out", tmp_path / "out/earlier")
    for start in ("out", "out/earlier"):
        words = [*argv, "--model_name_or_path", str(tmp_path / start), "--overwrite_output_dir"]
        with pytest.raises(ValueError, match="name another --output_dir"):
            finetune.main(words)
    assert (tmp_path / "out/model.safetensors").is_file()


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
    resumed = [*argv, "--seed", "50", "--resume_from_checkpoint", "latest"]
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(resumed)
    assert read(tmp_path / "out/splits.json")["test"] == before["test"]
    assert finetune.main([*argv, "--seed", "50"]) == 0  # not resumed: what is asked for now
    assert read(tmp_path / "out/splits.json")["test"] != before["test"]


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
