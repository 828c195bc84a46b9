"""Uploads beside a training: never waited for, and only the newest state."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from .push import HubError

logger = logging.getLogger("sssd_hf")
Files = dict[str, Path | bytes]


class BackgroundUploads:
    """Uploads one state after another in a thread of its own. What is offered while one is under
    way waits, and gives way to what is offered later. A failure is logged, and the training goes
    on.

    Args:
        upload: (files, message, sleep) -> anything; may raise. It pauses by `sleep`, which raises
            once a newer state is about to be published: an older one must not come after it.
        folder: where the weights are kept until they are uploaded, on the same drive as they.
    """

    def __init__(self, upload: Callable[[Files, str, Callable], object], folder: Path):
        self.upload, self.folder = upload, folder
        self.waiting: tuple[Files, str, Path] | None = None
        self.running = False
        self.failures, self.offered = 0, 0
        self.closed = threading.Event()
        self.changed = threading.Condition()
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted run's

    def offer(self, files: Files, message: str) -> None:
        """Take note of a state to upload; its files may be removed afterwards. Raises nothing."""
        try:
            self.offered += 1
            place = self.folder / f"state-{self.offered}"
            kept = {name: keep(file, place / name) for name, file in files.items()}
        except OSError as error:
            logger.warning(f"not published: {message}: {error}; the training goes on")
            return
        with self.changed:
            replaced, self.waiting = self.waiting, (kept, message, place)
            if not self.running:
                self.running = True
                # daemon: a hanging connection must not keep the process alive
                threading.Thread(target=self._work, name="hub-uploads", daemon=True).start()
        if replaced:
            shutil.rmtree(replaced[2], ignore_errors=True)

    def sleep(self, seconds: float) -> None:
        """Raises HubError where the uploads are closed meanwhile."""
        if self.closed.wait(seconds):
            raise HubError("a newer state is about to be published")

    def _work(self) -> None:
        while True:
            with self.changed:
                if self.waiting is None:
                    self.running = False
                    self.changed.notify_all()
                    return
                (files, message, place), self.waiting = self.waiting, None
            try:
                self.upload(files, message, self.sleep)
            except Exception as error:
                self.failures += 1
                logger.warning(f"not published: {message}: {error} The training goes on.")
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def close(self, seconds: float) -> bool:
        """Give up what waits; wait for the upload under way, at most so long -> it ended."""
        self.closed.set()
        with self.changed:
            dropped, self.waiting = self.waiting, None
            ended = self.changed.wait_for(lambda: not self.running, seconds)
        if dropped:
            shutil.rmtree(dropped[2], ignore_errors=True)
        if ended:
            shutil.rmtree(self.folder, ignore_errors=True)
        return ended


def keep(source: Path | bytes, place: Path) -> Path | bytes:
    """A second name for a file, so that the first may be removed; else a copy."""
    if isinstance(source, bytes):
        return source
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
    return place
