"""Calibration from fine-tuning to prediction, and what evaluation writes beside the metrics."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from tiny_runs import SIZES, read, run, write_images
from transformers import pipeline

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli import evaluate, finetune, predict, pretrain
from sssd_hf.cli.split_sources import file_source
from sssd_hf.hub.clean import clean_results

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """As `write_images`, as a table with patients of two images and a column of scanners."""
    root = write_images(tmp_path_factory.mktemp("calibrated") / "images")
    rows = []
    for path in sorted(root.rglob("*.png")):
        split, label = path.parent.parent.name, path.parent.name
        patient = f"{split}-{label}-{int(path.stem) // 2}"
        scanner = "AB"[int(path.stem) % 2]
        rows.append([path.relative_to(root).as_posix(), label, patient, split, scanner])
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "patient", "part", "scanner"], *rows])
    return root


OPTIONS = ["--split_column", "part", "--group_column_name", "patient"]


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("model") / "fine"
    # stochastic depth, which the first layer has not, must not reach the calibration
    deep = SIZES.replace("num_hidden_layers=1", "num_hidden_layers=3")
    deep = ["--config_overrides", deep, "--drop_path_rate", 0.5]
    deep += ["--learning_rate", 5e-3]
    return run(finetune, images, output, *OPTIONS, *deep, "--positive_label", "down", steps=40)


def evaluated(model, images, output, *options):
    argv = ["--model_name_or_path", model, "--data_dir", images, "--output_dir", output, *OPTIONS]
    argv += ["--num_resamples", 50, *options]
    assert evaluate.main([str(word) for word in argv]) == 0
    return read(output / "all_results.json"), pd.read_csv(output / "predictions.csv")


@pytest.fixture(scope="module")
def evaluation(model, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    return evaluated(model, images, output, "--subgroup_columns", "scanner")


def test_the_positive_class_is_number_one(model, evaluation):
    config = SSSDConfig.from_pretrained(model)
    assert config.id2label == {0: "up", 1: "down"}
    results, table = evaluation
    assert results["positive_label"] == "down"
    expected = roc_auc_score(table["label"] == "down", table["probability_down"])
    assert results["roc_auc"] == pytest.approx(expected)


def test_temperature_and_threshold_are_those_of_the_validation_images(model, images):
    files = sorted((images / "val").rglob("*.png"))
    labels = np.array([file.parent.name == "down" for file in files]).astype(int)
    answers = pipeline("image-classification", model=str(model))([str(file) for file in files])
    scores = np.array([next(a["score"] for a in row if a["label"] == "down") for row in answers])
    logits = np.log(scores / (1 - scores))
    calibration = SSSDConfig.from_pretrained(model).calibration

    grid = np.geomspace(0.05, 20, 4001)
    losses = [log_loss(labels, 1 / (1 + np.exp(-logits / t))) for t in grid]
    assert calibration["temperature"] == pytest.approx(grid[np.argmin(losses)], rel=0.01)
    assert calibration["fitted_on"].startswith("8 validation images")
    decided = 1 / (1 + np.exp(-logits / calibration["temperature"])) >= calibration["threshold"]
    false_alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    reached = decided[labels == 1].mean() - decided[labels == 0].mean()
    assert reached == pytest.approx((hits - false_alarms).max())


def test_evaluation_and_prediction_decide_alike(model, images, evaluation, tmp_path):
    results, table = evaluation
    files = [str(images / name) for name in table["file_name"]]
    argv = ["--model_name_or_path", str(model), "--images", *files]
    assert predict.main([*argv, "--output_file", str(tmp_path / "out.csv")]) == 0
    predicted = pd.read_csv(tmp_path / "out.csv")
    assert predicted["label"].tolist() == table["predicted"].tolist()
    calibration = SSSDConfig.from_pretrained(model).calibration
    odds = table["probability_down"] / table["probability_up"]
    expected = 1 / (1 + odds ** (-1 / calibration["temperature"]))
    for column in (table["calibrated_down"], predicted["calibrated_down"]):
        np.testing.assert_allclose(column, expected, atol=1e-5)
    is_down = (expected >= calibration["threshold"]).to_numpy()
    assert (table["predicted"] == "down").to_numpy().tolist() == is_down.tolist()
    right = (table["predicted"] == table["label"]).mean()
    assert results["operating_point"]["metrics"]["accuracy"] == pytest.approx(right)
    assert predict.main([*argv, "--output_file", str(tmp_path / "out.jsonl")]) == 0
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["calibrated"]["down"] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize(("method", "reduce"), [("mean", "mean"), ("max", "max")])
def test_one_answer_for_a_folder(method, reduce, model, images, evaluation, tmp_path):
    _, table = evaluation
    argv = ["--model_name_or_path", str(model), "--images", str(images / "test")]
    argv += ["--aggregate_by", "folder", "--aggregation", method]
    for name in ("out.csv", "out.jsonl"):
        assert predict.main([*argv, "--output_file", str(tmp_path / name)]) == 0
    found = pd.read_csv(tmp_path / "out.csv").set_index("file")
    folders = table["file_name"].str.rsplit("/", n=1).str[0]
    expected = table.groupby(folders)["calibrated_down"].agg([reduce, "size"])
    assert len(found) == 2
    for folder, row in expected.iterrows():
        answer = found.loc[str(images / folder)]
        assert answer["images"] == row["size"]
        assert answer["calibrated_down"] == pytest.approx(row[reduce], abs=1e-5)
        assert answer["label"] == ("down" if row[reduce] > 0.5 else "up")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == found.index.tolist()


def test_patients_and_subgroups(evaluation):
    results, table = evaluation
    assert results["num_test_groups"] == results["aggregated"]["count"] == table["group"].nunique()
    assert set(results["subgroups"]["scanner"]["subgroups"]) == {"A", "B"}
    assert results["command"].startswith("python scripts/evaluate.py ")


def test_groups_that_training_has_too_are_counted(model, images, evaluation, tmp_path, caplog):
    """Against the table of the images, of which every second patient is now also one of training;
    nothing is known where the training images are not at hand."""
    results, _ = evaluation
    assert results["num_groups_shared_with_training"] == 0
    data = shutil.copytree(images, tmp_path / "images")
    rows = pd.read_csv(data / "metadata.csv")
    patients = sorted(set(rows["patient"][rows["part"] == "test"]))
    rows.loc[rows["part"] == "train", "patient"] = [
        patients[i % 2] for i in range((rows["part"] == "train").sum())
    ]
    rows.to_csv(data / "metadata.csv", index=False)
    results, _ = evaluated(model, data, tmp_path / "shared")
    assert results["num_groups_shared_with_training"] == 2
    assert f"2 of the {len(patients)} groups (patient)" in caplog.text
    alone = shutil.copytree(model, tmp_path / "alone")
    (alone / "splits.json").unlink()
    results, _ = evaluated(alone, data, tmp_path / "unknown")
    assert results["num_groups_shared_with_training"] is None
    assert results["num_test_images_seen"] is None


@pytest.fixture(scope="module")
def elsewhere(images, tmp_path_factory):
    """Images of another place in plain folders of classes, no split among them; and argv."""
    root = tmp_path_factory.mktemp("elsewhere") / "images"
    for path in sorted((images / "test").rglob("*.png")):
        target = root / path.parent.name / f"other_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


def evaluated_elsewhere(model, data, output, *options):
    argv = ["--model_name_or_path", model, "--data_dir", data, "--output_dir", output]
    assert evaluate.main([str(word) for word in [*argv, "--num_resamples", 20, *options]]) == 0
    return read(output / "all_results.json")


def test_images_of_another_place_are_all_evaluated(model, elsewhere, evaluation, tmp_path):
    """The same pixels as the test split's, so the same figures."""
    results = evaluated_elsewhere(model, elsewhere, tmp_path / "all", "--test_split", "all")
    assert results["num_test_images"] == 6
    assert results["num_test_images_seen"] == 0
    for name in ("accuracy", "roc_auc", "log_loss"):
        assert results[name] == pytest.approx(evaluation[0][name])


def test_a_column_or_file_of_test_images_alone_will_do(model, elsewhere, tmp_path):
    data = shutil.copytree(elsewhere, tmp_path / "images")
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    rows = [[name, name.split("/")[0], "test"] for name in names]
    with open(data / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "part"], *rows])
    results = evaluated_elsewhere(model, data, tmp_path / "column", "--split_column", "part")
    assert results["num_test_images"] == 6
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"train": [], "validation": [], "test": names[:2] + names[3:]}))
    results = evaluated_elsewhere(model, data, tmp_path / "file", "--splits_file", file)
    assert results["num_test_images"] == 5
    with pytest.raises(ValueError, match="leave out --splits_file"):
        evaluated_elsewhere(
            model, data, tmp_path / "x", "--splits_file", file, "--test_split", "all"
        )


@pytest.mark.parametrize("stored", [True, False])  # without: as a model on the Hub
def test_no_test_images_are_drawn_by_chance(stored, model, elsewhere, tmp_path):
    alone = shutil.copytree(model, tmp_path / "alone")
    if not stored:
        (alone / "splits.json").unlink()
    with pytest.raises(ValueError, match=r"--splits_file, or take all images by --test_split all"):
        evaluated_elsewhere(alone, elsewhere, tmp_path / "out")
    assert not (tmp_path / "out" / "all_results.json").exists()


def test_the_source_of_the_splits_is_told(model, images, evaluation, elsewhere, tmp_path):
    def source_of(folder):
        return read(folder / "splits.json")["how"]["source"]

    assert evaluation[0]["split_source"] == source_of(model) == "the column part"
    results = evaluated_elsewhere(model, elsewhere, tmp_path / "all", "--test_split", "all")
    assert results["split_source"] == "all images of the data"
    # by --splits_file, and a recipe's column that is then not looked at
    file = model / "splits.json"
    results, _ = evaluated(model, images, tmp_path / "file", "--splits_file", file)
    assert results["split_source"] == f"the file {file} (the column part)"
    assert results["split_column"] is None
    # cut by chance, and handed on from pretraining
    data = shutil.copytree(images / "train", tmp_path / "images")
    table = pd.read_csv(images / "metadata.csv")[["file_name", "label", "patient"]]
    table = table[table["file_name"].str.startswith("train/")]
    table["file_name"] = table["file_name"].str.removeprefix("train/")
    table.to_csv(data / "metadata.csv", index=False)
    options = ["--group_column_name", "patient", "--train_test_split", "0.25"]
    first = run(pretrain, data, tmp_path / "pre", *options, steps=1)
    cut = "cut by chance, whole groups of the column patient; train_test_split 0.25; "
    cut += "train_val_split 0.15; seed 3"
    assert source_of(first) == cut
    second = run(finetune, data, tmp_path / "fine", "--model_name_or_path", first, steps=1)
    assert source_of(second) == f"the file {first / 'splits.json'} ({cut})"
    results = evaluated_elsewhere(second, data, tmp_path / "out")
    assert results["split_source"] == f"the file {second / 'splits.json'} ({source_of(second)})"


def test_a_published_source_of_splits_has_no_path():
    source = file_source(Path("/home/erika/my clinic/splits.json"))
    assert clean_results({"split_source": source}) == {"split_source": "the file <path>"}


@pytest.mark.parametrize("folders", [True, False])
def test_split_folders_and_a_column_named_split_are_no_chance(folders, images, tmp_path):
    data = tmp_path / "images"
    shutil.copytree(images, data, ignore=shutil.ignore_patterns("metadata.csv"))
    if not folders:
        table = pd.read_csv(images / "metadata.csv").rename(columns={"part": "split"})
        table.to_csv(data / "metadata.csv", index=False)
    fine = run(finetune, data, tmp_path / "fine", steps=1)
    assert read(fine / "splits.json")["how"]["source"] == "the column split"
    results = evaluated_elsewhere(fine, data, tmp_path / "out")
    assert results["split_source"] == "the column split"


def test_two_models_on_the_same_images(model, images, tmp_path):
    other = run(finetune, images, tmp_path / "other", *OPTIONS, steps=2)  # positive: up
    first = tmp_path / "first"
    evaluated(model, images, first)
    results, table = evaluated(other, images, tmp_path / "second", "--compare_with", first)
    earlier = pd.read_csv(first / "predictions.csv")
    truth = table["label"] == "up"
    difference = roc_auc_score(truth, table["probability_up"]) - roc_auc_score(
        truth, earlier["probability_up"]
    )
    row = results["comparison"]["metrics"]["roc_auc"]
    assert row["difference"] == pytest.approx(difference)
    table = earlier.iloc[1:]
    table.to_csv(first / "predictions.csv", index=False)
    with pytest.raises(ValueError, match="same images"):
        evaluated(other, images, tmp_path / "third", "--compare_with", first)


def test_readings_of_the_same_images_are_counted(model, images, elsewhere, tmp_path):
    """By the images, not by the name of their split; a line that tells nothing counts for none."""
    alone = shutil.copytree(model, tmp_path / "alone")
    (alone / "evaluations.jsonl").write_text('[1]\n"text"\n{}\n')
    results, _ = evaluated(alone, images, tmp_path / "first")
    assert results["times_test_was_read"] == 1
    data = shutil.copytree(elsewhere, tmp_path / "images")
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    with open(data / "metadata.csv", "w", newline="") as file:
        rows = [[name, name.split("/")[0], "test"] for name in names]
        csv.writer(file).writerows([["file_name", "label", "part"], *rows])
    results = evaluated_elsewhere(alone, data, tmp_path / "other", "--split_column", "part")
    assert results["times_test_was_read"] == 1
    results = evaluated_elsewhere(alone, data, tmp_path / "again", "--test_split", "all")
    assert results["times_test_was_read"] == 2
    results, _ = evaluated(alone, images, tmp_path / "second")
    assert results["times_test_was_read"] == 2


def test_without_validation_there_is_no_calibration(images, tmp_path):
    options = ["--split_column", "part", "--train_split", "train,val", "--train_val_split", "0"]
    output = run(finetune, images, tmp_path / "fine", *options, steps=2)
    assert SSSDConfig.from_pretrained(output).calibration is None
    results, table = evaluated(output, images, tmp_path / "evaluation")
    assert results["calibration"] is None
    assert not [name for name in table.columns if name.startswith("calibrated_")]
    most = np.where(table["probability_up"] > table["probability_down"], "up", "down")
    assert table["predicted"].tolist() == most.tolist()


def test_a_new_training_takes_over_no_calibration(model, images, tmp_path):
    options = [
        "--model_name_or_path",
        model,
        "--split_column",
        "part",
        "--train_split",
        "train,val",
    ]
    again = run(finetune, images, tmp_path / "a", *options, "--train_val_split", "0", steps=1)
    assert SSSDConfig.from_pretrained(again).calibration is None
    whole = run(pretrain, images, tmp_path / "pre", *OPTIONS, steps=1)
    SSSDForImageClassification.from_pretrained(whole)
    assert SSSDConfig.from_pretrained(whole).calibration is None


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--positive_label", "left", "classes down, up"),
        ("--threshold_rule", "best", "'youden'"),
        ("--threshold_rule", "sensitivity>=2", "sensitivity>="),
    ],
)
def test_impossible_wishes(option, value, message, images, tmp_path, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        run(finetune, images, tmp_path / "x", *OPTIONS, option, value)
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize("rule", ["sensitivity>=0.9", "none"])
def test_other_rules(rule, images, tmp_path):
    output = run(finetune, images, tmp_path / "x", *OPTIONS, "--threshold_rule", rule, steps=2)
    found = SSSDConfig.from_pretrained(output).calibration
    assert found["rule"] == ("argmax" if rule == "none" else rule)
    assert (found["threshold"] is None) == (rule == "none")


@pytest.mark.parametrize(
    "calibration",
    [
        {"temperature": 1.0},
        {"temperature": 0.0, "threshold": None, "rule": "argmax", "fitted_on": ""},
        {"temperature": math.nan, "threshold": None, "rule": "argmax", "fitted_on": ""},
        {"temperature": 1.0, "threshold": "high", "rule": "argmax", "fitted_on": ""},
        [1.0],
    ],
)
def test_a_broken_calibration_in_a_config_is_refused(calibration):
    with pytest.raises(ValueError, match="calibration"):
        SSSDConfig(calibration=calibration)
