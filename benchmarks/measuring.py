"""What the benchmarks share: interleaved timing, fresh processes, the machine, JSON files.

A benchmark compares ways of doing the same work in one run: they take turns, so that other work on
the machine falls on all of them, and the median over the turns is reported. Two clocks are read. By
"wall" one sees what a user sees; on a busy machine "processor" (seconds of this process's threads,
or of the child processes) is the fairer one. Which one the ratios are by is written down.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]


def options(description: str, argv: list[str] | None = None, **extra: Any) -> argparse.Namespace:
    """The common options; sets threads and the processor that is used."""
    import torch

    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"))
    parser.add_argument("--quick", action="store_true", help="A trial: the fewest cases and turns.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name, default in extra.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    found = parser.parse_args(argv)
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if found.quick:
        found.repeats = min(found.repeats, 2)
        found.results = found.results / "quick"  # a trial replaces no figure
    torch.set_num_threads(found.threads)
    os.environ["OMP_NUM_THREADS"] = str(found.threads)  # of child processes
    return found


def precisions(device: str) -> tuple[str, ...]:
    """Those worth measuring: bf16 where the processor has it (without, scripts take fp32)."""
    from sssd_hf.cli.common import cpu_has_bf16

    return ("no", "bf16") if device == "cuda" or cpu_has_bf16() else ("no",)


def timed(function: Callable[[], Any], device: str = "cpu") -> dict[str, float]:
    """Seconds of one call, by both clocks."""
    import torch

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    function()
    synchronize()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def child(line: list[str], **environment: str) -> dict[str, Any]:
    """Run a process: its seconds by both clocks, the most memory (MB) that a process had at once,
    and the last line of its output as JSON where it is that.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "benchmarks")])
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        line,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = (done.stdout.strip().splitlines() or [""])[-1]
    told = json.loads(last) if last.startswith("{") else None
    return {"wall": wall, "processor": processor, "told": told}


def interleave(
    cases: dict[str, Callable[[], dict[str, Any]]], repeats: int, warmup: int = 1
) -> dict[str, dict[str, Any]]:
    """Each case's median of what it returns (`timed` or `child`), with the least and the most by
    the wall clock; all take a turn before any takes its next one."""
    runs: dict[str, list[dict]] = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            time.sleep(0.1)  # threads of the one before (ONNX Runtime's) wait for work, spinning
            found = case()
            if turn >= warmup:
                runs[name].append(found)
            print(f"  {name}: {found['wall']:.3g} s", file=sys.stderr, flush=True)
    return {
        name: {
            **{clock: statistics.median(r[clock] for r in many) for clock in ("wall", "processor")},
            "least": min(r["wall"] for r in many),
            "most": max(r["wall"] for r in many),
            "turns": len(many),
            **({"told": many[-1]["told"]} if many[-1].get("told") else {}),
        }
        for name, many in runs.items()
    }


def ratio(figures: dict[str, dict], slow: str, fast: str, clock: str) -> float:
    """How many times as long `slow` takes."""
    return figures[slow][clock] / figures[fast][clock]


def matrix_rate(dtype: Any, device: str, clock: str) -> float:
    """Operations a second of torch's matrix product at its best size: what MFU is a share of."""
    import torch

    best, many = 0.0, 10 if device == "cuda" else 1
    for n in (2048, 4096, 8192) if device == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

        def products(a=a, b=b):
            for _ in range(many):
                a @ b

        def by_onednn(a=a, b=b):  # the faster one in fp32 on AMD's processors
            torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

        ways = [products]
        if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            ways.append(by_onednn)
        for way in 6 * ways:
            best = max(best, many * 2 * n**3 / timed(way, device)[clock])
    return best


def machine(device: str) -> dict[str, Any]:
    import psutil
    import torch
    import transformers

    model = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [s for s in information.read_text().splitlines() if s.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "processor": f"{model}, {torch.backends.cpu.get_cpu_capability()}",
        "processors": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, arguments: argparse.Namespace, figures: Any) -> Path:
    """`results/NAME-DEVICE.json`: the figures, the machine and the versions."""
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{name}-{arguments.device}.json"
    kept = {k: v for k, v in vars(arguments).items() if k != "results"}
    content = {"machine": machine(arguments.device), "options": kept, "figures": figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path, file=sys.stderr)
    return path
