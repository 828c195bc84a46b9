"""One run at a time in an output folder; who holds a lock is asked of the system itself."""

import errno
import fcntl

import pytest
from accelerate import Accelerator
from tiny_runs import read, run, write_images

from sssd_hf.cli import finetune, locking, runs
from sssd_hf.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locking, "PATIENCE", 0)


def held(output):
    """Whether somebody holds the lock."""
    if not (output / ".run.lock").exists():
        return False
    with (output / ".run.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize(
    "options", [["--overwrite_output_dir", "true"], ["--resume_from_checkpoint", "latest"], []]
)
def test_a_second_run_is_refused_and_touches_nothing(images, tmp_path, options):
    output = tmp_path / "out"
    for name in ("metrics.jsonl", "checkpoints/step-00000002/state.json", ".run.lock"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(name)
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    with (output / ".run.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"--output_dir .*out: another run is writing there"):
            run(finetune, images, output, *options)
        assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before
        assert held(output), "it is still the other one's"


def test_a_run_holds_its_folder_to_its_end(images, tmp_path, monkeypatch):
    output, seen, train = tmp_path / "out", [], runs.train

    def watched(*arguments):
        seen.append(held(output))
        return train(*arguments)

    monkeypatch.setattr(runs, "train", watched)
    run(finetune, images, output)
    assert seen == [True]
    assert not (output / ".run.lock").exists(), "a finished run is uploaded without it"


@pytest.mark.parametrize("error", [ValueError, Interrupted, KeyboardInterrupt, SystemExit])
def test_however_a_run_ends_the_folder_is_free(images, tmp_path, monkeypatch, error):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:

        def stop(*arguments):
            assert held(output)
            raise error("stopped")

        patch.setattr(runs, "train", stop)
        with pytest.raises(error) as caught:  # kept, and with it the frames of the run
            run(finetune, images, output)
    assert not held(output)
    assert run(finetune, images, output) == output
    assert read(output / "all_results.json")["train_steps"] == 6
    assert "stopped" in str(caught.value)


def test_what_a_killed_run_left_is_no_lock(images, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / ".run.lock").touch()
    run(finetune, images, output)
    assert not (output / ".run.lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, number):
    def none(*arguments):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", none)
    accelerator, entered = Accelerator(cpu=True), 0
    for _ in range(2):  # and nothing is left that would hold up the next run
        with locking.alone_in(tmp_path / "out", accelerator):
            entered += 1
    assert entered == 2
    messages = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(messages) == 2
    assert all("out can't be locked" in text and "no locks here" in text for text in messages)
