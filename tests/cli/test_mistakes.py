"""Wrong options and data: an error, or a warning, that says what is wrong."""

import pytest
from model_helpers import tiny_config
from script_runs import MODEL, TRAINING, draw, read

from sssd_hf import SSSDForImageClassification
from sssd_hf.cli import common, evaluate, finetune, predict, pretrain
from sssd_hf.cli.arguments import ModelArguments
from sssd_hf.cli.runs import config_options

pytestmark = pytest.mark.usefixtures("no_figures")


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


def test_other_data_take_no_test_images_from_the_model(tmp_path, capsys, class_folders):
    argv = ["--data_dir", str(class_folders), *MODEL, *TRAINING, "--max_train_steps", "1"]
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    argv = ["--data_dir", str(class_folders), "--model_name_or_path", str(tmp_path / "out")]
    argv += ["--num_resamples", "10", "--output_dir", str(tmp_path / "evaluation")]
    message = error_of(capsys, evaluate.main, *argv, "--other_data", "true")
    assert "name the test images" in message
    assert evaluate.main(argv) == 0  # there are some, of the model's own data


def test_evaluation_on_images_that_were_trained_on_is_said(tmp_path, colour_runs, patients, caplog):
    argv = ["--data_dir", str(patients), "--label_column_name", "diagnosis"]
    argv += ["--model_name_or_path", str(colour_runs / "finetuned"), "--num_resamples", "10"]
    argv += ["--output_dir", str(tmp_path / "out"), "--split_column", "protocol"]
    assert evaluate.main([*argv, "--test_split", "train", "--train_split", "test"]) == 0
    assert "32 of the 32 test images" in caplog.text
    assert read(tmp_path / "out/all_results.json")["num_test_images_seen"] == 32
    caplog.clear()
    words = [*argv, "--test_split", "train", "--train_split", "test", "--other_data", "true"]
    assert evaluate.main(words) == 0  # of another place, where files are called so too
    assert "as training or validation images" not in caplog.text
    results = read(tmp_path / "out/all_results.json")
    assert (results["num_test_images_seen"], results["other_data"]) == (None, True)
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


def test_a_finetuning_that_is_not_finite_says_so_before_it_is_evaluated(
    tmp_path, capsys, class_folders
):
    argv = ["--data_dir", class_folders, *MODEL, *TRAINING, "--max_train_steps", "40"]
    argv += ["--learning_rate", "1e30", "--num_warmup_steps", "0", "--eval_steps", "2"]
    argv += ["--logging_steps", "40", "--output_dir", tmp_path / "out"]
    assert "The loss is nan" in error_of(capsys, finetune.main, *argv)


def test_a_checkpoint_without_a_head_classifies_nothing(tmp_path, capsys, runs, class_folders):
    argv = ("--model_name_or_path", runs / "pretrained", "--images", class_folders)
    message = error_of(capsys, predict.main, *argv, "--output_file", tmp_path / "out.csv")
    assert "classifier.weight is missing" in message
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "fields",
    [{"problem_type": "multi_label_classification", "num_labels": 3}, {"num_labels": 1}],
    ids=str,
)
def test_classes_that_do_not_exclude_each_other_get_no_softmax(
    tmp_path, capsys, class_folders, fields
):
    SSSDForImageClassification(tiny_config(**fields)).save_pretrained(tmp_path / "model")
    argv = ("--model_name_or_path", tmp_path / "model", "--images", class_folders)
    message = error_of(capsys, predict.main, *argv, "--output_file", tmp_path / "out.csv")
    assert "expected single_label_classification" in message


def test_numbers_of_overrides_are_numbers():
    """YAML alone takes 1e-5 for text."""
    overrides = "layer_norm_eps=1e-5,hidden_act=gelu,class_weights=[1,2],qkv_bias=false"
    assert config_options(ModelArguments(config_overrides=overrides)) == {
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", "class_weights": [1, 2], "qkv_bias": False,
    }  # fmt: skip


def test_shapes_that_a_checkpoint_does_not_have(tmp_path, capsys, runs, class_folders):
    """Only a head may be replaced."""
    argv = ("--data_dir", class_folders, "--model_name_or_path", runs / "finetuned", *TRAINING)
    argv += ("--config_overrides", "intermediate_size=48", "--output_dir", tmp_path / "out")
    assert "encoder.layers.0.mlp.fc1" in error_of(capsys, finetune.main, *argv)
