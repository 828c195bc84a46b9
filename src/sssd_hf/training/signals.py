"""Leaving at a signal without losing work."""

import os
import signal
import threading
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # SIGUSR1: what clusters warn with before preemption
EXIT_STATUS = 75  # sysexits' EX_TEMPFAIL: start the same command again


class Interrupted(Exception):
    """A signal ended the run; its state is saved. The message says how to go on."""


class BrokenOff(Exception):
    """A signal came during an evaluation, of which nothing is kept."""


class StopSignals:
    """While the context lasts, the first signal is noted in `received` instead of ending the
    process. A second Ctrl-C, at least two seconds later, ends it at once (launchers send the first
    one twice)."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.when = 0.0
        self.before: dict[int, object] = {}

    def heed(self, accelerator: Accelerator) -> None:
        """To be called now and then by what can be begun anew, equally often by all processes: they
        leave it together.

        Raises:
            BrokenOff: a signal was received, by any of them.
        """
        asked = self.received is not None
        if accelerator.num_processes > 1:
            wish = torch.full((), float(asked), device=accelerator.device)
            asked = accelerator.reduce(wish, "sum").item() > 0
        if asked:
            raise BrokenOff

    def _note(self, number: int, frame: object) -> None:
        again = self.received is not None and time.monotonic() - self.when > 2
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self.when = signal.Signals(number).name, time.monotonic()
            # not print: a handler may interrupt a write to the same buffer
            os.write(2, f"\n{self.received}: saving, then leaving\n".encode())

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            for name in NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@dataclass
class SharedWishes:
    """What the processes wish, on its way to the host: reading it waits for this copy alone, and
    not for what the device was given to do since."""

    values: torch.Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, values: torch.Tensor) -> "SharedWishes":
        if values.device.type != "cuda":
            return cls(values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(host, copied)

    def tolist(self) -> list[float]:
        if self.copied is not None:
            self.copied.synchronize()
        return self.values.tolist()
