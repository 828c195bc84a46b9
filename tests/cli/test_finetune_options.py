"""Options of finetune.py, from the command line to the weights."""

import math
import shutil

import numpy as np
import pytest
import torch
from model_helpers import tiny_config
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import COUNTS, digest, read, records, run, write_images

from sssd_hf import SSSDConfig, SSSDForPreTraining
from sssd_hf.cli import common, finetune, pretrain, runs
from sssd_hf.cli.parsing import parse
from sssd_hf.training.averaging import WeightAverage

TRAIN = COUNTS["train"]
PER_EPOCH = math.ceil(sum(TRAIN) / 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    return run(pretrain, images, tmp_path_factory.mktemp("runs") / "pretrained", steps=1)


def weights(output):
    return load_file(output / "model.safetensors")


def refused(images, output, *options):
    with pytest.raises(ValueError) as caught:
        run(finetune, images, output, *options)
    return str(caught.value)


def test_balanced_class_weights_are_scikit_learns(images, tmp_path):
    output = run(finetune, images, tmp_path / "out", "--class_weights", "balanced", steps=1)
    labels = [0] * TRAIN[0] + [1] * TRAIN[1]
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert read(output / "config.json")["class_weights"] == pytest.approx(expected)


def test_class_weights_as_numbers_weigh_the_loss(images, tmp_path):
    """The first step's loss by its definition, from the losses with one class's weight nearly 0."""
    found = {}
    for words in ("none", "1,1", "1,3", "1,1e-9", "1e-9,1"):
        options = ["--class_weights", words, "--drop_path_rate", "0", "--label_smoothing", "0"]
        output = run(finetune, images, tmp_path / words, *options, steps=1)
        found[words] = records(output)[0]["loss"]
    assert read(tmp_path / "1,3/config.json")["class_weights"] == [1, 3]
    assert read(tmp_path / "none/config.json").get("class_weights") is None
    assert found["none"] == pytest.approx(found["1,1"], rel=1e-6)
    first, second = found["1,1e-9"], found["1e-9,1"]  # the mean of each class's images
    shares = [(found["none"] - second) / (first - second)]
    shares.append(1 - shares[0])
    assert shares[0] * 4 == pytest.approx(round(shares[0] * 4), abs=1e-3), "of four images"
    expected = (shares[0] * first + 3 * shares[1] * second) / (shares[0] + 3 * shares[1])
    assert found["1,3"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "words", ["1", "1,2,3", "many", "1,x", "", "0,1", "1,-2", "1,nan", "1,inf"]
)
def test_wrong_class_weights(images, tmp_path, words):
    message = refused(images, tmp_path / "out", "--class_weights", words)
    assert "class_weights" in message
    assert "2" in message, "how many are expected"
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_balanced_class_weights_need_every_class(images, tmp_path):
    """The one training image that is drawn is of one class."""
    options = ["--class_weights", "balanced", "--max_train_samples", "1"]
    message = refused(images, tmp_path / "out", *options)
    assert "--class_weights balanced: no training image has the label" in message


def test_class_weights_are_of_one_run(images, tmp_path):
    """They are not taken over from the classifier that a run starts from."""
    first = run(finetune, images, tmp_path / "first", "--class_weights", "1,3", steps=1)
    options = ["--model_name_or_path", first]
    second = run(finetune, images, tmp_path / "second", *options, steps=1)
    assert read(second / "config.json").get("class_weights") is None
    third = run(finetune, images, tmp_path / "third", *options, "--class_weights", "2,1", steps=1)
    assert read(third / "config.json")["class_weights"] == [2, 1]
    three = tmp_path / "three"
    for split in ("train", "val", "test"):
        shutil.copytree(images / split, three / split)
        shutil.copytree(images / split / "up", three / split / "sideways")
    fourth = run(finetune, three, tmp_path / "fourth", *options, steps=1)
    assert read(fourth / "config.json").get("class_weights") is None


def test_balanced_sampling_shows_every_class_equally_often(images, tmp_path, monkeypatch):
    shown = []

    def train(accelerator, model, optimizer, schedule, feed, stage, *rest):
        make = stage.make_batch

        def note(draw):
            batch = make(draw)
            shown.extend(batch["labels"].tolist())
            return batch

        stage.make_batch = note
        return plain(accelerator, model, optimizer, schedule, feed, stage, *rest)

    plain = runs.train
    monkeypatch.setattr(runs, "train", train)
    for balanced, counts in (("false", list(TRAIN)), ("true", [sum(TRAIN) / 2] * 2)):
        options = ["--balanced_sampling", balanced]
        run(finetune, images, tmp_path / balanced, *options, steps=2 * PER_EPOCH)
        assert [shown.count(label) for label in (0, 1)] == [2 * count for count in counts]
        shown.clear()


def test_rare_classes_are_made_up_for_once(images, tmp_path):
    options = ["--balanced_sampling", "true", "--class_weights", "balanced"]
    with pytest.raises(ValueError, match="give one of them"):
        run(finetune, images, tmp_path / "twice", *options, steps=1)


def test_a_frozen_encoder_stays_as_it_was(images, pretrained, tmp_path):
    before = weights(pretrained)
    options = ["--model_name_or_path", pretrained, "--learning_rate", "1e-2"]
    free = weights(run(finetune, images, tmp_path / "free", *options))
    options += ["--freeze_encoder", "true", "--ema_decay", "0.5"]
    output = run(finetune, images, tmp_path / "frozen", *options)
    frozen = weights(output)
    names = [name for name in frozen if name.startswith("encoder.")]
    assert len(names) > 10
    for name in names:
        assert torch.equal(frozen[name], before[name]), name
    assert any(not torch.equal(free[name], before[name]) for name in names)
    # a new head's bias is zero
    assert frozen["classifier.bias"].abs().max() > 0
    assert read(output / "config.json")["drop_path_rate"] == 0


@pytest.mark.parametrize("script", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_the_saved_weights_are_the_average(images, tmp_path, monkeypatch, script):
    """By its recurrence, from the weights after each step of the run without an average."""
    history = []
    options = ["--learning_rate", "2e-3"]
    options += ["--metric_for_best_model", "last"] if script is finetune else []
    plain = run(script, images, tmp_path / "plain", *options)

    update = WeightAverage.update

    def note(average, step):
        history.append({k: p.detach().clone() for k, p in average.parameters.items()})
        update(average, step)

    starts = []
    make = WeightAverage.__init__

    def start(average, model, decay):
        make(average, model, decay)
        starts.append({k: v.clone() for k, v in average.values.items()})

    monkeypatch.setattr(WeightAverage, "__init__", start)
    monkeypatch.setattr(WeightAverage, "update", note)
    output = run(script, images, tmp_path / "average", *options, "--ema_decay", "0.3")
    assert len(history) == 6
    found, without = weights(output), weights(plain)
    (expected,) = starts
    for step, current in enumerate(history, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * current[k] for k, v in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
        assert torch.equal(history[-1][name], without[name]), "the training itself is the same"
    assert any(not torch.equal(found[name], without[name]) for name in expected)
    assert records(output)[0]["loss"] == records(plain)[0]["loss"]
    # what is evaluated is the average too
    evaluated = [
        [v for k, v in records(o)[-1].items() if k.startswith("eval_")] for o in (output, plain)
    ]
    assert evaluated[0] != evaluated[1]


@pytest.mark.parametrize("script", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_early_stopping(images, tmp_path, script):
    """A learning rate of 0 makes no evaluation better than the first."""
    options = ["--learning_rate", "0", "--eval_steps", "2", "--early_stopping_patience", "3"]
    output = run(script, images, tmp_path / "out", *options, steps=40)
    results = read(output / "all_results.json")
    assert results["train_steps"] == results["step"] == 8
    evaluated = [r["step"] for r in records(output) if any(k.startswith("eval_") for k in r)]
    assert evaluated == [2, 4, 6, 8]
    assert (output / "model.safetensors").exists()


@pytest.mark.parametrize("script", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_early_stopping_without_held_out_images_is_refused(images, tmp_path, script):
    options = [
        "--early_stopping_patience",
        "3",
        "--train_val_split",
        "0",
        "--train_test_split",
        "0",
    ]
    with pytest.raises(ValueError, match=r"--early_stopping_patience 3: .* no held-out images"):
        run(script, images / "train", tmp_path / "out", *options)


def test_early_stopping_counts_evaluations_without_a_better_one(images, tmp_path, monkeypatch):
    losses = iter([0.9, 0.8, 0.85, 0.7, 0.75, math.nan, 0.72, 0.1])

    def metrics(labels, probabilities):
        return {"log_loss": next(losses), "roc_auc": math.nan}

    monkeypatch.setattr(finetune, "classification_metrics", metrics)
    options = ["--early_stopping_patience", "3", "--metric_for_best_model", "log_loss"]
    output = run(finetune, images, tmp_path / "out", *options, "--eval_steps", "1", steps=8)
    results = read(output / "all_results.json")
    assert (results["train_steps"], results["best_step"]) == (7, 4)
    assert results["best_eval_log_loss"] == 0.7


@pytest.mark.parametrize("option", ["--mixup_alpha", "--cutmix_alpha"])
def test_mixing_reaches_the_training(images, tmp_path, option):
    options = ["--gradient_accumulation_steps", "2", "--class_weights", "1,3"]
    plain = run(finetune, images, tmp_path / "plain", *options)
    mixed = run(finetune, images, tmp_path / "mixed", *options, option, "0.8")
    none = [*options, option, "0.8", "--mix_probability", "0"]
    none = run(finetune, images, tmp_path / "none", *none)
    assert digest(none) == digest(plain)
    assert digest(mixed) != digest(plain)
    assert all(math.isfinite(r["loss"]) for r in records(mixed) if "loss" in r)
    # parts of a batch weigh by the sum of their labels' weights: the same with whole batches
    options = ["--class_weights", "1,3", "--per_device_train_batch_size", "8", option, "0.8"]
    whole = run(finetune, images, tmp_path / "whole", *options)
    losses = [[r["loss"] for r in records(o) if "loss" in r] for o in (mixed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_warmup_in_epochs(images, tmp_path):
    options = ["--learning_rate", "1e-3", "--num_warmup_epochs", "1.5", "--layer_decay", "1"]
    output = run(finetune, images, tmp_path / "out", *options, steps=12)
    rates = [r["learning_rate"] for r in records(output) if "loss" in r]
    steps = round(1.5 * PER_EPOCH)
    assert rates[:steps] == pytest.approx([1e-3 * (i + 1) / steps for i in range(steps)])
    assert rates[steps:] == sorted(rates[steps:], reverse=True)
    both = [*options, "--num_warmup_steps", "3"]
    output = run(finetune, images, tmp_path / "both", *both, steps=4)
    assert records(output)[2]["learning_rate"] == pytest.approx(1e-3), "steps come before epochs"


def test_evaluations_in_steps(images, tmp_path):
    output = run(finetune, images, tmp_path / "out", "--eval_steps", "4", steps=10)
    assert [r["step"] for r in records(output) if "eval_accuracy" in r] == [4, 8, 10]
    output = run(finetune, images, tmp_path / "epochs", "--eval_epochs", "0", steps=8)
    assert [r["step"] for r in records(output) if "eval_accuracy" in r] == [8]


@pytest.mark.parametrize(("limit", "kept"), [("2", [2, 3]), ("1", [3]), ("0", [1, 2, 3])], ids=str)
def test_checkpoints_by_epoch(images, tmp_path, limit, kept):
    options = ["--checkpointing_steps", "epoch", "--save_total_limit", limit]
    output = run(finetune, images, tmp_path / "out", *options, steps=3 * PER_EPOCH + 1)
    names = sorted(folder.name for folder in (output / "checkpoints").iterdir())
    assert names == [f"step-{PER_EPOCH * epoch:08d}" for epoch in kept]


@pytest.mark.parametrize("words", ["0", "-3", "often", "2.5"])
def test_wrong_checkpointing_steps(images, tmp_path, capsys, words):
    with pytest.raises(SystemExit):
        run(finetune, images, tmp_path / "out", "--checkpointing_steps", words)
    assert "--checkpointing_steps" in capsys.readouterr().err


def test_a_copy_in_test_is_said_before_training(images, tmp_path, caplog):
    """The same bytes in training and test: named, with what to do."""
    copied = tmp_path / "images"
    shutil.copytree(images, copied)
    run(finetune, copied, tmp_path / "clean", steps=1)
    assert "up/00.png" not in caplog.text
    shutil.copy(copied / "train/up/00.png", copied / "test/up/copy.png")
    run(finetune, copied, tmp_path / "out", steps=1)
    (message,) = [r.message for r in caplog.records if "test/up/copy.png" in r.message]
    assert "train/up/00.png" in message
    assert "audit.py" in message


def test_half_precision_checkpoints_are_trained_in_fp32(tmp_path):
    """An AdamW step is lost in bf16's eight bits; mixed precision keeps fp32 weights."""
    start = ["--model_name_or_path", str(tmp_path)]
    SSSDForPreTraining(tiny_config()).bfloat16().save_pretrained(tmp_path)
    assert SSSDConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    _, model, losses, *_ = parse("pretrain", "", start)
    assert {p.dtype for p in pretrain.build_model(model, losses).parameters()} == {torch.float32}
    _, model, *_, training = parse("finetune", "", start)
    classifier = finetune.build_model(model, training, ["a", "b"])
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


def test_the_calibration_sees_the_model_without_autocast(images, tmp_path, monkeypatch):
    """As predict.py will run it; evaluations on the way may be as the training is."""
    monkeypatch.setattr(common, "cpu_has_bf16", lambda: True)
    predict, dtypes = finetune.predict_probabilities, []

    def watch(model, *args):
        hook = model.classifier.register_forward_hook(lambda *of: dtypes.append(of[-1].dtype))
        try:
            return predict(model, *args)
        finally:
            hook.remove()

    monkeypatch.setattr(finetune, "predict_probabilities", watch)
    run(finetune, images, tmp_path / "fine", "--mixed_precision", "bf16", steps=1)
    assert dtypes[0] == torch.bfloat16
    assert dtypes[-1] == torch.float32
