"""Whole protocols of seconds: folds, named splits, seeds; interrupted, compared, as an ensemble."""

import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
from tiny_runs import MODEL, digest, read
from transformers import pipeline

from sssd_hf.cli import cross_validate, evaluate, finetune, predict, pretrain, runs
from sssd_hf.cli.arguments import DataArguments
from sssd_hf.cli.data import load_data, split_data
from sssd_hf.evaluation.calibration import apply_calibration
from sssd_hf.evaluation.intervals import bootstrap_intervals
from sssd_hf.training.signals import Interrupted

COMMON = [*MODEL, "--max_train_steps", "3", "--per_device_train_batch_size", "8"]
COMMON += ["--num_resamples", "50", "--group_column_name", "patient"]
COMMON += ["--train_val_split", "0.35"]  # both classes in validation, else there is no threshold
FOLDS = ["--cross_validation", "2"]
FAST = ["--skip_pretraining", "true"]


@pytest.fixture(scope="module", autouse=True)
def no_drawing():
    """As `no_figures`, for module fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_training_curves", "plot_reconstructions"):
            patch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images of 12 patients, light below ("down") or above, with two columns of splits."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = ["file_name,label,patient,first,second"]
    for i in range(24):
        patient, up = i // 2, i // 2 % 2
        pixels = rng.uniform(0, 120, (20, 20))
        pixels[10 * (1 - up) :][:10] += 80
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:02d}.png")
        parts = [
            "test" if patient in tested else "train" for tested in ((0, 1, 2, 3), (2, 3, 4, 5))
        ]
        lines.append(f"{i:02d}.png,{('down', 'up')[up]},{patient},{parts[0]},{parts[1]}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def start(images, output, *options):
    argv = ["--data_dir", images, "--output_dir", output, *COMMON, *options]
    return cross_validate.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def folds(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("folds") / "out"
    assert start(images, output, *FOLDS) == 0
    return output


def table_of(output):
    return pd.read_csv(output / "out_of_fold.csv")


def test_every_image_is_tested_once_by_a_model_of_other_patients(images, folds):
    table = table_of(folds)
    assert sorted(table["file_name"]) == sorted(path.name for path in images.glob("*.png"))
    patients = pd.read_csv(images / "metadata.csv").set_index("file_name")["patient"]
    for run, part in table.groupby("run"):
        for stage in ("pretrain", "finetune"):
            splits = read(folds / run / stage / "splits.json")
            assert sorted(splits["test"]) == sorted(part["file_name"])
            learned = splits["train"] + splits["validation"]
            assert set(part["num_train"]) == {len(learned)}
            assert not set(patients[learned]) & set(patients[part["file_name"]])
        assert read(folds / run / "splits.json")["how"]["source"].endswith("of cross-validation")
        weights = read(folds / run / "finetune" / "all_results.json")
        assert weights["num_train_images"] == len(splits["train"])
    assert read(folds / "all_results.json")["pretraining_saw_test_images"] is False


def test_pooled_figures_are_those_of_all_predictions(folds):
    table, results = table_of(folds), read(folds / "all_results.json")
    labels = (table["label"] == "up").astype(int)
    score = table["probability_up"]
    pooled = results["pooled"]
    assert pooled["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(labels, score))
    assert pooled["metrics"]["accuracy"] == pytest.approx(accuracy_score(labels, score > 0.5))
    assert pooled["metrics"]["brier"] == pytest.approx(brier_score_loss(labels, score))
    decided = table["predicted"] == "up"
    found = pooled["decisions"]["metrics"]["accuracy"]
    assert found == pytest.approx(accuracy_score(labels, decided))
    table = table.sort_values("file_name")
    labels = (table["label"] == "up").to_numpy().astype(int)
    probabilities = table[["probability_down", "probability_up"]].to_numpy()
    groups = table["group"].astype(str).to_numpy()
    expected = bootstrap_intervals(labels, probabilities, groups, num_resamples=50)
    assert pooled["intervals"]["roc_auc"] == pytest.approx(list(expected["roc_auc"]))
    for fold, value in results["over_splits"]["accuracy"]["values"].items():
        own = read(folds / fold / "evaluate" / "all_results.json")
        assert value == pytest.approx(own["accuracy"])
    assert "24 images of 12 groups (patient) was classified once" in " ".join(results["in_words"])


def test_the_ensemble_is_the_mean_of_its_members_pipelines(images, folds, tmp_path):
    ensemble = shutil.copytree(folds / "ensemble", tmp_path / "moved")  # stands alone
    output = tmp_path / "predictions.jsonl"
    argv = ["--model_name_or_path", ensemble, "--output_file", output, "--images", images]
    assert predict.main([str(word) for word in argv]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found) == 24
    files = [record["file"] for record in found]
    members = []
    for run in ("fold_0", "fold_1"):
        folder = ensemble / "members" / run
        assert digest(folder) == digest(folds / run / "finetune")
        answers = pipeline("image-classification", model=str(folder))(files)
        members.append([{a["label"]: a["score"] for a in answer} for answer in answers])
    calibration = read(ensemble / "ensemble.json")["calibration"]
    assert "out-of-fold predictions of 24 images" in calibration["fitted_on"]
    for record, one, other in zip(found, *members, strict=True):
        up = (one["up"] + other["up"]) / 2
        assert record["probabilities"]["up"] == pytest.approx(up, abs=0.01)
        logit = np.log(record["probabilities"]["up"] / record["probabilities"]["down"])
        calibrated = 1 / (1 + np.exp(-logit / calibration["temperature"]))
        assert record["calibrated"]["up"] == pytest.approx(calibrated, abs=1e-6)
        above = record["calibrated"]["up"] >= calibration["threshold"]
        assert record["label"] == ("up" if above else "down")


def test_the_ensemble_is_calibrated_on_out_of_fold_predictions(folds):
    table = table_of(folds)
    probabilities = table[["probability_down", "probability_up"]].to_numpy()
    labels = (table["label"] == "up").to_numpy().astype(int)
    calibration = read(folds / "ensemble" / "ensemble.json")["calibration"]

    def loss(factor):
        changed = {**calibration, "temperature": calibration["temperature"] * factor}
        values = apply_calibration(probabilities, changed)[0]
        return -np.log(values[np.arange(24), labels]).mean()

    assert loss(1) <= min(loss(0.9), loss(1.1)) or calibration["temperature"] in (0.05, 20)


def test_evaluation_of_an_ensemble_warns_of_what_it_has_seen(images, folds, tmp_path, caplog):
    argv = ["--model_name_or_path", folds / "ensemble", "--data_dir", images]
    argv += ["--output_dir", tmp_path / "seen", "--num_resamples", 5]
    assert evaluate.main([*map(str, argv), "--split_column", "first"]) == 0
    assert "8 of the 8 test images" in caplog.text
    results = read(tmp_path / "seen" / "all_results.json")
    assert results["num_test_images_seen"] == 8
    assert results["num_members"] == read(folds / "all_results.json")["ensemble"]["num_members"]
    assert "out-of-fold" in results["calibration"]["used"]["fitted_on"]
    with pytest.raises(ValueError, match="There is no test split"):
        evaluate.main([str(word) for word in argv])


@pytest.mark.parametrize("damage", ["labels", "member", "number", "json"])
def test_a_damaged_ensemble_is_refused(images, folds, tmp_path, damage):
    folder = shutil.copytree(folds / "ensemble", tmp_path / "ensemble")
    path = folder / "ensemble.json"
    content = read(path)
    if damage == "labels":
        content["labels"] = ["up", "down"]
    elif damage == "member":
        content["members"][0] = "../ensemble/members/.."
    elif damage == "number":
        content["members"][0] = 1
    path.write_text("{" if damage == "json" else json.dumps(content))
    words = {"labels": "expected the labels up, down", "member": "folder below", "json": "again"}
    words["number"] = "names of members"
    with pytest.raises(ValueError, match=words[damage]):
        predict.main(["--model_name_or_path", str(folder), "--images", str(images)])


def same(output, expected):
    first, second = (read(folder / "all_results.json") for folder in (output, expected))
    for results in (first, second):
        for name in ("command", "versions"):
            results.pop(name)
    assert first == second
    assert table_of(output).equals(table_of(expected))
    for run in ("fold_0", "fold_1"):
        for stage in ("pretrain", "finetune"):
            assert digest(output / run / stage) == digest(expected / run / stage)


def test_interrupted_in_a_training_it_goes_on(images, folds, tmp_path, monkeypatch, capsys):
    train, calls = runs.train, []

    def train_with_signal(accelerator, model, optimizer, schedule, feed, *rest):
        calls.append(0)
        draw = feed.step

        def draw_and_signal(number):
            if len(calls) == 4 and number == 1:  # fine-tuning of the second fold
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(number)

        feed.step = draw_and_signal
        return train(accelerator, model, optimizer, schedule, feed, *rest)

    monkeypatch.setattr(runs, "train", train_with_signal)
    output = tmp_path / "out"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM after step 2 of 3; the same command goes on"):
        start(images, output, *FOLDS)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (output / "fold_1/finetune/checkpoints").is_dir()
    assert not (output / "all_results.json").exists()
    times = {p: p.stat().st_mtime_ns for p in output.glob("fold_0/*/all_results.json")}
    assert len(times) == 3
    capsys.readouterr()
    assert start(images, output, *FOLDS) == 0
    text = capsys.readouterr().out
    assert "6 steps, 4 of them done before" in text
    assert "[5/6] fold 2 of 2: fine-tuning" in text
    assert "about" in text
    assert "[4/6]" not in text
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert not list(output.glob("*/*/checkpoints"))
    same(output, folds)


def test_a_signal_between_trainings_ends_it_alike(images, tmp_path, monkeypatch):
    def signalled(argv):
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(finetune, "main", signalled)
    with pytest.raises(Interrupted, match="stopped by SIGUSR1; the same command goes on"):
        start(images, tmp_path / "out", *FOLDS, *FAST)


def test_other_options_or_data_are_named(images, folds, tmp_path):
    with pytest.raises(ValueError) as caught:
        start(images, folds, *FOLDS, "--weight_decay", "0.3", "--seeds", "1", "--cache", "memory")
    message = str(caught.value)
    assert "cross_validate: seeds: 0 -> 1" in message
    for stage in ("pretrain", "finetune"):
        assert f"{stage}: weight_decay: 0.05 -> 0.3" in message
    assert message.count("->") == 3
    other = shutil.copytree(images, tmp_path / "other")
    table = (other / "metadata.csv").read_text()
    (other / "metadata.csv").write_text(table.replace("00.png,down", "00.png,up"))
    with pytest.raises(ValueError, match="data: digest of names, labels and groups"):
        start(other, folds, *FOLDS)


@pytest.fixture(scope="module")
def named(images, tmp_path_factory):
    """Two named splits with two seeds, from random weights, and the same with other weights."""
    root = tmp_path_factory.mktemp("named")
    splits = ["--split_column", "first,second", *FAST]
    assert start(images, root / "a", *splits, "--seeds", "0,1") == 0
    other = ["--learning_rate", "1e-2", "--compare_with", root / "a"]
    assert start(images, root / "b", *splits, *other) == 0
    return root


def test_named_splits_are_not_pooled(named):
    results = read(named / "a" / "all_results.json")
    assert results["pooled"] is None
    assert not (named / "a" / "ensemble").exists()
    table = table_of(named / "a")
    assert list(table["run"].unique()) == [
        f"{split}_seed_{seed}" for split in ("first", "second") for seed in (0, 1)
    ]
    accuracy = results["over_splits"]["accuracy"]
    for split, value in accuracy["values"].items():
        part = table[table["split"] == split]
        right = (part["label"] == "up") == (part["probability_up"] > part["probability_down"])
        assert value == pytest.approx(right.mean())  # as many images with each seed
    assert accuracy["num_splits"] == 2
    how = read(named / "a" / "second_seed_1" / "splits.json")["how"]
    assert how["source"] == "the column second"
    weights = {digest(named / "a" / run / "finetune") for run in table["run"].unique()}
    assert len(weights) == 4
    assert "There was no pretraining." in results["in_words"]


def test_comparison_over_the_same_splits(images, named, folds, capsys):
    results = read(named / "b" / "all_results.json")
    others = read(named / "a" / "all_results.json")["over_splits"]["accuracy"]["values"]
    found = results["comparison"]["over_splits"]["accuracy"]
    for split, value in results["over_splits"]["accuracy"]["values"].items():
        assert found["differences"][split] == pytest.approx(value - others[split])
    assert results["comparison"]["pooled"] is None
    splits = ["--split_column", "first,second", *FAST, "--seeds", "0,1"]
    with pytest.raises(ValueError, match=r"its splits are fold_0 .* here they are first"):
        start(images, named / "a", *splits, "--compare_with", folds)


def test_pretraining_on_all_images_is_said(images, folds, tmp_path, capsys):
    output = tmp_path / "out"
    more = ["--pretrain_on_all", "true", "--compare_with", folds]
    assert start(images, output, *FOLDS, *more) == 0
    assert len(read(output / "pretrain_on_all/pretrain/splits.json")["train"]) == 24
    assert not (output / "fold_0/pretrain").exists()
    results = read(output / "all_results.json")
    assert results["pretraining_saw_test_images"] is True
    assert "PRETRAINING SAW THE TEST IMAGES" in capsys.readouterr().out
    found = results["comparison"]["pooled"]["roc_auc"]
    other = read(folds / "all_results.json")["pooled"]["metrics"]["roc_auc"]
    own = results["pooled"]["metrics"]["roc_auc"]
    assert found["difference"] == pytest.approx(own - other)


def plan(images, *options):
    options = cross_validate.read_options("", ["--data_dir", str(images), *COMMON, *options])
    dataset = cross_validate.load_dataset(options)
    names = dataset["file_name"][:]
    return names, cross_validate.plan_runs(dataset, options)


def test_folds_of_the_training_images_leave_the_test_images(images):
    options = ["--split_column", "first", "--cross_validation_on", "training"]
    names, planned = plan(images, *FOLDS, *options)
    table = pd.read_csv(images / "metadata.csv")
    expected = table[table["first"] == "train"]["file_name"].tolist()
    assert [run.name for run in planned] == ["fold_0", "fold_1"]
    assert sorted(names[row] for run in planned for row in run.splits["test"]) == expected
    for run in planned:
        assert sorted(names[row] for rows in run.splits.values() for row in rows) == expected


def test_repeats_have_other_folds_and_seeds_the_same(images):
    _, planned = plan(images, *FOLDS, "--cross_validation_repeats", "2", "--seeds", "4,5")
    assert [run.name for run in planned][:3] == [
        "repeat_0_fold_0_seed_4",
        "repeat_0_fold_0_seed_5",
        "repeat_0_fold_1_seed_4",
    ]
    for repeat in range(2):
        for seed in (4, 5):
            part = [run for run in planned if (run.repeat, run.seed) == (repeat, seed)]
            assert sorted(row for run in part for row in run.splits["test"]) == list(range(24))
    assert planned[0].splits == planned[1].splits != planned[4].splits
    assert planned[-1].title == "repeat 2 of 2, fold 2 of 2, seed 5"


def test_a_recipe_gives_each_stage_its_own(images, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "common: {group_column_name: patient, split_column: first}\n"
        "pretrain: {weight_decay: 0.2, seed: 9}\n"
        "finetune: {weight_decay: 0.01}\n"
        "cross_validate: {cross_validation: 3}\n"
    )
    argv = ["--recipe", str(recipe), "--data_dir", str(images), "--learning_rate", "1e-3"]
    options = cross_validate.read_options("", [*argv, "--model_name_or_path", "start"])
    values = {stage: options.parsed[stage][-1] for stage in ("pretrain", "finetune")}
    assert {stage: v.weight_decay for stage, v in values.items()} == {
        "pretrain": 0.2,
        "finetune": 0.01,
    }
    assert {v.learning_rate for v in values.values()} == {1e-3}
    assert options.protocol.cross_validation == 3
    assert options.parsed["pretrain"][1].model_name_or_path == "start"
    dataset = cross_validate.load_dataset(cross_validate.read_options("", argv))
    planned = cross_validate.plan_runs(dataset, options)
    steps = cross_validate.list_steps(tmp_path, planned, options)
    assert [step.stage for step in steps] == ["pretrain", "finetune", "evaluate"] * 3
    own = finetune.parse("finetune", "", steps[1].words)
    assert own[1].model_name_or_path == str(tmp_path / "fold_0" / "pretrain")
    assert own[0].split_column is None
    assert own[0].splits_file == str(tmp_path / "fold_0" / "splits.json")
    assert pretrain.parse("pretrain", "", steps[3].words)[-1].seed == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare_with", "nothing"], "holds no finished cross_validate.py"),
        (["--seed", "1"], "give --seeds"),
        (["--resume_from_checkpoint", "latest"], "the same command goes on"),
        (["--splits_file", "x"], "--splits_file does not go with several runs"),
        (["--push_to_hub", "true"], "--push_to_hub does not go with several runs: publish a fold"),
        (["--label_column_name", "diagnosis"], "--label_column_name"),
        (["--images", "x"], "--images: neither"),
        (["--streaming", "true"], "do not go with cross_validate"),
        (["--split_column", "first,first"], "'first' would be the folder of several"),
        (["--split_column", "third"], "there is no column 'third'"),
        (["--cross_validation", "13"], "there are 12 groups"),
        (
            ["--cross_validation_on", "training", "--split_column", "x", *FOLDS],
            "there is no column 'x'",
        ),
    ],
)
def test_what_does_not_go_is_said_before_anything_is_trained(images, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        start(images, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [["--seeds", "0,x"], ["--seeds", "1,1"], ["--cross_validation_repeats", "2"]]
)
def test_impossible_values_are_refused_as_in_the_other_scripts(images, tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        start(images, tmp_path / "out", *options)
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("check", [True, False])  # audit.py takes splits as they are
def test_a_file_of_splits_goes_before_a_column(images, folds, check):
    file = folds / "fold_1" / "splits.json"
    options = DataArguments(
        data_dir=str(images), splits_file=str(file), split_column="first", train_val_split=0.0
    )
    dataset = load_data(options)
    found = split_data(dataset, options, 0, None, check=check)
    for part, rows in found.items():
        assert dataset.select(rows)["file_name"][:] == read(file)[part]
