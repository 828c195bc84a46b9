"""What is published, what is refused, and what is taken out of it."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from sssd_hf.cli.split_sources import file_source
from sssd_hf.hub.clean import (
    clean_command,
    clean_recipe,
    clean_results,
    clean_text,
    cleaned_file,
    is_on_hub,
)
from sssd_hf.hub.publishing import log_refused, plan_files
from sssd_hf.hub.remote_code import MODULES

CODE = {f"{name}.py" for name in MODULES}
PRIVATE = (
    "reconstructions.png", "splits.json", "bad_files.csv", "metrics.jsonl", "report.html",
    "embeddings.npz", "predictions.csv", "contact_sheet.png", "overlays/p1.png", "events.bin",
    "checkpoints/step-00000003/optimizer.safetensors", "checkpoints/step-00000003/state.json",
    "optimizer.safetensors", "figures/explanations.png", "figures/roc/roc.png", "training_args.bin",
    "tensorboard/events.out.tfevents.1", "pairs.png", "audit.json", "my_notes.txt", "token",
)  # fmt: skip


def write_folder(folder, files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if path.suffix == ".json" else f"contents of {name}")
        if path.suffix == ".yaml":
            path.write_text("finetune: {seed: 1}\n")
    return folder


@pytest.fixture
def folders(tmp_path):
    allowed = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md",
               "all_results.json", "finetune_recipe.yaml", "curves.png", *CODE)  # fmt: skip
    model = write_folder(tmp_path / "fine", (*allowed, *PRIVATE))
    figures = ("roc", "reliability", "confusion", "coverage", "scores", "subgroups")
    evaluation = write_folder(
        tmp_path / "eval",
        (
            "all_results.json",
            "predictions.csv",
            "report.html",
            *(f"figures/{f}.png" for f in figures),
        ),
    )
    pretraining = write_folder(
        tmp_path / "pre",
        ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
         "model.safetensors.index.json", "reconstructions.png", "README.md", *CODE),
    )  # fmt: skip
    (model / ".uploads").mkdir()
    (model / ".uploads" / "model.safetensors").write_text("x")
    return model, evaluation, pretraining


def test_the_list_and_nothing_else(folders):
    plan = plan_files(*folders)
    assert set(plan.files) == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md",
        "all_results.json", "finetune_recipe.yaml", "curves.png", *CODE,
        "evaluation/all_results.json", "evaluation/figures/roc.png",
        "evaluation/figures/reliability.png", "evaluation/figures/confusion.png",
        "evaluation/figures/coverage.png",
        "pretraining/config.json", "pretraining/model-00001-of-00002.safetensors",
        "pretraining/model-00002-of-00002.safetensors", "pretraining/model.safetensors.index.json",
    }  # fmt: skip


def test_every_other_file_is_refused_by_name(folders, caplog):
    caplog.set_level(logging.INFO)
    log_refused(plan_files(*folders).refused)
    for name in PRIVATE:
        shown = "checkpoints/" if name.startswith("checkpoints/") else name
        assert f"not published: {shown}: " in caplog.text, name
    assert "not published: pretraining/reconstructions.png: shows images" in caplog.text
    assert ".uploads" not in caplog.text


def test_a_folder_of_many_refused_files_is_told_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    log_refused([(f"overlays/{i}.png", "shows images") for i in range(50)])
    assert len(caplog.records) == 1
    assert "overlays/ (50 files)" in caplog.text


def test_include_overrides_with_a_warning(folders, caplog):
    plan = plan_files(folders[0], include=["reconstructions.png", "overlays/*"])
    assert {"reconstructions.png", "overlays/p1.png"} < set(plan.files)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("although it is not on the list" in text for text in warnings)
    with pytest.raises(ValueError, match="--include nothing: no file fits"):
        plan_files(folders[0], include=["nothing"])


def test_code_of_the_pretraining_checkpoint_lies_at_the_root(folders, caplog):
    model, _, pretraining = folders
    for name in CODE:
        (model / name).unlink()  # as an exported plain ViT
    plan = plan_files(model, None, pretraining)
    assert all(plan.files[name] == pretraining / name for name in CODE)
    (pretraining / "modeling_sssd.py").unlink()
    with pytest.raises(ValueError, match=r"modeling_sssd.py is missing"):
        plan_files(model, None, pretraining)
    write_folder(model, ["modeling_sssd.py"])
    write_folder(pretraining, ["modeling_sssd.py"])
    (model / "modeling_sssd.py").write_text("another version")
    plan = plan_files(model, None, pretraining)
    assert plan.files["modeling_sssd.py"] == model / "modeling_sssd.py"
    assert "modeling_sssd.py differs" in caplog.text


def test_folders_that_are_something_else(folders, tmp_path):
    with pytest.raises(ValueError, match=r"--model_dir .* no config.json"):
        plan_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--evaluation_dir .* no all_results.json"):
        plan_files(folders[0], folders[0] / "overlays")
    (folders[2] / "model-00001-of-00002.safetensors").unlink()
    (folders[2] / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"--pretraining_dir .* no weights"):
        plan_files(*folders)


def test_what_is_published_tells_nothing_of_the_machine(folders, monkeypatch):
    monkeypatch.setenv("LOGNAME", "doctorwho")
    model, evaluation, _ = folders
    results = {
        "accuracy": 0.7, "model_name_or_path": "runs/fine of doctorwho", "output_dir": "x y",
        "command": "python scripts/evaluate.py --data_dir '/mnt/Clinic A/scans' --seed 3",
        "error": "could not read /srv/pacs/Müller_Hans.dcm", "who": "doctorwho was here",
        "subgroups": {"site": {"subgroups": {"A": {"small": False}, "7": {"small": True}}}},
    }  # fmt: skip
    (evaluation / "all_results.json").write_text(json.dumps(results))
    config = {"_name_or_path": "runs/pre", "hidden_size": 8, "id2label": {"0": "a/b", "1": "c"}}
    (model / "config.json").write_text(json.dumps(config))
    recipe = {"finetune": {"data_dir": "../Clinic A", "output_dir": "runs/x", "seed": 1,
                           "model_name_or_path": "runs/pre", "hub_model_id": "me/x",
                           "push_to_hub": True}}  # fmt: skip
    (model / "finetune_recipe.yaml").write_text(yaml.safe_dump(recipe))
    files = plan_files(model, evaluation).files
    published = {name: files[name] for name in files if isinstance(files[name], bytes)}
    text = b"".join(published.values()).decode()
    for secret in ("Clinic", "doctorwho", "/srv", "Hans", "runs/", "x y", '"7"', "me/x"):
        assert secret not in text, secret
    assert json.loads(published["evaluation/all_results.json"])["accuracy"] == 0.7
    assert json.loads(published["config.json"])["id2label"] == {"0": "a/b", "1": "c"}
    assert yaml.safe_load(published["finetune_recipe.yaml"]) == {"finetune": {"seed": 1}}
    # what holds nothing of the kind goes as it is
    assert files["preprocessor_config.json"] == model / "preprocessor_config.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/x/y.png now", "see <path> now"),
        (r"at C:\Users\Erika\a.txt", "at <path>"),
        ("in '/data/my files/a'", "in <path>"),
        (r"\\server\share\a", "<path>"),
        ("~/scans/p1 is bad", "<path> is bad"),
        ("scan_12.nii.gz and p1.DCM", "<file> and <file>"),
        ("95 % bootstrap of groups (patient_id)", "95 % bootstrap of groups (patient_id)"),
        ("and/or 3/4, 0.5/1", "and/or 3/4, 0.5/1"),
        ("https://doi.org/10.1016/j.cmpb", "https://doi.org/10.1016/j.cmpb"),
        ("[40, 55) of age_group", "[40, 55) of age_group"),
        # relative paths to files, as a whole
        ("a/JohnSmith/1.png", "<file>"),
        ("St-Mary-/Hans/x.json", "<file>"),
        ("read studies/StMary_Mueller/splits.json, then", "read <file>, then"),
        ("(runs/Mueller/model.safetensors)", "(<file>)"),
        (r"scans\Mueller\p1.dcm", "<file>"),
        ("'St Mary/Hans Mueller/x.yaml' is bad", "<file> is bad"),
        ("file=a/Mueller.csv.gz.", "file=<file>."),
        ("JohnSmith.png.", "<file>."),
        ("../Clinic/scans", "<path>"),
        ("in '../my clinic/scans'", "in <path>"),
        ("went on ... / or", "went on ... / or"),
        # names, not places
        ("facebook/vit-mae-base", "facebook/vit-mae-base"),
        ("timm/vit_tiny.augreg_in21k", "timm/vit_tiny.augreg_in21k"),
        ("model.safetensors of config.json", "model.safetensors of config.json"),
        ("python scripts/evaluate.py", "python scripts/evaluate.py"),
        ("https://example.org/a/config.json", "https://example.org/a/config.json"),
    ],
)
def test_texts(text, expected):
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    "path", ["studies/StMary_Mueller/splits.json", "../StMary/x.json", "StMary/splits",
             "my StMary/Hans's splits", "/home/StMary/x.json"],
)  # fmt: skip
def test_a_source_of_splits_is_told_without_any_path(path):
    told = file_source(Path(path))
    assert told.startswith("the file ")
    nested = f"{told} ({told} (cut by chance, whole groups of the column patient; seed 3))"
    assert clean_results({"split_source": nested}) == {
        "split_source": "the file <path> (the file <path> (cut by chance, whole groups of the "
        "column patient; seed 3))"
    }


def test_commands_stay_commands():
    command = (
        "/opt/env/bin/python /home/me/sssd/scripts/evaluate.py --data_dir data --output_dir=out "
        "--split_column official_split --images 'a b' c --seed 3"
    )
    assert clean_command(command) == (
        "python scripts/evaluate.py --data_dir <data_dir> --output_dir=<output_dir> "
        "--split_column official_split --images <images> <images> --seed 3"
    )
    for start in ("./scripts/predict.py", "../me/scripts/predict.py"):
        assert clean_command(f"{start} --seed 3") == "scripts/predict.py --seed 3"
    assert clean_command("../env/bin/python scripts/predict.py") == "python scripts/predict.py"


def test_names_on_the_hub_stay(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--facebook--vit-mae-base" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert is_on_hub("facebook/vit-mae-base")  # downloaded once
    assert not is_on_hub("runs/pretrained")  # a valid name, but nobody's model here
    recipe = {"pretrain": {"model_name_or_path": "facebook/vit-mae-base", "dataset_name": "a/b"}}
    assert clean_recipe(recipe) == recipe


def test_what_a_model_is_loaded_by_is_published_as_it_is(tmp_path, monkeypatch):
    """Whatever the user is called, and however classes are."""
    monkeypatch.setattr("sssd_hf.hub.clean.user_names", lambda: ["sssd", "covid"])
    config = {
        "model_type": "sssd",
        "id2label": {"0": "covid", "1": "T1.nii", "2": "normal.png"},
        "label2id": {"covid": 0, "T1.nii": 1, "normal.png": 2},
        "_name_or_path": "/home/sssd/runs/fine",
        "calibration": {"fitted_on": "/home/sssd/val.csv"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    cleaned = json.loads(cleaned_file(tmp_path / "config.json"))
    for name in ("model_type", "id2label", "label2id"):
        assert cleaned[name] == config[name]
    assert "/home" not in json.dumps(cleaned)
