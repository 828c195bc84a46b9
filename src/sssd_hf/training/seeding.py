"""Randomness that belongs to the image: seeds are pure functions of (seed, epoch, image, purpose).

The numbers themselves come from `sample_uniform` (SplitMix64, a counter-based hash), so they are
the same on any device, in any batch, on any number of processes, and after a resume.
"""

import torch

from ..modeling_sssd import sample_uniform, splitmix

PURPOSES = {"model": 0, "augment": 1, "order": 2, "evaluate": 3}


def image_seeds(
    seed: int, epoch: int | torch.Tensor, index: torch.Tensor, purpose: str
) -> torch.Tensor:
    """One int64 seed an image: (batch,) indices into the data set, and the epoch of all or of each
    -> (batch,)."""
    seeds = splitmix(torch.tensor(seed))  # what is the same for all images, on the host
    seeds = splitmix(seeds ^ epoch)
    return splitmix(splitmix(seeds ^ PURPOSES[purpose]) ^ index)


def epoch_order(seed: int, epoch: int, length: int) -> torch.Tensor:
    """The order of an epoch: the images sorted by a number drawn for each of them."""
    seeds = image_seeds(seed, epoch, torch.arange(length), "order")
    return sample_uniform(seeds, 0, 1)[:, 0].argsort(stable=True)
