"""Checkpoints are whole or not there; damage of any kind is noticed."""

import errno
import json
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
import torch

from sssd_hf.training import checkpoints as module
from sssd_hf.training.checkpoints import CheckpointError, Checkpoints, read_checkpoint

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "sssd_hf"


def some_tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "weight": torch.randn(7, 5, generator=generator),
            "half": torch.randn(3, generator=generator).bfloat16(),
        },
        "optimizer": {"weight/exp_avg": torch.randn(7, 5, generator=generator)},
        "average": {},
    }


def check_same(tensors, expected):
    found = {group: values for group, values in expected.items() if values}
    assert set(tensors) == set(found)
    for group, values in found.items():
        assert set(tensors[group]) == set(values)
        for name, value in values.items():
            assert tensors[group][name].dtype == value.dtype
            assert torch.equal(tensors[group][name], value)


@pytest.fixture
def two(tmp_path):
    """The checkpoints of the steps 5 and 10."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 10):
        checkpoints.save(step, some_tensors(step), {"note": [step, None, 0.1]})
    return checkpoints


def test_what_was_saved_comes_back(two):
    tensors, state = two.load_latest()
    check_same(tensors, some_tensors(10))
    assert state["step"] == 10
    assert state["note"] == [10, None, 0.1]
    tensors, state = two.load(str(two.folder / "step-00000005"))
    check_same(tensors, some_tensors(5))


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none").load_latest() is None


def damaged_everywhere(folder):
    """Every file cut off at many lengths, with bits flipped at many places, and removed."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        lengths = {0, 1, len(data) // 2, len(data) - 1, *range(2, len(data), len(data) // 15 + 1)}
        for length in sorted(lengths):
            yield path, data[:length], f"{path.name} cut to {length}"
        for place in range(0, len(data), max(1, len(data) // 40)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (place % 8)
            yield path, bytes(flipped), f"bit of {path.name} at {place}"
        yield path, None, f"{path.name} removed"
        yield path, data + b"\0", f"{path.name} longer"


def test_damage_is_noticed_and_the_checkpoint_before_is_used(two, caplog):
    newest = two.folder / "step-00000010"
    count = 0
    for path, data, what in damaged_everywhere(newest):
        before = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)
        # white space alone may change in a JSON file that means the same
        meaning = path.name == "manifest.json" and data is not None
        try:
            same = meaning and json.loads(data) == json.loads(before)
        except ValueError:
            same = False
        caplog.clear()
        tensors, state = two.load_latest()
        if not same:
            assert state["step"] == 5, what
            check_same(tensors, some_tensors(5))
            assert "step-00000010" in caplog.text, what
            assert "damaged" in caplog.text, what
            count += 1
        path.write_bytes(before)
    assert count > 200
    assert two.load_latest()[1]["step"] == 10, "the damage was all there was to it"


def test_all_damaged_is_an_error(two):
    for folder in two.found():
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"All 2 checkpoints .* damaged"):
        two.load_latest()


def test_a_newer_format_is_refused(two, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="format 1, this version reads 2"):
        read_checkpoint(two.folder / "step-00000010")


def test_a_manifest_reaches_no_file_outside(two, tmp_path):
    folder = two.folder / "step-00000010"
    (tmp_path / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["../../outside.safetensors"] = manifest["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside"):
        read_checkpoint(folder)


def test_only_so_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=2)
    for step in range(1, 6):
        checkpoints.save(step, some_tensors(step), {})
        assert len(checkpoints.found()) == min(step, 2)
    assert [folder.name for folder in checkpoints.found()] == ["step-00000005", "step-00000004"]
    assert len(list(tmp_path.iterdir())) == 2
    every = Checkpoints(tmp_path, limit=0)
    every.save(6, some_tensors(6), {})
    assert len(every.found()) == 3


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_going_on_from_an_older_one_leaves_no_later_ones(tmp_path, limit):
    """A damaged later one, or one of other options, is neither kept in place of what is written now
    nor found as the latest."""
    every = Checkpoints(tmp_path, limit=0)
    for step in (5, 10, 20, 30):
        every.save(step, some_tensors(step), {})
    (tmp_path / "step-00000010 copy").mkdir()  # of the user
    for name in ("step-00000020", "step-00000030"):
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, limit=limit)
    assert checkpoints.load_latest()[1]["step"] == 10
    checkpoints.save(15, some_tensors(15), {})
    kept = [15, 10, 5][: limit or None]
    assert [folder.name for folder in every.found()] == [f"step-{step:08d}" for step in kept]
    assert every.load_latest()[1]["step"] == 15
    assert (tmp_path / "step-00000010 copy").is_dir()


def test_a_checkpoint_that_cannot_be_replaced_stays(two, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            two.save(10, some_tensors(11), {})
    check_same(two.load_latest()[0], some_tensors(10))
    two.save(10, some_tensors(11), {})
    check_same(two.load_latest()[0], some_tensors(11))


def test_what_is_synced_is_open_for_writing(two, monkeypatch):
    """Windows syncs no file that is open for reading alone."""
    fcntl = pytest.importorskip("fcntl")
    files = []

    def sync(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            files.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(module.os, "fsync", sync)
    two.save(15, some_tensors(15), {})
    assert files == [os.O_RDWR] * 4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_what_is_read_does_not_hang_on_the_file(two):
    tensors, _ = two.load_latest()
    assert "step-00000010" not in Path("/proc/self/maps").read_text()
    check_same(tensors, some_tensors(10))


def test_a_folder_that_is_not_there(two):
    with pytest.raises(CheckpointError, match=r"--resume_from_checkpoint .*no such folder.*-00000"):
        two.load("runs/mistyped")


def test_leftovers_of_a_killed_process_are_no_checkpoints(two):
    half = two.folder / ".writing-00000015-1"
    shutil.copytree(two.folder / "step-00000010", half)
    assert two.load_latest()[1]["step"] == 10
    two.save(20, some_tensors(20), {})
    assert not half.exists()


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "rename"])
def test_a_full_disk_leaves_the_last_checkpoint(two, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = {"save_file": module, "write_text": Path, "fsync": module.os, "rename": Path}[where]
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, full)
        with pytest.raises(OSError, match="No space left"):
            two.save(15, some_tensors(15), {})
    assert sorted(p.name for p in two.folder.iterdir()) == ["step-00000005", "step-00000010"]
    tensors, state = two.load_latest()
    assert state["step"] == 10
    check_same(tensors, some_tensors(10))


def test_a_write_that_the_system_refuses(two):
    """As a full disk, for real: no file of this process may grow beyond 4,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError):
            two.save(15, {"model": {"weight": torch.zeros(10_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert two.load_latest()[1]["step"] == 10
    assert len(list(two.folder.iterdir())) == 2


def test_no_pickle_in_the_training(two):
    """Nothing of ours writes a pickle, or reads one but the original MAE's."""
    allowed = {"conversion_sssd.py"}
    words = ("import pickle", "torch.save(", "torch.load(", ".save_state(", 'load_state("')
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for word in words:
            assert word not in text or path.name in allowed, f"{path.name}: {word}"
    suffixes = {path.suffix for path in two.folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
