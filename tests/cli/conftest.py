import csv

import pytest
import tiny_study
from script_runs import MODEL, PATIENTS, TRAINING, draw

from sssd_hf.cli import evaluate, finetune, pretrain


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than the trainings of most tests; module fixtures of whole runs draw."""
    for name in ("plot_training_curves", "plot_reconstructions"):
        monkeypatch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)
    for name in ("write_figures", "write_explanations", "write_report"):
        monkeypatch.setattr(f"sssd_hf.cli.evaluate.{name}", lambda *args, **options: None)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """40 images in two class folders, of which there is no metadata."""
    root = tmp_path_factory.mktemp("folders") / "images"
    for i in range(40):
        draw(root / ("up" if i % 2 else "down") / f"{i:02d}.png", i % 2, i)
    return root


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def study_images(tmp_path_factory):
    return tiny_study.write_images(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def study_recipe(tmp_path_factory):
    return tiny_study.write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="session")
def study(study_recipe, study_images, tmp_path_factory):
    """The folder of its runs and results; who changes something takes a copy."""
    root = tmp_path_factory.mktemp("results")
    tiny_study.start(study_recipe, study_images, root)
    return root
