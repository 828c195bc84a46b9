"""What the page answers, as plain values: probabilities, decisions, heat maps, reconstructions."""

import base64
import binascii
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...configuration_sssd import as_pair
from ...data.cache import Images
from ...data.preparation import Preparation
from ...evaluation.aggregation import aggregate
from ...evaluation.calibration import apply_calibration
from ...evaluation.explanations import explain
from ...modeling_sssd import SSSDForPreTraining
from ..batches import model_inputs
from ..classifiers import Classifier, load_classifier
from ..common import read_statistics
from ..data import preparation_of
from ..reconstructions import reconstruct

BATCH_SIZE = 64
MOST_SHOWN = 6  # slices of a series whose pictures are drawn


@dataclass(frozen=True)
class NamedClassifier:
    """A classifier and what the page calls it: never its whole path."""

    name: str
    classifier: Classifier


@dataclass(frozen=True)
class Reconstructor:
    """A pretraining checkpoint, how its images are prepared and normalised. The lock is held while
    the model's mask ratio is another one."""

    model: SSSDForPreTraining
    preparation: Preparation
    statistics: tuple[list[float], list[float]]
    lock: threading.Lock


@dataclass(frozen=True)
class Answer:
    """What one model says of one case.

    Args:
        labels: names of the classes.
        probabilities: (images, classes), calibrated where the model has a calibration.
        decided: (images,) the class of each image.
        whole: (classes,) of all images together.
        whole_decided: the class of the case.
        calibration: see `evaluation.calibration`; None: none.
    """

    labels: list[str]
    probabilities: np.ndarray
    decided: np.ndarray
    whole: np.ndarray
    whole_decided: int
    calibration: dict[str, Any] | None

    @property
    def threshold(self) -> float | None:
        """From which probability of class 1 on an image counts as of class 1."""
        return self.calibration["threshold"] if self.calibration else None

    @property
    def followed(self) -> int:
        """The class whose course through a series is shown: the positive one of two."""
        return 1 if len(self.labels) == 2 else self.whole_decided


def load_all(names: Sequence[str]) -> list[NamedClassifier]:
    """Classifiers with names that differ.

    Raises:
        ValueError: as `load_classifier`, and where they cut volumes along different axes.
    """
    shown = short_names(names)
    loaded = [NamedClassifier(s, load_classifier(name)) for s, name in zip(shown, names)]
    axes = {each.classifier.preparation.slice_axis for each in loaded}
    if len(axes) > 1:
        raise ValueError(
            f"--model_name_or_path: the models cut volumes along different axes "
            f"({', '.join(sorted(axes))}), so that their slices can't be shown side by side; start "
            "the demo with one of them."
        )
    return loaded


def load_reconstructor(name: str) -> Reconstructor:
    """A checkpoint of pretraining: SSSD, ViTMAE or the original MAE's."""
    model = SSSDForPreTraining.from_pretrained(name, dtype=torch.float32).eval()
    config = model.config
    size = as_pair(config.image_size)
    return Reconstructor(
        model,
        preparation_of(config, size),
        read_statistics(name, config.num_channels),
        threading.Lock(),
    )


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path or Hub name; longer where the last parts are the same."""
    parts = [Path(name).parts for name in names]
    short = list(names)
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({number})" for number, name in enumerate(short, 1)]


def as_images(pixels: np.ndarray) -> Images:
    return Images(torch.arange(len(pixels)), None, torch.from_numpy(pixels))


def answer(classifier: Classifier, pixels: np.ndarray, method: str) -> Answer:
    """Of one case: its images together, by `evaluation.aggregation`'s `method`.

    Args:
        pixels: (images, channels, height, width) uint8, at least one image.
    """
    raw = classifier.probabilities(as_images(pixels), BATCH_SIZE)
    probabilities, decided = apply_calibration(raw, classifier.calibration)
    return of_whole(classifier, probabilities, decided, method)


def of_whole(
    classifier: Classifier, probabilities: np.ndarray, decided: np.ndarray, method: str
) -> Answer:
    groups = np.zeros(len(probabilities), dtype=np.int64)
    # one image is its own answer; max and noisy_or of several classes would rescale it
    whole = probabilities if len(groups) == 1 else aggregate(probabilities, groups, method)[1]
    calibration = classifier.calibration
    # the threshold is one of single images; predict.py --aggregate_by decides alike
    chosen = decided[0] if len(groups) == 1 else whole[0].argmax()
    return Answer(
        classifier.label_names, probabilities, decided, whole[0], int(chosen), calibration
    )


def answer_each(
    classifier: Classifier, pixels: np.ndarray, groups: Sequence[int], method: str
) -> dict[int, Answer]:
    """As `answer`, for each group of the images, such as those of one file."""
    raw = classifier.probabilities(as_images(pixels), BATCH_SIZE)
    probabilities, decided = apply_calibration(raw, classifier.calibration)
    of_group = np.asarray(groups)
    return {
        int(group): of_whole(
            classifier, probabilities[of_group == group], decided[of_group == group], method
        )
        for group in np.unique(of_group)
    }


def choose_shown(probabilities: np.ndarray, followed: int, most: int = MOST_SHOWN) -> list[int]:
    """Indices, in order, of the images whose pictures are drawn: the most probable of class
    `followed` (probabilities: (images, classes))."""
    best = np.argsort(-probabilities[:, followed], kind="stable")[:most]
    return sorted(int(i) for i in best)


def heat_maps(
    classifier: Classifier, pixels: np.ndarray, method: str, target: int | Sequence[int]
) -> np.ndarray:
    """(images, rows, columns) in 0..1, each scaled to its own peak: what raises class `target`. Of
    an ensemble the mean of its members' maps."""
    images, index = as_images(pixels), torch.arange(len(pixels))
    targets = torch.as_tensor(np.broadcast_to(target, len(pixels)).copy())
    total = 0
    for model, statistics in zip(classifier.models, classifier.statistics, strict=True):
        inputs = model_inputs(model, images, index, statistics)
        maps = explain(model, inputs, method, targets).cpu().numpy()
        peaks = maps.max(axis=(1, 2), keepdims=True)
        total = total + np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)
    return total / len(classifier.models)


def reconstructions(
    reconstructor: Reconstructor, pixels: np.ndarray, mask_ratio: float, seed: int
) -> tuple[list[np.ndarray], int, int]:
    """(the four pictures of `reconstruct`, visible patches, all patches).

    Args:
        pixels: (images, channels, height, width) uint8.
        mask_ratio: share of the patches that is hidden; at least one stays visible.
        seed: of the masks.
    """
    model = reconstructor.model
    patches = model.config.grid_size[0] * model.config.grid_size[1]
    # rounded down where the visible ones are counted: 1e-9 keeps 0.7 of 10 patches from 2
    mask_ratio = min(max(mask_ratio, 0.0), 1 - 1 / patches) - 1e-9
    index = torch.arange(len(pixels))
    inputs = model_inputs(model, as_images(pixels), index, reconstructor.statistics)
    noise = torch.rand(len(pixels), patches, generator=torch.Generator().manual_seed(seed))
    with reconstructor.lock:
        own, model.config.mask_ratio = model.config.mask_ratio, mask_ratio
        try:
            pictures = reconstruct(
                model, inputs, reconstructor.statistics, noise=noise.to(inputs.device)
            )
        finally:
            model.config.mask_ratio = own
    return list(pictures), int(patches * (1 - mask_ratio)), patches


# What the page keeps of a case, in the browser: the pixels that the models are shown, so that the
# server forgets the case and another explanation needs no second upload.


def pack(pixels: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(pixels.tobytes(), 1)).decode()


def unpack(text: Any, preparation: Preparation, most: int = MOST_SHOWN) -> np.ndarray:
    """(images, channels, height, width) uint8 of what `pack` gave.

    Raises:
        ValueError: anything else; a browser sends whatever it likes.
    """
    shape = (preparation.num_channels, *preparation.size)
    size = int(np.prod(shape))
    try:
        decoder = zlib.decompressobj()
        data = decoder.decompress(base64.b64decode(text, validate=True), most * size + 1)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError("these are not the pixels of a case") from error
    if not data or len(data) % size or len(data) > most * size:
        raise ValueError("these are not the pixels of a case")
    return np.frombuffer(data, np.uint8).reshape(-1, *shape).copy()
