"""What a masked autoencoder sees of images, and what it makes of that, as pictures."""

from typing import Any

import numpy as np
import torch

from ..modeling_sssd import SSSDForPreTraining


@torch.no_grad()
def reconstruct(
    model: SSSDForPreTraining,
    pixel_values: torch.Tensor,
    statistics: tuple[list[float], list[float]],
    **masking: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(input, masked, reconstruction, the reconstruction around the visible patches), each (batch,
    height, width), or (batch, height, width, 3), in 0..1. With pixels normalised by patch, each
    patch's mean and contrast are taken from the input.

    Args:
        pixel_values: (batch, channels, height, width), normalised by `statistics` (mean, std).
        masking: what draws the masks: `noise` or `sample_seeds` of the model's forward.
    """
    output = model(pixel_values, **masking)
    target, predicted = model.patchify(pixel_values), output.logits.float()
    if model.config.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    hidden = output.mask[..., None]

    def show(patches: torch.Tensor) -> np.ndarray:
        x = model.unpatchify(patches, model.config.grid_size).permute(0, 2, 3, 1)
        mean, std = (torch.tensor(v[: x.shape[-1]], device=x.device) for v in statistics)
        return (x * std + mean).clamp(0, 1).squeeze(-1).cpu().numpy()

    grey = torch.full_like(target, (0.5 - statistics[0][0]) / statistics[1][0])
    return (
        show(target),
        show(torch.where(hidden > 0, grey, target)),
        show(predicted),
        show(torch.where(hidden > 0, predicted, target)),
    )
