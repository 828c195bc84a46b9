"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """EMA of the trained parameters (Polyak averaging), in fp32 whatever the model's dtype.

    The decay rises from 2/11 as (1 + step) / (10 + step) up to `decay`, so that a short run is not
    an average with its random start.

    Args:
        decay: 0 < decay < 1, for one optimiser step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.values = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, for as long as the context lasts."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(kept[name])
