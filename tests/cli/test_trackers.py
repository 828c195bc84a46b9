"""--report_to: a tracker is told what metrics.jsonl holds."""

import importlib.util

import pytest
from tiny_runs import read, records, run, write_images

from sssd_hf.cli import common, finetune, pretrain


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


pytestmark = pytest.mark.usefixtures("no_figures")


def scalars(output):
    """{name: [(step, value)]} of the event files, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in sorted({path.parent for path in output.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((e.step, e.value) for e in events.Scalars(name))
    return found


@pytest.mark.parametrize("script", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_tensorboard_has_the_log(images, tmp_path, script):
    options = ["--report_to", "tensorboard", "--eval_steps", "2", "--logging_steps", "2"]
    output = run(script, images, tmp_path / "out", *options, steps=5)
    expected = {}
    for record in records(output):
        for name in record.keys() - {"step"}:
            if record[name] is not None:
                expected.setdefault(name, []).append((record["step"], record[name]))
    found = scalars(output)
    assert {"loss", "learning_rate", "images_per_second", "epoch"} <= set(expected)
    assert any(name.startswith("eval_") for name in expected)
    assert [step for step, _ in expected["loss"]] == [2, 4, 5]
    assert set(found) == set(expected)
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        values = [value for _, value in points]  # TensorBoard keeps fp32
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name
    assert read(output / "all_results.json")["train_steps"] == 5


def test_without_it_nothing_is_written(images, tmp_path):
    output = run(pretrain, images, tmp_path / "out", steps=1)
    assert not list(output.rglob("*tfevents*"))


def test_a_tracker_that_is_unknown_or_not_installed(images, tmp_path, monkeypatch):
    for words, named in (
        ("tensorbored", "'tensorbored' is unknown"),
        ("tensorboard,none", "'none' is unknown"),
        ("", "'' is unknown"),
    ):
        with pytest.raises(ValueError, match=named) as caught:
            run(finetune, images, tmp_path / "out", "--report_to", words, steps=1)
        assert "tensorboard, trackio, wandb, mlflow" in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(ValueError, match=r"--report_to tensorboard: .*pip install tensorboard"):
        run(finetune, images, tmp_path / "out", "--report_to", "tensorboard", steps=1)
    assert not (tmp_path / "out").exists()
    assert common.trackers_of("none") == []
