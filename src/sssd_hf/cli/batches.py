"""From drawn images to what the model takes: augmented, mixed, normalised, with their seeds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..data.augment import Augmentation, augment
from ..data.cache import Images
from ..data.mix import Mixing, mix, mix_partners
from ..modeling_sssd import sample_uniform
from ..training.feeds import Draw
from ..training.seeding import image_seeds
from .arguments import FinetuneAugmentation, PretrainAugmentation
from .common import normalize


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
        index, epoch = draw.index.to(self.device), draw.epoch.to(self.device)
        pixels, labels = draw.pixels, draw.labels
        if self.images is not None:
            pixels = self.images.batch(draw.index, self.device) if pixels is None else pixels
            labels = None if self.images.labels is None else self.images.labels[index]
            index = self.images.rows[index]
        pixels = pixels.to(self.device, non_blocking=True)
        return Draw(index, epoch, pixels, None if labels is None else labels.to(self.device))

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
