"""Int8 exports: the images they are made and judged with, and the figures beside them."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_sssd import as_pair
from ..data.preparation import read_image
from ..data.sources import image_sources, require_labels
from .arguments import DataArguments, ExportArguments
from .batches import normalize
from .data import choose_rows, decode_split, load_data, preparation_of, split_data

logger = logging.getLogger("sssd_hf")


@dataclass(frozen=True)
class LabelledImages:
    """Decoded images of one split: (images, channels, height, width) uint8, (images,) classes of
    the model, and the files that they are from."""

    pixels: torch.Tensor
    labels: np.ndarray
    sources: list[Any]


def read_split(
    dataset: Any, rows: list[int], model: Any, data: DataArguments, title: str
) -> LabelledImages:
    config = model.config
    size = as_pair(config.image_size)
    preparation = preparation_of(config, size, data)
    images = decode_split(dataset, rows, preparation, data, title=title)
    names = require_labels(dataset)
    known = [config.id2label[i] for i in range(config.num_labels)]
    if not set(names) <= set(known):
        raise ValueError(
            f"The data have the labels {', '.join(names)}; the model knows {', '.join(known)}."
        )
    part = dataset.select(images.rows.tolist())
    return LabelledImages(
        images.batch(torch.arange(len(images)), "cpu"),
        np.array([known.index(names[i]) for i in images.labels]),
        part["image"] if data.dataset_name else image_sources(part),
    )


def measure_pipeline(model: Any, processor: dict[str, Any], images: LabelledImages) -> Any:
    """As `quantization.measure`, of transformers' pipeline on the images as they lie on disk; None
    where its processor can't prepare them as the model needs."""
    from transformers import ViTImageProcessor, pipeline

    from ..hub.quantization import measure

    preparation = preparation_of(model.config, images.pixels.shape[2:])
    if preparation.resize_mode != "squash":
        return None
    classify = pipeline(
        "image-classification", model=model, image_processor=ViTImageProcessor(**processor)
    )

    def classes(pictures: list[Any]) -> np.ndarray:
        answers = classify(pictures, batch_size=len(pictures), top_k=1)
        return np.array([model.config.label2id[answer[0]["label"]] for answer in answers])

    def read(sources: list[Any]) -> list[Any]:  # a few at a time: they are of full size
        return [read_image(source, preparation) for source in sources]

    return measure(classes, images.sources, images.labels, read)


def export_int8(
    fp32: Path,
    folder: Path,
    original: Any,
    processor: dict[str, Any],
    data: DataArguments,
    arguments: ExportArguments,
) -> dict[str, Any]:
    """Quantise `fp32` into `folder`/model.onnx -> what was tried and measured."""
    from ..hub import quantization
    from ..hub.onnx import open_session

    target = folder / "model.onnx"
    if data.data_dir is None and data.dataset_name is None:
        logger.warning(
            "--int8 without images (--data_dir or --dataset_name): dynamic quantisation, whose "
            "loss of accuracy nobody has measured"
        )
        quantization.quantize(fp32, target, None)
        return {"way": "dynamic", "measured": None}
    dataset = load_data(data, preparation_of(original.config, (8, 8)).slice_axis)
    splits = split_data(dataset, data, arguments.seed, arguments.model_name_or_path)
    if not splits["train"]:
        raise ValueError("--int8: there is no training split, from which the ranges are taken.")
    judged = "validation" if splits["validation"] else "test"
    if not splits[judged]:
        raise ValueError("--int8: there is neither a validation nor a test split to judge on.")
    rows = choose_rows(splits["train"], quantization.MAX_CALIBRATION_IMAGES, arguments.seed)
    train = read_split(dataset, rows, original, data, "training images")
    validation = read_split(dataset, splits[judged], original, data, f"{judged} images")

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.expand(-1, 3, -1, -1)
        return normalize(pixels, processor["image_mean"], processor["image_std"])

    way, found = quantization.choose_int8(
        fp32, target, prepare(train.pixels), validation.pixels, validation.labels, prepare
    )
    result = {
        "way": way,
        "num_calibration_images": len(train.labels),
        "chosen_on": judged,
        f"{judged}": {"num_images": len(validation.labels), **found},
    }
    reported = validation
    if judged == "validation" and splits["test"]:
        reported = read_split(dataset, splits["test"], original, data, "test images")

    @torch.no_grad()
    def classify(pixel_values: torch.Tensor) -> np.ndarray:
        return original(pixel_values).logits.argmax(1).numpy()

    measure = partial(quantization.measure, images=reported.pixels, labels=reported.labels)
    result["measured"] = {
        "on": "validation" if reported is validation and judged == "validation" else "test",
        "num_images": len(reported.labels),
        "threads": torch.get_num_threads(),
        "pytorch_fp32": measure(classify, prepare=prepare),
        "onnx_fp32": measure(quantization.classify_onnx(open_session(fp32)), prepare=prepare),
        "onnx_int8": measure(quantization.classify_onnx(open_session(target)), prepare=prepare),
        "pipeline": measure_pipeline(original, processor, reported),
    }
    for name in ("pytorch_fp32", "onnx_fp32", "onnx_int8", "pipeline"):
        if figures := result["measured"][name]:
            logger.info(
                f"{name:12s} accuracy {figures['accuracy']:.4f}, images a second "
                f"{figures['images_per_second_batch_1']:.0f} one by one, "
                f"{figures['images_per_second_batch_32']:.0f} in batches of 32"
            )
    return result
