"""From images to what a model takes and gives: normalised, augmented, mixed batches; outputs of all
images."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..configuration_sssd import as_pair
from ..data.augment import Augmentation, augment
from ..data.cache import Images
from ..data.mix import Mixing, mix, mix_partners
from ..modeling_sssd import sample_uniform
from ..training.feeds import Draw, to_device
from ..training.seeding import image_seeds
from .arguments import FinetuneAugmentation, PretrainAugmentation


@lru_cache
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, channels, 1, 1); copied to the device once, since each copy makes the host wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def normalize(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """0 to 255 (uint8 or float) -> (x / 255 - mean) / std, fp32, as `ViTImageProcessor`."""
    channels = pixels.shape[1]
    mean_tensor = _on_device(tuple(mean[:channels]), pixels.device)
    std_tensor = _on_device(tuple(std[:channels]), pixels.device)
    return (pixels.float() / 255 - mean_tensor) / std_tensor


def rank_batches(
    count: int,
    batch_size: int,
    accelerator: Accelerator | None,
    heed_signals: Callable[[], None] | None = None,
) -> Iterator[tuple[torch.Tensor, bool]]:
    """(indices, a range, and whether they count) of this process's batches. Each process has as
    many, so that all meet in the reductions of a sharded model and in those of `heed_signals`,
    which is called before each batch; those in excess do not count."""
    processes = accelerator.num_processes if accelerator else 1
    rank = accelerator.process_index if accelerator else 0
    batches = torch.arange(count).split(batch_size)
    for turn in range(math.ceil(len(batches) / processes)):
        if heed_signals:
            heed_signals()
        place = turn * processes + rank
        yield batches[min(place, len(batches) - 1)], place < len(batches)


def model_inputs(
    model: torch.nn.Module,
    images: Images,
    index: torch.Tensor,
    statistics: tuple[list[float], list[float]],
) -> torch.Tensor:
    """(batch, channels, height, width) fp32: the images `index` (batch,) with the evaluation
    transform, on the model's device, resized to the model's size where theirs is another."""
    device, size = next(model.parameters()).device, as_pair(model.config.image_size)
    pixels = images.batch(index, device)
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return normalize(pixels, *statistics)


CACHED = 16 * 2**20  # bytes of a layer's widest activations, for a processor's last cache to hold


def images_at_once(model: torch.nn.Module, batch_size: int) -> int:
    """On a CPU no more images than have their widest activations in the cache: small at 224 pixels
    takes 28 ms an image in batches of 8 or 16 and 38 in batches of 64 (two cores of an EPYC)."""
    config = model.config
    if next(model.parameters()).device.type != "cpu":
        return batch_size
    of_one = 4 * (1 + config.num_patches) * config.intermediate_size
    return min(batch_size, max(1, CACHED // of_one))


@torch.no_grad()
def map_images(
    model: torch.nn.Module,
    function: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Accelerator | None = None,
    heed_signals: Callable[[], None] | None = None,
) -> np.ndarray:
    """(images, width) fp64: `function` of normalised images, with the evaluation transform; the
    processes share the work and all get the whole. Images of another size than the model's are
    resized to it. See `rank_batches` for `heed_signals`.

    Raises:
        RuntimeError: the model is in training mode, where stochastic depth changes its answers.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call model.eval() first")
    result = torch.zeros(len(images), width, device=next(model.parameters()).device)
    batch_size = images_at_once(model, batch_size)
    for index, real in rank_batches(len(images), batch_size, accelerator, heed_signals):
        values = function(model_inputs(model, images, index, statistics)).float()
        if real:
            result[index[0] : index[-1] + 1] = values  # by a mask or a list the host would wait
    if accelerator and accelerator.num_processes > 1:
        result = accelerator.reduce(result, "sum")
    return result.cpu().double().numpy()  # Apple's GPUs have no fp64


def predict_probabilities(
    model: torch.nn.Module,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Accelerator | None = None,
    heed_signals: Callable[[], None] | None = None,
) -> np.ndarray:
    """(images, classes) fp64 probabilities; see `map_images`."""

    def probabilities(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixel_values).logits.float().softmax(-1)

    width = model.config.num_labels
    shared = images, statistics, batch_size, accelerator, heed_signals
    return map_images(model, probabilities, width, *shared)


# (batch, 1 + patches, width), CLS first, -> (batch, width)
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens.mean(1),
    "mean_patches": lambda tokens: tokens[:, 1:].mean(1),
}


def image_features(
    model: torch.nn.Module,
    images: Images,
    statistics: tuple[list[float], list[float]],
    batch_size: int,
    accelerator: Accelerator | None = None,
    heed_signals: Callable[[], None] | None = None,
    pooling: str = "mean_patches",
) -> np.ndarray:
    """(images, hidden_size) fp64: the encoder's last hidden state, all patches seen, pooled as
    `POOLINGS` says; `model` is an encoder or has one."""

    def features(pixel_values: torch.Tensor) -> torch.Tensor:
        return POOLINGS[pooling](model.base_model(pixel_values).last_hidden_state)

    width = model.config.hidden_size
    shared = images, statistics, batch_size, accelerator, heed_signals
    return map_images(model, features, width, *shared)


def augmentation_of(arguments: PretrainAugmentation) -> Augmentation:
    return Augmentation(
        min_scale=arguments.min_crop_scale,
        max_scale=arguments.max_crop_scale,
        flip=arguments.horizontal_flip,
        vertical_flip=arguments.vertical_flip,
        rotation=arguments.rotation,
        shear=arguments.shear,
        translation=arguments.translation,
        brightness=arguments.brightness,
        contrast=arguments.contrast,
        gamma=arguments.gamma,
        blur=arguments.blur,
        noise=arguments.noise,
        erasing=arguments.erasing,
    )


def mixing_of(arguments: FinetuneAugmentation) -> Mixing:
    return Mixing(arguments.mixup_alpha, arguments.cutmix_alpha, arguments.mix_probability)


@dataclass(frozen=True)
class Batches:
    """What turns draws into batches.

    Args:
        images: what a draw's indices count; None: a stream, whose draws bring pixels and labels.
        size: (height, width) that the model sees.
        seed: with the epoch and the image's row in the data set, what its randomness is drawn from.
        statistics: (mean, std) of the normalisation.
    """

    images: Images | None
    size: tuple[int, int]
    seed: int
    augmentation: Augmentation
    statistics: tuple[list[float], list[float]]
    device: torch.device

    def augmented(self, draw: Draw, with_labels: bool = True) -> dict[str, Any]:
        """Normalised, augmented images, the seeds from which the model draws what is random, and
        labels."""
        draw = self._complete(draw)
        return {**self._batch(draw), **({"labels": draw.labels} if with_labels else {})}

    def mixed(self, draw: Draw, mixing: Mixing, num_classes: int) -> dict[str, Any]:
        """The same, each image mixed with another one (mixup, cutmix); the labels are (batch,
        classes) shares. The partner is drawn from all images, in a stream from the part batch."""
        own = self._complete(draw)
        seeds = image_seeds(self.seed, own.epoch, own.index, "augment")
        pool = len(draw) if self.images is None else len(self.images)
        mixture = mix_partners(partial(sample_uniform, seeds), pool, mixing)
        if self.images is None:
            other = own.part(mixture.partner)
        else:
            other = self._complete(Draw(mixture.partner, own.epoch))
        batch, others = self._batch(own), self._batch(other)
        pixels, share = mix(batch["pixel_values"], others["pixel_values"], mixture)
        labels = [F.one_hot(part.labels, num_classes).float() for part in (own, other)]
        labels = share[:, None] * labels[0] + (1 - share[:, None]) * labels[1]
        return {**batch, "pixel_values": pixels, "labels": labels}

    def _complete(self, draw: Draw) -> Draw:
        """On the device, with pixels and labels; its indices are then rows of the data set, or
        positions in a stream."""
        index, epoch = to_device(draw.index, self.device), to_device(draw.epoch, self.device)
        pixels, labels = draw.pixels, draw.labels
        if self.images is not None:
            pixels = self.images.batch(draw.index, self.device) if pixels is None else pixels
            labels = None if self.images.labels is None else self.images.labels[index]
            index = self.images.rows[index]
        labels = None if labels is None else to_device(labels, self.device)
        return Draw(index, epoch, to_device(pixels, self.device), labels)

    def _batch(self, draw: Draw) -> dict[str, Any]:
        seeds = image_seeds(self.seed, draw.epoch, draw.index, "augment")
        sample = partial(sample_uniform, seeds)
        pixels = augment(draw.pixels, self.size, sample, self.augmentation)
        return {
            "pixel_values": normalize(pixels, *self.statistics),
            "sample_seeds": image_seeds(self.seed, draw.epoch, draw.index, "model"),
        }


def label_weights(labels: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """The sum of the weights of a batch's labels, (batch,) or (batch, classes) shares."""
    if labels.ndim == 1:
        return class_weights[labels].sum()
    return (labels @ class_weights).sum()
