"""What a run writes down as it goes."""

import errno
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger("sssd_hf")


@dataclass
class Log:
    """`metrics.jsonl`: one object a line, written by the main process; a tracker and a watcher are
    told the same. `last` has the last value of everything."""

    path: Path | None
    last: dict[str, Any] = field(default_factory=dict)
    tracker: Callable[[dict, int], None] | None = None
    watch: Callable[[dict], None] | None = None
    failed: bool = False

    def write(self, record: dict[str, Any]) -> None:
        # JSON knows neither NaN nor infinity
        record = {k: None if v is None or not math.isfinite(v) else v for k, v in record.items()}
        self.last |= record
        if self.path:
            self._append(self.path, json.dumps(record).encode() + b"\n")
        if self.watch:
            self.watch(record)
        if self.tracker:
            numbers = {k: v for k, v in record.items() if k != "step" and v is not None}
            self.tracker(numbers, step=record["step"])

    def _append(self, path: Path, line: bytes) -> None:
        """A whole line or, on a full disk, none of it: the run is worth more than its log."""
        try:
            with open(path, "ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            if not self.failed:
                logger.error(f"{path} could not be written ({error}); the run goes on without it")
            self.failed = True

    def rewind(self, step: int) -> None:
        """Take back what an interrupted run wrote after the step it goes on from."""
        if not self.path or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off by the interruption
                break
            if record["step"] <= step:
                kept.append(line)
                self.last |= record
                if self.watch:  # it may know of the past
                    self.watch(record)
        text = "".join(f"{line}\n" for line in kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.path)
