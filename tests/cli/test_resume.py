"""Interrupted runs, in this process: they go on as if nothing had happened, or say why not."""

import logging
import os
import shutil
import signal

import pytest
from tiny_runs import COUNTS, SIZES, digest, read, records, run, write_images

from sssd_hf.cli import batches, finetune, pretrain, runs
from sssd_hf.training.signals import Interrupted

RESUME = ["--resume_from_checkpoint", "latest"]
STEPS = 9  # 22 images in steps of 8: three epochs of three, the last one of 6 images
MIXING = ["--mixup_alpha", "0.4", "--cutmix_alpha", "1", "--balanced_sampling", "true"]
PARTS = ["--gradient_accumulation_steps", "2", "--learning_rate", "2e-3", "--logging_steps", "2"]
PARTS += ["--per_device_eval_batch_size", "2"]
CASES = {
    "pretrain": (
        pretrain,
        [
            *(*PARTS, "--distillation", "sd_mae", "--ema_decay", "0.9", "--probe_epochs", "1"),
            # a score that counted twice would end the run
            *("--eval_epochs", "1", "--early_stopping_patience", "1"),
        ],
    ),
    "finetune": (
        finetune,
        [*PARTS, *MIXING, "--drop_path_rate", "0.3", "--metric_for_best_model", "log_loss"],
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The uninterrupted run of each case."""
    root = tmp_path_factory.mktemp("whole")
    return {
        name: run(script, images, root / name, *options, steps=STEPS)
        for name, (script, options) in CASES.items()
    }


@pytest.fixture
def signal_in_step(monkeypatch):
    """A function that lets this process get SIGTERM, once, in a step (1-based)."""
    train = runs.train

    def arm(step):
        sent = []

        def train_with_signal(accelerator, model, optimizer, schedule, feed, *rest):
            draw = feed.step

            def draw_and_signal(number):
                if number == step - 1 and not sent:
                    os.kill(os.getpid(), signal.SIGTERM)
                    sent.append(number)
                return draw(number)

            feed.step = draw_and_signal
            return train(accelerator, model, optimizer, schedule, feed, *rest)

        monkeypatch.setattr(runs, "train", train_with_signal)

    return arm


@pytest.fixture
def signal_in_batch(monkeypatch):
    """A function that lets this process get SIGTERM in a batch (1-based) of its evaluations, and
    gives a list that grows by one with each of them."""
    rank_batches = batches.rank_batches

    def arm(number):
        begun = []

        def batches_with_signal(*arguments):
            for batch in rank_batches(*arguments):
                begun.append(batch)
                if len(begun) == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        for module in (batches, pretrain):
            monkeypatch.setattr(module, "rank_batches", batches_with_signal)
        return begun

    return arm


def same(output, expected):
    """Weights to the bit, log, and what all_results.json says of the result."""
    assert digest(output) == digest(expected)
    logs = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in records(folder)]
        for folder in (output, expected)
    ]
    assert logs[0] == logs[1]
    first, second = (read(folder / "all_results.json") for folder in (output, expected))
    assert first.keys() == second.keys()
    for name in ("train_steps", "loss", "best_step", "chosen_by", "num_train_images"):
        assert first.get(name) == second.get(name), name


def test_the_cases_are_hard_to_resume(whole):
    """The last part batch of an epoch is uneven, and more than weights is carried on."""
    assert sum(COUNTS["train"]) % 8 not in (0, 4)
    assert read(whole["pretrain"] / "config.json")["distillation_head"] == "dino"
    assert any("probe_knn_accuracy" in record for record in records(whole["pretrain"]))
    steps = [r["step"] for r in records(whole["finetune"]) if "eval_accuracy" in r]
    assert steps == [3, 6, 9]


@pytest.mark.parametrize("step", [1, 4, STEPS - 1, STEPS])
@pytest.mark.parametrize("case", CASES)
def test_a_signal_in_any_step_loses_nothing(images, whole, tmp_path, signal_in_step, case, step):
    script, options = CASES[case]
    output = tmp_path / "out"
    signal_in_step(step)
    with pytest.raises(Interrupted, match=f"SIGTERM after step {step} of {STEPS}"):
        run(script, images, output, *options, steps=STEPS)
    assert not (output / "all_results.json").exists()
    assert not (output / "model.safetensors").exists()
    run(script, images, output, *options, *RESUME, steps=STEPS)
    same(output, whole[case])


# an evaluation of 8 held-out images in 4 batches; with the probe's, of 22 and 8 images, 19
@pytest.mark.parametrize(
    ("case", "number", "step"),
    [
        *(("pretrain", 2, 3), ("pretrain", 19 + 17, 6), ("pretrain", 38 + 5, 9)),
        *(("finetune", 4 + 1, 6), ("finetune", 8 + 2, 9)),
    ],
)
def test_a_signal_in_an_evaluation_breaks_it_off(
    images, whole, tmp_path, signal_in_batch, case, number, step
):
    script, options = CASES[case]
    output, begun = tmp_path / "out", signal_in_batch(number)
    with pytest.raises(Interrupted, match=f"SIGTERM after step {step} of {STEPS}"):
        run(script, images, output, *options, steps=STEPS)
    assert len(begun) == number, "no batch more"
    evaluated = [r["step"] for r in records(output) if "learning_rate" not in r]
    assert evaluated == list(range(3, step, 3))
    begun = signal_in_batch(2)  # the resumed run begins it anew, and is stopped in it too
    with pytest.raises(Interrupted, match=f"SIGTERM after step {step} of {STEPS}"):
        run(script, images, output, *options, *RESUME, steps=STEPS)
    assert len(begun) == 2
    signal_in_batch(0)
    run(script, images, output, *options, *RESUME, steps=STEPS)
    same(output, whole[case])


def test_two_signals_in_one_run(images, whole, tmp_path, signal_in_step):
    script, options = CASES["finetune"]
    output = tmp_path / "out"
    for step, more in ((2, []), (5, RESUME)):
        signal_in_step(step)
        with pytest.raises(Interrupted):
            run(script, images, output, *options, *more, steps=STEPS)
    run(script, images, output, *options, *RESUME, steps=STEPS)
    same(output, whole["finetune"])


@pytest.mark.parametrize("case", CASES)
def test_with_nothing_to_resume_a_run_starts_anew(images, whole, tmp_path, case):
    """What a cluster's job asks for each time it is started."""
    script, options = CASES[case]
    output = run(script, images, tmp_path / "out", *options, *RESUME, steps=STEPS)
    same(output, whole[case])


def test_a_finished_run_is_left_as_it_is(images, whole, tmp_path, caplog):
    script, options = CASES["finetune"]
    output = shutil.copytree(whole["finetune"], tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    with caplog.at_level(logging.INFO, logger="sssd_hf"):
        run(script, images, output, *options, *RESUME, steps=STEPS)
    assert "nothing is left to do" in caplog.text
    assert str(output) in caplog.text
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before


@pytest.fixture(scope="module")
def interrupted(images, tmp_path_factory):
    """Each case as a kill before its last step leaves it, with checkpoints of steps 4, 6 and 8."""
    root = tmp_path_factory.mktemp("interrupted")
    for name, (script, options) in CASES.items():
        more = [*options, "--checkpointing_steps", "2", "--save_total_limit", "3"]
        run(script, images, root / name, *more, steps=STEPS)
        for result in ("all_results.json", "model.safetensors"):
            (root / name / result).unlink()
    return root


@pytest.mark.parametrize("damaged", ["model", "optimizer", "state", "manifest"])
@pytest.mark.parametrize("case", CASES)
def test_of_damaged_checkpoints_the_one_before_is_used(
    images, whole, interrupted, tmp_path, caplog, case, damaged
):
    script, options = CASES[case]
    output = shutil.copytree(interrupted / case, tmp_path / "out")
    (path,) = (output / "checkpoints/step-00000008").glob(f"{damaged}.*")
    path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.INFO, logger="sssd_hf"):
        run(script, images, output, *options, *RESUME, steps=STEPS)
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert sum("step-00000008" in message for message in warnings) == 1
    assert "going on after step 6" in caplog.text
    same(output, whole[case])


def test_a_checkpoint_by_its_folder(images, whole, interrupted, tmp_path, caplog):
    script, options = CASES["finetune"]
    output = shutil.copytree(interrupted / "finetune", tmp_path / "out")
    folder = output / "checkpoints/step-00000004"
    with caplog.at_level(logging.INFO, logger="sssd_hf"):
        run(script, images, output, *options, "--resume_from_checkpoint", folder, steps=STEPS)
    assert "going on after step 4" in caplog.text
    same(output, whole["finetune"])


def test_other_options_are_named(images, interrupted, tmp_path, caplog):
    script, options = CASES["pretrain"]
    output = shutil.copytree(interrupted / "pretrain", tmp_path / "out")
    free = ["--logging_steps", "5", "--save_total_limit", "1", "--cache", "memory"]
    free += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
    other = ["--weight_decay", "0.3", "--rotation", "5"]
    run(script, images, output, *options, *free, *other, *RESUME, steps=STEPS)
    (message,) = [r.message for r in caplog.records if "options differ" in r.message]
    assert "weight_decay: 0.05 -> 0.3" in message
    assert "rotation: 0.0 -> 5.0" in message
    assert message.count("->") == 2, "no other one"


@pytest.mark.parametrize("decays", [("0.9", "0"), ("0", "0.9")])
def test_an_average_that_begins_or_ends_with_the_resumed_run(images, tmp_path, caplog, decays):
    output, options = tmp_path / "out", ["--checkpointing_steps", "5", "--ema_decay"]
    run(finetune, images, output, *options, decays[0])
    (output / "all_results.json").unlink()
    run(finetune, images, output, *options, decays[1], *RESUME)
    assert "ema_decay: " in caplog.text
    assert read(output / "all_results.json")["train_steps"] == 6


def test_the_average_may_begin_with_the_resumed_run_from_its_weights(images, tmp_path):
    """Resumed at its end, so that nothing moves them."""
    output, options = tmp_path / "out", ["--checkpointing_steps", "6", "--metric_for_best_model"]
    run(finetune, images, output, *options, "last")
    before = digest(output)
    (output / "all_results.json").unlink()
    run(finetune, images, output, *options, "last", "--ema_decay", "0.9", *RESUME)
    assert digest(output) == before


def refused(script, images, output, *options):
    with pytest.raises(ValueError) as caught:
        run(script, images, output, *options, steps=STEPS)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_what_can_not_go_on_is_refused(images, interrupted, tmp_path, case):
    script, options = CASES[case]
    output = shutil.copytree(interrupted / case, tmp_path / "out")
    wide = ["--config_overrides", SIZES.replace("hidden_size=32", "hidden_size=64", 1)]
    message = refused(script, images, output, *options, *wide, *RESUME)
    assert "checkpoint is of another model" in message
    assert "Resume with the options the run began with" in message
    message = refused(script, images, output, *options, "--overwrite_output_dir", "true", *RESUME)
    assert "--resume_from_checkpoint or --overwrite_output_dir, not both" in message
    message = refused(script, images, output, *options)
    assert "--resume_from_checkpoint latest to go on" in message
    message = refused(script, images, output, *options, *RESUME, *PARTS[:1], "3")
    assert "began with 8 images a step, here it is 12" in message
    gone = output / "checkpoints/step-00000099"
    message = refused(script, images, output, *options, "--resume_from_checkpoint", gone)
    assert "step-00000099" in message
    assert "no such folder" in message
    for folder in (output / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    assert "All 3 checkpoints" in refused(script, images, output, *options, *RESUME)
    assert not (output / "all_results.json").exists()


def test_the_other_script_s_checkpoint_is_refused(images, interrupted, tmp_path):
    output = shutil.copytree(interrupted / "pretrain", tmp_path / "out")
    assert "another model" in refused(finetune, images, output, *PARTS, *RESUME)
