"""Uploads beside a training: nothing waits for them, and none comes after the result."""

import threading
import time

from sssd_hf.hub.background import BackgroundUploads
from sssd_hf.hub.push import HubError, Target, push


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Uploader:
    """Notes what it is asked to upload, and is busy until it is let go."""

    def __init__(self):
        self.started, self.contents, self.go = [], [], threading.Event()

    def __call__(self, files, message, sleep):
        self.started.append(message)
        assert self.go.wait(5)
        self.contents.append(
            files["w"] if isinstance(files["w"], bytes) else files["w"].read_bytes()
        )


def test_offering_waits_for_nothing_and_the_newest_state_comes_next(tmp_path):
    upload = Uploader()
    uploads = BackgroundUploads(upload, tmp_path / "kept")
    started = time.monotonic()
    for i in range(5):
        weights = tmp_path / "w"
        weights.write_bytes(b"%d" % i)
        uploads.offer({"w": weights}, f"state {i}")
        weights.unlink()  # as the oldest checkpoints are
        if i == 0:
            wait_for(lambda: upload.started)
    assert time.monotonic() - started < 1
    assert upload.started == ["state 0"]
    upload.go.set()
    wait_for(lambda: len(upload.contents) == 2)
    assert upload.started == ["state 0", "state 4"]
    assert upload.contents == [b"0", b"4"]
    assert uploads.close(5)
    assert not (tmp_path / "kept").exists()


def test_a_failure_is_logged_and_the_next_state_is_tried(tmp_path, caplog):
    def upload(files, message, sleep):
        if message == "first":
            raise HubError("it did not work.")

    uploads = BackgroundUploads(upload, tmp_path / "kept")
    uploads.offer({"w": b"1"}, "first")
    wait_for(lambda: uploads.failures and not uploads.running)
    uploads.offer({"w": b"2"}, "second")
    wait_for(lambda: not uploads.running)
    assert uploads.failures == 1
    assert "not published: first: it did not work. The training goes on." in caplog.text
    uploads.offer({"w": tmp_path / "missing"}, "third")
    assert "not published: third" in caplog.text


def test_closing_gives_up_what_waits_and_does_not_wait_for_ever(tmp_path):
    upload = Uploader()
    uploads = BackgroundUploads(upload, tmp_path / "kept")
    uploads.offer({"w": b"1"}, "first")
    wait_for(lambda: upload.started)
    uploads.offer({"w": b"2"}, "second")
    assert not uploads.close(0.05)
    upload.go.set()
    wait_for(lambda: not uploads.running)
    assert upload.started == ["first"]


def test_an_older_state_never_comes_after_the_result(hub, tmp_path, caplog):
    """The older one's commit is under way as the result is published: it must fail, and not be
    tried again."""
    target = Target("tester/model")
    push({"w": b"0"}, target, "start")
    reached, go_on = threading.Event(), threading.Event()

    def upload(files, message, sleep):
        def hesitate(seconds):
            reached.set()
            go_on.wait(5)
            sleep(seconds)

        push(files, target, message, sleep=hesitate)

    uploads = BackgroundUploads(upload, tmp_path / "kept")
    hub.fail("POST .*/commit/", 500)
    uploads.offer({"w": b"older"}, "older")
    assert reached.wait(5)
    uploads.close(0)
    push({"w": b"result"}, target, "result")
    go_on.set()
    wait_for(lambda: not uploads.running)
    assert hub.files("tester/model")["w"] == b"result"
    assert hub.repositories["tester/model"].messages == ["initial commit", "start", "result"]
    assert "a newer state is about to be published" in caplog.text
