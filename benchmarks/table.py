"""The README's speed table, from the JSON files that the benchmarks wrote.

`python benchmarks/table.py [--device cuda]` writes Markdown beside them: `bars-DEVICE.md`, which
the README shows, and `tables-DEVICE.md`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

# published figures to set ours beside; of other machines, so no ratios are made of them
YARDSTICKS = (
    ("timm, ViT-S/16 at 224, inference of one image, one core of an i9-10940X, fp32", "13 ms"),
    ("timm, ViT-B/16 at 224, the same", "31 ms"),
    ("ViT-S training on one H100", "1.6k to 8.0k images/s (22.9 % MFU)"),
    ("lightly, MAE ViT-S, Imagenette, 800 epochs on an A6000", "248 min"),
)

# (what, bar on a CPU, bar on a GPU, whether more is better)
BARS = {
    "step_same": ("step against stock, same architecture and precision (small)", 1.2, 1.4, True),
    "step_tuned": ("the same, stock with fused AdamW and (bf16) eager attention", None, None, True),
    "published": ("the same against MAE's step re-created from its paper", None, None, True),
    "step_compiled": ("the same, all under `torch.compile`", 1.2, 1.4, True),
    "monai": ("the same against MONAI's MAE, as its users run it", None, None, True),
    "lightly": ("the same against lightly's MAE, as its users run it", None, None, True),
    "step_defaults": (
        "step of small, each at its defaults (ours: grey, 192 x 4 decoder; stock: RGB, 512 x 8)",
        *(4.0, 4.0, True),
    ),
    "defaults": (
        "end to end, each at its defaults (ours: tiny, 112 px; stock: base, 224 px)",
        *(5.0, 10.0, True),
    ),
    "same": ("end to end, same architecture and precision", 1.8, 4.0, True),
    "feeding": ("waiting for images, share of the step", 0.10, 0.02, False),
    "distillation": ("`stable` self-distillation over plain MAE", 0.05, 0.04, False),
    "global": ("`global` over plain MAE", None, None, False),
    "sd_mae": ("`sd_mae` over plain MAE: its heads are as wide as its authors'", None, None, False),
    "memory": ("peak memory against stock, same architecture and batch", 0.8, 0.8, False),
    "tensors": ("the same of what tensors have, without the allocator's gaps", 0.8, 0.8, False),
    "mfu": ("share of the machine's rate of matrix products, base at 224, bf16", None, 0.5, True),
    "inference": ("`predict.py` against the stock pipeline, same files", 2.0, 5.0, True),
    "batches": ("the same, the pipeline told to take batches of 64", None, None, True),
    "int8": ("int8 ONNX against fp32 ONNX, one image", 1.4, None, True),
}
SHARES = ("feeding", "distillation", "global", "sd_mae", "mfu")


def read(results: Path, device: str) -> dict[str, dict]:
    """Benchmark -> its file's content."""
    files = sorted(results.glob(f"*-{device}.json"))
    return {path.stem.removesuffix(f"-{device}"): json.loads(path.read_text()) for path in files}


def setting(case: dict) -> str:
    """What tells a case from others of its benchmark, in words."""
    precision = {"no": "fp32", "bf16": "bf16"}.get(case.get("precision"))
    decoder = {"mae": "512 x 8 decoder", "light": "light decoder"}.get(case.get("decoder"))
    pixels = f"{case['pixels']} px" if "pixels" in case else None
    batch = f"batch {case['batch']}" if "batch" in case else None
    epochs = f"{case['epochs']} epochs" if "epochs" in case else None
    compiled = "compiled" if case.get("compiled") else None
    if "kind" in case and precision is None:
        precision = {"no": "fp32"}.get(case["kind"].split(", ")[-1])
    parts = [case.get("size"), decoder, pixels, precision, batch, epochs, compiled]
    return ", ".join(part for part in parts if part)


def measured(found: dict[str, dict]) -> Iterator[tuple[str, str, float]]:
    """(bar, setting, value)"""

    def cases(name: str, keep: Callable[[dict], bool] = lambda case: True) -> list[dict]:
        return [case for case in found.get(name, {}).get("figures", ()) if keep(case)]

    for case in cases("step"):
        if case["kind"] == "defaults":
            yield "step_defaults", setting(case), case["ratio"]
            continue
        if case["size"] == "small":
            yield "step_same", setting(case), case["ratio"]
            yield "step_tuned", setting(case), case["ratio_tuned"]
            yield "published", setting(case), case["ratio_published"]
        if case["size"] == "base" and case["pixels"] == 224 and case["precision"] == "bf16":
            yield "mfu", setting(case), case["mfu"]
    for case in cases("step_compiled"):
        yield "step_compiled", setting(case), case["ratio"]
    for case in cases("external"):
        for package, value in case["ratios"].items():
            yield package, setting(case), value
    for case in cases("end_to_end"):
        kind, _, which = case["kind"].partition(", ")
        yield kind, ", ".join(filter(None, [which, setting(case)])), case["ratio"]
    for case in cases("feeding"):
        yield "feeding", setting(case), case["share"]
    for case in cases("distillation"):
        yield "distillation", setting(case), case["extra"]["stable"]
        for preset in ("global", "sd_mae"):
            yield preset, setting(case), case["extra"][preset]
    for case in cases("memory"):
        yield "memory", setting(case), case["ratio"]
        if "ratio_allocated" in case:
            yield "tensors", setting(case), case["ratio_allocated"]
    for case in cases("inference"):
        yield "inference", setting(case), case["ratio"]
        clock = found["inference"]["options"]["clock"]
        batches, own = (case["seconds"][w][clock] for w in ("pipeline, batches of 64", "own"))
        yield "batches", setting(case), batches / own
    for case in cases("latency"):
        alone = {name: times["milliseconds"] for name, times in case["one_image"].items()}
        if "own, onnx-int8" in alone and "own, onnx" in alone:
            yield "int8", setting(case), alone["own, onnx"] / alone["own, onnx-int8"]


def latency(found: dict[str, dict]) -> Iterator[str]:
    yield "| one image, milliseconds | ours | stock ViT | ONNX | ONNX int8 |"
    yield "| --- | --- | --- | --- | --- |"
    for case in found.get("latency", {}).get("figures", ()):
        alone = case["one_image"]
        ways = ("own", "stock ViT", "own, onnx", "own, onnx-int8")
        times = (f"{alone[w]['milliseconds']:.1f}" if w in alone else "" for w in ways)
        yield f"| {setting(case)} | {' | '.join(times)} |"


def by_bar(found: dict[str, dict]) -> dict[str, list[tuple[str, float]]]:
    seen: dict[str, list[tuple[str, float]]] = {bar: [] for bar in BARS}
    for bar, which, value in measured(found):
        seen[bar].append((which, value))
    return seen


def shown(bar: str, value: float) -> str:
    return f"{value:.1%}" if bar in SHARES else f"{value:.2f} x"


def is_met(bar: str, value: float, device: str) -> bool | None:
    """None: there is no limit, the figure is for the reader."""
    _, on_cpu, on_gpu, more_is_better = BARS[bar]
    limit = on_gpu if device == "cuda" else on_cpu
    if limit is None:
        return None
    return value >= limit if more_is_better else value <= limit


def wanted(bar: str, device: str) -> str:
    _, on_cpu, on_gpu, more_is_better = BARS[bar]
    limit = on_gpu if device == "cuda" else on_cpu
    if limit is None:
        return ""
    text = f"{limit:.0%}" if bar in SHARES else f"{limit:g} x"
    return f"{'>=' if more_is_better else '<='} {text}"


def bars(found: dict[str, dict], device: str) -> Iterator[str]:
    """A line a bar: the range over the settings, and in how many of them it is met."""
    yield "| | measured | wanted | met |"
    yield "| --- | --- | --- | --- |"
    for bar, cases in by_bar(found).items():
        values = sorted(value for _, value in cases)
        ends = [shown(bar, value) for value in (values[:1] + values[1:][-1:])]
        verdicts = [is_met(bar, value, device) for value in values]
        met = (
            f"{sum(verdicts)} of {len(verdicts)} settings"
            if values and None not in verdicts
            else ""
        )
        text = " to ".join(ends) or "not measured"
        yield f"| {BARS[bar][0]} | {text} | {wanted(bar, device)} | {met} |"


def every_setting(found: dict[str, dict], device: str) -> Iterator[str]:
    yield "| | setting | measured | wanted | |"
    yield "| --- | --- | --- | --- | --- |"
    words = {None: "", True: "met", False: "missed"}
    for bar, cases in by_bar(found).items():
        for which, value in cases:
            verdict = words[is_met(bar, value, device)]
            text = f"{shown(bar, value)} | {wanted(bar, device)} | {verdict}"
            yield f"| {BARS[bar][0]} | {which} | {text} |"


def rates(found: dict[str, dict]) -> Iterator[str]:
    yield "| step | ours, images/s | stock | stock, tuned | paper's | share of rate | stock |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    figures = (found.get(name, {}).get("figures", ()) for name in ("step", "step_compiled"))
    for case in chain(*figures):
        if case["kind"] == "same":
            rate = case["images_per_second"]
            ways = ("own", "stock", "stock, tuned", "published")
            ours, stock, tuned, paper = (f"{rate[way]:,.0f}" for way in ways)
            shares = f"{case['mfu']:.0%} | {case['mfu_stock']:.0%}"
            yield f"| {setting(case)} | {ours} | {stock} | {tuned} | {paper} | {shares} |"


def growth(found: dict[str, dict]) -> Iterator[str]:
    yield "| what grows | value | images/s | memory, MB |"
    yield "| --- | --- | --- | --- |"
    for name, runs in found.get("growth", {}).get("figures", {}).items():
        for run in runs:
            if "failed" not in run:
                rate, memory = run["images_per_second"], run["megabytes"]
                yield f"| {name} | {run[name]} | {rate:,.0f} | {memory:,.0f} |"


def memory(found: dict[str, dict]) -> Iterator[str]:
    """`allocated` and `state`: see memory.py."""
    yield "| peak memory, MB | ours | stock | ratio | of what tensors have | 16 bytes a weight |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for case in found.get("memory", {}).get("figures", ()):
        own, stock = (case["megabytes"][way] for way in ("own", "stock"))
        of_tensors = f"{case['ratio_allocated']:.2f}" if "ratio_allocated" in case else ""
        yield (
            f"| {setting(case)} | {own['megabytes']:,.0f} | {stock['megabytes']:,.0f} | "
            f"{case['ratio']:.2f} | {of_tensors} | {own['state']:,.0f} |"
        )


def startup(found: dict[str, dict]) -> Iterator[str]:
    content = found.get("startup", {"figures": {}, "options": {"clock": "wall"}})
    yield "| start-up | seconds |"
    yield "| --- | --- |"
    for name, seconds in content["figures"].items():
        yield f"| {name} | {seconds[content['options']['clock']]:.2f} |"


def described(contents: Iterable[dict]) -> str:
    """The machines, each with the days on which it measured."""
    days: dict[str, set[str]] = {}
    for content in contents:
        machine = content["machine"]
        place = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
        place += f", torch {machine['torch']}, transformers {machine['transformers']}"
        place += f", by the {content['options']['clock']} clock"
        days.setdefault(place, set()).add(machine["date"])
    return "; and ".join(f"{place}, on {' and '.join(sorted(on))}" for place, on in days.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = read(arguments.results, arguments.device)
    if not found:
        sys.exit(f"no results of {arguments.device} in {arguments.results}: run `make bench` first")
    head = "Medians of interleaved runs (memory, growth: one run each), measured on "
    head += described(found.values()) + "."
    tables = ["\n".join(every_setting(found, arguments.device))]
    tables += ["\n".join(part(found)) for part in (rates, memory, latency, growth, startup)]
    published = ["| published, on other machines | figure |", "| --- | --- |"]
    tables.append("\n".join(published + [f"| {what} | {figure} |" for what, figure in YARDSTICKS]))
    for name, parts in (("bars", ["\n".join(bars(found, arguments.device))]), ("tables", tables)):
        path = arguments.results / f"{name}-{arguments.device}.md"
        path.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")
        print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
