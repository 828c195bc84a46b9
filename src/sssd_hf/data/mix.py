"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), with partners from the training set.

An image's partner is an index into the training set, drawn from the image's own random numbers,
not a neighbour in its batch: so the mixture is the same however the set is cut into batches, and on
any number of processes. The partner brings the augmentation that it gets itself in this epoch.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .augment import Sample, inside

MIX_STREAM = 2  # the streams before it are augment's
QUANTILES = 1024  # steps of the table of the beta distribution


@dataclass(frozen=True)
class Mixing:
    """What is mixed; with both alphas above 0 each kind gets half of the mixtures.

    Args:
        mixup_alpha, cutmix_alpha: the own image's weight is drawn from Beta(alpha, alpha); 0
            switches the kind off.
        probability: share of the images that are mixed.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0

    def __bool__(self) -> bool:
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True)
class MixDraw:
    """What each image is mixed with, and how.

    Args:
        partner: (batch,) int64, an index into the training set; may be the image itself.
        weight: (batch,) fp32 in 0 to 1, the own image's in mixup; 1 in cutmix and where nothing is
            mixed.
        box: (batch, 4), the top, left, bottom and right of what cutmix takes from the partner, as
            shares of the sides; empty in mixup and where nothing is mixed.
    """

    partner: Tensor
    weight: Tensor
    box: Tensor


@lru_cache
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """(QUANTILES + 1,) fp32: quantiles of Beta(alpha, alpha) for (1 - cos(x)) / 2 at equal steps of
    x, which are closer at the ends. Made and copied to the device once, since torch draws no beta
    from given numbers, and a copy makes the host wait."""
    from scipy.stats import beta

    angles = torch.linspace(0, math.pi, QUANTILES + 1, dtype=torch.float64)
    shares = ((1 - angles.cos()) / 2).numpy()
    return torch.from_numpy(beta.ppf(shares, alpha, alpha)).float().to(device)


def sample_beta(uniform: Tensor, alpha: float) -> Tensor:
    """Beta(alpha, alpha) of numbers in [0, 1), linear between 1,024 quantiles."""
    table = _beta_quantiles(alpha, uniform.device)
    place = (1 - 2 * uniform).acos() * (QUANTILES / math.pi)
    step = place.long().clamp(max=QUANTILES - 1)
    return torch.lerp(table[step], table[step + 1], place - step)


def mix_partners(sample: Sample, num_images: int, mixing: Mixing) -> MixDraw:
    """Draw the mixture of each image, a pure function of its random numbers.

    Args:
        sample: (stream, *shape) -> (batch, *shape) fp32 uniform in [0, 1).
        num_images: of the training set.
    """
    numbers = sample(MIX_STREAM, 7).unbind(1)
    mixed, kind, quantile, high, low, center_y, center_x = numbers
    # floor of num_images times a number of 48 bits, exact in integers on any device
    high, low = (high * 2**24).long(), (low * 2**24).long()
    partner = (high * num_images + ((low * num_images) >> 24)) >> 24

    mixed = mixed < mixing.probability
    share_of_cutmix = 0.5 if mixing.mixup_alpha else 1.0
    cut = mixed & (kind < (share_of_cutmix if mixing.cutmix_alpha else 0.0))
    weight = torch.ones_like(quantile)
    if mixing.mixup_alpha:
        drawn = sample_beta(quantile, mixing.mixup_alpha)
        weight = torch.where(mixed & ~cut, drawn, weight)
    side = torch.zeros_like(quantile)  # of the box, as a share of the image's
    if mixing.cutmix_alpha:
        drawn = sample_beta(quantile, mixing.cutmix_alpha)
        side = torch.where(cut, (1 - drawn).sqrt(), side)
    # centred anywhere, and what reaches beyond the image is lost, as in the paper
    box = [center_y - side / 2, center_x - side / 2, center_y + side / 2, center_x + side / 2]
    return MixDraw(partner, weight, torch.stack(box, dim=1).clamp(0, 1))


def mix(pixels: Tensor, partners: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
    """Mix images with their partners.

    Args:
        pixels, partners: (batch, channels, height, width), augmented; normalised or not.

    Returns:
        The mixtures, and (batch,) the weight of the own image, which is that of the own label: in
        cutmix the exact share of the pixels. The partner's is one minus it.
    """
    cut = inside(draw.box, (pixels.shape[2], pixels.shape[3]))  # (batch, height, width)
    own = torch.where(cut, 0.0, draw.weight[:, None, None])
    mixed = torch.lerp(partners, pixels, own[:, None])
    # sums of zeros and ones are exact in fp32, in any order, up to 2^24 pixels
    return mixed, draw.weight * (1 - cut.float().mean((1, 2)))
