"""The engine's promises in a smaller form; `make stress` keeps them in full."""

import subprocess
import sys
from pathlib import Path

import pytest
from invariance import compare

pytestmark = pytest.mark.slow


def test_killed_runs_end_with_the_weights_of_the_uninterrupted_one(tmp_path):
    """In a process of its own: the runs are forked from it."""
    script = Path(__file__).with_name("kills.py")
    line = [sys.executable, str(script), "--kills", "5", "--output", str(tmp_path / "kills.csv")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count(",identical,") == 5


def test_processes_and_parts_do_not_change_the_run(tmp_path):
    rows = compare(tmp_path, shares=[(1, 8, 1), (2, 2, 2), (4, 2, 1)])
    for row in rows:
        assert float(row["loss, largest relative difference"]) <= 1e-5, row
        assert float(row["outputs, largest difference"]) <= 1e-4, row
