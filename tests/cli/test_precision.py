"""The precision that a run computes in."""

from pathlib import Path

import pytest

from sssd_hf.cli import common
from sssd_hf.cli.common import cpu_has_bf16, hardware, make_accelerator


@pytest.fixture(params=[True, False])
def has_bf16(request, monkeypatch):
    monkeypatch.setattr(common, "cpu_has_bf16", lambda: request.param)
    return request.param


def test_bf16_is_fp32_on_a_processor_without_it(has_bf16, caplog):
    accelerator = make_accelerator("bf16")
    assert accelerator.mixed_precision == ("bf16" if has_bf16 else "no")
    assert hardware(accelerator)["precision"] == accelerator.mixed_precision
    assert ("computing in fp32" in caplog.text) is not has_bf16
    assert make_accelerator("no").mixed_precision == "no"  # not that of the one before
    assert make_accelerator(None).mixed_precision == "no"


def test_so_is_that_of_accelerate_launch(has_bf16, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(None).mixed_precision == ("bf16" if has_bf16 else "no")
    assert make_accelerator("no").mixed_precision == "no"


def test_whether_the_processor_has_it_is_what_the_kernel_says():
    facts = Path("/proc/cpuinfo")
    if not facts.is_file() or "\nflags" not in facts.read_text():
        pytest.skip("there is no /proc/cpuinfo of an x86 processor")
    flags = facts.read_text().split("\nflags", 1)[1].split("\n", 1)[0].split()
    assert cpu_has_bf16() == {"avx512bw", "avx512vl", "avx512dq"}.issubset(flags)
