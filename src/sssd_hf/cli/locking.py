"""One run at a time in an output folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

logger = logging.getLogger("sssd_hf")
NAME = ".run.lock"
PATIENCE = 2.0  # seconds: of a run that was just killed, the system may still be closing the files


@contextmanager
def alone_in(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """`folder`, made where there is none, belongs to this run while the context lasts. The main
    process holds a lock of the operating system, which is free again however the process ends, by
    SIGKILL too; the lock file is gone after an end that was not a kill. On a file system without
    locks there is a warning instead.

    Raises:
        ValueError: another run holds the lock; raised by all processes.
    """
    import filelock

    # its own substitute for a missing lock is a file that a killed run would leave locked
    lock = filelock.FileLock(folder / NAME, fallback_to_soft=False)
    taken = False
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            taken = True
        except (OSError, NotImplementedError) as error:
            logger.warning(
                f"--output_dir {folder} can't be locked ({error}): start no second run into it "
                "while this one lasts, nothing would stop it."
            )
    try:
        if any(gather_object([taken])):
            raise ValueError(
                f"--output_dir {folder}: another run is writing there at this moment (it holds the "
                f"lock {NAME}). Wait for its end or stop it, or name another folder."
            )
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows removes it at the release instead
                (folder / NAME).unlink()  # while it is held: else it might be another run's
            lock.release()
