"""Options: defaults, recipes, the command line, in this order."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sssd_hf.cli.arguments import SCRIPTS
from sssd_hf.cli.parsing import as_dict, parse

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path):
    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def options(script, *argv):
    return as_dict(*parse(script, "", list(argv)))


def refused(capsys, script, *argv):
    """The message with which argparse leaves (exit status 2)."""
    with pytest.raises(SystemExit) as stop:
        parse(script, "", list(argv))
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_defaults():
    values = options("finetune")
    assert values["learning_rate"] is None
    assert values["train_val_split"] == 0.15
    assert values["metric_for_best_model"] == "roc_auc"
    assert values["overwrite_output_dir"] is False
    assert options("pretrain")["output_dir"] != values["output_dir"]


def test_a_recipe_fills_and_the_command_line_wins(recipe):
    path = recipe(
        "common: {data_dir: images, seed: 3}\n"
        "pretrain: {seed: 4, learning_rate: 1e-4, norm_pix_loss: false, mixed_precision: no}\n"
        "finetune: {layer_decay: 0.5, seed: 9}\n"
    )
    values = options("pretrain", "--recipe", path)
    assert values["data_dir"] == "images"
    assert values["seed"] == 4, "the script's own section wins over the common one"
    assert values["learning_rate"] == 1e-4, "though YAML reads 1e-4 as text"
    assert values["norm_pix_loss"] is False
    assert values["mixed_precision"] == "no", "though YAML reads no as false"
    assert values["rotation"] == 0.0, "what the recipe leaves out keeps its default"
    for argv in (["--seed", "7", "--recipe", path], ["--recipe", path, "--seed", "7"]):
        assert options("pretrain", *argv)["seed"] == 7
    assert options("finetune", f"--recipe={path}")["layer_decay"] == 0.5


def test_an_empty_value_takes_a_recipes_option_back(recipe):
    path = recipe("common: {split_column: part, window: lung, max_train_samples: 9, seed: 4}\n")
    given = ["--split-column", "", "--window=", "--max_train_samples", ""]
    values = options("finetune", *given, "--recipe", path)
    names = ("split_column", "window", "max_train_samples", "seed")
    assert [values[name] for name in names] == [None, None, None, 4]
    assert options("finetune", "--recipe", path, "--window", "", "--window", "bone")["window"] == (
        "bone"
    ), "the last one wins"


def test_an_empty_value_of_an_option_that_is_never_none_is_refused(capsys):
    assert "--seed" in refused(capsys, "finetune", "--seed", "")
    assert options("finetune", "--label_column_name", "")["label_column_name"] == ""


def test_common_options_may_concern_other_scripts(recipe):
    path = recipe({"common": {"data_dir": "images", "layer_decay": 0.5}})
    assert options("evaluate", "--recipe", path)["data_dir"] == "images"


def test_lists_and_flags(recipe):
    path = recipe({"predict": {"images": ["a.png", "b c.png"], "output_file": "x.csv"}})
    assert options("predict", "--recipe", path)["images"] == ["a.png", "b c.png"]
    assert options("predict", "--recipe", path, "--images", "d")["images"] == ["d"]
    path = recipe({"finetune": {"overwrite_output_dir": True}})
    assert options("finetune", "--recipe", path)["overwrite_output_dir"] is True
    assert options("finetune", "--overwrite_output_dir")["overwrite_output_dir"] is True
    argv = ["--recipe", path, "--overwrite_output_dir", "false"]
    assert options("finetune", *argv)["overwrite_output_dir"] is False


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"finetune": {"learning_rat": 1}}, "learning_rat"),
        ({"common": {"learning_rat": 1}}, "learning_rat"),
        ({"finetune": {"mask_ratio": 0.5}}, "mask_ratio"),  # pretraining's alone
        ({"finetuning": {"seed": 1}}, "finetuning"),
        ({"seed": 1}, "seed"),
        ({"pretrain": {"seed": 1}}, "no section finetune"),
        ({}, "none"),
        ("finetune:\n", "finetune"),
        ("- seed\n", "recipe.yaml"),
        ("just words", "recipe.yaml"),
        ("finetune: {seed: [}", "not a YAML file"),
        ({"finetune": {"seed": "three"}}, "--seed"),
        ({"finetune": {"pooling": "max"}}, "--pooling"),
    ],
)
def test_a_wrong_recipe_is_refused_and_named(recipe, capsys, content, named):
    path = recipe(content)
    message = refused(capsys, "finetune", "--recipe", path)
    assert named in message
    assert "Traceback" not in message


def test_a_missing_recipe_is_named(capsys, tmp_path):
    assert "gone.yaml" in refused(capsys, "predict", "--recipe", str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--no_such_option", "1"], "--no_such_option"),
        (["--learning_rat", "1"], "--learning_rat"),  # no abbreviations
        (["--metric_for_best_model", "auroc"], "roc_auc"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size is 0"),
        (["--per_device_eval_batch_size", "-1"], "--per_device_eval_batch_size is -1"),
        (["--gradient_accumulation_steps", "0"], "at least 1"),
        (["--logging_steps", "0"], "--logging_steps"),
        (["--max_train_steps", "0"], "--max_train_steps"),
        (["--max_train_samples", "0"], "--max_train_samples"),
        (["--learning_rate", "-1"], "--learning_rate"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--warmup_ratio", "5"], "0 to 1"),
        (["--min_crop_scale", "0"], "--min_crop_scale"),
        (["--horizontal_flip", "50"], "--horizontal_flip"),
        (["--layer_decay", "1.5"], "--layer_decay"),
    ],
)
def test_a_wrong_command_line_is_refused_and_named(capsys, argv, named):
    assert named in refused(capsys, "finetune", *argv)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_groups_options_and_defaults(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, "What it does.", ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    flat = " ".join(text.split())
    for group in SCRIPTS[script]:
        assert f"\n{group._argument_group_name}:\n" in text
        for field in dataclasses.fields(group):
            assert f"\n  --{field.name}" in text
            if isinstance(field.default, (int, float, str)) and "default" not in (
                field.metadata["help"].lower()
            ):
                assert f"(default: {field.default})" in flat
    assert "--recipe FILE.yaml" in text
    assert "None" not in text
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_explained(script):
    for group in SCRIPTS[script]:
        for field in dataclasses.fields(group):
            assert len(field.metadata["help"]) > 10, field.name
            assert field.metadata["help"].rstrip().endswith((".", ").")), field.name


@pytest.mark.parametrize("script", SCRIPTS)
def test_names_are_unique_in_a_script(script):
    names = [field.name for group in SCRIPTS[script] for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_resolved_options_are_a_recipe_for_themselves(script, recipe):
    argv = ["--seed", "12", "--learning_rate", "1e-5", "--mixed_precision", "no"]
    argv += ["--label_column_name", "", "--config_overrides", "class_weights=[1,2],qkv_bias=false"]
    values = options(script, *argv)
    path = recipe({script: values})
    assert options(script, "--recipe", path) == values


def test_an_args_file_beside_the_script_is_not_read(tmp_path, monkeypatch):
    """transformers' parser looks for one, unasked."""
    (tmp_path / "finetune.args").write_text("--seed 99")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "finetune.py"), "--rotation", "3"])
    arguments = parse("finetune", "")
    assert as_dict(*arguments)["seed"] == 0
    assert as_dict(*arguments)["rotation"] == 3.0


def test_the_recipes_of_the_repository_can_be_read():
    """Each section with the script it is for."""
    paths = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    if not paths:
        pytest.skip("no recipes here")
    for path in paths:
        sections = yaml.safe_load(path.read_text())
        for script in set(SCRIPTS) & set(sections) - {"reproduce"}:  # a plan, not options
            values = options(script, "--recipe", str(path))
            for name, value in sections[script].items():
                assert str(values[name]) == str(value) or float(values[name]) == float(value)


def test_scripts_start_main(tmp_path):
    """scripts/*.py: an error is one line, without a traceback, and another exit status than 0."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "predict.py")]
    command += ["--images", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(r"^error: .*gone does not exist", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
