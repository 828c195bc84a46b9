"""The benchmarks' own arithmetic: what they count, what they compare and what they write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sssd_hf import SSSDConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = [BENCHMARKS / "results", BENCHMARKS / "results" / "avx2"]


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder's files import each other by name, as they do when one is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    yield
    for name in names & set(sys.modules):
        if BENCHMARKS in Path(sys.modules[name].__file__ or "").parents:
            del sys.modules[name]


CASES = [
    {"image_size": 32, "patch_size": 8, "mask_ratio": 0.75},
    {"image_size": 40, "patch_size": 8, "mask_ratio": 0.6, "num_channels": 1},
]


def config(**options):
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 192, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2}
    sizes |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 128}
    return SSSDConfig(**sizes, distillation="mae", **options)


@pytest.mark.parametrize("options", CASES)
def test_operations_are_those_that_torch_counts(benchmarks, options):
    """In a forward pass that embeds the hidden patches too, as the paper's and stock's do."""
    from models import PublishedMAE, operations, stock_model

    size = config(**options)
    images = torch.randn(4, size.num_channels, size.image_size, size.image_size)

    def counted(model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
        return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}

    published, stock = counted(PublishedMAE(size)), counted(stock_model(size, "cpu"))
    hidden = size.num_patches - int(size.num_patches * (1 - size.mask_ratio))
    embedded = 4 * 2 * hidden * size.patch_size**2 * size.num_channels * size.hidden_size
    assert sum(published.values()) - embedded == operations(size, 4) / 3
    for name in ("aten.convolution", "aten.addmm"):  # torch does not count a fused attention
        assert published[name] == stock[name]


def test_the_published_step_has_the_weights_of_stock(benchmarks):
    from models import PublishedMAE, stock_model

    def learned(model):
        return sorted(p.shape.numel() for p in model.parameters() if p.requires_grad)

    size = config(**CASES[0])
    ours, theirs = PublishedMAE(size), stock_model(size, "cpu")
    assert sum(learned(ours)) == sum(learned(theirs))
    assert theirs.vit.embeddings.position_embeddings.abs().sum() > 0, "built from a config: none"


def test_medians_of_turns_that_alternate(benchmarks):
    from measuring import interleave, ratio

    walls = {"a": iter([100, 3, 1, 2]), "b": iter([100, 6, 9, 5])}
    order = []

    def case(name):
        order.append(name)
        return {"wall": next(walls[name]), "processor": 1.0}

    found = interleave({n: lambda n=n: case(n) for n in walls}, repeats=3)
    assert order == ["a", "b"] * 4
    assert {k: found["a"][k] for k in ("wall", "least", "most", "turns")} == {
        "wall": 2, "least": 1, "most": 3, "turns": 3,
    }  # fmt: skip
    assert ratio(found, "b", "a", "wall") == 3


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_recorded_figures(benchmarks, results, tmp_path, monkeypatch):
    import table

    for file in results.glob("*.json"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(tmp_path)])
    table.main()
    for name in ("bars-cpu.md", "tables-cpu.md"):
        assert (tmp_path / name).read_text() == (results / name).read_text(), name


@pytest.mark.slow
def test_a_trial_of_the_benchmarks(tmp_path):
    """As a GPU's owner starts them: those that need no files, the fewest cases, then the table."""
    line = [sys.executable, str(BENCHMARKS / "all.py"), "--quick", "--results", str(tmp_path)]
    done = subprocess.run(
        [*line, "--only", "step,distillation"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (case, *_) = json.loads((tmp_path / "quick" / "step-cpu.json").read_text())["figures"]
    assert 0.3 < case["ratio"] < 10
    assert 0.01 < case["mfu"] < 1
    bars = (tmp_path / "quick" / "bars-cpu.md").read_text()
    assert "step against stock" in bars
    assert "self-distillation over plain MAE" in bars
