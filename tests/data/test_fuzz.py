"""Mutated files through `decode_all`: each gives an array of the right shape or an error, and the
run goes on. The number comes from SSSD_FUZZ_FILES."""

import os

import numpy as np
import pytest
from fuzzing import FORMATS, OUTCOMES, as_text, mutated, outcome_of, run, seeds

from sssd_hf.data.isolation import decode_all
from sssd_hf.data.preparation import Preparation


def test_the_files_are_valid_before_they_are_mutated():
    for files in seeds().values():
        results = [result for _, result in decode_all(files, Preparation((16, 12)), 1)]
        bad = [str(r) for r in results if not isinstance(r, np.ndarray)]
        assert all("more than one frame" in text for text in bad)
        assert len(bad) <= 1


def test_mutations_are_a_function_of_the_seed():
    first, again, other = (list(mutated(40, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert [name for name, _ in first] == list(FORMATS) * 10
    assert [data for _, data in mutated(20, 1)] == [data for _, data in first[:20]]
    valid = {data for files in seeds().values() for data in files}
    assert sum(data in valid for _, data in first) < 5


def test_a_wrong_result_would_be_noticed():
    for result in (np.zeros((1, 4, 4), np.uint8), np.full((1, 16, 12), np.nan), None):
        with pytest.raises(AssertionError):
            outcome_of(result, (1, 16, 12))


@pytest.mark.slow
def test_fuzz(capsys):
    count = int(os.environ.get("SSSD_FUZZ_FILES", "500"))
    table, rare = run(count)
    with capsys.disabled():
        print("\n" + as_text(table))
    assert sum(table.values()) == count
    for name in FORMATS:  # the mutations reach the decoders, and do not break everything
        assert table[name, "refused"] > 0.1 * count / len(FORMATS)
        assert table[name, "decoded"] > 0.02 * count / len(FORMATS)
    # a decoder may die or be slow, and then costs its file alone; this many would be our fault
    assert len(rare) <= 0.02 * count, [text for *_, text in rare[:5]]
    assert {outcome for _, outcome in table} <= set(OUTCOMES)
