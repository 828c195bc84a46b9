"""What pretrain.py looks at while it trains: probes, collapse, losses that are not finite."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tiny_runs import COUNTS, digest, read, records, run, write_images

from sssd_hf import SSSDForPreTraining
from sssd_hf.cli import finetune, pretrain
from sssd_hf.cli.pretrain import CollapseMonitor, probe_due
from sssd_hf.data.cache import Images
from sssd_hf.training import optimization
from sssd_hf.training.loop import LoopSettings

PER_EPOCH = math.ceil(sum(COUNTS["train"]) / 4)
RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(
    "options",
    [[], ["--max_grad_norm", "0.05"], ["--gradient_accumulation_steps", "2"]],
    ids=["plain", "clipped", "accumulated"],
)
def test_when_a_weight_is_stepped_changes_no_number(options, images, tmp_path, monkeypatch):
    """In the backward pass as soon as its gradient is there, where that is its whole one."""
    found = []
    for name, large in (("as_it_comes", 1), ("at_the_end", 10**9)):
        monkeypatch.setattr(optimization, "LARGE", large)
        found.append(digest(run(pretrain, images, tmp_path / name, *options)))
    assert found[0] == found[1]


# ---------------------------------------------------------------------- probes


def labelled(labels):
    labels = None if labels is None else torch.tensor(labels)
    return Images(torch.arange(4), labels, torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("total", [1, 7, 24, 60])
@pytest.mark.parametrize("eval_steps", [0, 1, 4, 5, 9, 30])
@pytest.mark.parametrize("epochs", [0.1, 1, 1.5, 3, 50])
def test_a_probe_is_due_once_for_each_multiple_that_was_passed(total, eval_steps, epochs):
    per_epoch = 4
    training = SimpleNamespace(probe_epochs=epochs)
    settings = LoopSettings(total, eval_steps=eval_steps)
    both = labelled([0, 1, 0, 1]), labelled([0, 1, 1, 1])
    every = max(1, round(epochs * per_epoch))
    found, expected, passed = [], [], False
    for step in range(1, total + 1):
        passed = passed or step % every == 0
        if step == total or (eval_steps and step % eval_steps == 0):  # evaluated in the loop
            if probe_due(step, training, settings, per_epoch, *both):
                found.append(step)
            if passed or step == total:
                expected.append(step)
            passed = False
    assert found == expected


def test_no_probe_without_labels():
    settings, some = LoopSettings(4), labelled([0, 1, 0, 1])
    for epochs, train, held_out in (
        (0, some, some),
        (1, None, some),
        (1, labelled(None), some),
        (1, some, labelled(None)),
        (1, labelled([1, 1, 1, 1]), some),
    ):
        training = SimpleNamespace(probe_epochs=epochs)
        assert not probe_due(4, training, settings, 4, train, held_out)
    assert probe_due(4, SimpleNamespace(probe_epochs=1), settings, 4, some, some)


def test_the_probe_is_scikit_learns_on_the_saved_models_features(images, tmp_path):
    options = ["--probe_epochs", "1", "--eval_epochs", "1", "--cache_size", "16"]
    output = run(pretrain, images, tmp_path / "out", *options, steps=2 * PER_EPOCH + 1)
    probed = [r["step"] for r in records(output) if "probe_knn_accuracy" in r]
    assert probed == [PER_EPOCH, 2 * PER_EPOCH, 2 * PER_EPOCH + 1]
    model = SSSDForPreTraining.from_pretrained(output).eval()
    features, labels = {}, {}
    splits = read(output / "splits.json")
    for part in ("train", "validation"):
        rows = [features_of(model, images / name) for name in sorted(splits[part])]
        features[part] = np.stack(rows)
        labels[part] = np.array([name.split("/")[1] == "up" for name in sorted(splits[part])])
    similar = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in features.values()]
    similar = similar[1] @ similar[0].T
    near = np.argsort(-similar, axis=1)[:, :20]  # 20 of the 22
    votes = np.take_along_axis(1 + similar, near, axis=1)
    up = (votes * labels["train"][near]).sum(1) / votes.sum(1)
    scaler = StandardScaler().fit(features["train"])
    linear = LogisticRegression(C=0.01, max_iter=200)
    linear.fit(scaler.transform(features["train"]), labels["train"])
    scores = linear.decision_function(scaler.transform(features["validation"]))
    results = read(output / "all_results.json")
    truth = labels["validation"]
    assert results["probe_knn_accuracy"] == pytest.approx(((up > 0.5) == truth).mean())
    assert results["probe_linear_accuracy"] == pytest.approx(((scores > 0) == truth).mean())
    assert results["probe_linear_roc_auc"] == pytest.approx(roc_auc_score(truth, scores))


@torch.no_grad()
def features_of(model, path):
    """The mean of the patch tokens, by Pillow and the encoder alone."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.resize((16, 16), Image.Resampling.BILINEAR))
    values = torch.tensor(pixels / 255 * 2 - 1, dtype=torch.float32)[None, None]
    return model.encoder(values).last_hidden_state[0, 1:].mean(0).numpy()


def test_a_probe_needs_labels_and_is_left_out_without(images, tmp_path):
    options = ["--probe_epochs", "1", "--label_column_name", ""]
    output = run(pretrain, images, tmp_path / "out", *options, steps=2)
    assert not any("probe" in name for record in records(output) for name in record)


def test_the_evaluation_that_ends_a_run_early_probes(images, tmp_path):
    options = ["--learning_rate", "0", "--eval_steps", "1", "--early_stopping_patience", "2"]
    output = run(pretrain, images, tmp_path / "out", *options, steps=9)
    assert [r["step"] for r in records(output) if "probe_knn_accuracy" in r] == [3]


# ---------------------------------------------------------------------- collapse


def warnings_of(caplog, spreads):
    caplog.clear()
    monitor = CollapseMonitor()
    for step, spread in enumerate(spreads, 1):
        monitor({"step": step, **({} if spread is None else {"target_std": spread})})
    return [record.message for record in caplog.records]


def test_collapse_is_said_once(caplog):
    curve = [0.3, None, 0.5, 0.2, 0.06, 0.049, 0.01, 0.001]
    (message,) = warnings_of(caplog, curve)
    assert "step 6: " in message
    assert "0.049" in message
    assert "0.5" in message
    assert "--distillation_weight" in message
    assert not warnings_of(caplog, [0.3, math.nan, 0.2, math.nan]), "a batch of one image"
    (message,) = warnings_of(caplog, [5e-5, 0.0])
    assert "step 1: " in message, "from the start"


def test_a_resumed_run_knows_the_spread_it_had(images, tmp_path, caplog):
    output = run(pretrain, images, tmp_path / "out", "--checkpointing_steps", "3", steps=4)
    (output / "all_results.json").unlink()
    lines = (output / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "target_std": 100 * first["target_std"]})
    (output / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "nearly the same for all" not in caplog.text
    run(pretrain, images, output, *RESUME, steps=4)
    assert "step 2: the self-distillation targets are nearly the same" in caplog.text


def test_ordinary_curves_are_no_collapse(caplog):
    steps = np.arange(1, 400)
    noise = np.random.default_rng(0).uniform(0.8, 1.25, len(steps))
    for curve in (
        0.02 + 0.3 * (1 - np.exp(-steps / 50)),  # rises
        0.3 * (0.25 + np.exp(-steps / 50)),  # falls to a fifth, and stays
        0.2 * noise,
        [None] * 5,
    ):
        assert warnings_of(caplog, list(curve)) == []


@pytest.mark.parametrize("preset", ["stable", "sd_mae", "global", "mae"])
def test_short_runs_are_no_collapse(images, tmp_path, caplog, preset):
    output = run(pretrain, images, tmp_path / "out", "--distillation", preset, steps=12)
    assert "nearly the same for all" not in caplog.text
    spread = [r["target_std"] for r in records(output) if "target_std" in r]
    assert len(spread) == (0 if preset == "mae" else 12)


# ---------------------------------------------------------------------- losses that are not finite


@pytest.fixture
def break_step(monkeypatch):
    """A function: in this step (1-based) the loss, or else only its gradient, is not a number."""
    forward = SSSDForPreTraining.forward
    state = SimpleNamespace(step=None, what=None, calls=0)

    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.nan

    def broken(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        if model.training:
            state.calls += 1
            if state.calls == state.step:
                loss = output.loss * math.nan
                output.loss = loss if state.what == "loss" else NoGradient.apply(output.loss)
        return output

    monkeypatch.setattr(SSSDForPreTraining, "forward", broken)

    def arm(step, what="loss"):
        state.step, state.what, state.calls = step, what, 0

    return arm


def indices_and_names(message):
    indices = message.split("(indices [")[1].split("]")[0].split(", ")
    names = message.split("]): ")[1].split(". The last good")[0].split(", ")
    return list(map(int, indices)), names


@pytest.mark.parametrize("logging_steps", ["1", "4"])
def test_a_loss_that_is_not_finite_names_files_and_the_last_good_checkpoint(
    images, tmp_path, break_step, logging_steps, monkeypatch
):
    options = ["--checkpointing_steps", "2", "--logging_steps", logging_steps]
    whole = run(pretrain, images, tmp_path / "whole", *options, steps=9)
    output, drawn = tmp_path / "out", []
    make = pretrain.Batches.augmented

    def note(batches, draw, **kwargs):
        drawn.append(draw.index.tolist())
        return make(batches, draw, **kwargs)

    break_step(5)
    monkeypatch.setattr(pretrain.Batches, "augmented", note)
    with pytest.raises(FloatingPointError) as caught:
        run(pretrain, images, output, *options, steps=9)
    message = str(caught.value)
    assert "The loss is nan at step 5." in message
    assert f"The last good checkpoint: {output / 'checkpoints/step-00000004'}." in message
    assert "--resume_from_checkpoint latest" in message
    indices, names = indices_and_names(message)
    assert indices == drawn[4]
    train = read(output / "splits.json")["train"]
    assert sorted(names) == sorted(train[i] for i in indices)
    assert all((images / name).is_file() for name in names)
    assert not (output / "all_results.json").exists()
    assert not any("nan" in line.lower() for line in (output / "metrics.jsonl").open())
    break_step(None)
    run(pretrain, images, output, *options, *RESUME, steps=9)
    assert digest(output) == digest(whole)


def test_weights_that_are_not_finite_are_no_checkpoint(images, tmp_path, break_step):
    """The loss of the step is finite, its gradient is not: only the next loss would show it."""
    options = ["--checkpointing_steps", "1"]
    whole = run(pretrain, images, tmp_path / "whole", *options, steps=6)
    output = tmp_path / "out"
    break_step(4, "gradient")
    with pytest.raises(FloatingPointError, match="after step 4") as caught:
        run(pretrain, images, output, *options, steps=6)
    assert f"The last good checkpoint: {output / 'checkpoints/step-00000003'}." in str(caught.value)
    assert len(indices_and_names(str(caught.value))[1]) == 4
    break_step(None)
    run(pretrain, images, output, *options, *RESUME, steps=6)
    assert digest(output) == digest(whole)


def test_fine_tuning_names_them_too(images, tmp_path, monkeypatch):
    model = finetune.SSSDForImageClassification
    forward = model.forward

    def broken(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * math.inf if self.training else output.loss
        return output

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(FloatingPointError, match=r"The loss is inf at step 1\.") as caught:
        run(finetune, images, tmp_path / "out")
    assert "The last good checkpoint: none." in str(caught.value)
    assert all((images / name).is_file() for name in indices_and_names(str(caught.value))[1])
