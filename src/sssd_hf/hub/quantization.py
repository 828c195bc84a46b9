"""An ONNX classifier with 8-bit weights for the CPU: two ways are tried, the better is kept."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .onnx import open_session, run_session

MAX_LOSS = 0.005  # of accuracy, against fp32
MAX_CALIBRATION_IMAGES = 128
_BATCH = 16
# the products whose one side is a weight; attention's own and the patch projection stay fp32
_OPERATIONS = ["MatMul", "Gemm"]


class _Batches:
    """What onnxruntime's calibration reads: a dict of inputs a call, then None."""

    def __init__(self, pixel_values: torch.Tensor):
        self.batches = iter(pixel_values.split(_BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixel_values": batch.float().numpy()}


def _head(path: Path) -> list[str]:
    """Names of the nodes that make the logits: the classifier, which stays fp32 (it costs nothing
    and every error in it is an error of the answer)."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = [node.name for node in graph.node if "logits" in node.output]
    # onnxruntime splits a Gemm before it looks for what is excluded
    return names + [f"{name}_MatMul" for name in names]


@contextlib.contextmanager
def _no_warnings():
    """onnxruntime logs advice (on preprocessing, which is done here) through the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def quantize(source: Path, target: Path, calibration: torch.Tensor | None) -> None:
    """Write `source` with int8 weights to `target`.

    Args:
        calibration: (images, 3, height, width) normalised training images, from whose range the
            scales of the activations are taken ("static"); None: they are taken anew for every
            input ("dynamic").

    Weights have one scale a column, and 7 bits where activations are unsigned: on CPUs without VNNI
    8 bits overflow, and the file is to give the same answers everywhere.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    with _no_warnings():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        common = {
            "per_channel": True,
            "reduce_range": True,
            "op_types_to_quantize": _OPERATIONS,
            "nodes_to_exclude": _head(prepared),
            "weight_type": quantization.QuantType.QInt8,
            "extra_options": {"MatMulConstBOnly": True},
        }
        if calibration is None:
            quantization.quantize_dynamic(str(prepared), str(target), **common)
        else:
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Batches(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                **common,
            )
    prepared.unlink()


def classify_onnx(session: Any) -> Callable[[torch.Tensor], np.ndarray]:
    """Normalised images -> (images,) the most probable class of each."""
    return lambda pixel_values: run_session(session, pixel_values)[0].argmax(1)


def images_per_second(run: Callable[[Any], Any], batch: Any, repeats: int) -> float:
    """How many images of `batch` are done in a second: the best of `repeats`, after a warm-up; what
    is slower was disturbed by other work on the machine."""
    run(batch)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds)


def measure(
    classify: Callable[[Any], np.ndarray],
    images: Any,
    labels: np.ndarray,
    prepare: Callable[[Any], Any] = lambda images: images,
) -> dict[str, float]:
    """Accuracy of `classify` (prepared images -> classes), and its speed at batch sizes 1 and 32.

    Args:
        images: a tensor or list, of which parts are taken.
        labels: (images,) classes.
        prepare: makes of a part of `images` what `classify` takes; not counted in the speed.
    """
    parts = range(0, len(images), _BATCH)
    found = [classify(prepare(images[start : start + _BATCH])) for start in parts]
    times = -(-32 // len(images))  # short sets are gone through again
    many = images.repeat(times, 1, 1, 1) if isinstance(images, torch.Tensor) else images * times
    return {
        "accuracy": float((np.concatenate(found) == labels).mean()),
        "images_per_second_batch_1": images_per_second(classify, prepare(many[:1]), 50),
        "images_per_second_batch_32": images_per_second(classify, prepare(many[:32]), 15),
    }


def choose_int8(
    source: Path,
    target: Path,
    calibration: torch.Tensor,
    images: torch.Tensor,
    labels: np.ndarray,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[str, dict[str, dict[str, float]]]:
    """Quantise in both ways and keep, as `target`, the faster one whose accuracy on `images` is at
    most `MAX_LOSS` below that of `source`.

    Args:
        calibration: normalised images of the training split.
        images, labels, prepare: as `measure`; what is judged on, not the test split.

    Returns:
        ("static" or "dynamic", {"fp32", "static", "dynamic": as `measure`}).

    Raises:
        ValueError: neither holds the accuracy.
    """
    found = {"fp32": measure(classify_onnx(open_session(source)), images, labels, prepare)}
    paths = {way: target.with_name(f"{way}.onnx") for way in ("static", "dynamic")}
    for way, path in paths.items():
        quantize(source, path, calibration if way == "static" else None)
        found[way] = measure(classify_onnx(open_session(path)), images, labels, prepare)
    good = [way for way in paths if found[way]["accuracy"] >= found["fp32"]["accuracy"] - MAX_LOSS]
    if not good:
        raise ValueError(
            f"--int8: on {len(images)} images the accuracy falls from "
            f"{found['fp32']['accuracy']:.4f} to {found['static']['accuracy']:.4f} (static) and "
            f"{found['dynamic']['accuracy']:.4f} (dynamic), by more than {MAX_LOSS}. Export "
            "without --int8."
        )

    def speed(way: str) -> float:
        return found[way]["images_per_second_batch_1"] * found[way]["images_per_second_batch_32"]

    chosen = max(good, key=speed)
    paths.pop(chosen).replace(target)
    for path in paths.values():
        path.unlink()
    return chosen, found
