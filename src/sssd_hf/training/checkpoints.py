"""Checkpoints from which a run goes on exactly: written whole or not at all, checked when read.

    OUTPUT_DIR/checkpoints/step-00001200/
        model.safetensors     the weights, as `SSSDForPreTraining` and the classifier load them
        optimizer.safetensors AdamW's moments by parameter name, and other groups of tensors alike:
                              the average, the best weights so far, random states
        state.json            steps done, scaler, place in a stream, early stopping, options
        manifest.json         size and SHA-256 of each file; written last

A folder is written under a temporary name, synced and renamed; no file is a pickle.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

logger = logging.getLogger("sssd_hf")
FORMAT = 1
Tensors = dict[str, dict[str, torch.Tensor]]  # group -> name -> tensor


class CheckpointError(ValueError):
    """A checkpoint is damaged or of another kind; the message says which and what to do."""


@dataclass
class Checkpoints:
    """Where and how often the state of a run is written.

    Args:
        folder: OUTPUT_DIR/checkpoints.
        every_steps: a checkpoint after so many steps; 0: by time alone.
        every_minutes: a checkpoint after so many minutes of training; 0: none by time.
        limit: how many are kept; 0: all.
        saved: told of each checkpoint's folder once it is whole; must neither wait nor raise.
    """

    folder: Path
    every_steps: int = 0
    every_minutes: float = 0.0
    limit: int = 2
    saved: Callable[[Path], None] | None = None
    _last: float = field(default_factory=time.monotonic)

    def due_by_time(self) -> bool:
        return self.every_minutes > 0 and time.monotonic() - self._last > 60 * self.every_minutes

    def restart_clock(self) -> None:
        """After each attempt, on all processes: one that never writes must not ask again at once,
        nor is a full disk to be tried at every step."""
        self._last = time.monotonic()

    def due_at_end(self) -> bool:
        """Where a minute's work or more would be lost."""
        asked_for = self.every_steps > 0 or self.every_minutes > 0
        return asked_for and time.monotonic() - self._last > 60

    def due_by_step(self, step: int) -> bool:
        return self.every_steps > 0 and step % self.every_steps == 0

    def save(self, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step (number of steps done), then remove the oldest ones, and
        those of later steps: the run has gone on from an older one, for they are damaged or of
        other options, and "latest" must not come back to them.

        Raises:
            OSError: it could not be written (a full disk); what was there before is intact.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".writing-{step:08d}-{os.getpid()}"
        temporary.mkdir()
        try:
            for group, values in filter(lambda item: item[1], tensors.items()):
                save_file(values, temporary / f"{group}.safetensors", {"format": "pt"})
            text = json.dumps({**state, "format": FORMAT, "step": step})
            (temporary / "state.json").write_text(text)
            manifest = {p.name: _describe(p) for p in sorted(temporary.iterdir())}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in [*temporary.iterdir(), temporary]:
                _sync(path)
            if final.exists():  # written before the run went on from an older one
                _remove(final)
            temporary.rename(final)
            _sync(self.folder)
        except SafetensorError as error:  # safetensors' own class for a failing write
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(str(error)) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        found = self.found()
        place = found.index(final)
        for other in found[:place] + (found[place + self.limit :] if self.limit else []):
            _remove(other)
        if self.saved:
            self.saved(final)
        return final

    def found(self) -> list[Path]:
        """The checkpoints' folders, the newest first."""
        # eight digits: a copy that somebody made beside them is neither read nor removed
        folders = self.folder.glob("step-" + 8 * "[0-9]") if self.folder.is_dir() else []
        return sorted((f for f in folders if f.is_dir()), key=lambda f: f.name, reverse=True)

    def load(self, which: str) -> tuple[Tensors, dict[str, Any]] | None:
        """The checkpoint `which`: "latest", or a folder.

        Raises:
            CheckpointError: there is no such folder, or it is damaged.
        """
        if which == "latest":
            return self.load_latest()
        if not Path(which).is_dir():
            kept = ", ".join(folder.name for folder in self.found()) or "none"
            raise CheckpointError(
                f"--resume_from_checkpoint {which}: there is no such folder; expected latest or a "
                f"checkpoint's folder (in {self.folder}: {kept})"
            )
        return read_checkpoint(Path(which))

    def load_latest(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The newest checkpoint that is whole; damaged ones are named in a warning and passed over.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        found = self.found()
        for folder in found:
            try:
                return read_checkpoint(folder)
            except CheckpointError as error:
                logger.warning(f"{error}; trying the checkpoint before it")
        if found:
            raise CheckpointError(
                f"All {len(found)} checkpoints in {self.folder} are damaged. Remove the folder to "
                "start anew, or restore it from a copy."
            )
        return None

    def _remove_leftovers(self) -> None:
        for folder in [*self.folder.glob(".writing-*"), *self.folder.glob(".removing-*")]:
            shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """(tensors by group, state) of one checkpoint, every file compared with the manifest.

    Raises:
        CheckpointError: a file is missing, shorter, altered, or of a newer format.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, expected in manifest.items():
            if Path(name).name != name or _describe(folder / name) != expected:
                raise CheckpointError(f"{folder}: {name} is not what its manifest says, so damaged")
        state = json.loads((folder / "state.json").read_text())
        tensors = {
            # copied: what load_file gives is mapped from the file, which is removed later on
            name.removesuffix(".safetensors"): {
                key: value.clone() for key, value in load_file(folder / name).items()
            }
            for name in manifest
            if name.endswith(".safetensors")
        }
    except CheckpointError:
        raise
    # whatever damaged bytes provoke: missing files, JSON, encodings, safetensors' own errors
    except (OSError, ValueError, AttributeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged ({type(error).__name__}: {error})") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: has format {state.get('format')}, this version reads {FORMAT}; resume with "
            "the version of sssd_hf that wrote it"
        )
    return tensors, state


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows syncs no folders
        return
    # a file for writing: Windows syncs none that is open for reading alone
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Renamed first: a half-removed folder is never taken for a checkpoint."""
    aside = folder.with_name(f".removing-{folder.name}-{os.getpid()}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


# ---------------------------------------------------------------------- tensors of a training


def gather(value: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; one that FSDP2 has sharded is put together (by all processes)."""
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.detach().cpu().contiguous()


def like(value: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """`value` on the device of `pattern`, and sharded as it is."""
    value = value.to(pattern.device)
    if hasattr(pattern, "full_tensor") and value.shape == pattern.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, pattern.device_mesh, pattern.placements)
    return value


def reshard(model: nn.Module) -> None:
    """Let go of the whole weights that FSDP2 keeps after a forward without a backward; the next
    forward would use them, whatever has been written to the sharded ones since."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """AdamW's state as `PARAMETER/KEY` -> tensor on the CPU."""
    states = getattr(optimizer, "optimizer", optimizer).state
    return {
        f"{name}/{key}": gather(value)
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict) -> None:
    states = getattr(optimizer, "optimizer", optimizer).state
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        states[parameters[parameter]][key] = like(value, parameters[parameter])


@torch.no_grad()
def load_model(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Weights and buffers in place.

    Raises:
        CheckpointError: names or shapes differ: the options build another model.
    """
    targets = model.state_dict()
    if {k: v.shape for k, v in targets.items()} != {k: v.shape for k, v in tensors.items()}:
        odd = sorted(
            name
            for name in targets.keys() | tensors.keys()
            if name not in targets
            or name not in tensors
            or targets[name].shape != tensors[name].shape
        )
        raise CheckpointError(
            f"The checkpoint is of another model: {len(odd)} weights differ, first {odd[0]}. "
            "Resume with the options the run began with."
        )
    for name, value in tensors.items():
        targets[name].copy_(like(value, targets[name]))
