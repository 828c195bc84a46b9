"""A classifier as an ONNX file: logits and calibrated probabilities, for any batch size."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..modeling_sssd import SSSDForImageClassification
from .exports import random_images

# the opset that torch's exporter is written in, so that nothing is converted afterwards
OPSET = 18
BATCH_SIZES = (1, 2, 7)  # that an export is checked with


def require(*names: str) -> None:
    """Raises ValueError where a package of the extra `export` is missing."""
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--to onnx needs {', '.join(missing)}: pip install -e '.[export]' (or: pip install "
            f"{' '.join(missing)})"
        )


class _WithProbabilities(torch.nn.Module):
    """(batch, 3, height, width) -> logits, and probabilities at a temperature."""

    def __init__(self, model: SSSDForImageClassification, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature
        self.several = model.config.problem_type == "multi_label_classification"

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(pixel_values=pixel_values).logits
        scaled = logits / self.temperature
        return logits, scaled.sigmoid() if self.several else scaled.softmax(-1)


def facts_of(
    model: SSSDForImageClassification, processor: dict[str, Any], source: str
) -> dict[str, Any]:
    """What a user of the file needs to know beside it; plain values."""
    config = model.config
    calibration = config.calibration or {}
    temperature = calibration.get("temperature", 1.0)
    return {
        "source": source,
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "positive_label": config.id2label[1] if config.num_labels == 2 else None,
        "input": {
            "name": "pixel_values",
            "shape": ["batch", 3, processor["size"]["height"], processor["size"]["width"]],
            "colours": "RGB; grey images three times the same",
        },
        "preprocessing": {
            "resize": "to the size, whatever the aspect; bilinear, as Pillow's",
            "rescale_factor": processor["rescale_factor"],
            "image_mean": processor["image_mean"],
            "image_std": processor["image_std"],
            # where the resizing above is not how the model's images were made
            "preparation": config.preparation,
        },
        "temperature": temperature,
        "threshold": calibration.get("threshold"),
        "calibration": calibration or None,
        "folded_temperature": getattr(config, "folded_temperature", None),
        "outputs": {
            "logits": "of the model, as they are",
            "probabilities": "sigmoid"
            if config.problem_type == "multi_label_classification"
            else f"softmax(logits / {temperature:g})",
        },
        "opset": OPSET,
        "precision": "fp32",
        "use": "research; not a medical device",
    }


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Put `facts` into the metadata of an ONNX file (each value as JSON) and beside it."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")


def export_onnx(model: SSSDForImageClassification, path: Path, facts: dict[str, Any]) -> None:
    """Write a three-channel classifier to `path`, with `facts` inside and beside it.

    torch's exporter by `torch.export` is used: the older one, which traces, fixes the batch size in
    the attention's reshaping.

    Raises:
        ValueError: a package is missing, or the model is a regression, which has no probabilities.
    """
    require("onnx", "onnxscript", "onnxruntime")
    config = model.config
    if config.num_labels == 1 or config.problem_type == "regression":
        raise ValueError(
            f"--to onnx: num_labels={config.num_labels}, problem_type={config.problem_type!r}: a "
            "regression has no probabilities; expected a classifier of two or more labels."
        )
    model = _WithProbabilities(model, facts["temperature"]).eval()
    example = random_images(model.model, 2)
    with _quiet():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["pixel_values"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    write_facts(path, facts)


@contextlib.contextmanager
def _quiet():
    """Without the exporter's words about torchvision and about itself; an error is still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def open_session(path: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as torch has by default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(logits, probabilities), (batch, labels) each."""
    return tuple(
        session.run(["logits", "probabilities"], {"pixel_values": pixel_values.float().numpy()})
    )


@torch.no_grad()
def check_onnx(
    model: SSSDForImageClassification, path: Path, temperature: float = 1.0
) -> dict[str, float]:
    """{batch size: greatest difference}, of the file's logits in ONNX Runtime from those of
    `model`, the original, divided by `temperature`."""
    session, found = open_session(path), {}
    for batch in BATCH_SIZES:
        images = random_images(model, batch)
        expected = model(images).logits / temperature
        found[str(batch)] = float(np.abs(run_session(session, images)[0] - expected.numpy()).max())
    return found
