"""--to space: what lies in the folder; that it runs is in test_demo_browser.py."""

import ast

import pytest
import yaml
from demo_server import save_models

from sssd_hf.cli import export
from sssd_hf.cli.classifiers import save_ensemble


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_models(tmp_path_factory.mktemp("models"))
    for name in ("splits.json", "curves.png", "metrics.jsonl"):
        (folder / "plain" / name).write_text("private")
    members = {name: folder / name for name in ("plain", "calibrated")}
    save_ensemble(folder / "ensemble", members, ["clear", "opacity"], None)
    return folder


def run(output, *options):
    argv = ["--to", "space", "--output_dir", output, *options]
    return export.main([str(word) for word in argv])


def test_a_space_holds_what_it_needs_and_no_more(models, tmp_path):
    pretrained = ["--pretrained_model", models / "pretrained"]
    assert run(tmp_path / "space", "--model_name_or_path", models / "plain", *pretrained) == 0
    names = {p.name for p in (tmp_path / "space").iterdir()}
    assert names == {
        "app.py", "requirements.txt", "README.md", "all_results.json", "model", "pretrained",
        "sssd_hf",
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "space/model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    for path in (tmp_path / "space").rglob("*"):
        assert path.name not in ("splits.json", "curves.png", "metrics.jsonl", "__pycache__")
        if path.suffix in (".json", ".md", ".txt") or path.name == "app.py":
            assert str(tmp_path) not in path.read_text()
            assert str(models) not in path.read_text()
    ast.parse((tmp_path / "space/app.py").read_text())
    _, block, text = (tmp_path / "space/README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(block)
    assert card["sdk"] == "gradio"
    assert (tmp_path / "space" / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60  # the Hub's limit
    assert "Not a medical device" in text
    assert "clear or opacity" in text
    requirements = (tmp_path / "space/requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch") for line in requirements)
    assert any(line.startswith("pydicom") for line in requirements)
    assert not any("extra ==" in line or line.startswith("pytest") for line in requirements)


def test_an_ensemble_comes_with_its_members(models, tmp_path):
    assert run(tmp_path / "space", "--model_name_or_path", models / "ensemble") == 0
    members = tmp_path / "space/model/members"
    assert (tmp_path / "space/model/ensemble.json").is_file()
    assert {p.name for p in members.iterdir()} == {"plain", "calibrated"}
    assert not (tmp_path / "space/pretrained").exists()
    assert "PRETRAINED = None" in (tmp_path / "space/app.py").read_text()


def test_a_folder_that_is_no_model_is_refused_and_nothing_is_written(models, tmp_path):
    (tmp_path / "empty").mkdir()
    chosen = ["--model_name_or_path", models / "plain", "--pretrained_model", tmp_path / "empty"]
    with pytest.raises(ValueError, match="--pretrained_model"):
        run(tmp_path / "space", *chosen)
    assert not (tmp_path / "space").exists()
