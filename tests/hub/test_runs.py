"""Trainings that publish on the loopback Hub as they go."""

import logging
import sys
import time
from pathlib import Path

import pytest
from loopback import TOKEN

from sssd_hf.cli import pretrain, push_to_hub
from sssd_hf.hub.push import HubError

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
import tiny_runs

HUB = ("--push_to_hub", "true", "--checkpointing_steps", "2")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(name, options) -> the folder of a pretraining of a second, without figures."""
    for name in ("plot_training_curves", "plot_reconstructions"):
        monkeypatch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)
    images = tiny_runs.write_images(tmp_path / "images")
    return lambda name, *options: tiny_runs.run(pretrain, images, tmp_path / name, *options)


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_a_training_publishes_its_states_and_its_result(hub, run, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    plain = run("plain", "--checkpointing_steps", "2")
    published = run("published", *HUB, "--hub_model_id", "sssd-try", "--hub_tag", "v1")
    repository = hub.repositories["tester/sssd-try"]
    assert repository.private
    assert repository.messages[-1] == "The trained model"
    assert repository.tags == {"v1": repository.branches["main"]}
    files = hub.files("tester/sssd-try")
    assert files["model.safetensors"] == (published / "model.safetensors").read_bytes()
    assert files["README.md"].decode().count("tester/sssd-try") >= 2
    assert set(files) == {
        ".gitattributes", "README.md", "all_results.json", "config.json", "model.safetensors",
        "preprocessor_config.json", "pretrain_recipe.yaml", "configuration_sssd.py",
        "modeling_sssd.py", "distillation_sssd.py", "conversion_sssd.py", "products_sssd.py",
    }  # fmt: skip
    # the same training as without, and nothing is left over
    assert tiny_runs.digest(plain) == tiny_runs.digest(published)
    assert not (published / ".uploads").exists()
    texts = caplog.text + "".join(capsys.readouterr())
    assert "not published: splits.json" in texts
    for path in published.rglob("*"):
        if path.is_file():
            texts += path.read_bytes().decode("latin-1")
    assert TOKEN not in texts + b"".join(files.values()).decode("latin-1")


@pytest.mark.slow
def test_a_state_under_way_can_be_loaded_and_says_what_it_is(hub, run, monkeypatch, tmp_path):
    from sssd_hf import SSSDForPreTraining
    from sssd_hf.cli import uploads

    # the result is not published, so that the last state stays
    monkeypatch.setattr(uploads.RunUploads, "finish", lambda self: wait_for(
        lambda: not self.background.running))  # fmt: skip
    output = run("published", *HUB, "--hub_model_id", "tester/x")
    files = hub.files("tester/x")
    assert (
        "**Not evaluated, and not finished: Training, step 6 of 6.**" in files["README.md"].decode()
    )
    folder = tmp_path / "pulled"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    loaded = SSSDForPreTraining.from_pretrained(folder).state_dict()
    expected = SSSDForPreTraining.from_pretrained(output).state_dict()
    assert all((loaded[key] == value).all() for key, value in expected.items())
    assert tiny_runs.read(folder / "config.json") == tiny_runs.read(output / "config.json")


@pytest.mark.slow
def test_a_slow_hub_does_not_hold_up_the_training(hub, run):
    hub.fail("PUT|commit", 0.4, count=100)  # each upload takes a second
    output = run("slow", *HUB, "--hub_model_id", "tester/slow", "--checkpointing_steps", "1")
    assert tiny_runs.read(output / "all_results.json")["train_runtime"] < 2.5  # 6 uploads: 5 s
    messages = hub.repositories["tester/slow"].messages
    assert len(messages) < 6  # states in between were passed over
    assert messages[-1] == "The trained model"


def test_a_hub_that_fails_costs_the_publication_alone(hub, run, caplog):
    hub.fail("commit", 500, count=10_000)
    with pytest.raises(HubError) as error:
        run("failed", *HUB, "--hub_model_id", "tester/failed")
    message = str(error.value)
    assert "failed is as it was, and complete" in message
    command = message.split("\n")[-1].split()
    assert command[:2] == ["python", "scripts/push_to_hub.py"]
    assert command[-2:] == ["--hub_model_id", "tester/failed"]
    assert TOKEN not in message + caplog.text
    assert list(hub.files("tester/failed")) == [".gitattributes"]
    # the command that it names does it
    hub.faults.clear()
    assert push_to_hub.main(command[2:]) == 0
    assert "model.safetensors" in hub.files("tester/failed")


def test_without_a_network_the_training_runs_all_the_same(no_network, tmp_path, caplog, run):
    with pytest.raises(HubError, match="could not be reached") as error:
        run("out", "--push_to_hub", "true", "--hub_model_id", "tester/x")
    assert "The training starts" in caplog.text
    assert (tmp_path / "out" / "all_results.json").is_file()
    assert "push_to_hub.py" in str(error.value)


def test_without_a_token_the_training_does_not_start(hub, run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token.*hf auth login"):
        run("none", *HUB)
    assert not (tmp_path / "none" / "model.safetensors").exists()


def test_options_that_do_nothing_are_refused(capsys):
    from sssd_hf.cli.parsing import parse

    with pytest.raises(SystemExit):
        parse("pretrain", "", ["--hub_model_id", "a/b"])
    assert "need --push_to_hub true" in capsys.readouterr().err
