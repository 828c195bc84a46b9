"""Pretraining, fine-tuning and evaluation over several splits and seeds, in one command.

`python scripts/cross_validate.py --data_dir FOLDER --group_column_name patient_id
--cross_validation 5`, or with `--split_column a,b,c`, or with `accelerate launch`. Takes the
options of pretrain.py, finetune.py and evaluate.py too and gives each to the scripts that have it;
where two scripts should have different values, a --recipe has a section for each.

Writes a folder for each run (fold_0/pretrain, fold_0/finetune, fold_0/evaluate), out_of_fold.csv,
all_results.json and, of folds, ensemble/, a model folder for predict.py. Interrupted, the same
command goes on where it stopped; finished stages are not run again.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ..data.splits import write_splits
from ..training.signals import NAMES, Interrupted
from . import evaluate, finetune, pretrain
from .protocol import (
    Options,
    Run,
    check_description,
    describe,
    folder_name,
    load_dataset,
    plan_runs,
    read_options,
    split_columns,
    write_description,
)
from .protocol_results import check_comparable, write_results
from .split_sources import split_source

logger = logging.getLogger("sssd_hf")
MAINS = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate}
TITLES = {"pretrain": "pretraining", "finetune": "fine-tuning", "evaluate": "evaluation"}
DESCRIPTION = "cross_validation.json"  # options and data; what a protocol that goes on must match


@dataclass(frozen=True)
class Step:
    """One script, to be run once."""

    stage: str
    folder: Path
    words: list[str]
    title: str

    def finished(self) -> bool:
        return (self.folder / "all_results.json").is_file()


def list_steps(output: Path, runs: list[Run], options: Options) -> list[Step]:
    """All scripts in their order, each with its command line."""
    steps = []

    def add(stage: str, place: Path, seed: int, title: str, splits: Path, start: Path | None):
        own = ["--output_dir", str(place / stage), "--splits_file", str(splits)]
        if stage != "evaluate":
            own += ["--seed", str(seed), "--resume_from_checkpoint", "latest"]
            own += ["--overwrite_output_dir", "false"]
        if start is not None:
            own += ["--model_name_or_path", str(start)]
        if stage == "evaluate" and "report" not in options.given("evaluate"):
            own += ["--report", "false"]  # a fold's takes longer to draw than the fold to evaluate
        words = [*options.words[stage], *own]
        steps.append(Step(stage, place / stage, words, f"{title}: {TITLES[stage]}"))

    shared = output / "pretrain_on_all"
    if options.protocol.pretrain_on_all:
        splits = shared / "splits.json"
        add("pretrain", shared, runs[0].seed, "all images", splits, None)
    for run in runs:
        folder, start = output / run.name, None
        splits = folder / "splits.json"
        if options.protocol.pretrain_on_all:
            start = shared / "pretrain"
        elif not options.protocol.skip_pretraining:
            add("pretrain", folder, run.seed, run.title, splits, None)
            start = folder / "pretrain"
        add("finetune", folder, run.seed, run.title, splits, start)
        add("evaluate", folder, run.seed, run.title, splits, folder / "finetune")
    return steps


def write_all_splits(output: Path, dataset: Any, runs: list[Run], options: Options) -> None:
    """splits.json of each run.

    Raises:
        ValueError: a run has begun with other splits, as another scikit-learn would make.
    """
    how = {
        "cross_validation": options.protocol.cross_validation,
        "split_column": options.data.split_column,
        "group_column_name": options.data.group_column_name,
        "split_seed": options.protocol.split_seed,
    }
    names = dataset["file_name"][:]
    columns = {folder_name(column): column for column in split_columns(options.data)}
    for run in runs:
        path = output / run.name / "splits.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            wanted = {part: [names[row] for row in rows] for part, rows in run.splits.items()}
            if {part: stored[part] for part in wanted} != wanted:
                raise ValueError(
                    f"{path}: the run began with other splits than these options give now, as with "
                    "another version of scikit-learn; name another --output_dir."
                )
        if options.protocol.cross_validation:
            source = f"{run.title} of cross-validation"
        else:
            data = replace(options.data, split_column=columns.get(run.split))
            seed = options.protocol.split_seed
            source = split_source(dataset, run.splits, data, seed, path.parent, None)
        write_splits(path, dataset, run.splits, {**how, "source": source})
    if options.protocol.pretrain_on_all:
        everything = sorted({row for run in runs for rows in run.splits.values() for row in rows})
        splits = {"train": everything, "validation": [], "test": []}
        write_splits(output / "pretrain_on_all" / "splits.json", dataset, splits, how)


class Clock:
    """Times of the steps done, from which follows about how long the others will take."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, list[float]] = {}

    def note(self, stage: str, seconds: float) -> None:
        self.seconds.setdefault(stage, []).append(seconds)

    def note_earlier(self, step: Step) -> None:
        """Of a step that was done before the interruption, what its own log says."""
        results = json.loads((step.folder / "all_results.json").read_text(encoding="utf-8"))
        if "train_runtime" in results:
            self.note(step.stage, results["train_runtime"])

    def left(self, steps: list[Step]) -> float | None:
        """Seconds that `steps` will take; None where a kind of training has not been seen yet."""
        if any(s.stage != "evaluate" and s.stage not in self.seconds for s in steps):
            return None
        means = {stage: sum(times) / len(times) for stage, times in self.seconds.items()}
        return sum(means.get(step.stage, 0.0) for step in steps)

    def text(self, steps: list[Step]) -> str:
        spent, left = time.monotonic() - self.started, self.left(steps)
        if left is None:
            return f"{duration(spent)} so far; the time left is known after the first run"
        return f"{duration(spent)} so far, about {duration(left)} left"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def going_on_later() -> Iterator[None]:
    """Any signal that asks to stop ends the protocol as it ends a training: with a word on how to
    go on, and `Interrupted`. Between trainings nothing needs to be saved first."""
    process, before = os.getpid(), {}

    def leave(number: int, frame: object) -> None:
        if os.getpid() != process:  # a forked child, ended by whoever started it
            os._exit(128 + number)
        raise KeyboardInterrupt(signal.Signals(number).name)  # no `except Exception` holds it up

    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
        for name in NAMES:
            if hasattr(signal, name):
                before[getattr(signal, name)] = signal.signal(getattr(signal, name), leave)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped by {stop or 'SIGINT'}; the same command goes on from here"
        ) from None
    except Interrupted as stop:
        what = str(stop).partition(";")[0]
        raise Interrupted(f"{what}; the same command goes on from here") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_steps(steps: list[Step], state: PartialState) -> None:
    clock = Clock()
    for number, step in enumerate(steps):
        state.wait_for_everyone()  # before all look at what the main process has written
        finished = step.finished()
        if not finished:
            if state.is_main_process:
                count = f"[{number + 1}/{len(steps)}]"
                print(f"\n{count} {step.title}  ({clock.text(steps[number:])})", flush=True)
            began = time.monotonic()
            if step.stage != "evaluate" or state.is_main_process:
                MAINS[step.stage].main(step.words)
            clock.note(step.stage, time.monotonic() - began)
        state.wait_for_everyone()
        if finished:
            clock.note_earlier(step)
        if state.is_main_process:  # the finished run's state: twice its weights and more
            shutil.rmtree(step.folder / "checkpoints", ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    options = read_options(__doc__, sys.argv[1:] if argv is None else argv)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if not state.is_main_process:
        logger.setLevel(logging.ERROR)  # each message once
    output = Path(options.protocol.output_dir)
    with going_on_later():
        dataset = load_dataset(options)
        runs = plan_runs(dataset, options)
        description = describe(options, dataset, state.num_processes)
        begun = check_description(output / DESCRIPTION, description)
        if options.protocol.compare_with:
            check_comparable(Path(options.protocol.compare_with), runs, dataset)
        state.wait_for_everyone()
        if state.is_main_process:
            write_description(output / DESCRIPTION, description)
            write_all_splits(output, dataset, runs, options)
        steps = list_steps(output, runs, options)
        done = sum(step.finished() for step in steps) if begun else 0
        if state.is_main_process:
            sizes = {part: len(rows) for part, rows in runs[0].splits.items()}
            print(
                f"{len(runs)} runs, {len(steps)} steps, {done} of them done before; in the first "
                f"run {sizes['train']} images to train, {sizes['validation']} to choose the "
                f"checkpoint, {sizes['test']} to test",
                flush=True,
            )
        run_steps(steps, state)
        if state.is_main_process:
            write_results(output, runs, dataset, options)
    return 0
